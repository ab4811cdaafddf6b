"""`manifest.json`: the certificate that travels with an artifact."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slamp.atomic import new_directory, write_atomically
from slamp.digests import kept_hash
from slamp.errors import ArtifactError, OutputDirectoryError
from slamp.graph import SpikingGraph, load_graph

FORMAT = "slamp-artifact-1"
MANIFEST = "manifest.json"
MAX_LATENCY_STEPS = 1_000_000
GRAPH = "graph.npz"
PACKAGES = ("slamp", "torch", "norse", "nir", "numpy", "h5py", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Artifact:
    """A directory of exported files.

    Attributes:
        directory: Where the files and ``manifest.json`` lie.
        target: Name of the exporter that wrote it.
        latency_steps: Steps by which the target answers later than the graph.
    """

    directory: Path
    target: str
    latency_steps: int = 0

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, read anew; raises `ArtifactError` if it is missing or damaged."""
        return read_manifest(self.directory)

    def file(self, role: str) -> Path:
        """Return the file that plays ``role`` ("network", "golden_input", ...); raises `ArtifactError` if none does."""
        name = self.manifest["roles"].get(role)
        if name is None:
            raise ArtifactError(
                f"{self.directory}: the manifest names no {role!r} file; export with it"
                + (" (golden=RASTER), or name a samples file" if role == "golden_input" else "")
            )
        path: Path = self.directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: the manifest names it but there is no such file; export again")
        return path

    def graph(self) -> SpikingGraph:
        """Return the graph the artifact was written from; raises `ArtifactError` if its hash is not the manifest's."""
        graph = load_graph(self.file("graph"))
        stated = self.manifest["graph_hash"]
        if graph.hash != stated:
            found = f"graph has hash {graph.hash[:12]}, the manifest states {stated[:12]}"
            raise ArtifactError(f"{self.directory}: {found}; export again")
        return graph

    def altered_files(self) -> list[str]:
        """Names of files whose sha256 is not the one the manifest states, missing ones included."""
        altered = []
        for name, entry in self.manifest["files"].items():
            path = self.directory / name
            if not path.is_file() or file_sha256(path) != entry["sha256"]:
                altered.append(name)
        return altered


def open_artifact(directory: str | Path) -> Artifact:
    """Open a directory written by an exporter.

    Raises:
        ArtifactError: There is no manifest, or it is damaged.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    return Artifact(directory, manifest["target"], manifest["latency_steps"])


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and check ``manifest.json`` of a directory."""
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; name a directory that slamp exported") from error
    except NotADirectoryError as error:
        raise ArtifactError(f"{directory}: a file; name the directory that slamp exported") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); export again") from error
    needed = {"format": str, "target": str, "graph_hash": str, "dt": float, "latency_steps": int, "options": dict}
    needed |= {"files": dict, "roles": dict}
    for key, kind in needed.items():
        value = manifest.get(key) if isinstance(manifest, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArtifactError(f"{path}: {key!r} is missing or not {kind.__name__}; export again")
    if manifest["format"] != FORMAT:
        raise ArtifactError(f"{path}: format is {manifest['format']!r}, allowed is {FORMAT!r}; use a matching slamp")
    if not 0 <= manifest["latency_steps"] <= MAX_LATENCY_STEPS:
        found = manifest["latency_steps"]
        raise ArtifactError(f"{path}: latency_steps is {found}, allowed are 0 to {MAX_LATENCY_STEPS}; export again")
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise ArtifactError(f"{path}: the entry of file {name!r} has no sha256; export again")
    for name in [*manifest["files"], *manifest["roles"].values()]:
        if not isinstance(name, str):
            raise ArtifactError(f"{path}: file name {name!r} is no string; export again")
        if Path(name).name != name or name in ("", ".."):
            raise ArtifactError(f"{path}: file name {name!r} leaves the artifact's directory; export again")
    if unlisted := sorted(set(manifest["roles"].values()) - set(manifest["files"])):
        raise ArtifactError(f"{path}: states no sha256 of {unlisted[0]!r}; export again")
    return manifest


def update_manifest(directory: Path, changes: Mapping[str, Any]) -> None:
    """Replace top-level entries of the manifest atomically."""
    manifest = {**read_manifest(directory), **changes}
    write_atomically(directory / MANIFEST, _encode(manifest))


@contextmanager
def staged_artifact(
    graph: SpikingGraph, directory: Path, *, target: str, options: Mapping[str, Any], latency_steps: int = 0
) -> Iterator[StagedArtifact]:
    """Let an exporter write its files; the directory appears, manifest included, only when the block succeeds.

    The graph itself is stored beside the target's files (role "graph"), as the reference verification needs.
    """
    refuse_strangers(directory)
    with new_directory(directory, marker=MANIFEST) as temporary:
        staged = StagedArtifact(temporary, {"graph": GRAPH})
        graph.save(temporary / GRAPH)
        yield staged
        files = {
            path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in sorted(temporary.iterdir())
        }
        manifest = {
            "format": FORMAT,
            "target": target,
            "options": dict(options),
            "graph_hash": graph.hash,
            "mask_hash": mask_hash(graph),
            "dt": graph.dt,
            "arithmetic": graph.arithmetic.name,
            "latency_steps": latency_steps,
            "profile": None,
            "seeds": {},
            "versions": versions(),
            "roles": staged.roles,
            "files": files,
            "verification": None,
        }
        write_atomically(temporary / MANIFEST, _encode(manifest))


def refuse_strangers(directory: Path) -> None:
    """Raise `OutputDirectoryError` if an earlier artifact's directory also holds files its manifest does not name."""
    if not (directory / MANIFEST).is_file():
        return
    try:
        ours = {MANIFEST, *read_manifest(directory)["files"]}
    except ArtifactError as error:
        raise OutputDirectoryError(f"{directory}: {error}; choose another directory, or delete this one") from error
    strangers = sorted(path.name for path in directory.iterdir() if path.name not in ours)
    if strangers:
        raise OutputDirectoryError(
            f"{directory}: holds files that are not ours ({', '.join(strangers[:3])}) beside an earlier artifact; "
            "move them, or choose another directory"
        )


@dataclass(frozen=True)
class StagedArtifact:
    """A directory being written: put files into ``directory`` and name their roles in ``roles``."""

    directory: Path
    roles: dict[str, str]


def mask_hash(graph: SpikingGraph) -> str:
    """sha256 over which weights of the graph are not zero."""
    return kept_hash((name, node.weight != 0) for name, node in graph.weighted.items())


def versions() -> dict[str, str]:
    """Versions of Python and the packages a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _encode(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
