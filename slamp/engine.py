"""Which code runs a graph: the dynamics and functions of its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from slamp.arithmetic import FixedPoint
from slamp.dynamics import NeuronDynamics, NeuronRun, NeuronState, TensorFunction, stateless_function
from slamp.fixed_dynamics import FixedPointDynamics, fixed_function, value_bounds
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, Delay
from slamp.raster import SpikeRaster


class Dynamics(Protocol):
    """Advances one layer of neurons over a run of steps."""

    has_current: bool

    def initial_state(self, batch: int) -> NeuronState:
        """Return the state before the first step."""

    def advance(
        self,
        drive: torch.Tensor,
        state: NeuronState,
        *,
        more: Sequence[torch.Tensor] = (),
        keep_current: bool = False,
    ) -> NeuronRun:
        """Run over the inputs that the edges bring, each of shape (steps, batch, *neurons)."""


def engine_of(graph: SpikingGraph, raster: SpikeRaster) -> tuple[Mapping[str, Dynamics], Mapping[str, TensorFunction]]:
    """Return the dynamics of every neuron layer and the function of every node without memory.

    Args:
        graph: The network.
        raster: What it will run on; its largest value decides which sums are proven exact.

    Raises:
        GraphError: A fixed-point sum may exceed what its integers hold.
    """
    neurons = {name: node for name in graph.order if isinstance(node := graph.nodes[name], NEURON)}
    others = [name for name in graph.order if name not in neurons and not isinstance(graph.nodes[name], Delay)]
    if not isinstance(graph.arithmetic, FixedPoint):
        dynamics: dict[str, Dynamics] = {name: NeuronDynamics(node, graph.device) for name, node in neurons.items()}
        return dynamics, {name: stateless_function(graph.nodes[name], graph.device) for name in others}
    largest = 1.0 if raster.is_spikes else float(raster.data.abs().max())
    bounds = value_bounds(graph, largest)
    fixed: dict[str, Dynamics] = {name: FixedPointDynamics(node, graph.device) for name, node in neurons.items()}
    return fixed, {name: fixed_function(graph.nodes[name], bounds[name], where=name) for name in others}
