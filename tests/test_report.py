from __future__ import annotations

import base64
import builtins
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slamp.compare import Difference
from slamp.errors import MissingDependencyError, RasterError
from slamp.manifest import open_artifact, staged_artifact
from slamp.report import (
    BudgetRow,
    CurvePoint,
    LayerRow,
    RasterPicture,
    Report,
    Row,
    VerdictLine,
    raster_picture,
    render_html,
    said_change,
    said_number,
    said_percent,
    verdict_line,
    write_report,
)
from slamp.simulate import simulate
from slamp.verify import verify
from verify_networks import changed, conv_graph, raster, reference_run


def full_report(**changes: Any) -> Report:
    rng = np.random.default_rng(0)
    spikes = torch.from_numpy(rng.random((40, 24)) < 0.08)
    difference = Difference("lif2", 17, 3, (11,), True, False, 0.512, 0.5, 0.012, 2e-6, "reset: by subtraction")
    parts: dict[str, Any] = {
        "title": "MNIST convolution, pruned to 10 % density",
        "summary": "Pruned, retrained, exported to NIR and replayed on 500 held-out images.",
        "verdicts": (
            VerdictLine("export to nir", "identical", "500 samples, 32 steps, 41,216,000 cells, 1,204,331 spikes"),
            VerdictLine("SpikingJelly", "tie", "1 tie of 500 samples"),
            VerdictLine("sabotaged copy", "different", difference.sentence()),
        ),
        "totals": (
            Row("accuracy", 0.9512, 0.9401, "share"),
            Row("synapses", 131_072, 13_107, note="weights"),
            Row("SOPs", 1_234_567.25, 98_765.5, note="mean per sample"),
            Row("MACs", None, None, note="first layer"),
        ),
        "layers": (
            LayerRow("conv1", 216, 86, None, None, 0.12, 0.11),
            LayerRow("fc1", 100_352, 8_123, 812_345.5, 71_002.1, 0.081, 0.074),
            LayerRow("fc2", 30_504, 4_898, 61_022.0, 9_331.0, 0.05, 0.049),
        ),
        "budgets": (BudgetRow("density", 0.1, 0.1, 0.0), BudgetRow("sops", 2e5, 198_112.0, 1.7e-5, True)),
        "curve": tuple(
            CurvePoint(density, accuracy, series)
            for series, drop in (("slamp", 1.0), ("lamp", 1.4))
            for density, accuracy in ((1.0, 0.95), (0.5, 0.949), (0.2, 0.946 - 0.002 * drop), (0.1, 0.95 - 0.01 * drop))
        ),
        "raster": raster_picture(spikes, "Layer lif2, sample 3", difference),
        "notes": (("capture check", "0 of 41,216,000 cells differ"), ("folding", "batch norm folded: 3 cells moved")),
        "ties": ("layer lif1, step 4, sample 12, neuron 3: the graph spikes, the replay does not spike",),
        "provenance": {"slamp": "0.1.0", "seed": 0, "graph hash": "5e884898da28047151d0e56f8dc62927"},
    }
    return Report(**{**parts, **changes})


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_every_part() -> None:
    page = Page(render_html(full_report()))
    assert page.open == []
    for shown in (
        "MNIST convolution, pruned to 10 % density",
        "identical",
        "13,107",
        "1,234,567",
        "94.01 %",
        "-1.11 points",
        "8.09 %",
        "binding",
        "1.7e-05",
        "Layer lif2, sample 3",
        "neuron 11: the graph spikes, the replay does not spike",
        "0 of 41,216,000 cells differ",
        "layer lif1, step 4, sample 12",
        "5e884898da28047151d0e56f8dc62927",
    ):
        assert shown in page.text, shown
    assert page.tags.count("img") == 3


def test_page_loads_nothing_from_elsewhere() -> None:
    html = render_html(full_report())
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 3
    for source in sources:
        prefix, _, content = source.partition(",")
        assert prefix == "data:image/svg+xml;base64"
        picture = base64.b64decode(content)
        root = ElementTree.fromstring(picture)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(" not in re.sub(r'"data:[^"]*"', "", html)
    assert "@import" not in html


def test_everything_is_escaped() -> None:
    nasty = "<script>alert(1)</script>"
    report = full_report(
        title=nasty,
        summary=nasty,
        verdicts=(VerdictLine(nasty, '"><b>', nasty),),
        totals=(Row(nasty, 1, 1, note=nasty),),
        layers=(LayerRow(nasty, 1, 1),),
        budgets=(BudgetRow(nasty, 0, 0),),
        raster=RasterPicture(nasty, 3, 2, ((0, 0),), (0, 1), nasty),
        notes=((nasty, nasty),),
        ties=(nasty,),
        provenance={nasty: nasty},
    )
    page = Page(render_html(report))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(nasty) == 16


def test_empty_parts_are_left_out() -> None:
    page = Page(render_html(Report("Nothing yet")))
    assert page.tags.count("section") == 0
    assert page.tags.count("img") == 0


def test_report_is_written_as_json_and_html(tmp_path: Path) -> None:
    report = full_report()
    json_path, html_path = write_report(report, tmp_path / "out")
    assert (json_path, html_path) == (tmp_path / "out" / "report.json", tmp_path / "out" / "report.html")
    stored = json.loads(json_path.read_text())
    assert stored == report.to_json()
    assert stored["layers"][1]["density"] == 8_123 / 100_352
    assert stored["totals"][0] == {"name": "accuracy", "before": 0.9512, "after": 0.9401, "kind": "share", "note": ""}
    assert stored["raster"]["mark"] == [17, 11]
    assert html_path.read_text().startswith("<!doctype html>")
    named = write_report(report, tmp_path / "mnist.html")
    assert named == (tmp_path / "mnist.json", tmp_path / "mnist.html")


def test_same_report_gives_the_same_bytes() -> None:
    assert render_html(full_report()) == render_html(full_report())


def test_numbers_json_cannot_say_become_text(tmp_path: Path) -> None:
    report = Report("x", budgets=(BudgetRow("sops", float("inf"), 1.0),), totals=(Row("a", float("nan"), 1),))
    json_path, html_path = write_report(report, tmp_path)
    assert json.loads(json_path.read_text())["budgets"][0]["limit"] == "inf"
    assert "inf" in Page(html_path.read_text()).text


def test_numbers_are_said_plainly() -> None:
    assert [said_number(value) for value in (1234567, 1234.56, 0.12345, 3.0, float("inf"))] == [
        "1,234,567",
        "1,235",
        "0.123",
        "3",
        "inf",
    ]
    assert said_number(None) == said_percent(None) == said_change(Row("a", None, 1)) == "\N{EM DASH}"
    assert said_change(Row("a", 0, 1)) == "\N{EM DASH}"
    assert said_change(Row("a", 200, 50)) == "25.0 %"
    assert said_change(Row("a", 0.5, 0.52, "share")) == "+2.00 points"
    assert LayerRow("none", 0, 0).density == 0.0


def test_pictures_leave_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    render_html(full_report())
    assert dict(mpl.rcParams) == before


def test_picture_marks_the_first_difference() -> None:
    spikes = torch.zeros(4, 2, 3, dtype=torch.bool)
    spikes[2, 1, 0] = True
    difference = Difference("lif1", 3, 0, (1, 2), True, False)
    picture = raster_picture(spikes, "lif1", difference)
    assert picture.spikes == ((2, 3),)
    assert picture.mark == (3, 5)
    assert (picture.steps, picture.neurons) == (4, 6)
    assert raster_picture(spikes, "lif1").mark is None
    marked, plain = (Page(render_html(Report("x", raster=p))) for p in (picture, raster_picture(spikes, "lif1")))
    assert len(str(marked.attributes)) > len(str(plain.attributes)) + 200


def test_pictures_that_make_no_sense_are_refused() -> None:
    spikes = torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(RasterError, match=r"picture: found torch\.float32"):
        raster_picture(spikes.float(), "x")
    with pytest.raises(RasterError, match=r"neuron \(3,\) of lif1 lies outside neurons of shape \(3,\)"):
        raster_picture(spikes, "x", Difference("lif1", 0, 0, (3,), True, False))
    with pytest.raises(RasterError, match="step 4 lies outside the raster of 4 steps"):
        raster_picture(spikes, "x", Difference("lif1", 4, 0, (1,), True, False))


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_package_names_the_extra_and_writes_nothing(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == missing or (missing == "matplotlib" and name == "slamp.report_pictures"):
            raise ImportError(f"No module named {missing!r}")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=rf"No module named '{missing}'.*slamp\[report\]"):
        write_report(full_report(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_report_of_a_real_verification(tmp_path: Path) -> None:
    graph = conv_graph()
    inputs = raster(graph)
    reference = reference_run(graph, inputs)
    with staged_artifact(graph, tmp_path / "artifact", target="fake", options={}):
        pass
    other = changed(graph, "lif2", reset="subtract")
    result = verify(
        open_artifact(tmp_path / "artifact"),
        graph,
        inputs,
        runner=lambda artifact, batch: simulate(other, batch, record="spikes"),
    )
    first = result.first_difference
    assert first is not None
    picture = raster_picture(reference[first.layer].spikes[:, first.sample], f"Layer {first.layer}", first)
    page = Page(render_html(Report("x", verdicts=(verdict_line("export", result),), raster=picture)))
    assert "cause: reset: by subtraction instead of by value" in page.text
    assert ("span", "class", "badge different") in page.attributes
