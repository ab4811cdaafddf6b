"""What a network costs and how well it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import slamp
import user_networks as users
from slamp.errors import RasterError
from slamp.measure import account, accuracy, densities_curve
from slamp.nodes import IF, Conv2d, Flatten, Linear, frozen_array, uniform
from verify_networks import chain

DT = 1e-3


def counting_graph() -> slamp.SpikingGraph:
    """Two outputs; each spikes exactly when its input does."""
    nodes = {
        "fc": Linear(frozen_array(np.array([[2.0, 0.0], [0.0, 2.0]]))),
        "if": IF(uniform(1.0, (2,)), uniform(0.0, (2,))),
    }
    return chain(nodes, features=(2,), out=(2,))


def counted(*rows: list[list[int]], labels: list[int] | None = None) -> slamp.SpikeRaster:
    """A raster from one (time, 2) table per sample."""
    data = torch.tensor(rows).transpose(0, 1)
    return slamp.SpikeRaster(data, DT, None if labels is None else torch.tensor(labels))


FIRST, SECOND = [[1, 0], [1, 1], [1, 0]], [[0, 1], [1, 1], [0, 1]]


def test_accuracy_is_the_share_of_labels_met() -> None:
    graph = counting_graph()
    assert accuracy(graph, counted(FIRST, SECOND, FIRST, labels=[0, 1, 1])) == pytest.approx(2 / 3)
    assert accuracy(graph, counted(FIRST, SECOND, labels=[0, 1])) == 1.0
    assert accuracy(graph, counted(FIRST, SECOND, labels=[1, 0])) == 0.0


def test_accuracy_needs_labels() -> None:
    with pytest.raises(RasterError, match="accuracy: the raster has no labels"):
        accuracy(counting_graph(), counted(FIRST))


def test_accounts_of_a_network_counted_by_hand() -> None:
    found = account(counting_graph(), counted(FIRST, SECOND), counted(SECOND, labels=[0]))
    assert found.weights == 4
    assert found.synapses == {"fc": 2}
    assert found.connections == {"fc": 2}
    assert found.density == 0.5
    assert found.activity.sops == 4.0  # four input spikes per sample, one synapse each
    assert found.held_out.sops == 4.0
    assert found.held_out.spikes == 4.0
    assert found.accuracy == 0.0


def test_a_metric_replaces_the_labels() -> None:
    assert account(counting_graph(), counted(FIRST), counted(FIRST, labels=[1]), 0.75).accuracy == 0.75
    assert account(counting_graph(), counted(FIRST), counted(FIRST)).accuracy is None


def test_connections_of_a_convolution_are_unrolled_without_padding() -> None:
    weight = np.zeros((1, 1, 3, 3), np.float32)
    weight[0, 0, 1, 1] = weight[0, 0, 0, 0] = 2.0
    nodes = {
        "conv": Conv2d(frozen_array(weight), None, (1, 1), (1, 1), (1, 1), 1),
        "if": IF(uniform(1.0, (1, 4, 4)), uniform(0.0, (1, 4, 4))),
        "flatten": Flatten(0, 2),
    }
    graph = chain(nodes, features=(1, 4, 4), out=(16,))
    raster = slamp.SpikeRaster(torch.ones(2, 1, 1, 4, 4), DT)
    found = account(graph, raster, raster)
    assert found.synapses == {"conv": 2}
    assert found.connections == {"conv": 16 + 9}, "the corner tap reads padding in 7 of 16 positions"
    assert found.activity.sops == 2 * (16 + 9)


def test_the_curve_skips_what_one_weight_per_layer_exceeds() -> None:
    net = users.layers()
    raster, held_out = users.samples(40), users.samples(20, seed=1)
    points = densities_curve(net, raster, held_out, method="auto", readout="mean", seed=0)
    assert [density for density, _ in points] == [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    assert points == densities_curve(net, raster, held_out, method="auto", readout="mean", seed=0)


def test_there_is_no_curve_of_a_network_that_is_silent_in_part() -> None:
    points = densities_curve(
        users.silent(), users.samples(20), users.samples(20, seed=1), method="auto", readout="mean", seed=0
    )
    assert points == []
