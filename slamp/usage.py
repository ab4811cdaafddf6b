"""`usage`: what a network takes of a chip, resource by resource, each against its limit and with the limit's source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slamp.activity import Activity
from slamp.encodings import synapse_lists
from slamp.energy import ChipCounts, chip_counts, on_host, priced
from slamp.errors import MappingError, ProfileError
from slamp.fans import behind_neurons
from slamp.graph import SpikingGraph
from slamp.kernel_limits import kernel_limits
from slamp.mapping import CoreMap, core_map_from_json, place, placeable, too_many_cores
from slamp.memory import encoded_bits, masked_lists
from slamp.nodes import NEURON, SPIKING, Weighted
from slamp.placement import read_map
from slamp.profile import Energy, Figure, Profile
from slamp.taps import connections, fan_out, weighted_sum

DENSITIES = tuple(k / 100 for k in range(100, 0, -1))


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


@dataclass(frozen=True)
class Usage:
    """What a network takes of a chip.

    Attributes:
        profile: Name of the chip.
        route: How it gets there, or "budget only".
        rows: Every resource.
        layers: By weighted node.
        unsupported: What the chip cannot run, one sentence each.
        sources: Citation of every source that a row names.
        host: Nodes that stay on the host, because their input is analog; they take nothing of the chip.
        mapping: What sits on which core; None if the chip's rule places nothing, or nothing fits.
    """

    profile: str
    route: str
    rows: tuple[UsageRow, ...]
    layers: Mapping[str, LayerUsage]
    unsupported: tuple[str, ...]
    sources: Mapping[str, str]
    host: tuple[str, ...] = ()
    mapping: CoreMap | None = None

    @property
    def fits(self) -> bool:
        """True if no known limit is exceeded (unsupported nodes are another matter)."""
        return all(row.fits for row in self.rows)

    @property
    def tightest(self) -> UsageRow | None:
        """The resource of which the largest share of a known limit is used; None if no limit is known."""
        limited = [row for row in self.rows if row.share is not None]
        return max(limited, key=lambda row: row.share or 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "profile": self.profile,
            "route": self.route,
            "fits": self.fits,
            "rows": [{**asdict(row), "fits": row.fits} for row in self.rows],
            "layers": {name: {**asdict(layer), "bits": dict(layer.bits)} for name, layer in self.layers.items()},
            "unsupported": list(self.unsupported),
            "sources": dict(self.sources),
            "host": list(self.host),
            "mapping": None if self.mapping is None else self.mapping.to_json(),
        }

    def __getitem__(self, resource: str) -> UsageRow:
        """Return the row of a resource; KeyError if there is none."""
        for row in self.rows:
            if row.resource == resource:
                return row
        raise KeyError(resource)


def usage_from_json(found: Mapping[str, Any]) -> Usage:
    """Return the usage that `Usage.to_json` made plain."""
    rows = tuple(UsageRow(**{key: value for key, value in row.items() if key != "fits"}) for row in found["rows"])
    layers = {name: LayerUsage(**layer) for name, layer in found["layers"].items()}
    mapping = None if found["mapping"] is None else core_map_from_json(found["mapping"])
    return Usage(
        found["profile"],
        found["route"],
        rows,
        layers,
        tuple(found["unsupported"]),
        found["sources"],
        tuple(found["host"]),
        mapping,
    )


def usage(graph: SpikingGraph, profile: Profile, activity: Activity) -> Usage:
    """Count what a network takes of a chip.

    SOPs, spikes and energy are means per sample, measured. Cores are those of `slamp.mapping`, where the chip's rule
    is one it knows, else a lower bound: layer by layer, the resource that needs most cores. An energy total is given
    only if every counted term has a price. Layers with analog input stay on the host, unless the chip prices MACs.

    Args:
        graph: The network, as it ships.
        profile: The chip, see `slamp.load_profile`.
        activity: What `slamp.calibrate` measured on ``graph``.

    Raises:
        ProfileError: The activity was measured on another graph, or the profile lacks a parameter of an encoding.
    """
    if activity.graph_hash != graph.hash:
        raise ProfileError(
            f"usage: the activity was measured on graph {activity.graph_hash[:12]}, this is {graph.hash[:12]}; "
            "calibrate this graph"
        )
    host = on_host(graph, profile, activity)
    layers = {name: _layer(graph, name, node, profile) for name, node in graph.weighted.items() if name not in host}
    mapping, why = _mapping(graph, profile, host)
    counts = chip_counts(graph, activity, host)
    rows = [
        *_synapses(graph, layers, profile),
        *_neurons(graph, profile, host),
        *_cores(graph, layers, profile, mapping, why),
        *_map_sides(graph, profile),
        *_operations(counts, activity),
    ]
    rows += [_energy(name, energy, counts) for name, energy in profile.energy.items()]
    named = {name for row in rows for name in row.source.split("; ") if name}
    return Usage(
        profile=profile.name,
        route=profile.route,
        rows=tuple(rows),
        layers=layers,
        unsupported=tuple(_unsupported(graph, profile)),
        sources={name: source.cite for name, source in profile.sources.items() if name in named},
        host=tuple(name for name in graph.nodes if name in host),
        mapping=mapping,
    )


def _mapping(graph: SpikingGraph, profile: Profile, host: frozenset[str]) -> tuple[CoreMap | None, str]:
    """Place the network; say why where nothing can be placed, and nothing where the chip has no rule for it."""
    if not placeable(profile):
        return None, ""
    try:
        return place(graph, profile, host=host), ""
    except MappingError as error:
        return None, str(error)


def _layer(graph: SpikingGraph, name: str, node: Weighted, profile: Profile) -> LayerUsage:
    shape = graph.shapes[graph.sources(name)[0]]
    lists = synapse_lists(node, shape, read_map(graph, name))
    bits = encoded_bits(lists, profile)
    unrolled = weighted_sum(node, node.weight != 0, connections(node, shape))
    return LayerUsage(
        weights=int(node.weight.size),
        synapses=int(np.count_nonzero(node.weight)),
        connections=round(unrolled),
        bits=bits,
        encoding=min(bits, key=lambda encoding: bits[encoding]) if bits else "",
        pays_below=_pays_below(graph, name, profile),
    )


def _pays_below(graph: SpikingGraph, name: str, profile: Profile) -> float | None:
    """Search the density at which random zeros begin to save bits, in steps of a hundredth."""
    generator = np.random.default_rng(0)
    order = generator.random(graph.weighted[name].weight.shape)

    def least(density: float) -> float:
        return min(encoded_bits(masked_lists(graph, name, order < density), profile).values(), default=math.inf)

    full = least(1.0)
    if not math.isfinite(full) or least(DENSITIES[-1]) >= full:
        return None
    low, high = 0, len(DENSITIES) - 1  # DENSITIES falls: at low nothing is saved, at high something is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if least(DENSITIES[middle]) < full else (middle, high)
    return DENSITIES[high]


def _synapses(graph: SpikingGraph, layers: Mapping[str, LayerUsage], profile: Profile) -> Iterator[UsageRow]:
    limits = profile.limits
    kept = sum(layer.synapses for layer in layers.values())
    unrolled = sum(layer.connections for layer in layers.values())
    yield UsageRow("weights kept", kept)
    yield _row(profile, "unrolled connections", unrolled, limits.synapses_per_chip)
    if any(not layer.bits for layer in layers.values()):
        yield UsageRow("synaptic memory, bits", None, note="how the chip stores synapses is not known")
    else:
        bits = sum(layer.bits[layer.encoding] for layer in layers.values())
        yield _row(profile, "synaptic memory, bits", bits, limits.synapse_bits_per_core, times=limits.cores_per_chip)
    fan_in, reached, mean = _fans(graph, layers)
    yield _row(profile, "largest fan-in", fan_in, limits.fan_in)
    yield _row(profile, "largest fan-out of a neuron", reached, limits.fan_out)
    yield _row(profile, "mean fan-out of a neuron", mean, limits.fan_out_mean)


def _fans(graph: SpikingGraph, layers: Collection[str]) -> tuple[float, float, float]:
    """Largest number of synapses into a neuron and out of one, and the mean out of one, unrolled, inputs left out."""
    fan_in, outs = 0.0, [np.zeros(1)]
    for name in layers:
        node, shape = graph.weighted[name], graph.shapes[graph.sources(name)[0]]
        per_output = (node.weight != 0).reshape(node.weight.shape[0], -1).sum(1)
        fan_in = max(fan_in, float(per_output.max()))
        if behind_neurons(graph, name):
            outs.append(fan_out(node, shape, node.weight != 0).reshape(-1))
    reached = np.concatenate(outs)
    return fan_in, float(reached.max()), float(reached[1:].mean()) if len(outs) > 1 else 0.0


def _neurons(graph: SpikingGraph, profile: Profile, host: Collection[str]) -> Iterator[UsageRow]:
    limits = profile.limits
    on_chip = [name for name, node in graph.nodes.items() if isinstance(node, NEURON) and name not in host]
    count = sum(math.prod(graph.shapes[name]) for name in on_chip)
    if limits.neurons_per_chip is not None:
        yield _row(profile, "neurons", count, limits.neurons_per_chip)
    else:
        yield _row(profile, "neurons", count, limits.neurons_per_core, times=limits.cores_per_chip)
    yield _row(profile, "input channels", math.prod(graph.shapes[graph.input]), limits.input_channels)
    yield _row(profile, "output neurons", math.prod(graph.shapes[graph.output]), limits.output_neurons)


def _cores(
    graph: SpikingGraph, layers: Mapping[str, LayerUsage], profile: Profile, mapping: CoreMap | None, why: str
) -> Iterator[UsageRow]:
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


def _map_sides(graph: SpikingGraph, profile: Profile) -> Iterator[UsageRow]:
    for resource, used, limit, layer in kernel_limits(graph, profile.limits):
        yield _row(profile, resource, used, limit, note=layer)


def _operations(counts: ChipCounts, activity: Activity) -> Iterator[UsageRow]:
    yield UsageRow("SOPs per sample", counts.sops)
    yield UsageRow("SOPs in the busiest step", counts.busiest_step)
    yield UsageRow("MACs per sample", activity.macs, note="of layers with analog input")
    yield UsageRow("spikes per sample", counts.spikes)
    yield UsageRow("neuron updates per sample", counts.updates)


def _energy(name: str, energy: Energy, counts: ChipCounts) -> UsageRow:
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


def _unsupported(graph: SpikingGraph, profile: Profile) -> Iterator[str]:
    allowed = set(profile.support.nodes) | {"Input", "Output"}
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        if kind not in allowed:
            yield f"{name}: {kind} does not run on {profile.name}; it runs {', '.join(profile.support.nodes) or 'none'}"
        elif isinstance(node, SPIKING) and node.reset not in profile.support.resets:
            resets = " or ".join(profile.support.resets) or "none"
            yield f"{name}: reset by {node.reset} does not run on {profile.name}; it resets by {resets}"


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
