"""Running the user's module as it wants to be run, and leaving it as it was found.

A module takes one step at a time and hands its state back, or the whole sequence and loops over it. Which of the two is
found out by running it: one that loops takes its input apart along time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from slamp.as_found import left_as_found
from slamp.dynamics import exact_float32
from slamp.errors import SlampError, UnsupportedModuleError
from slamp.interpret import Interpreter
from slamp.neuron_calls import is_neuron, loops_over_time
from slamp.read_modules import check_plain_weights
from slamp.read_neurons import check_neuron
from slamp.shape_operations import MOVING, moved_axes
from slamp.sites import IN_PIECES, Edge, Folding, Sites
from slamp.tracing import LIBRARIES, Check, Trace, Tracer, Value, values_in
from slamp.unrolled import Instance, Operation, Pieces, Read, Stack, State, Unread

Style = Literal["steps", "sequence", "batch first"]
TRACED_STEPS = 5  # enough to see what is handed from step to step
TRACED_SAMPLES = 3


@dataclass(frozen=True)
class Recorded:
    """A module's calls on a few samples and steps.

    Attributes:
        style: "steps" (one step at a time, state handed on), "sequence" (time, batch, ...) or "batch first".
        trace: The calls.
        shapes: Per input the shape of one sample at one step.
        steps: Time steps that were run.
        batch: Samples that were run.
    """

    style: Style
    trace: Trace
    shapes: tuple[tuple[int, ...], ...]
    steps: int
    batch: int


@dataclass(frozen=True)
class Run:
    """What a module is: its network, the calls it was read from, and what could not be read."""

    recorded: Recorded
    sites: Sites
    reader: Interpreter


def trace_network(net: torch.nn.Module, inputs: Sequence[torch.Tensor], steps: int | None = None) -> Run:
    """Run a module on a few samples and steps of its inputs, and fold what it does into one step.

    Args:
        net: The module.
        inputs: Per input a tensor of shape (time, batch, *features), float32, on the module's device.
        steps: How many steps the module is meant for, for code that knows their number.

    Raises:
        UnsupportedModuleError: What it does cannot be captured; the message holds the line of the user's code.
    """
    try:
        return read_recorded(net, record(net, inputs))
    except UnsupportedModuleError:
        if steps is None or steps == TRACED_STEPS:
            raise
        try:  # code that knows the number of steps needs all of them
            whole = record(net, inputs, steps, ("sequence", "batch first"))
        except UnsupportedModuleError:
            whole = None
        if whole is None:
            raise
    return read_recorded(net, whole)


def record(
    net: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    steps: int = TRACED_STEPS,
    styles: Sequence[Style] = ("sequence", "steps", "batch first"),
    check: Check | None = None,
) -> Recorded:
    """Run a module in the style it is made for; arguments and errors as `trace_network`.

    ``check`` is given every module and where it is called, and may refuse it.
    """
    batch = TRACED_SAMPLES if steps != TRACED_SAMPLES else TRACED_SAMPLES + 1
    data = [_excerpt(tensor, steps, batch) for tensor in inputs]
    failures: dict[Style, Exception] = {}
    where: dict[Style, str] = {}
    apart: set[Style] = set()
    for style in styles:
        tracer = Tracer(net, is_neuron, check or _check)
        try:
            with exact_float32(), left_as_found(net):
                run_style(net, data, style, partial(tracer.run, net), tracer.input)
        except Exception as error:  # noqa: BLE001  # the user's code may raise anything
            if _taken_apart(tracer.trace, style):
                apart.add(style)
            if style != "batch first" or style in apart:
                failures[style] = error
                where[style] = tracer.failure
            if isinstance(error, SlampError) and (style == "steps" or style in apart):
                break
            continue
        if style == "steps" or _taken_apart(tracer.trace, style):
            return Recorded(style, tracer.trace, tuple(tuple(tensor.shape[2:]) for tensor in data), steps, batch)
    raise _worst(failures, where, apart, net)


def _worst(
    failures: dict[Style, Exception], where: dict[Style, str], apart: set[Style], net: torch.nn.Module
) -> Exception:
    """Return the error that says most: what was refused, else what a loop over time raised, else one step."""
    for error in failures.values():
        if isinstance(error, SlampError):
            return error
    style = next((style for style in failures if style in apart), "steps" if "steps" in failures else None)
    style = style or next(iter(failures), None)
    if style is None:
        return UnsupportedModuleError(
            "(net): takes its input neither step by step nor apart along time; loop over the first axis of the input, "
            "or take one step and return its output and state"
        )
    error = failures[style]
    line, place = _line_of(error), where.get(style, "")
    found = f"{line}: {place}" if line and place else line or place or "(net)"
    given = {"steps": "one time step, (batch, ...)", "sequence": "a sequence, (time, batch, ...)"}.get(
        style, "a sequence, (batch, time, ...)"
    )
    if "not tuple" in str(error):
        return UnsupportedModuleError(
            f"{found}: {type(error).__name__}: {error}; cells of Norse return their output and their state: "
            "use norse.torch.SequentialState in place of torch.nn.Sequential, or take the output alone"
        )
    return UnsupportedModuleError(
        f"{found}: {type(error).__name__}: {error}; {type(net).__name__} was given {given}; "
        "check the shape of the samples, (time, batch, *features), against what its forward expects"
    )


def _check(module: torch.nn.Module, where: str) -> None:
    if is_neuron(module):
        check_neuron(module, where=where, dt=None)
    else:
        check_plain_weights(module, where)


def _line_of(error: Exception) -> str:
    """Return the last line of the user's code in a traceback."""
    found, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(LIBRARIES):
            found = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def run_style(
    net: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    style: Style,
    call: Callable[..., Any],
    declare: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Run a module over inputs of shape (time, batch, *features) in one style, by ``call``."""
    if style != "steps":
        moved = [tensor.transpose(0, 1) if style == "batch first" else tensor for tensor in inputs]
        given = [declare(tensor) for tensor in moved]
        call(*given, *[None] * _asks_for_state(net, len(inputs)))
        return
    state: Any = None
    for t in range(inputs[0].shape[0]):
        given = [declare(tensor[t]) for tensor in inputs]
        _, state = split_result(net, call(*given, *_state_arguments(net, len(inputs), state, t)), len(inputs))


def _state_arguments(net: torch.nn.Module, inputs: int, state: Any, t: int) -> list[Any]:
    places = _state_places(net, inputs)
    if not places or not (t or _asks_for_state(net, inputs)):
        return []
    behind = _positional(net)[inputs:]
    given: list[Any] = [None if item.default is inspect.Parameter.empty else item.default for item in behind]
    given += [None] * (max(places) + 1 - len(given))
    each = state if len(places) > 1 and isinstance(state, tuple) else (state,)
    if t:
        for place, item in zip(places, each, strict=False):
            given[place] = item
    return given[: max(max(places) + 1, _asks_for_state(net, inputs))]


def _state_places(net: torch.nn.Module, inputs: int) -> list[int]:
    """Return which of the arguments behind the inputs are states: those so called, else those without a value."""
    behind = _positional(net)[inputs:]
    called = [place for place, item in enumerate(behind) if "state" in item.name]
    without = [place for place, item in enumerate(behind) if item.default in (inspect.Parameter.empty, None)]
    return called or without or ([0] if takes_state(net, inputs) else [])


def takes_state(net: torch.nn.Module, inputs: int) -> bool:
    """True if a module's forward has an argument behind its inputs."""
    parameters = inspect.signature(net.forward).parameters.values()
    more = [item for item in parameters if item.kind is inspect.Parameter.VAR_POSITIONAL]
    return len(_positional(net)) + len(more) > inputs


def _asks_for_state(net: torch.nn.Module, inputs: int) -> int:
    """Number of arguments behind the inputs that have no default."""
    return sum(parameter.default is inspect.Parameter.empty for parameter in _positional(net)[inputs:])


def _positional(net: torch.nn.Module) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [item for item in inspect.signature(net.forward).parameters.values() if item.kind in kinds]


def split_result(net: torch.nn.Module, result: Any, inputs: int) -> tuple[Any, Any]:
    """Return what a step gives and the state it hands on."""
    if not takes_state(net, inputs) or not isinstance(result, tuple) or len(result) < 2:
        return result, None
    count = len(_state_places(net, inputs))
    if 1 < count < len(result):  # one state for each argument
        return (result[0] if len(result) == count + 1 else result[:-count]), result[-count:]
    return (result[0] if len(result) == 2 else result[:-1]), result[-1]


def _taken_apart(trace: Trace, style: Style) -> bool:
    """True if the first input was taken apart along time, or given to a module that does so."""
    first = 0 if style == "sequence" else 1
    lead = {id(value): first for value in trace.inputs}  # values of all steps, and their axis of time
    for call in trace.calls:
        values = [value for value in (*call.arguments, *call.options.values()) if isinstance(value, Value)]
        if call.arguments and isinstance(call.arguments[0], tuple):
            values += [value for value in call.arguments[0] if isinstance(value, Value)]
        axis = next((lead[id(value)] for value in values if id(value) in lead), None)
        if axis is None:
            continue
        if call.module is not None and loops_over_time(call.module):
            return axis == 0
        if call.function == "unbind":
            named = call.options.get("dim", call.arguments[1] if len(call.arguments) > 1 else 0)
            if named == axis:
                return True
        elif call.function == "__getitem__":
            key = call.arguments[1]
            items = key if isinstance(key, tuple) else (key,)
            if len(items) > axis and isinstance(items[axis], int) and all(item == slice(None) for item in items[:axis]):
                return True
        elif call.function == "select" and call.arguments[1:2] == (axis,):
            return True
        elif call.function in MOVING:
            axis = moved_axes(call).index(axis)
        lead |= {id(value): axis for value in values_in(call.result)}
    return False


def interpret(recorded: Recorded, *, lenient: bool = False) -> tuple[Interpreter, list[Instance]]:
    """Return the meaning of every call, and the runs of the inputs; ``lenient`` as in `Interpreter`."""
    steps, trace, style = recorded.steps, recorded.trace, recorded.style
    reader = Interpreter(trace, recorded.batch, steps, lenient=lenient)
    entered: list[Instance] = []
    count = len(recorded.shapes)
    for index, shape in enumerate(recorded.shapes):
        run = [Instance(Operation("input"), (), t, shape, None, part=index) for t in range(steps)]
        entered += run
        if style == "steps":
            for t, instance in enumerate(run):
                reader.input(trace.inputs[t * count + index], instance)
        else:
            reader.input(trace.inputs[index], Stack(tuple(run), 1 if style == "batch first" else 0))
    reader.run()
    return reader, entered


def read_recorded(net: torch.nn.Module, recorded: Recorded, *, lenient: bool = False) -> Run:
    """Fold the calls of a run into one step; errors as `trace_network`, ``lenient`` as in `Interpreter`."""
    reader, entered = interpret(recorded, lenient=lenient)
    steps, style = recorded.steps, recorded.style
    results = recorded.trace.results
    if style == "steps":
        results = [split_result(net, result, len(recorded.shapes))[0] for result in results]
    meanings = [[reader.of(value) for value in values_in(result)] for result in results]
    folding = Folding([*entered, *reader.instances], steps)
    found = _outputs_of_steps(meanings) if style == "steps" else meanings[0]
    if not found:
        kind = type(results[0]).__name__
        raise UnsupportedModuleError(
            f"(net): returns no tensor but {kind}; return tensors, several in a tuple, list or dictionary"
        )
    edges: list[Edge] = []
    returned: list[tuple[int, int]] = []
    readout, reading = "", None
    for index, meaning in enumerate(found):
        if index == 0:
            edge, readout, reading = _first_output(folding, meaning, steps)
            edges.append(edge)
            returned.append((0, meaning.axis if isinstance(meaning, Stack) else 0))
            continue
        later = meaning.stack if isinstance(meaning, Pieces) else meaning
        if not isinstance(later, Stack) or len(later.entries) != steps or not later.over_time:
            continue
        edges.append(folding.output(later))
        returned.append((index, meaning.axis if isinstance(meaning, Stack) else IN_PIECES))
    reached = folding.reached([edge.source for edge in edges])
    sites = Sites(reached, tuple(edges), readout, tuple(returned), reading)
    return Run(recorded, sites, reader)


def _outputs_of_steps(meanings: Sequence[Sequence[Any]]) -> list[Any]:
    found: list[Any] = []
    for index in range(min(len(step) for step in meanings)):
        entries = [step[index] for step in meanings]
        if all(isinstance(entry, Instance) for entry in entries):
            found.append(Stack(tuple(entries), 0))
        else:
            found.append(next(entry for entry in entries if not isinstance(entry, Instance)))
    return found


def _first_output(folding: Folding, meaning: Any, steps: int) -> tuple[Edge, str, Read | None]:
    match meaning:
        case Unread():
            raise UnsupportedModuleError(meaning.message)
        case Pieces():
            raise UnsupportedModuleError(
                f"{meaning.call.where}: stack: the output is cut into pieces; join them by torch.cat"
            )
        case Stack():
            if len(meaning.entries) != steps:
                raise UnsupportedModuleError(
                    f"(net): returns {len(meaning.entries)} steps for an input of {steps}; return every step's output, "
                    "or read it over all of them"
                )
            return folding.output(meaning), "", None
        case Instance():
            meaning = Read("last", Stack((meaning,), 0))
        case Read():
            pass
        case State():
            raise UnsupportedModuleError(
                f"{meaning.instance.line}: the output is the state {meaning.field!r} of a neuron; return its output"
            )
        case _:
            raise UnsupportedModuleError("(net): the output does not depend on the input; return the neurons' output")
    if meaning.how != "last":
        if len(meaning.stack.entries) != steps:
            raise UnsupportedModuleError(
                f"(net): reads {len(meaning.stack.entries)} of {steps} steps; read the output over all of them"
            )
        return folding.output(meaning.stack), meaning.how, meaning
    entry = meaning.stack.entries[-1]
    assert isinstance(entry, Instance)
    edge = folding.last(entry)
    summed = folding.accumulated(edge)
    if summed is None:
        return edge, "last", meaning
    mean = any(call.function in ("div", "true_divide") and call.arguments[1] == steps for call in meaning.calls)
    return summed, "mean" if mean else "sum", None


def joined_outputs(run: Run) -> list[Edge]:
    """Return the outputs that are joined: all but spikes of neurons that also lead elsewhere."""
    first, *others = run.sites.outputs
    used = {id(operand.source) for site in run.sites.sites for operand in site.operands if isinstance(operand, Edge)}
    chosen = [first]
    for edge in others:
        same = any(edge.source is known.source and edge.lag == known.lag for known in chosen)
        inside = id(edge.source) in used and edge.source.operation.kind == "neuron"
        if not same and not inside:
            chosen.append(edge)
    return chosen


def _excerpt(tensor: torch.Tensor, steps: int, batch: int) -> torch.Tensor:
    """Return ``steps`` and ``batch`` of a tensor, repeated where it has fewer."""
    time = torch.arange(steps, device=tensor.device) % tensor.shape[0]
    samples = torch.arange(batch, device=tensor.device) % tensor.shape[1]
    return tensor[time][:, samples].contiguous()
