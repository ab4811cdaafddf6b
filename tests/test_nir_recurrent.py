"""Recurrence, delays and branches in NIR: explicit in the file, replayed cell for cell, and judged around cycles."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import slamp
from exporters import witness_spikingjelly
from exporters.nir_lowering import MAX_DELAY_STEPS, lower
from exporters.to_nir import NirExporter
from slamp.causality import causal_groups
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LI, LIF, CubaLI, CubaLIF, Delay, Input, Linear, Neuron, Node, Output, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.rounding import membrane_bound, output_bound
from slamp.simulate import simulate

DT = 2.0**-10  # tau of decays that are powers of two comes back bit for bit
STEPS, BATCH = 16, 2


def sparse(rng: np.random.Generator, outputs: int, inputs: int) -> Linear:
    """Any float32 weights, two at most in a row: whoever adds them, in whatever order, gets the same sum."""
    weight = np.zeros((outputs, inputs))
    for row in weight:
        row[rng.choice(inputs, min(2, inputs), replace=False)] = rng.normal(0.3, 0.5, min(2, inputs))
    return Linear(frozen_array(weight))


def steps(rng: np.random.Generator, features: int, least: int = 1) -> Delay:
    return Delay(frozen_array(rng.integers(least, 4, features)))


def neuron(rng: np.random.Generator, features: int, *, kinds: tuple[type, ...] = (IF, LIF, CubaLIF)) -> Neuron:
    kind = kinds[rng.integers(len(kinds))]
    decay, slow = (uniform(float(rng.choice([0.25, 0.5, 1.0])), (features,)) for _ in range(2))
    leak = uniform(float(rng.choice([0.0, 0.1])), (features,))
    threshold = frozen_array(rng.uniform(0.05, 0.3, features))
    reset = frozen_array(rng.uniform(-0.2, 0.05, features))
    if kind is IF:
        return IF(threshold, reset)
    if kind is LIF:
        return LIF(decay, leak, threshold, reset)
    return CubaLIF(slow, decay, leak, threshold, reset) if kind is CubaLIF else CubaLI(slow, decay, leak)


def branched(seed: int, layers: int, readout: bool) -> SpikingGraph:
    """Layers with recurrence of their own, a slow way back to the first, skips from the input, delays on the way."""
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(2, 6, layers + 1)]
    nodes: dict[str, Node] = {"in": Input((sizes[0],))}
    edges: list[tuple[str, str]] = []
    before = "in"
    for k, (inputs, size) in enumerate(pairwise(sizes)):
        name = f"z{k}"
        nodes |= {f"{name}_in": sparse(rng, size, inputs), name: neuron(rng, size)}
        edges += [(before, f"{name}_in"), (f"{name}_in", name)]
        if k and rng.random() < 0.5:
            nodes[f"{name}_skip"] = sparse(rng, size, sizes[0])
            nodes[f"{name}_late"] = steps(rng, size, 0)
            edges += [("in", f"{name}_skip"), (f"{name}_skip", f"{name}_late"), (f"{name}_late", name)]
        if rng.random() < 0.8 or layers == 1:
            nodes |= {f"{name}_rec": sparse(rng, size, size), f"{name}_last": steps(rng, size)}
            edges += [(name, f"{name}_last"), (f"{name}_last", f"{name}_rec"), (f"{name}_rec", name)]
        before = name
    if layers > 1:
        nodes |= {"slow": steps(rng, sizes[-1], 2), "back": sparse(rng, sizes[1], sizes[-1])}
        edges += [(before, "slow"), ("slow", "back"), ("back", "z0")]
    if readout:
        nodes |= {
            "r1": sparse(rng, 2, sizes[-1]),
            "r2": sparse(rng, 2, sizes[0]),
            "li": neuron(rng, 2, kinds=(CubaLI,)),
        }
        edges += [(before, "r1"), ("r1", "li"), ("in", "r2"), ("r2", "li")]
        before = "li"
    nodes["out"] = Output((2 if readout else sizes[-1],))
    return SpikingGraph(nodes, (*edges, (before, "out")), DT)


def raster_for(graph: SpikingGraph, seed: int, *, batch: int = BATCH, time: int = STEPS) -> SpikeRaster:
    rng = np.random.default_rng(seed)
    return SpikeRaster(rng.random((time, batch, *graph.shapes["in"])) < 0.4, DT)


def rewrite(artifact: slamp.Artifact, change: object) -> None:
    path = artifact.file("network")
    network = nir.read(path, type_check=False)
    change(network)  # type: ignore[operator]  # parametrized
    nir.write(path, network)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), layers=st.integers(1, 3), readout=st.booleans())
def test_every_cell_is_replayed_from_the_file_alone(tmp_path: Path, seed: int, layers: int, readout: bool) -> None:
    graph = branched(seed, layers, readout)
    raster = raster_for(graph, seed)
    expected = simulate(graph, raster, record="spikes")
    assume(all(bool(expected[name].spikes.any()) for name in graph.spiking))
    exporter = NirExporter()
    artifact = exporter.write(graph, tmp_path / "out")
    found = exporter.replay(artifact, raster)
    for name in graph.spiking:
        assert torch.equal(found[name].spikes, expected[name].spikes), name
    assert found.output.kind == expected.output.kind
    assert torch.equal(found.output.data, expected.output.data)
    assert exporter.read(artifact.file("network")).hash == graph.hash
    assert "explicit Delay of at least dt" in artifact.manifest["options"]["recurrence"]
    network = nir.read(artifact.file("network"))  # other readers get it too, with their type check
    late = {name for name, node in network.nodes.items() if isinstance(node, nir.Delay) and node.delay.min() >= DT}
    for group in causal_groups(graph):
        assert len(group) == 1 or late & set(group)


@cache
def lively() -> tuple[SpikingGraph, SpikeRaster]:
    """Two layers, a cycle over both, and one over the first alone, that fire neither rarely nor always."""
    for seed in range(200):
        graph = branched(seed, 2, False)
        raster = raster_for(graph, seed, batch=6, time=40)
        run = simulate(graph, raster, record="spikes")
        shares = [float(run[name].spikes.float().mean()) for name in graph.spiking]
        if "z0_last" in graph.nodes and all(0.05 < share < 0.4 for share in shares):
            return graph, raster
    raise AssertionError("no such network")


def test_a_delay_one_step_longer_in_the_file_is_found_and_named(tmp_path: Path) -> None:
    graph, raster = lively()
    artifact = NirExporter().write(graph, tmp_path / "out")
    assert slamp.verify(artifact, graph, raster).verdict == "identical"

    def longer(network: nir.NIRGraph) -> None:
        network.nodes["z0_last"].delay = network.nodes["z0_last"].delay + np.float32(DT)

    rewrite(artifact, longer)
    result = slamp.verify(artifact, graph, raster)
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert result.first_difference.layer == "z0"
    assert result.file_difference.startswith("z0_last: delay[0] is")
    assert "delay: z0_last hands on 1 step late" in result.first_difference.cause


def test_the_order_of_edges_into_a_current_is_the_order_of_the_file(tmp_path: Path) -> None:
    graph = next(found for found in (branched(seed, 1, True) for seed in range(50)) if order_matters(found))
    raster = raster_for(graph, 0, batch=6, time=40)
    artifact = NirExporter().write(graph, tmp_path / "out")
    assert torch.equal(NirExporter().replay(artifact, raster).output.data, simulate(graph, raster).output.data)
    rewrite(artifact, lambda network: network.edges.reverse())
    assert not torch.equal(NirExporter().replay(artifact, raster).output.data, simulate(graph, raster).output.data)
    assert slamp.verify(artifact, graph, raster).file_difference == "edges: their order differs"


def order_matters(graph: SpikingGraph) -> bool:
    raster = raster_for(graph, 0, batch=6, time=40)
    other = SpikingGraph(graph.nodes, graph.edges[::-1], graph.dt)
    same = [simulate(found, raster, record="spikes") for found in (graph, other)]
    spikes = [torch.equal(same[0][name].spikes, same[1][name].spikes) for name in graph.spiking]
    return all(spikes) and not torch.equal(same[0].output.data, same[1].output.data)


def test_a_tie_that_comes_back_over_a_cycle_is_a_tie(tmp_path: Path) -> None:
    """The second layer falls to the other side of its threshold; the first one hears it later."""
    graph, raster = lively()
    graph, other, step = at_threshold(graph, raster)
    artifact = NirExporter().write(graph, tmp_path / "out")
    result = slamp.verify(artifact, graph, raster, runner=lambda _, inputs: simulate(other, inputs, record="spikes"))
    assert result.verdict == "tie", result.sentence()
    assert (result.ties[0].layer, result.ties[0].step) == ("z1", step)
    firsts = {name: first_step(graph, other, raster, name) for name in ("z0", "z1")}
    assert firsts["z1"] < firsts["z0"] < STEPS * 3, "the first layer must hear of it, or nothing was tested"


def at_threshold(graph: SpikingGraph, raster: SpikeRaster) -> tuple[SpikingGraph, SpikingGraph, int]:
    """Two graphs whose thresholds differ by one float, between which one membrane of the second layer lies."""
    node = graph.nodes["z1"]
    assert isinstance(node, (IF, LIF, CubaLIF))
    membranes = simulate(graph, raster, record="all")["z1"].v
    for step in range(4, raster.steps - 8):
        for sample in range(raster.batch):
            threshold = np.array(node.v_threshold)
            threshold[0] = membranes[step, sample, 0]
            if threshold[0] <= 0.02:
                continue
            least = threshold.copy()
            least[0] = np.nextafter(threshold[0], np.float32(-1))
            pair = tuple(
                graph.with_nodes({"z1": replace(node, v_threshold=frozen_array(found))}) for found in (threshold, least)
            )
            if first_step(*pair, raster, "z1") < first_step(*pair, raster, "z0") < raster.steps:
                return *pair, first_step(*pair, raster, "z1")
    raise AssertionError("no membrane decides anything")


def first_step(one: SpikingGraph, other: SpikingGraph, raster: SpikeRaster, name: str) -> int:
    runs = [simulate(graph, raster, record="spikes")[name].spikes for graph in (one, other)]
    differing = (runs[0] != runs[1]).flatten(1).any(1).nonzero()
    return int(differing[0]) if len(differing) else raster.steps


def test_a_wrong_spike_on_a_cycle_is_no_tie(tmp_path: Path) -> None:
    graph, raster = lively()
    artifact = NirExporter().write(graph, tmp_path / "out")
    node = graph.nodes["z1"]
    assert isinstance(node, (IF, LIF, CubaLIF))
    others = (
        graph.with_nodes({"z1": replace(node, v_threshold=frozen_array(node.v_threshold * factor))})
        for factor in np.linspace(0.2, 6, 60)
    )
    other = next(g for g in others if first_step(graph, g, raster, "z1") < first_step(graph, g, raster, "z0") < 40)
    result = slamp.verify(artifact, graph, raster, runner=lambda _, inputs: simulate(other, inputs, record="spikes"))
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert result.first_difference.layer == "z1"
    assert result.first_difference.step == first_step(graph, other, raster, "z1")


def dense_recurrent() -> SpikingGraph:
    rng = np.random.default_rng(1)

    def weights(outputs: int, inputs: int) -> Linear:
        return Linear(frozen_array(rng.normal(0.05, 0.3, (outputs, inputs))))

    nodes: dict[str, Node] = {
        "in": Input((20,)),
        "z_in": weights(15, 20),
        "z_rec": weights(15, 15),
        "z_last": steps(rng, 15),
    }
    nodes |= {"z": CubaLIF(*(uniform(value, (15,)) for value in (0.3, 0.2, 0.0, 0.4, 0.0))), "out": Output((15,))}
    edges = [("in", "z_in"), ("z_in", "z"), ("z_rec", "z"), ("z", "z_last"), ("z_last", "z_rec"), ("z", "out")]
    return SpikingGraph(nodes, tuple(edges), DT)


def test_membranes_around_a_cycle_lie_within_their_bound() -> None:
    graph = dense_recurrent()
    raster = raster_for(graph, 5, batch=4, time=60)
    run = simulate(graph, raster, record="all")
    assert 0.02 < float(run["z"].spikes.float().mean()) < 0.6
    bounded = membrane_bound(graph, "z", raster, {"z": run["z"].spikes})
    off = (run["z"].v.double() - bounded.value).abs()
    assert bool((off <= bounded.error).all())
    assert 0 < float(off.max()) < float(bounded.error.max()) < 1e-4


def test_values_that_go_round_in_a_cycle_are_bounded_step_by_step() -> None:
    rng = np.random.default_rng(2)
    nodes: dict[str, Node] = {
        "in": Input((3,)),
        "w": Linear(frozen_array(rng.normal(0, 0.5, (3, 3)))),
        "li": LI(uniform(0.3, (3,)), uniform(0.0, (3,))),
        "last": steps(rng, 3),
        "back": Linear(frozen_array(rng.normal(0, 0.3, (3, 3)))),
        "out": Output((3,)),
    }
    edges = (("in", "w"), ("w", "li"), ("back", "li"), ("li", "last"), ("last", "back"), ("li", "out"))
    graph = SpikingGraph(nodes, edges, DT)
    raster = raster_for(graph, 6, time=50)
    output = simulate(graph, raster).output.data.double()
    bounded = output_bound(graph, raster, {})
    assert output.abs().max() > 0.1
    assert bool(((output - bounded.value).abs() <= bounded.error).all())
    assert float(bounded.error.max()) < 1e-4


def test_groups_follow_what_they_hear() -> None:
    graph, _ = lively()
    groups = causal_groups(graph)
    assert sorted(name for group in groups for name in group) == sorted(graph.nodes)
    assert groups[-1] == ("out",)
    (cycle,) = [group for group in groups if len(group) > 1]
    assert {"z0", "z1", "slow", "back", "z0_last"} <= set(cycle)


def test_delays_that_float32_seconds_do_not_tell_apart_are_refused() -> None:
    nodes: dict[str, Node] = {"in": Input((1,)), "late": Delay(uniform(MAX_DELAY_STEPS, (1,))), "out": Output((1,))}
    graph = SpikingGraph(nodes, (("in", "late"), ("late", "out")), 1e-3)
    assert lower(graph).nodes["late"].delay[0] == np.float32(100.0)
    longer = graph.with_nodes({"late": Delay(uniform(MAX_DELAY_STEPS + 1, (1,)))})
    with pytest.raises(UnsupportedNodeError, match=r"late: delays by 100001 steps .*allowed are 0 to 100000 steps"):
        lower(longer)


def test_the_file_taken_literally_is_the_same_network(tmp_path: Path) -> None:
    graph, raster = lively()
    path = NirExporter().write(graph, tmp_path / "out").file("network")
    literal = slamp.load_nir(path, dt=DT)
    assert {name for name, node in literal.nodes.items() if isinstance(node, Delay)} == {
        name for name, node in graph.nodes.items() if isinstance(node, Delay)
    }
    expected, found = (simulate(one, raster, record="spikes") for one in (graph, literal))
    for name in graph.spiking:
        assert torch.equal(found[name].spikes, expected[name].spikes), name
    with pytest.raises(UnsupportedNodeError, match=r"delays by .* steps of 0\.0007; allowed are whole steps"):
        slamp.load_nir(path, dt=7e-4)


def test_spikingjelly_refuses_delays_by_name(tmp_path: Path) -> None:
    graph, raster = lively()
    artifact = NirExporter().write(graph, tmp_path / "out")
    with pytest.raises(
        UnsupportedNodeError,
        match="is a Delay, which its NIR import does not know, and SpikingJelly cannot express that",
    ):
        witness_spikingjelly.replay(artifact, raster)
