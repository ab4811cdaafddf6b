"""Read graphs back from the files of a target."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from slamp.errors import ExporterNotFoundError
from slamp.exporting import ReadingExporter, find_exporter
from slamp.graph import SpikingGraph

READERS = "slamp.readers"


class Reader(Protocol):
    """Reads the files of a tool whose format states no time step."""

    def __call__(self, path: Path, *, dt: float) -> SpikingGraph:
        """Return the graph in a file; raises `slamp.errors.ArtifactError` if it cannot be read."""


def load_net(path: str | Path, *, dt: float = 1e-3) -> SpikingGraph:
    """Return the network of a lava-dl ``.net`` file as a fixed-point graph, which `slamp.simulate` runs as Lava does.

    Args:
        path: An HDF5 file as lava-dl's slayer exports it.
        dt: Time step in seconds, which the format does not state.

    Raises:
        ArtifactError: The file is missing, damaged, or holds what is not read; the message names layer and field.
    """
    for entry in entry_points(group=READERS):
        if entry.name == "net":
            reader: Reader = entry.load()
            return reader(Path(path), dt=dt)
    raise ExporterNotFoundError("reader: none is installed for .net files; install slamp's exporters")


def load_nir(path: str | Path) -> SpikingGraph:
    """Return the graph in a ``.nir`` file that slamp wrote, bit for bit.

    Raises:
        ArtifactError: The file is missing, damaged, or was written by another tool.
    """
    return load_file(path, target="nir")


def load_file(path: str | Path, *, target: str) -> SpikingGraph:
    """Return the graph in a file of ``target``, read by the exporter of that name."""
    exporter = find_exporter(target)()
    if not isinstance(exporter, ReadingExporter):
        raise ExporterNotFoundError(f"exporter {target}: cannot read files; it only writes and replays them")
    return exporter.read(Path(path))
