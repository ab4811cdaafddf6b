"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slamp.errors import OutputDirectoryError


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path`` and rename it over ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(target: Path, *, marker: str) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``target`` when the block ends without error.

    An existing ``target`` is replaced only if it is empty or holds ``marker``, the file that says it is ours; it stays
    in place until the new one is complete, and comes back if the exchange fails.

    Raises:
        OutputDirectoryError: ``target`` is a file, or a directory with files that are not ours.
    """
    check_replaceable(target, marker=marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        check_replaceable(target, marker=marker)
        _exchange(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(target: Path, *, marker: str) -> None:
    """Raise `OutputDirectoryError` if ``target`` holds something this program did not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputDirectoryError(f"{target}: a file is in the way; name a directory that is new or empty")
    found = sorted(path.name for path in target.iterdir())
    if found and marker not in found:
        raise OutputDirectoryError(
            f"{target}: holds files that are not ours ({', '.join(found[:3])}); allowed is a new or empty directory, "
            f"or one with a {marker} of an earlier export; choose another directory"
        )


def _exchange(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
    os.rename(target, old / "kept")
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old / "kept", target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
