"""The zoo: small Norse networks, samples that make them fire, and a task they can learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from norse.torch import (
    IAFCell,
    IAFParameters,
    LIBoxCell,
    LIBoxParameters,
    LICell,
    LIFBoxCell,
    LIFBoxParameters,
    LIFCell,
    LIFParameters,
    LIFRefracCell,
    LIParameters,
    LSNNCell,
    SequentialState,
)
from norse.torch.functional.reset import reset_subtract, reset_value

from slamp.graph import SpikingGraph
from slamp.nodes import SPIKING
from slamp.raster import SpikeRaster
from slamp.simulate import Recording

DT = 1e-3
LOWEST, HIGHEST = 0.005, 0.5  # share of cells a spiking layer must fill to be evidence
SPIKING_CELLS = (IAFCell, LIFBoxCell, LIFCell, LIFRefracCell, LSNNCell)
WEIGHTED_MODULES = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
NORMALIZATIONS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


def box(*, subtract: bool = False, dt: float = DT, **values: Any) -> LIFBoxCell:
    known = {"tau_mem_inv": 200.0, "v_th": 0.4, "alpha": 2.0} | values
    method = known.pop("method", "tanh")
    tensors = {name: torch.as_tensor(value) for name, value in known.items()}
    reset = reset_subtract if subtract else reset_value
    return LIFBoxCell(LIFBoxParameters(**tensors, method=method, reset_method=reset), dt=dt)


def cuba(*, dt: float = DT, **values: Any) -> LIFCell:
    known = {"tau_syn_inv": 300.0, "tau_mem_inv": 200.0, "v_th": 0.4, "alpha": 2.0} | values
    method = known.pop("method", "tanh")
    return LIFCell(
        LIFParameters(**{name: torch.as_tensor(value) for name, value in known.items()}, method=method), dt=dt
    )


def iaf(*, dt: float = DT, **values: Any) -> IAFCell:
    known = {"v_th": 1.0, "v_reset": 0.0} | values
    return IAFCell(IAFParameters(**{name: torch.as_tensor(value) for name, value in known.items()}), dt=dt)


def li(**values: Any) -> LICell:
    known = {"tau_syn_inv": 300.0, "tau_mem_inv": 100.0} | values
    return LICell(LIParameters(**{name: torch.as_tensor(value) for name, value in known.items()}), dt=DT)


def li_box(**values: Any) -> LIBoxCell:
    known = {"tau_mem_inv": 100.0} | values
    return LIBoxCell(LIBoxParameters(**{name: torch.as_tensor(value) for name, value in known.items()}), dt=DT)


def spikes(
    features: tuple[int, ...], *, steps: int = 20, batch: int = 4, rate: float = 0.3, seed: int = 0
) -> SpikeRaster:
    """Random spikes, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    return SpikeRaster(rng.random((steps, batch, *features)) < rate, DT, rng.integers(0, 3, batch))


def analog(features: tuple[int, ...], *, steps: int = 20, batch: int = 4, seed: int = 0) -> SpikeRaster:
    """Random analog values, half of them zero."""
    rng = np.random.default_rng(seed)
    values = rng.random((steps, batch, *features)) * (rng.random((steps, batch, *features)) < 0.5)
    return SpikeRaster(values.astype(np.float32), DT, kind="analog")


def run_norse(net: torch.nn.Module, raster: SpikeRaster) -> torch.Tensor:
    """The network's output over time by plain Norse, (time, batch, *features)."""
    net.eval()
    state, outputs = None, []
    with torch.no_grad():
        for step in raster.data:
            output, state = net(step.to(torch.float32), state)
            outputs.append(output)
    return torch.stack(outputs)


def norse_rates(net: torch.nn.Module, raster: SpikeRaster) -> dict[str, float]:
    """Share of cells that spike, by path of the neuron module, measured by plain Norse."""
    found: dict[str, list[float]] = {}

    def watch(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.setdefault(path, []).append(float(output[0].mean()))

    handles = [
        module.register_forward_hook(watch(path))
        for path, module in net.named_modules()
        if type(module) in SPIKING_CELLS
    ]
    run_norse(net, raster)
    for handle in handles:
        handle.remove()
    return {path: float(np.mean(values)) for path, values in found.items()}


def enliven(net: SequentialState, raster: SpikeRaster, *, low: float = 0.03, high: float = 0.35) -> bool:
    """Scale weights layer by layer until every spiking layer fires in ``low`` to ``high`` of its cells."""
    scaled: torch.nn.Module | None = None
    for path, module in net.named_modules():
        if isinstance(module, WEIGHTED_MODULES) or (isinstance(module, NORMALIZATIONS) and module.affine):
            scaled = module
        if type(module) not in SPIKING_CELLS or scaled is None:
            continue
        for attempt in range(24):
            rate = norse_rates(net, raster)[path]
            if low <= rate <= high:
                break
            factor = 1.6 if rate < low else 0.7
            with torch.no_grad():
                scaled.weight.mul_(-factor if attempt == 10 and rate == 0 else factor)
                if scaled.bias is not None:
                    scaled.bias.mul_(factor)
        else:
            return False
    return True


def spiking_shares(graph: SpikingGraph, recording: Recording) -> dict[str, float]:
    """Share of cells that spike, by spiking node."""
    return {
        name: float(trace.spikes.to(torch.float32).mean())
        for name, trace in recording.traces.items()
        if isinstance(graph.nodes[name], SPIKING) and trace.spikes is not None
    }


def assert_evidence(graph: SpikingGraph, recording: Recording) -> None:
    """A layer that is silent, or always on, proves nothing."""
    shares = spiking_shares(graph, recording)
    assert set(shares) == set(graph.spiking)
    for name, share in shares.items():
        assert LOWEST <= share <= HIGHEST, f"{name} fires in {share:.2%} of its cells"


def randomize_normalizations(net: torch.nn.Module, rng: np.random.Generator) -> None:
    """Give every batch normalization statistics and parameters as training leaves them."""
    for module in net.modules():
        if not isinstance(module, NORMALIZATIONS):
            continue
        channels = module.num_features
        with torch.no_grad():
            module.running_mean.copy_(torch.as_tensor(rng.normal(0, 0.3, channels)))
            module.running_var.copy_(torch.as_tensor(rng.uniform(0.2, 2.0, channels)))
            if module.affine:
                module.weight.copy_(torch.as_tensor(rng.uniform(0.5, 1.5, channels)))
                module.bias.copy_(torch.as_tensor(rng.normal(0, 0.2, channels)))


@dataclass(frozen=True)
class Entry:
    """How to build a network of the zoo and the features it takes."""

    build: Callable[[], SequentialState]
    features: tuple[int, ...]


def dense_box() -> SequentialState:
    return SequentialState(
        torch.nn.Linear(16, 24),
        box(),
        torch.nn.Linear(24, 20, bias=False),
        box(subtract=True),
        torch.nn.Linear(20, 5),
        box(),
    )


def dense_cuba() -> SequentialState:
    return SequentialState(
        torch.nn.Linear(16, 24),
        cuba(v_leak=0.05, v_reset=-0.1),
        torch.nn.Linear(24, 20),
        cuba(),
        torch.nn.Linear(20, 5),
        li(),
    )


def dense_if() -> SequentialState:
    return SequentialState(
        torch.nn.Linear(16, 24), iaf(v_reset=-0.2), torch.nn.Linear(24, 5), iaf(), torch.nn.Identity()
    )


def conv_box() -> SequentialState:
    return SequentialState(
        torch.nn.Conv2d(2, 6, 3, stride=2, padding=1),
        box(),
        torch.nn.Conv2d(6, 8, 3, padding=1, bias=False),
        box(v_leak=0.05),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 12),
        cuba(),
        torch.nn.Linear(12, 4),
        li_box(),
    )


def conv_pool_norm() -> SequentialState:
    return SequentialState(
        SequentialState(torch.nn.Conv2d(2, 6, 3, padding="same"), torch.nn.BatchNorm2d(6), box()),
        torch.nn.LPPool2d(1, 2),
        torch.nn.Conv2d(6, 6, (2, 3), groups=2),
        torch.nn.Dropout(0.3),
        cuba(),
        torch.nn.AvgPool2d(2, stride=1),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 2, 10),
        torch.nn.BatchNorm1d(10),
        iaf(),
        torch.nn.Linear(10, 4, bias=False),
        box(),
    )


def conv_1d() -> SequentialState:
    return SequentialState(
        torch.nn.Conv1d(3, 6, 3, dilation=2, padding=1, groups=3),
        box(),
        torch.nn.Conv1d(6, 4, 2, stride=2),
        cuba(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 5, 5),
        box(),
    )


ZOO: dict[str, Entry] = {
    "dense_box": Entry(dense_box, (16,)),
    "dense_cuba": Entry(dense_cuba, (16,)),
    "dense_if": Entry(dense_if, (16,)),
    "conv_box": Entry(conv_box, (2, 8, 8)),
    "conv_pool_norm": Entry(conv_pool_norm, (2, 8, 8)),
    "conv_1d": Entry(conv_1d, (3, 12)),
}


def build(name: str, *, seed: int = 0, steps: int = 20, batch: int = 4) -> tuple[SequentialState, SpikeRaster]:
    """A living network of the zoo and samples on which every spiking layer fires."""
    entry = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = entry.build()
    raster = spikes(entry.features, steps=steps, batch=batch, seed=seed)
    randomize_normalizations(net, np.random.default_rng(seed))
    assert enliven(net, raster), name
    net.train()
    return net, raster


def patterns(*, batch: int = 96, steps: int = 10, features: int = 24, classes: int = 3, seed: int = 0) -> SpikeRaster:
    """A task: each class has its own firing rates over the inputs."""
    profiles = np.random.default_rng(1234).random((classes, features)) ** 2
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, batch)
    return SpikeRaster(rng.random((steps, batch, features)) < 0.7 * profiles[labels], DT, labels)


def pattern_net(*, seed: int = 0, dropout: bool = False) -> SequentialState:
    """A network for `patterns`; untrained, but it fires."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SequentialState(
            torch.nn.Linear(24, 40),
            box(),
            *([torch.nn.Dropout(0.2)] if dropout else []),
            torch.nn.Linear(40, 30),
            box(),
            torch.nn.Linear(30, 3),
            box(),
        )
    assert enliven(net, patterns(batch=16), low=0.08, high=0.3)
    net.train()
    return net


def pattern_loss(net: torch.nn.Module, raster: SpikeRaster, chosen: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the spike counts."""
    state, total = None, torch.zeros(())
    for step in raster.data[:, chosen]:
        output, state = net(step.to(torch.float32), state)
        total = total + output
    assert raster.labels is not None
    return torch.nn.functional.cross_entropy(total, raster.labels[chosen])
