"""The support table of the README, computed: every cell is what a small network did.

python tests/support_table.py           print it
python tests/support_table.py --write   put it into README.md
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slamp
from exporters.to_lava import reread
from networks import randomize_normalizations, spikes, spiking_shares
from slamp.errors import GraphError, UnsupportedModuleError, UnsupportedNodeError
from slamp.exporting import installed_exporters
from slamp.graph import SpikingGraph
from slamp.raster import SpikeRaster
from support_rows import GROUPS, Row

README = Path(__file__).parent.parent / "README.md"
COMMAND = "python tests/support_table.py --write"
BLOCK = re.compile(r"(?<=<!-- support -->\n).*?(?=<!-- /support -->)", re.S)
TARGETS = ("nir", "lava", "onnx")
NAMES = {"nir": "NIR", "lava": "Lava", "onnx": "ONNX"}
STEPS, BATCH = 10, 3
GAINS = (1.0, *[1.5] * 12)


def table() -> str:
    """Return the table as Markdown, with a line end behind."""
    lines = [f"| | captured | {' | '.join(NAMES[target] for target in TARGETS)} |", "|---|---|---|---|---|"]
    for group, rows in GROUPS.items():
        lines.append(f"| **{group}** | | | | |")
        lines += [f"| {row.label} | {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """Return what a row says: captured, then each target; raises `AssertionError` if its networks differ in it."""
    found = [_cells_of(row, index) for index in range(len(row.builders))]
    assert all(each == found[0] for each in found), f"{row.label}: its networks are supported differently: {found}"
    return found[0]


def _cells_of(row: Row, index: int) -> list[str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = row.builders[index]()
    randomize_normalizations(net, np.random.default_rng(0))
    rasters = [spikes(shape, steps=STEPS, batch=BATCH, rate=0.4, seed=k) for k, shape in enumerate(row.inputs)]
    try:
        graph = living(net, rasters)
    except UnsupportedModuleError as refusal:
        named = row.names[index] if row.names else ""
        if not re.search(named, str(refusal)):
            raise AssertionError(f"{row.label}: refused, but not for {named!r}") from refusal
        say(row, "captured", refusal)
        return ["no", *["no"] * len(TARGETS)]
    return ["yes", *(_exported(graph, _joined(rasters), target, row) for target in TARGETS)]


def living(net: torch.nn.Module, rasters: list[SpikeRaster]) -> SpikingGraph:
    """Capture a network whose parameters grow until every spiking layer fires."""
    for gain in GAINS:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(gain)
        graph = slamp.capture(net, rasters)
        shares = spiking_shares(graph, slamp.simulate(graph, _joined(rasters), record="spikes"))
        if shares and min(shares.values()) > 0.03:
            return graph
    raise AssertionError(f"layers stay silent: {shares}")


def _joined(rasters: list[SpikeRaster]) -> SpikeRaster:
    return rasters[0] if len(rasters) == 1 else slamp.join(rasters)


def _exported(graph: SpikingGraph, raster: SpikeRaster, target: str, row: Row) -> str:
    """Export a graph to a target, as it is or else normalization folded, and verify; say how it went."""
    if target not in installed_exporters():
        return "not yet"
    refusal: UnsupportedNodeError | GraphError | None = None
    options: tuple[dict[str, Any], ...] = ({}, {"strict": False}) if target == "nir" else ({},)
    for folds in (False, True):
        for option in options:
            try:
                tried = slamp.fold_batchnorm(graph, raster).graph if folds else graph
                how = _verified(tried, raster, target, option)
            except (UnsupportedNodeError, GraphError) as error:
                refusal = refusal or error
                continue
            words = [*(["folded"] if folds else []), how, *[f"`{key}={value}`" for key, value in option.items()]]
            return ", ".join(word for word in words if word != "yes") or "yes"
    say(row, target, refusal)
    return "no"


def _verified(graph: SpikingGraph, raster: SpikeRaster, target: str, options: dict[str, Any]) -> str:
    """Return "yes", or for Lava the form of the files; raises what the target refuses with."""
    shipped, runner = graph, None
    if target == "lava":
        shipped = slamp.quantize(graph, slamp.load_profile("loihi2"), slamp.calibrate(graph, raster))
        runner = reread
    with tempfile.TemporaryDirectory() as directory:
        artifact = slamp.export(shipped, to=target, directory=Path(directory) / target, **options)
        result = slamp.verify(artifact, shipped, raster, runner=runner)
        assert result.equivalent, f"{target}: {result.sentence()}"
        return str(artifact.manifest["options"].get("form", "yes"))


def say(row: Row, where: str, refusal: object) -> None:
    """Print why a cell says no, if that was asked for."""
    if "--why" in sys.argv:
        print(f"{row.label}: {where}: {refusal}", file=sys.stderr)


if __name__ == "__main__":
    found = table()
    if "--write" in sys.argv:
        README.write_text(BLOCK.sub(lambda _: found, README.read_text()))
    else:
        print(found, end="")
