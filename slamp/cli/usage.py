"""`slamp usage`: what an exported network takes of a chip."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from slamp.mapping import CoreMap, Part
from slamp.profile import STARRED
from slamp.usage import Usage, UsageRow

CORES_SHOWN = 40
# What a brief table shows although chips have no limit of it.
BRIEF = ("weights kept", "synaptic memory", "SOPs", "energy")


def usage_table(found: Usage, *, brief: bool = False) -> Table:
    """One row per resource; vendor and assumed numbers carry a star. In brief without notes, and what has no limit."""
    table = Table(title=f"usage of {found.profile} ({found.route})", title_justify="left")
    columns = ("resource", "used", "limit", "used / limit", "status", "source, note")
    for column in columns[:-1] if brief else columns:
        right = column in ("used", "limit", "used / limit")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in found.rows:
        shown = row.limit is not None or row.infeasible
        if brief and not shown and (row.used is None or not row.resource.startswith(BRIEF)):
            continue
        said = "; ".join(text for text in (row.source, row.note) if text)
        style = "" if row.fits else "red"
        cells = (row.resource, _number(row.used), _limit(row), _share(row), row.status, said)
        table.add_row(*(cells[:-1] if brief else cells), style=style)
    return table


def usage_lines(found: Usage, *, cite: bool = True) -> list[str]:
    """Say what cannot run, and cite the sources a usage table names."""
    cannot = [f"on the host: {', '.join(found.host)} (analog input)"] if found.host else []
    cannot += [f"cannot run: {text}" for text in found.unsupported]
    return cannot + [f"{name}: {text}" for name, text in found.sources.items() if cite]


def encodings_table(found: Usage) -> Table:
    """One row per layer: bits in every encoding, the cheapest named."""
    names = list(dict.fromkeys(name for layer in found.layers.values() for name in layer.bits))
    table = Table(title="synaptic memory, bits", title_justify="left")
    table.add_column("layer")
    for column in ("weights", "kept", *names):
        table.add_column(column, justify="right")
    table.add_column("cheapest")
    table.add_column("zeros pay below", justify="right")
    for name, layer in found.layers.items():
        below = "never" if layer.pays_below is None else f"{layer.pays_below:.2f}"
        bits = [f"{layer.bits[encoding]:,.0f}" if encoding in layer.bits else "-" for encoding in names]
        table.add_row(name, f"{layer.weights:,}", f"{layer.synapses:,}", *bits, layer.encoding or "unknown", below)
    return table


def cores_table(found: CoreMap) -> Table:
    """One row per core: what sits there, and how full each of its resources is."""
    table = Table(title=f"cores of {found.profile}", title_justify="left")
    table.add_column("core", justify="right")
    table.add_column("layer [channels; positions]", overflow="fold", min_width=27)
    for name in found.resources:
        table.add_column(name.partition(",")[0], justify="right")
    if found.splits:
        table.add_column("split for", overflow="fold")
    shown = min(found.cores, CORES_SHOWN)
    for core in found.used[:shown]:
        parts = [part for part in found.parts if part.core == core]
        full = found.fullness(core)
        reasons = {found.splits[part.layer] for part in parts if part.layer in found.splits}
        shares = [f"{100 * full[name]:.0f} %" for name in found.resources]
        why = [", ".join(sorted(reasons))] if found.splits else []
        table.add_row(str(core), ", ".join(_part(part) for part in parts), *shares, *why)
    if found.cores > shown:
        table.add_row("...", f"and {found.cores - shown} more; --json lists all")
    return table


def _part(part: Part) -> str:
    channels, positions = (f"{start}-{stop - 1}" for start, stop in (part.channels, part.positions))
    return f"{part.layer} [{channels}]" if part.positions == (0, 1) else f"{part.layer} [{channels}; {positions}]"


def comparison_table(found: Sequence[Usage]) -> Table:
    """One row per chip: whether the network fits, what is tightest, and what cannot run."""
    table = Table(title="how the network fits", title_justify="left")
    for column in ("profile", "route", "fits", "tightest resource", "used / limit", "cannot run"):
        table.add_column(column, justify="right" if column == "used / limit" else "left", overflow="fold")
    for entry in found:
        tightest = entry.tightest
        style = "" if entry.fits else "red"
        kinds = sorted({text.partition(": ")[2].partition(" does not run")[0] for text in entry.unsupported})
        table.add_row(
            entry.profile,
            entry.route,
            _fits(entry),
            "" if tightest is None else tightest.resource,
            "" if tightest is None else _share(tightest),
            ", ".join(kinds),
            style=style,
        )
    return table


def _fits(entry: Usage) -> str:
    if not entry.fits:
        return "no"
    if entry.tightest is None:
        return "no limit known"
    return "in size only" if entry.unsupported else "yes"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def _limit(row: UsageRow) -> str:
    if row.limit is None:
        return "unknown" if row.status == "unknown" and row.used is not None else ""
    return f"{_number(row.limit)} *" if row.status in STARRED else _number(row.limit)


def _share(row: UsageRow) -> str:
    share = row.share
    if share is None:
        return ""
    return f"{100 * share:,.0f} %" if share >= 1 else f"{100 * share:.3g} %"
