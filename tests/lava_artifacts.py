"""What tests of Lava's files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import slamp
from exporters.to_lava import LavaExporter, reread
from exporters.witness_lava import environment_python
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON
from slamp.raster import SpikeRaster

needs_lava = pytest.mark.skipif(
    environment_python() is None, reason="Lava's environment is not installed (slamp lava install)"
)


def check_reread(graph: SpikingGraph, raster: SpikeRaster, directory: Path) -> None:
    """The file read back computes the same: every layer is seen, in every step and sample, u and v too."""
    artifact = LavaExporter().write(graph, directory)
    result = slamp.verify(artifact, graph, raster, runner=reread, runner_name="reread")
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()
    neurons = sum(int(np.prod(graph.shapes[layer])) for layer in graph.nodes if isinstance(graph.nodes[layer], NEURON))
    assert result.cells >= 2 * neurons * raster.steps * raster.batch
