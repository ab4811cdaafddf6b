"""Memories, placements and the changes we advise for Speck 2f, against sinabs itself, on random networks.

sinabs runs in an environment of its own, once for all networks; what is compared are its answers.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.environments import witness_home
from slamp.graph import SpikingGraph
from slamp.kernel_changes import filters_to_keep
from slamp.kernel_limits import core_memories
from slamp.nodes import IF, Affine, Conv2d, Flatten, Input, Linear, Node, Output, SumPool2d, uniform
from slamp.placement import KernelNeeds, kernel_cores, kernel_layers, kernel_needs
from slamp.profile import load_profile
from slamp.shapes import output_shape

ENVIRONMENT = witness_home() / "sinabs"
CORES = core_memories(load_profile("speck2f").limits)
EACH = 16  # networks of every kind

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ENVIRONMENT / "ready").is_file(),
        reason="sinabs' environment is not installed; run: make .venv-witness/sinabs/ready, and set SLAMP_WITNESS_HOME",
    ),
]


@dataclass(frozen=True)
class Layer:
    """A layer with its neurons and the pooling behind them; kernel, stride and padding are a convolution's."""

    kind: str
    filters: int
    bias: bool
    pool: int = 1
    kernel: int = 1
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Network:
    """An input of shape (channels, y, x), and layers one after another."""

    input: tuple[int, int, int]
    layers: tuple[Layer, ...]

    @cached_property
    def graph(self) -> SpikingGraph:
        nodes: dict[str, Node] = {"input": Input(self.input)}
        shape: tuple[int, ...] = self.input
        for index, layer in enumerate(self.layers):
            if layer.kind == "linear" and len(shape) > 1:
                nodes[f"flatten{index}"] = Flatten(0, 2)
                shape = (int(np.prod(shape)),)
            node = weighted(layer, shape[0])
            shape = output_shape(f"layer{index}", node, shape)
            nodes[f"layer{index}"] = node
            nodes[f"neurons{index}"] = IF(uniform(1.0, shape), uniform(0.0, shape))
            if layer.pool > 1:
                nodes[f"pool{index}"] = SumPool2d((layer.pool,) * 2, (layer.pool,) * 2)
                shape = output_shape(f"pool{index}", nodes[f"pool{index}"], shape)
        nodes["output"] = Output(shape)
        return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)

    def keeping(self, filters: dict[str, int]) -> Network:
        """Return the network with fewer filters in the layers named."""
        kept = (
            replace(layer, filters=filters.get(f"layer{index}", layer.filters))
            for index, layer in enumerate(self.layers)
        )
        return Network(self.input, tuple(kept))


def weighted(layer: Layer, channels: int) -> Node:
    bias = uniform(0.0, (layer.filters,)) if layer.bias else None
    if layer.kind == "linear":
        weight = uniform(1.0, (layer.filters, channels))
        return Linear(weight) if bias is None else Affine(weight, bias)
    weight = uniform(1.0, (layer.filters, channels, layer.kernel, layer.kernel))
    return Conv2d(weight, bias, (layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1)


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """A number from low to high, both included, small ones as likely as large ones."""
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))


def convolution(rng: np.random.Generator, sides: tuple[int, int], filters: int) -> tuple[Layer, tuple[int, int]]:
    kernel, stride, padding = int(rng.integers(1, 8)), int(rng.choice([1, 1, 1, 2, 4])), int(rng.integers(0, 4))
    kernel = min(kernel, *(side + 2 * padding for side in sides))
    y, x = ((side + 2 * padding - kernel) // stride + 1 for side in sides)
    pool = int(rng.choice([1, 1, 2])) if min(y, x) > 1 else 1
    layer = Layer("conv", filters, bool(rng.integers(2)), pool, kernel, stride, padding)
    return layer, (y // pool, x // pool)


def mixed(rng: np.random.Generator, filters: int, side: int) -> Network:
    """Up to six convolutions and up to three linear layers."""
    sides = (between(rng, 4, side),) * 2
    start = (int(rng.integers(1, 4)), *sides)
    layers = []
    for _ in range(int(rng.integers(7))):
        layer, sides = convolution(rng, sides, between(rng, 1, filters))
        layers.append(layer)
    linear = [Layer("linear", between(rng, 1, filters), bool(rng.integers(2))) for _ in range(rng.integers(1, 4))]
    return Network(start, (*layers, *linear))


def spread(rng: np.random.Generator) -> Network:
    """One or two convolutions on large maps that are not square."""
    sides = (int(rng.integers(16, 90)), int(rng.integers(16, 90)))
    start = (int(rng.integers(1, 4)), *sides)
    layers = []
    for filters in (between(rng, 8, 60), int(rng.integers(1, 5)))[: rng.integers(1, 4)]:
        layer, sides = convolution(rng, sides, filters)
        layers.append(layer)
    return Network(start, tuple(layers))


def crowded(rng: np.random.Generator) -> Network:
    """Layers of about the size of the scarce cores."""
    sizes = rng.integers(28, 65, int(rng.integers(3, 8)))
    first, *others = (Layer("conv", int(size), True, 1, 3, 1, 1) for size in sizes)
    return Network((2, 16, 16), (replace(first, pool=2), *others, Layer("linear", 10, True)))


def biased(rng: np.random.Generator) -> Network:
    """About as many outputs as a core has words for biases."""
    sizes = (2, int(rng.integers(1000, 1060)), 3)
    return Network((1, 2, 2), tuple(Layer("linear", size, bool(rng.integers(4))) for size in sizes))


def deep(rng: np.random.Generator) -> Network:
    """Nine or ten small layers."""
    layers = [Layer("conv", between(rng, 1, 8), bool(rng.integers(2)), 1, 3, 1, 1) for _ in range(rng.integers(8, 10))]
    return Network((2, 8, 8), (*layers, Layer("linear", 4, False)))


def networks() -> list[Network]:
    rng = np.random.default_rng(0)
    return [
        network
        for _ in range(EACH)
        for network in (
            mixed(rng, 24, 20),
            mixed(rng, 200, 32),
            spread(rng),
            crowded(rng),
            biased(rng),
            deep(rng),
        )
    ]


@dataclass(frozen=True)
class Answer:
    """What sinabs says of a network: memories of every layer, and core of every layer or None."""

    needs: list[list[int]]
    cores: list[int] | None


@dataclass(frozen=True)
class Comparison:
    """Networks with sinabs' answers; of those it cannot place, the changes we advise, with its answers."""

    said: dict[str, Any]
    answers: list[tuple[Network, Answer]]
    changes: list[tuple[Network, dict[str, int], Answer]]
    one_more: list[tuple[Network, dict[str, int], Answer]]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    originals = networks()
    changes: list[tuple[Network, dict[str, int]]] = []
    for network in originals:
        if kernel_cores(kernel_needs(network.graph), CORES) is None and len(network.layers) <= len(CORES):
            changes.append((network, filters_to_keep(kernel_layers(network.graph), CORES)))
    one_more = [(network, {name: n + 1 for name, n in kept.items()}) for network, kept in changes if len(kept) == 1]
    asked = [*originals, *(network.keeping(kept) for network, kept in [*changes, *one_more])]
    said = ask_sinabs(asked, tmp_path_factory.mktemp("sinabs"))
    answers = [Answer(**answer) for answer in said["networks"]]
    assert len(answers) == len(asked)
    first, second = len(originals), len(originals) + len(changes)
    return Comparison(
        said,
        list(zip(originals, answers[:first], strict=True)),
        [(network, kept, answer) for (network, kept), answer in zip(changes, answers[first:second], strict=True)],
        [(network, kept, answer) for (network, kept), answer in zip(one_more, answers[second:], strict=True)],
    )


def ask_sinabs(asked: list[Network], directory: Path) -> dict[str, Any]:
    given, answers = directory / "networks.json", directory / "answers.json"
    plain = [{"input": network.input, "layers": [vars(layer) for layer in network.layers]} for network in asked]
    given.write_text(json.dumps(plain))
    script = Path(__file__).with_name("sinabs_runner.py")
    command = [ENVIRONMENT / "bin" / "python", "-I", "-W", "ignore", script, given, answers]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(answers.read_text())
    return found


def causes(needs: list[list[int]]) -> set[str]:
    """Why there is no placement, read from sinabs' numbers alone."""
    if len(needs) > len(CORES):
        return {"layers"}
    most = [max(getattr(core, kind) for core in CORES) for kind in ("kernel", "neurons", "bias")]
    over = {
        kind
        for need in needs
        for kind, used, limit in zip(("kernel", "neuron", "bias"), need, most, strict=True)
        if used > limit
    }
    if over:
        return over
    alone = all(any(KernelNeeds(*need).fits(core) for core in CORES) for need in needs)
    return {"matching"} if alone else {"together"}


def test_the_stand_in_for_samna_was_asked_nothing(compared: Comparison) -> None:
    assert compared.said["sinabs"] == "3.1.3"
    assert compared.said["asked_of_samna"] == []


def test_the_profile_has_the_memories_sinabs_has(compared: Comparison) -> None:
    assert [[core.kernel, core.neurons, core.bias] for core in CORES] == compared.said["cores"]


def test_every_layer_takes_what_sinabs_counts(compared: Comparison) -> None:
    for network, answer in compared.answers:
        needs = kernel_needs(network.graph)
        assert list(needs) == [f"layer{index}" for index in range(len(network.layers))]
        assert [[need.kernel, need.neurons, need.bias] for need in needs.values()] == answer.needs, network


def test_a_placement_is_found_exactly_where_sinabs_finds_one(compared: Comparison) -> None:
    verdicts: Counter[str] = Counter()
    for network, answer in compared.answers:
        placed = kernel_cores(kernel_needs(network.graph), CORES)
        assert (placed is None) == (answer.cores is None), network
        verdicts["fits" if answer.cores is not None else "+".join(sorted(causes(answer.needs)))] += 1
        if placed is not None:
            assert len(set(placed.values())) == len(placed)
            for name, need in zip(placed, answer.needs, strict=True):
                core = compared.said["cores"][placed[name]]
                assert all(used <= size for used, size in zip(need, core, strict=True)), (network, name)
    assert verdicts["fits"] >= 10, verdicts
    assert min(verdicts[cause] for cause in ("kernel", "neuron", "bias", "matching", "layers")) >= 3, verdicts


def test_the_change_we_advise_is_enough_for_sinabs(compared: Comparison) -> None:
    helped = [(network, kept, answer) for network, kept, answer in compared.changes if kept]
    assert sum(len(kept) == 1 for _, kept, _ in helped) >= 10
    assert sum(len(kept) > 1 for _, kept, _ in helped) >= 3
    for network, kept, answer in helped:
        assert answer.cores is not None, (network, kept)


def test_one_filter_more_than_we_advise_is_too_many_for_sinabs(compared: Comparison) -> None:
    for network, kept, answer in compared.one_more:
        assert answer.cores is None, (network, kept)
