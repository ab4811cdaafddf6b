"""Nodes that add, move, repeat or pool values, in NIR: said exactly, or refused by name before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import slamp
from exporters import nir_wiring, witness_spikingjelly
from exporters.to_nir import NirExporter
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    LIF,
    AdaptiveAvgPool2d,
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
    Shape,
    Sum,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape
from slamp.simulate import Recording, simulate

DT = 2.0**-10
needs_spikingjelly = pytest.mark.skipif(
    witness_spikingjelly.environment_python() is None, reason="SpikingJelly's environment is not installed"
)


def lif(shape: Shape, threshold: float = 0.2) -> LIF:
    return LIF(uniform(0.5, shape), uniform(0.0, shape), uniform(threshold, shape), uniform(0.0, shape))


def linear(rng: np.random.Generator, outputs: int, inputs: int) -> Linear:
    """Weights in eighths: sums of spikes are exact in any order."""
    return Linear(frozen_array(rng.integers(-3, 8, (outputs, inputs)) / 8))


def conv(rng: np.random.Generator, outputs: int, inputs: int) -> Conv2d:
    return Conv2d(frozen_array(rng.integers(-3, 6, (outputs, inputs, 3, 3)) / 8), None, (1, 1), (1, 1), (1, 1), 1)


def scale(*values: float, shift: Sequence[float] = ()) -> Scale:
    return Scale(frozen_array(np.array(values)), frozen_array(np.array(shift or [0.0] * len(values))))


def graph_of(nodes: dict[str, Node], edges: Sequence[tuple[str, str]]) -> SpikingGraph:
    """Add the output behind the last node."""
    last = list(nodes)[-1]
    known: dict[str, Shape] = {}
    for name, node in nodes.items():
        before = [known[source] for source, target in edges if target == name]
        known[name] = output_shape(name, node, node.shape if isinstance(node, Input) else before[0])
    return SpikingGraph({**nodes, "out": Output(known[last])}, (*edges, (last, "out")), DT)


def chain(*middle: Node, features: Shape = (2, 4, 6), linear_behind: bool = True) -> SpikingGraph:
    """Spikes of a layer of ``features``, nodes, and unless told otherwise weights and neurons behind one axis."""
    rng = np.random.default_rng(7)
    nodes: dict[str, Node] = {
        "in": Input(features),
        "first": Scale(uniform(1.5, features[:1]), uniform(0.0, features[:1])),
    }
    nodes |= {"z": lif(features), **{f"n{k}": node for k, node in enumerate(middle)}}
    shape = features
    for name, node in list(nodes.items())[3:]:
        shape = output_shape(name, node, shape)
    if linear_behind:
        if len(shape) > 1:
            nodes["flat"] = Flatten(0, len(shape) - 1)
        nodes |= {"w": linear(rng, 5, int(np.prod(shape))), "last": lif((5,))}
    return graph_of(nodes, tuple(pairwise(nodes)))


def raster_for(graph: SpikingGraph, seed: int = 0) -> SpikeRaster:
    rng = np.random.default_rng(seed)
    return SpikeRaster(rng.random((10, 3, *graph.shapes["in"])) < 0.4, DT)


def fires(graph: SpikingGraph, seed: int = 0) -> bool:
    run = simulate(graph, raster_for(graph, seed), record="spikes")
    return all(bool(run[name].spikes.any()) for name in graph.spiking)


def replayed(graph: SpikingGraph, directory: Path, seed: int = 0) -> tuple[Recording, Recording]:
    """The graph's run and the file's, each asserted to have spikes in every layer, and to agree everywhere."""
    raster = raster_for(graph, seed)
    expected = simulate(graph, raster, record="spikes")
    assert fires(graph, seed)
    artifact = NirExporter().write(graph, directory)
    found = NirExporter().replay(artifact, raster)
    for name in graph.spiking:
        assert torch.equal(found[name].spikes, expected[name].spikes), name
    assert found.output.kind == expected.output.kind
    assert torch.equal(found.output.data, expected.output.data)
    assert NirExporter().read(artifact.file("network")).hash == graph.hash
    return expected, found


@st.composite
def moving(draw: st.DrawFn, shape: Shape) -> Node:
    """A node NIR can say on a map."""
    kind = draw(st.sampled_from(["take", "place", "pad", "max", "sum", "scale"]))
    axis = draw(st.integers(0, 2))
    if kind == "take":
        start = draw(st.integers(0, shape[axis] - 1))
        return Take(axis, start, draw(st.integers(start + 1, shape[axis])))
    if kind == "place":
        start = draw(st.integers(0, 2))
        return Place(axis, start, start + shape[axis] + draw(st.integers(0, 2)))
    sides = st.tuples(st.integers(0, 2), st.integers(0, 2))
    if kind == "pad":
        return Pad(tuple(draw(sides) for _ in range(draw(st.integers(1, 3)))))
    if kind == "max":
        kernel = tuple(draw(st.integers(1, min(2, size))) for size in shape[1:])
        padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
        return MaxPool2d(kernel, (draw(st.integers(1, 2)), draw(st.integers(1, 2))), padding)
    return Sum() if kind == "sum" else Scale(uniform(1.0, shape[:1]), uniform(0.0, shape[:1]))


@st.composite
def wired(draw: st.DrawFn) -> SpikingGraph:
    """Up to four such nodes on a map of spikes, up to two of any kind before one axis, up to one behind."""
    shape: Shape = (2, 4, 6)
    nodes: list[Node] = []

    def add(node: Node) -> None:
        nonlocal shape
        nodes.append(node)
        shape = output_shape("n", node, shape)

    for _ in range(draw(st.integers(0, 4))):
        node = draw(moving(shape))
        if isinstance(node, MaxPool2d) and any(isinstance(found, Scale) for found in nodes):
            continue  # scaled spikes are values
        add(node)
    for _ in range(draw(st.integers(0, 2))):
        other: Node = Permute(tuple(draw(st.permutations(range(3)))))
        if draw(st.booleans()):
            other = Upsample2d((draw(st.integers(1, 2)), draw(st.integers(1, 2))))
        elif draw(st.booleans()):
            other = Pad(((1, 0), (1, 1)), *draw(st.sampled_from([("replicate",), ("circular",), ("constant", 0.5)])))
        add(other)
    add(Flatten(0, 2))
    behind: list[Node] = [
        Take(0, 0, shape[0] - shape[0] // 3),
        Place(0, 2, shape[0] + 3),
        Pad(((1, 2),), "constant", 0.25),
    ]
    if draw(st.booleans()):
        add(draw(st.sampled_from(behind)))
    return chain(*nodes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=wired(), seed=st.integers(0, 100))
def test_what_moves_values_is_replayed_cell_for_cell(tmp_path: Path, graph: SpikingGraph, seed: int) -> None:
    assume(fires(graph, seed))
    replayed(graph, tmp_path / "out", seed)


def concatenation(axis: int) -> SpikingGraph:
    """Two layers of spikes joined along an axis, and a difference of both added to a third path into a current."""
    rng = np.random.default_rng(axis)
    full = [4, 4, 4]
    full[axis] = 8
    sizes = {"a": conv(rng, 4, 2), "za": lif((4, 4, 4)), "b": conv(rng, 4, 2), "zb": lif((4, 4, 4), 0.3)}
    nodes: dict[str, Node] = {"in": Input((2, 4, 4)), **sizes}
    nodes |= {"first": Place(axis, 0, 8), "second": Place(axis, 4, 8), "both": Sum(), "flat": Flatten(0, 2)}
    nodes |= {"negative": scale(*[-1.0] * 4), "difference": Sum(), "flat2": Flatten(0, 2)}
    nodes |= {"w": linear(rng, 6, 128), "w2": linear(rng, 6, 64)}
    nodes |= {"last": CubaLIF(*(uniform(value, (6,)) for value in (0.5, 0.25, 0.0, 0.3, 0.0)))}
    edges = [("in", "a"), ("a", "za"), ("in", "b"), ("b", "zb"), ("za", "first"), ("zb", "second"), ("first", "both")]
    edges += [("second", "both"), ("both", "flat"), ("flat", "w"), ("za", "difference"), ("zb", "negative")]
    edges += [("negative", "difference"), ("difference", "flat2"), ("flat2", "w2"), ("w", "last"), ("w2", "last")]
    return graph_of(nodes, edges)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concatenations_and_differences_are_replayed(axis: int, tmp_path: Path) -> None:
    expected, _ = replayed(concatenation(axis), tmp_path / "out")
    assert all(float(trace.spikes.float().mean()) > 0.02 for trace in expected.traces.values())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concatenated_spikes_are_an_output_of_spikes(axis: int, tmp_path: Path) -> None:
    graph = concatenation(axis)
    kept = {"in", "a", "za", "b", "zb", "first", "second", "both"}
    nodes = {name: node for name, node in graph.nodes.items() if name in kept}
    joined = graph_of(nodes, [edge for edge in graph.edges if set(edge) <= kept])
    expected, _ = replayed(joined, tmp_path / "out")
    assert expected.output.is_spikes


@pytest.mark.parametrize(
    ("nodes", "spikes"),
    [
        ((Permute((1, 2, 0)), Flatten(0, 2)), True),
        ((Upsample2d((2, 1)), Flatten(0, 2), Take(0, 3, 20)), True),
        ((MaxPool2d((2, 2), (2, 2), (1, 0), (1, 2)),), True),
        ((Reshape((8, 6)),), True),
        ((Reshape((2, 4, 6)), Sum()), True),
        ((Flatten(0, 2), Reshape((6, 8)), Reshape((48,))), True),
        ((Scale(uniform(1.0, (2,)), uniform(0.0, (2,))),), False),
        ((Pad(((2, 1),), "constant", 0.5), Flatten(0, 2)), False),
        ((AdaptiveAvgPool2d((2, 3)),), False),
        ((scale(-1.0, 0.5, shift=(1.0, 0.1)),), False),
    ],
    ids=lambda nodes: " ".join(type(node).__name__ for node in nodes) if isinstance(nodes, tuple) else None,
)
def test_the_output_is_of_the_graphs_kind(nodes: tuple[Node, ...], spikes: bool, tmp_path: Path) -> None:
    expected, found = replayed(chain(*nodes, linear_behind=False), tmp_path / "out")
    assert expected.output.is_spikes == found.output.is_spikes == spikes


@pytest.mark.parametrize(
    ("features", "shift"), [((3,), True), ((3, 5), True), ((3, 4, 2), True), ((3, 5), False), ((3,), False)]
)
def test_shifts_behind_powers_of_two_round_once(features: Shape, shift: bool, tmp_path: Path) -> None:
    values = scale(-1.0, 0.25, 2.0, shift=(0.3, -0.1, 0.7)) if shift else scale(-0.3, 1.7, 0.6)
    middle = [values] if len(features) != 2 or shift else [values, Take(1, 1, 4)]
    replayed(chain(*middle, features=features), tmp_path / "out")


def test_a_signal_of_two_axes_is_moved_by_kernels(tmp_path: Path) -> None:
    replayed(
        chain(Take(1, 2, 6), Place(1, 1, 7), Pad(((1, 2), (0, 3))), Take(0, 1, 4), features=(3, 7)), tmp_path / "out"
    )


def test_a_pool_that_counts_wrongly_is_found(tmp_path: Path) -> None:
    graph = chain(MaxPool2d((2, 2), (2, 2)))
    artifact = NirExporter().write(graph, tmp_path / "out")
    assert slamp.verify(artifact, graph, raster_for(graph)).verdict == "identical"
    network = nir.read(artifact.file("network"), type_check=False)
    network.nodes["n0"].threshold = network.nodes["n0"].threshold + 1
    nir.write(artifact.file("network"), network)
    result = slamp.verify(artifact, graph, raster_for(graph))
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert result.first_difference.layer == "last"
    assert result.file_difference.startswith("n0: threshold[0, 0, 0] is 1.5 in the file, 0.5 in the graph")


def test_a_name_of_the_graph_is_left_to_the_graph(tmp_path: Path) -> None:
    graph = chain(MaxPool2d((2, 2), (2, 2)))
    nodes = {("n0_count" if name == "w" else name): node for name, node in graph.nodes.items()}
    edges = tuple(tuple("n0_count" if end == "w" else end for end in edge) for edge in graph.edges)
    replayed(SpikingGraph(nodes, edges, DT), tmp_path / "out")  # type: ignore[arg-type]  # pairs


MAP = (2, 4, 6)
REFUSED: list[tuple[str, list[Node], Shape]] = [
    (
        r"n0: Permute goes from shape \(2, 4, 6\) to \(2, 6, 4\), for which NIR has no node",
        [Permute((0, 2, 1)), lif((2, 6, 4))],
        MAP,
    ),
    (
        r"n0: Upsample2d goes .* allowed is what a Flatten or a Reshape to one axis follows",
        [Upsample2d((2, 2)), lif((2, 8, 12))],
        MAP,
    ),
    (r"n0: Reshape goes from shape \(8,\) to \(2, 2, 2\)", [Reshape((2, 2, 2)), lif((2, 2, 2))], (8,)),
    (r"n0: Pad goes from shape", [Pad(((1, 1), (1, 1)), "reflect"), lif((2, 6, 8))], MAP),
    (
        r"n1: MaxPool2d takes other values than spikes of neurons",
        [scale(0.5, 0.5), MaxPool2d((2, 2), (2, 2))],
        MAP,
    ),
    (
        r"n0: AdaptiveAvgPool2d makes a map of \(3, 3\) out of \(4, 6\), in windows of several sizes",
        [AdaptiveAvgPool2d((3, 3))],
        MAP,
    ),
    (
        r"n0: Scale shifts by up to 1, .* unless the scales are powers of two; fold it",
        [scale(0.3, 1.0, shift=(1.0, 0.0))],
        MAP,
    ),
]


@pytest.mark.parametrize(("message", "nodes", "features"), REFUSED, ids=[message[:9] for message, *_ in REFUSED])
def test_what_nir_cannot_say_is_refused_before_a_byte(
    message: str, nodes: list[Node], features: Shape, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedNodeError, match=message):
        NirExporter().write(chain(*nodes, features=features), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_matrices_of_zeros_and_ones_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nir_wiring, "LARGEST", 2000)
    with pytest.raises(
        UnsupportedNodeError, match="n0: Permute needs a matrix of zeros and ones of 48 x 48; allowed are"
    ):
        NirExporter().write(chain(Permute((2, 1, 0))), tmp_path / "out")
    with pytest.raises(UnsupportedNodeError, match="n1: Take needs a matrix of zeros and ones of"):
        NirExporter().write(chain(Flatten(0, 2), Take(0, 0, 45)), tmp_path / "out")


@needs_spikingjelly
def test_skip_paths_are_added_by_spikingjelly_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    nodes: dict[str, Node] = {"in": Input((10,)), "a": linear(rng, 8, 10), "za": lif((8,)), "b": linear(rng, 6, 10)}
    nodes |= {"c": linear(rng, 6, 8), "zb": lif((6,), 0.6)}
    graph = graph_of(nodes, [("in", "a"), ("a", "za"), ("in", "b"), ("za", "c"), ("b", "zb"), ("c", "zb")])
    artifact = NirExporter().write(graph, tmp_path / "out")
    expected = simulate(graph, raster_for(graph), record="spikes")
    found = witness_spikingjelly.replay(artifact, raster_for(graph))
    for name in graph.spiking:
        assert expected[name].spikes.any()
        assert torch.equal(found[name].spikes, expected[name].spikes), name


def test_spikingjelly_refuses_thresholds_and_sums_by_name(tmp_path: Path) -> None:
    graph = chain(MaxPool2d((2, 2), (2, 2)))
    artifact = NirExporter().write(graph, tmp_path / "out")
    with pytest.raises(UnsupportedNodeError, match="SpikingJelly cannot express that"):
        witness_spikingjelly.replay(artifact, raster_for(graph))
