"""Modules whose layers follow one another in the order in which they are held: what structured pruning cuts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from norse.torch import SequentialState

from slamp.errors import UnsupportedModuleError

CONTAINERS = (SequentialState, torch.nn.Sequential)


def check_chain(net: torch.nn.Module) -> None:
    """Raise `UnsupportedModuleError` unless a network is a `SequentialState`, whose layers are in computing order."""
    if type(net) is not SequentialState:
        raise UnsupportedModuleError(
            f"(net): channels cannot be removed from {type(net).__name__}; allowed is norse.torch.SequentialState; "
            "prune single weights instead, or write the layers as SequentialState"
        )


def leaves(container: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield (path, module) of every module that is no container, in the order the network calls them."""
    for name, module in container._modules.items():
        assert module is not None
        path = f"{prefix}{name}"
        if type(module) in CONTAINERS:
            yield from leaves(module, f"{path}.")
        else:
            yield path, module
