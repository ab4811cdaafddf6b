"""Read lava-dl's ``.net`` files (HDF5) into fixed-point graphs: what `lava.lib.dl.netx.hdf5.Network` builds from them.

Layer types and fields are those of lava-dl 0.6.0 (`netx/hdf5.py`): input, conv, flatten, dense, neurons CUBA and LOIHI,
bias exponent 6, ``du = iDecay - 1``. What netx reads otherwise than it stands in the file (weights that 8 bits do not
hold, delays beyond 62) is refused by name, and so is what this reader does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from exporters.net_format import NEVER_FIRES, changed_by_netx
from slamp.arithmetic import DECAY_ONE, MAX_DELAY, SHIFT, FixedPoint
from slamp.errors import ArtifactError, GraphError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    Affine,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Shape,
    uniform,
)
from slamp.shapes import output_shape

LAYER_TYPES = ("input", "conv", "flatten", "dense", "dense_rec")
NEURON_TYPES = ("CUBA", "LOIHI")
# netx's neuron of a dense layer without one: it integrates without leak and never fires
DEFAULT_NEURON = {"iDecay": 0, "vDecay": DECAY_ONE, "vThMant": NEVER_FIRES}
UNREADABLE = (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError)


def read_net(path: str | Path, *, dt: float = 1e-3) -> SpikingGraph:
    """Return the network of a ``.net`` file as a fixed-point graph.

    Layer ``i`` of the file becomes the nodes ``layer<i>`` (weights) and ``neuron<i>``. A last layer that cannot fire is
    a readout. An input layer with neurons takes whole numbers x and drives them with weight * x + bias, as netx's
    ``Input.transform`` says. The bias of a layer is added to the membrane, as netx does it.

    Args:
        path: The file.
        dt: Time step in seconds, which the format does not state.

    Raises:
        ArtifactError: The file is missing, damaged, or holds what is not read; the message names file, layer and field.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file; name a .net file of lava-dl")
    try:
        with h5py.File(path, "r") as file:
            layers = _layers(file, path)
            return _graph(layers, dt)
    except (ArtifactError, GraphError) as error:
        found = str(error)
        raise ArtifactError(found if found.startswith(str(path)) else f"{path}: {found}") from error
    except UNREADABLE as error:
        raise ArtifactError(
            f"{path}: not a readable .net file ({type(error).__name__}: {error}); export it again with lava-dl"
        ) from error


@dataclass(frozen=True)
class _Layer:
    """One ``/layer/<index>`` group."""

    index: int
    kind: str
    group: h5py.Group

    @property
    def where(self) -> str:
        return f"layer {self.index} ({self.kind})"

    def has(self, key: str) -> bool:
        return key in self.group

    def values(self, key: str) -> np.ndarray:
        """Return a dataset; raises `ArtifactError` if it is missing or holds no numbers."""
        found = self.group.get(key)
        if not isinstance(found, h5py.Dataset):
            held = ", ".join(sorted(self.group))
            raise ArtifactError(f"{self.where}: no dataset {key!r}; it holds {held}")
        array = np.asarray(found[()])
        if array.dtype.kind not in "iufb" or array.size == 0:
            raise ArtifactError(
                f"{self.where}: {key} has dtype {array.dtype}, shape {array.shape}; allowed are numbers"
            )
        return array

    def whole(self, key: str) -> np.ndarray:
        """Return a dataset of whole numbers as float64: netx would cut fractions off without a word."""
        array = self.values(key).astype(np.float64)
        wrong = ~np.isfinite(array) | (array != np.round(array))
        if bool(wrong.any()):
            index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
            raise ArtifactError(f"{self.where}: {key}{list(index)} is {array[index]}; allowed are whole numbers")
        return array

    def number(self, key: str) -> int:
        array = self.whole(key)
        if array.size != 1:
            raise ArtifactError(f"{self.where}: {key} has shape {array.shape}; allowed is one number")
        return int(array.reshape(-1)[0])

    def pair(self, key: str) -> tuple[int, int]:
        """Return a setting per axis (y, x); one number counts for both."""
        array = self.whole(key).reshape(-1)
        if array.size not in (1, 2):
            raise ArtifactError(f"{self.where}: {key} has shape {array.shape}; allowed are one or two numbers")
        return int(array[0]), int(array[-1])

    def shape(self) -> Shape:
        sizes = tuple(int(size) for size in self.whole("shape").reshape(-1))
        if min(sizes) < 1:
            raise ArtifactError(f"{self.where}: shape is {sizes}; allowed are sizes of at least 1")
        return sizes


@dataclass
class _Chain:
    """A network that grows at its end.

    Attributes:
        nodes: In computing order.
        edges: Between them.
        shapes: What leaves each node.
        end: Name of the last node.
    """

    nodes: dict[str, Node]
    edges: list[tuple[str, str]]
    shapes: dict[str, Shape]
    end: str

    @property
    def shape(self) -> Shape:
        """Shape of what leaves the end."""
        return self.shapes[self.end]

    def add(self, name: str, node: Node) -> None:
        """Put a node behind the end."""
        self.join(name, node, [self.end])

    def join(self, name: str, node: Node, sources: list[str]) -> None:
        """Put a node behind others of equal shape; it becomes the end."""
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        self.shapes[name] = output_shape(name, node, self.shapes[sources[0]])
        self.end = name


def _layers(file: h5py.File, path: Path) -> list[_Layer]:
    group = file.get("layer")
    if not isinstance(group, h5py.Group) or not len(group):
        raise ArtifactError(f"{path}: holds no layers; a .net file of lava-dl has a group 'layer'")
    wanted = [str(index) for index in range(len(group))]
    if sorted(group) != sorted(wanted):
        raise ArtifactError(f"{path}: its layers are called {sorted(group)}; allowed are 0 to {len(group) - 1}")
    layers = []
    for index in range(len(group)):
        entry = group[str(index)]
        if not isinstance(entry, h5py.Group):
            raise ArtifactError(f"{path}: layer {index} is no group")
        layer = _Layer(index, _text(entry, "type", f"layer {index}"), entry)
        if layer.kind not in LAYER_TYPES:
            raise ArtifactError(f"{layer.where}: cannot be read; allowed are {', '.join(LAYER_TYPES)}")
        layers.append(layer)
    return layers


def _text(group: h5py.Group, key: str, where: str) -> str:
    if key not in group:
        raise ArtifactError(f"{where}: no dataset {key!r}; it holds {', '.join(sorted(group))}")
    found: Any = group[key][()]
    found = found[0] if isinstance(found, np.ndarray) else found
    return found.decode() if isinstance(found, bytes) else str(found)


def _graph(layers: list[_Layer], dt: float) -> SpikingGraph:
    features = _input_shape(layers[0])
    chain = _Chain({"input": Input(features)}, [], {"input": features}, "input")
    for layer in layers:
        match layer.kind:
            case "input":
                if layer.index:
                    raise ArtifactError(f"{layer.where}: stands behind other layers; allowed is the first place")
                _add_input(chain, layer)
            case "flatten":
                if len(chain.shape) > 1:
                    chain.add(f"layer{layer.index}", Flatten(0, len(chain.shape) - 1))
            case "dense" | "dense_rec":
                _add_dense(chain, layer, last=layer is layers[-1])
            case _:
                _add_conv(chain, layer, last=layer is layers[-1])
    chain.add("output", Output(chain.shape))
    return SpikingGraph(chain.nodes, tuple(chain.edges), dt, FixedPoint())


def _input_shape(layer: _Layer) -> Shape:
    if layer.kind == "input":
        return layer.shape()
    if layer.kind in ("dense", "dense_rec"):
        outputs = int(np.prod(layer.shape()))
        return (layer.values("weight").size // outputs,)
    raise ArtifactError(f"{layer.where}: the file does not state the shape of its input; begin with an input layer")


def _add_input(chain: _Chain, layer: _Layer) -> None:
    if not layer.has("neuron"):
        return
    channels = chain.shape[0]
    gain = layer.number("weight") if layer.has("weight") else 64
    shift = layer.number("bias") if layer.has("bias") else 0
    bias = np.full(channels, shift, dtype=np.float32)
    if len(chain.shape) == 3:
        weight = np.full((channels, 1, 1, 1), gain, dtype=np.float32)
        node: Node = Conv2d(weight, bias, (1, 1), (0, 0), (1, 1), channels)
    elif len(chain.shape) == 1:
        node = Affine(np.eye(channels, dtype=np.float32) * gain, bias)
    else:
        raise ArtifactError(f"{layer.where}: shape is {chain.shape}; allowed are (neurons,) and (channels, y, x)")
    chain.add(f"layer{layer.index}", node)
    chain.add(f"neuron{layer.index}", _neuron(layer, chain.shape, np.zeros(1), last=False))


def _add_dense(chain: _Chain, layer: _Layer, *, last: bool) -> None:
    recurrent = layer.kind == "dense_rec"
    if recurrent:
        _refuse(layer, "delay", "whose weights netx takes at another scale in a recurrent layer")
    outputs = int(np.prod(layer.shape()))
    weight = layer.whole("weight")
    if weight.ndim == 1 and weight.size % outputs == 0:
        weight = weight.reshape(outputs, -1)
    if len(chain.shape) > 1:
        raise ArtifactError(f"{layer.where}: receives shape {chain.shape}; put a flatten layer before it")
    if weight.shape != (outputs, chain.shape[0]):
        raise ArtifactError(f"{layer.where}: weight has shape {weight.shape}, allowed is {(outputs, chain.shape[0])}")
    _check_netx(layer, weight)
    drives = _delayed(chain, layer, weight)
    bias: np.ndarray = np.zeros(1)
    if layer.has("bias"):
        bias = layer.whole("bias")
        if bias.shape != (outputs,):
            raise ArtifactError(f"{layer.where}: bias has shape {bias.shape}, allowed is {(outputs,)}")
    if recurrent:
        back = layer.whole("weight_rec")
        back = back.reshape(outputs, -1) if back.ndim == 1 and back.size % outputs == 0 else back
        if back.shape != (outputs, outputs):
            raise ArtifactError(f"{layer.where}: weight_rec has shape {back.shape}, allowed is {(outputs, outputs)}")
        chain.nodes[f"last{layer.index}"] = Delay(uniform(1.0, (outputs,)))
        chain.nodes[f"recurrent{layer.index}"] = Linear(_float32(layer, "weight_rec", back))
        chain.shapes |= {f"last{layer.index}": (outputs,), f"recurrent{layer.index}": (outputs,)}
        chain.edges += [
            (f"neuron{layer.index}", f"last{layer.index}"),
            (f"last{layer.index}", f"recurrent{layer.index}"),
        ]
        drives.append(f"recurrent{layer.index}")
    neuron = _neuron(layer, (outputs,), bias, last=last)
    if recurrent and isinstance(neuron, CubaLI):
        raise ArtifactError(f"{layer.where}: its threshold cannot be reached, so it has nothing to feed back")
    chain.join(f"neuron{layer.index}", neuron, drives)


def _check_netx(layer: _Layer, weight: np.ndarray) -> None:
    """Raise `ArtifactError` if netx would load other weights of a dense layer than those in the file, or crash."""
    recurrent = layer.whole("weight_rec").reshape(len(weight), -1) if layer.has("weight_rec") else None
    if not weight.any() and (recurrent is None or not recurrent.any()):
        raise ArtifactError(f"{layer.where}: all weights are zero, on which netx crashes; remove the layer")
    for key, index, given, loaded in changed_by_netx(weight, recurrent):
        raise ArtifactError(
            f"{layer.where}: {key}{list(index)} is {given:g}, and netx loads {loaded:g}; allowed are 8 bits, and "
            "layers without a positive weight whose largest magnitude is no power of two"
        )


def _delayed(chain: _Chain, layer: _Layer, weight: np.ndarray) -> list[str]:
    """Add a layer's weights, with its delays before or behind them; return the nodes that drive its neurons.

    Delays of single synapses become one node of weights per delay, as Lava sums them.
    """
    start, index = chain.end, layer.index
    values = layer.whole("delay") if layer.has("delay") else np.zeros(1)
    if values.min() < 0 or values.max() > MAX_DELAY:
        raise ArtifactError(f"{layer.where}: delay runs from {values.min():g} to {values.max():g}; allowed are 0 to 62")
    outputs, inputs = weight.shape
    name = f"layer{index}"
    if values.size == 1 or values.shape == (outputs,):  # netx asks for the outputs first
        chain.add(name, Linear(_float32(layer, "weight", weight)))
        if values.any():
            late = np.broadcast_to(values.reshape(-1).astype(np.float32), (outputs,))
            chain.add(f"delay{index}", Delay(late))
        return [chain.end]
    if values.shape == (inputs,):
        chain.add(f"delay{index}", Delay(values.astype(np.float32)))
        chain.add(name, Linear(_float32(layer, "weight", weight)))
        return [name]
    if values.shape != weight.shape:
        allowed = f"(), {(outputs,)}, {(inputs,)}, {weight.shape}"
        raise ArtifactError(f"{layer.where}: delay has shape {values.shape}; allowed are {allowed}")
    drives = []
    for steps in np.unique(values[weight != 0]) if weight.any() else [0.0]:
        part, held = f"{name}d{int(steps)}", f"delay{index}d{int(steps)}"
        before = [start]
        if steps:
            chain.join(held, Delay(uniform(float(steps), (inputs,))), [start])
            before = [held]
        kept = np.where(values == steps, weight, 0)
        chain.join(part, Linear(_float32(layer, "weight", kept)), before)
        drives.append(part)
    return drives


def _add_conv(chain: _Chain, layer: _Layer, *, last: bool) -> None:
    _refuse(layer, "delay", "which netx does not look at in a convolution")
    weight = layer.whole("weight")
    if weight.ndim == 5 and weight.shape[4] == 1:
        weight = weight[..., 0]
    if weight.ndim != 4:
        raise ArtifactError(f"{layer.where}: weight has shape {weight.shape}, allowed is (out, in / groups, y, x)")
    if len(chain.shape) != 3:
        raise ArtifactError(f"{layer.where}: receives shape {chain.shape}, allowed is (channels, y, x)")
    node = Conv2d(
        weight=_float32(layer, "weight", weight),
        bias=None,
        stride=layer.pair("stride"),
        padding=layer.pair("padding"),
        dilation=layer.pair("dilation"),
        groups=layer.number("groups"),
    )
    if min(*node.stride, *node.dilation, node.groups) < 1 or min(layer.pair("padding")) < 0:
        raise ArtifactError(f"{layer.where}: stride, dilation and groups must be at least 1, padding at least 0")
    chain.add(f"layer{layer.index}", node)
    if chain.shape != layer.shape():
        raise ArtifactError(f"{layer.where}: states shape {layer.shape()}, its kernel gives {chain.shape}")
    bias: np.ndarray = np.zeros(1)
    if layer.has("bias"):
        bias = layer.whole("bias")
        if bias.shape == chain.shape[:1]:
            bias = bias[:, None, None]
        elif bias.shape == chain.shape[::-1]:
            bias = bias.transpose(2, 1, 0)  # netx takes it as (x, y, channels)
        else:
            raise ArtifactError(f"{layer.where}: bias has shape {bias.shape}, allowed is {chain.shape[:1]}")
    chain.add(f"neuron{layer.index}", _neuron(layer, chain.shape, bias, last=last))


def _neuron(layer: _Layer, shape: Shape, bias: np.ndarray, *, last: bool) -> CubaLIF | CubaLI:
    """Return the neurons of a layer; one that cannot fire, at the end of the network, is a readout."""
    fields = dict(DEFAULT_NEURON)
    if layer.has("neuron"):
        group = layer.group["neuron"]
        kind = _text(group, "type", f"{layer.where}: neuron")
        if kind not in NEURON_TYPES:
            raise ArtifactError(f"{layer.where}: neurons of type {kind}; allowed are {', '.join(NEURON_TYPES)}")
        neuron = _Layer(layer.index, f"{layer.kind}, neuron", group)
        fields = {key: neuron.number(key) for key in DEFAULT_NEURON}
        if neuron.has("messageBits") and neuron.number("messageBits"):
            raise ArtifactError(f"{neuron.where}: messageBits is {neuron.number('messageBits')}; allowed is 0")
    elif layer.kind != "dense":
        raise ArtifactError(f"{layer.where}: no group 'neuron'; only a dense layer may lack it")
    for key in ("iDecay", "vDecay"):
        if not 0 <= fields[key] <= DECAY_ONE:
            raise ArtifactError(f"{layer.where}: {key} is {fields[key]}; allowed are 0 to {DECAY_ONE}")
    if not 0 <= fields["vThMant"] <= NEVER_FIRES:
        raise ArtifactError(f"{layer.where}: vThMant is {fields['vThMant']}; allowed are 0 to {NEVER_FIRES}")
    decay_syn, decay_mem = (uniform(fields[key] / DECAY_ONE, shape) for key in ("iDecay", "vDecay"))
    v_leak = np.broadcast_to(np.array(bias * (1 << SHIFT), dtype=np.float32), shape)
    if fields["vThMant"] == NEVER_FIRES:
        if not last:
            raise ArtifactError(f"{layer.where}: its threshold cannot be reached; allowed is that in the last layer")
        return CubaLI(decay_syn, decay_mem, v_leak)
    threshold = uniform(fields["vThMant"] << SHIFT, shape)
    return CubaLIF(decay_syn, decay_mem, v_leak, threshold, uniform(0.0, shape))


def _float32(layer: _Layer, key: str, values: np.ndarray) -> np.ndarray:
    array = values.astype(np.float32)
    if not np.array_equal(array.astype(np.float64), values):
        raise ArtifactError(f"{layer.where}: {key} holds numbers up to {np.abs(values).max():g}; allowed are 8 bits")
    array.flags.writeable = False
    return array


def _refuse(layer: _Layer, key: str, why: str) -> None:
    if layer.has(key):
        raise ArtifactError(f"{layer.where}: has a dataset {key!r}, {why}; remove it")
