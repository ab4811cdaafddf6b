"""One network, three targets: a core of Loihi 1, the cores of Speck 2f, and a budget of synaptic operations.

    python examples/fit_a_chip.py build/chips

The digits network of `slamp demo` is trained and pruned three times, each time exported, verified on held-out digits
and held against the limits of the chip. What is too large in neurons loses whole channels; what is too large in
synapses loses single weights where the chip stores lists of them, and channels where it stores blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

import slamp
from slamp.cli.usage import cores_table, usage_lines, usage_table
from slamp.demo.data import digits
from slamp.demo.networks import counting_neurons, digit_net, leaky_neurons, trainer

EPOCHS, RATE = 5, 3e-3
CALIBRATION = 128


@dataclass(frozen=True)
class Target:
    """A chip and what the network may take of it. Speck has no leak, so there the neurons count."""

    title: str
    profile: str
    limits: dict[str, float]
    neurons: Callable[[], torch.nn.Module] = leaky_neurons
    structured: bool = False


TARGETS = {
    "loihi1": Target("one core of Loihi 1", "loihi1", {"cores": 1}, structured=True),
    "speck2f": Target(
        "Speck 2f in a third of the kernel memory", "speck2f", {"memory_bits": 180_000}, counting_neurons, True
    ),
    "sops": Target("25 000 synaptic operations per digit, on Loihi 2", "loihi2", {"sops": 25_000}),
}


def main(directory: Path, names: tuple[str, ...] = tuple(TARGETS)) -> dict[str, slamp.Run]:
    """Fit the network to every target, print what came out, and return the runs."""
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread
    console = Console(width=100)
    data = digits()
    train = trainer(data.train, epochs=EPOCHS, rate=RATE, scale=1.0)
    raster = data.train.samples(0, CALIBRATION)
    trained: dict[Callable[[], torch.nn.Module], torch.nn.Module] = {}
    runs = {}
    for name in names:
        target = TARGETS[name]
        if target.neurons not in trained:
            net = digit_net(neurons=target.neurons)
            train(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=slamp.Checkpoint())
            trained[target.neurons] = net
        run = slamp.compress(
            trained[target.neurons],
            raster,
            held_out=data.test,
            budget=slamp.load_profile(target.profile).budget(**target.limits),
            structured=target.structured,
            directory=directory / name,
            train=train,
        )
        runs[name] = run
        show(console, target, run)
    return runs


def show(console: Console, target: Target, run: slamp.Run) -> None:
    """Print accuracy, widths, usage of the chip, what sits on which core, and the verdict of the export."""
    before, after = run.before.accuracy or 0.0, run.after.accuracy or 0.0
    found = slamp.usage(run.shipped, slamp.load_profile(target.profile), run.after.activity)
    dense = run.dense.weighted
    widths = [f"{len(node.weight)} of {len(dense[name].weight)}" for name, node in run.shipped.weighted.items()]
    console.rule(target.title)
    console.print(f"accuracy on 1000 held-out digits: {before:.1%} dense, {after:.1%} pruned", highlight=False)
    console.print(f"channels that stay: {', '.join(widths)}; density {run.after.density:.1%}", highlight=False)
    for name, (used, limit) in run.pruned.plan.usage.items():
        binds = ", binds" if name in run.pruned.plan.binding else ""
        console.print(f"budget of {name}: planned {used:,.6g} of {limit:,.6g}{binds}", highlight=False)
    console.print(usage_table(found, brief=True))
    if found.mapping is not None:
        console.print(cores_table(found.mapping))
    for text in usage_lines(found, cite=False):
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{'fits' if found.fits and not found.unsupported else 'does not fit'} {found.profile}", style="bold")
    for verification in run.verifications.values():
        console.print(verification.sentence(), soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/chips"))
