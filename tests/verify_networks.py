"""Small hand-made graphs for the tests of comparing, explaining and certifying."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from slamp.graph import SpikingGraph
from slamp.nodes import (
    LI,
    LIF,
    Affine,
    AvgPool2d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Scale,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, simulate

DT = 1e-3
STEPS, SAMPLES = 40, 6


def lif(size: tuple[int, ...], **changes: Any) -> LIF:
    values = {"decay_mem": 0.2, "v_leak": 0.05, "v_threshold": 0.5, "v_reset": -0.1}
    arrays = {key: uniform(changes.pop(key, value), size) for key, value in values.items()}
    return LIF(**arrays, **changes)


def cuba(size: tuple[int, ...], **changes: Any) -> CubaLIF:
    values = {"decay_syn": 0.3, "decay_mem": 0.1, "v_leak": 0.05, "v_threshold": 0.5, "v_reset": -0.1}
    arrays = {key: uniform(changes.pop(key, value), size) for key, value in values.items()}
    return CubaLIF(**arrays, **changes)


def chain(nodes: dict[str, Node], *, features: tuple[int, ...], out: tuple[int, ...]) -> SpikingGraph:
    nodes = {"input": Input(features), **nodes, "output": Output(out)}
    names = list(nodes)
    return SpikingGraph(nodes, tuple(pairwise(names)), DT)


def conv_graph(seed: int = 0, *, readout: str = "spikes") -> SpikingGraph:
    """conv, LIF, pool, scale, flatten, affine, CubaLIF, affine, and a spiking or an analog last layer."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, mean: float, spread: float) -> np.ndarray:
        return frozen_array(rng.normal(mean, spread, shape).astype(np.float32))

    last: dict[str, Node] = {
        "spikes": {"lif3": lif((4,), v_reset=0.0)},
        "LI": {"readout": LI(uniform(0.2, (4,)), uniform(0.1, (4,)))},
        "CubaLI": {"readout": CubaLI(uniform(0.3, (4,)), uniform(0.2, (4,)), uniform(0.1, (4,)))},
        "current": {},
    }[readout]
    nodes: dict[str, Node] = {
        "conv": Conv2d(
            draw(3, 2, 3, 3, mean=0.35, spread=0.4), draw(3, mean=0.1, spread=0.05), (1, 1), (1, 1), (1, 1), 1
        ),
        "lif1": lif((3, 6, 6)),
        "pool": AvgPool2d((2, 2), (2, 2), (0, 0)),
        "scale": Scale(frozen_array(np.array([1.1, 0.9, 1.3])), frozen_array(np.array([0.02, -0.01, 0.03]))),
        "flatten": Flatten(0, 2),
        "fc1": Affine(draw(12, 27, mean=0.06, spread=0.25), draw(12, mean=0.1, spread=0.05)),
        "lif2": cuba((12,)),
        "fc2": Affine(draw(4, 12, mean=0.5, spread=0.5), draw(4, mean=0.1, spread=0.05)),
        **last,
    }
    return chain(nodes, features=(2, 6, 6), out=(4,))


def dense_graph(seed: int = 0, *, reset: str = "value") -> SpikingGraph:
    """Two dense spiking layers: linear, CubaLIF, affine, LIF."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, Node] = {
        "fc1": Linear(frozen_array(rng.normal(0.12, 0.3, (16, 20)))),
        "lif1": cuba((16,), reset=reset),
        "fc2": Affine(frozen_array(rng.normal(0.1, 0.5, (8, 16))), frozen_array(rng.normal(0.1, 0.05, 8))),
        "lif2": lif((8,), reset=reset),
    }
    return chain(nodes, features=(20,), out=(8,))


def raster(graph: SpikingGraph, seed: int = 1, *, samples: int = SAMPLES, rate: float = 0.25) -> SpikeRaster:
    rng = np.random.default_rng(seed)
    return SpikeRaster(rng.random((STEPS, samples, *graph.shapes[graph.input])) < rate, DT)


def reference_run(graph: SpikingGraph, inputs: SpikeRaster) -> Recording:
    """Run with spikes recorded, and assert that each spiking layer fires in 0.5 to 50 % of its cells."""
    recording = simulate(graph, inputs, record="spikes")
    for name in graph.spiking:
        rate = float(recording[name].spikes.float().mean())
        assert 0.005 <= rate <= 0.5, f"{name} fires in {rate:.1%} of its cells"
    return recording


def changed(graph: SpikingGraph, name: str, **fields: Any) -> SpikingGraph:
    """Return a graph with fields of one node replaced."""
    return graph.with_nodes({name: replace(graph.nodes[name], **fields)})


def with_entry(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    """Return a copy with one entry replaced."""
    copy = np.array(array)
    copy[index] = value
    return frozen_array(copy)
