"""Exporters are found by entry point, and `export` passes their options on."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import slamp
from slamp.errors import ExporterNotFoundError, MissingDependencyError, OutputDirectoryError, RunFileError
from slamp.exporting import GROUP, export, exporter_problems, find_exporter, installed_exporters
from verify_networks import dense_graph, raster


@pytest.fixture
def broken_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter whose package is missing, beside the true ones."""
    module = import_module("slamp.exporting")
    true = module._entries()
    broken = EntryPoint("abacus", "package_that_is_not_there.to_abacus:AbacusExporter", GROUP)
    monkeypatch.setattr(module, "_entries", lambda: {**true, "abacus": broken})


def test_nir_is_installed() -> None:
    assert installed_exporters()["nir"].name == "nir"
    assert find_exporter("nir") is installed_exporters()["nir"]
    assert exporter_problems() == {}


def test_an_unknown_target_is_refused_by_name() -> None:
    with pytest.raises(ExporterNotFoundError, match="'abacus' is not installed; allowed here are lava, nir"):
        find_exporter("abacus")


@pytest.mark.usefixtures("broken_exporter")
def test_an_exporter_whose_package_is_missing_says_which() -> None:
    assert "abacus" not in installed_exporters()
    assert exporter_problems() == {"abacus": "No module named 'package_that_is_not_there'"}
    with pytest.raises(
        MissingDependencyError, match=r"No module named 'package_that_is_not_there'; install .*slamp\[abacus\]"
    ):
        find_exporter("abacus")


def test_options_and_provenance_arrive_in_the_manifest(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = export(
        graph, to="nir", directory=str(tmp_path / "out"), provenance={"seeds": {"compress": 7}}, compression="lzf"
    )
    assert artifact.manifest["options"]["compression"] == "lzf"
    assert artifact.manifest["seeds"] == {"compress": 7}
    assert slamp.verify(artifact, graph, raster(graph)).equivalent


def test_an_unknown_option_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"exporter nir: .*'speed'; its options are strict, compression, golden"):
        export(dense_graph(), to="nir", directory=tmp_path / "out", speed=3)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_directory_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputDirectoryError, match=r"mine\.txt"):
        export(dense_graph(), to="nir", directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
