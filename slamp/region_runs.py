"""Runs of a region of a graph on recorded inputs, with gains on some of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from slamp.cycles import components, is_circular
from slamp.delays import DelayLine, holds_back
from slamp.dynamics import NeuronDynamics, edge_values, stateless_function
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, Delay
from slamp.simulate import summed

Values = Mapping[str, torch.Tensor]


class RegionRun:
    """Runs nodes of a graph on what reaches them from outside; what no gain changes is computed once.

    Attributes:
        nodes: What is run, in computing order.
    """

    def __init__(self, graph: SpikingGraph, nodes: Sequence[str], outside: Values, constants: Values) -> None:
        """Prepare a run.

        Args:
            graph: The network.
            nodes: What is run, in computing order.
            outside: Values (steps, batch, *features) of everything these nodes read and are not.
            constants: Of nodes that may get a gain, the part of their output that no gain scales, shape (channels,).
        """
        self.graph, self.nodes, self.outside, self.constants = graph, tuple(nodes), outside, constants
        inside = set(nodes)
        self.parts = [
            (part, is_circular(graph, part))
            for part in components(nodes, lambda name: [each for each in graph.targets(name) if each in inside])
        ]
        self.functions = {
            name: stateless_function(graph.nodes[name], graph.device)
            for name in nodes
            if not isinstance(graph.nodes[name], (Delay, *NEURON))
        }
        self.dynamics = {
            name: NeuronDynamics(node, graph.device) for name in nodes if isinstance(node := graph.nodes[name], NEURON)
        }
        first = next(iter(outside.values()))
        self.steps, self.batch = first.shape[:2]
        self.unscaled: dict[str, torch.Tensor] = {}

    def run(self, gains: Values) -> dict[str, torch.Tensor]:
        """Return the values of all nodes, (steps, batch, *features); ``gains`` have shape () or (channels,)."""
        values = dict(self.outside)
        changing = set(gains)
        for part, circular in self.parts:
            changed = any(source in changing for name in part for source in self.graph.sources(name))
            changed |= circular and not changing.isdisjoint(part)
            if circular:
                values.update(self._turned(part, values, gains))
            elif changed or part[0] not in self.unscaled:
                values[part[0]] = self._applied(part[0], values)
                if not changed:
                    self.unscaled[part[0]] = values[part[0]]
            else:
                values[part[0]] = self.unscaled[part[0]]
            if changed:
                changing.update(part)
            if not circular:
                values[part[0]] = self._scaled(part[0], values[part[0]], gains)
        return {name: values[name] for name in self.nodes}

    def _applied(self, name: str, values: Values) -> torch.Tensor:
        """Run one node over all steps."""
        node, sources = self.graph.nodes[name], self.graph.sources(name)
        if name in self.dynamics:
            drive, more = edge_values(values, sources)
            return self.dynamics[name].advance(drive, self.dynamics[name].initial_state(self.batch), more=more).output
        x = summed(values, sources)
        if isinstance(node, Delay):
            return delayed(node, x, self.graph.device)
        found: torch.Tensor = self.functions[name](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return found

    def _scaled(self, name: str, value: torch.Tensor, gains: Values) -> torch.Tensor:
        """Scale the output of a node, one channel after two axes of steps and samples, but for its constant part."""
        if name not in gains:
            return value
        axes = [1] * (value.ndim - 3)
        gain = gains[name].reshape(-1, *axes) if gains[name].ndim else gains[name]
        if name not in self.constants:
            return value * gain
        constant = self.constants[name].reshape(-1, *axes)
        return (value - constant) * gain + constant

    def _turned(self, part: Sequence[str], outside: Values, gains: Values) -> dict[str, torch.Tensor]:
        """Run the nodes of a cycle step by step."""
        nodes, sources = self.graph.nodes, {name: self.graph.sources(name) for name in part}
        read = {source for name in part for source in sources[name] if source not in part}
        lines = {
            name: DelayLine(node, self.batch, self.graph.device)
            for name in part
            if isinstance(node := nodes[name], Delay)
        }
        held = [name for name in lines if holds_back(nodes[name])]
        states = {name: self.dynamics[name].initial_state(self.batch) for name in part if name in self.dynamics}
        found: dict[str, list[torch.Tensor]] = {name: [] for name in part}
        for t in range(self.steps):
            now = {name: outside[name][t] for name in read} | {name: lines[name].read() for name in held}
            for name in part:
                if name in states:
                    drive, more = edge_values(now, sources[name])
                    further = [x[None] for x in more]
                    now[name] = self.dynamics[name].advance(drive[None], states[name], more=further).output[0]
                elif name not in lines:
                    value = self.functions[name](summed(now, sources[name]))
                    now[name] = self._scaled(name, value[None], gains)[0]
                elif name not in held:
                    lines[name].push(summed(now, sources[name]))
                    now[name] = lines[name].read()
            for name in held:
                lines[name].push(summed(now, sources[name]))
            for name in part:
                found[name].append(now[name])
                if name in lines:
                    lines[name].advance()
        return {name: torch.stack(values) for name, values in found.items()}


def delayed(node: Delay, x: torch.Tensor, device: str) -> torch.Tensor:
    """Return values (steps, batch, *features) as they leave a delay."""
    line = DelayLine(node, x.shape[1], device)
    late = []
    for step in x:
        line.push(step)
        late.append(line.read())
        line.advance()
    return torch.stack(late)
