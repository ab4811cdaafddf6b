"""Allocation against brute force over all counts; budgets, layers and costs under random inputs."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slamp.activity import Activity, LayerActivity, NeuronActivity
from slamp.allocate import allocate
from slamp.budget import Budget, parse_budget
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.masks import make_masks
from slamp.nodes import LIF, Conv1d, Conv2d, Flatten, Input, Linear, Node, Output, frozen_array, uniform
from slamp.score import score

STEPS = 3


def objective(weights, factors, counts):
    """sum_l A_l^(2 eta) log S_l(n_l), in float64, from sorted copies."""
    total = 0.0
    for weight, factor, n in zip(weights, factors, counts, strict=True):
        squares = np.sort(weight.astype(np.float64).reshape(-1) ** 2)[::-1]
        total += factor * np.log(squares[:n].sum())
    return total


def best(weights, factors, costs, limits):
    """Highest objective over every combination of counts that meets the limits; costs[k][l] per weight."""
    sizes = [range(1, weight.size + 1) for weight in weights]
    feasible = (
        counts
        for counts in itertools.product(*sizes)
        if all(np.dot(row, counts) <= limit for row, limit in zip(costs, limits, strict=True))
    )
    return max(objective(weights, factors, counts) for counts in feasible)


@pytest.mark.parametrize("seed", range(40))
def test_density_budget_equals_brute_force(seed):
    graph, activity, weights, _ = small(seed)
    total = sum(weight.size for weight in weights)
    generator = np.random.default_rng(seed)
    kept = int(generator.integers(3, total))
    scores = score(graph, activity, "slamp")
    plan = allocate(scores, Budget(density=kept / total))
    factors = list(scores.factors.values())
    assert sum(plan.keep.values()) == kept
    found = objective(weights, factors, plan.keep.values())
    assert found == pytest.approx(best(weights, factors, [[1, 1, 1]], [kept]), abs=1e-9)


@pytest.mark.parametrize("method", ["slamp", "slamp-activity"])
@pytest.mark.parametrize("seed", range(40))
def test_one_sop_budget_equals_brute_force_within_one_weight(seed, method):
    graph, activity, weights, costs = small(seed)
    if method == "slamp-activity":
        weights = [
            weight * layer.trace_energy.astype(np.float64) ** 0.125
            for weight, layer in zip(weights, activity.layers.values(), strict=True)
        ]
    scores = score(graph, activity, method)
    factors = list(scores.factors.values())
    sizes = [weight.size for weight in weights]
    limit = np.random.default_rng(seed).uniform(sum(costs), np.dot(costs, sizes))
    plan = allocate(scores, Budget(sops=limit))
    counts = list(plan.keep.values())
    found, optimum = objective(weights, factors, counts), best(weights, factors, [costs], [limit])
    assert np.dot(costs, counts) <= limit
    assert optimum - found <= first_blocked(weights, factors, [costs], plan) + 1e-6
    # Everett: what it attains by the multiplier alone is the optimum for exactly that usage.
    attained = thresholded(weights, factors, [costs], plan)
    used = np.dot(costs, attained)
    assert used <= limit * (1 + 1e-12)
    assert objective(weights, factors, attained) == pytest.approx(best(weights, factors, [costs], [used * (1 + 1e-12)]))
    assert_nothing_fits(weights, [costs], [limit], counts)


@pytest.mark.parametrize("seed", range(60))
def test_two_budgets_equal_brute_force_within_two_weights(seed):
    graph, activity, weights, costs = small(seed)
    scores = score(graph, activity, "slamp")
    factors = list(scores.factors.values())
    sizes = np.array([weight.size for weight in weights])
    generator = np.random.default_rng(seed + 1000)
    # Budgets in the range where both can bind: usages of one and the same random choice of counts, and a little more.
    counts = [int(generator.integers(1, size + 1)) for size in sizes]
    limits = [sum(counts) + int(generator.integers(2)), np.dot(costs, counts) * generator.uniform(1, 1.2)]
    rows = [[1.0, 1.0, 1.0], costs]
    plan = allocate(scores, Budget(density=min(limits[0] / sizes.sum(), 1.0), sops=limits[1]))
    found = list(plan.keep.values())
    loss = best(weights, factors, rows, [min(limits[0], sizes.sum()), limits[1]]) - objective(weights, factors, found)
    assert -1e-9 <= loss <= first_blocked(weights, factors, rows, plan) + 1e-6
    assert_nothing_fits(weights, rows, limits, found)


def test_both_of_two_budgets_can_bind():
    binding = [allocated_two(seed).binding for seed in range(60)]
    assert {("density",), ("sops",), ("density", "sops")} <= set(binding)


def test_three_budgets_hold_together():
    graph = mixed(0)
    activity = random_activity(graph, 0)
    scores = score(graph, activity, "slamp")
    plan = allocate(scores, Budget(density=0.3, synapses=2500, sops=0.2 * activity.dense_sops))
    assert set(plan.usage) == {"density", "synapses", "sops"}
    for used, limit in plan.usage.values():
        assert used <= limit
    assert plan.binding
    for name in plan.binding:
        assert plan.usage[name][0] > 0.98 * plan.usage[name][1]


@pytest.mark.parametrize("cost_aware", [True, False])
def test_usage_equals_sums_over_every_weight(cost_aware):
    for seed in range(5):
        graph = mixed(seed)
        activity = random_activity(graph, seed)
        scores = score(graph, activity, "slamp")
        budget = Budget(sops=0.3 * activity.dense_sops, synapses=4000, density=0.6)
        plan = allocate(scores, budget, cost_aware=cost_aware)
        masks = make_masks(scores, plan)
        sops, synapses = brute_usage(graph, activity, masks)
        assert plan.usage["sops"][0] == pytest.approx(sops, rel=1e-12)
        assert plan.usage["synapses"][0] == synapses
        assert plan.usage["density"][0] == plan.density == masks.density


def test_costs_make_a_difference_and_baselines_ignore_them():
    graph = mixed(1)
    activity = random_activity(graph, 1)
    budget = Budget(sops=0.1 * activity.dense_sops)
    for method, differs in (("slamp", True), ("global-magnitude", False)):
        scores = score(graph, activity, method)
        aware, blind = (allocate(scores, budget, cost_aware=choice).keep for choice in (True, False))
        assert (dict(aware) != dict(blind)) == differs


def test_operations_on_analog_inputs_are_no_sops():
    graph = mixed(2)
    activity = random_activity(graph, 2, analog=("w0",))
    scores = score(graph, activity, "slamp")
    plan = allocate(scores, Budget(sops=0.05 * activity.dense_sops))
    assert plan.keep["w0"] == np.count_nonzero(graph.weighted["w0"].weight)
    masks = make_masks(scores, plan)
    assert plan.usage["sops"][0] == pytest.approx(brute_usage(graph, activity, masks)[0])


def test_a_budget_that_binds_nothing_keeps_every_weight():
    graph = mixed(3)
    plan = allocate(score(graph, method="lamp"), Budget(density=1.0, synapses=1e9))
    assert dict(plan.keep) == {name: np.count_nonzero(node.weight) for name, node in graph.weighted.items()}
    assert plan.binding == ()
    assert set(plan.multipliers.values()) == {0.0}


def test_zero_weights_are_not_kept():
    graph = chain_of_linear([np.array([[1.0, 0.0, -2.0]]), np.array([[0.0], [3.0]])])
    plan = allocate(score(graph, method="lamp"), Budget(density=1.0))
    assert dict(plan.keep) == {"w0": 2, "w1": 1}


@pytest.mark.parametrize(("sparsity", "kept"), [(0.9, 100), (0.3, 700), (0.999, 1), (0.0, 1000), (0.8995, 100)])
def test_sparsity_is_the_share_removed(sparsity, kept):
    graph = chain_of_linear([np.random.default_rng(0).standard_normal((10, 100))])
    plan = allocate(score(graph, method="lamp"), Budget(sparsity=sparsity))
    assert plan.keep["w0"] == kept
    used, limit = plan.usage["density"]
    assert used <= limit


@pytest.mark.parametrize("density", [k / 1000 for k in range(1, 1000, 7)])
def test_a_density_that_is_a_count_is_met_exactly(density):
    graph = chain_of_linear([np.random.default_rng(0).standard_normal((10, 100))])
    assert allocate(score(graph, method="lamp"), Budget(density=density)).keep["w0"] == round(density * 1000)


def test_multipliers_explain_which_weights_stay():
    graph = mixed(4)
    activity = random_activity(graph, 4)
    scores = score(graph, activity, "slamp")
    plan = allocate(scores, Budget(sops=0.2 * activity.dense_sops))
    for name, n in plan.keep.items():
        needed = plan.multipliers["sops"] * activity.layers[name].tap_events.mean()
        clear = scores[name] >= needed * (1 + 1e-9)
        assert np.count_nonzero(clear) <= n <= np.count_nonzero(clear) + 3


def test_a_long_fill_ends_where_single_steps_would():
    # One weight of the first layer costs as much as 10000 of the second, so its last gap is filled by many small ones.
    generator = np.random.default_rng(0)
    graph = chain_of_linear([generator.standard_normal((30, 10)), generator.standard_normal((400, 30))])
    layers = {
        "w0": LayerActivity(True, *np.ones((3, STEPS)), np.full((1, 10), 1e4), np.ones((1, 10))),
        "w1": LayerActivity(True, *np.ones((3, STEPS)), np.full((1, 30), 1.0), np.ones((1, 30))),
    }
    neurons = {name: NeuronActivity(np.zeros(STEPS), np.ones(1), np.ones(STEPS)) for name in graph.spiking}
    activity = Activity(graph.hash, 1, STEPS, layers, neurons, np.ones(STEPS) / STEPS)
    plan = allocate(score(graph, activity, "slamp"), Budget(sops=29_999), cost_aware=False)
    assert dict(plan.keep) == {"w0": 2, "w1": 9999}
    assert plan.usage["sops"] == (29_999.0, 29_999.0)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_budget_is_exceeded_and_no_layer_emptied(data):
    graph = mixed(data.draw(st.integers(0, 1000)), rounded=data.draw(st.booleans()))
    activity = random_activity(graph, data.draw(st.integers(0, 1000)))
    limits = {
        "density": data.draw(st.none() | st.floats(0.001, 1.0)),
        "synapses": data.draw(st.none() | st.floats(1, 12_000)),
        "sops": data.draw(st.none() | st.floats(0.001, 1.0).map(lambda share: share * activity.dense_sops)),
    }
    if all(value is None for value in limits.values()):
        limits["density"] = 0.1
    method = data.draw(st.sampled_from(["lamp", "slamp", "slamp-activity", "slamp-bound", "uniform", "erk", "random"]))
    scores = score(graph, activity, method, generator=np.random.default_rng(0))
    try:
        plan = allocate(scores, Budget(**limits), cost_aware=data.draw(st.booleans()))
    except BudgetError as error:
        least = make_masks_of_one(scores)
        sops, synapses = brute_usage(graph, activity, least)
        usage = {"density": least.density, "synapses": synapses, "sops": sops}
        named = str(error).split(":")[0]
        assert usage[named] > limits[named]
        return
    masks = make_masks(scores, plan)
    sops, synapses = brute_usage(graph, activity, masks)
    usage = {"density": masks.density, "synapses": synapses, "sops": sops}
    for name, limit in limits.items():
        if limit is not None:
            # The brute-force sum may round otherwise in its last digit.
            assert usage[name] <= limit * (1 + 1e-12)
            assert plan.usage[name][0] <= plan.usage[name][1]
    for name, mask in masks.items():
        assert np.count_nonzero(mask) == plan.keep[name] >= 1
        assert (graph.weighted[name].weight[mask] != 0).all()
    again = allocate(scores, Budget(**limits))
    assert dict(again.keep) == dict(allocate(scores, Budget(**limits)).keep)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(density=0.001), "density: the budget is 0 of .* weights, below the 4 weights that must stay"),
        (Budget(synapses=3), r"synapses: the budget is 3, but the 4 weights that must stay \(at least one per layer\)"),
        (Budget(sops=1e-3), "sops: the budget is 0.001, but"),
        (Budget(density=0.5, synapses=3), "synapses: the budget is 3"),
    ],
)
def test_a_budget_below_one_weight_per_layer_is_refused_by_name(budget, message):
    graph = mixed(0)
    scores = score(graph, random_activity(graph, 0), "slamp")
    with pytest.raises(BudgetError, match=message):
        allocate(scores, budget)


def test_the_least_budget_of_the_message_is_enough():
    graph = mixed(0)
    scores = score(graph, random_activity(graph, 0), "slamp")
    with pytest.raises(BudgetError) as caught:
        allocate(scores, Budget(synapses=3))
    least = float(str(caught.value).rsplit(" ", 1)[1])
    assert sum(allocate(scores, Budget(synapses=least)).keep.values()) == 4


def test_sop_budget_without_activity_is_refused():
    with pytest.raises(BudgetError, match="sops: the scores carry no activity"):
        allocate(score(mixed(0), method="lamp"), Budget(sops=10))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing is given; allowed are density"),
        ({"density": 0.1, "sparsity": 0.9}, "density and sparsity are both given"),
        ({"density": 0.0}, "density is 0; allowed is above 0"),
        ({"density": 1.5}, "density is 1.5; allowed"),
        ({"sparsity": 1.0}, "sparsity is 1; allowed is 0 to below 1"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sops": -1}, "sops is -1; allowed is a number above 0"),
        ({"synapses": 0}, "synapses is 0; allowed"),
        ({"sops": float("nan")}, "sops is nan; allowed is a finite number"),
        ({"sops": float("inf")}, "sops is inf; allowed is a finite number"),
        ({"density": "0.1"}, "density is '0.1'; allowed is a finite number"),
        ({"density": True}, "density is True"),
        ({"memory_bits": 0}, "memory_bits is 0; allowed is a number above 0"),
        ({"cores": 1.5}, "cores is 1.5; allowed is a whole number from 1"),
        ({"cores": 0}, "cores is 0; allowed is a whole number from 1"),
        ({"sops_per_step": 0}, "sops_per_step is 0; allowed is a number above 0"),
        ({"energy_pj": -1}, "energy_pj is -1; allowed is a number above 0"),
    ],
)
def test_malformed_budgets_are_refused(values, message):
    with pytest.raises(BudgetError, match=message):
        Budget(**values)


def test_parse_budget():
    assert parse_budget(["density=0.1", "sops = 2e5"]) == Budget(density=0.1, sops=2e5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["density"], "'density'; allowed is NAME=NUMBER"),
        (["weights=3"], "'weights=3'; allowed is NAME=NUMBER with NAME one of density"),
        (["density=a lot"], "'a lot' is not a number"),
        (["density=0.1", "density=0.2"], "density is given twice"),
        ([], "nothing is given"),
    ],
)
def test_unreadable_budgets_are_refused(texts, message):
    with pytest.raises(BudgetError, match=message):
        parse_budget(texts)


def small(seed):
    """Three linear layers of 6, 6 and 9 weights; taps of a layer cost alike, so costs are linear in the counts."""
    generator = np.random.default_rng(seed)
    shapes = [(2, 3), (3, 2), (3, 3)]
    weights = [frozen_array(generator.standard_normal(shape) * generator.uniform(0.3, 3)) for shape in shapes]
    graph = chain_of_linear(weights)
    costs = generator.uniform(0.2, 5.0, 3)
    layers = {}
    for name, weight, cost in zip(graph.weighted, weights, costs, strict=True):
        taps = (1, weight.shape[1])
        layers[name] = LayerActivity(
            True, *(generator.random((3, STEPS)) * 4), np.full(taps, cost), generator.uniform(0.1, 9, taps)
        )
    neurons = {
        name: NeuronActivity(generator.random(STEPS) * 0.4, np.ones(1), generator.random(STEPS))
        for name in graph.spiking
    }
    return graph, Activity(graph.hash, 1, STEPS, layers, neurons, np.ones(STEPS) / STEPS), weights, costs


def allocated_two(seed):
    graph, activity, weights, costs = small(seed)
    generator = np.random.default_rng(seed + 1000)
    counts = [int(generator.integers(1, weight.size + 1)) for weight in weights]
    density = sum(counts) / sum(weight.size for weight in weights)
    return allocate(score(graph, activity, "slamp"), Budget(density=density, sops=np.dot(costs, counts)))


def gains(weights, factors, layer):
    squares = np.sort(weights[layer].astype(np.float64).reshape(-1) ** 2)[::-1]
    sums = np.cumsum(squares)
    return np.concatenate([[np.inf], factors[layer] * np.log(sums[1:] / sums[:-1])])


def thresholded(weights, factors, rows, plan):
    """Counts by the multipliers alone: score at least the sum of multiplier times cost."""
    values = [plan.multipliers.get(name, 0.0) for name in plan.usage]
    needed = np.array(values) @ np.array(rows)
    return [
        int(np.count_nonzero(gains(weights, factors, layer) >= needed[layer] * (1 + 1e-12)))
        for layer in range(len(weights))
    ]


def first_blocked(weights, factors, rows, plan):
    """The most that one weight per budget can be worth: the largest scores next in line at the multipliers."""
    counts = thresholded(weights, factors, rows, plan)
    following = [gains(weights, factors, layer)[n] for layer, n in enumerate(counts) if n < weights[layer].size]
    return sum(sorted(following)[-len(rows) :])


def assert_nothing_fits(weights, rows, limits, counts):
    for layer, weight in enumerate(weights):
        if counts[layer] < weight.size:
            more = np.array(counts) + np.eye(len(counts), dtype=int)[layer]
            assert any(np.dot(row, more) > limit for row, limit in zip(rows, limits, strict=True))


def mixed(seed, rounded=False):
    """Strided, dilated, padded and grouped convolutions and two fully connected layers; 10 % zeros, maybe many ties."""
    generator = np.random.default_rng(seed)

    def weight(*shape):
        values = generator.standard_normal(shape) * generator.uniform(0.3, 3)
        values[generator.random(shape) < 0.1] = 0
        values.flat[0] = 1.0
        return frozen_array(np.round(values) if rounded else values)

    nodes: dict[str, Node] = {
        "input": Input((2, 7, 6)),
        "w0": Conv2d(weight(4, 2, 3, 3), None, (2, 1), (1, 1), (1, 2), 1),
        "n0": neurons((4, 4, 4)),
        "w1": Conv2d(weight(4, 2, 2, 3), None, (1, 2), (1, 1), (1, 1), 2),
        "n1": neurons((4, 5, 2)),
        "flat": Flatten(0, 2),
        "w2": Linear(weight(12, 40)),
        "n2": neurons((12,)),
        "w3": Linear(weight(5, 12)),
        "n3": neurons((5,)),
        "output": Output((5,)),
    }
    return chain(nodes)


def test_costs_of_a_convolution_over_one_axis():
    generator = np.random.default_rng(0)
    graph = chain(
        {
            "input": Input((2, 6)),
            "w0": Conv1d(frozen_array(generator.standard_normal((2, 2, 3))), None, (1,), (1,), (1,), 1),
            "output": Output((2, 6)),
        }
    )
    plan = allocate(score(graph, method="lamp"), Budget(synapses=1000))
    # Outer taps lose one of six positions to the padding: 2 * 2 * (5 + 6 + 5).
    assert plan.usage["synapses"] == (64.0, 1000.0)


def chain_of_linear(weights):
    nodes: dict[str, Node] = {"input": Input((weights[0].shape[1],))}
    for index, weight in enumerate(weights):
        nodes[f"w{index}"] = Linear(frozen_array(weight))
        nodes[f"n{index}"] = neurons((weight.shape[0],))
    nodes["output"] = Output((weights[-1].shape[0],))
    return chain(nodes)


def chain(nodes):
    names = list(nodes)
    return SpikingGraph(nodes, tuple(pairwise(names)), 1e-3)


def neurons(shape):
    return LIF(uniform(0.25, shape), uniform(0.0, shape), uniform(1.0, shape), uniform(0.0, shape))


def random_activity(graph, seed, analog=()):
    generator = np.random.default_rng(seed)
    layers = {}
    for name, node in graph.weighted.items():
        taps = (node.groups if isinstance(node, Conv2d) else 1, *node.weight.shape[1:])
        events = generator.random(taps) * 9 * (generator.random(taps) < 0.9)
        layers[name] = LayerActivity(
            name not in analog,
            generator.random(STEPS) * 9,
            np.full(STEPS, events.sum() * node.weight.shape[0] / taps[0] / STEPS),
            np.zeros(STEPS),
            events,
            events**1.5,
        )
    behind = {
        name: NeuronActivity(generator.random(STEPS) * 0.4, np.ones(1), generator.random(STEPS))
        for name in graph.spiking
    }
    return Activity(graph.hash, 1, STEPS, layers, behind, np.ones(STEPS) / STEPS)


def brute_usage(graph, activity, masks):
    """SOPs and connections of every kept weight, one by one, borders counted position by position."""
    sops = synapses = 0.0
    for name, node in graph.weighted.items():
        layer = activity.layers[name]
        per_group = node.weight.shape[0] // layer.tap_events.shape[0]
        for index in np.argwhere(masks[name]):
            tap = (index[0] // per_group, *index[1:])
            sops += layer.tap_events[tap] if layer.from_spikes else 0.0
            synapses += positions(graph, name, node, index)
    return sops, synapses


def positions(graph, name, node, index):
    if isinstance(node, Linear):
        return 1
    source, out = graph.shapes[graph.sources(name)[0]], graph.shapes[name]
    count = 1
    for axis in range(2):
        reads = [
            at * node.stride[axis] + int(index[2 + axis]) * node.dilation[axis] - node.padding[axis]
            for at in range(out[1 + axis])
        ]
        count *= sum(0 <= read < source[1 + axis] for read in reads)
    return count


def make_masks_of_one(scores):
    plan = allocate(scores, Budget(density=len(scores.layers) / sum(scores.sizes.values())))
    return make_masks(scores, plan)
