"""What a profile says of chips that run one convolution per core: the memories of the cores."""

from __future__ import annotations

import math

from slamp.placement import KernelNeeds
from slamp.profile import Limits


def core_memories(limits: Limits) -> tuple[KernelNeeds, ...]:
    """Return the memories of every core; empty if kernel or neuron memories are not known core by core."""
    kernels, neurons, bias = limits.kernel_words_of_core, limits.neuron_words_of_core, limits.bias_words_per_core
    if kernels is None or neurons is None:
        return ()
    if not isinstance(kernels.value, tuple) or not isinstance(neurons.value, tuple):
        return ()
    each = math.inf if bias is None or bias.value is None else bias.number
    return tuple(KernelNeeds(kernel, cells, each) for kernel, cells in zip(kernels.value, neurons.value, strict=True))
