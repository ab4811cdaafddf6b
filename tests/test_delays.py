"""Delays and recurrence: what arrives when, in float and in fixed point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import slamp
from slamp.errors import GraphError
from slamp.graph import SpikingGraph
from slamp.nodes import Delay, Input, Linear, Node, Output, frozen_array
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, cuba, linear


def delay(*steps: float) -> Delay:
    return Delay(frozen_array(np.array(steps, dtype=np.float32)))


def test_every_feature_waits_its_own_time() -> None:
    graph = chain(delay(0, 1, 3), features=(3,), arithmetic=slamp.Float32())
    values = torch.arange(1.0, 16.0).reshape(5, 1, 3)
    found = slamp.simulate(graph, SpikeRaster(values, DT, kind="analog")).output.data[:, 0]
    assert found[:, 0].tolist() == [1, 4, 7, 10, 13]
    assert found[:, 1].tolist() == [0, 2, 5, 8, 11]
    assert found[:, 2].tolist() == [0, 0, 0, 3, 6]


def test_a_delay_of_zero_is_nothing() -> None:
    raster = SpikeRaster(torch.rand(4, 2, 3), DT, kind="analog")
    found = slamp.simulate(chain(delay(0, 0, 0), features=(3,), arithmetic=slamp.Float32()), raster)
    assert torch.equal(found.output.data, raster.data)


def recurrent(steps: float = 1.0) -> SpikingGraph:
    nodes: dict[str, Node] = {
        "input": Input((1,)),
        "in": linear([[40.0]]),
        "last": delay(steps),
        "rec": linear([[40.0]]),
        "neuron": cuba((1,), du=4095, dv=4096, vth=30),
        "output": Output((1,)),
    }
    edges = (("input", "in"), ("in", "neuron"), ("last", "rec"), ("rec", "neuron"), ("neuron", "last"))
    return SpikingGraph(nodes, (*edges, ("neuron", "output")), DT, slamp.FixedPoint())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_spike_comes_back_after_the_delay(steps: int) -> None:
    data = torch.zeros(7, 1, 1, dtype=torch.bool)
    data[0] = True
    found = slamp.simulate(recurrent(steps), SpikeRaster(data, DT)).output.data.flatten().tolist()
    assert found == [t % steps == 0 for t in range(7)]


def test_samples_do_not_hear_one_another() -> None:
    data = torch.zeros(6, 3, 1, dtype=torch.bool)
    data[0, 1] = True
    data[2, 2] = True
    together = slamp.simulate(recurrent(2), SpikeRaster(data, DT)).output.data
    for sample in range(3):
        alone = slamp.simulate(recurrent(2), SpikeRaster(data[:, sample : sample + 1], DT)).output.data
        assert torch.equal(together[:, sample : sample + 1], alone)


def test_calibration_steps_through_recurrence() -> None:
    graph = recurrent(2)
    data = torch.zeros(9, 2, 1, dtype=torch.bool)
    data[0, 0] = True
    activity = slamp.calibrate(graph, SpikeRaster(data, DT))
    spikes = slamp.simulate(graph, SpikeRaster(data, DT)).output.data
    assert activity.neurons["neuron"].spike_counts.sum() == spikes.sum() / 2 == 2.5
    assert activity.layers["rec"].from_spikes
    # every spike reaches the recurrent synapse two steps later: those of steps 0, 2, 4, 6
    assert activity.layers["rec"].operations.sum() == 4 / 2


def test_cycles_need_a_delay_of_a_step() -> None:
    nodes = dict(recurrent().nodes)
    with pytest.raises(GraphError, match="lies on a cycle; allowed are cycles through a Delay of a step or more"):
        SpikingGraph({**nodes, "last": delay(0)}, recurrent().edges, DT, slamp.FixedPoint())


def test_a_cycle_without_neurons_has_no_bound() -> None:
    nodes: dict[str, Node] = {"input": Input((1,)), "last": delay(1), "w": linear([[1.0]]), "output": Output((1,))}
    edges = (("input", "w"), ("last", "w"), ("w", "last"), ("w", "output"))
    graph = SpikingGraph(nodes, edges, DT, slamp.FixedPoint())
    with pytest.raises(GraphError, match="lies on a cycle without neurons, whose sums have no bound"):
        slamp.simulate(graph, SpikeRaster(torch.ones(2, 1, 1, dtype=torch.bool), DT))


@pytest.mark.parametrize("steps", [-1.0, 0.5])
def test_delays_are_whole_steps(steps: float) -> None:
    with pytest.raises(GraphError, match=r"n0: steps holds .* allowed are whole steps, 0 or more"):
        chain(delay(steps), features=(1,), arithmetic=slamp.Float32())


def test_loihi_delays_by_62_steps_at_most() -> None:
    chain(delay(62), linear([[1.0]]), cuba((1,)), features=(1,))
    with pytest.raises(GraphError, match="n0: delays by 63 steps; allowed are 0 to 62"):
        chain(delay(63), linear([[1.0]]), cuba((1,)), features=(1,))


def test_shapes_are_checked_around_a_cycle() -> None:
    nodes = {**recurrent().nodes, "last": delay(1, 1), "rec": Linear(frozen_array(np.ones((1, 2))))}
    with pytest.raises(GraphError, match=r"last: Delay receives shape \(1,\), allowed is \(2,\)"):
        SpikingGraph(nodes, recurrent().edges, DT, slamp.FixedPoint())


def test_a_graph_with_delays_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    recurrent(3).save(path)
    assert slamp.load_graph(path).hash == recurrent(3).hash != recurrent(2).hash
