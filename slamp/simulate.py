"""`simulate`: the definition of what a graph means, one time step after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from slamp.arithmetic import FixedPoint
from slamp.carried import carried
from slamp.delays import DelayLine, holds_back
from slamp.dynamics import added, edge_values, exact_float32
from slamp.engine import engine_of
from slamp.errors import GraphError, RasterError
from slamp.events import Quantity, run_events, unknown_to_events, worth_events
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, READOUT, SPIKING, Delay, Flatten, Reshape, Sum
from slamp.raster import SpikeRaster

Record = Literal["output", "spikes", "all"]
Engine = Literal["auto", "batched", "events"]


@dataclass(frozen=True, eq=False)
class Trace:
    """What one layer of neurons did; tensors have shape (time, batch, *neurons).

    Attributes:
        spikes: bool, or None for a readout.
        v: Membrane as compared with the threshold, before reset, float32; of a fixed-point graph after reset, as Lava's
            monitors show it, int32. None unless recorded.
        i: Synaptic current after its decay, float32; of a fixed-point graph ``u``, int32. None unless recorded or
            without synapse.
    """

    spikes: torch.Tensor | None = None
    v: torch.Tensor | None = None
    i: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """The result of running a network on a raster.

    Attributes:
        output: Spikes (bool raster) or membrane values of an analog readout (float32 raster).
        traces: Trace of each recorded layer by node name; also ``recording[name]``.
    """

    output: SpikeRaster
    traces: Mapping[str, Trace] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Trace:
        """Return the trace of a node; KeyError if it was not recorded."""
        return self.traces[name]

    @property
    def spike_count(self) -> int:
        """Spikes over all recorded layers, or of the output if none was recorded."""
        recorded = [trace.spikes for trace in self.traces.values() if trace.spikes is not None]
        if not recorded and self.output.is_spikes:
            recorded = [self.output.data]
        return sum(int(spikes.sum()) for spikes in recorded)


@dataclass(frozen=True, eq=False)
class Step:
    """One time step: values leaving every node (shape (batch, *features)) and the state of every neuron layer.

    ``values`` holds float32 tensors, spikes as 0 and 1. ``v`` is the membrane before reset, ``i`` the decayed current.
    """

    t: int
    values: Mapping[str, torch.Tensor]
    v: Mapping[str, torch.Tensor]
    i: Mapping[str, torch.Tensor]


def stream(graph: SpikingGraph, raster: SpikeRaster) -> Iterator[Step]:
    """Yield the network's steps one by one; nothing is kept.

    Raises:
        RasterError: The raster's features are not the graph's input shape, or its dt is another.
    """
    check_raster(graph, raster)
    device = graph.device
    dynamics, functions = engine_of(graph, raster)
    states = {name: layer.initial_state(raster.batch) for name, layer in dynamics.items()}
    lines = delay_lines(graph, raster.batch)
    for t in range(raster.steps):
        values: dict[str, torch.Tensor] = {}
        membranes: dict[str, torch.Tensor] = {}
        currents: dict[str, torch.Tensor] = {}
        with exact_float32():
            for name in graph.order:
                sources = graph.sources(name)
                if name in lines and holds_back(graph.nodes[name]):
                    values[name] = lines[name].read()  # what arrives in this step is taken in below
                    continue
                if name in dynamics:
                    drive, more = edge_values(values, sources)
                    further = [x[None] for x in more]
                    run = dynamics[name].advance(drive[None], states[name], more=further, keep_current=True)
                    values[name], membranes[name] = run.output[0], run.v[0]
                    if dynamics[name].has_current:
                        currents[name] = run.i[0]
                    continue
                x = summed(values, sources) if sources else raster.data[t].to(device=device, dtype=torch.float32)
                if name in lines:
                    lines[name].push(x)
                    values[name] = lines[name].read()
                else:
                    values[name] = functions[name](x)
            for name, line in lines.items():
                if holds_back(graph.nodes[name]):
                    line.push(summed(values, graph.sources(name)))
                line.advance()
        yield Step(t, values, membranes, currents)


def delay_lines(graph: SpikingGraph, batch: int) -> dict[str, DelayLine]:
    """Return the memory of every `Delay`, empty."""
    return {name: DelayLine(node, batch, graph.device) for name, node in graph.nodes.items() if isinstance(node, Delay)}


def summed(values: Mapping[str, torch.Tensor], sources: Sequence[str]) -> torch.Tensor:
    """Add the values of several sources one by one, in the order of their edges."""
    return added(*edge_values(values, sources))


def simulate(
    graph: SpikingGraph, raster: SpikeRaster, *, record: Record = "output", engine: Engine = "auto"
) -> Recording:
    """Run ``graph`` on ``raster`` step by step in its arithmetic: Norse's float32, or Loihi's integers.

    Args:
        graph: The network.
        raster: Input of shape (time, batch, *features).
        record: "output" keeps the output alone, "spikes" also the spikes of every spiking layer (and the membrane of
            readouts), "all" also membranes and currents.
        engine: How a fixed-point graph is computed; both ways give the same numbers. "batched" adds all weights with
            BLAS, "events" the weights of those that spike, in compiled loops. "auto" takes "events" where the graph
            has nothing it does not know and the run is worth it (`slamp.events.worth_events`).

    Raises:
        RasterError: The raster does not fit the graph.
        GraphError: The engine is unknown or does not run the graph, or a fixed-point sum may exceed what its integers
            hold.
    """
    if record not in ("output", "spikes", "all"):
        raise GraphError(f"record: {record!r}; allowed are output, spikes, all")
    if _takes_events(graph, raster, engine):
        return _by_events(graph, raster, record)
    return _by_steps(graph, raster, record)


def _takes_events(graph: SpikingGraph, raster: SpikeRaster, engine: str) -> bool:
    if engine not in ("auto", "batched", "events"):
        raise GraphError(f"engine: {engine!r}; allowed are auto, batched, events")
    if not isinstance(graph.arithmetic, FixedPoint):
        if engine != "auto":
            raise GraphError(
                f"engine: {engine!r} is for fixed-point graphs, and this one is in {graph.arithmetic.name}; "
                "leave the engine out, or quantize the graph"
            )
        return False
    check_raster(graph, raster)
    unknown = unknown_to_events(graph)
    if engine == "events" and unknown is not None:
        raise GraphError(f"{unknown} is unknown to the event-driven engine; use engine='batched'")
    return engine == "events" or (engine == "auto" and unknown is None and worth_events(graph, raster))


def _by_events(graph: SpikingGraph, raster: SpikeRaster, record: Record) -> Recording:
    check_raster(graph, raster)
    wanted: list[tuple[str, Quantity]] = [(graph.output, "value")]
    layers = [name for name in graph.order if isinstance(graph.nodes[name], NEURON) and record != "output"]
    for name in layers:
        readout = isinstance(graph.nodes[name], READOUT)
        wanted += [] if readout else [(name, "value")]
        wanted += [(name, "v")] if record == "all" or readout else []
        wanted += [(name, "i")] if record == "all" else []
    found = {key: torch.from_numpy(array) for key, array in run_events(graph, raster, wanted).items()}
    spiking = is_spiking_output(graph)
    data = found[graph.output, "value"].to(torch.bool if spiking else torch.float32)
    output = SpikeRaster(data, graph.dt, kind="spikes" if spiking else "analog")
    traces = {}
    for name in layers:
        spikes = found.get((name, "value"))
        traces[name] = Trace(
            None if spikes is None else spikes.view(torch.bool), found.get((name, "v")), found.get((name, "i"))
        )
    return Recording(output, traces)


def _by_steps(graph: SpikingGraph, raster: SpikeRaster, record: Record) -> Recording:
    outputs: list[torch.Tensor] = []
    kept: dict[str, tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]] = {}
    for step in stream(graph, raster):
        outputs.append(step.values[graph.output])
        if record == "output":
            continue
        for name, v in step.v.items():
            spikes, membranes, currents = kept.setdefault(name, ([], [], []))
            if isinstance(graph.nodes[name], SPIKING):
                spikes.append(step.values[name].to(torch.bool))
            if record == "all" or isinstance(graph.nodes[name], READOUT):
                membranes.append(v)
            if record == "all" and name in step.i:
                currents.append(step.i[name])
    spiking = is_spiking_output(graph)
    data = torch.stack(outputs).to(torch.float32)
    state_dtype = torch.int32 if isinstance(graph.arithmetic, FixedPoint) else torch.float32
    output = SpikeRaster(data.to(torch.bool) if spiking else data, graph.dt, kind="spikes" if spiking else "analog")
    stacked = {
        name: Trace(*(_stacked(part, torch.bool if k == 0 else state_dtype) for k, part in enumerate(parts)))
        for name, parts in kept.items()
    }
    return Recording(output, stacked)


def _stacked(parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor | None:
    return torch.stack(parts).to(dtype) if parts else None


def output_neuron(graph: SpikingGraph) -> str | None:
    """Return the neuron layer whose values, all of them in row-major order, are the output, or None."""
    name = graph.output
    while True:
        sources = graph.sources(name)
        if len(sources) != 1:
            return None
        name = sources[0]
        if isinstance(graph.nodes[name], NEURON):
            return name
        if not isinstance(graph.nodes[name], (Flatten, Reshape, Sum)):
            return None


def is_spiking_output(graph: SpikingGraph) -> bool:
    """True if the output is spikes of neurons, perhaps moved or concatenated; False for membranes, currents, sums."""
    return graph.output in carried(graph, input_is_spikes=False).binary


def check_raster(graph: SpikingGraph, raster: SpikeRaster) -> None:
    """Raise `RasterError` unless the raster fits the graph's input."""
    allowed = graph.shapes[graph.input]
    if raster.features != allowed:
        raise RasterError(
            f"raster: features {raster.features}, the graph's input {graph.input!r} has shape {allowed}; "
            "the raster's axes are (time, batch, *features)"
        )
    if isinstance(graph.arithmetic, FixedPoint) and not raster.is_spikes:
        fractions = raster.data != raster.data.round()
        if bool(fractions.any()):
            cell = tuple(int(axis) for axis in fractions.nonzero()[0])
            raise RasterError(
                f"raster: {list(cell)} is {float(raster.data[cell]):g}; a fixed-point graph takes spikes or whole "
                "numbers; keep a first layer with analog input on the host"
            )
    if raster.dt != graph.dt:
        raise RasterError(
            f"raster: dt is {raster.dt!r} s, the graph's is {graph.dt!r} s; "
            "bin the events anew, or capture with that dt"
        )


def readout_of(graph: SpikingGraph, readout: str | None) -> str:
    """Return how an output is read over time: as asked, else as the captured module reads it, else "mean"."""
    return readout or graph.readout or "mean"


def predictions(recording: Recording, readout: str = "mean") -> torch.Tensor:
    """Return the class of each sample, int64 (batch,): the largest output, read over time as ``readout`` says.

    Args:
        recording: A run whose output has one axis per sample.
        readout: "mean" or "sum" (spike count or mean membrane), "last" (the last step) or "max" (the largest step).

    Raises:
        GraphError: The output has more axes, or the readout is unknown.
    """
    output = recording.output.data.to(torch.float32)
    if output.ndim != 3:
        raise GraphError(f"output: shape {tuple(output.shape[2:])} per sample; allowed for a class is one axis")
    match readout:
        case "mean" | "sum":
            return output.sum(0).argmax(1)
        case "last":
            return output[-1].argmax(1)
        case "max":
            return output.amax(0).argmax(1)
        case _:
            raise GraphError(f"readout: {readout!r}; allowed are mean, sum, last, max")
