"""`slamp profiles`: what chips are known, and where every number comes from."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from slamp.exporting import installed_exporters
from slamp.profile import Figure, Profile

SAID = {True: "saves", False: "saves nothing"}


def profiles_table(profiles: Sequence[Profile]) -> Table:
    """One row per chip."""
    table = Table(
        title="hardware profiles", title_justify="left", caption="* vendor or assumed", caption_justify="left"
    )
    for column in (
        "profile",
        "chip",
        "how to get there",
        "weight bits",
        "cores",
        "neurons/core",
        "a zero",
        "energy sets",
    ):
        table.add_column(column, overflow="fold")
    for profile in profiles:
        table.add_row(
            profile.name,
            profile.title,
            said_route(profile),
            said_value(profile.formats.weight_bits),
            said_value(profile.limits.cores_per_chip),
            said_value(profile.limits.neurons_per_core),
            SAID[profile.sparsity.unstructured],
            ", ".join(f"{name} ({energy.scope})" for name, energy in profile.energy.items()) or "none",
        )
    return table


def profile_table(profile: Profile, *, sources: bool) -> Table:
    """Every number of one chip; with ``sources`` also where it comes from."""
    table = Table(title=f"{profile.title}, {profile.revision}", title_justify="left")
    columns = ["key", "value", "unit", "status", *(["source", "note"] if sources else [])]
    for column in columns:
        table.add_column(column, overflow="fold")
    for key, figure in profile.figures():
        row = [key, said_value(figure), figure.unit, figure.status]
        if sources:
            row += ["; ".join(said_source(profile, name) for name in figure.source), figure.note]
        table.add_row(*row)
    return table


def profile_lines(profile: Profile) -> list[str]:
    """What a profile says in words."""
    lines = [
        f"route: {said_route(profile)}",
        f"runs: {', '.join(profile.support.nodes)}; reset {' or '.join(profile.support.resets) or 'none'}",
        *(f"needs: {text}" for text in profile.support.requires),
        f"mapping: {profile.mapping.rule}{f' ({profile.mapping.note})' if profile.mapping.note else ''}",
        f"a single zero {SAID[profile.sparsity.unstructured]}: {profile.sparsity.reason}",
    ]
    for name, energy in profile.energy.items():
        lines.append(f"energy {name}: {energy.scope}{f'; {energy.note}' if energy.note else ''}")
    return lines + [f"note: {text}" for text in profile.notes]


def said_route(profile: Profile) -> str:
    """Say how a network gets to the chip, and if this installation cannot take it there."""
    if profile.route == "budget only":
        return profile.route
    route = f"{profile.route}, {profile.dialect} dialect" if profile.dialect else profile.route
    return route if profile.route in installed_exporters() else f"{route} (no exporter here)"


def said_source(profile: Profile, name: str) -> str:
    """Cite a source, and say if only a text that quotes it was read."""
    source = profile.sources[name]
    return source.cite if source.access == "primary" else f"{source.cite} (as quoted elsewhere)"


def said_value(figure: Figure | None) -> str:
    """Say a number with its star, "unknown", or a dash where a chip has no such thing."""
    if figure is None:
        return "-"
    if figure.value is None:
        return "unknown"
    values = figure.value if isinstance(figure.value, tuple) else (figure.value,)
    text = ", ".join(f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" for value in values)
    return f"{text} *" if figure.starred else text
