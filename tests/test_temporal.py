"""Alignment and bound factor against their published vectors; importance against an explicit unrolled computation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from slamp.activity import Activity, LayerActivity, NeuronActivity
from slamp.errors import ScoreError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LI, LIF, CubaLI, CubaLIF, Flatten, Input, Linear, Node, Output, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import simulate
from slamp.temporal import (
    Stage,
    alignment,
    bound_factor,
    importance,
    measured_sensitivity,
    omega,
    propagate,
    single_step_importance,
    through,
)

GAMMA = [
    (2, 0.5, (3, 2.75, 2.5, 2.25, 2, 1.75, 1.5, 1.25, 1)),
    (4, 0.5, (12.25, 9.75, 7.625, 5.844, 4.375, 3.188, 2.25, 1.531, 1)),
    (8, 0.5, (50.273, 33.137, 21.406, 13.541, 8.383, 5.078, 3.012, 1.751, 1)),
    (10, 0.5, (73.08, 45.314, 27.603, 16.519, 9.716, 5.621, 3.203, 1.8, 1)),
    (8, 0.9, (800.7, 458.3, 249.9, 128.5, 61.55, 27.01, 10.60, 3.593, 1)),
]


@pytest.mark.parametrize(("steps", "beta", "expected"), GAMMA)
def test_bound_factor_equals_its_vectors(steps, beta, expected):
    stage = Stage(np.ones(steps), np.full(steps, beta), 1.0)
    alphas = propagate(omega("mean", steps), [stage] * 8)
    found = [bound_factor(alpha, np.full(steps, 7.0), 1.0) for alpha in reversed(alphas)]
    # Half a unit of the table's coarsest last digit (10.60), relative.
    np.testing.assert_allclose(found, expected, rtol=5e-4)


@pytest.mark.parametrize(("steps", "beta", "expected"), GAMMA)
def test_alignment_is_one_where_activity_is_constant(steps, beta, expected):
    stage = Stage(np.ones(steps), np.full(steps, beta), 1.0)
    for alpha in propagate(omega("mean", steps), [stage] * 8):
        assert alignment(alpha, np.full(steps, 7.0)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "a", "expected"),
    [((0, 1), (1, 3), 1.3416), ((0, 1), (3, 1), 0.4472), ((0.5, 0.5), (1, 3), 0.8944)],
)
def test_alignment_equals_its_vectors(weights, a, expected):
    assert alignment(np.array(weights, float), np.array(a, float)) == pytest.approx(expected, abs=5e-5)


def test_alignment_of_a_single_step_is_exactly_one():
    generator = np.random.default_rng(0)
    for _ in range(200):
        alpha, a = generator.random(1) * 1e-7, np.sqrt(generator.random(1) * 1e9)
        assert alignment(alpha, a) == 1.0


@pytest.mark.parametrize(("alpha", "a"), [((0, 0), (1, 2)), ((1, 2), (0, 0))])
def test_dead_layers_get_one(alpha, a):
    assert alignment(np.array(alpha, float), np.array(a, float)) == 1.0
    assert bound_factor(np.array(alpha, float), np.array(a, float), 1.0) == 1.0


def test_activity_at_steps_that_do_not_count_gives_zero():
    assert alignment(np.array([0.0, 1.0]), np.array([2.0, 0.0])) == 0.0


def test_bound_factor_without_single_step_importance_is_one():
    assert bound_factor(np.ones(2), np.ones(2), 0.0) == 1.0


@pytest.mark.parametrize(
    ("readout", "expected"),
    [("mean", (0.25,) * 4), ("sum", (1,) * 4), ("last", (0, 0, 0, 1)), ("max", (0.1, 0.2, 0.3, 0.4))],
)
def test_omega(readout, expected):
    graph = _graph([LIF])
    activity = _activity(graph, 4, peak=np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_equal(omega(readout, 4, activity), expected)


def test_unknown_readout_is_refused():
    with pytest.raises(ScoreError, match="'median' is unknown; allowed are mean, sum, last, max"):
        omega("median", 3)


def test_max_readout_without_measured_peaks_is_refused():
    with pytest.raises(ScoreError, match="measured share of peaks"):
        omega("max", 3)


def test_a_synaptic_current_delays_importance_as_its_impulse_response_says():
    steps, gain, decay_syn = 6, 0.3, 0.25
    stage = Stage(np.ones(steps), np.full(steps, 1 - gain), gain, decay_syn)
    last = np.zeros(steps)
    last[-1] = 1.0
    v = i = 0.0
    response = []
    for t in range(steps):
        i += 1.0 if t == 0 else 0.0
        v += gain * (i - v)
        i -= decay_syn * i
        response.append(v)
    np.testing.assert_allclose(through(stage, last), response[::-1], rtol=1e-12)


def test_importance_equals_the_recursion_written_out():
    steps = 3
    graph = _graph([LIF, CubaLIF, LI])
    activity = _activity(graph, steps)
    weights = np.array([0.2, 0.3, 0.5])
    alpha = importance(graph, activity, weights)

    readout = _backwards(weights, np.ones(steps), np.full(steps, 0.75), 0.25, 1.0)
    middle = activity.neurons["n1"]
    second = _backwards(readout, middle.threshold_density, 0.75 * np.sqrt(1 - middle.rate), 0.25, 0.5)
    first_neurons = activity.neurons["n0"]
    first = _backwards(second, first_neurons.threshold_density, 0.75 * np.sqrt(1 - first_neurons.rate), 0.25, 1.0)
    np.testing.assert_allclose(alpha["w2"], readout)
    np.testing.assert_allclose(alpha["w1"], second)
    np.testing.assert_allclose(alpha["w0"], first)


def test_reset_by_subtraction_keeps_the_past():
    graph = _graph([LIF], reset="subtract")
    activity = _activity(graph, 4)
    neurons = activity.neurons["n0"]
    expected = _backwards(np.full(4, 0.25), neurons.threshold_density, np.full(4, 0.75), 0.25, 1.0)
    np.testing.assert_allclose(importance(graph, activity, omega("mean", 4))["w0"], expected)


def test_integrators_without_leak_have_gain_one():
    graph = _graph([IF])
    activity = _activity(graph, 4)
    neurons = activity.neurons["n0"]
    expected = _backwards(np.ones(4), neurons.threshold_density, np.sqrt(1 - neurons.rate), 1.0, 1.0)
    np.testing.assert_allclose(importance(graph, activity, omega("sum", 4))["w0"], expected)


def test_a_layer_without_neurons_behind_it_has_the_readout_weights():
    graph = _graph([LIF, None])
    activity = _activity(graph, 4)
    np.testing.assert_array_equal(importance(graph, activity, omega("last", 4))["w1"], [0, 0, 0, 1])


def test_outgoing_edges_add_up():
    eye = frozen_array(np.eye(4))
    nodes: dict[str, Node] = {
        "input": Input((4,)),
        "w0": Linear(eye),
        "n0": _neurons(LIF, "value"),
        "w1": Linear(eye),
        "n1": _neurons(LIF, "value"),
        "flat": Flatten(0, 0),
        "output": Output((4,)),
    }
    edges = (
        ("input", "w0"),
        ("w0", "n0"),
        ("n0", "w1"),
        ("w1", "n1"),
        ("n1", "flat"),
        ("n0", "flat"),
        ("flat", "output"),
    )
    graph = SpikingGraph(nodes, edges, 1e-3)
    activity = _activity(graph, 3)
    weights = omega("mean", 3)
    alpha = importance(graph, activity, weights)
    neurons = activity.neurons["n0"]
    both = weights + alpha["w1"]
    expected = _backwards(both, neurons.threshold_density, 0.75 * np.sqrt(1 - neurons.rate), 0.25, 1.0)
    np.testing.assert_allclose(alpha["w0"], expected)


def test_single_step_importance_is_the_product_of_gains_and_slopes():
    graph = _graph([LIF, CubaLIF, CubaLI])
    activity = _activity(graph, 5)
    single = single_step_importance(graph, activity, omega("sum", 5))
    kappa = [activity.neurons[name].threshold_density.mean() for name in ("n0", "n1")]
    assert single["w2"] == pytest.approx(5 * 0.25)
    assert single["w1"] == pytest.approx(5 * 0.25**2 * kappa[1])
    assert single["w0"] == pytest.approx(5 * 0.25**3 * kappa[1] * kappa[0])


def test_bound_factor_of_one_step_is_exactly_one():
    graph = _graph([LIF, CubaLIF, CubaLI])
    activity = _activity(graph, 1)
    alphas = importance(graph, activity, omega("mean", 1))
    single = single_step_importance(graph, activity, omega("mean", 1))
    for name, alpha in alphas.items():
        assert bound_factor(alpha, np.array([1.7]), single[name]) == pytest.approx(1.0, abs=1e-15)


def test_activity_without_a_neuron_layer_is_refused():
    graph = _graph([LIF])
    activity = _activity(graph, 2)
    lacking = Activity(graph.hash, 1, 2, activity.layers, {}, activity.peak_share)
    with pytest.raises(ScoreError, match="n0: the activity holds no such neurons"):
        importance(graph, lacking, omega("mean", 2))


@pytest.mark.parametrize("readout", ["mean", "max"])
def test_measured_sensitivity_is_the_change_of_the_readout(readout):
    graph, raster = _firing()
    found = measured_sensitivity(graph, raster, readout)
    assert np.prod(list(found.values())) == pytest.approx(1.0)

    def read(network):
        output = simulate(network, raster).output.numpy().astype(np.float64)
        return output.mean(0) if readout == "mean" else output.max(0)

    raw = {}
    for name in ("w0", "w1"):
        weight = np.array(graph.weighted[name].weight)
        energy = weight.astype(np.float64) ** 2
        order = np.argsort(energy, axis=None)
        gone, k = 0.0, 0
        while gone + energy.flat[order[k]] <= 0.2 * energy.sum():
            gone += energy.flat[order[k]]
            weight.flat[order[k]] = 0
            k += 1
        change = read(graph.with_nodes({name: Linear(frozen_array(weight))})) - read(graph)
        raw[name] = np.linalg.norm(change, axis=1).mean() / np.sqrt(gone / energy.sum())
    assert min(raw.values()) > 0
    middle = np.sqrt(raw["w0"] * raw["w1"])
    assert found == pytest.approx({name: value / middle for name, value in raw.items()})


def test_measured_sensitivity_of_a_silent_network_is_refused():
    graph, raster = _firing()
    silent = SpikeRaster(np.zeros_like(raster.numpy()), raster.dt)
    with pytest.raises(ScoreError, match="changes no output on this raster"):
        measured_sensitivity(graph, silent, "mean")


def _backwards(incoming, kappa, carry, gain, decay_syn):
    """The sum over all paths through time, not a recursion: an independent form of the same operator."""
    steps = len(incoming)
    alpha = np.zeros(steps)
    for start in range(steps):
        for arrival in range(start, steps):
            current = gain * (1 - decay_syn) ** (arrival - start)
            for end in range(arrival, steps):
                alpha[start] += current * np.prod(carry[arrival:end]) * kappa[end] * incoming[end]
    return alpha


def _neurons(kind, reset):
    number = {name: uniform(value, (4,)) for name, value in _VALUES.items()}
    if kind is IF:
        return IF(number["v_threshold"], number["v_reset"], reset)
    if kind is LIF:
        return LIF(number["decay_mem"], number["v_leak"], number["v_threshold"], number["v_reset"], reset)
    if kind is CubaLIF:
        return CubaLIF(*number.values(), reset=reset)
    if kind is LI:
        return LI(number["decay_mem"], number["v_leak"])
    return CubaLI(number["decay_syn"], number["decay_mem"], number["v_leak"])


_VALUES = {"decay_syn": 0.5, "decay_mem": 0.25, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}


def _graph(kinds, reset="value"):
    nodes: dict[str, Node] = {"input": Input((4,))}
    for index, kind in enumerate(kinds):
        nodes[f"w{index}"] = Linear(frozen_array(np.eye(4) + index))
        if kind is not None:
            nodes[f"n{index}"] = _neurons(kind, reset)
    nodes["output"] = Output((4,))
    names = list(nodes)
    return SpikingGraph(nodes, tuple(pairwise(names)), 1e-3)


def _activity(graph, steps, peak=None):
    generator = np.random.default_rng(steps)
    layers = {
        name: LayerActivity(True, *generator.random((3, steps)), *generator.random((2, 1, 4)))
        for name in graph.weighted
    }
    neurons = {
        name: NeuronActivity(generator.random(steps) * 0.5, generator.random(4), generator.random(steps))
        for name in graph.spiking
    }
    return Activity(graph.hash, 1, steps, layers, neurons, np.full(steps, 1 / steps) if peak is None else peak)


def _firing():
    generator = np.random.default_rng(4)
    weights = [generator.normal(0.4, 1.0, (12, 8)), generator.normal(0.3, 1.0, (5, 12))]
    parameters = (uniform(0.5, (12,)), uniform(0.0, (12,)), uniform(1.0, (12,)), uniform(0.0, (12,)))
    nodes: dict[str, Node] = {
        "input": Input((8,)),
        "w0": Linear(frozen_array(weights[0])),
        "n0": LIF(*parameters),
        "w1": Linear(frozen_array(weights[1])),
        "n1": LI(*(array[:5] for array in parameters[:2])),
        "output": Output((5,)),
    }
    names = list(nodes)
    graph = SpikingGraph(nodes, tuple(pairwise(names)), 1e-3)
    raster = SpikeRaster(generator.random((20, 16, 8)) < 0.25)
    record = simulate(graph, raster, record="spikes")
    assert 0.005 < float(record["n0"].spikes.float().mean()) < 0.5
    return graph, raster
