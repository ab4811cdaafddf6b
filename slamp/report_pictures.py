"""Pictures of a report, as data URLs of SVG images. Needs matplotlib; touches none of its global figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from slamp.graph_picture import MOST_EDGES, MOST_NODES, graph_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slamp.overview import Overview
    from slamp.report import CurvePoint, LayerRow, RasterPicture

BEFORE, AFTER, MARK, INK, GRID = "#c3cad5", "#2f6f9f", "#c8372d", "#39424e", "#e6e9ee"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#aab3bf",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a layer name may hold a dollar sign
    "svg.hashsalt": "slamp",  # the same report gives the same bytes
}
MAX_NAME = 18
MAX_TICKS = 8


def layer_bars(layers: Sequence[LayerRow]) -> str:
    """Draw density, SOPs and firing rate of every layer, before and after."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.9 + 0.42 * len(layers)), layout="constrained")
        density, sops, rate = figure.subplots(1, 3, sharey=True)
        names = [layer.name if len(layer.name) <= MAX_NAME else f"{layer.name[: MAX_NAME - 1]}…" for layer in layers]
        _bars(density, names, [100.0] * len(layers), [100 * layer.density for layer in layers])
        density.set_xlabel("weights kept, %")
        _bars(sops, names, [layer.sops_before for layer in layers], [layer.sops_after for layer in layers])
        sops.set_xlabel("SOPs per sample")
        sops.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        sops.xaxis.set_major_locator(MaxNLocator(4))
        rates = [[None if r is None else 100 * r for r in part] for part in zip(*map(_rates, layers), strict=True)]
        _bars(rate, names, rates[0], rates[1])
        rate.set_xlabel("cells that spike, %")
        density.invert_yaxis()
        handles, labels = density.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
        return _data_url(figure)


def curve_picture(points: Sequence[CurvePoint]) -> str:
    """Draw accuracy against density, density falling to the right on a logarithmic axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        colors = (AFTER, "#d08a2e", "#4d8f5b", "#7d5ba6", "#8c8c8c")
        for position, series in enumerate(dict.fromkeys(point.series for point in points)):
            own = sorted((point.density, point.accuracy) for point in points if point.series == series)
            axes.plot(
                [100 * density for density, _ in own],
                [100 * accuracy for _, accuracy in own],
                marker="o",
                markersize=4.5,
                linewidth=1.6,
                color=colors[position % len(colors)],
                label=series,
            )
        axes.set_xscale("log")
        axes.invert_xaxis()
        densities = sorted({100 * point.density for point in points})
        axes.set_xticks(_spread(densities)[:: max(1, len(densities) // MAX_TICKS)])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("weights kept, %")
        axes.set_ylabel("accuracy, %")
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        return _data_url(figure)


def spike_picture(picture: RasterPicture) -> str:
    """Draw a raster, with a ring around the first difference."""
    with mpl.rc_context(STYLE):
        height = min(6.0, 1.3 + 0.05 * max(picture.neurons, 12))
        figure = Figure(figsize=(9.6, height), layout="constrained")
        axes = figure.subplots()
        size = max(4.0, min(60.0, 72 * 72 * (height - 1) ** 2 / max(picture.neurons, 1) ** 2 * 0.6))
        steps = [step for step, _ in picture.spikes]
        neurons = [neuron for _, neuron in picture.spikes]
        axes.scatter(steps, neurons, marker="|", s=size, linewidths=1.6, color=INK, rasterized=len(steps) > 4000)
        if picture.mark is not None:
            step, neuron = picture.mark
            axes.axvline(step, color=MARK, linewidth=0.8, alpha=0.35)
            axes.scatter([step], [neuron], s=140, facecolors="none", edgecolors=MARK, linewidths=1.8, zorder=3)
            left = step > 0.7 * picture.steps
            axes.annotate(
                "first difference",
                (step, neuron),
                xytext=(-12 if left else 12, 8),
                textcoords="offset points",
                ha="right" if left else "left",
                color=MARK,
                weight="bold",
            )
        axes.set_xlim(-0.8, picture.steps - 0.2)
        axes.set_ylim(-0.8, picture.neurons - 0.2)
        axes.set_xlabel("step")
        axes.set_ylabel("neuron")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _data_url(figure)


def graph_picture(graph: Overview) -> str:
    """Draw the network; nothing where it is larger than anybody can follow."""
    small = len(graph.nodes) <= MOST_NODES and len(graph.edges) <= MOST_EDGES
    return _svg_url(graph_svg(graph).encode()) if small else ""


def _spread(values: Sequence[float]) -> list[float]:
    """Drop values so close to the one before that their labels would overlap on a logarithmic axis."""
    kept: list[float] = []
    for value in values:
        if not kept or value > 1.12 * kept[-1]:
            kept.append(value)
    return kept


def _rates(layer: LayerRow) -> tuple[float | None, float | None]:
    return layer.rate_before, layer.rate_after


def _bars(axes: Axes, names: list[str], before: Sequence[float | None], after: Sequence[float | None]) -> None:
    places = range(len(names))
    axes.barh([place - 0.19 for place in places], [value or 0 for value in before], 0.36, color=BEFORE, label="dense")
    axes.barh([place + 0.19 for place in places], [value or 0 for value in after], 0.36, color=AFTER, label="pruned")
    for place, value in enumerate(before):
        if value is None:
            axes.text(0, place, " none", va="center", color="#8a94a1")
    axes.set_yticks(list(places), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _data_url(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return _svg_url(buffer.getvalue())


def _svg_url(picture: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture).decode("ascii")
