"""A graph as an SVG picture: one box per node, one arrow per edge, top to bottom; the same graph, the same bytes."""

from __future__ import annotations

import math
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from slamp.layered_layout import Layout, layout
from slamp.overview import EdgeRow, Kind, NodeRow, Overview, said_steps

FONT, SIZE, ADVANCE = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace", 12, 0.62
LINE, HEIGHT, SIDE, CORNER, LEAST_WIDTH = 17.0, 66.0, 18.0, 14.0, 96.0
MARGIN, LEAST_GAP, MOST_GAP, PORT = 24.0, 42.0, 120.0, 26.0
LONGEST_NAME = 40
MOST_NODES, MOST_EDGES = 300, 600  # of a picture that anybody can follow
INK, LATER = "#1f2730", "#8a2f6b"
# Shapes tell the kinds apart without color: fill, outline, and whether the outline is dashed.
STYLES: dict[Kind, tuple[str, str, bool]] = {
    "input": ("#e9edf2", "#46515e", False),
    "output": ("#e9edf2", "#46515e", False),
    "weights": ("#dbe9f4", "#2f6f9f", False),
    "neurons": ("#fdebd0", "#a8641b", False),
    "delay": ("#f3e0ec", LATER, False),
    "wiring": ("#ffffff", "#68737f", True),
}
LEGEND: dict[Kind, str] = {
    "input": "input, output",
    "weights": "weights",
    "neurons": "neurons",
    "delay": "delay",
    "wiring": "wiring",
}


@dataclass(frozen=True)
class _Arrow:
    """An edge between boxes; ``upward`` ones are laid out from target to source."""

    edge: EdgeRow
    upward: bool
    label: str

    @property
    def ends(self) -> tuple[str, str]:
        """Upper and lower box."""
        found = (self.edge.source, self.edge.target)
        return found[::-1] if self.upward else found


def graph_svg(found: Overview, *, title: str = "Spiking network") -> str:
    """Draw a graph; boxes say name, type and shape, dashed arrows close cycles and are heard in a later step.

    The picture is self-contained and needs no fonts of its own: widths are those of monospaced text.
    """
    rows = {row.name: row for row in found.nodes}
    widths = {name: _box_width(row) for name, row in rows.items()}
    arrows = _arrows(found)
    places = layout(
        widths,
        [arrow.ends for arrow in arrows],
        root=next(row.name for row in found.nodes if row.kind == "input"),
        lane_widths=[_text_width(arrow.label) for arrow in arrows],
    )
    ports = _ports(arrows, places, widths)
    depth = {name: number for number, layer in enumerate(places.layers) for name in layer}
    tops = _tops(arrows, places, ports, depth)
    key_left = MARGIN + places.width + 90
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
    ElementTree.SubElement(root, "title").text = _printable(title)
    ElementTree.SubElement(
        root, "desc"
    ).text = f"{len(found.nodes)} nodes and {len(found.edges)} edges, from the input at the top to the output"
    _heads(root)
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    text = {"font-family": FONT, "font-size": str(SIZE), "fill": INK}
    canvas = ElementTree.SubElement(root, "g", text)
    labels = ElementTree.Element("g")
    for arrow, lanes, port in zip(arrows, places.lanes, ports, strict=True):
        _draw_arrow(canvas, labels, arrow, _stops(arrow, lanes, port, tops[depth[arrow.ends[0]] :]))
    for edge in found.edges:
        if edge.source == edge.target:
            right = MARGIN + places.centers[edge.source] + widths[edge.source] / 2
            _draw_loop(canvas, edge, right, tops[depth[edge.source]])
    for name, number in depth.items():
        left = MARGIN + places.centers[name] - widths[name] / 2
        _draw_box(canvas, rows[name], left, tops[number], widths[name])
    canvas.append(labels)
    key_width, key_height = _draw_key(canvas, found, key_left)
    width = key_left + key_width + MARGIN
    height = max(tops[-1] + HEIGHT, key_height) + MARGIN
    root.set("viewBox", f"0 0 {_number(width)} {_number(height)}")
    root.set("width", _number(width))
    root.set("height", _number(height))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _arrows(found: Overview) -> list[_Arrow]:
    """Return all edges but those of a node to itself, turned so that following them downward never leads back."""
    delays = {row.name: row.delay for row in found.nodes if row.delay is not None}
    below: dict[str, list[str]] = {row.name: [] for row in found.nodes}
    arrows: list[_Arrow] = []
    for edge in sorted(found.edges, key=lambda edge: edge.closes_cycle):
        if edge.source == edge.target:
            continue
        label = f"{said_steps(delays[edge.target])} later" if edge.closes_cycle else ""
        arrow = _Arrow(edge, edge.closes_cycle and not _leads(below, edge.source, edge.target), label)
        upper, lower = arrow.ends
        below[upper].append(lower)
        arrows.append(arrow)
    return arrows


def _leads(below: dict[str, list[str]], start: str, end: str) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        for name in below[waiting.pop()]:
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return end in seen


def _ports(arrows: Sequence[_Arrow], places: Layout, widths: dict[str, float]) -> list[tuple[float, float]]:
    """Where each arrow leaves its upper box and enters its lower one, side by side in the order of their other ends."""
    sides: dict[tuple[str, int], list[tuple[float, bool, int]]] = {}
    for index, arrow in enumerate(arrows):
        upper, lower = arrow.ends
        way = [places.centers[upper], *places.lanes[index], places.centers[lower]]
        sides.setdefault((upper, 0), []).append((way[1], arrow.upward, index))
        sides.setdefault((lower, 1), []).append((way[-2], arrow.upward, index))
    found: list[list[float]] = [[0.0, 0.0] for _ in arrows]
    for (name, side), attached in sides.items():
        step = min(PORT, (widths[name] - 2 * CORNER) / len(attached))
        for place, (_, _, index) in enumerate(sorted(attached)):
            found[index][side] = MARGIN + places.centers[name] + (place - (len(attached) - 1) / 2) * step
    return [(upper, lower) for upper, lower in found]


def _tops(
    arrows: Sequence[_Arrow], places: Layout, ports: Sequence[tuple[float, float]], depth: Mapping[str, int]
) -> list[float]:
    """Top of every layer; the more sideways the arrows between two layers go, the farther these are apart."""
    sideways = [0.0] * len(places.layers)
    for arrow, lanes, (start, end) in zip(arrows, places.lanes, ports, strict=True):
        way = [start, *(MARGIN + lane for lane in lanes), end]
        for step, (here, there) in enumerate(pairwise(way), start=depth[arrow.ends[0]]):
            sideways[step] = max(sideways[step], abs(here - there))
    tops = [MARGIN]
    for span in sideways[:-1]:
        tops.append(tops[-1] + HEIGHT + min(MOST_GAP, max(LEAST_GAP, 24 + 0.22 * span)))
    return tops


Stops = list[tuple[float, float, float]]


def _stops(arrow: _Arrow, lanes: Sequence[float], port: tuple[float, float], tops: Sequence[float]) -> Stops:
    """(x, first y, last y) of every layer an arrow touches, from source to target; ``tops`` begin at the upper box."""
    stops = [(port[0], tops[0] + HEIGHT, tops[0] + HEIGHT)]
    stops += [(MARGIN + lane, top, top + HEIGHT) for lane, top in zip(lanes, tops[1:], strict=False)]
    stops.append((port[1], tops[len(lanes) + 1], tops[len(lanes) + 1]))
    return [(x, below, above) for x, above, below in reversed(stops)] if arrow.upward else stops


def _draw_arrow(canvas: ElementTree.Element, labels: ElementTree.Element, arrow: _Arrow, stops: Stops) -> None:
    steps = [f"M{_number(stops[0][0])} {_number(stops[0][2])}"]
    for (x, _, y), (next_x, next_y, next_end) in pairwise(stops):
        middle = _number((y + next_y) / 2)
        steps.append(
            f"C{_number(x)} {middle} {_number(next_x)} {middle} {_number(next_x)} {_number(next_y)}"
            if abs(x - next_x) > 0.05
            else f"V{_number(next_y)}"
        )
        if next_end != next_y:
            steps.append(f"V{_number(next_end)}")
    _draw_path(canvas, arrow.edge, " ".join(steps))
    if not arrow.label:
        return
    width = _text_width(arrow.label)
    x, start, end = stops[len(stops) // 2]
    left, y = x - width / 2, (start + end) / 2
    box = {"x": _number(left - 2), "y": _number(y - 9), "width": _number(width + 4), "height": "18", "fill": "#ffffff"}
    ElementTree.SubElement(labels, "rect", box)
    place = {"x": _number(left), "y": _number(y + 4), "fill": LATER, "class": "label"}
    ElementTree.SubElement(labels, "text", place).text = arrow.label


def _draw_loop(canvas: ElementTree.Element, edge: EdgeRow, right: float, top: float) -> None:
    upper, lower = _number(top + HEIGHT / 3), _number(top + HEIGHT * 2 / 3)
    far = _number(right + 24)
    _draw_path(canvas, edge, f"M{_number(right)} {lower} C{far} {lower} {far} {upper} {_number(right)} {upper}")


def _draw_path(canvas: ElementTree.Element, edge: EdgeRow, way: str) -> None:
    color = LATER if edge.closes_cycle else INK
    style = {"fill": "none", "stroke": color, "stroke-width": "1.4"}
    style["marker-end"] = f"url(#{'later' if edge.closes_cycle else 'now'})"
    if edge.closes_cycle:
        style["stroke-dasharray"] = "6 4"
    names = {"data-source": _printable(edge.source), "data-target": _printable(edge.target)}
    path = ElementTree.SubElement(canvas, "path", {"class": "edge", "d": way, **style, **names})
    ElementTree.SubElement(path, "title").text = _printable(f"{edge.source} → {edge.target}")


def _draw_box(canvas: ElementTree.Element, row: NodeRow, left: float, top: float, width: float) -> None:
    names = {"class": "node", "data-name": _printable(row.name), "data-kind": row.kind}
    group = ElementTree.SubElement(canvas, "g", names)
    ElementTree.SubElement(group, "title").text = _printable(f"{row.name}: {row.type}")
    _draw_outline(group, row.kind, (left, top, width, HEIGHT))
    for line, text in enumerate(_lines(row)):
        y = top + HEIGHT / 2 + (line - 1) * LINE + 4
        place = {"x": _number(left + width / 2), "y": _number(y), "text-anchor": "middle"}
        ElementTree.SubElement(group, "text", {**place, **({"font-weight": "bold"} if line == 0 else {})}).text = text


def _draw_outline(parent: ElementTree.Element, kind: Kind, box: tuple[float, float, float, float]) -> None:
    """Rectangles are weights, dashed ones wiring, pills neurons, hexagons input and output, cut corners delays."""
    left, top, width, height = box
    fill, stroke, dashed = STYLES[kind]
    style = {"fill": fill, "stroke": stroke, "stroke-width": "1.6"} | ({"stroke-dasharray": "4 3"} if dashed else {})
    if kind in ("input", "output", "delay"):
        cut = min(CORNER, height / 4)
        rise = height / 2 if kind != "delay" else cut
        right, bottom = left + width, top + height
        corners = [(left + cut, top), (right - cut, top), (right, top + rise), (right, bottom - rise)]
        corners += [(right - cut, bottom), (left + cut, bottom), (left, bottom - rise), (left, top + rise)]
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in dict.fromkeys(corners))
        ElementTree.SubElement(parent, "polygon", {"points": points, **style})
        return
    values = {"x": left, "y": top, "width": width, "height": height, "rx": height / 2 if kind == "neurons" else 0.0}
    ElementTree.SubElement(parent, "rect", {key: _number(value) for key, value in values.items()} | style)


def _draw_key(canvas: ElementTree.Element, found: Overview, left: float) -> tuple[float, float]:
    """Draw what the shapes mean; return width and height."""
    key = ElementTree.SubElement(canvas, "g", {"class": "key"})
    kinds = {"input" if row.kind == "output" else row.kind for row in found.nodes}
    shown = [(kind, text) for kind, text in LEGEND.items() if kind in kinds]
    y = MARGIN
    for kind, _ in shown:
        _draw_outline(key, kind, (left, y, 34.0, 18.0))
        y += 28
    texts = [text for _, text in shown]
    if any(edge.closes_cycle for edge in found.edges):
        way = f"M{_number(left)} {_number(y + 9)} h32"
        style = {"fill": "none", "stroke": LATER, "stroke-width": "1.4", "stroke-dasharray": "6 4"}
        ElementTree.SubElement(key, "path", {"d": way, **style, "marker-end": "url(#later)"})
        texts.append("closes a cycle")
        y += 28
    for place, text in enumerate(texts):
        at = {"x": _number(left + 44), "y": _number(MARGIN + 28 * place + 13)}
        ElementTree.SubElement(key, "text", at).text = text
    return 44 + max(map(_text_width, texts)), y


def _heads(root: ElementTree.Element) -> None:
    heads = ElementTree.SubElement(root, "defs")
    for name, color in (("now", INK), ("later", LATER)):
        size = {"markerWidth": "10", "markerHeight": "8", "refX": "9", "refY": "4", "orient": "auto"}
        units = {"markerUnits": "userSpaceOnUse"}
        marker = ElementTree.SubElement(heads, "marker", {"id": name, **size, **units})
        ElementTree.SubElement(marker, "path", {"d": "M0 0 L10 4 L0 8 Z", "fill": color})


def _lines(row: NodeRow) -> tuple[str, str, str]:
    name = _printable(row.name)
    if len(name) > LONGEST_NAME:
        half = LONGEST_NAME // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    kind = row.type if row.delay is None else f"{row.type}, {said_steps(row.delay)}"
    return name, kind, " \N{MULTIPLICATION SIGN} ".join(map(str, row.shape)) or "one value"


def _box_width(row: NodeRow) -> float:
    return max(LEAST_WIDTH, math.ceil(max(map(_text_width, _lines(row)))) + 2 * SIDE)


def _text_width(text: str) -> float:
    """Width of monospaced text, East Asian wide characters twice as wide."""
    columns = sum(2 if unicodedata.east_asian_width(mark) in "WF" else 1 for mark in text)
    return SIZE * ADVANCE * columns


def _printable(text: str) -> str:
    """Replace what XML cannot hold."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
