"""What is done with graphs that hold wiring nodes: rounding bounds, ties, integers, channels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import slamp
from slamp.channels import Channels, removable
from slamp.errors import MaskError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact
from slamp.nodes import (
    LI,
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Output,
    Pad,
    Permute,
    Place,
    Reshape,
    Scale,
    Sum,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.rounding import membrane_bound, output_bound
from slamp.shapes import output_shape
from slamp.shrunk_graph import shrunk_graph
from slamp.simulate import Recording, simulate
from slamp.usage import usage
from slamp.verification import Verification
from slamp.verify import verify
from test_verify import nudged, tie_graph, write
from verify_networks import DT, cuba, lif, raster

LOIHI = slamp.load_profile("loihi2")


def wired(seed: int = 0) -> SpikingGraph:
    """Spikes through pools and wiring of every kind into neurons with two edges, analog readout."""
    rng = np.random.default_rng(seed)

    def conv(*shape: int) -> Conv2d:
        return Conv2d(frozen_array(rng.normal(0.15, 0.5, shape)), None, (1, 1), (1, 1), (1, 1), 1)

    nodes: dict[str, Node] = {
        "input": Input((2, 6, 6)),
        "conv": conv(3, 2, 3, 3),
        "n1": lif((3, 6, 6)),
        "max": MaxPool2d((2, 2), (1, 1), (1, 1)),
        "means": AdaptiveAvgPool2d((4, 4)),
        "up": Upsample2d((2, 2)),
        "part": Take(1, 0, 7),
        "narrow": Take(2, 1, 8),
        "turn": Permute((0, 2, 1)),
        "first": Place(0, 0, 6),
        "second": Place(0, 3, 6),
        "sum": Sum(),
        "wide": Pad(((1, 0), (0, 1)), "constant", 0.3),
        "a": conv(2, 6, 3, 3),
        "b": conv(2, 6, 3, 3),
        "n2": cuba((2, 8, 8), v_threshold=0.7),
        "flat": Reshape((128,)),
        "fc": Linear(frozen_array(rng.normal(0.1, 0.4, (5, 128)))),
        "readout": LI(uniform(0.2, (5,)), uniform(0.1, (5,))),
        "output": Output((5,)),
    }
    edges = [("input", "conv"), ("conv", "n1"), ("n1", "max"), ("n1", "means"), ("means", "up"), ("max", "turn")]
    edges += [("up", "part"), ("part", "narrow"), ("turn", "first"), ("narrow", "second"), ("first", "sum")]
    edges += [("second", "sum"), ("sum", "wide"), ("wide", "a"), ("wide", "b"), ("a", "n2"), ("b", "n2")]
    edges += [*pairwise(("n2", "flat", "fc", "readout", "output"))]
    return SpikingGraph(nodes, tuple(edges), DT)


def test_the_reference_lies_within_a_tight_bound() -> None:
    graph = wired()
    inputs = raster(graph)
    recording = simulate(graph, inputs, record="all")
    spikes = {name: trace.spikes for name, trace in recording.traces.items() if trace.spikes is not None}
    assert all(0.02 < float(part.float().mean()) < 0.7 for part in spikes.values())
    bounded = membrane_bound(graph, "n2", inputs, spikes)
    off = (recording["n2"].v.double() - bounded.value).abs()
    assert bool((off <= bounded.error).all())
    assert 0 < float(off.max()) < float(bounded.error.max()) < 1e-3
    output = output_bound(graph, inputs, spikes)
    assert bool(((recording.output.data.double() - output.value).abs() <= output.error).all())


def test_further_edges_into_a_current_widen_its_bound() -> None:
    """Each edge may be one more rounding of the current."""
    one = SpikingGraph(wired().nodes, wired().edges, DT)
    summed = [edge for edge in one.edges if edge not in (("a", "n2"), ("b", "n2"))]
    joined = SpikingGraph({**one.nodes, "s": Sum()}, (*summed, ("a", "s"), ("b", "s"), ("s", "n2")), DT)
    inputs = raster(one)
    recording = simulate(one, inputs, record="spikes")
    spikes = {name: trace.spikes for name, trace in recording.traces.items() if trace.spikes is not None}
    apart, together = (membrane_bound(graph, "n2", inputs, spikes).error for graph in (one, joined))
    assert bool((apart >= together).all())
    assert bool((apart > together).any())


# --- ties behind wiring ----------------------------------------------------------------------------------------------


def turned(graph: SpikingGraph) -> SpikingGraph:
    """The graph, whose output is the first layer's spikes in another order, one thrice, behind the last layer's."""
    nodes: dict[str, Node] = {
        **graph.nodes,
        "grid": Reshape((2, 5)),
        "turn": Permute((1, 0)),
        "row": Reshape((10,)),
        "more": Pad(((0, 2),), "replicate"),
        "first": Place(0, 4, 16),
        "second": Place(0, 0, 16),
        "sum": Sum(),
        "output": Output((16,)),
    }
    edges = [edge for edge in graph.edges if edge[1] != "output"]
    edges += [*pairwise(("lif1", "grid", "turn", "row", "more", "first", "sum", "output")), ("lif2", "second")]
    return SpikingGraph(nodes, (*edges, ("second", "sum")), DT)


def of_output_alone(graph: SpikingGraph, run: SpikingGraph, directory: Path, inputs: SpikeRaster) -> Verification:
    """Verify against a target that shows nothing but its output."""

    def runner(artifact: Artifact, given: SpikeRaster) -> Recording:
        return simulate(run, given)

    return verify(write(graph, directory), graph, inputs, runner=runner)


@pytest.mark.parametrize(("margin", "verdict"), [(2.0**-22, "tie"), (1e-3, "different")])
def test_a_moved_output_cell_is_judged_by_the_neuron_behind_it(margin: float, verdict: str, tmp_path: Path) -> None:
    graph = turned(tie_graph(margin))
    inputs = raster(graph)
    result = of_output_alone(graph, nudged(graph, 2 * margin), tmp_path / "out", inputs)
    assert result.verdict == verdict
    difference = result.ties[0] if verdict == "tie" else result.first_difference
    assert difference is not None
    assert (difference.layer, difference.membrane) == ("lif1", 0.75)


def test_a_wrong_moved_output_after_a_tie_is_different(tmp_path: Path) -> None:
    graph = turned(tie_graph(2.0**-22))
    tied = nudged(graph, 2.0**-21)
    worse = tied.with_nodes({"lif2": replace(tied.nodes["lif2"], v_threshold=uniform(0.4, (4,)))})  # type: ignore[type-var]  # LIF
    inputs = raster(graph)
    a, b = (simulate(one, inputs).output.data for one in (graph, tied))
    sample = int((a != b).flatten(2).any(2).any(0).nonzero()[0])
    alone = inputs.samples(sample, sample + 1)
    assert of_output_alone(graph, tied, tmp_path / "tied", alone).verdict == "tie"
    assert of_output_alone(graph, worse, tmp_path / "worse", alone).verdict == "different"


def test_a_pooled_output_shows_no_neuron_and_so_no_tie(tmp_path: Path) -> None:
    graph = tie_graph(2.0**-22)
    nodes = {**graph.nodes, "map": Reshape((1, 2, 5)), "max": MaxPool2d((1, 5), (1, 5)), "output": Output((1, 2, 1))}
    edges = [edge for edge in graph.edges if "lif2" not in edge and "fc2" not in edge]
    del nodes["fc2"], nodes["lif2"]
    pooled = SpikingGraph(nodes, (*edges, *pairwise(("lif1", "map", "max", "output"))), DT)
    result = of_output_alone(pooled, nudged(pooled, 2.0**-21), tmp_path / "out", raster(pooled))
    assert result.first_difference is not None
    assert result.first_difference.cause.startswith("output: a pool hides which neuron differs")


# --- integers --------------------------------------------------------------------------------------------------------


def integer_ready(*, mean: tuple[int, int] = (1, 1), second: Node | None = None) -> SpikingGraph:
    """Weights on an 8-bit grid behind wiring, two layers joined, a Sum of two layers of weights before neurons."""
    rng = np.random.default_rng(2)

    def grid(*shape: int) -> np.ndarray:
        whole = rng.integers(-100, 128, shape)
        whole.reshape(-1)[:2] = 127, -127
        return frozen_array(whole / 128)

    shape = (2, 4, 4)

    def neurons(*size: int, threshold: float = 0.5) -> CubaLIF:
        return CubaLIF(*(uniform(value, size) for value in (0.5, 0.25, 0.0, threshold, 0.0)))

    nodes: dict[str, Node] = {
        "input": Input(shape),
        "up": Upsample2d((2, 1)),
        "wide": Pad(((0, 0), (1, 1))),
        "conv": Conv2d(grid(3, 2, 3, 3), None, (2, 1), (1, 0), (1, 1), 1),
        "n1": neurons(3, 4, 4),
        "max": MaxPool2d((2, 2), (2, 2)),
        "mean": AvgPool2d(mean, mean, (0, 0)),
        "other": second or MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1)),
        "first": Place(0, 0, 6),
        "second": Place(0, 3, 6),
        "join": Sum(),
        "turn": Permute((1, 0, 2)),
        "flat": Flatten(0, 2),
    }
    size = 6 * 4 // (mean[0] * mean[1])
    nodes |= {"a": Linear(grid(5, size)), "b": Linear(grid(5, size)), "sum": Sum(), "n2": neurons(5, threshold=1.5)}
    nodes["output"] = Output((5,))
    edges = [*pairwise(("input", "up", "wide", "conv", "n1")), ("n1", "max"), ("max", "mean"), ("mean", "first")]
    edges += [("n1", "other"), ("other", "second"), ("first", "join"), ("second", "join"), ("join", "turn")]
    edges += [
        ("turn", "flat"),
        ("flat", "a"),
        ("flat", "b"),
        ("a", "sum"),
        ("b", "sum"),
        ("sum", "n2"),
        ("n2", "output"),
    ]
    return SpikingGraph(nodes, tuple(edges), DT)


def test_integers_spike_as_floats_behind_every_kind_of_wiring() -> None:
    """Everything lies on a grid of the chip, so that rounding has nothing to do."""
    graph = integer_ready()
    inputs = SpikeRaster(np.random.default_rng(0).random((40, 8, 2, 4, 4)) < 0.15, DT)
    shipped = slamp.quantize(graph, LOIHI, slamp.calibrate(graph, inputs))
    reference, found = (simulate(one, inputs, record="spikes") for one in (graph, shipped))
    for name in graph.spiking:
        assert 0.02 < float(reference[name].spikes.float().mean()) < 0.6
        assert float((reference[name].spikes != found[name].spikes).float().mean()) < 0.01
    found_usage = usage(shipped, LOIHI, slamp.calibrate(shipped, inputs))
    assert found_usage["cores"].used == 1
    assert any("join: Sum does not run on loihi2" in line for line in found_usage.unsupported)


def test_what_has_no_integer_counterpart_before_weights_is_named() -> None:
    inputs = SpikeRaster(np.random.default_rng(0).random((40, 8, 2, 4, 4)) < 0.15, DT)
    for graph, message in (
        (integer_ready(second=AdaptiveAvgPool2d((2, 2))), "other: AdaptiveAvgPool2d has no fixed-point meaning"),
        (
            integer_ready(second=AvgPool2d((2, 2), (2, 2), (0, 0))),
            "join: adds the means of pools of different sizes; give each its own weights",
        ),
    ):
        with pytest.raises(UnsupportedNodeError, match=message):
            slamp.quantize(graph, LOIHI, slamp.calibrate(graph, inputs))


# --- channels --------------------------------------------------------------------------------------------------------


def between(*wiring: Node) -> SpikingGraph:
    """conv, neurons, wiring, linear, neurons."""
    rng = np.random.default_rng(4)
    shape: tuple[int, ...] = (4, 5, 6)
    nodes: dict[str, Node] = {
        "input": Input((2, 5, 6)),
        "conv": Conv2d(frozen_array(rng.normal(0.2, 0.5, (4, 2, 3, 3))), None, (1, 1), (1, 1), (1, 1), 1),
        "n1": lif(shape),
    }
    for k, node in enumerate(wiring):
        nodes[f"m{k}"], shape = node, output_shape("m", node, shape)
    size = int(np.prod(shape))
    nodes |= {
        "fc": Linear(frozen_array(rng.normal(0.0, 0.4, (7, size)))),
        "n2": lif((7,)),
        "output": Output((7,)),
    }
    return SpikingGraph(nodes, tuple(pairwise(nodes)), DT)


@pytest.mark.parametrize(
    "wiring",
    [
        (MaxPool2d((2, 2), (2, 2)), Upsample2d((1, 2)), Flatten(0, 2)),
        (AdaptiveAvgPool2d((2, 3)), Pad(((1, 1), (0, 2))), Reshape((80,))),
        (Permute((0, 2, 1)), Take(1, 1, 4), Place(2, 1, 8), Reshape((8, 12)), Reshape((96,))),
    ],
    ids=["pools", "pads", "moves"],
)
def test_channels_go_with_everything_behind_them(wiring: tuple[Node, ...]) -> None:
    """What is left computes as the whole graph does with the outgoing weights of those that go at zero."""
    graph = between(*wiring)
    assert removable(graph) == ("conv",)
    keep = np.array([True, False, True, False])
    small = shrunk_graph(graph, Channels({"conv": keep, "fc": np.ones(7, dtype=bool)}))
    weight = np.array(graph.weighted["fc"].weight).reshape(7, 4, -1)
    weight[:, ~keep] = 0
    cut = graph.with_nodes({"fc": Linear(frozen_array(weight.reshape(7, -1)))})
    inputs = raster(graph)
    one, other = (simulate(each, inputs, record="spikes") for each in (cut, small))
    assert one["n2"].spikes is not None
    assert float(one["n2"].spikes.float().mean()) > 0.01
    assert torch.equal(one["n1"].spikes[:, :, keep], other["n1"].spikes)
    differing = (one["n2"].spikes != other["n2"].spikes).float().mean()
    assert float(differing) < 1e-3, "but for the order of sums"


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        (Permute((1, 0, 2)), "Permute"),
        (Take(0, 1, 3), "Take"),
        (Place(0, 1, 6), "Place"),
        (Reshape((5, 24)), "Reshape"),
        (Pad(((1, 1), (0, 0), (0, 0))), "Pad"),
    ],
)
def test_channels_that_change_places_stay_whole(node: Node, kind: str) -> None:
    graph = between(node, Flatten(0, len(output_shape("n", node, (4, 5, 6))) - 1))
    assert removable(graph) == ()
    channels = Channels({"conv": np.arange(4) > 0, "fc": np.ones(7, dtype=bool)})
    with pytest.raises(MaskError, match=f"but m0, a {kind}, gives other channels than it gets"):
        shrunk_graph(graph, channels)


def test_a_scale_behind_wiring_is_not_folded() -> None:
    graph = between(Scale(uniform(2.0, (4,)), uniform(1.0, (4,))), Flatten(0, 2))
    with pytest.raises(UnsupportedNodeError, match="m0: Scale follows LIF 'n1'"):
        slamp.fold_batchnorm(graph, raster(graph))
    graph = between(Scale(uniform(2.0, (4,)), uniform(0.0, (4,))), Flatten(0, 2))
    assert slamp.fold_batchnorm(graph, raster(graph)).graph.hash == graph.hash, "a multiplication stays where it is"
