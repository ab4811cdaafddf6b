"""Read graphs back from the files of a target."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from slamp.errors import ExporterNotFoundError
from slamp.exporting import ReadingExporter, find_exporter
from slamp.graph import SpikingGraph
from slamp.nodes import Reset

READERS = "slamp.readers"


class Reader(Protocol):
    """Reads the files of a tool whose format states no time step."""

    def __call__(self, path: Path, *, dt: float, **settings: Any) -> SpikingGraph:
        """Return the graph in a file; raises `slamp.errors.ArtifactError` if it cannot be read."""


def load_net(path: str | Path, *, dt: float = 1e-3) -> SpikingGraph:
    """Return the network of a lava-dl ``.net`` file as a fixed-point graph, which `slamp.simulate` runs as Lava does.

    Args:
        path: An HDF5 file as lava-dl's slayer exports it.
        dt: Time step in seconds, which the format does not state.

    Raises:
        ArtifactError: The file is missing, damaged, or holds what is not read; the message names layer and field.
    """
    return _reader("net")(Path(path), dt=dt)


def load_nir(path: str | Path, *, dt: float | None = None, reset: Reset = "value") -> SpikingGraph:
    """Return the graph in a ``.nir`` file: one that slamp wrote, bit for bit, or, with ``dt``, one of another tool.

    The file of another tool is taken literally: NIR's equations, stepped by forward Euler.

    Args:
        path: The file.
        dt: Time step for a file of another tool, in the unit of its time constants (1 where these are in steps); None
            for a file that slamp wrote.
        reset: How neurons of such a file reset, "value" or "subtract".

    Raises:
        ArtifactError: The file is missing or damaged, or, without ``dt``, was written by another tool.
        UnsupportedNodeError: A node of another tool's file has no counterpart.
    """
    if dt is None:
        return load_file(path, target="nir")
    return _reader("nir")(Path(path), dt=dt, reset=reset)


def load_onnx(path: str | Path) -> SpikingGraph:
    """Return the graph in a ``.onnx`` file that slamp wrote, of either form, bit for bit.

    Raises:
        ArtifactError: The file is missing, damaged, changed, or was written by another tool.
        MissingDependencyError: The extra slamp[onnx] is not installed.
    """
    return load_file(path, target="onnx")


def _reader(name: str) -> Reader:
    for entry in entry_points(group=READERS):
        if entry.name == name:
            reader: Reader = entry.load()
            return reader
    raise ExporterNotFoundError(f"reader: none is installed for .{name} files; install slamp's exporters")


def load_file(path: str | Path, *, target: str) -> SpikingGraph:
    """Return the graph in a file of ``target``, read by the exporter of that name."""
    exporter = find_exporter(target)()
    if not isinstance(exporter, ReadingExporter):
        raise ExporterNotFoundError(f"exporter {target}: cannot read files; it only writes and replays them")
    return exporter.read(Path(path))
