"""Interpreters of their own for foreign simulators: where they lie, how they appear, how a child process is run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from slamp.errors import WitnessError

HOME_VARIABLE = "SLAMP_WITNESS_HOME"
READY = "ready.json"
GRACE_S = 5.0


def witness_home() -> Path:
    """Directory of the witness environments: ``SLAMP_WITNESS_HOME``, else ``~/.cache/slamp/witness``."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "slamp" / "witness"


def finished_python(name: str, home: Path | None = None) -> Path | None:
    """Return the interpreter of a finished environment, or None if there is none."""
    directory = (witness_home() if home is None else home) / name
    python = directory / "bin" / "python"
    return python if python.is_file() and (directory / READY).is_file() else None


@contextmanager
def new_environment(name: str, home: Path | None = None) -> Iterator[Path]:
    """Yield a directory to build an environment in; it takes its place, and an older one's, when the block succeeds.

    A half-made environment is never taken for a finished one, and nothing is left of it.
    """
    home = witness_home() if home is None else home
    home.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=home, prefix=f".{name}.partial-"))
    try:
        yield partial
        target = home / name
        if target.is_symlink():
            target.unlink()
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run_child(command: Sequence[str], time_limit_s: float) -> str:
    """Run a child process in a session of its own; return the end of what it said, raise `WitnessError` if it fails.

    Whatever it started ends with it, however it ends, and the shared memory it leaves behind is removed.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONNOUSERSITE"] = "1"
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        late = False
        try:
            child.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(child)
        said.seek(0)
        words = said.read().decode(errors="replace")[-2000:].strip()
    shown = " ".join(command[:3])
    if late:
        raise WitnessError(
            f"{shown}: not done after {time_limit_s:g} s; allow more time or fewer samples; it said: {words}"
        )
    if child.returncode < 0:
        raise WitnessError(f"{shown}: was ended by {signal.Signals(-child.returncode).name}; it said: {words}")
    if child.returncode != 0:
        raise WitnessError(f"{shown}: ended with code {child.returncode}: {words}")
    return words


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a child's process group: SIGTERM, and SIGKILL where that was not enough.

    Lava's processes fork; killed hard, or orphaned, they leave each other waiting and their shared memory behind.
    """
    shared = _shared_memory(child.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _group_lives(child):
            break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        deadline = time.monotonic() + GRACE_S
        while _group_lives(child) and time.monotonic() < deadline:
            time.sleep(0.02)
    for path in shared:
        path.unlink(missing_ok=True)


def _group_lives(child: subprocess.Popen[bytes]) -> bool:
    child.poll()  # a child that nobody has waited for still counts
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _shared_memory(group: int) -> list[Path]:
    """Return the segments of shared memory that processes of a group have mapped (Linux; elsewhere none)."""
    found: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != group:
                continue
            lines = (process / "maps").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        found |= {Path(line.split(maxsplit=5)[5]) for line in lines if "/dev/shm/psm_" in line}
    return sorted(path for path in found if path.exists())
