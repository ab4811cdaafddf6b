"""The pipeline step by step: prune a Norse network to a tenth of its weights, export it to NIR, prove the export.

    python examples/prune_and_export.py build/by_hand

`slamp.compress` does all of this in one call; here every step is taken by its name, so that you can change one.
For a training function that can be interrupted and resumed see `my_network.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState

import slamp
from slamp.demo.data import digits

EPOCHS = 4


def build() -> SequentialState:
    """A network of your own: any module with neurons of Norse will do. Shape of the input: (1, 28, 28)."""
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


def trainer(raster: slamp.SpikeRaster) -> slamp.Train:
    """Return a training function on ``raster``: your own loop, which knows nothing of pruning."""
    assert raster.labels is not None
    data, labels = raster.data, raster.labels

    def train(
        net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: slamp.Checkpoint
    ) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        net.train()
        for _ in range(max(1, round(EPOCHS * effort))):
            for chosen in torch.as_tensor(generator.permutation(len(labels))).split(50):
                state, counts = None, torch.zeros(())
                for step in data[:, chosen]:
                    spikes, state = net(step.to(torch.float32), state)
                    counts = counts + spikes
                loss = torch.nn.functional.cross_entropy(counts, labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return train


def main(directory: Path) -> slamp.Verification:
    """Run the pipeline, say what each step gives, and return the verification."""
    # Your part: data, a network, a training function.
    data = digits()
    torch.manual_seed(0)
    net = build()
    train = trainer(data.train)
    train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=slamp.Checkpoint())
    raster = data.train.samples(0, 128)  # the calibration sample: what rates and costs are measured on

    # From a Norse module to a graph. Both were run on the raster, and every cell of every layer agreed.
    dense = slamp.capture(net, raster)
    print(f"capture    {len(dense.nodes)} nodes, accuracy {slamp.accuracy(dense, data.test):.1%} on the test digits")

    # How busy every layer is, at every time step.
    activity = slamp.calibrate(dense, raster)
    print(f"calibrate  {activity.sops:,.0f} synaptic operations per sample")

    # How much every weight matters, and how many weights each layer keeps within the budget.
    budget = slamp.Budget(density=0.1)
    scores = slamp.score(dense, activity, method="slamp-activity")
    plan = slamp.allocate(scores, budget)
    masks = slamp.make_masks(scores, plan)
    print(f"allocate   density {plan.density:.4f}, binding: {', '.join(plan.binding)}")
    for name, keep in masks.arrays.items():
        print(f"           layer {name}: {int(keep.sum()):,} of {keep.size:,} weights stay")

    # A pruned spiking network is nearly silent. Give it its firing rates back, then retrain; the masks hold.
    pruned = slamp.recover(net, masks, raster)
    recovered = slamp.capture(pruned, raster)
    print(f"recover    accuracy {slamp.accuracy(recovered, data.validation):.1%} on the validation digits")
    pruned = slamp.retrain(pruned, masks, train, generator=np.random.default_rng(1))

    # Capture what was trained: this graph is what ships.
    shipped = slamp.capture(pruned, raster)
    after = slamp.calibrate(shipped, raster)
    print(f"retrain    accuracy {slamp.accuracy(shipped, data.test):.1%} on the test digits")
    print(f"           {after.sops:,.0f} synaptic operations per sample, {after.sops / activity.sops:.1%} of before")

    # Write the file, run the file, and compare every spike with the graph, on digits not used so far.
    artifact = slamp.export(shipped, to="nir", directory=directory, golden=data.test.samples(0, 16))
    verification = slamp.verify(artifact, shipped, data.test)
    print(f"export     {artifact.file('network')}")
    print(f"verify     {verification.sentence()}")
    verification.raise_if_different()

    # Your Norse module back, anywhere: load_state_dict(state).
    state_file = directory.with_name(f"{directory.name}.safetensors")
    slamp.save_pruned(pruned, masks, state_file)
    state, _ = slamp.load_pruned(state_file)
    build().load_state_dict(state)
    print(f"state      {state_file}")
    return verification


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/by_hand"))
