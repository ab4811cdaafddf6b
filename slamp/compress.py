"""`compress`: the whole path, from a trained network to verified files, in one call."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from slamp.atomic import check_replaceable, new_directory, write_atomically
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture
from slamp.errors import ArtifactError, BudgetError, OutputDirectoryError, RasterError, TrainingError
from slamp.exporting import export, find_exporter, takes_fixed_point
from slamp.fold import Folding, fold_batchnorm
from slamp.graph import SpikingGraph
from slamp.integers import Integers, Sources, into_integers, needed_profile, verify_integers
from slamp.manifest import MANIFEST, Artifact, open_artifact, refuse_strangers
from slamp.masks import save_pruned
from slamp.measure import Accounts, account, densities_curve
from slamp.profile import Profile, load_profile
from slamp.prune import Pruned, Pruning, Schedule, prune
from slamp.quantize import quantize
from slamp.raster import SpikeRaster
from slamp.report import HTML_NAME, JSON_NAME
from slamp.retrain import Train
from slamp.simulate import readout_of
from slamp.summary import run_report, run_summary
from slamp.verification import Verification
from slamp.verify import verify

RUN = "run.json"
PRUNED = "pruned.safetensors"
QUANTIZED = "quantized.safetensors"
CAPTURED_SAMPLES = 64
GOLDEN_SAMPLES = 16


@dataclass(frozen=True, eq=False)
class Run:
    """Everything `compress` made.

    Attributes:
        directory: Holds ``run.json``, ``pruned.safetensors``, the report, and one directory per target.
        dense: Graph of the network as it was.
        shipped: Graph that was exported.
        pruned: The pruned network, its masks and plan.
        before: Cost and accuracy of the dense network.
        after: Cost and accuracy of the shipped one.
        folding: What folding batch normalization changed; None if there was none.
        curve: (density, accuracy) without retraining, rates restored; empty without labels.
        artifacts: By target.
        verifications: By target.
        integers: What targets in fixed point get; None if there is no such target.
        problems: By target, why its own runtime gave no verdict; the verification is then that of the file read back.
    """

    directory: Path
    dense: SpikingGraph
    shipped: SpikingGraph
    pruned: Pruned
    before: Accounts
    after: Accounts
    folding: Folding | None
    curve: Sequence[tuple[float, float]]
    artifacts: Mapping[str, Artifact]
    verifications: Mapping[str, Verification]
    integers: Integers | None = None
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def equivalent(self) -> bool:
        """True if every target's own runtime found it identical or a tie."""
        return not self.problems and all(verification.equivalent for verification in self.verifications.values())

    def summary(self) -> dict[str, Any]:
        """Return the figures of the run, ready for JSON (the content of ``run.json``)."""
        summary: dict[str, Any] = json.loads((self.directory / RUN).read_text())
        return summary


def compress(
    net: torch.nn.Module,
    raster: SpikeRaster,
    *,
    held_out: SpikeRaster,
    budget: Budget,
    directory: str | Path,
    method: str = "auto",
    to: Sequence[str] = ("nir",),
    train: Train | None = None,
    metric: Callable[[torch.nn.Module], float] | None = None,
    profile: str | Path | None = None,
    seed: int = 0,
    schedule: Schedule = "one-shot",
    readout: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    structured: bool = False,
    balance: str = "",
    resume: bool = False,
    progress: bool = False,
) -> Run:
    """Prune, recover, retrain, export and verify a Norse network.

    The result appears in ``directory`` only when everything is done; an earlier result there stays until then. While
    the run goes on, its state lies beside it in ``.NAME.resume``.

    Args:
        net: The trained network; it is not changed.
        raster: Calibration sample; a SOP budget is a mean over it.
        held_out: Samples not used before; every spike of the export is compared on them, accuracy is measured on them.
        budget: Limits that hold in the end.
        directory: Where the result goes: new, empty, or an earlier result of `compress`.
        method: Scoring method, or "auto".
        to: Targets. Those in fixed point ("lava") need a chip (``profile``) and get the network quantized, fine-tuned
            in integers at half effort where ``train`` is given.
        train: Training function, see `slamp.retrain.Train`; None prunes without retraining.
        metric: Accuracy of a network, in [0, 1], asked about copies; by default the share of held-out labels met.
        profile: Chip, by name or TOML file: what budgets of memory, cores and energy mean, whose limits of fan-in and
            fan-out hold, and whose usage the result reports.
        seed: Decides all randomness.
        schedule: "one-shot" or "iterative".
        readout: How the output is read over time: "mean", "sum", "last" or "max"; by default as the module reads it,
            and "mean" where it returns every step.
        options: Exporter options by target.
        structured: Remove whole channels and neurons, so that shapes shrink; see `slamp.prune`.
        balance: "fan_out" to keep as many weights for every source, see `slamp.make_masks`.
        resume: Go on where an interrupted run with the same inputs stopped.
        progress: Show progress bars.

    Raises:
        SlampError: Any of its kinds; nothing half written is left in ``directory``.
    """
    if profile is not None:
        budget = replace(budget, profile=load_profile(profile))
    if held_out.features != raster.features or held_out.dt != raster.dt:
        raise RasterError(
            f"held-out raster: features {held_out.features}, dt {held_out.dt:g} s; "
            f"the calibration raster has {raster.features}, {raster.dt:g} s"
        )
    if held_out.is_spikes != raster.is_spikes:
        raise RasterError(
            f"held-out raster: holds {held_out.kind}, the calibration raster {raster.kind}; give two of one kind"
        )
    if seed < 0:
        raise BudgetError(f"compress: seed is {seed}; allowed is 0 or a positive integer")
    if raster.is_spikes and not bool(raster.data.any()):
        raise RasterError("calibration raster: holds no spike, so nothing can be measured on it; give other samples")
    directory = Path(directory)
    directory = directory if directory.name not in ("", "..") else directory.resolve()
    _check_output(directory)
    dense = capture(net, raster.samples(0, CAPTURED_SAMPLES))
    readout = readout_of(dense, readout)
    options = dict(options or {})
    if metric is None:
        _check_classes(dense, held_out)
    _try_export(dense, raster, to, options, budget.profile)
    pruning = Pruning(budget, method, readout, schedule, train, seed, None, progress, balance, structured)
    before = account(dense, raster, held_out, _measured(metric, net), readout=readout)
    with _resumable(directory, dense, raster, pruning, resume=resume) as state:
        pruned = prune(net, raster, replace(pruning, directory=state))
        shipped = capture(pruned.net, raster.samples(0, CAPTURED_SAMPLES))
        folding = fold_batchnorm(shipped, raster.samples(0, CAPTURED_SAMPLES))
        shipped = folding.graph
        after = account(
            shipped, raster, held_out, _measured(metric, pruned.net), readout=readout, weights=before.weights
        )
        integers = None
        if whole := [target for target in to if takes_fixed_point(find_exporter(target))]:
            integers = into_integers(
                Sources(pruned, shipped, dense, raster, held_out),
                needed_profile(budget.profile, whole[0]),
                train=train,
                seed=seed,
                readout=readout,
                progress=progress,
            )
        curve: Sequence[tuple[float, float]] = ()
        if held_out.labels is not None:
            curve = densities_curve(net, raster, held_out, method=method, readout=readout, seed=seed)
        with new_directory(directory, marker=RUN) as temporary:
            verifications: dict[str, Verification] = {}
            problems: dict[str, str] = {}
            for target in to:
                golden = held_out.samples(0, GOLDEN_SAMPLES)
                chosen = {"golden": golden, **options.get(target, {})}
                chip = None if budget.profile is None else f"{budget.profile.name} {budget.profile.revision}"
                provenance: dict[str, Any] = {"seeds": {"compress": seed}, "profile": chip}
                graph = shipped
                if integers is not None and target in whole:
                    graph = integers.graph
                    provenance = {**provenance, "certificate": integers.certificate(raster)}
                artifact = export(graph, to=target, directory=temporary / target, provenance=provenance, **chosen)
                if graph is shipped:
                    verifications[target] = verify(artifact, graph, held_out, progress=progress)
                    continue
                exporter = find_exporter(target)()
                verifications[target], problem = verify_integers(artifact, graph, held_out, exporter, progress=progress)
                if problem:
                    problems[target] = problem
            if integers is not None and integers.fine_tuned:
                save_pruned(integers.net, pruned.masks, temporary / QUANTIZED, pruned.channels)
            save_pruned(pruned.net, pruned.masks, temporary / PRUNED, pruned.channels)
            run = Run(
                directory=temporary,
                dense=dense,
                shipped=shipped,
                pruned=pruned,
                before=before,
                after=after,
                folding=folding if folding.folded else None,
                curve=curve,
                artifacts={target: open_artifact(temporary / target) for target in to},
                verifications=verifications,
                integers=integers,
                problems=problems,
            )
            summary = run_summary(run, pruning)
            run_report(run, summary, held_out, temporary)
            write_atomically(temporary / RUN, (json.dumps(summary, indent=2) + "\n").encode())
    return replace(run, directory=directory, artifacts={target: open_artifact(directory / target) for target in to})


def _measured(metric: Callable[[torch.nn.Module], float] | None, net: torch.nn.Module) -> float | None:
    """Ask the user's metric about a copy, because it may change the mode or the state of a network."""
    if metric is None:
        return None
    found: Any = metric(copy.deepcopy(net))
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, (int, float, np.number)) or not math.isfinite(found):
        raise TrainingError(f"metric: returned {found!r:.60}; allowed is one finite number, such as 0.93")
    return float(found)


def _check_classes(graph: SpikingGraph, held_out: SpikeRaster) -> None:
    """Refuse labels for which the network has no output."""
    classes = math.prod(graph.shapes[graph.output])
    if held_out.labels is None or not len(held_out.labels):
        return
    least, most = int(held_out.labels.min()), int(held_out.labels.max())
    if least < 0 or most >= classes:
        raise RasterError(
            f"held-out raster: labels run from {least} to {most}, the network has {classes} outputs; allowed are 0 to "
            f"{classes - 1}; renumber them, or give a metric of your own"
        )


def _check_output(directory: Path) -> None:
    """Refuse an output directory that holds anything but an earlier result: replacing it would delete the rest."""
    check_replaceable(directory, marker=RUN)
    if not directory.exists():
        return
    ours = {RUN, PRUNED, QUANTIZED, JSON_NAME, HTML_NAME}
    strangers = sorted(
        path.name for path in directory.iterdir() if path.name not in ours and not (path / MANIFEST).is_file()
    )
    if strangers:
        raise OutputDirectoryError(
            f"{directory}: holds files that are not ours ({', '.join(strangers[:3])}) beside an earlier result; "
            "move them, or choose another directory"
        )
    for path in directory.iterdir():
        refuse_strangers(path)


def _try_export(
    graph: SpikingGraph,
    raster: SpikeRaster,
    to: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    profile: Profile | None,
) -> None:
    """Export the dense network to nowhere, so that what a target cannot say is refused before any training."""
    if not to:
        raise RasterError("compress: no target; name at least one, such as to=('nir',)")
    folded = fold_batchnorm(graph, raster.samples(0, 1)).graph
    with TemporaryDirectory() as temporary:
        for target in to:
            tried = folded
            if takes_fixed_point(find_exporter(target)):
                chip = needed_profile(profile, target)
                tried = quantize(folded, chip, calibrate(folded, raster.samples(0, GOLDEN_SAMPLES)))
            export(tried, to=target, directory=Path(temporary) / target, **options.get(target, {}))


def state_directory(directory: Path) -> Path:
    """Where a run that is to appear in ``directory`` keeps its state until then."""
    return directory.parent / f".{directory.name}.resume"


@contextmanager
def _resumable(
    directory: Path, dense: SpikingGraph, raster: SpikeRaster, pruning: Pruning, *, resume: bool
) -> Iterator[Path]:
    """Yield the directory that keeps the run's state.

    It goes when the run is done, or has kept nothing yet, and stays when there is something to go on from.
    """
    state = state_directory(directory)
    identity = {
        "graph": dense.hash,
        "calibration": sha256(raster.numpy().tobytes()).hexdigest(),
        "budget": pruning.budget.given,
        "profile": None if pruning.budget.profile is None else pruning.budget.profile.name,
        "method": pruning.method,
        "readout": pruning.readout,
        "schedule": pruning.schedule,
        "balance": pruning.balance,
        "structured": pruning.structured,
        "seed": pruning.seed,
    }
    stamp = state / "identity.json"
    if resume and stamp.exists():
        if json.loads(stamp.read_text()) != identity:
            raise ArtifactError(
                f"{state}: the interrupted run had another network, sample, budget, method or seed; "
                "run it again as it was, or without --resume to start anew"
            )
    else:
        shutil.rmtree(state, ignore_errors=True)
        try:
            write_atomically(stamp, json.dumps(identity).encode())
        except OSError as error:
            raise OutputDirectoryError(
                f"{directory}: cannot be written beside ({error}); choose a directory you may write to"
            ) from error
    finished = False
    try:
        yield state
        finished = True
    finally:
        if finished or [path.name for path in state.iterdir()] == [stamp.name]:
            shutil.rmtree(state, ignore_errors=True)
