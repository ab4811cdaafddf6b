from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

from networks import assert_evidence, box, build, enliven, randomize_normalizations, spikes
from slamp.capture import capture, read_graph
from slamp.errors import UnsupportedNodeError
from slamp.exporting import export
from slamp.fold import fold_batchnorm
from slamp.graph import SpikingGraph
from slamp.nodes import IF, Affine, Conv2d, Input, Linear, Node, Output, Scale, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import simulate
from slamp.verify import verify


def normalized() -> tuple[SpikingGraph, SpikeRaster]:
    net = SequentialState(
        torch.nn.Conv2d(2, 5, 3, bias=False),
        torch.nn.BatchNorm2d(5),
        box(),
        torch.nn.Flatten(),
        torch.nn.Linear(5 * 16, 20),
        torch.nn.BatchNorm1d(20),
        box(),
    )
    randomize_normalizations(net, np.random.default_rng(0))
    raster = spikes((2, 6, 6), steps=40, batch=8)
    assert enliven(net, raster)
    return read_graph(net, raster.features, raster.dt)[0], raster


def test_folded_weights_are_products_rounded_once() -> None:
    graph, raster = normalized()
    folded = fold_batchnorm(graph, raster).graph
    old, scale, new = graph.weighted["4"], graph.nodes["5"], folded.weighted["4"]
    assert isinstance(old, Affine)
    assert isinstance(scale, Scale)
    assert isinstance(new, Affine)
    factor = scale.scale.astype(np.float64)
    assert np.array_equal(new.weight, (old.weight * factor[:, None]).astype(np.float32))
    assert np.array_equal(new.bias, (old.bias * factor + scale.shift).astype(np.float32))


def test_folding_removes_every_scale_and_gives_layers_a_bias() -> None:
    graph, raster = normalized()
    folding = fold_batchnorm(graph, raster)
    assert not any(isinstance(node, Scale) for node in folding.graph.nodes.values())
    assert folding.folded == ("1", "5")
    assert isinstance(folding.graph.nodes["0"], Conv2d)
    assert folding.graph.nodes["0"].bias is not None
    assert folding.graph.edges[:2] == (("input", "0"), ("0", "2"))
    assert folding.graph.parameters == graph.parameters


def test_folding_barely_moves_spikes_and_says_how_many() -> None:
    graph, raster = normalized()
    folding = fold_batchnorm(graph, raster)
    before, after = simulate(graph, raster, record="spikes"), simulate(folding.graph, raster, record="spikes")
    assert_evidence(graph, before)
    cells = differing = 0
    for name in graph.spiking:
        found, expected = after[name].spikes, before[name].spikes
        assert found is not None
        assert expected is not None
        cells += found.numel()
        differing += int((found != expected).sum())
    assert (folding.cells, folding.differing) == (cells, differing)
    assert cells == 40 * 8 * (5 * 16 + 20)
    assert differing <= 0.001 * cells


def test_moved_spikes_are_counted() -> None:
    """A scale of 1 + 2^-23 makes the folded weight round up; the membrane then passes the threshold it met exactly."""
    tiny = np.float32(1 + 2**-23)
    nodes: dict[str, Node] = {
        "input": Input((2,)),
        "w": Linear(frozen_array(np.array([[1.0, 2**-24]]))),
        "s": Scale(frozen_array(np.array([tiny])), frozen_array(np.array([-(2**-23)]))),
        "n": IF(uniform(1.0, (1,)), uniform(0.0, (1,))),
        "output": Output((1,)),
    }
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    raster = SpikeRaster(np.array([[[1, 1]], [[0, 0]], [[1, 0]]], dtype=bool))
    folding = fold_batchnorm(graph, raster)
    before, after = (simulate(each, raster).output.data for each in (graph, folding.graph))
    assert folding.cells == 3
    assert folding.differing == int((before != after).sum())
    assert folding.differing > 0


def test_folding_a_graph_without_scales_changes_nothing() -> None:
    net, raster = build("dense_if")
    graph, _ = read_graph(net, raster.features, raster.dt)
    folding = fold_batchnorm(graph, raster)
    assert folding.graph.hash == graph.hash
    assert (folding.folded, folding.cells, folding.differing) == ((), 0, 0)


def test_two_scales_in_a_row_are_folded() -> None:
    nodes: dict[str, Node] = {
        "input": Input((3,)),
        "w": Linear(uniform(0.25, (2, 3))),
        "s": Scale(uniform(2.0, (2,)), uniform(0.5, (2,))),
        "t": Scale(uniform(4.0, (2,)), uniform(-1.0, (2,))),
        "n": IF(uniform(3.0, (2,)), uniform(0.0, (2,))),
        "output": Output((2,)),
    }
    raster = spikes((3,))
    folding = fold_batchnorm(SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3), raster)
    weighted = folding.graph.weighted["w"]
    assert isinstance(weighted, Affine)
    assert weighted.weight.tolist() == [[2.0] * 3] * 2
    assert weighted.bias.tolist() == [1.0, 1.0]
    assert folding.differing == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_scale_in_another_place_is_refused(shared: bool) -> None:
    scale = Scale(uniform(2.0, (3,)), uniform(0.5, (3,)))
    nodes: dict[str, Node] = {"input": Input((3,))}
    if shared:
        nodes["w"] = Linear(uniform(1.0, (3, 3)))
    nodes |= {"s": scale, "n": IF(uniform(1.0, (3,)), uniform(0.0, (3,))), "output": Output((3,))}
    edges = [*pairwise(nodes)] + ([("w", "n")] if shared else [])
    graph = SpikingGraph(nodes, tuple(edges), 1e-3)
    before = "Linear 'w'" if shared else "Input 'input'"
    with pytest.raises(UnsupportedNodeError, match=f"s: Scale follows {before}; allowed is .* that feeds nothing else"):
        fold_batchnorm(graph, spikes((3,)))


def test_a_multiplication_behind_neurons_stays_and_is_exported(tmp_path: Path) -> None:
    net, raster = build("dense_if")
    first, neurons, *rest = net.children()
    halved = SequentialState(first, neurons, Halved(), *rest)
    graph = capture(halved, raster)
    folding = fold_batchnorm(graph, raster)
    assert folding.folded == ()
    assert folding.graph.hash == graph.hash
    artifact = export(folding.graph, to="nir", directory=tmp_path / "nir")
    assert verify(artifact, graph, raster).equivalent


class Halved(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.75 * x
