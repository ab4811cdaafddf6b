"""What users do beside torch's functions: views, copies, compiled code, autocast, generators, states of every kind."""

from __future__ import annotations

import copy
import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
from torch import nn

import user_modules as u
from networks import spikes
from slamp.capture import capture
from slamp.errors import SlampError, UnsupportedModuleError
from slamp.raster import SpikeRaster
from test_capture_modules import captured, lively

STEPS = 12
Between = Callable[["Layers", torch.Tensor], torch.Tensor]


class Layers(nn.Module):
    """A loop over time in which a function stands between two layers."""

    def __init__(self, between: Between, *, silent: bool = False) -> None:
        super().__init__()
        self.first, self.cell = nn.Linear(6, 8), norse.LIFCell(u.fast())
        self.second, self.out = nn.Linear(8, 4), norse.LIFCell(u.fast())
        self.between = between
        self.kept: dict[str, Any] = {}
        if silent:
            with torch.no_grad():
                self.first.weight.zero_()
                self.first.bias.fill_(-1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = two = None
        found = []
        for step in x:
            z, one = self.cell(self.first(step), one)
            z, two = self.out(self.second(self.between(self, z)), two)
            found.append(z)
        return torch.stack(found)


def view_written(net: Layers, z: torch.Tensor) -> torch.Tensor:
    held = z.clone()
    held[:, :4].mul_(2.0)
    part = held[:, :4]
    part.mul_(2.0)
    return held


def base_written(net: Layers, z: torch.Tensor) -> torch.Tensor:
    held = z * 1.0
    view = held.view(-1, 2, 4)
    held += 1.0
    return view.flatten(1)


def filled_through_a_view(net: Layers, z: torch.Tensor) -> torch.Tensor:
    held = torch.zeros_like(z)
    held.view(-1, 8).copy_(z)
    return held


UNSEEN: dict[str, Between] = {
    "a view written": view_written,
    "the base of a view written": base_written,
    "filled through a view": filled_through_a_view,
    "copied by Python": lambda net, z: copy.copy(z),
}


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_call_shows_is_refused_even_where_nothing_spikes(name: str, *, silent: bool) -> None:
    torch.manual_seed(5)
    with pytest.raises(
        UnsupportedModuleError, match=r"test_capture_nasty.py:\d+: .*uses a tensor that was (written|comp)"
    ):
        capture(lively(Layers(UNSEEN[name], silent=silent)), spikes((6,), steps=STEPS))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_functions_are_no_constants() -> None:
    scripted = torch.jit.script(twice)
    for silent in (False, True):
        with pytest.raises(UnsupportedModuleError, match=r"computed from the input by what cannot be followed"):
            capture(Layers(lambda net, z: scripted(z), silent=silent), spikes((6,), steps=STEPS))


def twice(z: torch.Tensor) -> torch.Tensor:
    return z * 2.0


SEEN: dict[str, Between] = {
    "data": lambda net, z: z.data,
    "type": lambda net, z: z.type(torch.float32),
    "deepcopy": lambda net, z: copy.deepcopy(z.detach()),
    "input and other": lambda net, z: torch.add(input=z, other=z),
    "other": lambda net, z: z.add(other=1.0),
    "multiplied by name": lambda net, z: torch.mul(input=z, other=2.0),
    "flattened by name": lambda net, z: torch.flatten(input=z, start_dim=1),
    "relu by name": lambda net, z: torch.relu(input=z),
    "axis": lambda net, z: torch.cat([z[:, :4], z[:, 4:]], axis=1),  # type: ignore[call-overload]  # as in NumPy
}


@pytest.mark.parametrize("name", SEEN)
def test_other_ways_to_say_the_same_are_captured(name: str) -> None:
    torch.manual_seed(5)
    captured(lively(Layers(SEEN[name])), spikes((6,), steps=STEPS, batch=5, rate=0.5))


def drawn_by_numpy(net: Layers, z: torch.Tensor) -> torch.Tensor:
    return z + torch.as_tensor(np.random.rand(8), dtype=torch.float32)  # noqa: NPY002  # as users do


def clamped(net: Layers, z: torch.Tensor) -> torch.Tensor:
    net.second.weight.data.clamp_(min=0.0)
    return z


def scaled(net: Layers, z: torch.Tensor) -> torch.Tensor:
    net.second.weight.data *= 0.9
    return z


def automatic(net: Layers, z: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([net.second(z).float()] * 2, 1)


REFUSED: dict[str, tuple[Between, str]] = {
    "numpy": (drawn_by_numpy, "draws random numbers of Python's or NumPy's generator"),
    "python": (lambda net, z: z * (random.random() + 0.5), "draws random numbers of Python's or NumPy's generator"),
    "clamped weights": (clamped, "writes to the parameter second.weight; change parameters once"),
    "scaled weights": (scaled, "writes to the parameter second.weight; change parameters once"),
    "two maxima": (lambda net, z: torch.max(z, torch.zeros_like(z)), "max combines two values"),
    "autocast": (automatic, "second: Linear gives torch.bfloat16; stay in torch.float32, without autocast"),
    "transposed": (lambda net, z: z.T.T, "T is not captured"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_and_leaves_no_trace(name: str) -> None:
    between, message = REFUSED[name]
    net = Layers(between)
    before = copy.deepcopy(net.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    with pytest.raises(UnsupportedModuleError, match=rf"test_capture_nasty.py:\d+: .*{message}"):
        capture(net, spikes((6,), steps=STEPS))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # type: ignore[index]  # noqa: NPY002
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@dataclass
class Record:
    count: int = 0


def test_attributes_of_every_kind_are_left_as_found() -> None:
    def between(net: Layers, z: torch.Tensor) -> torch.Tensor:
        net.kept["deque"].append(z)
        net.kept["set"].add(len(net.kept["deque"]))
        net.kept["space"].count += 1
        net.kept["record"].count += 1
        net.kept["array"] += 1
        net.kept["tuple"][0].add_(1.0)
        return z

    net = lively(Layers(between))
    space = SimpleNamespace(count=0)
    net.kept.update(deque=deque(maxlen=3), set=set(), space=space, record=Record(), array=np.zeros(2))
    net.kept["tuple"] = (torch.zeros(2),)
    held = dict(net.kept)
    captured(net, spikes((6,), steps=STEPS, rate=0.5))
    assert all(net.kept[key] is value for key, value in held.items())
    assert (len(held["deque"]), held["set"], space.count, held["record"].count) == (0, set(), 0, 0)
    assert held["array"].tolist() == held["tuple"][0].tolist() == [0.0, 0.0]


class Stepped(u.StatesByHand):
    """Two layers that take one step."""

    def step(self, x: torch.Tensor, one: Any, two: Any) -> tuple[torch.Tensor, Any, Any]:
        z, state = super().forward(x, None if one is None else (one, two))
        return (z, *state)


class SeparateStates(Stepped):
    def forward(self, x: torch.Tensor, s1: Any = None, s2: Any = None) -> Any:  # type: ignore[override]  # another forward
        return self.step(x, s1, s2)


class MaskFirst(Stepped):
    def forward(self, x: torch.Tensor, mask: Any = None, state: Any = None) -> Any:  # type: ignore[override]  # another forward
        z, *after = self.step(x if mask is None else x * mask, *(state or (None, None)))
        return z, tuple(after)


class AnyArguments(Stepped):
    def forward(self, x: torch.Tensor, *more: Any) -> Any:  # type: ignore[override]  # another forward
        z, *after = self.step(x, *((more and more[0]) or (None, None)))
        return z, tuple(after)


@pytest.mark.parametrize("kind", [SeparateStates, MaskFirst, AnyArguments])
def test_states_are_handed_on_however_forward_takes_them(kind: type[Stepped]) -> None:
    torch.manual_seed(5)
    captured(lively(kind()), spikes((6,), steps=STEPS, batch=5, rate=0.5))


class Overwrites(u.Looped):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(0.5))


def test_a_module_that_writes_to_its_input_does_not_write_to_the_raster() -> None:
    torch.manual_seed(5)
    raster = SpikeRaster(torch.rand(12, 8, 6) * 2, 1e-3)
    before = raster.data.clone()
    capture(lively(Overwrites()), raster)
    assert torch.equal(raster.data, before)


class Whole(u.Looped):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> Any:
        match self.how:
            case "backwards":
                return super().forward(torch.stack([x[t] for t in reversed(range(len(x)))]))
            case "ahead":
                return super().forward(torch.stack([x[min(t + 1, len(x) - 1)] for t in range(len(x))]))
            case "object":
                return Record()
        raise AssertionError(self.how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("backwards", "needs inputs of later steps than its own"),
        ("ahead", "needs inputs of later steps than its own"),
        ("object", "returns no tensor but "),
    ],
)
def test_networks_that_are_no_steps_say_why(how: str, message: str) -> None:
    with pytest.raises(SlampError, match=message):
        capture(Whole(how), spikes((6,), steps=STEPS))


def test_stacked_membranes_are_refused_as_such() -> None:
    class Membranes(Layers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state, found = None, []
            for step in x:
                _, state = self.cell(self.first(step), state)
                found.append(state.v)
            return torch.stack(found)

    with pytest.raises(UnsupportedModuleError, match="stack uses the state 'v' of a neuron; only its output"):
        capture(Membranes(twice_of), spikes((6,), steps=STEPS))


def twice_of(net: Layers, z: torch.Tensor) -> torch.Tensor:
    return twice(z)


def test_neurons_in_a_plain_sequential_are_pointed_to_norse() -> None:
    net = nn.Sequential(nn.Linear(6, 5), norse.LIFCell(), nn.Linear(5, 4))
    with pytest.raises(UnsupportedModuleError, match=re.escape("use norse.torch.SequentialState in place of")):
        capture(net, spikes((6,), steps=STEPS))
