"""Delays: what a `Delay` node remembers between steps, and which of them may close a cycle."""

from __future__ import annotations

import numpy as np
import torch

from slamp.nodes import Delay, Node


def holds_back(node: Node) -> bool:
    """True for a `Delay` of at least one step everywhere: its output does not depend on the same step's input."""
    return isinstance(node, Delay) and bool((node.steps >= 1).all())


class DelayLine:
    """The memory of a `Delay` node for one run; empty (zero) before the first step."""

    def __init__(self, node: Delay, batch: int, device: str | torch.device) -> None:
        self.steps = torch.tensor(node.steps.reshape(-1).astype(np.int64), device=device)
        self.uniform = bool((self.steps == self.steps[0]).all())
        self.length = int(self.steps.max()) + 1
        self.shape = (batch, *node.steps.shape)
        self.frames = torch.zeros(self.length, batch, self.steps.numel(), device=device)
        self.feature = torch.arange(self.steps.numel(), device=device)
        self.now = 0

    def push(self, x: torch.Tensor) -> None:
        """Take the values of this step, (batch, *features)."""
        if self.frames.dtype != x.dtype:
            self.frames = self.frames.to(torch.promote_types(self.frames.dtype, x.dtype))
        self.frames[self.now % self.length] = x.flatten(1)

    def read(self) -> torch.Tensor:
        """Return what leaves at this step, (batch, *features)."""
        if self.uniform:
            return self.frames[int(self.now - self.steps[0]) % self.length].reshape(self.shape).clone()
        late = (self.now - self.steps) % self.length
        return self.frames[late, :, self.feature].transpose(0, 1).reshape(self.shape)

    def advance(self) -> None:
        """Go to the next step."""
        self.now += 1


def later(x: torch.Tensor, node: Delay) -> torch.Tensor:
    """Delay each feature of (time, batch, *features) by its steps; nothing arrives before."""
    flat = x.flatten(2)
    found = torch.zeros_like(flat)
    late = node.steps.reshape(-1).astype(int)
    for steps in np.unique(late):
        of_these = torch.from_numpy(np.flatnonzero(late == steps))
        kept = max(len(flat) - int(steps), 0)
        found[len(flat) - kept :, :, of_these] = flat[:kept, :, of_these]
    return found.reshape(x.shape)
