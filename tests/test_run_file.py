"""Run files: what they say, and one clear error for everything they may get wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import slamp
from slamp.cli import main
from slamp.cli.run_file import RunFile, read_run_file
from slamp.errors import BudgetError, RunFileError
from user_networks import samples

GOOD = """
network = "user_networks:factory"
samples = "data/samples.npz"
out = "../build"

[budget]
density = 0.3
"""


def read(path: Path, text: str) -> RunFile:
    path.write_text(text)
    return read_run_file(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    run = read(tmp_path / "run.toml", 'weights = "state.safetensors"\nheld_out = "/data/held_out.npz"\n' + GOOD)
    assert run.samples == tmp_path / "data" / "samples.npz"
    assert run.weights == tmp_path / "state.safetensors"
    assert run.held_out == Path("/data/held_out.npz")
    assert run.out == tmp_path / ".." / "build"


def test_what_is_left_out_has_the_defaults_of_the_command_line(tmp_path: Path) -> None:
    run = read(tmp_path / "run.toml", GOOD)
    assert run.budget == {"density": 0.3}
    assert (run.to, run.method, run.readout, run.schedule, run.seed, run.strict) == (
        ("nir",),
        "auto",
        None,
        "one-shot",
        0,
        True,
    )
    assert (run.weights, run.held_out, run.train, run.metric) == (None, None, None, None)


def test_a_budget_may_be_a_whole_number(tmp_path: Path) -> None:
    assert read(tmp_path / "run.toml", GOOD + "synapses = 50000\n").budget == {"density": 0.3, "synapses": 50000.0}


BAD = {
    "unknown key": ('wieghts = "state.safetensors"\n' + GOOD, "wieghts: Extra inputs .*; allowed are network, samples"),
    "unknown budget": (GOOD + "sparsness = 0.5\n", "budget sparsness is unknown; allowed are density"),
    "missing network": (GOOD.replace("network", "net"), "network: Field required"),
    "missing samples": (GOOD.replace('samples = "data/samples.npz"', ""), "samples: Field required"),
    "missing out": (GOOD.replace('out = "../build"', ""), "out: Field required"),
    "missing budget": (GOOD.partition("[budget]")[0], "budget: Field required"),
    "empty budget": (GOOD.replace("density = 0.3", ""), "budget: .* at least 1 item"),
    "network is a number": (GOOD.replace('"user_networks:factory"', "3"), "network: .*string, found 3"),
    "budget is text": (GOOD.replace("0.3", '"0.3"'), "budget.density: .*number, found '0.3'"),
    "budget is a truth value": (GOOD.replace("0.3", "true"), "budget.density: .*number, found True"),
    "seed is text": ('seed = "1"\n' + GOOD, "seed: .*integer, found '1'"),
    "seed is negative": ("seed = -1\n" + GOOD, "seed: .*greater than or equal to 0, found -1"),
    "structured is text": ('structured = "no"\n' + GOOD, "structured: .*boolean, found 'no'"),
    "balance is unknown": ('balance = "rows"\n' + GOOD, "balance: .*'fan_out', found 'rows'"),
    "strict is text": ('strict = "no"\n' + GOOD, "strict: .*boolean, found 'no'"),
    "target is text": ('to = "nir"\n' + GOOD, "to: .*tuple, found 'nir'"),
    "no target": ("to = []\n" + GOOD, "to: .*at least 1 item"),
    "schedule": ('schedule = "slow"\n' + GOOD, "schedule: .*'one-shot' or 'iterative', found 'slow'"),
    "readout": ('readout = "median"\n' + GOOD, "readout: .*'max', found 'median'"),
    "syntax": ("network = \n", "not TOML: .*line 1"),
    "twice": ("seed = 1\nseed = 2\n" + GOOD, "not TOML"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_run_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[name]
    with pytest.raises((RunFileError, BudgetError), match=message) as found:
        read(tmp_path / "run.toml", text)
    assert "run.toml" in str(found.value)
    monkeypatch.setattr(sys, "argv", ["slamp", "compress", str(tmp_path / "run.toml")])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_every_mistake_is_listed(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"samples: Field required.*seed: .*found 'a'"):
        read(tmp_path / "run.toml", 'seed = "a"\n' + GOOD.replace("samples =", "sample ="))


def test_a_missing_run_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"run\.toml: cannot be read \(No such file"):
        read_run_file(tmp_path / "run.toml")
    with pytest.raises(RunFileError, match="cannot be read"):
        read_run_file(tmp_path)


def test_a_run_file_of_other_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00network")
    with pytest.raises(RunFileError, match="not TOML"):
        read_run_file(tmp_path / "run.toml")


@pytest.mark.parametrize("word", ["--budget=density=0.2", "--out=x", "--seed=1", "--no-strict", "--strict"])
def test_a_run_file_and_other_words_exclude_each_other(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(GOOD)
    monkeypatch.setattr(sys, "argv", ["slamp", "compress", str(tmp_path / "run.toml"), word])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "a run file says everything" in capfd.readouterr().err


def test_a_run_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "data").mkdir(parents=True)
    slamp.save_samples(samples(), tmp_path / "runs" / "data" / "samples.npz")
    path = tmp_path / "runs" / "run.toml"
    path.write_text('train = "user_networks:train"\n' + GOOD)
    monkeypatch.setattr(sys, "argv", ["slamp", "compress", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), capfd.readouterr().err
    assert (tmp_path / "build" / "run.json").is_file()
    assert slamp.verify_directory(tmp_path / "build" / "nir").equivalent
