"""Verification in fixed point: every cell of u, v and s, no ties, and the wrong integer convention named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slamp
from exporters.to_lava import LavaExporter, reread
from slamp.arithmetic import SHIFT
from slamp.errors import RasterError
from slamp.fixed_conventions import FixedConvention, fixed_cause, run_fixed_convention, wrong_fixed_conventions
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact
from slamp.nodes import LIF, Affine, CubaLI, Delay, Linear, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, Trace
from test_fixed_point import DT, chain, cuba, linear
from test_to_lava import ZOO, each_graph, samples

Change = Callable[[Trace], Trace]


def layered() -> SpikingGraph:
    """Two layers with biases, mixed weights, slow decays, and thresholds they reach."""
    rng = np.random.default_rng(0)

    def neurons(count: int) -> object:
        return replace(cuba((count,), du=1023, dv=512, vth=120), v_leak=frozen_array(64 * rng.integers(-9, 20, count)))

    first, second = linear(rng.integers(-40, 60, (9, 8))), linear(rng.integers(-40, 60, (5, 9)))
    return chain(first, neurons(9), second, neurons(5), features=(8,))  # type: ignore[arg-type]  # CubaLIF


def changed(layer: str, change: Change) -> Callable[[Artifact, SpikeRaster], Recording]:
    """A runner that shows the file read back, one layer changed."""

    def run(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        found = reread(artifact, inputs)
        trace = change(found[layer])
        output = found.output
        if layer == "n3":
            data = trace.v.to(torch.float32) if trace.spikes is None and trace.v is not None else trace.spikes
            assert data is not None
            output = SpikeRaster(data.reshape(output.data.shape), output.dt, kind=output.kind)
        return Recording(output, {**found.traces, layer: trace})

    return run


def verified(graph: SpikingGraph, directory: Path, layer: str, change: Change) -> slamp.Verification:
    artifact = LavaExporter().write(graph, directory / "out")
    return slamp.verify(artifact, graph, samples(graph), runner=changed(layer, change))


def drive_of(graph: SpikingGraph, layer: str, raster: SpikeRaster) -> np.ndarray:
    """The sums that arrive at a layer, from its own u."""
    trace = slamp.simulate(graph, raster, record="all")
    source = graph.sources(layer)[0]
    before = graph.sources(source)[0]
    spikes = raster.data if before == graph.input else trace[before].spikes
    assert spikes is not None
    weight = torch.from_numpy(np.array(graph.weighted[source].weight)).to(torch.float64)
    return (spikes.to(torch.float64) @ weight.T).numpy().astype(np.int64)


def under(graph: SpikingGraph, layer: str, convention: FixedConvention) -> Change:
    """Show a layer as it would be under a convention, at the artifact's latency."""
    raster = samples(graph)
    node = graph.nodes[layer]
    found = run_fixed_convention(node, drive_of(graph, layer, raster), convention)  # type: ignore[arg-type]  # neurons

    def change(trace: Trace) -> Trace:
        late = trace.v.shape[0] - raster.steps  # type: ignore[union-attr]  # recorded
        parts = [torch.from_numpy(np.concatenate([found[key][:late] * 0, found[key]])) for key in ("s", "v", "u")]
        return Trace(parts[0].to(torch.bool), parts[1].to(torch.int32), parts[2].to(torch.int32))

    return change


@each_graph
def test_a_layer_run_alone_is_the_simulator(name: str) -> None:
    graph = ZOO[name]()
    raster = samples(graph)
    run = slamp.simulate(graph, raster, record="all")
    for layer, trace in run.traces.items():
        assert trace.i is not None
        assert trace.v is not None
        if isinstance(graph.nodes[graph.sources(graph.sources(layer)[0])[0]], (LIF, Linear)):
            continue
        drive = trace.i.numpy().astype(np.int64)
        node = graph.nodes[layer]
        if hasattr(node, "decay_syn"):
            last = np.concatenate([drive[:1] * 0, drive[:-1]])
            keep = 4096 - np.rint(np.asarray(node.decay_syn, dtype=np.float64) * 4096).astype(np.int64)
            drive = drive - np.sign(last) * (np.abs(last) * keep >> 12)
        found = run_fixed_convention(node, drive >> SHIFT)  # type: ignore[arg-type]  # neurons
        assert np.array_equal(found["u"], trace.i.numpy())
        assert np.array_equal(found["v"], trace.v.numpy())
        if trace.spikes is not None:
            assert np.array_equal(found["s"], trace.spikes.numpy())


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("layer", ["n1", "n3"])
def test_a_wrong_convention_is_named(number: int, layer: str, tmp_path: Path) -> None:
    graph = layered()
    # no membrane meets its threshold here; ties have a test of their own
    wrong = [pair for pair in wrong_fixed_conventions(graph.spiking[layer]) if not pair[0].startswith("tie")]
    assert len(wrong) == 10
    text, convention = wrong[number]
    result = verified(graph, tmp_path, layer, under(graph, layer, convention))
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert result.first_difference.layer == layer
    assert text in result.first_difference.cause.split(", or ")


def test_a_threshold_that_is_met_is_a_tie_for_nobody(tmp_path: Path) -> None:
    graph = chain(linear([[5.0]]), cuba((1,), du=4095, dv=0, vth=10), features=(1,))
    raster = SpikeRaster(torch.ones(8, 2, 1, dtype=torch.bool), DT)
    artifact = LavaExporter().write(graph, tmp_path / "out")

    def inclusive(given: Artifact, inputs: SpikeRaster) -> Recording:
        lower = replace(graph.spiking["n1"], v_threshold=uniform(9 * 64, (1,)))
        other = LavaExporter().write(graph.with_nodes({"n1": lower}), tmp_path / "other")
        return reread(other, inputs)

    result = slamp.verify(artifact, graph, raster, runner=inclusive)
    assert (result.verdict, result.counts["tie"]) == ("different", 0)
    assert "tie: spikes at v >= v_threshold instead of v > v_threshold" in result.sentence()


def shift(part: torch.Tensor | None, k: int) -> torch.Tensor | None:
    if part is None:
        return None
    empty = torch.zeros_like(part[: abs(k)])
    return torch.cat([empty, part[:-k]]) if k > 0 else torch.cat([part[-k:], empty])


@pytest.mark.parametrize("k", [1, 2, -1, -3])
def test_a_late_or_early_layer_is_named(k: int, tmp_path: Path) -> None:
    result = verified(
        layered(), tmp_path, "n1", lambda trace: Trace(*(shift(part, k) for part in (trace.spikes, trace.v, trace.i)))
    )
    said = f"{abs(k)} step{'s' * (abs(k) > 1)} {'late' if k > 0 else 'early'}"
    assert f"latency: the layer answers {said}" in result.sentence()
    assert result.verdict == "different"


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("weights: cut to even numbers", lambda weight: np.floor(weight / 2) * 2),
        ("weights: halved", lambda weight: weight / 2),
    ],
)
def test_changed_weights_are_named(text: str, way: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    graph = layered()
    wrong = graph.with_nodes({"n2": Linear(frozen_array(way(graph.weighted["n2"].weight)))})
    artifact = LavaExporter().write(graph, tmp_path / "out")

    def runner(given: Artifact, inputs: SpikeRaster) -> Recording:
        run = slamp.simulate(wrong, inputs, record="all")
        late = [
            Trace(*(shift(part, given.latency_steps) for part in (trace.spikes, trace.v, trace.i)))
            for trace in run.traces.values()
        ]
        data = shift(run.output.data, given.latency_steps)
        assert data is not None
        return Recording(SpikeRaster(data, DT), dict(zip(run.traces, late, strict=True)))

    result = slamp.verify(artifact, graph, samples(graph), runner=runner)
    first = result.first_difference
    assert first is not None
    assert (first.layer, first.quantity) == ("n3", "u")
    assert text in first.cause


def test_a_dropped_bias_of_the_current_is_named() -> None:
    rng = np.random.default_rng(3)
    weight, bias = frozen_array(rng.integers(-9, 14, (4, 6))), frozen_array(rng.integers(1, 9, 4))
    graph = chain(Affine(weight, bias), cuba((4,), du=1000, dv=100, vth=40), features=(6,))
    raster = samples(graph)
    without = slamp.simulate(graph.with_nodes({"n0": Linear(weight)}), raster, record="all")
    expected = slamp.simulate(graph, raster, record="all")
    assert "bias: dropped" in fixed_cause(graph, "n1", raster, expected.traces, without["n1"])


def test_the_first_difference_names_the_state_and_both_integers(tmp_path: Path) -> None:
    def change(trace: Trace) -> Trace:
        assert trace.v is not None
        v = trace.v.clone()
        v[7, 1, 4] += 3  # two steps of latency: step 5 of the graph
        return Trace(trace.spikes, v, trace.i)

    graph = layered()
    result = verified(graph, tmp_path, "n1", change)
    first = result.first_difference
    assert first is not None
    expected = slamp.simulate(graph, samples(graph), record="all")["n1"].v
    assert expected is not None
    value = int(expected[5, 1, 4])
    assert (first.layer, first.step, first.sample, first.neuron, first.quantity) == ("n1", 5, 1, (4,), "v")
    assert f"neuron 4: the graph has v = {value}, the replay has v = {value + 3}" in result.sentence()
    assert "cause: unknown" in result.sentence()
    assert result.to_json()["first_difference"]["quantity"] == "v"
    assert result.counts == {"identical": 2, "tie": 0, "different": 1, "silent": 0}


def test_layers_and_steps_come_before_states(tmp_path: Path) -> None:
    """u of a later step does not hide a spike of an earlier one."""

    def change(trace: Trace) -> Trace:
        assert trace.spikes is not None
        assert trace.i is not None
        spikes, u = trace.spikes.clone(), trace.i.clone()
        spikes[6, 0, 2] ^= True
        u[9, 0, 0] += 1
        return Trace(spikes, trace.v, u)

    first = verified(layered(), tmp_path, "n3", change).first_difference
    assert first is not None
    assert (first.layer, first.step, first.quantity, first.neuron) == ("n3", 4, "", (2,))


def test_what_a_replay_does_not_show_is_not_compared(tmp_path: Path) -> None:
    graph = layered()
    full = verified(graph, tmp_path, "n1", lambda trace: trace)
    bare = verified(graph, tmp_path, "n1", lambda trace: Trace(trace.spikes))
    assert full.verdict == bare.verdict == "identical"
    assert full.cells - bare.cells == 2 * 9 * 25 * 3


def test_a_readout_is_compared_exactly(tmp_path: Path) -> None:
    leaky = CubaLI(uniform(0.25, (3,)), uniform(0.125, (3,)), uniform(0, (3,)))
    graph = chain(linear(np.arange(12).reshape(4, 3)), cuba((4,), vth=3), linear(np.eye(3, 4)), leaky, features=(3,))

    def one_more(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        found = reread(artifact, inputs)
        data = found.output.data.clone()
        data[-1, 2, 1] += 1
        return Recording(SpikeRaster(data, DT, kind="analog"), {"n1": found["n1"]})

    artifact = LavaExporter().write(graph, tmp_path / "out")
    assert slamp.verify(artifact, graph, samples(graph), runner=reread).max_readout_error == 0
    result = slamp.verify(artifact, graph, samples(graph), runner=one_more)
    assert (result.verdict, result.max_readout_error) == ("different", 1)
    first = result.first_difference
    assert first is not None
    assert (first.layer, first.step, first.sample, first.neuron) == ("output", 24, 2, (1,))


def test_states_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError, match="n1: the replay has 26 steps of v, its output 27"):
        verified(layered(), tmp_path, "n1", lambda trace: Trace(trace.spikes, trace.v[1:], trace.i))  # type: ignore[index]  # recorded


def test_behind_a_delay_no_cause_is_looked_for() -> None:
    graph = chain(Delay(uniform(2.0, (3,))), linear(np.ones((2, 3))), cuba((2,), vth=2), features=(3,))
    raster = samples(graph)
    traces = slamp.simulate(graph, raster, record="all").traces
    assert fixed_cause(graph, "n2", raster, traces, traces["n2"]) == ""
