"""What a network takes of a chip: every row by another count, and what cannot be said stays unsaid."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slamp
from networks import build
from slamp.cli.usage import comparison_table, cores_table, encodings_table, usage_table
from slamp.dynamics import stateless_function
from slamp.encodings import synapse_bits, synapse_lists
from slamp.errors import ProfileError
from slamp.graph import SpikingGraph
from slamp.mapping import place
from slamp.nodes import NEURON, Affine, Linear, frozen_array
from slamp.profile import Profile, installed_profiles, load_profile
from slamp.usage import Usage, usage, usage_from_json
from test_profile import MINE


@pytest.fixture(scope="module")
def pruned() -> tuple[SpikingGraph, slamp.Activity]:
    net, raster = build("conv_box", batch=8)
    graph = slamp.capture(net, raster)
    generator = np.random.default_rng(0)
    masked = {
        name: replace(node, weight=frozen_array(node.weight * (generator.random(node.weight.shape) < 0.4)))
        for name, node in graph.weighted.items()
    }
    graph = graph.with_nodes(masked)
    return graph, slamp.calibrate(graph, raster, fold=False)


def unrolled(graph: SpikingGraph, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Synapses into every output and out of every input of a layer, by impulses one after another."""
    node = graph.weighted[name]
    shape = graph.shapes[graph.sources(name)[0]]
    ones = graph.with_nodes({name: replace(node, weight=frozen_array(node.weight != 0))}).nodes[name]
    function = stateless_function(_without_bias(ones), "cpu")
    impulses = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    reached = function(impulses).flatten(1).numpy()
    return reached.sum(0), reached.sum(1)


def _without_bias(node: object) -> object:
    return Linear(node.weight) if isinstance(node, Affine) else replace(node, bias=None)


def test_counts_are_those_of_impulses(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    found = usage(graph, load_profile("loihi1"), activity)
    into = {name: unrolled(graph, name)[0] for name in graph.weighted}
    out = {name: unrolled(graph, name)[1] for name in graph.weighted}
    _, *later = graph.weighted
    assert found["unrolled connections"].used == sum(counts.sum() for counts in into.values())
    assert found["largest fan-in"].used == max(counts.max() for counts in into.values())
    assert found["largest fan-out of a neuron"].used == max(out[name].max() for name in later)
    assert found["mean fan-out of a neuron"].used == pytest.approx(np.concatenate([out[n] for n in later]).mean())
    assert found["weights kept"].used == sum(np.count_nonzero(node.weight) for node in graph.weighted.values())
    neurons = sum(np.prod(graph.shapes[n]) for n, node in graph.nodes.items() if isinstance(node, NEURON))
    assert found["neurons"].used == neurons
    assert found["neuron updates per sample"].used == neurons * activity.steps
    assert found["SOPs per sample"].used == activity.sops
    steps = sum(layer.operations for layer in activity.layers.values())
    assert found["SOPs in the busiest step"].used == steps.max()


def test_the_cheapest_encoding_of_every_layer_is_taken(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    profile = load_profile("loihi1")
    found = usage(graph, profile, activity)
    total = 0.0
    for name, node in graph.weighted.items():
        lists = synapse_lists(node, graph.shapes[graph.sources(name)[0]])
        bits = {
            key: synapse_bits(entry.rule, lists, {k: f.number for k, f in entry.parameters.items()})
            for key, entry in profile.encodings.items()
        }
        assert dict(found.layers[name].bits) == bits
        assert bits[found.layers[name].encoding] == min(bits.values())
        total += min(bits.values())
    assert found["synaptic memory, bits"].used == total
    assert found["synaptic memory, bits"].limit == 128 * 1024**2


def test_the_density_at_which_zeros_begin_to_pay(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    wide = load_profile("generic")
    found = usage(graph, wide, activity)
    for name, layer in found.layers.items():
        node = graph.weighted[name]
        assert layer.pays_below is not None
        # One bit per weight against 32: a bitmap pays as soon as 1 in 32 weights is zero.
        assert layer.pays_below == pytest.approx(1 - 1 / 32, abs=0.03), (name, node.weight.shape)
    assert all(layer.pays_below is None for layer in usage(graph, load_profile("speck2f"), activity).layers.values())


def test_energy_by_hand_and_no_total_without_a_price(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    truenorth = usage(graph, load_profile("truenorth"), activity)
    all_in = next(row for row in truenorth.rows if "all_in" in row.resource)
    assert all_in.used == pytest.approx(26 * activity.sops)
    for name in installed_profiles():
        profile = load_profile(name)
        rows = [row for row in usage(graph, profile, activity).rows if row.resource.startswith("energy")]
        assert len(rows) == len(profile.energy)
        for row, (key, energy) in zip(rows, profile.energy.items(), strict=True):
            assert f"({key}, {energy.scope})" in row.resource
            if energy.scope == "power":
                assert row.used is None
    stripped = load_profile("loihi1")
    energy = dict(stripped.energy)
    key = next(iter(energy))
    energy[key] = energy[key].model_copy(update={"neuron_active_pj": None})
    stripped = stripped.model_copy(update={"energy": energy})
    row = next(r for r in usage(graph, stripped, activity).rows if f"({key}," in r.resource)
    assert row.used is None
    assert "no price for neuron updates" in row.note


def test_time_is_given_where_the_chip_has_a_step_or_times_of_events(
    pruned: tuple[SpikingGraph, slamp.Activity],
) -> None:
    graph, activity = pruned
    found = usage(graph, load_profile("loihi1"), activity)
    assert found["time per sample, us (davies2018)"].used == 13 * activity.steps
    neurons = sum(math.prod(graph.shapes[n]) for n, node in graph.nodes.items() if isinstance(node, NEURON))
    by_hand = (3.5 * activity.sops + 8.4 * neurons * activity.steps) / 1000
    assert found["work per sample, us (davies2018)"].used == pytest.approx(by_hand)
    for name in ("loihi2", "speck2f", "generic"):
        assert not any(
            row.resource.startswith(("time", "work")) for row in usage(graph, load_profile(name), activity).rows
        )


def test_shared_memory_of_the_chip_and_target_lists_have_limits(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    rows = usage(graph, load_profile("spinnaker1"), activity)
    bits = sum(layer.bits[layer.encoding] for layer in rows.layers.values())
    assert rows["synaptic memory, bytes"].used == math.ceil(bits / 8)
    assert rows["synaptic memory, bytes"].limit == 123_469_792
    _, *between, _ = graph.weighted.values()
    entries = usage(graph, load_profile("xylo3"), activity)["entries of targets"]
    assert (entries.used, entries.limit) == (sum(np.count_nonzero(node.weight) for node in between), 31_744)


def test_more_than_there_is_does_not_fit(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    profile = load_profile("loihi1")
    assert usage(graph, profile, activity).fits
    tight = profile.limits.neurons_per_core.model_copy(update={"value": 1})
    limits = profile.limits.model_copy(update={"neurons_per_core": tight, "neurons_per_chip": None})
    small = profile.model_copy(update={"limits": limits})
    found = usage(graph, small, activity)
    assert not found.fits
    assert not found["neurons"].fits
    assert not found["cores"].fits
    assert "128 are there; the smallest change: bring neurons" in found["cores"].note
    assert found.tightest is not None
    assert found.tightest.share > 1


def test_cores_are_those_of_the_mapping(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    profile = load_profile("loihi1")
    found = usage(graph, profile, activity)
    assert found["cores"].used == place(graph, profile).cores == 1
    assert len(cores_table(found.mapping).rows) == 1
    memory = profile.limits.synapse_bits_per_core.model_copy(update={"value": 8192})
    small = profile.model_copy(update={"limits": profile.limits.model_copy(update={"synapse_bits_per_core": memory})})
    scarce = usage(graph, small, activity)
    assert scarce["cores"].used == place(graph, small).cores > 1
    assert "for synaptic memory" in scarce["cores"].note
    assert len(cores_table(scarce.mapping).rows) == scarce.mapping.cores
    memory = memory.model_copy(update={"value": 64})
    small = profile.model_copy(update={"limits": profile.limits.model_copy(update={"synapse_bits_per_core": memory})})
    refused = usage(graph, small, activity)
    assert refused.mapping is None
    assert not refused.fits
    assert "one channel alone takes" in refused["cores"].note


def test_layers_with_analog_input_stay_on_the_host() -> None:
    net, raster = build("conv_box", batch=8)
    analog = slamp.SpikeRaster(raster.data.float() * 0.5, raster.dt, kind="analog")
    graph = slamp.capture(net, analog)
    activity = slamp.calibrate(graph, analog)
    found = usage(graph, load_profile("loihi1"), activity)
    first, *later = graph.weighted
    assert first in found.host
    assert list(found.layers) == later
    neurons = [math.prod(graph.shapes[n]) for n, node in graph.nodes.items() if isinstance(node, NEURON)]
    assert found["neurons"].used == sum(neurons[1:])
    assert found.mapping is not None
    assert first not in found.mapping.layers()
    on_chip = [n for n in activity.neurons if n not in found.host]
    spikes = sum(activity.neurons[n].spike_counts.sum() for n in on_chip)
    priced = 23.6 * activity.sops + 81 * sum(neurons[1:]) * activity.steps + 1.7 * spikes
    assert found["energy per sample, pJ (davies2018, per_term)"].used == pytest.approx(priced), "no MACs on the chip"
    assert usage(graph, load_profile("generic"), activity).host == ()


def test_speck_places_one_layer_per_core(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    profile = load_profile("speck2f")
    found = usage(graph, profile, activity)
    assert found["cores"].used == len(graph.weighted)
    assert found.mapping is not None
    assert [part.layer for part in found.mapping.parts] == list(graph.weighted)
    memories = profile.limits.kernel_words_of_core.value
    for part in found.mapping.parts:
        assert found.mapping.fullness(part.core)["kernel words"] == part.use["kernel words"] / memories[part.core] <= 1
        assert part.use["kernel words"] * 8 == found.layers[part.layer].bits["kernel"]
    assert len(cores_table(found.mapping).rows) == len(graph.weighted)
    assert any("LIF does not run on speck2f" in text for text in found.unsupported)
    words = profile.limits.kernel_words_of_core.model_copy(update={"value": (1,) * 9})
    small = profile.model_copy(update={"limits": profile.limits.model_copy(update={"kernel_words_of_core": words})})
    refused = usage(graph, small, activity)
    assert not refused.fits
    note = refused["cores"].note
    assert note.startswith("speck2f: no assignment of layers to cores: ")
    assert " kernel words of 1 on the largest core" in note
    assert note.endswith("no number of filters fits; make kernels, feature maps or the input smaller")


def test_speck_has_its_own_limits_of_sides(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, activity = pruned
    profile = load_profile("speck2f")
    found = usage(graph, profile, activity)
    for resource, limit in (
        ("largest input side", 128),
        ("largest feature map side", 64),
        ("channels of a feature map", 1024),
        ("largest kernel side", 15),
        ("layers that read a layer", 2),
    ):
        row = found[resource]
        assert (row.limit, row.fits, row.source) == (limit, True, "sinabs_docs"), resource
    side = profile.limits.kernel_side.model_copy(update={"value": 1})
    small = profile.model_copy(update={"limits": profile.limits.model_copy(update={"kernel_side": side})})
    refused = usage(graph, small, activity)
    assert not refused.fits
    assert refused["largest kernel side"].note in graph.weighted
    with pytest.raises(KeyError):
        usage(graph, load_profile("loihi1"), activity)["largest kernel side"]


def test_resets_the_chip_does_not_have_are_named() -> None:
    net, raster = build("dense_box", batch=4)
    graph = slamp.capture(net, raster)
    found = usage(graph, load_profile("xylo2"), slamp.calibrate(graph, raster))
    assert any("reset by value does not run on xylo2" in text for text in found.unsupported)


def test_foreign_activity_is_refused(pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    graph, _ = pruned
    net, raster = build("dense_box", batch=4)
    with pytest.raises(ProfileError, match=r"the activity was measured on graph .*; calibrate this graph"):
        usage(graph, load_profile("loihi1"), slamp.calibrate(slamp.capture(net, raster), raster))


@pytest.mark.parametrize("name", sorted(installed_profiles()))
def test_every_shipped_profile_gives_tables_and_plain_data(
    name: str, pruned: tuple[SpikingGraph, slamp.Activity]
) -> None:
    graph, activity = pruned
    found = usage(graph, load_profile(name), activity)
    assert isinstance(found, Usage)
    assert len(usage_table(found).rows) == len(found.rows)
    assert len(encodings_table(found).rows) == len(graph.weighted)
    assert len(comparison_table([found]).rows) == 1
    assert found.to_json()["profile"] == name
    assert usage_from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(KeyError, match="joules"):
        found["joules"]


def test_the_users_own_profile_counts(tmp_path: Path, pruned: tuple[SpikingGraph, slamp.Activity]) -> None:
    (tmp_path / "mine.toml").write_text(MINE.replace("[encodings.list]", "[encodings.list]\nparameters.index_bits = "
        '{ value = 8, unit = "bits", source = "sheet", status = "derived" }\nparameters.pointer_bits = '
        '{ value = 0, unit = "bits", source = "sheet", status = "derived" }'))  # fmt: skip  # two lines of TOML
    graph, activity = pruned
    profile: Profile = load_profile(tmp_path / "mine.toml")
    found = usage(graph, profile, activity)
    assert found["synaptic memory, bits"].used == 16 * found["weights kept"].used
    assert found["neurons"].limit == 4 * 256
    assert found["neurons"].status == "assumed"
