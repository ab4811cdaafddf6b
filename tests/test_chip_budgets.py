"""Budgets of cores, of energy and of the busiest step, and a chip's limits of fan-in and fan-out: held, and spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch import SequentialState

from networks import build, pattern_net, patterns
from slamp.activity import Activity
from slamp.allocate import allocate, masked_graph
from slamp.balance import balanced
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, read_graph
from slamp.checkpoint import Checkpoint
from slamp.cutting import MEMORY
from slamp.encodings import synapse_lists
from slamp.energy import energy_per_sample, prices
from slamp.errors import BudgetError, MaskError
from slamp.fans import allowed_by_fans, fans_hold, within_fans
from slamp.graph import SpikingGraph
from slamp.mapping import map_cores
from slamp.masks import Masks, make_masks
from slamp.measured import measured_use
from slamp.memory import encoded_bits, memory_bits
from slamp.nodes import Conv2d, Linear, Weighted, frozen_array
from slamp.plan import step_loads
from slamp.profile import Profile, load_profile
from slamp.prune import Pruning, prune
from slamp.score import Scores, score
from slamp.spend import other_budgets_hold
from slamp.taps import fan_out
from slamp.usage import usage
from test_prune import training

TASK = patterns(batch=96, steps=8)


def limited(name: str = "loihi1", **limits: float) -> Profile:
    profile = load_profile(name)
    known = profile.limits.neurons_per_core
    assert known is not None
    changed = {}
    for key, value in limits.items():
        figure = getattr(profile.limits, key) or known
        unit = {"fan_in": "synapses", "fan_out": "synapses"}.get(key, figure.unit)
        changed[key] = figure.model_copy(
            update={"value": value, "status": "assumed", "unit": unit, "source": known.source}
        )
    return profile.model_copy(update={"limits": profile.limits.model_copy(update=changed)})


@pytest.fixture(scope="module", params=["conv_box", "dense_box"])
def scored(request: pytest.FixtureRequest) -> Scores:
    net, raster = build(request.param, batch=8)
    graph = capture(net, raster)
    return score(graph, calibrate(graph, raster), "slamp")


@pytest.fixture(scope="module")
def trained() -> SequentialState:
    net = pattern_net()
    training(8)(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=Checkpoint())
    return net


# Cores


def cores_of(scores: Scores, profile: Profile, masks: dict[str, np.ndarray]) -> int:
    return map_cores(masked_graph(scores.graph, masks), profile, cores=10**9).cores


def small_cores(scores: Scores) -> tuple[Profile, int]:
    """A chip whose cores hold a third of the network each, and how many one weight per layer takes."""
    bits = sum(part.use[MEMORY] for part in map_cores(scores.graph, load_profile("loihi1")).parts)
    lists = max(node.weight.shape[1] for node in scores.graph.weighted.values())
    profile = limited(synapse_bits_per_core=max(bits / 3, 80 * lists))
    return profile, cores_of(scores, profile, {name: scores.largest(name, 1) for name in scores.layers})


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("balance", ["", "fan_out"])
def test_a_budget_of_cores_is_kept_and_spent(scored: Scores, more: int, balance: str) -> None:
    profile, least = small_cores(scored)
    cores = least + more
    plan = allocate(scored, profile.budget(cores=cores), balance=balance)
    masks = dict(make_masks(scored, plan).arrays)
    assert plan.usage["cores"] == (cores_of(scored, profile, masks), cores)
    assert cores_of(scored, profile, masks) <= cores
    whole = {name: node.weight != 0 for name, node in scored.graph.weighted.items()}
    if cores_of(scored, profile, whole) > cores:
        assert plan.binding == ("cores",)
        assert plan.multipliers["cores"] > 0
        assert plan.density < 1
    room = profile.limits.synapse_bits_per_core.number * cores
    used = sum(part.use[MEMORY] for part in placed_parts(scored, profile, masks))
    assert used >= 0.5 * min(room, sum(part.use[MEMORY] for part in placed_parts(scored, profile, whole)))


def test_more_cores_keep_more(scored: Scores) -> None:
    profile, least = small_cores(scored)
    kept = [sum(allocate(scored, profile.budget(cores=least + more)).keep.values()) for more in range(3)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def placed_parts(scores: Scores, profile: Profile, masks: dict[str, np.ndarray]) -> tuple:
    return map_cores(masked_graph(scores.graph, masks), profile, cores=10**9).parts


def test_enough_cores_do_not_bind(scored: Scores) -> None:
    plan = allocate(scored, load_profile("loihi1").budget(cores=1))
    assert plan.binding == ()
    assert plan.multipliers == {"cores": 0.0}
    assert sum(plan.keep.values()) == sum(layer.curve.live for layer in scored.layers.values())


def test_cores_and_other_budgets_hold_together(scored: Scores) -> None:
    profile, cores = small_cores(scored)
    dense = scored.activity
    assert dense is not None
    least = memory_bits(scored.graph, {n: scored.largest(n, 1) for n in scored.layers}, profile)
    budget = profile.budget(cores=cores + 1, density=0.7, sops=0.8 * dense.sops, memory_bits=1.5 * least)
    plan = allocate(scored, budget)
    masks = dict(make_masks(scored, plan).arrays)
    assert cores_of(scored, profile, masks) <= cores + 1
    assert memory_bits(scored.graph, masks, profile) <= float(budget.memory_bits or 0)
    for used, limit in plan.usage.values():
        assert used <= limit


def test_what_cores_cannot_be_is_refused(scored: Scores) -> None:
    with pytest.raises(BudgetError, match=r"cores: depends on the chip; use profile\.budget\(cores=\.\.\.\)"):
        allocate(scored, Budget(cores=1))
    with pytest.raises(BudgetError, match=r"cores: even with one weight per layer, .* remove whole channels") as error:
        allocate(scored, limited(neurons_per_core=3).budget(cores=1))
    assert "the smallest change: bring neurons" in str(error.value)
    with pytest.raises(BudgetError, match="mapping rule 'single core' places nothing"):
        allocate(scored, load_profile("xylo2").budget(cores=1))
    speck = load_profile("speck2f")
    layers = len(scored.graph.weighted)
    assert allocate(scored, speck.budget(cores=layers)).usage["cores"] == (layers, layers)
    with pytest.raises(
        BudgetError, match=rf"two layers on one core, and there are {layers}; ask for at least {layers}"
    ):
        allocate(scored, speck.budget(cores=layers - 1))


def test_cores_hold_after_retraining(trained: SequentialState) -> None:
    profile = limited(synapse_bits_per_core=6_400)
    pruned = prune(trained, TASK, Pruning(profile.budget(cores=2), train=training(2)))
    graph = capture(pruned.net, TASK)
    assert map_cores(graph, profile, cores=2).cores <= 2
    assert pruned.plan.binding == ("cores",)
    staged = prune(trained, TASK, Pruning(profile.budget(cores=2), schedule="iterative", train=training(2)))
    assert map_cores(capture(staged.net, TASK), profile, cores=2).cores <= 2
    assert len(staged.rounds) > 1


# The busiest step and energy


def test_the_busiest_step_is_kept(scored: Scores) -> None:
    activity = scored.activity
    assert activity is not None
    dense = step_loads(scored) @ list(scored.sizes.values())
    limit = 0.3 * float(dense.max())
    plan = allocate(scored, Budget(sops_per_step=limit))
    predicted = step_loads(scored) @ [plan.keep[name] for name in scored.layers]
    assert predicted.max() <= limit * (1 + 1e-9)
    assert predicted.max() >= 0.9 * limit
    assert plan.usage["sops_per_step"] == (pytest.approx(predicted.max()), limit)
    assert plan.binding == ("sops_per_step",)


def test_every_step_is_held_where_the_busiest_changes(scored: Scores) -> None:
    """Each layer is busy in a step of its own, so that pruning the one makes the other the busiest."""
    activity = scored.activity
    assert activity is not None
    layers = {}
    for step, (name, layer) in enumerate(activity.layers.items()):
        events = np.zeros(activity.steps)
        events[step] = layer.events.sum()
        layers[name] = replace(layer, events=events, from_spikes=True)
    alone = replace(scored, activity=replace(activity, layers=layers))
    totals = np.array([layer.events.sum() for layer in layers.values()])
    limit = 0.2 * float(totals.max())
    plan = allocate(alone, Budget(sops_per_step=limit))
    shares = [plan.keep[name] / size for name, size in scored.sizes.items()]
    assert (np.array(shares) * totals <= limit * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    "budget",
    [
        lambda use: Budget(sops_per_step=0.3 * use["sops_per_step"]),
        lambda use: load_profile("loihi1").budget(energy_pj=0.7 * use["energy_pj"]),
        lambda use: load_profile("truenorth").budget(energy_pj=0.2 * 26 * use["sops"]),
        lambda use: Budget(sops=0.5 * use["sops"], sops_per_step=0.3 * use["sops_per_step"]),
    ],
    ids=["step", "energy", "all in", "both"],
)
def test_measured_budgets_are_met_on_the_pruned_network(
    trained: SequentialState, budget: Callable[[dict[str, float]], Budget]
) -> None:
    whole = load_profile("loihi1").budget(energy_pj=1e12, sops=1e12, sops_per_step=1e12)
    asked = budget(measured_use(trained, TASK, whole))
    pruned = prune(trained, TASK, Pruning(asked))
    use = measured_use(pruned.net, TASK, asked)
    shares = [used / asked.measured[name] for name, used in use.items()]
    assert max(shares) <= 1
    assert max(shares) >= 0.98 or pruned.shortfall
    assert pruned.rounds[0].measured.keys() == asked.measured.keys()


def test_energy_is_the_price_of_what_was_counted(trained: SequentialState) -> None:
    graph = capture(trained, TASK)
    activity = calibrate(graph, TASK, fold=False)
    profile = load_profile("loihi1")
    neurons = sum(int(np.prod(neuron.spike_counts.shape)) for neuron in activity.neurons.values())
    by_hand = 23.6 * activity.sops + 81 * neurons * activity.steps + 1.7 * activity.spikes
    assert energy_per_sample(graph, activity, profile) == pytest.approx(by_hand)
    assert energy_per_sample(graph, activity, profile, "sanafe_nahuku") == pytest.approx(
        35.5 * activity.sops + 72.8 * neurons * activity.steps + 69.3 * activity.spikes
    )
    found = usage(graph, profile, activity)
    assert found["energy per sample, pJ (davies2018, per_term)"].used == pytest.approx(by_hand)


def test_energy_without_prices_is_refused(scored: Scores) -> None:
    with pytest.raises(BudgetError, match=r"energy_pj: depends on the chip"):
        allocate(scored, Budget(energy_pj=1e6))
    with pytest.raises(BudgetError, match="no price of a SOP on speck2f is known; use sops"):
        allocate(scored, load_profile("speck2f").budget(energy_pj=1e6))
    with pytest.raises(BudgetError, match="set 'mine' is not one of loihi1; allowed are davies2018, sanafe_nahuku"):
        prices(load_profile("loihi1"), "mine")
    with pytest.raises(BudgetError, match="neuron updates and spikes alone take"):
        allocate(scored, load_profile("loihi1").budget(energy_pj=10))
    with pytest.raises(BudgetError, match="generic has no price for neuron updates, spikes"):
        allocate(scored, load_profile("generic").budget(energy_pj=1e12))
    blind = replace(scored, activity=None)
    with pytest.raises(BudgetError, match="energy_pj: the scores carry no activity"):
        allocate(blind, load_profile("loihi1").budget(energy_pj=1e12))
    with pytest.raises(BudgetError, match="sops_per_step: the scores carry no activity"):
        allocate(blind, Budget(sops_per_step=1e12))


# Fan-in and fan-out


def one_by_one(node: Weighted, keys: np.ndarray, fan_in: int | None, fan_out: int | None) -> np.ndarray:
    """Take weights from the largest down, as long as both neurons have room; of equals the lower index first."""
    targets, sources = {}, {}
    taken = np.zeros(keys.size, dtype=bool)
    for index in np.argsort(-keys, kind="stable"):
        if keys[index] == 0:
            break
        place = np.unravel_index(index, node.weight.shape)
        if isinstance(node, Conv2d):
            group = place[0] // (node.weight.shape[0] // node.groups)
            source = (group, place[1], place[2] * node.dilation[0] % node.stride[0], place[3] % node.stride[1])
        else:
            source = (place[1],)
        full_in = fan_in is not None and targets.get(place[0], 0) >= fan_in
        full_out = fan_out is not None and sources.get(source, 0) >= fan_out
        if full_in or full_out:
            continue
        taken[index] = True
        targets[place[0]] = targets.get(place[0], 0) + 1
        sources[source] = sources.get(source, 0) + 1
    return taken


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([None, 1, 3, 9]), st.sampled_from([None, 1, 2, 7]), st.booleans())
def test_allowed_weights_are_those_taken_one_by_one(seed: int, into: int | None, out: int | None, conv: bool) -> None:
    generator = np.random.default_rng(seed)
    if conv:
        weight = frozen_array(generator.integers(0, 4, (4, 2, 3, 2)))
        node: Weighted = Conv2d(weight, None, (2, 1), (1, 1), (1, 1), 2)
    else:
        node = Linear(frozen_array(generator.integers(0, 4, (6, 5))))
    keys = node.weight.reshape(-1)
    found = allowed_by_fans(node, keys, into, out)
    expected = one_by_one(node, keys, into, out)
    assert ((keys > 0) if found is None else found).tolist() == expected.tolist()


def test_a_chips_fans_hold_for_every_neuron(scored: Scores) -> None:
    profile = limited(fan_in=4, fan_out=5)
    plan = allocate(scored, profile.budget(density=0.9))
    masks = make_masks(scored, plan)
    graph = scored.graph
    into = max(int(mask.reshape(len(mask), -1).sum(1).max()) for _, mask in masks.items())
    _, *later = graph.weighted
    out = [fan_out(graph.weighted[n], graph.shapes[graph.sources(n)[0]], masks[n]).max() for n in later]
    assert into == 4
    assert max(out) <= 5
    assert fans_hold(graph, masks.arrays, profile)
    assert not fans_hold(graph, {n: node.weight != 0 for n, node in graph.weighted.items()}, profile)
    found = usage(masked_graph(graph, masks.arrays), profile, calibrated(masked_graph(graph, masks.arrays), scored))
    assert found["largest fan-in"].used == into
    assert found["largest fan-in"].fits
    assert within_fans(scored, None) is scored
    assert within_fans(scored, load_profile("loihi1")) is scored


def calibrated(graph: SpikingGraph, scores: Scores) -> Activity:
    """The activity of the dense graph, taken for that of another with the same nodes."""
    assert scores.activity is not None
    return replace(scores.activity, graph_hash=graph.hash)


def test_fans_hold_after_a_budget_of_operations_was_spent(trained: SequentialState) -> None:
    profile = limited(fan_in=10, fan_out=6)
    use = measured_use(trained, TASK, Budget(sops=1e12))
    pruned = prune(trained, TASK, Pruning(profile.budget(sops=0.2 * use["sops"])))
    graph, _ = read_graph(pruned.net, TASK.features, TASK.dt)
    assert fans_hold(graph, {n: node.weight != 0 for n, node in graph.weighted.items()}, profile)


# Balance


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 120), st.sampled_from(["linear", "conv", "groups", "parts"]))
def test_balanced_masks_keep_as_many_of_every_source(seed: int, n: int, kind: str) -> None:
    generator = np.random.default_rng(seed)
    groups: tuple[range, ...] = ()
    if kind in ("linear", "parts"):
        node: Weighted = Linear(frozen_array(generator.uniform(0.5, 1, (12, 10))))
        lists = [node.weight.T[i] for i in range(10)]
        places = np.tile(np.arange(10), (12, 1))
        if kind == "parts":
            groups = (range(5), range(5, 12))
            places = places + 10 * (np.arange(12) >= 5)[:, None]
    else:
        shape = (6, 4, 2, 2) if kind == "conv" else (6, 2, 2, 2)
        node = Conv2d(frozen_array(generator.uniform(0.5, 1, shape)), None, (1, 1), (0, 0), (1, 1), 24 // shape[1] // 6)
        node = replace(node, groups=1 if kind == "conv" else 2)
        places = np.broadcast_to(
            (np.arange(6)[:, None] // (6 if kind == "conv" else 3) * shape[1] + np.arange(shape[1]))[..., None, None],
            shape,
        )
        lists = []
    keys = node.weight.reshape(-1)
    mask = balanced(node, keys, n, groups)
    kept = np.bincount(places.reshape(-1)[mask.reshape(-1)], minlength=places.max() + 1)
    share = n // len(kept)
    room = np.bincount(places.reshape(-1))
    assert mask.sum() <= max(n, 1)
    if share:
        assert (kept == np.minimum(share, room)).all()
        for number in range(len(kept)):
            own = keys[places.reshape(-1) == number]
            chosen = mask.reshape(-1)[places.reshape(-1) == number]
            assert own[chosen].min() >= own[~chosen].max(initial=0)
    else:
        assert kept.max() == 1
        assert mask.sum() == n
    assert lists is not None


def test_balance_saves_memory_where_lists_are_padded() -> None:
    """Loihi 1 at 10 % density: 22 to 30 % (hardware.md, 7.2), here on 256 x 256 random weights."""
    generator = np.random.default_rng(0)
    node = Linear(frozen_array(generator.standard_normal((256, 256))))
    keys = np.abs(node.weight).reshape(-1)
    n = 6553
    plain = np.zeros(keys.size, dtype=bool)
    plain[np.argsort(-keys)[:n]] = True
    profile = load_profile("loihi1")

    def bits(mask: np.ndarray) -> float:
        kept = Linear(frozen_array(mask.reshape(256, 256)))
        return min(encoded_bits(synapse_lists(kept, (256,)), profile).values())

    saved = 1 - bits(balanced(node, keys, n)) / bits(plain)
    assert 0.2 <= saved <= 0.35


def test_a_balanced_plan_accounts_what_its_masks_take(scored: Scores) -> None:
    profile = load_profile("loihi1")
    whole = memory_bits(scored.graph, {n: node.weight != 0 for n, node in scored.graph.weighted.items()}, profile)
    budget = profile.budget(memory_bits=0.6 * whole)
    balanced_plan = allocate(scored, budget, balance="fan_out")
    masks = make_masks(scored, balanced_plan)
    assert memory_bits(scored.graph, masks.arrays, profile) == balanced_plan.usage["memory_bits"][0] <= 0.6 * whole
    plain = make_masks(scored, balanced_plan, balance="")
    assert any((plain[name] != masks[name]).any() for name in masks)
    with pytest.raises(MaskError, match=r"balance is 'rows'; allowed are '' \(none\) and 'fan_out'"):
        make_masks(scored, balanced_plan, balance="rows")
    with pytest.raises(MaskError, match="balance is 'rows'"):
        allocate(scored, budget, balance="rows")


def test_balanced_pruning_keeps_the_budget(trained: SequentialState) -> None:
    profile = load_profile("loihi1")
    graph = capture(trained, TASK)
    whole = memory_bits(graph, {n: node.weight != 0 for n, node in graph.weighted.items()}, profile)
    pruned = prune(trained, TASK, Pruning(profile.budget(memory_bits=0.5 * whole), balance="fan_out"))
    assert memory_bits(graph, pruned.masks.arrays, profile) <= 0.5 * whole
    for name, mask in pruned.masks.items():
        counts = mask.reshape(len(mask), -1).sum(0)
        assert counts.max() - counts[counts > 0].min() <= 1, name


def test_weights_that_come_back_must_keep_to_the_chip(scored: Scores) -> None:
    graph, activity = scored.graph, scored.activity
    whole = Masks({name: node.weight != 0 for name, node in graph.weighted.items()}, graph.parameters)
    fans, (small, least) = limited(fan_in=4, fan_out=5), small_cores(scored)
    bits = memory_bits(graph, whole.arrays, small)
    for budget in (
        fans.budget(density=1.0),
        small.budget(cores=least),
        small.budget(memory_bits=0.9 * bits),
        Budget(density=0.5),
        Budget(sparsity=0.5),
        Budget(synapses=10),
    ):
        assert not other_budgets_hold(graph, activity, whole, budget)
        kept = make_masks(scored, allocate(scored, budget)) if budget.synapses is None else whole
        assert other_budgets_hold(graph, activity, kept, budget) == (budget.synapses is None)
    assert other_budgets_hold(graph, activity, whole, load_profile("loihi1").budget(cores=1, sops=1))
