"""Score + allocate + masks on 18 M weights in 17 layers, against torch's pruning, the published LAMP and one sort.

Everything runs in one process. ``python -m benchmarks.bench_prune`` prints the ratios of `rows`.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.utils import prune

from slamp.activity import Activity, LayerActivity, NeuronActivity
from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.graph import SpikingGraph
from slamp.masks import Masks, make_masks
from slamp.nodes import LIF, Conv2d, Flatten, Input, Linear, Node, Output, SumPool2d, frozen_array, uniform
from slamp.score import score
from slamp.taps import tap_sums

DENSITY = 0.1
STEPS = 8
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FULLY_CONNECTED = (512, 2048, 1024, 100, 10)


def network(seed: int = 0) -> SpikingGraph:
    """VGG16 for 32 x 32 inputs with four fully connected layers and random weights: 17 layers, 18 M weights."""
    generator = np.random.default_rng(seed)
    nodes: dict[str, Node] = {"input": Input((3, 32, 32))}
    channels, side = 3, 32
    for stage, widths in enumerate(STAGES):
        for position, width in enumerate(widths):
            weight = generator.standard_normal((width, channels, 3, 3), dtype=np.float32)
            weight /= np.float32(np.sqrt(9 * channels))
            nodes[f"conv{stage}{position}"] = Conv2d(frozen_array(weight), None, (1, 1), (1, 1), (1, 1), 1)
            nodes[f"neurons{stage}{position}"] = _neurons((width, side, side))
            channels = width
        nodes[f"pool{stage}"] = SumPool2d((2, 2), (2, 2))
        side //= 2
    nodes["flatten"] = Flatten(0, 2)
    for position, (inputs, outputs) in enumerate(pairwise(FULLY_CONNECTED)):
        weight = generator.standard_normal((outputs, inputs), dtype=np.float32) / np.float32(np.sqrt(inputs))
        nodes[f"linear{position}"] = Linear(frozen_array(weight))
        nodes[f"units{position}"] = _neurons((outputs,))
    nodes["output"] = Output((FULLY_CONNECTED[-1],))
    return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)


def random_activity(graph: SpikingGraph, seed: int = 1) -> Activity:
    """Spikes at a random rate per input, without simulating them."""
    generator = np.random.default_rng(seed)
    layers, neurons = {}, {}
    for name, node in graph.weighted.items():
        shape = graph.shapes[graph.sources(name)[0]]
        taps = tap_sums(node, generator.random(shape) * 0.2 * STEPS)
        share = generator.random(STEPS)
        events = taps.sum() * share / share.sum()
        layers[name] = LayerActivity(True, events, events * node.weight.shape[0], events, taps, taps**1.5)
    for name in graph.spiking:
        shape = graph.shapes[name]
        neurons[name] = NeuronActivity(generator.random(STEPS) * 0.2, np.ones(shape), generator.random(STEPS))
    return Activity(graph.hash, 1, STEPS, layers, neurons, np.full(STEPS, 1 / STEPS))


def ours(graph: SpikingGraph, activity: Activity, method: str, budget: Budget) -> Masks:
    """Score, allocate, masks."""
    scores = score(graph, activity, method)
    return make_masks(scores, allocate(scores, budget))


def _prune(graph: SpikingGraph, activity: Activity, method: str, budget: Budget, _: None) -> None:
    ours(graph, activity, method, budget)


def modules(graph: SpikingGraph) -> list[torch.nn.Module]:
    """Modules that hold the weights of the graph, for torch's pruning."""
    found = []
    for node in graph.weighted.values():
        module: Any = torch.nn.Module()
        module.weight = torch.nn.Parameter(torch.tensor(node.weight))
        found.append(module)
    return found


def global_unstructured(holders: list[torch.nn.Module]) -> None:
    """Prune by torch's own global magnitude."""
    pairs = [(holder, "weight") for holder in holders]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=1 - DENSITY)


def lamp_threshold(weights: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Scores of every layer and the one threshold, as published: squares over the sum of those not smaller."""
    scores = []
    for weight in weights:
        flat = weight.reshape(-1) ** 2
        ordered, order = torch.sort(flat)
        before = torch.zeros_like(ordered)
        before[1:] = torch.cumsum(ordered, 0)[:-1]
        normalized = ordered / (ordered.sum() - before)
        back = torch.zeros_like(normalized)
        back[order] = normalized
        scores.append(back)
    everything = torch.cat(scores)
    return scores, torch.topk(everything, int(DENSITY * everything.numel()))[0][-1]


def published_lamp(holders: list[torch.nn.Module]) -> None:
    """LAMP as its authors' code does it (arXiv 2010.07611, `tools/pruners.py`), restated here.

    The scores and their threshold only tell how many weights every layer keeps; torch's own magnitude pruning of single
    layers then makes the masks.
    """
    scores, threshold = lamp_threshold([holder.weight.detach() for holder in holders])  # type: ignore[operator]  # a Parameter
    for holder, score_of_layer in zip(holders, scores, strict=True):
        kept = int((score_of_layer >= threshold).sum())
        prune.l1_unstructured(holder, "weight", amount=1.0 - kept / score_of_layer.numel())


def median_seconds(run: Callable[[Any], object], prepare: Callable[[], Any] = lambda: None, repeats: int = 5) -> float:
    """Median wall time of ``run(prepare())``, preparation not counted."""
    seconds = []
    for _ in range(repeats):
        prepared = prepare()
        start = time.perf_counter()
        run(prepared)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes NumPy and Python held during ``run`` beyond what they held before, results included."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    kept = run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return peak - before


def rows(repeats: int = 5) -> list[tuple[str, float, str]]:
    """Measure and return (what, value, unit and target)."""
    graph = network()
    activity = random_activity(graph)
    flat = np.concatenate([node.weight.reshape(-1) for node in graph.weighted.values()])
    tensors = [torch.tensor(node.weight) for node in graph.weighted.values()]
    density = Budget(density=DENSITY)
    both = Budget(density=DENSITY, sops=0.1 * activity.dense_sops)
    # The sort is timed before and after, since other work on the machine comes and goes.
    sort = median_seconds(lambda _: np.sort(flat), repeats=repeats)
    budgets = {
        "slamp, density": ("slamp", density),
        "slamp-activity, density": ("slamp-activity", density),
        "slamp, density and SOPs": ("slamp", both),
    }
    seconds = {
        name: median_seconds(partial(_prune, graph, activity, method, budget), repeats=repeats)
        for name, (method, budget) in budgets.items()
    }
    torch_prune = median_seconds(global_unstructured, lambda: modules(graph), repeats=max(repeats // 2, 1))
    torch_lamp = median_seconds(published_lamp, lambda: modules(graph), repeats=max(repeats // 2, 1))
    torch_scores = median_seconds(lambda _: lamp_threshold(tensors), repeats=max(repeats // 2, 1))
    sort = statistics.median([sort, median_seconds(lambda _: np.sort(flat), repeats=repeats)])
    result = [
        ("weights", float(flat.size), f"in {len(tensors)} layers"),
        ("numpy.sort", sort, "s"),
        ("torch global_unstructured", torch_prune, "s"),
        ("LAMP as published, in torch", torch_lamp, "s"),
        ("of which scores and threshold, without masks", torch_scores, "s"),
    ]
    for name, value in seconds.items():
        result.append((name, value, "s"))
        # The peers limit a count of weights and nothing else, so only that is held against them.
        alike = budgets[name][1] is density
        for peer, peer_seconds, least in (("global_unstructured", torch_prune, 5), ("published LAMP", torch_lamp, 15)):
            note = f"x (at least {least})" if alike else "x (the peer knows no SOPs)"
            result.append((f"{name}: faster than {peer}", peer_seconds / value, note))
        result.append((f"{name}: against numpy.sort", value / sort, "x (at most 3)"))
    for name, (method, budget) in budgets.items():
        peak = peak_bytes(partial(ours, graph, activity, method, budget))
        result.append((f"{name}: peak extra memory", peak / flat.nbytes, "x the weights (at most 3)"))
    return result


def main() -> None:
    """Print the measurements."""
    for name, value, unit in rows():
        print(f"{name:58s} {value:14.4g} {unit}")


def _neurons(shape: tuple[int, ...]) -> LIF:
    return LIF(uniform(0.5, shape), uniform(0.0, shape), uniform(1.0, shape), uniform(0.0, shape))


if __name__ == "__main__":
    main()
