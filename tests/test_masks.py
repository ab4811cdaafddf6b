"""Masks keep exactly what the plan says, fit their module, and survive a file bit for bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from safetensors.torch import save_file

from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.capture import capture
from slamp.errors import ArtifactError, MaskError
from slamp.graph import SpikingGraph
from slamp.manifest import mask_hash
from slamp.masks import (
    Masks,
    load_masks,
    load_pruned,
    make_masks,
    masked_copy,
    masked_parameters,
    save_masks,
    save_pruned,
)
from slamp.nodes import Input, Linear, Output, frozen_array
from slamp.raster import SpikeRaster
from slamp.score import score


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SequentialState(
        torch.nn.Conv2d(1, 4, 3), LIFBoxCell(), torch.nn.Flatten(), torch.nn.Linear(64, 5, bias=False), LIFBoxCell()
    )


@pytest.fixture
def raster():
    return SpikeRaster(np.random.default_rng(0).random((4, 2, 1, 6, 6)) < 0.5)


@pytest.fixture
def graph(net, raster):
    return capture(net, raster)


@pytest.fixture
def masks(graph):
    scores = score(graph, method="lamp")
    return make_masks(scores, allocate(scores, Budget(density=0.25)))


@pytest.mark.parametrize("n", range(1, 8))
def test_ties_go_to_the_lower_index(n):
    weight = np.array([[1.0, -2.0, 2.0, 0.0], [2.0, -1.0, 1.0, -3.0]])
    scores = score(single(weight), method="lamp")
    mask = make_masks(scores, allocate(scores, Budget(density=n / 8)))["w"]
    order = [(1, 3), (0, 1), (0, 2), (1, 0), (0, 0), (1, 1), (1, 2)]
    assert {tuple(index) for index in np.argwhere(mask).tolist()} == set(order[:n])


@pytest.mark.parametrize("method", ["lamp", "global-magnitude", "uniform", "random"])
def test_masks_keep_the_highest_scores(method):
    generator = np.random.default_rng(1)
    weight = np.round(generator.standard_normal((30, 40)) * 4)
    scores = score(single(weight), method=method, generator=generator)
    for n in (1, 17, 500):
        mask = make_masks(scores, allocate(scores, Budget(density=n / 1200)))["w"]
        assert np.count_nonzero(mask) == n
        assert scores["w"][mask].min() >= scores["w"][~mask].max()


def test_masks_are_read_only_and_behave_as_a_mapping(masks, graph):
    assert list(masks) == list(masks.keys()) == list(graph.weighted) == ["0", "3"]
    assert len(masks) == 2
    assert dict(masks.items())["0"] is masks["0"]
    assert masks["0"].dtype == np.bool_
    assert masks["0"].shape == (4, 1, 3, 3)
    with pytest.raises(ValueError, match="read-only"):
        masks["0"][0] = False


def test_density_counts_weights(masks):
    assert masks.density == 89 / 356
    assert sum(int(mask.sum()) for _, mask in masks.items()) == 89


def test_masked_copy_zeroes_what_is_masked_and_nothing_else(net, masks):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pruned = masked_copy(net, masks)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    for node, name in (("0", "0.weight"), ("3", "3.weight")):
        kept = torch.tensor(masks[node])
        assert torch.equal(pruned.state_dict()[name], torch.where(kept, before[name], 0.0))
    assert torch.equal(pruned.state_dict()["0.bias"], before["0.bias"])


def test_hash_is_that_of_the_pruned_graph(net, masks, raster):
    assert masks.hash == mask_hash(capture(masked_copy(net, masks), raster))
    other = Masks({"0": masks["0"], "3": ~masks["3"]})
    assert other.hash != masks.hash


def test_masks_survive_a_file(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    save_masks(masks, path)
    again = load_masks(path)
    assert again.hash == masks.hash
    assert dict(again.parameters) == {"0": "0.weight", "3": "3.weight"}
    assert list(again) == list(masks)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_order_of_nodes_survives_a_file(tmp_path):
    masks = Masks({"z": np.array([True, False]), "a": np.array([True])}, {})
    save_masks(masks, tmp_path / "masks")
    again = load_masks(tmp_path / "masks")
    assert list(again) == ["z", "a"]
    assert again.hash == masks.hash


def test_pruned_module_survives_a_file(net, masks, tmp_path):
    pruned = masked_copy(net, masks)
    save_pruned(pruned, masks, tmp_path / "pruned.safetensors")
    state, again = load_pruned(tmp_path / "pruned.safetensors")
    assert again.hash == masks.hash
    net.load_state_dict(state)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
    assert load_masks(tmp_path / "pruned.safetensors").hash == masks.hash


def test_plan_of_other_scores_is_refused(graph):
    scores = score(graph, method="lamp")
    plan = allocate(scores, Budget(density=0.5))
    with pytest.raises(MaskError, match=r"the plan is for lamp .* the scores are erk"):
        make_masks(score(graph, method="erk"), plan)


def test_plan_that_keeps_more_than_there_is_is_refused(graph):
    scores = score(graph, method="lamp")
    plan = replace(allocate(scores, Budget(density=0.5)), keep={"0": 37, "3": 1})
    with pytest.raises(MaskError, match="0: the plan keeps 37 weights, allowed are 1 to 36"):
        make_masks(scores, plan)


def test_mask_of_numbers_is_refused():
    with pytest.raises(MaskError, match="w: the mask is float64; allowed is bool"):
        Masks({"w": np.ones(3)})


def test_mask_of_another_shape_is_refused(net, masks):
    wrong = Masks({"0": masks["3"]}, masks.parameters)
    with pytest.raises(MaskError, match=r"0: the mask has shape \(5, 64\), parameter 0.weight \(4, 1, 3, 3\)"):
        masked_copy(net, wrong)


def test_mask_without_parameter_is_refused(net, masks):
    with pytest.raises(MaskError, match="0: no module parameter is known"):
        masked_copy(net, Masks(masks.arrays))


def test_parameter_the_module_lacks_is_refused(net, masks):
    with pytest.raises(MaskError, match=r"0: the module has no parameter '7\.weight'"):
        masked_copy(net, Masks(masks.arrays, {"0": "7.weight", "3": "3.weight"}))


def test_shared_weight_needs_one_mask():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = net[0].weight
    names = {"a": "0.weight", "b": "1.weight"}
    mask = np.eye(3, dtype=bool)
    assert len(masked_parameters(net, Masks({"a": mask, "b": mask.copy()}, names))) == 1
    with pytest.raises(MaskError, match="b: shares its weight with a but not its mask"):
        masked_copy(net, Masks({"a": mask, "b": ~mask}, names))


def test_revived_weights_are_not_saved(net, masks, tmp_path):
    with pytest.raises(MaskError, match="masked weights are not zero"):
        save_pruned(net, masks, tmp_path / "pruned")
    assert not list(tmp_path.iterdir())


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_masks(tmp_path / "nothing")


def test_damaged_file_is_refused(masks, tmp_path):
    path = tmp_path / "masks"
    save_masks(masks, path)
    for length in (4, 40, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ArtifactError, match="not a readable file of masks"):
            load_masks(path)
        save_masks(masks, path)


def test_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="format is None; allowed are slamp-masks-1"):
        load_masks(tmp_path / "foreign")


def test_masks_alone_are_not_a_pruned_module(masks, tmp_path):
    save_masks(masks, tmp_path / "masks")
    with pytest.raises(ArtifactError, match="holds masks but no weights"):
        load_pruned(tmp_path / "masks")


def single(weight):
    nodes = {
        "input": Input((weight.shape[1],)),
        "w": Linear(frozen_array(weight)),
        "output": Output((weight.shape[0],)),
    }
    return SpikingGraph(nodes, (("input", "w"), ("w", "output")), 1e-3)


def test_the_same_masks_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, slamp; from slamp.masks import Masks; "
        "arrays = {n: np.eye(3, dtype=bool) for n in 'abcdef'}; "
        "slamp.save_masks(Masks(arrays, {n: n + '.w' for n in arrays}), sys.argv[1])"
    )
    for name in "xy":
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
