"""Make an untrained network fire: most are born with deeper layers that never do, and silence proves nothing."""

from __future__ import annotations

from typing import Any

import torch

from slamp.neuron_calls import is_neuron
from slamp.running import left_as_found

WEIGHTED = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)


def enliven(net: torch.nn.Module, *inputs: Any, drive: float = 3.0) -> None:
    """Scale the weights before every neuron layer so that its first currents have the standard deviation ``drive``.

    Args:
        net: The network, changed in place; layers of weights are `torch.nn.Linear` and convolutions.
        inputs: What it is called with.
        drive: In units of the current; the threshold of Norse's neurons is 1.
    """
    last: list[torch.nn.Module] = []
    done: set[torch.nn.Module] = set()

    def weighted(module: torch.nn.Module, arguments: Any, result: Any) -> None:
        last.append(module)

    def neurons(module: torch.nn.Module, arguments: tuple[Any, ...]) -> Any:
        x, *rest = arguments
        current = x[0] if isinstance(x, tuple) else x
        if module in done or not last or not bool(current.std() > 0):
            return None
        done.add(module)
        factor = drive / float(current.std())
        for parameter in last[-1].parameters():
            parameter.mul_(factor)
        scaled = (current * factor, *x[1:]) if isinstance(x, tuple) else current * factor
        return (scaled, *rest)

    handles = [module.register_forward_hook(weighted) for module in net.modules() if isinstance(module, WEIGHTED)]
    handles += [module.register_forward_pre_hook(neurons) for module in net.modules() if is_neuron(module)]
    try:
        with torch.no_grad(), left_as_found(net):
            net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
