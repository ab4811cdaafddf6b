"""One layer of a ``.net`` file, and what netx makes of its weights: it rewrites them as it loads a file.

That is computed here by the same rules, and a layer netx would change is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from slamp.arithmetic import DECAY_ONE, SHIFT, weight_format
from slamp.errors import UnsupportedNodeError
from slamp.nodes import IF, READOUT, CubaLI, CubaLIF, Neuron, Shape

NEVER_FIRES = 131072  # membranes saturate one below 64 times that


@dataclass(frozen=True, eq=False)
class NetLayer:
    """One layer with weights and neurons.

    Attributes:
        neuron: Name of the graph's neuron node.
        weights: Name of the graph's weighted node.
        kind: "dense" or "conv".
        weight: Whole numbers, (out, in) or (out, in / groups, y, x).
        shape: Of the neurons, torch order.
        neuron_fields: iDecay, vDecay, vThMant.
        bias: In units of 64, (neurons,), (channels,), or (x, y, channels) as netx takes it; None without.
        settings: stride, padding, dilation (y, x) and groups of a convolution.
        flattened: True if a flatten layer stands before it.
        delay: Steps that each synapse waits, (out, in); None if none does.
        recurrent: Weights by which the neurons feed themselves back after one step, (out, out); None without.
        current_bias: What every step adds to the current, (neurons,) or (channels,), before it becomes weights of lines
            that are always on; None without.
        lines: Neurons (channels) at the end of ``shape`` that are always on and not the graph's.
    """

    neuron: str
    weights: str
    kind: str
    weight: np.ndarray
    shape: Shape
    neuron_fields: dict[str, int]
    bias: np.ndarray | None
    settings: dict[str, tuple[int, ...] | int] = field(default_factory=dict)
    flattened: bool = False
    delay: np.ndarray | None = None
    recurrent: np.ndarray | None = None
    current_bias: np.ndarray | None = None
    lines: int = 0


def neuron_fields(name: str, node: Neuron) -> dict[str, int]:
    """Return iDecay, vDecay and vThMant of a layer of neurons.

    Raises:
        UnsupportedNodeError: They differ within the layer; the message names the parameter.
    """
    decay_syn = _one(name, "decay_syn", node.decay_syn) if isinstance(node, (CubaLIF, CubaLI)) else 1.0
    decay_mem = 0.0 if isinstance(node, IF) else _one(name, "decay_mem", node.decay_mem)
    threshold = NEVER_FIRES
    if not isinstance(node, READOUT):
        threshold = int(_one(name, "v_threshold", node.v_threshold)) >> SHIFT
    return {"iDecay": int(decay_syn * DECAY_ONE), "vDecay": int(decay_mem * DECAY_ONE), "vThMant": threshold}


def _one(name: str, key: str, values: np.ndarray) -> float:
    if values.min() != values.max():
        raise UnsupportedNodeError(
            f"{name}: {key} runs from {values.min():g} to {values.max():g}; Lava's LIF has one for all neurons"
        )
    return float(values.flat[0])


def check_loaded(layer: NetLayer) -> None:
    """Raise `UnsupportedNodeError` if netx would load other weights than those of a layer, or crash."""
    if weight_format(layer.weight) is None:
        raise UnsupportedNodeError(
            f"{layer.weights}: with pools before it and biases of currents its weights run from {layer.weight.min():g} "
            f"to {layer.weight.max():g} and need more than 8 bits; use smaller weights, or pools that do not overlap"
        )
    if layer.kind == "conv":
        return  # taken as they are
    parts = [layer.weight] if layer.recurrent is None else [layer.weight, layer.recurrent]
    weight = np.concatenate([part.astype(np.int64) for part in parts], axis=1)
    low, high = (-256, 254) if weight.min() < 0 < weight.max() else (-256, 255)
    if weight.min() < low or weight.max() > high:
        raise UnsupportedNodeError(
            f"{layer.weights}: weights run from {weight.min()} to {weight.max()}; netx clips them to {low} "
            f"and {high}; use smaller weight exponents"
        )
    if not weight.any():
        raise UnsupportedNodeError(
            f"{layer.weights}: all weights are zero, on which netx crashes; keep one, or remove the layer"
        )
    for key, index, given, loaded in changed_by_netx(layer.weight, layer.recurrent):
        raise UnsupportedNodeError(
            f"{layer.weights}: netx loads {key}{list(index)} as {loaded:g} instead of {given:g}, as it rescales layers "
            "without a positive weight wrongly where the largest magnitude is a power of two, or odd weights go beyond "
            "127; change that weight, or keep a positive one"
        )


def changed_by_netx(
    weight: np.ndarray, recurrent: np.ndarray | None
) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Yield the first weight of each matrix that netx loads otherwise: key, index, given, loaded."""
    parts = {"weight": weight} if recurrent is None else {"weight": weight, "weight_rec": recurrent}
    scaled_with = np.clip(np.concatenate(list(parts.values()), axis=1), -256, 255)
    for key, part in parts.items():
        loaded = loaded_by_netx(part, scaled_with=scaled_with)
        if not np.array_equal(loaded, part.astype(np.float64)):
            index = tuple(int(axis) for axis in np.argwhere(loaded != part)[0])
            yield key, index, float(part[index]), float(loaded[index])


def loaded_by_netx(weight: np.ndarray, *, scaled_with: np.ndarray | None = None) -> np.ndarray:
    """Return the effective weights of a dense layer after netx and Lava's Dense have scaled, clipped and cut them.

    netx finds one scale for all weights of a recurrent layer (``scaled_with``), Lava the signs of each of its matrices.
    The rules are those of lava-dl 0.6.0 (`netx/utils.py`, optimize_weight_bits) and lava-nc 0.10.0
    (`utils/weightutils.py`), restated.
    """
    whole = weight.astype(np.int64)
    scaled = whole if scaled_with is None else scaled_with.astype(np.int64)
    largest, least = int(scaled.max()), int(scaled.min())
    # netx takes a layer of negative weights and zeros for one of both signs.
    mixed = int(least < 0 <= largest)
    if mixed:
        scale = min(127 / largest if largest > 0 else np.inf, -128 / least)
    else:
        scale = 255 / largest if least >= 0 else -256 / least
    shift = int(np.floor(np.log2(scale))) + mixed
    zeros = next(bits for bits in range(8, -1, -1) if not (scaled % (1 << bits)).any()) - mixed
    held = whole << shift
    # Lava's Dense finds the signs anew from the scaled weights; it drops bits of the magnitudes of negative layers.
    negative, both = bool(held.max() <= 0 and held.min() < 0), bool(held.min() < 0 < held.max())
    held = np.clip(-held if negative else held, -256 if both else 0, 255)
    dropped = shift + zeros + int(both)
    # A shift by less than nothing leaves nothing in NumPy: netx has counted a sign bit that Lava does not.
    held = (held >> dropped) << dropped if dropped >= 0 else np.zeros_like(held)
    loaded: np.ndarray = (-held if negative else held) / 2.0**shift
    return loaded
