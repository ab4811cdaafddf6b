"""Costs of the n largest weights against a sum over a stable argsort, in whatever order they are asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from slamp.activity import Activity, LayerActivity
from slamp.costs import BLOCK, layer_costs, rank_ahead
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.nodes import Conv2d, Input, Linear, Output, frozen_array
from slamp.score import score
from slamp.taps import connections, per_weight


@pytest.mark.parametrize("ahead", [None, 1, 700, 5000])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_prefix_is_the_sum_over_the_largest_weights(groups, ties, ahead):
    graph, activity = network(groups, ties)
    node, taps = graph.weighted["w"], activity.layers["w"].tap_events
    scores = score(graph, activity, "lamp")
    (synapses,), (sops,) = layer_costs(scores, ["synapses", "sops"])
    if ahead is not None:
        rank_ahead([[synapses], [sops]], [ahead])
    order = np.argsort(-np.abs(node.weight), axis=None, kind="stable")
    live = scores.layers["w"].curve.live
    assert 4 * BLOCK < live < node.weight.size, "several blocks, of which some are read and others not"
    for cost, values in ((synapses, connections(node, (16, 9, 9))), (sops, taps)):
        sums = np.concatenate([[0.0], np.cumsum(per_weight(node, values).reshape(-1)[order])])
        edges = (1, BLOCK, BLOCK - 1, 0, BLOCK + 1, 3 * BLOCK, live, live - 1, 2 * BLOCK)
        for n in (*edges, *np.random.default_rng(0).integers(1, live, 50)):
            assert cost.prefix(int(n)) == pytest.approx(sums[n], rel=1e-12)
        assert cost.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("method", ["lamp", "slamp-activity", "random"])
@pytest.mark.parametrize("groups", [1, 2])
def test_costs_are_the_same_whatever_was_asked_before(groups, method):
    graph, activity = network(groups, ties=True)
    scores = score(graph, activity, method, generator=np.random.default_rng(0))
    live = scores.layers["w"].curve.live
    asked = np.random.default_rng(1).permutation(live)[:60]
    (first,), (second,) = (layer_costs(scores, ["sops"])[0] for _ in range(2))
    found = {int(n): first.prefix(int(n)) for n in asked}
    assert found == {int(n): second.prefix(int(n)) for n in sorted(asked)}
    for n, cost in found.items():
        taps = per_weight(graph.weighted["w"], activity.layers["w"].tap_events)
        assert cost == pytest.approx(taps[scores.largest("w", n)].sum() if n else 0.0, rel=1e-12)
        assert cost <= first.most(n)


def test_equal_taps_need_no_order():
    nodes = {"input": Input((3,)), "w": Linear(frozen_array(np.ones((4, 3)))), "output": Output((4,))}
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    for resource in ("synapses", "density"):
        ((cost,),) = layer_costs(score(graph, method="lamp"), [resource])
        assert cost.ranked is None
        assert cost.prefix(7) == 7.0


def test_sops_without_activity_are_refused():
    graph, _ = network(1, False)
    with pytest.raises(BudgetError, match="sops: the scores carry no activity"):
        layer_costs(score(graph, method="lamp"), ["sops"])


def network(groups, ties):
    generator = np.random.default_rng(groups)
    shape = (160 * groups, 16 // groups, 3, 3)
    weight = generator.standard_normal(shape) * (generator.random(shape) < 0.9)
    weight = np.round(weight * 3) if ties else weight
    node = Conv2d(frozen_array(weight), None, (2, 2), (1, 1), (1, 1), groups)
    side = weight.shape[0]
    nodes = {"input": Input((16, 9, 9)), "w": node, "output": Output((side, 5, 5))}
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)
    taps = generator.random((groups, 16 // groups, 3, 3))
    layer = LayerActivity(True, np.ones(2), np.ones(2), np.ones(2), taps, taps)
    return graph, Activity(graph.hash, 1, 2, {"w": layer}, {}, np.ones(2) / 2)
