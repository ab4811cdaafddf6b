"""Mapping onto cores: every limit is held, recounted by impulses; every refusal says what helps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slamp.channels import Channels
from slamp.cutting import AXONS_IN, AXONS_OUT, FORMATS, MEMORY, NEURONS, sliced
from slamp.dynamics import stateless_function
from slamp.encodings import synapse_lists
from slamp.errors import MappingError
from slamp.graph import SpikingGraph
from slamp.mapping import CoreMap, core_map_from_json, map_cores, place
from slamp.memory import encoded_bits
from slamp.nodes import (
    LIF,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Delay,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Output,
    Pad,
    Permute,
    Place,
    Reshape,
    Scale,
    Sum,
    SumPool2d,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.populations import populations, reached
from slamp.profile import Profile, load_profile
from slamp.shrunk_graph import shrunk_graph


def units(*shape: int) -> LIF:
    return LIF(uniform(0.2, shape), uniform(0.0, shape), uniform(1.0, shape), uniform(0.0, shape))


def weights(generator: np.random.Generator, density: float, *shape: int) -> np.ndarray:
    kept = generator.random(shape) < density
    kept.reshape(-1)[0] = True
    return frozen_array(kept * generator.uniform(0.5, 1.5, shape))


def chain(nodes: dict[str, Node]) -> SpikingGraph:
    return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)


def convolutional(density: float = 1.0, seed: int = 0) -> SpikingGraph:
    """Two convolutions, a pool between them, two linear layers."""
    generator = np.random.default_rng(seed)
    return chain(
        {
            "input": Input((2, 9, 9)),
            "a": Conv2d(weights(generator, density, 6, 2, 3, 3), None, (1, 1), (1, 1), (1, 1), 1),
            "na": units(6, 9, 9),
            "pool": SumPool2d((2, 2), (2, 2)),
            "b": Conv2d(weights(generator, density, 8, 6, 3, 3), frozen_array(np.ones(8)), (2, 2), (0, 0), (1, 1), 1),
            "nb": units(8, 1, 1),
            "flatten": Flatten(0, 2),
            "c": Linear(weights(generator, density, 20, 8)),
            "nc": units(20),
            "d": Affine(weights(generator, density, 5, 20), frozen_array(np.zeros(5))),
            "nd": units(5),
            "output": Output((5,)),
        }
    )


def chip(**limits: float) -> Profile:
    """Loihi 1 with other limits of a core."""
    profile = load_profile("loihi1")
    changed = {
        name: getattr(profile.limits, name).model_copy(update={"value": value}) for name, value in limits.items()
    }
    return profile.model_copy(update={"limits": profile.limits.model_copy(update=changed)})


def impulses(graph: SpikingGraph, source: str, nodes: tuple[str, ...]) -> np.ndarray:
    """Whether each source reaches each output, (sources, outputs), one impulse after another."""
    shape = graph.shapes[source]
    x = torch.eye(math.prod(shape)).reshape(-1, *shape)
    for name in nodes:
        node = graph.nodes[name]
        if isinstance(node, (Linear, Affine)):
            node = Linear(frozen_array(node.weight != 0))
        elif isinstance(node, (Conv1d, Conv2d)):
            node = replace(node, weight=frozen_array(node.weight != 0), bias=None)
        elif isinstance(node, Scale):
            continue
        x = stateless_function(node, "cpu")(x)
    return x.flatten(1).numpy() > 0


def wiring(graph: SpikingGraph) -> dict[str, tuple[str, np.ndarray]]:
    """By driven layer: the name of its source, and which of its neurons reach which of the layer's."""
    found = {}
    for population in populations(graph):
        (path,) = population.paths
        found[population.layer] = (path.source, impulses(graph, path.source, path.nodes))
    return found


def recount(graph: SpikingGraph, mapping: CoreMap, profile: Profile) -> None:
    """Assert every number of a mapping by another count, and every limit."""
    wires = wiring(graph)
    drives = {source: layer for layer, (source, _) in wires.items()}
    shapes = {population.layer: population for population in populations(graph)}
    inside: dict[str, np.ndarray] = {}
    for layer, parts in mapping.layers().items():
        population = shapes[layer]
        cover = np.zeros((population.channels, population.positions), dtype=int)
        members = np.zeros((len(parts), *cover.shape), dtype=bool)
        for index, part in enumerate(parts):
            members[index, slice(*part.channels), slice(*part.positions)] = True
        cover = members.sum(0)
        assert (cover == 1).all(), f"{layer}: a neuron sits nowhere or twice"
        inside[layer] = members.reshape(len(parts), -1)
    for layer, parts in mapping.layers().items():
        _, reach = wires[layer]
        node = graph.weighted[layer]
        for index, part in enumerate(parts):
            members = inside[layer][index]
            assert part.use[NEURONS] == members.sum()
            assert part.use[AXONS_IN] == reach[:, members].any(1).sum()
            own, shape = sliced(node, graph.shapes[graph.sources(layer)[0]], range(*part.channels))
            assert part.use[MEMORY] == min(encoded_bits(synapse_lists(own, shape), profile).values())
            later = drives.get(shapes[layer].name)
            pairs = 0
            if later is not None:
                pairs = sum(int(wires[later][1][members][:, other].any(1).sum()) for other in inside[later])
            assert part.use[AXONS_OUT] == pairs
    for core in range(mapping.cores):
        used = mapping.use(core)
        assert used[NEURONS] > 0
        for name, limit in mapping.limit(core).items():
            assert used[name] <= limit
            assert mapping.fullness(core)[name] == used[name] / limit


TIGHT = (
    {"neurons_per_core": 50},
    {"neurons_per_core": 30, "axons_in_per_core": 216},
    {"axons_in_per_core": 250},
    {"axons_out_per_core": 90},
    {"synapse_bits_per_core": 2048},
    {"synapse_bits_per_core": 1280, "axons_out_per_core": 300, "neurons_per_core": 100},
    {"synapse_formats_per_core": 1},
    {},
)


@pytest.mark.parametrize("limits", TIGHT, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_every_part_is_counted_and_every_limit_is_held(limits: dict[str, float], density: float) -> None:
    graph, profile = convolutional(density), chip(**limits)
    mapping = map_cores(graph, profile, cores=10_000)
    recount(graph, mapping, profile)
    assert core_map_from_json(json.loads(json.dumps(mapping.to_json()))) == mapping


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**16),
    st.floats(0.2, 1.0),
    st.integers(20, 200),
    st.integers(216, 400),
    st.sampled_from([2048, 4096]),
)
def test_limits_hold_for_random_networks(seed: int, density: float, neurons: int, axons: int, bits: int) -> None:
    graph = convolutional(density, seed)
    profile = chip(neurons_per_core=neurons, axons_in_per_core=axons, synapse_bits_per_core=bits)
    recount(graph, place(graph, profile), profile)


STATELESS: tuple[tuple[tuple[int, ...], dict[str, Node], tuple[int, ...]], ...] = (
    ((4, 7, 6), {"w": Conv2d(frozen_array(np.ones((6, 2, 3, 2))), None, (2, 1), (1, 2), (1, 1), 2)}, (6, 4, 9)),
    ((4, 8, 8), {"w": Conv2d(frozen_array(np.ones((4, 1, 3, 3))), None, (1, 1), "same", (2, 2), 4)}, (4, 8, 8)),
    ((3, 12), {"w": Conv1d(frozen_array(np.ones((5, 3, 4))), None, (3,), (1,), (2,), 1)}, (5, 3)),
    ((3, 10), {"w": Conv1d(frozen_array(np.ones((5, 3, 4))), None, (1,), "same", (1,), 1)}, (5, 10)),
    (
        (2, 9, 9),
        {
            "p": AvgPool2d((3, 3), (2, 2), (1, 1)),
            "w": Conv2d(frozen_array(np.ones((3, 2, 2, 2))), None, (1, 1), (0, 0), (1, 1), 1),
            "q": SumPool2d((2, 2), (2, 2)),
        },
        (3, 2, 2),
    ),
    (
        (2, 5, 5),
        {
            "s": Scale(frozen_array(np.array([0.0, -1.0])), frozen_array(np.ones(2))),
            "p": SumPool2d((2, 2), (2, 2)),
            "f": Flatten(0, 2),
            "w": Linear(frozen_array(np.ones((7, 8)))),
        },
        (7,),
    ),
    (
        (2, 4, 4),
        {"w": Conv2d(frozen_array(np.ones((3, 2, 3, 3))), None, (1, 1), (1, 1), (1, 1), 1), "f": Flatten(0, 2)},
        (48,),
    ),
    ((2, 4, 4), {"p": SumPool2d((2, 2), (2, 2))}, (2, 2, 2)),
    ((2, 5, 7), {"p": SumPool2d((2, 3), (2, 3)), "f": Flatten(0, 2), "w": Linear(frozen_array(np.ones((3, 8))))}, (3,)),
    ((5,), {"u": Linear(frozen_array(np.ones((4, 5)))), "w": Linear(frozen_array(np.ones((6, 4))))}, (6,)),
    (
        (2, 6, 7),
        {
            "up": Upsample2d((2, 1)),
            "max": MaxPool2d((3, 2), (2, 1), (1, 1)),
            "wide": Pad(((1, 1), (0, 2)), "circular"),
            "w": Conv2d(frozen_array(np.ones((3, 2, 2, 2))), None, (2, 2), (0, 0), (1, 1), 1),
            "q": AdaptiveAvgPool2d((3, 2)),
            "f": Reshape((18,)),
        },
        (18,),
    ),
    (
        (2, 4, 5),
        {
            "turn": Permute((2, 0, 1)),
            "w": Conv2d(frozen_array(np.ones((6, 5, 2, 1))), None, (1, 1), (0, 0), (1, 1), 1),
            "part": Take(0, 1, 5),
            "back": Permute((1, 2, 0)),
            "wide": Pad(((0, 0), (1, 2))),
        },
        (1, 4, 7),
    ),
    (
        (4, 4, 4),
        {
            "w": Conv2d(frozen_array(np.ones((6, 2, 3, 3))), None, (1, 1), (1, 1), (1, 1), 2),
            "turn": Permute((2, 1, 0)),
            "f": Flatten(0, 2),
        },
        (96,),
    ),
    ((3, 4), {"w": Conv1d(frozen_array(np.ones((2, 3, 3))), None, (1,), (1,), (1,), 1), "r": Reshape((4, 2))}, (4, 2)),
    ((6,), {"w": Linear(frozen_array(np.ones((8, 6)))), "p": Place(0, 2, 11)}, (11,)),
)


# torch copies the input where "same" padding is uneven
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("shape", "nodes", "out"), STATELESS)
@pytest.mark.parametrize("seed", range(3))
def test_reached_sources_are_those_of_impulses(
    shape: tuple[int, ...], nodes: dict[str, Node], out: tuple[int, ...], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    sparse = {
        name: replace(node, weight=weights(generator, 0.5, *node.weight.shape))
        if isinstance(node, (Linear, Conv1d, Conv2d))
        else node
        for name, node in nodes.items()
    }
    graph = chain({"input": Input(shape), **sparse, "n": units(*out), "output": Output(out)})
    (population,) = populations(graph)
    (path,) = population.paths
    reach = impulses(graph, path.source, path.nodes)
    for _ in range(5):
        first, last = sorted(generator.integers(0, population.channels + 1, 2))
        if first == last:
            first, last = 0, population.channels
        spans = [range(0, population.positions)]
        cut = int(generator.integers(0, population.positions + 1))
        spans += [span for span in (range(0, cut), range(cut, population.positions)) if len(span)]
        found = reached(graph, population, path, range(first, last), spans)
        for maps, span in zip(found, spans, strict=True):
            members = np.zeros((population.channels, population.positions), dtype=bool)
            members[first:last, span.start : span.stop] = True
            assert (maps.reshape(-1) == reach[:, members.reshape(-1)].any(1)).all()


def test_parts_of_joined_layers_hold_the_weights_their_neurons_read() -> None:
    """Currents of two linear layers side by side: a part takes the weights of its own neurons, of one layer or both."""
    generator = np.random.default_rng(0)
    nodes: dict[str, Node] = {
        "input": Input((9,)),
        "a": Linear(weights(generator, 0.5, 10, 9)),
        "b": Linear(weights(generator, 0.5, 30, 9)),
        "first": Place(0, 0, 40),
        "second": Place(0, 10, 40),
        "sum": Sum(),
        "n": units(40),
        "output": Output((40,)),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "first"), ("b", "second"), ("first", "sum"), ("second", "sum")]
    graph = SpikingGraph(nodes, (*edges, ("sum", "n"), ("n", "output")), 1e-3)
    profile = chip(neurons_per_core=8)
    parts = place(graph, profile).parts
    assert [part.use[NEURONS] for part in parts] == [8.0] * 5
    both = np.concatenate([graph.weighted["a"].weight, graph.weighted["b"].weight])
    for part in parts:
        rows = both[slice(*part.channels)]
        bits = 0.0
        for own in (rows[: max(10 - part.channels[0], 0)], rows[max(10 - part.channels[0], 0) :]):
            if len(own):
                encoded = encoded_bits(synapse_lists(Linear(frozen_array(own)), (9,)), profile)
                bits += min(encoded.values())
        assert part.use[MEMORY] == bits
        assert part.use[AXONS_IN] == (rows != 0).any(0).sum()


def test_a_loop_of_sums_without_neurons_is_placed_nowhere() -> None:
    one = uniform(1.0, (3,))
    nodes: dict[str, Node] = {
        "input": Input((3,)),
        "sum": Sum(),
        "last": Delay(one),
        "n": units(3),
        "output": Output((3,)),
    }
    edges = (("input", "sum"), ("last", "sum"), ("sum", "last"), ("sum", "n"), ("n", "output"))
    with pytest.raises(MappingError, match=r"lies on a cycle without neurons, which no core computes; put neurons"):
        place(SpikingGraph(nodes, edges, 1e-3), load_profile("loihi1"))


def test_small_layers_share_a_core_and_large_ones_are_split_evenly() -> None:
    graph = convolutional()
    whole = map_cores(graph, load_profile("loihi1"))
    assert whole.cores == 1
    assert whole.splits == {}
    assert whole.use(0)[FORMATS] == 4
    halves = place(graph, chip(neurons_per_core=243))
    first = halves.layers()["a"]
    assert [part.use[NEURONS] for part in first] == [240, 246] or sum(p.use[NEURONS] for p in first) == 486
    assert halves.splits == {"a": NEURONS}
    assert len(place(graph, chip(neurons_per_core=1)).parts) == 486 + 8 + 20 + 5


def test_as_few_parts_as_neurons_allow() -> None:
    generator = np.random.default_rng(0)
    graph = chain(
        {
            "input": Input((10,)),
            "w": Linear(weights(generator, 1.0, 100, 10)),
            "n": units(100),
            "output": Output((100,)),
        }
    )
    for most in (100, 99, 50, 49, 34, 33, 7, 1):
        assert len(place(graph, chip(neurons_per_core=most)).parts) == math.ceil(100 / most)


def test_splitting_a_layer_repeats_its_input_axons_and_names_the_limit() -> None:
    graph = convolutional()
    memory = place(graph, chip(synapse_bits_per_core=2048))
    parts = memory.layers()["b"]
    assert len(parts) > 1
    assert all(part.use[AXONS_IN] == 6 * 6 * 6 for part in parts)  # 3 x 3 windows of 2 x 2 pools, six channels
    assert memory.splits["b"] == MEMORY
    out = place(graph, chip(axons_out_per_core=90))
    assert AXONS_OUT in out.splits.values()


def test_host_layers_take_no_core() -> None:
    graph = convolutional()
    mapping = place(graph, load_profile("loihi1"), host=("a", "na"))
    assert "a" not in mapping.layers()
    assert mapping.layers()["b"][0].use[AXONS_IN] == place(graph, load_profile("loihi1")).layers()["b"][0].use[AXONS_IN]


def test_spinnaker_puts_every_part_on_a_core_of_its_own() -> None:
    graph = convolutional()
    mapping = map_cores(graph, load_profile("spinnaker1"))
    assert [len(parts) for parts in mapping.layers().values()] == [math.ceil(486 / 256), 1, 1, 1]
    assert mapping.cores == 5


def test_one_neuron_too_many_inputs_says_how_many_may_stay() -> None:
    with pytest.raises(
        MappingError, match=r"b: one neuron alone takes 216 of input axons, a core of loihi1 has 108"
    ) as e:
        map_cores(convolutional(), chip(axons_in_per_core=108))
    assert "keep fewer live inputs of each neuron: at most 50.0% of what it has" in str(e.value)
    with pytest.raises(MappingError, match=r"one channel alone takes .* of synaptic memory, bits"):
        map_cores(convolutional(), chip(synapse_bits_per_core=64))


def test_too_few_cores_names_the_smallest_change_and_it_suffices() -> None:
    graph, profile = convolutional(), chip(neurons_per_core=243)
    taken = place(graph, profile).cores
    refused = rf"takes {taken} cores, {taken - 1} are there; the smallest change: bring neurons of a from 486 to 243"
    with pytest.raises(MappingError, match=refused):
        map_cores(graph, profile, cores=taken - 1)
    assert map_cores(graph, profile, cores=taken).cores == taken
    halved = np.arange(6) < 3
    arrays = {name: np.ones(len(node.weight), dtype=bool) for name, node in graph.weighted.items()}
    smaller = shrunk_graph(graph, Channels({**arrays, "a": halved}))
    assert map_cores(smaller, profile, cores=taken - 1).cores == taken - 1


def test_a_chip_without_cores_is_refused() -> None:
    with pytest.raises(MappingError, match=r"mapping rule 'single core' places nothing on cores"):
        map_cores(convolutional(), load_profile("xylo2"))
    with pytest.raises(MappingError, match="no limit of a core is known"):
        map_cores(convolutional(), load_profile("spinnaker2"))


def test_unknown_limits_are_named() -> None:
    assert map_cores(convolutional(), load_profile("loihi2")).unchecked == (AXONS_OUT,)
