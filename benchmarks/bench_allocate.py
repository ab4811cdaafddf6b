"""`slamp.allocate` on 18 M weights: density, synapses and SOPs, one budget alone against all three at once.

Scores are made anew for every allocation, since it sorts in them what it needs and leaves it there. Scoring has sorted
all that a density asks for, so a density alone never looks at a weight again, where connections and SOPs must look up
what each weight reads: the last ratio counts scoring in. ``python -m benchmarks.bench_allocate`` prints `rows`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np

from benchmarks.bench_prune import DENSITY, network, random_activity
from slamp.activity import Activity
from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.graph import SpikingGraph
from slamp.score import score

# Share of the connections that the density alone would keep, and of the SOPs that both together would keep.
SYNAPSES, SOPS = 0.5, 0.97
UNLIMITED = 1e15


def uneven_activity(graph: SpikingGraph, seed: int = 2) -> Activity:
    """Random spikes, some layers up to fifteen times as busy as others: SOPs are not another word for synapses."""
    activity, generator = random_activity(graph), np.random.default_rng(seed)
    layers = {
        name: replace(layer, tap_events=layer.tap_events * generator.uniform(0.2, 3))
        for name, layer in activity.layers.items()
    }
    return replace(activity, layers=layers)


def binding_limits(graph: SpikingGraph, activity: Activity) -> dict[str, float]:
    """Return limits of which every one binds when all are given."""
    limits = {"density": DENSITY, "synapses": UNLIMITED, "sops": UNLIMITED}
    for name, share in (("synapses", SYNAPSES), ("sops", SOPS)):
        usage = allocate(score(graph, activity, "slamp"), Budget(**limits)).usage
        limits[name] = share * usage[name][0]
    return limits


def rows(repeats: int = 5) -> list[tuple[str, float, str]]:
    """Measure and return (what, value, unit and target)."""
    graph = network()
    activity = uneven_activity(graph)
    limits = binding_limits(graph, activity)
    budgets = {name: Budget(**{name: limit}) for name, limit in limits.items()} | {"all three": Budget(**limits)}
    best, with_scores = (dict.fromkeys(budgets, float("inf")) for _ in range(2))
    binding = dict.fromkeys(budgets, "")
    for _ in range(repeats):
        # They take turns, so that the machine's moods fall on all of them.
        for name, budget in budgets.items():
            start = time.perf_counter()
            scores = score(graph, activity, "slamp")
            scored = time.perf_counter()
            plan = allocate(scores, budget)
            best[name] = min(best[name], time.perf_counter() - scored)
            with_scores[name] = min(with_scores[name], time.perf_counter() - start)
            binding[name] = ", ".join(plan.binding)
    alone = [best[name] for name in limits]
    together = best["all three"]
    return [
        *((f"allocate, {name}", seconds, f"s; binding: {binding[name]}") for name, seconds in best.items()),
        ("all three: against the slowest budget alone", together / max(alone), "x (at most 3)"),
        ("all three: against the mean of the three alone", together / statistics.mean(alone), "x (at most 3)"),
        ("all three: against the fastest budget alone", together / min(alone), "x"),
        (
            "all three: against the fastest, scoring included",
            with_scores["all three"] / min(with_scores[name] for name in limits),
            "x (at most 3)",
        ),
    ]


def main() -> None:
    """Print the measurements."""
    for name, value, unit in rows():
        print(f"{name:58s} {value:14.4g} {unit}")


if __name__ == "__main__":
    main()
