"""A budget of synaptic memory: exact bits of the masks, never exceeded, spent where weights allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import slamp
from networks import build
from slamp.allocate import allocate
from slamp.budget import Budget, parse_budget
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.masks import make_masks
from slamp.memory import layer_memory_bits, memory_bits
from slamp.nodes import frozen_array
from slamp.profile import Profile, load_profile
from slamp.score import Scores, score
from test_profile import MINE


@pytest.fixture(scope="module")
def scored() -> tuple[SpikingGraph, slamp.Activity]:
    net, raster = build("conv_box", batch=8)
    graph = slamp.capture(net, raster)
    return graph, slamp.calibrate(graph, raster)


@pytest.fixture
def plain(tmp_path: Path) -> Profile:
    """A chip on which a kept weight takes 16 bits, whichever it is."""
    more = "".join(
        f'\nparameters.{name} = {{ value = {bits}, unit = "bits", source = "sheet", status = "derived" }}'
        for name, bits in (("index_bits", 8), ("pointer_bits", 0))
    )
    (tmp_path / "mine.toml").write_text(MINE.replace("[encodings.list]", f"[encodings.list]{more}"))
    return load_profile(tmp_path / "mine.toml")


def everything(scores: Scores) -> dict[str, np.ndarray]:
    return {name: node.weight != 0 for name, node in scores.graph.weighted.items()}


@pytest.mark.parametrize("method", ["lamp", "slamp", "slamp-activity"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_where_every_weight_costs_the_same_memory_is_density(
    scored: tuple[SpikingGraph, slamp.Activity], plain: Profile, method: str, share: float
) -> None:
    graph, activity = scored
    scores = score(graph, activity, method)
    total = sum(scores.sizes.values())
    count = round(share * total)
    by_memory = allocate(scores, plain.budget(memory_bits=16 * count + 3))
    kept = sum(by_memory.keep.values())
    by_density = allocate(scores, Budget(density=kept / total))
    assert kept == count
    for name, mask in make_masks(scores, by_density).items():
        assert np.array_equal(mask, make_masks(scores, by_memory)[name])


@pytest.mark.parametrize("chip", ["loihi1", "generic", "hiaer_spike", "spinnaker1"])
@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.8])
def test_the_budget_holds_exactly_and_is_spent(
    scored: tuple[SpikingGraph, slamp.Activity], chip: str, share: float
) -> None:
    graph, activity = scored
    scores, profile = score(graph, activity, "slamp-activity"), load_profile(chip)
    least = memory_bits(graph, {name: scores.largest(name, 1) for name in scores.layers}, profile)
    limit = least + share * (memory_bits(graph, everything(scores), profile) - least)
    plan = allocate(scores, profile.budget(memory_bits=limit))
    masks = make_masks(scores, plan)
    used = memory_bits(graph, masks.arrays, profile)
    assert used <= limit
    assert plan.usage["memory_bits"] == (used, limit)
    assert all(mask.any() for _, mask in masks.items())
    assert plan.binding == ("memory_bits",)
    live = {name: layer.curve.live for name, layer in scores.layers.items()}
    for name, n in plan.keep.items():
        for more in {n + 1, (n + live[name] + 1) // 2, live[name]} - {n, live[name] + 1}:
            fuller = {**masks.arrays, name: scores.largest(name, more)}
            assert memory_bits(graph, fuller, profile) > limit, "no layer keeps more"


def test_memory_joins_other_budgets(scored: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = scored
    scores, profile = score(graph, activity, "slamp"), load_profile("loihi1")
    whole = memory_bits(graph, everything(scores), profile)
    for density, share in ((0.1, 0.9), (0.9, 0.6), (0.4, 0.7)):
        plan = allocate(scores, profile.budget(memory_bits=share * whole, density=density, sops=activity.sops / 2))
        masks = make_masks(scores, plan)
        assert masks.density <= density
        assert memory_bits(graph, masks.arrays, profile) <= share * whole
        assert plan.usage["sops"][0] <= activity.sops / 2


def test_a_larger_budget_never_keeps_less_memory(scored: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = scored
    scores, profile = score(graph, activity, "lamp"), load_profile("generic")
    whole = memory_bits(graph, everything(scores), profile)
    used = [
        allocate(scores, profile.budget(memory_bits=share * whole)).usage["memory_bits"][0]
        for share in (0.1, 0.2, 0.4, 0.8, 1.0)
    ]
    assert used == sorted(used)
    assert used[-1] == whole


def test_the_bits_of_a_layer_are_those_of_its_cheapest_encoding(scored: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = scored
    profile = load_profile("loihi1")
    mask = np.random.default_rng(0).random(graph.weighted["0"].weight.shape) < 0.5
    pruned = graph.with_nodes(
        {"0": replace(graph.weighted["0"], weight=frozen_array(graph.weighted["0"].weight * mask))}
    )
    assert activity.graph_hash == graph.hash
    found = slamp.usage(pruned, profile, replace(activity, graph_hash=pruned.hash)).layers["0"]
    assert layer_memory_bits(graph, "0", mask, profile) == min(found.bits.values())


def test_what_cannot_be_met_is_refused(scored: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = scored
    scores = score(graph, activity, "slamp")
    with pytest.raises(BudgetError, match=r"memory_bits: depends on the chip; use profile\.budget"):
        allocate(scores, Budget(memory_bits=1e6))
    with pytest.raises(BudgetError, match=r"memory_bits: the budget is 5, but one weight per layer needs \d+"):
        allocate(scores, load_profile("loihi1").budget(memory_bits=5))
    with pytest.raises(BudgetError, match="single zeros save nothing there: "):
        allocate(scores, load_profile("speck2f").budget(memory_bits=5))
    with pytest.raises(BudgetError, match=r"how spinnaker2 stores the synapses of a .* is not known; use density"):
        allocate(scores, load_profile("spinnaker2").budget(memory_bits=1e9))
    with pytest.raises(BudgetError, match="memory_bits is -3; allowed is a number above 0"):
        parse_budget(["memory_bits=-3"])
