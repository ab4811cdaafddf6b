"""Rows of a usage table: every resource, counted, with the limit of the chip and its source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from slamp.activity import Activity
from slamp.cutting import MEMORY
from slamp.energy import ChipCounts, priced
from slamp.fans import synapses_into, synapses_out_of
from slamp.graph import SpikingGraph
from slamp.kernel_limits import kernel_limits
from slamp.mapping import CoreMap, too_many_cores
from slamp.nodes import NEURON
from slamp.profile import Energy, Figure, Profile


@dataclass(frozen=True)
class UsageRow:
    """One resource.

    Attributes:
        resource: What is counted, with its unit.
        used: How much the network takes; None if that cannot be said (``note`` says why).
        limit: What the chip has; None if the chip has no such limit or nobody knows it.
        status: Of the limit, or of the price behind ``used``; "counted" if neither is involved.
        source: Names of its sources; `Usage.sources` cites them.
        note: Explanation.
        infeasible: True if no amount of the resource would do; ``note`` says why.
    """

    resource: str
    used: float | None
    limit: float | None = None
    status: str = "counted"
    source: str = ""
    note: str = ""
    infeasible: bool = False

    @property
    def fits(self) -> bool:
        """False if more is used than there is."""
        return not self.infeasible and (self.used is None or self.limit is None or self.used <= self.limit)

    @property
    def share(self) -> float | None:
        """Used over limit."""
        return None if self.used is None or not self.limit else self.used / self.limit


@dataclass(frozen=True)
class LayerUsage:
    """Synapses of one weighted layer.

    Attributes:
        weights: Weights, zeros included.
        synapses: Weights that are not zero.
        connections: Unrolled connections that are not zero.
        bits: Bits in every encoding the chip has for such a layer.
        encoding: The cheapest; empty if the chip's encodings are unknown.
        pays_below: Density below which the cheapest list of non-zeros takes fewer bits than the dense layer does,
            for zeros spread at random; None if there is none.
    """

    weights: int
    synapses: int
    connections: int
    bits: Mapping[str, float]
    encoding: str
    pays_below: float | None


def synapse_rows(graph: SpikingGraph, layers: Mapping[str, LayerUsage], profile: Profile) -> Iterator[UsageRow]:
    """Weights, connections, synaptic memory, and fans, unrolled."""
    limits = profile.limits
    kept = sum(layer.synapses for layer in layers.values())
    unrolled = sum(layer.connections for layer in layers.values())
    yield UsageRow("weights kept", kept)
    yield _row(profile, "unrolled connections", unrolled, limits.synapses_per_chip)
    if any(not layer.bits for layer in layers.values()):
        yield UsageRow(MEMORY, None, note="how the chip stores synapses is not known")
    else:
        bits = sum(layer.bits[layer.encoding] for layer in layers.values())
        if limits.synapse_bits_per_core is None and limits.memory_bytes_per_chip is not None:
            yield _row(profile, "synaptic memory, bytes", math.ceil(bits / 8), limits.memory_bytes_per_chip)
        else:
            yield _row(profile, MEMORY, bits, limits.synapse_bits_per_core, times=limits.cores_per_chip)
    for key, encoding in profile.encodings.items():
        if (entries := encoding.parameters.get("entries")) is not None:
            between = list(layers.values())[1:-1]
            note = "synapses between hidden neurons"
            yield _row(profile, f"entries of {key}", sum(layer.synapses for layer in between), entries, note=note)
    fan_in, reached, mean = _fans(graph, layers)
    yield _row(profile, "largest fan-in", fan_in, limits.fan_in)
    yield _row(profile, "largest fan-out of a neuron", reached, limits.fan_out)
    yield _row(profile, "mean fan-out of a neuron", mean, limits.fan_out_mean)


def _fans(graph: SpikingGraph, layers: Collection[str]) -> tuple[float, float, float]:
    """Largest number of synapses into a neuron and out of one, and the mean out of one, unrolled, inputs left out."""
    live = {name: graph.weighted[name].weight != 0 for name in layers}
    fan_in = max((float(counts.max()) for counts in synapses_into(graph, live)), default=0.0)
    reached = np.concatenate([np.zeros(1), *synapses_out_of(graph, live)])
    return fan_in, float(reached.max()), float(reached[1:].mean()) if reached.size > 1 else 0.0


def neuron_rows(graph: SpikingGraph, profile: Profile, host: Collection[str]) -> Iterator[UsageRow]:
    """Neurons and the ends of the network."""
    limits = profile.limits
    on_chip = [name for name, node in graph.nodes.items() if isinstance(node, NEURON) and name not in host]
    count = sum(math.prod(graph.shapes[name]) for name in on_chip)
    if limits.neurons_per_chip is not None:
        yield _row(profile, "neurons", count, limits.neurons_per_chip)
    else:
        yield _row(profile, "neurons", count, limits.neurons_per_core, times=limits.cores_per_chip)
    yield _row(profile, "input channels", math.prod(graph.shapes[graph.input]), limits.input_channels)
    yield _row(profile, "output neurons", math.prod(graph.shapes[graph.output]), limits.output_neurons)


def core_rows(
    graph: SpikingGraph, layers: Mapping[str, LayerUsage], profile: Profile, mapping: CoreMap | None, why: str
) -> Iterator[UsageRow]:
    """Cores of the mapping, or at least how many."""
    if mapping is not None:
        yield _mapped_row(mapping, profile)
        return
    if why:
        yield UsageRow("cores", None, note=why, infeasible=True)
        return
    per_layer = [_least_cores(graph, name, layer, profile) for name, layer in layers.items()]
    if any(cores is None for cores, _ in per_layer):
        yield UsageRow("cores, at least", None, note="no limit of a core is known")
        return
    needed = sum(cores or 0 for cores, _ in per_layer)
    if profile.mapping.rule == "single core":
        needed = max((cores or 0 for cores, _ in per_layer), default=0)
    reasons = [f"{name}: {cores} for {why}" for name, (cores, why) in zip(layers, per_layer, strict=True)]
    yield _row(profile, "cores, at least", needed, profile.limits.cores_per_chip, note="; ".join(reasons))


def _mapped_row(mapping: CoreMap, profile: Profile) -> UsageRow:
    available = mapping.cores_per_chip
    if available is not None and mapping.cores > available:
        note = too_many_cores(mapping, available)
    else:
        split = {name: parts for name, parts in mapping.layers().items() if name in mapping.splits}
        note = "; ".join(f"{name}: {len(parts)} for {mapping.splits[name]}" for name, parts in split.items())
    if mapping.unchecked:
        note = "; ".join(filter(None, [note, f"not checked, because not known: {', '.join(mapping.unchecked)}"]))
    return _row(profile, "cores", mapping.cores, profile.limits.cores_per_chip, note=note)


def _least_cores(graph: SpikingGraph, name: str, layer: LayerUsage, profile: Profile) -> tuple[int | None, str]:
    """Cores a layer needs, and the resource that asks for them; None if no limit of a core is known."""
    limits = profile.limits
    shape = graph.shapes[graph.sources(name)[0]]
    wanted: list[tuple[str, float, Figure | None]] = [
        ("neurons", math.prod(graph.shapes[name]), limits.neurons_per_core),
        ("input axons", math.prod(shape), limits.axons_in_per_core),
        ("synapses", layer.connections, limits.synapses_per_core),
    ]
    if layer.bits:
        wanted.append(("synaptic memory", layer.bits[layer.encoding], limits.synapse_bits_per_core))
    known = [
        (math.ceil(used / limit.number), what)
        for what, used, limit in wanted
        if limit is not None and limit.value is not None
    ]
    return max(known, key=lambda pair: pair[0], default=(None, ""))


def side_rows(graph: SpikingGraph, profile: Profile) -> Iterator[UsageRow]:
    """Sides of maps and kernels, channels and destinations, where the chip limits them."""
    for resource, used, limit, layer in kernel_limits(graph, profile.limits):
        yield _row(profile, resource, used, limit, note=layer)


def operation_rows(counts: ChipCounts, activity: Activity) -> Iterator[UsageRow]:
    """What happens per sample."""
    yield UsageRow("SOPs per sample", counts.sops)
    yield UsageRow("SOPs in the busiest step", counts.busiest_step)
    yield UsageRow("MACs per sample", activity.macs, note="of layers with analog input")
    yield UsageRow("spikes per sample", counts.spikes)
    yield UsageRow("neuron updates per sample", counts.updates)


def energy_row(name: str, energy: Energy, counts: ChipCounts) -> UsageRow:
    """Price what was counted; without a total as soon as a counted term has no price."""
    resource = f"energy per sample, pJ ({name}, {energy.scope})"
    if energy.scope == "power":
        return UsageRow(resource, None, note="power times time; the time of a step on this chip is not modeled")
    found = priced(energy, counts)
    shown = sorted(found.figures, key=lambda price: not price.starred)[:1]
    status, source = (shown[0].status, _named(shown[0])) if shown else ("unknown", "")
    if found.total is None:
        note = f"no total: no price for {', '.join(found.missing)}; the priced terms come to {found.partial:,.0f} pJ"
        return UsageRow(resource, None, None, status, source, note)
    note = "every neuron update at the active price; routing not counted" if energy.scope == "per_term" else ""
    return UsageRow(resource, found.total, None, status, source, note)


def time_rows(name: str, energy: Energy, counts: ChipCounts, steps: int) -> Iterator[UsageRow]:
    """How long a sample takes, as far as the chip has a step of known length or times of single events."""
    if energy.step_us is not None and energy.step_us.value is not None:
        used, step = steps * energy.step_us.number, energy.step_us
        note = f"{steps} steps of {step.number:g} us"
        yield UsageRow(f"time per sample, us ({name})", used, None, step.status, _named(step), note)
    sop, neuron = energy.sop_ns, energy.neuron_ns
    if sop is not None and neuron is not None and sop.value is not None and neuron.value is not None:
        used = (counts.sops * sop.number + counts.updates * neuron.number) / 1000
        note = "SOPs and neuron updates one after another; cores share it"
        yield UsageRow(f"work per sample, us ({name})", used, None, sop.status, _named(sop), note)


def _row(
    profile: Profile,
    resource: str,
    used: float,
    figure: Figure | None,
    *,
    times: Figure | None = None,
    note: str = "",
) -> UsageRow:
    """A row against a limit, or against one per core times the number of cores."""
    if figure is None:
        return UsageRow(resource, float(used), note=note)
    if figure.value is None:
        unknown = "the limit is not known"
        return UsageRow(resource, float(used), None, "unknown", note=f"{unknown}; {note}" if note else unknown)
    limit, status = figure.number, figure.status
    if times is not None and times.value is not None:
        limit *= times.number
        status = times.status if times.starred else status
    return UsageRow(resource, float(used), limit, status, _named(figure), note)


def _named(figure: Figure) -> str:
    return "; ".join(figure.source)
