"""From a trace to meanings: which operation, of which operands, at which time step, every traced tensor is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from slamp.errors import UnsupportedModuleError
from slamp.neuron_calls import check_state, loops_over_time, state_fields
from slamp.tracing import Call, Trace, Value, values_in, words
from slamp.unrolled import Instance, Meaning, Operation, Pieces, Read, Stack, State, Unread

Operand = Instance | Value
IDENTITIES = words(
    "type deepcopy contiguous clone detach detach_ to float type_as cpu cuda identity alias requires_grad_"
)
RESHAPES = words("flatten view reshape unflatten squeeze unsqueeze reshape_as view_as ravel")
DROPOUTS = words("dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout")
# What may follow a readout over time without moving the largest class.
MONOTONE = words("softmax log_softmax")


class Interpreter:
    """Gives every value of a trace its meaning.

    Args:
        trace: The run.
        batch: Samples in it; the batch axis is known by its size.
        steps: Time steps in it.
        lenient: Go on behind what cannot be read, as an operation without a node, to find every problem.
    """

    def __init__(self, trace: Trace, batch: int, steps: int, *, lenient: bool = False) -> None:
        self.trace, self.batch, self.steps, self.lenient = trace, batch, steps, lenient
        self._meanings: dict[int, Meaning] = {}
        self._numbers: Counter[tuple[Any, ...]] = Counter()
        self._prefix: Counter[tuple[Any, ...]] = Counter()
        self._late: dict[tuple[Any, ...], int] = {}
        self._chains: dict[int, Instance] = {}
        self.instances: list[Instance] = []
        self.unread: list[Unread] = []

    def run(self) -> None:
        """Read all calls in order."""
        for call in self.trace.calls:
            try:
                if call.module is not None:
                    self._neuron(call)
                else:
                    self._function(call)
            except UnsupportedModuleError as error:
                if not self.lenient:
                    raise
                self._bind(call.result, self._unread(call, str(error)))

    def input(self, value: Value, meaning: Meaning) -> None:
        """Say what an input is."""
        self._meanings[id(value)] = meaning

    def of(self, value: Value) -> Meaning | Value:
        """Return the meaning of a value, or the value itself if it does not depend on the input."""
        if value.unseen:
            return Unread(value.unseen)
        return self._meanings.get(id(value), value)

    def operand(self, value: Any) -> Meaning | Value:
        """As `of`; Python numbers become constants."""
        if isinstance(value, Value):
            return self.of(value)
        return Value(torch.as_tensor(value))

    def instance(
        self,
        operation: Operation,
        operands: Sequence[Operand],
        shape: Sequence[int],
        call: Call,
        *,
        part: int = 0,
        before: Instance | None = None,
    ) -> Instance:
        """Make an instance and find its step: the latest of its operands, or the one after ``before``."""
        known = all(isinstance(operand, Value) or operand.known for operand in operands)
        at = (call.place, part)
        times = [operand.time for operand in operands if isinstance(operand, Instance) and not operand.known]
        after = before.time + 1 if before is not None else 0
        if known:
            time = max(self._prefix[at], after)
            self._prefix[at] += 1
        else:
            # Runs on states before the first step came first: the later ones run as much later than their operands.
            late = self._late.setdefault(at, max(0, self._prefix[at] - max(times)))
            time = max(max(times) + late, after)
        counted = (*at, time)
        made = Instance(
            operation, tuple(operands), time, tuple(shape), call, self._numbers[counted], known, before, part
        )
        self._numbers[counted] += 1
        self.instances.append(made)
        return made

    def features(self, shape: Sequence[int], call: Call) -> tuple[int, ...] | None:
        """Return a shape without its batch axis, None if that is not the first."""
        return tuple(shape[1:]) if shape and shape[0] == self.batch else None

    # Neurons

    def _neuron(self, call: Call) -> None:
        module, where = call.module, call.where
        assert module is not None
        x, state = neuron_arguments(call)
        meaning = self.operand(x) if isinstance(x, Value) else None
        kind = type(module).__name__
        output, after = call.result if isinstance(call.result, tuple) and len(call.result) == 2 else (call.result, None)
        if isinstance(meaning, Unread):
            return self._bind(call.result, meaning)
        if isinstance(meaning, (Pieces, Read, State)) or meaning is None:
            raise UnsupportedModuleError(self.unreadable(meaning, f"{where}: {kind}"))
        if output.tensor.dtype != torch.float32:
            raise UnsupportedModuleError(
                f"{where}: {kind} gives {output.tensor.dtype}; stay in torch.float32, without autocast"
            )
        before = self._state_before(call, state)
        operation = Operation("neuron", module=module)
        if not loops_over_time(module):
            if isinstance(meaning, Stack):
                raise UnsupportedModuleError(
                    f"{where}: {kind} receives all time steps at once and would take them for a batch; "
                    "loop over time, or use the module that does"
                )
            made = self.instance(operation, [meaning], output.shape[1:], call, before=before)
            self._bind(output, made)
            last = made
        else:
            if not isinstance(meaning, Stack) or meaning.axis != 0:
                found = tuple(x.shape)
                raise UnsupportedModuleError(
                    f"{where}: {kind} loops over the first axis as time and receives shape {found} of one "
                    f"step; give it (time, batch, ...), or use {kind}Cell in a loop"
                )
            entries = []
            for entry in meaning.entries:
                before = self.instance(operation, [entry], output.shape[2:], call, before=before)
                entries.append(before)
            self._bind(output, Stack(tuple(entries), 0))
            last = entries[-1]
        for name, value in state_fields(after):
            if isinstance(value, Value) and id(value) != id(output):
                self._bind(value, State(last, name))

    def _state_before(self, call: Call, state: Any) -> Instance | None:
        assert call.module is not None
        fields = [(name, value) for name, value in state_fields(state) if isinstance(value, Value)]
        if not fields:
            return None
        meanings = [(name, self.of(value)) for name, value in fields]
        found = {
            id(meaning.instance if isinstance(meaning, State) else meaning): meaning
            for _, meaning in meanings
            if isinstance(meaning, (State, Instance))
        }
        if not found:
            x = neuron_arguments(call)[0]
            check_state(call.module, x.tensor, fields, call.where)
            return None
        meaning = next(iter(found.values()))
        before = meaning.instance if isinstance(meaning, State) else meaning
        handed_on = len(found) == 1 and before.operation.module is call.module
        for name, other in meanings:
            handed_on &= isinstance(other, Instance) or (isinstance(other, State) and other.field == name)
        if not handed_on:
            raise UnsupportedModuleError(
                f"{call.where}: the state of {type(call.module).__name__} is not the one it returned the "
                "step before; hand it on as it is"
            )
        return before

    # Functions

    def _function(self, call: Call) -> None:
        name = plain_name(call.function)
        values = list(values_in((call.arguments, call.options)))
        dynamic = [value for value in values if isinstance(self.of(value), _DYNAMIC)]
        known = not any(not value.known for value in values)
        if known and not dynamic and name not in PREFIXED:
            return
        for value in values:
            if isinstance(unread := self.of(value), Unread):
                return self._bind(call.result, unread)
        result = call.result
        if name in IDENTITIES and isinstance(result, Value) and result.tensor.dtype != torch.float32:
            message = f"{call.where}: {call.what} gives {result.tensor.dtype}; stay in torch.float32"
            return self._bind(result, self._unread(call, message))
        if name in IDENTITIES or name in DROPOUTS:
            return self._bind(call.result, self._meanings.get(id(call.arguments[0]), None))
        if call.functional:
            message = f"{call.where}: {call.functional} of norse.torch.functional is not captured; {BY_MODULE}"
            return self._bind(call.result, self._unread(call, message))
        handler = HANDLERS.get(name)
        if handler is None:
            message = f"{call.where}: {call.what} is not captured; {ADVICE.get(call.what, ADVICE.get(name, GENERAL))}"
            return self._bind(call.result, self._unread(call, message))
        try:
            meaning = handler(self, call)
            if isinstance(meaning, (Instance, Stack, Read)):
                self._check_float32(call)
        except UnsupportedModuleError as error:
            if known and not dynamic:
                return None
            meaning = self._unread(call, str(error))
        if isinstance(meaning, Instance) and meaning.known and isinstance(call.result, Value):
            meaning.result = call.result
        self._bind(call.result, meaning)

    def _check_float32(self, call: Call) -> None:
        for value in values_in(call.result):
            if value.tensor.is_floating_point() and value.tensor.dtype != torch.float32:
                raise self.refuse(call, f"gives {value.tensor.dtype}", "stay in torch.float32, without autocast")

    def _unread(self, call: Call, message: str) -> Meaning:
        """Return what stands for a value that no graph holds."""
        unread = Unread(message, call)
        self.unread.append(unread)
        result = next(values_in(call.result), None)
        if not self.lenient or result is None:
            return unread
        found = [self.of(value) for value in values_in((call.arguments, call.options))]
        operands = [item for item in found if isinstance(item, (Instance, Stack))]
        try:
            return (
                self.lifted(call, operands, Operation("unread", (message,)), shape=result.shape) if operands else unread
            )
        except UnsupportedModuleError:
            return unread

    def _bind(self, result: Any, meaning: Any) -> None:
        """Give a result its meaning; a tuple of results a tuple of meanings, or the first of them."""
        if meaning is None:
            return
        if isinstance(result, Value):
            self._meanings[id(result)] = meaning
            return
        found = list(values_in(result))
        each = meaning if isinstance(meaning, (list, tuple)) else [meaning] * len(found)
        for value, part in zip(found, each, strict=False):
            self._meanings[id(value)] = part

    def lifted(
        self,
        call: Call,
        operands: Sequence[Meaning | Value],
        operation: Operation,
        *,
        part: int = 0,
        shape: Sequence[int] | None = None,
    ) -> Meaning:
        """Make the instances of an operation on values of one step, or on stacks of them step by step.

        Args:
            call: The call.
            operands: Its operands.
            operation: What is done in one step.
            part: Which instance of the call it is.
            shape: Shape of the result, all axes; that of the call's result by default.
        """
        for operand in operands:
            if isinstance(operand, (Pieces, State, Read, Unread)):
                raise UnsupportedModuleError(self.unreadable(operand, f"{call.where}: {call.what}"))
        result = tuple(call.result.shape) if shape is None else tuple(shape)
        stacks = [operand for operand in operands if isinstance(operand, Stack)]
        if not stacks:
            features = self.features(result, call)
            if features is None:
                raise self.refuse(call, f"gives shape {result}, whose first axis is not the batch", BATCH_FIRST)
            ready = [operand for operand in operands if isinstance(operand, (Instance, Value))]
            return self.instance(operation, ready, features, call, part=part)
        axis, count = stacks[0].axis, len(stacks[0].entries)
        if any(stack.axis != axis or len(stack.entries) != count for stack in stacks):
            raise self.refuse(call, "combines sequences of different lengths or axes", "give all one layout")
        if result[axis : axis + 1] != (count,) or result[1 - axis : 2 - axis] != (self.batch,):
            raise self.refuse(call, f"gives shape {result}, which mixes time and batch", BATCH_FIRST)
        entries = []
        for index in range(count):
            ready = []
            for operand in operands:
                assert isinstance(operand, (Stack, Instance, Value))
                ready.append(operand.entries[index] if isinstance(operand, Stack) else operand)
            entries.append(self.instance(operation, ready, result[2:], call, part=part))
        return Stack(tuple(entries), axis)

    def refuse(self, call: Call, found: str, advice: str) -> UnsupportedModuleError:
        """Return an error about a call."""
        return UnsupportedModuleError(f"{call.where}: {call.what} {found}; {advice}")

    def unreadable(self, meaning: object, where: str) -> str:
        """Say why a value cannot be used; ``where`` says where and by what."""
        match meaning:
            case Unread():
                return meaning.message
            case Read():
                after = [f"{call.function} at {call.line}" for call in meaning.calls]
                done = f"{meaning.how}, {after[0]}" if after else meaning.how
                return (
                    f"{where} uses a value read over time ({done}); a step can only use what came before it, and "
                    "division by other numbers than powers of two is captured in the readout alone"
                )
            case Pieces():
                return f"{where} uses a sequence cut into pieces (stack at {meaning.call.line}); join them by torch.cat"
            case State():
                return (
                    f"{where} uses the state {meaning.field!r} of a neuron; only its output can be used, "
                    "and the state handed back to it"
                )
            case _:
                return f"{where} receives no tensor; give it the values of one step"


def neuron_arguments(call: Call) -> tuple[Any, Any]:
    """Return the input and the state a neuron module was called with."""
    named = {"input_tensor": 0, "state": 1}
    bound: dict[object, Any] = dict(enumerate(call.arguments))
    bound.update({named.get(key, key): item for key, item in call.options.items()})
    return bound.get(0), bound.get(1)


def plain_name(name: str) -> str:
    """Return the name of a function without marks of operators and in-place forms."""
    bare = name.strip("_")
    if name.startswith("__") and bare[:1] in "ri" and bare[1:] in ("add", "sub", "mul", "div", "truediv", "matmul"):
        return f"r{bare[1:]}" if bare[0] == "r" else bare[1:]
    return {"truediv": "div", "true_divide": "div", "concat": "cat", "concatenate": "cat"}.get(bare, bare)


_DYNAMIC = (Instance, Stack, Pieces, State, Read, Unread)
BY_MODULE = "use the module of that neuron, such as LIFCell, and hand its state on"
GENERAL = "use the modules and operations of the support table in the README"
BATCH_FIRST = "keep the batch axis as it is; operations on time and batch together are not captured"
ADVICE = {
    "LSTM": "use LIFRecurrentCell or LSNNRecurrentCell",
    "RNN": "use LIFRecurrentCell or LSNNRecurrentCell",
    "GRU": "use LIFRecurrentCell or LSNNRecurrentCell",
    "gt": "use a neuron of norse.torch for thresholds",
    "lt": "use a neuron of norse.torch for thresholds",
    "heaviside": "use a neuron of norse.torch for thresholds",
    "sigmoid": "use a neuron of norse.torch in its place",
    "tanh": "use a neuron of norse.torch in its place",
    "matmul": "use torch.nn.Linear, or torch.nn.functional.linear with a parameter",
    "mm": "use torch.nn.Linear, or torch.nn.functional.linear with a parameter",
    "einsum": "use torch.nn.Linear, or torch.nn.functional.linear with a parameter",
    "conv_transpose2d": "use nearest upsampling followed by Conv2d",
    "layer_norm": "use BatchNorm, whose numbers are fixed in evaluation",
    "group_norm": "use BatchNorm, whose numbers are fixed in evaluation",
    "argmax": "return the values, and take the largest outside of the network",
    **dict.fromkeys(("maximum", "minimum", "clamp_min", "clamp_max", "max", "min"), "use a neuron in its place"),
    "copy_": "assign the tensor itself",
    "pow": "spikes are 0 or 1, so drop it; multiply by constants only",
    "lerp": "write it out as a sum of products with constants",
    "where": "what is computed must not depend on the values; use a neuron for thresholds",
    "clamp": "use a neuron in its place",
}
# Functions whose calls on states before the first step are kept: they are the first steps of sites.
PREFIXED = words("linear conv1d conv2d batch_norm add sub mul div neg rsub radd rmul cat") | RESHAPES

Handler = Callable[[Interpreter, Call], Any]
HANDLERS: dict[str, Handler] = {}
