"""`quantize`: a float graph in Loihi's integers, layer by layer, on the scale that moves fewest spikes.

A layer of neurons has one scale S, whole numbers per unit of its input x: sums are ``a = S * x``, and Loihi shifts them
by 6. Norse's membrane v becomes ``64 * S * (v - v_reset) / decay_mem`` (IF: ``64 * S * (v - v_reset)``), because Loihi
adds the current whole and decays the rest. Weights, thresholds and biases are rounded on that one scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from slamp.activity import Activity
from slamp.arithmetic import (
    BIAS_MANTISSA,
    DECAY_ONE,
    MAX_THRESHOLD,
    SHIFT,
    FixedPoint,
    Float32,
    LayerScale,
)
from slamp.driven_layers import DrivenLayer, driven, driven_layer, spikes_of
from slamp.dynamics import exact_float32
from slamp.errors import GraphError, ProfileError, UnsupportedNodeError
from slamp.fixed_dynamics import FixedPointDynamics
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    NEURON,
    READOUT,
    Affine,
    AvgPool2d,
    CubaLI,
    CubaLIF,
    Linear,
    Neuron,
    Node,
    SumPool2d,
    Weighted,
    frozen_array,
)
from slamp.profile import Profile
from slamp.simulate import simulate

PERCENTILES = (99.9, 99.5, 99.0, 98.0)
FINE_LEVELS = 32
GRID_ERROR = 1e-3  # a weight this close to a whole number, in units of the grid, lies on it
MAX_WEIGHT_EXPONENT = 6  # mixed signs spend one of Loihi's 7 on the doubling of the mantissa


def quantize(graph: SpikingGraph, profile: Profile, activity: Activity) -> SpikingGraph:
    """Return the graph in Loihi's integers.

    Decays become whole 4096ths. Weights that training with quantized weights has left on the grid of a scale keep that
    scale (``graph.scales``), and others that lie on an 8-bit grid keep it. Else several clipping ranges are tried: the
    largest weight, and percentiles among active ones. The one whose integer layer, fed the float network's spikes,
    differs in fewest cells from the float layer is taken.

    The bias of an input current (`CubaLIF`) stays a bias of the weights, an input line that is always on; that of `LIF`
    and `IF` is added to the membrane, in the same unit. Mean pools become sum pools, their factor goes into the
    weights. Zeros stay zeros; weights that round to zero are counted by `slamp.fidelity`.

    Args:
        graph: A float graph, batch normalization folded.
        profile: The chip; it must hold 8-bit weights and 24-bit states as Lava's public model does.
        activity: What `slamp.calibrate` measured on ``graph``, with the samples it keeps.

    Raises:
        ProfileError: The chip has other number formats, or the activity was measured on another graph.
        UnsupportedNodeError: A node has no integer counterpart; the message names it.
        GraphError: A number does not fit the chip; the message names layer and value.
    """
    return quantization(graph, profile, activity).graph


@dataclass(frozen=True, eq=False)
class Quantization:
    """A quantized graph and the scales behind it.

    Attributes:
        graph: In fixed point.
        layers: By neuron node, the scale of its input and what its weighted nodes are clipped to.
    """

    graph: SpikingGraph
    layers: Mapping[str, LayerScale]


def quantization(graph: SpikingGraph, profile: Profile, activity: Activity) -> Quantization:
    """As `quantize`, with the scales."""
    _check(graph, profile, activity)
    assert activity.sample is not None
    layers: dict[str, LayerScale] = {}
    float_run = simulate(graph, activity.sample, record="all")
    nodes = dict(graph.nodes)
    for name in graph.order:
        node = graph.nodes[name]
        if isinstance(node, AvgPool2d):
            nodes[name] = SumPool2d(node.kernel_size, node.stride)
        if isinstance(node, NEURON):
            layer = driven_layer(graph, name)
            inputs = {
                source: spikes_of(graph, source, activity.sample, float_run.traces)
                for source in set(layer.sources.values())
            }
            target = float_run[name]
            expected = target.v if target.spikes is None else target.spikes
            assert expected is not None
            integers, layers[name] = _best(graph, layer, inputs, expected, _rates(inputs))
            nodes |= integers
    fixed = SpikingGraph(nodes, graph.edges, graph.dt, FixedPoint(), graph.parameters, readout=graph.readout)
    return Quantization(fixed, layers)


def _check(graph: SpikingGraph, profile: Profile, activity: Activity) -> None:
    if not isinstance(profile, Profile):
        raise ProfileError(
            f"quantize: profile is {type(profile).__name__}; allowed is a Profile, such as slamp.load_profile('loihi2')"
        )
    if not isinstance(activity, Activity):
        raise ProfileError(
            f"quantize: activity is {type(activity).__name__}; allowed is what slamp.calibrate(graph, raster) returns"
        )
    found = (profile.formats.weight_bits, profile.formats.state_bits, profile.formats.decay_bits)
    bits = tuple(None if figure is None or figure.value is None else int(figure.number) for figure in found)
    if bits != (8, 24, 12):
        raise ProfileError(
            f"{profile.name}: weights, states and decays have {bits} bits; allowed are (8, 24, 12), Loihi's, "
            "which are the ones slamp computes in"
        )
    if not isinstance(graph.arithmetic, Float32):
        raise UnsupportedNodeError("graph: is in fixed point already; quantize the float graph")
    if activity.graph_hash != graph.hash:
        raise ProfileError(
            f"quantize: the activity was measured on graph {activity.graph_hash[:12]}, this is {graph.hash[:12]}; "
            "calibrate this graph"
        )
    if activity.sample is None:
        raise ProfileError("quantize: the activity keeps no samples; measure it with slamp.calibrate")
    if not activity.sample.is_spikes and bool((activity.sample.data % 1 != 0).any()):
        raise UnsupportedNodeError(
            f"{graph.input}: takes fractions, which Loihi does not; run the first layer on the host, and quantize "
            "a network that begins with its spikes"
        )


def _rates(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, np.ndarray]:
    return {source: values.mean((0, 1)).numpy() for source, values in inputs.items()}


def _best(
    graph: SpikingGraph,
    layer: DrivenLayer,
    inputs: Mapping[str, torch.Tensor],
    expected: torch.Tensor,
    rates: Mapping[str, np.ndarray],
) -> tuple[dict[str, Node], LayerScale]:
    """Return the integer nodes, and the candidate scale, that depart least from the float layer."""
    best: dict[str, Node] = {}
    found = LayerScale(1.0, {}, layer.gains)
    least = math.inf
    refused: GraphError | None = None
    for scale, clips in _scales(layer, rates, graph.scales.get(layer.name)):
        try:
            nodes = integer_nodes(layer, scale, clips)
        except GraphError as error:
            refused = refused or error  # another range may do
            continue
        wrong = _departure(layer, graph, nodes, inputs, expected, scale)
        if wrong < least:
            best, least, found = nodes, wrong, LayerScale(scale, clips, layer.gains)
        if wrong == 0:
            break
    if not best and refused is not None:
        raise refused
    return best, found


def _scales(
    layer: DrivenLayer, rates: Mapping[str, np.ndarray], trained: LayerScale | None
) -> Iterator[tuple[float, Mapping[str, float]]]:
    """Yield candidate scales, each with the range that every weighted node is clipped to, as far as known.

    The node whose range is narrowest takes all its 8 bits; the others take an exponent. The threshold fits its 17 bits.
    """
    if trained is not None and _on_grid_of(layer, trained):
        yield trained.scale, trained.clips
        return
    ranges: dict[str, list[float]] = {}
    for name, source in layer.sources.items():
        weight = layer.weighted[name].weight
        if not bool((weight != 0).any()):
            continue
        active = _active(layer.weighted[name], layer.chains[name], rates[source])
        grid = _grid(weight)
        found = ([grid] if grid else []) + [float(np.abs(weight).max())]
        found += [float(np.percentile(active, share)) for share in PERCENTILES] if active.size else []
        ranges[name] = found
    limit = _largest_scale(layer.node)
    tried = set()
    on_grids = bool(ranges) and all(_grid(layer.weighted[name].weight) for name in ranges)
    for k in range(1 if on_grids else max(map(len, ranges.values()), default=1)):
        clips = {name: found[min(k, len(found) - 1)] for name, found in ranges.items()}
        levels = [levels_of(layer.weighted[name].weight) / clip for name, clip in clips.items()]
        scale = min(max(levels, default=1.0), limit)
        if (scale, *clips.values()) not in tried:
            tried.add((scale, *clips.values()))
            yield scale, clips


def _on_grid_of(layer: DrivenLayer, trained: LayerScale) -> bool:
    """True if every weight is a whole number on a scale: nobody has changed it since it was trained there."""
    for name, node in layer.weighted.items():
        if not node.weight.any():
            continue
        if name not in trained.clips:
            return False
        unit = 2.0 ** weight_exponent(node.weight, trained.scale, trained.clips[name])
        whole = node.weight.astype(np.float64) * (trained.scale / unit)
        if (
            bool((np.abs(whole - np.rint(whole)) > GRID_ERROR).any())
            or np.abs(whole).max() > levels_of(node.weight) + 0.5
        ):
            return False
    return True


def _active(node: Weighted, chain: tuple[str, ...], rate: np.ndarray) -> np.ndarray:
    """Magnitudes of the weights whose source fires at all; all of them where sources cannot be told apart."""
    weight: np.ndarray = np.abs(node.weight.astype(np.float64))
    if isinstance(node, (Linear, Affine)) and rate.size == node.weight.shape[1]:
        weight = weight[:, rate.reshape(-1) > 0]
    nonzero: np.ndarray = weight[weight != 0]
    return nonzero


def levels_of(weight: np.ndarray) -> int:
    """Largest magnitude of whole weights in 8 bits: 127, or 255 where all signs agree."""
    return 127 if weight.min() < 0 < weight.max() else 255


def _grid(weight: np.ndarray) -> float:
    """Return the clipping range on which every weight is whole already, 0 if there is none.

    What training with quantized weights leaves lies on such a grid, and must not be rounded to another.
    """
    values = weight[weight != 0].astype(np.float64)
    largest, most = np.abs(values).max(), levels_of(weight)
    for levels in range(1, most + 1):
        scaled = values * (levels / largest)
        whole = np.rint(scaled)
        if bool(whole.all()) and bool((np.abs(scaled - whole) < GRID_ERROR).all()):
            # A multiple is on the grid too; of a coarse one it is taken, because thresholds are rounded to it.
            finer = levels if levels >= FINE_LEVELS else levels * (most // levels)
            return float(largest * most / finer)
    return 0.0


def _largest_scale(node: Neuron) -> float:
    if isinstance(node, READOUT):
        return math.inf
    threshold = float((_relative_threshold(node)).max())
    return (MAX_THRESHOLD >> SHIFT) / threshold if threshold > 0 else math.inf


def _relative_threshold(node: Neuron) -> np.ndarray:
    """Threshold above the reset in units of the input, float64: what the integer threshold is S times of."""
    assert not isinstance(node, READOUT)
    above: np.ndarray = node.v_threshold.astype(np.float64) - node.v_reset
    return above if isinstance(node, IF) else np.divide(above, node.decay_mem)


def weight_exponent(values: np.ndarray, scale: float, clip: float) -> int:
    """Return the smallest exponent with which 8 bits reach ``scale * clip``."""
    return max(0, math.ceil(math.log2(scale * clip / (levels_of(values) + 0.499)))) if clip > 0 else 0


def _rounded(where: str, values: np.ndarray, scale: float, clip: float) -> np.ndarray:
    """Return ``scale * values``, clipped to ``scale * clip``, as 8-bit multiples of the smallest power of two."""
    levels, exponent = levels_of(values), weight_exponent(values, scale, clip)
    if exponent > MAX_WEIGHT_EXPONENT:
        raise GraphError(
            f"{where}: reaches {clip:g}, {scale * clip:.0f} on the scale of its layer; allowed are 8 bits times 2^0 to "
            f"2^{MAX_WEIGHT_EXPONENT}; bring the sources of this layer nearer to one another in size"
        )
    unit = 2.0**exponent
    whole: np.ndarray = np.clip(np.rint(values.astype(np.float64) * (scale / unit)), -levels, levels) * unit
    return whole


def integer_nodes(layer: DrivenLayer, scale: float, clips: Mapping[str, float]) -> dict[str, Node]:
    """Return a layer's weighted nodes and neurons on a scale."""
    nodes: dict[str, Node] = {}
    added = np.zeros(())
    in_current = isinstance(layer.node, (CubaLIF, CubaLI))
    for name, node in layer.weighted.items():
        whole = frozen_array(_rounded(f"{name}: weight", node.weight, scale, clips.get(name, 0.0)))
        bias = None if isinstance(node, Linear) else node.bias
        kept = None
        if bias is not None and bias.any() and in_current:
            kept = frozen_array(_rounded(f"{name}: bias", bias, scale, float(np.abs(bias).max())))
        if bias is not None and not in_current:
            axes = node.weight.ndim - 2  # of positions, which share the bias of their channel
            added = added + bias.astype(np.float64).reshape(-1, *[1] * axes) * (scale * (1 << SHIFT))
        if isinstance(node, (Linear, Affine)):
            nodes[name] = Linear(whole) if kept is None else Affine(whole, kept)
        else:
            nodes[name] = replace(node, weight=whole, bias=kept)
    nodes[layer.name] = _integer_neuron(layer.name, layer.node, scale, added)
    return nodes


def _integer_neuron(name: str, node: Neuron, scale: float, added: np.ndarray) -> Neuron:
    """Return a layer of neurons on a scale; ``added`` is the bias of its membrane, in Loihi's units."""
    shape = node.v_threshold.shape if isinstance(node, IF) else node.v_leak.shape
    bias = frozen_array(np.broadcast_to(rounded_bias(name, added), shape))
    decay_syn = _share(f"{name}: decay_syn", node.decay_syn) if isinstance(node, (CubaLIF, CubaLI)) else None
    decay_mem = frozen_array(np.zeros(shape)) if isinstance(node, IF) else _share(f"{name}: decay_mem", node.decay_mem)
    if isinstance(node, READOUT):
        return LI(decay_mem, bias) if decay_syn is None else CubaLI(decay_syn, decay_mem, bias)
    mantissa = np.rint(_relative_threshold(node) * scale)
    wrong = (mantissa < 0) | (mantissa > MAX_THRESHOLD >> SHIFT)
    if bool(wrong.any()):
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        raise GraphError(
            f"{name}: v_threshold{list(index)} is {node.v_threshold[index]:g}, {mantissa[index]:.0f} on the scale of "
            f"its weights; allowed are 0 to {MAX_THRESHOLD >> SHIFT} above v_reset"
        )
    lost = (mantissa == 0) & (_relative_threshold(node) > 0)
    if bool(lost.any()):
        index = tuple(int(axis) for axis in np.argwhere(lost)[0])
        raise GraphError(
            f"{name}: v_threshold{list(index)} is {node.v_threshold[index]:g}, less than half a unit on the scale of "
            f"its weights ({scale:g}); its largest weights are too large for it, so clip them, or raise the threshold"
        )
    threshold, reset = frozen_array(mantissa * (1 << SHIFT)), frozen_array(np.zeros(shape))
    if decay_syn is None:
        return LIF(decay_mem, bias, threshold, reset)
    return CubaLIF(decay_syn, decay_mem, bias, threshold, reset)


def _share(where: str, decay: np.ndarray) -> np.ndarray:
    whole = np.rint(decay.astype(np.float64) * DECAY_ONE)
    if bool((whole < 1).any()):
        index = tuple(int(axis) for axis in np.argwhere(whole < 1)[0])
        raise GraphError(
            f"{where}{list(index)} is {decay[index]:g}; allowed is 1/{2 * DECAY_ONE} to 1, as Loihi's decays are whole "
            f"multiples of 1/{DECAY_ONE}; use a shorter time constant, a larger dt, or neurons without a leak (IAFCell)"
        )
    return frozen_array(whole / DECAY_ONE)


def rounded_bias(name: str, added: np.ndarray) -> np.ndarray:
    """Round biases of the membrane to 13-bit mantissas times 64: the unit of weights, and what netx's files hold."""
    low, high = BIAS_MANTISSA
    mantissa = np.rint(added / (1 << SHIFT))
    if mantissa.min() >= low and mantissa.max() <= high:
        whole: np.ndarray = mantissa * (1 << SHIFT)
        return whole
    worst = float(added.flat[np.argmax(np.abs(added))])
    raise GraphError(
        f"{name}: a bias is {worst:.0f} in units of the membrane; allowed are {low << SHIFT} to {high << SHIFT}"
    )


def _departure(
    layer: DrivenLayer,
    graph: SpikingGraph,
    nodes: Mapping[str, Node],
    inputs: Mapping[str, torch.Tensor],
    expected: torch.Tensor,
    scale: float,
) -> float:
    """Share of cells in which the integer layer departs from the float layer on the float network's spikes.

    Of a readout it is the mean distance of the membranes, in units of the largest.
    """
    with exact_float32():
        drive = sum(driven(layer, graph, name, nodes[name], inputs[source]) for name, source in layer.sources.items())
        assert isinstance(drive, torch.Tensor)
        dynamics = FixedPointDynamics(nodes[layer.name], "cpu")  # type: ignore[arg-type]  # the layer's node is a neuron
        run = dynamics.advance(drive, dynamics.initial_state(drive.shape[1]))
    if expected.dtype == torch.bool:
        return float((run.output.to(torch.bool) != expected.cpu()).double().mean())
    assert isinstance(layer.node, READOUT)
    unit = torch.from_numpy(np.array(layer.node.decay_mem, dtype=np.float64)) / (scale * (1 << SHIFT))
    wanted = expected.cpu().double()
    return float((run.v * unit - wanted).abs().mean() / wanted.abs().max().clamp(min=1e-30))
