"""Float graphs in Loihi's integers: every number where the equations put it, and spikes that stay close."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

import slamp
from networks import box, cuba, enliven, iaf, li, spikes
from slamp.arithmetic import FixedPoint
from slamp.errors import GraphError, ProfileError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LIF,
    Affine,
    AvgPool2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain

LOIHI = slamp.load_profile("loihi2")


def float_chain(*nodes: Node, features: tuple[int, ...]) -> SpikingGraph:
    return chain(*nodes, features=features, arithmetic=slamp.Float32())


def quantized(graph: SpikingGraph, raster: SpikeRaster) -> SpikingGraph:
    return slamp.quantize(graph, LOIHI, slamp.calibrate(graph, raster))


def sample(features: int, *, steps: int = 30, batch: int = 6, rate: float = 0.3) -> SpikeRaster:
    rng = np.random.default_rng(1)
    return SpikeRaster(torch.tensor(rng.random((steps, batch, features)) < rate), DT)


def linear(weight: object) -> Linear:
    return Linear(frozen_array(np.asarray(weight, dtype=np.float32)))


def cuba_node(**changes: float) -> CubaLIF:
    values = {"decay_syn": 0.5, "decay_mem": 0.25, "v_leak": 0.0, "v_threshold": 0.5, "v_reset": 0.0} | changes
    return CubaLIF(**{key: uniform(value, (1,)) for key, value in values.items()})


def test_weights_thresholds_and_decays_lie_on_one_scale() -> None:
    graph = float_chain(linear([[0.5, -0.2503, 0.1017]]), cuba_node(), features=(3,))
    found = quantized(graph, sample(3))
    weight, neuron = found.weighted["n0"].weight, found.nodes["n1"]
    assert isinstance(found.arithmetic, FixedPoint)
    assert isinstance(neuron, CubaLIF)
    scale = 127 / 0.5
    assert weight.tolist() == [[127.0, -64.0, 26.0]]
    assert neuron.v_threshold.item() == round(scale * 0.5 / 0.25) * 64
    assert (neuron.decay_syn.item(), neuron.decay_mem.item()) == (0.5, 0.25)


def test_weights_of_one_sign_take_all_eight_bits() -> None:
    found = quantized(float_chain(linear([[0.5, 0.2503, 0.1017]]), cuba_node(), features=(3,)), sample(3))
    assert found.weighted["n0"].weight.tolist() == [[255.0, 128.0, 52.0]]


def test_the_membrane_is_measured_from_its_reset() -> None:
    graph = float_chain(
        linear([[0.5, -0.2503, 0.1017]]), cuba_node(v_leak=-0.2, v_reset=-0.2, v_threshold=0.3), features=(3,)
    )
    neuron = quantized(graph, sample(3)).nodes["n1"]
    assert isinstance(neuron, CubaLIF)
    assert neuron.v_threshold.item() == round(127 / 0.5 * 0.5 / 0.25) * 64
    assert (neuron.v_reset.item(), neuron.v_leak.item()) == (0.0, 0.0)


def test_a_bias_of_a_current_stays_one_and_others_move_to_the_membrane() -> None:
    affine = Affine(frozen_array(np.array([[0.5, -0.2511]])), frozen_array(np.array([0.07])))
    with_current = quantized(float_chain(affine, cuba_node(), features=(2,)), sample(2))
    assert isinstance(with_current.nodes["n0"], Affine)
    assert with_current.nodes["n0"].bias.tolist() == [18.0]  # 0.07 * 254
    lif = LIF(uniform(0.25, (1,)), uniform(0, (1,)), uniform(0.5, (1,)), uniform(0, (1,)))
    without = quantized(float_chain(affine, lif, features=(2,)), sample(2))
    neuron = without.nodes["n1"]
    assert isinstance(without.nodes["n0"], Linear)
    assert isinstance(neuron, LIF)
    assert neuron.v_leak.tolist() == [18 * 64.0]  # 0.07 * 254
    counting = quantized(float_chain(affine, IF(uniform(0.5, (1,)), uniform(0, (1,))), features=(2,)), sample(2))
    neuron = counting.nodes["n1"]
    assert isinstance(neuron, LIF)
    assert (neuron.decay_mem.item(), neuron.v_leak.item(), neuron.v_threshold.item()) == (0.0, 18 * 64.0, 127 * 64)


def test_weights_on_a_grid_keep_it() -> None:
    """As training with quantized weights leaves them: nothing is rounded, whatever their largest magnitude."""
    rng = np.random.default_rng(5)
    whole = rng.integers(-90, 91, (8, 20))
    graph = float_chain(linear(whole * np.float32(0.0137)), _layer(8), features=(20,))
    found = quantized(graph, sample(20)).weighted["n0"].weight
    assert np.array_equal(found, whole)
    coarse = float_chain(linear(np.sign(whole) * np.float32(0.3)), _layer(8), features=(20,))
    assert np.array_equal(quantized(coarse, sample(20)).weighted["n0"].weight, np.sign(whole) * 127)


def _layer(count: int) -> CubaLIF:
    values = (0.5, 0.25, 0.0, 0.5, 0.0)
    return CubaLIF(*(uniform(value, (count,)) for value in values))


def test_clipping_an_outlier_is_taken_where_it_saves_spikes() -> None:
    rng = np.random.default_rng(2)
    weight = (0.05 * rng.standard_normal((40, 60))).astype(np.float32)
    weight[0, 0] = 30.0  # with it, all others round to zero; its source hardly ever fires
    graph = float_chain(linear(weight), _layer(40), features=(60,))
    data = rng.random((40, 8, 60)) < 0.4
    data[..., 0] = False
    data[3, 0, 0] = True
    raster = SpikeRaster(torch.tensor(data), DT)
    found = quantized(graph, raster)
    assert (found.weighted["n0"].weight != 0).mean() > 0.9
    wanted, got = (slamp.simulate(each, raster).output.data for each in (graph, found))
    assert wanted.any()
    assert (wanted != got).double().mean() < 0.02


def test_paths_of_different_size_share_a_scale_by_exponents() -> None:
    nodes: dict[str, Node] = {
        "input": Input((2,)),
        "large": linear([[8.0, -3.011]]),
        "small": linear([[0.5, -0.2503]]),
        "neuron": cuba_node(),
        "output": Output((1,)),
    }
    hidden = {"first": linear(np.eye(2)), "spikes": _layer(2)}
    edges = (
        ("input", "first"),
        ("first", "spikes"),
        ("spikes", "small"),
        ("input", "large"),
        ("large", "neuron"),
        ("small", "neuron"),
        ("neuron", "output"),
    )
    order = ["input", "first", "spikes", "large", "small", "neuron", "output"]
    graph = SpikingGraph({name: {**nodes, **hidden}[name] for name in order}, edges, DT)
    found = quantized(graph, sample(2, rate=0.7))
    assert found.weighted["small"].weight.tolist() == [[127.0, -64.0]]
    assert found.weighted["large"].weight.tolist() == [[127.0 * 16, -48.0 * 16]]
    wide = graph.with_nodes({"large": linear([[800.0, -3.011]])})
    with pytest.raises(GraphError, match=r"large: weight: reaches 800, 203200 on the scale of its layer"):
        quantized(wide, sample(2, rate=0.7))


def test_mean_pools_become_sums() -> None:
    raster = spikes((1, 4, 4), rate=0.5)
    graph = float_chain(
        AvgPool2d((2, 2), (2, 2), (0, 0)),
        Flatten(0, 2),
        linear([[0.8, -0.4031, 0.2017, 0.6]]),
        cuba_node(),
        features=(1, 4, 4),
    )
    found = quantized(graph, raster)
    assert isinstance(found.nodes["n0"], SumPool2d)
    assert found.weighted["n2"].weight.tolist() == [[127.0, -64.0, 32.0, 95.0]]
    neuron = found.nodes["n3"]
    assert isinstance(neuron, CubaLIF)
    assert neuron.v_threshold.item() == round(127 / 0.2 * 0.5 / 0.25) * 64  # 0.8 / 4 is the largest weight


def test_slow_membranes_lower_the_scale_until_the_threshold_fits() -> None:
    graph = float_chain(linear([[0.5, -0.2503]]), cuba_node(decay_mem=0.001, v_threshold=1.0), features=(2,))
    found = quantized(graph, sample(2))
    neuron = found.nodes["n1"]
    assert isinstance(neuron, CubaLIF)
    assert neuron.v_threshold.item() == 131071 * 64
    assert found.weighted["n0"].weight.tolist() == [[66.0, -33.0]]


def dense_net(*cells: torch.nn.Module) -> SequentialState:
    return SequentialState(torch.nn.Linear(24, 32), cells[0], torch.nn.Linear(32, 10), cells[1])


def conv_net() -> SequentialState:
    return SequentialState(
        torch.nn.Conv2d(2, 6, 3, padding=1),
        box(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(6, 8, 3, stride=2, groups=2),
        iaf(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 2 * 2, 5),
        cuba(),
    )


NETS = {
    "LIFCell": (lambda: dense_net(cuba(), cuba()), (24,)),
    "LIFBoxCell": (lambda: dense_net(box(), box()), (24,)),
    "IAFCell": (lambda: dense_net(iaf(), iaf()), (24,)),
    "shifted": (lambda: dense_net(cuba(v_leak=-0.3, v_reset=-0.3, v_th=0.1), box()), (24,)),
    "convolutions": (conv_net, (2, 10, 10)),
}


@pytest.mark.parametrize("name", NETS)
def test_networks_of_norse_stay_close(name: str) -> None:
    make, features = NETS[name]
    net, raster = make(), spikes(features, rate=0.5, steps=30)
    assert enliven(net, raster)
    graph = slamp.capture(net, raster)
    found = quantized(graph, raster)
    wanted, got = (slamp.simulate(each, raster, record="spikes") for each in (graph, found))
    for layer in graph.spiking:
        old, new = wanted[layer].spikes, got[layer].spikes
        assert old is not None
        assert new is not None
        assert old.any()
        assert (old != new).double().mean() < 0.05


def test_a_readout_is_the_float_membrane_in_other_units() -> None:
    net = SequentialState(torch.nn.Linear(20, 12), cuba(), torch.nn.Linear(12, 3), li())
    raster = spikes((20,), rate=0.6)
    graph = slamp.capture(net, raster)
    found = quantized(graph, raster)
    readout = [name for name, node in found.nodes.items() if isinstance(node, CubaLI)]
    wanted, got = (slamp.simulate(each, raster).output.data.double() for each in (graph, found))
    assert len(readout) == 1
    assert float(wanted.abs().max()) > 0
    factor = float((got * wanted).sum() / wanted.square().sum())
    assert float((got / factor - wanted).abs().max() / wanted.abs().max()) < 0.2
    assert torch.corrcoef(torch.stack([wanted.flatten(), got.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (cuba_node(v_leak=0.1), r"n1: v_leak\[0\] is 0\.1 and v_reset 0; Loihi starts where it resets to"),
        (cuba_node(decay_mem=0.0), "n1: decay_mem is 0, so nothing reaches the membrane"),
        (cuba_node(v_threshold=-0.1), r"n1: v_threshold\[0\] is -0\.1, -\d+ on the scale of its weights"),
        (replace(cuba_node(), reset="subtract"), "n1: resets by subtraction, and Loihi resets to 0"),
        (cuba_node(v_threshold=1e-5), r"n1: v_threshold\[0\] is 1e-05, less than half a unit"),
        (cuba_node(decay_mem=1e-4), r"n1: decay_mem\[0\] is 0\.0001; allowed is 1/8192 to 1"),
        (cuba_node(decay_syn=1e-4), r"n1: decay_syn\[0\] is 0\.0001; allowed is 1/8192 to 1"),
        (CubaLI(uniform(0.5, (1,)), uniform(0.5, (1,)), uniform(0.3, (1,))), r"n1: v_leak is 0\.3; a readout on Loihi"),
    ],
)
def test_neurons_without_a_counterpart_are_named(node: Node, message: str) -> None:
    with pytest.raises((UnsupportedNodeError, GraphError), match=message):
        quantized(float_chain(linear([[0.5, -0.2]]), node, features=(2,)), sample(2))


def test_a_range_that_would_lose_the_threshold_is_not_taken() -> None:
    weight = np.full((1, 200), 0.5)
    weight[0, 0] = 4000.0
    fires = IF(uniform(7.0, (1,)), uniform(0.0, (1,)))
    found = quantized(float_chain(linear(weight), fires, features=(200,)), sample(200))
    neuron = found.nodes["n1"]
    assert isinstance(neuron, LIF)  # without a leak
    assert neuron.v_threshold.item() > 64
    assert found.weighted["n0"].weight[0, 1:].all()


def test_wiring_without_a_counterpart_is_named() -> None:
    with pytest.raises(UnsupportedNodeError, match="input: Input drives n0 without weights"):
        quantized(float_chain(cuba_node(), features=(1,)), sample(1))
    twice = float_chain(linear([[1.0]]), linear([[1.0]]), cuba_node(), features=(1,))
    with pytest.raises(UnsupportedNodeError, match="n0: Linear feeds n1 without spikes"):
        quantized(twice, sample(1))
    padded = float_chain(
        AvgPool2d((2, 2), (2, 2), (1, 1)), Flatten(0, 2), linear(np.ones((1, 9))), cuba_node(), features=(1, 4, 4)
    )
    with pytest.raises(UnsupportedNodeError, match="n0: mean pooling with padding"):
        quantized(padded, spikes((1, 4, 4)))
    affine = Affine(frozen_array(np.array([[0.001]])), frozen_array(np.array([900.0])))
    lif = LIF(uniform(0.25, (1,)), uniform(0, (1,)), uniform(0.001, (1,)), uniform(0, (1,)))
    with pytest.raises(GraphError, match=r"n1: a bias is .* in units of the membrane"):
        quantized(float_chain(affine, lif, features=(1,)), sample(1))


def test_what_quantize_is_given_is_checked() -> None:
    net = SequentialState(torch.nn.Linear(4, 3), iaf())
    raster = spikes((4,), rate=0.5)
    graph = slamp.capture(net, raster)
    activity = slamp.calibrate(graph, raster)
    with pytest.raises(ProfileError, match=r"generic: weights, states and decays have .* bits"):
        slamp.quantize(graph, slamp.load_profile("generic"), activity)
    with pytest.raises(ProfileError, match="quantize: profile is str; allowed is a Profile"):
        slamp.quantize(graph, "loihi2", activity)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ProfileError, match="quantize: activity is NoneType; allowed is what"):
        slamp.quantize(graph, LOIHI, None)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ProfileError, match="quantize: the activity was measured on graph"):
        slamp.quantize(graph, LOIHI, replace(activity, graph_hash="0" * 64))
    with pytest.raises(ProfileError, match="quantize: the activity keeps no samples"):
        slamp.quantize(graph, LOIHI, replace(activity, sample=None))
    integers = slamp.quantize(graph, LOIHI, activity)
    with pytest.raises(UnsupportedNodeError, match="graph: is in fixed point already"):
        slamp.quantize(integers, LOIHI, slamp.calibrate(integers, raster))
    values = SpikeRaster(torch.rand(5, 2, 4), DT, kind="analog")
    with pytest.raises(UnsupportedNodeError, match="input: takes fractions, which Loihi does not"):
        slamp.quantize(graph, LOIHI, slamp.calibrate(graph, values))
