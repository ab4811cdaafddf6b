"""Fixed-point networks of every kind that ``.net`` files hold, and rasters that make them spike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import slamp
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LIF,
    Affine,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Node,
    Output,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, cuba, linear


def weights(rng: np.random.Generator, *shape: int, low: int = -60, high: int = 90) -> np.ndarray:
    return frozen_array(rng.integers(low, high, shape).astype(np.float32))


def conv(weight: np.ndarray, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Conv2d:
    return Conv2d(weight, None, (stride, stride), (padding, padding), (dilation, dilation), groups)


def dense() -> SpikingGraph:
    rng = np.random.default_rng(0)
    first, second = cuba((12,), du=1000, dv=400, vth=250), cuba((6,), du=3000, dv=200, vth=150)
    return chain(linear(weights(rng, 12, 20)), first, linear(weights(rng, 6, 12)), second, features=(20,))


def convolution() -> SpikingGraph:
    rng = np.random.default_rng(1)
    first = Conv2d(weights(rng, 4, 1, 3, 2), None, (2, 1), (1, 0), (1, 2), 2)
    shape = chain(first, features=(2, 8, 6)).shapes["n0"]
    second = conv(weights(rng, 3, 4, 2, 2))
    end = chain(first, second, features=(2, 8, 6)).shapes["n1"]
    nodes = (first, cuba(shape, du=2000, dv=500, vth=60), second, cuba(end, du=2000, dv=300, vth=150))
    return chain(*nodes, Flatten(0, 2), features=(2, 8, 6))


def pooled() -> SpikingGraph:
    """Pools before a padded convolution and before a linear layer; IF neurons at the end."""
    rng = np.random.default_rng(2)
    lif = LIF(uniform(0.25, (3, 8, 8)), uniform(0, (3, 8, 8)), uniform(6400, (3, 8, 8)), uniform(0, (3, 8, 8)))
    fire = IF(uniform(64 * 300, (5,)), uniform(0, (5,)))
    return chain(
        conv(weights(rng, 3, 2, 3, 3), padding=1),
        lif,
        SumPool2d((2, 2), (2, 2)),
        conv(weights(rng, 4, 3, 3, 3), padding=1),
        cuba((4, 4, 4), du=1500, dv=300, vth=300),
        SumPool2d((2, 2), (2, 2)),
        Flatten(0, 2),
        linear(weights(rng, 5, 16)),
        fire,
        features=(2, 8, 8),
    )


def as_matrices() -> SpikingGraph:
    """Convolutions that netx has no layer for: overlapping pools with padding, padding "same", one axis, behind it."""
    rng = np.random.default_rng(3)
    same = Conv2d(weights(rng, 2, 3, 3, 3), None, (1, 1), "same", (1, 1), 1)
    return chain(
        SumPool2d((3, 3), (2, 2)),
        conv(weights(rng, 3, 1, 3, 3, low=-10, high=14), padding=1),
        cuba((3, 4, 4), du=2000, dv=300, vth=60),
        same,
        cuba((2, 4, 4), du=2000, dv=300, vth=60),
        Flatten(1, 2),
        Conv1d(weights(rng, 2, 2, 3), None, (2,), (1,), (1,), 1),
        cuba((2, 8), du=2000, dv=300, vth=60),
        Flatten(0, 1),
        linear(weights(rng, 4, 16)),
        cuba((4,), du=2000, dv=300, vth=60),
        features=(1, 9, 9),
    )


def biased() -> SpikingGraph:
    """Biases per channel, per neuron of a convolution, per neuron of a linear layer; they alone make layers fire."""
    rng = np.random.default_rng(4)

    def with_bias(shape: tuple[int, ...], bias: np.ndarray) -> CubaLIF:
        return replace(cuba(shape, du=2500, dv=300, vth=100), v_leak=frozen_array(np.broadcast_to(64 * bias, shape)))

    return chain(
        conv(weights(rng, 3, 2, 3, 3)),
        with_bias((3, 4, 3), np.array([[[20.0]], [[-7.0]], [[0.0]]])),
        conv(weights(rng, 2, 3, 2, 2)),
        with_bias((2, 3, 2), rng.integers(-30, 60, (2, 3, 2))),
        Flatten(0, 2),
        linear(weights(rng, 4, 12)),
        with_bias((4,), np.array([50.0, -4096, 4095, 3])),
        features=(2, 6, 5),
    )


def readout() -> SpikingGraph:
    rng = np.random.default_rng(5)
    leaky = CubaLI(uniform(0.25, (4,)), uniform(0.125, (4,)), frozen_array(64 * rng.integers(-5, 6, 4)))
    sparse = weights(rng, 4, 30) * (rng.random((4, 30)) < 0.2)
    return chain(
        linear(weights(rng, 30, 10)), cuba((30,), du=999, dv=99, vth=200), linear(sparse), leaky, features=(10,)
    )


def steps(*late: float) -> Delay:
    return Delay(frozen_array(np.array(late)))


def affine(rng: np.random.Generator, outputs: int, inputs: int) -> Affine:
    """Weights of both signs; biases beyond what one line carries."""
    return Affine(weights(rng, outputs, inputs), frozen_array(4 * rng.integers(-50, 75, outputs)))


def recurrent() -> SpikingGraph:
    """A layer that feeds itself back, one step late, between two that do not."""
    rng = np.random.default_rng(10)
    middle = cuba((9,), du=1500, dv=300, vth=200)
    graph = chain(
        linear(weights(rng, 12, 10)),
        cuba((12,), du=1500, dv=300, vth=200),
        linear(weights(rng, 9, 12)),
        middle,
        linear(weights(rng, 4, 9)),
        cuba((4,), du=1500, dv=300, vth=150),
        features=(10,),
    )
    return fed_back(graph, "n3", linear(weights(rng, 9, 9, low=-100, high=80)))


def fed_back(graph: SpikingGraph, neuron: str, node: Node, late: float = 1.0) -> SpikingGraph:
    """Return a graph in which neurons also receive their own spikes of an earlier step."""
    nodes: dict[str, Node] = {**graph.nodes, "last": Delay(uniform(late, graph.shapes[neuron])), "back": node}
    edges = (*graph.edges, (neuron, "last"), ("last", "back"), ("back", neuron))
    return SpikingGraph(nodes, edges, graph.dt, graph.arithmetic)


def delayed() -> SpikingGraph:
    """Delays per source, per target and of a whole layer, of linear layers and a convolution."""
    rng = np.random.default_rng(11)
    return chain(
        Delay(frozen_array(rng.integers(0, 9, (2, 5, 4)).astype(np.float32))),
        conv(weights(rng, 3, 2, 2, 2)),
        cuba((3, 4, 3), du=2000, dv=300, vth=100),
        Flatten(0, 2),
        linear(weights(rng, 5, 36)),
        steps(*rng.integers(0, 7, 5)),
        cuba((5,), du=2000, dv=300, vth=200),
        Delay(uniform(3.0, (5,))),
        linear(weights(rng, 5, 5)),
        steps(0, 1, 0, 2, 59),
        cuba((5,), du=2000, dv=300, vth=100),
        features=(2, 5, 4),
    )


def delayed_pool() -> SpikingGraph:
    """Delays per source before a pool, one delay behind it: both belong to the matrix that pool and weights become."""
    rng = np.random.default_rng(15)
    return chain(
        Delay(frozen_array(rng.integers(0, 9, (2, 6, 4)).astype(np.float32))),
        SumPool2d((2, 2), (2, 2)),
        Delay(uniform(2.0, (2, 3, 2))),
        conv(weights(rng, 3, 2, 2, 2)),
        cuba((3, 2, 1), du=2000, dv=300, vth=100),
        features=(2, 6, 4),
    )


def synapse_delays() -> SpikingGraph:
    """Every synapse waits for itself: three ways of weights beside one another, no synapse in two of them."""
    rng = np.random.default_rng(12)
    whole, way = weights(rng, 6, 8), rng.integers(0, 3, (6, 8))
    parts = [linear(np.where(way == k, whole, 0)) for k in range(3)]
    nodes: dict[str, Node] = {
        "input": Input((8,)),
        "now": parts[0],
        "early": Delay(uniform(2.0, (8,))),
        "b": parts[1],
        "c": parts[2],
        "late": Delay(uniform(7.0, (6,))),
        "n": cuba((6,), du=2000, dv=300, vth=150),
        "output": Output((6,)),
    }
    edges = [("input", "now"), ("now", "n"), ("input", "early"), ("early", "b"), ("b", "n"), ("input", "c")]
    edges += [("c", "late"), ("late", "n"), ("n", "output")]
    return SpikingGraph(nodes, tuple(edges), DT, slamp.FixedPoint())


def current_biases() -> SpikingGraph:
    """Biases of currents, as LIFCell has them, in linear layers, one of which feeds itself back; membranes have others.

    The bias of the second is that of the way back; it also passes on that of the third.
    """
    rng = np.random.default_rng(13)
    second = replace(cuba((9,), du=1500, dv=300, vth=300), v_leak=uniform(-64.0 * 5, (9,)))
    graph = chain(
        affine(rng, 12, 10),
        cuba((12,), du=1500, dv=300, vth=400),
        linear(weights(rng, 9, 12)),
        second,
        affine(rng, 5, 9),
        CubaLI(uniform(0.25, (5,)), uniform(0.125, (5,)), uniform(0.0, (5,))),
        features=(10,),
    )
    return fed_back(graph, "n3", affine(rng, 9, 9))


def current_biases_of_convolutions() -> SpikingGraph:
    """Groups, padding, stride, dilation, a pool before a convolution, and a matrix behind it; all with biases."""
    rng = np.random.default_rng(14)

    def per_channel(*biases: int) -> np.ndarray:
        return frozen_array(np.array(biases))

    return chain(
        Conv2d(weights(rng, 4, 1, 3, 3), per_channel(40, -30, 0, 7), (1, 1), (1, 1), (1, 1), 2),
        cuba((4, 8, 8), du=2000, dv=300, vth=100),
        SumPool2d((2, 2), (2, 2)),
        Conv2d(weights(rng, 3, 4, 2, 2, low=-40, high=50), per_channel(-90, 150, 20), (1, 1), (1, 1), (2, 2), 1),
        cuba((3, 4, 4), du=2000, dv=300, vth=300),
        Flatten(0, 2),
        affine(rng, 5, 48),
        cuba((5,), du=2000, dv=300, vth=200),
        features=(2, 8, 8),
    )


ZOO = {
    graph.__name__: graph
    for graph in (
        dense,
        convolution,
        pooled,
        as_matrices,
        biased,
        readout,
        recurrent,
        delayed,
        delayed_pool,
        synapse_delays,
        current_biases,
        current_biases_of_convolutions,
    )
}


def samples(graph: SpikingGraph, *, steps: int = 25, batch: int = 3, rate: float = 0.3) -> SpikeRaster:
    rng = np.random.default_rng(9)
    return SpikeRaster(torch.tensor(rng.random((steps, batch, *graph.shapes[graph.input])) < rate), DT)
