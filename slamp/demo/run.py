"""`slamp demo`: train a network on real data, prune it to a budget, export it, prove the export."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from slamp.atomic import check_replaceable
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture
from slamp.checkpoint import Checkpoint
from slamp.compress import RUN, Run, compress
from slamp.demo.data import digits, vowels
from slamp.demo.networks import accuracy_of, digit_net, trainer, vowel_net

DENSITY = 0.1
SOPS_SHARE = 0.2
CALIBRATION = 128


def run_demo(*, temporal: bool, directory: Path, seed: int, resume: bool, console: Console, loihi: bool = False) -> Run:
    """Run the demonstration and return what `slamp.compress` made.

    torch computes on one thread meanwhile: layers this small gain nothing from a second one and, on a busy machine,
    lose a factor of three waiting for it; and the figures do not depend on the number of cores.

    Args:
        temporal: Spoken vowels and LIFCells instead of digits and LIFBoxCells.
        directory: Where the result goes.
        seed: Decides all randomness.
        resume: Go on where an interrupted run stopped.
        console: Where to say what happens.
        loihi: Also quantize for Loihi 2, fine-tune in integers, write the .net file and have Lava run it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run_demo(temporal=temporal, directory=directory, seed=seed, resume=resume, console=console, loihi=loihi)
    finally:
        torch.set_num_threads(threads)


def _run_demo(*, temporal: bool, directory: Path, seed: int, resume: bool, console: Console, loihi: bool) -> Run:
    check_replaceable(directory, marker=RUN)
    split = vowels(seed=seed) if temporal else digits(seed=seed)
    net = vowel_net(seed) if temporal else digit_net(seed)
    name = "JapaneseVowels" if temporal else "MNIST digits"
    console.print(
        f"{name}: {split.train.batch} training, {split.validation.batch} validation, {split.test.batch} test samples, "
        f"{split.train.steps} steps"
    )
    epochs, rate, scale = (40, 5e-3, 0.1) if temporal else (5, 3e-3, 1.0)
    train = trainer(split.train, epochs=epochs, rate=rate, scale=scale)
    start = time.perf_counter()
    with console.status("training the dense network"):
        kept = Checkpoint(directory.parent / f".{directory.name}.{'vowels' if temporal else 'digits'}-{seed}.pt")
        if not resume:
            kept.clear()
        train(net, effort=1.0, generator=np.random.default_rng(seed), checkpoint=kept)
    console.print(
        f"dense network trained in {time.perf_counter() - start:.0f} s, "
        f"validation accuracy {accuracy_of(split.validation)(net):.1%}"
    )
    raster = split.train.samples(0, min(CALIBRATION, split.train.batch))
    dense = calibrate(capture(net, raster.samples(0, 32)), raster, fold=False)
    budget = Budget(density=DENSITY, sops=SOPS_SHARE * dense.sops)
    run = compress(
        net,
        raster,
        held_out=split.test,
        budget=budget,
        directory=directory,
        train=train,
        to=("nir", "lava") if loihi else ("nir",),
        profile="loihi2" if loihi else None,
        seed=seed,
        resume=resume,
        progress=console.is_terminal,
    )
    kept.clear()
    return run
