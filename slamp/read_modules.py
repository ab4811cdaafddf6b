"""Read one torch or Norse module into a graph node, by exact type: a subclass may compute otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from norse.torch import IAFCell, LIBoxCell, LICell, LIFBoxCell, LIFCell
from norse.torch.functional.reset import reset_subtract, reset_value
from torch.nn.utils.prune import BasePruningMethod

from slamp.errors import UnsupportedModuleError
from slamp.nodes import (
    IF,
    LI,
    LIF,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Linear,
    Node,
    Scale,
    Shape,
    SumPool2d,
    frozen_array,
    per_neuron,
)

# "adjoint" is accepted by norse 1.1.0 when a cell is made, but its threshold then refuses to run.
DETERMINISTIC_SPIKE_METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")
VANISHING = (torch.nn.Identity, torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.AlphaDropout)
# What to write instead of modules people are likely to try.
ADVICE = {
    "MaxPool2d": "use torch.nn.LPPool2d(1, k) (sum pooling) or AvgPool2d",
    "ReLU": "behind spikes it does nothing, so drop it there; on currents use a neuron, such as LIFCell, in its place",
    "LIF": "use LIFCell in a SequentialState and loop over time outside",
    "LI": "use LICell and loop over time outside",
    "IAF": "use IAFCell and loop over time outside",
    "Lift": "use the lifted module itself and loop over time outside",
    "LIFRecurrentCell": "recurrence is not captured yet; use LIFCell",
    "LILinearCell": "use Linear(bias=False) followed by LICell",
    "LIFAdExCell": "use LIFCell",
    "IzhikevichCell": "use LIFCell",
    "CobaLIFCell": "use LIFCell",
}


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
        case IAFCell() | LIFBoxCell() | LIFCell() | LIBoxCell() | LICell():
            _check_neuron(module, site, dt)


def unsupported(module: torch.nn.Module, where: str) -> UnsupportedModuleError:
    """Return the error for a module of a type that is not captured."""
    name = type(module).__name__
    advice = ADVICE.get(name, "replace it by one of those")
    return UnsupportedModuleError(
        f"{where}: {type(module).__module__}.{name} is not captured; "
        f"allowed are SequentialState, {', '.join(sorted(kind.__name__ for kind in (*READERS, *VANISHING)))}; {advice}"
    )


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


def _iaf(module: IAFCell, site: Site) -> Node:
    p, shape, where = module.p, site.shape, site.path
    return IF(_number(p.v_th, shape, where), _number(p.v_reset, shape, where))


def _lif_box(module: LIFBoxCell, site: Site) -> Node:
    p, shape, where = module.p, site.shape, site.path
    return LIF(
        decay_mem=_number(_decay(module.dt, p.tau_mem_inv), shape, where),
        v_leak=_number(p.v_leak, shape, where),
        v_threshold=_number(p.v_th, shape, where),
        v_reset=_number(p.v_reset, shape, where),
        reset="value" if p.reset_method is reset_value else "subtract",
    )


def _lif(module: LIFCell, site: Site) -> Node:
    p, shape, where = module.p, site.shape, site.path
    return CubaLIF(
        decay_syn=_number(_decay(module.dt, p.tau_syn_inv), shape, where),
        decay_mem=_number(_decay(module.dt, p.tau_mem_inv), shape, where),
        v_leak=_number(p.v_leak, shape, where),
        v_threshold=_number(p.v_th, shape, where),
        v_reset=_number(p.v_reset, shape, where),
    )


def _li_box(module: LIBoxCell, site: Site) -> Node:
    decay = _number(_decay(module.dt, module.p.tau_mem_inv), site.shape, site.path)
    return LI(decay, _number(module.p.v_leak, site.shape, site.path))


def _li(module: LICell, site: Site) -> Node:
    p, shape, where = module.p, site.shape, site.path
    return CubaLI(
        decay_syn=_number(_decay(module.dt, p.tau_syn_inv), shape, where),
        decay_mem=_number(_decay(module.dt, p.tau_mem_inv), shape, where),
        v_leak=_number(p.v_leak, shape, where),
    )


def _check_neuron(module: Any, site: Site, dt: float | None) -> None:
    method = getattr(module.p, "method", "heaviside")
    if method not in DETERMINISTIC_SPIKE_METHODS:
        raise site.refuse(
            f"spike method {method!r} is probabilistic or unknown",
            f"allowed are {', '.join(DETERMINISTIC_SPIKE_METHODS)}",
        )
    if dt is not None and dt != module.dt:
        raise site.refuse(
            f"dt is {float(module.dt)!r} s, the neurons before it have {float(dt)!r} s",
            "use one dt in the whole network",
        )
    if isinstance(module, LIFBoxCell) and module.p.reset_method not in (reset_value, reset_subtract):
        raise site.refuse(
            f"reset_method {module.p.reset_method!r}", "allowed are norse's reset_value and reset_subtract"
        )
    start = {IAFCell: "v_reset", LIFBoxCell: "v_leak", LIBoxCell: "v_leak", LICell: "v_leak"}.get(type(module), "")
    if start and not isinstance(getattr(module.p, start), torch.Tensor):
        value = getattr(module.p, start)
        raise site.refuse(
            f"{start} is the plain number {value!r}, which norse cannot run", f"use torch.tensor({value!r})"
        )
    for name, value in zip(module.p._fields, module.p, strict=True):
        if isinstance(value, torch.Tensor) and value.ndim > 0 and value.dtype != torch.float32 and name != "alpha":
            raise site.refuse(f"{name} is {value.dtype}", "allowed is float32")


def _decay(dt: float, tau_inv: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(dt * tau_inv).detach()


def _number(value: torch.Tensor | float, shape: Shape, where: str) -> np.ndarray:
    array = torch.as_tensor(value).detach().to("cpu", torch.float32).numpy()
    trimmed = array.reshape(array.shape[1:]) if array.ndim == len(shape) + 1 and array.shape[0] == 1 else array
    return per_neuron(trimmed, shape, where=where)


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
    IAFCell: _iaf,
    LIFBoxCell: _lif_box,
    LIFCell: _lif,
    LIBoxCell: _li_box,
    LICell: _li,
}
