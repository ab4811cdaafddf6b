"""`capture`: from a Norse module to a spiking graph that is proven to spike like it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import torch
from norse.torch import SequentialState

from slamp.arithmetic import TRAINED_SCALE
from slamp.capture_check import compare_with_module
from slamp.errors import CaptureError, GraphError, RasterError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.neuron_calls import is_neuron
from slamp.nodes import NEURON, Shape
from slamp.raster import SpikeRaster, join, seconds
from slamp.read_modules import check_plain_weights
from slamp.read_neurons import DETERMINISTIC_SPIKE_METHODS, check_neuron
from slamp.read_sites import Parts, read_sites
from slamp.running import Recorded, Run, joined_outputs, read_recorded, record, trace_network
from slamp.sites import Site


@dataclass(frozen=True)
class ModuleReport:
    """What becomes of one module. ``node`` is the node type, "-" if it vanishes.

    ``problem`` is empty if it works; else one line for each thing that does not.
    """

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
        raster: Samples of shape (time, batch, *features); for a network of several inputs one raster each, or all
            joined (`slamp.join`): the graph has one input, which holds them flattened and side by side. Several outputs
            are joined likewise, but for the spikes of neurons that also lead elsewhere: those are recorded under the
            neurons' names. What else is returned behind the first output and is no value of every step (states,
            statistics) is no part of the graph.

    Raises:
        UnsupportedModuleError: The network cannot be captured; the message names the line of code, or the module, and
            what to write instead.
        CaptureError: A cell differs, or a number is not finite.
        GraphError: Shapes do not fit one another.
        RasterError: The raster's dt is not the network's.
    """
    whole = raster if isinstance(raster, SpikeRaster) else join(tuple(raster))
    captured = network_of(net, whole)
    compare_with_module(net, captured.graph, whole.inputs, captured.run, captured.parts)
    return captured.graph


def read_network(
    net: torch.nn.Module, shapes: Sequence[Shape], dt: float, *, steps: int | None = None, spikes: bool = True
) -> Captured:
    """Read a network by running it on a made-up input; arguments as `read_graph`, but for the shape of every input."""
    _check_container(net)
    device = module_device(net)
    return _captured(net, trace_network(net, [_made_up(shape, device) for shape in shapes], steps), dt, spikes=spikes)


def _captured(net: torch.nn.Module, run: Run, dt: float, *, spikes: bool) -> Captured:
    shapes, device = run.recorded.shapes, module_device(net)
    outputs = joined_outputs(run)
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
    return _with_modules(net, read_network(net, [features], dt, steps=steps, spikes=spikes))


def graph_and_modules(
    net: torch.nn.Module, raster: SpikeRaster
) -> tuple[SpikingGraph, dict[str, tuple[str, torch.nn.Module]]]:
    """As `read_graph`, for the network that runs on a raster."""
    return _with_modules(net, network_of(net, raster))


def _with_modules(
    net: torch.nn.Module, captured: Captured
) -> tuple[SpikingGraph, dict[str, tuple[str, torch.nn.Module]]]:
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
    return network_of(net, raster).graph


def network_of(net: torch.nn.Module, raster: SpikeRaster) -> Captured:
    """As `graph_of`, with how the network was read."""
    shapes = [item.features for item in raster.inputs]
    return read_network(net, shapes, raster.dt, steps=raster.steps, spikes=raster.is_spikes)


def check_module(net: torch.nn.Module, features: Shape | Sequence[Shape]) -> list[ModuleReport]:
    """Say for every module, then for the network as a whole, whether it can be captured; find every problem.

    Args:
        net: The network.
        features: Shape of one input sample at one step; one shape per input where there are several.

    Returns:
        The modules that hold no others, in the order they are run, and those whose own code has a problem; last, if it
        is none of theirs, what is wrong with the network as a whole.
    """
    found = _own_problems(net)
    runs = _made_to_run(net) if found else net
    paths = {module: name or "(net)" for name, module in runs.named_modules()}

    def locate(module: torch.nn.Module, where: str) -> None:
        """Take every module; add to its problem the line of code that runs it."""
        path = paths[module]
        if path in found and not found[path].startswith(where):
            found[path] = f"{where}{found[path].removeprefix(path)}"

    reports: list[ModuleReport] = []
    try:
        _check_container(net)
        recorded = record(runs, [_made_up(shape, module_device(net)) for shape in _each(features)], check=locate)
    except (UnsupportedModuleError, GraphError) as error:
        for module, path in paths.items():
            if path in found or (found and _is_leaf(module)):
                node = "" if path in found else "?"
                reports.append(ModuleReport(path, type(module).__name__, node, None, found.get(path, "")))
        if not any(f"{path}: " in str(error) for path in found):
            reports.append(ModuleReport("(net)", type(net).__name__, "", None, str(error)))
        return reports
    nodes: dict[str, list[str]] = {}
    shapes: dict[str, Shape] = {}
    problem = ""
    try:
        with suppress(UnsupportedModuleError):  # what stands for the unread may not fit; then the first problem alone
            _read_leniently(runs, recorded, found, nodes, shapes)
        if not found:
            _captured(net, read_recorded(net, recorded), _dt_of(recorded), spikes=True)
    except (UnsupportedModuleError, CaptureError, GraphError) as error:
        problem = str(error)
    unknown = ["?"] if problem and not nodes else ["-"]
    listed = {module: path for path, module in recorded.trace.entered.items() if path in found or _is_leaf(module)}
    for module, path in {**listed, **{module: path for module, path in paths.items() if path in found}}.items():
        said = found.get(path, "")
        node = "" if said else " + ".join(nodes.get(path, unknown))
        reports.append(ModuleReport(path, type(module).__name__, node, None if said else shapes.get(path), said))
    if problem and not found:
        reports.append(ModuleReport("(net)", type(net).__name__, "", None, problem))
    return reports


def _each(features: Shape | Sequence[Shape]) -> list[Shape]:
    shapes = [tuple(shape) for shape in features if not isinstance(shape, int)]
    return shapes or [tuple(size for size in features if isinstance(size, int))]


def _check_container(net: torch.nn.Module) -> None:
    if type(net) is SequentialState and net.return_hidden:
        raise UnsupportedModuleError("(net): SequentialState with return_hidden=True; use the default")


def _made_to_run(net: torch.nn.Module) -> torch.nn.Module:
    """Return a copy in float32 with spike methods that run, to look for problems behind those; or the network."""
    try:
        made = copy.deepcopy(net).float()
    except (RuntimeError, NotImplementedError):  # weights that are computed, or that are nowhere
        return net
    for module in made.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and tensor.is_meta:
                module.to_empty(device=module_device(net), recurse=False)
                break
        p = getattr(module, "p", None)
        if is_neuron(module) and getattr(p, "method", "") not in ("", *DETERMINISTIC_SPIKE_METHODS):
            module.p = p._replace(method="super")  # type: ignore[union-attr]  # a NamedTuple of neuron parameters
    return made


def _is_leaf(module: torch.nn.Module) -> bool:
    return is_neuron(module) or not any(True for _ in module.children())


def _own_problems(net: torch.nn.Module) -> dict[str, str]:
    """Return what is wrong with modules whatever runs before them, by path."""
    found: dict[str, str] = {}
    for name, module in net.named_modules():
        path = name or "(net)"
        try:
            check_plain_weights(module, path)
            if is_neuron(module):
                check_neuron(module, where=path, dt=None)
        except UnsupportedModuleError as error:
            found.setdefault(path, str(error))
    return found


def _read_leniently(
    net: torch.nn.Module,
    recorded: Recorded,
    found: dict[str, str],
    nodes: dict[str, list[str]],
    shapes: dict[str, Shape],
) -> None:
    """Find the nodes and shapes of modules, and more problems, all by path."""
    run = read_recorded(net, recorded, lenient=True)
    problems: list[tuple[Site, str]] = []
    parts = read_sites(net, run.sites.sites, joined_outputs(run), recorded.shapes, spikes=True, problems=problems)
    said: dict[str, list[str]] = {}
    for unread in run.reader.unread:
        if unread.call is not None and unread.message not in said.setdefault(unread.call.path, []):
            said[unread.call.path].append(unread.message)
    for site, problem in problems:
        path = "(net)" if site.first.call is None else site.first.call.path
        found.setdefault(path, "\n".join(said.get(path, [problem])))
    for site in run.sites.sites:
        name, call = parts.names.get(id(site)), site.first.call
        if call is not None and name in parts.nodes:
            nodes.setdefault(call.path, []).append(type(parts.nodes[name]).__name__)
            shapes[call.path] = site.shape


def _dt_of(recorded: Recorded) -> float:
    found = [seconds(getattr(call.module, "dt", 0.0)) for call in recorded.trace.calls if call.module is not None]
    return found[0] if found else 1.0


def module_device(net: torch.nn.Module) -> torch.device:
    """Device of the first parameter that has values, or the CPU."""
    first = next((parameter for parameter in net.parameters() if not parameter.is_meta), None)
    return torch.device("cpu") if first is None else first.device


def _made_up(shape: Shape, device: torch.device) -> torch.Tensor:
    """Return spikes of shape (5, 4, *shape), the same each time."""
    count = 20 * prod(shape)
    values = (torch.arange(count) * 2654435761 % 97 < 24).to(torch.float32)
    return values.reshape(5, 4, *shape).to(device)


def neuron_nodes(graph: SpikingGraph) -> list[str]:
    """Names of all neuron layers, in computing order."""
    return [name for name in graph.order if isinstance(graph.nodes[name], NEURON)]
