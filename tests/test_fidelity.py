"""What pruning and quantization cost: numbers one can compute by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

import slamp
from networks import cuba, enliven, spikes
from slamp.errors import GraphError
from slamp.nodes import LIF, Linear, frozen_array, uniform
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, linear


def relay(threshold: float) -> LIF:
    """A neuron that fires in the step in which its input exceeds the threshold."""
    return LIF(uniform(1.0, (1,)), uniform(0.0, (1,)), uniform(threshold, (1,)), uniform(0.0, (1,)))


def single(weight: float) -> slamp.SpikingGraph:
    return chain(linear([[weight]]), relay(0.5), features=(1,), arithmetic=slamp.Float32())


def raster_of(*steps: int, length: int = 6) -> SpikeRaster:
    data = torch.zeros(length, 1, 1, dtype=torch.bool)
    data[list(steps)] = True
    return SpikeRaster(data, DT, labels=torch.tensor([0]))


def test_equal_networks_lose_nothing() -> None:
    found = slamp.fidelity(single(1.0), single(0.9), raster_of(0, 2))
    layer = found.layers["n1"]
    assert (layer.spikes, layer.differing_cells, layer.spike_count_error, layer.van_rossum) == (2.0, 0.0, 0.0, 0.0)
    assert found.accuracy == found.reference_accuracy == 1.0
    assert found.vanished == {"n0": 0}


def test_lost_spikes_are_counted_and_measured() -> None:
    found = slamp.fidelity(single(1.0), single(0.0), raster_of(1, 3), tau_steps=2.0)
    layer = found.layers["n1"]
    keep = math.exp(-0.5)
    trace = [0.0, 1.0, keep, keep**2 + 1, (keep**2 + 1) * keep, (keep**2 + 1) * keep**2]
    assert layer.spike_count_error == 2.0
    assert layer.differing_cells == 2 / 6
    assert layer.van_rossum == pytest.approx(math.sqrt(sum(value**2 for value in trace) / 2.0))
    assert found.vanished == {"n0": 1}


def test_batches_add_up() -> None:
    net, raster = SequentialState(torch.nn.Linear(20, 12), cuba()), spikes((20,), batch=9, rate=0.5)
    assert enliven(net, raster)
    graph = slamp.capture(net, raster)
    found = slamp.quantize(graph, slamp.load_profile("loihi2"), slamp.calibrate(graph, raster))
    whole, pieces = (slamp.fidelity(graph, found, raster, batch=batch) for batch in (9, 4))
    assert whole.layers["1"].spikes > 0
    for key in ("spikes", "differing_cells", "spike_count_error", "van_rossum"):
        assert getattr(whole.layers["1"], key) == pytest.approx(getattr(pieces.layers["1"], key))
    old, new = (slamp.simulate(each, raster).output.data for each in (graph, found))
    assert whole.layers["1"].differing_cells == pytest.approx(float((old != new).double().mean()))
    counts = (old.double().sum(0) - new.double().sum(0)).abs().mean()
    assert whole.layers["1"].spike_count_error == pytest.approx(float(counts))
    assert whole.to_json()["layers"]["1"]["spikes"] == whole.layers["1"].spikes


def test_what_cannot_be_compared_is_refused() -> None:
    other = chain(
        Linear(frozen_array(np.ones((2, 1)))),
        LIF(*(uniform(value, (2,)) for value in (1.0, 0.0, 0.5, 0.0))),
        features=(1,),
        arithmetic=slamp.Float32(),
    )
    with pytest.raises(GraphError, match="fidelity: the networks have no spiking layer in common"):
        slamp.fidelity(single(1.0), other, raster_of(0))
    with pytest.raises(GraphError, match="fidelity: tau_steps is 0"):
        slamp.fidelity(single(1.0), single(1.0), raster_of(0), tau_steps=0)
