"""Operations that move values: what reshaping, permuting, joining, slicing and writing into sequences mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slamp.errors import UnsupportedModuleError
from slamp.interpret import BATCH_FIRST, Interpreter
from slamp.operations import after_reading, arguments, handles
from slamp.tracing import Call, Value
from slamp.unrolled import Instance, Meaning, Operation, Pieces, Read, Stack, State, Unread


@handles("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "reshape_as", "view_as")
def _reshape(reader: Interpreter, call: Call) -> Meaning:
    x = reader.operand(call.arguments[0])
    shape = tuple(call.result.shape)
    if isinstance(x, Read):
        if shape[:1] != call.arguments[0].shape[:1]:
            raise reader.refuse(call, f"makes {shape} of what was read over time", BATCH_FIRST)
        return after_reading(reader, call, x)
    if isinstance(x, Instance) and shape == (1, *call.arguments[0].shape) and call.function == "unsqueeze":
        return Stack((x,), 0)
    if isinstance(x, Stack):
        before = call.arguments[0].shape
        if shape[:2] != before[:2]:
            raise reader.refuse(call, f"makes {shape} of {before}", BATCH_FIRST)
        return reader.lifted(call, [x], Operation("reshape", shape[2:]))
    return reader.lifted(call, [x], Operation("reshape", shape[1:]))


MOVING = ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis")


def moved_axes(call: Call) -> tuple[int, ...]:
    """Return, for a call of a function in `MOVING`, where each axis of the result came from."""
    # Sizes tell the axes apart.
    probe = torch.empty(*range(2, len(call.arguments[0].shape) + 2), device="meta")
    rest = call.arguments[1:]
    moved = getattr(probe, call.function)(*rest, **call.options)
    return tuple(size - 2 for size in moved.shape)


@handles(*MOVING)
def _permute(reader: Interpreter, call: Call) -> Meaning:
    value, x = call.arguments[0], reader.operand(call.arguments[0])
    count, axes = len(value.shape), moved_axes(call)
    if isinstance(x, Read):
        raise reader.refuse(call, "moves axes of what was read over time", "move them before, in each step")
    if isinstance(x, Stack):
        if axes[:2] == (1, 0) and axes[2:] == tuple(range(2, count)):
            return Stack(x.entries, 1 - x.axis)
        if axes[:2] != (0, 1):
            raise reader.refuse(call, f"moves axes {axes}", BATCH_FIRST)
        return reader.lifted(call, [x], Operation("permute", tuple(axis - 2 for axis in axes[2:])))
    if axes[0] != 0:
        raise reader.refuse(call, f"moves the batch axis ({axes})", BATCH_FIRST)
    return reader.lifted(call, [x], Operation("permute", tuple(axis - 1 for axis in axes[1:])))


@handles("cat")
def _cat(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(call, "tensors", "dim", dim=0)
    values = list(found["tensors"])
    dim = int(found["dim"]) % len(call.result.shape)
    meanings = [reader.operand(value) for value in values]
    stacks = [meaning for meaning in meanings if isinstance(meaning, Stack)]
    if stacks and dim == stacks[0].axis:
        entries = [entry for meaning in meanings for entry in (meaning.entries if isinstance(meaning, Stack) else ())]
        if len(stacks) != len(meanings):
            raise reader.refuse(call, "joins steps and constants", "join values of the network only")
        return Stack(tuple(entries), dim)
    if dim == 1 and (steps := _steps_beside(meanings, reader.steps)):
        return Stack(steps, 1)
    before = 2 if stacks else 1
    if dim < before:
        raise reader.refuse(call, "joins batches", BATCH_FIRST)
    return reader.lifted(call, meanings, Operation("cat", (dim - before,)))


def _steps_beside(meanings: Sequence[Meaning | Value], steps: int) -> tuple[Instance, ...]:
    """Return the values of all steps that got an axis of their own, as in ``cat([z[:, None] for z in outputs], 1)``."""
    found = [
        meaning.operands[0]
        for meaning in meanings
        if isinstance(meaning, Instance) and meaning.operation.kind == "reshape" and meaning.time < steps
        if isinstance(meaning.operands[0], Instance) and meaning.shape == (1, *meaning.operands[0].shape)
    ]
    entries = tuple(entry for entry in found if isinstance(entry, Instance))
    alike = len(meanings) == len(entries) == steps and Stack(entries, 1).over_time
    return entries if alike else ()


@handles("stack")
def _stack(reader: Interpreter, call: Call) -> Meaning:
    found = arguments(call, "tensors", "dim", dim=0)
    entries = [reader.operand(value) for value in found["tensors"]]
    dim = int(found["dim"]) % len(call.result.shape)
    if all(isinstance(entry, (Instance, Value)) for entry in entries):
        return Stack(tuple(entry for entry in entries if isinstance(entry, (Instance, Value))), dim)
    state = next((entry for entry in entries if isinstance(entry, (State, Unread))), None)
    if state is not None:
        raise UnsupportedModuleError(reader.unreadable(state, f"{call.where}: {call.what}"))
    read = next((entry for entry in entries if isinstance(entry, Read) and entry.calls), None)
    if read is not None:
        raise reader.refuse(read.calls[0], "is applied to every step", "apply it to what is read over time")
    pieces = [entry for entry in entries if isinstance(entry, Stack) and entry.axis == 0]
    joined = Stack(tuple(step for piece in pieces for step in piece.entries), 0)
    if dim == 0 and len(pieces) == len(entries) and joined.over_time:
        return Pieces(joined, call)
    raise reader.refuse(call, "stacks sequences", "stack values of one step")


@handles("__getitem__", "getitem", "select", "narrow")
def _getitem(reader: Interpreter, call: Call) -> Meaning:
    value, x = call.arguments[0], reader.operand(call.arguments[0])
    if call.function == "select":
        index = _index({int(call.arguments[1]): call.arguments[2]}, value.shape)
    elif call.function == "narrow":
        _, dim, start, length = call.arguments
        index = _index({int(dim): slice(start, start + length)}, value.shape)
    else:
        index = _index(call.arguments[1], value.shape)
    if any(isinstance(item, (Value, torch.Tensor, list)) for item in index):
        raise reader.refuse(call, "takes values by a list or a mask", "take slices")
    if isinstance(x, Stack):
        axis = x.axis
        along = index[axis] if len(index) > axis else slice(None)
        rest = [item for item in index if item is not None]
        others = [item for position, item in enumerate(rest) if position != axis and item != slice(None)]
        if None not in index and not others:
            if isinstance(along, slice):
                entries = x.entries[along]
                return x if entries == x.entries else Stack(entries, axis)
            return x.entries[int(along)]  # type: ignore[return-value]  # a constant entry stays a constant
        if along == slice(None) and axis < 2 and index[1 - axis] == slice(None):
            return _taken(reader, call, x, index[2:], 2)
        raise reader.refuse(call, "takes steps and features at once", "take the step first, then its features")
    if isinstance(x, Read):
        if any(item != slice(None) for item in index):
            raise reader.refuse(call, "takes a part of what was read over time", "take it before, in each step")
        return after_reading(reader, call, x)
    if not index or index[0] != slice(None):
        raise reader.refuse(call, "takes samples out of the batch", BATCH_FIRST)
    return _taken(reader, call, x, index[1:], 1)


def _taken(reader: Interpreter, call: Call, x: Meaning | Value, index: Sequence[Any], before: int) -> Meaning:
    """Take slices of the features one axis after another, then give them the result's shape."""
    shape = list(call.arguments[0].shape)
    part, axis = 0, 0
    for item in index:
        if item is None:
            continue
        size = shape[before + axis]
        span = slice(item, item + 1 or None) if isinstance(item, int) else item
        start, stop, step = span.indices(size)
        if step != 1:
            raise reader.refuse(call, f"takes every {step}th value", "take contiguous slices")
        if (start, stop) != (0, size):
            shape[before + axis] = stop - start
            settings = (axis, start, stop)
            x = reader.lifted(call, [x], Operation("take", settings), part=part, shape=shape)
            part += 1
        axis += 1
    result = tuple(call.result.shape)
    if tuple(shape) != result:
        x = reader.lifted(call, [x], Operation("reshape", result[before:]), part=part)
    assert not isinstance(x, Value)
    return x


@handles("unbind", "chunk", "split", "split_with_sizes", "tensor_split", "vsplit", "hsplit")
def _parts(reader: Interpreter, call: Call) -> list[Any]:
    x = reader.operand(call.arguments[0])
    value = call.arguments[0]
    named = dict(call.options)
    dim = named.get("dim", call.arguments[-1] if call.function == "unbind" and len(call.arguments) > 1 else None)
    if dim is None:
        dim = call.arguments[2] if len(call.arguments) > 2 and call.function != "unbind" else 0
    dim = int(dim) % len(value.shape)
    results = list(call.result)
    if isinstance(x, Stack) and dim == x.axis:
        if call.function == "unbind":
            return list(x.entries)
        raise reader.refuse(call, "cuts a sequence into pieces", "loop over the steps")
    before = 2 if isinstance(x, Stack) else 1
    if dim < before or not isinstance(x, (Stack, Instance)):
        raise reader.refuse(call, "takes samples out of the batch", BATCH_FIRST)
    found, start = [], 0
    for part, item in enumerate(results):
        stop = start + (1 if call.function == "unbind" else item.shape[dim])
        settings = (dim - before, start, stop)
        shape = [*value.shape[:dim], stop - start, *value.shape[dim + 1 :]]
        taken = reader.lifted(call, [x], Operation("take", settings), part=2 * part, shape=shape)
        if tuple(shape) != tuple(item.shape):
            after = tuple(item.shape)
            taken = reader.lifted(
                call,
                [taken],
                Operation("reshape", after[before:]),
                part=2 * part + 1,
                shape=after,
            )
        found.append(taken)
        start = stop
    return found


@handles("__setitem__", "setitem")
def _setitem(reader: Interpreter, call: Call) -> Meaning:
    target, key, value = call.arguments
    index = _index(key, target.shape)
    axes = [axis for axis, item in enumerate(index) if isinstance(item, int)]
    rest = [item for item in index if not isinstance(item, int)]
    if len(axes) != 1 or any(item != slice(None) for item in rest) or axes[0] > 1:
        raise reader.refuse(call, "writes into part of a step", "write whole steps: out[t] = z, or stack a list")
    axis, at = axes[0], index[axes[0]] % target.shape[axes[0]]
    present = reader.operand(target)
    if isinstance(present, Value):
        present = Stack(tuple(Value(item) for item in present.tensor.detach().clone().unbind(axis)), axis)
    meaning = reader.operand(value)
    if not isinstance(present, Stack) or present.axis != axis or not isinstance(meaning, (Instance, Value)):
        raise reader.refuse(call, "writes into a value that is no sequence", "collect the steps in a list and stack it")
    entries = list(present.entries)
    entries[at] = meaning
    return Stack(tuple(entries), axis)


def _index(key: Any, shape: Sequence[int]) -> list[Any]:
    """Return an index with one entry per axis (and None for new ones)."""
    if isinstance(key, Mapping):
        return [key.get(axis, key.get(axis - len(shape), slice(None))) for axis in range(len(shape))]
    items = list(key) if isinstance(key, tuple) else [key]
    given = sum(item is not None and item is not Ellipsis for item in items)
    filled: list[Any] = []
    for item in items:
        if item is Ellipsis:
            filled += [slice(None)] * (len(shape) - given)
        elif isinstance(item, slice) and item.step in (None, 1) and item.start in (None, 0):
            axis = sum(entry is not None for entry in filled)
            whole = item.stop is None or (isinstance(item.stop, int) and item.stop >= shape[axis])
            filled.append(slice(None) if whole else item)
        else:
            filled.append(item)
    return filled + [slice(None)] * (len(shape) - sum(entry is not None for entry in filled))
