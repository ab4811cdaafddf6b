"""From single runs of operations to the network they are steps of: sites, and the steps their edges take.

Every step must compute the same. What differs is found here and refused with the line of the user's code; only before
the first spike a step may do less, where zeros would have been added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slamp.errors import UnsupportedModuleError
from slamp.tracing import Value, words
from slamp.unrolled import Instance, Operation, Read, Stack

MAPS_ZERO_TO_ZERO = words(
    "scale reshape permute take cat relu max_pool avg_pool sum_pool adaptive_avg_pool upsample add"
)


IN_PIECES = -1


@dataclass(frozen=True)
class Edge:
    """An edge from ``source``, whose value arrives ``lag`` steps later."""

    source: Site
    lag: int


@dataclass(eq=False)
class Site:
    """One operation of the network.

    Attributes:
        operation: What it computes.
        operands: Edges from other sites and constants, in the order of the operation's operands.
        shape: Shape of its value, without batch axis.
        instances: Its runs by time step.
    """

    operation: Operation
    shape: tuple[int, ...]
    instances: dict[int, Instance]
    operands: tuple[Edge | Value, ...] = ()

    @property
    def first(self) -> Instance:
        """The earliest run."""
        return self.instances[min(self.instances)]

    @property
    def line(self) -> str:
        """Where the user's code makes it."""
        return str(self.first.line)


@dataclass(frozen=True)
class Sites:
    """The network of one step.

    Attributes:
        sites: In the order the first full step runs them.
        outputs: What it gives: edges, the output first.
        readout: How the output is read over time ("sum", "mean", "max", "last"), or "".
        returned: Of every output which of the returned tensors it is, and which of its axes is time; `IN_PIECES` if the
            first two are.
        reading: What returned that, to compare it; None if every step was returned.
    """

    sites: tuple[Site, ...]
    outputs: tuple[Edge, ...]
    readout: str = ""
    returned: tuple[tuple[int, int], ...] = ()
    reading: Read | None = field(default=None, compare=False)


class Folding:
    """Folds runs into sites.

    Args:
        instances: All runs, in order, those of the inputs included.
        steps: Number of time steps.
    """

    def __init__(self, instances: Sequence[Instance], steps: int) -> None:
        self.steps = steps
        self.by_place: dict[Any, Site] = {}
        dynamic = {instance.place for instance in instances if not instance.known}
        self.order: list[Site] = []
        for instance in instances:
            if instance.place not in dynamic:
                continue
            site = self.by_place.get(instance.place)
            if site is None:
                site = self.by_place[instance.place] = Site(instance.operation, instance.shape, {})
                self.order.append(site)
            site.instances[instance.time] = instance
            if instance.operation.kind == "neuron" and len(site.instances) > steps:
                raise UnsupportedModuleError(
                    f"{_where(instance)}: {_what(instance)} runs more than once per time step with one state; give it "
                    "one call per step, or another module"
                )
        self._done: set[int] = set()

    def last(self, entry: Instance) -> Edge:
        """Return the edge to an output of which the last step alone was returned."""
        site = self.site(entry)
        if site is None:
            raise UnsupportedModuleError(f"{entry.line}: the output does not depend on the input")
        if entry.time != self.steps - 1:
            found = f"the output is that of step {entry.time} of {self.steps}"
            raise UnsupportedModuleError(f"{entry.line}: {found}; return the last, or all, stacked")
        return Edge(site, 0)

    def output(self, stack: Stack) -> Edge:
        """Return the edge to an output of which every step was returned."""
        found = [(t, entry, self.site(entry)) for t, entry in enumerate(stack.entries)]
        _, entry, site = found[-1]
        line = entry.line if isinstance(entry, Instance) else "(net)"
        if site is None:
            raise UnsupportedModuleError(f"{line}: the output of the last step does not depend on the input")
        assert isinstance(entry, Instance)
        lag = len(stack.entries) - 1 - entry.time
        edge = Edge(site, lag)
        for t, entry, _ in found:
            if not self.matches(edge, entry, t):
                raise UnsupportedModuleError(
                    f"{line}: the output of step {t} is another than that of the last step; "
                    "return the same value of every step"
                )
        return edge

    def reached(self, ends: Sequence[Site]) -> tuple[Site, ...]:
        """Return the sites that lead to ``ends``, each checked, in order of running."""
        waiting, seen = list(ends), set()
        while waiting:
            site = waiting.pop()
            if id(site) in seen:
                continue
            seen.add(id(site))
            self._link(site)
            waiting += [operand.source for operand in site.operands if isinstance(operand, Edge)]
        return tuple(site for site in self.order if id(site) in seen)

    def accumulated(self, edge: Edge) -> Edge | None:
        """Return what a running sum adds up, if the edge leads from one: ``total = total + x`` from zero."""
        site = edge.source
        if site.operation.kind != "add":
            return None
        self._link(site)
        own = [operand for operand in site.operands if isinstance(operand, Edge) and operand.source is site]
        other = [operand for operand in site.operands if isinstance(operand, Edge) and operand.source is not site]
        if len(site.operands) == 2 and len(own) == 1 and own[0].lag == 1 and len(other) == 1:
            return other[0]
        return None

    def site(self, operand: Instance | Value) -> Site | None:
        """Return the site an operand is a run of, None for constants."""
        return self.by_place.get(operand.place) if isinstance(operand, Instance) else None

    def _link(self, site: Site) -> None:
        """Find the edges of a site from its last run and check every other run against them."""
        last = max(site.instances)
        model = site.instances[last]
        edges: list[Edge | Value] = []
        for operand in model.operands:
            source = self.site(operand)
            if source is None:
                edges.append(operand.result if isinstance(operand, Instance) and operand.result else _value(operand))
            else:
                assert isinstance(operand, Instance)
                edges.append(Edge(source, last - operand.time))
        site.operands = tuple(edges)
        for t, instance in site.instances.items():
            if not instance.operation.same(site.operation) or instance.shape != site.shape:
                raise self._differs(instance, t, "computes otherwise")
            if len(instance.operands) != len(edges):
                raise self._differs(instance, t, "has another number of operands")
            each = instance.operands
            if site.operation.kind == "add" and len(each) == 2:  # addition does not mind the order of two
                turned = each[::-1]
                if all(self.matches(edge, operand, t) for edge, operand in zip(edges, turned, strict=True)):
                    continue
            if site.operation.kind == "neuron" and t and instance.before is not site.instances.get(t - 1):
                raise UnsupportedModuleError(
                    f"{_where(instance)}: {_what(instance)} starts anew in step {t}; hand the state it returned to its "
                    "next call (torch.nn.Sequential does not, norse.torch.SequentialState does)"
                )
            for edge, operand in zip(edges, each, strict=True):
                if not self.matches(edge, operand, t):
                    raise self._differs(instance, t, self._reason(edge, operand, t))
        if site.operation.kind == "neuron":
            first = min(site.instances)
            missing = [t for t in range(first, last + 1) if t not in site.instances]
            if first != 0 or missing or last < self.steps - 1:
                if last >= self.steps:
                    raise UnsupportedModuleError(
                        f"{_where(model)}: {_what(model)} needs inputs of later steps than its own; "
                        "a step can only use what came before it, so loop over time forwards"
                    )
                at = first - 1 if first else (missing or [last + 1])[0]
                raise UnsupportedModuleError(
                    f"{_where(model)}: {_what(model)} runs in step {last} but not in step {at}; {ALIKE}"
                )

    def matches(self, edge: Edge | Value, operand: Instance | Value, t: int) -> bool:
        """True if at step ``t`` an operand is what an edge (or constant) says, or zero before the first value."""
        source = self.site(operand)
        if isinstance(edge, Value):
            if source is not None:
                return False
            return torch.equal(edge.tensor, _value(operand).tensor)
        at = t - edge.lag
        if source is not None:
            assert isinstance(operand, Instance)
            if source is edge.source:
                return operand.time == at
            return self._same(edge.source, at, operand) or self._stands_for(edge.source, at, operand)
        value = _value(operand).tensor
        return bool((value == 0).all()) and self._zero(edge.source, at)

    def _zero(self, site: Site, t: int, depth: int = 0) -> bool:
        """True if a site's value at a step is zero because nothing has arrived yet."""
        if t < 0:
            return True
        if t in site.instances and not site.instances[t].known:
            return False
        if depth > 50 or site.operation.kind not in (*MAPS_ZERO_TO_ZERO, "linear", "conv"):
            return False
        if any(constant is not None for constant in site.operation.constants[1:]):
            return False
        if not site.operands:
            self._link(site)
        return all(
            isinstance(operand, Edge) and self._zero(operand.source, t - operand.lag, depth + 1)
            for operand in site.operands
        )

    def _stands_for(self, site: Site, t: int, operand: Instance, depth: int = 0) -> bool:
        """True if ``operand`` is what an addition that did not run gives at ``t``: its other operands are zero."""
        if t in site.instances or site.operation.kind != "add" or depth > 50:
            return False
        if id(site) not in self._done:
            self._done.add(id(site))
            self._link(site)
        left = [
            edge for edge in site.operands if not (isinstance(edge, Edge) and self._zero(edge.source, t - edge.lag))
        ]
        if len(left) != 1 or not isinstance(left[0], Edge):
            return False
        edge = left[0]
        if self.site(operand) is edge.source:
            return operand.time == t - edge.lag
        if self._same(edge.source, t - edge.lag, operand, depth + 1):
            return True
        return self._stands_for(edge.source, t - edge.lag, operand, depth + 1)

    def _same(self, site: Site, t: int, operand: Instance, depth: int = 0) -> bool:
        """True if ``operand`` is what a site that did not run at ``t`` computes, run by another line of code."""
        if t in site.instances or operand.time != t or operand.shape != site.shape or depth > 50:
            return False
        if site.operation.kind == "neuron" or not operand.operation.same(site.operation):
            return False
        if not site.operands:
            self._link(site)
        pairs = zip(site.operands, operand.operands, strict=False)
        return len(site.operands) == len(operand.operands) and all(self.matches(edge, each, t) for edge, each in pairs)

    def _reason(self, edge: Edge | Value, operand: Instance | Value, t: int) -> str:
        if isinstance(edge, Edge) and t < edge.lag and self.site(operand) is None:
            return "reads a recurrent value that does not start from zero"
        if isinstance(edge, Value) and self.site(operand) is None:
            return "reads a constant that is another in a later step"
        return "reads other values than a later step"

    def _differs(self, instance: Instance, t: int, what: str) -> UnsupportedModuleError:
        return UnsupportedModuleError(f"{_where(instance)}: {_what(instance)}: step {t} {what}; {ALIKE}")


ALIKE = "every time step must compute the same; start recurrent values from zeros"


def _where(instance: Instance) -> str:
    return "(net)" if instance.call is None else instance.call.where


def _what(instance: Instance) -> str:
    return "the input" if instance.call is None else instance.call.what


def _value(operand: Instance | Value) -> Value:
    if isinstance(operand, Value):
        return operand
    assert operand.result is not None
    return operand.result
