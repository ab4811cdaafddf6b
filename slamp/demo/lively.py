"""Make an untrained network fire: most are born with deeper layers that never do, and silence proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

from slamp.as_found import left_as_found
from slamp.errors import SilentNetworkError
from slamp.neuron_calls import is_neuron
from slamp.running import run_style

WEIGHTED = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
PASSES = 12
MORE = 1.6  # what the weights of a layer that stays silent are scaled by before the next pass


def enliven(net: torch.nn.Module, *inputs: Any, drive: float = 3.0, by_steps: bool = False) -> None:
    """Scale the weights before every neuron layer so that its first currents have the standard deviation ``drive``.

    Where a layer stays silent nevertheless, its weights are scaled up until it does not.

    Args:
        net: The network, changed in place; layers of weights are `torch.nn.Linear`, convolutions, the affine batch
            normalizations behind them, and the input weights that a cell holds itself.
        inputs: What it is called with.
        drive: In units of the current; the threshold of Norse's neurons is 1.
        by_steps: The network takes one step, and hands on its state; the inputs have shape (time, batch, ...).

    Raises:
        SilentNetworkError: A layer never fires, whatever its weights; the input may be silent, or too short.
    """

    def run() -> None:
        if by_steps:
            run_style(net, inputs, "steps", net, lambda tensor: tensor)
        else:
            net(*inputs)

    paths = {module: path or "(net)" for path, module in net.named_modules() if is_neuron(module)}
    with torch.no_grad(), left_as_found(net):
        weights = _scale_first_currents(net, run, drive)
        for _ in range(PASSES):
            silent = _silent(paths, run)
            if not silent:
                return
            for tensor in (tensor for module in silent for tensor in weights.get(module, ())):
                tensor.mul_(MORE)
    raise SilentNetworkError(
        f"{paths[silent[0]]}: never fires, with weights scaled up by {MORE**PASSES:.0f} too; "
        "give more input, or more steps"
    )


def _scale_first_currents(
    net: torch.nn.Module, run: Callable[[], None], drive: float
) -> dict[torch.nn.Module, list[torch.Tensor]]:
    """Scale every layer as soon as it receives a current; return the weights before each."""
    last: list[torch.nn.Module] = []
    found: dict[torch.nn.Module, list[torch.Tensor]] = {}

    def weighted(module: torch.nn.Module, arguments: Any, result: Any) -> None:
        last.append(module)

    def neurons(module: torch.nn.Module, arguments: tuple[Any, ...]) -> Any:
        x, *rest = arguments
        given = x[0] if isinstance(x, tuple) else x
        own = getattr(module, "input_weights", None)
        weights = [own] if own is not None else list(last[-1].parameters()) if last else []
        last.clear()
        current = given if own is None else linear(given, own)
        if module in found or not weights or not bool(current.std() > 0):
            return None
        found[module] = weights
        factor = drive / float(current.std())
        for tensor in weights:
            tensor.mul_(factor)
        if own is not None:
            return None
        scaled = (current * factor, *x[1:]) if isinstance(x, tuple) else current * factor
        return (scaled, *rest)

    handles = [module.register_forward_hook(weighted) for module in net.modules() if _has_weights(module)]
    handles += [module.register_forward_pre_hook(neurons) for module in net.modules() if is_neuron(module)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _has_weights(module: torch.nn.Module) -> bool:
    return isinstance(module, WEIGHTED) and module.weight is not None


def _silent(neurons: dict[torch.nn.Module, str], run: Callable[[], None]) -> list[torch.nn.Module]:
    """Return the neuron layers that give nothing but zeros in a run: those with an input, if any has one."""
    fired: set[torch.nn.Module] = set()
    reached: set[torch.nn.Module] = set()

    def watch(module: torch.nn.Module, arguments: Any, result: Any) -> None:
        given, output = (item[0] if isinstance(item, tuple) else item for item in (arguments[0], result))
        if bool(given.any()):
            reached.add(module)
        if bool(output.any()):
            fired.add(module)

    handles = [module.register_forward_hook(watch) for module in neurons]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    silent = [module for module in neurons if module not in fired]
    return [module for module in silent if module in reached] or silent
