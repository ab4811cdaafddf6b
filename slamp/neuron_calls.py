"""Neuron modules as the tracer sees them: which take one step, which loop over time, and the states they are given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from norse.torch import LILinearCell
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell

from slamp.errors import UnsupportedModuleError
from slamp.tracing import Value


def loops_over_time(module: torch.nn.Module) -> bool:
    """True for neuron modules that take all time steps at once."""
    return isinstance(module, (SNN, SNNRecurrent))


def is_neuron(module: torch.nn.Module) -> bool:
    """True for modules that are one neuron layer of Norse, whatever else they hold; subclasses too."""
    return isinstance(module, (SNNCell, SNNRecurrentCell, SNN, SNNRecurrent, LILinearCell)) or (
        type(module).__module__.startswith("norse.torch.module.")
        and "state" in inspect.signature(type(module).forward).parameters
        and type(module).__name__ not in ("SequentialState", "RecurrentSequential")
    )


def state_fields(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor or value) of every field of a state, nested ones with dots."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        for name, item in zip(state._fields, state, strict=True):
            yield from state_fields(item, f"{prefix}{name}.")
    elif isinstance(state, (tuple, list)):
        for index, item in enumerate(state):
            yield from state_fields(item, f"{prefix}{index}.")
    elif state is not None:
        yield prefix.rstrip("."), state


def check_state(module: torch.nn.Module, x: torch.Tensor, fields: Sequence[tuple[str, Value]], where: str) -> None:
    """Raise `UnsupportedModuleError` unless a first state is the one the module would make itself."""
    if not fields:
        return
    for (name, value), (_, default) in zip(fields, state_fields(default_state(module, x)), strict=False):
        if not isinstance(default, torch.Tensor):
            continue
        given = value.tensor.detach()
        try:
            same = bool((given == default.detach().to(given)).all())
        except RuntimeError:
            same = False
        if not same:
            raise UnsupportedModuleError(
                f"{where}: {type(module).__name__} starts from a state of its own ({name} is not its default); "
                "graphs start at rest: give None as first state"
            )


def default_state(module: torch.nn.Module, x: torch.Tensor) -> Any:
    """Return the state a neuron module starts from."""
    fallback: Any = getattr(module, "state_fallback", None)
    if fallback is not None:
        return fallback(x)
    p: Any = module.p
    return (p.v_leak, torch.zeros(()))
