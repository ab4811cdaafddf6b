"""The command line: exit codes, one line per error, one JSON object, nothing half written, interruption."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import slamp
import user_networks as users
from slamp.cli import main
from slamp.errors import NotEquivalentError
from slamp.witnesses import find_witness

Cli = Callable[..., tuple[int, str, str]]
TESTS = Path(__file__).parent
EQUIVALENT = ("identical", "tie")  # float rounding may decide a cell, and is then named


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process; return exit code, standard output and standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slamp", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "slamp", *map(str, words)]


def environment(**changes: object) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in changes.items()}


def assert_one_error(code: int, out: str, err: str, *found: str) -> None:
    assert code == 2, err
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for text in found:
        assert text in lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with samples, weights and one finished run."""
    place = tmp_path_factory.mktemp("place")
    slamp.save_samples(users.samples(), place / "samples.npz")
    slamp.save_samples(users.samples(12, seed=7), place / "more.npz")
    slamp.save_samples(users.samples(analog=True), place / "analog.npz")
    save_file(users.factory().state_dict(), place / "state.safetensors")
    raster, held_out = users.samples(60), users.samples(20, seed=1)
    slamp.compress(
        users.factory(), raster, held_out=held_out, budget=slamp.Budget(density=0.3), directory=place / "run"
    )
    return place


@pytest.fixture
def artifact(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's NIR artifact, to be damaged."""
    return shutil.copytree(place / "run" / "nir", tmp_path / "nir")


def compress_words(place: Path, out: Path, *more: object, network: str = "user_networks:factory") -> list[object]:
    return ["compress", network, place / "samples.npz", "--budget", "density=0.3", "--out", out, *more]


# compress


def test_compress_does_the_whole_job(place: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    more = ["--weights", place / "state.safetensors", "--train", "user_networks:train", "--budget", "sops=1000"]
    code, text, err = cli(*compress_words(place, out, *more))
    assert code == 0, err
    assert err == ""
    assert re.search("(identical|tie)  nir: 20 held-out samples", text)
    assert f"page: {out / 'report.html'}" in text
    summary = json.loads((out / "run.json").read_text())
    assert {row["name"] for row in summary["budgets"]} == {"density", "sops"}
    assert all(row["used"] <= row["limit"] for row in summary["budgets"])
    state = load_file(out / "pruned.safetensors")
    assert {name for name in state if not name.startswith("mask:")} == set(users.factory().state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_pruned_weights_go_back_into_the_command(place: Path, cli: Cli) -> None:
    weights = place / "run" / "pruned.safetensors"
    words = ["check-module", "user_networks:factory", place / "samples.npz", "--weights", weights, "--json"]
    code, text, err = cli(*words)
    assert code == 0, err
    assert json.loads(text)["captured"]["graph_hash"] == slamp.open_artifact(place / "run" / "nir").graph().hash


def test_json_is_one_object_though_the_users_functions_print(place: Path, tmp_path: Path, cli: Cli) -> None:
    words = compress_words(place, tmp_path / "out", "--train", "user_networks:printing_train", "--json")
    words[1] = "user_networks:chatty_factory"
    code, text, err = cli(*words)
    assert code == 0, err
    assert json.loads(text) == json.loads((tmp_path / "out" / "run.json").read_text())
    assert "building the network" in err
    assert "epoch 1: loss 0.5" in err


def test_a_metric_of_the_user_is_asked(place: Path, tmp_path: Path, cli: Cli) -> None:
    code, text, err = cli(*compress_words(place, tmp_path / "out", "--metric", "user_networks:metric", "--json"))
    assert code == 0, err
    assert json.loads(text)["accuracy"] == {"dense": 0.25, "pruned": 0.25}


def test_held_out_samples_of_the_user_are_compared(place: Path, tmp_path: Path, cli: Cli) -> None:
    code, text, err = cli(*compress_words(place, tmp_path / "out", "--held-out", place / "more.npz", "--json"))
    assert code == 0, err
    assert json.loads(text)["verifications"]["nir"]["samples"] == 12


def test_no_strict_lets_reset_by_subtraction_travel(place: Path, tmp_path: Path, cli: Cli) -> None:
    words = compress_words(place, tmp_path / "out", network="user_networks:subtracting")
    assert_one_error(*cli(*words), "resets by subtraction", "strict=False")
    code, _, err = cli(*words, "--no-strict")
    assert code == 0, err
    code, _, err = cli("verify", tmp_path / "out")
    assert code == 0, err


def test_a_run_that_proves_nothing_ends_with_one(place: Path, tmp_path: Path, cli: Cli) -> None:
    held_out = users.samples(8)
    silent = slamp.SpikeRaster(torch.zeros_like(held_out.data), held_out.dt, held_out.labels)
    slamp.save_samples(silent, tmp_path / "silent.npz")
    net = users.factory()
    with torch.no_grad():
        for index in (0, 2, 4):
            net[index].bias.zero_()
    save_file(net.state_dict(), tmp_path / "state.safetensors")
    more = ["--weights", tmp_path / "state.safetensors", "--held-out", tmp_path / "silent.npz"]
    code, text, _ = cli(*compress_words(place, tmp_path / "out", *more))
    assert code == 1
    assert "never fires, so nothing is proven" in text


BAD_NETWORKS = {
    "nowhere:factory": "cannot import 'nowhere'",
    "user_networks": "allowed is package.module:name",
    "user_networks.py:factory": "without .py",
    "./user_networks.py:factory": "no path",
    ".user_networks:factory": "no path",
    "user_networks:nothing": "has no 'nothing'; it has",
    "user_networks:not_a_function": "is int; allowed is a function",
    "user_networks:a_number": "returned int; allowed is a torch.nn.Module",
    "user_networks:needs_width": "cannot be called without arguments",
    "user_networks:plain_module": "holds no neurons",
    "user_networks:unknown_module": "Sigmoid is not captured",
    "user_networks:stateful_module": "LSTM is not captured",
    "user_networks:probabilistic": "'logistic' is probabilistic",
    "user_networks:not_a_number": "weight[3, 5] is nan",
    "user_networks:zero_layer": "all 640 weights are zero",
    "user_networks:silent": "3: never fires",
    "user_networks:subtracting": "resets by subtraction",
}


@pytest.mark.parametrize("network", BAD_NETWORKS)
def test_bad_network(network: str, place: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(users.MARKER, str(tmp_path / "marker"))
    more = ["--train", "user_networks:forbidden_train"]
    assert_one_error(*cli(*compress_words(place, tmp_path / "out", *more, network=network)), BAD_NETWORKS[network])
    assert list(tmp_path.iterdir()) == []


BAD_WORDS: dict[str, tuple[list[str], str]] = {
    "one weight per layer": (["--budget", "synapses=2"], "synapses: the budget is 2"),
    "unknown budget": (["--budget", "weights=3"], "'weights=3'; allowed is NAME=NUMBER with NAME one of density"),
    "budget without number": (["--budget", "sops"], "'sops'; allowed is NAME=NUMBER"),
    "budget of words": (["--budget", "sops=many"], "'many' is not a number"),
    "budget twice": (["--budget", "density=0.2"], "density is given twice"),
    "budget of cores": (["--budget", "cores=3"], "cores: depends on the chip; use profile.budget"),
    "method": (["--method", "best"], "method 'best' is unknown; allowed are lamp, slamp"),
    "readout": (["--readout", "median"], "readout: Input should be 'mean', 'sum', 'last' or 'max', found 'median'"),
    "schedule": (["--schedule", "slow"], "schedule: Input should be 'one-shot' or 'iterative', found 'slow'"),
    "seed": (["--seed", "-3"], "seed: Input should be greater than or equal to 0, found -3"),
    "target": (["--to", "abacus"], "exporter: 'abacus' is not installed; allowed here are lava, nir"),
    "train": (["--train", "user_networks:nothing"], "train: user_networks has no 'nothing'"),
    "metric": (["--metric", "user_networks:bad_metric"], "metric: returned 'good'"),
    "weights": (["--weights", "nowhere.safetensors"], "nowhere.safetensors: not a readable safetensors file"),
    "held out": (["--held-out", "nowhere.npz"], "nowhere.npz: there is no such samples file"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_words(name: str, place: Path, tmp_path: Path, cli: Cli) -> None:
    words, message = BAD_WORDS[name]
    assert_one_error(*cli(*compress_words(place, tmp_path / "out", *words)), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["compress", "--bogus"], ["compress"], ["frobnicate"], ["verify"]], ids=" ".join)
def test_usage_errors_end_with_two(words: list[str], cli: Cli) -> None:
    code, out, err = cli(*words)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err


def test_a_budget_is_needed(place: Path, cli: Cli) -> None:
    assert_one_error(*cli("compress", "user_networks:factory", place / "samples.npz"), "at least one --budget")


def bad_samples(path: Path, name: str) -> None:
    good = users.samples().numpy()
    contents: dict[str, dict[str, Any]] = {
        "features": {"spikes": good[:, :, :20]},
        "axes": {"spikes": good[:, 0]},
        "values": {"spikes": good.astype(np.int64) * 3},
        "dtype": {"spikes": good.astype(np.complex64)},
        "double": {"analog": good * np.float64(0.3)},
        "nan": {"analog": np.where(good, np.float32("nan"), np.float32(0))},
        "empty": {"spikes": good[:, :0]},
        "no spikes array": {"data": good},
        "both arrays": {"spikes": good, "analog": good.astype(np.float32)},
        "labels": {"spikes": good, "labels": np.zeros(3, np.int64)},
        "dt": {"spikes": good, "dt": 0.002},
        "negative dt": {"spikes": good, "dt": -1.0},
        "single": {"spikes": good[:, :1]},
    }
    if name in contents:
        np.savez(path, **contents[name])
    elif name == "truncated":
        np.savez(path, spikes=good)
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "text":
        path.write_text("not an archive")
    elif name == "pickled":
        np.savez(path, spikes=np.array([{}], dtype=object))


BAD_SAMPLES = {
    "features": "receives shape (20,) per sample, allowed is (24,)",
    "axes": "has 2 axes; allowed is (time, batch, *features)",
    "values": "spikes range over 0 to 3; allowed are 0 and 1",
    "dtype": "dtype complex64",
    "double": "float64",
    "nan": "holds NaN or infinity",
    "empty": "holds no cells",
    "no spikes array": "found arrays ['data']",
    "both arrays": "exactly one of 'spikes'",
    "labels": "labels of shape (3,)",
    "dt": "dt is 0.002 s, the network's neurons have 0.001 s",
    "negative dt": "dt is -1.0",
    "single": "holds 1 samples; at least 2 are needed",
    "truncated": "not a readable npz",
    "text": "not a readable npz",
    "pickled": "not a readable npz",
    "missing": "there is no such samples file",
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples(name: str, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "samples.npz"
    bad_samples(path, name)
    words = ["compress", "user_networks:factory", path, "--budget", "density=0.3", "--out", tmp_path / "out"]
    assert_one_error(*cli(*words), BAD_SAMPLES[name])
    assert [found.name for found in tmp_path.iterdir() if found != path] == []


def test_weights_that_do_not_fit(place: Path, tmp_path: Path, cli: Cli) -> None:
    weights = tmp_path / "state.safetensors"
    state = users.factory().state_dict()
    save_file({**state, "0.weight": torch.zeros(3, 3)}, weights)
    words = compress_words(place, tmp_path / "out", "--weights", weights)
    assert_one_error(*cli(*words), "does not fit user_networks:factory", "0.weight")
    del state["2.bias"]
    save_file(state, weights)
    assert_one_error(*cli(*words), 'Missing key(s) in state_dict: "2.bias"')
    weights.write_bytes(b"damaged")
    assert_one_error(*cli(*words), "not a readable safetensors file")
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_somebody_elses_directory_is_untouched(place: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert_one_error(*cli(*compress_words(place, tmp_path)), "holds files that are not ours (thesis.tex)")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert_one_error(*cli("demo", "--out", tmp_path), "holds files that are not ours (thesis.tex)")


def test_an_error_of_the_users_function_shows_where(place: Path, tmp_path: Path, cli: Cli) -> None:
    """Not 1, which is kept for artifacts that differ; and with the traceback, because the mistake is in their code."""
    words = compress_words(place, tmp_path / "out", "--train", "user_networks:failing_train")
    code, out, err = cli(*words)
    assert code == 2
    assert out == ""
    assert "in failing_train" in err
    assert err.rstrip().endswith("ZeroDivisionError: the user's own mistake")
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line_even_if_its_message_is_not(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise slamp.errors.RunFileError("first line\n   second [line]")

    monkeypatch.setattr(import_module("slamp.cli.app"), "health", broken)
    assert_one_error(*cli("doctor"), "error: first line second [line]")


def test_not_equivalent_ends_with_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def different() -> None:
        raise NotEquivalentError("layer 1, step 3")

    monkeypatch.setattr(import_module("slamp.cli.app"), "health", different)
    assert cli("doctor") == (1, "", "error: layer 1, step 3\n")


# verify


def test_verify_needs_the_manifest_alone(artifact: Path, cli: Cli) -> None:
    code, text, err = cli("verify", artifact)
    assert (code, err) == (0, "")
    assert text.startswith(EQUIVALENT)
    assert "16 golden samples" in text
    assert slamp.open_artifact(artifact).manifest["verification"]["verdict"] in EQUIVALENT


def test_verify_takes_samples(artifact: Path, place: Path, cli: Cli) -> None:
    code, text, err = cli("verify", artifact, place / "more.npz", "--json")
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert found["verdict"] in EQUIVALENT
    assert found["samples"] == 12
    assert found["runner"] == "nir exporter"


def test_verify_takes_the_result_of_compress(place: Path, cli: Cli) -> None:
    code, text, err = cli("verify", place / "run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)["nir"]["verdict"] in EQUIVALENT


def test_a_result_without_artifacts_is_said(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert_one_error(*cli("verify", tmp_path), "without an artifact in it")


def test_a_changed_weight_is_different_and_named(artifact: Path, cli: Cli) -> None:
    """Still a NIR file, so it is run; the spikes say what the checksum suspects."""
    with h5py.File(artifact / "network.nir", "r+") as file:
        file["node/nodes/2/weight"][7, :] += 1.0
    code, text, _ = cli("verify", artifact)
    assert code == 1
    assert text.startswith("different")
    assert "layer 3, step " in text
    assert "neuron 7" in text
    assert "network.nir: altered since the export" in text
    code, text, _ = cli("verify", artifact, "--json")
    assert code == 1
    difference = json.loads(text)["first_difference"]
    assert (difference["layer"], difference["neuron"]) == ("3", [7])
    assert slamp.open_artifact(artifact).manifest["verification"]["verdict"] == "different"


def test_an_altered_file_that_spikes_alike_is_still_not_the_certified_one(artifact: Path, cli: Cli) -> None:
    with h5py.File(artifact / "network.nir", "r+") as file:
        file.attrs["remark"] = "harmless"
    code, text, _ = cli("verify", artifact)
    assert code == 1
    assert "network.nir: altered since the export" in text


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda d: flip_a_byte(d / "network.nir"), "network.nir"),
    "truncated": (lambda d: os.truncate(d / "network.nir", 2000), "network.nir"),
    "emptied": (lambda d: os.truncate(d / "network.nir", 0), "network.nir"),
    "text": (lambda d: (d / "network.nir").write_text("hello"), "network.nir"),
    "no network": (lambda d: (d / "network.nir").unlink(), "network.nir"),
    "truncated golden": (lambda d: os.truncate(d / "golden_input.nird", 800), "golden_input.nird"),
    "no golden": (lambda d: (d / "golden_input.nird").unlink(), "golden_input.nird"),
    "truncated graph": (lambda d: os.truncate(d / "graph.npz", 800), "graph.npz"),
    "no graph": (lambda d: (d / "graph.npz").unlink(), "graph.npz"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "manifest.json: missing"),
    "manifest cut": (lambda d: os.truncate(d / "manifest.json", 60), "manifest.json: damaged"),
    "manifest of nothing": (lambda d: (d / "manifest.json").write_text("{}"), "'format' is missing"),
    "manifest list": (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json"),
    "unknown target": (lambda d: change_manifest(d, target="abacus"), "'abacus' is not installed"),
    "graph hash": (lambda d: change_manifest(d, graph_hash="0" * 64), "graph has hash"),
    "path in manifest": (lambda d: change_manifest(d, roles={"graph": "../graph.npz"}), "leaves the artifact"),
    "no roles": (lambda d: change_manifest(d, roles={}), "names no 'graph' file"),
    "no files": (lambda d: change_manifest(d, files={"network.nir": {}}), "network.nir"),
    "no dt": (lambda d: change_manifest(d, dt=None), "manifest.json"),
    "no options": (lambda d: change_manifest(d, options=None), "manifest.json"),
}


def change_manifest(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_refused(name: str, artifact: Path, cli: Cli) -> None:
    damage, message = DAMAGE[name]
    damage(artifact)
    assert_one_error(*cli("verify", artifact), message)


def test_verify_names_what_is_no_artifact(place: Path, tmp_path: Path, cli: Cli) -> None:
    assert_one_error(*cli("verify", tmp_path / "nowhere"), "manifest.json: missing")
    assert_one_error(*cli("verify", place / "samples.npz"), "a file; name the directory")


def test_verify_refuses_samples_that_do_not_fit(artifact: Path, tmp_path: Path, cli: Cli) -> None:
    narrow = slamp.SpikeRaster(users.samples(4).data[:, :, :20], 1e-3)
    slamp.save_samples(narrow, tmp_path / "narrow.npz")
    assert_one_error(*cli("verify", artifact, tmp_path / "narrow.npz"), "(20,)")
    slow = slamp.SpikeRaster(users.samples(4).data, 2e-3)
    slamp.save_samples(slow, tmp_path / "slow.npz")
    assert_one_error(*cli("verify", artifact, tmp_path / "slow.npz"), "0.002")


def test_an_unknown_witness_is_named(artifact: Path, cli: Cli) -> None:
    assert_one_error(*cli("verify", artifact, "--witness", "oracle"), "'oracle' is not registered", "spikingjelly")


def test_a_witness_that_is_not_installed_says_how(
    artifact: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    assert_one_error(*cli("verify", artifact, "--witness", "spikingjelly"), "install")


@pytest.mark.skipif(
    find_witness("spikingjelly").environment_python() is None, reason="needs: slamp witness install spikingjelly"
)
def test_a_witness_gives_its_own_verdict_and_leaves_the_certificate(artifact: Path, cli: Cli) -> None:
    before = slamp.open_artifact(artifact).manifest
    code, text, err = cli("verify", artifact, "--witness", "spikingjelly", "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["verdict"] in EQUIVALENT
    assert found["runner"] == "spikingjelly"
    assert slamp.open_artifact(artifact).manifest == before


# check-module, report, doctor, --version


def test_check_module_says_what_becomes_of_each_module(cli: Cli) -> None:
    code, text, err = cli("check-module", "user_networks:normalized", "--features", "24", "--json")
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert found["works"] is True
    assert found["captured"] is None
    assert [entry["node"] for entry in found["modules"]][:3] == ["Affine", "Scale", "LIF"]
    code, text, _ = cli("check-module", "user_networks:normalized", "--features", "24")
    assert code == 0
    assert "give SAMPLES to prove it" in text


def test_check_module_proves_it_on_samples(place: Path, cli: Cli) -> None:
    code, text, err = cli("check-module", "user_networks:factory", place / "samples.npz")
    assert (code, err) == (0, "")
    assert "captured: every cell of 80 samples agrees" in text


@pytest.mark.parametrize("network", ["unknown_module", "stateful_module", "plain_module", "probabilistic"])
def test_check_module_says_what_does_not_work(network: str, place: Path, cli: Cli) -> None:
    code, text, err = cli("check-module", f"user_networks:{network}", place / "samples.npz", "--json")
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    found = json.loads(text)
    assert found["works"] is False
    (problem,) = [entry["problem"] for entry in found["modules"] if entry["problem"]]
    assert " ".join(problem.split()) in err
    code, text, _ = cli("check-module", f"user_networks:{network}", place / "samples.npz")
    assert code == 2
    assert "not captured" in text


def test_check_module_finds_numbers_that_are_none(place: Path, cli: Cli) -> None:
    code, text, err = cli("check-module", "user_networks:not_a_number", place / "samples.npz")
    assert_one_error(code, "", err, "weight[3, 5] is nan")
    assert "not captured" in text


def test_check_module_says_that_silence_proves_nothing(place: Path, cli: Cli) -> None:
    code, text, err = cli("check-module", "user_networks:silent", place / "samples.npz")
    assert (code, err) == (0, "")
    assert "no spike in 3" in text
    assert "proves nothing" in text
    code, text, _ = cli("check-module", "user_networks:silent", place / "samples.npz", "--json")
    assert code == 0
    assert json.loads(text)["captured"]["silent_layers"][0] == "3"


@pytest.mark.parametrize(
    ("features", "message"),
    [(None, "give SAMPLES or --features"), ("a,b", "integers with commas"), ("0,3", "positive"), ("-1", "positive")],
)
def test_check_module_needs_features(features: str | None, message: str, cli: Cli) -> None:
    words = ["check-module", "user_networks:factory"] + ([] if features is None else [f"--features={features}"])
    assert_one_error(*cli(*words), message)


def test_check_module_with_features_of_another_network(cli: Cli) -> None:
    code, _, err = cli("check-module", "user_networks:factory", "--features", "23")
    assert code == 2
    assert "receives shape (23,) per sample, allowed is (24,)" in err


def test_report_prints_the_tables_again(place: Path, cli: Cli) -> None:
    code, text, err = cli("report", place / "run")
    assert (code, err) == (0, "")
    for title in ("before and after", "layers", "budgets (method slamp-activity)", "replayed by"):
        assert title in text
    assert str(place / "run" / "report.html") in text
    code, text, _ = cli("report", place / "run", "--json")
    assert code == 0
    assert json.loads(text) == json.loads((place / "run" / "run.json").read_text())


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"format": "other"}'])
def test_report_refuses_what_is_no_result(content: str | None, tmp_path: Path, cli: Cli) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert_one_error(*cli("report", tmp_path), "run.json", "name a result of slamp compress")


def test_report_says_that_there_is_no_page(place: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copy(place / "run" / "run.json", tmp_path)
    code, text, _ = cli("report", tmp_path)
    assert code == 0
    assert "page: not written; pip install 'slamp[report]'" in text


def test_doctor_says_what_is_here(cli: Cli) -> None:
    code, text, err = cli("doctor")
    assert (code, err) == (0, "")
    assert "nir              can write, replay, read, read_golden" in text
    code, text, _ = cli("doctor", "--json")
    assert code == 0
    assert json.loads(text)["packages"]["norse"] == "1.1.0"


def test_there_is_nothing_to_resume(place: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli(*compress_words(place, tmp_path / "out", "--resume"))
    assert code == 0
    assert err.splitlines() == [f"nothing to resume beside {tmp_path / 'out'}; starting anew"]


# profiles, usage


def test_profiles_are_listed_and_shown_with_their_sources(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, text, err = cli("profiles")
    assert (code, err) == (0, "")
    for name in slamp.installed_profiles():
        assert name in text
    assert "budget only" in text
    code, text, _ = cli("profiles", "loihi2")
    assert code == 0
    assert "limits.neurons_per_core" in text
    assert "Davies" not in text
    code, text, _ = cli("profiles", "loihi1", "--sources")
    assert code == 0
    assert "Davies et al." in text
    code, text, _ = cli("profiles", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(text)] == list(slamp.installed_profiles())
    code, text, _ = cli("profiles", "truenorth", "--json")
    assert json.loads(text)["limits"]["neurons_per_core"]["value"] == 256
    code, text, _ = cli("profiles", "--schema")
    assert json.loads(text)["title"] == "Profile"


def test_a_profile_that_is_none(cli: Cli, tmp_path: Path) -> None:
    assert_one_error(*cli("profiles", "loihi3"), "'loihi3' is not installed", "akida1000")
    (tmp_path / "mine.toml").write_text("schema_version = 1\nspam = 2\n")
    assert_one_error(*cli("profiles", tmp_path / "mine.toml"), "mine.toml:2: spam: unknown key")


def test_usage_of_one_chip_and_of_all(place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, text, err = cli("usage", place / "run" / "nir", "--profile", "loihi1")
    assert (code, err) == (0, "")
    for found in ("synaptic memory, bits", "largest fan-in", "SOPs per sample", "davies2018", "cheapest"):
        assert found in text
    code, text, _ = cli("usage", place / "run", place / "more.npz", "--profile", "speck2f")
    assert code == 0
    assert "cannot run: 1: LIF does not run on speck2f" in text
    code, text, _ = cli("usage", place / "run", "--all")
    assert code == 0
    assert all(name in text for name in slamp.installed_profiles())
    code, text, _ = cli("usage", place / "run", "--all", "--json")
    assert [entry["profile"] for entry in json.loads(text)] == list(slamp.installed_profiles())
    code, text, _ = cli("usage", place / "run", "--profile", "loihi1", "--json")
    rows = {row["resource"]: row for row in json.loads(text)["rows"]}
    graph = slamp.open_artifact(place / "run" / "nir").graph()
    kept = sum(int(np.count_nonzero(node.weight)) for node in graph.weighted.values())
    assert rows["weights kept"]["used"] == kept


def test_usage_shows_what_sits_on_which_core(place: Path, cli: Cli) -> None:
    code, text, err = cli("usage", place / "run", "--profile", "loihi1")
    assert code == 0, err
    assert "cores of loihi1" in text
    code, text, _ = cli("usage", place / "run", "--profile", "loihi1", "--json")
    mapping = json.loads(text)["mapping"]
    assert mapping["cores"] == 1
    assert {part["layer"] for part in mapping["parts"]} == set(
        slamp.open_artifact(place / "run" / "nir").graph().weighted
    )
    assert 0 < mapping["fullness"]["0"]["neurons"] < 1


def test_compress_fits_a_core(place: Path, tmp_path: Path, cli: Cli) -> None:
    words = ["compress", "user_networks:factory", place / "samples.npz", "--profile", "loihi1", "--json"]
    words += ["--budget", "cores=1", "--budget", "energy_pj=1e9", "--budget", "sops_per_step=1e6"]
    code, text, err = cli(*words, "--balance", "fan_out", "--out", tmp_path / "zeros")
    assert code == 0, err
    summary = json.loads(text)
    assert {row["name"]: row["limit"] for row in summary["budgets"]} == {
        "cores": 1,
        "energy_pj": 1e9,
        "sops_per_step": 1e6,
    }
    assert all(0 < row["used"] <= row["limit"] for row in summary["budgets"])
    assert summary["balance"] == "fan_out"
    assert summary["usage"]["mapping"]["cores"] == 1


def test_compress_removes_channels(place: Path, tmp_path: Path, cli: Cli) -> None:
    words = ["compress", "user_networks:factory", place / "samples.npz", "--profile", "speck2f"]
    code, text, err = cli(*words, "--budget", "density=0.5", "--structured", "--out", tmp_path / "channels")
    assert code == 0, err
    assert re.search(r"outputs that stay: .*\d+ of \d+", text)
    assert "single zeros save nothing" not in text
    summary = json.loads((tmp_path / "channels" / "run.json").read_text())
    assert any(row["outputs_after"] < row["outputs_before"] for row in summary["layers"])
    code, text, err = cli(*words, "--budget", "density=0.5", "--out", tmp_path / "zeros")
    assert code == 0, err
    assert "single zeros save nothing on speck2f" in text


def test_usage_needs_one_chip_or_all(place: Path, cli: Cli) -> None:
    assert_one_error(*cli("usage", place / "run"), "give either --profile NAME or --all")
    assert_one_error(*cli("usage", place / "run", "--all", "--profile", "loihi1"), "give either")
    assert_one_error(*cli("usage", place / "nowhere", "--all"), "manifest.json: missing")


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"slamp {slamp.__version__}\n", "")


def test_help_names_every_command(cli: Cli) -> None:
    code, text, _ = cli("--help")
    assert code == 0
    pipeline = ("demo", "compress", "check-module", "verify", "report")
    for name in (*pipeline, "doctor", "witness", "profiles", "usage", "lava"):
        assert name in text


# through a real process


def test_exit_codes_of_the_process(artifact: Path, place: Path) -> None:
    def ended(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), env=environment(), capture_output=True, text=True, check=False)

    good = ended("verify", artifact, "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["verdict"] in EQUIVALENT
    with h5py.File(artifact / "network.nir", "r+") as file:
        file["node/nodes/2/weight"][7, :] += 1.0
    assert ended("verify", artifact).returncode == 1
    bad = ended("compress", "user_networks:factory", place / "samples.npz", "--budget", "weights=3")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: ")
    assert len(bad.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=lambda kind: kind.name)
def test_an_interrupted_run_leaves_no_result_and_goes_on(kind: signal.Signals, place: Path, tmp_path: Path) -> None:
    marker, out = tmp_path / "marker", tmp_path / "build" / "out"
    words = compress_words(place, out, "--train", "user_networks:train")
    process = subprocess.Popen(
        command(*words),
        env=environment(**{users.MARKER: marker, users.PAUSE: 60}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background makes them, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        assert marker.exists(), "training never began"
        process.send_signal(kind)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (130 if kind == signal.SIGINT else -kind)
    if kind == signal.SIGINT:
        assert stdout == ""
        assert stderr.splitlines() == [
            f"interrupted; nothing was written to {out}; the same command with --resume goes on"
        ]
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == [".out.resume"]
    assert not list(out.parent.rglob("manifest.json"))

    again = environment(**{users.MARKER: marker})
    subprocess.run(command(*words, "--resume"), env=again, capture_output=True, check=True)
    epochs = marker.read_text().splitlines()
    assert epochs == ["1.0 0", "1.0 1", "1.0 2"], "no epoch twice"
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    samples = users.samples()
    held = range(3, samples.batch, 4)  # the command holds out every fourth sample
    whole = slamp.compress(
        users.factory(),
        samples.select([index for index in range(samples.batch) if index not in held]),
        held_out=samples.select(held),
        budget=slamp.Budget(density=0.3),
        directory=tmp_path / "whole",
        train=users.train,
    )
    assert json.loads((out / "run.json").read_text())["graph_hash"] == whole.shipped.hash
