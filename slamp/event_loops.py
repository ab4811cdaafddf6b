"""The compiled loops of the event-driven engine. numba is imported with this module, so import it where it is used.

Compiled code is kept on disk beside this file, or in numba's cache directory; where neither can be written, every
process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

Array = Any  # what numba sees has a dtype and a number of axes that it finds out itself


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        loop: Callable[..., Any] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba's word for: no directory for the cache can be written
        loop = numba.njit(nogil=True)(function)
    return loop


def _add_dense_rows(
    x: Array, lists: Array, geometry: Array, ways_y: Array, ways_x: Array, start: Array, shift: int, out: Array
) -> None:
    """Add, for every event, the weights of each kernel position as one contiguous row.

    Args:
        x: (rows, inputs), channels first; a row is one sample at one step.
        lists: (weights,): (channels * kernel_y * kernel_x, width).
        geometry: (input height, input width, kernel_y, kernel_x, output positions, output width), int64.
        ways_y: (first, kernel position, output position): ``first[y]`` to ``first[y + 1]`` are the ways of line y.
        ways_x: The same of columns.
        start: (output positions * output channels,), channels last: the bias; its dtype is that of the sums.
        shift: Sums are multiplied by ``2 ** shift`` and rounded down.
        out: (rows, outputs), int32, channels first.
    """
    (weights, first_output) = lists
    y_first, y_kernel, y_out = ways_y
    x_first, x_kernel, x_out = ways_x
    width, outputs = weights.shape[1], start.size // geometry[4]
    plane = geometry[0] * geometry[1]
    sums = np.empty_like(start)
    events = np.empty(x.shape[1], np.int64)
    for row in range(x.shape[0]):
        sums[:] = start
        count = _events_of(x[row], events)
        for k in range(count):
            amount = x[row, events[k]]
            channel = events[k] // plane
            line = (events[k] - channel * plane) // geometry[1]
            column = events[k] - channel * plane - line * geometry[1]
            for p in range(y_first[line], y_first[line + 1]):
                for q in range(x_first[column], x_first[column + 1]):
                    tap = (channel * geometry[2] + y_kernel[p]) * geometry[3] + x_kernel[q]
                    base = (y_out[p] * geometry[5] + x_out[q]) * outputs + first_output[channel]
                    target, weight = sums[base : base + width], weights[tap]
                    if amount == 1:
                        for j in range(width):
                            target[j] += weight[j]
                    else:
                        for j in range(width):
                            target[j] += weight[j] * amount
        _shift_into(sums, outputs, shift, out[row])


def _add_sparse_rows(
    x: Array, lists: Array, geometry: Array, ways_y: Array, ways_x: Array, start: Array, shift: int, out: Array
) -> None:
    """As `_add_dense_rows`, with lists of the weights that are not zero: (first, target channel, weight).

    Target channels are unsigned, which spares numba a look whether they count from the end.
    """
    (first, targets, weights) = lists
    y_first, y_kernel, y_out = ways_y
    x_first, x_kernel, x_out = ways_x
    outputs = start.size // geometry[4]
    plane = geometry[0] * geometry[1]
    sums = np.empty_like(start)
    events = np.empty(x.shape[1], np.int64)
    for row in range(x.shape[0]):
        sums[:] = start
        count = _events_of(x[row], events)
        for k in range(count):
            amount = x[row, events[k]]
            channel = events[k] // plane
            line = (events[k] - channel * plane) // geometry[1]
            column = events[k] - channel * plane - line * geometry[1]
            for p in range(y_first[line], y_first[line + 1]):
                for q in range(x_first[column], x_first[column + 1]):
                    tap = (channel * geometry[2] + y_kernel[p]) * geometry[3] + x_kernel[q]
                    base = (y_out[p] * geometry[5] + x_out[q]) * outputs
                    target = sums[base : base + outputs]
                    if amount == 1:
                        for j in range(first[tap], first[tap + 1]):
                            target[targets[j]] += weights[j]
                    else:
                        for j in range(first[tap], first[tap + 1]):
                            target[targets[j]] += weights[j] * amount
        _shift_into(sums, outputs, shift, out[row])


def _find_events(x: Array, events: Array) -> int:
    """Write the places where x is not zero, without branches; silent blocks cost next to nothing."""
    count = np.uint64(0)
    for block in range(0, x.size, 64):
        part = x[block : block + 64]
        any_set = part[0]
        for k in range(part.size):
            any_set |= part[k]
        if any_set != 0:
            for k in range(part.size):
                events[count] = block + k
                count += np.uint64(part[k] != 0)
    return np.int64(count)  # type: ignore[return-value]  # numba's int


def _shifted(sums: Array, outputs: int, shift: int, out: Array) -> None:
    """Write sums (channels last) times a power of two, rounded down, into ``out`` (channels first)."""
    positions = sums.size // outputs
    left, right = max(shift, 0), max(-shift, 0)
    if positions == 1:
        for j in range(outputs):
            out[j] = (sums[j] << left) >> right
    else:
        for position in range(positions):
            for j in range(outputs):
                out[j * positions + position] = (sums[position * outputs + j] << left) >> right


def _advance(drive: Array, state: Array, parameters: Array, limit: float, spikes: Array, kept: Array) -> None:
    """Advance neurons; three loops, because the compiler vectorizes short ones.

    Args:
        drive: (steps * batch, neurons), the summed input, int32.
        state: (2, batch, neurons): u and v, float64, which holds every 36-bit product exactly; changed in place.
        parameters: (4, neurons): shares of u and v that stay, bias, threshold, float64.
        limit: u wraps beyond it, v saturates one below.
        spikes: (steps * batch, neurons), uint8.
        kept: (v after the reset, u), each like ``drive``, or with no rows where nobody asks.
    """
    batch = state.shape[1]
    keep_syn, keep_mem, bias, threshold = parameters[0], parameters[1], parameters[2], parameters[3]
    for row in range(drive.shape[0]):
        u, v = state[0, row % batch], state[1, row % batch]
        x, fired = drive[row], spikes[row]
        for j in range(x.size):
            added = np.trunc(u[j] * keep_syn[j]) + x[j] * 64.0
            moved = added - 4294967296.0 * np.floor((added + 2147483648.0) / 4294967296.0)  # an int32 in Lava
            lowered = moved - 2.0 * limit if moved > limit else moved
            u[j] = moved + 2.0 * limit if moved <= -limit else lowered
        for j in range(x.size):
            summed = np.trunc(v[j] * keep_mem[j]) + u[j]
            charged = summed - 4294967296.0 * np.floor((summed + 2147483648.0) / 4294967296.0) + bias[j]
            v[j] = min(max(charged, 1.0 - limit), limit - 1.0)
        for j in range(x.size):
            above = v[j] > threshold[j]
            fired[j] = above
            v[j] = 0.0 if above else v[j]
        if kept[0].shape[0]:
            kept[0][row] = v
        if kept[1].shape[0]:
            kept[1][row] = u


_events_of = _compiled(_find_events)
_shift_into = _compiled(_shifted)
add_dense_rows = _compiled(_add_dense_rows)
add_sparse_rows = _compiled(_add_sparse_rows)
advance = _compiled(_advance)
