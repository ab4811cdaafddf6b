"""The rows of the support table: a small network around every module and operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import torch
from norse.torch import LIFRefracParameters, LSNNParameters, SequentialState
from torch.nn import functional

from networks import DT, box, cuba, iaf, li, li_box
from slamp.read_neurons import NEURON_ADVICE

Module = torch.nn.Module
Tensor = torch.Tensor
Function = Callable[..., Any]
Shape = tuple[int, ...]
FLAT: Shape = (16,)
LINE: Shape = (3, 12)
MAP: Shape = (2, 8, 8)


@dataclass(frozen=True)
class Row:
    """What a user writes, and networks that hold it; several must be supported alike.

    Attributes:
        label: Markdown.
        builders: One per network.
        inputs: Shape of one sample at one step, per input of the network.
        names: Regular expression per network that a refusal must match, so that it is refused for what it is.
    """

    label: str
    builders: tuple[Callable[[], Module], ...]
    inputs: tuple[Shape, ...] = (FLAT,)
    names: tuple[str, ...] = ()


class Does(Module):
    """A function as a module, with the modules it uses."""

    def __init__(self, function: Function, *modules: Module) -> None:
        super().__init__()
        self.function, self.used = function, torch.nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.used)


class Steps(Module):
    """One step at a time: ``step(run, *inputs)``, where ``run(name, x)`` runs a module and keeps its state.

    It is called as ``net(x, state)``; states and, for recurrence, the outputs of the step before are a dictionary.
    """

    def __init__(self, step: Function, **modules: Module) -> None:
        super().__init__()
        self.step = step
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.stepped((x,), state)

    def stepped(self, inputs: tuple[Tensor, ...], state: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        before, after = state or {}, {}

        def run(name: str, x: Tensor) -> Tensor:
            output, after[name] = getattr(self, name)(x, before.get(name))
            after[f"{name} last"] = output
            return output

        run.last = lambda name: before.get(f"{name} last")  # type: ignore[attr-defined]  # handed to the step
        return self.step(self, run, *inputs), after


class Loop(Steps):
    """The whole sequence at a time, (time, batch, ...), read out by ``readout`` from the list of outputs."""

    def __init__(self, step: Function, readout: Function = torch.stack, **modules: Module) -> None:
        super().__init__(step, **modules)
        self.readout = readout

    def forward(self, *inputs: Tensor) -> Any:  # type: ignore[override]  # another style of calling
        state, outputs = None, []
        for step in zip(*inputs, strict=True):
            output, state = self.stepped(step, state)
            outputs.append(output)
        return self.readout(outputs)


class BatchFirst(Loop):
    """The whole sequence at a time, (batch, time, ...)."""

    def forward(self, *inputs: Tensor) -> Any:
        return super().forward(*(x.transpose(0, 1) for x in inputs)).transpose(0, 1)


# Networks around one thing


def linear(inputs: int, outputs: int) -> Module:
    return torch.nn.Linear(inputs, outputs)


def layers(*modules: Module) -> Module:
    """A layer of neurons, the modules, and a layer of neurons behind."""
    return SequentialState(linear(16, 24), cuba(), *modules)


def neurons(make: Callable[[], Module]) -> Callable[[], Module]:
    """The neurons between two layers of weights."""
    return lambda: SequentialState(linear(16, 24), make(), linear(24, 10), cuba())


def ends_in(make: Callable[[], Module]) -> Callable[[], Module]:
    return lambda: layers(linear(24, 6), make())


def on_spikes(function: Function, outputs: int = 24) -> Callable[[], Module]:
    """A function of spikes, before the next weights."""
    return lambda: layers(Does(function), linear(outputs, 10), cuba())


def on_currents(function: Function, outputs: int = 10) -> Callable[[], Module]:
    """A function of what weights give, before the neurons."""
    return lambda: SequentialState(
        linear(16, 24), cuba(), linear(24, 10), Does(function), cuba(), linear(outputs, 6), cuba()
    )


def on_maps(*modules: Callable[[], Module], outputs: int) -> Callable[[], Module]:
    """Modules between a convolution's spikes (4, 8, 8) and a linear layer that takes ``outputs`` values."""
    return lambda: SequentialState(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        cuba(),
        *(make() for make in modules),
        torch.nn.Flatten(),
        linear(outputs, 10),
        cuba(),
    )


def before_maps(*modules: Callable[[], Module], outputs: int) -> Callable[[], Module]:
    """Modules between the input (2, 8, 8) and the neurons behind them, which give ``outputs`` values."""
    return lambda: SequentialState(
        *(make() for make in modules), cuba(), torch.nn.Flatten(), linear(outputs, 10), cuba()
    )


def conv(inputs: int, outputs: int, **options: Any) -> Callable[[], Module]:
    options = {"kernel_size": 3, **options}
    return lambda: torch.nn.Conv2d(inputs, outputs, **options)


def does(function: Function) -> Callable[[], Module]:
    return lambda: Does(function)


def sequence(kind: type[Module]) -> Callable[[], Module]:
    """The neurons of one class, over time, between two layers of weights."""
    return lambda: SequentialState(linear(16, 24), kind(cuba().p, dt=DT), linear(24, 10), norse.LIF(cuba().p, dt=DT))


def lifted(*modules: Callable[[], Module]) -> Callable[[], Module]:
    return lambda: SequentialState(*(make() for make in modules))


def recurrent(kind: type[Module], p: Any) -> Callable[[], Module]:
    """A recurrent layer of one class and a layer behind it that takes one step, or all, as the first does."""
    over_time = not kind.__name__.endswith("Cell")
    return lambda: SequentialState(
        kind(16, 20, p, dt=DT), linear(20, 10), norse.LIF(cuba().p, dt=DT) if over_time else cuba()
    )


def bare(name: str) -> Callable[[], Module]:
    """A network with an unfinished module of a class of Norse; the class alone decides."""

    def build() -> Module:
        kind = _class_of_norse(name)
        module = kind.__new__(kind)
        Module.__init__(module)
        return layers(module)

    return build


def _class_of_norse(name: str) -> type[Module]:
    from test_read_neurons import classes_of_norse  # only the table's row of refused neurons needs it

    return classes_of_norse()[name]


REFRACTORY = LIFRefracParameters(lif=cuba().p, rho_reset=torch.tensor(2.0))
ADAPTIVE = LSNNParameters(
    **{name: torch.tensor(value) for name, value in {"tau_syn_inv": 300.0, "tau_mem_inv": 200.0, "v_th": 0.4}.items()},
    beta=torch.tensor(0.5),
    method="tanh",
)


# Steps of networks in the user's own code


def plain_step(net: Any, run: Any, x: Tensor) -> Tensor:
    return run("last", net.out(run("first", net.fc(x))))


def skip_step(net: Any, run: Any, x: Tensor) -> Tensor:
    hidden = run("first", net.fc(x))
    return run("last", net.out(run("middle", net.between(hidden)) + hidden))


def joined_currents_step(net: Any, run: Any, x: Tensor) -> Tensor:
    hidden = run("first", net.fc(x))
    return run("last", net.out(run("middle", net.between(hidden))) + net.around(hidden))


def difference_step(net: Any, run: Any, x: Tensor) -> Tensor:
    hidden = run("first", net.fc(x))
    return run("last", net.out(run("middle", net.between(hidden))) - net.around(hidden))


def feedback_step(net: Any, run: Any, x: Tensor) -> Tensor:
    current = net.fc(x)
    if run.last("first") is not None:
        current = current + net.back(run.last("first"))
    return run("last", net.out(run("first", current)))


def shared_step(net: Any, run: Any, x: Tensor) -> Tensor:
    hidden = run("first", net.fc(x))
    return run("last", net.out(run("middle", net.again(run("second", net.again(hidden))))))


def two_inputs_step(net: Any, run: Any, x: Tensor, y: Tensor) -> Tensor:
    return run("last", net.out(run("first", net.fc(x)) + run("second", net.other(y))))


def two_outputs_step(net: Any, run: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = run("first", net.fc(x))
    return run("last", net.out(hidden)), run("second", net.around(hidden))


def product_step(net: Any, run: Any, x: Tensor) -> Tensor:
    hidden = run("first", net.fc(x))
    return run("last", net.out(hidden * run("middle", net.between(hidden))))


def state_step(net: Any, run: Any, x: Tensor) -> Tensor:
    _, state = net.first(net.fc(x))
    return run("last", net.out(state.v))


def branching_step(net: Any, run: Any, x: Tensor) -> Tensor:
    hidden = run("first", net.fc(x))
    return run("last", net.out(hidden) if hidden.sum() > 3 else net.around(hidden))


def parts(**more: Module) -> dict[str, Module]:
    known = {"fc": linear(16, 24), "first": cuba(), "out": linear(24, 10), "last": cuba()}
    return {**known, **more}


def branches() -> dict[str, Module]:
    return parts(between=linear(24, 24), middle=cuba(), around=linear(24, 10), second=cuba())


def both(outputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*outputs, strict=True)
    return torch.stack(first), torch.stack(second)


def reading(readout: Function, **more: Any) -> Callable[[], Module]:
    return lambda: Loop(plain_step, lambda outputs: readout(torch.stack(outputs)), **parts(last=li()), **more)


def lif_over_time() -> Module:
    return norse.LIF(cuba().p, dt=DT)


GROUPS: Mapping[str, tuple[Row, ...]] = {
    "weights": (
        Row("`Linear`", (neurons(cuba),)),
        Row(
            "`Conv1d`",
            (
                lambda: SequentialState(
                    torch.nn.Conv1d(3, 6, 3, stride=2), cuba(), torch.nn.Flatten(), linear(30, 8), cuba()
                ),
            ),
            (LINE,),
        ),
        Row(
            "`Conv2d`, any stride and zero padding", (before_maps(conv(2, 4, stride=2, padding=1), outputs=64),), (MAP,)
        ),
        Row("`Conv2d(groups=, dilation=)`", (before_maps(conv(2, 4, groups=2, dilation=2), outputs=64),), (MAP,)),
        Row('`Conv2d(padding="same")`', (before_maps(conv(2, 4, padding="same"), outputs=256),), (MAP,)),
        Row(
            '`Conv2d(padding_mode="reflect")`, `"replicate"`',
            tuple(
                before_maps(conv(2, 4, padding=1, padding_mode=mode), outputs=256) for mode in ("reflect", "replicate")
            ),
            (MAP,),
        ),
        Row(
            '`Conv2d(padding_mode="circular")`',
            (before_maps(conv(2, 4, padding=1, padding_mode="circular"), outputs=256),),
            (MAP,),
        ),
        Row(
            "`BatchNorm1d`, `BatchNorm2d` behind weights",
            (
                before_maps(conv(2, 4), lambda: torch.nn.BatchNorm2d(4), outputs=144),
                before_maps(torch.nn.Flatten, lambda: linear(128, 20), lambda: torch.nn.BatchNorm1d(20), outputs=20),
            ),
            (MAP,),
        ),
        Row("`BatchNorm` elsewhere", (on_maps(lambda: torch.nn.BatchNorm2d(4), outputs=256),), (MAP,)),
        Row(
            "one module used twice",
            (lambda: Loop(shared_step, **parts(again=linear(24, 24), second=cuba(), middle=cuba())),),
        ),
        Row(
            "`ConvTranspose2d`, `Conv3d`, `Bilinear`, `LSTM`, `GRU`, `GroupNorm`, `LayerNorm`",
            (
                on_maps(lambda: torch.nn.ConvTranspose2d(4, 4, 1), outputs=256),
                on_maps(does(lambda x: x.unsqueeze(1)), lambda: torch.nn.Conv3d(1, 1, 1), outputs=256),
                on_maps(lambda: Does(lambda x, both: both(x, x), torch.nn.Bilinear(8, 8, 8)), outputs=256),
                on_maps(torch.nn.Flatten, lambda: torch.nn.LSTM(256, 24), outputs=24),
                on_maps(torch.nn.Flatten, lambda: torch.nn.GRU(256, 24), outputs=24),
                on_maps(lambda: torch.nn.GroupNorm(2, 4), outputs=256),
                on_maps(lambda: torch.nn.LayerNorm(8), outputs=256),
            ),
            (MAP,),
            ("ConvTranspose2d", "Conv3d", "Bilinear", "LSTM", "GRU", "GroupNorm", "LayerNorm"),
        ),
    ),
    "neurons": (
        Row("`LIFCell`, `LIF`", (neurons(cuba), sequence(norse.LIF))),
        Row(
            "`LIFRecurrentCell`, `LIFRecurrent`",
            tuple(recurrent(kind, cuba().p) for kind in (norse.LIFRecurrentCell, norse.LIFRecurrent)),
        ),
        Row("`LIFBoxCell`", (neurons(box),)),
        Row("`LIFBoxCell`, reset by subtraction", (neurons(lambda: box(subtract=True)),)),
        Row(
            "`IAFCell`, `IAF`",
            (
                neurons(iaf),
                lambda: SequentialState(linear(16, 24), norse.IAF(iaf().p, dt=DT), linear(24, 9), lif_over_time()),
            ),
        ),
        Row(
            "`LICell`, `LI`, as output",
            (
                ends_in(li),
                lambda: SequentialState(linear(16, 24), lif_over_time(), linear(24, 5), norse.LI(li().p, dt=DT)),
            ),
        ),
        Row("`LILinearCell`, as output", (lambda: layers(norse.LILinearCell(24, 5, li().p, dt=DT)),)),
        Row("`LIBoxCell`, as output", (ends_in(li_box),)),
        Row("`LICell` between layers", (neurons(li),)),
        Row("`LIFRefracCell`", (neurons(lambda: norse.LIFRefracCell(REFRACTORY, dt=DT)),)),
        Row(
            "`LIFRefracRecurrentCell`, `LIFRefracRecurrent`",
            tuple(recurrent(kind, REFRACTORY) for kind in (norse.LIFRefracRecurrentCell, norse.LIFRefracRecurrent)),
        ),
        Row(
            "`LSNNCell`, `LSNN`",
            (
                neurons(lambda: norse.LSNNCell(ADAPTIVE, dt=DT)),
                lambda: SequentialState(linear(16, 24), norse.LSNN(ADAPTIVE, dt=DT), linear(24, 9), lif_over_time()),
            ),
        ),
        Row(
            "`LSNNRecurrentCell`, `LSNNRecurrent`",
            tuple(recurrent(kind, ADAPTIVE) for kind in (norse.LSNNRecurrentCell, norse.LSNNRecurrent)),
        ),
        Row(
            "other neurons (`LIFAdEx…`, `LIFEx…`, `LIFMC…`, `Izhikevich…`, `CobaLIFCell`, `LIFCorrelation`)",
            tuple(bare(name) for name in NEURON_ADVICE),
            names=tuple(NEURON_ADVICE),
        ),
    ),
    "pools and shapes": (
        Row(
            "`MaxPool2d`, `max_pool2d` on spikes",
            (
                on_maps(lambda: torch.nn.MaxPool2d(2), outputs=64),
                on_maps(does(lambda x: functional.max_pool2d(x, 2)), outputs=64),
            ),
            (MAP,),
        ),
        Row(
            "`MaxPool2d` on currents",
            (before_maps(conv(2, 4), lambda: torch.nn.MaxPool2d(2), outputs=36),),
            (MAP,),
            ("takes the largest of values that are no spikes",),
        ),
        Row("`AvgPool2d`", (on_maps(lambda: torch.nn.AvgPool2d(2), outputs=64),), (MAP,)),
        Row("`LPPool2d(1, k)`", (on_maps(lambda: torch.nn.LPPool2d(1, 2), outputs=64),), (MAP,)),
        Row(
            "`AdaptiveAvgPool2d`, windows of one size",
            (on_maps(lambda: torch.nn.AdaptiveAvgPool2d(2), outputs=16),),
            (MAP,),
        ),
        Row("`AdaptiveAvgPool2d`, of several", (on_maps(lambda: torch.nn.AdaptiveAvgPool2d(3), outputs=36),), (MAP,)),
        Row(
            "`mean` over the axes of a map",
            (on_maps(does(lambda x: x.mean((2, 3))), outputs=4),),
            (MAP,),
            (r"mean over axes \(2, 3\)",),
        ),
        Row(
            "`Flatten`, `flatten`, `view`, `reshape` to one axis",
            (
                on_maps(outputs=256),
                on_maps(does(lambda x: x.view(len(x), -1)), outputs=256),
                on_maps(does(lambda x: x.reshape(len(x), 256)), outputs=256),
            ),
            (MAP,),
        ),
        Row(
            "`view`, `reshape`, `Unflatten` to others",
            (
                on_maps(does(lambda x: x.view(-1, 16, 4, 4)), conv(16, 4), cuba, outputs=16),
                on_maps(torch.nn.Flatten, lambda: torch.nn.Unflatten(1, (16, 4, 4)), conv(16, 4), cuba, outputs=16),
            ),
            (MAP,),
        ),
        Row(
            "`permute`, `transpose`",
            (
                on_maps(does(lambda x: x.permute(0, 2, 3, 1)), outputs=256),
                on_maps(does(lambda x: x.transpose(1, 2)), outputs=256),
            ),
            (MAP,),
        ),
        Row(
            "slices, `chunk`, `split`",
            (
                on_spikes(lambda x: x[:, 3:15], 12),
                on_spikes(lambda x: x.chunk(2, 1)[1], 12),
                on_spikes(lambda x: x.split(8, 1)[0], 8),
            ),
        ),
        Row(
            "every other value, lists and masks as indices",
            (on_spikes(lambda x: x[:, ::2], 12), on_spikes(lambda x: x[:, [1, 5, 7]], 3)),
            names=("takes every", "list or a mask"),
        ),
        Row("`cat` of branches", (on_spikes(lambda x: torch.cat([x[:, 12:], x], 1), 36),)),
        Row(
            "`ZeroPad2d`, `pad`",
            (
                on_maps(lambda: torch.nn.ZeroPad2d(1), outputs=400),
                on_maps(does(lambda x: functional.pad(x, (1, 1, 1, 1))), outputs=400),
            ),
            (MAP,),
        ),
        Row(
            "`Upsample`, `interpolate`, nearest, by whole factors",
            (on_maps(lambda: torch.nn.Upsample(scale_factor=2), outputs=1024),),
            (MAP,),
        ),
        Row(
            "`Upsample`, otherwise; `PixelShuffle`",
            (
                on_maps(lambda: torch.nn.Upsample(scale_factor=2, mode="bilinear"), outputs=1024),
                on_maps(lambda: torch.nn.PixelShuffle(2), outputs=256),
            ),
            (MAP,),
            ("by mode", "PixelShuffle"),
        ),
    ),
    "arithmetic": (
        Row(
            "`Dropout`, `Identity` (vanish in evaluation)",
            (lambda: layers(torch.nn.Dropout(0.3), torch.nn.Identity(), linear(24, 10), cuba()),),
        ),
        Row(
            "`relu` on spikes (vanishes)",
            (on_spikes(functional.relu), lambda: layers(torch.nn.ReLU(), linear(24, 10), cuba())),
        ),
        Row(
            "`relu` on currents; `sigmoid`, `tanh`, `GELU`, comparisons",
            (
                on_currents(functional.relu),
                on_currents(torch.sigmoid),
                on_currents(torch.tanh),
                on_currents(functional.gelu),
                on_currents(lambda x: (x > 0.5).float()),
            ),
            names=("relu", "sigmoid", "tanh", "gelu", "gt"),
        ),
        Row("sum of spikes (skip connection)", (lambda: Loop(skip_step, **branches()),)),
        Row("sum of currents", (lambda: Loop(joined_currents_step, **branches()),)),
        Row("difference of currents", (lambda: Loop(difference_step, **branches()),)),
        Row(
            "currents times constants, over powers of two",
            (on_currents(lambda x: 0.3 * x), on_currents(lambda x: x / 4), on_currents(lambda x: -x)),
        ),
        Row("currents plus constants", (on_currents(lambda x: x + 0.25),)),
        Row("spikes times constants", (on_spikes(lambda x: 0.3 * x),)),
        Row("division by other numbers", (on_currents(lambda x: x / 3),), names=("powers of two",)),
        Row(
            "product of two values that depend on the input",
            (lambda: Loop(product_step, **branches()),),
            names=("two values that depend",),
        ),
    ),
    "structure": (
        Row(
            "`SequentialState`, nested",
            (
                lambda: SequentialState(
                    SequentialState(linear(16, 24), cuba()), SequentialState(linear(24, 10), cuba())
                ),
            ),
        ),
        Row("`net(x, state)`, one step, states by hand", (lambda: Steps(plain_step, **parts()),)),
        Row("loop over time in `forward`, (time, batch, …)", (lambda: Loop(plain_step, **parts()),)),
        Row("the same, (batch, time, …)", (lambda: BatchFirst(plain_step, **parts()),)),
        Row(
            "`Lift`",
            (
                lambda: SequentialState(
                    norse.Lift(conv(2, 4)()),
                    lif_over_time(),
                    norse.Lift(torch.nn.Flatten()),
                    norse.Lift(linear(144, 10)),
                    lif_over_time(),
                ),
            ),
            (MAP,),
        ),
        Row(
            "`RecurrentSequential`",
            (lambda: norse.RecurrentSequential(linear(16, 16), cuba(), linear(16, 16), cuba()),),
        ),
        Row("recurrence by hand", (lambda: Loop(feedback_step, **parts(back=linear(24, 24))),)),
        Row(
            "several inputs",
            (lambda: Loop(two_inputs_step, **parts(other=linear(16, 24), second=cuba())),),
            (FLAT, FLAT),
        ),
        Row("several outputs", (lambda: Loop(two_outputs_step, both, **branches()),)),
        Row(
            "`sum`, `mean`, `max`, last step over time",
            (
                reading(lambda x: x.sum(0)),
                reading(lambda x: x.mean(0)),
                reading(lambda x: x.max(0)[0]),
                reading(lambda x: x[-1]),
            ),
        ),
        Row("`softmax` behind that", (reading(lambda x: x.mean(0).softmax(1)),)),
        Row("other uses of the state of neurons", (lambda: Loop(state_step, **parts()),), names=("the state 'v'",)),
        Row(
            "what is computed depends on values (`if`, `item`)",
            (lambda: Loop(branching_step, **branches()),),
            names=("reads a number",),
        ),
    ),
}
