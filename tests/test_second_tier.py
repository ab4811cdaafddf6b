"""LIFRefrac and LSNN: Norse's, bit for bit, recurrent too; scored, restored and pruned; refused by NIR and Lava."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch import SequentialState

import slamp
from exporters.to_lava import LavaExporter
from exporters.to_nir import NirExporter
from networks import DT, enliven, li, spikes
from slamp.activity import NeuronActivity
from slamp.capture import capture
from slamp.dynamics import NeuronDynamics, NeuronState, exact_float32
from slamp.errors import GraphError, SlampError, UnsupportedNodeError
from slamp.graph import SpikingGraph, load_graph
from slamp.masks import Masks, masked_copy
from slamp.nodes import LSNN, Delay, Input, LIFRefrac, Linear, Neuron, Node, Output, arrays_of, frozen_array, uniform
from slamp.prune import Pruning, prune
from slamp.raster import SpikeRaster
from slamp.read_neurons import neuron_of
from slamp.rounding import membrane_bound
from slamp.shapes import output_shape
from slamp.simulate import simulate
from slamp.temporal import Stage, importance, single_step_importance, through

BATCH, NEURONS, STEPS = 4, 60, 60
METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")


def one(value: float) -> np.ndarray:
    return uniform(value, (1,))


def alone(node: Neuron) -> SpikingGraph:
    shape = node.v_reset.shape  # type: ignore[union-attr]  # both kinds reset
    nodes: dict[str, Node] = {"input": Input(shape), "n": node, "output": Output(shape)}
    return SpikingGraph(nodes, tuple(pairwise(nodes)), DT)


HALVES = {"decay_syn": one(0.5), "decay_mem": one(0.5), "v_leak": one(0.25), "v_threshold": one(1.0)}
# node, drive, membrane as compared with the threshold, spikes, current
TRACES: dict[str, tuple[Neuron, list[float], list[float], list[int], list[float]]] = {
    # i: 3 -> 1.5; 1.5 -> 0.75; 0.75 + 2 = 2.75 -> 1.375; 1.375 -> 0.6875; it runs on while the membrane is held
    # v: 0.25 + 0.5 (0 + 3) = 1.75 spike -> -0.5, held twice; then -0.5 + 0.5 (0.75 + 1.375) = 0.5625
    "refractory": (
        LIFRefrac(**HALVES, v_reset=one(-0.5), refractory_steps=one(2.0)),
        [3.0, 0.0, 2.0, 0.0],
        [1.75, -0.5, -0.5, 0.5625],
        [1, 0, 0, 0],
        [1.5, 0.75, 1.375, 0.6875],
    ),
    # v_reset above the threshold: held there without a spike for a step, then v = 1.5 + 0.5 (-1.25 + 0.75) = 1.25 spike
    "held_above": (
        LIFRefrac(**HALVES, v_reset=one(1.5), refractory_steps=one(1.0)),
        [3.0, 0.0, 0.0],
        [1.75, 1.5, 1.25],
        [1, 0, 1],
        [1.5, 0.75, 0.375],
    ),
    # an input reaches the membrane a step late: i = 4, 2, 1, 0.5; v: 0.25; 0.25 + 0.5 * 4 = 2.25 spike -> -0.5;
    # -0.5 + 0.5 (0.75 + 2) = 0.875; 0.875 + 0.5 (-0.625 + 1) = 1.0625, above 1 but not above b
    # b: 1, 1 -> 1.5; 1.5 - 0.25 * 0.5 = 1.375; 1.375 - 0.25 * 0.375 = 1.28125
    "adaptive": (
        LSNN(**HALVES, decay_adapt=one(0.25), v_reset=one(-0.5), beta=one(0.5)),
        [4.0, 0.0, 0.0, 0.0],
        [0.25, 2.25, 0.875, 1.0625],
        [0, 1, 0, 0],
        [4.0, 2.0, 1.0, 0.5],
    ),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces_computed_by_hand(name: str) -> None:
    node, drive, membrane, fired, current = TRACES[name]
    raster = SpikeRaster(torch.tensor(drive).reshape(-1, 1, 1), DT, kind="analog")
    trace = simulate(alone(node), raster, record="all")["n"]
    assert trace.v is not None
    assert trace.i is not None
    assert trace.spikes is not None
    assert trace.v.flatten().tolist() == membrane
    assert trace.spikes.flatten().int().tolist() == fired
    assert trace.i.flatten().tolist() == current


def drawn(kind: str, rng: np.random.Generator, *, per_neuron: bool) -> Any:
    """Parameters of Norse's cell, one for all or one per neuron (v_leak: one, as Norse starts these cells with it)."""

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.tensor(rng.uniform(low, high, NEURONS if per_neuron else ()), dtype=torch.float32)

    common = {
        "tau_syn_inv": draw(50, 900),
        "tau_mem_inv": draw(60, 900),
        "v_leak": torch.tensor(float(rng.choice([0.0, rng.uniform(-0.2, 0.2)])), dtype=torch.float32),
        "v_th": draw(0.3, 1.2),
        "v_reset": draw(-0.4, 0.25) * int(rng.integers(2)),
        "method": METHODS[int(rng.integers(len(METHODS)))],
    }
    if kind == "LSNN":
        return norse.LSNNParameters(**common, tau_adapt_inv=draw(0.1, 600), beta=draw(-0.2, 1.8))
    steps = torch.tensor(rng.integers(0, 9, NEURONS if per_neuron else ()), dtype=torch.float32)
    return norse.LIFRefracParameters(norse.LIFParameters(**common), steps)


def assert_same_states(state: Any, ours: NeuronState) -> None:
    """Every number Norse carries on, bit for bit."""
    inner = getattr(state, "lif", state)
    shape = ours.v.shape
    assert torch.equal(inner.v.expand(shape), ours.v)
    assert torch.equal(inner.i, ours.i)
    if hasattr(state, "rho"):
        assert torch.equal(state.rho, ours.rho)
    else:
        assert torch.equal(state.b.expand(shape), ours.b)


@pytest.mark.parametrize("kind", ["LSNN", "LIFRefrac"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dt=st.sampled_from([1e-3, 5e-4, 1.1e-3]), per_neuron=st.booleans())
def test_every_state_of_every_step_is_norses(kind: str, seed: int, dt: float, per_neuron: bool) -> None:
    rng = np.random.default_rng(seed)
    cell = {"LSNN": norse.LSNNCell, "LIFRefrac": norse.LIFRefracCell}[kind](
        drawn(kind, rng, per_neuron=per_neuron), dt=dt
    )
    dynamics = NeuronDynamics(neuron_of(cell, (NEURONS,), where="n", dt=dt), "cpu")
    drive = torch.tensor(rng.normal(0.4, 3.0, (STEPS, BATCH, NEURONS)), dtype=torch.float32)
    drive *= torch.tensor(rng.random(drive.shape) < 0.6)
    state, ours, fired = None, dynamics.initial_state(BATCH), []
    with torch.no_grad(), exact_float32():
        for x in drive:
            z, state = cell(x, state)
            run = dynamics.advance(x[None], ours, keep_current=True)
            assert torch.equal(z, run.output[0])
            assert_same_states(state, ours)
            assert torch.equal(run.i[0], ours.i)
            fired.append(z)
        at_once = dynamics.advance(drive, dynamics.initial_state(BATCH)).output
    assert torch.equal(torch.stack(fired), at_once)
    assert 50 < at_once.sum() < 0.9 * at_once.numel()


def recurrent_graph(cell: Any, node: Neuron) -> SpikingGraph:
    """NAME_in and NAME_rec, through NAME_last, into NAME; edges in Norse's order."""
    hidden, features = cell.input_weights.shape
    nodes: dict[str, Node] = {
        "input": Input((features,)),
        "cell_in": Linear(frozen_array(cell.input_weights.detach().numpy())),
        "cell_last": Delay(uniform(1.0, (hidden,))),
        "cell_rec": Linear(frozen_array(cell.recurrent_weights.detach().numpy())),
        "cell": node,
        "output": Output((hidden,)),
    }
    edges = [("input", "cell_in"), ("cell_in", "cell"), ("cell_rec", "cell"), ("cell", "cell_last")]
    return SpikingGraph(nodes, (*edges, ("cell_last", "cell_rec"), ("cell", "output")), cell.dt)


@pytest.mark.parametrize("kind", ["LSNN", "LIFRefrac"])
@pytest.mark.parametrize("seed", range(4))
def test_recurrent_cells_are_graphs_with_a_delay(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    maker = {"LSNN": norse.LSNNRecurrentCell, "LIFRefrac": norse.LIFRefracRecurrentCell}[kind]
    cell = maker(20, NEURONS, p=drawn(kind, rng, per_neuron=True), dt=DT)
    node = neuron_of(cell, (NEURONS,), where="n", dt=None)
    raster = spikes((20,), steps=STEPS, batch=BATCH, seed=seed)
    recording = simulate(recurrent_graph(cell, node), raster, record="all")
    trace, state, swapped = recording["cell"], None, 0
    assert trace.i is not None
    with torch.no_grad():
        for t, x in enumerate(raster.data.float()):
            before = state
            z, state = cell(x, state)
            inner = getattr(state, "lif", state)
            assert torch.equal(z, recording.output.data[t].float())
            assert torch.equal(inner.i, trace.i[t])
            if before is not None:  # the order of the two currents must be seen
                old = getattr(before, "lif", before)
                one, two = x @ cell.input_weights.T, old.z @ cell.recurrent_weights.T
                swapped += int((((old.i + one) + two) != ((old.i + two) + one)).sum())
    assert recording.spike_count > 200
    assert swapped > 200


@pytest.mark.parametrize("kind", ["LSNN", "LIFRefrac"])
def test_recurrent_graphs_are_calibrated_and_scored(kind: str) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    maker = {"LSNN": norse.LSNNRecurrentCell, "LIFRefrac": norse.LIFRefracRecurrentCell}[kind]
    cell = maker(20, NEURONS, p=drawn(kind, rng, per_neuron=True), dt=DT)
    graph = recurrent_graph(cell, neuron_of(cell, (NEURONS,), where="n", dt=None))
    raster = spikes((20,), steps=STEPS, batch=BATCH)
    activity = slamp.calibrate(graph, raster)
    spiked = simulate(graph, raster, record="spikes")["cell"].spikes
    assert spiked is not None
    assert np.array_equal(activity.neurons["cell"].spike_counts * BATCH, spiked.sum((0, 1)).numpy())
    alpha = importance(graph, activity, np.full(STEPS, 1 / STEPS))
    for name in ("cell_in", "cell_rec"):
        assert np.isfinite(alpha[name]).all()
        assert (alpha[name][-1] == 0) == (kind == "LSNN")  # too late for the membrane to see it
        assert (alpha[name][:-1] > 0).all()
    scores = slamp.score(graph, activity, "slamp")
    assert 0 < slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.5)))["cell_rec"].mean() < 1


def network(kind: str, *, features: int = 16, spread: bool = False) -> tuple[SequentialState, SpikeRaster]:
    """Two spiking layers of a kind and a readout, scaled until they fire; ``spread``: thresholds neuron by neuron."""
    torch.manual_seed(5)
    inner = {"tau_syn_inv": 300.0, "tau_mem_inv": 200.0, "v_th": 0.4, "v_leak": 0.05, "v_reset": -0.1}
    tensors = {name: torch.tensor(value) for name, value in inner.items()}

    def made(neurons: int) -> torch.nn.Module:
        if spread:
            tensors["v_th"] = torch.linspace(0.3, 0.5, neurons)
        if kind == "LSNN":
            p = norse.LSNNParameters(**tensors, tau_adapt_inv=torch.tensor(30.0), beta=torch.tensor(0.3))
            return norse.LSNNCell(p, dt=DT)
        return norse.LIFRefracCell(norse.LIFRefracParameters(norse.LIFParameters(**tensors), torch.tensor(2.0)), dt=DT)

    net = SequentialState(
        torch.nn.Linear(features, 24), made(24), torch.nn.Linear(24, 20), made(20), torch.nn.Linear(20, 5), li()
    )
    raster = spikes((features,), steps=40, batch=12)
    assert enliven(net, raster)
    return net, raster


KINDS = pytest.mark.parametrize("kind", ["LSNN", "LIFRefrac"])


@KINDS
def test_networks_are_captured_saved_and_measured_without_folding_as_with(kind: str, tmp_path: Path) -> None:
    net, raster = network(kind)
    graph = capture(net, raster)
    assert {type(graph.nodes[name]).__name__ for name in graph.spiking} == {kind}
    graph.save(tmp_path / "graph.npz")
    assert load_graph(tmp_path / "graph.npz").hash == graph.hash
    exact, folded = slamp.calibrate(graph, raster, fold=False), slamp.calibrate(graph, raster)
    recording = simulate(graph, raster, record="spikes")
    for name in graph.spiking:
        spiked = recording[name].spikes
        assert spiked is not None
        assert exact.neurons[name].spike_counts.sum() * raster.batch == pytest.approx(int(spiked.sum()))
        assert exact.neurons[name].threshold_density.any()
        np.testing.assert_allclose(
            folded.neurons[name].threshold_density, exact.neurons[name].threshold_density, atol=0.05
        )


def test_the_trace_of_adaptive_neurons_is_their_membrane_without_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("slamp.calibrate"), "RUN_BYTES", 4 * 7 * 5 * 3)  # runs of 3 steps
    shares = {"decay_syn": 0.3, "decay_mem": 0.2, "decay_adapt": 0.1, "v_leak": 0.0, "v_threshold": 1e6}
    node = LSNN(**{key: uniform(value, (7,)) for key, value in (shares | {"v_reset": 0.0, "beta": 1.0}).items()})
    nodes: dict[str, Node] = {"input": Input((7,)), "w": Linear(frozen_array(np.eye(7))), "n": node}
    nodes["output"] = Output((7,))
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), DT)
    raster = spikes((7,), steps=14, batch=5)
    membrane = simulate(graph, raster, record="all")["n"].v
    assert membrane is not None
    energy = membrane.double().square().sum((0, 1)).numpy() / raster.batch
    found = slamp.calibrate(graph, raster).layers["w"].trace_energy
    np.testing.assert_allclose(np.ravel(found), energy, rtol=1e-5)


def test_importance_of_a_late_input_is_the_response_of_the_membrane() -> None:
    steps = 9
    stage = Stage(np.ones(steps), np.full(steps, 0.8), gain=0.2, decay_syn=0.3, late=True)
    v, i, response = 0.0, 0.0, []
    for t in range(steps):
        v = 0.8 * v + 0.2 * i
        i = 0.7 * i + float(t == 0)
        response.append(v)
    last = np.zeros(steps)
    last[-1] = 1.0
    np.testing.assert_allclose(through(stage, last), response[::-1], rtol=1e-12)
    assert response[0] == 0.0


def test_importance_of_a_layer_before_adaptive_neurons_is_written_out() -> None:
    node = LSNN(**HALVES, decay_adapt=one(0.25), v_reset=one(0.0), beta=one(0.5))
    nodes: dict[str, Node] = {"input": Input((1,)), "w": Linear(frozen_array(np.ones((1, 1)))), "n": node}
    nodes["output"] = Output((1,))
    graph, steps = SpikingGraph(nodes, tuple(pairwise(nodes)), DT), 4
    rate, kappa = np.array([0.0, 0.2, 0.1, 0.3]), np.array([0.5, 1.0, 2.0, 1.5])
    activity = slamp.calibrate(graph, spikes((1,), steps=steps))
    activity = replace(activity, neurons={"n": NeuronActivity(rate, np.ones(1), kappa)})
    weights = np.full(steps, 0.25)
    v, i = np.zeros(steps + 1), np.zeros(steps + 1)
    for t in reversed(range(steps)):
        v[t] = kappa[t] * weights[t] + 0.5 * np.sqrt(1 - rate[t]) * v[t + 1]
        i[t] = 0.5 * v[t + 1] + 0.5 * i[t + 1]
    assert i[-2] == 0.0
    np.testing.assert_allclose(importance(graph, activity, weights)["w"], i[:-1], rtol=1e-12)
    assert single_step_importance(graph, activity, weights)["w"] == pytest.approx(0.5 * kappa.mean())


def test_density_is_measured_where_the_threshold_is() -> None:
    # held at 0.95 of the threshold while refractory: near it, but not able to spike
    held = LIFRefrac(**HALVES, v_reset=one(0.95), refractory_steps=one(3.0))
    drive = SpikeRaster(torch.tensor([5.0, 0, 0, 0]).reshape(-1, 1, 1), DT, kind="analog")
    assert not slamp.calibrate(alone(held), drive).neurons["n"].threshold_density.any()
    # the membrane is at 1.05 where b is at 1.5, and at 1.5 where b is at 1.5: the second alone is near
    rising = LSNN(
        **HALVES | {"decay_syn": one(1.0), "decay_mem": one(1.0), "v_leak": one(0.0)},
        decay_adapt=one(0.0),
        v_reset=one(0.0),
        beta=one(0.5),
    )
    drive = SpikeRaster(torch.tensor([3.0, 1.05, 1.5, 0.0]).reshape(-1, 1, 1), DT, kind="analog")
    recording = simulate(alone(rising), drive, record="all")["n"]
    assert recording.v is not None
    assert recording.v.flatten().tolist() == pytest.approx([0, 3, 1.05, 1.5])
    density = slamp.calibrate(alone(rising), drive).neurons["n"].threshold_density
    assert (density > 0).tolist() == [False, False, False, True]


@KINDS
@pytest.mark.parametrize("method", ["slamp", "slamp-activity", "slamp-measured"])
def test_every_method_scores_them(kind: str, method: str) -> None:
    net, raster = network(kind)
    graph = capture(net, raster)
    scores = slamp.score(graph, slamp.calibrate(graph, raster), method, raster=raster)
    masks = slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.5)))
    assert masks.density == pytest.approx(0.5, abs=0.01)
    assert all(0 < mask.mean() < 1 for mask in masks.arrays.values())


@KINDS
def test_rates_are_restored(kind: str) -> None:
    net, raster = network(kind)
    graph = capture(net, raster)
    scores = slamp.score(graph, slamp.calibrate(graph, raster), "lamp")
    masks: Masks = slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.15)))

    def off(pruned: torch.nn.Module) -> list[float]:
        """Relative error of the firing rate of every layer."""
        dense, found = slamp.calibrate(graph, raster), slamp.calibrate(capture(pruned, raster), raster)
        wanted = {name: dense.neurons[name].rate.mean() for name in graph.spiking}
        return [abs(found.neurons[name].rate.mean() - rate) / rate for name, rate in wanted.items()]

    assert max(off(masked_copy(net, masks))) > 0.3
    assert max(off(slamp.recover(net, masks, raster))) < 0.1


@KINDS
@pytest.mark.parametrize("structured", [False, True])
def test_they_are_pruned_to_a_budget_of_sops(kind: str, structured: bool) -> None:
    net, raster = network(kind)
    before = slamp.calibrate(capture(net, raster), raster, fold=False).sops
    found = prune(net, raster, Pruning(slamp.Budget(sops=0.4 * before), structured=structured))
    graph = capture(found.net, raster)
    after = slamp.calibrate(graph, raster, fold=False)
    assert 0 < after.sops <= 0.4 * before
    assert all(after.neurons[name].spike_counts.any() for name in graph.spiking)


@KINDS
def test_parameters_of_single_neurons_go_with_their_channels(kind: str) -> None:
    net, raster = network(kind, spread=True)
    graph = capture(net, raster)
    found = prune(net, raster, Pruning(slamp.Budget(density=0.4), structured=True))
    small = capture(found.net, raster)
    assert found.channels is not None
    for layer, name in (("0", "1"), ("2", "3")):
        keep = found.channels[layer]
        assert 0 < keep.sum() < keep.size
        for key, array in arrays_of(small.nodes[name]).items():
            assert np.array_equal(array, arrays_of(graph.nodes[name])[key][keep])
        assert len(np.unique(arrays_of(small.nodes[name])["v_threshold"])) > 1


def test_no_target_takes_them(tmp_path: Path) -> None:
    loihi = slamp.load_profile("loihi2")
    for kind, lacking in (("LSNN", "adaptive threshold"), ("LIFRefrac", "refractory period")):
        net, raster = network(kind)
        graph = capture(net, raster)
        activity = slamp.calibrate(graph, raster)
        with pytest.raises(UnsupportedNodeError, match=f"1: is {kind}, and NIR has no neuron with {lacking}"):
            NirExporter().write(graph, tmp_path / "nir")
        with pytest.raises(UnsupportedNodeError, match=f"1: is {kind}; fixed point knows no {lacking}"):
            slamp.quantize(graph, loihi, activity)
        with pytest.raises(SlampError, match=r"graph: is in float32|fixed point"):
            LavaExporter().write(graph, tmp_path / "lava")
        with pytest.raises(GraphError, match=f"n: {kind} has no fixed-point meaning"):
            replace(alone(graph.nodes["1"]), arithmetic=slamp.FixedPoint())
        with pytest.raises(GraphError, match=f"1: no rounding bound is known for {kind}"):
            membrane_bound(graph, "1", raster, {})
        used = slamp.usage(graph, loihi, activity)
        assert sum(f"{kind} does not run on loihi2" in line for line in used.unsupported) == 2
        assert used["neurons"].used == 24 + 20 + 5


@pytest.mark.parametrize("steps", [2.5, -1.0, 2.0**25])
def test_refractory_steps_are_whole(steps: float) -> None:
    node = LIFRefrac(**HALVES, v_reset=one(0.0), refractory_steps=one(steps))
    with pytest.raises(GraphError, match=r"n: refractory_steps holds .* allowed are whole steps, 0 to 2.24"):
        alone(node)


def test_decays_and_shapes_are_checked() -> None:
    node = LSNN(**HALVES, decay_adapt=one(1.5), v_reset=one(0.0), beta=one(0.5))
    with pytest.raises(GraphError, match=r"n: decay_adapt is 1\.5; allowed is 0 to 1"):
        alone(node)
    with pytest.raises(GraphError, match=r"n: LSNN receives shape \(1,\), allowed is \(2,\) \(beta\)"):
        output_shape("n", replace(node, beta=uniform(0.5, (2,))), (1,))
