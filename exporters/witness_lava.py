"""Lava in an environment of its own: its own process models step a fixed-point network, one sample after another."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exporters.environments import (
    HOME_VARIABLE,
    READY,
    finished_python,
    new_environment,
    run_child,
    witness_home,
)
from slamp.errors import MissingDependencyError, WitnessError

# lava-dl pins torch below 2.4 and numpy below 2, and brings lava-nc 0.10.0.
REQUIREMENTS = ("lava-dl==0.6.0",)
PYTHON_VERSION = "3.10"  # the only one lava-nc 0.10.0 and lava-dl 0.6.0 install on
# On another Python, behind exporters/lava_shim.py. From numpy 2.4 on, Lava's ports cannot be reshaped.
SHIMMED_REQUIREMENTS = ("numpy<2.4", "scipy", "networkx", "asteval<1", "scikit-learn", "h5py<4")
SHIMMED = ("lava-nc==0.10.0", "lava-dl==0.6.0")
IMPORT_ONLY = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]"


def environment_python(home: Path | None = None) -> Path | None:
    """Return the interpreter of a finished Lava environment, or None if there is none.

    Without one it is the running Python, where the extra ``slamp[lava]`` has put Lava beside slamp.
    """
    found = finished_python("lava", home)
    if found is None and home is None and importlib.util.find_spec("lava") is not None:
        return Path(sys.executable)
    return found


def find_python() -> Path | None:
    """Return a Python 3.10 of this machine: the running one, on the path, or held by pyenv; None if none runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = shutil.which(f"python{PYTHON_VERSION}")
    candidates = [sys.executable, *([on_path] if on_path else [])]
    candidates += [str(path) for path in sorted(pyenv.glob(f"versions/{PYTHON_VERSION}.*/bin/python"))]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        try:
            found = subprocess.run(
                [candidate, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found.stdout.strip() == PYTHON_VERSION:
            return Path(candidate)
    return None


def install(home: Path | None = None, *, pip_arguments: Sequence[str] = (), time_limit_s: float = 1800.0) -> Path:
    """Create the Lava environment and return its interpreter.

    With a Python 3.10 it holds the official lava-dl 0.6.0 with lava-nc 0.10.0, and torch with its CUDA libraries (about
    6 GB). Without one the running Python takes the same two packages without torch (about 0.4 GB), which
    `exporters.lava_shim` lets run there. ``ready.json`` says which. Lava's wheels also install a package called
    ``tests``, which is deleted.

    Args:
        home: Directory of the environments, default `exporters.environments.witness_home`.
        pip_arguments: Added to every pip call.
        time_limit_s: Limit of each command in seconds.

    Raises:
        WitnessError: venv or pip failed, or Lava cannot be imported; nothing is left behind.
    """
    official = find_python()
    with new_environment("lava", home) as partial:
        run_child([str(official or sys.executable), "-m", "venv", str(partial)], time_limit_s)
        inside = partial / "bin" / "python"
        pip = [str(inside), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *pip_arguments]
        if official is not None:
            run_child([*pip, *REQUIREMENTS], time_limit_s)
        else:
            run_child([*pip, *SHIMMED_REQUIREMENTS], time_limit_s)
            run_child([*pip, "--ignore-requires-python", "--no-deps", *SHIMMED], time_limit_s)
        for stray in partial.glob("lib/python*/site-packages/tests"):
            shutil.rmtree(stray)
        runners = [str(Path(__file__).with_name(name)) for name in ("lava_models_runner.py", "netx_runner.py")]
        run_child([str(inside), "-I", "-c", IMPORT_ONLY, *runners], time_limit_s)
        ready = {
            "requirements": REQUIREMENTS if official is not None else (*SHIMMED_REQUIREMENTS, *SHIMMED),
            "python": PYTHON_VERSION if official is not None else "{}.{}".format(*sys.version_info),
            "shimmed": official is None,
        }
        (partial / READY).write_text(json.dumps(ready) + "\n")
    return (witness_home() if home is None else home) / "lava" / "bin" / "python"


def run_models(
    networks: Sequence[Mapping[str, np.ndarray]], *, time_limit_s: float = 600.0
) -> list[dict[str, np.ndarray]]:
    """Step networks in Lava's own ``fixed_pt`` process models, all in one child process.

    Args:
        networks: Each the arrays that `exporters.lava_models_runner` takes.
        time_limit_s: After so many seconds the child process, and all it started, is ended.

    Returns:
        For each network ``u/NAME``, ``v/NAME`` and ``s/NAME`` of every neuron layer, (time, batch, *neurons), in Lava's
        own time.

    Raises:
        MissingDependencyError: Lava's environment is not installed.
        WitnessError: Lava crashed or ran out of time; the message ends with its own words.
    """
    python = environment_python()
    if python is None:
        raise MissingDependencyError(
            f"Lava: no finished environment in {witness_home()}; run: slamp lava install, or name another "
            f"place in {HOME_VARIABLE}"
        )
    script = Path(__file__).with_name("lava_models_runner.py")
    with tempfile.TemporaryDirectory(prefix="slamp-lava-") as directory:
        pairs = [(Path(directory) / f"in{k}.npz", Path(directory) / f"out{k}.npz") for k in range(len(networks))]
        for (given, _), network in zip(pairs, networks, strict=True):
            np.savez(given, allow_pickle=False, **network)
        words = run_child(
            [str(python), "-I", str(script), *(str(path) for pair in pairs for path in pair)], time_limit_s
        )
        results = []
        for _, result in pairs:
            if not result.is_file():
                raise WitnessError(f"Lava ended without a result: {words}")
            with np.load(result, allow_pickle=False) as archive:
                results.append({name: archive[name] for name in archive.files})
    return results
