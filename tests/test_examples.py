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
from slamp.demo.data import digits
from slamp.memory import memory_bits

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
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml")}
    assert found == {
        "__init__.py",
        "custom_module.py",
        "fit_a_chip.py",
        "loihi.py",
        "my_network.py",
        "norse_convnet.py",
        "prune_and_export.py",
        "run.toml",
    }


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="needs: pip install --no-deps aeon==1.6.0")
def test_custom_module(tmp_path: Path) -> None:
    text = run("examples/custom_module.py", tmp_path / "custom")
    assert re.search("one step late: second_last, readout: mean", text)
    dense, pruned, anyone = (float(share) for share in re.findall(r"([\d.]+)%", text))
    assert dense >= 90
    assert pruned >= dense - 4
    assert anyone == pruned, "the artifact knows the readout"
    assert re.search("verify +(identical|tie): 370 samples", text)
    weights = slamp.open_artifact(tmp_path / "custom" / "nir").graph().weighted
    kept = sum(int((node.weight != 0).sum()) for node in weights.values())
    assert kept <= 0.2 * sum(node.weight.size for node in weights.values())


def test_norse_convnet(tmp_path: Path) -> None:
    text = run("examples/norse_convnet.py", tmp_path / "convnet")
    dense, pruned = (float(share) for share in re.findall(r"([\d.]+)%", text))
    assert dense >= 85
    assert pruned >= dense - 4
    assert re.search("verify +(identical|tie): 200 samples", text)


def test_loihi(tmp_path: Path) -> None:
    text = run("examples/loihi.py", tmp_path / "loihi")
    pruned, integers = (float(share) for share in re.findall(r"([\d.]+)%", text))
    assert pruned >= 70
    assert integers >= pruned - 7, "two of 32 digits"
    assert re.search(r"identical: \d+ samples, 8 steps, .* replayed by (Lava 0.10.0|slamp, from the file)", text)
    assert (tmp_path / "loihi" / "network.net").is_file()


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


def test_fit_a_chip(tmp_path: Path) -> None:
    text = run("examples/fit_a_chip.py", tmp_path)
    assert re.findall("^(fits|does not fit) (.*)$", text, re.M) == [
        ("fits", "loihi1"),
        ("fits", "speck2f"),
        ("fits", "loihi2"),
    ]
    assert len(re.findall("^usage of ", text, re.M)) == 3
    accuracies = re.findall(r"([\d.]+)% dense, ([\d.]+)% pruned", text)
    assert len(accuracies) == 3
    for dense, pruned in accuracies:
        assert float(dense) >= 88
        assert float(pruned) >= float(dense) - 3
    graphs = {}
    for name in ("loihi1", "speck2f", "sops"):
        artifact = slamp.open_artifact(tmp_path / name / "nir")
        graphs[name] = artifact.graph()
        summary = json.loads((tmp_path / name / "run.json").read_text())
        assert summary["equivalent"]
        assert all(row["used"] <= row["limit"] for row in summary["budgets"])
    assert slamp.map_cores(graphs["loihi1"], slamp.load_profile("loihi1"), cores=1).cores == 1
    speck = slamp.load_profile("speck2f")
    whole = {name: node.weight != 0 for name, node in graphs["speck2f"].weighted.items()}
    assert memory_bits(graphs["speck2f"], whole, speck) <= 180_000
    assert slamp.map_cores(graphs["speck2f"], speck).cores == 4
    data = digits().train.samples(0, 128)
    assert 0.98 * 25_000 <= slamp.calibrate(graphs["sops"], data, fold=False).sops <= 25_000


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


def test_my_network_is_shown_as_the_readme_says(prepared: Path) -> None:
    words = ["show", "examples.my_network:factory", "build/samples.npz", "--weights", "build/state.safetensors"]
    text = run("-m", "slamp", *words, "--svg", "build/network.svg", cwd=prepared)
    (block,) = re.findall("<!-- show -->\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert [line.rstrip() for line in text.splitlines()] == block.splitlines()
    assert (prepared / "build" / "network.svg").read_text().startswith("<svg")


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
