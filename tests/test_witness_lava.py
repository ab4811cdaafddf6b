"""Lava's own process models, stepped in one process: numbers made by hand, and Lava's real runtime."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters import environments
from exporters.environments import run_child
from exporters.witness_lava import environment_python, run_models
from lava_artifacts import needs_lava
from slamp.errors import WitnessError


def described(neurons: dict[str, Any], synapses: list[dict[str, Any]], **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """A description as `exporters.lava_models_runner` takes it."""
    text = json.dumps({"neurons": neurons, "synapses": synapses})
    return {**arrays, "network": np.frombuffer(text.encode(), dtype=np.uint8)}


def two_neurons() -> dict[str, np.ndarray]:
    """Neuron a hears the input (4); neuron b hears a (3 << 1) and itself (-2), and has a bias of 5 << 2."""
    neurons = {
        "a": {"shape": [1], "du": 2047, "dv": 1024, "vth": 3, "bias_exp": 0},  # u keeps 1/2, v keeps 3/4
        "b": {"shape": [1], "du": 4095, "dv": 2048, "vth": 6, "bias_exp": 2},  # u keeps nothing, v keeps 1/2
    }
    synapses = [
        {"source": "input", "target": "a", "kind": "dense", "weight": "in"},
        {"source": "a", "target": "b", "kind": "dense", "weight": "ab", "weight_exp": 1},
        {"source": "b", "target": "b", "kind": "dense", "weight": "bb"},
    ]
    arrays = {"in": np.array([[4]]), "ab": np.array([[3]]), "bb": np.array([[-2]])}
    arrays |= {"bias/a": np.array([0]), "bias/b": np.array([5])}
    inputs = np.array([[1, 0], [1, 0], [0, 0], [1, 0], [0, 0]], dtype=np.int32)[..., None]  # two samples
    return described(neurons, synapses, inputs=inputs, **arrays)


@needs_lava
def test_two_neurons_by_hand() -> None:
    """A synapse hands over at t what it heard at t - 1, times 64; thresholds are 192 and 384, and strict."""
    (found,) = run_models([two_neurons()])
    first = {name: array[:, 0, 0].astype(int).tolist() for name, array in found.items()}
    assert first == {
        "u/a": [0, 256, 128 + 256, 192 + 0, 96 + 256],
        "v/a": [0, 0, 0, 192, 0],  # 192 is the threshold and does not fire; then 144 + 352 does
        "s/a": [0, 1, 1, 0, 1],
        "u/b": [0, 0, 6 * 64, (6 - 2) * 64, 0],
        "v/b": [20, 10 + 20, 0, 256 + 20, 138 + 20],  # at t = 2: 15 + 384 + 20 = 419 fires
        "s/b": [0, 0, 1, 0, 0],
    }


@needs_lava
def test_every_sample_starts_from_fresh_models() -> None:
    (found,) = run_models([two_neurons()])
    second = {name: array[:, 1, 0].astype(int).tolist() for name, array in found.items()}
    assert second.pop("v/b") == [20, 10 + 20, 15 + 20, 17 + 20, 18 + 20]  # the bias alone, halves cut off
    assert second == {name: [0] * 5 for name in ("u/a", "v/a", "s/a", "u/b", "s/b")}


def every_kind(steps: int = 60) -> dict[str, np.ndarray]:
    """Convolution, dense, sparse, delayed and recurrent synapses, weights of both signs, biases."""
    rng = np.random.default_rng(5)
    flat = {"source": "conv", "target": "dense"}
    conv = {"stride": [2, 1], "padding": [0, 1], "dilation": [1, 2], "groups": 2, "weight": "conv"}
    synapses = [
        {"source": "input", "target": "conv", "kind": "conv", **conv},
        {**flat, "kind": "dense", "weight": "dense", "weight_exp": -1},
        {**flat, "kind": "sparse", "weight": "sparse"},
        {**flat, "kind": "delay_dense", "weight": "late", "delay": "delay"},
        {"source": "dense", "target": "dense", "kind": "dense", "weight": "back"},
    ]
    neurons = {
        "conv": {"shape": [4, 3, 5], "du": 1000, "dv": 300, "vth": 600, "bias_exp": 1},
        "dense": {"shape": [6], "du": 700, "dv": 200, "vth": 8000, "bias_exp": 3},
    }
    arrays = {
        "conv": rng.integers(-128, 256, (4, 1, 2, 3)),
        "dense": rng.integers(-200, 255, (6, 60)),
        "sparse": rng.integers(-128, 128, (6, 60)) * (rng.random((6, 60)) < 0.2),
        "late": rng.integers(-100, 128, (6, 60)),
        "delay": rng.integers(0, 8, (6, 60)),
        "back": rng.integers(-128, 100, (6, 6)),
        "bias/conv": rng.integers(-500, 500, (4, 3, 5)),
        "bias/dense": rng.integers(-500, 500, 6),
    }
    inputs = (rng.random((steps, 1, 2, 6, 7)) < 0.3).astype(np.int32)
    return described(neurons, synapses, inputs=inputs, **arrays)


@needs_lava
@pytest.mark.slow
def test_stepped_models_equal_lavas_runtime(tmp_path: Path) -> None:
    description = every_kind()
    (stepped,) = run_models([description])
    given, result = tmp_path / "given.npz", tmp_path / "result.npz"
    np.savez(given, allow_pickle=False, **description)
    script = Path(__file__).with_name("lava_runtime_runner.py")
    run_child([str(environment_python()), "-I", str(script), str(given), str(result)], 120)
    with np.load(result, allow_pickle=False) as archive:
        ran = {name: archive[name] for name in archive.files}
    assert stepped.keys() == ran.keys()
    assert {name: int((stepped[name] != ran[name]).sum()) for name in ran} == dict.fromkeys(ran, 0)
    for name in ("s/conv", "s/dense"):
        assert 0.005 <= ran[name].mean() <= 0.5, name
    description["back"] = description["back"] + np.eye(6, dtype=int) * 4
    (other,) = run_models([description])
    assert (other["u/dense"] != ran["u/dense"]).any()


@needs_lava
def test_crash_of_the_runner_comes_with_its_words() -> None:
    description = two_neurons()
    del description["bias/b"]
    with pytest.raises(WitnessError, match=r"ended with code 1: [\s\S]*KeyError: 'bias/b'"):
        run_models([description])


def test_time_limit_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "GRACE_S", 0.3)
    python = tmp_path / "lava" / "bin" / "python"
    python.parent.mkdir(parents=True)
    deaf = f"trap '' TERM; {sys.executable} -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)' & wait"
    python.write_text(f"#!/bin/sh\n{deaf}; sleep 60\n")
    python.chmod(0o755)
    (tmp_path / "lava" / "ready.json").write_text("{}")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path))
    with pytest.raises(WitnessError, match="not done after 1 s") as caught:
        run_models([two_neurons()], time_limit_s=1.0)
    grandchild = int(str(caught.value).rsplit(maxsplit=1)[-1])
    for _ in range(50):
        if not Path(f"/proc/{grandchild}").exists() or "Z" in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    os.kill(grandchild, 9)
    pytest.fail("a process outlived the time limit")
