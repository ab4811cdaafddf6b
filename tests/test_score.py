"""Scores against the definitions, written out in float64 with loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from slamp.activity import Activity, LayerActivity, NeuronActivity
from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.curves import BLOCK, SMALL, EnergyCurve, MagnitudeCurve, RankedKeys, ShareCurve
from slamp.errors import ScoreError
from slamp.graph import SpikingGraph
from slamp.masks import make_masks
from slamp.nodes import LI, LIF, Conv2d, Flatten, Input, Linear, Node, Output, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.score import METHODS, resolve_method, score
from slamp.temporal import alignment, bound_factor, importance, measured_sensitivity, omega, single_step_importance

STEPS = 5


def published_lamp(weights, density):
    """LAMP as published: each squared weight over the sum of those not smaller, one global threshold; float64."""
    scores = []
    for weight in weights:
        squares = [float(w) ** 2 for w in weight.reshape(-1)]
        order = sorted(range(len(squares)), key=lambda i: squares[i])
        layer = np.zeros(len(squares))
        remaining = 0.0
        for i in reversed(order):
            remaining += squares[i]
            layer[i] = squares[i] / remaining if remaining > 0 else 0.0
        scores.append(layer)
    everything = np.concatenate(scores)
    threshold = np.sort(everything)[::-1][int(density * len(everything)) - 1]
    return [(layer >= threshold).reshape(weight.shape) for layer, weight in zip(scores, weights, strict=True)]


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("seed", range(4))
def test_slamp_with_one_time_step_is_lamp_bit_for_bit(seed, density):
    graph = network(seed)
    activity = random_activity(graph, steps=1, seed=seed)
    expected = published_lamp([node.weight for node in graph.weighted.values()], density)
    for method in ("slamp", "lamp"):
        scores = score(graph, activity, method)
        assert set(scores.factors.values()) == {1.0}
        masks = make_masks(scores, allocate(scores, Budget(density=density)))
        for name, mask in zip(graph.weighted, expected, strict=True):
            np.testing.assert_array_equal(masks[name], mask)


def test_slamp_with_several_steps_is_not_lamp():
    graph = network(0)
    activity = random_activity(graph, steps=STEPS, seed=0)
    plans = [allocate(score(graph, activity, method), Budget(density=0.1)).keep for method in ("slamp", "lamp")]
    assert dict(plans[0]) != dict(plans[1])


def test_lamp_scores_are_the_definition():
    graph = network(1)
    scores = score(graph, method="lamp")
    for name, node in graph.weighted.items():
        squares = node.weight.reshape(-1).astype(np.float64) ** 2
        found = scores[name]
        assert found.shape == node.weight.shape
        assert found.dtype == np.float64
        for i in range(0, squares.size, 7):
            larger = squares[squares > squares[i]].sum()
            expected = np.inf if larger == 0 else -np.log(1 - squares[i] / (larger + squares[i]))
            assert found.flat[i] == pytest.approx(expected, rel=1e-9)


def test_slamp_factor_is_the_squared_alignment():
    graph = network(2)
    activity = random_activity(graph, steps=STEPS)
    alphas = importance(graph, activity, omega("last", STEPS))
    expected = {name: alignment(alpha, np.sqrt(activity.layers[name].energy)) ** 2 for name, alpha in alphas.items()}
    scores = score(graph, activity, "slamp", readout="last")
    assert scores.factors == expected
    assert len(set(expected.values())) == 3
    plain = score(graph, method="lamp")
    for name in graph.weighted:
        np.testing.assert_allclose(scores[name], expected[name] * plain[name], rtol=1e-12)


def test_bound_factors_range_over_at_most_two():
    graph = network(2)
    activity = random_activity(graph, steps=STEPS)
    alphas = importance(graph, activity, omega("mean", STEPS))
    single = single_step_importance(graph, activity, omega("mean", STEPS))
    gammas = [bound_factor(alphas[n], np.sqrt(activity.layers[n].energy), single[n]) for n in graph.weighted]
    assert (max(gammas) / min(gammas)) ** 2 > 2
    factors = list(score(graph, activity, "slamp-bound").factors.values())
    assert max(factors) / min(factors) == pytest.approx(2.0)
    assert np.argsort(factors).tolist() == np.argsort(gammas).tolist()


def test_bound_factor_is_not_tempered_within_its_range():
    graph = network(2)
    activity = random_activity(graph, steps=1)
    assert list(score(graph, activity, "slamp-bound").factors.values()) == pytest.approx([1.0] * 3)


def test_activity_weighs_inputs_by_their_energy():
    graph = network(3)
    activity = random_activity(graph, steps=STEPS)
    scores = score(graph, activity, "slamp-activity")
    for name, node in graph.weighted.items():
        energy = activity.layers[name].trace_energy
        groups = energy.shape[0]
        spread = np.repeat(energy, node.weight.shape[0] // groups, axis=0).reshape(node.weight.shape)
        q = node.weight.astype(np.float64) ** 2 * spread**0.25
        found = scores[name]
        order = np.argsort(-q, axis=None)
        sums = np.cumsum(q.reshape(-1)[order])
        expected = scores.factors[name] * np.log(sums[1:] / sums[:-1])
        np.testing.assert_allclose(found.reshape(-1)[order[1:]], expected, rtol=1e-5, atol=1e-12)
        assert found.reshape(-1)[order[0]] == np.inf


def test_inputs_that_never_spike_score_zero():
    graph = network(3)
    activity = random_activity(graph, steps=STEPS)
    activity.layers["w1"].trace_energy[0, 3] = 0.0
    scores = score(graph, activity, "slamp-activity")
    assert not scores["w1"][:, 3].any()
    assert scores["w1"][:, 4].all()
    assert scores.layers["w1"].curve.live == scores.layers["w1"].size - 20


def test_a_layer_without_any_spike_falls_back_to_magnitude():
    graph = network(3)
    activity = random_activity(graph, steps=STEPS)
    activity.layers["w1"].trace_energy[:] = 0.0
    activity.layers["w1"].energy[:] = 0.0
    scores = score(graph, activity, "slamp-activity")
    np.testing.assert_array_equal(scores["w1"], score(graph, method="lamp")["w1"])


def test_measured_factors_are_squared_sensitivities():
    graph, raster = firing()
    scores = score(graph, method="slamp-measured", raster=raster)
    expected = measured_sensitivity(graph, raster, "mean")
    assert scores.factors == {name: value**2 for name, value in expected.items()}


def test_global_magnitude_scores_are_squares():
    graph = network(4)
    scores = score(graph, method="global-magnitude")
    for name, node in graph.weighted.items():
        np.testing.assert_array_equal(scores[name], node.weight.astype(np.float64) ** 2)


def test_uniform_keeps_the_same_share_of_every_layer():
    graph = network(4)
    plan = allocate(score(graph, method="uniform"), Budget(density=0.3))
    for name, n in plan.keep.items():
        assert n == pytest.approx(0.3 * plan.sizes[name], abs=1)


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_last_layer():
    graph = network(4)
    plan = allocate(score(graph, method="uniform-plus"), Budget(density=0.2))
    assert plan.keep["w0"] == plan.sizes["w0"]
    assert plan.keep["w2"] == pytest.approx(0.2 * plan.sizes["w2"], abs=1)
    assert plan.keep["w1"] / plan.sizes["w1"] < 0.1


def test_uniform_plus_without_convolution_is_uniform_in_front():
    graph, _ = firing()
    plan = allocate(score(graph, method="uniform-plus"), Budget(density=0.1))
    assert plan.keep["w1"] == 12
    assert plan.keep["w0"] == 3


def test_erk_densities_follow_the_sum_of_dimensions():
    graph = network(4)
    plan = allocate(score(graph, method="erk"), Budget(density=0.05))
    assert sum(plan.keep.values()) == 42
    # 852 weights at 5 %; the sums of dimensions are 4 + 2 + 3 + 3 = 12, 20 + 24 = 44 and 15 + 20 = 35.
    for name, dimensions in (("w0", 12), ("w1", 44), ("w2", 35)):
        assert plan.keep[name] == pytest.approx(42 * dimensions / 91, abs=1)


def test_random_keeps_weights_evenly_and_repeats_for_a_seed():
    graph = network(5)

    def masks(seed):
        scores = score(graph, method="random", generator=np.random.default_rng(seed))
        return make_masks(scores, allocate(scores, Budget(density=0.5)))

    first, again, other = masks(0), masks(0), masks(1)
    assert first.hash == again.hash != other.hash
    for name, node in graph.weighted.items():
        # Four standard deviations of a fair coin; and the kept weights are no larger than the others.
        assert first[name].mean() == pytest.approx(0.5, abs=2 / np.sqrt(node.weight.size))
        kept, gone = np.abs(node.weight[first[name]]), np.abs(node.weight[~first[name]])
        assert kept.mean() == pytest.approx(gone.mean(), rel=0.35)


def test_random_never_keeps_zeros():
    graph = network(5, zeros=0.5)
    scores = score(graph, method="random", generator=np.random.default_rng(0))
    masks = make_masks(scores, allocate(scores, Budget(density=1.0)))
    for name, node in graph.weighted.items():
        np.testing.assert_array_equal(masks[name], node.weight != 0)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "slamp-measured"])
def test_scores_fall_with_rank_and_zeros_score_zero(method):
    graph = network(6, zeros=0.2)
    scores = score(graph, random_activity(graph, STEPS), method, generator=np.random.default_rng(0))
    for name, node in graph.weighted.items():
        found = scores[name].reshape(-1)
        assert not found[node.weight.reshape(-1) == 0].any()
        order = np.argsort(-scores.keys(name), kind="stable")
        assert (np.diff(found[order][np.isfinite(found[order])]) <= 0).all()


def test_equal_weights_rank_by_index():
    graph = linear([np.array([[2.0, -2.0, 2.0, 1.0]])])
    found = score(graph, method="lamp")["w0"][0]
    np.testing.assert_allclose(found, [np.inf, np.log(2), np.log(1.5), np.log(13 / 12)])


@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17, SMALL + 3000])
@pytest.mark.parametrize("kind", ["energy", "magnitude", "share"])
def test_curves_count_what_their_values_say(kind, size):
    generator = np.random.default_rng(size)
    keys = np.abs(generator.standard_normal(size)).astype(np.float32) * (generator.random(size) < 0.8)
    keys[-1] = max(keys[-1], np.float32(0.5))

    def make():
        ranked = RankedKeys(keys.copy())
        return {
            "energy": EnergyCurve(ranked, 0.7),
            "magnitude": MagnitudeCurve(ranked),
            "share": ShareCurve(17.0, live),
        }[kind]

    live = np.count_nonzero(keys)
    values = make().values()
    curve = make()
    assert curve.live == live
    ranks = generator.permutation(np.arange(1, live + 1))[:3000]
    np.testing.assert_allclose([curve.value(int(n)) for n in ranks], values[ranks - 1], rtol=1e-12)
    curve = make()
    assert curve.count(0.0) == live
    for threshold in [*np.geomspace(40.0, 1e-12, 60), *values[1 :: max(size // 200, 1)]]:
        near = np.isclose(values, threshold, rtol=1e-12)
        count = curve.count(threshold)
        assert (
            np.count_nonzero((values >= threshold) & ~near) <= count <= np.count_nonzero((values >= threshold) | near)
        )


@pytest.mark.parametrize("kind", [EnergyCurve, MagnitudeCurve])
def test_curves_count_right_after_others_had_keys_sorted(kind):
    keys = np.abs(np.random.default_rng(0).standard_normal(4 * SMALL)).astype(np.float32)
    arguments = (1.0,) if kind is EnergyCurve else ()
    threshold = kind(RankedKeys(keys.copy()), *arguments).value(3 * SMALL // 2)
    ranked = RankedKeys(keys.copy())
    curve = kind(ranked, *arguments)
    ready = ranked.ready
    ranked.nth(ready + 1)
    assert curve.count(threshold) == 3 * SMALL // 2 > ready


@pytest.mark.parametrize("size", [1, 2, BLOCK + 1, 3 * BLOCK + 17, 4 * SMALL])
@pytest.mark.parametrize("kind", ["energy", "magnitude", "share"])
def test_curves_know_roughly_how_many_without_sorting_more(kind, size):
    keys = np.abs(np.random.default_rng(size).standard_normal(size)).astype(np.float32)
    ranked = RankedKeys(keys.copy())
    curve = {
        "energy": EnergyCurve(ranked, 0.7),
        "magnitude": MagnitudeCurve(ranked),
        "share": ShareCurve(17.0, size),
    }[kind]
    ranked.top(1)
    ready = ranked.ready
    thresholds = np.geomspace(40.0, 1e-12, 60)
    found = curve.about(thresholds)
    assert ranked.ready == ready < (size if size > SMALL else size + 1)
    exact = np.array([curve.count(threshold) for threshold in thresholds])
    # A block, and in what is not sorted a straight line for the tail of a bell.
    assert (np.abs(found - exact) <= BLOCK + 0.15 * (size - ready)).all()
    assert found[0] <= 1
    assert (np.diff(found) >= 0).all()


def test_energy_curve_with_factor_zero_keeps_the_largest():
    curve = EnergyCurve(RankedKeys(np.array([3, 1, 2], dtype=np.float32)), 0.0)
    assert curve.count(1e-300) == 1
    assert curve.count(0.0) == 3


def test_sums_are_exact_on_a_large_layer():
    keys = np.abs(np.random.default_rng(0).standard_normal(3_000_000, dtype=np.float32))
    curve = EnergyCurve(RankedKeys(keys.copy()), 1.0)
    squares = np.sort(keys)[::-1].astype(np.float64) ** 2
    for n in (2, 1000, 300_001, 2_999_999):
        assert curve.value(n) == pytest.approx(np.log1p(squares[n - 1] / squares[: n - 1].sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(density=0.1), "slamp-activity"),
        (Budget(synapses=10), "slamp-activity"),
        (Budget(sops=10), "slamp"),
        (Budget(density=0.1, sops=10), "slamp"),
    ],
)
def test_auto_depends_on_the_budget(budget, expected):
    assert resolve_method("auto", budget) == expected
    assert resolve_method("erk", budget) == "erk"


def test_auto_is_resolved_by_the_budget_given():
    graph = network(0)
    activity = random_activity(graph, steps=STEPS, seed=0)
    assert score(graph, activity, "auto", budget=Budget(density=0.1)).method == "slamp-activity"
    assert score(graph, activity, "auto", budget=Budget(density=0.1, sops=1e4)).method == "slamp"
    with pytest.raises(ScoreError, match='"auto" depends on the budget; give budget='):
        score(graph, activity, "auto")


def test_unknown_method_is_refused():
    with pytest.raises(ScoreError, match="'snip' is unknown; allowed are lamp, slamp"):
        score(network(0), method="snip")


def test_temporal_method_without_activity_is_refused():
    with pytest.raises(ScoreError, match="slamp needs the activity"):
        score(network(0))


def test_activity_of_another_graph_is_refused():
    with pytest.raises(ScoreError, match="measured on graph"):
        score(network(0), random_activity(network(1), STEPS))


def test_activity_without_a_layer_is_refused():
    graph = network(0)
    whole = random_activity(graph, STEPS)
    part = Activity(graph.hash, 1, STEPS, {"w0": whole.layers["w0"]}, whole.neurons, whole.peak_share)
    with pytest.raises(ScoreError, match="w1: the activity holds no such layer"):
        score(graph, part)


def test_measured_without_raster_is_refused():
    with pytest.raises(ScoreError, match="slamp-measured runs the network; pass raster="):
        score(network(0), method="slamp-measured")


def test_random_without_generator_is_refused():
    with pytest.raises(ScoreError, match="random needs generator="):
        score(network(0), method="random")


def test_all_zero_layer_is_refused():
    with pytest.raises(ScoreError, match="w1: all 2 weights are zero"):
        score(linear([np.ones((1, 4)), np.zeros((2, 1))]), method="lamp")


def test_graph_without_weights_is_refused():
    nodes = {"input": Input((4,)), "output": Output((4,))}
    with pytest.raises(ScoreError, match="the graph has no weights"):
        score(SpikingGraph(nodes, (("input", "output"),), 1e-3), method="lamp")


def network(seed, zeros=0.0):
    """A convolution in two groups and two fully connected layers: 72, 480 and 300 weights."""
    generator = np.random.default_rng(seed)

    def weight(*shape):
        values = generator.standard_normal(shape) * generator.uniform(0.3, 3)
        return frozen_array(values * (generator.random(shape) >= zeros))

    nodes: dict[str, Node] = {
        "input": Input((4, 5, 6)),
        "w0": Conv2d(weight(4, 2, 3, 3), None, (2, 2), (1, 0), (1, 1), 2),
        "n0": neurons((4, 3, 2)),
        "flat": Flatten(0, 2),
        "w1": Linear(weight(20, 24)),
        "n1": neurons((20,)),
        "w2": Linear(weight(15, 20)),
        "n2": neurons((15,)),
        "output": Output((15,)),
    }
    return chain(nodes)


def linear(weights):
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


def random_activity(graph, steps, seed=0):
    generator = np.random.default_rng(seed)
    layers = {}
    for name, node in graph.weighted.items():
        groups = node.groups if isinstance(node, Conv2d) else 1
        taps = (groups, *node.weight.shape[1:])
        layers[name] = LayerActivity(
            True, *(generator.random((3, steps)) * 9), generator.random(taps) * 9, generator.random(taps) * 9
        )
    behind = {
        name: NeuronActivity(generator.random(steps) * 0.5, np.ones(graph.shapes[name]), generator.random(steps) + 0.1)
        for name in graph.spiking
    }
    return Activity(graph.hash, 1, steps, layers, behind, np.full(steps, 1 / steps))


def firing():
    generator = np.random.default_rng(4)
    hidden, readout = (12,), (5,)
    graph = chain(
        {
            "input": Input((8,)),
            "w0": Linear(frozen_array(generator.normal(0.4, 1.0, (12, 8)))),
            "n0": neurons(hidden),
            "w1": Linear(frozen_array(generator.normal(0.3, 1.0, (5, 12)))),
            "n1": LI(uniform(0.5, readout), uniform(0.0, readout)),
            "output": Output(readout),
        }
    )
    return graph, SpikeRaster(generator.random((20, 16, 8)) < 0.25)
