from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from networks import analog, spikes
from slamp.errors import RasterError
from slamp.raster import SpikeRaster, load_samples, save_samples

BINARY = np.random.default_rng(0).random((5, 3, 4)) < 0.5


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int64", "uint16", "uint64", "float32", "float64", ">f4", ">i4"]
)
def test_zeros_and_ones_of_any_dtype_become_spikes(dtype: str) -> None:
    raster = SpikeRaster(BINARY.astype(dtype))
    assert raster.is_spikes
    assert raster.kind == "spikes"
    assert np.array_equal(raster.numpy(), BINARY)


def test_views_with_negative_strides_are_taken() -> None:
    assert np.array_equal(SpikeRaster(BINARY[::-1]).numpy(), BINARY[::-1])


def test_nested_lists_are_taken() -> None:
    assert SpikeRaster([[[1, 0]], [[0, 1]]]).features == (2,)


def test_float32_with_other_values_is_analog() -> None:
    raster = SpikeRaster(torch.full((2, 3, 4), 0.5))
    assert not raster.is_spikes
    assert raster.data.dtype == torch.float32


def test_kind_analog_keeps_zeros_and_ones_as_numbers() -> None:
    assert SpikeRaster(BINARY, kind="analog").data.dtype == torch.float32
    assert SpikeRaster(BINARY.astype("float32"), kind="analog").data.dtype == torch.float32


def test_shape_properties() -> None:
    raster = spikes((2, 6), steps=5, batch=3)
    assert (raster.steps, raster.batch, raster.features) == (5, 3, (2, 6))


def test_samples_cut_data_and_labels() -> None:
    raster = spikes((4,), batch=5)
    part = raster.samples(1, 3)
    assert torch.equal(part.data, raster.data[:, 1:3])
    assert torch.equal(part.labels, raster.labels[1:3])
    assert part.dt == raster.dt


def test_batches_cover_every_sample_once() -> None:
    raster = spikes((4,), batch=7)
    parts = list(raster.batches(3))
    assert [part.batch for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.data for part in parts], dim=1), raster.data)
    assert torch.equal(torch.cat([part.labels for part in parts]), raster.labels)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_missing_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RasterError, match=r"axes; allowed is \(time, batch, \*features\)"):
        SpikeRaster(np.zeros(shape, dtype=bool))


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RasterError, match="holds no cells"):
        SpikeRaster(np.zeros(shape, dtype=bool))


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("nan"), float("inf"), "1ms", None])
def test_dt_must_be_a_positive_number(dt: object) -> None:
    with pytest.raises(RasterError, match=r"dt is .*; allowed is a positive number of seconds"):
        SpikeRaster(BINARY, dt)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_non_finite_values_are_refused(bad: float, dtype: str) -> None:
    data = np.zeros((2, 3, 4), dtype=dtype)
    data[1, 2, 3] = bad
    with pytest.raises(RasterError, match="holds NaN or infinity"):
        SpikeRaster(data)


@pytest.mark.parametrize("kind", ["auto", "analog"])
def test_float64_values_are_refused(kind: str) -> None:
    with pytest.raises(RasterError, match=r"torch.float64; allowed are 0 and 1, and analog values as float32"):
        SpikeRaster(np.full((2, 3, 4), 0.25), kind=kind)


def test_event_counts_are_refused() -> None:
    with pytest.raises(RasterError, match=r"torch.int64 with values other than 0 and 1"):
        SpikeRaster(np.full((2, 3, 4), 2))


def test_counts_where_spikes_are_meant_are_refused() -> None:
    with pytest.raises(RasterError, match="spikes range over 0 to 3; allowed are 0 and 1; binarize"):
        SpikeRaster(np.array([0, 3], dtype="float32").reshape(2, 1, 1), kind="spikes")


@pytest.mark.parametrize("data", ["abc", np.array([[["a"]]]), [None]])
def test_what_is_no_number_is_refused(data: object) -> None:
    with pytest.raises(RasterError, match=r"dtype .*; allowed are bool"):
        SpikeRaster(data)


def test_complex_values_are_refused() -> None:
    with pytest.raises(RasterError, match=r"dtype torch.complex64; allowed are bool and float32"):
        SpikeRaster(torch.zeros((2, 3, 4), dtype=torch.complex64))


def test_ragged_lists_are_refused() -> None:
    with pytest.raises(RasterError, match="give samples of equal length"):
        SpikeRaster([[1, 0], [1]])


@pytest.mark.parametrize(
    "labels", [np.zeros(2, int), np.zeros((3, 1), int), np.zeros(3), np.array(list("abc")), [None, 1, 2], 1]
)
def test_labels_must_be_one_integer_per_sample(labels: object) -> None:
    with pytest.raises(RasterError, match="allowed are 3 integers, one per sample"):
        SpikeRaster(BINARY, labels=labels)


@pytest.mark.parametrize("raster", [spikes((2, 3)), analog((2, 3))], ids=["spikes", "analog"])
def test_samples_files_come_back(raster: SpikeRaster, tmp_path: Path) -> None:
    save_samples(raster, tmp_path / "samples.npz")
    back = load_samples(tmp_path / "samples.npz")
    assert torch.equal(back.data, raster.data)
    assert back.dt == raster.dt
    assert (back.labels is None) == (raster.labels is None)
    if raster.labels is not None:
        assert torch.equal(back.labels, raster.labels)


def test_binary_analog_values_stay_analog_in_a_file(tmp_path: Path) -> None:
    save_samples(SpikeRaster(BINARY, kind="analog"), tmp_path / "samples.npz")
    assert not load_samples(tmp_path / "samples.npz").is_spikes


def test_missing_samples_file(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="there is no such samples file"):
        load_samples(tmp_path / "none.npz")


def test_text_is_no_samples_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(RasterError, match="not a readable npz"):
        load_samples(tmp_path / "a.npz")


def test_single_array_is_no_samples_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BINARY)
    with pytest.raises(RasterError, match="a single array, not an npz"):
        load_samples(tmp_path / "a.npy")


@pytest.mark.parametrize("names", [[], ["x"], ["spikes", "analog"]])
def test_exactly_one_of_spikes_and_analog(names: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, BINARY))
    with pytest.raises(RasterError, match="allowed is exactly one of 'spikes'"):
        load_samples(tmp_path / "a.npz")


@pytest.mark.parametrize("dt", [np.zeros(2), np.array("fast"), np.array(1j)])
def test_dt_of_a_file_must_be_one_number(dt: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", spikes=BINARY, dt=dt)
    with pytest.raises(RasterError, match=r"dt has shape .*; allowed is one number of seconds"):
        load_samples(tmp_path / "a.npz")


def test_pickles_in_a_samples_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", spikes=np.array([{}], dtype=object))
    with pytest.raises(RasterError, match="not a readable npz"):
        load_samples(tmp_path / "a.npz")


def test_errors_in_a_samples_file_name_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", spikes=np.full((2, 3, 4), 7))
    with pytest.raises(RasterError, match=r"a\.npz: raster: spikes range over 7 to 7"):
        load_samples(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_samples_files_give_our_error(compressed: bool, tmp_path: Path) -> None:
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / "a.npz", spikes=BINARY, labels=np.arange(3), dt=1e-3)
    content = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "b.npz").write_bytes(content[:length])
        with pytest.raises(RasterError, match=r"b\.npz"):
            load_samples(tmp_path / "b.npz")


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_samples_files_give_our_error_or_load(compressed: bool, tmp_path: Path) -> None:
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / "a.npz", spikes=BINARY, labels=np.arange(3), dt=1e-3)
    content = (tmp_path / "a.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            load_samples(tmp_path / "b.npz")
        except RasterError:
            refused += 1
    assert refused > 100


def test_select_takes_samples_and_their_labels_in_order() -> None:
    raster = SpikeRaster(np.arange(24).reshape(2, 4, 3) % 2 == 0, labels=[0, 1, 2, 3])
    chosen = raster.select([3, 0])
    assert torch.equal(chosen.data, raster.data[:, [3, 0]])
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [3, 0]
