"""Channels that go are really gone, and what is left computes what it computed with their outgoing weights at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from safetensors.torch import safe_open, save_file

import slamp
from networks import ZOO, analog, box, build, cuba, enliven, iaf, li, randomize_normalizations, spikes
from slamp.activity import Activity
from slamp.calibrate import calibrate
from slamp.capture import capture, read_graph
from slamp.channels import kept_outputs
from slamp.errors import ArtifactError, MaskError
from slamp.graph import SpikingGraph
from slamp.masks import Masks, load_channels, load_masks, load_pruned, save_masks, save_pruned
from slamp.nodes import SPIKING, Conv2d, Flatten, Input, Linear, Output, frozen_array
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.shrink import Channels, removable, restore_pruned, shrink, shrunk_activity, shrunk_graph
from slamp.simulate import Recording, simulate

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def varied(*shape: int, low: float = 0.3, high: float = 0.5, seed: int = 0) -> torch.Tensor:
    """A neuron parameter that is another number for every neuron."""
    return torch.as_tensor(np.random.default_rng(seed).uniform(low, high, shape), dtype=torch.float32)


def conv_2d_readout() -> SequentialState:
    return SequentialState(
        torch.nn.Conv2d(2, 6, 3, padding=1),
        torch.nn.BatchNorm2d(6),
        box(v_th=varied(6, 8, 8)),
        torch.nn.LPPool2d(1, 2),
        torch.nn.Conv2d(6, 5, 3, bias=False),
        torch.nn.BatchNorm2d(5, affine=False),
        cuba(v_th=varied(5, 1, 1), v_leak=varied(1, 5, 2, 2, low=-0.1, high=0.1)),
        torch.nn.Dropout(0.2),
        torch.nn.Flatten(),
        torch.nn.Linear(5 * 4, 10),
        torch.nn.BatchNorm1d(10),
        iaf(v_th=varied(10), v_reset=varied(10, low=-0.2, high=0.0)),
        torch.nn.Linear(10, 4),
        li(tau_mem_inv=varied(4, low=90, high=110)),
    )


def conv_1d_flat_neurons() -> SequentialState:
    return SequentialState(
        torch.nn.Conv1d(3, 6, 3),
        iaf(v_th=varied(6, 10, low=0.8, high=1.2)),
        torch.nn.Conv1d(6, 4, 2, stride=2, bias=False),
        torch.nn.Flatten(),
        torch.nn.BatchNorm1d(4 * 5),
        cuba(v_th=varied(4 * 5)),
        torch.nn.Linear(4 * 5, 5),
        box(),
    )


def conv_2d_then_1d() -> SequentialState:
    """Flatten leaves the channels alone here (2, 3), and merges them with the first axis there (1, 2)."""
    return SequentialState(
        torch.nn.Conv2d(1, 5, 3),
        box(v_th=varied(1, 4, 4), v_reset=varied(4, 4, low=-0.2, high=0.0)),  # shared by all channels: nothing to cut
        torch.nn.Flatten(2, 3),
        torch.nn.Conv1d(5, 4, 3, stride=2),
        cuba(),
        torch.nn.Flatten(1, 2),
        torch.nn.Linear(4 * 7, 6),
        iaf(),
        torch.nn.Linear(6, 3),
        box(subtract=True),
    )


def flat_rows() -> SequentialState:
    """Flatten merges channels with rows but not with columns, and another convolution reads them."""
    return SequentialState(
        torch.nn.Conv2d(2, 3, 3), box(), torch.nn.Flatten(1, 2), torch.nn.Conv1d(3 * 6, 4, 3), cuba(v_th=varied(4, 1))
    )


def dense_varied() -> SequentialState:
    return SequentialState(
        torch.nn.Linear(16, 12),
        iaf(v_th=varied(12, low=0.8, high=1.2)),
        torch.nn.Linear(12, 9, bias=False),
        torch.nn.Linear(9, 10),
        box(subtract=True, v_th=varied(1, 10), tau_mem_inv=varied(10, low=150, high=250)),
        torch.nn.Linear(10, 5),
        box(v_th=varied(5)),
    )


OURS: dict[str, tuple[Callable[[], SequentialState], tuple[int, ...]]] = {
    "conv_2d_readout": (conv_2d_readout, (2, 8, 8)),
    "conv_1d_flat_neurons": (conv_1d_flat_neurons, (3, 12)),
    "conv_2d_then_1d": (conv_2d_then_1d, (1, 6, 6)),
    "flat_rows": (flat_rows, (2, 8, 8)),
    "dense_varied": (dense_varied, (16,)),
}
NAMES = [*ZOO, *OURS]


def make(name: str, *, seed: int = 0, kind: str = "spikes") -> tuple[SequentialState, SpikeRaster]:
    """A network that fires, and its samples; weights and analog inputs are multiples of 1/64, so sums are exact."""
    return copy.deepcopy(made(name, seed, kind))


@lru_cache
def made(name: str, seed: int, kind: str) -> tuple[SequentialState, SpikeRaster]:
    if name in ZOO:
        net, raster = build(name, seed=seed)
        features: tuple[int, ...] = ZOO[name].features
    else:
        factory, features = OURS[name]
        torch.manual_seed(seed)
        net, raster = factory(), spikes(features, seed=seed)
        randomize_normalizations(net, np.random.default_rng(seed))
    if kind == "analog":
        data = torch.round(analog(features, seed=seed).data * 64) / 64
        raster = SpikeRaster(data, raster.dt, kind="analog")
    assert enliven(net, raster, low=0.08)
    for module in net.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)):
            for parameter in module.parameters():
                parameter.data = torch.round(parameter.data * 64) / 64
    net.train()
    return net, raster


def some(graph: SpikingGraph, *, seed: int = 0, share: float = 0.7, only: str | None = None) -> Channels:
    """Channels of which about ``share`` stay wherever some may go, one of each at least goes and stays."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, node in graph.weighted.items():
        outputs = node.weight.shape[0]
        keep = np.ones(outputs, dtype=bool)
        if name in removable(graph) and only in (None, name):
            keep[rng.permutation(outputs)[: max(1, round((1 - share) * outputs))]] = False
        arrays[name] = keep
    return Channels(arrays)


def whole(graph: SpikingGraph) -> Channels:
    return Channels({name: np.ones(node.weight.shape[0], dtype=bool) for name, node in graph.weighted.items()})


def origins(graph: SpikingGraph) -> dict[str, tuple[str, np.ndarray]]:
    """For every node, the weighted node its values come from and, entry by entry, which output of it they come from.

    Found by sending the numbers of the outputs through the network, torch's own flatten included.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}
    for name in graph.order:
        node, shape = graph.nodes[name], graph.shapes[name]
        if name in graph.weighted:
            found[name] = name, np.broadcast_to(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)
        elif sources := graph.sources(name):
            origin, numbers = found[sources[0]]
            if isinstance(node, Flatten):
                numbers = torch.flatten(torch.tensor(numbers), node.start_dim, node.end_dim).numpy()
            elif numbers.shape != shape:
                numbers = np.broadcast_to(numbers[..., :1, :1], shape)  # a pool: every entry of a channel is alike
            found[name] = origin, numbers
        else:
            found[name] = "", np.zeros(shape, dtype=int)
    return found


def stays(graph: SpikingGraph, channels: Channels, name: str) -> np.ndarray:
    """Which values of a node come from channels that stay, in the shape of the node."""
    origin, numbers = origins(graph)[name]
    return channels[origin][numbers] if origin else np.ones(numbers.shape, dtype=bool)


def cut_off(net: SequentialState, graph: SpikingGraph, channels: Channels) -> SequentialState:
    """A copy of the whole network in which the weights that read what goes are zero."""
    net = copy.deepcopy(net)
    for name in graph.weighted:
        reads = stays(graph, channels, graph.sources(name)[0])
        parameter = net.get_parameter(graph.parameters[name])
        if reads.all():  # as it is before convolutions with groups
            continue
        parameter.data[:, ~reads.reshape(reads.shape[0], -1)[:, 0]] = 0
    return net


def select(values: torch.Tensor | np.ndarray, graph: SpikingGraph, channels: Channels, name: str) -> torch.Tensor:
    """The values of a node, last axes, that come from channels that stay; flat."""
    shape = graph.shapes[name]
    mask = torch.tensor(stays(graph, channels, name))
    values = torch.as_tensor(values)
    return values.reshape(*values.shape[: values.ndim - len(shape)], -1)[..., mask.flatten()]


def everything(graph: SpikingGraph) -> Masks:
    return Masks({name: node.weight != 0 for name, node in graph.weighted.items()}, graph.parameters)


def record(graph: SpikingGraph, raster: SpikeRaster) -> Recording:
    return simulate(graph, raster, record="all")


@pytest.mark.parametrize("name", NAMES)
def test_capture_of_the_smaller_module_is_the_smaller_graph(name: str) -> None:
    net, raster = make(name)
    graph = capture(net, raster)
    channels = some(graph)
    small = capture(shrink(net, channels, raster.features), raster)
    expected = shrunk_graph(graph, channels)
    assert small.hash == expected.hash
    assert small.parameters == expected.parameters == graph.parameters
    if not channels.whole:
        assert small.hash != graph.hash
    for node, kept in channels.kept.items():
        assert small.weighted[node].weight.shape[0] == kept


@pytest.mark.parametrize("kind", ["spikes", "analog"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_computes_as_with_the_outgoing_weights_at_zero(name: str, kind: str) -> None:
    net, raster = make(name, kind=kind)
    graph = capture(net, raster)
    channels = some(graph)
    reference = record(capture(cut_off(net, graph, channels), raster), raster)
    found = record(capture(shrink(net, channels, raster.features), raster), raster)
    for node, trace in found.traces.items():
        expected = reference[node]
        assert torch.equal(trace.v.flatten(2), select(expected.v, graph, channels, node))
        if trace.spikes is not None:
            assert trace.spikes.any(), f"{node} is silent, which proves nothing"
            assert torch.equal(trace.spikes.flatten(2), select(expected.spikes, graph, channels, node))
    assert torch.equal(found.output.data, reference.output.data)


def test_the_networks_here_remove_before_every_kind_of_layer() -> None:
    removed = {name: removable(read(name)) for name in NAMES}
    assert removed == {
        "dense_box": ("0", "2"),
        "dense_cuba": ("0", "2"),
        "dense_if": ("0",),
        "conv_box": ("0", "2", "5"),
        "conv_pool_norm": ("7",),  # its convolution has groups, and is fed by the first
        "conv_1d": ("2",),  # the first convolution has groups
        "conv_2d_readout": ("0", "4", "9"),
        "conv_1d_flat_neurons": ("0", "2"),
        "conv_2d_then_1d": ("0", "3", "6"),
        "flat_rows": ("0",),
        "dense_varied": ("0", "2", "3"),
    }


def read(name: str) -> SpikingGraph:
    net, raster = make(name)
    return read_graph(net, raster.features, raster.dt)[0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_where_everything_stays(name: str) -> None:
    net, raster = make(name)
    graph = capture(net, raster)
    channels = whole(graph)
    assert channels.whole
    assert shrunk_graph(graph, channels).hash == graph.hash
    small = shrink(net, channels, raster.features)
    assert capture(small, raster).hash == graph.hash
    assert all(parameter is not old for parameter, old in zip(small.parameters(), net.parameters(), strict=True))
    activity = calibrate(graph, raster)
    assert same_activity(shrunk_activity(activity, graph, channels), activity)


def same_activity(one: Activity, other: Activity) -> bool:
    return (
        one.graph_hash == other.graph_hash
        and all(np.array_equal(one.layers[name].operations, other.layers[name].operations) for name in other.layers)
        and all(np.array_equal(one.neurons[name].rate, other.neurons[name].rate) for name in other.neurons)
    )


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_channels_shrink_module_and_graph_alike(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    net, raster = make(name)
    raster = SpikeRaster(raster.data[:6, :2], raster.dt)
    graph = read(name)
    arrays = {}
    for node, weighted in graph.weighted.items():
        outputs = weighted.weight.shape[0]
        keep = np.ones(outputs, dtype=bool)
        if node in removable(graph):
            keep = np.array(data.draw(st.lists(st.booleans(), min_size=outputs, max_size=outputs).filter(any)))
        arrays[node] = keep
    channels = Channels(arrays)
    small = capture(shrink(net, channels, raster.features), raster)
    assert small.hash == shrunk_graph(graph, channels).hash
    reference = record(capture(cut_off(net, graph, channels), raster), raster)
    found = record(small, raster)
    for node in graph.spiking:
        assert torch.equal(found[node].v.flatten(2), select(reference[node].v, graph, channels, node))


def test_sizes_of_modules_follow() -> None:
    net, raster = make("conv_2d_readout")
    net[0].weight.requires_grad_(False)
    net[9].bias.requires_grad_(False)
    net[2].p.v_th.requires_grad_(True)
    net[11].p = net[11].p._replace(v_th=torch.nn.Parameter(net[11].p.v_th))
    graph = capture(net, raster)
    small = shrink(net, some(graph), raster.features)
    assert type(small) is SequentialState
    assert [name for name, _ in small.named_modules()] == [name for name, _ in net.named_modules()]
    assert (small[0].in_channels, small[0].out_channels) == (2, 4)
    assert (small[1].num_features, small[1].running_var.shape, small[1].bias.shape) == (4, (4,), (4,))
    assert small[2].p.v_th.shape == (4, 8, 8)
    assert (small[4].in_channels, small[4].out_channels, small[4].weight.shape) == (4, 3, (3, 4, 3, 3))
    assert (small[5].num_features, small[5].running_mean.shape, small[5].weight) == (3, (3,), None)
    assert (small[6].p.v_th.shape, small[6].p.v_leak.shape) == ((3, 1, 1), (1, 3, 2, 2))
    assert (small[9].in_features, small[9].out_features, small[9].weight.shape) == (12, 7, (7, 12))
    assert (small[12].in_features, small[12].out_features) == (7, 4)
    assert [parameter.requires_grad for parameter in small.parameters()] == [
        parameter.requires_grad for parameter in net.parameters()
    ]
    assert small[2].p.v_th.requires_grad
    assert not small[6].p.v_th.requires_grad
    assert isinstance(small[11].p.v_th, torch.nn.Parameter)
    assert small.training


def test_the_original_is_left_alone() -> None:
    net, raster = make("conv_2d_readout")
    graph = capture(net, raster)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    shrink(net, some(graph), raster.features)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert capture(net, raster).hash == graph.hash
    assert net[0].out_channels == 6


def test_the_smaller_network_can_be_trained() -> None:
    net, raster = make("conv_2d_readout")
    small = shrink(net, some(capture(net, raster)), raster.features)
    optimizer = torch.optim.Adam(small.parameters())
    state, total = None, torch.zeros(())
    for step in raster.data:
        output, state = small(step.to(torch.float32), state)
        total = total + output.square().sum()
    total.backward()
    before = small[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(small[0].weight, before)


def test_a_neuron_used_twice_serves_both_uses() -> None:
    cell = box()
    net = SequentialState(
        torch.nn.Linear(6, 5), cell, torch.nn.Linear(5, 4), cell, torch.nn.Linear(4, 3), torch.nn.Identity(), iaf()
    )
    raster = spikes((6,))
    graph = capture(net, raster)
    channels = some(graph)
    small = shrink(net, channels, (6,))
    assert small[1] is small[3]
    assert capture(small, raster).hash == shrunk_graph(graph, channels).hash


def test_a_neuron_used_twice_with_parameters_per_neuron_is_cut_once() -> None:
    cell = box(v_th=varied(4))
    net = SequentialState(torch.nn.Linear(6, 4), cell, torch.nn.Linear(4, 4), cell, torch.nn.Linear(4, 2), iaf())
    raster = spikes((6,))
    graph = capture(net, raster)
    alike = np.array([True, False, True, True])
    channels = Channels({"0": alike, "2": alike, "4": np.ones(2, bool)})
    assert capture(shrink(net, channels, (6,)), raster).hash == shrunk_graph(graph, channels).hash
    with pytest.raises(MaskError, match="3: LIFBoxCell is used several times, for channels of which different ones"):
        shrink(net, Channels({**channels.arrays, "2": ~alike}), (6,))


def test_a_normalization_used_twice_needs_the_same_channels() -> None:
    norm = torch.nn.BatchNorm1d(4)
    net = SequentialState(
        torch.nn.Linear(6, 4), norm, box(), torch.nn.Linear(4, 4), norm, box(), torch.nn.Linear(4, 2), iaf()
    )
    one = np.array([True, False, True, True])
    channels = Channels({"0": one, "3": np.ones(4, bool), "6": np.ones(2, bool)})
    with pytest.raises(MaskError, match="4: BatchNorm1d is used several times"):
        shrink(net, channels, (6,))


def test_uniform_neuron_parameters_stay_one_number_in_memory() -> None:
    graph = read("conv_box")
    small = shrunk_graph(graph, some(graph))
    assert small.nodes["1"].v_threshold.strides == (0, 0, 0)
    assert small.nodes["1"].v_threshold.shape == (4, 4, 4)


def test_a_smaller_graph_survives_a_file(tmp_path) -> None:
    graph = read("conv_2d_readout")
    small = shrunk_graph(graph, some(graph))
    small.save(tmp_path / "graph.npz")
    assert slamp.load_graph(tmp_path / "graph.npz").hash == small.hash


# What is predicted of the smaller network


@pytest.mark.parametrize("name", NAMES)
def test_activity_of_the_kept_part_is_exact_where_it_is_said_to_be(name: str) -> None:
    """Measured on the network cut off, restricted to what stays: exactly what the smaller network does."""
    net, raster = make(name)
    graph = capture(net, raster)
    channels = some(graph)
    wide = capture(cut_off(net, graph, channels), raster)
    small = shrunk_graph(wide, channels)
    found, measured = shrunk_activity(calibrate(wide, raster), wide, channels), calibrate(small, raster)
    assert found.graph_hash == measured.graph_hash == small.hash
    assert (found.samples, found.steps) == (measured.samples, measured.steps)
    for node, layer in measured.layers.items():
        ours = found.layers[node]
        assert ours.from_spikes == layer.from_spikes
        assert np.array_equal(ours.tap_events, layer.tap_events)
        assert layer.tap_events.any()
        assert ours.operations.sum() == pytest.approx(layer.operations.sum())
        assert ours.events.sum() == pytest.approx(layer.events.sum())
        if name in ("dense_box", "dense_cuba", "dense_if", "conv_box", "conv_1d"):  # every input is a plain spike
            assert ours.energy.sum() == pytest.approx(layer.energy.sum())
        if name not in ("conv_2d_readout", "dense_varied"):  # their time constants are of every neuron its own
            np.testing.assert_allclose(ours.trace_energy, layer.trace_energy, rtol=1e-5)
    for node, neurons in measured.neurons.items():
        assert np.array_equal(found.neurons[node].spike_counts, neurons.spike_counts)
        assert found.neurons[node].rate.sum() == pytest.approx(neurons.rate.sum())
    assert found.sops == pytest.approx(measured.sops)
    assert found.spikes == measured.spikes


@pytest.mark.parametrize(("name", "node"), [("conv_box", "0"), ("conv_2d_readout", "4"), ("dense_varied", "0")])
def test_activity_is_exact_up_to_the_layer_that_reads_the_first_one_cut(name: str, node: str) -> None:
    net, raster = make(name)
    graph = capture(net, raster)
    channels = some(graph, only=node)
    activity = calibrate(graph, raster)
    found = shrunk_activity(activity, graph, channels)
    measured = calibrate(capture(cut_off(net, graph, channels), raster), raster)
    small = calibrate(shrunk_graph(graph, channels), raster)
    order = list(graph.weighted)
    reader = order[order.index(node) + 1]
    inputs = kept_outputs(graph, channels)[graph.sources(reader)[0]]
    assert np.array_equal(found.layers[reader].tap_events, measured.layers[reader].tap_events[:, inputs])
    assert np.array_equal(found.layers[reader].tap_events, small.layers[reader].tap_events)
    (after,) = [b for a, b in pairwise([n for n in graph.order if n in (*order, *graph.spiking)]) if a == node]
    if after in graph.spiking:
        counts = select(measured.neurons[after].spike_counts, graph, channels, after).numpy()
        assert np.array_equal(found.neurons[after].spike_counts.ravel(), counts)
    for untouched in order[: order.index(node)]:
        assert found.layers[untouched] is activity.layers[untouched]


def test_a_predicted_rate_is_a_share() -> None:
    net, raster = make("dense_box")
    graph = capture(net, raster)
    activity = calibrate(graph, raster)
    counts = np.zeros(24)
    counts[0] = 20.0
    rate = np.zeros(activity.steps)
    rate[:2] = 0.5
    first = replace(activity.neurons["1"], spike_counts=counts, rate=rate)
    keep = np.arange(24) == 0
    channels = Channels({"0": keep, "2": np.ones(20, bool), "4": np.ones(5, bool)})
    found = shrunk_activity(replace(activity, neurons={**activity.neurons, "1": first}), graph, channels)
    assert found.neurons["1"].rate.max() == 1.0


def test_silent_layers_predict_silence() -> None:
    net, raster = make("dense_box")
    graph = capture(net, raster)
    quiet = SpikeRaster(torch.zeros_like(raster.data), raster.dt)
    channels = some(graph)
    net[0].bias.data.zero_()
    graph = capture(net, quiet)
    found = shrunk_activity(calibrate(graph, quiet), graph, channels)
    assert found.layers["0"].events.sum() == found.layers["0"].operations.sum() == 0
    assert np.isfinite(found.neurons["1"].rate).all()


def test_rates_are_restored_to_those_of_the_neurons_that_stay() -> None:
    net, raster = make("dense_box")
    graph = capture(net, raster)
    channels = some(graph, share=0.5, seed=3)
    small = shrink(net, channels, raster.features)
    after = shrunk_graph(graph, channels)
    targets = shrunk_activity(calibrate(graph, raster), graph, channels)
    recovered = recover(small, everything(after), raster, targets=targets)

    def off(activity: Activity) -> float:
        pairs = [(neurons.spike_counts.mean(), targets.neurons[name]) for name, neurons in activity.neurons.items()]
        return float(sum(abs(mean - target.spike_counts.mean()) for mean, target in pairs))

    assert off(calibrate(capture(recovered, raster), raster)) < 0.5 * off(calibrate(after, raster))


def test_activity_of_another_graph_is_refused() -> None:
    net, raster = make("dense_box")
    graph = capture(net, raster)
    other = calibrate(shrunk_graph(graph, some(graph)), raster)
    with pytest.raises(MaskError, match=r"activity: measured on graph \w{12}, the channels go from \w{12}; give"):
        shrunk_activity(other, graph, some(graph))


# Files


@pytest.mark.parametrize("name", NAMES)
def test_the_smaller_module_comes_back_from_its_file(name: str, tmp_path) -> None:
    net, raster = make(name)
    channels = some(capture(net, raster))
    small = shrink(net, channels, raster.features)
    graph = capture(small, raster)
    masks = everything(graph)
    path = tmp_path / "pruned.safetensors"
    save_pruned(small, masks, path, channels)
    fresh = make(name)[0]
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    before = {key: tensor.clone() for key, tensor in fresh.state_dict().items()}
    restored = restore_pruned(fresh, path)
    assert capture(restored, raster).hash == graph.hash
    assert list(restored.state_dict()) == list(net.state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in fresh.state_dict().items())
    state, again = load_pruned(path)
    assert set(state) == set(net.state_dict())
    assert again.hash == masks.hash == load_masks(path).hash
    stored = load_channels(path)
    assert stored is not None
    assert stored.hash == channels.hash
    assert list(stored.arrays) == list(channels.arrays)


def test_a_module_that_is_small_already_takes_the_file_too(stored) -> None:
    net, raster = make("conv_box")
    small = restore_pruned(net, stored)
    assert capture(restore_pruned(small, stored), raster).hash == capture(small, raster).hash


def test_a_file_without_channels_restores_too(tmp_path) -> None:
    net, raster = make("dense_box")
    graph = capture(net, raster)
    save_pruned(net, everything(graph), tmp_path / "pruned")
    assert load_channels(tmp_path / "pruned") is None
    restored = slamp.restore_pruned(make("dense_box", seed=1)[0], tmp_path / "pruned")
    assert capture(restored, raster).hash == graph.hash


def test_masks_alone_hold_no_module_and_no_channels(tmp_path) -> None:
    save_masks(everything(read("dense_box")), tmp_path / "masks")
    assert load_channels(tmp_path / "masks") is None
    with pytest.raises(ArtifactError, match="holds masks but no weights"):
        restore_pruned(make("dense_box")[0], tmp_path / "masks")


@pytest.fixture
def stored(tmp_path):
    net, raster = make("conv_box")
    channels = some(capture(net, raster))
    small = shrink(net, channels, raster.features)
    save_pruned(small, everything(capture(small, raster)), tmp_path / "pruned", channels)
    return tmp_path / "pruned"


def conv_box_with(**modules: torch.nn.Module) -> SequentialState:
    """The network of the file, but for these modules."""
    net = make("conv_box")[0]
    for index, module in modules.items():
        net.add_module(index.lstrip("_"), module)
    return net


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make("dense_box")[0], r"pruned: 0: has 24 outputs, the channels are of layers with \{'0': 6, '2': 8,"),
        (
            lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)),
            r"pruned: \(net\): channels cannot be removed from Sequential; allowed is norse.torch.SequentialState",
        ),
        (
            lambda: conv_box_with(_0=torch.nn.Conv2d(2, 6, 5)),
            r"pruned: 0\.weight is \(4, 2, 5, 5\) in the module, \(4, 2, 3, 3\) in the file; give the network",
        ),
        (
            lambda: conv_box_with(_2=torch.nn.Conv2d(7, 8, 3)),
            "pruned: 2: 7 values do not divide among the 6 channels before it; give the network",
        ),
        (
            lambda: conv_box_with(_9=torch.nn.BatchNorm1d(4)),
            r"pruned: 9\.weight is \(4,\) in the module, missing in the file",
        ),
    ],
    ids=["layers", "container", "kernel", "width", "longer"],
)
def test_a_file_of_another_network_is_refused(other: Callable[[], torch.nn.Module], message: str, stored) -> None:
    with pytest.raises(MaskError, match=message):
        restore_pruned(other(), stored)


def test_channels_of_another_shape_than_the_module_are_not_saved(tmp_path) -> None:
    net, raster = make("dense_box")
    graph = capture(net, raster)
    with pytest.raises(
        MaskError, match=r"0: the channels keep 17 outputs, parameter 0\.weight has 24; save the module"
    ):
        save_pruned(net, everything(graph), tmp_path / "pruned", some(graph))
    with pytest.raises(MaskError, match=r"2: the channels are of \['0'\], the masks of \['0', '2', '4'\]"):
        save_pruned(net, everything(graph), tmp_path / "pruned", Channels({"0": np.ones(24, bool)}))
    assert not list(tmp_path.iterdir())


def test_a_file_that_empties_a_layer_is_refused(stored) -> None:
    with safe_open(stored, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    tensors["channels:0"] = torch.zeros_like(tensors["channels:0"])
    save_file(tensors, stored, metadata)
    with pytest.raises(ArtifactError, match=r"not a readable file of masks \(0: all 6 outputs go"):
        load_channels(stored)


# Channels


def test_channels_are_read_only_and_count_what_stays() -> None:
    given_array = np.array([True, False, True])
    channels = Channels({"a": given_array, "b": np.array([True])})
    given_array[:] = True
    assert channels.kept == {"a": 2, "b": 1}
    assert not channels.whole
    assert Channels({"a": np.ones(3, bool)}).whole
    assert channels.hash == Channels(dict(channels.arrays)).hash
    assert channels.hash != Channels({"a": np.ones(3, bool), "b": np.array([True])}).hash
    with pytest.raises(ValueError, match="read-only"):
        channels["a"][0] = False
    with pytest.raises(TypeError):
        channels.arrays["a"] = given_array  # type: ignore[index]  # a mapping proxy refuses it


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3), r"0: the channels are float64 of shape \(3,\); allowed is bool of shape \(outputs,\)"),
        (np.ones((3, 2), bool), r"0: the channels are bool of shape \(3, 2\)"),
        (np.zeros(3, bool), "0: all 3 outputs go; allowed is to keep one at least"),
    ],
)
def test_channels_that_are_none_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        Channels({"0": array})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dense_box", {"7": np.ones(3, bool)}, r"7: the channels name it, but .* weighted nodes are \['0', '2', '4'\]"),
        ("dense_box", {"1": np.ones(24, bool)}, "1: the channels name it, but"),
        ("dense_box", {"2": None}, "2: the channels do not name it; name every weighted node"),
        ("dense_box", {"2": np.ones(24, bool)}, "2: the channels have 24 entries, allowed are 20, one per output"),
        (
            "dense_box",
            {"4": np.arange(5) > 1},
            r"4: loses 2 of 5 outputs, but no weighted node follows: .*; keep them all, and remove from \['0', '2'\]",
        ),
        ("conv_1d", {"0": np.arange(6) > 0}, "0: loses 1 of 6 outputs, but it is a convolution with groups; keep"),
        ("conv_pool_norm", {"0_0": np.arange(6) > 0}, "0_0: loses 1 of 6 outputs, but it feeds 2, a convolution with"),
    ],
)
@pytest.mark.parametrize(
    "remove",
    [
        lambda net, graph, channels: shrunk_graph(graph, channels),
        lambda net, graph, channels: shrink(net, channels, graph.shapes[graph.input]),
    ],
    ids=["graph", "module"],
)
def test_channels_that_do_not_fit_are_refused(
    name: str, changes: dict, message: str, remove: Callable[..., object]
) -> None:
    net, raster = make(name)
    graph = read_graph(net, raster.features, raster.dt)[0]
    arrays = {key: array for key, array in {**whole(graph).arrays, **changes}.items() if array is not None}
    channels = Channels(arrays)
    with pytest.raises(MaskError, match=message):
        remove(net, graph, channels)


def linear(outputs: int, inputs: int) -> Linear:
    return Linear(frozen_array(np.ones((outputs, inputs))))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (
            (("input", "a"), ("a", "b"), ("a", "c"), ("b", "output"), ("c", "output")),
            r"a: loses 1 of 3 outputs, but a feeds several nodes \['b', 'c'\]; .* none of the layers of this network",
        ),
        (
            (("input", "a"), ("input", "b"), ("a", "c"), ("b", "c"), ("c", "output")),
            r"a: loses 1 of 3 outputs, but c adds the outputs of several nodes \['a', 'b'\]",
        ),
    ],
)
def test_branches_are_left_alone(edges, message: str) -> None:
    nodes = {"input": Input((3,)), "a": linear(3, 3), "b": linear(3, 3), "c": linear(3, 3), "output": Output((3,))}
    graph = SpikingGraph(nodes, edges, 1e-3)
    assert removable(graph) == ()
    assert shrunk_graph(graph, whole(graph)).hash == graph.hash
    with pytest.raises(MaskError, match=message):
        shrunk_graph(graph, Channels({**whole(graph).arrays, "a": np.arange(3) > 0}))


def test_a_step_of_another_length_is_named() -> None:
    net = SequentialState(
        torch.nn.Linear(4, 3), box(dt=2e-3), torch.nn.Linear(3, 2), LIFBoxCell(LIFBoxParameters(), dt=2e-3)
    )
    channels = Channels({"0": np.arange(3) > 0, "2": np.ones(2, bool)})
    with pytest.raises(slamp.errors.RasterError, match=r"dt is 0\.001 s, the network's neurons have 0\.002 s"):
        shrink(net, channels, (4,))
    assert shrink(net, channels, (4,), dt=2e-3)[0].out_features == 2


def test_a_hand_made_network_shrinks_to_the_hand_made_smaller_one() -> None:
    """Two channels of 1x2 after Flatten: channel 0 is read by columns 0 and 1, channel 1 by columns 2 and 3."""
    kernel = np.arange(4, dtype=np.float32).reshape(2, 1, 1, 2)
    bias = np.array([10.0, 20.0], dtype=np.float32)
    columns = np.arange(12, dtype=np.float32).reshape(3, 4)
    settings = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    nodes = {
        "input": Input((1, 1, 3)),
        "conv": Conv2d(frozen_array(kernel), frozen_array(bias), **settings),
        "flat": Flatten(0, 2),
        "dense": Linear(frozen_array(columns)),
        "output": Output((3,)),
    }
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    small = shrunk_graph(graph, Channels({"conv": np.array([False, True]), "dense": np.ones(3, bool)}))
    assert small.weighted["conv"].weight.tolist() == [[[[2.0, 3.0]]]]
    assert small.weighted["conv"].bias.tolist() == [20.0]
    assert small.weighted["dense"].weight.tolist() == [[2.0, 3.0], [6.0, 7.0], [10.0, 11.0]]
    assert not any(isinstance(node, SPIKING) for node in small.nodes.values())
