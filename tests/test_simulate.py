from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from networks import ZOO, analog, assert_evidence, build, run_norse, spikes
from slamp.capture import read_graph
from slamp.errors import GraphError, RasterError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LI, AvgPool2d, Flatten, Input, Linear, Output, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, is_spiking_output, predictions, simulate, stream


@pytest.mark.parametrize("name", ZOO)
def test_the_output_is_that_of_norse(name: str) -> None:
    net, raster = build(name)
    graph, _ = read_graph(net, raster.features, raster.dt)
    recording = simulate(graph, raster, record="spikes")
    assert_evidence(graph, recording)
    assert torch.equal(recording.output.data.to(torch.float32), run_norse(net, raster))
    assert recording.output.is_spikes == is_spiking_output(graph)


def test_samples_do_not_depend_on_their_batch() -> None:
    net, raster = build("conv_pool_norm")
    graph, _ = read_graph(net, raster.features, raster.dt)
    together = simulate(graph, raster).output.data
    assert together.any()
    for index in range(raster.batch):
        assert torch.equal(simulate(graph, raster.samples(index, index + 1)).output.data[:, 0], together[:, index])


def test_recording_grows_with_what_is_asked() -> None:
    net, raster = build("dense_cuba")
    graph, _ = read_graph(net, raster.features, raster.dt)
    output, spiking, everything = (simulate(graph, raster, record=record) for record in ("output", "spikes", "all"))
    assert dict(output.traces) == {}
    assert spiking["1"].v is None
    assert spiking["1"].spikes is not None
    assert spiking["5"].v is not None  # a readout's value
    assert everything["1"].v is not None
    assert everything["1"].i is not None
    assert torch.equal(everything["1"].spikes, spiking["1"].spikes)
    assert torch.equal(output.output.data, everything.output.data)
    assert everything["1"].v.shape == (raster.steps, raster.batch, 24)


def test_spikes_are_membranes_above_threshold() -> None:
    net, raster = build("conv_box")
    graph, _ = read_graph(net, raster.features, raster.dt)
    recording = simulate(graph, raster, record="all")
    assert_evidence(graph, recording)
    for name, node in graph.spiking.items():
        trace = recording[name]
        assert trace.v is not None
        assert torch.equal(trace.spikes, trace.v > torch.tensor(node.v_threshold))


def test_spike_count_is_that_of_all_recorded_layers() -> None:
    net, raster = build("dense_if")
    graph, _ = read_graph(net, raster.features, raster.dt)
    everything = simulate(graph, raster, record="spikes")
    assert everything.spike_count == sum(int(trace.spikes.sum()) for trace in everything.traces.values()) > 0
    assert simulate(graph, raster).spike_count == int(run_norse(net, raster).sum())


def test_a_recording_of_an_unknown_node() -> None:
    net, raster = build("dense_if")
    graph, _ = read_graph(net, raster.features, raster.dt)
    with pytest.raises(KeyError, match="1"):
        simulate(graph, raster)["1"]


def test_streaming_is_lazy() -> None:
    net, raster = build("dense_if", steps=5)
    graph, _ = read_graph(net, raster.features, raster.dt)
    steps = stream(graph, raster)
    assert next(steps).t == 0
    assert next(steps).t == 1


def test_several_edges_are_added_in_their_order() -> None:
    """(2^24 + 1) - 2^24 is 0 in float32, (2^24 - 2^24) + 1 is 1."""
    big = np.float32(2**24)

    def total(*order: str) -> float:
        weights = {"big": big, "one": np.float32(1), "minus": -big}
        nodes = {
            "input": Input((1,)),
            **{name: Linear(np.array([[value]], dtype=np.float32)) for name, value in weights.items()},
            "sum": LI(uniform(1.0, (1,)), uniform(0.0, (1,))),
            "output": Output((1,)),
        }
        edges = [("input", name) for name in weights] + [(name, "sum") for name in order] + [("sum", "output")]
        graph = SpikingGraph(nodes, tuple(edges), 1e-3)
        return simulate(graph, SpikeRaster(np.ones((1, 1, 1), bool))).output.data.item()

    assert total("big", "one", "minus") == 0.0
    assert total("big", "minus", "one") == 1.0


def test_features_that_do_not_fit_are_refused() -> None:
    net, raster = build("dense_if")
    graph, _ = read_graph(net, raster.features, raster.dt)
    with pytest.raises(RasterError, match=r"features \(5,\), the graph's input 'input' has shape \(16,\)"):
        simulate(graph, spikes((5,)))


def test_another_dt_is_refused() -> None:
    net, raster = build("dense_if")
    graph, _ = read_graph(net, raster.features, raster.dt)
    with pytest.raises(RasterError, match=r"dt is 0\.002 s, the graph's is 0\.001 s; bin the events anew"):
        simulate(graph, replace(raster, dt=2e-3))


def test_analog_inputs_are_taken() -> None:
    net, _ = build("dense_box")
    raster = analog((16,))
    graph, _ = read_graph(net, raster.features, raster.dt)
    assert torch.equal(simulate(graph, raster).output.data.to(torch.float32), run_norse(net, raster))


def ending(*last: object, out: tuple[int, ...]) -> SpikingGraph:
    nodes = {"input": Input((1, 4, 4)), "n": IF(uniform(1.0, (1, 4, 4)), uniform(0.0, (1, 4, 4)))}
    nodes |= {f"l{index}": node for index, node in enumerate(last)} | {"output": Output(out)}
    return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)


def test_spikes_behind_a_flatten_are_spikes_behind_a_pool_values() -> None:
    assert is_spiking_output(ending(Flatten(0, 2), out=(16,)))
    assert not is_spiking_output(ending(AvgPool2d((2, 2), (2, 2), (0, 0)), out=(1, 2, 2)))


def test_predictions_count_spikes_over_time() -> None:
    data = torch.zeros(4, 2, 3, dtype=torch.bool)
    data[:3, 0, 2] = True
    data[0, 0, 1] = True
    data[1, 1, 1] = True
    assert predictions(Recording(SpikeRaster(data))).tolist() == [2, 1]


def test_predictions_follow_the_readout() -> None:
    values = np.array([[[0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0]], [[2.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]]], dtype=np.float32)
    recording = Recording(SpikeRaster(values, kind="analog"))
    assert [predictions(recording, readout).item() for readout in ("mean", "sum", "last", "max")] == [0, 0, 2, 1]
    with pytest.raises(GraphError, match="'median'; allowed are mean, sum, last, max"):
        predictions(recording, "median")


def test_predictions_need_one_axis() -> None:
    with pytest.raises(GraphError, match=r"shape \(1, 4, 4\) per sample; allowed for a class is one axis"):
        predictions(Recording(spikes((1, 4, 4))))
