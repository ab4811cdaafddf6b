"""Norse modules with recurrence, skips and shared weights beside the graphs that mean the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from norse.torch import LIFCell, LIFParameters, LIFRecurrentCell, LIParameters
from norse.torch.module.leaky_integrator import LICell

from networks import DT
from slamp.calibrate import calibrate
from slamp.graph import SpikingGraph
from slamp.nodes import Affine, Conv2d, Delay, Flatten, Input, Linear, Neuron, Node, Output, Sum, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.read_neurons import neuron_of

LIVELY = LIFParameters(
    tau_syn_inv=torch.as_tensor(300.0), tau_mem_inv=torch.as_tensor(200.0), v_th=torch.as_tensor(0.4)
)
SLOW = LIParameters(tau_syn_inv=torch.as_tensor(300.0), tau_mem_inv=torch.as_tensor(100.0))


def weight_of(module: torch.nn.Module, name: str) -> np.ndarray:
    return frozen_array(module.get_parameter(name).detach().numpy())


def linear(module: torch.nn.Linear) -> Affine | Linear:
    weight = frozen_array(module.weight.detach().numpy())
    return Linear(weight) if module.bias is None else Affine(weight, frozen_array(module.bias.detach().numpy()))


def cell_of(module: torch.nn.Module, *shape: int) -> Neuron:
    return neuron_of(module, shape, where="cell", dt=None)


class Recurrent(torch.nn.Module):
    """Two recurrent cells and a readout: the usual recurrent network of Norse."""

    features = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.first = LIFRecurrentCell(20, 24, LIVELY, dt=DT)
        self.second = LIFRecurrentCell(24, 16, LIVELY, dt=DT)
        self.fc = torch.nn.Linear(16, 4, bias=False)
        self.out = LICell(SLOW, dt=DT)

    def forward(self, x: torch.Tensor, state: tuple[object, ...] | None = None) -> tuple[torch.Tensor, object]:
        first, second, out = state or (None, None, None)
        x, first = self.first(x, first)
        x, second = self.second(x, second)
        x, out = self.out(self.fc(x), out)
        return x, (first, second, out)

    def graph(self) -> SpikingGraph:
        nodes: dict[str, Node] = {"input": Input((20,))}
        edges: list[tuple[str, str]] = []
        parameters = {}
        before = "input"
        for name, size in (("first", 24), ("second", 16)):
            nodes[f"{name}_in"] = Linear(weight_of(self, f"{name}.input_weights"))
            nodes[f"{name}_last"] = Delay(uniform(1.0, (size,)))
            nodes[f"{name}_rec"] = Linear(weight_of(self, f"{name}.recurrent_weights"))
            nodes[name] = cell_of(self.get_submodule(name), size)
            edges += [(before, f"{name}_in"), (f"{name}_in", name), (f"{name}_rec", name)]
            edges += [(name, f"{name}_last"), (f"{name}_last", f"{name}_rec")]
            parameters |= {f"{name}_in": f"{name}.input_weights", f"{name}_rec": f"{name}.recurrent_weights"}
            before = name
        nodes |= {"fc": linear(self.fc), "out": cell_of(self.out, 4), "output": Output((4,))}
        edges += [("second", "fc"), ("fc", "out"), ("out", "output")]
        return SpikingGraph(nodes, tuple(edges), DT, parameters={**parameters, "fc": "fc.weight"})


class Skip(torch.nn.Module):
    """A residual block: what passes two layers is added to what passes one, and drives a layer of its own."""

    features = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(20, 24), torch.nn.Linear(24, 24, bias=False)
        self.around = torch.nn.Linear(24, 24)
        self.fc3 = torch.nn.Linear(24, 6)
        self.n1, self.n2, self.n3 = (LIFCell(LIVELY, dt=DT) for _ in range(3))

    def graph(self) -> SpikingGraph:
        nodes: dict[str, Node] = {
            "input": Input((20,)),
            "fc1": linear(self.fc1),
            "n1": cell_of(self.n1, 24),
            "fc2": linear(self.fc2),
            "around": linear(self.around),
            "add": Sum(),
            "n2": cell_of(self.n2, 24),
            "both": Sum(),
            "fc3": linear(self.fc3),
            "n3": cell_of(self.n3, 6),
            "output": Output((6,)),
        }
        edges = [("input", "fc1"), ("fc1", "n1"), ("n1", "fc2"), ("n1", "around"), ("fc2", "add"), ("around", "add")]
        edges += [("add", "n2"), ("n2", "both"), ("n1", "both"), ("both", "fc3"), ("fc3", "n3"), ("n3", "output")]
        names = ("fc1", "fc2", "around", "fc3")
        return SpikingGraph(nodes, tuple(edges), DT, parameters={name: f"{name}.weight" for name in names})


class Shared(torch.nn.Module):
    """One convolution applied twice, as recursive networks do."""

    features = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.fc = torch.nn.Linear(108, 5)
        self.n1, self.n2, self.n3 = (LIFCell(LIVELY, dt=DT) for _ in range(3))

    def graph(self) -> SpikingGraph:
        conv = Conv2d(weight_of(self, "conv.weight"), None, (1, 1), (1, 1), (1, 1), 1)
        nodes: dict[str, Node] = {
            "input": Input(self.features),
            "conv": conv,
            "n1": cell_of(self.n1, *self.features),
            "conv_2": conv,
            "n2": cell_of(self.n2, *self.features),
            "flat": Flatten(0, 2),
            "fc": linear(self.fc),
            "n3": cell_of(self.n3, 5),
            "output": Output((5,)),
        }
        parameters = {"conv": "conv.weight", "conv_2": "conv.weight", "fc": "fc.weight"}
        return SpikingGraph(nodes, tuple(pairwise(nodes)), DT, parameters=parameters)


Network = Recurrent | Skip | Shared


def samples(features: tuple[int, ...], *, batch: int = 12, steps: int = 30) -> SpikeRaster:
    rng = np.random.default_rng(0)
    return SpikeRaster(rng.random((steps, batch, *features)) < 0.3, DT, rng.integers(0, 4, batch))


def living(make: Callable[[], Network]) -> tuple[Network, SpikingGraph, SpikeRaster]:
    """A network of which every spiking layer fires in 3 to 35 % of its cells, its graph, and samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    raster = samples(net.features)
    parameters = net.graph().parameters
    drivers = {
        "first": ("first_in",),
        "second": ("second_in",),
        "n1": ("fc1",),
        "n2": ("fc2", "around"),
        "n3": ("fc3",),
    }
    if isinstance(net, Shared):
        drivers = {"n1": ("conv",), "n3": ("fc",)}
    for layer, weights in drivers.items():
        if layer not in net.graph().spiking:
            continue
        for _ in range(24):
            rate = float(calibrate(net.graph(), raster).neurons[layer].rate.mean())
            if 0.05 <= rate <= 0.3:
                break
            with torch.no_grad():
                for name in weights:
                    net.get_parameter(parameters[name]).mul_(1.5 if rate < 0.05 else 0.8)
    graph = net.graph()
    for name, neurons in calibrate(graph, raster).neurons.items():
        if name in graph.spiking:
            assert 0.03 <= neurons.rate.mean() <= 0.4, f"{name} fires in {neurons.rate.mean():.2%} of its cells"
    return net, graph, raster
