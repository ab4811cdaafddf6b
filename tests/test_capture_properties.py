"""Random networks of the user's own modules are captured cell for cell, however they are run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from norse.torch.functional.reset import reset_subtract, reset_value
from torch import Tensor, nn

from networks import spiking_shares
from slamp.capture import capture, read_network
from slamp.capture_check import compare_with_module
from slamp.errors import CaptureError
from slamp.nodes import WEIGHTED, frozen_array
from slamp.raster import SpikeRaster
from slamp.simulate import simulate

STEPS, BATCH = 9, 3
FEED_FORWARD = ("box", "box subtract", "cuba", "iaf", "refrac", "lsnn", "li", "li box")
RECURRENT = ("lif recurrent", "refrac recurrent", "lsnn recurrent")
SPIKING = tuple(kind for kind in (*FEED_FORWARD, *RECURRENT) if not kind.startswith("li ") and kind != "li")
JOINS = ("", "sum", "difference", "cat", "cat input", "doubled")
POOLS = ("", "max", "average", "sum")


@dataclass(frozen=True)
class Layer:
    """A layer of a drawn network.

    Attributes:
        kind: Its neurons.
        size: Neurons, or channels of a convolution.
        join: How a second branch from the same input joins its spikes.
        lag: Steps after which it hears its own spikes by a weight of the user's; 0 for never.
        pool: How its spikes are pooled, where it is a convolution.
        per_neuron: One threshold and reset per neuron (or channel).
        biased: The weight before it has a bias.
    """

    kind: str
    size: int
    join: str
    lag: int
    pool: str
    per_neuron: bool
    biased: bool


@dataclass(frozen=True)
class Spec:
    """A drawn network: ``convolutions`` layers on images first, then dense ones."""

    layers: tuple[Layer, ...]
    convolutions: int
    dt: float
    readout: str
    seed: int

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return (2, 6, 4) if self.convolutions else (7,)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    depth = draw(st.integers(1, 4))
    convolutions = draw(st.sampled_from([0, 0, 1, 2]))
    layers = []
    for index in range(max(depth, convolutions)):
        dense = index >= convolutions
        last = index == max(depth, convolutions) - 1
        kinds = (*SPIKING, "li", "li box") if last and dense else SPIKING
        kinds = kinds if dense else tuple(kind for kind in kinds if kind not in RECURRENT)
        layers.append(
            Layer(
                draw(st.sampled_from(kinds)),
                draw(st.integers(3, 8)) if dense else draw(st.integers(2, 3)),
                draw(st.sampled_from(JOINS)),
                draw(st.sampled_from([0, 0, 1, 2])) if dense else 0,
                "" if dense else draw(st.sampled_from(POOLS)),
                draw(st.booleans()),
                draw(st.booleans()),
            )
        )
    return Spec(
        tuple(layers),
        convolutions,
        draw(st.sampled_from([1e-3, 2e-3, 5e-4])),
        draw(st.sampled_from(["", "", "sum", "mean", "max", "last"])),
        draw(st.integers(0, 2**31 - 1)),
    )


def neurons(layer: Layer, rng: np.random.Generator, sizes: tuple[int, int], shape: tuple[int, ...], dt: float) -> Any:
    """The cell of a layer; decays and thresholds as the layer draws them."""

    def drawn(low: float, high: float, *, single: bool = False) -> Tensor:
        many = layer.per_neuron and not single
        return torch.tensor(rng.uniform(low, high, shape if many else ()), dtype=torch.float32)

    membrane, synapse = drawn(0.2, 0.9, single=True) / dt, drawn(0.1, 0.8, single=True) / dt
    resting = {"tau_mem_inv": membrane, "v_leak": drawn(-0.1, 0.1, single=True)}
    firing = {"v_th": drawn(0.3, 0.9), "v_reset": drawn(-0.3, 0.1), "method": "super", "alpha": torch.tensor(10.0)}
    lif = norse.LIFParameters(tau_syn_inv=synapse, **resting, **firing)
    adaptive = {"tau_adapt_inv": drawn(0.01, 0.2, single=True) / dt, "beta": drawn(0.0, 0.3)}
    adaptation = {**firing, "v_th": drawn(0.3, 0.9)}
    lsnn = norse.LSNNParameters(tau_syn_inv=synapse, **resting, **adaptation, **adaptive)
    refrac = norse.LIFRefracParameters(lif, torch.tensor(float(rng.integers(1, 4))))
    match layer.kind:
        case "box" | "box subtract":
            reset = reset_subtract if layer.kind == "box subtract" else reset_value
            return norse.LIFBoxCell(norse.LIFBoxParameters(**resting, **firing, reset_method=reset), dt=dt)
        case "cuba":
            return norse.LIFCell(lif, dt=dt)
        case "iaf":
            return norse.IAFCell(norse.IAFParameters(v_th=firing["v_th"], v_reset=firing["v_reset"]), dt=dt)
        case "refrac":
            return norse.LIFRefracCell(refrac, dt=dt)
        case "lsnn":
            return norse.LSNNCell(lsnn, dt=dt)
        case "lif recurrent":
            return norse.LIFRecurrentCell(*sizes, lif, dt=dt)
        case "refrac recurrent":
            return norse.LIFRefracRecurrentCell(*sizes, refrac, dt=dt)
        case "lsnn recurrent":
            return norse.LSNNRecurrentCell(*sizes, lsnn, dt=dt)
        case "li":
            return norse.LICell(norse.LIParameters(tau_syn_inv=synapse, **resting), dt=dt)
        case _:
            return norse.LIBoxCell(norse.LIBoxParameters(**resting), dt=dt)


class Block(nn.Module):
    """One layer: weight, neurons, second branch, recurrence, pool."""

    def __init__(self, layer: Layer, before: tuple[int, ...], rng: np.random.Generator, dt: float) -> None:
        super().__init__()
        self.layer, image = layer, len(before) == 3
        shape = (layer.size, *before[1:])
        own = layer.kind in RECURRENT
        self.weight = nn.Identity() if own else self._weight(before, shape)
        self.neurons = neurons(layer, rng, (before[0], layer.size), (layer.size, 1, 1) if image else shape, dt)
        branched = layer.join in ("sum", "difference", "cat", "doubled")
        self.branch = self._weight(before, shape) if branched else nn.Identity()
        other = replace(layer, kind="box" if layer.kind != "box" else "cuba")
        self.others = neurons(other, rng, (0, 0), (layer.size, 1, 1) if image else shape, dt)
        self.back = nn.Linear(layer.size, layer.size, bias=False) if layer.lag and not own else nn.Identity()
        channels = {"cat": 2 * layer.size, "cat input": layer.size + before[0]}.get(layer.join, layer.size)
        pools = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2), "sum": nn.LPPool2d(1, 2)}
        small = not image or min(before[1:]) < 2
        self.pool = nn.Identity() if small or not layer.pool else pools[layer.pool]
        rest = before[1:] if small or not layer.pool else tuple(size // 2 for size in before[1:])
        self.shape = (channels, *rest)

    def _weight(self, before: tuple[int, ...], shape: tuple[int, ...]) -> nn.Module:
        if len(before) == 3:
            return nn.Conv2d(before[0], shape[0], 3, padding=1, bias=self.layer.biased)
        return nn.Linear(before[0], shape[0], bias=self.layer.biased)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        inner, other, history = state
        current = self.weight(x)
        if self.layer.lag and not isinstance(self.back, nn.Identity) and len(history) == self.layer.lag:
            current = current + self.back(history[0])
        z, inner = self.neurons(current, inner)
        history = (*history, z)[-self.layer.lag :] if self.layer.lag else ()
        match self.layer.join:
            case "cat input":
                z = torch.cat([z, x], 1)
            case "sum" | "difference" | "cat" | "doubled":
                drive = self.branch(x)
                y, other = self.others(drive + drive if self.layer.join == "doubled" else drive, other)
                z = torch.cat([z, y], dim=1) if self.layer.join == "cat" else z - y if self.difference else z + y
        return self.pool(z), (inner, other, history)

    @property
    def difference(self) -> bool:
        """True if the branch is subtracted."""
        return self.layer.join == "difference"


class Drawn(nn.Module):
    """A drawn network, run step by step or over the whole sequence."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(spec.seed)
        rng = np.random.default_rng(spec.seed)
        self.spec, shape = spec, spec.features
        self.blocks = nn.ModuleList()
        for index, layer in enumerate(spec.layers):
            if index == spec.convolutions and len(shape) == 3:
                shape = (int(np.prod(shape)),)
            block = Block(layer, shape, rng, spec.dt)
            self.blocks.append(block)
            shape = block.shape
        with torch.no_grad():  # a drive that makes layers of any width fire
            for name, parameter in self.named_parameters():
                if name.endswith(("weight", "weights")):
                    inputs = parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape) * 1.5 / inputs**0.5 + 2.0 / inputs)

    def step(self, x: Tensor, states: Any) -> tuple[Tensor, Any]:
        after = []
        for index, block in enumerate(self.blocks):
            if index == self.spec.convolutions and x.ndim == 4:
                x = x.flatten(1)
            x, state = block(x, states[index])
            after.append(state)
        return x, tuple(after)

    def fresh(self) -> Any:
        return tuple((None, None, ()) for _ in self.blocks)


class StepByStep(Drawn):
    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Any]:
        return self.step(x, self.fresh() if states is None else states)


class OverTime(Drawn):
    def forward(self, x: Tensor) -> Tensor:
        states, outputs = self.fresh(), []
        for step in x:
            z, states = self.step(step, states)
            outputs.append(z)
        y = torch.stack(outputs)
        match self.spec.readout:
            case "sum":
                return y.sum(0)
            case "mean":
                return y.mean(0)
            case "max":
                return y.amax(0)
            case "last":
                return y[-1]
        return y


def raster_for(spec: Spec) -> SpikeRaster:
    rng = np.random.default_rng(spec.seed + 1)
    return SpikeRaster(rng.random((STEPS, BATCH, *spec.features)) < 0.5, spec.dt)


def structures(spec: Spec) -> set[str]:
    """What kinds of structure a network has, for counting."""
    found = {f"depth {len(spec.layers)}", f"convolutions {spec.convolutions}", f"dt {spec.dt}"}
    found.add(f"readout {spec.readout}")
    for index, layer in enumerate(spec.layers):
        found |= {layer.kind, f"join {layer.join}", f"per neuron {layer.per_neuron}", f"biased {layer.biased}"}
        if layer.kind not in RECURRENT and index >= spec.convolutions:
            found.add(f"lag {layer.lag}")
        if index < spec.convolutions:
            found.add(f"pool {layer.pool}")
    return found


ALL = {
    *(f"depth {k}" for k in range(1, 5)),
    *(f"convolutions {k}" for k in range(3)),
    *(f"dt {dt}" for dt in (1e-3, 2e-3, 5e-4)),
    *(f"readout {readout}" for readout in ("", "sum", "mean", "max", "last")),
    *FEED_FORWARD,
    *RECURRENT,
    *(f"join {join}" for join in JOINS),
    *(f"{what} {flag}" for what in ("per neuron", "biased") for flag in (True, False)),
    *(f"lag {lag}" for lag in range(3)),
    *(f"pool {pool}" for pool in POOLS),
}
CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def binary_before_max(spec: Spec) -> Spec:
    """Max pools where spikes were added or subtracted become sum pools: they take spikes alone."""
    added = ("sum", "difference", "doubled")
    layers = [
        replace(layer, pool="sum") if layer.pool == "max" and layer.join in added else layer for layer in spec.layers
    ]
    return replace(spec, layers=tuple(layers))


def test_random_networks_are_captured_cell_for_cell_in_both_styles() -> None:
    seen: Counter[str] = Counter()
    layers = firing = 0

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=CHECKS)
    @given(specs())
    def check(drawn: Spec) -> None:
        nonlocal layers, firing
        spec = binary_before_max(drawn)
        raster = raster_for(spec)
        steps = capture(StepByStep(spec), raster)  # raises if a cell differs
        sequence = capture(OverTime(spec), raster)
        assert sequence.readout == spec.readout
        assert replace(sequence, readout="").hash == steps.hash
        shares = spiking_shares(steps, simulate(steps, raster, record="spikes"))
        layers += len(shares)
        firing += sum(share > 0 for share in shares.values())
        seen.update(structures(spec))

    check()
    assert firing > 0.9 * layers
    assert {name: count for name in ALL if (count := seen[name]) < 5} == {}


@pytest.mark.parametrize("style", [StepByStep, OverTime])
def test_a_changed_weight_is_found(style: type[Drawn]) -> None:
    found = 0

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=CHECKS)
    @given(specs())
    def check(drawn: Spec) -> None:
        nonlocal found
        spec = binary_before_max(drawn)
        net, raster = style(spec), raster_for(spec)
        captured = read_network(net, [raster.features], raster.dt, steps=raster.steps)
        compare_with_module(net, captured.graph, [raster], captured.run, captured.parts)
        name = next(name for name in captured.graph.order if isinstance(captured.graph.nodes[name], WEIGHTED))
        node = captured.graph.weighted[name]
        weight = node.weight.copy()
        weight[(0,) * weight.ndim] -= 8.0  # neuron 0 of the first layer spikes less, if it spiked
        changed = captured.graph.with_nodes({name: replace(node, weight=frozen_array(weight))})
        try:
            compare_with_module(net, changed, [raster], captured.run, captured.parts)
        except CaptureError:
            found += 1

    check()
    assert found >= 12
