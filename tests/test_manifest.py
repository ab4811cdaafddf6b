from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from networks import build
from slamp.capture import read_graph
from slamp.errors import ArtifactError, OutputDirectoryError
from slamp.graph import SpikingGraph
from slamp.manifest import (
    Artifact,
    file_sha256,
    mask_hash,
    open_artifact,
    read_manifest,
    staged_artifact,
    update_manifest,
    versions,
)
from slamp.masks import Masks, masked_copy


def graph_of(name: str = "dense_if") -> SpikingGraph:
    net, raster = build(name)
    return read_graph(net, raster.features, raster.dt)[0]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    with staged_artifact(
        graph_of(), tmp_path / "out", target="nir", options={"strict": True}, latency_steps=2
    ) as staged:
        (staged.directory / "net.nir").write_bytes(b"network")
        staged.roles["network"] = "net.nir"
    return open_artifact(tmp_path / "out")


def altered(artifact: Artifact, change: dict[str, Any]) -> Path:
    path = artifact.directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return artifact.directory


def test_an_artifact_knows_its_target_files_and_graph(artifact: Artifact) -> None:
    assert (artifact.target, artifact.latency_steps) == ("nir", 2)
    assert artifact.file("network").read_bytes() == b"network"
    assert artifact.graph().hash == graph_of().hash
    assert artifact.altered_files() == []


def test_the_manifest_certifies_every_file(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert set(manifest["files"]) == {"graph.npz", "net.nir"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == file_sha256(artifact.directory / name)
        assert entry["bytes"] == (artifact.directory / name).stat().st_size
    assert manifest["graph_hash"] == graph_of().hash
    assert manifest["mask_hash"] == mask_hash(graph_of())
    assert manifest["options"] == {"strict": True}
    assert manifest["verification"] is None
    assert {"python", "torch", "norse"} <= set(manifest["versions"])


def test_versions_hold_only_what_is_installed() -> None:
    assert all(isinstance(value, str) and value for value in versions().values())


def test_an_exporter_that_fails_leaves_no_artifact(tmp_path: Path) -> None:
    with (  # noqa: PT012  # the block is what is tested
        pytest.raises(RuntimeError, match="halfway"),
        staged_artifact(graph_of(), tmp_path / "out", target="nir", options={}) as staged,
    ):
        (staged.directory / "net.nir").write_bytes(b"half")
        raise RuntimeError("halfway")
    assert list(tmp_path.iterdir()) == []


def test_one_changed_byte_is_reported(artifact: Artifact) -> None:
    (artifact.directory / "net.nir").write_bytes(b"netwerk")
    assert artifact.altered_files() == ["net.nir"]


def test_a_removed_file_is_reported(artifact: Artifact) -> None:
    (artifact.directory / "net.nir").unlink()
    assert artifact.altered_files() == ["net.nir"]
    with pytest.raises(ArtifactError, match="the manifest names it but there is no such file"):
        artifact.file("network")


def test_an_unknown_role_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="the manifest names no 'golden_input' file"):
        artifact.file("golden_input")


def test_an_exchanged_graph_is_found(artifact: Artifact) -> None:
    graph_of("dense_box").save(artifact.directory / "graph.npz")
    with pytest.raises(ArtifactError, match=r"graph has hash .*, the manifest states"):
        artifact.graph()


def test_update_replaces_entries_and_keeps_the_rest(artifact: Artifact) -> None:
    update_manifest(artifact.directory, {"verification": {"verdict": "identical"}})
    assert artifact.manifest["verification"] == {"verdict": "identical"}
    assert artifact.manifest["target"] == "nir"
    assert artifact.altered_files() == []


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json: missing; name a directory that slamp exported"):
        open_artifact(tmp_path)


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ArtifactError, match="a file; name the directory"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_damaged_manifest(artifact: Artifact, content: bytes) -> None:
    (artifact.directory / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged"):
        read_manifest(artifact.directory)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", 3),
        ("graph_hash", None),
        ("latency_steps", "2"),
        ("latency_steps", True),
        ("files", []),
        ("roles", []),
        ("format", 1),
    ],
)
def test_a_manifest_entry_of_the_wrong_kind(artifact: Artifact, key: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=f"'{key}' is missing or not"):
        read_manifest(altered(artifact, {key: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"net.nir": "abc"}},
        {"files": {"net.nir": {}}},
        {"roles": {"network": 3}},
        {"roles": {"network": None}},
    ],
)
def test_a_manifest_with_malformed_files_or_roles(artifact: Artifact, change: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="export again"):
        read_manifest(altered(artifact, change))


def test_a_manifest_that_is_a_list(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="'format' is missing or not str"):
        read_manifest(artifact.directory)


def test_a_manifest_of_another_format(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="format is 'slamp-artifact-9', allowed is"):
        read_manifest(altered(artifact, {"format": "slamp-artifact-9"}))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", ""])
@pytest.mark.parametrize("where", ["files", "roles"])
def test_file_names_cannot_leave_the_directory(artifact: Artifact, name: str, where: str) -> None:
    entries: dict[str, object] = {name: {"sha256": ""}} if where == "files" else {"network": name}
    with pytest.raises(ArtifactError, match="leaves the artifact's directory"):
        read_manifest(altered(artifact, {where: entries}))


def test_the_mask_hash_of_a_pruned_graph_is_that_of_its_masks() -> None:
    net, raster = build("dense_if")
    graph, _ = read_graph(net, raster.features, raster.dt)
    masks = Masks({name: abs(node.weight) > 0.05 for name, node in graph.weighted.items()}, graph.parameters)
    pruned, _ = read_graph(masked_copy(net, masks), raster.features, raster.dt)
    assert 0 < masks.density < 1
    assert mask_hash(pruned) == masks.hash != mask_hash(graph)


def write_again(artifact: Artifact) -> None:
    with staged_artifact(graph_of(), artifact.directory, target="nir", options={}):
        pass


def test_an_artifact_with_somebody_elses_file_is_not_replaced(artifact: Artifact) -> None:
    (artifact.directory / "notes.txt").write_text("mine")
    with pytest.raises(OutputDirectoryError, match=r"not ours \(notes.txt\) beside an earlier artifact; move them"):
        write_again(artifact)
    assert (artifact.directory / "notes.txt").read_text() == "mine"
    (artifact.directory / "notes.txt").unlink()
    write_again(artifact)
    assert set(artifact.manifest["files"]) == {"graph.npz"}


def test_an_artifact_with_a_damaged_manifest_is_not_replaced(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").write_text("{")
    with pytest.raises(OutputDirectoryError, match=r"damaged .* choose another directory, or delete this one"):
        write_again(artifact)


@pytest.mark.parametrize("steps", [-1, 10**12])
def test_a_latency_out_of_range(artifact: Artifact, steps: int) -> None:
    with pytest.raises(ArtifactError, match=f"latency_steps is {steps}, allowed are 0 to"):
        read_manifest(altered(artifact, {"latency_steps": steps}))


def test_a_file_without_a_stated_sha256(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"states no sha256 of 'graph\.npz'"):
        read_manifest(altered(artifact, {"files": {}}))
