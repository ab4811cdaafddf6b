"""What a node can hear: nodes in the order of cause and effect, those that hear one another together."""

from __future__ import annotations

from slamp.delays import holds_back
from slamp.graph import SpikingGraph
from slamp.nodes import SPIKING, Input

Group = tuple[str, ...]


def causal_groups(graph: SpikingGraph) -> tuple[Group, ...]:
    """Return all nodes in groups, each behind the groups it hears from, delayed or not; the output comes last.

    Nodes on a cycle hear one another and are one group, in computing order; every other node is a group of its own.
    (`SpikingGraph.order` is another order: there a delay of a step comes before its sources.)
    """
    if not any(holds_back(node) for node in graph.nodes.values()):
        return tuple((name,) for name in graph.order)
    reached = {name: _reached(graph, name) for name in graph.order}
    waiting: list[Group] = []
    for name in graph.order:
        together = tuple(other for other in graph.order if other in reached[name] and name in reached[other])
        if not together or together[0] == name:
            waiting.append(together or (name,))
    ordered: list[Group] = []
    done: set[str] = set()
    while waiting:
        ready = next(group for group in waiting if done.union(group).issuperset(_heard_by(graph, group)))
        waiting.remove(ready)
        ordered.append(ready)
        done.update(ready)
    last = (graph.output,)
    return (*(group for group in ordered if group != last), last)


def _heard_by(graph: SpikingGraph, group: Group) -> set[str]:
    return {source for source, target in graph.edges if target in group}


def behind(graph: SpikingGraph, name: str) -> frozenset[str]:
    """Return the nodes that hear a node, over any number of edges; the node itself if it lies on a cycle."""
    return frozenset(_reached(graph, name))


def computed_before(graph: SpikingGraph, last: str) -> tuple[list[str], bool]:
    """Return the nodes between a node and the input and spiking layers before it, itself included, in computing order.

    The second value is True if some of them form a cycle, which can only be stepped.
    """
    order: list[str] = []
    entered: set[str] = set()
    cyclic = False

    def visit(name: str) -> None:
        nonlocal cyclic
        entered.add(name)
        for source in graph.sources(name):
            if isinstance(graph.nodes[source], (Input, *SPIKING)):
                continue
            if source not in entered:
                visit(source)
            cyclic |= source not in order
        order.append(name)

    visit(last)
    return ([name for name in graph.order if name in entered], True) if cyclic else (order, False)


def _reached(graph: SpikingGraph, name: str) -> set[str]:
    targets: dict[str, list[str]] = {}
    for source, target in graph.edges:
        targets.setdefault(source, []).append(target)
    reached: set[str] = set()
    waiting = targets.get(name, [])
    while waiting:
        target, *waiting = waiting
        if target not in reached:
            reached.add(target)
            waiting = targets.get(target, []) + waiting
    return reached
