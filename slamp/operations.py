"""The torch functions a graph can hold: what each call of one means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from slamp.errors import UnsupportedModuleError
from slamp.interpret import HANDLERS, Handler, Interpreter
from slamp.tracing import Call, Value
from slamp.unrolled import Instance, Meaning, Operation, Read, Stack


def arguments(call: Call, *names: str, **defaults: Any) -> dict[str, Any]:
    """Return the arguments of a call by name; ``names`` in the order of positions."""
    found = {**defaults, **dict(zip(names, call.arguments, strict=False))}
    return {**found, **{key: value for key, value in call.options.items() if key in names or key in defaults}}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register the reader of the named functions."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


# Weights


@handles("linear")
def _linear(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(call, "input", "weight", "bias", bias=None)
    x = reader.operand(found["input"])
    constants = _constants(reader, call, found["weight"], found["bias"])
    return reader.lifted(call, [x], Operation("linear", (), constants))


@handles("conv1d", "conv2d")
def _conv(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(
        call,
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "dilation",
        "groups",
        bias=None,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
    )
    axes = 1 if call.function == "conv1d" else 2
    constants = _constants(reader, call, found["weight"], found["bias"])
    padding = found["padding"]
    settings = (
        axes,
        _tuple(found["stride"], axes),
        padding if isinstance(padding, str) else _tuple(padding, axes),
        _tuple(found["dilation"], axes),
        int(found["groups"]),
    )
    return _lifted_one(reader, call, found["input"], Operation("conv", settings, constants))


@handles("batch_norm")
def _batch_norm(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(
        call,
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
    )
    if found["training"] or found["running_mean"] is None:
        raise reader.refuse(
            call, "has no running statistics and uses those of the batch", "use track_running_stats=True"
        )
    names = ("running_mean", "running_var", "weight", "bias")
    constants = _constants(reader, call, *(found[name] for name in names))
    x = _one_step(reader, call, found["input"])
    return reader.lifted(call, [x], Operation("norm", (float(found["eps"]),), constants))


# Arithmetic


@handles("add", "radd")
def _add(reader: Interpreter, call: Call) -> Meaning:
    return _sum(reader, call, [1.0, float(arguments(call, "", "", "alpha", alpha=1)["alpha"])])


@handles("sub", "subtract", "rsub")
def _sub(reader: Interpreter, call: Call) -> Meaning:
    alpha = float(arguments(call, "", "", "alpha", alpha=1)["alpha"])
    return _sum(reader, call, [-1.0, 1.0] if call.function == "__rsub__" else [1.0, -alpha])


def _sum(reader: Interpreter, call: Call, factors: Sequence[float]) -> Meaning:
    if any(abs(factor) != 1.0 for factor in factors):
        raise reader.refuse(call, "has alpha", "multiply first, which rounds as the graph does")
    operands = [reader.operand(value) for value in call.arguments[:2]]
    if call.function.startswith("__r"):  # Tensor.__radd__(self, other) is other + self
        operands, factors = operands[::-1], list(factors)[::-1]
    result: list[Meaning | Value] = []
    part = len(operands)  # the parts before are the negations, whether there are any or not
    reads = [operand for operand in operands if isinstance(operand, Read)]
    if reads:
        shifts = [operand for operand in operands if isinstance(operand, Value)]
        _check_order_kept(reader, call, shifts, rising=factors[operands.index(reads[0])] > 0)
        return after_reading(reader, call, reads[0])
    for index, (operand, factor) in enumerate(zip(operands, factors, strict=True)):
        if isinstance(operand, Value):
            result.append(operand if factor == 1.0 else Value(-operand.tensor, call))
            continue
        if factor == -1.0:
            minus = Operation("scale", (), (Value(torch.tensor(-1.0)),))
            operand = reader.lifted(call, [operand], minus, part=index)
        result.append(operand)
    _check_constants(reader, call, result)
    return reader.lifted(call, result, Operation("add"), part=part)


@handles("mul", "rmul", "multiply", "div", "divide")
def _mul(reader: Interpreter, call: Call) -> Meaning:
    operands = [reader.operand(value) for value in call.arguments[:2]]
    if not all(isinstance(operand, Value) or _known(operand) for operand in operands):
        operands = [known if (known := _known(operand)) is not None else operand for operand in operands]
    constants = [operand for operand in operands if isinstance(operand, Value)]
    others = [operand for operand in operands if not isinstance(operand, Value)]
    if len(others) != 1:
        raise reader.refuse(
            call, "combines two values that depend on the input", "multiply and divide by constants only"
        )
    factor = constants[0]
    if isinstance(others[0], Read):
        inverted = "div" in call.function and isinstance(operands[0], Value)
        _check_order_kept(reader, call, constants, rising=bool((factor.tensor > 0).all()) and not inverted)
        return after_reading(reader, call, others[0])
    if "div" in call.function:
        if isinstance(operands[0], Value) or call.options.get("rounding_mode") is not None:
            raise reader.refuse(call, "divides by a value that depends on the input", "divide by constants only")
        inverse = _inverse(factor)
        if inverse is None:
            if isinstance(others[0], Instance):  # fine for what is read over time, and only there
                return Read("last", Stack((others[0],), 0), (call,))
            raise reader.refuse(call, "divides by a number that is no power of two", "multiply by its inverse")
        factor = inverse
    _check_constants(reader, call, [factor])
    return reader.lifted(call, others, Operation("scale", (), (factor,)))


@handles("neg", "negative")
def _neg(reader: Interpreter, call: Call) -> Meaning:
    minus = Value(torch.tensor(-1.0))
    return reader.lifted(call, [reader.operand(call.arguments[0])], Operation("scale", (), (minus,)))


@handles("relu")
def _relu(reader: Interpreter, call: Call) -> Meaning:
    return reader.lifted(call, [reader.operand(call.arguments[0])], Operation("relu"))


def _known(operand: Meaning | Value) -> Value | None:
    """Return the number behind an instance that does not depend on the input."""
    return operand.result if isinstance(operand, Instance) and operand.known else None


def _inverse(factor: Value) -> Value | None:
    """Return 1 / factor where multiplying by it is dividing, bit for bit: for powers of two."""
    mantissa, _ = torch.frexp(factor.tensor.to(torch.float32))
    return Value(1.0 / factor.tensor.to(torch.float32)) if bool((mantissa.abs() == 0.5).all()) else None


def _check_constants(reader: Interpreter, call: Call, operands: Sequence[Meaning | Value]) -> None:
    for operand in operands:
        tensor = operand.tensor if isinstance(operand, Value) else torch.zeros(())
        if tensor.ndim and tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise reader.refuse(call, f"reads a constant of {tensor.dtype}", "use float32")


# Pools


@handles("max_pool2d")
def _max_pool(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(
        call,
        "input",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "ceil_mode",
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode=False,
        return_indices=False,
    )
    if found["ceil_mode"] or found["return_indices"] or _tuple(found["dilation"], 2) != (1, 1):
        raise reader.refuse(call, "has ceil_mode, dilation or return_indices", "use the defaults")
    settings = (*_window(found), _tuple(found["padding"], 2))
    return _lifted_one(reader, call, found["input"], Operation("max_pool", settings))


@handles("avg_pool2d")
def _avg_pool(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(
        call,
        "input",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    )
    padding = _tuple(found["padding"], 2)
    uncounted = padding != (0, 0) and not found["count_include_pad"]
    if found["ceil_mode"] or uncounted or found["divisor_override"] is not None:
        raise reader.refuse(
            call,
            "with ceil_mode, divisor_override or count_include_pad=False under padding is not captured",
            "use the defaults",
        )
    settings = (*_window(found), padding)
    return _lifted_one(reader, call, found["input"], Operation("avg_pool", settings))


@handles("lp_pool2d")
def _lp_pool(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(call, "input", "norm_type", "kernel_size", "stride", "ceil_mode", stride=None, ceil_mode=False)
    if float(found["norm_type"]) != 1.0 or found["ceil_mode"]:
        raise reader.refuse(
            call,
            f"with norm_type {found['norm_type']}, ceil_mode {found['ceil_mode']} is not captured",
            "allowed is norm_type 1 (sum pooling) without ceil_mode",
        )
    settings = _window(found)
    return _lifted_one(reader, call, found["input"], Operation("sum_pool", settings))


@handles("adaptive_avg_pool2d")
def _adaptive(reader: Interpreter, call: Call) -> Meaning:
    x = _one_step(reader, call, call.arguments[0])
    return reader.lifted(call, [x], Operation("adaptive_avg_pool", call.result.shape[-2:]))


@handles("interpolate", "upsample")
def _upsample(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(call, "input", "size", "scale_factor", "mode", size=None, scale_factor=None, mode="nearest")
    x, before, after = found["input"], found["input"].shape[-2:], call.result.shape[-2:]
    if found["mode"] != "nearest" or any(b % a for a, b in zip(before, after, strict=True)) or len(x.shape) != 4:
        raise reader.refuse(
            call, f"goes from {before} to {after} by mode {found['mode']!r}", "allowed is nearest by whole factors"
        )
    settings = tuple(b // a for a, b in zip(before, after, strict=True))
    return _lifted_one(reader, call, x, Operation("upsample", settings))


@handles("pad")
def _pad(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(call, "input", "pad", "mode", "value", mode="constant", value=None)
    pads = tuple(int(item) for item in found["pad"])
    value = float(found["value"] or 0.0) if found["mode"] == "constant" else 0.0
    settings = (pads, str(found["mode"]), value)
    return _lifted_one(reader, call, found["input"], Operation("pad", settings))


# Readouts over time


@handles("sum", "mean", "max", "amax")
def _over_time(reader: Interpreter, call: Call) -> Any:
    found = arguments(call, "input", "dim", "keepdim", dim=None, keepdim=False)
    x, dim = reader.operand(found["input"]), found["dim"]
    if isinstance(dim, Value):
        raise reader.refuse(call, "combines two values that depend on the input", "use a neuron in its place")
    how = call.function.replace("amax", "max")
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if isinstance(x, Stack) and len(dims) == 1 and dims[0] % len(found["input"].shape) == x.axis:
        if x.over_time and not found["keepdim"]:
            return Read(how, x, (call,))
        if how == "sum" and not found["keepdim"]:  # branches stacked and added
            return reader.lifted(call, list(x.entries), Operation("add"))
    raise reader.refuse(call, f"over axes {dims or 'all'}", "sum, mean and max are captured over time, as the readout")


@handles("softmax", "log_softmax")
def _after(reader: Interpreter, call: Call) -> Meaning:
    x = reader.operand(call.arguments[0])
    if isinstance(x, Instance):
        x = Read("last", Stack((x,), 0))
    if not isinstance(x, Read):
        raise reader.refuse(
            call, "is applied to every step", "read the output over time first (sum, mean, max or last)"
        )
    return after_reading(reader, call, x)


def _check_order_kept(reader: Interpreter, call: Call, constants: Sequence[Value], *, rising: bool) -> None:
    """Refuse what may move the largest class: anything but one number for all, and factors above zero."""
    if len(constants) != 1 or constants[0].tensor.numel() != 1 or not rising:
        raise reader.refuse(
            call,
            "changes the order of what was read over time",
            "allowed there are positive factors, shifts by one number and softmax; do the rest in each step",
        )


def after_reading(reader: Interpreter, call: Call, read: Read) -> Read:
    """Return a value read over time to which one more function was applied."""
    return Read(read.how, read.stack, (*read.calls, call))


# Helpers


def _window(found: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sides of a pool's windows and how far they move."""
    kernel = _tuple(found["kernel_size"], 2)
    return kernel, _tuple(found["stride"], 2) if found["stride"] else kernel


def _lifted_one(reader: Interpreter, call: Call, value: Any, operation: Operation) -> Meaning:
    """Make the instance of an operation on the values of one step."""
    return reader.lifted(call, [_one_step(reader, call, value)], operation)


def _one_step(reader: Interpreter, call: Call, value: Any) -> Meaning | Value:
    """Return an operand that must be the values of one step."""
    meaning = reader.operand(value)
    if isinstance(meaning, Stack):
        raise reader.refuse(
            call,
            f"receives a sequence of shape {value.shape}",
            "loop over time, or wrap the module in norse.torch.Lift",
        )
    return meaning


def _constants(reader: Interpreter, call: Call, *values: Any) -> tuple[Value | None, ...]:
    for value in values:
        if isinstance(value, Value) and not isinstance(reader.of(value), Value):
            raise reader.refuse(call, "has a weight that depends on the input", "use fixed weights")
        if isinstance(value, Value) and not value.name and value.call is not None:
            raise UnsupportedModuleError(
                f"{call.where}: {call.what} uses a weight that is computed in each step ({value.call.function} at "
                f"{value.call.line}); make it a parameter, computed once before capturing"
            )
    return tuple(values)


def _tuple(value: Any, axes: int) -> tuple[int, ...]:
    found = (value,) * axes if isinstance(value, int) else tuple(int(item) for item in value)
    return found * axes if len(found) == 1 else found
