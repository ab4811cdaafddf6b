from __future__ import annotations

import numpy as np
import pytest
import torch

from slamp.errors import GraphError, RasterError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LI, Affine, CubaLI, CubaLIF, Linear, Scale, SumPool2d, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.rounding import Bounded, membrane_bound, output_bound, stateless_bound
from slamp.simulate import Recording, simulate
from verify_networks import DT, chain, conv_graph, cuba, dense_graph, lif, raster, reference_run

F32 = np.float32


def spikes_of(recording: Recording) -> dict[str, torch.Tensor]:
    return {name: trace.spikes for name, trace in recording.traces.items() if trace.spikes is not None}


@pytest.mark.parametrize("graph", [conv_graph(), dense_graph(), dense_graph(reset="subtract")])
def test_reference_lies_within_the_bound_and_the_bound_is_tight(graph: SpikingGraph) -> None:
    inputs = raster(graph)
    reference_run(graph, inputs)
    recording = simulate(graph, inputs, record="all")
    for name in graph.spiking:
        bounded = membrane_bound(graph, name, inputs, spikes_of(recording))
        off = (recording[name].v.double() - bounded.value).abs()
        assert bool((off <= bounded.error).all()), name
        assert float(bounded.error.max()) < 1e-4
        assert float(off.max()) > 0, "float32 never rounded, so nothing was tested"


@pytest.mark.parametrize("readout", ["LI", "CubaLI", "current"])
def test_analog_output_lies_within_the_bound(readout: str) -> None:
    graph = conv_graph(readout=readout)
    inputs = raster(graph)
    recording = reference_run(graph, inputs)
    bounded = output_bound(graph, inputs, spikes_of(recording))
    assert bool(((recording.output.data.double() - bounded.value).abs() <= bounded.error).all())
    assert float(bounded.error.max()) < 1e-4
    assert torch.equal(bounded.spread, 2 * bounded.error)


def test_known_answer_of_one_neuron() -> None:
    graph = chain(
        {"fc": Linear(frozen_array(np.array([[0.5]]))), "if1": IF(uniform(10.0, (1,)), uniform(0.0, (1,)))},
        features=(1,),
        out=(1,),
    )
    inputs = SpikeRaster(torch.ones(3, 1, 1, dtype=torch.bool), DT)
    silent = {"if1": torch.zeros(3, 1, 1, dtype=torch.bool)}
    bounded = membrane_bound(graph, "if1", inputs, silent)
    assert bounded.value.flatten().tolist() == [0.5, 1.0, 1.5]
    assert bool((bounded.error[1:] > bounded.error[:-1]).all())
    fired = {"if1": torch.tensor([False, True, False])[:, None, None]}
    reset = membrane_bound(graph, "if1", inputs, fired)
    assert reset.value.flatten().tolist() == [0.5, 1.0, 0.5]
    assert float(reset.error[2]) < float(reset.error[1]), "a reset by value erases the error"


def test_subtraction_keeps_the_error() -> None:
    nodes = {"if1": IF(uniform(0.75, (1,)), uniform(0.0, (1,)), "subtract")}
    graph = chain({"fc": Linear(frozen_array(np.array([[0.5]]))), **nodes}, features=(1,), out=(1,))
    inputs = SpikeRaster(torch.ones(3, 1, 1, dtype=torch.bool), DT)
    bounded = membrane_bound(graph, "if1", inputs, {"if1": torch.tensor([False, True, False])[:, None, None]})
    assert bounded.value.flatten().tolist() == [0.5, 1.0, 0.75]
    assert float(bounded.error[2]) > float(bounded.error[1])


def any_order_sum(weights: np.ndarray, x: np.ndarray, bias: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sum products and bias in a random order and a random tree, in float32; one value per row."""
    terms = np.concatenate([weights * x, bias[:, None]], axis=1).astype(F32)
    terms = terms[:, rng.permutation(terms.shape[1])]
    while terms.shape[1] > 1:
        kind = rng.integers(3)
        if kind == 0:  # one after another
            return np.cumsum(terms, axis=1, dtype=F32)[:, -1]
        if kind == 1:  # add the first to a random other one
            other = int(rng.integers(1, terms.shape[1]))
            terms[:, other] += terms[:, 0]
            terms = terms[:, 1:]
        else:  # pairs
            if terms.shape[1] % 2:
                terms = np.concatenate([terms, np.zeros((terms.shape[0], 1), F32)], axis=1)
            terms = terms[:, ::2] + terms[:, 1::2]
    return terms[:, 0]


def one_ulp(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    steps = rng.integers(-2, 3)
    for _ in range(abs(int(steps))):
        values = np.nextafter(values, F32(np.inf if steps > 0 else -np.inf), dtype=F32)
    return values


def any_update(node: CubaLIF, drive: np.ndarray, spikes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Membranes of CubaLIF neurons in float32, in one of several associations, with decays off by up to 2 ulp."""
    a, d = one_ulp(np.array(node.decay_syn), rng), one_ulp(np.array(node.decay_mem), rng)
    leak, reset = np.array(node.v_leak), np.array(node.v_reset)
    gain = one_ulp(F32(1) / a, rng)
    form = int(rng.integers(4))
    v, i, run = leak.copy(), np.zeros_like(leak), []
    for x, fired in zip(drive, spikes, strict=True):
        if form == 0:
            i = i + x
            v = v + d * ((leak - v) + i)
            decayed = i - a * i
        elif form == 1:
            i = i + a * (gain * x)
            v = (F32(1) - d) * v + d * leak + d * i
            decayed = (F32(1) - a) * i
        elif form == 2:
            i = i + x
            v = v + (d * leak - d * v) + d * i
            decayed = i - a * i
        else:
            i = i + (a * gain) * x
            v = d * i + (v - d * (v - leak))
            decayed = i * (F32(1) - a)
        run.append(v)
        v = np.where(fired, reset, v)
        if node.reset == "subtract":
            v = np.where(fired, run[-1] - np.array(node.v_threshold), run[-1])
        i = decayed
    return np.stack(run)


@pytest.mark.parametrize("reset", ["value", "subtract"])
def test_no_summation_order_or_association_violates_the_bound(reset: str) -> None:
    rng = np.random.default_rng(7)
    weight, bias = rng.normal(0.05, 0.4, (12, 50)).astype(F32), rng.normal(0.1, 0.1, 12).astype(F32)
    weight[rng.random(weight.shape) < 0.3] = 0
    node = cuba((12,), reset=reset)
    graph = chain({"fc": Affine(frozen_array(weight), frozen_array(bias)), "lif1": node}, features=(50,), out=(12,))
    inputs = raster(graph, samples=1)
    spikes = spikes_of(reference_run(graph, inputs))
    bounded = membrane_bound(graph, "lif1", inputs, spikes)
    value, error = bounded.value[:, 0].numpy(), bounded.error[:, 0].numpy()
    assert error.max() < 1e-4
    x, fired = inputs.numpy()[:, 0].astype(F32), spikes["lif1"][:, 0].numpy()
    worst = 0.0
    sums = 0
    for _ in range(100):
        drive = np.stack([any_order_sum(weight, step, bias, rng) for step in x])
        sums += drive.size
        found = any_update(node, drive, fired, rng)
        worst = max(worst, float((np.abs(found - value) / error).max()))
    assert sums > 10_000
    assert 0.01 < worst <= 1, "violated, or so loose that it says nothing"


def test_weighted_sums_in_any_order_stay_within_the_bound_of_a_layer() -> None:
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(0, 1, (40, 300)).astype(F32), rng.normal(0, 1, 40).astype(F32)
    x = (rng.random(300) < 0.3).astype(F32)
    exact = Bounded(torch.tensor(x, dtype=torch.float64)[None, None], torch.zeros(1, 1, 300, dtype=torch.float64))
    bounded = stateless_bound(Affine(frozen_array(weight), frozen_array(bias)), exact)
    value, error = bounded.value[0, 0].numpy(), bounded.error[0, 0].numpy()
    for _ in range(1000):
        assert (np.abs(any_order_sum(weight, x, bias, rng) - value) <= error).all()
    silent = stateless_bound(Affine(frozen_array(weight), frozen_array(bias)), Bounded(exact.value * 0, exact.error))
    assert float(silent.error.max()) < 4 * 2**-24 * float(np.abs(bias).max()), "inputs that are zero add no rounding"


def test_pools_and_scale_stay_within_the_bound() -> None:
    rng = np.random.default_rng(4)
    graph = chain(
        {
            "scale": Scale(frozen_array(rng.normal(1, 0.3, 2)), frozen_array(rng.normal(0, 0.1, 2))),
            "pool": SumPool2d((3, 3), (1, 1)),
        },
        features=(2, 6, 6),
        out=(2, 4, 4),
    )
    analog = SpikeRaster(rng.normal(0, 1, (20, 5, 2, 6, 6)).astype(F32), DT, kind="analog")
    bounded = output_bound(graph, analog, {})
    off = (simulate(graph, analog).output.data.double() - bounded.value).abs()
    assert float(off.max()) > 0
    assert bool((off <= bounded.error).all())
    assert float(bounded.error.max()) < 1e-4


def test_several_edges_into_a_node_are_summed() -> None:
    base = dense_graph()
    nodes = {**base.nodes, "skip": Linear(frozen_array(np.full((8, 20), 0.01)))}
    edges = (*base.edges, ("input", "skip"), ("skip", "lif2"))
    graph = SpikingGraph(nodes, edges, DT)
    inputs = raster(graph)
    recording = simulate(graph, inputs, record="all")
    bounded = membrane_bound(graph, "lif2", inputs, spikes_of(recording))
    off = (recording["lif2"].v.double() - bounded.value).abs()
    assert bool((off <= bounded.error).all())
    without = membrane_bound(base, "lif2", inputs, spikes_of(recording))
    assert not torch.allclose(without.value, bounded.value)


def test_readout_inside_the_network_passes_its_error_on() -> None:
    nodes = {
        "fc1": Linear(frozen_array(np.full((3, 4), 0.3))),
        "li": LI(uniform(0.1, (3,)), uniform(0.0, (3,))),
        "fc2": Linear(frozen_array(np.full((2, 3), 0.7))),
        "readout": CubaLI(uniform(0.3, (2,)), uniform(0.2, (2,)), uniform(0.1, (2,))),
    }
    graph = chain(nodes, features=(4,), out=(2,))
    inputs = raster(graph)
    bounded = output_bound(graph, inputs, {})
    assert bool(((simulate(graph, inputs).output.data.double() - bounded.value).abs() <= bounded.error).all())
    assert bool((membrane_bound(graph, "li", inputs, {}).error > 0).any())


def test_what_cannot_be_bounded_is_refused() -> None:
    graph = dense_graph()
    inputs = raster(graph)
    spikes = spikes_of(simulate(graph, inputs, record="spikes"))
    with pytest.raises(GraphError, match="fc1: not a layer of neurons"):
        membrane_bound(graph, "fc1", inputs, spikes)
    with pytest.raises(GraphError, match="lif1: its spikes are not recorded"):
        membrane_bound(graph, "lif2", inputs, {"lif2": spikes["lif2"]})
    with pytest.raises(GraphError, match="lif1: spikes of shape"):
        membrane_bound(graph, "lif1", inputs, {"lif1": spikes["lif1"][1:]})
    with pytest.raises(GraphError, match="LIF: has memory"):
        stateless_bound(lif((2,)), Bounded(torch.zeros(1, 1, 2).double(), torch.zeros(1, 1, 2).double()))
    with pytest.raises(RasterError, match="features"):
        output_bound(graph, SpikeRaster(inputs.data[:, :, :3], DT), spikes)
