"""`capture`: from a Norse module to a spiking graph that is proven to spike like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from norse.torch import SequentialState
from norse.torch.module.snn import SNNCell

from slamp.arithmetic import TRAINED_SCALE
from slamp.dynamics import exact_float32
from slamp.errors import CaptureError, GraphError, RasterError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, WEIGHTED, Input, Node, Output, Shape
from slamp.raster import SpikeRaster, seconds
from slamp.read_modules import READERS, check_options, read_module
from slamp.shapes import output_shape
from slamp.simulate import stream

CONTAINERS = (SequentialState, torch.nn.Sequential)


@dataclass(frozen=True)
class ModuleReport:
    """What becomes of one module. ``node`` is the node type, "-" if it vanishes; ``problem`` is empty if it works."""

    path: str
    module: str
    node: str
    shape: Shape | None
    problem: str = ""


def capture(net: torch.nn.Module, raster: SpikeRaster) -> SpikingGraph:
    """Read a Norse network into a graph and prove, on ``raster``, that both compute the same.

    The network is a `norse.torch.SequentialState`, nested as you like, of the modules in `slamp.read_modules`. It is
    run step by step in evaluation mode beside the graph, and the output of every neuron layer is compared, cell for
    cell. The network, its training mode and the random generators are left as they were.

    Args:
        net: The network; its device becomes the graph's.
        raster: Samples of shape (time, batch, *features).

    Raises:
        UnsupportedModuleError: A module cannot be captured; the message names it and what to write instead.
        CaptureError: A cell differs, or a number is not finite.
        GraphError: Shapes do not fit one another.
        RasterError: The raster's dt is not the network's.
    """
    graph, paths = read_graph(net, raster.features, raster.dt)
    _compare(net, graph, raster, paths)
    return graph


def check_module(net: torch.nn.Module, features: Shape) -> list[ModuleReport]:
    """Say for every module, then for the network as a whole, whether it can be captured; find every problem.

    Args:
        net: The network.
        features: Shape of one input sample at one step; shapes after an uncaptured module are unknown (None).
    """
    if type(net) is not SequentialState:
        return [ModuleReport("(net)", type(net).__name__, "", None, str(_wrong_container(net)))]
    if problem := _container_problem(net):
        return [ModuleReport("(net)", type(net).__name__, "", None, f"(net): {problem}")]
    reports: list[ModuleReport] = []
    shape: Shape | None = features
    dt: float | None = None
    for path, module in leaves(net):
        kind = type(module).__name__
        try:
            _check_container(path, module)
            if shape is None and type(module) in READERS:
                check_options(module, where=path, dt=dt)
                reports.append(ModuleReport(path, kind, "?", None))
                dt = getattr(module, "dt", dt)
                continue
            node = read_module(module, shape or (), where=path, dt=dt)
            shape = shape if node is None else output_shape(path, node, shape or ())
        except (UnsupportedModuleError, GraphError) as error:
            shape = None
            reports.append(ModuleReport(path, kind, "", None, str(error)))
            continue
        dt = getattr(module, "dt", dt)
        reports.append(ModuleReport(path, kind, "-" if node is None else type(node).__name__, shape))
    if not any(report.problem for report in reports):
        try:
            read_graph(net, features, 1.0 if dt is None else float(dt))
        except (UnsupportedModuleError, CaptureError, GraphError) as error:
            reports.append(ModuleReport("(net)", type(net).__name__, "", None, str(error)))
    return reports


def read_graph(
    net: torch.nn.Module, features: Shape, dt: float
) -> tuple[SpikingGraph, dict[str, tuple[str, torch.nn.Module]]]:
    """Read the modules without running them; also return (path, module) behind every node."""
    if type(net) is not SequentialState:
        raise _wrong_container(net)
    _check_container("(net)", net)
    nodes: dict[str, Node] = {"input": Input(features)}
    modules: dict[str, tuple[str, torch.nn.Module]] = {}
    parameters: dict[str, str] = {}
    shape, neuron_dt = features, None
    for path, module in leaves(net):
        _check_container(path, module)
        node = read_module(module, shape, where=path, dt=neuron_dt)
        if node is None:
            continue
        if isinstance(node, WEIGHTED):
            if any(module is other for _, other in modules.values()):
                kind = type(module).__name__
                raise UnsupportedModuleError(f"{path}: {kind} is used twice; give each use its own module")
            for other_path, other in modules.values():
                if getattr(other, "weight", None) is module.weight:
                    raise UnsupportedModuleError(
                        f"{path}: shares its weight with {other_path}; give each a weight of its own"
                    )
            parameters[node_name(path)] = f"{path}.weight"
        if isinstance(node, NEURON):
            neuron_dt = seconds(module.dt)
        shape = output_shape(path, node, shape)
        if node_name(path) in nodes:
            raise UnsupportedModuleError(f"{path}: another module is named {node_name(path)!r} too; rename one of them")
        nodes[node_name(path)] = node
        modules[node_name(path)] = (path, module)
    if neuron_dt is None:
        raise UnsupportedModuleError("(net): holds no neurons; allowed are networks with at least one neuron layer")
    if neuron_dt != dt:
        raise RasterError(
            f"raster: dt is {dt!r} s, the network's neurons have {neuron_dt!r} s; give the raster the network's dt"
        )
    nodes["output"] = Output(shape)
    names = list(nodes)
    edges = tuple(pairwise(names))
    try:
        scales = {
            name: vars(module)[TRAINED_SCALE] for name, (_, module) in modules.items() if TRAINED_SCALE in vars(module)
        }
        graph = SpikingGraph(nodes, edges, dt, parameters=parameters, device=str(module_device(net)), scales=scales)
    except GraphError as error:
        raise CaptureError(str(error)) from error
    return graph, modules


def node_name(path: str) -> str:
    """Return the node name of a module path (NIR and HDF5 give dots and slashes a meaning)."""
    return path.replace(".", "_")


def module_device(net: torch.nn.Module) -> torch.device:
    """Device of the first parameter, or the CPU."""
    first = next(net.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluation_mode(net: torch.nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode and leave it, module by module, as it was found."""
    training = {module: module.training for module in net.modules()}
    # IAFCell marks its own v_reset tensor as requiring gradients when it makes a state (norse 1.1.0).
    tensors = [
        value
        for module in net.modules()
        if isinstance(getattr(module, "p", None), tuple)
        for value in module.p  # type: ignore[union-attr]  # a NamedTuple of neuron parameters
        if isinstance(value, torch.Tensor) and value.is_leaf
    ]
    gradients = [tensor.requires_grad for tensor in tensors]
    net.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for tensor, mode in zip(tensors, gradients, strict=True):
            tensor.requires_grad_(mode)


def leaves(container: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield (path, module) of every module that is no container, in the order the network calls them."""
    for name, module in container._modules.items():
        assert module is not None
        path = f"{prefix}{name}"
        if type(module) in CONTAINERS and not _container_problem(module):
            yield from leaves(module, f"{path}.")
        else:
            yield path, module


def _container_problem(module: torch.nn.Module) -> str:
    """Say why a container cannot be captured, or nothing."""
    if type(module) is SequentialState and module.return_hidden:
        return "SequentialState with return_hidden=True; use the default"
    if type(module) is torch.nn.Sequential:
        for child in module.children():
            if isinstance(child, SNNCell) or type(child) is SequentialState:
                return (
                    f"{type(child).__name__} inside torch.nn.Sequential, which carries no neuron state; "
                    "use norse.torch.SequentialState in its place"
                )
    return ""


def _check_container(path: str, module: torch.nn.Module) -> None:
    if problem := _container_problem(module):
        raise UnsupportedModuleError(f"{path}: {problem}")


def _wrong_container(net: torch.nn.Module) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"(net): {type(net).__name__} is not captured; allowed is norse.torch.SequentialState; "
        "write the layers of one time step as SequentialState(...) and loop over time outside"
    )


def _compare(
    net: torch.nn.Module, graph: SpikingGraph, raster: SpikeRaster, modules: dict[str, tuple[str, torch.nn.Module]]
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def keep(names: list[str]) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            name = next(name for name in names if name not in seen)
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    # A neuron module that is used several times is called in the order of its nodes.
    watched: dict[torch.nn.Module, list[str]] = {}
    for name, (_, module) in modules.items():
        if isinstance(graph.nodes[name], NEURON):
            watched.setdefault(module, []).append(name)
    handles = [module.register_forward_hook(keep(names)) for module, names in watched.items()]
    state = None
    try:
        with evaluation_mode(net):
            for step in stream(graph, raster):
                seen.clear()
                with exact_float32():
                    x = raster.data[step.t].to(device=graph.device, dtype=torch.float32)
                    seen[graph.output], state = net(x, state)
                for name, found in seen.items():
                    _check_cells(name, found, step.values[name], step.t, graph, step.v.get(name))
    finally:
        for handle in handles:
            handle.remove()


def _check_cells(
    name: str, found: torch.Tensor, expected: torch.Tensor, t: int, graph: SpikingGraph, v: torch.Tensor | None
) -> None:
    if found.shape != expected.shape:
        raise CaptureError(f"{name}: the module gives shape {tuple(found.shape)}, the graph {tuple(expected.shape)}")
    differing = found != expected
    if not bool(differing.any()):
        return
    sample, *neuron = (int(index) for index in differing.nonzero()[0])
    if not bool(torch.isfinite(found).all()):
        raise CaptureError(
            f"{name}: step {t}, sample {sample}, neuron {neuron}: the module gives "
            f"{found[(sample, *neuron)].item():g}; its numbers overflow float32, so scale its weights or input down"
        )
    membrane = "" if v is None else f", membrane {v[(sample, *neuron)].item():.9g}"
    raise CaptureError(
        f"{name}: step {t}, sample {sample}, neuron {neuron}: the module gives {found[(sample, *neuron)].item():.9g}, "
        f"the graph {expected[(sample, *neuron)].item():.9g}{membrane}; "
        f"{int(differing.sum())} cells of this step differ; "
        f"this is a defect of slamp unless a hook or subclass changes the module ({type(graph.nodes[name]).__name__})"
    )
