"""From a trained Norse network to Loihi's integers, a .net file, and the verdict of the real Lava.

    python examples/loihi.py build/loihi_example

Needs the extra slamp[examples] for the digits, and Lava's environment (``slamp lava install``) for its verdict; without
Lava the file is read back and simulated, which proves the file and not Lava.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import slamp
from exporters.to_lava import reread
from slamp.demo.data import digits
from slamp.demo.networks import digit_net, trainer
from slamp.errors import MissingDependencyError

SAMPLES, EPOCHS = 1000, 2


def main(directory: Path, *, samples: int = SAMPLES, epochs: int = EPOCHS) -> slamp.Verification:
    """Train, prune, fine-tune in integers, quantize, export, prove; return the verification."""
    torch.set_num_threads(1)
    split = digits(seed=0)
    raster, held_out = split.train.samples(0, samples), split.test.samples(0, 32)
    loihi = slamp.load_profile("loihi2")
    net = digit_net(0)
    train = trainer(raster, epochs=epochs, rate=3e-3, scale=1.0)
    train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=slamp.Checkpoint())

    few = raster.samples(0, 64)
    graph = slamp.capture(net, few)
    scores = slamp.score(graph, slamp.calibrate(graph, few), method="slamp-activity")
    masks = slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.2)))
    pruned = slamp.retrain(slamp.recover(net, masks, few), masks, train)
    tuned = slamp.retrain(pruned, masks, train, effort=0.5, quantized=loihi, raster=few)

    shipped = slamp.capture(tuned, few)
    integers = slamp.quantize(shipped, loihi, slamp.calibrate(shipped, few))
    loss = slamp.fidelity(slamp.capture(pruned, few), integers, held_out)
    print(f"accuracy on 32 held-out digits: pruned {loss.reference_accuracy:.1%}, in integers {loss.accuracy:.1%}")

    artifact = slamp.export(integers, to="lava", directory=directory, golden=held_out.samples(0, 8))
    try:
        result = slamp.verify(artifact, integers, held_out.samples(0, 8))
    except MissingDependencyError as error:
        print(error)
        result = slamp.verify(artifact, integers, held_out, runner=reread, runner_name="slamp, from the file")
    print(result.sentence())
    result.raise_if_different()
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/loihi_example"))
