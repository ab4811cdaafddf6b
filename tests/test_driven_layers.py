"""What drives a layer of neurons on the way to integers: delays before and behind weights, ways beside one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import LIFCell, SequentialState

import slamp
from exporters.to_lava import reread
from lava_artifacts import needs_lava
from networks import enliven
from slamp.driven_layers import driven, driven_layer
from slamp.graph import SpikingGraph
from slamp.nodes import CubaLIF, Delay, Input, Linear, Node, Output, frozen_array, uniform
from slamp.raster import SpikeRaster
from test_fixed_point import DT

LOIHI = slamp.load_profile("loihi2")


def two_ways() -> SpikingGraph:
    """Two ways from one source, float weights on a grid of 8 bits: one late by source, one late by target."""
    weights = np.random.default_rng(0).integers(-127, 128, (2, 3, 4)).astype(np.float32) / 128
    weights[:, 0, 0] = 127 / 128, -127 / 128
    neuron = CubaLIF(uniform(0.5, (3,)), uniform(0.25, (3,)), uniform(0, (3,)), uniform(0.5, (3,)), uniform(0, (3,)))
    nodes: dict[str, Node] = {
        "input": Input((4,)),
        "staggered": Delay(frozen_array(np.array([0.0, 2, 0, 5], dtype=np.float32))),
        "a": Linear(frozen_array(weights[0])),
        "b": Linear(frozen_array(weights[1])),
        "late": Delay(frozen_array(np.array([1.0, 0, 3], dtype=np.float32))),
        "n": neuron,
        "output": Output((3,)),
    }
    edges = [("input", "staggered"), ("staggered", "a"), ("a", "n"), ("input", "b"), ("b", "late"), ("late", "n")]
    return SpikingGraph(nodes, (*edges, ("n", "output")), DT)


def spikes(features: int, batch: int = 5) -> SpikeRaster:
    return SpikeRaster(torch.tensor(np.random.default_rng(1).random((40, batch, features)) < 0.3), DT)


def test_both_ways_are_seen_with_their_delays() -> None:
    graph, raster = two_ways(), spikes(4)
    layer = driven_layer(graph, "n")
    assert layer.sources == {"a": "input", "b": "input"}
    assert (layer.chains, layer.late) == ({"a": ("staggered",), "b": ()}, {"a": (), "b": ("late",)})
    values = raster.data.float()
    expected = torch.zeros(40, 5, 3)
    for t in range(40):
        for source, steps in enumerate((0, 2, 0, 5)):
            if t >= steps:
                expected[t] += values[t - steps, :, source, None] * torch.tensor(graph.weighted["a"].weight[:, source])
        for target, steps in enumerate((1, 0, 3)):
            if t >= steps:
                expected[t, :, target] += values[t - steps] @ torch.tensor(graph.weighted["b"].weight[target])
    whole = {name: Linear(frozen_array(graph.weighted[name].weight * 128)) for name in ("a", "b")}
    found = sum(driven(layer, graph, name, whole[name], values) for name in whole)
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, expected * 128)


def test_weights_on_a_grid_lose_no_spike_behind_delays() -> None:
    graph, raster = two_ways(), spikes(4)
    integers = slamp.quantize(graph, LOIHI, slamp.calibrate(graph, raster))
    assert integers.weighted["a"].weight.tolist() == (128 * graph.weighted["a"].weight).tolist()
    assert integers.weighted["b"].weight.tolist() == (128 * graph.weighted["b"].weight).tolist()
    found = slamp.fidelity(graph, integers, raster).layers["n"]
    assert found.spikes > 5
    assert found.differing_cells == 0


def test_a_small_way_beside_a_large_one_is_not_clipped_to_its_scale() -> None:
    graph, raster = two_ways(), spikes(4)
    small = Linear(frozen_array(graph.weighted["b"].weight / 50))
    graph = graph.with_nodes({"b": small})
    integers = slamp.quantize(graph, LOIHI, slamp.calibrate(graph, raster))
    ratio = np.abs(integers.weighted["a"].weight).max() / np.abs(integers.weighted["b"].weight).max()
    assert ratio == pytest.approx(50, rel=0.05)
    assert slamp.fidelity(graph, integers, raster).layers["n"].differing_cells < 0.05


@needs_lava
@pytest.mark.slow
def test_norse_networks_of_lif_cells_with_biases_travel_to_lava(tmp_path: Path) -> None:
    """`Linear` with bias before `LIFCell`, as everybody writes it: captured, quantized, written, and equal in Lava."""
    net = SequentialState(torch.nn.Linear(12, 20), LIFCell(dt=DT), torch.nn.Linear(20, 6), LIFCell(dt=DT))
    raster = spikes(12)
    assert enliven(net, raster)
    graph = slamp.capture(net, raster)
    assert all(np.abs(node.bias).min() > 0 for node in graph.weighted.values())  # type: ignore[union-attr]  # Affine
    integers = slamp.quantize(graph, LOIHI, slamp.calibrate(graph, raster))
    artifact = slamp.export(integers, to="lava", directory=tmp_path / "lava", golden=raster)
    assert artifact.manifest["options"]["input_lines"] > 1
    result = slamp.verify(artifact, integers, raster)
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()
    assert slamp.verify(artifact, integers, raster, runner=reread).cells == result.cells
