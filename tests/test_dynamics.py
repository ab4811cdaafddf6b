"""Traces computed by hand: dyadic numbers, so that every value is exact."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

from networks import box, cuba, iaf, li, li_box
from slamp.capture import read_graph
from slamp.dynamics import NeuronDynamics, exact_float32, parameter_tensor, stateless_function
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    READOUT,
    AvgPool2d,
    CubaLI,
    CubaLIF,
    Input,
    Neuron,
    Output,
    Scale,
    SumPool2d,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.simulate import simulate


def one(value: float) -> np.ndarray:
    return uniform(value, (1,))


def graph_of(node: Neuron) -> SpikingGraph:
    nodes = {"input": Input((1,)), "n": node, "output": Output((1,))}
    return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)


def drive(*values: float) -> SpikeRaster:
    return SpikeRaster(torch.tensor(values).reshape(-1, 1, 1), kind="analog")


LEAKY = {"decay_mem": one(0.5), "v_leak": one(0.25), "v_threshold": one(1.0), "v_reset": one(-0.5)}
SYNAPTIC = {"decay_syn": one(0.5), **LEAKY}

# node, drive, membrane before reset, spikes, current after decay (None: no synapse)
TRACES: dict[str, tuple[Neuron, list[float], list[float], list[int], list[float] | None]] = {
    # v: 0.25 +0.5 = 0.75, +0.5 = 1.25 spike -> 0.25, +0.5 = 0.75, +0.75 = 1.5 spike
    "if_value": (IF(one(1.0), one(0.25)), [0.5, 0.5, 0.5, 0.75], [0.75, 1.25, 0.75, 1.5], [0, 1, 0, 1], None),
    # v: 0.25 + 1.5 = 1.75 spike -> 0.75, + 0.25 = 1.0 tie, + 2.5 = 3.5 spike -> 2.5, + 0 = 2.5 spike -> 1.5
    "if_subtract": (
        IF(one(1.0), one(0.25), "subtract"),
        [1.5, 0.25, 2.5, 0.0],
        [1.75, 1.0, 3.5, 2.5],
        [1, 0, 1, 1],
        None,
    ),
    # v: 0.25 + 0.5 (1.25 - 0.25) = 0.75; + 0.5 (1.25 - 0.75) = 1.0 tie; + 0.5 (2.25 - 1) = 1.625 spike -> -0.5;
    # + 0.5 (0.25 + 0.5) = -0.125; + 0.5 (4.25 + 0.125) = 2.0625 spike
    "lif_value": (
        LIF(**LEAKY),
        [1.0, 1.0, 2.0, 0.0, 4.0],
        [0.75, 1.0, 1.625, -0.125, 2.0625],
        [0, 0, 1, 0, 1],
        None,
    ),
    # as above to 1.625 spike -> 0.625; + 0.5 (0.25 - 0.625) = 0.4375; + 0.5 (4.25 - 0.4375) = 2.34375 spike -> 1.34375;
    # + 0.5 (0.25 - 1.34375) = 0.796875
    "lif_subtract": (
        LIF(**LEAKY, reset="subtract"),
        [1.0, 1.0, 2.0, 0.0, 4.0, 0.0],
        [0.75, 1.0, 1.625, 0.4375, 2.34375, 0.796875],
        [0, 0, 1, 0, 1, 0],
        None,
    ),
    # i: 1 -> 0.5; 0.5 + 1 = 1.5 -> 0.75; 0.75 -> 0.375; 0.375 -> 0.1875 (decays after the membrane has read it)
    # v: 0.25 + 0.5 (0 + 1) = 0.75; + 0.5 (-0.5 + 1.5) = 1.25 spike -> -0.5; + 0.5 (0.75 + 0.75) = 0.25;
    # + 0.5 (0 + 0.375) = 0.4375
    "cubalif_value": (
        CubaLIF(**SYNAPTIC),
        [1.0, 1.0, 0.0, 0.0],
        [0.75, 1.25, 0.25, 0.4375],
        [0, 1, 0, 0],
        [0.5, 0.75, 0.375, 0.1875],
    ),
    # as above to 1.25 spike -> 0.25; + 0.5 (0 + 0.75) = 0.625; the reset leaves the current alone
    "cubalif_subtract": (
        CubaLIF(**SYNAPTIC, reset="subtract"),
        [1.0, 1.0, 0.0],
        [0.75, 1.25, 0.625],
        [0, 1, 0],
        [0.5, 0.75, 0.375],
    ),
    # v = v_threshold twice: 0.25 + 0.5 * 1.5 = 1.0; 1.0 + 0.5 (-0.75 + 0.75) = 1.0
    "cubalif_tie": (CubaLIF(**SYNAPTIC), [1.5, 0.0], [1.0, 1.0], [0, 0], [0.75, 0.375]),
    # v: 0.25 + 0.5 (0 + 1) = 0.75; + 0.5 (-0.5) = 0.5; + 0.5 (-0.25 - 1) = -0.125
    "li": (LI(one(0.5), one(0.25)), [1.0, 0.0, -1.0], [0.75, 0.5, -0.125], [], None),
    # i: 1 -> 0.5 -> 0.25 -> 0.125; v: 0.25 + 0.5 = 0.75; + 0.5 (-0.5 + 0.5) = 0.75; + 0.5 (-0.5 + 0.25) = 0.625
    "cubali": (CubaLI(one(0.5), one(0.5), one(0.25)), [1.0, 0.0, 0.0], [0.75, 0.75, 0.625], [], [0.5, 0.25, 0.125]),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces_computed_by_hand(name: str) -> None:
    node, values, membrane, spikes, current = TRACES[name]
    recording = simulate(graph_of(node), drive(*values), record="all")
    trace = recording["n"]
    assert trace.v is not None
    assert trace.v.flatten().tolist() == membrane
    if current is None:
        assert trace.i is None
    else:
        assert trace.i is not None
        assert trace.i.flatten().tolist() == current
    if isinstance(node, READOUT):
        assert trace.spikes is None
        assert recording.output.data.flatten().tolist() == membrane
    else:
        assert trace.spikes is not None
        assert trace.spikes.flatten().to(torch.int64).tolist() == spikes
        assert recording.output.data.flatten().to(torch.int64).tolist() == spikes


NORSE = {
    "if_value": iaf(v_th=1.0, v_reset=0.25),
    "lif_value": box(tau_mem_inv=500.0, v_leak=0.25, v_th=1.0, v_reset=-0.5),
    "lif_subtract": box(subtract=True, tau_mem_inv=500.0, v_leak=0.25, v_th=1.0, v_reset=-0.5),
    "cubalif_value": cuba(tau_syn_inv=500.0, tau_mem_inv=500.0, v_leak=0.25, v_th=1.0, v_reset=-0.5),
    "cubalif_tie": cuba(tau_syn_inv=500.0, tau_mem_inv=500.0, v_leak=0.25, v_th=1.0, v_reset=-0.5),
    "li": li_box(tau_mem_inv=500.0, v_leak=0.25),
    "cubali": li(tau_syn_inv=500.0, tau_mem_inv=500.0, v_leak=0.25),
}


@pytest.mark.parametrize("name", NORSE)
def test_norse_gives_the_traces_computed_by_hand(name: str) -> None:
    """The hand computation, the graph and Norse are three sources; all agree."""
    node, values, membrane, spikes, _ = TRACES[name]
    state, outputs, after = None, [], []
    with torch.no_grad():
        for value in values:
            output, state = NORSE[name](torch.tensor([[value]]), state)
            outputs.append(float(output))
            after.append(float(state.v))
    if isinstance(node, READOUT):
        assert outputs == membrane
    else:
        assert outputs == spikes
        fired = np.asarray(spikes, bool)
        reset = np.asarray(membrane) - 1.0 if node.reset == "subtract" else np.full(len(membrane), node.v_reset[0])
        assert after == np.where(fired, reset, membrane).tolist()


@pytest.mark.parametrize("name", NORSE)
def test_reading_the_norse_cell_gives_the_node_of_the_hand_computation(name: str) -> None:
    graph, _ = read_graph(SequentialState(torch.nn.Linear(1, 1), NORSE[name]), (1,), 1e-3)
    node = graph.nodes["1"]
    expected = TRACES[name][0]
    assert type(node) is type(expected)
    for field in ("decay_syn", "decay_mem", "v_leak", "v_threshold", "v_reset"):
        if hasattr(expected, field):
            assert getattr(node, field).tolist() == getattr(expected, field).tolist(), field


def test_lif_and_li_associate_their_sums_differently() -> None:
    """LIFBoxCell adds the leak to the input first, LIBoxCell subtracts the membrane from the leak first."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (1, 4000)).astype(np.float32)
    leak = uniform(0.1, (4000,))
    decay = uniform(0.3, (4000,))
    high = uniform(1e9, (4000,))
    results = {}
    for node in (LIF(decay, leak, high, high), LI(decay, leak)):
        dynamics = NeuronDynamics(node, "cpu")
        state = dynamics.initial_state(1)
        state.v.copy_(torch.linspace(-1, 1, 4000)[None])
        v = state.v.numpy().copy()
        found = dynamics.advance(torch.tensor(x)[None], state).v[0].numpy()
        expected = {
            "LIF": v + np.float32(0.3) * ((x + np.float32(0.1)) - v),
            "LI": v + np.float32(0.3) * ((np.float32(0.1) - v) + x),
        }[type(node).__name__]
        assert found.tobytes() == expected.tobytes()
        results[type(node).__name__] = found
    assert (results["LIF"] != results["LI"]).any()


def test_a_run_of_steps_equals_single_steps() -> None:
    node = CubaLIF(**{key: uniform(float(value[0]) / 3, (7,)) for key, value in SYNAPTIC.items()})
    dynamics = NeuronDynamics(node, "cpu")
    x = torch.randn(9, 2, 7)
    together = dynamics.advance(x, dynamics.initial_state(2), keep_current=True)
    state = dynamics.initial_state(2)
    runs = [dynamics.advance(step[None], state, keep_current=True) for step in x]
    assert 0 < float(together.output.mean()) < 0.9
    assert torch.equal(together.output, torch.cat([run.output for run in runs]))
    assert torch.equal(together.v, torch.cat([run.v for run in runs]))
    assert torch.equal(together.i, torch.cat([run.i for run in runs]))


def test_per_neuron_parameters_act_neuron_by_neuron() -> None:
    node = IF(np.array([0.5, 1.5], dtype=np.float32), np.array([0.0, -1.0], dtype=np.float32))
    graph = SpikingGraph(
        {"input": Input((2,)), "n": node, "output": Output((2,))}, (("input", "n"), ("n", "output")), 1e-3
    )
    recording = simulate(graph, SpikeRaster(torch.ones(3, 1, 2), kind="analog"), record="all")
    assert recording["n"].v is not None
    assert recording["n"].v[:, 0].tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
    assert recording.output.data[:, 0].tolist() == [[True, False], [True, False], [True, True]]


def test_a_uniform_parameter_becomes_one_number() -> None:
    assert parameter_tensor(uniform(0.5, (3, 4)), "cpu").shape == ()
    assert parameter_tensor(np.full((3, 4), 0.5, np.float32), "cpu").shape == ()
    assert parameter_tensor(np.arange(3, dtype=np.float32), "cpu").shape == (3,)


def test_pools_sum_and_average() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert stateless_function(SumPool2d((2, 2), (2, 2)), "cpu")(x).flatten().tolist() == [10, 18, 42, 50]
    padded = stateless_function(AvgPool2d((2, 2), (2, 2), (1, 1)), "cpu")(x).flatten().tolist()
    assert padded == [0, 0.75, 0.75, 3, 7.5, 4.5, 3, 6.75, 3.75]


def test_scale_rounds_once() -> None:
    """A fused multiply-add: the product is not rounded before the shift is added."""
    scale, shift, x = np.float32(1 + 2**-12), np.float32(-1.0), np.float32(1 + 2**-12)
    node = Scale(np.array([scale]), np.array([shift]))
    found = stateless_function(node, "cpu")(torch.tensor([[float(x)]])).item()
    once = float(np.float32(float(scale) * float(x) + float(shift)))
    twice = float(np.float32(scale * x) + shift)
    assert once != twice
    module = torch.nn.BatchNorm1d(1, eps=0.0).eval()
    with torch.no_grad():
        module.weight.fill_(float(scale))
        module.bias.fill_(float(shift))
        assert found == module(torch.tensor([[float(x)]])).item()


def test_exact_float32_restores_what_it_switched_off() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with exact_float32():
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()


def test_stateless_function_of_a_neuron_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="IF has memory"):
        stateless_function(IF(one(1.0), one(0.0)), "cpu")
