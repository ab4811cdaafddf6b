"""Leaving a user's module as it was found: its mode, attributes, buffers, and the random generators."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

MAX_DEPTH = 8  # of collections within collections that are kept and restored


@contextmanager
def left_as_found(net: torch.nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode; afterwards leave it, its attributes and torch's generators as they were."""
    modules = list(net.modules())
    attributes = [{key: _kept(item) for key, item in vars(module).items()} for module in modules]
    # IAFCell marks its own v_reset tensor as requiring gradients when it makes a state (norse 1.1.0).
    leaves = [
        value
        for module in modules
        if isinstance(getattr(module, "p", None), tuple)
        for value in module.p  # type: ignore[union-attr]  # a NamedTuple of neuron parameters
        if isinstance(value, torch.Tensor) and value.is_leaf
    ]
    gradients = [tensor.requires_grad for tensor in leaves]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what users draw from
    devices = sorted({tensor.device.index or 0 for tensor in net.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        net.eval()
        try:
            yield
        finally:
            for module, before in zip(modules, attributes, strict=True):
                _restore(module, before)
            for tensor, mode in zip(leaves, gradients, strict=True):
                tensor.requires_grad_(mode)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002  # the generator users may draw from


def _kept(item: Any, depth: int = 0) -> tuple[Any, Any]:
    """Return an attribute and what it holds: the numbers of a tensor or array, the items of a collection, likewise."""
    if depth > MAX_DEPTH or isinstance(item, torch.nn.Parameter):
        return item, None
    if isinstance(item, torch.Tensor):
        return item, item.detach().clone()
    if isinstance(item, np.ndarray):
        return item, item.copy()
    if isinstance(item, (list, deque, tuple)):
        return item, [_kept(part, depth + 1) for part in item]
    if isinstance(item, set):
        return item, set(item)
    if isinstance(item, dict):
        return item, {key: _kept(part, depth + 1) for key, part in item.items()}
    if _is_record(item):
        return item, {key: _kept(part, depth + 1) for key, part in vars(item).items()}
    return item, None


def _is_record(item: Any) -> bool:
    """True for objects that are fields alone."""
    fields = isinstance(item, SimpleNamespace) or (is_dataclass(item) and not isinstance(item, type))
    return fields and hasattr(item, "__dict__") and not isinstance(item, torch.nn.Module)


def _restored(kept: tuple[Any, Any]) -> Any:
    """Return what `_kept` was given, as it was."""
    item, content = kept
    if content is None:
        return item
    if isinstance(item, (list, deque, tuple)):
        parts = [_restored(part) for part in content]
        if not isinstance(item, tuple):
            item.clear()
            item.extend(parts)
    elif isinstance(item, set):
        item.clear()
        item.update(content)
    elif isinstance(item, dict) or _is_record(item):
        held = item if isinstance(item, dict) else vars(item)
        named = {key: _restored(part) for key, part in content.items()}
        held.clear()
        held.update(named)
    elif isinstance(item, np.ndarray):
        item[...] = content
    else:
        with torch.no_grad():
            item.copy_(content)
    return item


def _restore(module: torch.nn.Module, before: dict[str, Any]) -> None:
    now = vars(module)
    for key in [key for key in now if key not in before]:
        del now[key]
    for key, kept in before.items():
        now[key] = _restored(kept)
