"""What every exporter promises: write, verify, identical; a complete manifest; a sabotaged file is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import networks
import slamp
from slamp.errors import ArtifactError, NotEquivalentError, OutputDirectoryError
from slamp.exporting import Exporter, ReadingExporter, installed_exporters, takes_fixed_point
from slamp.manifest import Artifact, file_sha256, mask_hash
from slamp.nodes import frozen_array
from slamp.verify import GoldenExporter

# Targets in fixed point take no network of the zoo; tests/test_to_lava.py holds them to the same.
EXPORTERS = sorted((name, kind) for name, kind in installed_exporters().items() if not takes_fixed_point(kind))
# Reset by subtraction, which a target may refuse, has tests of its own.
NAMES = ("dense_cuba", "dense_if", "conv_box", "conv_pool_norm", "conv_1d")

pytestmark = pytest.mark.parametrize("exporter", [kind for _, kind in EXPORTERS], ids=[name for name, _ in EXPORTERS])


def captured(name: str) -> tuple[slamp.SpikingGraph, slamp.SpikeRaster]:
    """A graph of the zoo, folded, and samples on which every spiking layer fires in 0.5 to 50 % of its cells."""
    net, raster = networks.build(name)
    graph = slamp.fold_batchnorm(slamp.capture(net, raster), raster).graph
    networks.assert_evidence(graph, slamp.simulate(graph, raster, record="spikes"))
    return graph, raster


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_replays_its_graph(exporter: type[Exporter], name: str, tmp_path: Path) -> None:
    graph, raster = captured(name)
    artifact = exporter().write(graph, tmp_path / "out")
    result = slamp.verify(artifact, graph, raster)
    result.raise_if_different()
    assert result.verdict in ("identical", "tie")
    assert result.counts["different"] == 0
    assert result.unobserved_layers == ()
    assert result.cells >= sum(graph.shapes[layer][0] for layer in graph.spiking) * raster.steps * raster.batch


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_says_everything(exporter: type[Exporter], name: str, tmp_path: Path) -> None:
    graph, raster = captured(name)
    artifact = exporter().write(graph, tmp_path / "out")
    slamp.verify(artifact, graph, raster)
    manifest = artifact.manifest
    assert manifest["target"] == exporter.name
    assert manifest["graph_hash"] == graph.hash
    assert manifest["mask_hash"] == mask_hash(graph)
    assert manifest["dt"] == graph.dt
    assert manifest["latency_steps"] == artifact.latency_steps
    assert manifest["versions"]["slamp"] == version("slamp")
    assert {"python", "torch", "norse", "numpy"} <= set(manifest["versions"])
    assert {"profile", "seeds", "options", "arithmetic"} <= set(manifest)
    files = {path.name for path in artifact.directory.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    for file, entry in manifest["files"].items():
        assert entry["sha256"] == file_sha256(artifact.directory / file)
        assert entry["bytes"] == (artifact.directory / file).stat().st_size
    assert set(manifest["roles"].values()) <= files
    assert manifest["verification"]["verdict"] in ("identical", "tie")
    assert manifest["verification"]["graph_hash"] == graph.hash
    assert slamp.open_artifact(artifact.directory) == artifact
    assert artifact.graph().hash == graph.hash


def other_weight(graph: slamp.SpikingGraph) -> slamp.SpikingGraph:
    name = list(graph.weighted)[-2]
    weight = np.array(graph.weighted[name].weight)
    weight[0] += np.float32(2.0)
    return graph.with_nodes({name: type_with(graph, name, weight=frozen_array(weight))})


def other_threshold(graph: slamp.SpikingGraph) -> slamp.SpikingGraph:
    name = next(iter(graph.spiking))
    threshold = np.array(graph.nodes[name].v_threshold)  # type: ignore[union-attr]  # a spiking node has one
    threshold.reshape(-1)[:2] *= np.float32(0.2)
    return graph.with_nodes({name: type_with(graph, name, v_threshold=frozen_array(threshold))})


def type_with(graph: slamp.SpikingGraph, name: str, **fields: np.ndarray) -> object:
    return replace(graph.nodes[name], **fields)


@pytest.mark.parametrize("change", [other_weight, other_threshold], ids=lambda change: change.__name__)
def test_the_files_of_another_network_are_different(
    exporter: type[Exporter], change: Callable[[slamp.SpikingGraph], slamp.SpikingGraph], tmp_path: Path
) -> None:
    """The target's files come from a changed graph, everything else from the true one."""
    graph, raster = captured("dense_cuba")
    artifact = exporter().write(graph, tmp_path / "true")
    wrong = exporter().write(change(graph), tmp_path / "wrong")
    for file in artifact.manifest["files"]:
        if file != artifact.manifest["roles"]["graph"]:
            (artifact.directory / file).write_bytes((wrong.directory / file).read_bytes())
    result = slamp.verify(artifact, graph, raster)
    assert result.verdict == "different"
    assert result.altered_files != ()
    assert result.first_difference is not None
    assert result.first_difference.layer in graph.spiking
    with pytest.raises(NotEquivalentError, match=r"layer .*, step .*neuron"):
        result.raise_if_different()


def test_the_golden_input_is_the_one_given(exporter: type[Exporter], tmp_path: Path) -> None:
    graph, raster = captured("dense_cuba")
    artifact = slamp.export(graph, to=exporter.name, directory=tmp_path / "out", golden=raster)
    reader = exporter()
    assert isinstance(reader, GoldenExporter)
    assert bool((reader.read_golden(artifact).data == raster.data).all())
    assert slamp.verify_directory(artifact.directory).equivalent


def test_without_a_golden_input_samples_are_asked_for(exporter: type[Exporter], tmp_path: Path) -> None:
    graph, raster = captured("dense_cuba")
    exporter().write(graph, tmp_path / "out")
    with pytest.raises(ArtifactError, match="golden_input"):
        slamp.verify_directory(tmp_path / "out")
    assert slamp.verify_directory(tmp_path / "out", raster).equivalent


def test_a_graph_comes_back(exporter: type[Exporter], tmp_path: Path) -> None:
    graph, _ = captured("conv_box")
    reader = exporter()
    if not isinstance(reader, ReadingExporter):
        pytest.skip(f"{exporter.name} does not read")
    artifact = exporter().write(graph, tmp_path / "out")
    assert reader.read(artifact.file("network")).hash == graph.hash


def test_somebody_elses_directory_is_untouched(exporter: type[Exporter], tmp_path: Path) -> None:
    graph, _ = captured("dense_cuba")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputDirectoryError, match=r"mine\.txt"):
        exporter().write(graph, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_earlier_artifact_is_replaced(exporter: type[Exporter], tmp_path: Path) -> None:
    graph, raster = captured("dense_cuba")
    exporter().write(other_weight(graph), tmp_path / "out")
    artifact = exporter().write(graph, tmp_path / "out")
    assert isinstance(artifact, Artifact)
    assert slamp.verify(artifact, graph, raster).equivalent
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
