"""Read graphs back from the files of a target."""

from __future__ import annotations

from pathlib import Path

from slamp.errors import ExporterNotFoundError
from slamp.exporting import ReadingExporter, find_exporter
from slamp.graph import SpikingGraph


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
