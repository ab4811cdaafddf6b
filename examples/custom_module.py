"""A network written as people write them: a loop over time, states by hand, recurrence, a skip connection, a readout.

    python examples/custom_module.py build/custom

It is trained on spoken vowels, pruned to a fifth of its weights, exported to NIR, and every spike is compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from norse.torch import LICell, LIFCell, LIFParameters, LIFRecurrentCell, LIParameters

import slamp
from slamp.demo.data import vowels

EPOCHS = 30
BATCH = 36


class VowelNet(torch.nn.Module):
    """Two layers of spiking neurons, the second recurrent; what the first says also goes around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = torch.nn.Linear(72, 96)
        self.first = LIFCell(neurons())
        self.second = LIFRecurrentCell(96, 64, p=neurons())
        self.forward_readout = torch.nn.Linear(64, 9)
        self.skip_readout = torch.nn.Linear(96, 9, bias=False)
        self.membrane = LICell(LIParameters(tau_mem_inv=torch.tensor(50.0)))

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        """Return the mean membrane of every class, (batch, 9), for spikes of shape (time, batch, 72)."""
        s1 = s2 = s3 = None
        membranes = []
        for x in spikes:
            z1, s1 = self.first(2.0 * self.inputs(x), s1)
            z2, s2 = self.second(z1, s2)
            v, s3 = self.membrane(self.forward_readout(z2) + self.skip_readout(z1), s3)
            membranes.append(v)
        return torch.stack(membranes).mean(0)


def neurons() -> LIFParameters:
    """tau_syn = 5 ms, tau_mem = 10 ms, threshold 0.3."""
    return LIFParameters(v_th=torch.tensor(0.3), method="tanh", alpha=torch.tensor(2.0))


def trainer(raster: slamp.SpikeRaster) -> slamp.Train:
    """Return a training function on ``raster``: your own loop, which knows nothing of pruning."""
    assert raster.labels is not None
    data, labels = raster.data, raster.labels

    def train(
        net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: slamp.Checkpoint
    ) -> None:
        epochs = max(1, round(EPOCHS * effort))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=2.5e-4)
        net.train()
        for _ in range(epochs):
            for chosen in torch.as_tensor(generator.permutation(len(labels))).split(BATCH):
                output = net(data[:, chosen].to(torch.float32))
                loss = torch.nn.functional.cross_entropy(20 * output, labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()

    return train


def main(directory: Path) -> slamp.Run:
    """Train, compress, and say what came of it."""
    data = vowels()
    torch.manual_seed(0)
    net = VowelNet()
    train = trainer(data.train)
    train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=slamp.Checkpoint())

    # The module was run, its loop folded into one step, and every cell of every layer agreed with the graph.
    graph = slamp.capture(net, data.train)
    delayed = [name for name, node in graph.nodes.items() if type(node).__name__ == "Delay"]
    print(f"capture    {len(graph.nodes)} nodes, one step late: {', '.join(delayed)}, readout: {graph.readout}")

    run = slamp.compress(
        net, data.train, held_out=data.test, budget=slamp.Budget(density=0.2), train=train, directory=directory
    )
    print(f"accuracy   {run.before.accuracy:.1%} dense, {run.after.accuracy:.1%} at a fifth of the weights")
    print(f"SOPs       {run.before.activity.sops:,.0f} dense, {run.after.activity.sops:,.0f} pruned, per utterance")
    print(f"verify     {run.verifications['nir'].sentence()}")
    shipped = slamp.open_artifact(directory / "nir").graph()
    print(f"anyone     {slamp.accuracy(shipped, data.test):.1%}, measured from the artifact alone")
    return run


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/custom")).equivalent else 1)
