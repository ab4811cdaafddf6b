"""Cell-for-cell comparison of two recordings: what the graph does and what a target did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from slamp.errors import RasterError
from slamp.simulate import Recording


@dataclass(frozen=True)
class Difference:
    """One cell in which a replay departs from the graph.

    Attributes:
        layer: Name of the node, or of the output.
        step: Time step, counted on the graph's side (before the latency).
        sample: Index of the sample.
        neuron: Index of the neuron within its layer.
        expected: Spike (bool) or readout value of the graph.
        found: Spike (bool) or readout value of the replay.
        membrane: Membrane in exact arithmetic, as compared with the threshold; None if unknown.
        threshold: Firing threshold of the neuron; None for readouts or if unknown.
        margin: ``membrane - threshold``; None if unknown.
        bound: Distance from ``membrane`` that float32 rounding can explain; None if unknown.
        cause: Probable cause, "word: explanation"; empty if not looked for.
        quantity: "u" or "v" if a state of a fixed-point layer differs; empty for spikes and readout values.
    """

    layer: str
    step: int
    sample: int
    neuron: tuple[int, ...]
    expected: bool | float
    found: bool | float
    membrane: float | None = None
    threshold: float | None = None
    margin: float | None = None
    bound: float | None = None
    cause: str = ""
    quantity: str = ""

    def sentence(self) -> str:
        """Return the difference as one readable sentence."""
        neuron = self.neuron[0] if len(self.neuron) == 1 else self.neuron
        text = (
            f"layer {self.layer}, step {self.step}, sample {self.sample}, neuron {neuron}: "
            f"the graph {_said(self.expected)}, the replay {_said(self.found)}"
        )
        if self.quantity:
            text = text.replace(" gives ", f" has {self.quantity} = ")
        if self.membrane is not None and self.threshold is not None:
            text += f"; membrane {self.membrane:.9g}, threshold {self.threshold:.9g}, margin {self.margin:.3g}"
        elif self.membrane is not None:
            text += f"; exact value {self.membrane:.9g}"
        if self.bound is not None:
            text += f", rounding explains up to {self.bound:.2g}"
        return f"{text}; cause: {self.cause}" if self.cause else text

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the sentence, ready for JSON; numbers that JSON cannot say become text."""
        fields = {**asdict(self), "neuron": list(self.neuron), "sentence": self.sentence()}
        return {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }


@dataclass(frozen=True)
class Comparison:
    """What a comparison of two recordings found.

    Attributes:
        samples: Number of samples.
        steps: Number of time steps compared.
        latency_steps: Steps by which the replay was taken to answer later.
        layers: Spiking layers compared, in network order; the output is among them if it spikes.
        unobserved: Spiking layers of the reference that the replay does not show.
        silent: Spiking layers of the reference without a spike: they are no evidence.
        cells: Spike cells (step, sample, neuron) compared; a spiking output counts beside its layer.
        spikes: Spikes of the reference in its recorded layers (of its output, if no layer was recorded).
        differing_cells: Spike cells that differ.
        verdicts: "identical" or "different" per sample, by spikes alone.
        first_differences: Per sample the earliest difference (layer in network order, then step, then neuron; among
            layers that hear one another step before layer), or None.
        readout_errors: Per sample the largest ``|reference - replay|`` of an analog output; empty for a spiking one.
    """

    samples: int
    steps: int
    latency_steps: int
    layers: tuple[str, ...]
    unobserved: tuple[str, ...]
    silent: tuple[str, ...]
    cells: int
    spikes: int
    differing_cells: int
    verdicts: tuple[str, ...]
    first_differences: tuple[Difference | None, ...]
    readout_errors: tuple[float, ...]

    @property
    def identical(self) -> bool:
        """True if every compared spike cell agrees; says nothing about silence, see ``silent``."""
        return self.differing_cells == 0

    @property
    def first_difference(self) -> Difference | None:
        """The first difference of the first differing sample."""
        return next((difference for difference in self.first_differences if difference is not None), None)


def compare(
    reference: Recording,
    replayed: Recording,
    *,
    latency_steps: int = 0,
    order: Sequence[str],
    cycles: Sequence[Sequence[str]] = (),
    states: bool = False,
) -> Comparison:
    """Compare a replay with the reference: every spiking layer both recorded, and the output, every cell.

    Step ``t`` of the reference is compared with step ``t + latency_steps`` of the replay. The replay may be as long as
    the reference, in which case its last ``latency_steps`` answers are missing and not compared, or longer.

    Args:
        reference: Recording of `slamp.simulate.simulate`, with ``record="spikes"`` or ``"all"``.
        replayed: Recording of the target; layers it lacks are listed as unobserved.
        latency_steps: Steps by which the target answers later.
        order: Node names, every one behind those it hears; the last one names the output (`SpikingGraph.order`, or
            with delays `slamp.causality.causal_groups`).
        cycles: Groups of names that hear one another, neighbors in ``order``: there the earliest step comes first.
        states: Compare every cell of ``v`` and ``i`` too, of all layers both recorded: fixed point.

    Raises:
        RasterError: Shapes or kinds do not match, a reference layer is not in ``order``, or the latency leaves nothing
            to compare.
    """
    steps = _compared_steps(reference, replayed, latency_steps)
    samples = reference.output.batch
    recorded = {name: trace.spikes for name, trace in reference.traces.items() if trace.spikes is not None}
    if unknown := sorted(set(recorded) - set(order)):
        raise RasterError(f"compare: {unknown[0]} is recorded but not in the order {list(order)}; give graph.order")
    firsts: list[Difference | None] = [None] * samples
    layers: list[str] = []
    cells = differing_cells = 0
    for name, reference_spikes, replayed_spikes in _pairs(reference, replayed, order):
        _check_shapes(name, reference_spikes, replayed_spikes)
        expected = _host(reference_spikes[:steps])
        differs = np.not_equal(expected, _host(shifted(replayed_spikes, latency_steps, steps)))
        layers.append(name)
        cells += differs.size
        differing_cells += int(differs.sum())
        for sample in _differing_samples(differs):
            known = firsts[sample]
            if known is None or _heard(name, known.layer, cycles):
                found = _first(name, sample, differs[:, sample], expected[:, sample])
                firsts[sample] = known if known is not None and known.step <= found.step else found
    for name in order if states else ():
        for states_found, count, wrong in _state_differences(reference, replayed, name, latency_steps, steps):
            cells += count
            differing_cells += wrong
            for difference in states_found:
                firsts[difference.sample] = _earlier(difference, firsts[difference.sample], order, cycles)
    spikes = {name: int(spikes[:steps].sum()) for name, spikes in recorded.items()}
    if not recorded and reference.output.is_spikes:
        spikes = {order[-1]: int(reference.output.data[:steps].sum())}
    return Comparison(
        samples=samples,
        steps=steps,
        latency_steps=latency_steps,
        layers=tuple(layers),
        unobserved=tuple(name for name in order if name in recorded and name not in layers),
        silent=tuple(name for name in order if spikes.get(name) == 0),
        cells=cells,
        spikes=sum(spikes.values()),
        differing_cells=differing_cells,
        verdicts=tuple("identical" if first is None else "different" for first in firsts),
        first_differences=tuple(firsts),
        readout_errors=_readout_errors(reference, replayed, latency_steps, steps),
    )


def shifted(replayed: torch.Tensor, latency_steps: int, steps: int) -> torch.Tensor:
    """Return the part of a replayed tensor (time, batch, ...) that answers steps 0 to ``steps`` of the graph."""
    return replayed[latency_steps : latency_steps + steps]


def _compared_steps(reference: Recording, replayed: Recording, latency_steps: int) -> int:
    expected, found = reference.output, replayed.output
    if latency_steps < 0 or found.steps - latency_steps < 1:
        raise RasterError(
            f"compare: latency of {latency_steps} steps with a replay of {found.steps} steps; allowed is 0 to "
            f"{found.steps - 1}; give more steps"
        )
    if not expected.steps <= found.steps <= expected.steps + latency_steps:
        raise RasterError(
            f"compare: the replay has {found.steps} steps, the graph {expected.steps}; allowed are as many, "
            f"or up to {latency_steps} more for the latency"
        )
    if expected.is_spikes != found.is_spikes:
        kinds = {True: "spikes", False: "analog values"}
        raise RasterError(
            f"compare: the replay's output holds {kinds[found.is_spikes]}, the graph's {kinds[expected.is_spikes]}; "
            "the exporter must give the same kind"
        )
    _check_shapes("output", expected.data, found.data)
    return min(expected.steps, found.steps - latency_steps)


def _pairs(
    reference: Recording, replayed: Recording, order: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for name in order:
        expected, found = reference.traces.get(name), replayed.traces.get(name)
        if expected is None or found is None or expected.spikes is None or found.spikes is None:
            continue
        if found.spikes.dtype != torch.bool:
            raise RasterError(f"compare: {name}: the replay's spikes are {found.spikes.dtype}; allowed is torch.bool")
        if found.spikes.shape[0] != replayed.output.steps:
            raise RasterError(
                f"compare: {name}: the replay has {found.spikes.shape[0]} steps, its output {replayed.output.steps}; "
                "the exporter must record every step"
            )
        yield name, expected.spikes, found.spikes
    if reference.output.is_spikes:
        yield order[-1], reference.output.data, replayed.output.data


def _state_differences(
    reference: Recording, replayed: Recording, name: str, latency: int, steps: int
) -> Iterator[tuple[list[Difference], int, int]]:
    """Yield for v, then u: the first difference of each sample, cells compared, cells that differ."""
    expected, found = reference.traces.get(name), replayed.traces.get(name)
    if expected is None or found is None:
        return
    for quantity, ours, theirs in (("v", expected.v, found.v), ("u", expected.i, found.i)):
        if ours is None or theirs is None:
            continue
        _check_shapes(name, ours, theirs)
        if theirs.shape[0] != replayed.output.steps:
            raise RasterError(
                f"compare: {name}: the replay has {theirs.shape[0]} steps of {quantity}, its output "
                f"{replayed.output.steps}; the exporter must record every step"
            )
        wanted, got = _host(ours[:steps]), _host(shifted(theirs, latency, steps))
        differs = np.not_equal(wanted, got)
        firsts = []
        for sample in _differing_samples(differs):
            cell = np.unravel_index(int(differs[:, sample].argmax()), differs[:, sample].shape)
            step, *neuron = (int(index) for index in cell)
            at = (step, sample, *neuron)
            firsts.append(
                Difference(name, step, sample, tuple(neuron), float(wanted[at]), float(got[at]), quantity=quantity)
            )
        yield firsts, differs.size, int(differs.sum())


def _differing_samples(differs: np.ndarray) -> list[int]:
    return [int(at) for at in np.flatnonzero(differs.any(axis=tuple(k for k in range(differs.ndim) if k != 1)))]


def _earlier(
    state: Difference, known: Difference | None, order: Sequence[str], cycles: Sequence[Sequence[str]]
) -> Difference:
    """Return the difference that comes first: by layer, then step; u moves v, and v decides the spike."""
    if known is None or known.layer == order[-1]:
        return state
    by_layer = (order.index(state.layer), state.step) <= (order.index(known.layer), known.step)
    by_step = (state.step, order.index(state.layer)) <= (known.step, order.index(known.layer))
    return state if (by_step if _heard(state.layer, known.layer, cycles) else by_layer) else known


def _heard(one: str, other: str, cycles: Sequence[Sequence[str]]) -> bool:
    """True if two layers hear one another."""
    return any(one in cycle and other in cycle for cycle in cycles)


def _check_shapes(name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    if expected.shape[1:] != found.shape[1:]:
        raise RasterError(
            f"compare: {name}: the replay has shape {tuple(found.shape[1:])} (batch, *neurons), "
            f"the graph {tuple(expected.shape[1:])}; the exporter must keep the graph's shapes"
        )


def _first(name: str, sample: int, differs: np.ndarray, expected: np.ndarray) -> Difference:
    step, *neuron = (int(index) for index in np.unravel_index(int(differs.argmax()), differs.shape))
    spike = bool(expected[(step, *neuron)])
    return Difference(name, step, sample, tuple(neuron), spike, not spike)


def _readout_errors(reference: Recording, replayed: Recording, latency_steps: int, steps: int) -> tuple[float, ...]:
    if reference.output.is_spikes:
        return ()
    expected = _host(reference.output.data[:steps]).astype(np.float64)
    found = _host(shifted(replayed.output.data, latency_steps, steps)).astype(np.float64)
    errors = np.abs(expected - found)
    errors[np.isnan(errors)] = np.inf
    return tuple(float(value) for value in errors.max(axis=(0, *range(2, errors.ndim))))


def _host(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _said(value: bool | float) -> str:
    if isinstance(value, bool):
        return "spikes" if value else "does not spike"
    return f"gives {value:.9g}"
