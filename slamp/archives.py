"""Reading npz archives, damaged ones included."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an npz by name; pickled objects are refused.

    Raises:
        OSError: The file cannot be opened (`FileNotFoundError` if it is missing).
        ValueError: It is not an npz, or it is damaged, in whatever way.
    """
    try:
        # NumPy leaves a file open that it opened itself and could not read.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an npz")  # noqa: TRY004  # about a file, not an argument
            with archive:
                return {name: archive[name] for name in archive.files}
    # What zipfile, zlib and NumPy's header parser raise on damaged bytes; RuntimeError and NotImplementedError come
    # from flag and method fields that claim encryption or unknown compression, MemoryError from an absurd shape.
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        KeyError,
        TypeError,
        IndexError,
        OverflowError,
        SyntaxError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
