"""Recurrence, skips, sums and concatenations in Lava: every cell of u, v and s, or refused by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import slamp
from lava_artifacts import needs_lava
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    Affine,
    Conv2d,
    Delay,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Output,
    Permute,
    Place,
    Reshape,
    Sum,
    SumPool2d,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.simulate import simulate
from test_fixed_point import DT, cuba


def weights(rng: np.random.Generator, outputs: int, inputs: int) -> Linear:
    return Linear(frozen_array(rng.integers(-40, 80, (outputs, inputs)) * 2.0))


def conv(rng: np.random.Generator, outputs: int, inputs: int) -> Conv2d:
    weight = frozen_array(rng.integers(-40, 80, (outputs, inputs, 3, 3)) * 1.0)
    return Conv2d(weight, None, (1, 1), (1, 1), (1, 1), 1)


def neurons(*shape: int, vth: int = 400) -> Node:
    return cuba(shape, du=1200, dv=600, vth=vth)


def recurrent_with_skips(seed: int) -> SpikingGraph:
    """A cell as capture names it, a residual path by a Sum, and a concatenation of both layers and the input."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, Node] = {
        "input": Input((6,)),
        "cell_in": weights(rng, 5, 6),
        "cell_last": Delay(uniform(1.0, (5,))),
        "cell_rec": weights(rng, 5, 5),
        "cell": neurons(5),
        "up": weights(rng, 5, 5),
        "skip": Affine(weights(rng, 5, 6).weight, frozen_array(rng.integers(-40, 40, 5) * 2.0)),
        "both": Sum(),
        "second": neurons(5, vth=500),
        "a": Place(0, 0, 16),
        "b": Place(0, 5, 16),
        "c": Place(0, 10, 16),
        "joined": Sum(),
        "turned": Reshape((4, 4)),
        "swapped": Permute((1, 0)),
        "flat": Flatten(0, 1),
        "w": weights(rng, 4, 16),
        "wide": Place(0, 1, 6),
        "w2": Affine(weights(rng, 2, 5).weight, frozen_array(rng.integers(0, 40, 2) * 2.0)),
        "apart": Place(0, 4, 6),
        "ends": Sum(),
        "third": neurons(6, vth=600),
        "output": Output((6,)),
    }
    edges = [("input", "cell_in"), ("cell_in", "cell"), ("cell_rec", "cell"), ("cell", "cell_last")]
    edges += [("cell_last", "cell_rec"), ("cell", "up"), ("input", "skip"), ("up", "both"), ("skip", "both")]
    edges += [("both", "second"), ("cell", "a"), ("second", "b"), ("input", "c"), ("a", "joined"), ("b", "joined")]
    edges += [("c", "joined"), ("joined", "turned"), ("turned", "swapped"), ("swapped", "flat"), ("flat", "w")]
    edges += [("w", "wide"), ("second", "w2"), ("w2", "apart"), ("wide", "ends"), ("apart", "ends"), ("ends", "third")]
    return SpikingGraph(nodes, (*edges, ("third", "output")), DT, slamp.FixedPoint())


def residual_maps(seed: int) -> SpikingGraph:
    """Two maps of spikes added before a convolution, and joined along channels before a pool."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, Node] = {
        "input": Input((2, 4, 4)),
        "first": conv(rng, 3, 2),
        "z1": neurons(3, 4, 4),
        "middle": conv(rng, 3, 3),
        "z2": neurons(3, 4, 4, vth=1500),
        "added": Sum(),
        "conv": conv(rng, 2, 3),
        "z3": neurons(2, 4, 4, vth=2500),
        "one": Place(0, 0, 5),
        "two": Place(0, 3, 5),
        "joined": Sum(),
        "larger": Upsample2d((2, 1)),
        "pool": SumPool2d((2, 2), (2, 2)),
        "part": Take(2, 0, 1),
        "flat": Reshape((20,)),
        "w": weights(rng, 3, 20),
        "z4": neurons(3, vth=2500),
        "output": Output((3,)),
    }
    edges = [("input", "first"), ("first", "z1"), ("z1", "middle"), ("middle", "z2"), ("z1", "added"), ("z2", "added")]
    edges += [("added", "conv"), ("conv", "z3"), ("z2", "one"), ("z3", "two"), ("one", "joined"), ("two", "joined")]
    edges += [("joined", "larger"), ("larger", "pool"), ("pool", "part"), ("part", "flat"), ("flat", "w"), ("w", "z4")]
    return SpikingGraph(nodes, (*edges, ("z4", "output")), DT, slamp.FixedPoint())


def raster_for(graph: SpikingGraph, seed: int) -> SpikeRaster:
    rng = np.random.default_rng(seed)
    raster = SpikeRaster(rng.random((40, 2, *graph.shapes[graph.input])) < 0.3, DT)
    run = simulate(graph, raster, record="spikes")
    shares = {name: float(run[name].spikes.double().mean()) for name in graph.spiking}
    assert all(0.01 < share < 0.9 for share in shares.values()), shares
    return raster


@needs_lava
@pytest.mark.parametrize("build", [recurrent_with_skips, residual_maps])
@pytest.mark.parametrize("seed", [0, 1])
def test_lava_computes_every_state(build: object, seed: int, tmp_path: Path) -> None:
    graph: SpikingGraph = build(seed)  # type: ignore[operator]  # parametrized
    raster = raster_for(graph, seed)
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out", golden=raster)
    assert artifact.manifest["options"]["form"] == "processes"
    result = slamp.verify(artifact, graph, raster)
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()


@pytest.mark.parametrize("build", [recurrent_with_skips, residual_maps])
def test_the_file_read_back_computes_the_same(build: object, tmp_path: Path) -> None:
    from exporters.to_lava import reread

    graph: SpikingGraph = build(0)  # type: ignore[operator]  # parametrized
    raster = raster_for(graph, 0)
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    assert slamp.verify(artifact, graph, raster, runner=reread).verdict == "identical"


def with_before_last(*middle: Node) -> SpikingGraph:
    """`residual_maps` with other nodes in the place of the pool."""
    graph = residual_maps(0)
    nodes = {name: node for name, node in graph.nodes.items() if name not in ("larger", "pool", "part")}
    names = [f"n{k}" for k in range(len(middle))]
    edges = [edge for edge in graph.edges if edge[0] in nodes and edge[1] in nodes]
    ends = ["joined", *names, "flat"]
    nodes |= dict(zip(names, middle, strict=True)) | {"flat": Reshape((20,))}
    return SpikingGraph(nodes, (*edges, *pairwise(ends)), DT, slamp.FixedPoint())


def with_late_values() -> SpikingGraph:
    """`recurrent_with_skips` with delays neuron by neuron between weights and the place of their sums."""
    graph = recurrent_with_skips(0)
    nodes = {**graph.nodes, "late": Delay(frozen_array(np.arange(4)))}
    edges = [edge for edge in graph.edges if edge != ("w", "wide")] + [("w", "late"), ("late", "wide")]
    return SpikingGraph(nodes, tuple(edges), DT, slamp.FixedPoint())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_before_last(MaxPool2d((2, 2), (2, 2))), "n0: MaxPool2d before w has no process of Lava"),
        (
            with_before_last(Delay(frozen_array(np.arange(80).reshape(5, 4, 4) % 3)), SumPool2d((2, 2), (2, 2))),
            "n0: delays the values of .* by 0 to 2 steps, and a source may be in several",
        ),
        (with_late_values(), "late: delays values by 0 to 3 steps that wide moves afterwards; put the Delay behind it"),
    ],
    ids=["maximum", "delays behind places", "delays before places"],
)
def test_what_lava_has_no_process_for_is_named(graph: SpikingGraph, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedNodeError, match=message):
        slamp.export(graph, to="lava", directory=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_of_two_layers_is_refused(tmp_path: Path) -> None:
    graph = recurrent_with_skips(0)
    nodes = {name: graph.nodes[name] for name in ("input", "cell_in", "cell", "skip", "second")}
    nodes |= {"a": Place(0, 0, 10), "b": Place(0, 5, 10), "joined": Sum(), "output": Output((10,))}
    edges = [("input", "cell_in"), ("cell_in", "cell"), ("input", "skip"), ("skip", "second"), ("cell", "a")]
    edges += [("second", "b"), ("a", "joined"), ("b", "joined"), ("joined", "output")]
    joined = SpikingGraph(nodes, tuple(edges), DT, slamp.FixedPoint())
    with pytest.raises(
        UnsupportedNodeError, match="output: gives joined; allowed are spikes or membranes of one layer"
    ):
        slamp.export(joined, to="lava", directory=tmp_path / "out")
