"""Why does a replay in integers differ? The first differing layer, run alone under one wrong convention after another.

All layers before it agree, so its true inputs are known. A convention under which the layer alone gives exactly the
``u``, ``v`` and spikes that were replayed is the probable cause; integers leave nothing to tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from slamp.arithmetic import DECAY_ONE, SHIFT, STATE_LIMIT, common_exponent
from slamp.conventions import LATENCIES, said_steps
from slamp.engine import engine_of
from slamp.errors import GraphError
from slamp.fixed_dynamics import wrapped_current
from slamp.graph import SpikingGraph
from slamp.nodes import IF, NEURON, READOUT, WEIGHTED, Affine, Conv1d, Conv2d, CubaLI, CubaLIF, Delay, Neuron, Node
from slamp.raster import SpikeRaster
from slamp.simulate import Trace

DECAY_BITS = 12
HEAD_STARTS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class FixedConvention:
    """How one step is computed; the defaults are Lava's.

    Attributes:
        added_keep: What is added to the share of ``u`` that stays, in units of 1/4096.
        floor: Decays round down instead of toward zero.
        inclusive: Spike at ``v >= v_threshold`` instead of ``>``.
        bias: False if the bias of the membrane is dropped.
        head_start: Steps the bias runs alone before the first input.
        resets: False if a spike leaves the membrane alone.
    """

    added_keep: int = 0
    floor: bool = False
    inclusive: bool = False
    bias: bool = True
    head_start: int = 0
    resets: bool = True


def wrong_fixed_conventions(node: Neuron) -> Iterator[tuple[str, FixedConvention]]:
    """Every wrong integer convention known, likely ones first."""
    if isinstance(node, (CubaLIF, CubaLI)):
        yield "decay: u loses du / 4096 per step instead of (du + 1) / 4096", FixedConvention(added_keep=1)
        yield "decay: u loses (du + 2) / 4096 per step instead of (du + 1) / 4096", FixedConvention(added_keep=-1)
    yield "rounding: decays round down instead of toward zero", FixedConvention(floor=True)
    yield "tie: spikes at v >= v_threshold instead of v > v_threshold", FixedConvention(inclusive=True)
    if not isinstance(node, IF) and bool(node.v_leak.any()):
        yield "bias: dropped", FixedConvention(bias=False)
        for k in HEAD_STARTS:
            yield (
                f"bias: runs from {said_steps(k)} before the first input on; the layer is not reset when it arrives",
                FixedConvention(head_start=k),
            )
    yield "reset: none takes place", FixedConvention(resets=False)


def fixed_cause(
    graph: SpikingGraph, layer: str, inputs: SpikeRaster, expected: Mapping[str, Trace], shown: Trace
) -> str:
    """Return the wrong conventions that explain what a layer of a fixed-point graph showed, or an empty text.

    Args:
        graph: The network.
        layer: The first layer of neurons that differs.
        inputs: The samples to look at, (time, samples, *features).
        expected: Traces of the graph for these samples, by layer, with ``v`` and ``i``.
        shown: What the replay shows of ``layer``, moved back by the latency; fewer steps are allowed.
    """
    node = graph.nodes.get(layer)
    if not isinstance(node, NEURON) or not _without_delays(graph, layer):
        return ""
    found = _quantities(shown)
    if not found:
        return ""
    steps = len(next(iter(found.values())))
    wanted = {key: values[:steps] for key, values in _quantities(expected[layer]).items() if key in found}
    causes = list(_moved(wanted, found))
    spikes = {name: trace.spikes for name, trace in expected.items() if trace.spikes is not None and name != layer}
    drive = _drive(graph, layer, inputs, spikes)[:steps]
    for text, convention in wrong_fixed_conventions(node):
        if _same(run_fixed_convention(node, drive, convention), found):
            causes.append(text)
    for text, changed in _other_weights(graph, layer):
        if _same(run_fixed_convention(node, _drive(changed, layer, inputs, spikes)[:steps]), found):
            causes.append(text)
    return ", or ".join(causes)


def run_fixed_convention(
    node: Neuron, drive: np.ndarray, convention: FixedConvention | None = None
) -> dict[str, np.ndarray]:
    """Run neurons under a convention on ``drive``, whole numbers (time, batch, *neurons).

    Returns:
        ``u``, ``v`` (after reset) and ``s``, int64, of the shape of ``drive``.
    """
    rules = convention or FixedConvention()
    keep_syn = np.zeros((), np.int64)
    if isinstance(node, (CubaLIF, CubaLI)):
        keep_syn = DECAY_ONE - np.rint(node.decay_syn.astype(np.float64) * DECAY_ONE).astype(np.int64)
        keep_syn = np.clip(keep_syn + rules.added_keep, 0, DECAY_ONE)
    keep_mem, bias = np.full((), DECAY_ONE, np.int64), np.zeros((), np.int64)
    if not isinstance(node, IF):
        keep_mem = DECAY_ONE - np.rint(node.decay_mem.astype(np.float64) * DECAY_ONE).astype(np.int64)
        bias = node.v_leak.astype(np.int64) if rules.bias else bias
    threshold = np.full((), STATE_LIMIT) if isinstance(node, READOUT) else node.v_threshold.astype(np.int64)
    u, v = np.zeros(drive.shape[1:], np.int64), np.zeros(drive.shape[1:], np.int64)
    found = {key: np.zeros(drive.shape, np.int64) for key in ("u", "v", "s")}
    for step in range(-rules.head_start, len(drive)):
        x = drive[step] if step >= 0 else np.zeros_like(u)
        u = _kept(u, keep_syn, rules) + (x << SHIFT)
        u = wrapped_current(u).astype(np.int64)
        v = np.clip(_kept(v, keep_mem, rules) + u + bias, -(STATE_LIMIT - 1), STATE_LIMIT - 1)
        fired = v >= threshold if rules.inclusive else v > threshold
        v = np.where(fired, 0, v) if rules.resets else v
        if step >= 0:
            found["u"][step], found["v"][step], found["s"][step] = u, v, fired
    return found


def _kept(values: np.ndarray, keep: np.ndarray, rules: FixedConvention) -> np.ndarray:
    product = values * keep
    down: np.ndarray = product >> DECAY_BITS
    return down if rules.floor else np.sign(product) * (np.abs(product) >> DECAY_BITS)


def _quantities(trace: Trace) -> dict[str, np.ndarray]:
    """Return what a trace holds as whole numbers, by quantity."""
    parts = {"u": trace.i, "v": trace.v, "s": trace.spikes}
    return {key: part.detach().cpu().numpy().astype(np.int64) for key, part in parts.items() if part is not None}


def _same(computed: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(computed[key], values) for key, values in found.items())


def _moved(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Explain the replay as the expected values, late or early by a few steps."""
    if not wanted or set(wanted) != set(found):
        return
    steps = len(next(iter(found.values())))
    for k in (k for k in LATENCIES if k < steps):
        early = {key: values[k:] for key, values in wanted.items()}
        late = {key: values[:-k] for key, values in wanted.items()}
        if any(values.any() for values in late.values()) and _same(
            late, {key: values[k:] for key, values in found.items()}
        ):
            yield f"latency: the layer answers {said_steps(k)} late"
        if any(values.any() for values in early.values()) and _same(
            early, {key: values[:-k] for key, values in found.items()}
        ):
            yield f"latency: the layer answers {said_steps(k)} early"


def _other_weights(graph: SpikingGraph, layer: str) -> Iterator[tuple[str, SpikingGraph]]:
    """Yield graphs whose weights right before a layer are what a wrong convention makes of them."""
    found = {name: node for name in _before(graph, layer) if isinstance(node := graph.nodes[name], WEIGHTED)}
    ways = {
        "weights: cut to even numbers, as Loihi cuts 8-bit weights of both signs": _even,
        "weights: halved": _half,
    }
    for text, way in ways.items():
        try:
            yield text, graph.with_nodes({name: replace(node, weight=way(node.weight)) for name, node in found.items()})
        except GraphError:  # such weights do not exist on the chip
            continue
    biased = {name: node for name, node in found.items() if getattr(node, "bias", None) is not None}
    if biased:
        yield "bias: dropped", graph.with_nodes({name: _without_bias(node) for name, node in biased.items()})


def _without_bias(node: Node) -> Node:
    assert isinstance(node, (Affine, Conv1d, Conv2d))
    assert node.bias is not None
    return replace(node, bias=np.zeros_like(node.bias))


def _even(weight: np.ndarray) -> np.ndarray:
    nonzero = weight[weight != 0]
    unit = 2.0 * 2.0 ** common_exponent(nonzero) if nonzero.size else 1.0
    even: np.ndarray = (np.floor(weight.astype(np.float64) / unit) * unit).astype(np.float32)
    return even


def _half(weight: np.ndarray) -> np.ndarray:
    half: np.ndarray = weight / np.float32(2.0)
    return half


def _before(graph: SpikingGraph, layer: str) -> list[str]:
    """Return the nodes between a layer and the neurons (or the input) that drive it."""
    found: list[str] = []
    waiting = list(graph.sources(layer))
    while waiting:
        name = waiting.pop()
        if name not in found and not isinstance(graph.nodes[name], NEURON):
            found.append(name)
            waiting.extend(graph.sources(name))
    return found


def _without_delays(graph: SpikingGraph, layer: str) -> bool:
    return not any(isinstance(graph.nodes[name], Delay) for name in _before(graph, layer))


def _drive(graph: SpikingGraph, layer: str, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Summed input of a layer, int64 (time, batch, *neurons), from the spikes upstream."""
    _, functions = engine_of(graph, inputs)
    steps, batch = inputs.steps, inputs.batch

    def value(name: str) -> torch.Tensor:
        if name in spikes:
            return spikes[name].detach().cpu().to(torch.float32).flatten(0, 1)
        sources = graph.sources(name)
        return functions[name](total(name) if sources else inputs.data.cpu().to(torch.float32).flatten(0, 1))

    def total(name: str) -> torch.Tensor:
        parts = [value(source) for source in graph.sources(name)]
        x = parts[0]
        for part in parts[1:]:
            x = x + part
        return x

    summed: np.ndarray = total(layer).to(torch.float64).numpy().astype(np.int64)
    return summed.reshape(steps, batch, *summed.shape[1:])
