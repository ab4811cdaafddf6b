"""Spikes on their way through nodes that move, repeat, merge or pool them: how many arrive, and where."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from networks import DT, spikes
from slamp.calibrate import calibrate
from slamp.carried import carried, next_neuron, shown_neurons
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
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
    Scale,
    Sum,
    SumPool2d,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.shapes import output_shape
from slamp.simulate import simulate

SHAPE = (2, 5, 6)


def copies(node: Node, x: np.ndarray) -> np.ndarray:
    """By loops: how many spikes leave each feature for inputs x of one step and sample, every copy of a spike one."""
    match node:
        case MaxPool2d():
            out = np.zeros(output_shape("n", node, x.shape))
            for c, y, z in np.ndindex(*out.shape):
                for ky, kx in np.ndindex(*node.kernel_size):
                    at = [y * node.stride[0] - node.padding[0], z * node.stride[1] - node.padding[1]]
                    at = [at[0] + ky * node.dilation[0], at[1] + kx * node.dilation[1]]
                    if 0 <= at[0] < x.shape[1] and 0 <= at[1] < x.shape[2]:
                        out[c, y, z] = max(out[c, y, z], x[c, at[0], at[1]])
            return out
        case AdaptiveAvgPool2d():
            out = np.zeros(output_shape("n", node, x.shape))
            for c, y, z in np.ndindex(*out.shape):
                rows = range(y * x.shape[1] // out.shape[1], -(-(y + 1) * x.shape[1] // out.shape[1]))
                columns = range(z * x.shape[2] // out.shape[2], -(-(z + 1) * x.shape[2] // out.shape[2]))
                out[c, y, z] = sum(x[c, row, column] for row in rows for column in columns)
            return out
        case Upsample2d():
            return x.repeat(node.factor[0], 1).repeat(node.factor[1], 2)
        case Pad():
            modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
            return np.pad(x, [(0, 0)] * (x.ndim - len(node.padding)) + list(node.padding), modes[node.mode])  # type: ignore[call-overload]  # name
        case Permute():
            return x.transpose(node.axes)
        case Reshape():
            return x.reshape(node.shape)
        case Take():
            return x.take(range(node.start, node.stop), node.axis)
        case Place():
            out = np.zeros(output_shape("n", node, x.shape))
            np.moveaxis(out, node.axis, 0)[node.start : node.start + x.shape[node.axis]] = np.moveaxis(x, node.axis, 0)
            return out
        case _:
            return x


CARRIERS: tuple[Node, ...] = (
    MaxPool2d((2, 2), (2, 2)),
    MaxPool2d((3, 2), (1, 2), (1, 1)),
    MaxPool2d((2, 2), (1, 1), (0, 1), (2, 3)),
    AdaptiveAvgPool2d((2, 4)),
    AdaptiveAvgPool2d((7, 6)),
    Upsample2d((2, 3)),
    Pad(((1, 0), (2, 1))),
    Pad(((2, 1), (0, 3)), "reflect"),
    Pad(((2, 1), (0, 3)), "replicate"),
    Pad(((2, 1), (0, 3)), "circular"),
    Permute((2, 0, 1)),
    Reshape((5, 12)),
    Take(1, 1, 4),
    Place(2, 1, 9),
    Sum(),
)


@pytest.mark.parametrize("node", CARRIERS, ids=str)
def test_operations_behind_a_node_equal_a_count_in_loops(node: Node) -> None:
    """Spikes of a layer of neurons, then the node, then pruned weights; step by step."""
    rng = np.random.default_rng(0)
    shape = output_shape("n", node, SHAPE)
    size = int(np.prod(shape))
    weight = rng.normal(size=(4, size)) * (rng.random((4, size)) < 0.5)
    nodes: dict[str, Node] = {
        "input": Input(SHAPE),
        "first": IF(uniform(0.5, SHAPE), uniform(0.0, SHAPE)),
        "node": node,
        "flat": Flatten(0, len(shape) - 1),
        "w": Linear(frozen_array(weight)),
        "n": IF(uniform(1.0, (4,)), uniform(0.0, (4,))),
        "output": Output((4,)),
    }
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), DT)
    raster = spikes(SHAPE, steps=4, batch=3, rate=0.3)
    fan_out = np.count_nonzero(weight, axis=0)
    expected = np.zeros(4)
    for t in range(4):
        for sample in range(3):
            expected[t] += float(copies(node, raster.numpy()[t, sample].astype(float)).reshape(-1) @ fan_out)
    for fold in (True, False):
        layer = calibrate(graph, raster, fold=fold).layers["w"]
        assert layer.from_spikes
        assert (layer.operations * 3).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert expected.min() > 20
    binary = carried(graph, input_is_spikes=True).binary
    assert ("node" in binary) == (not isinstance(node, AdaptiveAvgPool2d))


def joined(a: Node, b: Node, *more: Node) -> SpikingGraph:
    """Two nodes behind the input into a Sum, more nodes, weights, neurons."""
    shape = output_shape("a", a, (6,))
    nodes: dict[str, Node] = {"input": Input((6,)), "a": a, "b": b, "sum": Sum()}
    for k, node in enumerate(more):
        nodes[f"m{k}"], shape = node, output_shape("m", node, shape)
    weight = np.arange(3 * int(np.prod(shape))).reshape(3, -1) % 2
    nodes |= {
        "w": Linear(frozen_array(weight)),
        "n": IF(uniform(1.0, (3,)), uniform(0.0, (3,))),
        "output": Output((3,)),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "sum"), ("b", "sum"), *pairwise(list(nodes)[3:])]
    return SpikingGraph(nodes, tuple(edges), DT)


@pytest.mark.parametrize(
    ("a", "b", "binary"),
    [
        (Place(0, 0, 12), Place(0, 6, 12), True),
        (Place(0, 0, 12), Place(0, 5, 12), False),
        (Place(0, 6, 12), Place(0, 0, 12), True),
        (Place(0, 0, 6), Reshape((6,)), False),
    ],
    ids=["beside", "meeting", "in_other_order", "added"],
)
def test_spikes_beside_one_another_are_spikes_and_added_ones_are_counts(a: Node, b: Node, binary: bool) -> None:
    graph, raster = joined(a, b), spikes((6,), steps=5, rate=0.5)
    found = carried(graph, input_is_spikes=True)
    assert "sum" in found.events
    assert ("sum" in found.binary) == binary
    layer = calibrate(graph, raster).layers["w"]
    fan_out = np.count_nonzero(graph.weighted["w"].weight, axis=0)
    arriving = np.stack([copies(a, x) + copies(b, x) for x in raster.numpy().reshape(-1, 6).astype(float)])
    arriving = arriving.reshape(5, 4, -1)
    assert (layer.operations * 4).tolist() == (arriving @ fan_out).sum(1).tolist()
    assert (layer.energy * 4).tolist() == np.square(arriving).sum((1, 2)).tolist()


def test_what_is_no_spike_counts_as_values() -> None:
    raster = spikes((6,), steps=3, rate=0.5)
    padded = joined(Reshape((6,)), Reshape((6,)), Pad(((1, 1),), "constant", 1.0))
    assert not calibrate(padded, raster).layers["w"].from_spikes
    pooled = joined(Reshape((6,)), Reshape((6,)), Reshape((1, 2, 3)), MaxPool2d((2, 2), (1, 1)), Flatten(0, 2))
    assert not calibrate(pooled, raster).layers["w"].from_spikes, "the largest of counts is no spike"


def test_counts_of_a_pool_stay_counts_behind_a_delay() -> None:
    """Means of four spikes that arrive a step later are still four spikes."""
    nodes: dict[str, Node] = {
        "input": Input((1, 4, 4)),
        "pool": AvgPool2d((2, 2), (2, 2), (0, 0)),
        "late": Delay(frozen_array(np.array([[[1, 1], [1, 2]]]))),
        "flat": Flatten(0, 2),
        "w": Linear(uniform(0.5, (3, 4))),
        "n": IF(uniform(1.0, (3,)), uniform(0.0, (3,))),
        "output": Output((3,)),
    }
    raster = spikes((1, 4, 4), steps=6, rate=0.5)
    for steps in ([[[1, 1], [1, 2]]], [[[0, 1], [1, 2]]]):  # the second does not hold everything back
        late = np.array(steps)
        graph = SpikingGraph({**nodes, "late": Delay(frozen_array(late))}, tuple(pairwise(nodes)), DT)
        found = carried(graph, input_is_spikes=True)
        assert "late" in found.events - found.binary
        windows = raster.numpy().astype(float).reshape(6, 4, 2, 2, 2, 2).sum((3, 5))
        expected = np.zeros(6)
        for (y, x), wait in np.ndenumerate(late[0]):
            expected[wait:] += windows[: 6 - wait, :, y, x].sum(1) * 3
        assert (calibrate(graph, raster).layers["w"].operations * 4).tolist() == expected.tolist()


def test_a_delay_on_a_cycle_carries_spikes_only_if_what_comes_round_is_spikes() -> None:
    zero, one = uniform(0.0, (3,)), uniform(1.0, (3,))
    nodes: dict[str, Node] = {
        "input": Input((3,)),
        "sum": Sum(),
        "n": IF(one, zero),
        "last": Delay(one),
        "output": Output((3,)),
    }
    edges = (("input", "sum"), ("last", "sum"), ("sum", "n"), ("n", "last"), ("n", "output"))
    spiking = SpikingGraph(nodes, edges, DT)
    assert {"last", "sum"} <= carried(spiking, input_is_spikes=True).events
    assert carried(spiking, input_is_spikes=True).binary >= {"last"}
    assert "sum" not in carried(spiking, input_is_spikes=True).binary
    turned = SpikingGraph(
        {**nodes, "scale": Scale(uniform(0.5, (3,)), zero)},
        (("input", "sum"), ("last", "sum"), ("sum", "scale"), ("scale", "last"), ("sum", "n"), ("n", "output")),
        DT,
    )
    assert not {"last", "sum"} & carried(turned, input_is_spikes=True).events


def test_neurons_behind_a_loop_of_sums_are_found() -> None:
    one = uniform(1.0, (3,))
    nodes: dict[str, Node] = {
        "input": Input((3,)),
        "w": Linear(uniform(0.3, (3, 3))),
        "sum": Sum(),
        "last": Delay(one),
        "n": IF(one, uniform(0.0, (3,))),
        "output": Output((3,)),
    }
    edges = (("input", "w"), ("w", "sum"), ("last", "sum"), ("sum", "last"), ("sum", "n"), ("n", "output"))
    graph = SpikingGraph(nodes, edges, DT)
    assert next_neuron(graph, "w") == "n"
    raster = spikes((3,), steps=8, rate=0.5)
    assert calibrate(graph, raster).layers["w"].operations.sum() * 4 == 3 * raster.data.sum()


def test_which_neurons_the_output_shows() -> None:
    shape = (2, 3, 4)
    nodes: dict[str, Node] = {
        "input": Input(shape),
        "a": IF(uniform(0.5, shape), uniform(0.0, shape)),
        "b": IF(uniform(1.5, shape), uniform(0.0, shape)),
        "turn": Permute((1, 2, 0)),
        "part": Take(0, 1, 3),
        "pa": Place(0, 0, 5),
        "turned": Permute((1, 2, 0)),
        "pb": Place(0, 2, 5),
        "sum": Sum(),
        "wide": Pad(((0, 1), (0, 0)), "replicate"),
        "flat": Reshape((50,)),
        "output": Output((50,)),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "turn"), ("turn", "part"), ("part", "pa"), ("pa", "sum")]
    edges += [("b", "turned"), ("turned", "pb"), ("pb", "sum"), ("sum", "wide"), ("wide", "flat"), ("flat", "output")]
    graph = SpikingGraph(nodes, tuple(edges), DT)
    recording = simulate(graph, spikes(shape, rate=0.6), record="spikes")
    shown = shown_neurons(graph)
    seen = torch.zeros(50, dtype=torch.int64)
    for name, (features, neurons) in shown.items():
        seen[features] += 1
        assert torch.equal(recording.output.data[:, :, features], recording[name].spikes.flatten(2)[:, :, neurons])
    assert recording.output.data.any(0).any(0).all()
    assert (seen == 1).all()
    assert sorted(set(shown["b"][1].tolist())) == list(range(24))
    assert len(set(shown["a"][1].tolist())) == 16
    images = {"input": Input(shape), "n": nodes["a"]}
    for last in (MaxPool2d((2, 2), (1, 1)), SumPool2d((2, 2), (1, 1))):  # a window of neurons each
        named: dict[str, Node] = {**images, "pool": last, "output": Output((2, 2, 3))}
        assert shown_neurons(SpikingGraph(named, tuple(pairwise(named)), DT)) == {}


def test_convolutions_read_joined_maps() -> None:
    """Two pools of a map beside one another: each spike counts for every synapse of its copies."""
    nodes: dict[str, Node] = {
        "input": Input((1, 4, 4)),
        "max": MaxPool2d((2, 2), (2, 2)),
        "sums": SumPool2d((2, 2), (2, 2)),
        "first": Place(0, 0, 2),
        "second": Place(0, 1, 2),
        "conv": Conv2d(uniform(1.0, (3, 2, 1, 1)), None, (1, 1), (0, 0), (1, 1), 1),
        "n": IF(uniform(1.0, (3, 2, 2)), uniform(0.0, (3, 2, 2))),
        "output": Output((3, 2, 2)),
    }
    edges = [("input", "max"), ("input", "sums"), ("max", "first"), ("sums", "second"), ("first", "conv")]
    edges += [("second", "conv"), ("conv", "n"), ("n", "output")]
    raster = spikes((1, 4, 4), steps=3, rate=0.4)
    windows = raster.numpy().reshape(3, 4, 2, 2, 2, 2)
    expected = 3 * (windows.any((3, 5)).sum() + windows.sum())
    layer = calibrate(SpikingGraph(nodes, tuple(edges), DT), raster).layers["conv"]
    assert layer.from_spikes
    assert layer.operations.sum() * 4 == expected > 100
