"""What a traced tensor means: the value of one operation in one step, a stack of these over time, a neuron's state.

An `Operation` is what is computed, an `Instance` is one run of it at one step, and its place in the user's code tells
which instances are one and the same `Site` of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from slamp.tracing import Call, Line, Value


@dataclass(frozen=True)
class Operation:
    """One step's operation.

    Attributes:
        kind: Its name: "neuron", "linear", "conv", "norm", "add", "scale", "reshape", ...
        settings: Plain settings that must be equal in every step.
        constants: Tensors it reads besides its operands: parameters, buffers, numbers.
        module: The neuron module, or None.
    """

    kind: str
    settings: tuple[Any, ...] = ()
    constants: tuple[Value | None, ...] = ()
    module: torch.nn.Module | None = None

    def same(self, other: Operation) -> bool:
        """True if both compute the same of the same operands."""
        return (
            self.kind == other.kind
            and self.settings == other.settings
            and self.module is other.module
            and len(self.constants) == len(other.constants)
            and all(_same_constant(a, b) for a, b in zip(self.constants, other.constants, strict=True))
        )


@dataclass(eq=False)
class Instance:
    """One run of an operation at step ``time``. ``shape`` is that of its result, without batch axis.

    ``number`` counts the runs of one place that share a step. ``known`` marks what does not depend on the input: a
    state before its first spike, which is an instance like others if its place is run again later; its ``result`` is
    kept.
    """

    operation: Operation
    operands: tuple[Instance | Value, ...]
    time: int
    shape: tuple[int, ...]
    call: Call | None
    number: int = 0
    known: bool = False
    before: Instance | None = None
    part: int = 0
    result: Value | None = None

    @property
    def place(self) -> tuple[Any, ...]:
        """What all instances of one site share."""
        at = ("input", self.part) if self.call is None else self.call.place
        return (at, self.number, self.part)

    @property
    def line(self) -> Line:
        """Where the user's code made it."""
        return Line("", 0, "(net)") if self.call is None else self.call.line


@dataclass(eq=False)
class Stack:
    """Values side by side along ``axis`` of a tensor: usually the steps of one site."""

    entries: tuple[Instance | Value, ...]
    axis: int

    @property
    def over_time(self) -> bool:
        """True if the entries are one site's steps, in order and without gap."""
        found = [entry for entry in self.entries if isinstance(entry, Instance)]
        if len(found) != len(self.entries) or len({entry.place for entry in found}) != 1:
            return False
        return [entry.time for entry in found] == list(range(found[0].time, found[0].time + len(found)))


@dataclass(eq=False)
class Pieces:
    """A sequence cut into pieces of equal length, (pieces, steps, batch, ...); ``call`` made it."""

    stack: Stack
    call: Call


@dataclass(eq=False)
class State:
    """One tensor of the state a neuron returned."""

    instance: Instance
    field: str


@dataclass(eq=False)
class Read:
    """A stack read over time: ``how`` is sum, mean, max or last. ``exact``: nothing was done to it afterwards."""

    how: str
    stack: Stack
    calls: tuple[Call, ...] = field(default_factory=tuple)


@dataclass(eq=False)
class Unread:
    """A value no graph can hold; ``message`` says why, should anything need it; ``call`` made it."""

    message: str
    call: Call | None = None


Meaning = Instance | Stack | Pieces | State | Read | Unread


def _same_constant(a: Value | None, b: Value | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.name or b.name:
        return a.name == b.name
    return a.tensor.shape == b.tensor.shape and bool(torch.equal(a.tensor, b.tensor))
