"""One layer per core: memories as DYNAP-CNN counts them, a matching, and what to change where there is none."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest

from slamp.graph import SpikingGraph
from slamp.kernel_changes import filters_to_keep, smallest_kernel_change
from slamp.kernel_limits import core_memories, kernel_limits
from slamp.nodes import IF, Affine, Conv2d, Flatten, Input, Linear, Node, Output, SumPool2d, uniform
from slamp.placement import KernelNeeds, kernel_conflict, kernel_cores, kernel_layers, kernel_needs
from slamp.profile import load_profile

ROOMY = 10_000_000


def network(*filters: int, side: int = 8, classes: int = 10, bias: bool = False) -> SpikingGraph:
    nodes: dict[str, Node] = {"input": Input((2, side, side))}
    channels = 2
    for index, width in enumerate(filters):
        biases = uniform(0.0, (width,)) if bias else None
        nodes[f"conv{index}"] = Conv2d(uniform(1.0, (width, channels, 3, 3)), biases, (1, 1), (1, 1), (1, 1), 1)
        nodes[f"if{index}"] = IF(uniform(1.0, (width, side, side)), uniform(0.0, (width, side, side)))
        channels = width
    nodes["flatten"] = Flatten(0, 2)
    nodes["linear"] = Linear(uniform(1.0, (classes, channels * side * side)))
    nodes["out"] = IF(uniform(1.0, (classes,)), uniform(0.0, (classes,)))
    nodes["output"] = Output((classes,))
    return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)


def cores(*kernels: float, neurons: float = ROOMY, bias: float = ROOMY) -> list[KernelNeeds]:
    return [KernelNeeds(kernel, neurons, bias) for kernel in kernels]


def test_memories_by_hand() -> None:
    """Figures of the formulas in sinabs 3.1.3: c 2^(ceil(log2(kx ky)) + ceil(log2 f)), f 2^(ceil(log2 fy) + ...)."""
    needs = kernel_needs(network(5, 16, side=5, bias=True))
    assert needs["conv0"] == KernelNeeds(2 * 2 ** (4 + 3), 5 * 2 ** (3 + 3), 5)
    assert needs["conv1"] == KernelNeeds(5 * 2 ** (4 + 4), 16 * 2 ** (3 + 3), 16)
    # The linear layer is a convolution of 16 channels whose kernel is the whole map of 5 x 5.
    assert needs["linear"] == KernelNeeds(16 * 2 ** (5 + 4), 10, 0)


def test_sides_of_a_map_are_rounded_up_each() -> None:
    node = Conv2d(uniform(1.0, (3, 1, 1, 1)), None, (1, 1), (0, 0), (1, 1), 1)
    nodes = {"input": Input((1, 5, 9)), "conv": node, "output": Output((3, 5, 9))}
    assert kernel_needs(SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3))["conv"].neurons == 3 * 2 ** (3 + 4)


def test_a_linear_layer_reads_the_map_that_pooling_leaves() -> None:
    nodes: dict[str, Node] = {
        "input": Input((3, 6, 6)),
        "pool": SumPool2d((2, 2), (2, 2)),
        "flatten": Flatten(0, 2),
        "first": Affine(uniform(1.0, (7, 27)), uniform(0.0, (7,))),
        "if": IF(uniform(1.0, (7,)), uniform(0.0, (7,))),
        "second": Linear(uniform(1.0, (5, 7))),
        "output": Output((5,)),
    }
    needs = kernel_needs(SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3))
    assert needs == {"first": KernelNeeds(3 * 2 ** (4 + 3), 7, 7), "second": KernelNeeds(7 * 2 ** (0 + 3), 5, 0)}


def test_layers_move_over_for_one_that_fits_only_once() -> None:
    needs = kernel_needs(network(4, 16))
    small, middle, most = sorted(need.kernel for need in needs.values())
    assert kernel_cores(needs, cores(most, middle, small)) == {"conv0": 2, "conv1": 1, "linear": 0}
    assert kernel_cores(needs, cores(most, small, small)) is None


@pytest.mark.parametrize("kind", ["kernel", "neurons", "bias"])
def test_each_memory_alone_can_refuse_a_layer(kind: str) -> None:
    needs = kernel_needs(network(4, 16, bias=True))
    enough = KernelNeeds(
        *(max(getattr(need, name) for need in needs.values()) for name in ("kernel", "neurons", "bias"))
    )
    assert kernel_cores(needs, [enough] * 3) is not None
    less = replace(enough, **{kind: getattr(enough, kind) - 1})
    assert kernel_cores(needs, [less] * 3) is None


def test_a_layer_moves_over_for_one_of_as_little_choice() -> None:
    wide, tall = KernelNeeds(2, 1, 0), KernelNeeds(1, 2, 0)
    memories = [KernelNeeds(2, 2, 0), wide, tall]
    assert kernel_cores({"a": wide, "b": tall, "c": tall}, memories) == {"a": 1, "b": 2, "c": 0}


@pytest.mark.parametrize("seed", range(60))
def test_a_matching_is_found_exactly_when_there_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 6))
    needs = {f"layer{k}": KernelNeeds(*(int(words) for words in rng.integers(1, 4, 3))) for k in range(layers)}
    memories = [KernelNeeds(*(int(words) for words in rng.integers(1, 5, 3))) for _ in range(5)]
    exists = any(
        all(need.fits(memories[core]) for need, core in zip(needs.values(), order, strict=True))
        for order in permutations(range(len(memories)), layers)
    )
    placed, conflict = kernel_cores(needs, memories), kernel_conflict(needs, memories)
    assert (placed is not None) == exists
    assert (conflict == "") == exists
    if placed is not None:
        assert list(placed) == list(needs)
        assert len(set(placed.values())) == layers
        assert all(needs[name].fits(memories[core]) for name, core in placed.items())
    elif "fit only" in conflict:
        names, _, only = conflict.partition("fit only")
        named, left = re.findall(r"layer\d", names), {int(core) for core in re.findall(r"\d", only)}
        assert len(named) == len(left) + 1
        assert all({k for k in range(5) if needs[name].fits(memories[k])} <= left for name in named)


def test_a_conflict_names_the_layers_and_their_only_cores() -> None:
    needs = {name: KernelNeeds(kernel, 1, 0) for name, kernel in (("a", 8), ("b", 1), ("c", 7), ("d", 8))}
    assert kernel_conflict(needs, cores(8, 2, 8, 2)) == "a, c and d fit only cores 0 and 2"
    assert kernel_conflict(needs, cores(8, 2, 8, 8)) == ""


def test_a_conflict_names_the_memory_that_no_core_has() -> None:
    needs = {"a": KernelNeeds(1025, 5, 9), "b": KernelNeeds(1, 1, 1)}
    memories = [KernelNeeds(1024, 4, 9), KernelNeeds(512, 4, 9)]
    found = kernel_conflict(needs, memories)
    assert (
        found == "a takes 1,025 kernel words of 1,024 on the largest core and 5 neuron words of 4 on the largest core"
    )
    both = {"a": KernelNeeds(8, 8, 0)}
    found = kernel_conflict(both, [KernelNeeds(8, 4, 1), KernelNeeds(4, 8, 1)])
    assert found == "a takes 8 kernel, 8 neuron and 0 bias words, no core has them all"


def test_too_many_layers_are_counted() -> None:
    graph = network(2, 2, 2)
    assert kernel_conflict(kernel_needs(graph), cores(ROOMY, ROOMY)) == "4 layers on 2 cores, of which each holds one"
    assert smallest_kernel_change(graph, cores(ROOMY, ROOMY)) == "2 layers fewer"
    assert smallest_kernel_change(graph, cores(ROOMY, ROOMY, ROOMY)) == "1 layer fewer"


def test_the_smallest_change_crosses_a_power_of_two() -> None:
    """48 filters round up to 64; 33 would save nothing, 32 halve the kernel memory of the layer."""
    graph = network(48, 8)
    assert [need.kernel for need in kernel_needs(graph).values()] == [2048, 6144, 8192]
    assert smallest_kernel_change(graph, cores(1024, 6144, 8192)) == "keep at most 32 of the 48 filters of conv0"
    assert kernel_needs(network(33, 8))["conv0"].kernel == 2048


def test_fewer_neurons_of_a_linear_layer_are_called_neurons() -> None:
    nodes: dict[str, Node] = {
        "input": Input((4,)),
        "first": Affine(uniform(1.0, (1100, 4)), uniform(0.0, (1100,))),
        "if": IF(uniform(1.0, (1100,)), uniform(0.0, (1100,))),
        "second": Linear(uniform(1.0, (3, 1100))),
        "output": Output((3,)),
    }
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    speck = core_memories(load_profile("speck2f").limits)
    assert kernel_conflict(kernel_needs(graph), speck) == "first takes 1,100 bias words of 1,024 on the largest core"
    assert smallest_kernel_change(graph, speck) == "keep at most 1024 of the 1100 neurons of first"


def test_where_no_layer_alone_helps_all_shrink_alike() -> None:
    graph = network(40, 40)
    narrow = [KernelNeeds(ROOMY, 30 * 64, ROOMY)] * 3
    expected = "keep at most 30 of the 40 filters of conv0, 30 of the 40 filters of conv1"
    assert smallest_kernel_change(graph, narrow) == expected


def test_where_no_number_of_filters_helps_that_is_said() -> None:
    graph = network(4, 4)
    assert "no number of filters fits" in smallest_kernel_change(graph, [KernelNeeds(ROOMY, 63, ROOMY)] * 3)
    assert filters_to_keep(kernel_layers(network()), cores(1)) == {}  # the output's neurons are not ours to remove


@pytest.mark.parametrize("seed", range(30))
def test_no_smaller_change_of_one_layer_would_do(seed: int) -> None:
    """Against every number of filters of every layer, each tried on a network that really has so many."""
    rng = np.random.default_rng(seed)
    widths = [int(width) for width in rng.integers(2, 20, 2)]
    memories = [KernelNeeds(*words, 16) for words in zip(*(2.0 ** rng.integers(7, 13, (2, 4))), strict=True)]
    if kernel_cores(kernel_needs(network(*widths, bias=True)), memories) is not None:
        memories = [KernelNeeds(core.kernel, core.neurons / 4, 16) for core in memories]
    if kernel_cores(kernel_needs(network(*widths, bias=True)), memories) is not None:
        memories = memories[:2]
    shares = {
        (index, kept): kept / widths[index]
        for index, most in enumerate(widths)
        for kept in range(1, most)
        if kernel_cores(kernel_needs(network(*widths[:index], kept, *widths[index + 1 :], bias=True)), memories)
    }
    found = filters_to_keep(kernel_layers(network(*widths, bias=True)), memories)
    if shares:
        ((name, kept),) = found.items()
        assert shares[int(name[-1]), kept] == max(shares.values())
    else:
        assert len(found) != 1


def test_layers_whose_channels_are_added_are_left_alone() -> None:
    """Both branches feed one layer, so neither can lose filters without the other."""
    shape = (6, 4, 4)
    branch = Conv2d(uniform(1.0, (6, 2, 3, 3)), None, (1, 1), (1, 1), (1, 1), 1)
    join = Conv2d(uniform(1.0, (6, 6, 3, 3)), None, (1, 1), (1, 1), (1, 1), 1)
    nodes: dict[str, Node] = {"input": Input((2, 4, 4)), "left": branch, "right": branch}
    nodes |= {f"if_{side}": IF(uniform(1.0, shape), uniform(0.0, shape)) for side in ("left", "right")}
    nodes |= {"join": join, "if": IF(uniform(1.0, shape), uniform(0.0, shape)), "last": join, "output": Output(shape)}
    edges = [("input", side) for side in ("left", "right")]
    edges += [(side, f"if_{side}") for side in ("left", "right")] + [
        (f"if_{side}", "join") for side in ("left", "right")
    ]
    edges += [("join", "if"), ("if", "last"), ("last", "output")]
    layers = kernel_layers(SpikingGraph(nodes, tuple(edges), 1e-3))
    assert layers["join"].sources == ("left", "right")
    narrow = [KernelNeeds(ROOMY, 6 * 16, ROOMY)] * 4
    assert filters_to_keep(layers, [*narrow[:3], KernelNeeds(ROOMY, 5 * 16, ROOMY)]) == {"join": 5}


def test_sides_channels_and_destinations_by_hand() -> None:
    graph = network(3, 70, side=9)
    rows = {
        resource: (used, layer) for resource, used, _, layer in kernel_limits(graph, load_profile("speck2f").limits)
    }
    assert rows == {
        "largest input side": (9, "input"),
        "largest feature map side": (9, "conv0"),
        "channels of a feature map": (70, "conv1"),
        "largest kernel side": (9, "linear"),
        "layers that read a layer": (1, "conv0"),
    }


def test_the_longer_side_of_a_kernel_counts() -> None:
    node = Conv2d(uniform(1.0, (3, 1, 2, 5)), None, (1, 1), (0, 0), (1, 1), 1)
    nodes = {"input": Input((1, 5, 9)), "conv": node, "output": Output((3, 4, 5))}
    rows = kernel_limits(SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3), load_profile("speck2f").limits)
    found = {resource: used for resource, used, _, _ in rows}
    assert found["largest kernel side"] == found["largest feature map side"] == 5
    assert found["largest input side"] == 9


@pytest.mark.parametrize("name", ["loihi1", "xylo2"])
def test_chips_without_such_limits_get_no_rows(name: str) -> None:
    limits = load_profile(name).limits
    assert list(kernel_limits(network(3), limits)) == []
    assert core_memories(limits) == ()


def test_a_chip_without_a_limit_of_biases_has_room_for_any() -> None:
    limits = load_profile("speck2f").limits
    assert {core.bias for core in core_memories(limits)} == {1024}
    assert {core.bias for core in core_memories(limits.model_copy(update={"bias_words_per_core": None}))} == {np.inf}
