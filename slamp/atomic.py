"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slamp.errors import OutputDirectoryError


def write_atomically(path: Path, content: bytes | memoryview) -> None:
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
    in place until the new one is complete, and comes back if the exchange fails. What a killed process left behind is
    cleared away first: its temporary directory goes, a result it had moved aside comes back.

    Raises:
        OutputDirectoryError: ``target`` is a file, or a directory with files that are not ours.
    """
    check_replaceable(target, marker=marker)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_after_the_dead(target)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-{os.getpid()}-"))
    except OSError as error:
        raise OutputDirectoryError(
            f"{target}: cannot be written beside ({error}); choose a directory you may write to"
        ) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        check_replaceable(target, marker=marker)
        _exchange(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(target: Path, *, marker: str) -> None:
    """Raise `OutputDirectoryError` if ``target`` holds something this program did not write."""
    if not target.exists() and not target.is_symlink():
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
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-{os.getpid()}-"))
    try:
        os.rename(target, old / "kept")
        os.rename(temporary, target)
    finally:
        if not target.exists() and (old / "kept").exists():
            os.rename(old / "kept", target)
        shutil.rmtree(old, ignore_errors=True)


def _clear_after_the_dead(target: Path) -> None:
    for role in ("partial", "old"):
        prefix = f".{target.name}.{role}-"
        for left in target.parent.glob(f"{glob.escape(prefix)}*"):
            process = left.name.removeprefix(prefix).partition("-")[0]
            if not process.isdecimal() or _alive(int(process)):
                continue
            if (left / "kept").exists() and not target.exists():
                os.rename(left / "kept", target)
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
