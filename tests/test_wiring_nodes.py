"""Nodes that move, repeat, merge or pool values, and the order in which edges reach a current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch import LIFParameters, LIFRecurrentCell

from networks import DT, analog, spikes
from slamp.arithmetic import FixedPoint
from slamp.calibrate import calibrate
from slamp.dynamics import NeuronDynamics, added, stateless_function
from slamp.errors import GraphError
from slamp.graph import SpikingGraph, load_graph
from slamp.nodes import (
    NODE_TYPES,
    AdaptiveAvgPool2d,
    Conv2d,
    CubaLIF,
    Delay,
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
    Sum,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape
from slamp.simulate import is_spiking_output, output_neuron, simulate

Torch = Callable[[torch.Tensor], torch.Tensor]
Drawn = tuple[Node, Torch, tuple[int, int, int]]
sides = st.integers(1, 7)
pairs = st.tuples(st.integers(0, 3), st.integers(0, 3))


def chain(*nodes: Node, shape: tuple[int, ...]) -> SpikingGraph:
    out = shape
    for node in nodes:
        out = output_shape("n", node, out)
    named = {"input": Input(shape), **{f"n{k}": node for k, node in enumerate(nodes)}, "output": Output(out)}
    return SpikingGraph(named, tuple(pairwise(named)), DT)


# --- what torch computes ---------------------------------------------------------------------------------------------


@st.composite
def modules(draw: st.DrawFn) -> Drawn:
    """A node, what a user's module calls, and the features it is called on."""
    shape = draw(sides), draw(sides), draw(sides)
    kind = draw(st.sampled_from(["max", "adaptive", "up", "pad", "reshape", "permute", "take", "place"]))
    axis = draw(st.integers(0, 2))
    if kind == "max":
        kernel = tuple(draw(st.integers(1, size)) for size in shape[1:])
        stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
        module = torch.nn.MaxPool2d(kernel, stride, padding)
        return MaxPool2d(kernel, stride, padding), module, shape
    if kind == "adaptive":
        size = draw(sides), draw(sides)
        return AdaptiveAvgPool2d(size), torch.nn.AdaptiveAvgPool2d(size), shape
    if kind == "up":
        factor = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        return Upsample2d(factor), torch.nn.Upsample(scale_factor=factor), shape
    if kind == "pad":
        mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
        (top, bottom), (left, right) = draw(pairs), draw(pairs)
        most = [size - (mode == "reflect") if mode in ("reflect", "circular") else 9 for size in shape[1:]]
        padding = (min(top, most[0]), min(bottom, most[0])), (min(left, most[1]), min(right, most[1]))
        value = draw(st.sampled_from([0.0, 0.3])) if mode == "constant" else 0.0
        args = [*padding[1], *padding[0]]
        return Pad(padding, mode, value), lambda x: F.pad(x, args, mode, None if mode != "constant" else value), shape
    if kind == "reshape":
        new = draw(st.sampled_from([(shape[0] * shape[1], shape[2]), (shape[2], shape[0], shape[1])]))
        return Reshape(new), lambda x: x.reshape(-1, *new), shape
    if kind == "permute":
        axes = tuple(draw(st.permutations([0, 1, 2])))
        return Permute(axes), lambda x: x.permute(0, *(a + 1 for a in axes)), shape
    start = draw(st.integers(0, shape[axis] - 1))
    if kind == "take":
        stop = draw(st.integers(start + 1, shape[axis]))
        return Take(axis, start, stop), lambda x: x[(slice(None),) * (axis + 1) + (slice(start, stop),)], shape

    def joined(x: torch.Tensor) -> torch.Tensor:
        beside = torch.zeros_like(torch.cat([x] * 7, axis + 1)).narrow(axis + 1, 0, start)
        return torch.cat([beside, x, beside] if start else [x], axis + 1)

    return Place(axis, start, 2 * start + shape[axis]), joined, shape


@settings(max_examples=150, deadline=None)
@given(modules(), st.integers(0, 99), st.booleans())
def test_every_node_is_torch_bit_for_bit(drawn: Drawn, seed: int, last: bool) -> None:
    """Contiguous inputs and those with the channels last; a convolution behind it adds up in the same order."""
    node, module, shape = drawn
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *shape, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found, expected = stateless_function(node, "cpu")(x), module(x)
    assert found.shape[1:] == output_shape("n", node, shape)
    assert torch.equal(found, expected)
    if found.ndim == 4:
        weight = torch.randn(8, found.shape[1], 1, 1, generator=generator)
        assert torch.equal(F.conv2d(found, weight), F.conv2d(expected, weight))


@pytest.mark.parametrize("behind", ["conv", "linear", "flatten"])
def test_sums_behind_permuted_axes_are_added_in_the_order_of_a_module(behind: str) -> None:
    rng = np.random.default_rng(0)
    raster = analog((6, 7, 16), steps=10)
    if behind == "conv":
        node = Conv2d(frozen_array(rng.normal(size=(8, 16, 3, 3))), None, (1, 1), (1, 1), (1, 1), 1)
        graph, weight = chain(Permute((2, 0, 1)), node, shape=(6, 7, 16)), torch.tensor(node.weight)
    elif behind == "linear":
        linear = Linear(frozen_array(rng.normal(size=(8, 42))))
        graph = chain(Permute((2, 1, 0)), Reshape((672,)), Take(0, 5, 47), linear, shape=(6, 7, 16))
        weight = torch.tensor(linear.weight)
    else:
        linear = Linear(frozen_array(rng.normal(size=(8, 672))))
        graph = chain(Permute((2, 0, 1)), Flatten(0, 2), linear, shape=(6, 7, 16))
        weight = torch.tensor(linear.weight)
    found = simulate(graph, raster).output.data
    for step, x in zip(found, raster.data, strict=True):
        if behind == "conv":
            expected = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)
        elif behind == "linear":
            expected = F.linear(x.permute(0, 3, 2, 1).reshape(-1, 672)[:, 5:47], weight)
        else:
            expected = F.linear(x.permute(0, 3, 1, 2).flatten(1), weight)
        assert torch.equal(step, expected)
        assert float(expected.abs().max()) > 1


def concatenation(shapes: tuple[int, ...] = (3, 5)) -> SpikingGraph:
    """Two layers of neurons beside each other, joined along the channels, in the order of their names."""
    total = sum(shapes)
    nodes: dict[str, Node] = {"input": Input((4,))}
    edges: list[tuple[str, str]] = []
    start = 0
    rng = np.random.default_rng(1)
    for k, size in enumerate(shapes):
        nodes |= {
            f"w{k}": Linear(frozen_array(rng.normal(0.2, 0.5, (size, 4)))),
            f"n{k}": CubaLIF(*(uniform(value, (size,)) for value in (0.5, 0.5, 0.0, 0.3, 0.0))),
            f"p{k}": Place(0, start, total),
        }
        edges += [("input", f"w{k}"), (f"w{k}", f"n{k}"), (f"n{k}", f"p{k}"), (f"p{k}", "sum")]
        start += size
    nodes |= {"sum": Sum(), "output": Output((total,))}
    return SpikingGraph(nodes, (*edges, ("sum", "output")), DT)


def test_places_into_a_sum_concatenate() -> None:
    recording = simulate(concatenation(), spikes((4,)), record="spikes")
    assert recording.spike_count > 50
    assert recording.output.is_spikes
    joined = torch.cat([recording["n0"].spikes, recording["n1"].spikes], 2)
    assert torch.equal(recording.output.data, joined)


def test_outputs_are_spikes_where_they_are_moved_and_nothing_else_where_they_are_added() -> None:
    graph = concatenation((3, 3))
    assert (is_spiking_output(graph), output_neuron(graph)) == (True, None)
    met = graph.with_nodes({"p0": Place(0, 1, 6)})  # the last neuron of n0 meets the first of n1
    assert not is_spiking_output(met)
    images: dict[str, Node] = {
        "input": Input((1, 4, 4)),
        "n": CubaLIF(*(uniform(value, (1, 4, 4)) for value in (0.5, 0.5, 0.0, 0.3, 0.0))),
    }
    for nodes, spiking, neuron in (
        ((Reshape((16,)), Sum()), True, "n"),
        ((Permute((1, 0, 2)), Take(0, 1, 3)), True, None),
        ((MaxPool2d((2, 2), (2, 2)), Upsample2d((2, 2)), Pad(((1, 1), (0, 0)))), True, None),
        ((Pad(((1, 1),), "constant", 1.0),), False, None),
        ((AdaptiveAvgPool2d((2, 2)),), False, None),
    ):
        shape = (1, 4, 4)
        for node in nodes:
            shape = output_shape("n", node, shape)
        named = {**images, **{f"m{k}": node for k, node in enumerate(nodes)}, "output": Output(shape)}
        graph = SpikingGraph(named, tuple(pairwise(named)), DT)
        assert (is_spiking_output(graph), output_neuron(graph)) == (spiking, neuron), nodes


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (MaxPool2d((3, 3), (1, 1), (2, 1)), r"padding \(2, 1\) of windows \(3, 3\); allowed is half"),
        (MaxPool2d((2, 2), (1, 1), (1, 1), (9, 1)), "allowed is an input that every window reads"),
        (MaxPool2d((5, 2), (1, 1)), "allowed is an input that every window reads"),
        (AdaptiveAvgPool2d((0, 2)), r"output_size is \(0, 2\); allowed are sides of 1"),
        (Upsample2d((2, 0)), r"factor is \(2, 0\); allowed are whole numbers"),
        (Upsample2d((1.5, 2)), r"factor is \(1.5, 2\); allowed are whole numbers"),  # type: ignore[arg-type]  # wrong
        (Pad(((-1, 0),)), r"allowed are pairs of 0 and more, cut off with Take"),
        (Pad(()), r"padding is \(\)"),
        (Pad(((0, 0), (4, 0)), "reflect"), r"padding \(4, 0\) of axis 2; allowed is up to 3 in mode 'reflect'"),
        (Pad(((5, 0), (0, 0)), "circular"), "allowed is up to 4 in mode 'circular'"),
        (Pad(((1, 1),), "mirror"), "mode is 'mirror'; allowed are constant, reflect"),  # type: ignore[arg-type]  # wrong
        (Pad(((1, 1),), "reflect", 1.0), "value is 1 in mode 'reflect'"),
        (Pad(((1, 1),), "constant", float("inf")), "value is inf"),
        (Pad(((1, 1), (0, 0), (0, 0), (0, 0))), "allowed is 4 axes"),
        (Reshape((5, 7)), r"allowed is as many values as \(5, 7\) holds"),
        (Reshape((-1, 32)), "allowed is as many values"),
        (Permute((0, 1)), r"allowed is one axis for each of \(0, 1\)"),
        (Permute((0, 1, 1)), "every one named once"),
        (Take(1, 3, 5), "allowed is entries 3 to 5 along axis 1"),
        (Take(3, 0, 1), "allowed is entries 0 to 1 along axis 3"),
        (Take(1, 2, 2), "allowed is entries 2 to 2"),
        (Place(1, 2, 5), "allowed is at most 3 entries along axis 1, from 2 on"),
        (Place(4, 0, 5), "along axis 4"),
    ],
    ids=str,
)
def test_what_a_node_cannot_take_is_said_with_its_name(node: Node, message: str) -> None:
    with pytest.raises(GraphError, match=f"bad: .*{message}"):
        output_shape("bad", node, (2, 4, 4))


@pytest.mark.parametrize("node", [Upsample2d((2, 2)), MaxPool2d((1, 1), (1, 1)), AdaptiveAvgPool2d((1, 1))], ids=str)
def test_images_have_three_axes(node: Node) -> None:
    with pytest.raises(GraphError, match=r"bad: .* receives shape \(2, 4\), allowed is \(channels, y, x\)"):
        output_shape("bad", node, (2, 4))


# --- files -----------------------------------------------------------------------------------------------------------

OTHERS: tuple[tuple[Node, dict[str, object]], ...] = (
    (MaxPool2d((2, 2), (2, 2)), {"kernel_size": (1, 2), "stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}),
    (AdaptiveAvgPool2d((2, 2)), {"output_size": (2, 3)}),
    (Upsample2d((2, 1)), {"factor": (1, 2)}),
    (Pad(((1, 0), (0, 2))), {"padding": ((0, 1), (0, 2)), "mode": "replicate", "value": 0.1}),
    (Sum(), {}),
    (Place(0, 1, 9), {"axis": 1, "start": 2, "size": 10}),
    (Take(1, 0, 2), {"axis": 2, "start": 1, "stop": 3}),
    (Reshape((4, 2, 4)), {"shape": (32,)}),
    (Permute((0, 1, 2)), {"axes": (0, 2, 1)}),
)


@pytest.mark.parametrize(("node", "others"), OTHERS, ids=lambda value: type(value).__name__)
def test_files_hold_every_setting_and_the_hash_sees_it(node: Node, others: dict[str, object], tmp_path: Path) -> None:
    graph = chain(node, shape=(2, 4, 4))
    graph.save(tmp_path / "graph.npz")
    read = load_graph(tmp_path / "graph.npz").nodes["n0"]
    names = [field.name for field in fields(node)]
    assert type(read) is type(node) is NODE_TYPES[type(node).__name__]
    assert [getattr(read, name) for name in names] == [getattr(node, name) for name in names]
    assert set(others) == set(names), "every setting is tried"
    hashes = {graph.hash}
    for name, value in others.items():
        hashes.add(chain(replace(node, **{name: value}), shape=(2, 4, 4)).hash)
    assert len(hashes) == 1 + len(others)


# --- fixed point -----------------------------------------------------------------------------------------------------


def test_integers_pass_every_node_exactly() -> None:
    rng = np.random.default_rng(3)
    weight = np.asarray(rng.integers(-100, 100, (3, 2, 1, 1)) * 2, dtype=np.float32)
    nodes: dict[str, Node] = {
        "input": Input((2, 4, 6)),
        "max": MaxPool2d((2, 2), (1, 1), (1, 1)),
        "turn": Permute((0, 2, 1)),
        "up": Upsample2d((1, 2)),
        "wide": Pad(((1, 2), (0, 1)), "replicate"),
        "conv": Conv2d(frozen_array(weight), None, (1, 1), (0, 0), (1, 1), 1),
        "part": Take(1, 2, 9),
        "flat": Reshape((231,)),
        "first": Place(0, 0, 300),
        "again": Place(0, 60, 300),
        "sum": Sum(),
        "output": Output((300,)),
    }
    names = list(nodes)
    edges = [*pairwise(names[:9]), ("flat", "again"), ("first", "sum"), ("again", "sum"), ("sum", "output")]
    graph = SpikingGraph(nodes, tuple(edges), DT, FixedPoint())
    raster = SpikeRaster(np.asarray(rng.integers(0, 9, (3, 2, 2, 4, 6)), dtype=np.float32), DT, kind="analog")
    found = simulate(graph, raster).output.numpy()
    for t in range(3):
        for sample in range(2):
            x = raster.numpy()[t, sample].astype(np.int64)
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            x = np.stack([padded[:, y : y + 5, z : z + 7] for y in range(2) for z in range(2)]).max(0)
            x = x.transpose(0, 2, 1).repeat(2, axis=2)
            x = np.pad(x, ((0, 0), (1, 2), (0, 1)), mode="edge")
            y = np.einsum("oi,iyx->oyx", weight[:, :, 0, 0].astype(np.int64), x)[:, 2:9].reshape(-1)
            expected = np.zeros(300, dtype=np.int64)
            expected[:231] += y
            expected[60:291] += y
            assert found[t, sample].tolist() == expected.tolist()
    assert np.abs(found).max() > 500


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (AdaptiveAvgPool2d((2, 2)), "n0: AdaptiveAvgPool2d has no fixed-point meaning.*use AvgPool2d"),
        (Pad(((1, 1),), "constant", 1.0), "n0: pads with 1; fixed point pads with 0"),
    ],
    ids=["adaptive", "pad"],
)
def test_what_has_no_integer_counterpart_is_named(node: Node, message: str) -> None:
    graph = chain(node, shape=(2, 4, 4))
    with pytest.raises(GraphError, match=message):
        SpikingGraph(graph.nodes, graph.edges, DT, FixedPoint())


def test_joined_layers_are_bounded_by_the_larger_one() -> None:
    """A concatenation adds nothing up: sums may reach 2^24 beside one another, not on top of one another."""
    nodes = {
        "input": Input((1,)),
        "a": Linear(uniform(255.0 * 2**7, (1, 1))),
        "b": Linear(uniform(255.0 * 2**7, (1, 1))),
        "pa": Place(0, 0, 2),
        "pb": Place(0, 1, 2),
        "sum": Sum(),
        "output": Output((2,)),
    }
    edges = (("input", "a"), ("input", "b"), ("a", "pa"), ("b", "pb"), ("pa", "sum"), ("pb", "sum"), ("sum", "output"))
    raster = SpikeRaster(torch.full((1, 1, 1), 500.0), DT, kind="analog")
    graph = SpikingGraph(nodes, edges, DT, FixedPoint())
    assert simulate(graph, raster).output.data.flatten().tolist() == [500.0 * 255 * 2**7] * 2
    met = graph.with_nodes({"pb": Place(0, 0, 2)})
    with pytest.raises(GraphError, match="sum: the sum of its inputs may reach 32640000; allowed is 16777216"):
        simulate(met, raster)


# --- edges into a current --------------------------------------------------------------------------------------------


def recurrent_graph(cell: LIFRecurrentCell) -> SpikingGraph:
    hidden, features = cell.input_weights.shape
    p = cell.p
    decays = (uniform(float(np.float32(DT) * np.float32(tau)), (hidden,)) for tau in (p.tau_syn_inv, p.tau_mem_inv))
    zero, threshold = uniform(0.0, (hidden,)), uniform(float(p.v_th), (hidden,))
    nodes: dict[str, Node] = {
        "input": Input((features,)),
        "cell_in": Linear(frozen_array(cell.input_weights.detach().numpy())),
        "cell_last": Delay(uniform(1.0, (hidden,))),
        "cell_rec": Linear(frozen_array(cell.recurrent_weights.detach().numpy())),
        "cell": CubaLIF(*decays, zero, threshold, zero),
        "output": Output((hidden,)),
    }
    edges = [("input", "cell_in"), ("cell_in", "cell"), ("cell_rec", "cell"), ("cell", "cell_last")]
    edges += [("cell_last", "cell_rec"), ("cell", "output")]
    return SpikingGraph(nodes, tuple(edges), DT)


def test_a_recurrent_graph_computes_what_norse_computes() -> None:
    torch.manual_seed(1)
    cell = LIFRecurrentCell(
        30, 40, p=LIFParameters(torch.tensor(300.0), torch.tensor(200.0), v_th=torch.tensor(0.3)), dt=DT
    )
    with torch.no_grad():
        cell.input_weights.copy_(torch.randn(40, 30))
        cell.recurrent_weights.copy_(torch.randn(40, 40) * 0.5)
    raster = spikes((30,), steps=60)
    recording = simulate(recurrent_graph(cell), raster, record="all")
    state, seen, summed = None, [], torch.zeros(4, 40)
    with torch.no_grad():
        for step in raster.data:
            before = torch.zeros(4, 40) if state is None else state.z
            x = torch.nn.functional.linear(step.float(), cell.input_weights)
            recurrent = torch.nn.functional.linear(before, cell.recurrent_weights)
            i = torch.zeros(4, 40) if state is None else state.i
            summed += ((i + x) + recurrent != i + (x + recurrent)).float()
            _, state = cell(step.float(), state)
            seen.append((state.z, state.i))
    assert 0.02 < float(recording.output.data.float().mean()) < 0.6
    assert summed.sum() > 0, "the two orders never differ, so this test could not tell them apart"
    assert torch.equal(recording.output.data, torch.stack([z for z, _ in seen]).bool())
    assert torch.equal(recording["cell"].i, torch.stack([i for _, i in seen]))


@pytest.mark.parametrize("edges", [2, 3, 4])
def test_edges_reach_a_current_one_by_one(edges: int) -> None:
    node = CubaLIF(*(uniform(value, (50,)) for value in (0.3, 0.2, 0.0, 0.5, 0.0)))
    generator = torch.Generator().manual_seed(edges)
    drives = [torch.randn(6, 2, 50, generator=generator) for _ in range(edges)]
    dynamics = NeuronDynamics(node, "cpu")
    state = dynamics.initial_state(2)
    run = dynamics.advance(drives[0], state, more=drives[1:], keep_current=True)
    i = torch.zeros(2, 50)
    for t in range(6):
        for drive in drives:
            i = i + drive[t]
        i = i - node.decay_syn[0] * i
        assert torch.equal(run.i[t], i)
    once = dynamics.advance(added(drives[0], drives[1:]), dynamics.initial_state(2), keep_current=True)
    assert not torch.equal(once.i, run.i)


def test_statistics_are_measured_on_the_reference_s_own_spikes() -> None:
    """`calibrate` adds edges to a current as `simulate` does."""
    rng = np.random.default_rng(5)
    nodes: dict[str, Node] = {
        "input": Input((20,)),
        "a": Linear(frozen_array(rng.normal(0, 0.6, (200, 20)))),
        "b": Linear(frozen_array(rng.normal(0, 0.6, (200, 20)))),
        "n": CubaLIF(*(uniform(value, (200,)) for value in (0.3, 0.2, 0.0, 0.2, 0.0))),
        "output": Output((200,)),
    }
    edges = (("input", "a"), ("input", "b"), ("a", "n"), ("b", "n"), ("n", "output"))
    graph = SpikingGraph(nodes, edges, DT)
    raster = spikes((20,), steps=100)
    summed = SpikingGraph({**nodes, "sum": Sum()}, (*edges[:2], ("a", "sum"), ("b", "sum"), ("sum", "n"), edges[4]), DT)
    apart, joined = (simulate(one, raster, record="all")["n"] for one in (graph, summed))
    assert not torch.equal(apart.i, joined.i), "both orders round alike, so nothing is told apart"
    counts = apart.spikes.sum((0, 1)) / 4
    assert counts.sum() > 100
    assert torch.equal(torch.tensor(calibrate(graph, raster, fold=False).neurons["n"].spike_counts), counts.double())
