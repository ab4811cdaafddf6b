"""Structured pruning: whole channels go, shapes shrink, budgets hold, and what is left still works."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch import SequentialState

import slamp
import user_networks as users
from networks import ZOO, box, build, enliven, pattern_net, patterns, spikes
from slamp.allocate_channels import allocate_channels
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture
from slamp.channels import removable
from slamp.checkpoint import Checkpoint
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.mapping import map_cores
from slamp.measured import measured_use
from slamp.memory import memory_bits
from slamp.nodes import SPIKING
from slamp.profile import load_profile
from slamp.prune import Pruning, prune
from slamp.score import METHODS, Scores, score
from slamp.shrunk_graph import shrunk_graph
from slamp.taps import connections, weighted_sum
from test_chip_budgets import limited
from test_prune import training

TASK = patterns(batch=96, steps=8)
RASTER = spikes((2, 8, 8), steps=15, batch=12)


@pytest.fixture(scope="module")
def convolutional() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ZOO["conv_box"].build()
    assert enliven(net, RASTER, low=0.06)
    return net


@pytest.fixture(scope="module")
def scored(convolutional: torch.nn.Module) -> Scores:
    graph = capture(convolutional, RASTER)
    return score(graph, calibrate(graph, RASTER), "slamp")


@pytest.fixture(scope="module")
def trained() -> SequentialState:
    net = pattern_net()
    training(8)(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=Checkpoint())
    return net


def counted(graph: SpikingGraph) -> dict[str, float]:
    """Weights and unrolled connections that are not zero, counted on the graph that is left."""
    return {
        "weights": sum(int(np.count_nonzero(node.weight)) for node in graph.weighted.values()),
        "synapses": sum(
            weighted_sum(node, node.weight != 0, connections(node, graph.shapes[graph.sources(name)[0]]))
            for name, node in graph.weighted.items()
        ),
    }


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.05, 1.0), kind=st.sampled_from(["density", "sparsity", "synapses", "sops", "both"]))
def test_no_budget_is_exceeded_and_nothing_more_fits(scored: Scores, share: float, kind: str) -> None:
    graph, activity = scored.graph, scored.activity
    assert activity is not None
    dense = counted(graph)
    budgets = {
        "density": Budget(density=share),
        "sparsity": Budget(sparsity=min(1 - share, 0.95)),
        "synapses": Budget(synapses=share * dense["synapses"]),
        "sops": Budget(sops=share * activity.sops),
        "both": Budget(density=share, sops=share * activity.sops),
    }
    budget = budgets[kind]
    try:
        plan = allocate_channels(scored, budget)
    except BudgetError as error:
        assert "one channel per layer needs" in str(error)  # noqa: PT017  # the other outcome is tested below
        return
    small = counted(shrunk_graph(graph, plan.channels))
    if budget.density is not None:
        assert small["weights"] <= budget.density * dense["weights"]
    if budget.sparsity is not None:
        assert 1 - small["weights"] / dense["weights"] >= budget.sparsity
    if budget.synapses is not None:
        assert small["synapses"] <= budget.synapses
    for name, (used, limit) in plan.usage.items():
        assert used <= limit * (1 + 1e-12), name
    *_, last = graph.weighted
    assert plan.channels[last].all(), "the outputs of the network stay"
    assert min(plan.keep.values()) >= 1
    if kind == "density" and plan.density < 1:
        for name in removable(graph):
            left = plan.channels[name]
            if left.all():
                continue
            arrays = {key: array.copy() for key, array in plan.channels.arrays.items()}
            arrays[name][np.flatnonzero(~left)[0]] = True
            fuller = counted(shrunk_graph(graph, type(plan.channels)(arrays)))
            dead = (
                not activity.neurons[next(iter(driven(graph, name)))]
                .spike_counts.reshape(len(left), -1)[np.flatnonzero(~left)]
                .any()
            )
            assert dead or fuller["weights"] > share * dense["weights"]


def driven(graph: SpikingGraph, name: str) -> list[str]:
    found = []
    while (name := graph.targets(name)[0]) not in graph.weighted:
        if isinstance(graph.nodes[name], SPIKING):
            found.append(name)
    return found


def test_the_channels_with_most_energy_stay(scored: Scores) -> None:
    plan = allocate_channels(scored, Budget(density=0.4))
    activity = scored.activity
    assert activity is not None
    for name in removable(scored.graph):
        weight = scored.graph.weighted[name].weight
        energy = np.square(weight.reshape(len(weight), -1).astype(np.float64)).sum(1)
        fired = activity.neurons[driven(scored.graph, name)[0]].spike_counts.reshape(len(weight), -1).any(1)
        energy = energy * fired
        left = plan.channels[name]
        assert energy[left].min() >= energy[~left].max(initial=0)


def test_a_looser_budget_keeps_more(scored: Scores) -> None:
    kept = [sum(allocate_channels(scored, Budget(density=share)).keep.values()) for share in (0.1, 0.2, 0.4, 0.8)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ranks_channels(method: str) -> None:
    net, raster = build("conv_box", batch=8)
    graph = capture(net, raster)
    scores = score(graph, calibrate(graph, raster), method, raster=raster, generator=np.random.default_rng(0))
    plan = allocate_channels(scores, Budget(density=0.5))
    assert plan.method == method
    assert 0.05 < plan.density <= 0.5


def test_what_channels_cannot_do_is_refused(scored: Scores) -> None:
    with pytest.raises(BudgetError, match=r"density: the budget is 0\.0001, but one channel per layer needs .*least"):
        allocate_channels(scored, Budget(density=1e-4))
    with pytest.raises(BudgetError, match="sops: the scores carry no activity"):
        allocate_channels(score(scored.graph, method="lamp"), Budget(sops=10))
    with pytest.raises(BudgetError, match="fan-in and fan-out: one channel per layer still exceeds"):
        allocate_channels(scored, limited(fan_in=1).budget(density=0.9))
    with pytest.raises(BudgetError, match=r"cores: even with one channel per layer, .*: one neuron alone takes"):
        allocate_channels(scored, limited(axons_in_per_core=1).budget(density=0.9))
    net, raster = build("dense_box", batch=2)
    single = SequentialState(torch.nn.Linear(*net[0].weight.T.shape), box())
    graph = capture(single, raster)
    with pytest.raises(BudgetError, match="no layer of this network may lose outputs"):
        allocate_channels(score(graph, method="lamp"), Budget(density=0.5))


def test_speck_memory_falls_by_powers_of_two_and_what_is_free_is_kept(scored: Scores) -> None:
    profile = load_profile("speck2f")
    live = {name: node.weight != 0 for name, node in scored.graph.weighted.items()}
    whole = memory_bits(scored.graph, live, profile)
    plan = allocate_channels(scored, profile.budget(memory_bits=0.5 * whole))
    small = shrunk_graph(scored.graph, plan.channels)
    assert memory_bits(small, {n: node.weight != 0 for n, node in small.weighted.items()}, profile) <= 0.5 * whole
    assert map_cores(small, profile).cores == len(small.weighted)
    assert plan.usage["memory_bits"][1] == 0.5 * whole


def test_structured_pruning_shrinks_shapes_and_keeps_what_the_network_knows(trained: SequentialState) -> None:
    pruned = prune(trained, TASK, Pruning(Budget(density=0.4), train=training(6), structured=True))
    graph = capture(pruned.net, TASK)
    dense = capture(trained, TASK)
    assert pruned.channels is not None
    assert not pruned.channels.whole
    assert counted(graph)["weights"] <= 0.4 * counted(dense)["weights"]
    assert {name: len(node.weight) for name, node in graph.weighted.items()} == pruned.channels.kept
    assert pruned.masks.density == 1.0
    assert slamp.accuracy(graph, TASK) >= slamp.accuracy(dense, TASK) - 0.05
    assert [tuple(parameter.shape) for parameter in trained.parameters()] != [
        tuple(parameter.shape) for parameter in pruned.net.parameters()
    ]


@pytest.mark.parametrize("more", [{"schedule": "iterative"}, {"balance": "fan_out"}])
def test_what_channels_do_not_know_is_refused(trained: SequentialState, more: dict[str, str]) -> None:
    with pytest.raises(
        BudgetError, match="structured: channels go in one shot, and what is left has nothing to balance"
    ):
        prune(trained, TASK, Pruning(Budget(density=0.4), structured=True, **more))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_operations_hold_in_measured_use(trained: SequentialState, share: float) -> None:
    use = measured_use(trained, TASK, Budget(sops=1e12, sops_per_step=1e12))
    budget = Budget(sops=share * use["sops"], sops_per_step=share * use["sops_per_step"])
    pruned = prune(trained, TASK, Pruning(budget, train=training(2), structured=True))
    found = measured_use(pruned.net, TASK, budget)
    assert all(used <= budget.measured[name] for name, used in found.items())
    assert pruned.sops == found["sops"]


def test_where_no_round_holds_more_channels_go(trained: SequentialState, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    monkeypatch.setattr(import_module("slamp.prune_channels"), "MAX_ROUNDS", 1)
    use = measured_use(trained, TASK, Budget(sops=1e12))

    def louder(net, *, effort, generator, checkpoint):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith("bias"):
                    parameter += 0.2

    budget = Budget(sops=0.3 * use["sops"])
    pruned = prune(trained, TASK, Pruning(budget, train=louder, structured=True))
    assert pruned.sops <= 0.3 * use["sops"]
    assert pruned.channels is not None
    assert pruned.channels.kept == {n: len(node.weight) for n, node in capture(pruned.net, TASK).weighted.items()}


def test_a_core_of_loihi_takes_channels_for_neurons_and_zeros_for_memory(trained: SequentialState) -> None:
    graph = capture(trained, TASK)
    neurons = sum(int(np.prod(graph.shapes[name])) for name in graph.spiking)
    profile = limited(neurons_per_core=int(0.6 * neurons), synapse_bits_per_core=6_000)
    with pytest.raises(BudgetError, match="single zeros do not help there: remove whole channels"):
        prune(trained, TASK, Pruning(profile.budget(cores=1)))
    pruned = prune(trained, TASK, Pruning(profile.budget(cores=1, density=0.3), train=training(2), structured=True))
    small = capture(pruned.net, TASK)
    mapping = map_cores(small, profile, cores=1)
    assert mapping.fullness(0)["neurons"] <= 1
    assert mapping.fullness(0)["synaptic memory, bits"] <= 1
    assert pruned.channels is not None
    assert not pruned.channels.whole
    assert pruned.masks.density < 1, "and single weights went"
    assert "cores" in pruned.plan.binding
    roomy = limited(neurons_per_core=int(0.6 * neurons))
    shared = prune(trained, TASK, Pruning(roomy.budget(cores=1, density=0.2), train=training(2), structured=True))
    share = counted(capture(shared.net, TASK))["weights"] / counted(graph)["weights"]
    assert 0.19 <= share <= 0.2, "of the whole network, not of what the channels left"
    enough = prune(trained, TASK, Pruning(load_profile("loihi1").budget(cores=1), structured=True))
    assert enough.channels is not None
    assert enough.channels.whole
    assert enough.masks.density == 1


def test_where_zeros_save_no_memory_channels_go_for_it(trained: SequentialState) -> None:
    """Loihi 2: how it stores sparse layers is not public, so only smaller layers are known to take less."""
    graph = capture(trained, TASK)
    profile = load_profile("loihi2")
    bits = profile.limits.synapse_bits_per_core.model_copy(update={"value": 25_600})
    small_cores = profile.limits.model_copy(update={"synapse_bits_per_core": bits})
    profile = profile.model_copy(update={"limits": small_cores})
    taken = map_cores(graph, profile).cores
    assert taken > 1
    with pytest.raises(BudgetError, match="remove whole channels"):
        prune(trained, TASK, Pruning(profile.budget(cores=1)))
    use = measured_use(trained, TASK, Budget(sops=1e12))
    budget = profile.budget(cores=1, sops=0.2 * use["sops"])
    pruned = prune(trained, TASK, Pruning(budget, train=training(2), structured=True))
    assert map_cores(capture(pruned.net, TASK), profile, cores=1).cores == 1
    assert pruned.channels is not None
    assert not pruned.channels.whole
    assert 0.98 * 0.2 * use["sops"] <= pruned.sops <= 0.2 * use["sops"], "single weights spend the rest"


def test_compress_ships_the_smaller_network(tmp_path: Path) -> None:
    raster, held_out = users.samples(60, seed=0), users.samples(20, seed=1)
    run = slamp.compress(
        users.factory(),
        raster,
        held_out=held_out,
        budget=Budget(density=0.4),
        directory=tmp_path / "out",
        train=users.train,
        structured=True,
        profile="speck2f",
    )
    assert run.verifications["nir"].equivalent
    assert run.after.density <= 0.4
    assert slamp.load_nir(tmp_path / "out" / "nir" / "network.nir").hash == run.shipped.hash
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    assert summary["structured"] is True
    assert summary["advice"] == ""
    assert any(row["outputs_after"] < row["outputs_before"] for row in summary["layers"])
    assert summary["budgets"][0]["used"] == pytest.approx(run.after.density)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>speck2f</h2>" in page
    assert "<h2>Cores of speck2f</h2>" in page
    assert page.count('class="bar"') == 3 * len(run.shipped.weighted)
    back = slamp.restore_pruned(users.factory(), tmp_path / "out" / "pruned.safetensors")
    assert capture(back, raster).hash == run.shipped.hash


def test_the_tool_says_where_zeros_save_nothing(tmp_path: Path) -> None:
    run = slamp.compress(
        users.factory(),
        users.samples(60, seed=0),
        held_out=users.samples(20, seed=1),
        budget=Budget(density=0.4),
        directory=tmp_path / "out",
        profile="speck2f",
    )
    assert run.summary()["advice"].startswith("single zeros save nothing on speck2f: ")
    assert "--structured" in run.summary()["advice"]
