from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norse.torch import SequentialState

from networks import ZOO, analog, assert_evidence, box, build, cuba, enliven, iaf, spikes
from slamp.activity import Activity
from slamp.calibrate import as_rasters, calibrate
from slamp.capture import read_graph
from slamp.errors import RasterError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    Neuron,
    Node,
    Output,
    Pool,
    Scale,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape
from slamp.simulate import simulate
from slamp.taps import connections, tap_sums
from test_taps import CONVOLUTIONS, readings

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def of_zoo(name: str, *, steps: int = 20, batch: int = 4, prune: bool = False) -> tuple[SpikingGraph, SpikeRaster]:
    net, raster = build(name, steps=steps, batch=batch)
    if prune:
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim > 1:
                    parameter[parameter.abs() < parameter.abs().median()] = 0.0
        assert enliven(net, raster)
    return read_graph(net, raster.features, raster.dt)[0], raster


def chain(*nodes: Node, features: tuple[int, ...]) -> SpikingGraph:
    """The nodes, an IF layer behind them, and the ends."""
    shape = features
    for node in nodes:
        shape = output_shape("n", node, shape)
    names = ["input", *(f"n{index}" for index in range(len(nodes))), "if", "output"]
    parts = [Input(features), *nodes, IF(uniform(1.0, shape), uniform(0.0, shape)), Output(shape)]
    return SpikingGraph(dict(zip(names, parts, strict=True)), tuple(pairwise(names)), 1e-3)


def assert_equal_activity(first: Activity, second: Activity, *, rtol: float = 1e-5) -> None:
    for name, layer in first.layers.items():
        other = second.layers[name]
        assert layer.from_spikes == other.from_spikes
        for field in ("events", "operations", "tap_events"):
            np.testing.assert_allclose(
                getattr(layer, field), getattr(other, field), rtol=1e-12, err_msg=f"{name} {field}"
            )
        for field in ("energy", "trace_energy"):
            np.testing.assert_allclose(
                getattr(layer, field), getattr(other, field), rtol=rtol, err_msg=f"{name} {field}"
            )
    for name, neuron in first.neurons.items():
        other_neuron = second.neurons[name]
        np.testing.assert_allclose(neuron.rate, other_neuron.rate, rtol=1e-12)
        np.testing.assert_allclose(neuron.spike_counts, other_neuron.spike_counts, rtol=1e-12)
    np.testing.assert_allclose(first.peak_share, second.peak_share, rtol=1e-12)


# --- synaptic operations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(CONVOLUTIONS)))
def test_operations_equal_a_count_in_loops(index: int) -> None:
    """Every padding, stride, dilation, group; four in ten weights are pruned; per step."""
    node, features = CONVOLUTIONS[index]
    graph = chain(node, features=features)
    raster = spikes(features, steps=3, batch=2, rate=0.3, seed=index)
    data = raster.numpy().sum(1)
    operations, events, tap_events = np.zeros(3), np.zeros(3), np.zeros_like(connections(node, features))
    for source, entry, tap in readings(node, features):
        found = data[(slice(None), *source)]
        events += found
        operations += found * (node.weight[entry] != 0)
        tap_events[tap] += found.sum() / (node.weight.shape[0] // node.groups)
    layer = calibrate(graph, raster).layers["n0"]
    assert layer.from_spikes
    assert (layer.operations * 2).tolist() == operations.tolist()
    assert (layer.events * 2).tolist() == events.tolist()
    np.testing.assert_allclose(layer.tap_events * 2, tap_events, rtol=1e-12)
    assert 0 < operations.sum() < events.sum()


def test_operations_of_linear_layers_on_pruned_weights() -> None:
    weight = np.array([[1, 0, 0], [1, 2, 0]], dtype=np.float32)
    data = np.array([[[1, 0, 1]], [[1, 1, 1]]], dtype=bool)
    layer = calibrate(chain(Linear(frozen_array(weight)), features=(3,)), SpikeRaster(data)).layers["n0"]
    assert layer.operations.tolist() == [2.0, 3.0]
    assert layer.events.tolist() == [4.0, 6.0]
    assert layer.tap_events.tolist() == [[2.0, 1.0, 2.0]]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["conv_box", "conv_1d", "dense_box"])
def test_operations_inside_a_network_equal_those_of_the_recorded_spikes(name: str, fold: bool) -> None:
    graph, raster = of_zoo(name, prune=True)
    recording = simulate(graph, raster, record="spikes")
    assert_evidence(graph, recording)
    activity = calibrate(graph, raster, fold=fold)
    total = 0.0
    for layer, node in graph.weighted.items():
        (source,) = graph.sources(layer)
        data = raster.data if source == "input" else None
        if data is None:
            before = source if source in recording.traces else graph.sources(source)[0]
            data = recording[before].spikes
        assert data is not None
        x = data.flatten(0, 1).to(torch.float64).reshape(-1, *graph.shapes[source])
        kept = torch.tensor(node.weight != 0, dtype=torch.float64)
        if isinstance(node, Conv1d | Conv2d):
            convolve = F.conv1d if isinstance(node, Conv1d) else F.conv2d
            out = convolve(x, kept, None, node.stride, node.padding, node.dilation, node.groups)
        else:
            out = F.linear(x, kept)
        expected = out.reshape(raster.steps, -1).sum(1).numpy() / raster.batch
        np.testing.assert_allclose(activity.layers[layer].operations, expected, rtol=1e-12)
        total += expected.sum()
    assert activity.sops == pytest.approx(total)
    assert activity.macs == 0.0
    assert activity.sops < activity.dense_sops


@pytest.mark.parametrize(
    "pool",
    [
        SumPool2d((2, 2), (2, 2)),
        SumPool2d((3, 3), (1, 1)),
        AvgPool2d((2, 2), (2, 2), (0, 0)),
        AvgPool2d((3, 2), (2, 1), (1, 1)),
    ],
    ids=["sum", "sum_overlapping", "average", "average_padded"],
)
def test_behind_a_pool_every_spike_counts_once_per_window(pool: Pool) -> None:
    features = (1, 4, 4)
    shape = output_shape("pool", pool, features)
    linear = Linear(frozen_array(np.eye(3, int(np.prod(shape))) + np.eye(3, int(np.prod(shape)), 1)))
    raster = spikes(features, steps=4, batch=2, rate=0.5)
    padding = pool.padding if isinstance(pool, AvgPool2d) else (0, 0)
    expected = np.zeros(4)
    kept = (linear.weight != 0).sum(0).reshape(shape)
    for y in range(shape[1]):
        for x in range(shape[2]):
            top, left = y * pool.stride[0] - padding[0], x * pool.stride[1] - padding[1]
            window = raster.numpy()[
                :, :, 0, max(top, 0) : top + pool.kernel_size[0], max(left, 0) : left + pool.kernel_size[1]
            ]
            expected += window.sum((1, 2, 3)) * kept[0, y, x]
    layer = calibrate(chain(pool, Flatten(0, 2), linear, features=features), raster).layers["n2"]
    assert layer.from_spikes
    assert (layer.operations * 2).tolist() == expected.tolist()
    assert expected.sum() > 0


@pytest.mark.parametrize("pooled", [False, True])
def test_analog_inputs_count_as_macs(pooled: bool) -> None:
    features = (1, 4, 4)
    raster = analog(features, steps=3, batch=2)
    before: list[Node] = [SumPool2d((2, 2), (1, 1))] if pooled else []
    node = Conv2d(frozen_array(np.ones((2, 1, 2, 2))), None, (1, 1), (0, 0), (1, 1), 1)
    activity = calibrate(chain(*before, node, features=features), raster)
    layer = activity.layers[f"n{len(before)}"]
    x = raster.data.flatten(0, 1)
    if pooled:
        x = F.avg_pool2d(x, 2, 1, divisor_override=1)
    expected = F.conv2d((x != 0).float(), torch.ones(2, 1, 2, 2)).reshape(3, -1).sum(1)
    assert not layer.from_spikes
    assert (layer.operations * 2).tolist() == expected.tolist()
    assert activity.macs == pytest.approx(float(expected.sum()) / 2)
    assert activity.sops == 0.0


def test_values_behind_a_normalization_are_not_spikes() -> None:
    scale = Scale(uniform(2.0, (3,)), frozen_array(np.array([0.0, 1.0, 0.0])))
    raster = spikes((3,), steps=4, batch=2)
    activity = calibrate(chain(scale, Linear(uniform(1.0, (2, 3))), features=(3,)), raster)
    layer = activity.layers["n1"]
    values = raster.numpy() * np.array([2.0, 2.0, 2.0]) + np.array([0.0, 1.0, 0.0])
    assert not layer.from_spikes
    assert (layer.operations * 2).tolist() == (2.0 * (values != 0).sum((1, 2))).tolist()


def test_spikes_of_two_sources_are_both_counted() -> None:
    """A residual sum of two spike trains is counted spike by spike."""
    nodes: dict[str, Node] = {
        "input": Input((2,)),
        "a": IF(uniform(0.5, (2,)), uniform(0.0, (2,))),
        "b": Linear(uniform(1.0, (3, 2))),
        "c": IF(uniform(1.0, (3,)), uniform(0.0, (3,))),
        "output": Output((3,)),
    }
    edges = (("input", "a"), ("input", "b"), ("a", "b"), ("b", "c"), ("c", "output"))
    raster = spikes((2,), steps=5, batch=2, rate=0.5)
    layer = calibrate(SpikingGraph(nodes, edges, 1e-3), raster).layers["b"]
    assert layer.from_spikes
    assert (layer.operations * 2).tolist() == (2 * 3 * raster.numpy().sum((1, 2))).tolist()


def test_operations_equal_those_of_neurobench() -> None:
    """NeuroBench 2.3.0 on the same layers and layer inputs: effective accumulates, multiply-accumulates, and dense."""
    layers = pytest.importorskip(
        "neurobench.metrics.utils.layers",
        reason="NeuroBench is not installed; pip install --no-deps neurobench==2.3.0 (its counter needs torch alone)",
    )
    for name in ("conv_box", "conv_1d", "dense_box"):
        net, raster = build(name)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim > 1:
                    parameter[parameter.abs() < parameter.abs().median()] = 0.0
        assert enliven(net, raster)
        for source in (raster, replace(raster, data=raster.data * torch.tensor(0.5), kind="analog")):
            graph, modules = read_graph(net, raster.features, raster.dt)
            activity = calibrate(graph, source, fold=False)
            weighted = {name: modules[name][1] for name in graph.weighted}
            inputs: dict[str, list[torch.Tensor]] = {name: [] for name in weighted}
            handles = [
                module.register_forward_pre_hook(lambda _, args, kept=inputs[name]: kept.append(args[0]))
                for name, module in weighted.items()
            ]
            state = None
            with torch.no_grad():
                for step in source.data:
                    _, state = net.eval()(step.to(torch.float32), state)
            for handle in handles:
                handle.remove()
            accumulates = multiplies = dense = 0
            for name, module in weighted.items():
                for x in inputs[name]:
                    operations, spiking = layers.single_layer_MACs(x, module)
                    # A step in which an analog input is all zero looks like spikes; it has no operations.
                    accumulates += operations if spiking else 0
                    multiplies += 0 if spiking else operations
                    dense += layers.single_layer_MACs(x, module, total=True)[0]
            assert activity.sops * raster.batch == pytest.approx(accumulates, rel=1e-12)
            assert activity.macs * raster.batch == pytest.approx(multiplies, rel=1e-12)
            assert accumulates + multiplies < dense
            assert (multiplies > 0) == (source is not raster)


# --- agreement with the reference ------------------------------------------------------------------------------------


def assert_counts_of(activity: Activity, graph: SpikingGraph, raster: SpikeRaster) -> None:
    recording = simulate(graph, raster, record="spikes")
    assert_evidence(graph, recording)
    for name in graph.spiking:
        found = recording[name].spikes
        assert found is not None
        counts = found.to(torch.float64).sum((0, 1)).numpy()
        np.testing.assert_allclose(activity.neurons[name].spike_counts * raster.batch, counts, rtol=1e-12)
        rate = found.to(torch.float64).flatten(1).mean(1).numpy()
        np.testing.assert_allclose(activity.neurons[name].rate, rate, rtol=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_without_folding_spikes_are_those_of_the_reference(name: str) -> None:
    graph, raster = of_zoo(name)
    assert_counts_of(calibrate(graph, raster, fold=False), graph, raster)


@pytest.mark.parametrize("name", ["dense_box", "dense_cuba", "dense_if", "conv_box", "conv_1d"])
def test_with_folding_spikes_are_those_of_the_reference_on_dyadic_weights(name: str) -> None:
    """Sums of dyadic numbers are exact in every order, so folding time into the batch moves nothing."""
    net, raster = build(name, steps=40)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.round(parameter * 256) / 256)
    graph, _ = read_graph(net, raster.features, raster.dt)
    assert_counts_of(calibrate(graph, raster), graph, raster)


@pytest.mark.parametrize("name", ZOO)
def test_folding_changes_nothing_but_rounding(name: str) -> None:
    graph, raster = of_zoo(name)
    folded, stepped = calibrate(graph, raster), calibrate(graph, raster, fold=False)
    for key, neuron in stepped.neurons.items():
        np.testing.assert_allclose(folded.neurons[key].rate, neuron.rate, atol=0.02)
    assert folded.sops == pytest.approx(stepped.sops, rel=0.02)


@pytest.mark.parametrize("run_bytes", [1, 3 * 4 * 4 * 24, 1 << 30])
def test_the_length_of_a_run_does_not_matter(run_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, raster = of_zoo("dense_cuba")
    whole = calibrate(graph, raster, fold=False)
    monkeypatch.setattr(import_module("slamp.calibrate"), "RUN_BYTES", run_bytes)
    assert_equal_activity(calibrate(graph, raster), whole, rtol=1e-4)


# --- traces, densities, peaks, energies ------------------------------------------------------------------------------


def slow_trace(node: Neuron, data: np.ndarray) -> np.ndarray:
    """Sum over steps of the squared trace every input leaves in the neuron, mean over samples; one number at a time."""
    total = np.zeros(data.shape[2:])
    for sample in range(data.shape[1]):
        v = np.zeros(data.shape[2:])
        i = np.zeros(data.shape[2:])
        for x in data[:, sample].astype(np.float64):
            match node:
                case IF():
                    v = v + x
                case LIF():
                    v = (1 - float(node.decay_mem.mean())) * v + x
                case CubaLIF():
                    i = i + x
                    v = v + float(node.decay_mem.mean()) * (i - v)
                    i = i - float(node.decay_syn.mean()) * i
            total += v**2
    return total / data.shape[1]


TRACE_NEURONS = {
    "if": IF(uniform(1.0, (4,)), uniform(0.0, (4,))),
    "lif": LIF(frozen_array(np.array([0.1, 0.2, 0.3, 0.4])), *(uniform(value, (4,)) for value in (0.0, 1.0, 0.0))),
    "cubalif": CubaLIF(
        frozen_array(np.array([0.5, 0.6, 0.2, 0.3])), *(uniform(value, (4,)) for value in (0.2, 0.0, 1.0, 0.0))
    ),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("neuron", TRACE_NEURONS)
def test_trace_energy_equals_a_slow_loop(neuron: str, fold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    node = TRACE_NEURONS[neuron]
    raster = spikes((5,), steps=17, batch=3)
    nodes = {"input": Input((5,)), "w": Linear(uniform(0.3, (4, 5))), "n": node, "output": Output((4,))}
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    monkeypatch.setattr(
        import_module("slamp.calibrate"), "RUN_BYTES", 4 * 4 * 5 * 3
    )  # runs of four steps: the state is carried over
    layer = calibrate(graph, raster, fold=fold).layers["w"]
    np.testing.assert_allclose(layer.trace_energy, slow_trace(node, raster.numpy())[None], rtol=1e-5)


def test_trace_energy_of_a_convolution_is_summed_over_positions() -> None:
    node, features = CONVOLUTIONS[8]
    raster = spikes(features, steps=6, batch=2)
    layer = calibrate(chain(node, features=features), raster).layers["n0"]
    neuron = IF(uniform(1.0, (1,)), uniform(0.0, (1,)))
    np.testing.assert_allclose(layer.trace_energy, tap_sums(node, slow_trace(neuron, raster.numpy())), rtol=1e-5)


def test_without_a_neuron_behind_a_layer_has_no_memory() -> None:
    nodes = {
        "input": Input((3,)),
        "n": IF(uniform(0.5, (3,)), uniform(0.0, (3,))),
        "w": Linear(uniform(1.0, (2, 3))),
        "output": Output((2,)),
    }
    raster = spikes((3,), steps=7, batch=2)
    layer = calibrate(SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3), raster).layers["w"]
    np.testing.assert_allclose(layer.trace_energy * 2, raster.numpy().sum((0, 1))[None], rtol=1e-6)


@pytest.mark.parametrize("name", ["dense_box", "dense_cuba", "dense_if", "conv_box"])
def test_threshold_density_equals_a_slow_count(name: str) -> None:
    graph, raster = of_zoo(name)
    activity = calibrate(graph, raster, fold=False)
    recording = simulate(graph, raster, record="all")
    seen = 0
    for key, node in graph.spiking.items():
        v = recording[key].v
        assert v is not None
        delta = np.abs(node.v_threshold) * 0.1
        near = (np.abs(v.numpy() - node.v_threshold) < delta).reshape(raster.steps, -1).mean(1)
        np.testing.assert_allclose(activity.neurons[key].threshold_density, near / (2 * delta.mean()), rtol=1e-5)
        seen += near.sum()
    assert seen > 0


def test_threshold_density_uses_the_first_samples_of_a_batch() -> None:
    graph, raster = of_zoo("dense_if", batch=40)
    few = calibrate(graph, raster.samples(0, 16), fold=False)
    many = calibrate(graph, raster, fold=False)
    for key in graph.spiking:
        np.testing.assert_allclose(many.neurons[key].threshold_density, few.neurons[key].threshold_density)


def test_readouts_have_no_threshold_and_are_not_silent() -> None:
    graph, raster = of_zoo("dense_cuba")
    activity = calibrate(graph, raster)
    assert activity.neurons["5"].threshold_density.shape == (0,)
    assert activity.neurons["5"].rate.tolist() == [0.0] * raster.steps
    assert activity.silent == []


def test_silent_layers_are_named() -> None:
    graph, raster = of_zoo("dense_if")
    node = graph.nodes["3"]
    assert isinstance(node, IF)
    silenced = graph.with_nodes({"3": replace(node, v_threshold=uniform(1e6, node.v_threshold.shape))})
    assert calibrate(silenced, raster).silent == ["3"]


def test_peak_share_is_the_share_of_samples_that_peak_at_a_step() -> None:
    data = np.zeros((4, 3, 1), dtype=np.float32)
    data[1, 0], data[3, 1], data[3, 2] = 1.0, 1.0, 0.5
    data[2, 2] = 0.5  # a tie goes to the earlier step
    nodes = {"input": Input((1,)), "n": LI(uniform(1.0, (1,)), uniform(0.0, (1,))), "output": Output((1,))}
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    raster = SpikeRaster(data, kind="analog")
    assert calibrate(graph, raster).peak_share.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert calibrate(graph, raster, fold=False).peak_share.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("kind", ["spikes", "analog"])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_energy_is_the_norm_of_the_unfolded_input(kind: str, stride: int, padding: int, dilation: int) -> None:
    features = (2, 6, 5)
    raster = (spikes if kind == "spikes" else analog)(features, steps=4, batch=3)
    pair = ((stride, stride), (padding, padding), (dilation, dilation))
    node = Conv2d(frozen_array(np.ones((4, 2, 3, 2))), None, *pair, 1)
    layer = calibrate(chain(node, features=features), raster).layers["n0"]
    unfolded = F.unfold(raster.data.flatten(0, 1).float(), (3, 2), dilation, padding, stride)
    expected = unfolded.double().square().reshape(4, -1).sum(1).numpy() / 3
    np.testing.assert_allclose(layer.energy, expected, rtol=1e-6)


def test_energy_of_a_grouped_convolution_counts_every_channel_once() -> None:
    features = (2, 5, 5)
    raster = spikes(features, steps=4, batch=3)
    plain, grouped = (
        Conv2d(frozen_array(np.ones((4, 2 // groups, 3, 3))), None, (1, 1), (1, 1), (1, 1), groups) for groups in (1, 2)
    )
    energies = [calibrate(chain(node, features=features), raster).layers["n0"].energy for node in (plain, grouped)]
    np.testing.assert_allclose(*energies)


def test_energy_behind_an_average_pool_is_that_of_the_averages() -> None:
    features = (1, 4, 4)
    raster = spikes(features, steps=3, batch=2, rate=0.6)
    pool = AvgPool2d((2, 2), (2, 2), (0, 0))
    layer = calibrate(chain(pool, Flatten(0, 2), Linear(uniform(1.0, (2, 4))), features=features), raster).layers["n2"]
    x = F.avg_pool2d(raster.data.flatten(0, 1).float(), 2)
    np.testing.assert_allclose(layer.energy, x.square().reshape(3, -1).sum(1).numpy() / 2, rtol=1e-6)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense_cuba", "conv_pool_norm", "conv_1d"])
def test_pieces_give_the_totals_of_the_whole(name: str) -> None:
    graph, raster = of_zoo(name, batch=7)
    whole = calibrate(graph, raster, fold=False)
    pieces = calibrate(graph, raster.batches(3), fold=False)
    assert (pieces.samples, pieces.steps) == (whole.samples, whole.steps) == (7, 20)
    assert pieces.graph_hash == graph.hash
    assert_equal_activity(whole, pieces)
    for key, neuron in whole.neurons.items():
        np.testing.assert_allclose(neuron.threshold_density, pieces.neurons[key].threshold_density)


class Events(torch.utils.data.Dataset):
    """A stand-in for an event data set of tonic: frames (time, channels, y, x) of int16 and a label."""

    def __init__(self, raster: SpikeRaster) -> None:
        self.frames = raster.numpy().swapaxes(0, 1).astype(np.int16)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.frames[index], index % 3


@pytest.mark.parametrize("labels", [True, False])
def test_a_data_loader_gives_the_totals_of_the_raster(labels: bool) -> None:
    graph, raster = of_zoo("conv_box", batch=6)
    data: object = Events(raster) if labels else torch.tensor(Events(raster).frames)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    assert_equal_activity(calibrate(graph, loader, fold=False), calibrate(graph, raster, fold=False))


def test_a_data_loader_over_a_tonic_data_set() -> None:
    tonic = pytest.importorskip("tonic", reason="tonic is not installed")
    sensor = (8, 8, 2)
    rng = np.random.default_rng(0)
    frames = tonic.transforms.ToFrame(sensor_size=sensor, n_time_bins=10)

    class Recordings(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            events = np.zeros(300, dtype=[("t", int), ("x", int), ("y", int), ("p", int)])
            for field, limit in (("t", 10_000), ("x", 8), ("y", 8), ("p", 2)):
                events[field] = rng.integers(0, limit, 300)
            return (frames(np.sort(events, order="t")) > 0).astype(np.float32), index

    graph, _ = of_zoo("conv_box")
    activity = calibrate(graph, torch.utils.data.DataLoader(Recordings(), batch_size=2))
    assert (activity.samples, activity.steps) == (3, 10)
    assert activity.sops > 0


def test_iterables_are_consumed_lazily_and_batches_released() -> None:
    graph, raster = of_zoo("dense_if")
    alive: list[weakref.ref[SpikeRaster]] = []
    most = 0

    def batches() -> Iterator[SpikeRaster]:
        nonlocal most
        for seed in range(12):
            batch = spikes((16,), seed=seed)
            alive.append(weakref.ref(batch))
            most = max(most, sum(reference() is not None for reference in alive))
            yield batch
            del batch

    assert calibrate(graph, batches()).samples == 12 * raster.batch
    assert most <= 2


def test_an_exhausted_iterator_is_refused() -> None:
    graph, raster = of_zoo("dense_if")
    batches = raster.batches(2)
    calibrate(graph, batches)
    with pytest.raises(RasterError, match="the iterable gave no batch; an iterator can be used only once"):
        calibrate(graph, batches)


def test_batches_of_unequal_length_are_refused() -> None:
    graph, raster = of_zoo("dense_if")
    with pytest.raises(RasterError, match="7 steps after batches of 20; pad to equal length"):
        calibrate(graph, [raster, spikes((16,), steps=7)])


def test_mixed_kinds_are_refused() -> None:
    graph, raster = of_zoo("dense_if")
    with pytest.raises(RasterError, match="spikes and analog batches are mixed"):
        calibrate(graph, [raster, analog((16,))])


def test_other_items_are_refused() -> None:
    graph, raster = of_zoo("dense_if")
    with pytest.raises(RasterError, match="the iterable gave Tensor; allowed is SpikeRaster"):
        calibrate(graph, [raster.data])


@pytest.mark.parametrize("more", [(torch.rand(4),), (torch.eye(4), ["a"] * 4), ()], ids=["floats", "one-hot", "none"])
def test_labels_of_any_kind_are_no_hindrance(more: tuple[object, ...]) -> None:
    net, raster = build("dense_box", batch=4)
    graph, _ = read_graph(net, raster.features, raster.dt)
    batch = (raster.data.transpose(0, 1), *more)
    loader = torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]  # a list is a data set
    assert calibrate(graph, loader).sops == calibrate(graph, raster).sops


def test_event_counts_are_refused_with_a_remedy() -> None:
    net, raster = build("dense_box", batch=4)
    counts = 2 * raster.data.transpose(0, 1).to(torch.int16)
    loader = torch.utils.data.DataLoader([counts], batch_size=None)  # type: ignore[arg-type]  # a list is a data set
    graph, _ = read_graph(net, raster.features, raster.dt)
    with pytest.raises(RasterError, match="make event counts spikes with data > 0"):
        calibrate(graph, loader)


@pytest.mark.parametrize("items", [[{"x": torch.zeros(2, 3)}], [torch.zeros(3)], [("a", 1)]])
def test_other_items_of_a_data_loader_are_refused(items: list[object]) -> None:
    loader = torch.utils.data.DataLoader(items, batch_size=None)
    with pytest.raises(RasterError, match=r"data loader: an item is .*; allowed are tensors"):
        list(as_rasters(loader, 1e-3))


def test_a_raster_that_does_not_fit_is_refused() -> None:
    graph, raster = of_zoo("dense_if")
    with pytest.raises(RasterError, match=r"features \(5,\)"):
        calibrate(graph, spikes((5,)))
    with pytest.raises(RasterError, match="dt is"):
        calibrate(graph, replace(raster, dt=2e-3))


def test_progress_changes_nothing() -> None:
    graph, raster = of_zoo("dense_if")
    assert calibrate(graph, raster).spikes == calibrate(graph, raster, progress=True).spikes


def test_calibration_leaves_torch_as_it_found_it() -> None:
    net = SequentialState(torch.nn.Linear(6, 5), box(), torch.nn.Linear(5, 4), cuba(), torch.nn.Linear(4, 3), iaf())
    raster = spikes((6,))
    graph, _ = read_graph(net, (6,), 1e-3)
    generator = torch.get_rng_state()
    calibrate(graph, raster)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()
