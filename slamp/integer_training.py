"""Training through Loihi's integers: forward they compute, backward Norse's surrogate gradients pass straight through.

Modules of a network are given another ``forward`` for the time of a training. A weighted module rounds its weights to
the grid of its layer and sums whole numbers; a neuron module keeps Loihi's integer state behind the values of Norse's
state and answers with its spikes. Values are float64, in which every integer of Loihi is exact, up to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from slamp.arithmetic import BIAS_MANTISSA, SHIFT, STATE_LIMIT, TRAINED_SCALE, LayerScale
from slamp.calibrate import calibrate
from slamp.capture import graph_and_modules
from slamp.errors import TrainingError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, NEURON, READOUT, WEIGHTED, CubaLI, CubaLIF, Delay
from slamp.profile import Profile
from slamp.quantize import levels_of, quantization, weight_exponent
from slamp.raster import SpikeRaster
from slamp.shared import uses_of

STATE_ONE = 1 << SHIFT
WEIGHTED_MODULES = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)


@contextmanager
def integer_forward(net: torch.nn.Module, profile: Profile, raster: SpikeRaster) -> Iterator[None]:
    """Let a network compute in Loihi's integers; on success its weights are left on their grids.

    Scales are those `slamp.quantize` chooses for the network as it comes; the neuron modules remember them, and
    `slamp.capture` hands them on. So what `slamp.quantize` makes of the network afterwards spikes as the network did
    inside, as long as nobody changes a weight.

    Args:
        net: The network, which is changed.
        profile: The chip.
        raster: Samples the scales are chosen on.

    Raises:
        UnsupportedModuleError: The network cannot be captured, normalizes batches, uses a module twice, branches or
            is recurrent.
        SlampError: What `slamp.quantize` raises.
    """
    graph, modules = graph_and_modules(net, raster)
    if "Scale" in {type(node).__name__ for node in graph.nodes.values()}:
        raise UnsupportedModuleError(
            "(net): normalizes batches, which Loihi does not; fold the normalization into the weights before training "
            "with quantized weights"
        )
    _check_plain(graph, net)
    found = quantization(graph, profile, calibrate(graph, raster))
    patched: list[torch.nn.Module] = []
    settle: list[Callable[[], None]] = []
    try:
        for name, layer in found.layers.items():
            for weighted in layer.gains:
                weights = _Weights(graph, weighted, name, layer, modules[weighted][1])
                _patch(modules[weighted][1], weights.forward, patched, weighted)
                settle.append(weights.settle)
            neurons = _Neurons(graph.nodes[name], found.graph.nodes[name], layer.scale, modules[name][1])
            _patch(modules[name][1], neurons.forward, patched, name)
        yield
        for put in settle:
            put()
        for name, layer in found.layers.items():
            vars(modules[name][1])[TRAINED_SCALE] = layer
    finally:
        for module in patched:
            del module.forward


def _check_plain(graph: SpikingGraph, net: torch.nn.Module) -> None:
    """Refuse networks whose modules cannot stand for the layers of the graph one by one."""
    for uses in uses_of(graph).values():
        if len(uses) > 1:
            raise UnsupportedModuleError(
                f"{uses[1]}: shares its weight with {uses[0]}; training with quantized weights takes weights that are "
                "used once; train in floats"
            )
    for name, node in graph.nodes.items():
        if isinstance(node, Delay):
            raise UnsupportedModuleError(
                f"{name}: recurrence and delays cannot be trained with quantized weights yet; train in floats, and "
                "quantize afterwards"
            )
        path, _, field = graph.parameters.get(name, "").rpartition(".")
        plain = field == "weight" and isinstance(net.get_submodule(path), WEIGHTED_MODULES)
        if isinstance(node, WEIGHTED) and not plain:
            raise UnsupportedModuleError(
                f"{name}: is {graph.parameters.get(name)!r}; training with quantized weights takes weights of "
                "torch.nn.Linear, Conv1d and Conv2d; train in floats"
            )
        if len(graph.sources(name)) > 1 or len(graph.targets(name)) > 1:
            raise UnsupportedModuleError(
                f"{name}: paths part or meet here, which training with quantized weights does not know yet; "
                "train in floats"
            )


def _patch(module: torch.nn.Module, forward: Callable[..., Any], patched: list[torch.nn.Module], name: str) -> None:
    if module in patched:
        raise UnsupportedModuleError(
            f"{name}: its module {type(module).__name__} stands at several places; give each layer its own"
        )
    module.forward = forward
    patched.append(module)


class _Weights:
    """A linear layer or convolution whose weights lie on a grid of whole numbers."""

    def __init__(
        self,
        graph: SpikingGraph,
        name: str,
        neuron: str,
        layer: LayerScale,
        module: torch.nn.Module,
    ) -> None:
        node = graph.nodes[name]
        assert isinstance(node, WEIGHTED)
        self.module: Any = module
        self.scale, self.gain = layer.scale, layer.gains[name]
        weight = node.weight * self.gain
        self.unit = 2.0 ** weight_exponent(weight, layer.scale, layer.clips.get(name, 0.0))
        most, mixed = levels_of(weight), weight.min() < 0 < weight.max()
        self.low, self.high = (-most, most) if mixed else (0, most) if weight.max() > 0 else (-most, 0)
        bias: np.ndarray | None = getattr(node, "bias", None)
        # The bias of a current is a weight of an input line, that of a membrane has 13 bits.
        self.in_current = isinstance(graph.nodes[neuron], (CubaLIF, CubaLI))
        self.bias_unit, self.bias_most = 1.0, 0
        if bias is not None and self.in_current:
            self.bias_unit = 2.0 ** weight_exponent(bias, layer.scale, float(np.abs(bias).max()))
            self.bias_most = levels_of(bias)
        elif bias is not None:
            self.bias_most = BIAS_MANTISSA[1]

    def whole_weight(self) -> torch.Tensor:
        """The weights as whole numbers, float64, with a straight-through gradient."""
        exact: torch.Tensor = self.module.weight.double() * (self.scale * self.gain)
        whole = (exact.detach() / self.unit).round().clamp(self.low, self.high) * self.unit
        return exact + (whole - exact.detach())

    def whole_bias(self) -> torch.Tensor | None:
        """The bias in the same unit."""
        if self.module.bias is None:
            return None
        exact: torch.Tensor = self.module.bias.double() * self.scale
        whole = (exact.detach() / self.bias_unit).round().clamp(-self.bias_most, self.bias_most) * self.bias_unit
        return exact + (whole - exact.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum whole numbers; return them divided by the scale, float64."""
        module, weight, bias = self.module, self.whole_weight(), self.whole_bias()
        spikes = x.double() / self.gain
        if self.gain != 1:  # mean pools round their quotients; sums of spikes are whole
            spikes = spikes + (spikes.round() - spikes).detach()
        if isinstance(module, torch.nn.Linear):
            return F.linear(spikes, weight, bias) / self.scale
        function = F.conv1d if isinstance(module, torch.nn.Conv1d) else F.conv2d
        settings = (module.stride, module.padding, module.dilation, module.groups)
        y: torch.Tensor = function(spikes, weight, bias, *settings)
        return y / self.scale

    def settle(self) -> None:
        """Leave the parameters where they were rounded to."""
        with torch.no_grad():
            self.module.weight.copy_(self.whole_weight() / (self.scale * self.gain))
            bias = self.whole_bias()
            if bias is not None:
                self.module.bias.copy_(bias / self.scale)


class _Neurons:
    """A neuron module that answers with Loihi's spikes."""

    def __init__(self, node: Any, integer: Any, scale: float, module: torch.nn.Module) -> None:
        assert isinstance(node, NEURON)
        self.original = module.forward
        self.spikes = not isinstance(node, READOUT)
        self.per_current = scale * STATE_ONE
        fired_to = 0.0 if isinstance(node, READOUT) else node.v_reset
        self.offset = torch.tensor(np.array(fired_to, dtype=np.float64))
        decay = np.ones(()) if isinstance(node, IF) else node.decay_mem.astype(np.float64)
        self.per_membrane = torch.tensor(np.array(self.per_current / decay))
        self.keep_mem = torch.tensor(1.0 - integer.decay_mem.astype(np.float64))
        self.current = isinstance(node, (CubaLIF, CubaLI))
        self.keep_syn = torch.tensor(
            1.0 - integer.decay_syn.astype(np.float64) if self.current else np.zeros(()), dtype=torch.float64
        )
        self.threshold = torch.tensor(np.array(integer.v_threshold, dtype=np.float64)) if self.spikes else None

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """One step of the module; its output and state have Loihi's values and Norse's gradients."""
        device = x.device
        narrow = None if state is None else type(state)(*(None if part is None else part.float() for part in state))
        output, after = self.original(x.float(), narrow)
        with torch.no_grad():
            drive = (x.detach().double() * self.per_current).round()
            start = torch.zeros_like(drive)
            v = start if state is None else self._whole(state.v, self.per_membrane, self.offset)
            i = start if state is None or not self.current else self._whole(state.i, self.per_current, None)
            u = i + drive  # what state.i holds has decayed already
            u = u.long().int().double()  # as Lava's int32 overflows
            u = torch.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, u)
            u = torch.where(u <= -STATE_LIMIT, u + 2 * STATE_LIMIT, u)
            v = (torch.trunc(v * self.keep_mem.to(device)) + u).clamp(-(STATE_LIMIT - 1), STATE_LIMIT - 1)
            fired = torch.zeros_like(v)
            if self.threshold is not None:
                fired = (v > self.threshold.to(device)).double()
                v = v * (1 - fired)
            real = v / self.per_membrane.to(device) + self.offset.to(device)
            changes = {"v": real}
            if self.current:
                changes["i"] = torch.trunc(u * self.keep_syn.to(device)) / self.per_current
        after = after._replace(
            **{key: _straight_through(getattr(after, key).double(), value) for key, value in changes.items()}
        )
        wanted = fired if self.spikes else real
        return _straight_through(output, wanted.to(output.dtype)), after

    def _whole(self, part: torch.Tensor, per_unit: Any, offset: torch.Tensor | None) -> torch.Tensor:
        value = part.detach().double()
        if offset is not None:
            value = value - offset.to(value.device)
        scale = per_unit.to(value.device) if isinstance(per_unit, torch.Tensor) else per_unit
        return (value * scale).round()


def _straight_through(gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return ``value`` with the gradient of another tensor."""
    return gradient + (value - gradient).detach()


def check_quantized(profile: Profile | None, raster: SpikeRaster | None) -> None:
    """Raise `TrainingError` if a chip is named without samples."""
    if profile is not None and raster is None:
        raise TrainingError("retrain: quantized= needs raster=, the samples on which the scales are chosen")
