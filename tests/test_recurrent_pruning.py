"""Pruning of networks with recurrence, branches and delays: factors, budgets counted by hand, rates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import LIFRecurrentCell, SequentialState

from networks import DT, cuba
from recurrent_networks import Heads, Recurrent, Skip, living, rates, samples
from slamp.activity import Activity
from slamp.allocate import allocate, masked_graph
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, graph_of
from slamp.compress import compress
from slamp.errors import BudgetError, MaskError, UnsupportedModuleError
from slamp.fans import divided_limits, fans_hold
from slamp.graph import SpikingGraph
from slamp.integer_training import integer_forward
from slamp.masks import Masks, make_masks, masked_copy
from slamp.memory import memory_bits
from slamp.nodes import LIF, Conv2d, Delay, Input, Linear, Node, Output, Sum, SumPool2d, frozen_array, uniform
from slamp.norms import spectral_norm
from slamp.profile import load_profile
from slamp.prune import Pruning, prune
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.retrain import retrain
from slamp.score import METHODS, score
from slamp.shapes import output_shape
from slamp.simulate import simulate
from slamp.temporal import importance, omega, single_step_importance
from test_chip_budgets import limited

Known = tuple[torch.nn.Module, SpikingGraph, SpikeRaster]


@pytest.fixture(scope="module")
def recurrent() -> Known:
    return living(Recurrent)


@pytest.fixture(scope="module")
def skip() -> Known:
    return living(Skip)


@pytest.fixture(scope="module")
def heads() -> Known:
    return living(Heads)


def counted_sops(graph: SpikingGraph, raster: SpikeRaster, weights: Mapping[str, np.ndarray]) -> dict[str, float]:
    """SOPs per sample by weighted node: every spike of the graph's own run times the weights it reaches.

    Recurrent weights read the spikes of the step before, so those of the last step reach nothing.
    """
    run = simulate(graph, raster, record="spikes")
    spikes = {graph.input: raster.data} | {name: run.traces[name].spikes for name in graph.spiking}
    found = {}
    for name, weight in weights.items():
        reach = (weight != 0).sum(0)
        total = 0.0
        waiting = [(source, 0) for source in graph.sources(name)]
        while waiting:
            source, late = waiting.pop()
            if source in spikes:
                seen = spikes[source][: raster.steps - late]
                total += float((seen.double().sum((0, 1)).numpy() * reach).sum())
                continue
            node = graph.nodes[source]
            late += int(node.steps.max()) if isinstance(node, Delay) else 0
            waiting += [(before, late) for before in graph.sources(source)]
        found[name] = total / raster.batch
    return found


@pytest.mark.parametrize("network", ["recurrent", "skip"])
def test_operations_are_those_counted_spike_by_spike(network: str, request: pytest.FixtureRequest) -> None:
    _, graph, raster = request.getfixturevalue(network)
    expected = counted_sops(graph, raster, {name: node.weight for name, node in graph.weighted.items()})
    assert min(expected.values()) > 0
    for fold in (False, True):
        found = calibrate(graph, raster, fold=fold)
        for name, sops in expected.items():
            assert found.layers[name].operations.sum() == pytest.approx(sops, rel=1e-9 if not fold else 1e-3), name


def test_folding_what_lies_on_no_cycle_measures_what_stepping_does(recurrent: Known) -> None:
    _, graph, raster = recurrent
    stepped, folded = calibrate(graph, raster, fold=False), calibrate(graph, raster)
    for name, layer in stepped.layers.items():
        np.testing.assert_allclose(folded.layers[name].trace_energy, layer.trace_energy, rtol=1e-3)
        np.testing.assert_allclose(folded.layers[name].energy, layer.energy, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("network", ["recurrent", "skip", "heads"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_every_budget(method: str, network: str, request: pytest.FixtureRequest) -> None:
    _, graph, raster = request.getfixturevalue(network)
    activity = calibrate(graph, raster)
    sizes = {name: node.weight.size for name, node in graph.weighted.items()}
    budget = Budget(density=0.5, synapses=0.45 * sum(sizes.values()), sops=0.4 * activity.sops)
    kept = []
    for _ in range(2):
        scores = score(graph, activity, method, raster=raster, generator=np.random.default_rng(0))
        kept.append(make_masks(scores, allocate(scores, budget)))
    masks = kept[0]
    assert masks.hash == kept[1].hash
    assert set(masks.keys()) == set(graph.weighted)
    assert masks.kept <= 0.45 * masks.size
    reading = {name: mask for name, mask in masks.items() if activity.layers[name].from_spikes}
    sops = sum(counted_sops(graph, raster, reading).values())
    assert sops <= 0.4 * activity.sops * (1 + 1e-3)
    assert masks.kept > 0.43 * masks.size or sops > 0.38 * activity.sops, "neither budget is spent"


def test_a_fifth_of_every_head_stays_under_uniform_plus(heads: Known) -> None:
    _, graph, _ = heads
    minimum = {name: layer.minimum for name, layer in score(graph, method="uniform-plus").layers.items()}
    assert minimum == {"fc1": 1, "one": 1, "other": 1, "mix": 1, "late": round(0.2 * 48), "early": round(0.2 * 48)}


def test_the_diagonal_of_a_cell_without_autapses_is_never_kept(recurrent: Known) -> None:
    _, graph, _ = recurrent
    scores = score(graph, method="lamp")
    assert scores.layers["first_rec"].curve.live == 24 * 24 - 24
    assert not np.diag(scores["first_rec"]).any()
    everything = make_masks(scores, allocate(scores, Budget(density=1.0)))
    assert not np.diag(everything["first_rec"]).any()
    assert everything.kept == everything.size - 24 - 16


def test_pruned_recurrent_weights_stay_zero_in_training(recurrent: Known) -> None:
    net, graph, raster = recurrent
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.5)))

    def train(net: torch.nn.Module, *, effort: float, generator: object, checkpoint: object) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(3):
            state, total = None, torch.zeros(())
            for step in raster.data:
                output, state = net(step.float(), state)
                total = total + output.square().sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    trained = retrain(masked_copy(net, masks), masks, train)
    for name, where in masks.parameters.items():
        weight = trained.get_parameter(where)
        assert not weight[~torch.tensor(masks[name])].any()
        assert not torch.equal(weight, net.get_parameter(where) * torch.tensor(masks[name])), "nothing was trained"
    assert not trained.first.recurrent_weights.diagonal().any()


# Temporal factors


def small_recurrent(weight: float) -> tuple[SpikingGraph, Activity]:
    """One recurrent layer whose recurrent weights have the spectral norm ``weight``, read by a second one."""
    rng = np.random.default_rng(0)
    back = rng.normal(size=(8, 8))
    back *= weight / np.linalg.norm(back, 2)
    neurons = LIF(*(uniform(value, (8,)) for value in (0.25, 0.0, 0.3, 0.0)))
    nodes: dict[str, Node] = {
        "input": Input((6,)),
        "in": Linear(frozen_array(rng.normal(size=(8, 6)))),
        "n": neurons,
        "last": Delay(uniform(1.0, (8,))),
        "rec": Linear(frozen_array(back)),
        "output": Output((8,)),
    }
    edges = (("input", "in"), ("in", "n"), ("n", "last"), ("last", "rec"), ("rec", "n"), ("n", "output"))
    graph = SpikingGraph(nodes, edges, DT)
    return graph, calibrate(graph, samples((6,), steps=40))


def test_a_recurrent_edge_adds_its_norm_times_the_importance_of_the_next_step() -> None:
    graph, activity = small_recurrent(0.5)
    weights = omega("mean", 40)
    alpha = importance(graph, activity, weights)
    measured = activity.neurons["n"]
    assert measured.threshold_density.any()
    assert measured.rate.any()
    kappa, rho = measured.threshold_density, 0.75 * np.sqrt(1 - measured.rate)
    expected, mu, after = np.zeros(40), 0.0, 0.0
    for t in reversed(range(40)):
        mu = kappa[t] * (weights[t] + 0.5 * after) + rho[t] * mu
        expected[t] = after = 0.25 * mu
    np.testing.assert_allclose(alpha["in"], expected, rtol=1e-3)
    np.testing.assert_allclose(alpha["rec"], expected, rtol=1e-3)
    single = single_step_importance(graph, activity, weights)
    assert single["in"] == pytest.approx(0.25 * kappa.mean())


def test_cycles_do_not_amplify_importance_beyond_a_gain_of_one() -> None:
    _, activity = small_recurrent(0.5)
    weights = omega("sum", 40)
    found = [importance(small_recurrent(norm)[0], activity, weights)["in"] for norm in (0.5, 50.0, 5000.0)]
    np.testing.assert_allclose(found[1], found[2], rtol=1e-3)
    assert (found[1][:-1] > found[0][:-1]).all(), "recurrence brings importance back"
    assert found[1].max() < 40 * found[0].max()


def test_a_delay_hands_importance_on_to_the_steps_before() -> None:
    eye = frozen_array(np.eye(4))
    nodes: dict[str, Node] = {
        "input": Input((4,)),
        "w": Linear(eye),
        "late": Delay(frozen_array(np.array([1, 1, 1, 3]))),
        "output": Output((4,)),
    }
    graph = SpikingGraph(nodes, tuple(itertools.pairwise(nodes)), DT)
    activity = Activity(graph.hash, 1, 5, {}, {}, np.zeros(5))
    weights = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(
        importance(graph, activity, weights)["w"], [0.75 * 1 + 0.25 * 3, 0.75 * 2 + 0.25 * 4, 0.75 * 3, 0.75 * 4, 0]
    )
    assert single_step_importance(graph, activity, weights)["w"] == pytest.approx(10.0)


def test_paths_that_part_count_by_their_norms() -> None:
    rng = np.random.default_rng(0)
    neurons = LIF(*(uniform(value, (4,)) for value in (0.25, 0.0, 0.3, 0.0)))
    wide, narrow = frozen_array(3 * np.eye(4)), frozen_array(0.5 * np.eye(4))
    nodes: dict[str, Node] = {
        "input": Input((4,)),
        "w": Linear(frozen_array(rng.normal(size=(4, 4)))),
        "n": neurons,
        "wide": Linear(wide),
        "narrow": Linear(narrow),
        "sum": Sum(),
        "output": Output((4,)),
    }
    edges = (("input", "w"), ("w", "n"), ("n", "wide"), ("n", "narrow"), ("wide", "sum"), ("narrow", "sum"))
    graph = SpikingGraph(nodes, (*edges, ("sum", "output")), DT)
    activity = calibrate(graph, samples((4,)))
    both = importance(graph, activity, omega("mean", 30))["w"]
    without = graph.with_nodes({"wide": Linear(frozen_array(np.zeros((4, 4))))})
    one = importance(without, calibrate(without, samples((4,))), omega("mean", 30))["w"]
    assert both.any()
    np.testing.assert_allclose(both, 7 * one, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "convolution", "pool"])
def test_spectral_norms_are_those_of_the_unrolled_matrix(kind: str) -> None:
    rng = np.random.default_rng(0)
    nodes: dict[str, Node] = {
        "linear": Linear(frozen_array(rng.normal(size=(7, 12)))),
        "convolution": Conv2d(frozen_array(rng.normal(size=(4, 3, 3, 3))), None, (2, 1), (1, 0), (1, 1), 1),
        "pool": SumPool2d((2, 2), (2, 1)),
    }
    features = (12,) if kind == "linear" else (3, 6, 6)
    probe = SpikingGraph(
        {"input": Input(features), "x": nodes[kind], "output": Output(output_shape("x", nodes[kind], features))},
        (("input", "x"), ("x", "output")),
        DT,
    )
    size = int(np.prod(features))
    unit = torch.eye(size).reshape(1, size, *features)
    columns = simulate(probe, SpikeRaster(unit, DT, kind="analog")).output.data.reshape(size, -1).numpy()
    assert spectral_norm(probe, "x") == pytest.approx(np.linalg.norm(columns.T, 2), rel=2e-2)


# Chips


def test_input_and_recurrent_weights_share_the_fan_in_of_a_neuron(recurrent: Known) -> None:
    _, graph, raster = recurrent
    profile = limited(fan_in=10, fan_out=12)
    scores = score(graph, calibrate(graph, raster), "lamp")
    masks = make_masks(scores, allocate(scores, profile.budget(density=0.9)))
    into = masks["first_in"].sum(1) + masks["first_rec"].sum(1)
    out = masks["first_rec"].sum(0) + masks["second_in"].sum(0)
    assert into.max() <= 10
    assert out.max() <= 12
    assert into.max() >= 8, "most of the limit is used"
    assert fans_hold(graph, masks.arrays, profile)
    most = {**masks.arrays, "first_rec": masks["first_rec"] | (graph.weighted["first_rec"].weight != 0)}
    assert not fans_hold(graph, most, profile)


def test_a_limit_below_one_synapse_per_path_is_refused(recurrent: Known) -> None:
    with pytest.raises(BudgetError, match=r"fan_in: 2 layers .*'first_in', 'first_rec'.* share neurons that may"):
        divided_limits(recurrent[1], limited(fan_in=1, fan_out=1000))


def test_memory_and_cores_of_a_recurrent_network_are_kept(recurrent: Known) -> None:
    _, graph, raster = recurrent
    profile = load_profile("loihi1")
    scores = score(graph, calibrate(graph, raster), "lamp")
    dense = memory_bits(graph, {name: node.weight != 0 for name, node in graph.weighted.items()}, profile)
    plan = allocate(scores, profile.budget(memory_bits=0.6 * dense, cores=2))
    used = memory_bits(graph, make_masks(scores, plan).arrays, profile)
    assert 0.5 * dense < used <= 0.6 * dense
    assert plan.usage["cores"][0] <= 2


# Rates


@pytest.mark.parametrize(("network", "density"), [("recurrent", 0.2), ("skip", 0.08)])
@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_rates_are_restored(network: str, density: float, per: str, request: pytest.FixtureRequest) -> None:
    net, graph, raster = request.getfixturevalue(network)
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=density)))
    before, bare = rates(net, raster), rates(masked_copy(net, masks), raster)
    restored = rates(recover(net, masks, raster, per=per), raster)
    assert max(abs(bare[name] / rate - 1) for name, rate in before.items()) > 0.25, "nothing to restore"
    for name, rate in before.items():
        off = abs(restored[name] / rate - 1)
        assert off < (0.05 if per == "layer" or network == "recurrent" else 0.6), name


def test_one_gain_scales_input_and_recurrent_weights_of_a_layer(recurrent: Known) -> None:
    net, graph, raster = recurrent
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.2)))
    recovered = recover(net, masks, raster)
    for name in ("first", "second"):
        gains = [
            (recovered.get_parameter(f"{name}.{kind}_weights") / net.get_parameter(f"{name}.{kind}_weights")).detach()
            for kind in ("input", "recurrent")
        ]
        kept = [gain[torch.tensor(masks[f"{name}_{part}"])] for gain, part in zip(gains, ("in", "rec"), strict=True)]
        found = torch.cat(kept)
        torch.testing.assert_close(found, found[:1].expand_as(found))
        assert abs(float(found[0]) - 1) > 0.01, "no gain was needed"


@pytest.mark.parametrize("network", ["recurrent", "skip"])
@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_what_was_not_pruned_keeps_its_weights(network: str, per: str, request: pytest.FixtureRequest) -> None:
    net, graph, raster = request.getfixturevalue(network)
    whole = {name: np.ones(node.weight.shape, bool) for name, node in graph.weighted.items()}
    everything = Masks(whole, graph.parameters)
    recovered = recover(net, everything, raster, per=per)
    for before, after in zip(net.parameters(), recovered.parameters(), strict=True):
        assert torch.equal(before, after)


def test_layers_that_drive_one_another_are_restored_together() -> None:
    """Two layers on one cycle, each with a gain of its own."""

    class Loop(torch.nn.Module):
        features = (20,)

        def __init__(self) -> None:
            super().__init__()
            self.up, self.on = torch.nn.Linear(20, 24), torch.nn.Linear(24, 24)
            self.back = torch.nn.Linear(24, 24, bias=False)
            self.n1, self.n2 = cuba(), cuba()

        def forward(self, x, state=None):
            s1, s2, last = state or (None, None, torch.zeros(x.shape[0], 24))
            x, s1 = self.n1(self.up(x) + self.back(last), s1)
            y, s2 = self.n2(self.on(x), s2)
            return y, (s1, s2, y)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Loop()
    with torch.no_grad():
        net.up.weight.mul_(2.5)
        net.on.weight.mul_(3.0)
    raster = samples((20,))
    graph = capture(net, raster)
    assert any(isinstance(node, Delay) for node in graph.nodes.values())
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.15)))
    before, bare = rates(net, raster), rates(masked_copy(net, masks), raster)
    assert min(before.values()) > 0.03
    assert max(abs(bare[name] / rate - 1) for name, rate in before.items()) > 0.25
    restored = rates(recover(net, masks, raster), raster)
    for name, rate in before.items():
        assert restored[name] == pytest.approx(rate, rel=0.08), name


def test_a_normalized_input_beside_recurrent_weights_is_restored() -> None:
    """The gain goes into the normalization's weight and into the recurrent weights, which none follows."""

    class Normalized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = torch.nn.Linear(20, 24, bias=False), torch.nn.BatchNorm1d(24)
            self.back = torch.nn.Linear(24, 24, bias=False)
            self.n = cuba()

        def forward(self, x, state=None):
            s, last = state or (None, torch.zeros(x.shape[0], 24))
            x, s = self.n(self.norm(self.fc(x)) + self.back(last), s)
            return x, (s, x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Normalized()
    raster = samples((20,))
    with torch.no_grad():
        seen = torch.nn.functional.linear(raster.data.float(), net.fc.weight).flatten(0, 1)
        net.norm.running_mean.copy_(seen.mean(0))
        net.norm.running_var.copy_(seen.var(0))
        net.norm.weight.fill_(0.6)
        net.norm.bias.fill_(0.1)
        net.back.weight.mul_(2.0)
    graph = capture(net, raster)
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.1)))
    before, bare = rates(net, raster), rates(masked_copy(net, masks), raster)
    recovered = recover(net, masks, raster)
    assert 0.02 < before["n"] < 0.4
    assert abs(bare["n"] / before["n"] - 1) > 0.1
    assert rates(recovered, raster)["n"] == pytest.approx(before["n"], rel=0.05)
    gain = float(recovered.norm.weight.detach()[0] / 0.6)
    assert abs(gain - 1) > 0.01
    kept = torch.tensor(masks["back"])
    found = (recovered.back.weight / net.back.weight).detach()[kept]
    torch.testing.assert_close(found, torch.full_like(found, gain))
    assert torch.equal(recovered.fc.weight, masked_copy(net, masks).fc.weight)
    assert not torch.equal(recovered.norm.running_var, net.norm.running_var)


# The whole loop


@pytest.mark.parametrize("network", ["recurrent", "heads"])
def test_the_whole_path_ends_in_a_verified_file(network: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    net, graph, raster = request.getfixturevalue(network)
    held_out = samples(net.features, seed=1)
    limit = 0.5 * calibrate(graph, raster, fold=False).sops
    run = compress(net, raster, held_out=held_out, budget=Budget(density=0.3, sops=limit), directory=tmp_path / "run")
    assert run.equivalent
    assert run.after.density <= 0.3
    assert 0 < run.after.activity.sops <= limit


@pytest.mark.parametrize("network", ["recurrent", "skip"])
def test_a_measured_budget_is_met(network: str, request: pytest.FixtureRequest) -> None:
    net, graph, raster = request.getfixturevalue(network)
    dense = calibrate(graph, raster, fold=False).sops
    pruned = prune(net, raster, Pruning(Budget(sops=0.3 * dense)))
    after = graph_of(pruned.net, raster)
    used = sum(counted_sops(after, raster, {name: node.weight for name, node in after.weighted.items()}).values())
    assert used == pytest.approx(pruned.sops)
    assert 0.98 * 0.3 * dense <= used <= 0.3 * dense
    assert masked_graph(after, pruned.masks.arrays).hash == after.hash


# What is refused


def test_channels_of_recurrent_and_branching_networks_are_not_removed(recurrent: Known) -> None:
    net, _, raster = recurrent
    with pytest.raises(UnsupportedModuleError, match="channels cannot be removed from Recurrent"):
        prune(net, raster, Pruning(Budget(density=0.5), structured=True))
    cell = LIFRecurrentCell(12, 16, cuba().p, dt=DT)
    chain = SequentialState(torch.nn.Linear(20, 12), cuba(), cell)
    with pytest.raises(MaskError, match=r"2_(in|rec): is .* of LIFRecurrentCell, and channels are removed"):
        prune(chain, samples((20,)), Pruning(Budget(density=0.5), structured=True))


def test_recurrent_and_branching_networks_are_not_trained_in_integers(recurrent: Known, skip: Known) -> None:
    profile = load_profile("loihi2")
    for (net, _, raster), message in (
        (recurrent, "first_.*: (recurrence and delays cannot|is 'first.input_weights')"),
        (skip, "n1: paths part or meet here"),
    ):
        with pytest.raises(UnsupportedModuleError, match=message), integer_forward(net, profile, raster):
            pass
