"""`allocate_channels`: how many output channels or neurons every layer keeps, under any mix of budgets.

For chips on which single zeros save nothing, or whose neurons do not fit. A channel is worth the score of its weights
taken together: the energies of its keys added, then ranked by the same curve as single weights. What channels cost are
products of the widths of neighboring layers, and steps on many chips, so no multiplier rule is exact: one multiplier
is searched over the budgets that do not hold, each asked about the network that is left, and what it leaves over is
filled up channel by channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from slamp.activity import Activity
from slamp.budget import Budget
from slamp.channels import Channels, obstacle, removable
from slamp.curves import Curve, EnergyCurve, MagnitudeCurve, RankedKeys, ShareCurve
from slamp.energy import on_host, prices
from slamp.errors import BudgetError, MappingError
from slamp.fans import fans_hold, host_of
from slamp.graph import SpikingGraph
from slamp.mapping import place, placeable
from slamp.measured import use_of
from slamp.memory import memory_bits, zeros_save_memory
from slamp.nodes import NEURON, SPIKING
from slamp.profile import Profile
from slamp.score import Scores
from slamp.shared import live_count, weight_count
from slamp.shrunk_graph import shrunk_activity, shrunk_graph
from slamp.taps import connections, weighted_sum

BISECTIONS = 40
FILLS = 400
PLACED = "cores"
FANS = "fan-in and fan-out"


@dataclass(frozen=True, eq=False)
class ChannelPlan:
    """Which channels every layer keeps.

    Attributes:
        method: Method of the scores.
        channels: Which outputs of every layer stay.
        sizes: Number of outputs per layer.
        usage: (used, limit) of every budget, as predicted on the network that is left.
        multipliers: What one more unit of each budget would gain, at the threshold that was found; 0 where it is slack.
        binding: Budgets that refused one more channel of some layer.
        density: Share of the weights of the whole network that is left.
    """

    method: str
    channels: Channels
    sizes: Mapping[str, int]
    usage: Mapping[str, tuple[float, float]]
    multipliers: Mapping[str, float]
    binding: tuple[str, ...]
    density: float

    @property
    def keep(self) -> dict[str, int]:
        """Number of outputs kept per layer."""
        return self.channels.kept


def allocate_channels(scores: Scores, budget: Budget, *, zeros_follow: bool = False) -> ChannelPlan:
    """Divide the budgets over the channels of the layers.

    No budget is exceeded, and no layer is emptied; the outputs of the network, and layers bound by convolution groups,
    keep all of theirs. With a chip whose layers are placed on cores, the network that is left can be placed.

    Args:
        scores: Result of `slamp.score`.
        budget: What the network may cost; SOPs and energy are predicted at the calibrated spikes.
        zeros_follow: Single weights will go as well, so only what zeros cannot change counts here: neurons and axons
            of the cores, and their synaptic memory only if zeros do not save any.

    Raises:
        BudgetError: One channel per layer is too much for a budget; the message names it.
    """
    return _Search(scores, budget, zeros_follow).plan()


@dataclass(eq=False)
class _Search:
    scores: Scores
    budget: Budget
    zeros_follow: bool
    unplaced: str = ""

    def __post_init__(self) -> None:
        self.graph = self.scores.graph
        self.names = removable(self.graph)
        if not self.names:
            first = next(iter(self.graph.weighted))
            why = f"{first}: {obstacle(self.graph, first)}"
            raise BudgetError(f"channels: no layer of this network may lose outputs ({why}); prune single weights")
        self.keys = {name: self.group_keys(name) for name in self.names}
        self.curves: dict[str, Curve] = {name: self.curve(name) for name in self.names}
        self.orders = {name: np.argsort(-keys, kind="stable") for name, keys in self.keys.items()}

    def group_keys(self, name: str) -> np.ndarray:
        """Root of the summed squares of the keys of every output, float32; 0 for outputs that never fired."""
        keys = self.scores.keys(name).reshape(len(self.graph.weighted[name].weight), -1)
        roots: np.ndarray = np.sqrt(np.square(keys, dtype=np.float64).sum(1)).astype(np.float32)
        if self.scores.activity is not None:
            for node in self.path(name):
                if isinstance(self.graph.nodes[node], SPIKING):
                    fired = self.scores.activity.neurons[node].spike_counts.reshape(len(roots), -1).any(1)
                    roots = roots * fired if (roots * fired).any() else roots
        return roots

    def path(self, name: str) -> list[str]:
        """Nodes from a layer, itself left out, to the next layer that reads it."""
        path = [self.graph.targets(name)[0]]
        while path[-1] not in self.graph.weighted:
            path.append(self.graph.targets(path[-1])[0])
        return path

    def curve(self, name: str) -> Curve:
        ranked, node = RankedKeys(self.keys[name].copy()), self.graph.weighted[name]
        outputs = len(node.weight)
        match self.scores.method:
            case "global-magnitude" | "random":
                return MagnitudeCurve(ranked)
            case "uniform" | "uniform-plus":
                return ShareCurve(float(outputs), ranked.live)
            case "erk":
                return ShareCurve(outputs * sum(node.weight.shape) / node.weight.size, ranked.live)
        return EnergyCurve(ranked, self.scores.layers[name].factor)

    def plan(self) -> ChannelPlan:
        most = {name: self.curves[name].live for name in self.names}
        least = dict.fromkeys(self.names, 1)
        whole = {name: len(keys) for name, keys in self.keys.items()}
        violated = self.exceeded(whole)
        if not violated:
            return self.result(whole, 0.0, {}, ())
        if lacking := self.exceeded(least):
            raise BudgetError(self.refusal(lacking[0], least))
        costs = {name: sum(self.share(kind, name) for kind in violated) or 1.0 for name in self.names}
        multiplier, counts = self.threshold(costs)
        counts, refused = self.filled(counts, most, costs)
        return self.result(counts, multiplier, costs, refused)

    def threshold(self, costs: Mapping[str, float]) -> tuple[float, dict[str, int]]:
        """Bisect on the multiplier; return the least one found at which every budget holds."""

        def counts(value: float) -> dict[str, int]:
            return {name: max(1, self.curves[name].count(value * costs[name])) for name in self.names}

        high = 1.0
        while self.exceeded(counts(high)):
            high *= 8
        low = high / 8
        while not self.exceeded(counts(low)) and low > 1e-30:
            low, high = low / 8, low
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            if counts(middle) == counts(high):
                high = middle
            elif counts(middle) == counts(low) or self.exceeded(counts(middle)):
                low = middle
            else:
                high = middle
        return high, counts(high)

    def filled(
        self, counts: dict[str, int], most: Mapping[str, int], costs: Mapping[str, float]
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """Add channels by score over cost until each layer is refused by a budget; return those that refused."""
        counts, refused = dict(counts), dict.fromkeys(self.budget.given, False)
        waiting = [name for name in self.names if counts[name] < most[name]]
        for _ in range(FILLS):
            if not waiting:
                break
            name = max(waiting, key=lambda layer: self.curves[layer].value(counts[layer] + 1) / costs[layer])
            counts[name] += 1
            if exceeded := self.exceeded(counts):
                counts[name] -= 1
                waiting.remove(name)
                refused |= dict.fromkeys(exceeded, True)
            elif counts[name] == most[name]:
                waiting.remove(name)
        return counts, tuple(name for name, found in refused.items() if found)

    def result(
        self, counts: Mapping[str, int], multiplier: float, costs: Mapping[str, float], refused: tuple[str, ...]
    ) -> ChannelPlan:
        channels = self.channels(counts)
        used = self.use(counts)
        usage = {name: (used[name], limit) for name, limit in self.budget.given.items() if name in used}
        if "sparsity" in usage:
            usage["density"] = (used["density"], 1 - usage.pop("sparsity")[1])
        binding = tuple(dict.fromkeys("density" if name == "sparsity" else name for name in refused if name != FANS))
        return ChannelPlan(
            method=self.scores.method,
            channels=channels,
            sizes=MappingProxyType({name: len(node.weight) for name, node in self.graph.weighted.items()}),
            usage=MappingProxyType(usage),
            multipliers=MappingProxyType(
                {name: multiplier / limit if name in binding else 0.0 for name, (_, limit) in usage.items()}
            ),
            binding=binding,
            density=used["density"],
        )

    def channels(self, counts: Mapping[str, int]) -> Channels:
        arrays = {}
        for name, node in self.graph.weighted.items():
            keep = np.zeros(len(node.weight), dtype=bool)
            keep[self.orders[name][: counts[name]] if name in counts else slice(None)] = True
            arrays[name] = keep
        return Channels(arrays)

    def use(self, counts: Mapping[str, int]) -> dict[str, float]:
        """What the network that is left takes of every budget; cores are infinite where it cannot be placed."""
        budget, profile = self.budget, self.budget.profile
        channels = self.channels(counts)
        small = shrunk_graph(self.graph, channels)
        live = {name: node.weight != 0 for name, node in small.weighted.items()}
        density = live_count(small) / weight_count(self.graph)
        found = {"density": density, "sparsity": 1 - density}
        if budget.synapses is not None:
            found["synapses"] = sum(
                weighted_sum(node, live[name], connections(node, small.shapes[small.sources(name)[0]]))
                for name, node in small.weighted.items()
            )
        activity = self.activity(channels)
        if budget.measured:
            if activity is None:
                names = ", ".join(budget.measured)
                raise BudgetError(f"{names}: the scores carry no activity; calibrate, and score with it")
            found |= use_of(small, activity, budget)
        if profile is None:
            return found
        host = frozenset() if activity is None else on_host(small, profile, activity)
        if budget.memory_bits is not None:
            found["memory_bits"] = memory_bits(small, live, profile, host)
        if self.placed:
            found[PLACED] = self.cores(small, host, profile)
        found[FANS] = float(not fans_hold(small, live, profile, host))
        return found

    @cached_property
    def zeros_save(self) -> bool:
        """Whether memory is left to the zeros that follow."""
        profile = self.budget.profile
        if profile is None or not self.zeros_follow:
            return False
        return zeros_save_memory(self.graph, profile, host_of(self.scores, profile))

    @cached_property
    def placed(self) -> bool:
        profile = self.budget.profile
        return profile is not None and placeable(profile)

    def cores(self, small: SpikingGraph, host: frozenset[str], profile: Profile) -> float:
        if self.zeros_save:
            limits = profile.limits.model_copy(update={"synapse_bits_per_core": None})
            profile = profile.model_copy(update={"limits": limits})
        try:
            return float(place(small, profile, host=host).cores)
        except MappingError as error:
            self.unplaced = str(error)
            return math.inf

    def activity(self, channels: Channels) -> Activity | None:
        whole = self.scores.activity
        return None if whole is None else shrunk_activity(whole, self.graph, channels)

    def limits(self) -> dict[str, float]:
        limits = dict(self.budget.given)
        profile = self.budget.profile
        if self.zeros_follow:
            left = (PLACED,) if self.zeros_save else (PLACED, "memory_bits")
            limits = {name: value for name, value in limits.items() if name in left}
        if self.placed and PLACED not in limits and profile is not None:
            chip = profile.limits.cores_per_chip
            limits[PLACED] = math.inf if chip is None or chip.value is None else chip.number
        return limits if self.zeros_follow else limits | {FANS: 0.0}

    def exceeded(self, counts: Mapping[str, int]) -> list[str]:
        """Names of the budgets that do not hold; "cores" also where nothing can be placed."""
        used = self.use(counts)
        found = []
        for name, limit in self.limits().items():
            if name not in used:
                continue
            short = used[name] < limit if name == "sparsity" else used[name] > limit
            if short or used[name] == math.inf:
                found.append(name)
        return found

    def share(self, kind: str, name: str) -> float:
        """Roughly what one channel of a layer takes, as a share of the budget: enough to rank by."""
        dense = self.dense
        match kind:
            case "synapses":
                return dense["synapses"][name] / float(self.budget.synapses or 1)
            case "sops" | "sops_per_step":
                return dense["sops"][name] / self.budget.given[kind]
            case "energy_pj":
                energy = prices(self.budget.profile, self.budget.energy_set)
                sop = energy.sop_pj.number if energy.sop_pj is not None else 0.0
                update = energy.neuron_active_pj
                steps = 0 if self.scores.activity is None else self.scores.activity.steps
                neuron = steps * (update.number if update is not None and update.value is not None else 0.0)
                used = sop * dense["sops"][name] + neuron * dense["neurons"][name]
                return used / float(self.budget.energy_pj or 1)
        weights = dense["weights"][name] / sum(dense["weights"].values())
        if kind == PLACED:
            return weights * (not self.zeros_save) + dense["neurons"][name] / sum(dense["neurons"].values())
        return weights

    @cached_property
    def dense(self) -> dict[str, dict[str, float]]:
        """What one channel of each layer takes in the whole network, with what the next layer reads of it."""
        graph, activity = self.graph, self.scores.activity
        found: dict[str, dict[str, float]] = {"weights": {}, "synapses": {}, "sops": {}, "neurons": {}}
        for name in self.names:
            outputs = len(graph.weighted[name].weight)
            path = self.path(name)
            neurons = [math.prod(graph.shapes[node]) for node in path if isinstance(graph.nodes[node], NEURON)]
            found["neurons"][name] = sum(neurons) / outputs
            for kind in ("weights", "synapses", "sops"):
                found[kind][name] = 0.0
            for layer in (name, path[-1]):
                node = graph.weighted[layer]
                rows = len(node.weight)
                found["weights"][name] += node.weight.size / outputs
                taps = connections(node, graph.shapes[graph.sources(layer)[0]])
                found["synapses"][name] += float(taps.sum()) * rows / outputs
                if activity is not None and activity.layers[layer].from_spikes:
                    found["sops"][name] += float(activity.layers[layer].tap_events.sum()) * rows / outputs
        return found

    def refusal(self, kind: str, least: Mapping[str, int]) -> str:
        used, profile = self.use(least), self.budget.profile
        if kind == FANS:
            return f"{FANS}: one channel per layer still exceeds the limits of a neuron; prune single weights"
        if kind == PLACED and used[PLACED] == math.inf and profile is not None:
            return f"cores: even with one channel per layer, {self.unplaced}"
        limit = self.limits()[kind]
        return (
            f"{kind}: the budget is {limit:.6g}, but one channel per layer needs {used[kind]:.6g}; "
            f"ask for at least {used[kind]:.9g}"
        )
