"""What `slamp doctor` says."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from slamp.health import health


def test_health_names_versions_and_abilities() -> None:
    found = health()
    assert found["packages"]["torch"] == version("torch")
    assert found["exporters"]["nir"] == "can write, replay, read, read_golden"
    assert "threads" in found["devices"]["cpu"]
    assert set(found) == {"packages", "devices", "exporters", "witnesses", "report", "demo data"}


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("slamp.health")
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package-at-all",))
    monkeypatch.setattr(module, "DEMO", {"no_such_package_at_all": "what-carries-it==1"})
    monkeypatch.setattr(module, "exporter_problems", lambda: {"onnx": "No module named 'onnx'"})
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path))
    found = health()
    assert found["packages"]["no-such-package-at-all"] == "not installed"
    assert found["demo data"]["no_such_package_at_all"] == "missing: pip install what-carries-it==1"
    assert found["exporters"]["onnx"] == "cannot be used: No module named 'onnx'; pip install 'slamp[onnx]'"
    assert found["witnesses"]["spikingjelly"] == "not installed; slamp witness install spikingjelly"
    assert found["witnesses"]["lava"] == "not installed; slamp lava install"
