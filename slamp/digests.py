"""One sha256 over named bool arrays: which weights, or which channels, stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def kept_hash(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the sha256 over (name, bool array) pairs, in their order: names, shapes and what is True."""
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.packbits(array).tobytes())
    return digest.hexdigest()
