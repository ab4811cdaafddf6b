"""Graphs come back from the files of a target."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import slamp
from slamp.errors import ArtifactError, ExporterNotFoundError
from slamp.reading import load_file, load_nir
from verify_networks import dense_graph, raster, reference_run


def test_the_graph_comes_back_bit_for_bit(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = slamp.export(graph, to="nir", directory=tmp_path / "out")
    found = load_nir(str(artifact.file("network")))
    assert found.hash == graph.hash
    inputs = raster(graph)
    assert bool((slamp.simulate(found, inputs).output.data == reference_run(graph, inputs).output.data).all())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere\.nir: there is no such file"):
        load_nir(tmp_path / "nowhere.nir")
    (tmp_path / "text.nir").write_text("no network")
    with pytest.raises(ArtifactError, match=r"text\.nir: not a readable NIR file"):
        load_nir(tmp_path / "text.nir")


def test_a_target_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExporterNotFoundError, match="'abacus' is not installed"):
        load_file(tmp_path / "x", target="abacus")


def test_a_target_that_only_writes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("slamp.reading"), "find_exporter", lambda name: SimpleNamespace)
    with pytest.raises(ExporterNotFoundError, match="exporter abacus: cannot read files"):
        load_file(tmp_path / "x", target="abacus")
