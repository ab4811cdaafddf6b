from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch.nn.utils import prune

from networks import (
    DT,
    ZOO,
    assert_evidence,
    box,
    build,
    cuba,
    enliven,
    iaf,
    li,
    li_box,
    randomize_normalizations,
    run_norse,
    spikes,
    spiking_shares,
)
from slamp.capture import ModuleReport, capture, check_module, read_graph
from slamp.errors import CaptureError, RasterError, SlampError, UnsupportedModuleError
from slamp.nodes import CubaLIF, Scale
from slamp.raster import SpikeRaster
from slamp.read_sites import node_name
from slamp.running import TRACED_STEPS
from slamp.simulate import simulate

Linear = torch.nn.Linear
TRACED_CALLS = 1 + TRACED_STEPS  # of a layer that takes one step: the attempt with all steps at once, then step by step
# torch says once that padding="same" with an even kernel copies the input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def assert_captured_cell_for_cell(net: SequentialState, features: tuple[int, ...], seed: int) -> None:
    """Capture compares every neuron layer itself; the output is compared here again, by other code."""
    raster = spikes(features, steps=12, batch=3, rate=0.4, seed=seed)
    assume(enliven(net, raster))
    graph = capture(net, raster)
    recording = simulate(graph, raster, record="spikes")
    assert_evidence(graph, recording)
    assert torch.equal(recording.output.data.to(torch.float32), run_norse(net, raster))


def parameter(
    rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...], per_neuron: bool
) -> torch.Tensor:
    """A float32 parameter: one number, or one per neuron, or one per channel."""
    if not per_neuron:
        return torch.tensor(float(rng.uniform(low, high)))
    kept = tuple(size if axis == 0 or rng.random() < 0.5 else 1 for axis, size in enumerate(shape))
    return torch.tensor(rng.uniform(low, high, kept), dtype=torch.float32)


def drawn_cell(kind: str, rng: np.random.Generator, shape: tuple[int, ...], per_neuron: bool) -> torch.nn.Module:
    def draw(low: float, high: float) -> torch.Tensor:
        return parameter(rng, low, high, shape, per_neuron)

    resting = {"v_leak": draw(-0.2, 0.2)}
    firing = {"v_th": draw(0.3, 1.2), "v_reset": draw(-0.4, 0.25), "alpha": torch.tensor(10.0)}
    methods = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")
    method = methods[int(rng.integers(len(methods)))]
    match kind:
        case "box" | "box_subtract":
            subtract = kind == "box_subtract"
            return box(subtract=subtract, tau_mem_inv=draw(20, 900), method=method, **resting, **firing)
        case "cuba":
            return cuba(tau_syn_inv=draw(50, 900), tau_mem_inv=draw(20, 900), method=method, **resting, **firing)
        case "iaf":
            return iaf(v_th=firing["v_th"], v_reset=firing["v_reset"])
        case "li":
            return li(tau_syn_inv=draw(50, 900), tau_mem_inv=draw(20, 900), **resting)
        case _:
            return li_box(tau_mem_inv=draw(20, 900), **resting)


CELLS = st.sampled_from(["box", "box_subtract", "cuba", "iaf"])
READOUTS = st.sampled_from(["box", "box_subtract", "cuba", "iaf", "li", "li_box"])
SEEDS = st.integers(0, 2**31 - 1)
QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
THOROUGH = settings(QUICK, max_examples=150)


def shape_after(modules: list[torch.nn.Module], features: tuple[int, ...]) -> tuple[int, ...]:
    """Shape behind stateless modules."""
    with torch.no_grad():
        return tuple(torch.nn.Sequential(*copy.deepcopy(modules)).eval()(torch.zeros(1, *features)).shape[1:])


def too_small(module: torch.nn.Module, features: tuple[int, ...]) -> bool:
    try:
        return min(shape_after([module], features)[1:]) < 4
    except RuntimeError:  # the kernel is larger than its input
        return True


@st.composite
def dense_nets(draw: st.DrawFn) -> tuple[SequentialState, tuple[int, ...], int]:
    seed = draw(SEEDS)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features = draw(st.integers(5, 20))
    layers, size = [], features
    count = draw(st.integers(1, 3))
    for index in range(count):
        out = draw(st.integers(6, 24))
        part: list[torch.nn.Module] = [Linear(size, out, bias=draw(st.booleans()))]
        if draw(st.booleans()):
            part.append(torch.nn.BatchNorm1d(out, affine=draw(st.booleans())))
        part.append(draw(st.sampled_from([torch.nn.Identity(), torch.nn.Dropout(0.5)])))
        kind = draw(READOUTS if index == count - 1 else CELLS)
        part.append(drawn_cell(kind, rng, (out,), draw(st.booleans())))
        if draw(st.booleans()):
            part = [SequentialState(*part)]
        elif draw(st.booleans()):
            part = [torch.nn.Sequential(*part[:-1]), part[-1]]
        layers += part
        size = out
    net = SequentialState(*layers)
    randomize_normalizations(net, rng)
    return net, (features,), seed


@st.composite
def conv_nets(draw: st.DrawFn) -> tuple[SequentialState, tuple[int, ...], int]:
    seed = draw(SEEDS)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features = (2, draw(st.integers(9, 13)), draw(st.integers(9, 13)))
    layers: list[torch.nn.Module] = []
    shape = features
    for _ in range(draw(st.integers(1, 2))):
        groups = draw(st.sampled_from([1, 2]))
        padding = draw(st.sampled_from(["same", "valid", 0, 1, 2, (1, 0), (0, 2)]))
        stride = 1 if padding == "same" else draw(st.sampled_from([1, 2, (1, 2), (2, 1)]))
        kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
        dilation = draw(st.sampled_from([1, 2, (2, 1)])) if min(shape[1:]) > 6 else 1
        biased = draw(st.booleans())
        convolution = torch.nn.Conv2d(shape[0], 4, kernel, stride, padding, dilation, groups, bias=biased)
        if too_small(convolution, shape):  # draw on instead of starting anew, or hardly a deep network would be left
            convolution = torch.nn.Conv2d(shape[0], 4, kernel, 1, "same", 1, groups, bias=biased)
        part: list[torch.nn.Module] = [convolution]
        if draw(st.booleans()):
            part.append(torch.nn.BatchNorm2d(4))
        shape = shape_after(part, shape)
        part.append(drawn_cell(draw(CELLS), rng, shape, draw(st.booleans())))
        pool = draw(st.sampled_from(["none", "sum", "sum_stride", "average", "average_padded"]))
        if pool != "none":
            pools = {
                "sum": torch.nn.LPPool2d(1, 2),
                "sum_stride": torch.nn.LPPool2d(1.0, (3, 2), stride=(1, 2)),
                "average": torch.nn.AvgPool2d((2, 3), stride=2),
                "average_padded": torch.nn.AvgPool2d(3, stride=2, padding=1),
            }
            if not too_small(pools[pool], shape):
                part.append(pools[pool])
                shape = shape_after([pools[pool]], shape)
        layers += [SequentialState(*part)] if draw(st.booleans()) else part
    layers += [torch.nn.Flatten(draw(st.sampled_from([1, -3]))), torch.nn.Dropout(0.2)]
    layers += [Linear(int(np.prod(shape)), 9, bias=draw(st.booleans())), drawn_cell(draw(READOUTS), rng, (9,), False)]
    net = SequentialState(*layers)
    randomize_normalizations(net, rng)
    return net, features, seed


@st.composite
def conv_1d_nets(draw: st.DrawFn) -> tuple[SequentialState, tuple[int, ...], int]:
    seed = draw(SEEDS)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features = (2, draw(st.integers(9, 14)))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, 3]))
    convolution = torch.nn.Conv1d(
        2,
        6,
        draw(st.integers(1, 4)),
        1 if padding == "same" else draw(st.integers(1, 2)),
        padding,
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    )
    stem: list[torch.nn.Module] = [convolution]
    if draw(st.booleans()):
        stem.append(torch.nn.BatchNorm1d(6))
    shape = shape_after(stem, features)
    net = SequentialState(
        *stem,
        drawn_cell(draw(CELLS), rng, shape, draw(st.booleans())),
        torch.nn.Flatten(),
        Linear(int(np.prod(shape)), 9),
        drawn_cell(draw(READOUTS), rng, (9,), draw(st.booleans())),
    )
    randomize_normalizations(net, rng)
    return net, features, seed


Drawn = tuple[SequentialState, tuple[int, ...], int]


@QUICK
@given(dense_nets())
def test_random_dense_networks_are_captured_cell_for_cell(drawn: Drawn) -> None:
    assert_captured_cell_for_cell(*drawn)


@QUICK
@given(conv_nets())
def test_random_convolutional_networks_are_captured_cell_for_cell(drawn: Drawn) -> None:
    assert_captured_cell_for_cell(*drawn)


@QUICK
@given(conv_1d_nets())
def test_random_one_dimensional_networks_are_captured_cell_for_cell(drawn: Drawn) -> None:
    assert_captured_cell_for_cell(*drawn)


@pytest.mark.slow
@pytest.mark.parametrize("nets", [dense_nets, conv_nets, conv_1d_nets], ids=lambda nets: nets.__name__)
def test_many_random_networks_are_captured_cell_for_cell(nets: Callable[[], st.SearchStrategy[Drawn]]) -> None:
    @THOROUGH
    @given(nets())
    def check(drawn: Drawn) -> None:
        assert_captured_cell_for_cell(*drawn)

    check()


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_captured_cell_for_cell(name: str) -> None:
    net, raster = build(name)
    graph = capture(net, raster)
    assert_evidence(graph, simulate(graph, raster, record="spikes"))


class Late:
    """Changes what a module gives from a call on that only the comparison reaches: hooks are part of what is traced."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], *, only: int | None = None) -> None:
        self.change, self.calls, self.only = change, 0, only

    def __call__(self, module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        self.calls += 1
        compared = self.calls - 1 - TRACED_CALLS
        if compared < 0 or self.only not in (None, compared):
            return None
        return (self.change(output[0]), output[1]) if isinstance(output, tuple) else self.change(output)


def test_a_neuron_module_used_twice_is_compared_at_both_places() -> None:
    cell = box()
    net = SequentialState(Linear(8, 10), cell, Linear(10, 10), cell)
    raster = spikes((8,))
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[2].weight.mul_(6)
    graph = capture(net, raster)
    assert_evidence(graph, simulate(graph, raster, record="spikes"))
    net[2].register_forward_hook(Late(lambda output: output + 0.3))
    with pytest.raises(CaptureError, match=r"^1_2: step \d+, sample \d, neuron"):
        capture(net, raster)


def test_parameters_name_the_weights_of_the_module() -> None:
    net, raster = build("conv_pool_norm")
    graph = capture(net, raster)
    assert graph.parameters["0_0"] == "0.0.weight"
    for name, path in graph.parameters.items():
        assert np.array_equal(graph.weighted[name].weight, net.get_parameter(path).detach().numpy())
    assert set(graph.parameters) == set(graph.weighted)


def test_dropout_and_identity_vanish() -> None:
    net = SequentialState(torch.nn.Identity(), Linear(4, 3), torch.nn.Dropout(0.5), box())
    graph, _ = read_graph(net, (4,), 1e-3)
    assert list(graph.nodes) == ["input", "1", "3", "output"]


def test_decays_are_computed_as_norse_computes_them() -> None:
    graph, _ = read_graph(SequentialState(Linear(4, 3), cuba(tau_syn_inv=123.4, tau_mem_inv=77.7)), (4,), 1e-3)
    node = graph.nodes["1"]
    assert isinstance(node, CubaLIF)
    assert node.decay_mem[0] == (1e-3 * torch.tensor(77.7)).item()
    assert node.decay_syn[0] == (1e-3 * torch.tensor(123.4)).item()


def test_batch_normalization_without_parameters() -> None:
    net = SequentialState(Linear(8, 12), torch.nn.BatchNorm1d(12, affine=False), box())
    randomize_normalizations(net, np.random.default_rng(0))
    raster = spikes((8,))
    graph = capture(net, raster)
    assert isinstance(graph.nodes["1"], Scale)
    assert_evidence(graph, simulate(graph, raster, record="spikes"))


def snapshot(net: torch.nn.Module) -> dict[str, Any]:
    cells = [module for module in net.modules() if isinstance(getattr(module, "p", None), tuple)]
    return {
        "training": [module.training for module in net.modules()],
        "state": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "requires_grad": [parameter.requires_grad for parameter in net.parameters()],
        "cell_gradients": [[getattr(value, "requires_grad", None) for value in cell.p] for cell in cells],
        "hooks": [list(module._forward_hooks) for module in net.modules()],
        "pre_hooks": [list(module._forward_pre_hooks) for module in net.modules()],
        "gradients": [parameter.grad for parameter in net.parameters()],
        "keys": [sorted(vars(module)) for module in net.modules()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, tensor in before.pop("state").items():
        assert torch.equal(tensor, after["state"][name]), name
    after.pop("state")
    assert before == after


@pytest.mark.parametrize("name", ZOO)
def test_the_module_is_left_as_it_was_found(name: str) -> None:
    net, raster = build(name)
    net[0].eval()
    list(net.children())[-1].train()
    next(net.parameters()).requires_grad = False
    net[2].register_forward_hook(lambda module, inputs, output: None)
    before, generator = snapshot(net), torch.get_rng_state()
    capture(net, raster)
    assert_same(before, snapshot(net))
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_module_is_left_as_it_was_found_after_a_failure() -> None:
    net, raster = build("dense_if")
    net[0].register_forward_hook(Late(lambda output: output + 1))
    before = snapshot(net)
    with pytest.raises(CaptureError):
        capture(net, raster)
    assert_same(before, snapshot(net))


def test_capture_runs_under_autocast_and_in_training_mode() -> None:
    net, raster = build("conv_pool_norm")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = capture(net.train(), raster)
    assert graph.hash == capture(net.eval(), raster).hash


def test_a_hook_that_changes_a_layer_is_found_with_layer_step_sample_and_neuron() -> None:
    net, raster = build("dense_box")

    def flip(spikes_: torch.Tensor) -> torch.Tensor:
        changed = spikes_.clone()
        changed[2, 11] = 1 - changed[2, 11]
        return changed

    net[3].register_forward_hook(Late(flip, only=6))
    with pytest.raises(
        CaptureError, match=r"^3: step 6, sample 2, neuron \[11\]: the module gives .*membrane.*; 1 cells"
    ):
        capture(net, raster)


def test_a_hook_on_a_convolution_is_found_at_its_neurons() -> None:
    net, raster = build("conv_box")
    net[0].register_forward_hook(Late(lambda output: output.roll(1, dims=1)))
    with pytest.raises(CaptureError, match=r"^1: step \d+, sample \d, neuron \[\d, \d, \d\]"):
        capture(net, raster)


@pytest.mark.parametrize("field", ["v_th", "v_reset", "v_leak", "tau_mem_inv", "tau_syn_inv"])
def test_a_cell_that_computes_with_other_parameters_is_found(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, raster = build("dense_cuba")
    original = net[1].activation

    def otherwise(x: torch.Tensor, state: Any, p: Any, dt: float) -> Any:
        return original(x, state, p._replace(**{field: getattr(p, field) * 1.2 + 0.01}), dt)

    monkeypatch.setattr(net[1], "activation", otherwise)
    with pytest.raises(CaptureError, match=r"^1: step \d+, sample \d, neuron \[\d+\]"):
        capture(net, raster)


def test_a_readout_that_differs_in_the_last_bit_is_found() -> None:
    net, raster = build("dense_cuba")
    net[4].register_forward_hook(Late(lambda output: output * (1 + 2**-22)))
    with pytest.raises(CaptureError, match=r"^5: step 0.*CubaLI"):
        capture(net, raster)


def test_a_hook_on_the_last_module_is_found_in_the_output() -> None:
    net, raster = build("dense_if")
    net[4].register_forward_hook(Late(lambda output: output.roll(1, dims=1)))
    with pytest.raises(CaptureError, match=r"^output: step \d+.*Output"):
        capture(net, raster)


def test_a_hook_of_operations_is_captured_with_the_module() -> None:
    net, raster = build("dense_if")
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    graph = capture(net, raster)
    assert isinstance(graph.nodes[graph.targets("0")[0]], Scale)
    assert simulate(graph, raster, record="spikes").output.data.any()


def test_a_hook_that_is_not_captured_is_named_by_its_line() -> None:
    net, raster = build("dense_if")
    net[0].register_forward_hook(lambda module, inputs, output: output.roll(1, dims=1))
    with pytest.raises(UnsupportedModuleError, match=r"test_capture\.py:\d+: 0: roll is not captured"):
        capture(net, raster)


def test_a_hook_that_changes_a_shape_is_found() -> None:
    net, raster = build("dense_if")
    net[4].register_forward_hook(Late(lambda output: output[:, :2]))
    with pytest.raises(CaptureError, match=r"output: the module gives shape \(4, 2\), the graph \(4, 5\)"):
        capture(net, raster)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    net, raster = build("dense_if")
    with torch.no_grad():
        net[2].weight[1, 3] = bad
    with pytest.raises(CaptureError, match=r"2: weight\[1, 3\] is .*; allowed are finite numbers"):
        capture(net, raster)


def test_a_decay_above_one_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"1: decay_mem is 1\.5; allowed is 0 to 1; .*smaller dt"):
        capture(SequentialState(Linear(4, 3), box(tau_mem_inv=1500.0)), spikes((4,)))


def pruned_linear() -> torch.nn.Module:
    return prune.l1_unstructured(Linear(4, 3), "weight", 2)


def normed_linear(norm: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls its old-style hooks deprecated
        return norm(Linear(4, 3))


DENSE_4 = (4,)
IMAGE = (2, 6, 6)

REFUSED: dict[str, tuple[Callable[[], list[torch.nn.Module]], tuple[int, ...], str]] = {
    "unknown": (lambda: [torch.nn.Bilinear(4, 4, 3)], DENSE_4, "0: Bilinear.*missing 1 required.*'input2'"),
    "softplus": (lambda: [Linear(4, 3), torch.nn.Softplus(), box()], DENSE_4, "1: Softplus is not captured; use the"),
    "relu": (lambda: [Linear(4, 3), torch.nn.ReLU(), box()], DENSE_4, "1: ReLU is not captured; behind spikes drop it"),
    "lstm": (lambda: [torch.nn.LSTM(4, 3), box()], DENSE_4, "0: LSTM is not captured; use LIFRecurrentCell"),
    "rnn": (lambda: [torch.nn.RNN(4, 3), box()], DENSE_4, "0: RNN is not captured; use LIFRecurrentCell"),
    "adaptive": (lambda: [Linear(4, 3), norse.LIFAdExCell()], DENSE_4, "1: .*LIFAdExCell is not captured.*LSNNCell"),
    "max_pool": (
        lambda: [torch.nn.Conv2d(2, 3, 3), torch.nn.MaxPool2d(2), box()],
        IMAGE,
        r"1: MaxPool2d takes the largest of values that are no spikes; .*LPPool2d\(1, k\)",
    ),
    "bernoulli": (
        lambda: [Linear(4, 3), box(method="logistic")],
        DENSE_4,
        "1: spike method 'logistic' is probabilistic",
    ),
    "adjoint": (
        lambda: [Linear(4, 3), cuba(method="adjoint")],
        DENSE_4,
        "1: spike method 'adjoint' is probabilistic or",
    ),
    "double": (lambda: [Linear(4, 3).double(), box()], DENSE_4, "0: weight is torch.float64; .*call net.float"),
    "half": (lambda: [Linear(4, 3).half(), box()], DENSE_4, "0: weight is torch.float16"),
    "complex": (lambda: [Linear(4, 3, dtype=torch.complex64), box()], DENSE_4, "0: weight is torch.complex64"),
    "meta": (lambda: [Linear(4, 3, device="meta"), box()], DENSE_4, "0: weight is on the meta device"),
    "double_parameter": (
        lambda: [Linear(4, 3), box(v_th=torch.ones(3, dtype=torch.float64))],
        DENSE_4,
        "1: v_th is torch.float64; allowed is float32",
    ),
    "pruned": (
        lambda: [pruned_linear(), box()],
        DENSE_4,
        "0: the weight is no parameter.*L1Unstructured.*prune.remove first",
    ),
    "weight_norm": (
        lambda: [normed_linear(torch.nn.utils.weight_norm), box()],
        DENSE_4,
        "0: the weight is no parameter but made before each call by WeightNorm; call .*remove_weight_norm",
    ),
    "spectral_norm": (
        lambda: [normed_linear(torch.nn.utils.spectral_norm), box()],
        DENSE_4,
        "0: the weight is no parameter .*SpectralNorm; call .*remove_spectral_norm",
    ),
    "plain_number": (
        lambda: [Linear(4, 3), LIFBoxCell(LIFBoxParameters(v_leak=0.0))],
        DENSE_4,
        r"1: v_leak is the plain number 0.0, which norse cannot run; use torch.tensor\(0.0\)",
    ),
    "ceil_mode": (lambda: [torch.nn.AvgPool2d(4, ceil_mode=True), box()], IMAGE, "0: AvgPool2d with ceil_mode"),
    "divisor": (
        lambda: [torch.nn.AvgPool2d(2, divisor_override=3), box()],
        IMAGE,
        "0: AvgPool2d with .*divisor_override",
    ),
    "padding_not_counted": (
        lambda: [torch.nn.AvgPool2d(2, padding=1, count_include_pad=False), box()],
        IMAGE,
        "count_include_pad=False",
    ),
    "norm_2": (lambda: [torch.nn.LPPool2d(2, 2), box()], IMAGE, "0: LPPool2d with norm_type 2.*allowed is norm_type 1"),
    "lp_ceil": (lambda: [torch.nn.LPPool2d(1, 4, ceil_mode=True), box()], IMAGE, "0: LPPool2d .*ceil_mode True"),
    "linear_on_image": (lambda: [Linear(6, 3), box()], IMAGE, r"0: Linear receives shape \(2, 6, 6\).*Flatten before"),
    "flatten_batch": (
        lambda: [torch.nn.Flatten(0), box()],
        IMAGE,
        "0: Flatten gives .*, whose first axis is not the batch",
    ),
    "flatten_beyond": (
        lambda: [torch.nn.Flatten(3), box()],
        DENSE_4,
        "0: Flatten receives .* out of range",
    ),
    "no_statistics": (
        lambda: [Linear(4, 3), torch.nn.BatchNorm1d(3, track_running_stats=False), box()],
        DENSE_4,
        "1: BatchNorm1d has no running statistics.*use track_running_stats=True",
    ),
    "norm_2d_on_dense": (
        lambda: [Linear(4, 3), torch.nn.BatchNorm2d(3), box()],
        DENSE_4,
        r"1: BatchNorm2d receives shape \(3,\) per sample, allowed is \(3, y, x\)",
    ),
    "norm_1d_on_image": (
        lambda: [torch.nn.BatchNorm1d(2), box()],
        IMAGE,
        r"0: BatchNorm1d .*\(2, 6, 6\) .*, allowed is \(2,\) or",
    ),
    "other_dt": (
        lambda: [Linear(4, 3), box(), Linear(3, 2), box(dt=2e-3)],
        DENSE_4,
        "3: dt is 0.002 s, .*0.001 s; use one dt",
    ),
    "no_neurons": (lambda: [Linear(4, 3)], DENSE_4, "holds no neurons"),
    "neurons_in_sequential": (
        lambda: [torch.nn.Sequential(Linear(4, 3), box())],
        DENSE_4,
        r"0\.1: LIFBoxCell starts anew in step 1; hand the state.*torch.nn.Sequential does not",
    ),
    "state_in_sequential": (
        lambda: [torch.nn.Sequential(SequentialState(Linear(4, 3), box()))],
        DENSE_4,
        r"0\.0\.1: LIFBoxCell starts anew in step 1; hand",
    ),
}


class Doubled(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def tied_linears() -> list[torch.nn.Module]:
    first, second = Linear(4, 4), Linear(4, 4)
    second.weight = first.weight
    return [first, box(), second, box()]


def shared_linear() -> list[torch.nn.Module]:
    linear = Linear(4, 4)
    return [linear, box(), linear, box()]


def padded(mode: str) -> list[torch.nn.Module]:
    return [
        torch.nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=mode),
        box(),
        torch.nn.Flatten(),
        Linear(144, 5),
        box(),
    ]


TAKEN: dict[str, tuple[Callable[[], list[torch.nn.Module]], tuple[int, ...], str]] = {
    "subclass": (lambda: [Doubled(4, 6), box()], DENSE_4, "Scale"),
    "relu": (lambda: [Linear(4, 6), box(), torch.nn.ReLU(), Linear(6, 3), box()], DENSE_4, ""),
    "recurrent": (lambda: [norse.LIFRecurrentCell(4, 6, lively())], DENSE_4, "Delay"),
    "over_time": (lambda: [Linear(4, 6), norse.LIF(lively())], DENSE_4, "CubaLIF"),
    "max_pool": (lambda: [torch.nn.Conv2d(2, 3, 3), box(), torch.nn.MaxPool2d(2)], IMAGE, "MaxPool2d"),
    "max_pool_of_input": (lambda: [torch.nn.MaxPool2d(2), torch.nn.Conv2d(2, 3, 2), box()], IMAGE, "MaxPool2d"),
    "circular": (lambda: padded("circular"), IMAGE, "Pad"),
    "reflect": (lambda: padded("reflect"), IMAGE, "Pad"),
    "replicate": (lambda: padded("replicate"), IMAGE, "Pad"),
    "tied": (tied_linears, DENSE_4, "Affine"),
    "used_twice": (shared_linear, DENSE_4, "Affine"),
}


def lively() -> Any:
    return cuba(tau_syn_inv=500.0, tau_mem_inv=500.0, v_th=0.1).p


@pytest.mark.parametrize("name", TAKEN)
def test_what_was_once_refused_is_captured(name: str) -> None:
    modules, features, node = TAKEN[name]
    torch.manual_seed(0)
    net, raster = SequentialState(*modules()), spikes(features, rate=0.5)
    with torch.no_grad():
        for parameter_ in net.parameters():
            parameter_.mul_(4)
    graph = capture(net, raster)
    assert not node or node in {type(item).__name__ for item in graph.nodes.values()}
    recording = simulate(graph, raster, record="spikes")
    assert all(share > 0 for share in spiking_shares(graph, recording).values())
    assert [report.problem for report in check_module(net, features) if report.problem] == []


def test_a_shared_weight_is_one_parameter() -> None:
    for modules in (tied_linears, shared_linear):
        graph = capture(SequentialState(*modules()), spikes(DENSE_4))
        assert set(graph.parameters.values()) == {"0.weight"}
        assert len(graph.parameters) == 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_by_name(name: str) -> None:
    modules, features, message = REFUSED[name]
    with pytest.raises(UnsupportedModuleError, match=message):
        capture(SequentialState(*modules()), spikes(features))


@pytest.mark.parametrize("name", REFUSED)
def test_check_module_says_what_capture_would_say(name: str) -> None:
    modules, features, message = REFUSED[name]
    problems = [report.problem for report in check_module(SequentialState(*modules()), features) if report.problem]
    with pytest.raises(UnsupportedModuleError) as refusal:
        capture(SequentialState(*modules()), spikes(features))
    assert str(refusal.value) in problems
    assert message


def test_check_module_finds_every_problem() -> None:
    net = SequentialState(
        torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        torch.nn.Identity(),
        torch.nn.MaxPool2d(2),
        box(method="logistic"),
        torch.nn.Flatten(),
        Linear(27, 3).double(),
        box(dt=2e-3),
        torch.nn.Sigmoid(),
        torch.nn.Softplus(),
        norse.LIFExCell(),
    )
    before = snapshot(net)
    reports = check_module(net, IMAGE)
    assert_same(before, snapshot(net))
    assert [report.path for report in reports] == list("0123456789")
    works = {report.path: (report.node, report.shape) for report in reports if not report.problem}
    assert works == {"0": ("Pad + Conv2d", (3, 6, 6)), "1": ("-", None), "4": ("Flatten", (27,))}
    problems = {report.path: report.problem for report in reports if report.problem}
    assert problems["2"].startswith("2: MaxPool2d takes the largest of values that are no spikes")
    assert "'logistic' is probabilistic" in problems["3"]
    assert "torch.float64" in problems["5"]
    assert "dt is 0.002 s, the neurons before it have 0.001 s" in problems["6"]
    assert problems["7"] == "7: Sigmoid is not captured; use a neuron of norse.torch in its place"
    assert problems["8"].startswith("8: Softplus is not captured")
    assert "LIFExCell is not captured" in problems["9"]


def nan_weight() -> SequentialState:
    net = SequentialState(Linear(4, 3), box())
    with torch.no_grad():
        net[0].weight[1, 2] = float("nan")
    return net


@pytest.mark.parametrize(
    ("build_net", "message"),
    [
        (nan_weight, r"0: weight\[1, 2\] is nan"),
        (lambda: SequentialState(Linear(4, 3), box(tau_mem_inv=1500.0)), "1: decay_mem is 1.5; allowed is 0 to 1"),
    ],
    ids=["NaN", "decay"],
)
def test_check_module_looks_at_the_numbers_too(build_net: Callable[[], SequentialState], message: str) -> None:
    (problem,) = [report.problem for report in check_module(build_net(), (4,)) if report.problem]
    assert re.match(message, problem)


def test_numbers_that_overflow_are_not_called_a_defect() -> None:
    net = SequentialState(Linear(4, 3, bias=False), box(), Linear(3, 2, bias=False), li())
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.fill_(3e38)
    with pytest.raises(CaptureError, match=r"3: .*overflow float32, so scale"):
        capture(net, spikes((4,), rate=0.9))


def test_a_dt_that_went_through_float32_is_the_same() -> None:
    net, raster = build("dense_box")
    single = SpikeRaster(raster.data, np.float32(DT))  # type: ignore[arg-type]  # a float32 is no float
    assert single.dt == DT
    assert capture(net, single).hash == capture(net, raster).hash


def test_an_unknown_reset_method_is_refused() -> None:
    cell = box()
    cell.p = cell.p._replace(reset_method=lambda z, v, reset, threshold: v)
    with pytest.raises(UnsupportedModuleError, match=r"1: reset_method .*; allowed are norse's reset_value"):
        capture(SequentialState(Linear(4, 3), cell), spikes((4,)))


def test_parametrized_weights_are_refused() -> None:
    net = SequentialState(torch.nn.utils.parametrizations.weight_norm(Linear(4, 3)), box())
    with pytest.raises(UnsupportedModuleError, match=r"0: the weight is parametrized; .*remove_parametrizations"):
        capture(net, spikes((4,)))


def test_hidden_outputs_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match="SequentialState with return_hidden=True"):
        capture(SequentialState(Linear(4, 3), box(), return_hidden=True), spikes((4,)))


@pytest.mark.parametrize("net", [torch.nn.Sequential(Linear(4, 3)), Linear(4, 3)])
def test_networks_without_neurons_are_refused(net: torch.nn.Module) -> None:
    with pytest.raises(UnsupportedModuleError, match=r"\(net\): holds no neurons; allowed are networks with at least"):
        capture(net, spikes((4,)))


def test_a_neuron_alone_is_a_network() -> None:
    raster = spikes((4,))
    graph = capture(cuba(tau_syn_inv=500.0, tau_mem_inv=500.0), raster)
    assert list(graph.nodes) == ["input", "net", "output"]
    assert simulate(graph, raster, record="spikes").output.data.any()


def test_names_that_would_collide_get_a_number() -> None:
    inner = torch.nn.Sequential()
    inner.add_module("0_0", Linear(4, 4))
    inner.add_module("0", torch.nn.Sequential(Linear(4, 3)))
    assert node_name("0.0_0") == node_name("0.0.0")
    graph = capture(SequentialState(inner, box()), spikes((4,)))
    assert graph.parameters == {"0_0_0": "0.0_0.weight", "0_0_0_2": "0.0.0.weight"}


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match=r"2: Linear receives shape \(3,\) per sample, allowed is \(5,\)"):
        capture(SequentialState(Linear(4, 3), box(), Linear(5, 2), box()), spikes((4,)))


def test_parameters_of_another_size_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match=r"1: .* receives shape \(3,\) .*, its v_th has shape \(5,\)"):
        capture(SequentialState(Linear(4, 3), box(v_th=torch.ones(5))), spikes((4,)))


def test_a_raster_of_another_dt_is_refused() -> None:
    with pytest.raises(RasterError, match=r"dt is 0\.001 s, the network's neurons have 0\.002 s"):
        capture(SequentialState(Linear(4, 3), box(dt=2e-3)), spikes((4,)))


def test_every_refusal_is_one_of_ours() -> None:
    for modules, features, _ in REFUSED.values():
        with pytest.raises(SlampError):
            capture(SequentialState(*modules()), spikes(features))


def test_check_module_reports_every_module_of_a_good_network() -> None:
    net, raster = build("conv_pool_norm")
    reports = check_module(net, raster.features)
    assert [report.problem for report in reports] == [""] * len(reports)
    assert reports[0] == ModuleReport("0.0", "Conv2d", "Conv2d", (6, 8, 8))
    assert [report.node for report in reports if report.module == "Dropout"] == ["-"]
    assert reports[-1].shape == (4,)


def test_check_module_goes_on_behind_a_problem() -> None:
    net = SequentialState(
        torch.nn.Conv2d(2, 3, 3), torch.nn.MaxPool2d(2), box(), torch.nn.Flatten(), Linear(12, 2), torch.nn.ReLU()
    )
    reports = check_module(net, (2, 6, 6))
    assert [bool(report.problem) for report in reports] == [False, True, False, False, False, True]
    assert reports[0].shape == (3, 4, 4)
    assert reports[2] == ModuleReport("2", "LIFBoxCell", "LIF", (3, 2, 2))


def test_check_module_of_a_network_without_neurons() -> None:
    *_, report = check_module(Linear(4, 3), (4,))
    assert report.path == "(net)"
    assert "holds no neurons" in report.problem


def test_check_module_of_a_network_with_hidden_outputs() -> None:
    (report,) = check_module(SequentialState(Linear(4, 3), box(), return_hidden=True), (4,))
    assert "return_hidden" in report.problem
