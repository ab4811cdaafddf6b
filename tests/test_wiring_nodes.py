"""Nodes that move, repeat, merge or pool values, and the order in which edges reach a current."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from norse.torch import LIFParameters, LIFRecurrentCell

from networks import DT, spikes
from slamp.dynamics import NeuronDynamics, added
from slamp.graph import SpikingGraph
from slamp.nodes import CubaLIF, Delay, Input, Linear, Node, Output, frozen_array, uniform
from slamp.simulate import simulate


def chain(*nodes: Node, shape: tuple[int, ...], out: tuple[int, ...]) -> SpikingGraph:
    named = {"input": Input(shape), **{f"n{k}": node for k, node in enumerate(nodes)}, "output": Output(out)}
    return SpikingGraph(named, tuple(pairwise(named)), DT)


def recurrent_graph(cell: LIFRecurrentCell) -> SpikingGraph:
    hidden, features = cell.input_weights.shape
    p = cell.p
    decays = (uniform(float(np.float32(DT) * np.float32(tau)), (hidden,)) for tau in (p.tau_syn_inv, p.tau_mem_inv))
    zero, threshold = uniform(0.0, (hidden,)), uniform(float(p.v_th), (hidden,))
    nodes: dict[str, Node] = {
        "input": Input((features,)),
        "cell_in": Linear(frozen_array(cell.input_weights.detach().numpy())),
        "cell_last": Delay(uniform(1.0, (hidden,))),
        "cell_rec": Linear(frozen_array(cell.recurrent_weights.detach().numpy())),
        "cell": CubaLIF(*decays, zero, threshold, zero),
        "output": Output((hidden,)),
    }
    edges = [("input", "cell_in"), ("cell_in", "cell"), ("cell_rec", "cell"), ("cell", "cell_last")]
    edges += [("cell_last", "cell_rec"), ("cell", "output")]
    return SpikingGraph(nodes, tuple(edges), DT)


def test_a_recurrent_graph_computes_what_norse_computes() -> None:
    torch.manual_seed(1)
    cell = LIFRecurrentCell(
        30, 40, p=LIFParameters(torch.tensor(300.0), torch.tensor(200.0), v_th=torch.tensor(0.3)), dt=DT
    )
    with torch.no_grad():
        cell.input_weights.copy_(torch.randn(40, 30))
        cell.recurrent_weights.copy_(torch.randn(40, 40) * 0.5)
    raster = spikes((30,), steps=60)
    recording = simulate(recurrent_graph(cell), raster, record="all")
    state, seen, summed = None, [], torch.zeros(4, 40)
    with torch.no_grad():
        for step in raster.data:
            before = torch.zeros(4, 40) if state is None else state.z
            x = torch.nn.functional.linear(step.float(), cell.input_weights)
            recurrent = torch.nn.functional.linear(before, cell.recurrent_weights)
            i = torch.zeros(4, 40) if state is None else state.i
            summed += ((i + x) + recurrent != i + (x + recurrent)).float()
            _, state = cell(step.float(), state)
            seen.append((state.z, state.i))
    assert 0.02 < float(recording.output.data.float().mean()) < 0.6
    assert summed.sum() > 0, "the two orders never differ, so this test could not tell them apart"
    assert torch.equal(recording.output.data, torch.stack([z for z, _ in seen]).bool())
    assert torch.equal(recording["cell"].i, torch.stack([i for _, i in seen]))


@pytest.mark.parametrize("edges", [2, 3, 4])
def test_edges_reach_a_current_one_by_one(edges: int) -> None:
    node = CubaLIF(*(uniform(value, (50,)) for value in (0.3, 0.2, 0.0, 0.5, 0.0)))
    generator = torch.Generator().manual_seed(edges)
    drives = [torch.randn(6, 2, 50, generator=generator) for _ in range(edges)]
    dynamics = NeuronDynamics(node, "cpu")
    state = dynamics.initial_state(2)
    run = dynamics.advance(drives[0], state, more=drives[1:], keep_current=True)
    i = torch.zeros(2, 50)
    for t in range(6):
        for drive in drives:
            i = i + drive[t]
        i = i - node.decay_syn[0] * i
        assert torch.equal(run.i[t], i)
    once = dynamics.advance(added(drives[0], drives[1:]), dynamics.initial_state(2), keep_current=True)
    assert not torch.equal(once.i, run.i)
