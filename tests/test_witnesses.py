"""Foreign simulators are found by entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

from slamp.errors import ExporterNotFoundError
from slamp.witnesses import find_witness, installed_witnesses


def test_spikingjelly_is_registered() -> None:
    assert "spikingjelly" in installed_witnesses()
    witness = find_witness("spikingjelly")
    assert callable(witness.replay)
    assert callable(witness.install)


def test_an_environment_that_is_not_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path))
    assert find_witness("spikingjelly").environment_python() is None


def test_an_unknown_witness_is_refused_by_name() -> None:
    with pytest.raises(ExporterNotFoundError, match=r"'oracle' is not registered; allowed here are .*spikingjelly"):
        find_witness("oracle")
