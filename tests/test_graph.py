from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from networks import ZOO, build
from slamp.capture import read_graph
from slamp.errors import ArtifactError, GraphError
from slamp.graph import SpikingGraph, graph_from_parts, graph_header, load_graph
from slamp.nodes import (
    IF,
    LIF,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Scale,
    SumPool2d,
    arrays_of,
    frozen_array,
    per_neuron,
    uniform,
)

DT = 1e-3


def integrate(*shape: int) -> IF:
    return IF(uniform(1.0, shape), uniform(0.0, shape))


def chain(*nodes: Node, features: tuple[int, ...], out: tuple[int, ...]) -> SpikingGraph:
    names = ["input", *(f"n{index}" for index in range(len(nodes))), "output"]
    return SpikingGraph(
        dict(zip(names, [Input(features), *nodes, Output(out)], strict=True)),
        tuple(pairwise(names)),
        DT,
    )


def small(weight: np.ndarray | None = None) -> SpikingGraph:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3) if weight is None else weight
    return chain(Linear(frozen_array(weight)), integrate(2), features=(3,), out=(2,))


def of_zoo(name: str) -> SpikingGraph:
    net, raster = build(name)
    return read_graph(net, raster.features, raster.dt)[0]


@pytest.mark.parametrize("name", ZOO)
def test_saved_graphs_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    graph = of_zoo(name)
    graph.save(tmp_path / "graph.npz")
    back = load_graph(tmp_path / "graph.npz")
    assert back.hash == graph.hash
    assert back.edges == graph.edges
    assert back.dt == graph.dt
    assert dict(back.parameters) == dict(graph.parameters)
    for key, node in graph.nodes.items():
        assert type(back.nodes[key]) is type(node)
        for field, array in arrays_of(node).items():
            assert arrays_of(back.nodes[key])[field].tobytes() == array.tobytes()


def test_negative_zeros_and_subnormals_survive_saving(tmp_path: Path) -> None:
    graph = small(np.array([[-0.0, 1e-45, 1.0], [-0.0, np.float32(1) / 3, -1e-40]], dtype=np.float32))
    graph.save(tmp_path / "graph.npz")
    back = load_graph(tmp_path / "graph.npz").nodes["n0"]
    assert isinstance(back, Linear)
    assert back.weight.tobytes() == graph.weighted["n0"].weight.tobytes()


def test_all_negative_zeros_survive_saving(tmp_path: Path) -> None:
    graph = small(np.full((2, 3), -0.0, dtype=np.float32))
    graph.save(tmp_path / "graph.npz")
    assert np.signbit(load_graph(tmp_path / "graph.npz").weighted["n0"].weight).all()


def test_uniform_parameters_cost_four_bytes() -> None:
    node = uniform(0.5, (100, 100))
    assert node.base is not None
    assert node.base.nbytes == 4


def test_an_equal_graph_has_an_equal_hash() -> None:
    assert small().hash == small().hash


def test_the_device_and_parameter_names_are_not_part_of_the_hash() -> None:
    graph = small()
    assert replace(graph, parameters={"n0": "0.weight"}, device="meta").hash == graph.hash


def test_one_weight_changes_the_hash() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    weight[1, 2] = np.nextafter(weight[1, 2], np.float32(9))
    assert small(weight).hash != small().hash


def test_the_sign_of_zero_changes_the_hash() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    weight[0, 0] = -0.0
    assert small(weight).hash != small().hash


def test_dt_changes_the_hash() -> None:
    assert replace(small(), dt=2e-3).hash != small().hash


def test_the_reset_changes_the_hash() -> None:
    graph = small()
    node = graph.nodes["n1"]
    assert isinstance(node, IF)
    assert graph.with_nodes({"n1": replace(node, reset="subtract")}).hash != graph.hash


def test_edges_and_their_order_change_the_hash() -> None:
    def residual(edges: tuple[tuple[str, str], ...]) -> SpikingGraph:
        nodes = {"input": Input((2,)), "a": integrate(2), "b": integrate(2), "output": Output((2,))}
        return SpikingGraph(nodes, edges, DT)

    plain = (("input", "a"), ("a", "b"), ("b", "output"))
    skipped = (("input", "a"), ("input", "b"), ("a", "b"), ("b", "output"))
    swapped = (("input", "a"), ("a", "b"), ("input", "b"), ("b", "output"))
    assert len({residual(edges).hash for edges in (plain, skipped, swapped)}) == 3


def test_a_moved_stride_changes_the_hash() -> None:
    def convolution(stride: int, kernel: int) -> SpikingGraph:
        node = Conv1d(uniform(1.0, (1, 1, kernel)), None, (stride,), (0,), (1,), 1)
        size = (8 - kernel) // stride + 1
        return chain(node, integrate(1, size), features=(1, 8), out=(1, size))

    assert convolution(3, 2).hash != convolution(3, 3).hash


def test_shapes_follow_the_nodes() -> None:
    graph = of_zoo("conv_pool_norm")
    assert graph.shapes["0_0"] == (6, 8, 8)
    assert graph.shapes["1"] == (6, 4, 4)
    assert graph.shapes["2"] == (6, 3, 2)
    assert graph.shapes["output"] == (4,)


def test_weighted_and_spiking_are_in_computing_order() -> None:
    graph = of_zoo("conv_box")
    assert list(graph.weighted) == ["0", "2", "5", "7"]
    assert list(graph.spiking) == ["1", "3", "6"]
    assert (graph.input, graph.output) == ("input", "output")


def test_nodes_are_ordered_behind_their_sources() -> None:
    nodes = {"output": Output((2,)), "b": integrate(2), "a": integrate(2), "input": Input((2,))}
    graph = SpikingGraph(nodes, (("a", "b"), ("b", "output"), ("input", "a")), DT)
    assert graph.order == ("input", "a", "b", "output")


def test_graphs_cannot_be_written_to() -> None:
    graph = small()
    with pytest.raises(TypeError):
        graph.nodes["n0"] = graph.nodes["n1"]
    with pytest.raises(ValueError, match="read-only"):
        graph.weighted["n0"].weight[0, 0] = 1.0


def test_a_frozen_array_is_a_copy() -> None:
    values = np.zeros(3, dtype=np.float32)
    frozen = frozen_array(values)
    values[0] = 1.0
    assert frozen[0] == 0.0


def test_header_and_arrays_give_the_graph_back() -> None:
    graph = of_zoo("conv_1d")
    arrays = {f"{name}/{key}": array for name, node in graph.nodes.items() for key, array in arrays_of(node).items()}
    assert graph_from_parts(json.loads(json.dumps(graph_header(graph))), arrays).hash == graph.hash


@pytest.mark.parametrize(
    "change", [{"format": "other"}, {"arithmetic": "int8"}, {"nodes": 3}, {"dt": "x"}, {"edges": [[1]]}]
)
def test_foreign_headers_are_refused(change: dict[str, object]) -> None:
    graph = small()
    arrays = {f"{name}/{key}": array for name, node in graph.nodes.items() for key, array in arrays_of(node).items()}
    with pytest.raises(ArtifactError, match="it was not written by slamp"):
        graph_from_parts({**graph_header(graph), **change}, arrays)


def test_replacing_an_unknown_node_is_refused() -> None:
    with pytest.raises(GraphError, match="nothere: no such node; the graph has"):
        small().with_nodes({"nothere": integrate(2)})


@pytest.mark.parametrize("name", ["", "a.b", "a/b"])
def test_names_with_dots_and_slashes_are_refused(name: str) -> None:
    with pytest.raises(GraphError, match="node names must not be empty"):
        SpikingGraph({"input": Input((2,)), name: integrate(2), "output": Output((2,))}, (), DT)


def two_ends(edges: tuple[tuple[str, str], ...], **more: Node) -> SpikingGraph:
    return SpikingGraph({"input": Input((2,)), "a": integrate(2), **more, "output": Output((2,))}, edges, DT)


CHAIN = (("input", "a"), ("a", "output"))


def test_an_edge_to_nowhere_is_refused() -> None:
    with pytest.raises(GraphError, match="ghost: an edge names it but there is no such node"):
        two_ends((*CHAIN, ("a", "ghost")))


def test_a_double_edge_is_refused() -> None:
    with pytest.raises(GraphError, match="an edge occurs twice"):
        two_ends((*CHAIN, ("input", "a")))


def test_two_inputs_are_refused() -> None:
    with pytest.raises(GraphError, match=r"found 2 Input nodes \['input', 'other'\]; allowed is one"):
        two_ends((*CHAIN, ("other", "a")), other=Input((2,)))


def test_a_node_without_source_is_refused() -> None:
    with pytest.raises(GraphError, match="b: nothing leads into it"):
        two_ends((*CHAIN, ("b", "a")), b=integrate(2))


def test_a_node_without_target_is_refused() -> None:
    with pytest.raises(GraphError, match="b: nothing leads out of it"):
        two_ends((*CHAIN, ("a", "b")), b=integrate(2))


def test_a_cycle_is_refused() -> None:
    with pytest.raises(GraphError, match="a: lies on a cycle; allowed are cycles through a Delay"):
        two_ends((*CHAIN, ("a", "b"), ("b", "a")), b=integrate(2))


@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan"), float("inf")])
def test_dt_must_be_positive(dt: float) -> None:
    with pytest.raises(GraphError, match="graph: dt is"):
        replace(small(), dt=dt)


def test_sources_of_unequal_shape_are_refused() -> None:
    nodes = {"input": Input((3,)), "n": Linear(uniform(1.0, (2, 3))), "a": integrate(3), "output": Output((3,))}
    with pytest.raises(GraphError, match=r"a: its inputs have shapes \[\(3,\), \(2,\)\]; allowed are equal shapes"):
        SpikingGraph(nodes, (("input", "n"), ("input", "a"), ("n", "a"), ("a", "output")), DT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    weight = np.zeros((2, 3), dtype=np.float32)
    weight[1, 2] = bad
    with pytest.raises(GraphError, match=r"n0: weight\[1, 2\] is .*; allowed are finite numbers"):
        small(weight)


def test_float64_arrays_are_refused() -> None:
    with pytest.raises(GraphError, match="n0: weight is float64; allowed is float32"):
        chain(Linear(np.zeros((2, 3))), integrate(2), features=(3,), out=(2,))


@pytest.mark.parametrize("decay", [1.5, -0.1])
def test_decays_outside_zero_to_one_are_refused(decay: float) -> None:
    node = LIF(*(uniform(value, (2,)) for value in (decay, 0.0, 1.0, 0.0)))
    with pytest.raises(GraphError, match=r"n0: decay_mem is .*; allowed is 0 to 1.*choose a smaller dt"):
        chain(node, features=(2,), out=(2,))


def conv(weight: tuple[int, ...], *, bias: int | None = None, groups: int = 1) -> Conv2d:
    return Conv2d(uniform(1.0, weight), None if bias is None else uniform(0.0, (bias,)), (1, 1), (0, 0), (1, 1), groups)


@pytest.mark.parametrize(
    ("node", "features", "message"),
    [
        (Linear(uniform(1.0, (2, 3))), (4,), r"Linear receives shape \(4,\), allowed is \(3,\)"),
        (Linear(uniform(1.0, (2, 3, 1))), (3,), r"weight has shape \(2, 3, 1\); allowed are 2 axes"),
        (Affine(uniform(1.0, (2, 3)), uniform(0.0, (3,))), (3,), r"bias has shape \(3,\); allowed is \(2,\)"),
        (conv((2, 3, 3, 3)), (2, 8, 8), r"Conv2d receives shape \(2, 8, 8\), allowed is \(3, \*, \*\)"),
        (conv((2, 3, 3, 3)), (3, 2, 8), "an input at least as large as the kernel"),
        (conv((2, 3, 3, 3), bias=3), (3, 8, 8), r"bias has shape \(3,\)"),
        (conv((3, 1, 3, 3), groups=2), (2, 8, 8), "3 output channels do not divide into 2 groups"),
        (Conv1d(uniform(1.0, (2, 3, 3, 3)), None, (1,), (0,), (1,), 1), (3, 8), "allowed are 3 axes"),
        (SumPool2d((2, 2), (2, 2)), (4, 8), r"SumPool2d receives shape \(4, 8\), allowed is \(channels, y, x\)"),
        (AvgPool2d((5, 2), (2, 2), (0, 0)), (1, 4, 4), "an input at least as large as the window"),
        (Flatten(0, 2), (4, 8), "allowed is axes 0 to 2"),
        (Scale(uniform(1.0, (3,)), uniform(0.0, (3,))), (2, 4), "allowed is 3 channels"),
        (Scale(uniform(1.0, (2,)), uniform(0.0, (3,))), (2, 4), "allowed is 2 channels"),
        (integrate(3), (2,), r"IF receives shape \(2,\), allowed is \(3,\) \(v_threshold\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(node: Node, features: tuple[int, ...], message: str) -> None:
    with pytest.raises(GraphError, match=f"n0: .*{message}"):
        chain(node, features=features, out=(2,))


def test_the_output_shape_is_checked() -> None:
    with pytest.raises(GraphError, match=r"output: Output receives shape \(2,\), allowed is \(3,\)"):
        chain(integrate(2), features=(2,), out=(3,))


def test_neuron_parameters_that_do_not_fit_are_named() -> None:
    with pytest.raises(GraphError, match=r"here: parameter of shape \(3,\) does not fit neurons of shape \(2,\)"):
        per_neuron(np.zeros(3), (2,), where="here")


def test_a_missing_graph_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such graph file"):
        load_graph(tmp_path / "none.npz")


def test_an_npz_of_something_else_is_no_graph(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ArtifactError, match="not a readable slamp-graph-1 file"):
        load_graph(tmp_path / "a.npz")


def test_changed_content_is_found_by_its_hash(tmp_path: Path) -> None:
    small().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays["n0/weight"][0, 0] = 5.0
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArtifactError, match=r"the content has hash .*, the file states"):
        load_graph(tmp_path / "a.npz")


def test_truncated_graph_files_give_our_error(tmp_path: Path) -> None:
    of_zoo("dense_if").save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(content), 31):
        (tmp_path / "b.npz").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"b\.npz"):
            load_graph(tmp_path / "b.npz")


def test_damaged_graph_files_give_our_error_or_the_same_graph(tmp_path: Path) -> None:
    graph = of_zoo("dense_if")
    graph.save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            assert load_graph(tmp_path / "b.npz").hash == graph.hash
        except ArtifactError:
            refused += 1
    assert refused > 100


def test_saving_replaces_an_existing_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    small().save(tmp_path / "a.npz")
    of_zoo("dense_if").save(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert load_graph(tmp_path / "a.npz").hash == of_zoo("dense_if").hash
