"""Places for the boxes of a directed graph without cycles, layer below layer, and the lanes its edges take.

The method of Sugiyama, Tagawa and Toda (1981): layers by longest path, edges over several layers as chains of places
of their own, few crossings by barycenters, then positions as near to one's neighbors as the order allows. Nothing is
random, so the same graph has the same layout.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

Edge = tuple[str, str]
Neighbors = Mapping[str, tuple[list[tuple[str, float]], list[tuple[str, float]]]]  # above, below; with weights
BETWEEN = "/"  # begins the name of a place of an edge; no node has a slash in its name
SWEEPS, MANY = 12, 1_500  # how often layers are gone through; less often where there are more places than that
ACROSS, LANE = 28.0, 22.0  # between boxes; between an edge and what is beside it
LIGHT = 0.1  # how much a box without neighbors on the side looked at wants to stay
STRAIGHT = 8.0  # how much more an edge over several layers wants to be straight inside than at its ends


@dataclass(frozen=True)
class Layout:
    """Where things are.

    Attributes:
        centers: Horizontal center of each box; the leftmost edge of all boxes and lanes is at 0.
        layers: Names from top to bottom, in each layer from left to right.
        lanes: For every edge, the horizontal places at which it passes the layers between its ends.
        width: Of the whole.
    """

    centers: Mapping[str, float]
    layers: tuple[tuple[str, ...], ...]
    lanes: tuple[tuple[float, ...], ...]
    width: float


def layout(widths: Mapping[str, float], edges: Sequence[Edge], *, root: str, lane_widths: Sequence[float]) -> Layout:
    """Place boxes.

    Args:
        widths: Width of the box of every node; their order decides between equals.
        edges: Downward edges (source, target), without cycles; two may join the same boxes.
        root: The node the flow begins at; what does not follow from it hangs right above what it leads to.
        lane_widths: For every edge the room its label needs, or 0; with a label it passes at least one layer between.
    """
    depth = _depths(
        list(widths), [(*edge, 2 if room else 1) for edge, room in zip(edges, lane_widths, strict=True)], root
    )
    places = {name: (width, ACROSS) for name, width in widths.items()}
    layers: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for name in widths:
        layers[depth[name]].append(name)
    chains: list[list[str]] = []
    for index, (source, target) in enumerate(edges):
        between = range(depth[source] + 1, depth[target])
        chains.append([f"{BETWEEN}{index}/{layer}" for layer in between])
        for place, layer in zip(chains[-1], between, strict=True):
            places[place] = (lane_widths[index], LANE)
            layers[layer].append(place)
    neighbors: Neighbors = {name: ([], []) for name in places}
    for (source, target), chain in zip(edges, chains, strict=True):
        for above, below in pairwise([source, *chain, target]):
            weight = STRAIGHT if above[:1] == below[:1] == BETWEEN else 1.0
            neighbors[above][1].append((below, weight))
            neighbors[below][0].append((above, weight))
    sweeps = max(2, min(SWEEPS, SWEEPS * MANY // len(places)))
    _order(layers, neighbors, sweeps)
    centers = _positions(layers, places, neighbors, sweeps)
    left = min(centers[name] - places[name][0] / 2 for name in places)
    right = max(centers[name] + places[name][0] / 2 for name in places)
    return Layout(
        {name: centers[name] - left for name in widths},
        tuple(tuple(name for name in layer if name in widths) for layer in layers),
        tuple(tuple(centers[place] - left for place in chain) for chain in chains),
        right - left,
    )


def _depths(names: Sequence[str], edges: Sequence[tuple[str, str, int]], root: str) -> dict[str, int]:
    """Layer of every node: as high as it may be; what does not follow from ``root``, as low as it may be.

    ``edges`` are (source, target, how many layers lower the target is at least).
    """
    sources: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    targets: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    for source, target, span in edges:
        sources[target].append((source, span))
        targets[source].append((target, span))
    waiting = {name: len(sources[name]) for name in names}
    order = [name for name in names if not waiting[name]]
    for name in order:  # grows while it is walked
        for target, _ in targets[name]:
            waiting[target] -= 1
            if not waiting[target]:
                order.append(target)
    depth: dict[str, int] = {}
    follows = {root}
    for name in order:
        depth[name] = max((depth[source] + span for source, span in sources[name]), default=0)
        if any(source in follows for source, _ in sources[name]):
            follows.add(name)
    for name in reversed(order):
        if name not in follows and targets[name]:
            depth[name] = min(depth[target] - span for target, span in targets[name])
    return depth


def _order(layers: list[list[str]], neighbors: Neighbors, sweeps: int) -> None:
    """Sort the layers, in place, so that few edges cross."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers, neighbors)
    for sweep in range(sweeps):
        if not fewest:
            break
        side = sweep % 2
        walk = range(1, len(layers)) if side == 0 else range(len(layers) - 2, -1, -1)
        for index in walk:
            place = {name: k for k, name in enumerate(layers[index - 1 if side == 0 else index + 1])}
            own = {name: k for k, name in enumerate(layers[index])}
            keys = {}
            for name in layers[index]:
                near = [place[other] for other, _ in neighbors[name][side]]
                keys[name] = sum(near) / len(near) if near else float(own[name])
            layers[index].sort(key=keys.__getitem__)
        found = _crossings(layers, neighbors)
        if found < fewest:
            best, fewest = [list(layer) for layer in layers], found
    layers[:] = best


def _crossings(layers: Sequence[Sequence[str]], neighbors: Neighbors) -> int:
    count = 0
    for layer, below in pairwise(layers):
        place = {name: k for k, name in enumerate(below)}
        seen: list[int] = []
        for name in layer:
            ends = sorted(place[other] for other, _ in neighbors[name][1])
            count += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return count


def _positions(
    layers: Sequence[Sequence[str]],
    places: Mapping[str, tuple[float, float]],
    neighbors: Neighbors,
    sweeps: int,
) -> dict[str, float]:
    """Horizontal centers: each wants to be at the mean of its neighbors, and the order and the gaps hold."""
    centers: dict[str, float] = {}
    gaps = []
    for layer in layers:
        gap = [0.0]
        for left, right in pairwise(layer):
            apart = min(places[left][1], places[right][1])
            gap.append((places[left][0] + places[right][0]) / 2 + apart)
        gaps.append(gap)
        middle = sum(gap) / 2
        at = 0.0
        for name, step in zip(layer, gap, strict=True):
            at += step
            centers[name] = at - middle
    runs = _runs(layers, neighbors)
    for sweep in range(3 * sweeps):
        down = sweep % 2 == 0
        sides = (0, 1) if sweep >= 2 * sweeps else (0,) if down else (1,)
        common: dict[str, tuple[float, float]] = {}
        for run in runs if sweep >= 2 * sweeps else ():
            mean = sum(centers[name] for name in run) / len(run)
            common |= dict.fromkeys(run, (mean, STRAIGHT * len(run)))
        for index in range(len(layers)) if down else range(len(layers) - 1, -1, -1):
            goals = []
            for name in layers[index]:
                near = [(centers[other], weight) for side in sides for other, weight in neighbors[name][side]]
                near += [common[name]] if name in common else []
                total = sum(weight for _, weight in near)
                goals.append((sum(x * w for x, w in near) / total, total) if near else (centers[name], LIGHT))
            wanted, weights = zip(*goals, strict=True)
            for name, center in zip(layers[index], spread(wanted, weights, gaps[index]), strict=True):
                centers[name] = center
    return centers


def _runs(layers: Sequence[Sequence[str]], neighbors: Neighbors) -> list[list[str]]:
    """Chains of boxes and lanes without a branch, which want to be straight; each has at least two places."""
    runs: dict[str, list[str]] = {}
    for name in (name for layer in layers for name in layer):
        above = neighbors[name][0]
        if len(above) == 1 and len(neighbors[above[0][0]][1]) == 1:
            runs[name] = runs[above[0][0]]
            runs[name].append(name)
        else:
            runs[name] = [name]
    return [run for name, run in runs.items() if run[0] == name and len(run) > 1]


def spread(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Return the positions nearest to ``wanted`` (weighted squares) of which each is its gap beyond the one before.

    Without the gaps this is isotonic regression, solved by pooling adjacent violators.
    """
    offsets = list(accumulate(gaps))
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for goal, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, mass, count = goal - offset, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, more, others = blocks.pop()
            mean, mass, count = (before * more + mean * mass) / (more + mass), more + mass, count + others
        blocks.append((mean, mass, count))
    flat = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(flat, offsets, strict=True)]
