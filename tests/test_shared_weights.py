"""One parameter behind several nodes: pruned once, paid for by every use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

from networks import cuba
from recurrent_networks import Shared, living, rates, samples
from slamp.allocate import allocate
from slamp.allocate_channels import allocate_channels
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, graph_of
from slamp.errors import BudgetError, GraphError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.integer_training import integer_forward
from slamp.masks import make_masks, masked_copy
from slamp.measure import account
from slamp.memory import memory_bits
from slamp.nodes import Conv2d, frozen_array
from slamp.profile import load_profile
from slamp.prune import Pruning, prune
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.retrain import retrain
from slamp.score import METHODS, score
from slamp.simulate import simulate
from slamp.temporal import alignment, joint_alignment, measured_sensitivity

Known = tuple[torch.nn.Module, SpikingGraph, SpikeRaster]
OWN = 3 * 3 * 9 + 5 * 108  # weights of the two parameters
PATHS = 2 * 3 * 3 * 16 * 16  # synapses of both uses: each kernel row meets 16 of 18 positions along an axis


@pytest.fixture(scope="module")
def shared() -> Known:
    return living(Shared)


def counted_sops(graph: SpikingGraph, raster: SpikeRaster, kernel: np.ndarray) -> float:
    """SOPs per sample of both uses of a kernel (3, 3, 3, 3), spike by spike, borders included."""
    run = simulate(graph, raster, record="spikes")
    assert run.traces["n1"].spikes is not None
    total = 0
    for spikes in (raster.data, run.traces["n1"].spikes):
        for *_, channel, y, x in spikes.nonzero().tolist():
            ys = [ky for ky in range(3) if 0 <= y - ky + 1 < 6]
            xs = [kx for kx in range(3) if 0 <= x - kx + 1 < 6]
            total += int(np.count_nonzero(kernel[:, channel][:, ys][:, :, xs]))
    return total / raster.batch


def test_both_uses_are_one_parameter(shared: Known) -> None:
    _, graph, _ = shared
    assert graph.parameters["conv"] == graph.parameters["conv_2"] == "conv.weight"
    scores = score(graph, method="lamp")
    assert scores.sizes == {"conv": 81, "fc": 540}
    assert scores.uses == {"conv": ("conv", "conv_2"), "fc": ("fc",)}
    np.testing.assert_array_equal(scores["conv"], scores["conv_2"])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "uniform-plus"])
def test_the_parameter_is_pruned_once_and_counted_for_every_use(method: str, shared: Known) -> None:
    net, graph, raster = shared
    activity = calibrate(graph, raster)
    kept = []
    for _ in range(2):
        scores = score(graph, activity, method, raster=raster, generator=np.random.default_rng(0))
        plan = allocate(scores, Budget(density=0.5, synapses=0.4 * PATHS, sops=0.4 * activity.sops))
        kept.append(make_masks(scores, plan))
    masks = kept[0]
    assert masks.hash == kept[1].hash
    np.testing.assert_array_equal(masks["conv"], masks["conv_2"])
    assert masks.size == OWN
    assert masks.kept == masks["conv"].sum() + masks["fc"].sum() <= 0.5 * OWN
    assert plan.keep == {"conv": masks["conv"].sum(), "fc": masks["fc"].sum()}
    meets = np.outer([5, 6, 5], [5, 6, 5])  # output positions of a kernel tap that read a real input
    synapses = 2 * float((masks["conv"] * meets).sum()) + masks["fc"].sum()
    assert plan.usage["synapses"][0] == pytest.approx(synapses)
    assert synapses <= 0.4 * PATHS
    run = simulate(graph, raster, record="spikes")
    into_fc = run.traces["n2"].spikes.double().sum((0, 1)).reshape(-1).numpy() @ masks["fc"].sum(0) / raster.batch
    sops = counted_sops(graph, raster, masks["conv"]) + into_fc
    assert plan.usage["sops"][0] == pytest.approx(sops, rel=1e-3)
    assert sops <= 0.4 * activity.sops * (1 + 1e-3)
    pruned = masked_copy(net, masks)
    assert torch.equal(pruned.conv.weight != 0, torch.tensor(masks["conv"]))


def test_every_use_takes_memory_and_the_busiest_step_counts_all(shared: Known) -> None:
    _, graph, raster = shared
    activity = calibrate(graph, raster)
    scores = score(graph, activity, "lamp")
    profile = load_profile("loihi1")
    dense = memory_bits(graph, {name: node.weight != 0 for name, node in graph.weighted.items()}, profile)
    plan = allocate(scores, profile.budget(memory_bits=0.92 * dense))
    used = memory_bits(graph, make_masks(scores, plan).arrays, profile)
    assert plan.usage["memory_bits"][0] == used <= 0.92 * dense
    assert used > 0.85 * dense
    busiest = sum(layer.operations for layer in activity.layers.values()).max()
    plan = allocate(scores, Budget(sops_per_step=0.5 * busiest))
    assert plan.usage["sops_per_step"][0] <= 0.5 * busiest
    whole = allocate(scores, Budget(sops_per_step=2 * busiest))
    assert whole.usage["sops_per_step"][0] == pytest.approx(busiest, rel=1e-6)


def test_a_balanced_mask_is_the_same_for_both_uses(shared: Known) -> None:
    _, graph, raster = shared
    scores = score(graph, calibrate(graph, raster), "lamp")
    plan = allocate(scores, load_profile("loihi1").budget(density=0.4), balance="fan_out")
    masks = make_masks(scores, plan)
    np.testing.assert_array_equal(masks["conv"], masks["conv_2"])
    assert len(set(masks["conv"].sum((0, 2, 3)).tolist())) == 1


def test_a_joint_factor_is_the_mean_of_the_uses_by_what_they_distort() -> None:
    rng = np.random.default_rng(0)
    one, other = [(rng.random(6), rng.random(6)) for _ in range(2)]
    assert joint_alignment([one]) == alignment(*one)
    parts = [float((alpha * a).sum()) for alpha, a in (one, other)]
    whole = [float(alpha.sum() * np.sqrt(np.mean(a * a))) for alpha, a in (one, other)]
    assert joint_alignment([one, other]) == pytest.approx(sum(parts) / sum(whole))
    assert joint_alignment([one, (np.zeros(6), other[1])]) == alignment(*one)


def test_at_one_time_step_slamp_is_lamp_bit_for_bit(shared: Known) -> None:
    _, graph, raster = shared
    first = SpikeRaster(raster.data[5:6], raster.dt)
    activity = calibrate(graph, first)
    assert activity.layers["conv"].operations.any()
    for name in graph.weighted:
        np.testing.assert_array_equal(score(graph, activity, "slamp")[name], score(graph, method="lamp")[name])


def test_measured_sensitivity_removes_the_weights_of_all_uses(shared: Known) -> None:
    _, graph, raster = shared
    assert set(measured_sensitivity(graph, raster, "mean")) == {"conv", "fc"}


def test_uses_that_hold_different_weights_are_refused(shared: Known) -> None:
    _, graph, _ = shared
    conv = graph.nodes["conv_2"]
    assert isinstance(conv, Conv2d)
    other = graph.with_nodes({"conv_2": replace(conv, weight=frozen_array(conv.weight.transpose(1, 0, 2, 3)))})
    with pytest.raises(GraphError, match=r"conv_2: is parameter conv.weight, as conv is, but holds other weights"):
        score(other, method="lamp")


def test_one_gain_scales_the_parameter_of_both_uses(shared: Known) -> None:
    net, graph, raster = shared
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.2)))
    before, bare = rates(net, raster), rates(masked_copy(net, masks), raster)
    recovered = recover(net, masks, raster)
    restored = rates(recovered, raster)
    gains = (recovered.conv.weight / net.conv.weight).detach()[torch.tensor(masks["conv"])]
    torch.testing.assert_close(gains, gains[:1].expand_as(gains))
    assert float(gains[0]) > 1.05

    def mean(found: dict[str, float]) -> float:
        return (found["n1"] + found["n2"]) / 2

    assert mean(bare) < 0.8 * mean(before)
    assert mean(restored) == pytest.approx(mean(before), rel=0.03)
    assert restored["n3"] == pytest.approx(before["n3"], rel=0.05)
    assert not recovered.conv.weight[~torch.tensor(masks["conv"])].any()


def test_gains_per_channel_are_the_same_for_both_uses(shared: Known) -> None:
    net, graph, raster = shared
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.3)))
    recovered = recover(net, masks, raster, per="neuron")
    after = graph_of(recovered, raster)
    np.testing.assert_array_equal(after.weighted["conv"].weight, after.weighted["conv_2"].weight)
    gains = (recovered.conv.weight / net.conv.weight).detach()
    found = []
    for channel in range(3):
        kept = gains[channel][torch.tensor(masks["conv"][channel])]
        torch.testing.assert_close(kept, kept[:1].expand_as(kept))
        found += kept[:1].tolist()
    assert len(set(found)) > 1


def test_masks_of_a_shared_parameter_hold_in_training(shared: Known) -> None:
    net, graph, raster = shared
    scores = score(graph, method="lamp")
    masks = make_masks(scores, allocate(scores, Budget(density=0.3)))

    def train(net: torch.nn.Module, *, effort: float, generator: object, checkpoint: object) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(2):
            state, total = None, torch.zeros(())
            for step in raster.data:
                output, state = net(step.float(), state)
                total = total + output.sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    trained = retrain(masked_copy(net, masks), masks, train)
    assert torch.equal(trained.conv.weight != 0, torch.tensor(masks["conv"]))


@pytest.mark.parametrize("budget", ["sops", "density"])
def test_the_loop_meets_its_budget(budget: str, shared: Known) -> None:
    net, graph, raster = shared
    dense = account(graph, raster, raster)
    assert dense.weights == dense.kept == OWN
    limit = 0.3 * dense.activity.sops if budget == "sops" else 0.3
    pruned = prune(net, raster, Pruning(Budget(**{budget: limit})))
    capture(pruned.net, raster)
    after = account(graph_of(pruned.net, raster), raster, raster)
    if budget == "sops":
        assert 0.98 * limit <= after.activity.sops <= limit
    assert after.kept == pruned.masks.kept
    assert after.density == pytest.approx(pruned.masks.density)
    assert after.density <= 0.3 or budget == "sops"
    assert sum(after.synapses.values()) == after.kept + after.synapses["conv"]


def test_channels_of_shared_weights_are_not_removed(shared: Known) -> None:
    _, graph, raster = shared
    scores = score(graph, calibrate(graph, raster), "lamp")
    with pytest.raises(BudgetError, match=r"conv: its weight is shared by \['conv', 'conv_2'\]"):
        allocate_channels(scores, Budget(density=0.5))


def test_shared_weights_are_not_trained_in_integers() -> None:
    layer = torch.nn.Linear(12, 12)
    net = SequentialState(layer, cuba(), layer, cuba())
    with (
        pytest.raises(UnsupportedModuleError, match="shares its weight with 0; training with quantized weights takes"),
        integer_forward(net, load_profile("loihi2"), samples((12,))),
    ):
        pass
