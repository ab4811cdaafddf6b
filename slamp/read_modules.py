"""Read one torch or Norse module into a graph node, by exact type: a subclass may compute otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.prune import BasePruningMethod

from slamp.errors import UnsupportedModuleError
from slamp.nodes import (
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Flatten,
    Linear,
    Node,
    Scale,
    Shape,
    SumPool2d,
    frozen_array,
)
from slamp.read_neurons import KINDS, NEURON_ADVICE, check_neuron

VANISHING = (torch.nn.Identity, torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.AlphaDropout)
# What to write instead of modules people are likely to try.
ADVICE = {
    "MaxPool2d": "use torch.nn.LPPool2d(1, k) (sum pooling) or AvgPool2d",
    "ReLU": "behind spikes it does nothing, so drop it there; on currents use a neuron, such as LIFCell, in its place",
    "Lift": "use the lifted module itself and loop over time outside",
    "LILinearCell": "use Linear(bias=False) followed by LICell",
    **NEURON_ADVICE,
}
CELLS = {kind: cell for kind, cell in KINDS.items() if not cell.over_time and not cell.weights}


def read_module(module: torch.nn.Module, shape: Shape, *, where: str, dt: float | None) -> Node | None:
    """Return the node a module computes, or None for modules that vanish in evaluation mode.

    Args:
        module: The module.
        shape: Shape of its input without batch axis.
        where: Path of the module in the network, for messages.
        dt: Time step of the neurons read so far, or None.

    Raises:
        UnsupportedModuleError: The module, or one of its options, has no node.
    """
    if type(module) in VANISHING:
        return None
    reader = READERS.get(type(module))
    if reader is None:
        raise unsupported(module, where)
    check_options(module, where=where, dt=dt)
    return reader(module, Site(where, shape))


def check_options(module: torch.nn.Module, *, where: str, dt: float | None) -> None:
    """Raise `UnsupportedModuleError` for what is wrong with a module whatever the shape of its input.

    Args:
        module: A module of a type that is captured.
        where: Path of the module in the network, for messages.
        dt: Time step of the neurons read so far, or None.
    """
    _check_plain_weights(module, where)
    site = Site(where, ())
    match module:
        case torch.nn.Conv1d() | torch.nn.Conv2d():
            if module.padding_mode != "zeros":
                raise site.refuse(f"padding_mode is {module.padding_mode!r}, allowed is 'zeros'", "pad with zeros")
        case torch.nn.AvgPool2d():
            uncounted = _pair(module.padding) != (0, 0) and not module.count_include_pad
            if module.ceil_mode or module.divisor_override is not None or uncounted:
                raise site.refuse(
                    "AvgPool2d with ceil_mode, divisor_override or count_include_pad=False under padding "
                    "is not captured",
                    "use the defaults",
                )
        case torch.nn.LPPool2d():
            if float(module.norm_type) != 1.0 or module.ceil_mode:
                raise site.refuse(
                    f"LPPool2d with norm_type {module.norm_type}, ceil_mode {module.ceil_mode}",
                    "allowed is norm_type 1 (sum pooling) without ceil_mode",
                )
        case torch.nn.BatchNorm1d() | torch.nn.BatchNorm2d():
            if module.running_mean is None or module.running_var is None:
                raise site.refuse("batch normalization without running statistics", "use track_running_stats=True")
        case _ if type(module) in CELLS:
            check_neuron(module, where=where, dt=dt)


def unsupported(module: torch.nn.Module, where: str) -> UnsupportedModuleError:
    """Return the error for a module of a type that is not captured."""
    name = type(module).__name__
    advice = ADVICE.get(name) or _advice_on_neurons(type(module)) or "replace it by one of those"
    return UnsupportedModuleError(
        f"{where}: {type(module).__module__}.{name} is not captured; "
        f"allowed are SequentialState, {', '.join(sorted(kind.__name__ for kind in (*READERS, *VANISHING)))}; {advice}"
    )


def _advice_on_neurons(kind: type[torch.nn.Module]) -> str:
    """Say what to write instead of neurons that are known, but not yet where they hold weights or run over time."""
    if kind not in KINDS:
        return ""
    if KINDS[kind].recurrent:
        return "recurrence is not captured yet; use the cell without recurrence"
    cell = next(cell for cell in CELLS if CELLS[cell].read is KINDS[kind].read)
    return f"use {cell.__name__} in a SequentialState and loop over time outside"


def _neuron(module: torch.nn.Module, site: Site) -> Node:
    return KINDS[type(module)].read(module, site.shape, site.path)


@dataclass(frozen=True)
class Site:
    """Where a module stands: its path, and the shape of its input."""

    path: str
    shape: Shape

    def refuse(self, found: str, advice: str) -> UnsupportedModuleError:
        """Return an error about the module here."""
        return UnsupportedModuleError(f"{self.path}: {found}; {advice}")


def _check_plain_weights(module: torch.nn.Module, where: str) -> None:
    if torch.nn.utils.parametrize.is_parametrized(module):
        raise UnsupportedModuleError(
            f"{where}: the weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)) and "weight" not in module._parameters:
        makers = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
        pruned = any(isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values())
        advice = "prune.remove" if pruned else "remove_weight_norm or remove_spectral_norm"
        raise UnsupportedModuleError(
            f"{where}: the weight is no parameter but made before each call by {', '.join(makers) or 'other code'}; "
            f"call torch.nn.utils.{advice} first"
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise UnsupportedModuleError(f"{where}: {name} is {tensor.dtype}; allowed is float32; call net.float()")
        if tensor.is_meta:
            raise UnsupportedModuleError(f"{where}: {name} is on the meta device, without values; load weights first")


def _linear(module: torch.nn.Linear, site: Site) -> Node:
    if len(site.shape) != 1:
        raise site.refuse(
            f"Linear receives shape {site.shape} per sample, allowed is one axis", "put torch.nn.Flatten before it"
        )
    weight = _array(module.weight)
    return Linear(weight) if module.bias is None else Affine(weight, _array(module.bias))


def _conv(module: torch.nn.Conv1d | torch.nn.Conv2d, site: Site) -> Node:
    axes = len(module.kernel_size)
    padding: Any = tuple(module.padding) if not isinstance(module.padding, str) else module.padding
    if padding == "valid":
        padding = (0,) * axes
    if padding == "same":
        totals = [dilation * (kernel - 1) for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]
        if all(total % 2 == 0 for total in totals):
            padding = tuple(total // 2 for total in totals)
    kind = Conv1d if axes == 1 else Conv2d
    return kind(
        weight=_array(module.weight),
        bias=None if module.bias is None else _array(module.bias),
        stride=tuple(module.stride),
        padding=padding,
        dilation=tuple(module.dilation),
        groups=module.groups,
    )


def _avg_pool(module: torch.nn.AvgPool2d, site: Site) -> Node:
    return AvgPool2d(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))


def _sum_pool(module: torch.nn.LPPool2d, site: Site) -> Node:
    kernel = _pair(module.kernel_size)
    return SumPool2d(kernel, kernel if module.stride is None else _pair(module.stride))


def _flatten(module: torch.nn.Flatten, site: Site) -> Node | None:
    axes = len(site.shape) + 1
    if not all(-axes <= dim < axes for dim in (module.start_dim, module.end_dim)):
        raise site.refuse(
            f"Flatten({module.start_dim}, {module.end_dim}) receives shape {site.shape} per sample",
            f"allowed are axes up to {axes - 1}, the batch axis counted",
        )
    start = module.start_dim % axes
    end = module.end_dim % axes
    if start == 0:
        raise site.refuse("Flatten(start_dim=0) merges the batch axis", "use start_dim=1")
    return Flatten(start - 1, end - 1) if end > start else None


def _batch_norm(module: torch.nn.BatchNorm1d | torch.nn.BatchNorm2d, site: Site) -> Node:
    assert module.running_mean is not None
    assert module.running_var is not None
    allowed = (3,) if isinstance(module, torch.nn.BatchNorm2d) else (1, 2)
    if len(site.shape) not in allowed:
        raise site.refuse(
            f"{type(module).__name__} receives shape {site.shape} per sample",
            "BatchNorm1d takes (channels,) or (channels, x), BatchNorm2d (channels, y, x)",
        )
    # The kernel itself says what it multiplies and adds: its results for 1 (without mean and bias) and for 0.
    zeros = torch.zeros_like(module.running_mean)
    probe = zeros.reshape(1, -1, *([1] * max(len(site.shape) - 1, 0)))
    with torch.no_grad():
        scale = F.batch_norm(
            torch.ones_like(probe), zeros, module.running_var, module.weight, zeros, False, 0.0, module.eps
        )
        shift = F.batch_norm(
            probe, module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps
        )
    return Scale(_array(scale.reshape(-1)), _array(shift.reshape(-1)))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return frozen_array(tensor.detach().cpu().numpy())


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return (int(pair[0]), int(pair[1]))


READERS: dict[type[torch.nn.Module], Callable[[Any, Site], Node | None]] = {
    torch.nn.Linear: _linear,
    torch.nn.Conv1d: _conv,
    torch.nn.Conv2d: _conv,
    torch.nn.AvgPool2d: _avg_pool,
    torch.nn.LPPool2d: _sum_pool,
    torch.nn.Flatten: _flatten,
    torch.nn.BatchNorm1d: _batch_norm,
    torch.nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys(CELLS, _neuron),
}
