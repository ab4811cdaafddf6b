"""`slamp.calibrate` against Norse's own forward pass over the same raster, at batch 64 and at batch 1.

Both compute on one thread: layers of this size gain nothing from a second, and waiting for it would be the noise.

``python -m benchmarks.bench_calibrate`` prints the ratios of `rows`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from norse.torch import LICell, LIFBoxCell, LIFBoxParameters, LIFCell, SequentialState

from slamp.calibrate import calibrate
from slamp.capture import capture
from slamp.demo.networks import digit_net
from slamp.raster import SpikeRaster

STEPS = 100
RATE = 0.2


def dense_net() -> SequentialState:
    """784-256-128-10, LIFBoxCells."""

    def neurons() -> LIFBoxCell:
        return LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.2)))

    torch.manual_seed(0)
    linear = torch.nn.Linear
    return SequentialState(linear(784, 256), neurons(), linear(256, 128), neurons(), linear(128, 10), neurons())


def current_net() -> SequentialState:
    """784-256-128-10, LIFCells and an LICell."""
    torch.manual_seed(0)
    linear = torch.nn.Linear
    return SequentialState(linear(784, 256), LIFCell(), linear(256, 128), LIFCell(), linear(128, 10), LICell())


def rows(repeats: int = 7) -> list[tuple[str, float, str]]:
    """Measure and return (what, value, unit and target)."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    result = []
    networks: list[tuple[str, SequentialState, tuple[int, ...]]] = [
        ("dense LIFBoxCell", dense_net(), (784,)),
        ("dense LIFCell", current_net(), (784,)),
        ("demo convolutional", digit_net(), (1, 28, 28)),
    ]
    for name, net, shape in networks:
        for batch in (64, 1):
            raster = SpikeRaster(torch.tensor(generator.random((STEPS, batch, *shape)) < RATE))
            graph = capture(net, raster)
            values = raster.data.to(torch.float32)
            ratios = paired_ratios(lambda: forward(net, values), lambda: calibrate(graph, raster), repeats)  # noqa: B023  # called at once
            if batch == 64:
                label, value, unit = "calibrate / norse forward", ratios, "x (at most 1.3)"
            else:
                label, value, unit = "norse forward / calibrate", 1 / ratios, "x (at least 4)"
            result.append((f"{name}, batch {batch}: {label}", value, unit))
    return result


def forward(net: SequentialState, values: torch.Tensor) -> None:
    """Run Norse's forward pass, without gradients."""
    state = None
    with torch.no_grad():
        for step in values:
            _, state = net(step, state)


def paired_ratios(peer: Callable[[], object], ours: Callable[[], object], repeats: int) -> float:
    """Median of ours over peer, the two run in turn so that the machine's moods fall on both."""
    ratios = []
    for round_ in range(repeats + 1):
        middle = [time.perf_counter()]
        peer()
        middle.append(time.perf_counter())
        ours()
        middle.append(time.perf_counter())
        if round_:  # the first warms up
            ratios.append((middle[2] - middle[1]) / (middle[1] - middle[0]))
    return statistics.median(ratios)


def main() -> None:
    """Print the measurements."""
    for name, value, unit in rows():
        print(f"{name:58s} {value:14.4g} {unit}")


if __name__ == "__main__":
    main()
