"""Two layers with recurrence, skips and delays, by seed: all synapses of Lava's processes in one network."""

from __future__ import annotations

import numpy as np
import torch

import slamp
from slamp.graph import SpikingGraph
from slamp.nodes import CubaLIF, Delay, Input, Linear, Node, Output, frozen_array, uniform
from slamp.raster import SpikeRaster
from test_fixed_point import DT

STEPS = 250


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], *, exponents: tuple[int, int]) -> np.ndarray:
    """8-bit weights of any sign mode, some of them zero, with an exponent."""
    low, high = [(-128, 127), (0, 255), (-255, 0)][rng.choice(3, p=[0.6, 0.3, 0.1])]
    weight = rng.integers(low, high + 1, shape) * (rng.random(shape) < rng.choice([0.2, 0.7, 1.0]))
    return frozen_array((weight * 2.0 ** rng.integers(*exponents)).astype(np.float32))


def random_neuron(rng: np.random.Generator, shape: tuple[int, ...], drive: float) -> Node:
    """Neurons with any decays; thresholds about as large as what arrives."""
    slow = rng.random() < 0.7
    du = int(rng.integers(0, 400)) if slow else int(rng.integers(0, 4096))
    dv = int(rng.integers(0, 400)) if slow else int(rng.integers(0, 4097))
    vth = int(np.clip(drive * rng.choice([0.3, 1.0, 4.0]), 0, 131071))
    decays = uniform((du + 1) / 4096, shape), uniform(dv / 4096, shape)
    return CubaLIF(*decays, uniform(0.0, shape), uniform(vth * 64, shape), uniform(0.0, shape))


def random_feedback(seed: int) -> tuple[SpikingGraph, SpikeRaster]:
    """Two layers with recurrence, a slow way back, a skip path, delays per source, per target and of a whole layer."""
    rng = np.random.default_rng(seed)
    a, b, n = int(rng.integers(3, 12)), int(rng.integers(3, 12)), int(rng.integers(4, 20))

    def weights(outputs: int, inputs: int) -> Linear:
        return Linear(random_weight(rng, (outputs, inputs), exponents=(0, 3)))

    def steps(*late: int) -> Delay:
        return Delay(frozen_array(np.array(late, dtype=np.float32)))

    drive = 60.0 * n * 0.3
    nodes: dict[str, Node] = {
        "input": Input((n,)),
        "late": steps(*rng.integers(0, 63, n)),
        "in": weights(a, n),
        "before": steps(*[1] * a),
        "rec": weights(a, a),
        "slow": steps(*[int(rng.integers(2, 20))] * b),
        "back": weights(a, b),
        "na": random_neuron(rng, (a,), drive),
        "up": weights(b, a),
        "staggered": steps(*rng.integers(0, 30, b)),
        "skip": weights(b, n),
        "nb": random_neuron(rng, (b,), drive),
        "output": Output((b,)),
    }
    edges = [("input", "late"), ("late", "in"), ("in", "na"), ("na", "before"), ("before", "rec"), ("rec", "na")]
    edges += [("nb", "slow"), ("slow", "back"), ("back", "na"), ("na", "up"), ("up", "staggered"), ("staggered", "nb")]
    edges += [("input", "skip"), ("skip", "nb"), ("nb", "output")]
    graph = SpikingGraph(nodes, tuple(edges), DT, slamp.FixedPoint())
    return graph, SpikeRaster(torch.tensor(rng.random((STEPS, 1, n)) < 0.3), DT)
