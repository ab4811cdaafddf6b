"""Norse's own ConvNet, as it comes, on MNIST digits: trained, pruned, exported to NIR and proven.

    python examples/norse_convnet.py build/convnet

`norse.torch.models.conv.ConvNet` loops over time, pools spikes by their maximum, multiplies by ten, applies relu and
ends in an `LILinearCell`: nothing of it is rewritten here, only its first weights are made larger.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from norse.torch.models.conv import ConvNet

import slamp
from slamp.demo.data import digits

EPOCHS = 2
BATCH = 50
TRAINING = 2000
TEST = 200


def trainer(raster: slamp.SpikeRaster) -> slamp.Train:
    """Return a training function on ``raster``: cross entropy of the mean membrane over time."""
    assert raster.labels is not None
    data, labels = raster.data, raster.labels

    def train(
        net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: slamp.Checkpoint
    ) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        net.train()
        for _ in range(max(1, round(EPOCHS * effort))):
            for chosen in torch.as_tensor(generator.permutation(len(labels))).split(BATCH):
                membranes = net(data[:, chosen].to(torch.float32))
                loss = torch.nn.functional.cross_entropy(20 * membranes.mean(0), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return train


def main(directory: Path) -> slamp.Run:
    """Train, compress, and say what came of it."""
    data = digits()
    torch.manual_seed(0)
    net = ConvNet()
    with torch.no_grad():  # as it comes, its third layer never fires on digits, and a silent layer does not learn
        net.conv1.weight.mul_(3)
        net.conv2.weight.mul_(2)
        net.fc1.weight.mul_(5)
    train = trainer(data.train.samples(0, TRAINING))
    train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=slamp.Checkpoint())
    run = slamp.compress(
        net,
        data.train.samples(0, 128),
        held_out=data.test.samples(0, TEST),
        budget=slamp.Budget(density=0.05),
        train=train,
        directory=directory,
    )
    print(f"accuracy   {run.before.accuracy:.1%} dense, {run.after.accuracy:.1%} at a twentieth of the weights")
    print(f"SOPs       {run.before.activity.sops:,.0f} dense, {run.after.activity.sops:,.0f} pruned, per digit")
    print(f"verify     {run.verifications['nir'].sentence()}")
    return run


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/convnet")).equivalent else 1)
