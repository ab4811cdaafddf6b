"""What a user has: factories, training functions, samples. The command-line tests name them as ``user_networks:...``.

Everything is small: four classes of random spikes, eight steps, three weight layers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from norse.torch import LICell, LIParameters, SequentialState

from networks import DT, box, enliven
from slamp.checkpoint import Checkpoint
from slamp.raster import SpikeRaster

STEPS, FEATURES, CLASSES = 8, 24, 4
EPOCHS = 3
MARKER, PAUSE = "SLAMP_TEST_MARKER", "SLAMP_TEST_PAUSE"


def samples(batch: int = 80, *, seed: int = 0, analog: bool = False) -> SpikeRaster:
    """Each class drives its own six inputs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, batch)
    rate = np.full((batch, FEATURES), 0.1)
    for sample, label in enumerate(labels):
        rate[sample, label * 6 : label * 6 + 6] = 0.7
    spikes = rng.random((STEPS, batch, FEATURES)) < rate
    if analog:
        return SpikeRaster((spikes * rng.random(spikes.shape)).astype(np.float32), DT, labels, kind="analog")
    return SpikeRaster(spikes, DT, labels)


def layers(
    neurons: Callable[[], torch.nn.Module] = box,
    last: Callable[[], torch.nn.Module] | None = None,
    between: Callable[[], torch.nn.Module] | None = None,
    *,
    analog: bool = False,
) -> SequentialState:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        modules: list[torch.nn.Module] = [torch.nn.Linear(FEATURES, 32)]
        if between is not None:
            modules.append(between())
        modules += [neurons(), torch.nn.Linear(32, 20), neurons(), torch.nn.Linear(20, CLASSES), (last or neurons)()]
        net = SequentialState(*modules)
        assert enliven(net, samples(16, analog=analog), low=0.08, high=0.3)
    return net.train()


def factory() -> SequentialState:
    return layers()


def chatty_factory() -> SequentialState:
    print("building the network")
    return layers()


def subtracting() -> SequentialState:
    return layers(lambda: box(subtract=True))


def normalized() -> SequentialState:
    return layers(between=lambda: torch.nn.BatchNorm1d(32))


def reading_out() -> SequentialState:
    parameters = LIParameters(tau_syn_inv=torch.tensor(300.0), tau_mem_inv=torch.tensor(100.0))
    return layers(last=lambda: LICell(parameters))


def direct_coded() -> SequentialState:
    return layers(analog=True)


def silent() -> SequentialState:
    net = layers()
    with torch.no_grad():
        net[2].weight.mul_(0.0).add_(-1.0)
        net[2].bias.fill_(-1.0)
    return net


def zero_layer() -> SequentialState:
    net = layers()
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.fill_(1.0)
    return net


def not_a_number() -> SequentialState:
    net = layers()
    with torch.no_grad():
        net[2].weight[3, 5] = float("nan")
    return net


def unknown_module() -> SequentialState:
    return SequentialState(torch.nn.Linear(FEATURES, 8), torch.nn.Sigmoid(), box())


def stateful_module() -> SequentialState:
    return SequentialState(torch.nn.Linear(FEATURES, 8), torch.nn.LSTM(8, 8), box())


def plain_module() -> torch.nn.Module:
    return torch.nn.Linear(FEATURES, 8)


def probabilistic() -> SequentialState:
    return SequentialState(
        torch.nn.Linear(FEATURES, 8), box(method="heavi_erfc"), torch.nn.Linear(8, 4), box(method="logistic")
    )


def a_number() -> int:
    return 3


def needs_width(width: int) -> torch.nn.Module:
    return torch.nn.Linear(width, width)


def raising() -> torch.nn.Module:
    raise ZeroDivisionError("the user's own mistake")


not_a_function = 3


def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
    """Adam, resumable; with MARKER set every finished epoch adds a line to that file, then pauses for PAUSE seconds."""
    raster = samples()
    assert raster.labels is not None
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    total = max(1, round(EPOCHS * effort))
    seeds = generator.integers(2**31, size=total)
    first = 0
    if (state := checkpoint.load()) is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    net.train()
    for epoch in range(first, total):
        order = torch.as_tensor(np.random.default_rng(seeds[epoch]).permutation(raster.batch))
        for chosen in order.split(20):
            hidden, out = None, torch.zeros(())
            for step in raster.data[:, chosen]:
                spikes, hidden = net(step.to(torch.float32), hidden)
                out = out + spikes
            loss = torch.nn.functional.cross_entropy(out, raster.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        checkpoint.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1})
        if MARKER in os.environ:
            with Path(os.environ[MARKER]).open("a") as file:
                file.write(f"{effort} {epoch}\n")
            time.sleep(float(os.environ.get(PAUSE, "0")))


def printing_train(net: torch.nn.Module, **others: Any) -> None:
    print("epoch 1: loss 0.5")
    train(net, **others)


def forbidden_train(net: torch.nn.Module, **others: Any) -> None:
    """Must never be called: fails the test that reached it, and leaves a mark."""
    Path(os.environ[MARKER]).write_text("trained")
    raise AssertionError("training began, although the run cannot end well")


def failing_train(net: torch.nn.Module, **others: Any) -> None:
    raise ZeroDivisionError("the user's own mistake")


def diverging_train(net: torch.nn.Module, **others: Any) -> None:
    with torch.no_grad():
        next(net.parameters()).add_(float("nan"))


def metric(net: torch.nn.Module) -> float:
    return 0.25


def tensor_metric(net: torch.nn.Module) -> torch.Tensor:
    net.eval()
    return torch.tensor(0.5)


def bad_metric(net: torch.nn.Module) -> str:
    return "good"
