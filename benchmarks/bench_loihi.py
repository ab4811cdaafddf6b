"""Fixed-point graphs: both engines against Lava's real runtime, and what the event-driven engine's cost follows.

Lava runs in a child process, its start (compiling, forking, the first step) not counted; it knows no batches, so its
time per sample and step is that of one sample. Its spikes are compared with ours before anything is timed.
``python -m benchmarks.bench_loihi [PICTURE.png]`` prints `rows` and the table of `scan`, and draws the table.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import slamp
from exporters.environments import run_child
from exporters.lava_lowering import lava_network
from exporters.witness_lava import environment_python
from slamp.graph import SpikingGraph
from slamp.nodes import Conv2d, CubaLIF, Flatten, Input, Linear, Node, Output, Shape, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape
from slamp.simulate import Engine

DT = 1e-3
LAVA_LIMIT_S = 120.0
LAVA_STEPS = 200
RATE = 0.05  # share of inputs that spike in a step


def weights(shape: Shape, density: float, seed: int) -> np.ndarray:
    """Signed 8-bit weights."""
    rng = np.random.default_rng(seed)
    return frozen_array((rng.integers(-128, 128, shape) * (rng.random(shape) < density)).astype(np.float32))


def chain(features: Shape, nodes: Sequence[Node]) -> SpikingGraph:
    """Put nodes one after another."""
    named: dict[str, Node] = {"input": Input(features)} | {f"n{k}": node for k, node in enumerate(nodes)}
    shape = features
    for name, node in named.items():
        shape = output_shape(name, node, shape)
    named["output"] = Output(shape)
    names = list(named)
    return SpikingGraph(named, tuple(itertools.pairwise(names)), DT, slamp.FixedPoint())


def neurons(shape: Shape, mantissa: int) -> CubaLIF:
    return CubaLIF(
        uniform(1024 / 4096, shape),
        uniform(256 / 4096, shape),
        uniform(0, shape),
        uniform(64 * mantissa, shape),
        uniform(0, shape),
    )


def dense_net(sizes: Sequence[int] = (784, 512, 10), density: float = 1.0) -> SpikingGraph:
    nodes: list[Node] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        drive = 74 * (inputs * RATE * density) ** 0.5  # about what arrives in a step
        nodes += [Linear(weights((outputs, inputs), density, layer)), neurons((outputs,), int(8 * drive))]
    return chain((sizes[0],), nodes)


def conv_net(density: float = 1.0) -> SpikingGraph:
    """The small convolutional net of lava.md: 2 x 34 x 34, conv 8 k5 s2, conv 16 k3 s2, dense 10."""
    nodes: tuple[Node, ...] = (
        Conv2d(weights((8, 2, 5, 5), density, 0), None, (2, 2), (0, 0), (1, 1), 1),
        neurons((8, 15, 15), 900),
        Conv2d(weights((16, 8, 3, 3), density, 1), None, (2, 2), (0, 0), (1, 1), 1),
        neurons((16, 7, 7), 1200),
        Flatten(0, 2),
        Linear(weights((10, 784), density, 2)),
        neurons((10,), 3000),
    )
    return chain((2, 34, 34), nodes)


def spikes(graph: SpikingGraph, steps: int, batch: int, rate: float = RATE) -> SpikeRaster:
    shape = (steps, batch, *graph.shapes[graph.input])
    return SpikeRaster(torch.tensor(np.random.default_rng(7).random(shape, dtype=np.float32) < rate), DT)


def seconds(graph: SpikingGraph, raster: SpikeRaster, engine: Engine, repeats: int = 5) -> float:
    """Seconds per sample and step, the best of some runs; what is made once for a graph is not counted."""
    slamp.simulate(graph, raster.samples(0, 1), engine=engine)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        slamp.simulate(graph, raster, engine=engine)
        best = min(best, time.perf_counter() - start)
    return best / raster.steps / raster.batch


def lava_seconds(graph: SpikingGraph) -> float | None:
    """Seconds per step of Lava's runtime, or None where Lava is not installed; its spikes must be ours."""
    python = environment_python()
    if python is None:
        return None
    raster = spikes(graph, LAVA_STEPS, 1)
    network = lava_network(graph, raster)
    with tempfile.TemporaryDirectory(prefix="slamp-bench-") as directory:
        given, result = Path(directory) / "in.npz", Path(directory) / "out.npz"
        np.savez(given, allow_pickle=False, **network.arrays)
        script = Path(__file__).with_name("lava_runtime.py")
        run_child([str(python), "-I", str(script), str(given), str(result)], LAVA_LIMIT_S)
        with np.load(result, allow_pickle=False) as archive:
            found, took = archive["spikes"], float(archive["seconds_per_step"])
    ours = slamp.simulate(graph, raster, engine="events").output.numpy()[:, 0]
    # Lava's sink gets a spike in the step it is fired in.
    late = max(network.latency_steps.values())
    if not ours.any() or not np.array_equal(found[late : late + len(ours)], ours):
        raise SystemExit(f"Lava's runtime fired {int(found.sum())} spikes, the simulator {int(ours.sum())}: not equal")
    return took


def first_uses() -> tuple[float, float]:
    """Seconds the first run of the event-driven engine takes in a new process: nothing compiled yet, and compiled."""
    code = (
        "import time, torch, slamp\n"
        "from benchmarks.bench_loihi import dense_net, spikes\n"
        "graph = dense_net((8, 8), 1.0)\n"
        "raster = spikes(graph, 2, 1)\n"
        "start = time.perf_counter()\n"
        "slamp.simulate(graph, raster, engine='events')\n"
        "print(time.perf_counter() - start)\n"
    )
    with tempfile.TemporaryDirectory(prefix="slamp-bench-") as cache:
        settings = f"import os, sys; os.environ['NUMBA_CACHE_DIR'] = {cache!r}; sys.path[:0] = {sys.path!r}\n"
        command = [sys.executable, "-c", settings + code]
        compiling, loading = (float(run_child(command, 120.0).split()[-1]) for _ in range(2))
    return compiling, loading


def rows() -> list[tuple[str, float, str]]:
    """Measure and return (what, value, unit and target)."""
    compiling, loading = first_uses()
    result: list[tuple[str, float, str]] = [
        ("events: first use ever, compiling", compiling, "s"),
        ("events: first use of a process, compiled before", loading, "s"),
    ]
    for what, graph, batches in (
        ("784-512-10", dense_net(), ((1, 10), (64, 40))),
        ("conv net", conv_net(), ((1, 20),)),
    ):
        lava = lava_seconds(graph)
        if lava is None:
            print("Lava is not installed (slamp lava install): no ratios against it")
        else:
            result.append((f"{what}: Lava's runtime", lava * 1e6, "us per step"))
        for batch, target in batches:
            raster = spikes(graph, max(20, 400 // batch), batch)
            for engine in ("events", "batched"):
                took = seconds(graph, raster, engine)
                result.append((f"{what}, batch {batch}: {engine}", took * 1e6, "us per sample and step"))
                if lava is not None:
                    goal = f" (at least {target})" if engine == "events" else ""
                    result.append((f"{what}, batch {batch}: {engine} against Lava", lava / took, f"x faster{goal}"))
    sparse = dense_net(density=0.1)
    raster = spikes(sparse, 400, 1)
    ratio = seconds(sparse, raster, "batched") / seconds(sparse, raster, "events")
    result.append(("90 % sparse, 5 % active, batch 1: events against batched", ratio, "x faster (at least 5)"))
    return result


@dataclass(frozen=True)
class Point:
    """One point of `scan`. ``operations``: weights added per step; ``step_us``: microseconds per step."""

    density: float
    rate: float
    operations: float
    step_us: float


def scan(size: int = 4096) -> tuple[list[Point], list[Point]]:
    """Measure one dense layer at batch 1: over the share of weights kept, and over the share of inputs that spike."""
    by_density = [_point(size, density, RATE) for density in (1.0, 0.5, 0.2, 0.1, 0.05, 0.025, 0.0125)]
    by_rate = [_point(size, 0.1, rate) for rate in (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125)]
    return by_density, by_rate


def _point(size: int, density: float, rate: float) -> Point:
    graph = dense_net((size, size), density)
    raster = spikes(graph, 200, 1, rate)
    reached = np.count_nonzero(graph.weighted["n0"].weight, axis=0)
    operations = float((raster.numpy().sum((0, 1)) * reached).sum()) / raster.steps
    return Point(density, rate, operations, seconds(graph, raster, "events") * 1e6)


def draw(by_density: Sequence[Point], by_rate: Sequence[Point], path: Path) -> None:
    """Draw time per step over synapses and over spikes, both on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, points, label in (
        (axes[0], [(point.density, point.step_us) for point in by_density], "share of weights kept (many: whole rows)"),
        (axes[1], [(point.rate, point.step_us) for point in by_rate], "share of inputs that spike"),
    ):
        x, y = zip(*points, strict=True)
        axis.loglog(x, y, "o-", label="measured")
        falling = [value for value in x if value <= x[2]]
        axis.loglog(falling, [y[2] * value / x[2] for value in falling], "k:", label="in proportion")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.legend()
    axes[0].set_ylabel("event-driven engine, us per step")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(picture: str | None = None) -> None:
    """Print the measurements; draw the scan where a path is given."""
    for name, value, unit in rows():
        print(f"{name:58s} {value:14.4g} {unit}")
    by_density, by_rate = scan()
    print("events, dense 4096 x 4096, batch 1: kept, active, weights added per step, us per step, ns per weight")
    for point in (*by_density, *by_rate):
        each = point.step_us * 1e3 / point.operations
        print(f"{point.density:8.4f} {point.rate:8.4f} {point.operations:12.0f} {point.step_us:10.1f} {each:8.3f}")
    if picture is not None:
        draw(by_density, by_rate, Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:2])
