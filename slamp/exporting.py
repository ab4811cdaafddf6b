"""Exporters: what they promise, how they are found, `export` itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from slamp.arithmetic import FixedPoint
from slamp.errors import ExporterNotFoundError, MissingDependencyError, RunFileError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact, update_manifest
from slamp.raster import SpikeRaster
from slamp.simulate import Recording

GROUP = "slamp.exporters"


class Exporter(Protocol):
    """One target. A frozen dataclass whose fields are the options of `export`, registered as an entry point.

    A target that holds integers says so by a class variable ``arithmetic = "fixed-point"``.
    """

    name: ClassVar[str]

    def write(self, graph: SpikingGraph, directory: Path) -> Artifact:
        """Check the whole graph, then write it; nothing appears in ``directory`` if anything fails."""

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run the files of the artifact, and only the files, in the target's runtime.

        The recording holds the output and, by node name, the spikes of every spiking layer and the membranes of
        readouts, not shifted by the latency.
        """


@runtime_checkable
class ReadingExporter(Protocol):
    """An exporter that can also read its target's files."""

    def read(self, path: Path) -> SpikingGraph:
        """Return the graph in a file; raises `slamp.errors.ArtifactError` if it cannot be read."""


def takes_fixed_point(exporter: type[Exporter]) -> bool:
    """True if a target holds graphs in fixed point: its exporter has ``arithmetic = "fixed-point"``."""
    return vars(exporter).get("arithmetic") == FixedPoint().name


def installed_exporters() -> dict[str, type[Exporter]]:
    """Return every exporter that can be imported here, by name."""
    found = {}
    for entry in _entries().values():
        try:
            found[entry.name] = entry.load()
        except ImportError:
            continue
    return found


def exporter_problems() -> dict[str, str]:
    """Return, by name, why an exporter cannot be used here."""
    problems = {}
    for entry in _entries().values():
        try:
            entry.load()
        except ImportError as error:
            problems[entry.name] = str(error)
    return problems


def find_exporter(name: str) -> type[Exporter]:
    """Return the exporter called ``name``.

    Raises:
        ExporterNotFoundError: None is registered under that name.
        MissingDependencyError: It is registered, but a package it needs is missing.
    """
    entries = _entries()
    if name not in entries:
        raise ExporterNotFoundError(
            f"exporter: {name!r} is not installed; allowed here are {', '.join(sorted(entries)) or 'none'}"
        )
    try:
        exporter: type[Exporter] = entries[name].load()
    except ImportError as error:
        raise MissingDependencyError(f"exporter {name}: {error}; install the extra slamp[{name}]") from error
    return exporter


def export(
    graph: SpikingGraph,
    *,
    to: str,
    directory: str | Path,
    provenance: Mapping[str, Any] | None = None,
    **options: Any,
) -> Artifact:
    """Write a graph as files of a target.

    Args:
        graph: What to write.
        to: Name of the exporter, such as "nir".
        directory: Where; new, empty, or an earlier artifact, which is replaced only when the new one is complete.
        provenance: Further manifest entries, such as seeds.
        **options: Fields of the exporter; ``golden``, where it has it, is the raster `slamp.verify_directory` uses.

    Raises:
        ExporterNotFoundError, MissingDependencyError: The exporter is not there.
        RunFileError: An option is unknown or has a value that is not allowed.
        UnsupportedNodeError: The target cannot say a node; nothing is written.
        OutputDirectoryError: The directory holds files that are not ours.
    """
    exporter = find_exporter(to)
    try:
        writer = exporter(**options)
    except TypeError as error:
        allowed = ", ".join(field.name for field in fields(exporter)) if is_dataclass(exporter) else "none"
        raise RunFileError(f"exporter {to}: {error}; its options are {allowed}") from error
    artifact = writer.write(graph, Path(directory))
    if provenance:
        update_manifest(artifact.directory, provenance)
    return artifact


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
