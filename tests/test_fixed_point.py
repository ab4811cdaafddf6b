"""Loihi's integers: known answers by hand, every step against plain Python integers, what the chip cannot hold."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slamp
from slamp.arithmetic import Arithmetic, FixedPoint, SignMode, bias_format, common_exponent, weight_format
from slamp.errors import GraphError, RasterError, UnsupportedNodeError
from slamp.fixed_dynamics import FixedPointDynamics
from slamp.graph import SpikingGraph, load_graph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    Affine,
    AvgPool2d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Scale,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape

DT = 1e-3


def chain(*nodes: Node, features: tuple[int, ...], arithmetic: Arithmetic | None = None) -> SpikingGraph:
    """A sequential fixed-point graph; nodes are called n0, n1, ..."""
    named: dict[str, Node] = {"input": Input(features)} | {f"n{k}": node for k, node in enumerate(nodes)}
    shape = features
    for name, node in named.items():
        shape = output_shape(name, node, shape)
    named["output"] = Output(shape)
    names = list(named)
    return SpikingGraph(named, tuple(pairwise(names)), DT, arithmetic or FixedPoint())


def cuba(shape: tuple[int, ...], *, du: int = 0, dv: int = 0, vth: int = 100, bias: int = 0) -> CubaLIF:
    """Neurons by Lava's parameters: du, dv, threshold mantissa, bias."""
    return CubaLIF(
        uniform((du + 1) / 4096, shape),
        uniform(dv / 4096, shape),
        uniform(bias, shape),
        uniform(vth * 64, shape),
        uniform(0.0, shape),
    )


def linear(weight: object) -> Linear:
    return Linear(frozen_array(np.asarray(weight, dtype=np.float32)))


def ones(steps: int, *features: int) -> SpikeRaster:
    return SpikeRaster(torch.ones(steps, 1, *features, dtype=torch.bool), DT)


def lava_step(u: int, v: int, a: int, *, du: int, dv: int, vth: int, bias: int) -> tuple[int, int, bool]:
    """One step of Lava's PyLifModelBitAcc in Python's own integers (`lava/proc/lif/models.py`)."""

    def shrunk(value: int, keep: int) -> int:
        size = (abs(value) * keep) >> 12
        return size if value >= 0 else -size

    u = shrunk(u, 4096 - (du + 1)) + (a << 6)
    if u > 2**23:
        u -= 2**24
    elif u <= -(2**23):
        u += 2**24
    v = max(-(2**23) + 1, min(2**23 - 1, shrunk(v, 4096 - dv) + u + bias))
    fired = v > vth << 6
    return u, 0 if fired else v, fired


def test_a_trace_computed_by_hand() -> None:
    # weight 3, du = 2047 (half is lost), dv = 1024 (a quarter is lost), threshold 5 << 6 = 320
    graph = chain(linear([[3.0]]), cuba((1,), du=2047, dv=1024, vth=5), features=(1,))
    trace = slamp.simulate(graph, ones(4, 1), record="all")["n1"]
    assert trace.i is not None
    assert trace.v is not None
    assert trace.spikes is not None
    assert trace.i.flatten().tolist() == [192, 288, 336, 360]  # 192; 96 + 192; 144 + 192; 168 + 192
    # 192; 144 + 288 = 432 fires; 0 + 336 fires; 0 + 360 fires
    assert trace.v.flatten().tolist() == [192, 0, 0, 0]
    assert trace.spikes.flatten().tolist() == [False, True, True, True]
    assert (trace.v.dtype, trace.i.dtype) == (torch.int32, torch.int32)


def test_decay_rounds_toward_zero_for_both_signs() -> None:
    # one input of -1: u = -64, then |u| * 4095 >> 12 = 63, 62, ... toward zero: floor would give -64 forever
    graph = chain(linear([[-1.0]]), cuba((1,), du=0, dv=4096), features=(1,))
    data = torch.zeros(4, 1, 1, dtype=torch.bool)
    data[0] = True
    trace = slamp.simulate(graph, SpikeRaster(data, DT), record="all")["n1"]
    assert trace.i is not None
    assert trace.i.flatten().tolist() == [-64, -63, -62, -61]


def test_the_threshold_is_strict() -> None:
    graph = chain(linear([[5.0], [6.0]]), cuba((2,), du=4095, dv=4096, vth=5), features=(1,))
    assert slamp.simulate(graph, ones(1, 1)).output.data.flatten().tolist() == [False, True]


def test_the_current_wraps_and_the_membrane_saturates() -> None:
    weight = [[255.0 * 128] * 5]  # 163200 << 6 = 10444800 > 2^23
    graph = chain(linear(weight), cuba((1,), du=4095, dv=0, vth=131071), features=(5,))
    trace = slamp.simulate(graph, ones(2, 5), record="all")["n1"]
    assert trace.i is not None
    assert trace.v is not None
    assert trace.i.flatten().tolist() == [10444800 - 2**24] * 2
    assert trace.v.flatten().tolist() == [10444800 - 2**24, -(2**23) + 1]


def test_the_most_positive_current_does_not_wrap() -> None:
    # 131072 << 6 is 2^23 itself, which Lava keeps; its negative wraps to it
    positive = chain(linear([[16384.0] * 8]), cuba((1,), du=4095, vth=131071), features=(8,))
    negative = chain(linear([[-16384.0] * 8]), cuba((1,), du=4095, vth=131071), features=(8,))
    for graph in (positive, negative):
        i = slamp.simulate(graph, ones(1, 8), record="all")["n1"].i
        assert i is not None
        assert i.item() == 2**23


def test_negative_exponents_floor_the_sum() -> None:
    # weights 1/2 and -3/2: sums 0.5 -> 0, -1.5 -> -2, -1.0 -> -1
    graph = chain(linear([[0.5, -1.5]]), cuba((1,), du=4095, dv=4096), features=(2,))
    data = torch.tensor([[[True, False]], [[False, True]], [[True, True]]])
    i = slamp.simulate(graph, SpikeRaster(data, DT), record="all")["n1"].i
    assert i is not None
    assert (i.flatten() // 64).tolist() == [0, -2, -1]


@settings(max_examples=60, deadline=None)
@given(
    du=st.integers(-1, 4095),
    dv=st.integers(0, 4096),
    vth=st.integers(0, 131071),
    bias=st.integers(-4096, 4095).flatmap(lambda mant: st.integers(0, 7).map(lambda exp: mant << exp)),
    scale=st.sampled_from([10, 1000, 130000, 262143]),
    seed=st.integers(0, 2**31),
)
def test_every_step_is_that_of_plain_integers(du: int, dv: int, vth: int, bias: int, scale: int, seed: int) -> None:
    node = cuba((4,), du=du, dv=dv, vth=vth, bias=bias)
    drive = np.random.default_rng(seed).integers(-scale, scale + 1, (60, 2, 4))
    dynamics = FixedPointDynamics(node, "cpu")
    run = dynamics.advance(torch.tensor(drive), dynamics.initial_state(2), keep_current=True)
    for sample, neuron in np.ndindex(2, 4):
        u = v = 0
        for step in range(60):
            u, v, fired = lava_step(u, v, int(drive[step, sample, neuron]), du=du, dv=dv, vth=vth, bias=bias)
            cell = (step, sample, neuron)
            assert (run.i[cell].item(), run.v[cell].item(), bool(run.output[cell])) == (u, v, fired)


def test_a_wrong_reference_would_be_seen() -> None:
    """The comparison above fails if du is not offset by one."""
    node = cuba((1,), du=99, dv=0, vth=131071)
    dynamics = FixedPointDynamics(node, "cpu")
    run = dynamics.advance(torch.full((3, 1, 1), 50), dynamics.initial_state(1), keep_current=True)
    u = v = 0
    found = []
    for _ in range(3):
        u, v, _ = lava_step(u, v, 50, du=98, dv=0, vth=131071, bias=0)
        found.append(u)
    assert run.i.flatten().tolist() != found


def test_lif_if_and_readouts_follow_the_same_recurrence() -> None:
    shape = (1,)
    lif = LIF(uniform(0.25, shape), uniform(10, shape), uniform(64.0 * 9, shape), uniform(0, shape))
    integrate = IF(uniform(64.0 * 9, shape), uniform(0, shape))
    # 256 + 10; trunc(199.5) + 266 = 465; trunc(348.75) + 266 = 614 > 576 fires
    for node, expected in ((lif, [266, 465, 0]), (integrate, [256, 512, 0])):
        v = slamp.simulate(chain(linear([[4.0]]), node, features=(1,)), ones(3, 1), record="all")["n1"].v
        assert v is not None
        assert v.flatten().tolist() == expected
    readout = CubaLI(uniform(1.0, shape), uniform(0.0, shape), uniform(0, shape))
    run = slamp.simulate(chain(linear([[4.0]]), readout, features=(1,)), ones(3, 1))
    assert run.output.data.flatten().tolist() == [256.0, 512.0, 768.0]
    assert not run.output.is_spikes
    plain = LI(uniform(0.5, shape), uniform(0, shape))
    run = slamp.simulate(chain(linear([[4.0]]), plain, features=(1,)), ones(2, 1))
    assert run.output.data.flatten().tolist() == [256.0, 384.0]


def test_sum_pools_and_convolutions_are_exact() -> None:
    rng = np.random.default_rng(0)
    kernel = frozen_array(rng.integers(-128, 128, (6, 2, 3, 3)).astype(np.float32))
    conv = Conv2d(kernel, None, (2, 1), (1, 0), (1, 2), 2)
    readout = CubaLI(uniform(1.0, (6, 2, 1)), uniform(1.0, (6, 2, 1)), uniform(0, (6, 2, 1)))
    graph = chain(SumPool2d((2, 2), (2, 2)), conv, readout, Flatten(0, 2), features=(4, 9, 10))
    data = rng.random((3, 2, 4, 9, 10)) < 0.5
    found = slamp.simulate(graph, SpikeRaster(torch.tensor(data), DT)).output.data
    pooled = torch.tensor(data[..., :8, :]).double().reshape(6, 4, 4, 2, 5, 2).sum((3, 5))
    sums = torch.nn.functional.conv2d(pooled, torch.tensor(kernel).double(), None, (2, 1), (1, 0), (1, 2), 2)
    assert torch.equal(found.double().reshape(6, -1), (sums * 64).reshape(6, -1))


def test_large_sums_are_exact_because_the_bound_chooses_float64() -> None:
    # in units of 2^-8 the sum is 2^24 + 1, which float32 does not hold; floor(65536 + 1 / 256) is 65536
    weight = [[2.0**-8, 127 * 2.0**-8]]
    readout = CubaLI(uniform(1.0, (1,)), uniform(1.0, (1,)), uniform(0, (1,)))
    data = torch.tensor([[[(2**24 - 127) + 1.0, 1.0]], [[(2**24 - 127) - 1.0, 1.0]]])
    found = slamp.simulate(
        chain(linear(weight), readout, features=(2,)), SpikeRaster(data, DT, kind="analog"), record="all"
    )["n1"].i
    assert found is not None
    assert found.flatten().tolist() == [65536 * 64, 65535 * 64]


def test_sums_that_lava_cannot_hold_are_refused() -> None:
    graph = chain(linear([[16384.0] * 1025]), cuba((1,)), features=(1025,))
    with pytest.raises(GraphError, match="n0: its sums may reach 16793600; allowed is 16777216"):
        slamp.simulate(graph, ones(1, 1025))


def test_sums_of_several_layers_that_lava_cannot_hold_are_refused() -> None:
    half = linear([[16384.0] * 600])
    nodes: dict[str, Node] = {"input": Input((600,)), "a": half, "b": half, "n": cuba((1,)), "output": Output((1,))}
    edges = (("input", "a"), ("input", "b"), ("a", "n"), ("b", "n"), ("n", "output"))
    graph = SpikingGraph(nodes, edges, DT, FixedPoint())
    with pytest.raises(GraphError, match="n: the sum of its inputs may reach 19660800; allowed is 16777216"):
        slamp.simulate(graph, ones(1, 600))


def test_graded_inputs_must_be_whole() -> None:
    graph = chain(linear([[1.0]]), cuba((1,)), features=(1,))
    with pytest.raises(RasterError, match=r"raster: \[0, 0, 0\] is 0.5; a fixed-point graph takes spikes or whole"):
        slamp.simulate(graph, SpikeRaster(torch.full((1, 1, 1), 0.5), DT))


@pytest.mark.parametrize(
    ("weight", "mantissa", "exponent", "mode"),
    [
        ([[127, -128]], [[254, -256]], -1, SignMode.MIXED),
        ([[254, -256]], [[254, -256]], 0, SignMode.MIXED),
        ([[255, 0]], [[255, 0]], 0, SignMode.EXCITATORY),
        ([[-255, -1]], [[-255, -1]], 0, SignMode.INHIBITORY),
        ([[0.5, 0.25]], [[2, 1]], -2, SignMode.EXCITATORY),
        ([[1024, 0]], [[8, 0]], 7, SignMode.EXCITATORY),
        ([[0, 0]], [[0, 0]], 0, SignMode.EXCITATORY),
    ],
)
def test_how_the_chip_holds_weights(weight: object, mantissa: object, exponent: int, mode: SignMode) -> None:
    found = weight_format(np.asarray(weight, dtype=np.float32))
    assert found is not None
    assert (found.mantissa.tolist(), found.exponent, found.sign_mode) == (mantissa, exponent, mode)
    assert np.array_equal(found.mantissa * 2.0**found.exponent, np.asarray(weight, dtype=np.float64))


@pytest.mark.parametrize("weight", [[[128, -1]], [[256, 1]], [[1 / 512, 1]], [[-256, -1]], [[129, -3]]])
def test_weights_the_chip_cannot_hold(weight: object) -> None:
    assert weight_format(np.asarray(weight, dtype=np.float32)) is None
    with pytest.raises(GraphError, match=r"n0: weight\[0, [01]\] is .* allowed are 8 bits, for weights of"):
        chain(linear(weight), cuba((1,)), features=(2,))


def test_biases_have_a_mantissa_and_an_exponent() -> None:
    assert bias_format(0) == (0, 0)
    assert bias_format(4096) == (2048, 1)
    assert bias_format(-4096) == (-4096, 0)
    assert bias_format(4095 << 7) == (4095, 7)
    assert bias_format(8193) is None
    assert bias_format(4096 << 7) is None


def test_common_exponents() -> None:
    assert common_exponent(np.array([8.0, -12.0])) == 2
    assert common_exponent(np.array([0.75])) == -2


def neuron(**changes: float) -> CubaLIF:
    values = {"decay_syn": 0.5, "decay_mem": 0.5, "v_leak": 0.0, "v_threshold": 64.0, "v_reset": 0.0} | changes
    return CubaLIF(**{key: uniform(value, (1,)) for key, value in values.items()})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (neuron(decay_syn=0.3), r"n1: decay_syn\[0\] is 0.3.*; allowed are whole multiples of 1/4096"),
        (neuron(v_threshold=65.0), r"n1: v_threshold\[0\] is 65; allowed are 64 times 0 to 131071"),
        (neuron(v_threshold=-64.0), r"n1: v_threshold\[0\] is -64"),
        (neuron(v_threshold=2.0**23), r"n1: v_threshold\[0\] is 8388608"),
        (neuron(v_reset=1.0), r"n1: v_reset\[0\] is 1; allowed are 0"),
        (neuron(v_leak=0.5), r"n1: v_leak\[0\] is 0.5; allowed are -4096 to 4095 times 2\^0 to 2\^7"),
        (neuron(v_leak=8193.0), r"n1: v_leak\[0\] is 8193"),
        (LIF(*(uniform(0.0, (1,)) for _ in range(4)), reset="subtract"), "n1: resets by subtraction"),
        (Scale(frozen_array(np.ones(1)), frozen_array(np.ones(1))), "n1: Scale has no fixed-point meaning"),
    ],
)
def test_what_fixed_point_cannot_hold_is_named(node: Node, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        chain(linear([[1.0]]), node, features=(1,))


def test_mean_pools_have_no_fixed_point_meaning() -> None:
    with pytest.raises(GraphError, match="n0: AvgPool2d has no fixed-point meaning"):
        chain(AvgPool2d((2, 2), (2, 2), (0, 0)), cuba((1, 1, 1)), features=(1, 2, 2))


def test_a_fixed_point_graph_is_saved_and_is_not_its_float_twin(tmp_path: Path) -> None:
    graph = chain(Affine(frozen_array(np.array([[3.0]])), frozen_array(np.array([2.0]))), neuron(), features=(1,))
    graph.save(tmp_path / "graph.npz")
    found = load_graph(tmp_path / "graph.npz")
    assert found.hash == graph.hash
    assert isinstance(found.arithmetic, FixedPoint)
    assert chain(graph.nodes["n0"], neuron(), features=(1,), arithmetic=slamp.Float32()).hash != graph.hash


def test_a_bias_of_weights_is_a_line_that_is_always_on() -> None:
    node = Affine(frozen_array(np.array([[3.0]])), frozen_array(np.array([2.0])))
    graph = chain(node, cuba((1,), du=4095, dv=4096, vth=131071), features=(1,))
    data = torch.tensor([[[True]], [[False]]])
    i = slamp.simulate(graph, SpikeRaster(data, DT), record="all")["n1"].i
    assert i is not None
    assert i.flatten().tolist() == [5 * 64, 2 * 64]


def test_calibration_counts_what_simulation_does() -> None:
    rng = np.random.default_rng(3)
    weight = rng.integers(-20, 40, (12, 30)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.5] = 0
    graph = chain(linear(weight), cuba((12,), du=1000, dv=300, vth=90), features=(30,))
    raster = SpikeRaster(torch.tensor(rng.random((40, 5, 30)) < 0.2), DT)
    activity = slamp.calibrate(graph, raster)
    spikes = slamp.simulate(graph, raster).output.data
    assert spikes.any()
    assert np.array_equal(activity.neurons["n1"].spike_counts, spikes.sum((0, 1)).numpy() / 5)
    reached = np.count_nonzero(weight, axis=0)
    assert activity.sops == pytest.approx(float((raster.numpy().sum((0, 1)) * reached).sum()) / 5)


def test_nir_does_not_take_fixed_point(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedNodeError, match="graph: is in fixed point, and NIR means real numbers"):
        slamp.export(chain(linear([[1.0]]), cuba((1,)), features=(1,)), to="nir", directory=tmp_path / "out")
    assert not (tmp_path / "out").exists()
