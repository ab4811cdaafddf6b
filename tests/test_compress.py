"""The whole path in one call: what it gives, what it refuses, what it leaves behind, how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import slamp
import user_networks as users
from networks import HIGHEST, LOWEST, assert_evidence
from slamp.cli.tables import print_run
from slamp.compare import Difference
from slamp.compress import Run
from slamp.errors import (
    ArtifactError,
    BudgetError,
    CaptureError,
    ExporterNotFoundError,
    GraphError,
    MissingDependencyError,
    OutputDirectoryError,
    ProfileError,
    RasterError,
    RunFileError,
    ScoreError,
    SilentNetworkError,
    SlampError,
    TrainingError,
    UnsupportedNodeError,
)

RASTER, HELD_OUT = users.samples(60, seed=0), users.samples(20, seed=1)
BUDGET = slamp.Budget(density=0.3)
EQUIVALENT = ("identical", "tie")  # float rounding may decide a cell, and is then named


def compress(net: torch.nn.Module, directory: Path, **changes: Any) -> Run:
    given = {"raster": RASTER, "held_out": HELD_OUT, "budget": BUDGET, "train": users.train} | changes
    return slamp.compress(net, given.pop("raster"), directory=directory, **given)


def assert_nothing_left(directory: Path) -> None:
    """Neither an output nor anything hidden beside it."""
    assert not directory.exists()
    assert not directory.parent.exists() or not [p.name for p in directory.parent.iterdir() if directory.name in p.name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compress(users.factory(), tmp_path_factory.mktemp("run") / "out")


def test_a_run_holds_its_budget_and_is_equivalent(run: Run) -> None:
    assert run.after.density <= 0.3
    assert run.pruned.masks.density == pytest.approx(0.3, abs=0.001)
    verification = run.verifications["nir"]
    assert verification.verdict in EQUIVALENT
    assert run.equivalent
    assert verification.samples == HELD_OUT.batch
    for name, rate in verification.rates.items():
        assert LOWEST <= rate <= HIGHEST, name


def test_a_run_leaves_these_files_and_no_others(run: Run) -> None:
    found = {path.name for path in run.directory.iterdir()}
    assert found == {"run.json", "pruned.safetensors", "report.json", "report.html", "nir"}
    assert [path.name for path in run.directory.parent.iterdir()] == ["out"]
    assert run.artifacts["nir"].directory == run.directory / "nir"
    assert run.artifacts["nir"].altered_files() == []


def test_the_files_verify_again_on_other_samples(run: Run) -> None:
    result = slamp.verify_directory(run.directory / "nir", users.samples(12, seed=5))
    assert result.verdict in EQUIVALENT


def test_the_exported_file_holds_the_shipped_graph_bit_for_bit(run: Run) -> None:
    assert slamp.load_nir(run.directory / "nir" / "network.nir").hash == run.shipped.hash
    assert_evidence(run.shipped, slamp.simulate(run.shipped, HELD_OUT, record="spikes"))


def test_the_user_gets_the_norse_module_back(run: Run) -> None:
    state, masks = slamp.load_pruned(run.directory / "pruned.safetensors")
    net = users.factory()
    net.load_state_dict(state)
    assert slamp.capture(net, RASTER).hash == run.shipped.hash
    assert masks.hash == run.pruned.masks.hash
    for name, keep in masks.items():
        weight = run.shipped.weighted[name].weight
        np.testing.assert_array_equal(weight != 0, keep)


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    net = users.factory()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    compress(net, tmp_path / "out", metric=lambda n: float(n.eval() is not None))
    assert net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_summary_says_what_was_measured(run: Run) -> None:
    summary = run.summary()
    assert summary == json.loads((run.directory / "run.json").read_text())
    table = {row["name"]: row for row in summary["table"]}
    dense = slamp.capture(users.factory(), RASTER)
    assert table["synapses (weights)"]["before"] == sum(node.weight.size for node in dense.weighted.values())
    assert table["synapses (weights)"]["after"] == sum(
        int(np.count_nonzero(node.weight)) for node in run.shipped.weighted.values()
    )
    exact = slamp.calibrate(run.shipped, HELD_OUT, fold=False)
    assert table["SOPs per sample, held out"]["after"] == pytest.approx(exact.sops)
    assert table["accuracy, held out"]["after"] == slamp.accuracy(run.shipped, HELD_OUT)
    assert summary["accuracy"] == {"dense": slamp.accuracy(dense, HELD_OUT), "pruned": run.after.accuracy}
    assert "MACs per sample, held out" not in table
    assert [row["layer"] for row in summary["layers"]] == ["0", "2", "4"]
    assert all(0 < row["kept"] < row["weights"] for row in summary["layers"])
    assert all(row["rate_before"] > 0 and row["rate_after"] > 0 for row in summary["layers"])
    (budget,) = summary["budgets"]
    assert (budget["name"], budget["limit"], budget["binds"]) == ("density", 0.3, True)
    assert budget["used"] <= budget["limit"]
    assert summary["equivalent"] is True
    assert summary["folding"] is None


def test_the_curve_falls_from_the_dense_network(run: Run) -> None:
    densities = [density for density, _ in run.curve]
    assert densities == [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    assert run.curve[0][1] == run.before.accuracy
    assert all(0 <= accuracy <= 1 for _, accuracy in run.curve)


def test_one_seed_gives_one_result(run: Run, tmp_path: Path) -> None:
    again = compress(users.factory(), tmp_path / "out")
    assert again.shipped.hash == run.shipped.hash
    other = compress(users.factory(), tmp_path / "other", seed=1)
    assert other.shipped.hash != run.shipped.hash


def test_a_sop_budget_is_met_in_measured_use(tmp_path: Path) -> None:
    dense = slamp.calibrate(slamp.capture(users.factory(), RASTER), RASTER, fold=False).sops
    limit = 0.25 * dense
    run = compress(users.factory(), tmp_path / "out", budget=slamp.Budget(sops=limit))
    measured = slamp.calibrate(run.shipped, RASTER, fold=False).sops
    assert 0.98 * limit <= measured <= limit
    assert run.equivalent


def test_without_training_function_nothing_is_trained(tmp_path: Path) -> None:
    run = compress(users.factory(), tmp_path / "out", train=None)
    dense = {name: node.weight for name, node in run.dense.weighted.items()}
    for name, node in run.shipped.weighted.items():
        kept = node.weight != 0
        gain = np.where(kept, node.weight / np.where(dense[name] == 0, 1, dense[name]), np.nan)
        spread = np.nanmax(gain, axis=1) - np.nanmin(gain, axis=1) if kept.any(1).all() else np.zeros(1)
        np.testing.assert_allclose(spread, 0, atol=1e-5, err_msg="one gain per neuron, nothing else")
    assert run.equivalent


def test_the_iterative_schedule_reaches_the_budget_too(tmp_path: Path) -> None:
    run = compress(users.factory(), tmp_path / "out", schedule="iterative")
    assert len(run.pruned.rounds) == 6
    assert run.after.density <= 0.3
    assert run.equivalent


def test_batch_normalization_is_folded_and_the_effect_reported(tmp_path: Path) -> None:
    run = compress(users.normalized(), tmp_path / "out")
    assert run.folding is not None
    assert run.folding.folded == ("1",)
    reported = run.summary()["folding"]
    assert reported["cells"] == 60 * 8 * (32 + 20 + 4)
    assert 0 <= reported["differing"] < 0.01 * reported["cells"]
    assert "Batch normalization" in (run.directory / "report.html").read_text()
    assert run.equivalent


def test_a_membrane_readout_goes_through(tmp_path: Path) -> None:
    run = compress(users.reading_out(), tmp_path / "out")
    verification = run.verifications["nir"]
    assert run.equivalent
    assert verification.max_readout_error is not None
    assert list(verification.rates) == ["1", "3"]
    assert run.summary()["layers"][-1]["rate_after"] is None


def test_analog_input_costs_macs(tmp_path: Path) -> None:
    raster, held_out = users.samples(60, analog=True), users.samples(20, seed=1, analog=True)
    run = compress(users.direct_coded(), tmp_path / "out", raster=raster, held_out=held_out, train=None)
    table = {row["name"]: row for row in run.summary()["table"]}
    dense_macs = np.count_nonzero(held_out.numpy()) * 32 / held_out.batch
    assert table["MACs per sample, held out"]["before"] == pytest.approx(dense_macs)
    assert 0 < table["MACs per sample, held out"]["after"] < dense_macs
    assert run.summary()["layers"][0]["from_spikes"] is False
    assert run.equivalent


def test_the_metric_of_the_user_replaces_accuracy(tmp_path: Path) -> None:
    run = compress(users.factory(), tmp_path / "out", train=None, metric=users.tensor_metric)
    assert run.summary()["accuracy"] == {"dense": 0.5, "pruned": 0.5}


def test_samples_without_labels_need_no_accuracy(tmp_path: Path) -> None:
    unlabeled = slamp.SpikeRaster(HELD_OUT.data, HELD_OUT.dt)
    run = compress(users.factory(), tmp_path / "out", held_out=unlabeled, train=None)
    assert run.summary()["accuracy"] == {"dense": None, "pruned": None}
    assert run.curve == ()
    assert run.equivalent


def test_held_out_samples_that_fire_nothing_prove_nothing(tmp_path: Path) -> None:
    net = users.factory()
    with torch.no_grad():
        for index in (0, 2, 4):
            net[index].bias.zero_()
    empty = slamp.SpikeRaster(torch.zeros_like(HELD_OUT.data), HELD_OUT.dt, HELD_OUT.labels)
    run = compress(net, tmp_path / "out", held_out=empty, train=None)
    assert run.verifications["nir"].verdict == "silent"
    assert not run.equivalent
    assert run.summary()["equivalent"] is False


DIFFERENCE = Difference("3", 4, 2, (7,), 1.0, 0.0, 0.41, 0.4, 0.01, 1e-6, "a wrong weight")


@pytest.mark.parametrize(
    ("verdict", "found"), [("tie", {"ties": (DIFFERENCE,)}), ("different", {"first_difference": DIFFERENCE})]
)
def test_a_difference_is_named_wherever_the_run_is_shown(
    verdict: str, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(*arguments: Any, **options: Any) -> slamp.Verification:
        true = slamp.verify(*arguments, **options)
        counts = {**true.counts, "identical": true.samples - 1, verdict: 1}
        return replace(true, verdict=verdict, counts=counts, **found)

    monkeypatch.setattr(import_module("slamp.compress"), "verify", pretended)
    run = compress(users.factory(), tmp_path / "out", train=None)
    assert run.equivalent is (verdict == "tie")
    sentence = DIFFERENCE.sentence()
    assert sentence in json.dumps(run.summary())
    assert "layer 3, step 4" in (run.directory / "report.html").read_text()
    console = Console(file=StringIO(), width=400)
    print_run(console, run.summary())
    assert sentence in console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert f"{verdict}  nir" in console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above


def test_without_the_report_packages_the_figures_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise MissingDependencyError("report: matplotlib is not installed")

    monkeypatch.setattr(import_module("slamp.summary"), "write_report", missing)
    run = compress(users.factory(), tmp_path / "out", train=None)
    assert not (run.directory / "report.html").exists()
    assert json.loads((run.directory / "report.json").read_text())["verdicts"][0]["verdict"] in EQUIVALENT


REFUSED: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any], type[SlampError], str]] = {
    "silent": (users.silent, {}, SilentNetworkError, "3: never fires"),
    "all-zero layer": (users.zero_layer, {}, ScoreError, "2: all 640 weights are zero"),
    "NaN": (users.not_a_number, {}, CaptureError, r"2: weight\[3, 5\] is nan"),
    "budget": (users.factory, {"budget": slamp.Budget(density=1e-4)}, BudgetError, "density: .*at least one per layer"),
    "SOP budget": (users.factory, {"budget": slamp.Budget(sops=0.5)}, BudgetError, "sops: .*at least one per layer"),
    "method": (users.factory, {"method": "best"}, ScoreError, "'best' is unknown"),
    "readout": (users.factory, {"readout": "median"}, GraphError, "'median'; allowed are mean, sum, last, max"),
    "seed": (users.factory, {"seed": -1}, BudgetError, "seed is -1"),
    "profile": (users.factory, {"profile": "loihi3"}, ProfileError, "'loihi3' is not installed"),
    "labels": (
        users.factory,
        {"held_out": slamp.SpikeRaster(HELD_OUT.data, HELD_OUT.dt, np.arange(HELD_OUT.batch))},
        RasterError,
        "labels run from 0 to 19, the network has 4 outputs; allowed are 0 to 3",
    ),
    "no input": (
        users.factory,
        {"raster": slamp.SpikeRaster(np.zeros_like(RASTER.numpy()), RASTER.dt)},
        RasterError,
        "calibration raster: holds no spike",
    ),
    "memory without a chip": (
        users.factory,
        {"budget": slamp.Budget(memory_bits=1e5)},
        BudgetError,
        "memory_bits: depends on the chip",
    ),
    "memory where zeros save none": (
        users.factory,
        {"budget": slamp.Budget(memory_bits=10), "profile": "speck2f"},
        BudgetError,
        "memory_bits: the budget is 10, .*single zeros save nothing there",
    ),
    "memory nobody knows": (
        users.factory,
        {"budget": slamp.Budget(memory_bits=10), "profile": "akida1000"},
        BudgetError,
        "how akida1000 stores the synapses of a Affine is not known",
    ),
    "target": (users.factory, {"to": ("abacus",)}, ExporterNotFoundError, "'abacus' is not installed"),
    "no target": (users.factory, {"to": ()}, RasterError, "no target"),
    "option": (users.factory, {"options": {"nir": {"speed": 3}}}, RunFileError, "speed"),
    "subtraction": (users.subtracting, {}, UnsupportedNodeError, "resets by subtraction"),
    "metric": (users.factory, {"metric": users.bad_metric}, TrainingError, "metric: returned 'good'"),
    "features": (
        users.factory,
        {"held_out": slamp.SpikeRaster(HELD_OUT.data[:, :, :20], HELD_OUT.dt)},
        RasterError,
        r"features \(20,\)",
    ),
    "dt": (users.factory, {"held_out": slamp.SpikeRaster(HELD_OUT.data, 2e-3)}, RasterError, r"dt 0.002 s"),
    "kind": (users.factory, {"held_out": users.samples(20, analog=True)}, RasterError, "holds analog"),
    "both dt": (
        users.factory,
        {"raster": slamp.SpikeRaster(RASTER.data, 2e-3), "held_out": slamp.SpikeRaster(HELD_OUT.data, 2e-3)},
        RasterError,
        "dt is 0.002 s",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_end_well_is_refused_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory, changes, kind, message = REFUSED[name]
    monkeypatch.setenv(users.MARKER, str(tmp_path / "marker"))
    with pytest.raises(kind, match=message):
        compress(factory(), tmp_path / "deep" / "out", train=users.forbidden_train, **changes)
    assert not (tmp_path / "marker").exists()
    assert_nothing_left(tmp_path / "deep" / "out")


def test_reset_by_subtraction_travels_without_strict(tmp_path: Path) -> None:
    run = compress(users.subtracting(), tmp_path / "out", train=None, options={"nir": {"strict": False}})
    assert run.equivalent
    assert run.artifacts["nir"].graph().hash == run.shipped.hash


def test_a_training_that_diverges_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="left NaN or infinity"):
        compress(users.factory(), tmp_path / "out", train=users.diverging_train)
    assert_nothing_left(tmp_path / "out")


def test_an_error_of_the_user_comes_through_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="own mistake"):
        compress(users.factory(), tmp_path / "out", train=users.failing_train)
    assert_nothing_left(tmp_path / "out")


def test_an_earlier_result_stays_until_a_new_one_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = compress(users.factory(), out, train=None)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(ZeroDivisionError):
        compress(users.factory(), out, train=users.failing_train)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    second = compress(users.factory(), out, train=None, budget=slamp.Budget(density=0.5))
    assert second.shipped.hash != first.shipped.hash
    assert json.loads((out / "run.json").read_text())["graph_hash"] == second.shipped.hash
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_of_somebody_else_is_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputDirectoryError, match=r"thesis\.tex"):
        compress(users.factory(), out, train=users.forbidden_train)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert (out / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_put_beside_an_earlier_result_are_not_deleted_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(users.factory(), out, train=None)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputDirectoryError, match=r"notes\.txt"):
        compress(users.factory(), out, train=None)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputDirectoryError, match="a file is in the way"):
        compress(users.factory(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputDirectoryError, match="cannot be written"):
        compress(users.factory(), tmp_path / "file" / "out", train=users.forbidden_train)


class StoppedError(Exception):
    """Stands for a crash in the middle."""


def interrupted_after(epochs: int, marker: Path) -> slamp.Train:
    """A training function that stops when so many epochs have been finished in all."""

    def train(net: torch.nn.Module, *, checkpoint: slamp.Checkpoint, **others: Any) -> None:
        def save(state: Any) -> None:
            checkpoint.save(state)
            if len(marker.read_text().splitlines()) + 1 >= epochs:
                raise StoppedError

        watched = replace(checkpoint)
        object.__setattr__(watched, "save", save)
        users.train(net, checkpoint=watched, **others)

    return train


def epochs_done(marker: Path) -> list[str]:
    return marker.read_text().splitlines()


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_a_run_goes_on_where_it_was_interrupted(epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a SOP budget there are rounds of 3 and 2 epochs: interrupted in either, after each epoch."""
    dense = slamp.calibrate(slamp.capture(users.factory(), RASTER), RASTER, fold=False).sops
    budget = slamp.Budget(sops=0.3 * dense)
    marker = tmp_path / "marker"
    monkeypatch.setenv(users.MARKER, str(marker))
    marker.touch()
    whole = compress(users.factory(), tmp_path / "whole", budget=budget)
    needed = epochs_done(marker)
    assert len(needed) >= 5
    marker.write_text("")

    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        compress(users.factory(), out, budget=budget, train=interrupted_after(epochs, marker))
    assert not out.exists()
    done = len(epochs_done(marker)) + 1  # the interrupted epoch was saved, but not yet marked
    resumed = compress(users.factory(), out, budget=budget, resume=True)
    assert done == epochs
    assert epochs_done(marker) == needed[: epochs - 1] + needed[epochs:]
    assert resumed.shipped.hash == whole.shipped.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marker", "out", "whole"]


def test_without_resume_an_interrupted_run_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    monkeypatch.setenv(users.MARKER, str(marker))
    with pytest.raises(StoppedError):
        compress(users.factory(), tmp_path / "out", train=interrupted_after(2, marker))
    assert (tmp_path / ".out.resume").is_dir()
    marker.write_text("")
    compress(users.factory(), tmp_path / "out")
    assert epochs_done(marker) == ["1.0 0", "1.0 1", "1.0 2"]
    assert not (tmp_path / ".out.resume").exists()


def test_resume_without_an_interrupted_run_starts(tmp_path: Path) -> None:
    assert compress(users.factory(), tmp_path / "out", resume=True).equivalent


@pytest.mark.parametrize("changes", [{"seed": 1}, {"budget": slamp.Budget(density=0.2)}, {"method": "lamp"}], ids=str)
def test_another_run_is_not_resumed(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    monkeypatch.setenv(users.MARKER, str(marker))
    with pytest.raises(StoppedError):
        compress(users.factory(), tmp_path / "out", train=interrupted_after(1, marker))
    with pytest.raises(ArtifactError, match="had another network, sample, budget, method or seed"):
        compress(users.factory(), tmp_path / "out", resume=True, **changes)
    assert list((tmp_path / ".out.resume").glob("train-0-*.pt")), "the interrupted run can still go on"


def test_a_memory_budget_of_a_chip_holds_in_what_ships(tmp_path: Path) -> None:
    run = compress(
        users.factory(), tmp_path / "out", budget=slamp.Budget(memory_bits=9000), profile="loihi1", train=users.train
    )
    profile = slamp.load_profile("loihi1")
    used = slamp.usage(run.shipped, profile, run.after.activity)["synaptic memory, bits"].used
    assert 0.9 * 9000 <= used <= 9000
    summary = run.summary()
    (row,) = summary["budgets"]
    assert (row["name"], row["used"], row["limit"], row["binds"]) == ("memory_bits", used, 9000, True)
    assert summary["usage"]["profile"] == "loihi1"
    assert run.artifacts["nir"].manifest["profile"] == f"loihi1 {profile.revision}"
    output = StringIO()
    print_run(Console(file=output, width=200), summary)
    assert "usage of loihi1" in output.getvalue()
    assert run.equivalent


def test_a_binding_sparsity_is_said_to_bind(tmp_path: Path) -> None:
    (row,) = compress(users.factory(), tmp_path / "out", budget=slamp.Budget(sparsity=0.7), train=None).summary()[
        "budgets"
    ]
    assert (row["name"], row["binds"]) == ("sparsity", True)
    assert row["multiplier"] > 0


def test_a_training_function_of_another_signature_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    def plain(net: torch.nn.Module) -> None:
        raise AssertionError("must not be called")

    with pytest.raises(TrainingError, match=r"train: plain\(net: .*write it as train\(net, \*, effort"):
        compress(users.factory(), tmp_path / "out", train=plain)
    assert_nothing_left(tmp_path / "out")
