"""Where a training function saves its progress, so that an interrupted run can go on."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slamp.atomic import write_atomically
from slamp.errors import ArtifactError, TrainingError

# What torch and pickle raise on bytes that are damaged, and on objects that are not plain data.
DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    struct.error,
    pickle.PickleError,
)


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training function.

    Attributes:
        path: The file, or None to keep nothing.
    """

    path: Path | None = None

    def load(self) -> dict[str, Any] | None:
        """Return what was last saved, or None. Only tensors, numbers, strings and containers are read.

        Raises:
            ArtifactError: The file is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except DAMAGE as error:
            raise ArtifactError(
                f"{self.path}: damaged checkpoint ({error}); delete it, or run without --resume"
            ) from error
        if not isinstance(state, dict):
            raise ArtifactError(f"{self.path}: holds {type(state).__name__}, not a checkpoint; delete it")
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state atomically: epoch, ``net.state_dict()``, ``optimizer.state_dict()``, what `load` shall give.

        If training draws from torch's generator (Dropout), keep ``torch.get_rng_state()`` too and set it after `load`.

        Raises:
            TrainingError: The state holds something `load` would refuse.
        """
        if self.path is None:
            return
        buffer = io.BytesIO()
        try:
            torch.save(dict(state), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except DAMAGE as error:
            first = str(error).partition("\n")[0]
            raise TrainingError(
                f"{self.path}: this state cannot be kept ({first}); "
                "allowed are tensors, numbers, strings and containers"
            ) from error
        write_atomically(self.path, buffer.getvalue())

    def clear(self) -> None:
        """Forget what was saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
