"""`slamp show`: what the table, the JSON object and the picture say of a network."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

import networks
import slamp
import user_networks
from feedback_networks import random_feedback
from slamp.cli import main
from slamp.graph import SpikingGraph
from slamp.graph_picture import MOST_NODES, graph_svg
from slamp.layered_layout import spread
from slamp.nodes import Conv2d, Delay, Flatten, Input, Linear, Node, Output, SumPool2d, frozen_array, uniform
from slamp.overview import overview
from slamp.report import Report, render_html
from verify_networks import chain, cuba, lif

Cli = Callable[..., tuple[int, str, str]]
SVG = "{http://www.w3.org/2000/svg}"
SVG_ELEMENTS = {"svg", "title", "desc", "defs", "marker", "path", "rect", "polygon", "g", "text"}
Box = tuple[float, float, float, float]  # left, top, right, bottom


def weights(outputs: int, inputs: int, seed: int = 0) -> Linear:
    rng = np.random.default_rng(seed)
    return Linear(frozen_array(rng.normal(size=(outputs, inputs)) * (rng.random((outputs, inputs)) < 0.5)))


def conv(outputs: int, inputs: int, kernel: int = 3) -> Conv2d:
    weight = np.random.default_rng(0).normal(size=(outputs, inputs, kernel, kernel))
    return Conv2d(frozen_array(weight), None, (1, 1), (kernel // 2, kernel // 2), (1, 1), 1)


def recurrent(steps: float = 1.0) -> SpikingGraph:
    """What a recurrent cell becomes: ``cell`` hears itself through ``cell_last`` and ``cell_rec``."""
    nodes: dict[str, Node] = {
        "input": Input((16,)),
        "cell_in": weights(20, 16),
        "cell": cuba((20,)),
        "cell_last": Delay(uniform(steps, (20,))),
        "cell_rec": weights(20, 20, seed=1),
        "readout": weights(5, 20, seed=2),
        "out": lif((5,)),
        "output": Output((5,)),
    }
    edges = [("input", "cell_in"), ("cell_in", "cell"), ("cell_rec", "cell"), ("cell", "cell_last")]
    edges += [("cell_last", "cell_rec"), ("cell", "readout"), ("readout", "out"), ("out", "output")]
    return SpikingGraph(nodes, tuple(edges), 1e-3)


def skip() -> SpikingGraph:
    """Two ways around two convolutions: one with weights, one without."""
    size = (8, 8, 8)
    nodes: dict[str, Node] = {"input": Input((2, 8, 8)), "stem": conv(8, 2), "stem_lif": lif(size), "a": conv(8, 8)}
    nodes |= {"a_lif": lif(size), "b": conv(8, 8), "around": conv(8, 8, 1), "b_lif": lif(size), "flat": Flatten(0, 2)}
    nodes |= {"readout": weights(10, 512), "out": lif((10,)), "output": Output((10,))}
    way = ["input", "stem", "stem_lif", "a", "a_lif", "b", "b_lif", "flat", "readout", "out", "output"]
    edges = [*pairwise(way), ("stem_lif", "around"), ("around", "b_lif"), ("stem_lif", "b_lif")]
    return SpikingGraph(nodes, tuple(edges), 1e-3)


def branches(count: int = 5) -> SpikingGraph:
    """Branches of unlike length that meet."""
    nodes: dict[str, Node] = {"input": Input((16,))}
    edges = []
    for branch in range(count):
        way = [f"branch{branch}_{part}" for part in range(1 + 2 * branch)]
        for place, name in enumerate(way):
            nodes[name] = weights(16, 16) if place % 2 == 0 else cuba((16,))
        edges += [*pairwise(["input", *way, "mix"])]
    nodes |= {"mix": lif((16,)), "readout": weights(5, 16), "out": lif((5,)), "output": Output((5,))}
    edges += pairwise(["mix", "readout", "out", "output"])
    return SpikingGraph(nodes, tuple(edges), 1e-3)


def vgg16() -> SpikingGraph:
    nodes: dict[str, Node] = {}
    channels, size = 3, 32
    for stage, (width, depth) in enumerate([(8, 2), (16, 2), (32, 3), (64, 3), (64, 3)]):
        for layer in range(depth):
            nodes[f"features_{stage}_{layer}"] = conv(width, channels)
            nodes[f"features_{stage}_{layer}_lif"] = lif((width, size, size))
            channels = width
        size //= 2
        nodes[f"features_{stage}_pool"] = SumPool2d((2, 2), (2, 2))
    nodes["flatten"] = Flatten(0, 2)
    for layer, outputs in enumerate([64, 64, 10]):
        nodes[f"classifier_{layer}"] = weights(outputs, 64)
        nodes[f"classifier_{layer}_lif"] = lif((outputs,))
    return chain(nodes, features=(3, 32, 32), out=(10,))


def rings() -> SpikingGraph:
    """A delay that hears itself, a neuron that hears itself without weights, a cycle through two delays."""
    nodes: dict[str, Node] = {"input": Input((4,)), "w": weights(4, 4), "n": cuba((4,)), "d": Delay(uniform(2, (4,)))}
    nodes |= {"e": Delay(uniform(3, (4,))), "f": Delay(frozen_array(np.array([1, 4, 2, 1]))), "output": Output((4,))}
    edges = [("input", "w"), ("w", "n"), ("n", "d"), ("d", "n"), ("d", "d"), ("n", "e"), ("e", "f"), ("f", "n")]
    return SpikingGraph(nodes, (*edges, ("n", "output")), 1e-3)


def dense(layers: int = 6) -> SpikingGraph:
    """Every layer hears all before it."""
    nodes: dict[str, Node] = {"input": Input((6,))}
    edges = []
    for layer in range(layers):
        nodes |= {f"w{layer}": weights(6, 6), f"n{layer}": lif((6,))}
        edges += [("input", f"w{layer}"), *[(f"n{before}", f"w{layer}") for before in range(layer)]]
        edges.append((f"w{layer}", f"n{layer}"))
    nodes["output"] = Output((6,))
    return SpikingGraph(nodes, (*edges, (f"n{layers - 1}", "output")), 1e-3)


def odd_names() -> SpikingGraph:
    """Names that XML, HTML and rich give a meaning, that are long, wide, or hold what XML cannot."""
    names = ["<b>&\"'<b>", "[red]x[red]]]>", "a_very_long_name_" * 6, "層" * 30, "bell\x07"]
    nodes: dict[str, Node] = {
        name: weights(6, 6) if place % 2 == 0 else lif((6,)) for place, name in enumerate([*names, "n"])
    }
    return SpikingGraph(
        {"input": Input((6,)), **nodes, "output": Output((6,))}, tuple(pairwise(["input", *nodes, "output"])), 1e-3
    )


GRAPHS: dict[str, Callable[[], SpikingGraph]] = {
    "recurrent": recurrent,
    "skip": skip,
    "branches": branches,
    "vgg16": vgg16,
    "rings": rings,
    "dense": dense,
    "odd_names": odd_names,
    **{f"feedback{seed}": lambda seed=seed: random_feedback(seed)[0] for seed in range(3)},
}
each_graph = pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process; return exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slamp", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def table_rows(text: str) -> dict[str, list[str]]:
    """Cells of every row by name, cells over several lines joined by a space."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("│"):
            continue
        name, *cells = [cell.strip() for cell in line.strip("│").split("│")]
        if name:
            rows[name] = cells
        else:
            last = rows[next(reversed(rows))]
            last[:] = [f"{old} {new}".strip() for old, new in zip(last, cells, strict=True)]
    return rows


def unrolled(module: torch.nn.Module, features: tuple[int, ...]) -> int:
    """Non-zero connections of a layer, by its whole matrix."""
    zeros = torch.zeros(1, *features)
    return int(torch.count_nonzero(torch.autograd.functional.jacobian(module, zeros)))


def test_table_of_a_network_captured_from_norse(cli: Cli, tmp_path: Path) -> None:
    slamp.save_samples(user_networks.samples(), tmp_path / "samples.npz")
    net = user_networks.factory()
    code, out, err = cli("show", "user_networks:factory", tmp_path / "samples.npz")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    rows = table_rows(out)
    assert list(rows) == ["input", "0", "1", "2", "3", "4", "5", "output", "total"]
    assert rows["2"] == ["Affine", "20", "660", "640", "1"]
    assert rows["3"] == ["LIF", "20", "4", "", "2"]
    trained = sum(parameter.numel() for parameter in net.parameters())
    assert rows["total"][2:4] == [f"{trained + 3 * 4:,}", f"{24 * 32 + 32 * 20 + 20 * 4:,}"]
    assert "picture: add --svg FILE" in out


def test_synapses_are_the_connections_that_are_not_zero() -> None:
    net, raster = networks.build("conv_pool_norm")
    modules = dict(net.named_modules())
    with torch.no_grad():
        modules["0.0"].weight[0, 1] = 0
        modules["2"].weight[:, :, 1, 0] = 0
        modules["10"].weight[1:3] = 0
    graph = slamp.capture(net, raster)
    rows = {row.name: row for row in overview(graph).nodes}
    for path in ("0.0", "2", "7", "10"):
        row = rows[path.replace(".", "_")]
        assert row.synapses == unrolled(modules[path], graph.shapes[row.sources[0]]), path
        assert row.parameters == sum(parameter.numel() for parameter in modules[path].parameters())
    assert rows["10"].synapses == 20
    assert rows["4"].synapses is None


def test_json_of_a_recurrent_graph(cli: Cli, tmp_path: Path) -> None:
    graph = recurrent()
    graph.save(tmp_path / "graph.npz")
    code, out, _ = cli("show", tmp_path / "graph.npz", "--json")
    assert code == 0
    found = json.loads(out)
    nodes = {node.pop("name"): node for node in found["nodes"]}
    assert list(nodes) == list(graph.nodes)
    none = {"synapses": None, "delay": None}
    assert nodes["cell"] == {
        **none,
        "type": "CubaLIF",
        "kind": "neurons",
        "shape": [20],
        "parameters": 5,
        "sources": ["cell_in", "cell_rec"],
    }
    assert nodes["cell_last"]["delay"] == {"least": 1, "most": 1}
    assert nodes["cell_rec"]["synapses"] == np.count_nonzero(graph.weighted["cell_rec"].weight) < 400
    assert found["synapses"] == sum(np.count_nonzero(node.weight) for node in graph.weighted.values())
    assert [tuple(edge.values()) for edge in found["edges"]] == [
        (*edge, edge == ("cell", "cell_last")) for edge in graph.edges
    ]
    assert (found["dt"], found["graph_hash"], found["svg"]) == (1e-3, graph.hash, None)


def test_table_marks_what_closes_a_cycle_and_by_how_many_steps(cli: Cli, tmp_path: Path) -> None:
    recurrent(3.0).save(tmp_path / "graph.npz")
    _, out, _ = cli("show", tmp_path / "graph.npz")
    rows = table_rows(out)
    assert rows["cell_last"] == ["Delay, 3 steps", "20", "1", "", "cell ↺"]
    assert rows["cell"][-1] == "cell_in cell_rec"
    assert out.count("↺") == 2, "the row and its explanation"
    assert "↺ closes a cycle" in out


def test_table_shows_names_as_they_are(cli: Cli, tmp_path: Path) -> None:
    odd_names().save(tmp_path / "graph.npz")
    _, out, _ = cli("show", tmp_path / "graph.npz")
    assert max(map(len, out.splitlines())) <= 80
    rows = table_rows(out)
    assert rows["<b>&\"'<b>"][-1] == "input"
    assert rows["[red]x[red]]]>"][-1] == "<b>&\"'<b>"


def test_every_cycle_is_marked_once_and_delays_on_no_cycle_are_not() -> None:
    closing = [(edge.source, edge.target) for edge in overview(rings()).edges if edge.closes_cycle]
    assert closing == [("n", "d"), ("d", "d"), ("n", "e")]
    graph, _ = random_feedback(0)
    closing = [(edge.source, edge.target) for edge in overview(graph).edges if edge.closes_cycle]
    assert closing == [("na", "before"), ("nb", "slow")], "'staggered' and 'late' only wait"


def test_a_shared_weight_is_one_parameter_used_twice() -> None:
    shared = weights(6, 6)
    nodes = {"a": shared, "n": lif((6,)), "b": shared, "m": lif((6,))}
    graph = chain(nodes, features=(6,), out=(6,))
    same = SpikingGraph(graph.nodes, graph.edges, graph.dt, parameters={"a": "0.weight", "b": "0.weight"})
    assert overview(graph).parameters == 2 * 36 + 2 * 4
    assert overview(same).parameters == 36 + 2 * 4
    assert overview(same).synapses == overview(graph).synapses == 2 * np.count_nonzero(shared.weight)


def test_files_of_graphs_are_shown_as_the_network_is(cli: Cli, tmp_path: Path) -> None:
    raster = user_networks.samples()
    slamp.save_samples(raster, tmp_path / "samples.npz")
    graph = slamp.capture(user_networks.factory(), raster)
    slamp.export(graph, to="nir", directory=tmp_path / "nir")
    _, captured, _ = cli("show", "user_networks:factory", tmp_path / "samples.npz", "--json")
    for name in ("graph.npz", "network.nir"):
        code, out, _ = cli("show", tmp_path / "nir" / name, "--json")
        assert code == 0
        assert json.loads(out) == json.loads(captured), name


def test_files_of_other_tools_are_shown_at_a_time_step(cli: Cli, tmp_path: Path) -> None:
    weight, ones = np.eye(3, dtype=np.float32), np.ones(3, dtype=np.float32)
    nodes = {"in": nir.Input(np.array([3])), "w": nir.Linear(weight), "n": nir.IF(r=ones, v_threshold=ones)}
    nodes["out"] = nir.Output(np.array([3]))
    nir.write(tmp_path / "other.nir", nir.NIRGraph(nodes, list(pairwise(nodes))))
    code, out, err = cli("show", tmp_path / "other.nir")
    assert (code, out) == (2, "")
    assert "other.nir" in err
    assert "dt" in err
    code, out, _ = cli("show", tmp_path / "other.nir", "--dt", "1")
    assert code == 0
    assert table_rows(out)["w"] == ["Linear", "3", "9", "3", "in"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["user_networks:factory"], "give SAMPLES to capture user_networks:factory on"),
        (["graph.npz", "samples.npz"], "holds a graph with its weights; leave out SAMPLES"),
        (["graph.npz", "--dt", "1"], "has a time step of its own; leave out --dt"),
        (["missing.npz"], "there is no such graph file"),
        (["samples.npz"], "not a readable slamp-graph-1 file"),
        (["test_show:unsupported", "samples.npz"], "1: .*LSTMCell"),
        (["graph.npz", "--svg", "graph.npz/x.svg"], "x.svg: cannot be written"),
    ],
)
def test_what_cannot_be_shown_ends_with_2_and_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    slamp.save_samples(user_networks.samples(), tmp_path / "samples.npz")
    recurrent().save(tmp_path / "graph.npz")
    code, out, err = cli("show", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: .*{message}.*\n", err), err


def unsupported() -> torch.nn.Module:
    return networks.SequentialState(torch.nn.Linear(24, 4), torch.nn.LSTMCell(4, 4))


def test_svg_is_written_beside_table_and_json(cli: Cli, tmp_path: Path) -> None:
    recurrent().save(tmp_path / "graph.npz")
    code, out, _ = cli("show", tmp_path / "graph.npz", "--svg", tmp_path / "table.svg")
    assert code == 0
    assert f"picture: {tmp_path / 'table.svg'}" in out
    _, out, _ = cli("show", tmp_path / "graph.npz", "--svg", tmp_path / "json.svg", "--json")
    assert json.loads(out)["svg"] == str(tmp_path / "json.svg")
    assert (tmp_path / "table.svg").read_bytes() == (tmp_path / "json.svg").read_bytes()
    root = ElementTree.fromstring((tmp_path / "json.svg").read_text())
    assert root[0].tag == f"{SVG}title"
    assert "8 nodes" in str(root[0].text)


def picture(graph: SpikingGraph) -> ElementTree.Element:
    return ElementTree.fromstring(graph_svg(overview(graph)))


def boxes(root: ElementTree.Element) -> dict[str, Box]:
    """Bounds of every node's outline."""
    found = {}
    for group in root.iterfind(f".//{SVG}g[@class='node']"):
        outline = group[1]
        if outline.tag == f"{SVG}rect":
            left, top, width, height = (float(outline.attrib[key]) for key in ("x", "y", "width", "height"))
            found[group.attrib["data-name"]] = left, top, left + width, top + height
        else:
            points = [tuple(map(float, point.split(","))) for point in outline.attrib["points"].split()]
            x, y = zip(*points, strict=True)
            found[group.attrib["data-name"]] = min(x), min(y), max(x), max(y)
    return found


def way(path: ElementTree.Element) -> list[tuple[float, float]]:
    """Points along an arrow, from its source."""
    points: list[tuple[float, float]] = []
    for command, numbers in re.findall(r"([MCV])([^MCV]*)", path.attrib["d"]):
        values = [float(number) for number in numbers.split()]
        if command == "M":
            points.append((values[0], values[1]))
        elif command == "V":
            x, y = points[-1]
            points += [(x, y + (values[0] - y) * share) for share in np.linspace(0, 1, 20)]
        else:
            ends = np.array([*points[-1], *values]).reshape(4, 2)
            for t in np.linspace(0, 1, 40):
                parts = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3])
                points.append(tuple(parts @ ends))
    return points


def xml_name(name: str) -> str:
    return name.replace("\x07", "\ufffd")


@each_graph
def test_picture_has_every_node_and_every_edge_once(build: Callable[[], SpikingGraph]) -> None:
    graph = build()
    root = picture(graph)
    nodes = [group.attrib["data-name"] for group in root.iterfind(f".//{SVG}g[@class='node']")]
    assert sorted(nodes) == sorted(map(xml_name, graph.nodes))
    edges = [(path.attrib["data-source"], path.attrib["data-target"]) for path in root.iterfind(".//*[@class='edge']")]
    assert sorted(edges) == sorted((xml_name(source), xml_name(target)) for source, target in graph.edges)
    originals = {xml_name(name): name for name in graph.nodes}
    for group in root.iterfind(f".//{SVG}g[@class='node']"):
        full = group.attrib["data-name"]
        name, kind, shape = (str(text.text) for text in group.iterfind(f"{SVG}text"))
        assert name == full or (len(full) > 40 and full.startswith(name.split("…")[0]))
        assert kind.split(",")[0] == type(graph.nodes[originals[full]]).__name__
        assert shape.split(" \N{MULTIPLICATION SIGN} ") == list(map(str, graph.shapes[originals[full]]))


@each_graph
def test_boxes_stand_apart_inside_the_picture(build: Callable[[], SpikingGraph]) -> None:
    root = picture(build())
    found = list(boxes(root).values())
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for place, (left, top, right, bottom) in enumerate(found):
        assert min(left, top, width - right, height - bottom) >= 10
        for other in found[:place]:
            apart = max(left - other[2], other[0] - right, top - other[3], other[1] - bottom)
            assert apart >= 20


@each_graph
def test_text_stays_inside_its_box(build: Callable[[], SpikingGraph]) -> None:
    """Measured with a real monospaced font; pills and hexagons are narrower where the text stands."""
    root = picture(build())
    bounds = boxes(root)
    font = FontProperties(family="DejaVu Sans Mono")
    for group in root.iterfind(f".//{SVG}g[@class='node']"):
        left, top, right, bottom = bounds[group.attrib["data-name"]]
        for text in group.iterfind(f"{SVG}text"):
            shown = re.sub("[^\x20-\x7e]", "M", str(text.text)).replace("$", "M")
            wide = sum(mark == "層" for mark in str(text.text))
            extent = TextPath((0, 0), shown, size=12, prop=font).get_extents()
            half = (extent.x1 + wide * 12 * 0.6) / 2
            x, y = float(text.attrib["x"]), float(text.attrib["y"])
            inset = 0.0
            if group.attrib["data-kind"] == "neurons":
                radius = (bottom - top) / 2
                far = max(abs(y + 2 - (top + bottom) / 2), abs(y - 9 - (top + bottom) / 2))
                inset = radius - (radius**2 - far**2) ** 0.5
            if group.attrib["data-kind"] in ("input", "output"):
                inset = 14.0
            assert x - half >= left + inset
            assert x + half <= right - inset


@each_graph
def test_arrows_join_their_boxes_and_cross_no_other(build: Callable[[], SpikingGraph]) -> None:
    graph = build()
    root = picture(graph)
    bounds = boxes(root)
    closing = {(edge.source, edge.target) for edge in overview(graph).edges if edge.closes_cycle}
    for path in root.iterfind(".//*[@class='edge']"):
        source, target = path.attrib["data-source"], path.attrib["data-target"]
        points = way(path)
        for end, name in ((points[0], source), (points[-1], target)):
            left, top, right, bottom = bounds[name]
            assert left - 0.1 <= end[0] <= right + 0.1
            assert top - 0.1 <= end[1] <= bottom + 0.1
        for name, (left, top, right, bottom) in bounds.items():
            inside = [(x, y) for x, y in points if left - 3 < x < right + 3 and top + 1 < y < bottom - 1]
            assert not inside or name in (source, target), f"{source} -> {target} runs through {name}"
        assert path.attrib["marker-end"] in ("url(#now)", "url(#later)")
        assert ("stroke-dasharray" in path.attrib) == ((source, target) in closing)
        if source != target:
            assert (points[0][1] > points[-1][1]) == ((source, target) in closing), "upward only to close a cycle"


def test_way_back_says_its_steps() -> None:
    labels = [text.text for text in picture(recurrent(3.0)).iterfind(f".//{SVG}text[@class='label']")]
    assert labels == ["3 steps later"]
    labels = [text.text for text in picture(rings()).iterfind(f".//{SVG}text[@class='label']")]
    assert sorted(map(str, labels)) == ["2 steps later", "3 steps later"]


def test_kinds_differ_in_shape_not_only_in_color() -> None:
    looks = {}
    for root in (picture(skip()), picture(recurrent())):
        for group in root.iterfind(f".//{SVG}g[@class='node']"):
            outline = group[1].attrib
            corners = outline.get("points", "").count(",")
            looks[group.attrib["data-kind"]] = (corners, outline.get("rx"), outline.get("stroke-dasharray"))
    assert set(looks) == {"input", "output", "weights", "neurons", "delay", "wiring"}
    assert looks.pop("input") == looks.pop("output")
    assert len({*looks.values(), (6, None, None)}) == 5


def test_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph, _ = random_feedback(1)
    graph.save(tmp_path / "graph.npz")
    assert graph_svg(overview(graph)) == graph_svg(overview(slamp.load_graph(tmp_path / "graph.npz")))


def test_picture_is_self_contained() -> None:
    text = graph_svg(overview(odd_names()), title='<script>"&')
    root = ElementTree.fromstring(text)
    assert root[0].text == '<script>"&'
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= SVG_ELEMENTS
    assert not re.search(r"href|@import|url\((?!#)", text)


def page_picture(html: str) -> str:
    (source,) = re.findall(r'<div class="graph"><img src="data:image/svg\+xml;base64,([^"]*)"', html)
    return b64decode(source).decode()


def test_report_shows_the_shipped_network(tmp_path: Path) -> None:
    raster, held_out = user_networks.samples(60), user_networks.samples(20, seed=1)
    budget = slamp.Budget(density=0.3)
    run = slamp.compress(user_networks.factory(), raster, held_out=held_out, budget=budget, directory=tmp_path / "run")
    found = overview(run.shipped)
    assert found.synapses == pytest.approx(0.3 * (24 * 32 + 32 * 20 + 20 * 4), rel=0.01)
    assert page_picture((tmp_path / "run" / "report.html").read_text()) == graph_svg(found)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["graph"] == found.to_json()


def test_report_says_that_a_network_is_too_large_to_draw() -> None:
    def page(count: int) -> str:
        nodes: dict[str, Node] = {f"n{k}": lif((2,)) for k in range(count - 2)}
        return render_html(Report("x", graph=overview(chain(nodes, features=(2,), out=(2,)))))

    assert "too many to draw" not in page(MOST_NODES)
    page_picture(page(MOST_NODES))
    large = page(MOST_NODES + 1)
    assert "301 nodes and 300 edges, too many to draw here" in large
    assert "<img" not in large
    tangled = render_html(Report("x", graph=overview(dense(36))))
    assert "74 nodes and 703 edges, too many to draw here" in tangled


def test_spread_keeps_gaps_and_moves_as_little_as_possible() -> None:
    assert spread([0.0, 10.0, 11.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]) == [0.0, 8.0, 13.0]
    assert spread([4.0, 0.0], [3.0, 1.0], [0.0, 2.0]) == [2.5, 4.5]
    assert spread([7.0], [1.0], [0.0]) == [7.0]
