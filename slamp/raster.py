"""Spike rasters and samples files: the inputs and outputs of every network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from slamp.archives import read_arrays
from slamp.errors import RasterError

Kind = Literal["auto", "spikes", "analog"]


@dataclass(frozen=True, eq=False)
class SpikeRaster:
    """Spikes (or direct-coded analog values) over time for a batch of samples.

    Attributes:
        data: Shape (time, batch, *features). bool for spikes, float32 for analog values. NumPy arrays and tensors are
            accepted; integers and floats that hold only 0 and 1 become bool unless ``kind="analog"``.
        dt: Length of one time step in seconds.
        labels: Optional class of each sample, int64, shape (batch,).
        kind: "spikes" refuses anything but 0 and 1, "analog" keeps float32, "auto" decides by the values.
        parts: For a network of several inputs the shape of each; ``data`` then holds them flattened and side by side.

    Raises:
        RasterError: Fewer than three axes, an empty axis, a forbidden dtype or value, a dt that is not positive, parts
            that do not add up.
    """

    data: torch.Tensor
    dt: float = 1e-3
    labels: torch.Tensor | None = None
    kind: Kind = "auto"
    parts: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        data = _as_tensor(self.data)
        if data.ndim < 3:
            raise RasterError(
                f"raster: shape {tuple(data.shape)} has {data.ndim} axes; allowed is (time, batch, *features); "
                "add the missing axis, for one sample with data[:, None]"
            )
        if data.numel() == 0:
            raise RasterError(f"raster: shape {tuple(data.shape)} holds no cells; give at least one step and sample")
        if not (isinstance(self.dt, (int, float, np.floating)) and np.isfinite(self.dt) and self.dt > 0):
            raise RasterError(f"raster: dt is {self.dt!r}; allowed is a positive number of seconds, such as 1e-3")
        object.__setattr__(self, "data", _typed(data, self.kind))
        object.__setattr__(self, "dt", seconds(self.dt))
        object.__setattr__(self, "kind", "spikes" if self.is_spikes else "analog")
        object.__setattr__(self, "parts", tuple(tuple(int(size) for size in shape) for shape in self.parts))
        if self.parts and self.features != (sum(prod(shape) for shape in self.parts),):
            raise RasterError(
                f"raster: features {self.features} with parts {self.parts}; allowed is one axis that holds all parts"
            )
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.labels, data.shape[1]))

    @property
    def is_spikes(self) -> bool:
        """True for a bool raster, False for analog values."""
        return self.data.dtype == torch.bool

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return int(self.data.shape[0])

    @property
    def batch(self) -> int:
        """Number of samples."""
        return int(self.data.shape[1])

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of one sample at one time step."""
        return tuple(int(size) for size in self.data.shape[2:])

    @property
    def inputs(self) -> tuple[SpikeRaster, ...]:
        """One raster per input of the network: its parts, or the raster itself."""
        if not self.parts:
            return (self,)
        cut = self.data.split([prod(shape) for shape in self.parts], dim=2)
        return tuple(
            SpikeRaster(piece.unflatten(2, shape), self.dt, self.labels, kind=self.kind)
            for piece, shape in zip(cut, self.parts, strict=True)
        )

    def to(self, device: str | torch.device) -> SpikeRaster:
        """Return the raster on another device."""
        return SpikeRaster(self.data.to(device), self.dt, self.labels, kind=self.kind, parts=self.parts)

    def samples(self, start: int, stop: int) -> SpikeRaster:
        """Return samples ``start`` to ``stop`` (exclusive), labels included."""
        labels = None if self.labels is None else self.labels[start:stop]
        return SpikeRaster(self.data[:, start:stop], self.dt, labels, kind=self.kind, parts=self.parts)

    def select(self, indices: Sequence[int]) -> SpikeRaster:
        """Return the named samples, in that order, labels included."""
        chosen = torch.as_tensor(list(indices), dtype=torch.int64, device=self.data.device)
        labels = None if self.labels is None else self.labels[chosen.to(self.labels.device)]
        return SpikeRaster(self.data[:, chosen], self.dt, labels, kind=self.kind, parts=self.parts)

    def batches(self, size: int) -> Iterator[SpikeRaster]:
        """Yield the raster in pieces of at most ``size`` samples."""
        for start in range(0, self.batch, size):
            yield self.samples(start, min(start + size, self.batch))

    def numpy(self) -> np.ndarray:
        """Return the data as a NumPy array on the host."""
        array: np.ndarray = self.data.detach().cpu().numpy()
        return array


def seconds(value: Any) -> float:
    """Return a time step as a Python float; a float32 one as the decimal that was meant (0.001, not 0.00100000005)."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return float(str(array.reshape(())[()])) if array.dtype == np.float32 else float(array)


def load_samples(path: str | Path) -> SpikeRaster:
    """Read a samples file.

    An npz with ``spikes`` (time, batch, *features) holding 0 and 1, or ``analog`` with float32 values in its place,
    optional ``labels`` (batch,), optional ``dt`` in seconds (default 1e-3), and for a network of several inputs
    ``parts``, the shape of each as JSON.

    Raises:
        RasterError: The file is missing, is not an npz, or holds the wrong arrays.
    """
    path = Path(path)
    try:
        arrays = read_arrays(path)
    except FileNotFoundError as error:
        raise RasterError(f"{path}: there is no such samples file; give an npz with 'spikes'") from error
    except (OSError, ValueError) as error:
        raise RasterError(
            f"{path}: not a readable npz ({error}); write it with numpy.savez(path, spikes=..., labels=...)"
        ) from error
    if ("spikes" in arrays) == ("analog" in arrays):
        raise RasterError(
            f"{path}: found arrays {sorted(arrays)}; "
            "allowed is exactly one of 'spikes' (0 and 1) and 'analog' (float32)"
        )
    name = "spikes" if "spikes" in arrays else "analog"
    dt = arrays.get("dt", np.asarray(1e-3))
    if dt.size != 1 or dt.dtype.kind not in "iuf":
        raise RasterError(f"{path}: dt has shape {dt.shape} and dtype {dt.dtype}; allowed is one number of seconds")
    kind: Kind = "spikes" if name == "spikes" else "analog"
    try:
        parts = json.loads(str(arrays["parts"])) if "parts" in arrays else ()
    except ValueError as error:
        raise RasterError(f"{path}: parts are {str(arrays['parts'])!r}; allowed is a JSON list of shapes") from error
    try:
        return SpikeRaster(arrays[name], seconds(dt.reshape(())), arrays.get("labels"), kind=kind, parts=parts)  # type: ignore[arg-type]  # arrays are converted in __post_init__
    except RasterError as error:
        raise RasterError(f"{path}: {error}") from error


def save_samples(raster: SpikeRaster, path: str | Path) -> None:
    """Write a raster as a samples file that `load_samples` reads back."""
    arrays: dict[str, Any] = {"spikes" if raster.is_spikes else "analog": raster.numpy(), "dt": np.float64(raster.dt)}
    if raster.labels is not None:
        arrays["labels"] = raster.labels.cpu().numpy()
    if raster.parts:
        arrays["parts"] = np.array(json.dumps(raster.parts))
    np.savez_compressed(path, **arrays)


def _as_tensor(data: object) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data.detach()
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise RasterError(f"raster: not an array ({error}); give samples of equal length and shape") from error
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise RasterError(f"raster: dtype {array.dtype}; allowed are bool, integers of 0 and 1, and float32")
    # torch takes neither foreign byte order nor negative strides.
    return torch.tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _typed(data: torch.Tensor, kind: Kind) -> torch.Tensor:
    if data.dtype == torch.bool:
        if kind == "analog":
            return data.to(torch.float32)
        return data
    if data.is_complex():
        raise RasterError(f"raster: dtype {data.dtype}; allowed are bool and float32")
    if data.is_floating_point() and not bool(torch.isfinite(data).all()):
        raise RasterError("raster: holds NaN or infinity; allowed are finite numbers")
    binary = bool(((data == 0) | (data == 1)).all())
    if data.is_floating_point() and data.dtype != torch.float32 and (kind == "analog" or not binary):
        raise RasterError(
            f"raster: dtype {data.dtype}; allowed are 0 and 1, and analog values as float32; "
            "convert with .astype('float32')"
        )
    if kind == "spikes" and not binary:
        extremes = f"{data.min().item():g} to {data.max().item():g}"
        raise RasterError(
            f"raster: spikes range over {extremes}; allowed are 0 and 1; binarize the counts, "
            "or say kind='analog' (in a samples file: name the array 'analog') for direct-coded values"
        )
    if data.dtype != torch.float32 and not binary:
        raise RasterError(
            f"raster: dtype {data.dtype} with values other than 0 and 1; allowed are bool spikes and float32 analog "
            "values; make event counts spikes with data > 0"
        )
    return data.to(torch.bool) if binary and kind != "analog" else data.to(torch.float32)


def _checked_labels(labels: object, batch: int) -> torch.Tensor:
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.shape != (batch,) or array.dtype.kind not in "iu":
        raise RasterError(
            f"raster: labels of shape {array.shape}, {array.dtype}; allowed are {batch} integers, one per sample"
        )
    return torch.tensor(array.astype(np.int64))


def join(rasters: Sequence[SpikeRaster]) -> SpikeRaster:
    """Return the inputs of a network of several inputs as one raster: flattened and side by side, in their order.

    Args:
        rasters: One per input, of equal steps, samples and dt.

    Raises:
        RasterError: They differ in steps, samples, dt or kind.
    """
    first = rasters[0]
    for index, other in enumerate(rasters):
        found = (other.steps, other.batch, other.dt, other.kind)
        allowed = (first.steps, first.batch, first.dt, first.kind)
        if found != allowed:
            raise RasterError(
                f"input {index}: steps, samples, dt and kind are {found}, those of the first input {allowed}; "
                "give every input the same"
            )
    data = torch.cat([item.data.flatten(2) for item in rasters], dim=2)
    return SpikeRaster(data, first.dt, first.labels, kind=first.kind, parts=tuple(item.features for item in rasters))
