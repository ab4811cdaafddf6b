"""Tables a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slamp.cli.usage import cores_table, usage_lines, usage_table
from slamp.integers import fidelity_rows
from slamp.manifest import open_artifact
from slamp.usage import usage_from_json

VERDICT_STYLE = {"identical": "bold green", "tie": "bold yellow", "different": "bold red", "silent": "bold red"}


def print_run(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the summary of a `slamp.compress` run: before and after, layers, budgets, verdicts."""
    console.print(before_after(summary))
    console.print(layer_table(summary))
    fewer = [row for row in summary["layers"] if row["outputs_after"] < row["outputs_before"]]
    if fewer:
        kept = ", ".join(f"{row['layer']}: {row['outputs_after']} of {row['outputs_before']}" for row in fewer)
        console.print(f"outputs that stay: {kept}", soft_wrap=True, markup=False, highlight=False)
    console.print(budget_table(summary))
    if summary["shortfall"]:
        console.print(summary["shortfall"], style="yellow", soft_wrap=True, markup=False, highlight=False)
    if summary["advice"]:
        console.print(summary["advice"], style="yellow", soft_wrap=True, markup=False, highlight=False)
    if summary["usage"]:
        found = usage_from_json(summary["usage"])
        console.print(usage_table(found, width=console.width))
        if found.mapping is not None:
            console.print(cores_table(found.mapping, width=console.width))
        for text in usage_lines(found):
            console.print(text, soft_wrap=True, markup=False, highlight=False)
    if summary["folding"]:
        folding = summary["folding"]
        console.print(
            f"batch normalization folded into the weights: {folding['differing']:,} of {folding['cells']:,} "
            "spike cells of the calibration sample differ",
            soft_wrap=True,
        )
    if summary["integers"]:
        console.print(integers_table(summary["integers"]))
        for text in integers_lines(summary["integers"]):
            console.print(text, soft_wrap=True, markup=False, highlight=False)
    print_verdicts(console, summary["verifications"])
    for target, problem in summary["problems"].items():
        console.print(f"[bold red]not proven[/]  {escape(target)}: {escape(problem)}", soft_wrap=True)


def integers_table(found: Mapping[str, Any]) -> Table:
    """What quantization cost, layer by layer, against the pruned float network."""
    tau = found["against_pruned"]["tau_steps"]
    table = Table(title="integers against the pruned float network, held out", title_justify="left")
    for column in ("layer", "spikes", "differing cells", "spike count error", f"van Rossum (tau {tau:g} steps)"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in fidelity_rows(found["against_pruned"]):
        table.add_row(*row)
    return table


def integers_lines(found: Mapping[str, Any]) -> list[str]:
    """Accuracy and what rounded away, in words."""
    pruned, dense = found["against_pruned"], found["against_dense"]
    lines = []
    if pruned["accuracy"] is not None:
        lines.append(
            f"accuracy, held out: dense {dense['reference_accuracy']:.1%}, pruned {pruned['reference_accuracy']:.1%}, "
            f"pruned in integers {pruned['accuracy']:.1%}"
        )
    how = "fine-tuned in integers" if found["fine_tuned"] else f"not fine-tuned: {found['note']}"
    lines.append(f"{how}; {sum(pruned['vanished'].values()):,} weights rounded to zero")
    return lines


def before_after(summary: Mapping[str, Any]) -> Table:
    """Cost and accuracy, dense and pruned."""
    table = Table(title="before and after", title_justify="left")
    for column in ("", "dense", "pruned", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for row in summary["table"]:
        before, after = row["before"], row["after"]
        ratio = f"{after / before:.3f}" if before and after is not None and not row["percent"] else ""
        table.add_row(row["name"], _number(before, row["percent"]), _number(after, row["percent"]), ratio)
    return table


def layer_table(summary: Mapping[str, Any]) -> Table:
    """What became of each layer."""
    table = Table(title="layers", title_justify="left")
    for column in ("layer", "weights", "kept", "density", "SOPs dense", "SOPs pruned", "rate dense", "rate pruned"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in summary["layers"]:
        table.add_row(
            row["layer"],
            f"{row['weights']:,}",
            f"{row['kept']:,}",
            f"{row['kept'] / row['weights']:.3f}",
            f"{row['sops_before']:,.0f}" if row["from_spikes"] else f"{row['sops_before']:,.0f} MACs",
            f"{row['sops_after']:,.0f}" if row["from_spikes"] else f"{row['sops_after']:,.0f} MACs",
            _number(row["rate_before"], percent=True),
            _number(row["rate_after"], percent=True),
        )
    return table


def budget_table(summary: Mapping[str, Any]) -> Table:
    """Budgets, measured use, what one more unit would gain (of the sum of log scores), and which of them bind."""
    table = Table(title=f"budgets (method {summary['method']})", title_justify="left")
    for column in ("budget", "used", "limit", "used / limit", "one more gains", "binds"):
        table.add_column(column, justify="left" if column in ("budget", "binds") else "right")
    for row in summary["budgets"]:
        share = f"{row['used'] / row['limit']:.4f}" if row["limit"] else ""
        gain = f"{row['multiplier']:.3g}" if row["binds"] and row["multiplier"] else ""
        binds = "yes" if row["binds"] else "no"
        table.add_row(row["name"], f"{row['used']:,.6g}", f"{row['limit']:,.6g}", share, gain, binds)
    return table


def print_verdicts(
    console: Console, verifications: Mapping[str, Mapping[str, Any]], *, samples: str = "held-out"
) -> None:
    """Print one line per target; ``samples`` says which samples were compared."""
    for target, found in verifications.items():
        verdict = found["verdict"]
        console.print(
            f"[{VERDICT_STYLE[verdict]}]{verdict}[/]  {escape(target)}: {found['samples']:,} "
            f"{f'{samples} samples'.strip()}, {found['cells']:,} cells, {found['spikes']:,} spikes, "
            f"replayed by {found['runner']}",
            soft_wrap=True,
        )
        for tie in found["ties"][:3]:
            console.print(f"  tie: {tie['sentence']}", soft_wrap=True, markup=False)
        if found["first_difference"]:
            console.print(f"  first difference: {found['first_difference']['sentence']}", soft_wrap=True, markup=False)
        for key, text in (
            ("silent_layers", "never fires, so nothing is proven"),
            ("altered_files", "altered since the export"),
            ("unobserved_layers", "not shown by the replay, so only the output was compared there"),
        ):
            if found[key]:
                console.print(f"  {', '.join(found[key])}: {text}", soft_wrap=True, markup=False)


def print_forms(console: Console, artifacts: Sequence[Path]) -> None:
    """Say of artifacts in another form than their target's usual one which form it is, and why."""
    for path in artifacts:
        options = open_artifact(path).manifest["options"]
        if options.get("why"):
            console.print(
                f"  {path}: in the form {options.get('form')}, because {options['why']}", soft_wrap=True, markup=False
            )


def module_table(reports: Sequence[Any]) -> Table:
    """What becomes of every module."""
    table = Table()
    for column in ("module", "type", "becomes", "output shape"):
        table.add_column(column, overflow="fold")
    for report in reports:
        shape = "" if report.shape is None else str(report.shape)
        becomes = {"": "not captured", "?": "depends on the ones before"}.get(report.node, report.node)
        table.add_row(report.path, report.module, becomes, shape, style="red" if report.problem else "")
    return table


def _number(value: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    if percent:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"
