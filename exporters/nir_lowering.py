"""From a spiking graph to a NIR graph and back; pure functions, no files.

NIR has time constants where the graph has shares lost per step. With forward Euler and the graph's dt:
``tau = dt / decay``, LIF and CubaLIF ``r = 1``, IF ``r = 1 / dt``, and ``w_in = tau_syn / dt`` because a spike raises
the current by the whole weight. About one decay in six is the dt / tau of no float32 tau and comes back one rounding
off (dt / tau in float64, then rounded). A `Delay` of k steps waits ``k * dt``; recurrence is an explicit Delay on every
cycle, and no other edge is late. What NIR has no field for (dt, scheme, reset, order, start, the float32 decays,
the graph without its arrays) stands in the metadata, and the file means the same to readers that ignore it.
"""

from __future__ import annotations

import json
from typing import Any

import nir
import numpy as np

from exporters.nir_differences import differences
from exporters.nir_wiring import Written, chained, flat_nodes, is_exact_with_shift, write_wiring
from slamp.arithmetic import FixedPoint
from slamp.errors import ArtifactError, UnsupportedNodeError
from slamp.graph import SpikingGraph, graph_from_parts, graph_header
from slamp.nodes import (
    IF,
    LI,
    LIF,
    NEURON,
    SECOND_TIER,
    WIRING,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Input,
    LIFRefrac,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Output,
    Scale,
    Shape,
    Sum,
    SumPool2d,
    arrays_of,
)

FORMAT = "slamp-nir-1"
SCHEME = "forward-euler"
TIE_RULE = "v > v_threshold"
ORDER = {
    IF: "v += dt*r*I; spike; reset in that step",
    LIF: "v += dt/tau * ((r*I + v_leak) - v); spike; reset in that step",
    CubaLIF: "I += dt/tau_syn * (-I + w_in*S); v += dt/tau_mem * ((v_leak - v) + r*I), new I; spike; reset",
    LI: "v += dt/tau * ((v_leak - v) + r*I)",
    CubaLI: "I += dt/tau_syn * (-I + w_in*S); v += dt/tau_mem * ((v_leak - v) + r*I), new I",
}
RECURRENCE = (
    "every cycle passes an explicit Delay of at least dt; what enters a Delay of k*dt leaves it k steps later, zeros "
    "before; no other edge is late"
)
SUMS = (
    "several edges into a node are added in the order of the edges: into I of CubaLIF and CubaLI one by one, "
    "elsewhere to one another first"
)
MAX_DELAY_STEPS = 100_000
IN_METADATA = ("decay_mem", "decay_syn", "shift")  # arrays of a node that NIR has no field for


def lower(graph: SpikingGraph, strict: bool = True) -> nir.NIRGraph:
    """Return the NIR graph that means exactly ``graph``.

    Every array is a float32 copy of full neuron shape. Types are set from the graph, not inferred: nir 1.0.8 takes the
    height of a kernel for its width, and the channels of one group for all.

    Args:
        graph: What to lower.
        strict: Refuse reset by subtraction, for which NIR has no field; otherwise it is stated in the metadata alone,
            and readers that ignore metadata compute another network.

    Raises:
        UnsupportedNodeError: NIR cannot say a node, which the message names, or the graph is in fixed point.
    """
    if isinstance(graph.arithmetic, FixedPoint):
        raise UnsupportedNodeError(
            "graph: is in fixed point, and NIR means real numbers; export the float graph it was made from"
        )
    for name, node in graph.nodes.items():
        _check(name, node, graph, strict)
    flat = flat_nodes(graph)
    nodes: dict[str, Any] = {}
    entrance: dict[str, str] = {}
    within: list[tuple[str, str]] = []
    for name, node in graph.nodes.items():
        parts, edges = chained(name, _written(graph, name, flat), set(graph.nodes))
        for part, said in parts:
            said.node.input_type = {"input": np.array(said.takes)}
            said.node.output_type = {"output": np.array(said.gives)}
            said.node.metadata = _node_metadata(node) if part == name else {}
            nodes[part] = said.node
        entrance[name] = parts[0][0]
        within += edges
    between = [(source, entrance[target]) for source, target in graph.edges]
    return nir.NIRGraph(nodes, between + within, metadata=_graph_metadata(graph), type_check=False)


def _written(graph: SpikingGraph, name: str, flat: frozenset[str]) -> list[Written]:
    node = graph.nodes[name]
    if isinstance(node, (Sum, MaxPool2d, AdaptiveAvgPool2d, *WIRING)) or _shifts(node):
        return write_wiring(graph, name, flat)
    shape = graph.shapes[graph.sources(name)[0]] if graph.sources(name) else graph.shapes[name]
    return [Written(_lower_node(node, shape, graph.dt), shape, graph.shapes[name])]


def _shifts(node: Node) -> bool:
    return isinstance(node, Scale) and bool((node.shift != 0).any())


def lift(network: nir.NIRGraph) -> SpikingGraph:
    """Return the graph a NIR graph was lowered from, bit for bit.

    Raises:
        ArtifactError: It holds no metadata of slamp, or its nodes do not say what the metadata says.
    """
    if network.metadata.get("format") != FORMAT:
        raise ArtifactError(
            "holds no metadata of slamp, so dt, reset and order of updates are unknown; "
            "allowed are files written by slamp, or give dt= (and reset=) to take it literally"
        )
    header = json.loads(network.metadata["graph"])
    arrays = {}
    for entry in header["nodes"]:
        node = network.nodes[entry["name"]]
        for key in entry["arrays"]:
            if key in node.metadata:
                array = node.metadata[key]
            elif key == "steps":
                array = _whole_steps(node.delay, float.fromhex(header["dt"]))
            else:
                array = getattr(node, key)
                if key == "scale":
                    array = array.reshape(array.shape[0], -1)[:, 0]
            arrays[f"{entry['name']}/{key}"] = array
    graph = graph_from_parts(header, arrays)
    if graph.hash != network.metadata["graph_hash"]:
        raise ArtifactError(
            f"its content has hash {graph.hash[:12]}, it states {network.metadata['graph_hash']!s:.12}; "
            "it was changed after slamp wrote it; export again"
        )
    if line := next(differences(lower(graph, strict=False), network), ""):
        raise ArtifactError(f"{line}; the file was changed after slamp wrote it; export again")
    return graph


def reset_by_subtraction(graph: SpikingGraph) -> list[str]:
    """Names of the nodes that reset by subtraction, which NIR cannot say."""
    return [name for name, node in graph.spiking.items() if node.reset == "subtract"]


def _check(name: str, node: Node, graph: SpikingGraph, strict: bool) -> None:
    kind = type(node).__name__
    if isinstance(node, SECOND_TIER):
        lacking = "refractory period" if isinstance(node, LIFRefrac) else "adaptive threshold"
        raise UnsupportedNodeError(f"{name}: is {kind}, and NIR has no neuron with {lacking}; train with LIFCell")
    if isinstance(node, Scale) and _shifts(node) and not is_exact_with_shift(node):
        raise UnsupportedNodeError(
            f"{name}: Scale shifts by up to {np.abs(node.shift).max():g}, NIR's Scale has no shift, and a matrix with "
            "a bias rounds twice unless the scales are powers of two; fold it first with slamp.fold_batchnorm"
        )
    if strict and isinstance(node, (IF, LIF, CubaLIF)) and node.reset == "subtract":
        raise UnsupportedNodeError(
            f"{name}: {kind} resets by subtraction, for which NIR has no field; retrain with reset to v_reset, "
            "or export with strict=False, which states it in the metadata alone"
        )
    if isinstance(node, Delay) and not bool((_whole_steps(_delay(node, graph.dt), graph.dt) == node.steps).all()):
        raise UnsupportedNodeError(
            f"{name}: delays by {node.steps.max():g} steps of {graph.dt:g} s, which a float32 delay in seconds does "
            f"not tell apart; allowed are 0 to {MAX_DELAY_STEPS} steps; delay by fewer"
        )
    for key, decay in arrays_of(node).items():
        if not key.startswith("decay"):
            continue
        tau = _time_constant(decay, graph.dt)
        if not bool(np.isfinite(tau).all()):
            index = [int(axis) for axis in np.argwhere(~np.isfinite(tau))[0]]
            raise UnsupportedNodeError(
                f"{name}: {key}{index} is {decay[tuple(index)]:g}, an infinite time constant, which NIR cannot say; "
                f"allowed are decays from {graph.dt / float(np.finfo(np.float32).max):.1e} to 1; "
                "for a neuron without leak use norse's IAFCell, else a finite time constant"
            )


def _lower_node(node: Node, shape: Shape, dt: float) -> Any:
    match node:
        case Input():
            return nir.Input(np.array(node.shape))
        case Output():
            return nir.Output(np.array(node.shape))
        case Linear():
            return nir.Linear(weight=_contiguous(node.weight))
        case Affine():
            return nir.Affine(weight=_contiguous(node.weight), bias=_contiguous(node.bias))
        case Conv1d() | Conv2d():
            return _lower_conv(node, shape)
        case SumPool2d():
            return nir.SumPool2d(np.array(node.kernel_size), np.array(node.stride), np.zeros(2, dtype=np.int64))
        case AvgPool2d():
            return nir.AvgPool2d(np.array(node.kernel_size), np.array(node.stride), np.array(node.padding))
        case Scale():
            full = np.broadcast_to(node.scale.reshape(-1, *(1,) * (len(shape) - 1)), shape)
            return nir.Scale(scale=_contiguous(full))
        case Delay():
            return nir.Delay(delay=_delay(node, dt))
        case _ if isinstance(node, NEURON):
            return _lower_neuron(node, dt)
        case _:  # refused before
            raise AssertionError(f"a {type(node).__name__} has no NIR node here")


def _lower_conv(node: Conv1d | Conv2d, shape: Shape) -> Any:
    bias = np.zeros(node.weight.shape[0], dtype=np.float32) if node.bias is None else _contiguous(node.bias)
    weight, groups = _contiguous(node.weight), node.groups
    if isinstance(node, Conv2d):
        return nir.Conv2d(shape[1:], weight, node.stride, node.padding, node.dilation, groups, bias)
    padding = node.padding if isinstance(node.padding, str) else node.padding[0]
    return nir.Conv1d(shape[1], weight, node.stride[0], padding, node.dilation[0], groups, bias)


def _lower_neuron(node: Neuron, dt: float) -> Any:
    if isinstance(node, IF):
        gain = np.full(node.v_threshold.shape, dt)
        return nir.IF(r=_unit_gain(gain), v_threshold=_contiguous(node.v_threshold), v_reset=_contiguous(node.v_reset))
    tau_mem, ones = _time_constant(node.decay_mem, dt), np.ones(node.decay_mem.shape, dtype=np.float32)
    known: dict[str, np.ndarray] = {"r": ones, "v_leak": _contiguous(node.v_leak)}
    if isinstance(node, (LIF, CubaLIF)):
        known |= {"v_threshold": _contiguous(node.v_threshold), "v_reset": _contiguous(node.v_reset)}
    if isinstance(node, (CubaLIF, CubaLI)):
        tau_syn = _time_constant(node.decay_syn, dt)
        known |= {"tau_mem": tau_mem, "tau_syn": tau_syn, "w_in": _unit_gain(dt / tau_syn.astype(np.float64))}
        return nir.CubaLIF(**known) if isinstance(node, CubaLIF) else nir.CubaLI(**known)
    return nir.LIF(tau=tau_mem, **known) if isinstance(node, LIF) else nir.LI(tau=tau_mem, **known)


def _delay(node: Delay, dt: float) -> np.ndarray:
    """Delays in seconds, float32."""
    with np.errstate(over="ignore"):
        return (node.steps.astype(np.float64) * dt).astype(np.float32)


def _whole_steps(delay: np.ndarray, dt: float) -> np.ndarray:
    """Return the steps of delays in seconds, float32; NaN beyond `MAX_DELAY_STEPS`."""
    steps = np.rint(delay.astype(np.float64) / dt)
    return np.where(steps <= MAX_DELAY_STEPS, steps, np.nan).astype(np.float32)


def _time_constant(decay: np.ndarray, dt: float) -> np.ndarray:
    """Return the float32 nearest to dt / decay; no other gives the decay back bit for bit where this one does not."""
    with np.errstate(divide="ignore", over="ignore"):
        return (dt / decay.astype(np.float64)).astype(np.float32)


def _unit_gain(share: np.ndarray) -> np.ndarray:
    """Return the float32 factor that makes ``share * factor`` 1 in float32, where there is one, else the nearest.

    Floats lie closer below 1 than above, so the nearest factor may miss 1 where its upper neighbor does not.
    """
    with np.errstate(over="ignore"):
        nearest = (1.0 / share).astype(np.float32)
        above = np.nextafter(nearest, np.float32(np.inf))
        nearest_is, above_is = (
            (share * factor.astype(np.float64)).astype(np.float32) == 1 for factor in (nearest, above)
        )
    return np.where(~nearest_is & above_is, above, nearest)


def _node_metadata(node: Node) -> dict[str, Any]:
    kept = (*IN_METADATA, "scale") if _shifts(node) else IN_METADATA
    arrays = {key: _contiguous(array) for key, array in arrays_of(node).items() if key in kept}
    if not isinstance(node, NEURON):
        return dict(arrays)
    start = "v = v_reset" if isinstance(node, IF) else "v = v_leak"
    words = {
        "scheme": SCHEME,
        "update_order": ORDER[type(node)],
        "initial_state": f"{start}; I = 0" if isinstance(node, (CubaLIF, CubaLI)) else start,
    }
    if isinstance(node, (IF, LIF, CubaLIF)):
        reset = "v = v_reset" if node.reset == "value" else "v -= v_threshold"
        words |= {"tie_rule": TIE_RULE, "reset": node.reset, "reset_rule": reset}
    return {**words, **arrays}


def wiring_conventions(graph: SpikingGraph) -> dict[str, str]:
    """What NIR leaves open about late edges and sums, as far as the graph has any."""
    delayed = any(isinstance(node, Delay) for node in graph.nodes.values())
    summed = any(len(graph.sources(name)) > 1 for name in graph.nodes)
    return ({"recurrence": RECURRENCE} if delayed else {}) | ({"sums": SUMS} if summed else {})


def _graph_metadata(graph: SpikingGraph) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dt": np.array([graph.dt], dtype=np.float64),
        "scheme": SCHEME,
        "update_order": "nodes in topological order within one step; a spike arrives in the step it leaves",
        "latency_steps": np.array([0], dtype=np.int64),
        "initial_state": "each node states its own",
        "tie_rule": TIE_RULE,
        "reset": "subtract, in the nodes that say so" if reset_by_subtraction(graph) else "value",
        "graph": json.dumps(graph_header(graph)),
        "graph_hash": graph.hash,
        **wiring_conventions(graph),
    }


def _contiguous(array: np.ndarray) -> np.ndarray:
    view = np.ascontiguousarray(array, dtype=np.float32).view()  # nir copies what it writes to the file
    view.flags.writeable = False
    return view
