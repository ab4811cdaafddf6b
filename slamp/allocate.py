"""`allocate`: how many weights every layer keeps, under any mix of budgets.

Budgets that are linear in the weights kept are solved by `slamp.plan`. Synaptic memory and cores of a chip follow from
the masks alone: `slamp.chip_search` finds what the linear budget has to be for them to hold.
"""

from __future__ import annotations

from dataclasses import replace

from slamp.balance import check_balance
from slamp.budget import Budget
from slamp.chip_search import Chip, masked_graph, masks_of_plan, search
from slamp.errors import BudgetError
from slamp.fans import within_fans
from slamp.plan import Plan, linear_plan
from slamp.score import Scores

__all__ = ["Plan", "allocate", "masked_graph", "masks_of_plan"]


def allocate(
    scores: Scores, budget: Budget, *, cost_aware: bool = True, balance: str = "", progress: bool = False
) -> Plan:
    """Divide the budgets over the layers.

    No budget is exceeded, no layer is emptied, and no further weight would fit (up to the steps of the search, under
    budgets of memory and cores). Zero weights are never kept. With a chip in the budget, its limits of fan-in and
    fan-out hold for every neuron on it.

    Args:
        scores: Result of `slamp.score`.
        budget: What the network may cost; SOPs and energy are predicted at the calibrated spikes.
        cost_aware: Whether a weight that costs less may score less. The baselines never do this.
        balance: "fan_out" if the masks are to be balanced (see `slamp.make_masks`), so that memory and cores are
            accounted as the balanced masks take them.
        progress: Show a progress bar while masks are tried against the chip.

    Raises:
        BudgetError: A budget is below its least possible usage (the message names it), or SOPs are asked without
            activity.
    """
    check_balance(balance)
    profile = budget.profile
    cost_aware = cost_aware and not scores.cost_blind
    scores = within_fans(scores, profile)
    if budget.memory_bits is None and budget.cores is None:
        plan = linear_plan(scores, budget, cost_aware=cost_aware, bits_per_weight={})
    else:
        name = "memory_bits" if budget.memory_bits is not None else "cores"
        if profile is None:
            raise BudgetError(f"{name}: depends on the chip; use profile.budget({name}=...), or --profile NAME")
        plan = search(Chip(scores, profile, budget, balance), cost_aware=cost_aware, progress=progress)
    return replace(plan, profile=profile, balance=balance)
