"""``network.npz``: a network that no ``.net`` file holds, in Lava's processes; plain arrays and JSON, no pickle.

The arrays are those of `exporters.lava_models_runner`, without inputs. ``network`` is JSON as bytes, with besides
``neurons`` and ``synapses``: ``format``, ``input`` (shape), ``output`` (``neuron``, ``shape``), and every layer's
``latency``, the steps by which it answers later in Lava.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.lava_lowering import ALWAYS_ON, INPUT, LavaNetwork, lava_description, with_inputs
from exporters.net_script import SPARSE_BELOW
from exporters.witness_lava import run_models
from slamp.archives import read_arrays
from slamp.arithmetic import MAX_BIAS_EXPONENT, MAX_DELAY, WEIGHT_EXPONENTS
from slamp.errors import ArtifactError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.manifest import MAX_LATENCY_STEPS
from slamp.nodes import Shape
from slamp.raster import SpikeRaster
from slamp.simulate import output_neuron

FORMAT = "slamp-lava-processes-1"
KINDS = ("dense", "sparse", "delay_dense", "delay_sparse", "conv")
NEURON_FIELDS = ("du", "dv", "vth", "bias_exp", "latency")
SYNAPSE_FIELDS = dict.fromkeys(KINDS, ("weight_exp", "sign_mode")) | {"conv": ("groups",)}


@dataclass(frozen=True, eq=False)
class ProcessNetwork:
    """What ``network.npz`` states.

    Attributes:
        header: The JSON.
        arrays: Weights, delays and bias mantissas, whole numbers, by the names in the header.
    """

    header: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def neurons(self) -> dict[str, dict[str, Any]]:
        """Parameters of the neuron layers by name, in computing order."""
        found: dict[str, dict[str, Any]] = self.header["neurons"]
        return found

    @property
    def synapses(self) -> list[dict[str, Any]]:
        """The synapse processes."""
        found: list[dict[str, Any]] = self.header["synapses"]
        return found

    @property
    def output(self) -> str:
        """Name of the layer whose spikes or membranes are the output."""
        return str(self.header["output"]["neuron"])

    @property
    def latency_steps(self) -> dict[str, int]:
        """Steps by which a layer answers later in Lava."""
        return {name: int(spec["latency"]) for name, spec in self.neurons.items()}

    def shape(self, source: str) -> Shape:
        """Shape of what leaves a source: the input, the line that is always on, or a layer of neurons."""
        if source == ALWAYS_ON:
            return (1,)
        return tuple(self.header["input"] if source == INPUT else self.neurons[source]["shape"])

    def weights(self, synapse: Mapping[str, Any]) -> np.ndarray:
        """Effective weights of a synapse process, float64."""
        weights: np.ndarray = self.arrays[synapse["weight"]] * 2.0 ** synapse.get("weight_exp", 0)
        return weights


def process_network(graph: SpikingGraph) -> ProcessNetwork:
    """Say a fixed-point graph in Lava's processes, pruned layers in `Sparse`.

    Raises:
        UnsupportedNodeError: A node has no process of Lava, or the output is no layer of neurons; the message names it.
    """
    output = output_neuron(graph)
    if output is None:
        sources = " and ".join(graph.sources(graph.output))
        raise UnsupportedNodeError(f"{graph.output}: gives {sources}; allowed are spikes or membranes of one layer")
    network = lava_description(graph, sparse_below=SPARSE_BELOW)
    arrays = dict(network.arrays)
    stated = json.loads(arrays.pop("network").tobytes().decode())
    ends = {"neuron": output, "shape": list(graph.shapes[graph.output])}
    return ProcessNetwork({"format": FORMAT, **stated, "output": ends}, arrays)


def write_processes(path: Path, network: ProcessNetwork) -> None:
    """Write ``network.npz``."""
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **_packed(network))


def run_processes(network: ProcessNetwork, inputs: SpikeRaster, *, time_limit_s: float) -> dict[str, np.ndarray]:
    """Step the network in Lava's own ``fixed_pt`` process models, in a child process.

    Args:
        network: As it was read from the file.
        inputs: (time, batch, *features).
        time_limit_s: After so many seconds the child process is ended.

    Returns:
        ``u/NAME``, ``v/NAME`` and ``s/NAME`` of every layer, (time, batch, *neurons), aligned with the inputs.

    Raises:
        MissingDependencyError: Lava's environment is not installed.
        WitnessError: Lava refused the network, crashed or ran out of time.
    """
    described = with_inputs(LavaNetwork(_packed(network), network.latency_steps), inputs)
    (answer,) = run_models([described.arrays], time_limit_s=time_limit_s)
    return {
        f"{key}/{name}": answer[f"{key}/{name}"][late : late + inputs.steps]
        for name, late in network.latency_steps.items()
        for key in ("u", "v", "s")
    }


def _packed(network: ProcessNetwork) -> dict[str, np.ndarray]:
    text = json.dumps(network.header).encode()
    return {"network": np.frombuffer(text, dtype=np.uint8), **network.arrays}


def read_process_network(path: Path) -> ProcessNetwork:
    """Read ``network.npz``.

    Raises:
        ArtifactError: The file is missing, damaged, or its parts do not fit one another; the message names the part.
    """
    try:
        arrays = read_arrays(path)
        header = json.loads(arrays.pop("network").tobytes().decode())
        network = ProcessNetwork(header, arrays)
        problem = next(_problems(network), "")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file; export again") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: not a readable {FORMAT} file ({type(error).__name__}: {error}); export again"
        ) from error
    if problem:
        raise ArtifactError(f"{path}: {problem}; export again")
    return network


def _problems(network: ProcessNetwork) -> Iterator[str]:
    """Yield what of a file does not fit: the part, what was found, what is allowed."""
    header = network.header
    if header["format"] != FORMAT:
        yield f"format is {header['format']!r}, allowed is {FORMAT!r}"
    yield from _shape_problems("input", header["input"])
    yield from _shape_problems("output", header["output"]["shape"])
    for name, spec in network.neurons.items():
        yield from _shape_problems(name, spec["shape"])
        yield from _number_problems(
            name, spec, (*NEURON_FIELDS, *(("reset_offset",) if "reset_offset" in spec else ()))
        )
        yield from _array_problems(network, f"bias/{name}", network.shape(name))
        for key, most in (("latency", MAX_LATENCY_STEPS), ("bias_exp", MAX_BIAS_EXPONENT)):
            if not 0 <= spec[key] <= most:
                yield f"{name}: {key} is {spec[key]}, allowed are 0 to {most}"
    if network.output not in network.neurons:
        yield f"output is {network.output!r}, allowed are {', '.join(network.neurons)}"
    for synapse in network.synapses:
        yield from _synapse_problems(network, synapse)


def _synapse_problems(network: ProcessNetwork, synapse: Mapping[str, Any]) -> Iterator[str]:
    source, target, kind = synapse["source"], synapse["target"], synapse["kind"]
    where = f"{synapse['name']} from {source} to {target}"
    if source not in (INPUT, ALWAYS_ON, *network.neurons) or target not in network.neurons:
        yield f"{where}: there are no such layers; allowed are {', '.join(network.neurons)}"
    if kind not in KINDS:
        yield f"{where}: kind is {kind!r}, allowed are {', '.join(KINDS)}"
    yield from _number_problems(where, synapse, (*SYNAPSE_FIELDS[kind], *(("starts",) if source == ALWAYS_ON else ())))
    least, most = WEIGHT_EXPONENTS
    if not least <= synapse.get("weight_exp", 0) <= most:
        yield f"{where}: weight_exp is {synapse['weight_exp']}, allowed are {least} to {most}"
    if kind == "conv":
        for key, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if len(synapse[key]) != 2 or not all(
                isinstance(number, int) and number >= least for number in synapse[key]
            ):
                yield f"{where}: {key} is {synapse[key]}, allowed are two whole numbers from {least} on"
        if synapse["groups"] < 1:
            yield f"{where}: groups is {synapse['groups']}, allowed are whole numbers from 1 on"
        if len(network.shape(source)) != 3 or len(network.shape(target)) != 3:
            yield f"{where}: is a convolution between layers that are not (channels, y, x)"
        yield from _array_problems(network, synapse["weight"], None)
        channels = network.arrays[synapse["weight"]].shape[0]
        if channels != network.shape(target)[0]:
            yield f"{where}: its kernel has {channels} outputs, its target {network.shape(target)[0]} channels"
        return
    matrix = (int(np.prod(network.shape(target))), int(np.prod(network.shape(source))))
    yield from _array_problems(network, synapse["weight"], matrix)
    if kind in ("delay_dense", "delay_sparse"):
        yield from _array_problems(network, synapse["delay"], matrix)
        delays = network.arrays[synapse["delay"]]
        if delays.min() < 0 or delays.max() > MAX_DELAY:
            yield f"{where}: delays run from {delays.min()} to {delays.max()}, allowed are 0 to {MAX_DELAY}"


def _shape_problems(where: str, shape: Any) -> Iterator[str]:
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        yield f"{where}: shape is {shape}, allowed are sizes of at least 1"


def _number_problems(where: str, spec: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if not isinstance(spec[key], int):
            yield f"{where}: {key} is {spec[key]!r}, allowed are whole numbers"


def _array_problems(network: ProcessNetwork, key: str, shape: Shape | None) -> Iterator[str]:
    array = network.arrays[key]
    if array.dtype.kind not in "iu":
        yield f"{key}: dtype is {array.dtype}, allowed are integers"
    if shape is None and (array.ndim != 4 or not array.size):
        yield f"{key}: shape is {array.shape}, allowed is (out, in / groups, y, x)"
    if shape is not None and array.shape != shape:
        yield f"{key}: shape is {array.shape}, allowed is {shape}"


def process_differences(found: ProcessNetwork, wanted: ProcessNetwork) -> Iterator[str]:
    """Yield what a file states otherwise than a graph asks for, one line per field."""
    for what in ("input", "output"):
        if _plain(found.header[what]) != _plain(wanted.header[what]):
            yield f"{what} is {found.header[what]} in the file, {wanted.header[what]} in the graph"
    yield from _missing(set(found.neurons), set(wanted.neurons))
    for name in wanted.neurons:
        if name in found.neurons:
            yield from _field_differences(name, found.neurons[name], wanted.neurons[name])
            bias = f"bias/{name}"
            yield from _array_differences(f"{name}: bias mantissa", found.arrays[bias], wanted.arrays[bias])
    ours, theirs = ({_said(synapse): synapse for synapse in network.synapses} for network in (wanted, found))
    yield from _missing(set(theirs), set(ours))
    for said, synapse in ours.items():
        if said not in theirs:
            continue
        other = theirs[said]
        yield from _array_differences(f"{said}: weight", found.weights(other), wanted.weights(synapse))
        if "delay" in synapse and "delay" in other:
            yield from _array_differences(
                f"{said}: delay", found.arrays[other["delay"]], wanted.arrays[synapse["delay"]]
            )
        yield from _field_differences(said, other, synapse)


def _said(synapse: Mapping[str, Any]) -> str:
    return f"{synapse['target']}: {synapse['weight'].removeprefix('weight/')}"


def _missing(found: set[str], wanted: set[str]) -> Iterator[str]:
    yield from (f"{name} is missing in the file" for name in sorted(wanted - found))
    yield from (f"{name} is in the file, the graph has none" for name in sorted(found - wanted))


def _field_differences(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        if _plain(found.get(key)) != _plain(wanted.get(key)):
            yield f"{where}: {key} is {found.get(key)} in the file, {wanted.get(key)} in the graph"


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back: lists, no tuples."""
    return json.loads(json.dumps(value))


def _array_differences(where: str, found: np.ndarray, wanted: np.ndarray) -> Iterator[str]:
    if found.shape != wanted.shape:
        yield f"{where} has shape {found.shape} in the file, {wanted.shape} in the graph"
    elif not np.array_equal(found, wanted):
        index = tuple(int(axis) for axis in np.argwhere(found != wanted)[0])
        yield f"{where}{list(index)} is {found[index]:g} in the file, {wanted[index]:g} in the graph"
