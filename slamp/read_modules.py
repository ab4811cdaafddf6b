"""What torch modules hold: checks of their weights, and their numbers as arrays."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.prune import BasePruningMethod

from slamp.errors import UnsupportedModuleError
from slamp.nodes import Scale, Shape, frozen_array


def check_plain_weights(module: torch.nn.Module, where: str) -> None:
    """Raise `UnsupportedModuleError` unless a module's numbers are plain float32 parameters."""
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
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise UnsupportedModuleError(f"{where}: {name} is {tensor.dtype}; allowed is float32; call net.float()")
        if tensor.is_meta:
            raise UnsupportedModuleError(f"{where}: {name} is on the meta device, without values; load weights first")


def scale_of(
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    shape: Shape,
) -> Scale:
    """Return what batch normalization with running statistics computes, all of shape (channels,).

    The kernel itself says what it multiplies and adds: its results for 1 (without mean and bias) and for 0.
    """
    zeros = torch.zeros_like(mean)
    probe = zeros.reshape(1, -1, *([1] * max(len(shape) - 1, 0)))
    with torch.no_grad():
        scale = F.batch_norm(torch.ones_like(probe), zeros, var, weight, zeros, False, 0.0, eps)
        shift = F.batch_norm(probe, mean, var, weight, bias, False, 0.0, eps)
    return Scale(plain_array(scale.reshape(-1)), plain_array(shift.reshape(-1)))


def plain_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's numbers, float32, read-only."""
    return frozen_array(tensor.detach().cpu().numpy())
