"""Searches against the chip's own rules where they once went wrong: axons, hosts, plateaus, advice, odd limits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

import user_networks as users
from networks import box, build, patterns, spikes
from slamp.allocate import allocate, masked_graph
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture
from slamp.errors import BudgetError, MappingError, ProfileError
from slamp.mapping import map_cores, place
from slamp.masks import make_masks
from slamp.memory import memory_bits
from slamp.nodes import Conv1d, Conv2d, Input, Output, frozen_array
from slamp.profile import Profile, installed_profiles, load_profile
from slamp.prune import Pruning, prune
from slamp.score import Scores, score
from slamp.usage import usage
from test_chip_budgets import limited, trained  # noqa: F401  # a fixture
from test_mapping import chain, recount, units

TASK = patterns(batch=96, steps=8)


def scores_of(net: torch.nn.Module, features: tuple[int, ...]) -> Scores:
    raster = spikes(features, batch=2)
    graph = capture(net, raster)
    return score(graph, calibrate(graph, raster), "lamp")


def held(scores: Scores, profile: Profile, budget: Budget, **more: str) -> float:
    """Allocate, and assert that what the masks leave can be placed on as many cores; return the density."""
    plan = allocate(scores, budget, **more)
    masks = make_masks(scores, plan)
    graph = masked_graph(scores.graph, masks.arrays)
    assert budget.cores is not None
    assert plan.usage["cores"] == (place(graph, profile).cores, budget.cores)
    assert place(graph, profile).cores <= budget.cores
    return masks.density


@pytest.mark.parametrize("balance", ["", "fan_out"])
def test_zeros_save_cores_through_axons_where_they_save_no_memory(balance: str) -> None:
    """Loihi 2: dense estimates of memory, but a source without synapses needs no axon."""
    net = SequentialState(
        torch.nn.Conv2d(3, 4, 6, stride=6), box(), torch.nn.Flatten(), torch.nn.Linear(676, 10), box()
    )
    scores, profile = scores_of(net, (3, 78, 78)), load_profile("loihi2")
    assert place(scores.graph, profile).cores == 2
    density = held(scores, profile, profile.budget(cores=1), balance=balance)
    assert density < 1
    for name, n in allocate(scores, profile.budget(cores=1)).keep.items():
        fuller = {key: scores.largest(key, m) for key, m in allocate(scores, profile.budget(cores=1)).keep.items()}
        fuller[name] = scores.largest(name, scores.layers[name].curve.live)
        assert n < fuller[name].sum()
        assert place(masked_graph(scores.graph, fuller), profile).cores > 1, "no layer can be kept whole"
    assert held(scores, profile, profile.budget(cores=1, density=0.3), balance=balance) <= 0.3


def test_host_layers_cost_no_memory_of_the_chip() -> None:
    raster = users.samples(analog=True)
    graph = capture(users.factory(), raster)
    activity = calibrate(graph, raster)
    for name in ("loihi1", "speck2f", "spinnaker1"):
        profile = load_profile(name)
        found = usage(graph, profile, activity)
        rows = {row.resource: row.used for row in found.rows}
        whole = rows.get("synaptic memory, bits", 8 * rows.get("synaptic memory, bytes", 0))
        live = {key: node.weight != 0 for key, node in graph.weighted.items()}
        assert found.host
        assert memory_bits(graph, live, profile, found.host) == pytest.approx(whole, abs=8)
        plan = allocate(score(graph, activity, "lamp"), profile.budget(memory_bits=whole))
        assert plan.density == 1
        assert plan.binding == ()
    narrow = limited(fan_in=2)
    masks = make_masks(
        score(graph, activity, "lamp"), allocate(score(graph, activity, "lamp"), narrow.budget(density=1))
    )
    first, *later = masks
    assert masks[first].all(), "the host has no limits of fan-in"
    assert max(masks[name].sum(1).max() for name in later) == 2


def test_a_larger_budget_of_memory_never_lowers_the_objective() -> None:
    for network in ("dense_cuba", "conv_box", "dense_box"):
        net, raster = build(network, batch=8)
        graph = capture(net, raster)
        scores, profile = score(graph, calibrate(graph, raster), "slamp"), load_profile("loihi1")
        whole = memory_bits(graph, {n: node.weight != 0 for n, node in graph.weighted.items()}, profile)
        least = memory_bits(graph, {n: scores.largest(n, 1) for n in graph.weighted}, profile)
        worths = []
        for share in np.linspace(0.05, 1, 9):
            plan = allocate(scores, profile.budget(memory_bits=least + share * (whole - least)))
            worths.append(sum(scores.layers[name].curve.total(n) for name, n in plan.keep.items()))
        slack = max(float(layer.curve.value(2)) for layer in scores.layers.values())
        assert all(later >= earlier - slack for earlier, later in pairwise(worths))
        assert worths[-1] > worths[0]


def test_curves_add_up_to_their_values() -> None:
    net, raster = build("dense_box", batch=4)
    graph = capture(net, raster)
    for method in ("lamp", "slamp", "global-magnitude", "uniform", "erk", "random"):
        scores = score(graph, calibrate(graph, raster), method, generator=np.random.default_rng(0))
        for layer in scores.layers.values():
            values = layer.curve.values()
            for n in (1, 2, 7, len(values)):
                assert layer.curve.total(n) == pytest.approx(values[1:n].sum(), rel=1e-9, abs=1e-12)


def test_balance_survives_a_budget_of_operations(trained: SequentialState) -> None:  # noqa: F811  # the fixture
    budget = load_profile("loihi1").budget(sops=2000)
    pruned = prune(trained, TASK, Pruning(budget, balance="fan_out"))
    assert pruned.sops <= 2000
    assert pruned.plan.balance == "fan_out"
    assert pruned.plan.usage["sops"][1] == 2000
    for name, mask in pruned.masks.items():
        counts = mask.sum(0)
        assert len(set(counts[counts > 0].tolist())) == 1, name


def test_plans_name_the_limits_that_were_asked(trained: SequentialState) -> None:  # noqa: F811  # the fixture
    pruned = prune(trained, TASK, Pruning(Budget(sops=2000)))
    assert pruned.plan.usage["sops"][1] == 2000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("neurons_per_core", 0, "allowed is 1 or more"),
        ("synapse_formats_per_core", 0, "allowed is 1 or more"),
        ("cores_per_chip", 0, "allowed is 1 or more"),
        ("axons_in_per_core", 5.5, "allowed are whole numbers"),
    ],
)
def test_limits_no_core_can_have_are_refused(key: str, value: float, message: str, tmp_path: Path) -> None:
    text = installed_profiles()["loihi1"].read_text()
    lines = [
        line.replace(line.split("value = ")[1].split(",")[0], str(value), 1) if line.startswith(f"{key} =") else line
        for line in text.splitlines()
    ]
    (tmp_path / "odd.toml").write_text("\n".join(lines))
    with pytest.raises(ProfileError, match=rf"limits\.{key}.*{message}"):
        load_profile(tmp_path / "odd.toml")


def test_advice_never_asks_for_more_than_there_is_nor_for_fewer_outputs() -> None:
    for sizes, limits, cores in (
        ((40, 34, 8, 5), {"axons_in_per_core": 130, "synapse_bits_per_core": 4_000}, 7),
        ((27, 50, 59, 19, 30), {"synapse_bits_per_core": 4_000}, 20),
        ((24, 39, 8, 24), {"neurons_per_core": 20, "axons_out_per_core": 60}, 3),
    ):
        layers = [module for ins, outs in pairwise(sizes) for module in (torch.nn.Linear(ins, outs), box())]
        graph = capture(SequentialState(*layers), spikes(sizes[:1], batch=2))
        profile = limited(**limits)
        with pytest.raises(MappingError) as error:
            map_cores(graph, profile, cores=cores)
        *_, last = graph.weighted
        said = str(error.value)
        assert f"bring neurons of {last}" not in said
        if "from" in said:
            now, then = said.split("from ")[1].removesuffix(" or less").split(" to ")
            assert float(then.replace(",", "")) < float(now.replace(",", ""))


def test_what_no_number_of_cores_can_mend_is_said_so() -> None:
    net, raster = build("dense_box", batch=2)
    graph = capture(net, raster)
    scores = score(graph, method="lamp")
    for name, message in (
        ("akida1000", "mapping rule 'unknown' places nothing"),
        ("spinnaker2", "no limit of a core is known"),
        ("spinnaker1", "spinnaker1 puts no two layers on one core"),
    ):
        with pytest.raises(BudgetError, match=message) as error:
            allocate(scores, load_profile(name).budget(cores=1))
        assert "structured" not in str(error.value)
    with pytest.raises(BudgetError, match=r"needs (\d+) on loihi1.*ask for at least that") as refused:
        allocate(scores, load_profile("loihi1").budget(memory_bits=1))
    least = int(str(refused.value).split("needs ")[1].split()[0])
    assert allocate(scores, load_profile("loihi1").budget(memory_bits=least)).usage["memory_bits"][0] <= least


@pytest.mark.parametrize("neurons", [20, 40, 100, 400])
def test_groups_of_a_convolution_are_cut_where_they_must_be(neurons: int) -> None:
    generator = np.random.default_rng(0)
    profile = limited(neurons_per_core=neurons)
    one = Conv1d(frozen_array(generator.standard_normal((64, 4, 3))), None, (1,), (1,), (1,), 2)
    graph = chain({"input": Input((8, 10)), "a": one, "na": units(64, 10), "output": Output((64, 10))})
    recount(graph, place(graph, profile), profile)
    two = Conv2d(frozen_array(generator.standard_normal((6, 1, 3, 3))), None, (1, 1), (1, 1), (1, 1), 3)
    graph = chain({"input": Input((3, 6, 6)), "a": two, "na": units(6, 6, 6), "output": Output((6, 6, 6))})
    recount(graph, place(graph, profile), profile)
