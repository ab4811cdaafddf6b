from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

from networks import (
    box,
    build,
    cuba,
    enliven,
    iaf,
    li,
    norse_rates,
    pattern_net,
    patterns,
    randomize_normalizations,
    spikes,
)
from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, read_graph
from slamp.errors import MaskError, SilentNetworkError
from slamp.masks import Masks, make_masks, masked_copy
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.score import score


def masks_for(net: SequentialState, raster: SpikeRaster, density: float) -> Masks:
    graph, _ = read_graph(net, raster.features, raster.dt)
    scores = score(graph, calibrate(graph, raster), "lamp")
    return make_masks(scores, allocate(scores, Budget(density=density)))


def deep(neurons: str) -> SequentialState:
    make = {"box": box, "cuba": cuba, "iaf": iaf}[neurons]
    return SequentialState(
        torch.nn.Linear(60, 80), make(), torch.nn.Linear(80, 70), make(), torch.nn.Linear(70, 60, bias=False), make()
    )


def convolutional() -> SequentialState:
    return SequentialState(
        torch.nn.Conv2d(2, 12, 3, padding=1),
        box(),
        torch.nn.LPPool2d(1, 2),
        torch.nn.Conv2d(12, 12, 3),
        cuba(),
        torch.nn.Flatten(),
        torch.nn.Linear(12 * 9, 40),
        box(),
        torch.nn.Linear(40, 4),
        li(),
    )


def with_normalization() -> SequentialState:
    net = SequentialState(
        torch.nn.Conv2d(2, 12, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(12),
        box(),
        torch.nn.Flatten(),
        torch.nn.Linear(12 * 100, 40),
        torch.nn.BatchNorm1d(40),
        box(),
    )
    randomize_normalizations(net, np.random.default_rng(0))
    return net


def settled(net: SequentialState, features: tuple[int, ...]) -> tuple[SequentialState, SpikeRaster]:
    """A living network whose running statistics are those of its inputs, as after training."""
    net, raster = living(net, features)
    for _ in range(4):
        net.train()
        state = None
        with torch.no_grad():
            for step in raster.data:
                _, state = net(step.to(torch.float32), state)
        net, raster = living(net, features)
    return net, raster


def living(net: SequentialState, features: tuple[int, ...]) -> tuple[SequentialState, SpikeRaster]:
    raster = spikes(features, steps=25, batch=16)
    assert enliven(net, raster, low=0.05, high=0.25)
    return net, raster


@pytest.mark.parametrize("neurons", ["box", "cuba", "iaf"])
def test_rates_are_restored_where_pruning_alone_silences_the_network(neurons: str) -> None:
    net, raster = living(deep(neurons), (60,))
    masks = masks_for(net, raster, 0.1)
    dense, bare = norse_rates(net, raster), norse_rates(masked_copy(net, masks), raster)
    restored = norse_rates(recover(net, masks, raster), raster)
    assert bare["5"] < 0.4 * dense["5"], "pruning does not hurt here, so restoring proves nothing"
    for path, rate in dense.items():
        assert restored[path] == pytest.approx(rate, rel=0.05), path


def test_rates_of_a_convolutional_network_are_restored() -> None:
    net, raster = living(convolutional(), (2, 10, 10))
    masks = masks_for(net, raster, 0.1)
    dense, bare = norse_rates(net, raster), norse_rates(masked_copy(net, masks), raster)
    recovered = recover(net, masks, raster)
    restored = norse_rates(recovered, raster)
    assert bare["7"] < 0.4 * dense["7"]
    for path, rate in dense.items():
        assert restored[path] == pytest.approx(rate, rel=0.05), path
    capture(recovered, raster)


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_rates_of_a_network_with_batch_normalization_are_restored(per: str) -> None:
    net, raster = settled(with_normalization(), (2, 10, 10))
    graph, _ = read_graph(net, raster.features, raster.dt)
    rng = np.random.default_rng(0)
    masks = Masks(
        {name: rng.random(node.weight.shape) < 0.3 for name, node in graph.weighted.items()}, graph.parameters
    )
    dense, bare = norse_rates(net, raster), norse_rates(masked_copy(net, masks), raster)
    recovered = recover(net, masks, raster, per=per)
    restored = norse_rates(recovered, raster)
    assert max(abs(bare[path] / rate - 1) for path, rate in dense.items()) > 0.15
    gains = torch.cat([(recovered[index].weight / net[index].weight).detach() for index in (1, 5)])
    assert float((gains - 1).abs().max()) > 0.02, "no gain was needed"
    assert torch.equal(recovered[1].bias, net[1].bias)
    for path, rate in dense.items():
        assert restored[path] == pytest.approx(rate, rel=0.05), path


def test_statistics_of_batch_normalization_are_those_of_the_pruned_network() -> None:
    net, raster = living(with_normalization(), (2, 10, 10))
    recovered = recover(net, masks_for(net, raster, 0.1), raster)
    inputs: list[torch.Tensor] = []
    recovered[1].register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    norse_rates(recovered, raster)
    seen = torch.stack(inputs).transpose(1, 2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(recovered[1].running_mean, seen.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recovered[1].running_var, seen.var(1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(recovered[1].running_mean, net[1].running_mean, atol=0.05)


def test_one_gain_per_layer_scales_all_weights_alike_and_leaves_biases() -> None:
    net, raster = living(deep("box"), (60,))
    masks = masks_for(net, raster, 0.1)
    recovered = recover(net, masks, raster)
    for index in (0, 2, 4):
        kept = torch.tensor(masks[str(index)])
        gains = (recovered[index].weight / net[index].weight).detach()[kept]
        assert float(gains.min()) >= 0.5
        assert float(gains.max()) <= 8.0 + 1e-4
        torch.testing.assert_close(gains, gains[:1].expand_as(gains))
        assert float(gains[0]) != pytest.approx(1.0, abs=0.01)
        if net[index].bias is not None:
            assert torch.equal(recovered[index].bias, net[index].bias)


def test_one_gain_per_neuron_restores_every_neuron() -> None:
    net, raster = living(deep("box"), (60,))
    masks = masks_for(net, raster, 0.3)
    graph, _ = read_graph(net, raster.features, raster.dt)
    dense = calibrate(graph, raster, fold=False).neurons
    distances = {}
    for per in ("layer", "neuron"):
        pruned, _ = read_graph(recover(net, masks, raster, per=per), raster.features, raster.dt)
        found = calibrate(pruned, raster, fold=False).neurons
        distances[per] = sum(float(np.abs(found[name].spike_counts - dense[name].spike_counts).sum()) for name in dense)
    assert distances["neuron"] < 0.5 * distances["layer"]


def test_one_gain_per_channel_is_constant_within_it() -> None:
    net, raster = living(convolutional(), (2, 10, 10))
    masks = masks_for(net, raster, 0.3)
    recovered = recover(net, masks, raster, per="neuron")
    kept = torch.tensor(masks["0"])
    gains = (recovered[0].weight / net[0].weight).detach()
    means = []
    for channel in range(12):
        found = gains[channel][kept[channel]]
        if len(found):
            torch.testing.assert_close(found, found[:1].expand_as(found))
            means.append(round(float(found[0]), 3))
    assert len(set(means)) > 3


def test_zeros_stay_zeros_and_the_network_is_left_alone() -> None:
    net, raster = living(convolutional(), (2, 10, 10))
    net.train()
    before = copy.deepcopy(net.state_dict())
    masks = masks_for(net, raster, 0.1)
    recovered = recover(net, masks, raster)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert net.training
    assert recovered.training
    for name, path in masks.parameters.items():
        weight = recovered.get_parameter(path)
        assert bool((weight[~torch.tensor(masks[name])] == 0).all())
        assert bool((weight[torch.tensor(masks[name])] != 0).all())
        assert weight.requires_grad


def test_readouts_are_left_alone() -> None:
    net, raster = living(convolutional(), (2, 10, 10))
    masks = masks_for(net, raster, 0.1)
    recovered = recover(net, masks, raster)
    assert torch.equal(recovered[8].weight, masked_copy(net, masks)[8].weight)


def test_rates_of_an_earlier_measurement_can_be_the_target() -> None:
    net, raster = living(deep("box"), (60,))
    graph, _ = read_graph(net, raster.features, raster.dt)
    targets = calibrate(graph, raster)
    dense = norse_rates(net, raster)
    with torch.no_grad():
        net[2].weight.mul_(0.8)
    assert norse_rates(net, raster)["3"] < 0.9 * dense["3"]
    restored = norse_rates(recover(net, masks_for(net, raster, 0.3), raster, targets=targets), raster)
    assert restored["3"] == pytest.approx(dense["3"], rel=0.05)


def test_few_samples_are_used_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    net, raster = living(deep("box"), (60,))
    masks = masks_for(net, raster, 0.2)
    monkeypatch.setattr(import_module("slamp.recover"), "STAGE_BYTES", 4 * 80 * 25 * 3)
    few = recover(net, masks, raster)
    monkeypatch.undo()
    same = recover(net, masks, raster.samples(0, 3))
    assert torch.equal(few[0].weight, same[0].weight)
    assert not torch.equal(few[0].weight, recover(net, masks, raster)[0].weight)


def test_a_silent_layer_is_refused_by_name() -> None:
    net, raster = living(deep("box"), (60,))
    masks = masks_for(net, raster, 0.5)
    with torch.no_grad():
        net[2].weight.mul_(0.0)
        net[2].bias.mul_(0.0)
    with pytest.raises(
        SilentNetworkError, match="3: never fires on the calibration sample of 16 samples; scale its weights"
    ):
        recover(net, masks, raster)


def test_foreign_masks_are_refused() -> None:
    net, raster = build("dense_if")
    other, other_raster = build("dense_box")
    with pytest.raises(MaskError, match="give the module that was captured"):
        recover(net, masks_for(other, other_raster, 0.5), raster)


def test_progress_shows_without_changing_the_result() -> None:
    net, raster = pattern_net(), patterns(batch=8)
    masks = masks_for(net, raster, 0.3)
    first, second = recover(net, masks, raster, progress=True), recover(net, masks, raster)
    assert torch.equal(first[0].weight, second[0].weight)


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_what_was_not_pruned_keeps_its_rates_and_weights(per: str) -> None:
    for name in ("dense_if", "conv_box", "conv_1d"):
        net, raster = build(name)
        graph, _ = read_graph(net, raster.features, raster.dt)
        everything = Masks(
            {n: np.ones(node.weight.shape, bool) for n, node in graph.weighted.items()}, graph.parameters
        )
        recovered = recover(net, everything, raster, per=per)
        for before, after in zip(net.parameters(), recovered.parameters(), strict=True):
            assert torch.equal(before, after), name


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_a_layer_that_fires_less_the_more_its_weights_are_scaled_up_is_restored(per: str) -> None:
    """Inhibition against a positive bias: the rate falls with the gain."""
    torch.manual_seed(0)
    net = SequentialState(torch.nn.Linear(8, 16), box(tau_mem_inv=200.0, v_th=0.4))
    with torch.no_grad():
        net[0].weight.copy_(-0.2 * torch.rand(16, 8))
        net[0].bias.fill_(0.9)
    raster = spikes((8,), steps=40, batch=16)
    graph, _ = read_graph(net, raster.features, raster.dt)
    masks = Masks({"0": np.random.default_rng(0).random((16, 8)) < 0.5}, graph.parameters)
    dense, bare = norse_rates(net, raster)["1"], norse_rates(masked_copy(net, masks), raster)["1"]
    restored = norse_rates(recover(net, masks, raster, per=per), raster)["1"]
    assert bare > 1.2 * dense
    assert restored == pytest.approx(dense, rel=0.05)


def test_the_bias_of_a_batch_normalization_is_no_part_of_what_a_gain_scales() -> None:
    net, raster = settled(with_normalization(), (2, 10, 10))
    with torch.no_grad():
        net[1].bias.add_(0.3)
    graph, _ = read_graph(net, raster.features, raster.dt)
    masks = Masks(
        {n: np.random.default_rng(1).random(node.weight.shape) < 0.5 for n, node in graph.weighted.items()},
        graph.parameters,
    )
    dense = norse_rates(net, raster)
    weaker = copy.deepcopy(net)
    with torch.no_grad():
        weaker[1].weight.mul_(0.6)  # so that a gain far from 1 is needed
    targets = calibrate(graph, raster)
    restored = norse_rates(recover(weaker, masks, raster, targets=targets), raster)
    assert restored["2"] == pytest.approx(dense["2"], rel=0.03)


def test_targets_of_another_network_and_an_unknown_choice_are_refused() -> None:
    net, raster = build("dense_if")
    masks = masks_for(net, raster, 0.5)
    other, other_raster = build("dense_box")
    graph, _ = read_graph(other, other_raster.features, other_raster.dt)
    foreign = calibrate(graph, other_raster)
    foreign = replace(foreign, neurons=dict(list(foreign.neurons.items())[:1]))
    with pytest.raises(MaskError, match="3: the targets hold no such neurons, only"):
        recover(net, masks, raster, targets=foreign)
    with pytest.raises(MaskError, match="per is 'channel'; allowed are 'layer' and 'neuron'"):
        recover(net, masks, raster, per="channel")  # type: ignore[arg-type]  # what a user may write
