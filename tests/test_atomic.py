from __future__ import annotations

import os
from pathlib import Path

import pytest

from slamp.atomic import check_replaceable, new_directory, write_atomically
from slamp.errors import OutputDirectoryError


def contents(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_file_appears_with_its_directories(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"
    assert contents(tmp_path / "a" / "b") == {"file"}


def test_a_file_is_replaced_or_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert contents(tmp_path) == {"file"}


def test_a_directory_appears_when_its_block_ends(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out", marker="m") as temporary:
        (temporary / "m").write_text("1")
        assert not (tmp_path / "out").exists()
    assert contents(tmp_path) == {"out"}
    assert contents(tmp_path / "out") == {"m"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_block_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), new_directory(tmp_path / "out", marker="m") as temporary:  # noqa: PT012  # the block is what is tested
        (temporary / "m").write_text("1")
        raise error
    assert contents(tmp_path) == set()


def test_an_interrupted_block_keeps_the_old_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out", marker="m") as temporary:  # noqa: PT012  # the block is what is tested
        (temporary / "m").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "m").read_text() == "old"
    assert contents(tmp_path) == {"out"}


def test_our_own_directory_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("old")
    (tmp_path / "out" / "stale").write_text("old")
    with new_directory(tmp_path / "out", marker="m") as temporary:
        (temporary / "m").write_text("new")
    assert contents(tmp_path / "out") == {"m"}
    assert (tmp_path / "out" / "m").read_text() == "new"
    assert contents(tmp_path) == {"out"}


def test_a_failed_exchange_brings_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("old")
    rename = os.rename
    calls = []

    def second_fails(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="disk gone"), new_directory(tmp_path / "out", marker="m") as temporary:
        (temporary / "m").write_text("new")
    assert (tmp_path / "out" / "m").read_text() == "old"
    assert contents(tmp_path) == {"out"}


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_directory(tmp_path / "out", marker="m") as temporary:
        (temporary / "m").write_text("new")
    assert contents(tmp_path / "out") == {"m"}


def test_somebody_elses_files_are_refused_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    ran = []
    with (
        pytest.raises(OutputDirectoryError, match=r"files that are not ours \(thesis\.tex\).*choose another directory"),
        new_directory(tmp_path / "out", marker="m"),
    ):
        ran.append(True)
    assert not ran
    assert contents(tmp_path / "out") == {"thesis.tex"}
    assert contents(tmp_path) == {"out"}


def test_files_that_arrive_while_the_block_runs_are_kept(tmp_path: Path) -> None:
    with (  # noqa: PT012  # the block is what is tested
        pytest.raises(OutputDirectoryError, match="not ours"),
        new_directory(tmp_path / "out", marker="m") as temporary,
    ):
        (temporary / "m").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert contents(tmp_path / "out") == {"thesis.tex"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputDirectoryError, match="a file is in the way; name a directory that is new or empty"):
        check_replaceable(tmp_path / "out", marker="m")


DEAD = 2**30  # above any process number of Linux


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / f".out.partial-{DEAD}-abc"
    left.mkdir()
    (left / "half").write_text("half")
    alive = tmp_path / f".out.partial-{os.getpid()}-abc"
    alive.mkdir()
    with new_directory(tmp_path / "out", marker="mark") as directory:
        (directory / "mark").write_text("new")
    assert not left.exists()
    assert alive.exists()
    assert (tmp_path / "out" / "mark").read_text() == "new"


def test_a_result_that_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    kept = tmp_path / f".out.old-{DEAD}-abc" / "kept"
    kept.mkdir(parents=True)
    (kept / "mark").write_text("earlier")
    with pytest.raises(RuntimeError, match="stop"), new_directory(tmp_path / "out", marker="mark"):
        raise RuntimeError("stop")
    assert (tmp_path / "out" / "mark").read_text() == "earlier"
    assert not kept.parent.exists()


def test_an_interrupt_between_the_renames_brings_the_earlier_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mark").write_text("earlier")
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if ".partial-" in str(source):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out", marker="mark") as directory:
        (directory / "mark").write_text("new")
    assert (tmp_path / "out" / "mark").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
