"""Wrong conventions a target may follow: known mistakes of exporters and runtimes, each runnable on one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from slamp.dynamics import added, parameter_tensor
from slamp.nodes import IF, LIF, SECOND_TIER, CubaLIF, Spiking, uniform

LATENCIES = (1, 2, 3)
DT_FACTORS = (10.0, 0.1, 1000.0, 0.001)


@dataclass(frozen=True)
class Convention:
    """How one step is computed; the defaults are the graph's own.

    Attributes:
        node: Neurons with the parameters this convention takes them to have.
        gain: Factor on the layer's input.
        inclusive: Spike at ``v >= v_threshold`` instead of ``>``.
        start: First membrane; None for the graph's (``v_leak``; ``v_reset`` for IF).
        current: When the membrane sees the synaptic current: after the jump ("jumped"), before it ("before"), or after
            jump and decay ("decayed").
        resets: False if a spike leaves the membrane alone.
        bias: False if the biases between the layer and its inputs are dropped.
        input_delay: Steps by which the input arrives late.
    """

    node: Spiking
    gain: float = 1.0
    inclusive: bool = False
    start: float | None = None
    current: str = "jumped"
    resets: bool = True
    bias: bool = True
    input_delay: int = 0


def wrong_conventions(node: Spiking) -> Iterator[tuple[str, Convention]]:
    """Every wrong convention known, likely ones first; none of neurons that no target runs."""
    if isinstance(node, SECOND_TIER):
        return
    swapped = replace(node, reset="subtract" if node.reset == "value" else "value")
    yield f"reset: by {_reset_word(swapped)} instead of by {_reset_word(node)}", Convention(swapped)
    if node.reset == "value":
        yield "reset: to 0 instead of v_reset", Convention(replace(node, v_reset=uniform(0.0, node.v_reset.shape)))
        if not isinstance(node, IF):
            yield "reset: to v_leak instead of v_reset", Convention(replace(node, v_reset=node.v_leak))
    yield "reset: none takes place", Convention(node, resets=False)
    yield "tie: spikes at v >= v_threshold instead of v > v_threshold", Convention(node, inclusive=True)
    yield "bias: dropped", Convention(node, bias=False)
    for k in LATENCIES:
        yield f"latency: the input arrives {said_steps(k)} late", Convention(node, input_delay=k)
    yield from _starts(node)
    if isinstance(node, CubaLIF):
        yield "order: the membrane sees the current before the input has reached it", Convention(node, current="before")
        yield "order: the membrane sees the current after its decay", Convention(node, current="decayed")
    yield from _gains(node)
    if not isinstance(node, IF):
        yield from _decays(node)


def _starts(node: Spiking) -> Iterator[tuple[str, Convention]]:
    yield "initial state: v starts at 0", Convention(node, start=0.0)
    reset = float(node.v_reset.flat[0])
    if bool((node.v_reset == reset).all()):
        yield "initial state: v starts at v_reset", Convention(node, start=reset)
    if isinstance(node, IF):
        return
    without = replace(node, v_leak=uniform(0.0, node.v_leak.shape))
    leak = float(node.v_leak.flat[0])
    if bool((node.v_leak == leak).all()):
        yield "initial state: v starts at v_leak, which is then ignored", Convention(without, start=leak)
    yield "leak: v_leak is ignored", Convention(without)


def _gains(node: Spiking) -> Iterator[tuple[str, Convention]]:
    factors: dict[str, np.ndarray] = {}
    if isinstance(node, (LIF, CubaLIF)):
        factors["decay_mem"] = node.decay_mem
    if isinstance(node, CubaLIF):
        factors["decay_syn"] = node.decay_syn
    for name, decay in factors.items():
        factor = float(decay.flat[0])
        if factor > 0 and bool((decay == decay.flat[0]).all()):
            yield f"gain: the input is multiplied by {name} ({factor:.6g})", Convention(node, gain=factor)
            yield f"gain: the input is divided by {name} ({factor:.6g})", Convention(node, gain=1 / factor)


def _decays(node: LIF | CubaLIF) -> Iterator[tuple[str, Convention]]:
    names = ("decay_mem", "decay_syn") if isinstance(node, CubaLIF) else ("decay_mem",)
    groups = [names] if len(names) == 1 else [names, names[:1], names[1:]]
    for group in groups:
        said = " and ".join(group)
        yield f"decay: exponential, {said} = 1 - exp(-dt / tau)", Convention(_mapped(node, group, _exponential))
        yield (
            f"decay: the share kept is taken for the share lost in {said}",
            Convention(_mapped(node, group, lambda decay: 1 - decay)),
        )
    for factor in DT_FACTORS:
        scaled = _mapped(node, names, partial(_scaled, factor))
        yield f"dt: {factor:g} times the graph's, or all time constants {1 / factor:g} times", Convention(scaled)
        yield f"dt: {factor:g} times the graph's, and the input with it", Convention(scaled, gain=factor)


def _mapped(node: LIF | CubaLIF, names: tuple[str, ...], change: Callable[[np.ndarray], np.ndarray]) -> LIF | CubaLIF:
    for name in names:
        changed = np.asarray(change(getattr(node, name)), dtype=np.float32)
        if name == "decay_mem":
            node = replace(node, decay_mem=changed)
        elif isinstance(node, CubaLIF):
            node = replace(node, decay_syn=changed)
    return node


def _scaled(factor: float, decay: np.ndarray) -> np.ndarray:
    return np.minimum(decay * factor, 1.0)


def _exponential(decay: np.ndarray) -> np.ndarray:
    return -np.expm1(-decay.astype(np.float64))


def _reset_word(node: Spiking) -> str:
    return "value" if node.reset == "value" else "subtraction"


def run_convention(
    convention: Convention,
    drive: torch.Tensor,
    forced: torch.Tensor | None = None,
    more: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run neurons under a convention on ``drive`` (time, batch, *neurons), ``more`` being what further edges bring.

    Returns:
        Spikes (bool) and membrane before reset (float32). With ``forced``, neurons reset where it is True instead of
        where they spike.
    """
    node = convention.node
    assert not isinstance(node, SECOND_TIER), "no target runs them"
    v_reset, v_threshold = parameter_tensor(node.v_reset, "cpu"), parameter_tensor(node.v_threshold, "cpu")
    zero = torch.zeros(())
    v_leak = zero if isinstance(node, IF) else parameter_tensor(node.v_leak, "cpu")
    decay_mem = zero if isinstance(node, IF) else parameter_tensor(node.decay_mem, "cpu")
    decay_syn = parameter_tensor(node.decay_syn, "cpu") if isinstance(node, CubaLIF) else zero
    first = v_reset if isinstance(node, IF) else v_leak
    v = (first if convention.start is None else torch.tensor(convention.start)).expand(drive.shape[1:])
    i = torch.zeros_like(drive[0])
    drive, *further = (_arriving(convention, part) for part in (drive, *more))
    if not isinstance(node, CubaLIF):
        drive, further = added(drive, further), []
    spikes, membranes = torch.empty_like(drive, dtype=torch.bool), torch.empty_like(drive)
    for t in range(drive.shape[0]):
        match node:
            case IF():
                v = v + drive[t]
            case LIF():
                v = v + decay_mem * ((drive[t] + v_leak) - v)
            case CubaLIF():
                i, seen = _current(convention.current, i, [part[t] for part in (drive, *further)], decay_syn)
                v = v + decay_mem * ((v_leak - v) + seen)
        membranes[t] = v
        spikes[t] = v >= v_threshold if convention.inclusive else v > v_threshold
        if convention.resets:
            fired = spikes[t] if forced is None else forced[t]
            v = torch.where(fired, v_reset if node.reset == "value" else v - v_threshold, v)
    return spikes, membranes


def _arriving(convention: Convention, drive: torch.Tensor) -> torch.Tensor:
    drive = drive if convention.gain == 1.0 else drive * convention.gain
    k = convention.input_delay
    return torch.cat([torch.zeros_like(drive[:k]), drive])[: drive.shape[0]] if k else drive


def _current(
    when: str, i: torch.Tensor, parts: Sequence[torch.Tensor], decay_syn: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advance the synaptic current; return it and what the membrane sees of it."""
    if when == "before":
        return added(i - i * decay_syn, parts), i
    jumped = added(i, parts)
    decayed = jumped - jumped * decay_syn
    return decayed, decayed if when == "decayed" else jumped


def said_steps(k: int) -> str:
    """Say a number of steps."""
    return "1 step" if k == 1 else f"{k} steps"
