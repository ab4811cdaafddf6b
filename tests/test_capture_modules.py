"""Networks as users write them are captured cell for cell, or refused by file and line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import torch
from torch import nn

import user_modules as u
from networks import analog, spikes, spiking_shares
from slamp.capture import capture, check_module
from slamp.errors import CaptureError, RasterError, SlampError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.nodes import Delay
from slamp.raster import SpikeRaster, join
from slamp.read_neurons import KINDS, NEURON_ADVICE
from slamp.running import TRACED_STEPS
from slamp.simulate import simulate
from test_read_neurons import classes_of_norse

FILE = u.__file__
STEPS = 12


def lively(net: nn.Module, gain: float = 3.0) -> nn.Module:
    """Scale weights so that layers fire."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("weight", "weights")):
                parameter.mul_(gain)
    return net


def captured(net: nn.Module, *rasters: SpikeRaster) -> SpikingGraph:
    """Capture (which raises if a cell differs) and see that every spiking layer spikes."""
    graph = capture(net, rasters[0] if len(rasters) == 1 else rasters)
    raster = rasters[0] if len(rasters) == 1 else join(rasters)
    shares = spiking_shares(graph, simulate(graph, raster, record="spikes"))
    assert shares
    assert all(0 < share < 1 for share in shares.values()), shares
    return graph


def nodes_of(graph: SpikingGraph) -> list[str]:
    return sorted(
        type(node).__name__ for node in graph.nodes.values() if type(node).__name__ not in ("Input", "Output")
    )


CHAIN = ["Affine", "Affine", "CubaLIF", "LIF"]
BRANCHES = ["Affine", "Affine", "Affine", "CubaLIF", "LIF", "LIF"]


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, its nodes and how it reads its output over time."""

    make: Callable[[], nn.Module]
    nodes: list[str]
    features: tuple[int, ...] = (6,)
    readout: str = ""


def looped(take: str = "index", collect: str = "stack", readout: str = "") -> Case:
    return Case(lambda: u.Looped(take, collect), CHAIN, readout=readout)


def wired(how: str, *more: str) -> Case:
    return Case(lambda: u.Wired(how), sorted([*BRANCHES, *more]))


CASES: dict[str, Case] = {
    "states by hand": Case(u.StatesByHand, CHAIN),
    "named states": Case(u.NamedStates, CHAIN),
    "states in a dictionary": Case(u.DictStates, CHAIN),
    "stores its states": Case(u.StoresStates, CHAIN),
    "own first states": Case(u.OwnStates, ["Affine", "CubaLIF"]),
    **{
        f"steps by {take}": looped(take)
        for take in ("index", "slice", "ellipsis", "iterate", "unbind", "enumerate", "batch first", "select")
    },
    **{f"batch first, {how}": Case(lambda how=how: Turned(how), CHAIN) for how in ("transposed", "permuted")},  # type: ignore[misc]  # bound per name
    "preallocated": looped(collect="preallocated"),
    "running sum": looped("iterate", "running sum", "sum"),
    "running sum in place": looped("iterate", "in place", "sum"),
    "sum of a list": looped("iterate", "sum of list", "sum"),
    "mean of a list": looped("iterate", "mean of running sum", "mean"),
    "last": looped("iterate", "last", "last"),
    "last of a stack": looped("iterate", "last index", "last"),
    "sum": looped("iterate", "sum", "sum"),
    "mean": looped("iterate", "mean", "mean"),
    "max": looped("iterate", "max", "max"),
    "amax": looped("iterate", "amax", "max"),
    "log softmax": looped("iterate", "log_softmax", "mean"),
    "batch first, sum": looped("batch first", "sum", "sum"),
    "hard-coded steps": Case(u.HardCoded, CHAIN),
    "layer by layer": Case(u.LayerByLayer, ["Affine", "Affine", "CubaLI", "CubaLIF"]),
    "lifted": Case(u.Lifted, ["Affine", "Conv2d", "CubaLIF", "Flatten", "MaxPool2d"], (2, 6, 8)),
    "recurrent over time": Case(u.RecurrentOverTime, ["Affine", "CubaLI", "CubaLIF", "Delay", "Linear", "Linear"]),
    "recurrence from zeros": Case(u.RecurrentByHand, ["Affine", "CubaLIF", "Delay", "Linear", "Sum"]),
    "recurrence of two steps": Case(lambda: u.RecurrentByHand(2), ["Affine", "CubaLIF", "Delay", "Linear", "Sum"]),
    "recurrence from none": Case(
        lambda: u.RecurrentByHand(zeros=False), ["Affine", "CubaLIF", "Delay", "Linear", "Sum"]
    ),
    "recurrence of two steps from none": Case(
        lambda: u.RecurrentByHand(2, zeros=False), ["Affine", "CubaLIF", "Delay", "Linear", "Sum"]
    ),
    "recurrence in the state": Case(u.RecurrentInState, ["Affine", "CubaLIF", "Delay", "Linear", "Sum"]),
    "first layer late": Case(lambda: u.Pattern("late"), ["Affine", "CubaLIF", "Delay"]),
    "difference in time": Case(lambda: u.Pattern("difference in time"), ["Affine", "CubaLIF", "Delay", "Scale", "Sum"]),
    "weight from the second step": Case(
        lambda: u.Pattern("weight from the second step"), ["Affine", "Affine", "CubaLIF", "Delay", "Sum"]
    ),
    "inhibition from the second step": Case(
        lambda: u.Pattern("inhibition from the second step"), ["Affine", "CubaLIF", "Delay", "Scale", "Sum"]
    ),
    "trace by hand": Case(lambda: u.Pattern("trace"), ["Affine", "CubaLIF", "Delay", "Scale", "Sum"]),
    "joined steps": Case(lambda: u.Pattern("joined"), ["Affine", "CubaLIF"]),
    "steps beside one another": Case(lambda: u.Pattern("beside"), ["Affine", "CubaLIF"]),
    "steps beside one another, summed": Case(lambda: u.Pattern("beside, sum"), ["Affine", "CubaLIF"], readout="sum"),
    "output batch first": Case(lambda: u.Pattern("batch first"), ["Affine", "CubaLIF"]),
    "output in a dictionary": Case(lambda: u.Pattern("dictionary"), ["Affine", "CubaLIF"]),
    "read, scaled, softmax": Case(lambda: u.Reads("allowed"), ["Affine", "CubaLIF"], readout="sum"),
    "turned around": Case(u.Turned, ["Affine", "CubaLIF"]),
    "lifted with states": Case(u.LiftedNeurons, ["Affine", "CubaLIF"]),
    "sum of branches": wired("sum", "Sum"),
    "sum in place": wired("in place", "Sum"),
    "difference": wired("difference", "Scale", "Sum"),
    "concatenation": wired("cat", "Place", "Place", "Sum"),
    "concatenation with the input": Case(
        lambda: u.Wired("cat input"), ["Affine", "Affine", "CubaLIF", "LIF", "Place", "Place", "Sum"]
    ),
    "stacked and summed": wired("stacked", "Sum"),
    "doubled": Case(lambda: Both("doubled"), sorted([*BRANCHES, "Scale", "Sum"])),
    "difference of currents": Case(
        lambda: Both("difference of currents"), sorted([*BRANCHES, "Affine", "Scale", "Sum", "Sum"])
    ),
    "normalized": Case(lambda: Both("normalized"), sorted([*BRANCHES, "Scale", "Sum"])),
    "dropped": Case(lambda: Both("dropped"), sorted([*BRANCHES, "Sum"])),
    **{
        how: Case(lambda how=how: u.Wired(how), sorted([*CHAIN, *more]))  # type: ignore[misc]  # bound per name
        for how, more in {
            "negated": ["Scale"],
            "times": ["Scale"],
            "halved": ["Scale"],
            "shifted": ["Scale"],
            "turned": ["Scale", "Scale"],
            "per channel": ["Scale", "Scale"],
            "gain": ["Scale"],
            "view": ["Flatten", "Permute", "Reshape"],
            "swap": ["Place", "Place", "Sum", "Take", "Take"],
            "slice": ["Take"],
            "unsqueezed": ["Flatten", "Reshape"],
            "relu": [],
        }.items()
    },
    "functional": Case(u.Functional, ["Affine", "Conv2d", "CubaLIF", "Flatten", "LIF"], (2, 5, 6)),
    "up and down": Case(
        u.UShape,
        [*["Conv2d"] * 3, *["CubaLIF"] * 3, "MaxPool2d", "Pad", "Pad", "Place", "Place", "Sum", "Upsample2d"],
        (2, 6, 6),
    ),
    "module used twice": Case(u.UsedTwice, CHAIN),
    "linear cell": Case(u.LinearCell, ["Affine", "CubaLI", "CubaLIF", "Linear"]),
    "recurrent sequential": Case(
        lambda: norse.RecurrentSequential(nn.Linear(6, 6), norse.LIFCell(u.fast()), output_modules=1),
        ["Affine", "CubaLIF", "Delay", "Sum"],
    ),
}


class Turned(u.Looped):
    """Takes (batch, time, features), turns the axes, and loops over the first."""

    def __init__(self, how: str) -> None:
        super().__init__("iterate")
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = x.transpose(0, 1) if self.how == "transposed" else x.permute(dims=(1, 0, 2))
        return super().forward(turned).swapaxes(0, 1)


class Both(u.Wired):
    """As `user_modules.Wired`, with both branches summed, whatever is done to the currents of the second."""

    def between(self, x: torch.Tensor, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return z + y


@pytest.mark.parametrize("name", CASES)
def test_networks_of_users_are_captured_cell_for_cell(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(5)
    graph = captured(lively(case.make()), spikes(case.features, steps=STEPS, batch=5, rate=0.5))
    assert nodes_of(graph) == case.nodes
    assert graph.readout == case.readout


@pytest.mark.parametrize("name", ["steps by batch first", "batch first, transposed", "batch first, sum"])
def test_batch_first_modules_are_known_whatever_the_number_of_steps(name: str) -> None:
    torch.manual_seed(5)
    net = lively(CASES[name].make())
    captured(net, spikes((6,), steps=TRACED_STEPS, batch=5, rate=0.6))
    assert [report.problem for report in check_module(net, (6,)) if report.problem] == []


def test_analog_input_is_captured_too() -> None:
    torch.manual_seed(5)
    captured(lively(u.Looped()), analog((6,), steps=STEPS, batch=3))


def test_lags_are_delays() -> None:
    torch.manual_seed(5)
    for lag in (1, 2):
        graph = captured(lively(u.RecurrentByHand(lag)), spikes((6,), steps=STEPS, rate=0.5))
        (delay,) = [node for node in graph.nodes.values() if isinstance(node, Delay)]
        assert set(np.unique(delay.steps)) == {float(lag)}


def test_parameters_keep_their_names() -> None:
    torch.manual_seed(5)
    graph = captured(lively(u.Functional()), spikes((2, 5, 6), rate=0.5))
    assert sorted(graph.parameters.values()) == ["kernel", "weight"]
    graph = captured(lively(u.UsedTwice()), spikes((6,), rate=0.5))
    assert list(graph.parameters.values()) == ["linear.weight"] * 2
    graph = captured(lively(u.RecurrentOverTime()), spikes((6,), rate=0.5))
    assert set(graph.parameters.values()) == {"cell.input_weights", "cell.recurrent_weights", "head.weight"}


def test_two_inputs_are_one_raster_side_by_side() -> None:
    torch.manual_seed(5)
    first, second = spikes((2, 4, 4), rate=0.5), spikes((6,), rate=0.5, seed=1)
    graph = captured(lively(u.TwoInputs()), first, second)
    assert graph.shapes["input"] == (2 * 4 * 4 + 6,)


def test_two_outputs_are_joined_and_hidden_spikes_recorded_at_their_layer() -> None:
    torch.manual_seed(5)
    net, raster = lively(u.TwoOutputs()), spikes((6,), steps=STEPS, rate=0.5)
    graph = captured(net, raster)
    assert graph.shapes["output"] == (4 + 3,)
    recording = simulate(graph, raster, record="spikes")
    with torch.no_grad():
        classes, gates, hidden = net.eval()(raster.data.to(torch.float32))
    assert torch.equal(recording.output.data.to(torch.float32), torch.cat([classes, gates], 2))
    assert torch.equal(recording["lif"].spikes.to(torch.float32), hidden)


def test_every_output_is_compared() -> None:
    torch.manual_seed(5)
    net, raster = lively(u.Pattern("logits")), spikes((6,), steps=STEPS, rate=0.5)
    assert captured(net, raster).shapes["output"] == (8 + 4,)
    calls = []

    def later(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        calls.append(1)
        return output + 1 if len(calls) == TRACED_STEPS + 7 else None

    net.head.register_forward_hook(later)
    with pytest.raises(CaptureError, match=r"^output: step 6, sample 0"):
        capture(net, raster)


@pytest.mark.parametrize("batch", [1, 3, 5, 17])
@pytest.mark.parametrize("features", [3, 5, 18])
def test_batches_that_are_not_aligned_in_memory_compare_equal(batch: int, features: int) -> None:
    torch.manual_seed(batch)
    raster = spikes((features,), steps=STEPS, batch=batch, rate=0.5)
    net = nn.Sequential(nn.Linear(features, 7), norse.LI())
    capture(norse.SequentialState(*net), raster)  # all steps at once
    capture(norse.SequentialState(nn.Linear(features, 7), norse.LICell()), raster)


def test_steps_and_sequence_give_the_same_graph() -> None:
    torch.manual_seed(5)
    raster = spikes((6,), steps=STEPS, rate=0.5)
    one, other = lively(u.StatesByHand()), u.Looped()
    other.load_state_dict(one.state_dict())
    assert captured(one, raster).hash == captured(other, raster).hash


# Refusals


def line_of(kind: type, marker: str) -> str:
    source, start = inspect.getsourcelines(kind)
    (found,) = [start + index for index, line in enumerate(source) if line.rstrip().endswith(marker)]
    return f"{FILE}:{found}"


MESSAGES: dict[str, str] = {
    "random": "rand_like draws random numbers; leave noise out",
    "dropout in evaluation": "dropout draws random numbers",
    "item": "item reads a number that depends on the input into Python; what a step computes must not depend on it",
    "if": "__bool__ reads a number that depends on the input",
    "while": "__bool__ reads a number that depends on the input",
    "threshold": "gt is not captured; use a neuron of norse.torch for thresholds",
    "numpy": "reads a number that depends on the input",
    "computed weight": "linear uses a weight that is computed in each step .mul at .*; make it a parameter",
    "batch": "flip is not captured",
    "batch slice": "takes samples out of the batch; keep the batch axis",
    "batch mean": "mean",
    "relu": "relu is not captured; behind spikes drop it; on currents use a neuron",
    "product": "mul combines two values that depend on the input; multiply and divide by constants only",
    "sigmoid": "sigmoid is not captured; use a neuron of norse.torch in its place",
    "divided": "division by other numbers than powers of two|divides by a number that is no power of two",
    "half": "to gives torch.float16; stay in torch.float32",
    "step number": "reads a constant that is another in a later step; every time step must compute the same",
    "double": "reads a constant of torch.float64; use float32",
}


@pytest.mark.parametrize("how", MESSAGES)
def test_what_no_graph_holds_is_refused_by_its_line(how: str) -> None:
    net = u.Refused(how)
    with pytest.raises(UnsupportedModuleError, match=MESSAGES[how]) as refusal:
        capture(net, spikes((6,), steps=STEPS))
    assert line_of(u.Refused, f"# here {how}") in str(refusal.value)
    assert any(str(refusal.value) == report.problem for report in check_module(net, (6,)))


READS: dict[str, str] = {
    **dict.fromkeys(
        ("negated", "turned", "weighted", "shifted by class", "two"),
        "changes the order of what was read over time; allowed there are positive factors",
    ),
    "part": "takes a part of what was read over time; take it before, in each step",
    "moved": "is not captured|moves axes of what was read over time",
    "layer": "Linear uses a value read over time",
    "argmax": "argmax is not captured; return the values",
    "softmax": "softmax is applied to every step; apply it to what is read over time",
}


@pytest.mark.parametrize("how", READS)
def test_what_changes_the_order_of_a_readout_is_refused(how: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=READS[how]) as refusal:
        capture(u.Reads(how), spikes((6,), steps=STEPS))
    assert line_of(u.Reads, f"# here {how}") in str(refusal.value)


def test_neurons_made_in_forward_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match="LIFCell is no part of the module; make it once") as refusal:
        capture(u.MakesNeurons(), spikes((6,), steps=STEPS))
    assert line_of(u.MakesNeurons, "# here") in str(refusal.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    net = u.StatesByHand()
    net.first = torch.jit.script(net.first)
    with pytest.raises(
        UnsupportedModuleError, match=r"first: RecursiveScriptModule is compiled code, .* give the module it was"
    ):
        capture(net, spikes((6,)))


def test_several_neuron_steps_per_step_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match="LIFCell runs more than once per time step") as refusal:
        capture(u.Substeps(), spikes((6,), steps=STEPS))
    assert line_of(u.Substeps, "# here") in str(refusal.value)


OF_THE_WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "other layer": (
        lambda: u.Refused("other layer"),
        (6,),
        "LIFBoxCell: step 3 reads other values than a later",
    ),
    "state not handed on": (
        lambda: u.Refused("state not handed on"),
        (6,),
        r"user_modules.py:\d+: out: LIFBoxCell starts anew in step 3; hand the state it returned to its next call",
    ),
    "output of a step": (
        lambda: u.Refused("output of a step"),
        (6,),
        "the output is that of step 2 of 12; return the last",
    ),
    "part of the steps": (
        lambda: u.Refused("part of the steps"),
        (6,),
        "returns 10 steps for an input of 12; return every",
    ),
    "mixed axes": (
        lambda: u.Refused("mixed axes"),
        (6,),
        r"user_modules.py:\d+: flatten makes .*; keep the batch axis",
    ),
    "state changed": (
        lambda: u.ChangesState("by hand"),
        (6,),
        "not the one it returned|uses the state 'v' of a neuron",
    ),
    "first state": (
        lambda: u.ChangesState("first state"),
        (6,),
        "starts from a state of its own .v is not its default",
    ),
    "state returned": (
        lambda: u.ChangesState("returned"),
        (6,),
        "the output is the state 'v' of a neuron; return its output",
    ),
    "max of currents": (u.MaxOfCurrents, (2, 6, 6), "max_pool2d takes the largest of values that are no spikes"),
    "double buffer": (u.DoubleBuffer, (6,), "shift is torch.float64; allowed is float32; call net.float"),
}


@pytest.mark.parametrize("name", OF_THE_WHOLE)
def test_what_no_step_does_is_refused(name: str) -> None:
    make, features, message = OF_THE_WHOLE[name]
    with pytest.raises(UnsupportedModuleError, match=message) as refusal:
        capture(make(), spikes(features, steps=STEPS))
    if name in ("state changed", "first state"):
        assert line_of(u.ChangesState, "# here") in str(refusal.value)
    if name == "max of currents":
        assert line_of(u.MaxOfCurrents, "# here") in str(refusal.value)
    assert [report for report in check_module(make(), features) if report.problem]


@pytest.mark.parametrize("name", sorted(NEURON_ADVICE))
def test_neurons_without_a_node_are_refused_within_modules_of_users(name: str) -> None:
    kind: Any = classes_of_norse()[name]
    neuron = kind.__new__(kind)  # some take parameters without defaults; they are refused before they run
    nn.Module.__init__(neuron)
    with pytest.raises(UnsupportedModuleError, match=rf"neuron: .*{name} is not captured; .*nearest is") as refusal:
        capture(u.Holds(neuron), spikes((6,)))
    assert line_of(u.Holds, "# here") in str(refusal.value)


@pytest.mark.parametrize("kind", [k for k in KINDS if not KINDS[k].over_time], ids=lambda kind: kind.__name__)
def test_every_neuron_is_captured_within_modules_of_users(kind: Any) -> None:
    torch.manual_seed(5)
    net = lively(u.Holds(kind(8, 5) if KINDS[kind].weights else kind()), 8.0)
    graph = capture(net, spikes((6,), steps=40, rate=0.6))
    shares = spiking_shares(graph, simulate(graph, spikes((6,), steps=40, rate=0.6), record="spikes"))
    assert all(share > 0 for share in shares.values())


# As found


def snapshot(net: nn.Module) -> dict[str, Any]:
    return {
        "attributes": [
            {
                key: (id(value), [id(item) for item in value] if isinstance(value, list) else 0, repr(value))
                for key, value in vars(module).items()
                if not key.startswith("_") or key.endswith("hooks")
            }
            for module in net.modules()
        ],
        "training": [module.training for module in net.modules()],
        "requires_grad": [parameter.requires_grad for parameter in net.parameters()],
        "gradients": [parameter.grad for parameter in net.parameters()],
        "tensors": {name: (id(tensor), tensor.tolist()) for name, tensor in net.state_dict(keep_vars=True).items()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": [item.tolist() if isinstance(item, np.ndarray) else item for item in np.random.get_state()],  # noqa: NPY002  # seen
        "call": torch.nn.Module.__call__,
    }


AS_FOUND: dict[str, tuple[Callable[[], nn.Module], type[Exception] | None]] = {
    "captured": (lambda: u.FailsLate(0), None),
    "stores states": (u.StoresStates, None),
    "raises in the first call": (lambda: u.FailsLate(1), UnsupportedModuleError),
    "raises while traced": (lambda: u.FailsLate(4), UnsupportedModuleError),
    "raises while compared": (lambda: u.FailsLate(9), ValueError),
    "cannot be read": (lambda: u.Refused("threshold"), UnsupportedModuleError),
    "draws": (lambda: u.Refused("random"), UnsupportedModuleError),
    "no step": (lambda: u.Refused("state not handed on"), UnsupportedModuleError),
    "no node": (u.MaxOfCurrents, SlampError),
    "numbers": (lambda: infinite(u.StatesByHand()), CaptureError),
}


def infinite(net: u.Base) -> nn.Module:
    with torch.no_grad():
        net.first.weight[0, 0] = float("inf")
    return net


@pytest.mark.parametrize("name", AS_FOUND)
def test_the_module_is_left_as_it_was_found_whatever_fails(name: str) -> None:
    make, error = AS_FOUND[name]
    net = make().train()
    next(net.modules()).register_forward_hook(lambda module, inputs, output: None)
    next(net.parameters()).requires_grad = False
    next(iter(net.children())).eval()
    raster = spikes((6,) if name != "no node" else (2, 6, 6), steps=STEPS)
    before = snapshot(net)
    if error is None:
        capture(net, raster)
    else:
        with pytest.raises(error):
            capture(net, raster)
    assert snapshot(net) == before
    check_module(net, raster.features)
    assert snapshot(net) == before


def test_a_raster_of_another_dt_or_shape_is_refused() -> None:
    with pytest.raises(RasterError, match=r"dt is 0\.002 s, the network's neurons have 0\.001 s"):
        capture(u.Looped(), SpikeRaster(spikes((6,)).data, 2e-3))
    with pytest.raises(UnsupportedModuleError, match=r"first: Linear .* \(5,\) .*, allowed is \(6,\)") as refusal:
        capture(u.Looped(), spikes((5,)))
    assert re.search(rf"{re.escape(FILE)}:\d+: first", str(refusal.value))
