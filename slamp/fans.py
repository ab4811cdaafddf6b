"""Limits of fan-in and fan-out, neuron by neuron: which weights may be kept at all where a chip has such limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from slamp.carried import driven_neurons
from slamp.curves import RankedKeys
from slamp.energy import on_host
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, WEIGHTED, Conv1d, Conv2d, Weighted
from slamp.profile import Figure, Profile
from slamp.score import Scores, curve_of
from slamp.taps import fan_out


def within_fans(scores: Scores, profile: Profile | None) -> Scores:
    """Return scores in which no weight counts that would exceed a limit of fan-in or fan-out of the chip.

    Weights are taken from the largest key down; one whose neuron already has all the synapses it may have, into the
    target or out of the source, scores 0. For a convolution all positions of a channel have the same synapses, so what
    counts are those of a position away from the borders. Inputs of the network have no limit of fan-out. Where several
    layers drive the same neurons, or read them, and together exceed a limit, each gets its share (`divided_limits`).

    Raises:
        BudgetError: More layers drive or read the same neurons than the limit has synapses.
    """
    if fan_limits(profile) == (None, None):
        return scores
    layers = dict(scores.layers)
    host = host_of(scores, profile)
    limits = divided_limits(scores.graph, profile, host)
    for name, layer in scores.layers.items():
        keys, allowed = scores.keys(name), None
        for use in scores.uses[name]:
            found = None if use in host else allowed_by_fans(scores.graph.weighted[use], keys, *limits[use])
            if found is not None:
                keys, allowed = np.where(found, keys, np.float32(0)), found
        if allowed is None:
            continue
        node = scores.graph.weighted[name]
        ranked = RankedKeys(keys)
        ranked.top(1)
        curve = curve_of(node, ranked, scores.method, layer.factor)
        minimum = min(layer.minimum, ranked.live)
        layers[name] = replace(layer, ranked=ranked, curve=curve, minimum=minimum, allowed=allowed)
    return replace(scores, layers=MappingProxyType(layers))


def host_of(scores: Scores, profile: Profile | None) -> frozenset[str]:
    """Return the nodes that stay on the host, as far as the activity behind the scores tells."""
    if scores.activity is None or profile is None:
        return frozenset()
    return on_host(scores.graph, profile, scores.activity)


def fan_limits(profile: Profile | None) -> tuple[int | None, int | None]:
    """Return the known limits of fan-in and fan-out of a neuron."""
    if profile is None:
        return None, None
    return _number(profile.limits.fan_in), _number(profile.limits.fan_out)


def fans_hold(
    graph: SpikingGraph, masks: Mapping[str, np.ndarray], profile: Profile | None, host: Collection[str] = ()
) -> bool:
    """Whether every neuron on the chip keeps to its limits of fan-in and fan-out if what is under the masks stays."""
    fan_in, out_most = fan_limits(profile)
    on_chip = {name: mask for name, mask in masks.items() if name not in host}
    if fan_in is not None and any(counts.max() > fan_in for counts in synapses_into(graph, on_chip)):
        return False
    return out_most is None or not any(counts.max() > out_most for counts in synapses_out_of(graph, on_chip))


def synapses_into(graph: SpikingGraph, masks: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the synapses into every neuron, layer by layer, of all weighted nodes that drive it together.

    One number stands for all positions of a channel. Where the nodes differ in channels, it is one for the layer: what
    it would be if the neurons with most of each were the same.
    """
    counts = {name: np.count_nonzero(mask.reshape(len(mask), -1), axis=1) for name, mask in masks.items()}
    return [_added([counts[name] for name in group]) for group in _drivers(graph, counts)]


def synapses_out_of(graph: SpikingGraph, masks: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the synapses out of every neuron, layer by layer, into all weighted nodes that read it; inputs left out.

    Where the nodes read differing numbers of values, it is one for the layer, as in `synapses_into`.
    """
    counts = {
        name: fan_out(graph.weighted[name], graph.shapes[graph.sources(name)[0]], mask).reshape(-1)
        for name, mask in masks.items()
        if behind_neurons(graph, name)
    }
    return [_added([counts[name] for name in group]) for group in _readers(graph, counts)]


def _added(counts: list[np.ndarray]) -> np.ndarray:
    if len({each.size for each in counts}) > 1:
        counts = [each.max(keepdims=True) for each in counts]
    total: np.ndarray = np.sum(counts, axis=0)
    return total


def divided_limits(
    graph: SpikingGraph, profile: Profile | None, host: Collection[str] = ()
) -> dict[str, tuple[int | None, int | None]]:
    """Return the limits of fan-in and fan-out that every weighted node on the chip has to keep alone.

    Layers that drive the same neurons (as input and recurrent weights do), or read the same, share a limit in
    proportion to the synapses they have, if these exceed it together. Counted is the neuron with most of each layer, so
    the limit holds for every neuron, though it may not be reached.

    Raises:
        BudgetError: More layers share a limit than it has synapses.
    """
    fan_in, out_most = fan_limits(profile)
    on_chip = {name: node.weight != 0 for name, node in graph.weighted.items() if name not in host}
    reading = {name: mask for name, mask in on_chip.items() if behind_neurons(graph, name)}
    into: dict[str, int] = {}
    out_of: dict[str, int] = {}
    if fan_in is not None:
        counts = {name: _most_into(mask) for name, mask in on_chip.items()}
        into = _divided(counts, _drivers(graph, counts), fan_in, "fan_in")
    if out_most is not None:
        counts = {name: _most_out_of(graph, name, mask) for name, mask in reading.items()}
        out_of = _divided(counts, _readers(graph, counts), out_most, "fan_out")
    return {name: (into.get(name), out_of.get(name)) for name in on_chip}


def _divided(counts: Mapping[str, int], groups: list[tuple[str, ...]], most: int, limit: str) -> dict[str, int]:
    shares = dict.fromkeys(counts, most)
    for group in groups:
        total = sum(counts[name] for name in group)
        if len(group) == 1 or total <= most:
            continue
        if len(group) > most:
            raise BudgetError(
                f"{limit}: {len(group)} layers {list(group)} share neurons that may have {most} synapses; "
                "remove a path, or choose another chip"
            )
        for name in group:  # one synapse each, and of the rest what is proportional
            shares[name] = min(shares[name], 1 + (most - len(group)) * counts[name] // total)
    return shares


def _drivers(graph: SpikingGraph, names: Collection[str]) -> list[tuple[str, ...]]:
    """Return the weighted nodes that drive neurons together; one that drives none stands alone."""
    driven = {name: driven_neurons(graph, name) for name in names}
    together = [tuple(name for name in names if neuron in driven[name]) for neuron in graph.nodes]
    return [group for group in together if group] + [(name,) for name in names if not driven[name]]


def _readers(graph: SpikingGraph, names: Collection[str]) -> list[tuple[str, ...]]:
    """Return the weighted nodes that read the same neurons; one behind other weights alone stands alone."""
    read = {name: _read_neurons(graph, name) for name in names}
    together = [tuple(name for name in names if neuron in read[name]) for neuron in graph.nodes]
    return [group for group in together if group] + [(name,) for name in names if not read[name]]


def _most_into(mask: np.ndarray) -> int:
    """Synapses into the output that has most."""
    return int(np.count_nonzero(mask.reshape(len(mask), -1), axis=1).max())


def _most_out_of(graph: SpikingGraph, name: str, mask: np.ndarray) -> int:
    """Synapses out of the input that has most."""
    return round(float(fan_out(graph.weighted[name], graph.shapes[graph.sources(name)[0]], mask).max()))


def behind_neurons(graph: SpikingGraph, name: str) -> bool:
    """True if what a layer reads comes from neurons, not from the input."""
    return bool(_read_neurons(graph, name, through_weights=True))


def _read_neurons(graph: SpikingGraph, name: str, *, through_weights: bool = False) -> set[str]:
    """Return the neurons a node reads through nodes without memory and delays, or also through other weights."""
    waiting, seen = [name], {name}
    found: set[str] = set()
    while waiting:
        for source in graph.sources(waiting.pop()):
            if isinstance(graph.nodes[source], NEURON):
                found.add(source)
            elif source not in seen and (through_weights or not isinstance(graph.nodes[source], WEIGHTED)):
                seen.add(source)
                waiting.append(source)
    return found


def allowed_by_fans(node: Weighted, keys: np.ndarray, fan_in: int | None, fan_out: int | None) -> np.ndarray | None:
    """Return which weights may stay, bool, flat; None if all may.

    Every target takes its largest weights, sources that are asked for too many refuse the smallest, and whoever was
    refused asks for the next: both sides rank by the same keys, so what results is what taking weights one by one from
    the largest down would give.
    """
    live = keys > 0
    sides = [(_targets(node), fan_in), (_sources(node), fan_out)]
    if not any(most is not None and np.bincount(side[live]).max(initial=0) > most for side, most in sides):
        return None
    # Of equal keys the lower flat index leads, on both sides.
    descending = np.argsort(-keys, kind="stable")
    orders = [descending[np.argsort(side[descending], kind="stable")] for side, _ in sides]
    refused = ~live
    while True:
        asked = ~refused
        if fan_in is not None:
            asked = _first_of_each(orders[0], sides[0][0], asked, fan_in)
        taken = asked if fan_out is None else _first_of_each(orders[1], sides[1][0], asked, fan_out)
        if (taken == asked).all():
            return taken
        refused |= asked & ~taken


def _targets(node: Weighted) -> np.ndarray:
    outputs = len(node.weight)
    return np.repeat(np.arange(outputs), node.weight.size // outputs)


def _sources(node: Weighted) -> np.ndarray:
    """Number the sources of all weights: weights of one number leave the same neurons, whatever the position."""
    shape = node.weight.shape
    if not isinstance(node, (Conv1d, Conv2d)):
        return np.broadcast_to(np.arange(shape[1]), shape).reshape(-1)
    number = np.arange(shape[0])[:, None] // (shape[0] // node.groups) * shape[1] + np.arange(shape[1])
    number = number.reshape(*shape[:2], *[1] * (len(shape) - 2))
    for axis, (stride, dilation) in enumerate(zip(node.stride, node.dilation, strict=True)):
        # With a stride, an input meets only every so many places of the kernel.
        met = (np.arange(shape[2 + axis]) * dilation) % stride
        number = number * stride + met.reshape([-1 if place == 2 + axis else 1 for place in range(len(shape))])
    return np.broadcast_to(number, shape).reshape(-1)


def _first_of_each(order: np.ndarray, side: np.ndarray, asked: np.ndarray, most: int) -> np.ndarray:
    """Of the weights asked for, keep the first ``most`` of every neuron in ``order``, which runs neuron by neuron."""
    running = np.cumsum(asked[order])
    sorted_side = side[order]
    starts = np.flatnonzero(np.diff(sorted_side, prepend=-1))
    before = np.concatenate([[0], running])[starts]
    rank = running - np.repeat(before, np.diff(np.append(starts, len(order))))
    taken = np.zeros_like(asked)
    taken[order] = rank <= most
    result: np.ndarray = taken & asked
    return result


def _number(figure: Figure | None) -> int | None:
    return None if figure is None or figure.value is None else int(figure.number)
