"""A forward-Euler runner for NIR files that knows nothing of slamp: nir, numpy and the equations NIR documents.

It is the witness of the NIR export. It ignores all metadata; the time step, which NIR does not say, is an argument.
One step of each neuron, with constants folded in float64 and state kept in float32:

* LIF: ``v += dt/tau * ((v_leak - v) + r*I)``
* IF: ``v += dt*r*I``
* CubaLIF: ``I += dt/tau_syn * (-I + w_in*S)`` first, then ``v += dt/tau_mem * ((v_leak - v) + r*I)`` with the new I
* LI, CubaLI: as LIF and CubaLIF, without spike; the membrane is the output

then ``v > v_threshold`` spikes and sets ``v`` to ``v_reset`` in the same step. Membranes start at ``v_leak`` (IF:
``v_reset``), currents at 0. NIR leaves the order of a float32 sum open: LIF adds ``r*I`` to ``v_leak`` before ``v`` is
taken off, the others after. Several edges into a node are added in the order of the file's edges: into the current of
CubaLIF and CubaLI one by one, ``(I + S1) + S2``, elsewhere to one another first. An edge is never late by itself: a
cycle passes a Delay of at least one step, or is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np

from exporters.euler_layers import LayerFunction, float32, layer_function
from exporters.euler_spikes import SPIKING, carries_spikes, only_node

READOUT = (nir.LI, nir.CubaLI)
MAX_DELAY_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class EulerRun:
    """What a file did on an input; arrays have shape (time, batch, *features).

    Attributes:
        output: Spikes (bool) if the output comes from a spiking node, else float32 values.
        spikes: bool, by name of spiking node.
        membranes: float32, by name of readout (LI, CubaLI).
    """

    output: np.ndarray
    spikes: Mapping[str, np.ndarray]
    membranes: Mapping[str, np.ndarray]


def run(path: str | Path, inputs: np.ndarray, dt: float, *, subtract: frozenset[str] = frozenset()) -> EulerRun:
    """Run a NIR file.

    Args:
        path: The file.
        inputs: Shape (time, batch, *features).
        dt: Time step, in the unit of the file's time constants.
        subtract: Names of spiking nodes that reset by ``v -= v_threshold``, which NIR has no field for.

    Raises:
        ValueError: A node type is not known, the graph has a cycle without a Delay or no single Input and Output, or
            shapes do not fit.
    """
    graph = nir.read(path, type_check=False)
    sources = _sources(graph)
    layers: dict[str, _Neurons] = {}
    delays: dict[str, _Delay] = {}
    functions: dict[str, LayerFunction] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, SPIKING + READOUT):
            layers[name] = _Neurons(node, dt, by_value=name not in subtract)
        elif isinstance(node, nir.Delay):
            delays[name] = _Delay(name, node, dt)
        else:
            functions[name] = layer_function(name, node)
    order, early = _order(sources, {name for name, delay in delays.items() if delay.holds_back})
    strangers = sorted(subtract - {name for name, node in graph.nodes.items() if isinstance(node, SPIKING)})
    if strangers:
        raise ValueError(f"{strangers[0]}: reset by subtraction is asked for, but the file has no such spiking node")
    output = only_node(graph, nir.Output)
    allowed = tuple(int(size) for size in graph.nodes[only_node(graph, nir.Input)].input_type["input"])
    if inputs.ndim < 2 or inputs.shape[2:] != allowed or 0 in inputs.shape:
        raise ValueError(f"inputs: shape {inputs.shape}; allowed is (time, batch, {', '.join(map(str, allowed))})")
    recorded: dict[str, np.ndarray] = {}
    for t in range(inputs.shape[0]):
        values: dict[str, np.ndarray] = {}
        for name in order:
            if name in early:
                values[name] = delays[name].next(inputs.shape[1])
                continue
            arriving = _arriving(name, values, sources) or [inputs[t].astype(np.float32)]
            if name not in layers:
                x = _total(arriving)
                values[name] = delays[name](x) if name in delays else functions[name](x)
                continue
            values[name] = layers[name].step(arriving)
            if name not in recorded:
                kind = np.bool_ if layers[name].spiking else np.float32
                recorded[name] = np.empty((inputs.shape[0], *values[name].shape), dtype=kind)
            recorded[name][t] = values[name]
        for name in early:
            delays[name].take(_total(_arriving(name, values, sources)))
        if t == 0:
            out = np.empty((inputs.shape[0], *values[output].shape), dtype=np.float32)
        out[t] = values[output]
    spiking_output = carries_spikes(graph)
    return EulerRun(
        output=out.astype(np.bool_) if spiking_output else out,
        spikes={name: array for name, array in recorded.items() if layers[name].spiking},
        membranes={name: array for name, array in recorded.items() if not layers[name].spiking},
    )


class _Neurons:
    """One layer of neurons and its state."""

    def __init__(self, node: Any, dt: float, *, by_value: bool) -> None:
        self.node = node
        self.by_value = by_value
        self.spiking = isinstance(node, SPIKING)
        self.has_current = isinstance(node, (nir.CubaLIF, nir.CubaLI))
        self.r = float32(node.r)
        self.v_leak = self.v_start = float32(0)
        if isinstance(node, nir.IF):
            self.gain = float32(dt * np.float64(node.r))
            self.v_start = float32(node.v_reset)
        else:
            tau = node.tau_mem if self.has_current else node.tau
            self.decay_mem = float32(dt / np.float64(tau))
            self.v_leak = self.v_start = float32(node.v_leak)
        if self.has_current:
            share = dt / np.float64(node.tau_syn)
            self.decay_syn = float32(share)
            self.gain = float32(share * np.float64(node.w_in))
        if self.spiking:
            self.v_threshold, self.v_reset = float32(node.v_threshold), float32(node.v_reset)
        self.v: np.ndarray | None = None
        self.i: np.ndarray = np.zeros((), dtype=np.float32)

    def step(self, arriving: list[np.ndarray]) -> np.ndarray:
        """Advance by one step; return spikes as 0 and 1, or the membrane of a readout, float32."""
        x = arriving[0] if self.has_current else _total(arriving)
        v: np.ndarray = np.broadcast_to(self.v_start, x.shape) if self.v is None else self.v
        if isinstance(self.node, nir.IF):
            v = v + x * self.gain
        elif isinstance(self.node, nir.LIF):
            v = v + self.decay_mem * ((x * self.r + self.v_leak) - v)
        else:
            drive = x
            if self.has_current:
                self.i = self.i - self.decay_syn * self.i
                for part in arriving:
                    self.i = self.i + self.gain * part
                drive = self.i
            v = v + self.decay_mem * ((self.v_leak - v) + drive * self.r)
        self.v = v
        if not self.spiking:
            return v
        spikes: np.ndarray = v > self.v_threshold
        self.v = np.where(spikes, self.v_reset if self.by_value else v - self.v_threshold, v)
        return float32(spikes)


class _Delay:
    """Hands every input on some steps later, the delay over dt rounded to whole steps; zeros until then."""

    def __init__(self, name: str, node: Any, dt: float) -> None:
        steps = np.rint(np.asarray(node.delay, dtype=np.float64) / dt)
        if not bool((np.isfinite(steps) & (steps >= 0) & (steps <= MAX_DELAY_STEPS)).all()):
            raise ValueError(f"{name}: delays by {steps.max():g} steps; allowed are 0 to {MAX_DELAY_STEPS}")
        self.name = name
        self.steps = steps.astype(int)
        self.holds_back = bool((self.steps >= 1).all())
        self.past: deque[np.ndarray] = deque(maxlen=int(self.steps.max()) + 1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Take what arrives in this step; return what leaves in it."""
        self.past.append(x)
        return self._late(np.zeros_like(x), 0)

    def next(self, batch: int) -> np.ndarray:
        """Return what leaves in this step, before anything has arrived in it."""
        return self._late(np.zeros((batch, *self.steps.shape), dtype=np.float32), 1)

    def take(self, x: np.ndarray) -> None:
        """Take what arrives in this step; raises ValueError if it has another shape than the delay."""
        if x.shape[1:] != self.steps.shape:
            raise ValueError(
                f"{self.name}: closes a cycle with delays of shape {self.steps.shape} and receives {x.shape[1:]}; "
                "allowed is one delay per feature"
            )
        self.past.append(x)

    def _late(self, late: np.ndarray, ahead: int) -> np.ndarray:
        steps = np.broadcast_to(self.steps, late.shape[1:])
        for k in np.unique(steps):
            if k - ahead < len(self.past):
                late[:, steps == k] = self.past[ahead - 1 - int(k)][:, steps == k]
        return late


def _arriving(name: str, values: Mapping[str, np.ndarray], sources: Mapping[str, list[str]]) -> list[np.ndarray]:
    """Return what the edges into a node bring, in their order."""
    parts = [values[source] for source in sources[name]]
    shapes = list(dict.fromkeys(part.shape[1:] for part in parts))
    if len(shapes) > 1:
        raise ValueError(f"{name}: its edges bring shapes {shapes}; allowed are equal shapes")
    return parts


def _total(parts: list[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _sources(graph: Any) -> dict[str, list[str]]:
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        if source not in sources or target not in sources:
            raise ValueError(f"edges: {source} -> {target} names a node the file does not have")
        sources[target].append(source)
    for name, node in graph.nodes.items():
        if bool(sources[name]) == isinstance(node, nir.Input):
            raise ValueError(
                f"{name}: {type(node).__name__} has {len(sources[name])} inputs; an Input has none, others one or more"
            )
    return sources


def _order(sources: Mapping[str, list[str]], held: set[str]) -> tuple[list[str], list[str]]:
    """Return the names so that each follows its sources, and those of ``held`` that had to go before theirs."""
    order: list[str] = []
    early: list[str] = []
    done: set[str] = set()
    while len(order) < len(sources):
        ready = [name for name, before in sources.items() if name not in done and done.issuperset(before)]
        if not ready:
            ready = sorted(held - done)
            early += ready
        if not ready:
            raise ValueError(
                f"{min(set(sources) - done)}: lies on a cycle; allowed are cycles through a Delay of a step or more"
            )
        order += ready
        done.update(ready)
    return order, early
