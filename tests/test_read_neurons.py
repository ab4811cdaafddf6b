"""Every class of neurons Norse has: read into the node that computes the same, or refused by name."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

import norse.torch
import norse.torch.module
import pytest
import torch

from slamp.dynamics import NeuronDynamics, NeuronState, exact_float32
from slamp.errors import UnsupportedModuleError
from slamp.nodes import LIF, CubaLIF
from slamp.read_neurons import KINDS, NEURON_ADVICE, neuron_of

NEURONS, INPUTS, STEPS, BATCH = 5, 7, 30, 3
# Modules of Norse that hold no neurons of their own; a class missing here, in KINDS and in NEURON_ADVICE fails a test.
NO_NEURONS = {
    *("ConstantCurrentLIFEncoder", "PoissonEncoder", "PoissonEncoderStep", "PopulationEncoder", "SpikeLatencyEncoder"),
    *("SignedPoissonEncoder", "SignedPoissonEncoderStep", "SpikeLatencyLIFEncoder", "SpikesToTimesDecoder"),
    *("ExpFilter", "LConv2d", "Lift", "RecurrentSequential", "RegularizationCell", "SequentialState"),
    *("ParameterizedSpatialReceptiveField2d", "SampledSpatialReceptiveField2d", "SpatialReceptiveField2d"),
    "TemporalReceptiveField",  # a container of a neuron module, read at its own path
    *("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell"),  # what the neurons derive from
}
MODELS = {"ConvNet", "ConvNet4", "MobileNetV2", "VGG"}
LIVELY = {"tau_syn_inv": 300.0, "tau_mem_inv": 200.0, "v_leak": 0.1, "v_th": 0.4, "v_reset": -0.2, "beta": 0.5}


def classes_of_norse() -> dict[str, type[torch.nn.Module]]:
    spaces = [norse.torch]
    for module in pkgutil.iter_modules(norse.torch.module.__path__):
        if module.name != "test":
            spaces.append(importlib.import_module(f"norse.torch.module.{module.name}"))
    found = {name: value for space in spaces for name, value in vars(space).items() if isinstance(value, type)}
    return {name: kind for name, kind in found.items() if issubclass(kind, torch.nn.Module)}


def parameters_of(kind: type[torch.nn.Module], **changed: Any) -> Any:
    """Parameters that make the neurons fire; ``changed`` by name, in whichever tuple holds it."""
    made = kind(*sizes(kind)).p
    values = {name: torch.tensor(value) for name, value in LIVELY.items()} | changed
    if "lif" in made._fields:
        inner = made.lif._replace(**{name: value for name, value in values.items() if name in made.lif._fields})
        made = made._replace(lif=inner)
    return made._replace(**{name: value for name, value in values.items() if name in made._fields})


def sizes(kind: type[torch.nn.Module]) -> tuple[int, ...]:
    return (INPUTS, NEURONS) if KINDS[kind].weights else ()


def run(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output of a module over all steps, by Norse."""
    with torch.no_grad():
        if KINDS[type(module)].over_time:
            output: torch.Tensor = module(x)[0]
            return output
        state, outputs = None, []
        for step in x:
            output, state = module(step, state)
            outputs.append(output)
        return torch.stack(outputs)


def run_node(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The same by the node, with the weights the module holds before it."""
    kind = KINDS[type(module)]
    dynamics = NeuronDynamics(neuron_of(module, (NEURONS,), where="n", dt=None), "cpu")
    state: NeuronState = dynamics.initial_state(x.shape[1])
    last, outputs = torch.zeros(x.shape[1], NEURONS), []
    linear = torch.nn.functional.linear
    with exact_float32():
        for step in x:
            drive = linear(step, module.input_weights) if kind.weights else step
            more = (linear(last, module.recurrent_weights)[None],) if kind.recurrent else ()
            last = dynamics.advance(drive[None], state, more=more).output[0]
            outputs.append(last)
    return torch.stack(outputs)


def drive_for(kind: type[torch.nn.Module]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, BATCH, INPUTS if KINDS[kind].weights else NEURONS)
    return (torch.rand(shape, generator=generator) < 0.4).to(torch.float32) * 2


def test_no_class_of_norse_is_forgotten() -> None:
    found = classes_of_norse()
    read = {kind.__name__ for kind in KINDS}
    assert len(found) > 50
    assert {name for name in found if name not in MODELS} == read | set(NEURON_ADVICE) | NO_NEURONS
    assert not read & set(NEURON_ADVICE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_class_computes_what_its_node_does(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(3)
    module = kind(*sizes(kind), p=parameters_of(kind), dt=0.002)
    x = drive_for(kind)
    expected = run(module, x)
    assert expected.any()
    assert bool((expected != expected[:1]).any())
    assert torch.equal(run_node(module, x), expected)


def variants() -> list[tuple[type[torch.nn.Module], str, str]]:
    found = []
    for kind in KINDS:
        made = kind(*sizes(kind)).p
        names = [*made._fields, *(made.lif._fields if "lif" in made._fields else ())]
        for name in set(names) - {"lif", "method", "reset_method", "alpha"}:
            found += [(kind, name, form) for form in ("plain", "one", "per_neuron")]
    return sorted(found, key=lambda variant: (variant[0].__name__, *variant[1:]))


@pytest.mark.parametrize(
    ("kind", "name", "form"), variants(), ids=lambda part: part if isinstance(part, str) else part.__name__
)
def test_parameters_are_read_exactly_where_norse_runs_with_them(
    kind: type[torch.nn.Module], name: str, form: str
) -> None:
    torch.manual_seed(4)
    value = LIVELY.get(name, 3.0)
    spread = (
        [value, value, value + 1, value, value] if name == "rho_reset" else [value + k / 16 for k in range(NEURONS)]
    )
    given = {"plain": value, "one": torch.tensor([value]), "per_neuron": torch.tensor(spread)}[form]
    x = drive_for(kind)
    try:
        module = kind(*sizes(kind), p=parameters_of(kind, **{name: given}))
        expected = run(module, x)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        with pytest.raises(UnsupportedModuleError, match=f"n: {name} "):
            neuron_of(module, (NEURONS,), where="n", dt=None)
        return
    assert expected.any()
    assert torch.equal(run_node(module, x), expected)


@pytest.mark.parametrize("name", NEURON_ADVICE)
def test_other_neurons_are_refused_by_name_with_the_nearest(name: str) -> None:
    kind = classes_of_norse()[name]
    module: torch.nn.Module = kind.__new__(kind)  # some take parameters without defaults; the class alone decides
    torch.nn.Module.__init__(module)
    nearest = re.findall(r"\w+Cell", NEURON_ADVICE[name].partition("nearest is")[2])
    assert nearest
    assert set(nearest) <= {known.__name__ for known in KINDS}
    with pytest.raises(UnsupportedModuleError, match=rf"a\.b: .*{name} is not captured.*{nearest[0]}"):
        neuron_of(module, (NEURONS,), where="a.b", dt=None)


def test_a_subclass_is_refused() -> None:
    class Mine(norse.torch.LIFCell):  # type: ignore[misc]  # norse is untyped
        pass

    with pytest.raises(UnsupportedModuleError, match=r"n: .*Mine is not captured; allowed are IAF, IAFCell, LI"):
        neuron_of(Mine(), (2,), where="n", dt=None)


Refused = tuple[type[torch.nn.Module], dict[str, Any], str]
OPTIONS: dict[str, Refused] = {
    "method": (norse.torch.LIFRefracCell, {"method": "logistic"}, "n: spike method 'logistic' is probabilistic"),
    "adjoint": (norse.torch.LIFRecurrent, {"method": "adjoint"}, "n: spike method 'adjoint'"),
    "reset": (norse.torch.LIFBoxCell, {"reset_method": max}, "n: reset_method .* allowed are norse's"),
    "dtype": (norse.torch.LSNNCell, {"beta": torch.ones(5, dtype=torch.float64)}, r"n: beta is torch\.float64"),
    "fraction": (norse.torch.LIFRefracCell, {"rho_reset": 2.5}, "n: rho_reset is 2.5; .* refractory for 3 steps"),
    "negative": (norse.torch.LIFRefracCell, {"rho_reset": torch.tensor(-1.0)}, "n: rho_reset is -1; .* for 0 steps"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_without_a_node_are_refused(name: str) -> None:
    kind, changed, message = OPTIONS[name]
    with pytest.raises(UnsupportedModuleError, match=message):
        neuron_of(kind(*sizes(kind), p=parameters_of(kind, **changed)), (5,), where="n", dt=None)


def test_another_time_step_is_refused() -> None:
    module = norse.torch.LSNNRecurrent(INPUTS, NEURONS, dt=0.002)
    assert neuron_of(module, (NEURONS,), where="n", dt=0.002).v_leak.shape == (NEURONS,)
    with pytest.raises(UnsupportedModuleError, match=r"n: dt is 0\.002 s, the neurons before it have 0\.001 s"):
        neuron_of(module, (NEURONS,), where="n", dt=0.001)


def test_weights_and_size_of_recurrent_modules_are_checked() -> None:
    module = norse.torch.LIFRecurrentCell(INPUTS, NEURONS)
    with pytest.raises(UnsupportedModuleError, match=r"n: LIFRecurrentCell has 5 neurons, and shape \(4,\)"):
        neuron_of(module, (4,), where="n", dt=None)
    with pytest.raises(UnsupportedModuleError, match=r"n: input_weights is torch\.float64"):
        neuron_of(module.double(), (NEURONS,), where="n", dt=None)


def test_one_step_and_many_are_the_same_node() -> None:
    for kind in (norse.torch.LIFCell, norse.torch.LIF, norse.torch.LIFRecurrent):
        node = neuron_of(kind(*sizes(kind)), (NEURONS,), where="n", dt=None)
        assert type(node) is CubaLIF
    assert type(neuron_of(norse.torch.LIFBoxCell(), (NEURONS,), where="n", dt=None)) is LIF
