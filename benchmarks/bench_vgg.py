"""Capture, calibrate, score, mask and export of Norse's VGG16 against its own forward pass: time and memory.

32 x 32 inputs, 8 steps, batch 32. Each side runs in a process of its own, whose peak resident memory is its own; both
include loading torch and building the network, and the time leaves that out.

``python -m benchmarks.bench_vgg`` prints the ratios of `rows`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from norse.torch.models.vgg import VGG, vgg16

from slamp.demo.lively import enliven

T = TypeVar("T")
STEPS, BATCH, CLASSES = 8, 32, 10
RATE = 0.3


def network() -> VGG:
    """VGG16 with weights scaled until every layer fires."""
    torch.manual_seed(0)
    net = vgg16(num_classes=CLASSES)
    enliven(net, spikes()[:, :4].to(torch.float32))
    return net


def spikes() -> torch.Tensor:
    """Random spikes, (8, 32, 3, 32, 32)."""
    return torch.tensor(np.random.default_rng(0).random((STEPS, BATCH, 3, 32, 32)) < RATE)


def norse_side() -> dict[str, float]:
    """One forward pass, without gradients."""
    net, values = network().eval(), spikes().to(torch.float32)
    start = time.perf_counter()
    with torch.no_grad():
        net(values)
    return {"forward": time.perf_counter() - start}


def our_side() -> dict[str, float]:
    """The whole path; seconds by step."""
    import slamp

    net, raster = network(), slamp.SpikeRaster(spikes())
    times: dict[str, float] = {}

    def timed(name: str, step: Callable[[], T]) -> T:
        start = time.perf_counter()
        done = step()
        times[name] = time.perf_counter() - start
        return done

    graph = timed("capture", lambda: slamp.capture(net, raster))
    activity = timed("calibrate", lambda: slamp.calibrate(graph, raster))
    if activity.silent:
        raise SystemExit(f"{activity.silent[0]} never fires, so the benchmark would prove nothing")
    scores = timed("score", lambda: slamp.score(graph, activity, "slamp"))
    budget = slamp.Budget(density=0.1)
    timed("mask", lambda: slamp.make_masks(scores, slamp.allocate(scores, budget)))
    with tempfile.TemporaryDirectory() as place:
        timed("export", lambda: slamp.export(graph, to="nir", directory=Path(place) / "nir"))
    return times


def peak_memory() -> float:
    """Peak resident memory of this process in MB.

    Where Linux tells, it is read there: what getrusage gives starts from the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(side: str) -> dict[str, float]:
    """Run one side in a process of its own; seconds by step, and "memory" in MB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_vgg", side], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def rows() -> list[tuple[str, float, str]]:
    """Measure and return (what, value, unit and target)."""
    peer, ours = measured("norse"), measured("slamp")
    result = [
        (f"VGG16: {name} / norse forward", ours[name] / peer["forward"], "x") for name in ours if name != "memory"
    ]
    whole = sum(value for name, value in ours.items() if name != "memory")
    result.append(("VGG16: all five / norse forward", whole / peer["forward"], "x (at most 3)"))
    result.append(("VGG16: peak memory / norse forward", ours["memory"] / peer["memory"], "x (at most 3)"))
    return result


def main() -> None:
    """Print the measurements."""
    for name, value, unit in rows():
        print(f"{name:58s} {value:14.4g} {unit}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        found = norse_side() if sys.argv[1] == "norse" else our_side()
        found["memory"] = peak_memory()
        print(json.dumps(found))
    else:
        main()
