"""Every example runs, and does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import slamp

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs: pip install 'slamp[examples]'"),
]


def run(*words: object, cwd: Path = ROOT) -> str:
    """Run a Python command in ``cwd``; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml")}
    assert found == {"__init__.py", "my_network.py", "prune_and_export.py", "run.toml"}


def test_prune_and_export(tmp_path: Path) -> None:
    text = run("examples/prune_and_export.py", tmp_path / "by_hand")
    steps = ["capture", "calibrate", "allocate", "recover", "retrain", "export", "verify", "state"]
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == steps
    dense, recovered, pruned = (float(share) for share in re.findall(r"accuracy ([\d.]+)%", text))
    assert dense >= 85
    assert recovered >= 60, "rates restored, so it classifies before it is retrained"
    assert pruned >= dense - 3
    assert re.search("verify +(identical|tie): 1000 samples", text)
    assert (
        slamp.load_nir(tmp_path / "by_hand" / "network.nir").hash
        == slamp.open_artifact(tmp_path / "by_hand").graph().hash
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the examples and, in ``build``, what `examples.my_network` writes."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(EXAMPLES, place / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "build").mkdir()
    text = run("-m", "examples.my_network", "build/samples.npz", "build/state.safetensors", cwd=place)
    assert "512 samples" in text
    return place


def test_my_network_on_the_command_line(prepared: Path) -> None:
    words = ["compress", "examples.my_network:factory", "build/samples.npz", "--weights", "build/state.safetensors"]
    words += [
        "--budget",
        "density=0.1",
        "--to",
        "nir",
        "--out",
        "build/by_words",
        "--train",
        "examples.my_network:train",
    ]
    text = run("-m", "slamp", *words, "--json", cwd=prepared)
    summary = json.loads(text)
    assert summary["equivalent"]
    assert summary["accuracy"]["dense"] >= 0.85
    assert summary["accuracy"]["pruned"] >= summary["accuracy"]["dense"] - 0.05
    assert summary["budgets"][0]["used"] <= 0.1


def test_my_network_by_run_file(prepared: Path) -> None:
    text = run("-m", "slamp", "compress", "examples/run.toml", cwd=prepared)
    assert re.search("(identical|tie)  nir: 128 held-out samples", text)
    assert slamp.verify_directory(prepared / "build" / "mine" / "nir").equivalent


def test_my_network_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.my_network"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "usage: python -m examples.my_network SAMPLES.npz STATE.safetensors"
