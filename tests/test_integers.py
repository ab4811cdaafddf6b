"""`compress` for targets in fixed point: fine-tuned, measured, proven by Lava or said to be unproven."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

import slamp
from lava_artifacts import needs_lava
from networks import box, enliven, pattern_loss, patterns
from slamp.compress import QUANTIZED
from slamp.errors import ProfileError, UnsupportedNodeError
from slamp.raster import SpikeRaster


def network(*, normalized: bool = False) -> SequentialState:
    norm = [torch.nn.BatchNorm1d(32)] if normalized else []
    net = SequentialState(torch.nn.Linear(24, 32), *norm, box(), torch.nn.Linear(32, 3), box())
    assert enliven(net, patterns())
    return net


def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: object) -> None:
    raster = patterns()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(max(1, round(20 * effort))):
        loss = pattern_loss(net, raster, torch.arange(raster.batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def held_out() -> SpikeRaster:
    return patterns(seed=1, batch=12)


def run(tmp_path: Path, **changes: object) -> slamp.Run:
    settings = {"train": train, "profile": "loihi2", "to": ("nir", "lava"), **changes}
    return slamp.compress(
        settings.pop("net", None) or network(),  # type: ignore[arg-type]  # a network
        patterns(),
        held_out=held_out(),
        budget=slamp.Budget(density=0.5),
        directory=tmp_path / "out",
        **settings,  # type: ignore[arg-type]  # settings of compress
    )


def test_without_lava_everything_is_there_but_not_proven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    found = run(tmp_path)
    assert not found.equivalent
    assert "slamp lava install" in found.problems["lava"]
    assert found.verifications["nir"].equivalent
    assert found.verifications["lava"].equivalent
    assert found.verifications["lava"].runner == "slamp's simulator on the file read back"
    assert found.verifications["lava"].samples == 12
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    assert summary["problems"] == dict(found.problems)
    assert not summary["equivalent"]
    manifest = found.artifacts["lava"].manifest
    assert manifest["verification"] is None
    assert manifest["verification_of_the_file"]["verdict"] == "identical"
    certificate = manifest["certificate"]
    assert certificate["capture"]["samples"] == 64
    assert certificate["quantization"]["against_pruned"]["layers"]["1"]["spikes"] > 0
    assert certificate["quantization"]["graph_hash"] == manifest["graph_hash"]
    assert (tmp_path / "out" / "nir" / "network.nir").is_file()
    assert (tmp_path / "out" / "lava" / "network.net").is_file()


def test_the_network_is_fine_tuned_and_its_loss_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    found = run(tmp_path)
    assert found.integers is not None
    assert isinstance(found.integers.graph.arithmetic, slamp.FixedPoint)
    shipped = found.artifacts["lava"].graph()
    assert shipped.hash == found.integers.graph.hash
    for name, node in shipped.weighted.items():
        assert not node.weight[~found.pruned.masks[name]].any()
    layers = found.integers.against_pruned.layers
    assert set(layers) == set(found.shipped.spiking)
    assert all(layer.spikes > 0 for layer in layers.values())
    assert found.integers.against_pruned.accuracy == slamp.accuracy(shipped, held_out())
    if found.integers.fine_tuned:
        again = network()
        slamp.load_pruned(again, tmp_path / "out" / QUANTIZED)
        graph = slamp.capture(again, patterns())
        profile = slamp.load_profile("loihi2")
        assert slamp.quantize(graph, profile, slamp.calibrate(graph, patterns())).hash == shipped.hash


def test_without_training_it_is_quantized_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    found = run(tmp_path, train=None)
    assert found.integers is not None
    assert (found.integers.fine_tuned, found.integers.note) == (False, "no training function")
    assert not (tmp_path / "out" / QUANTIZED).exists()


def test_normalized_networks_are_quantized_without_fine_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    found = run(tmp_path, net=network(normalized=True))
    assert found.integers is not None
    assert found.integers.note == "normalizes batches, so it was quantized without fine-tuning"


def test_what_the_target_cannot_hold_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"lava: holds integers, .* name it, such as profile='loihi2'"):
        run(tmp_path, profile=None)
    cells = SequentialState(torch.nn.Linear(24, 3), box(subtract=True))
    with pytest.raises(UnsupportedNodeError, match="1: resets by subtraction, and Loihi resets to 0"):
        run(tmp_path, net=cells, to=("lava",))
    assert not (tmp_path / "out").exists()


@needs_lava
@pytest.mark.slow
def test_lava_proves_the_run(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.equivalent
    assert found.problems == {}
    verdict = found.verifications["lava"]
    assert verdict.verdict == "identical"
    assert verdict.runner.startswith("Lava 0.10.0")
    assert verdict.samples == 12
    assert found.artifacts["lava"].manifest["verification"]["verdict"] == "identical"
