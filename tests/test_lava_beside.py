"""Where Lava is installed beside slamp, its interpreter is the running one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from exporters import witness_lava


def test_lava_beside_slamp_is_used_without_an_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert witness_lava.environment_python() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert witness_lava.environment_python() == Path(sys.executable)
    assert witness_lava.environment_python(tmp_path) is None
