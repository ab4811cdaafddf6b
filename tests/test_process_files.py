"""Fixed-point graphs that no .net file holds, as Lava's processes: the file, the script, the real Lava cell for cell."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slamp
from exporters.environments import run_child
from exporters.process_files import (
    ProcessNetwork,
    process_differences,
    process_network,
    read_process_network,
    write_processes,
)
from exporters.process_script import process_script
from exporters.read_processes import read_processes
from exporters.to_lava import LavaExporter, reread
from exporters.witness_lava import environment_python
from slamp.errors import ArtifactError, MissingDependencyError, RasterError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact
from slamp.nodes import (
    NEURON,
    Affine,
    Conv2d,
    CubaLI,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, cuba, linear, ones
from test_to_lava import conv, samples, weights

needs_lava = pytest.mark.skipif(environment_python() is None, reason="Lava's environment is not installed")


def joined(nodes: dict[str, Node], *edges: str) -> SpikingGraph:
    """A fixed-point graph; edges are written "a b", from a to b."""
    pairs = tuple((first, second) for first, second in (edge.split(" ") for edge in edges))
    return SpikingGraph(nodes, pairs, DT, slamp.FixedPoint())


def steps(*late: int) -> Delay:
    return Delay(frozen_array(np.array(late)))


def skip() -> SpikingGraph:
    """A pruned chain of three layers and paths around its second; quotes in a name."""
    rng = np.random.default_rng(0)
    pruned = weights(rng, 9, 12) * (rng.random((9, 12)) < 0.2)
    return joined(
        {
            "input": Input((16,)),
            "a": linear(weights(rng, 12, 16)),
            "na": cuba((12,), du=2000, dv=400, vth=200),
            "b": linear(pruned),
            'n"b\'': cuba((9,), du=2500, dv=300, vth=60),
            "c": linear(weights(rng, 5, 9)),
            "around": linear(weights(rng, 5, 16) * (rng.random((5, 16)) < 0.3)),
            "beside": linear(weights(rng, 5, 12)),
            "nc": cuba((5,), du=3000, dv=300, vth=200),
            "output": Output((5,)),
        },
        *("input a", "a na", "na b", "b n\"b'", "n\"b' c", "c nc", "input around", "around nc", "na beside"),
        *("beside nc", "nc output"),
    )


def recurrent() -> SpikingGraph:
    """Recurrence, a slow way back, delays per source and per target, the output not in the last layer."""
    rng = np.random.default_rng(1)
    return joined(
        {
            "input": Input((10,)),
            "late": steps(*rng.integers(0, 20, 10)),
            "in": linear(weights(rng, 8, 10)),
            "last": Delay(uniform(1.0, (8,))),
            "rec": linear(weights(rng, 8, 8)),
            "na": cuba((8,), du=1500, dv=300, vth=150),
            "up": linear(weights(rng, 6, 8) / 4),
            "staggered": steps(*rng.integers(0, 9, 6)),
            "nb": cuba((6,), du=1500, dv=300, vth=30),
            "slow": Delay(uniform(7.0, (6,))),
            "back": linear(weights(rng, 8, 6)),
            "output": Output((8,)),
        },
        *("input late", "late in", "in na", "na last", "last rec", "rec na", "na up", "up staggered", "staggered nb"),
        *("nb slow", "slow back", "back na", "na output"),
    )


def pooled_branch() -> SpikingGraph:
    """Pools before convolutions on two paths of different length, a convolution behind, and a linear layer."""
    rng = np.random.default_rng(2)
    halved = SumPool2d((2, 2), (2, 2))
    return joined(
        {
            "input": Input((2, 8, 6)),
            "a": conv(weights(rng, 3, 2, 3, 3), padding=1),
            "na": cuba((3, 8, 6), du=2000, dv=400, vth=150),
            "pool": halved,
            "b": conv(weights(rng, 4, 3, 3, 3), padding=1),
            "short": halved,
            "aside": conv(weights(rng, 4, 2, 1, 1)),
            "nb": cuba((4, 4, 3), du=2000, dv=400, vth=400),
            "c": Conv2d(weights(rng, 2, 4, 2, 3), None, (2, 1), (0, 1), (1, 1), 1),
            "nc": cuba((2, 2, 3), du=2000, dv=400, vth=150),
            "flat": Flatten(0, 2),
            "d": linear(weights(rng, 4, 12)),
            "nd": cuba((4,), du=2000, dv=400, vth=80),
            "output": Output((4,)),
        },
        *("input a", "a na", "na pool", "pool b", "b nb", "input short", "short aside", "aside nb", "nb c", "c nc"),
        *("nc flat", "flat d", "d nd", "nd output"),
    )


def lif_cell_bias() -> SpikingGraph:
    """What Norse's LIFCell behind layers with a bias becomes: convolutional, linear, a readout; nothing is pruned."""
    rng = np.random.default_rng(3)
    first = replace(conv(weights(rng, 3, 2, 3, 3)), bias=frozen_array(np.array([90.0, -40, 7])))
    second = Affine(weights(rng, 6, 48), frozen_array(rng.integers(-50, 60, 6)))
    third = Affine(weights(rng, 3, 6), frozen_array(np.array([4.0, -9, 0])))
    return chain(
        first,
        cuba((3, 4, 4), du=1000, dv=400, vth=300),
        Flatten(0, 2),
        second,
        cuba((6,), du=1000, dv=400, vth=600),
        third,
        CubaLI(uniform(0.25, (3,)), uniform(0.125, (3,)), uniform(0.0, (3,))),
        features=(2, 6, 6),
    )


def quiet_bias() -> SpikingGraph:
    """Biases of membranes beside a skip path: layers start anew at the step their first input reaches them."""
    rng = np.random.default_rng(4)

    def biased(count: int) -> Node:
        return replace(cuba((count,), du=2000, dv=300, vth=150), v_leak=frozen_array(64 * rng.integers(-9, 40, count)))

    graph = skip()
    return graph.with_nodes({"na": biased(12), "nc": biased(5)})


def no_bias_in_common() -> SpikingGraph:
    """One layer of a chain that a .net file holds but for one odd bias."""
    rng = np.random.default_rng(5)
    odd = replace(cuba((3, 4, 3), du=2500, dv=300, vth=100), v_leak=frozen_array(rng.integers(-900, 3000, (3, 4, 3))))
    return chain(
        conv(weights(rng, 3, 2, 3, 3)),
        odd,
        conv(weights(rng, 2, 3, 2, 2)),
        cuba((2, 3, 2), du=2500, dv=300, vth=200),
        Flatten(0, 2),
        features=(2, 6, 5),
    )


ZOO: dict[str, Callable[[], SpikingGraph]] = {
    graph.__name__: graph
    for graph in (skip, recurrent, pooled_branch, lif_cell_bias, quiet_bias, no_bias_in_common)
}
each_graph = pytest.mark.parametrize("name", ZOO)
