"""Where a graph runs in circles, and where it is a plain chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from slamp.graph import SpikingGraph


def on_cycles(graph: SpikingGraph) -> frozenset[str]:
    """Return the nodes that lie on a cycle."""
    found = components(graph.order, graph.targets)
    return frozenset(name for part in found for name in part if is_circular(graph, part))


def is_circular(graph: SpikingGraph, part: Sequence[str]) -> bool:
    """Whether a strongly connected component holds a cycle: several nodes, or a delay that feeds itself."""
    return len(part) > 1 or part[0] in graph.targets(part[0])


def is_chain(graph: SpikingGraph) -> bool:
    """Whether one path leads from the input to the output, through every node."""
    return all(len(graph.sources(name)) <= 1 and len(graph.targets(name)) <= 1 for name in graph.nodes)


def components(names: Sequence[str], targets: Callable[[str], Iterable[str]]) -> list[tuple[str, ...]]:
    """Return the strongly connected components, sources before targets, each in the order of ``names``.

    Tarjan's algorithm without recursion, for deep networks.
    """
    rank = {name: place for place, name in enumerate(names)}
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    standing: set[str] = set()
    found: list[tuple[str, ...]] = []
    for root in names:
        if root in index:
            continue
        work = [(root, iter(targets(root)))]
        index[root] = lowest[root] = len(index)
        stack.append(root)
        standing.add(root)
        while work:
            name, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[name])
                if lowest[name] == index[name]:
                    part = stack[stack.index(name) :]
                    del stack[-len(part) :]
                    standing.difference_update(part)
                    found.append(tuple(sorted(part, key=rank.__getitem__)))
            elif following not in index:
                index[following] = lowest[following] = len(index)
                stack.append(following)
                standing.add(following)
                work.append((following, iter(targets(following))))
            elif following in standing:
                lowest[name] = min(lowest[name], index[following])
    return found[::-1]
