from __future__ import annotations

import pytest

from slamp.progress import ticker


def test_progress_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ticker("counting", 3, shown=True) as advance:
        advance(2)
    captured = capfd.readouterr()
    assert "counting" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_drawn_elsewhere(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with ticker("counting", None, shown=shown) as advance:
        advance(2)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_drawn_unless_asked_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ticker("counting", 3, shown=False) as advance:
        advance(2)
    assert capfd.readouterr() == ("", "")
