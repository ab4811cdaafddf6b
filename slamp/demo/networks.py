"""The demonstration's networks and how they are trained: ordinary Norse and torch code, as a user would write it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from norse.torch import (
    IAFCell,
    IAFParameters,
    LICell,
    LIFBoxCell,
    LIFBoxParameters,
    LIFCell,
    LIFParameters,
    LIParameters,
    SequentialState,
)

from slamp.checkpoint import Checkpoint
from slamp.raster import SpikeRaster
from slamp.retrain import Train

BATCH = 50


def leaky_neurons() -> LIFBoxCell:
    """Leaky integrate-and-fire neurons, tau_mem = 2 ms, reset to 0."""
    p = LIFBoxParameters(
        tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.4), method="tanh", alpha=torch.tensor(3.0)
    )
    return LIFBoxCell(p)


def counting_neurons() -> IAFCell:
    """Integrate-and-fire neurons without leak, reset to 0: what event-driven chips such as Speck have."""
    p = IAFParameters(v_th=torch.tensor(1.0), v_reset=torch.tensor(0.0), method="tanh", alpha=3.0)
    return IAFCell(p)


def digit_net(seed: int = 0, *, neurons: Callable[[], torch.nn.Module] = leaky_neurons) -> SequentialState:
    """Two convolutions and two linear layers with neurons for 28 x 28 images; the output spikes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SequentialState(
            torch.nn.Conv2d(1, 8, 5, stride=2, padding=2),
            neurons(),
            torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
            neurons(),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * 7 * 7, 64),
            neurons(),
            torch.nn.Linear(64, 10),
            neurons(),
        )


def vowel_net(seed: int = 0) -> SequentialState:
    """Three linear layers with LIFCells for the vowels; the output is the membrane of an LICell."""

    def neurons() -> LIFCell:
        p = LIFParameters(
            tau_syn_inv=torch.tensor(200.0),
            tau_mem_inv=torch.tensor(100.0),
            v_th=torch.tensor(0.3),
            method="tanh",
            alpha=torch.tensor(2.0),
        )
        return LIFCell(p)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SequentialState(
            torch.nn.Linear(72, 128),
            neurons(),
            torch.nn.Linear(128, 64),
            neurons(),
            torch.nn.Linear(64, 9),
            LICell(LIParameters(tau_syn_inv=torch.tensor(200.0), tau_mem_inv=torch.tensor(50.0))),
        )


def trainer(raster: SpikeRaster, *, epochs: int, rate: float, scale: float) -> Train:
    """Return a training function on ``raster``: Adam, cosine schedule, cross entropy of the output summed over time.

    Args:
        raster: Training samples with labels.
        epochs: Epochs of a full training (effort 1.0).
        rate: Learning rate at the start.
        scale: Factor from summed output to logits.
    """
    assert raster.labels is not None
    data, labels = raster.data, raster.labels

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        total = max(1, round(epochs * effort))
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=rate / 20)
        first = 0
        seeds = [int(seed) for seed in generator.integers(2**31, size=total)]
        if (state := checkpoint.load()) is not None:
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            first = state["epoch"]
        net.train()
        for epoch in range(first, total):
            order = torch.as_tensor(np.random.default_rng(seeds[epoch]).permutation(raster.batch))
            for chosen in order.split(BATCH):
                loss = torch.nn.functional.cross_entropy(scale * forward(net, data[:, chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            checkpoint.save(
                {
                    "net": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "epoch": epoch + 1,
                }
            )

    return train


def forward(net: torch.nn.Module, spikes: torch.Tensor) -> torch.Tensor:
    """Run a network over (time, batch, *features) spikes; return its output summed over time, (batch, classes)."""
    state = None
    total = torch.zeros(())
    for step in spikes:
        output, state = net(step.to(torch.float32), state)
        total = total + output
    return total


def accuracy_of(raster: SpikeRaster) -> Callable[[torch.nn.Module], float]:
    """Return a metric: the share of samples of ``raster`` a network classifies right."""
    assert raster.labels is not None
    labels = raster.labels

    def accuracy(net: torch.nn.Module) -> float:
        net.eval()
        with torch.no_grad():
            hits = [
                int((forward(net, part.data).argmax(1) == labels[start : start + part.batch]).sum())
                for start, part in zip(range(0, raster.batch, 250), raster.batches(250), strict=True)
            ]
        return sum(hits) / raster.batch

    return accuracy
