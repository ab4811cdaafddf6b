"""The pipeline step by step: prune a Norse network to a tenth of its weights, export it to NIR, prove the export.

    python -m examples.prune_and_export build/by_hand

`slamp.compress` does all of this in one call; here every step is taken by its name, so that you can change one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import slamp
from examples.my_network import factory, train
from slamp.demo.data import digits


def main(directory: Path) -> slamp.Verification:
    """Run the pipeline, say what each step gives, and return the verification."""
    # The user's part: data, a network, a training function. Any Norse network and any training loop will do.
    data = digits()
    torch.manual_seed(0)
    net = factory()
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
    for name, keep in masks.keep.items():
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
    slamp.save_pruned(pruned, masks, directory.with_name(f"{directory.name}.safetensors"))
    state, _ = slamp.load_pruned(directory.with_name(f"{directory.name}.safetensors"))
    factory().load_state_dict(state)
    return verification


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/by_hand"))
