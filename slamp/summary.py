"""From a finished run to its figures (``run.json``) and its page (``report.html``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slamp.atomic import write_atomically
from slamp.carried import next_neuron
from slamp.energy import on_host
from slamp.errors import MissingDependencyError
from slamp.manifest import versions
from slamp.mapping import place
from slamp.measure import Accounts
from slamp.measured import use_of
from slamp.memory import memory_bits
from slamp.overview import overview
from slamp.raster import SpikeRaster
from slamp.report import (
    BudgetRow,
    ChipRow,
    CoreRow,
    CurvePoint,
    LayerRow,
    RasterPicture,
    Report,
    Row,
    VerdictLine,
    raster_picture,
    write_report,
)
from slamp.simulate import simulate
from slamp.usage import usage, usage_from_json

if TYPE_CHECKING:
    from slamp.compress import Run
    from slamp.prune import Pruning

FORMAT = "slamp-run-1"


def run_summary(run: Run, pruning: Pruning) -> dict[str, Any]:
    """Return the figures of a run, ready for JSON."""
    before, after = run.before, run.after
    folding = run.folding
    return {
        "format": FORMAT,
        "method": run.pruned.plan.method,
        "schedule": pruning.schedule,
        "structured": pruning.structured,
        "balance": pruning.balance,
        "seed": pruning.seed,
        "graph_hash": run.shipped.hash,
        "mask_hash": run.pruned.masks.hash,
        "accuracy": {"dense": before.accuracy, "pruned": after.accuracy},
        "table": _table(before, after),
        "layers": _layers(run),
        "budgets": _budgets(run, pruning),
        "usage": None
        if pruning.budget.profile is None
        else usage(run.shipped, pruning.budget.profile, run.after.activity).to_json(),
        "shortfall": run.pruned.shortfall,
        "advice": _advice(pruning),
        "rounds": [vars(entry) for entry in run.pruned.rounds],
        "curve": [list(point) for point in run.curve],
        "folding": folding and {"nodes": list(folding.folded), "cells": folding.cells, "differing": folding.differing},
        "verifications": {
            target: {**verification.to_json(), "sentence": verification.sentence()}
            for target, verification in run.verifications.items()
        },
        "integers": None if run.integers is None else run.integers.to_json(),
        "problems": dict(run.problems),
        "equivalent": run.equivalent,
        "versions": versions(),
    }


def run_report(run: Run, summary: Mapping[str, Any], held_out: SpikeRaster, directory: Path) -> None:
    """Write ``report.json`` and, where matplotlib and jinja2 are installed, ``report.html``."""
    report = Report(
        title="From network to files",
        summary=f"Pruned by {summary['method']}, exported to {', '.join(run.artifacts)}, replayed and compared.",
        verdicts=tuple(
            VerdictLine(f"export to {target}", found["verdict"], found["sentence"])
            for target, found in summary["verifications"].items()
        ),
        totals=tuple(
            Row(row["name"], row["before"], row["after"], "share" if row["percent"] else "count")
            for row in summary["table"]
        ),
        layers=tuple(
            LayerRow(
                row["layer"],
                row["weights"],
                row["kept"],
                row["sops_before"] if row["from_spikes"] else None,
                row["sops_after"] if row["from_spikes"] else None,
                row["rate_before"],
                row["rate_after"],
            )
            for row in summary["layers"]
        ),
        graph=overview(run.shipped),
        budgets=tuple(
            BudgetRow(row["name"], row["limit"], row["used"], row["multiplier"], row["binds"])
            for row in summary["budgets"]
        ),
        **_chip(summary["usage"]),
        curve=_curve(run),
        raster=_picture(run, held_out),
        notes=_notes(run),
        ties=tuple(tie["sentence"] for found in summary["verifications"].values() for tie in found["ties"]),
        provenance={
            "seed": summary["seed"],
            "graph hash": summary["graph_hash"],
            "mask hash": summary["mask_hash"],
            **summary["versions"],
        },
    )
    try:
        write_report(report, directory)
    except MissingDependencyError:  # the page needs the extra "report"; the figures do not
        write_atomically(directory / "report.json", (json.dumps(report.to_json(), indent=2) + "\n").encode())


def _table(before: Accounts, after: Accounts) -> list[dict[str, Any]]:
    def row(name: str, old: float | None, new: float | None, *, percent: bool = False) -> dict[str, Any]:
        return {"name": name, "before": old, "after": new, "percent": percent}

    rows = [
        row("accuracy, held out", before.accuracy, after.accuracy, percent=True),
        row("synapses (weights)", sum(before.synapses.values()), sum(after.synapses.values())),
        row("density", before.density, after.density, percent=True),
        row("unrolled connections", sum(before.connections.values()), sum(after.connections.values())),
        row("SOPs per sample, calibration", before.activity.sops, after.activity.sops),
        row("SOPs per sample, held out", before.held_out.sops, after.held_out.sops),
        row("spikes per sample, held out", before.held_out.spikes, after.held_out.spikes),
    ]
    if before.held_out.macs:
        rows.append(row("MACs per sample, held out", before.held_out.macs, after.held_out.macs))
    return rows


def _layers(run: Run) -> list[dict[str, Any]]:
    rows = []
    for name, node in run.shipped.weighted.items():
        neuron = _driven(run, name)
        old, new = run.before.activity.layers[name], run.after.activity.layers[name]
        whole = run.dense.weighted[name].weight
        rows.append(
            {
                "layer": name,
                "weights": int(whole.size),
                "outputs_before": len(whole),
                "outputs_after": len(node.weight),
                "kept": run.after.synapses[name],
                "connections": run.after.connections[name],
                "from_spikes": new.from_spikes,
                "sops_before": float(old.operations.sum()),
                "sops_after": float(new.operations.sum()),
                "rate_before": neuron and float(run.before.activity.neurons[neuron].rate.mean()),
                "rate_after": neuron and float(run.after.activity.neurons[neuron].rate.mean()),
            }
        )
    return rows


def _driven(run: Run, name: str) -> str | None:
    """Return the spiking layer a weighted node drives, or None."""
    neuron = next_neuron(run.shipped, name)
    return neuron if neuron in run.shipped.spiking else None


def _budgets(run: Run, pruning: Pruning) -> list[dict[str, Any]]:
    plan = run.pruned.plan
    used = {
        "density": run.after.density,
        "sparsity": 1 - run.after.density,
        "synapses": float(sum(run.after.connections.values())),
        **use_of(run.shipped, run.after.activity, pruning.budget),
    }
    profile = pruning.budget.profile
    if pruning.budget.memory_bits is not None and profile is not None:
        host = on_host(run.shipped, profile, run.after.activity)
        used["memory_bits"] = memory_bits(run.shipped, run.pruned.masks.arrays, profile, host)
    if pruning.budget.cores is not None and profile is not None:
        host = on_host(run.shipped, profile, run.after.activity)
        used["cores"] = float(place(run.shipped, profile, host=host).cores)
    return [
        {
            "name": name,
            "used": used[name],
            "limit": float(limit),
            "multiplier": plan.multipliers.get("density" if name == "sparsity" else name),
            "binds": ("density" if name == "sparsity" else name) in plan.binding,
        }
        for name, limit in pruning.budget.given.items()
    ]


def _advice(pruning: Pruning) -> str:
    """What the chip says about single zeros, where it was not asked for."""
    profile = pruning.budget.profile
    if profile is None or profile.sparsity.unstructured or pruning.structured:
        return ""
    return (
        f"single zeros save nothing on {profile.name}: {profile.sparsity.reason.rstrip('.')}; "
        "--structured (structured=True) removes whole channels"
    )


def _chip(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parts of a report that speak of the chip."""
    if found is None:
        return {}
    chip = usage_from_json(found)
    rows = tuple(ChipRow(row.resource, row.used, row.limit, row.status, row.note, row.fits) for row in chip.rows)
    cores: tuple[CoreRow, ...] = ()
    if chip.mapping is not None:
        layers = {
            core: ", ".join(dict.fromkeys(part.layer for part in chip.mapping.parts if part.core == core))
            for core in chip.mapping.used
        }
        cores = tuple(CoreRow(core, names, chip.mapping.fullness(core)) for core, names in layers.items())
    return {"chip": chip.profile, "resources": rows, "cores": cores}


def _curve(run: Run) -> tuple[CurvePoint, ...]:
    points = [CurvePoint(density, found, "rates restored, not retrained") for density, found in run.curve]
    if run.after.accuracy is not None and run.before.accuracy is not None:
        points.append(CurvePoint(run.after.density, run.after.accuracy, "as shipped"))
    return tuple(points)


def _picture(run: Run, held_out: SpikeRaster) -> RasterPicture | None:
    differences = [found.first_difference for found in run.verifications.values() if found.first_difference]
    layers = list(run.shipped.spiking)
    if not layers:
        return None
    # Without a difference the last hidden layer says more than the few cells of an output.
    layer = differences[0].layer if differences and differences[0].layer in layers else layers[-2:][0]
    sample = differences[0].sample if differences else 0
    spikes = simulate(run.shipped, held_out.samples(sample, sample + 1), record="spikes")[layer].spikes
    if spikes is None:
        return None
    marked = differences[0] if differences and differences[0].layer == layer else None
    title = f"layer {layer}, held-out sample {sample}"
    return raster_picture(spikes[:, 0].to(torch.bool), title, marked)


def _integers(run: Run) -> str:
    """What quantization cost, in a sentence."""
    assert run.integers is not None
    found, whole = run.integers.against_pruned, run.integers.against_dense
    text = "Fine-tuned in integers. " if run.integers.fine_tuned else f"Not fine-tuned: {run.integers.note}. "
    if found.accuracy is not None and found.reference_accuracy is not None and whole.reference_accuracy is not None:
        text += (
            f"Accuracy on held-out samples: dense {whole.reference_accuracy:.1%}, pruned "
            f"{found.reference_accuracy:.1%}, pruned in integers {found.accuracy:.1%}. "
        )
    vanished = sum(found.vanished.values())
    return f"{text}{vanished:,} weights rounded to zero. A measured loss, no part of the equivalence."


def _notes(run: Run) -> tuple[tuple[str, str], ...]:
    notes = [
        (
            "Capture",
            "The Norse network and its graph were run side by side, before and after pruning; every cell of every "
            "neuron layer agreed.",
        )
    ]
    if run.folding is not None:
        notes.append(
            (
                "Batch normalization",
                f"Folded into the weights ({', '.join(run.folding.folded)}): {run.folding.differing:,} of "
                f"{run.folding.cells:,} spike cells of the calibration sample differ from before.",
            )
        )
    if run.integers is not None:
        notes.append(("Integers", _integers(run)))
    if run.pruned.shortfall:
        notes.append(("SOP budget", run.pruned.shortfall))
    if run.pruned.channels is not None and not run.pruned.channels.whole:
        kept = {name: f"{left} of {run.pruned.channels[name].size}" for name, left in run.pruned.channels.kept.items()}
        notes.append(("Channels", "Outputs that stay: " + ", ".join(f"{name}: {text}" for name, text in kept.items())))
    return tuple(notes)
