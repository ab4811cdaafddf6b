"""Networks as users write them: what `tests/test_capture_modules.py` captures or sees refused, by line."""

from __future__ import annotations

from typing import Any, NamedTuple

import norse.torch as norse
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import box, cuba, li

FAST: dict[str, Any] = {"tau_syn_inv": 500.0, "tau_mem_inv": 500.0, "v_th": 0.3}


def fast() -> Any:
    """Parameters with which neurons fire soon."""
    return cuba(**FAST).p


class Base(nn.Module):
    """Two layers of each kind for the networks below; what differs is how they are wired."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.lif, self.out = cuba(**FAST), box()


# One step at a time


class StatesByHand(Base):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        one, two = (None, None) if state is None else state
        z, one = self.lif(self.first(x), one)
        z, two = self.out(self.second(z), two)
        return z, (one, two)


class States(NamedTuple):
    one: Any = None
    two: Any = None


class NamedStates(Base):
    def forward(self, x: Tensor, state: States = States()) -> tuple[Tensor, States]:  # noqa: B008  # as users do
        z, one = self.lif(self.first(x), state.one)
        z, two = self.out(self.second(z), state.two)
        return z, States(one, two)


class DictStates(Base):
    def forward(self, x: Tensor, state: dict[str, Any] | None = None) -> Any:
        state = {"one": None, "two": None} if state is None else dict(state)
        z, state["one"] = self.lif(self.first(x), state["one"])
        z, state["two"] = self.out(self.second(z), state["two"])
        return z, state


class StoresStates(Base):
    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = [None, None]
        self.seen: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["steps"] = self.seen.get("steps", 0) + 1
        z, self.states[0] = self.lif(self.first(x), self.states[0])
        z, self.states[1] = self.out(self.second(z), self.states[1])
        return z


class OwnStates(nn.Module):
    """Gives its first states itself: zeros, as Norse would."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lif = nn.Linear(6, 8), cuba(**FAST)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if state is None:
            state = norse.LIFFeedForwardState(torch.zeros(x.shape[0], 8), torch.zeros(x.shape[0], 8))
        return self.lif(self.first(x), state)


# The whole sequence


class Looped(Base):
    """Loops over time; ``take`` and ``collect`` say how steps are taken and outputs kept."""

    def __init__(self, take: str = "index", collect: str = "stack") -> None:
        super().__init__()
        self.take, self.collect = take, collect

    def steps(self, x: Tensor) -> Any:
        match self.take:
            case "index":
                return [x[t] for t in range(x.shape[0])]
            case "slice":
                return [x[t, :] for t in range(len(x))]
            case "ellipsis":
                return [x[t, ...] for t in range(x.size(0))]
            case "iterate":
                return x
            case "unbind":
                return x.unbind(0)
            case "enumerate":
                return [step for _, step in enumerate(x)]
            case "batch first":
                return [x[:, t] for t in range(x.shape[1])]
            case _:
                return [x.select(0, t) for t in range(x.shape[0])]

    def forward(self, x: Tensor) -> Tensor:
        one = two = None
        outputs: list[Tensor] = []
        axis = 1 if self.take == "batch first" else 0
        steps = x.shape[axis]
        kept = torch.zeros(steps, x.shape[1 - axis], 4)
        total = torch.zeros(x.shape[1 - axis], 4)
        for t, step in enumerate(self.steps(x)):
            z, one = self.lif(self.first(step), one)
            z, two = self.out(self.second(z), two)
            outputs.append(z)
            if self.collect == "preallocated":
                kept[t] = z
            elif self.collect == "running sum":
                total = total + z
            elif self.collect == "in place":
                total += z
        match self.collect:
            case "preallocated":
                return kept
            case "running sum" | "in place":
                return total
            case "last":
                return z
            case "sum of list":
                return sum(outputs)  # type: ignore[return-value]  # sum starts from the int 0
            case "mean of running sum":
                return sum(outputs) / steps
        y = torch.stack(outputs, dim=axis)
        match self.collect:
            case "sum":
                return y.sum(axis)
            case "mean":
                return y.mean(dim=axis)
            case "max":
                return y.max(dim=axis).values
            case "amax":
                return torch.amax(y, axis)
            case "last index":
                return y[-1]
            case "log_softmax":
                return F.log_softmax(y.mean(axis), dim=1)
            case _:
                return y


class HardCoded(Base):
    steps = 12

    def forward(self, x: Tensor) -> Tensor:
        one = two = None
        outputs = []
        for t in range(self.steps):
            z, one = self.lif(self.first(x[t]), one)
            z, two = self.out(self.second(z), two)
            outputs.append(z)
        return torch.stack(outputs)


class LayerByLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.lif, self.readout = norse.LIF(fast()), norse.LI()

    def forward(self, x: Tensor) -> Tensor:
        z, _ = self.lif(self.first(x))
        y, _ = self.readout(self.second(z))
        return y


class Lifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = norse.Lift(nn.Conv2d(2, 3, 3))
        self.lif = norse.LIF(fast())
        self.pool = norse.Lift(nn.MaxPool2d(2))
        self.flat = norse.Lift(nn.Flatten())
        self.head = norse.Lift(nn.Linear(18, 4))

    def forward(self, x: Tensor) -> Tensor:
        z, _ = self.lif(self.conv(x))
        y: Tensor = self.head(self.flat(self.pool(z)))
        return y


class LiftedNeurons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = norse.Lift(norse.SequentialState(nn.Linear(6, 8), cuba(**FAST)))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)[0]
        return z


# Recurrence


class RecurrentOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = norse.LIFRecurrent(6, 8, fast()), nn.Linear(8, 4)
        self.readout = norse.LI()

    def forward(self, x: Tensor) -> Tensor:
        z, _ = self.cell(x)
        y: Tensor = self.readout(self.head(z))[0]
        return y


class RecurrentByHand(nn.Module):
    """Adds its own spikes of ``lag`` steps before."""

    def __init__(self, lag: int = 1, *, zeros: bool = True) -> None:
        super().__init__()
        self.first, self.back = nn.Linear(6, 8), nn.Linear(8, 8, bias=False)
        self.lif, self.lag, self.zeros = cuba(**FAST), lag, zeros

    def forward(self, x: Tensor) -> Tensor:
        state = None
        empty: Any = torch.zeros(x.shape[1], 8) if self.zeros else None
        history: list[Any] = [empty] * self.lag
        outputs = []
        for step in x:
            current = self.first(step)
            if history[-self.lag] is not None:
                current = current + self.back(history[-self.lag])
            z, state = self.lif(current, state)
            history.append(z)
            outputs.append(z)
        return torch.stack(outputs)


class RecurrentInState(nn.Module):
    """Step style: the spikes of the step before travel in the state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.back, self.lif = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), cuba(**FAST)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if state is None:
            state = (torch.zeros(x.shape[0], 8), None)
        before, inner = state
        z, inner = self.lif(self.first(x) + self.back(before), inner)
        return z, (z, inner)


# Branches, constants, shapes: one step each, by a name


class Wired(nn.Module):
    """Step style; ``how`` names what lies between two layers of 8 neurons."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.skip, self.lif, self.mid = nn.Linear(6, 8), nn.Linear(6, 8), cuba(**FAST), box()
        self.second = nn.Linear({"cat": 16, "cat input": 14, "slice": 5, "swap": 8}.get(how, 8), 4)
        self.out = box()
        self.gain = nn.Parameter(torch.tensor([1.5, 0.5, 2.0, 1.0, 3.0, 0.25, 1.0, 4.0]))
        self.register_buffer("shift", torch.linspace(-0.2, 0.2, 8))
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, state: Any = (None, None, None)) -> Any:
        one, two, three = state
        z, one = self.lif(self.first(x), one)
        current = self.skip(x)
        match self.how:
            case "normalized":
                current = self.norm(current)
            case "dropped":
                current = self.drop(current)
            case "doubled":
                current = current + current
            case "difference of currents":
                current = current - self.first(x)
        y, two = self.mid(current, two)
        out, three = self.out(self.second(self.between(x, z, y)), three)
        return out, (one, two, three)

    def between(self, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        match self.how:
            case "sum":
                return z + y
            case "in place":
                total = z.clone()
                total += y
                return total
            case "difference":
                return z - y
            case "negated":
                return -z
            case "cat":
                return torch.cat([z, y], dim=1)
            case "cat input":
                return torch.cat((z, x), -1)
            case "stacked":
                return torch.stack([z, y]).sum(0)
            case "times":
                return 10 * z
            case "halved":
                return z / 2
            case "shifted":
                return z - 0.5
            case "turned":
                return 1 - z
            case "per channel":
                return z * self.shift + self.shift
            case "gain":
                return self.gain * z
            case "view":
                return z.view(-1, 2, 4).permute(0, 2, 1).reshape(z.shape[0], 8)
            case "swap":
                a, b = z.chunk(2, dim=1)
                return torch.cat([b, a], dim=1)
            case "slice":
                return z[:, 2:7]
            case "unsqueezed":
                return z.unsqueeze(1).squeeze(1)
            case "relu":
                return F.relu(z)
        return z


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2, 3, 3) * 0.5)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 27) * 0.5), nn.Parameter(torch.zeros(4))
        self.lif, self.out = cuba(**FAST), box()

    def forward(self, x: Tensor, state: Any = (None, None)) -> Any:
        one, two = state
        z, one = self.lif(F.conv2d(x, self.kernel, stride=2, padding=1), one)
        z, two = self.out(F.linear(z.flatten(1), self.weight, self.bias), two)
        return z, (one, two)


class UShape(nn.Module):
    """Down by a max pool of spikes, up by nearest neighbors, joined with the way around."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
        self.down = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.leave = nn.Conv2d(7, 2, 1)
        self.one, self.two, self.three = cuba(**FAST), cuba(**FAST), cuba(**FAST)

    def forward(self, x: Tensor, state: Any = (None, None, None)) -> Any:
        one, two, three = state
        a, one = self.one(self.enter(x), one)
        b, two = self.two(self.down(F.max_pool2d(a, 2)), two)
        up = F.interpolate(b, scale_factor=2, mode="nearest")
        z, three = self.three(self.leave(torch.cat([up, a], dim=1)), three)
        return z, (one, two, three)


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lif, self.out = nn.Linear(6, 6), cuba(**FAST), box()

    def forward(self, x: Tensor, state: Any = (None, None)) -> Any:
        z, one = self.lif(self.linear(x), state[0])
        z, two = self.out(self.linear(z), state[1])
        return z, (one, two)


class LinearCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.lif, self.readout = nn.Linear(6, 8), cuba(**FAST), norse.LILinearCell(8, 4)

    def forward(self, x: Tensor, state: Any = (None, None)) -> Any:
        z, one = self.lif(self.first(x), state[0])
        y, two = self.readout(z, state[1])
        return y, (one, two)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense, self.head = nn.Conv2d(2, 3, 3), nn.Linear(6, 8), nn.Linear(20, 4)
        self.eye, self.ear, self.out = cuba(**FAST), cuba(**FAST), box()

    def forward(self, image: Tensor, sound: Tensor, state: Any = (None, None, None)) -> Any:
        one, two, three = state
        a, one = self.eye(self.conv(image), one)
        b, two = self.ear(self.dense(sound), two)
        z, three = self.out(self.head(torch.cat([a.flatten(1), b], 1)), three)
        return z, (one, two, three)


class TwoOutputs(Base):
    """Returns (class, gate), and the hidden spikes that lead to both."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.gate = nn.Linear(8, 3), li()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = two = three = None
        classes, gates, hidden = [], [], []
        for step in x:
            z, one = self.lif(self.first(step), one)
            out, two = self.out(self.second(z), two)
            gate, three = self.gate(self.third(z), three)
            classes.append(out)
            gates.append(gate)
            hidden.append(z)
        return torch.stack(classes), torch.stack(gates), torch.stack(hidden)


class Pattern(nn.Module):
    """Loops over time with the habit that ``how`` names: what is fed in, handed on, kept and read."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.back = how, nn.Linear(6, 8), nn.Linear(8, 8)
        self.lif, self.head = cuba(**FAST), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        state = None
        z: Any = None
        before, trace = torch.zeros_like(x[0]), torch.zeros(x.shape[1], 8)
        late = torch.zeros(x.shape[1], 8)
        outputs, logits = [], []
        for step in x:
            current = self.first(step - before if self.how == "difference in time" else step)
            match self.how:
                case "weight from the second step":
                    current = self.first(step) if z is None else self.first(step) + self.back(z)
                case "inhibition from the second step":
                    current = self.first(step) if z is None else self.first(step) - z
            z, state = self.lif(current, state)
            before, trace = step, 0.9 * trace + z
            kept = {"trace": trace, "late": late}.get(self.how, z)
            outputs.append(
                kept.unsqueeze(0) if self.how == "joined" else kept[:, None] if "beside" in self.how else kept
            )
            logits.append(self.head(z))
            late = z
        if self.how == "joined":
            return torch.cat(outputs)
        if "beside" in self.how:
            return torch.cat(outputs, dim=1).sum(1) if "sum" in self.how else torch.cat(outputs, dim=1)
        y = torch.stack(outputs, dim=1 if self.how == "batch first" else 0)
        if self.how == "dictionary":
            return {"spikes": y}
        return (y, torch.stack(logits)) if self.how == "logits" else y


class Reads(Base):
    """Reads its output over time and does what ``how`` says to that; the line is to be named."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            z, state = self.lif(self.first(step), state)
            outputs.append(F.softmax(z, 1) if self.how == "softmax" else z)  # here softmax
        y = torch.stack(outputs)
        match self.how:
            case "negated":
                return y.mean(0) * -1.0  # here negated
            case "turned":
                return 1 - y.sum(0)  # here turned
            case "weighted":
                return y.mean(0) * torch.arange(8.0)  # here weighted
            case "shifted by class":
                return y.mean(0) + torch.arange(8.0)  # here shifted by class
            case "part":
                return y.mean(0)[:, :3]  # here part
            case "two":
                return y.mean(0) + y.amax(0)  # here two
            case "moved":
                return y.mean(0).t()  # here moved
            case "layer":
                return self.second(y.mean(0))  # here layer
            case "argmax":
                return y.mean(0).argmax(1)  # here argmax
            case "allowed":
                return F.softmax(2 * y.sum(0) / len(outputs) - 1, 1)
        return y.mean(0)


class Substeps(Base):
    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            for _ in range(3):
                z, state = self.lif(self.first(step), state)  # here
            outputs.append(z)
        return torch.stack(outputs)


class Turned(Base):
    """Turns a sequence with time first around before it takes steps."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        turned = x.transpose(0, 1).contiguous()
        for t in range(turned.shape[1]):
            z, state = self.lif(self.first(turned[:, t]), state)
            outputs.append(z)
        return torch.stack(outputs, dim=1).permute(1, 0, 2)


# Refused: the line to be named ends in "# here"


class Refused(Base):
    """Loops over time and does what ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.third = how, nn.Linear(8, 4)
        self.square = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        one = two = None
        outputs = []
        for t, step in enumerate(x):
            z, one = self.lif(self.first(step), one)
            z = self.between(z, t)
            layer = self.third if self.how == "other layer" and t == 3 else self.second
            z, two = self.out(layer(z), two)
            outputs.append(z)
            if self.how == "state not handed on" and t == 2:
                two = None
        if self.how == "output of a step":
            return outputs[2]
        if self.how == "part of the steps":
            return torch.stack(outputs[2:])
        if self.how == "mixed axes":
            return torch.stack(outputs).flatten(0, 1)
        return torch.stack(outputs)

    def between(self, z: Tensor, t: int) -> Tensor:
        match self.how:
            case "random":
                return z + torch.rand_like(z)  # here random
            case "dropout in evaluation":
                return F.dropout(z, 0.5, training=True)  # here dropout in evaluation
            case "item":
                return z * float(z.sum().item())  # here item
            case "if":
                if z.sum() > 3:  # here if
                    return 2 * z
            case "while":
                while bool(z.any()):  # here while
                    z = z - 1
            case "threshold":
                return (z > 0.5).float()  # here threshold
            case "numpy":
                return torch.as_tensor(np.asarray(z.detach()) * 2)  # here numpy
            case "computed weight":
                return F.linear(z, self.square.weight * 2)  # here computed weight
            case "batch":
                return z.flip(0)  # here batch
            case "batch slice":
                return z[1:]  # here batch slice
            case "batch mean":
                return z - z.mean(0)  # here batch mean
            case "relu":
                return F.relu(self.square(z))  # here relu
            case "product":
                return z * z  # here product
            case "sigmoid":
                return torch.sigmoid(z)  # here sigmoid
            case "divided":
                return z / 3  # here divided
            case "half":
                return z.to(torch.float16).to(torch.float32)  # here half
            case "step number":
                return z + t  # here step number
            case "double":
                return (z * torch.ones(8, dtype=torch.float64)).float()  # here double
        return z


class ChangesState(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.lif = how, nn.Linear(6, 8), cuba(**FAST)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if state is None and self.how == "first state":
            state = norse.LIFFeedForwardState(torch.ones(x.shape[0], 8), torch.zeros(x.shape[0], 8))
        if state is not None and self.how == "by hand":
            state = state._replace(v=state.v * 0.5)
        z, state = self.lif(self.first(x), state)  # here
        return (state.v if self.how == "returned" else z), state


class MaxOfCurrents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 3, 3), cuba(**FAST)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        current = F.max_pool2d(self.conv(x), 2)  # here
        return self.lif(current, state)


class Holds(nn.Module):
    """A neuron of any class within a module of the user."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.first, self.neuron = nn.Linear(6, 8), neuron

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.neuron(self.first(x), state)  # here


class MakesNeurons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        lif, state, outputs = norse.LIFCell(fast()), None, []
        for step in x:
            z, state = lif(self.first(step), state)  # here
            outputs.append(z)
        return torch.stack(outputs)


class DoubleBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((8,), 0.1, dtype=torch.float64))

    def forward(self, x: Tensor, state: Any = (None, None)) -> Any:
        one, two = state
        z, one = self.lif(self.first(x) + self.shift.float(), one)
        z, two = self.out(self.second(z), two)
        return z, (one, two)


class FailsLate(Base):
    """Keeps lists, buffers and states of its own; raises in the call ``last``."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.calls, self.log = last, 0, [torch.zeros(2)]
        self.total, self.nested = torch.zeros(()), {"sizes": [[1], [2]]}
        self.state: Any = (None, None)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(x)
        self.seen += 1
        self.total += 1
        self.nested["sizes"][0].append(len(x))
        if self.calls == self.last:
            raise ValueError("enough")
        z, one = self.lif(self.first(x), self.state[0])
        z, two = self.out(self.second(z), self.state[1])
        self.state = (one, two)
        return z
