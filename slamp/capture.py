"""`capture`: from a Norse module to a spiking graph that is proven to spike like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from norse.torch import SequentialState

from slamp.arithmetic import TRAINED_SCALE
from slamp.capture_check import compare_with_module
from slamp.errors import CaptureError, GraphError, RasterError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, Shape
from slamp.raster import SpikeRaster, seconds
from slamp.read_modules import check_plain_weights
from slamp.read_neurons import check_neuron
from slamp.read_sites import Parts, read_sites
from slamp.running import Run, interpret, left_as_found, read_recorded, record, trace_network
from slamp.sites import Edge

evaluation_mode = left_as_found


@dataclass(frozen=True)
class ModuleReport:
    """What becomes of one module. ``node`` is the node type, "-" if it vanishes; ``problem`` is empty if it works."""

    path: str
    module: str
    node: str
    shape: Shape | None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph and how it was read: the run of the module, and the neurons' sites by node."""

    graph: SpikingGraph
    run: Run
    parts: Parts


def capture(net: torch.nn.Module, raster: SpikeRaster | Sequence[SpikeRaster]) -> SpikingGraph:
    """Read a Norse network into a graph and prove, on ``raster``, that both compute the same.

    The network is any module that takes one time step, ``net(x, state)``, or the whole sequence ``net(x)`` of shape
    (time, batch, *features), with neurons of Norse. It is run in evaluation mode on a few samples; how tensors flow
    between its neurons and torch's functions within one step is the graph. Then module and graph are run side by side,
    and the output of every neuron layer is compared, cell for cell. The network, its states, its training mode and the
    random generators are left as they were.

    Args:
        net: The network; its device becomes the graph's.
        raster: Samples of shape (time, batch, *features); several for a network of several inputs. These are one input
            of the graph, flattened and side by side (`slamp.join`). Several outputs are joined likewise, but for the
            spikes of neurons that also lead elsewhere: those are recorded under the neurons' names.

    Raises:
        UnsupportedModuleError: The network cannot be captured; the message names the line of code, or the module, and
            what to write instead.
        CaptureError: A cell differs, or a number is not finite.
        GraphError: Shapes do not fit one another.
        RasterError: The raster's dt is not the network's.
    """
    rasters = (raster,) if isinstance(raster, SpikeRaster) else tuple(raster)
    first = rasters[0]
    shapes = tuple(item.features for item in rasters)
    spikes = all(item.is_spikes for item in rasters)
    captured = read_network(net, shapes, first.dt, steps=first.steps, spikes=spikes)
    compare_with_module(net, captured.graph, rasters, captured.run, captured.parts)
    return captured.graph


def read_network(
    net: torch.nn.Module, shapes: Sequence[Shape], dt: float, *, steps: int | None = None, spikes: bool = True
) -> Captured:
    """Read a network by running it on a made-up input; arguments as `read_graph`, but for the shape of every input."""
    if type(net) is SequentialState and net.return_hidden:
        raise UnsupportedModuleError("(net): SequentialState with return_hidden=True; use the default")
    device = module_device(net)
    return _captured(net, trace_network(net, [_made_up(shape, device) for shape in shapes], steps), dt, spikes=spikes)


def _captured(net: torch.nn.Module, run: Run, dt: float, *, spikes: bool) -> Captured:
    shapes, device = run.recorded.shapes, module_device(net)
    outputs = _joined_outputs(run)
    parts = read_sites(net, run.sites.sites, outputs, shapes, spikes=spikes)
    if parts.dt is None:
        raise UnsupportedModuleError("(net): holds no neurons; allowed are networks with at least one neuron layer")
    if parts.dt != dt:
        raise RasterError(
            f"raster: dt is {dt!r} s, the network's neurons have {parts.dt!r} s; give the raster the network's dt"
        )
    modules = {name: site.operation.module for name, site in parts.neurons.items()}
    scales = {name: vars(module)[TRAINED_SCALE] for name, module in modules.items() if TRAINED_SCALE in vars(module)}
    try:
        graph = SpikingGraph(
            parts.nodes,
            tuple(parts.edges),
            dt,
            parameters=parts.parameters,
            device=str(device),
            scales=scales,
            readout=run.sites.readout,
        )
    except GraphError as error:
        raise CaptureError(str(error)) from error
    return Captured(graph, run, parts)


def read_graph(
    net: torch.nn.Module, features: Shape, dt: float, *, steps: int | None = None, spikes: bool = True
) -> tuple[SpikingGraph, dict[str, tuple[str, torch.nn.Module]]]:
    """Read a network without comparing anything; also return (path, module) behind every node that has one.

    Args:
        net: The network.
        features: Shape of one sample at one step.
        dt: Time step in seconds.
        steps: Number of steps, for networks whose code knows it.
        spikes: The input consists of spikes, as max pooling must know.
    """
    captured = read_network(net, [features], dt, steps=steps, spikes=spikes)
    modules: dict[str, tuple[str, torch.nn.Module]] = {}
    found = dict(net.named_modules())
    for site in captured.run.sites.sites:
        name, call = captured.parts.names.get(id(site)), site.first.call
        if name is None or call is None:
            continue
        path = captured.graph.parameters.get(name, "").rpartition(".")[0] or call.path
        module = call.module if call.module is not None else found.get(path)
        if module is not None:
            modules[name] = (path, module)
    return captured.graph, modules


def graph_of(net: torch.nn.Module, raster: SpikeRaster) -> SpikingGraph:
    """Read the network that runs on a raster, without comparing anything."""
    return read_graph(net, raster.features, raster.dt, steps=raster.steps, spikes=raster.is_spikes)[0]


def check_module(net: torch.nn.Module, features: Shape) -> list[ModuleReport]:
    """Say for every module, then for the network as a whole, whether it can be captured; find every problem.

    Args:
        net: The network.
        features: Shape of one input sample at one step; shapes behind an uncaptured module are unknown (None).
    """
    whole = type(net).__name__
    try:
        recorded = record(net, [_made_up(features, module_device(net))])
    except (UnsupportedModuleError, GraphError) as error:
        return [ModuleReport("(net)", whole, "", None, str(error))]
    reader, _ = interpret(recorded)
    failed = {id(meaning.call): meaning.message for meaning in reader.unread if meaning.call is not None}
    parts: Parts | None = None
    problem = ""
    dts = [seconds(getattr(call.module, "dt", 0.0)) for call in recorded.trace.calls if call.module is not None]
    dt = dts[0] if dts else 1.0
    try:
        captured = _captured(net, read_recorded(net, recorded), dt, spikes=True)
        parts = captured.parts
        nodes = {id(site.first.call): parts.names.get(id(site)) for site in captured.run.sites.sites}
    except (UnsupportedModuleError, CaptureError, GraphError) as error:
        problem, nodes = str(error), {}
    reports: list[ModuleReport] = []
    seen: set[str] = set()
    found = dict(net.named_modules())
    before: float | None = None
    for call in recorded.trace.calls:
        module = call.module if call.module is not None else found.get(call.path)
        leaf = module is not None and (call.module is not None or not list(module.children()))
        said = failed.get(id(call), "")
        if call.path in seen and not said:
            continue
        if not leaf and not said:
            continue
        if said and said in {report.problem for report in reports}:
            continue
        seen.add(call.path)
        assert module is not None
        try:
            check_plain_weights(module, call.path)
            if call.module is not None:
                check_neuron(module, where=call.path, dt=before)
                before = getattr(module, "dt", before)
        except UnsupportedModuleError as error:
            said = said or str(error)
        name = nodes.get(id(call))
        shape = None if parts is None or name is None else captured.graph.shapes[name]
        node = "" if said else "?" if parts is None else "-" if name is None else type(parts.nodes[name]).__name__
        reports.append(ModuleReport(call.path, type(module).__name__, node, shape, said))
    if problem and not any(report.problem for report in reports):
        reports.append(ModuleReport("(net)", whole, "", None, problem))
    return reports


def module_device(net: torch.nn.Module) -> torch.device:
    """Device of the first parameter, or the CPU."""
    first = next(net.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _made_up(shape: Shape, device: torch.device) -> torch.Tensor:
    """Return spikes of shape (5, 4, *shape), the same each time."""
    count = 20 * prod(shape)
    values = (torch.arange(count) * 2654435761 % 97 < 24).to(torch.float32)
    return values.reshape(5, 4, *shape).to(device)


def _joined_outputs(run: Run) -> list[Edge]:
    """Return the outputs that are joined: all but spikes of neurons that also lead elsewhere."""
    first, *others = run.sites.outputs
    used = {id(operand.source) for site in run.sites.sites for operand in site.operands if isinstance(operand, Edge)}
    chosen = [first]
    for edge in others:
        same = any(edge.source is known.source and edge.lag == known.lag for known in chosen)
        inside = id(edge.source) in used and edge.source.operation.kind == "neuron"
        if not same and not inside:
            chosen.append(edge)
    return chosen


def neuron_nodes(graph: SpikingGraph) -> list[str]:
    """Names of all neuron layers, in computing order."""
    return [name for name in graph.order if isinstance(graph.nodes[name], NEURON)]
