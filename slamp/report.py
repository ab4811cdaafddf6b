"""A report: what pruning cost, what the artifact is, and the verdict; as JSON and as one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from slamp.atomic import write_atomically
from slamp.compare import Difference
from slamp.errors import MissingDependencyError, RasterError
from slamp.overview import Overview
from slamp.verification import Verification

JSON_NAME = "report.json"
HTML_NAME = "report.html"
DASH = "\N{EM DASH}"

Number = int | float | None


@dataclass(frozen=True)
class VerdictLine:
    """One verdict: what was checked ("export to nir"), the word ("identical", ...), one sentence of evidence."""

    check: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Row:
    """One line of the before/after table.

    Attributes:
        name: What is counted.
        before: In the dense network; None if unknown.
        after: In the shipped network; None if unknown.
        kind: "count" (thousands separators) or "share" (shown in percent).
        note: Shown small beside the name, such as "mean per sample".
    """

    name: str
    before: Number
    after: Number
    kind: str = "count"
    note: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One layer, dense and pruned: weights kept, SOPs per sample, firing rate; None where there is none."""

    name: str
    weights_before: int
    weights_after: int
    sops_before: Number = None
    sops_after: Number = None
    rate_before: Number = None
    rate_after: Number = None

    @property
    def density(self) -> float:
        """Share of the layer's weights that is kept."""
        return self.weights_after / self.weights_before if self.weights_before else 0.0


@dataclass(frozen=True)
class BudgetRow:
    """One budget: limit, what is used, its multiplier, and whether it is the one that binds."""

    name: str
    limit: float
    used: float
    multiplier: Number = None
    binding: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """One network on the accuracy-against-density curve; points of one ``series`` are joined."""

    density: float
    accuracy: float
    series: str = "pruned"


@dataclass(frozen=True)
class RasterPicture:
    """Spikes of one layer in one sample.

    Attributes:
        title: Caption.
        steps: Number of time steps.
        neurons: Number of neurons.
        spikes: (step, flat neuron index) of every spike of the graph.
        mark: (step, flat neuron index) of the first difference, or None.
        mark_text: Sentence about it.
    """

    title: str
    steps: int
    neurons: int
    spikes: tuple[tuple[int, int], ...]
    mark: tuple[int, int] | None = None
    mark_text: str = ""


@dataclass(frozen=True)
class ChipRow:
    """One resource of a chip; ``used`` and ``limit`` are None where they are not known."""

    resource: str
    used: float | None
    limit: float | None
    status: str
    note: str
    fits: bool


@dataclass(frozen=True)
class CoreRow:
    """One core: what sits on it, and the share of each of its limits that is used, by resource."""

    core: int
    layers: str
    fullness: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """Everything a report shows; plain values only. Empty parts are left out of the page.

    Attributes:
        title: Heading.
        summary: One sentence under it.
        verdicts: Lines at the top; the first is the verdict of the report.
        totals: Before/after table.
        layers: Per-layer table and bars.
        graph: The shipped network, drawn.
        budgets: Budget table.
        chip: Name of the chip, if there is one.
        resources: Its resources, used and there.
        cores: Its cores, where the network was placed on them.
        curve: Accuracy against density.
        raster: Raster picture.
        notes: (heading, sentence), such as the capture check and the effect of folding.
        ties: One sentence per tie.
        provenance: Versions, seeds, hashes: name to value.
    """

    title: str
    summary: str = ""
    verdicts: tuple[VerdictLine, ...] = ()
    totals: tuple[Row, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    graph: Overview | None = None
    budgets: tuple[BudgetRow, ...] = ()
    chip: str = ""
    resources: tuple[ChipRow, ...] = ()
    cores: tuple[CoreRow, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    raster: RasterPicture | None = None
    notes: tuple[tuple[str, str], ...] = ()
    ties: tuple[str, ...] = ()
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the report as dictionaries and lists, the density of each layer included."""
        tables = asdict(self)
        for row, layer in zip(tables["layers"], self.layers, strict=True):
            row["density"] = layer.density
        tables["graph"] = self.graph and self.graph.to_json()
        plain: dict[str, Any] = _jsonable(tables)
        return plain


def verdict_line(check: str, verification: Verification) -> VerdictLine:
    """Return the line of a verification."""
    return VerdictLine(check, verification.verdict, verification.sentence())


def raster_picture(spikes: torch.Tensor, title: str, difference: Difference | None = None) -> RasterPicture:
    """Return the picture of one sample of one layer.

    Args:
        spikes: bool (time, *neurons).
        title: Caption.
        difference: A difference in this layer and sample, which is marked.

    Raises:
        RasterError: ``spikes`` is not bool with at least two axes, or the difference lies outside.
    """
    if spikes.dtype != torch.bool or spikes.ndim < 2:
        raise RasterError(
            f"picture: found {spikes.dtype} of shape {tuple(spikes.shape)}; allowed is bool (time, *neurons)"
        )
    flat = spikes.detach().cpu().flatten(1)
    points = tuple((int(step), int(neuron)) for step, neuron in flat.nonzero())
    mark = None
    if difference is not None:
        mark = (difference.step, _flat_index(difference.neuron, tuple(spikes.shape[1:]), difference.layer))
        if not 0 <= difference.step < spikes.shape[0]:
            raise RasterError(f"picture: step {difference.step} lies outside the raster of {spikes.shape[0]} steps")
    text = "" if difference is None else difference.sentence()
    return RasterPicture(title, int(flat.shape[0]), int(flat.shape[1]), points, mark, text)


def write_report(report: Report, path: str | Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html``.

    Args:
        report: What to write.
        path: A directory, or the path of the HTML file (``*.html``), beside which the JSON file gets the same stem.

    Returns:
        Paths of the JSON and the HTML file.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed; nothing is written.
    """
    path = Path(path)
    html_path = path if path.suffix == ".html" else path / HTML_NAME
    json_path = html_path.with_suffix(".json")
    page = render_html(report)
    write_atomically(json_path, (json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n").encode())
    write_atomically(html_path, page.encode())
    return json_path, html_path


def render_html(report: Report) -> str:
    """Return the report as one HTML page that loads nothing from elsewhere.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined

        from slamp.report_pictures import curve_picture, graph_picture, layer_bars, spike_picture
    except ImportError as error:
        raise MissingDependencyError(f"report: {error}; install the extra with pip install 'slamp[report]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=said_number, percent=said_percent, change=said_change)
    template = environment.from_string(files("slamp").joinpath(HTML_NAME).read_text(encoding="utf-8"))
    return template.render(
        report=report,
        bars=layer_bars(report.layers) if report.layers else "",
        graph=graph_picture(report.graph) if report.graph else "",
        curve=curve_picture(report.curve) if report.curve else "",
        raster=spike_picture(report.raster) if report.raster else "",
    )


def said_number(value: Number) -> str:
    """Say a number with thousands separators and no digits that carry no meaning; a dash for None."""
    if value is None:
        return DASH
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def said_percent(value: Number) -> str:
    """Say a share in percent; a dash for None."""
    return DASH if value is None else f"{100 * value:.2f} %"


def said_change(row: Row) -> str:
    """Say what became of a quantity: points for shares, a ratio for counts."""
    if row.before is None or row.after is None:
        return DASH
    if row.kind == "share":
        return f"{100 * (row.after - row.before):+.2f} points"
    return DASH if row.before == 0 else f"{100 * row.after / row.before:.1f} %"


def _flat_index(neuron: tuple[int, ...], shape: tuple[int, ...], layer: str) -> int:
    if len(neuron) != len(shape) or not all(0 <= index < size for index, size in zip(neuron, shape, strict=True)):
        raise RasterError(f"picture: neuron {neuron} of {layer} lies outside neurons of shape {shape}")
    flat = 0
    for index, size in zip(neuron, shape, strict=True):
        flat = flat * size + index
    return flat


def _jsonable(value: Any) -> Any:
    """Make mappings and tuples plain, and text of the numbers JSON cannot say."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
