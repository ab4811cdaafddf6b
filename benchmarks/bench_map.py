"""Placing VGG16 (18 M weights, 32 x 32 inputs) on the cores of Loihi 2, dense and pruned to a tenth.

``python -m benchmarks.bench_map`` prints the seconds of `rows`. There is no peer: the compiler of Loihi 2 is closed.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.bench_prune import median_seconds, network
from slamp.allocate import masked_graph
from slamp.graph import SpikingGraph
from slamp.mapping import place
from slamp.profile import load_profile

MOST_SECONDS = 2


def rows(repeats: int = 3) -> list[tuple[str, float, str]]:
    """Measure and return (what, value, unit and target)."""
    profile = load_profile("loihi2")
    result: list[tuple[str, float, str]] = []
    for name, graph in (("dense", network()), ("a tenth of the weights", _sparse(network()))):
        found = place(graph, profile)
        seconds = median_seconds(partial(place, graph), lambda: profile, repeats)
        result.append((f"VGG16 on Loihi 2, {name}: cores", float(found.cores), f"on {found.chips} chips"))
        result.append((f"VGG16 on Loihi 2, {name}: mapping", seconds, f"s (at most {MOST_SECONDS})"))
    return result


def _sparse(graph: SpikingGraph) -> SpikingGraph:
    generator = np.random.default_rng(0)
    masks = {name: generator.random(node.weight.shape) < 0.1 for name, node in graph.weighted.items()}
    return masked_graph(graph, masks)


def main() -> None:
    """Print the measurements."""
    for name, value, unit in rows():
        print(f"{name:58s} {value:14.4g} {unit}")


if __name__ == "__main__":
    main()
