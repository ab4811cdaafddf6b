"""A network of your own for `slamp compress`: a factory, a training function, samples and trained weights.

    python -m examples.my_network samples.npz state.safetensors
    slamp compress examples.my_network:factory samples.npz --weights state.safetensors \
        --budget density=0.1 --to nir --out build/mine --train examples.my_network:train

Copy this file, put your own layers and data in it, and the two commands stay the same.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from safetensors.torch import save_file

import slamp
from slamp.demo.data import digits

EPOCHS = 4
BATCH = 50
SAMPLES = 512


def factory() -> SequentialState:
    """Build the network, untrained; `--weights` fills it. Shape of the input: (1, 28, 28)."""
    return SequentialState(
        torch.nn.Flatten(),
        torch.nn.Linear(28 * 28, 128),
        neurons(),
        torch.nn.Linear(128, 64),
        neurons(),
        torch.nn.Linear(64, 10),
        neurons(),
    )


def neurons() -> LIFBoxCell:
    """Leaky integrate-and-fire neurons, dt = 1 ms, tau_mem = 2 ms, reset to 0."""
    return LIFBoxCell(
        LIFBoxParameters(
            tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.4), method="tanh", alpha=torch.tensor(3.0)
        )
    )


@cache
def training_data() -> slamp.SpikeRaster:
    """3500 digits, shape (8, 3500, 1, 28, 28), with labels."""
    return digits().train


def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: slamp.Checkpoint) -> None:
    """Train ``net`` in place. slamp holds the masks, so this is the loop of any network.

    Args:
        net: What to train; pruned weights are zero and stay zero.
        effort: 1.0 for a full training; slamp asks for less where less is enough.
        generator: Where all randomness comes from, so that a seed determines the result.
        checkpoint: Where to save after each epoch, so that `--resume` can go on.
    """
    raster = training_data()
    assert raster.labels is not None
    epochs = max(1, round(EPOCHS * effort))
    # Drawn before the first epoch: an interrupted run draws the same.
    seeds = generator.integers(2**31, size=epochs)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    first = 0
    if (state := checkpoint.load()) is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    net.train()
    for epoch in range(first, epochs):
        order = torch.as_tensor(np.random.default_rng(seeds[epoch]).permutation(raster.batch))
        for chosen in order.split(BATCH):
            loss = torch.nn.functional.cross_entropy(spike_counts(net, raster.data[:, chosen]), raster.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        checkpoint.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1})


def spike_counts(net: torch.nn.Module, spikes: torch.Tensor) -> torch.Tensor:
    """Run the network over spikes of shape (time, batch, *features); return spikes per class, (batch, 10)."""
    state = None
    counts = torch.zeros(())
    for step in spikes:
        output, state = net(step.to(torch.float32), state)
        counts = counts + output
    return counts


def main(samples: str, weights: str) -> None:
    """Train the dense network and write what `slamp compress` asks for."""
    torch.manual_seed(0)
    net = factory()
    train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=slamp.Checkpoint())
    save_file(net.state_dict(), weights)
    # None of these was trained on: slamp calibrates on the first three quarters and verifies on the last.
    slamp.save_samples(digits().test.samples(0, SAMPLES), samples)
    print(f"{weights}: {sum(p.numel() for p in net.parameters()):,} trained parameters")
    print(f"{samples}: {SAMPLES} samples")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m examples.my_network SAMPLES.npz STATE.safetensors")
    main(sys.argv[1], sys.argv[2])
