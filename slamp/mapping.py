"""`map_cores`: what sits on which core of a chip, how full each core is, and which limit forced every split.

A population is cut into equal contiguous parts, as few as the limits of a core allow: ranges of channels times ranges
of positions. Synapses lie with their targets, so a part has synapse lists of its own (padded among themselves, where
the chip pads) and input axons of its own: splitting positions repeats kernels, splitting channels repeats axons. Parts
are then put, in computing order, on the first core with room for them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slamp.channels import removable
from slamp.cutting import AXONS_IN, AXONS_OUT, FORMATS, MEMORY, NEURONS, Cut, cut
from slamp.errors import MappingError
from slamp.graph import SpikingGraph
from slamp.kernel_changes import smallest_kernel_change
from slamp.kernel_limits import core_memories
from slamp.placement import kernel_conflict, kernel_cores, kernel_needs
from slamp.populations import populations
from slamp.profile import Figure, Profile

MAPPED = ("contiguous", "neurons per core")
KERNELS, NEURON_WORDS, BIASES = "kernel words", "neuron words", "bias words"
Use = Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """A contiguous part of a population on one core.

    Attributes:
        layer: Weighted node that drives it.
        channels: First channel (or neuron) and the one after the last.
        positions: First position of the map, row-major, and the one after the last.
        core: Where it sits, from 0.
        use: What it takes of a core, by resource.
    """

    layer: str
    channels: tuple[int, int]
    positions: tuple[int, int]
    core: int
    use: Mapping[str, float]


@dataclass(frozen=True)
class CoreMap:
    """Where every part of a network sits.

    Attributes:
        profile: Name of the chip.
        limits: Limits of each core by resource: one entry for all, or one per core where they differ.
        parts: In computing order.
        splits: By layer of more than one part, the limit that forced it to be split.
        cores_per_chip: Cores of one chip; None if that is not known.
        unchecked: Limits of a core that exist and are not known.
    """

    profile: str
    limits: tuple[Mapping[str, float], ...]
    parts: tuple[Part, ...]
    splits: Mapping[str, str]
    cores_per_chip: int | None
    unchecked: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[int, ...]:
        """Cores something sits on, ascending."""
        return tuple(sorted({part.core for part in self.parts}))

    @property
    def cores(self) -> int:
        """Number of cores used."""
        return len(self.used)

    @property
    def chips(self) -> int:
        """Number of chips these cores fill."""
        return math.ceil(self.cores / self.cores_per_chip) if self.cores_per_chip else 1

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources a core has a limit of."""
        return tuple(self.limits[0])

    def limit(self, core: int) -> Mapping[str, float]:
        """Limits of a core by resource."""
        return self.limits[core if len(self.limits) > 1 else 0]

    def use(self, core: int) -> dict[str, float]:
        """What all parts on a core take, by resource."""
        return _added(part.use for part in self.parts if part.core == core)

    def fullness(self, core: int) -> dict[str, float]:
        """Share of every limit of a core that is used."""
        used = self.use(core)
        return {name: used.get(name, 0.0) / limit for name, limit in self.limit(core).items()}

    def layers(self) -> dict[str, list[Part]]:
        """Parts by layer."""
        found: dict[str, list[Part]] = {}
        for part in self.parts:
            found.setdefault(part.layer, []).append(part)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data, with how full each core is."""
        return {
            "profile": self.profile,
            "cores": self.cores,
            "chips": self.chips,
            "cores_per_chip": self.cores_per_chip,
            "limits": [dict(limits) for limits in self.limits],
            "parts": [asdict(part) for part in self.parts],
            "splits": dict(self.splits),
            "fullness": {str(core): self.fullness(core) for core in self.used},
            "unchecked": list(self.unchecked),
        }


def core_map_from_json(found: Mapping[str, Any]) -> CoreMap:
    """Return the mapping that `CoreMap.to_json` made plain."""
    parts = tuple(
        Part(part["layer"], tuple(part["channels"]), tuple(part["positions"]), part["core"], part["use"])
        for part in found["parts"]
    )
    limits, unchecked = tuple(found["limits"]), tuple(found["unchecked"])
    return CoreMap(found["profile"], limits, parts, found["splits"], found["cores_per_chip"], unchecked)


def map_cores(
    graph: SpikingGraph, profile: Profile, *, cores: int | None = None, host: Collection[str] = ()
) -> CoreMap:
    """Place a network on the cores of a chip.

    Every limit of a core that the profile knows is held: neurons, input axons (sources with a non-zero synapse into the
    part), output axons (one per neuron and part it reaches), synaptic memory in the cheapest encoding, formats.

    Args:
        graph: The network, as it ships.
        profile: The chip.
        cores: How many there are; by default those of one chip, as far as that is known.
        host: Nodes that stay on the host, see `slamp.populations.hosted`.

    Raises:
        MappingError: One neuron, or one channel, alone exceeds a core, or there are too few cores. The message says
            what the smallest change is that would make it fit.
    """
    found = place(graph, profile, host=host)
    available = cores if cores is not None else found.cores_per_chip
    if available is not None and found.cores > available:
        fixed = set(graph.weighted) - set(removable(graph))
        raise MappingError(too_many_cores(found, available, fixed))
    return found


def place(graph: SpikingGraph, profile: Profile, *, host: Collection[str] = ()) -> CoreMap:
    """Place a network on as many cores as it takes; raises `MappingError` where no number would do."""
    if profile.mapping.rule == "one layer per core":
        return _one_layer_per_core(graph, profile, host)
    limits, unchecked = core_limits(profile)
    shares = shares_cores(profile)
    cuts: list[Cut] = []
    destinations: dict[str, Any] = {}  # by neurons, the number of parts each of them reaches
    for population in reversed(populations(graph, host=host)):
        done = cut(graph, profile, population, limits, destinations.get(population.name))
        cuts.insert(0, done)
        for source, counts in done.destinations.items():
            destinations[source] = destinations[source] + counts if source in destinations else counts
    parts: list[Part] = []
    taken: list[dict[str, float]] = []
    for done in cuts:
        for piece in done.pieces:
            core = _first_with_room(taken, piece.use, limits) if shares else len(taken)
            if core == len(taken):
                taken.append({})
            taken[core] = _added([taken[core], piece.use])
            parts.append(Part(done.layer, piece.channels, piece.positions, core, piece.use))
    splits = {done.layer: done.forced_by for done in cuts if len(done.pieces) > 1}
    return CoreMap(profile.name, (limits,), tuple(parts), splits, _cores_per_chip(profile), unchecked)


def _one_layer_per_core(graph: SpikingGraph, profile: Profile, host: Collection[str]) -> CoreMap:
    """Match layers to cores whose memories differ; the layers are not split."""
    check_placeable(profile)
    memories = core_memories(profile.limits)
    needs = {name: need for name, need in kernel_needs(graph).items() if name not in host}
    placed = kernel_cores(needs, memories)
    if placed is None:
        raise MappingError(
            f"{profile.name}: no assignment of layers to cores: {kernel_conflict(needs, memories)}; "
            f"{smallest_kernel_change(graph, memories, host)}"
        )
    parts = []
    for name, need in needs.items():
        channels, *sides = graph.shapes[name]
        use = {KERNELS: float(need.kernel), NEURON_WORDS: float(need.neurons), BIASES: float(need.bias)}
        parts.append(Part(name, (0, channels), (0, math.prod(sides)), placed[name], use))
    limits = tuple(
        {KERNELS: float(core.kernel), NEURON_WORDS: float(core.neurons), BIASES: float(core.bias)} for core in memories
    )
    return CoreMap(profile.name, limits, tuple(parts), {}, _cores_per_chip(profile))


def _cores_per_chip(profile: Profile) -> int | None:
    count = profile.limits.cores_per_chip
    return None if count is None or count.value is None else int(count.number)


def placeable(profile: Profile) -> bool:
    """Whether networks can be placed on the cores of a chip: its rule is ours, and a limit of a core is known."""
    try:
        check_placeable(profile)
    except MappingError:
        return False
    return True


def core_limits(profile: Profile) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the known limits of one core by resource, and the names of those that are not known.

    Raises:
        MappingError: The chip has no mapping by cores, or no limit of a core is known.
    """
    if profile.mapping.rule not in MAPPED:
        raise MappingError(
            f"{profile.name}: mapping rule {profile.mapping.rule!r} places nothing on cores; allowed are "
            f"{', '.join(MAPPED)} and one layer per core; use density, synapses or sops"
        )
    figures: dict[str, Figure | None] = {NEURONS: profile.limits.neurons_per_core}
    if shares_cores(profile):
        figures |= {
            AXONS_IN: profile.limits.axons_in_per_core,
            AXONS_OUT: profile.limits.axons_out_per_core,
            MEMORY: profile.limits.synapse_bits_per_core,
            FORMATS: profile.limits.synapse_formats_per_core,
        }
    known = {name: figure.number for name, figure in figures.items() if figure is not None and figure.value is not None}
    if not known:
        raise MappingError(f"{profile.name}: no limit of a core is known, so nothing can be placed; see slamp profiles")
    return known, tuple(name for name, figure in figures.items() if figure is not None and figure.value is None)


def shares_cores(profile: Profile) -> bool:
    """Whether parts of several layers may sit on one core."""
    return profile.mapping.rule == "contiguous"


def check_placeable(profile: Profile) -> None:
    """Raise `MappingError` if networks cannot be placed on the cores of a chip at all."""
    if profile.mapping.rule != "one layer per core":
        core_limits(profile)
    elif not core_memories(profile.limits):
        raise MappingError(f"{profile.name}: the memories of its cores are not known, so nothing can be placed")


def too_many_cores(found: CoreMap, available: int, fixed: Collection[str] = ()) -> str:
    """Say that a mapping takes more cores than there are, and the smallest change that would make it fit.

    Args:
        found: The mapping.
        available: Cores there are.
        fixed: Layers whose neurons cannot be fewer, such as the outputs of the network.
    """
    excess = found.cores - available
    where = f"{found.profile}: the network takes {found.cores} cores, {available} are there"
    changes = []
    for layer, parts in found.layers().items():
        left = len(parts) - excess
        forced = found.splits.get(layer)
        if forced is None or left < 1 or (forced == NEURONS and layer in fixed):
            continue
        use, room = sum(part.use.get(forced, 0.0) for part in parts), left * found.limits[0][forced]
        if room >= use:  # equal parts do not fill their cores, so less of this resource need not mean fewer parts
            continue
        changes.append((room / use, f"bring {forced} of {layer} from {use:,.0f} to {room:,.0f} or less"))
    if changes:
        return f"{where}; the smallest change: {max(changes)[1]}"
    total = _added(part.use for part in found.parts)
    if len(found.limits) > 1:
        return f"{where}; each layer takes one, so only fewer layers would do"
    shares = {name: total.get(name, 0.0) / limit for name, limit in found.limits[0].items()}
    tightest = max(shares, key=lambda name: shares[name])
    room = available * found.limits[0][tightest]
    if shares[tightest] > available:
        return f"{where}; the smallest change: bring {tightest} from {total[tightest]:,.0f} to {room:,.0f} or less"
    return f"{where}; their rests do not add up: {tightest} is tightest, {total[tightest]:,.0f} of {room:,.0f}"


def _first_with_room(taken: Sequence[Use], use: Use, limits: Use) -> int:
    for core, used in enumerate(taken):
        if all(used.get(name, 0.0) + use.get(name, 0.0) <= limit for name, limit in limits.items()):
            return core
    return len(taken)


def _added(uses: Iterable[Use]) -> dict[str, float]:
    total: dict[str, float] = {}
    for use in uses:
        for name, value in use.items():
            total[name] = total.get(name, 0.0) + value
    return total
