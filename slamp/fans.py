"""Limits of fan-in and fan-out, neuron by neuron: which weights may be kept at all where a chip has such limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from slamp.curves import RankedKeys
from slamp.energy import on_host
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, Conv1d, Conv2d, Weighted
from slamp.profile import Figure, Profile
from slamp.score import Scores, curve_of
from slamp.taps import fan_out


def within_fans(scores: Scores, profile: Profile | None) -> Scores:
    """Return scores in which no weight counts that would exceed a limit of fan-in or fan-out of the chip.

    Weights are taken from the largest key down; one whose neuron already has all the synapses it may have, into the
    target or out of the source, scores 0. For a convolution all positions of a channel have the same synapses, so what
    counts are those of a position away from the borders. Inputs of the network have no limit of fan-out.
    """
    fan_in, fan_out_most = fan_limits(profile)
    if fan_in is None and fan_out_most is None:
        return scores
    layers = dict(scores.layers)
    host = (
        frozenset() if scores.activity is None or profile is None else on_host(scores.graph, profile, scores.activity)
    )
    for name, layer in scores.layers.items():
        if name in host:
            continue
        node = scores.graph.weighted[name]
        out_most = fan_out_most if behind_neurons(scores.graph, name) else None
        keys = scores.keys(name)
        allowed = allowed_by_fans(node, keys, fan_in, out_most)
        if allowed is None:
            continue
        ranked = RankedKeys(np.where(allowed, keys, np.float32(0)))
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
    for name, mask in masks.items():
        if name in host:
            continue
        if fan_in is not None and int(mask.reshape(len(mask), -1).sum(1).max()) > fan_in:
            return False
        if out_most is not None and behind_neurons(graph, name):
            reached = fan_out(graph.weighted[name], graph.shapes[graph.sources(name)[0]], mask)
            if float(reached.max()) > out_most:
                return False
    return True


def behind_neurons(graph: SpikingGraph, name: str) -> bool:
    """True if what a layer reads comes from neurons, not from the input."""
    return any(
        isinstance(graph.nodes[source], NEURON) or behind_neurons(graph, source) for source in graph.sources(name)
    )


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
