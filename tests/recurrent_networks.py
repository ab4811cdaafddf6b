"""Norse modules with recurrence, skips and shared weights, and samples on which they fire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from norse.torch import LIFRecurrentCell

from networks import DT, cuba, li
from slamp.calibrate import calibrate
from slamp.capture import capture, graph_of
from slamp.graph import SpikingGraph
from slamp.raster import SpikeRaster

States = tuple[Any, ...]


class Recurrent(torch.nn.Module):
    """Two recurrent cells and a readout: the usual recurrent network of Norse."""

    features = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.first = LIFRecurrentCell(20, 24, cuba().p, dt=DT)
        self.second = LIFRecurrentCell(24, 16, cuba().p, dt=DT)
        self.fc = torch.nn.Linear(16, 4, bias=False)
        self.out = li()

    def forward(self, x: torch.Tensor, state: States | None = None) -> tuple[torch.Tensor, States]:
        first, second, out = state or (None, None, None)
        x, first = self.first(x, first)
        x, second = self.second(x, second)
        x, out = self.out(self.fc(x), out)
        return x, (first, second, out)


class Skip(torch.nn.Module):
    """A residual block: two layers drive the second neurons, whose spikes are added to those of the first."""

    features = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(20, 24), torch.nn.Linear(24, 24, bias=False)
        self.around = torch.nn.Linear(24, 24)
        self.fc3 = torch.nn.Linear(24, 6)
        self.n1, self.n2, self.n3 = cuba(), cuba(), cuba()

    def forward(self, x: torch.Tensor, state: States | None = None) -> tuple[torch.Tensor, States]:
        s1, s2, s3 = state or (None, None, None)
        x, s1 = self.n1(self.fc1(x), s1)
        y, s2 = self.n2(self.fc2(x) + self.around(x), s2)
        z, s3 = self.n3(self.fc3(y + x), s3)
        return z, (s1, s2, s3)


class Shared(torch.nn.Module):
    """One convolution applied twice, as recursive networks do."""

    features = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.fc = torch.nn.Linear(108, 5)
        self.n1, self.n2, self.n3 = cuba(), cuba(), cuba()

    def forward(self, x: torch.Tensor, state: States | None = None) -> tuple[torch.Tensor, States]:
        s1, s2, s3 = state or (None, None, None)
        x, s1 = self.n1(self.conv(x), s1)
        x, s2 = self.n2(self.conv(x), s2)
        z, s3 = self.n3(self.fc(x.flatten(1)), s3)
        return z, (s1, s2, s3)


class Heads(torch.nn.Module):
    """Two readouts at different depths, and a layer that reads the sum of two others without neurons between."""

    features = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(20, 24)
        self.one, self.other = torch.nn.Linear(24, 12), torch.nn.Linear(24, 12)
        self.mix = torch.nn.Linear(12, 16)
        self.late, self.early = torch.nn.Linear(16, 3), torch.nn.Linear(24, 2)
        self.n1, self.n2, self.out1, self.out2 = cuba(), cuba(), li(), li()

    def forward(self, x: torch.Tensor, state: States | None = None) -> tuple[torch.Tensor, States]:
        s1, s2, s3, s4 = state or (None,) * 4
        x, s1 = self.n1(self.fc1(x), s1)
        y, s2 = self.n2(self.mix(self.one(x) + self.other(x)), s2)
        p, s3 = self.out1(self.late(y), s3)
        q, s4 = self.out2(self.early(x), s4)
        return torch.cat([p, q], 1), (s1, s2, s3, s4)


# Parameters that bring a layer to life, layer after layer.
DRIVERS = {
    Recurrent: {"first": ("first.input_weights",), "second": ("second.input_weights",)},
    Skip: {"n1": ("fc1.weight",), "n2": ("fc2.weight", "around.weight"), "n3": ("fc3.weight",)},
    Shared: {"n1": ("conv.weight",), "n3": ("fc.weight",)},
    Heads: {"n1": ("fc1.weight",), "n2": ("mix.weight",)},
}


def samples(features: tuple[int, ...], *, batch: int = 12, steps: int = 30, seed: int = 0) -> SpikeRaster:
    rng = np.random.default_rng(seed)
    return SpikeRaster(rng.random((steps, batch, *features)) < 0.3, DT, rng.integers(0, 4, batch))


def rates(net: torch.nn.Module, raster: SpikeRaster) -> dict[str, float]:
    """Share of cells that spike, by spiking layer."""
    graph = graph_of(net, raster)
    found = calibrate(graph, raster, fold=False).neurons
    return {name: float(found[name].rate.mean()) for name in graph.spiking}


def living(make: Callable[[], torch.nn.Module]) -> tuple[torch.nn.Module, SpikingGraph, SpikeRaster]:
    """A network of which every spiking layer fires in 3 to 35 % of its cells, its graph, and samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
        if isinstance(net, Recurrent):
            with torch.no_grad():
                net.first.recurrent_weights.mul_(0.4)
                net.second.recurrent_weights.mul_(0.4)
    raster = samples(net.features)
    for layer, weights in DRIVERS[type(net)].items():
        for _ in range(24):
            rate = rates(net, raster)[layer]
            if 0.05 <= rate <= 0.25:
                break
            with torch.no_grad():
                for name in weights:
                    net.get_parameter(name).mul_(1.5 if rate < 0.05 else 0.8)
    for name, rate in rates(net, raster).items():
        assert 0.03 <= rate <= 0.35, f"{name} fires in {rate:.2%} of its cells"
    return net, capture(net, raster), raster
