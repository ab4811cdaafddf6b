"""Small Norse networks for the NIR tests, captured, with weights scaled until every spiking layer fires."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replaced

import numpy as np
import torch
from norse.torch import (
    IAFCell,
    IAFParameters,
    LIBoxCell,
    LICell,
    LIFBoxCell,
    LIFBoxParameters,
    LIFCell,
    LIFParameters,
    SequentialState,
)
from norse.torch.functional.reset import reset_subtract

from slamp.capture import capture
from slamp.graph import SpikingGraph
from slamp.nodes import WEIGHTED
from slamp.raster import SpikeRaster
from slamp.simulate import simulate

STEPS, BATCH = 30, 3
DT = 1e-3


@dataclass(frozen=True)
class Network:
    """How to build a network and the features it takes."""

    build: Callable[[], SequentialState]
    features: tuple[int, ...]


def box(**values: object) -> LIFBoxCell:
    known = {"tau_mem_inv": torch.tensor(120.0), "v_th": torch.tensor(0.4)}
    return LIFBoxCell(
        LIFBoxParameters(
            **{**known, **{k: torch.as_tensor(v) for k, v in values.items() if k != "reset_method"}},
            **{k: v for k, v in values.items() if k == "reset_method"},
        ),
        dt=DT,
    )


def cuba(**values: object) -> LIFCell:
    known = {"tau_syn_inv": torch.tensor(210.0), "tau_mem_inv": torch.tensor(130.0), "v_th": torch.tensor(0.5)}
    return LIFCell(LIFParameters(**{**known, **{k: torch.as_tensor(v) for k, v in values.items()}}), dt=DT)


def iaf(**values: object) -> IAFCell:
    return IAFCell(IAFParameters(**{k: torch.as_tensor(v) for k, v in values.items()}), dt=DT)


def spread(low: float, high: float, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return low + (high - low) * torch.rand(shape, generator=generator)


NETWORKS: dict[str, Network] = {
    "lif": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30), box(), torch.nn.Linear(30, 25, bias=False), box(), torch.nn.Linear(25, 10), box()
        ),
        (20,),
    ),
    "if": Network(
        lambda: SequentialState(torch.nn.Linear(20, 30), iaf(), torch.nn.Linear(30, 10, bias=False), iaf()), (20,)
    ),
    "if_reset": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30), iaf(v_th=0.7, v_reset=-0.3), torch.nn.Linear(30, 10), iaf(v_th=0.7, v_reset=-0.3)
        ),
        (20,),
    ),
    "cuba": Network(lambda: SequentialState(torch.nn.Linear(20, 30), cuba(), torch.nn.Linear(30, 10), cuba()), (20,)),
    "lif_leak_reset": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30),
            box(v_leak=0.1, v_reset=-0.2),
            torch.nn.Linear(30, 10),
            box(v_leak=0.1, v_reset=-0.2),
        ),
        (20,),
    ),
    "cuba_leak_reset": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30),
            cuba(v_leak=0.1, v_reset=-0.2),
            torch.nn.Linear(30, 10),
            cuba(v_leak=0.1, v_reset=-0.2),
        ),
        (20,),
    ),
    "lif_leak": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30), box(v_leak=0.1, v_reset=0.1), torch.nn.Linear(30, 10), box(v_leak=0.1, v_reset=0.1)
        ),
        (20,),
    ),
    "cuba_leak": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30),
            cuba(v_leak=0.1, v_reset=0.1),
            torch.nn.Linear(30, 10),
            cuba(v_leak=0.1, v_reset=0.1),
        ),
        (20,),
    ),
    "per_neuron": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30),
            box(
                tau_mem_inv=spread(50, 300, 30),
                v_th=spread(0.3, 0.6, 30),
                v_leak=spread(-0.1, 0.1, 30),
                v_reset=spread(-0.2, 0.2, 30),
            ),
            torch.nn.Linear(30, 15),
            cuba(tau_mem_inv=spread(50, 300, 15), tau_syn_inv=spread(100, 400, 15), v_th=spread(0.3, 0.6, 15)),
            torch.nn.Linear(15, 10),
            iaf(v_th=spread(0.5, 1.5, 10)),
        ),
        (20,),
    ),
    "subtract": Network(
        lambda: SequentialState(
            torch.nn.Linear(20, 30),
            box(reset_method=reset_subtract),
            torch.nn.Linear(30, 10),
            box(reset_method=reset_subtract),
        ),
        (20,),
    ),
    "readout_cuba": Network(
        lambda: SequentialState(torch.nn.Linear(20, 30), cuba(), torch.nn.Linear(30, 10), LICell(dt=DT)), (20,)
    ),
    "readout_box": Network(
        lambda: SequentialState(torch.nn.Linear(20, 30), box(), torch.nn.Linear(30, 10), LIBoxCell(dt=DT)), (20,)
    ),
    "current_output": Network(lambda: SequentialState(torch.nn.Linear(20, 30), box(), torch.nn.Linear(30, 10)), (20,)),
    "conv_sum": Network(
        lambda: SequentialState(
            torch.nn.Conv2d(2, 4, 3, padding=1),
            box(),
            torch.nn.LPPool2d(1, 2),
            torch.nn.Flatten(),
            torch.nn.Linear(64, 10),
            box(),
        ),
        (2, 8, 8),
    ),
    "conv_avg": Network(
        lambda: SequentialState(
            torch.nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
            iaf(),
            torch.nn.AvgPool2d(2, 1, padding=1),
            torch.nn.Flatten(),
            torch.nn.Linear(100, 10),
            iaf(),
        ),
        (2, 8, 8),
    ),
    "conv_kernels": Network(
        lambda: SequentialState(
            torch.nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(1, 2)),
            box(),
            torch.nn.Conv2d(4, 6, (2, 3), dilation=(1, 2)),
            cuba(),
            torch.nn.Flatten(),
            torch.nn.Linear(72, 10),
            cuba(),
        ),
        (2, 8, 8),
    ),
    "conv_groups": Network(
        lambda: SequentialState(
            torch.nn.Conv2d(4, 8, 3, groups=2, padding="same"),
            box(),
            torch.nn.Conv2d(8, 8, 3, groups=8, dilation=2, bias=False),
            box(),
            torch.nn.Flatten(),
            torch.nn.Linear(128, 10),
            box(),
        ),
        (4, 8, 8),
    ),
    "conv_same": Network(
        lambda: SequentialState(
            torch.nn.Conv2d(2, 4, (2, 4), padding="same"),
            box(),
            torch.nn.Flatten(2),
            torch.nn.Flatten(),
            torch.nn.Linear(256, 10),
            box(),
        ),
        (2, 8, 8),
    ),
    "conv1d": Network(
        lambda: SequentialState(
            torch.nn.Conv1d(3, 6, 4, stride=2, padding=2),
            box(),
            torch.nn.Conv1d(6, 6, 3, dilation=2, groups=3),
            cuba(),
            torch.nn.Flatten(),
            torch.nn.Linear(24, 10),
            box(),
        ),
        (3, 15),
    ),
    "scale": Network(
        lambda: SequentialState(
            torch.nn.Conv2d(2, 4, 3, bias=False),
            unshifted_norm(4),
            box(),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 10),
            box(),
        ),
        (2, 8, 8),
    ),
}


def unshifted_norm(channels: int) -> torch.nn.BatchNorm2d:
    norm = torch.nn.BatchNorm2d(channels)
    torch.nn.init.uniform_(norm.weight, 0.8, 1.2)
    norm.running_var.uniform_(0.5, 1.5)
    return norm


def raster_for(features: tuple[int, ...], *, seed: int = 0, rate: float = 0.3) -> SpikeRaster:
    return SpikeRaster(np.random.default_rng(seed).random((STEPS, BATCH, *features)) < rate, DT)


def captured(name: str) -> SpikingGraph:
    """Build, scale until each spiking layer fires in 8 to 40 % of its cells, and capture."""
    network = NETWORKS[name]
    generator_state = torch.get_rng_state()
    torch.manual_seed(len(name))
    net = network.build()
    torch.set_rng_state(generator_state)
    raster = raster_for(network.features, seed=100)
    graph = capture(net, raster)
    below: list[str] = []
    for node in graph.order:
        if isinstance(graph.nodes[node], WEIGHTED):
            below = [node]
        if node in graph.spiking and below:
            graph = _tuned(graph, below[0], node, raster)
    return graph


def rates(graph: SpikingGraph, raster: SpikeRaster) -> dict[str, float]:
    """Share of cells in which each spiking layer fires."""
    traces = simulate(graph, raster, record="spikes").traces
    return {name: float(traces[name].spikes.float().mean()) for name in graph.spiking}


def _tuned(graph: SpikingGraph, weighted: str, spiking: str, raster: SpikeRaster) -> SpikingGraph:
    for _ in range(40):
        rate = rates(graph, raster)[spiking]
        if 0.08 <= rate <= 0.4:
            return graph
        node = graph.nodes[weighted]
        gain = np.float32(1.25 if rate < 0.08 else 0.85)
        graph = graph.with_nodes({weighted: replaced(node, weight=node.weight * gain)})
    raise AssertionError(f"{spiking}: fires in {rate:.3f} of its cells")
