"""Budgets: how large and how busy the pruned network may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np

from slamp.errors import BudgetError
from slamp.profile import Profile


@dataclass(frozen=True)
class Budget:
    """Upper limits; every one that is given holds.

    A parameter that several weighted nodes share counts once for density and sparsity, and once per use for everything
    else: hardware holds and drives the synapses of every use.

    Attributes:
        density: Share of the weights that may be kept, above 0 and at most 1.
        sparsity: Share of the weights that must go, at least 0 and below 1; another way to say density.
        synapses: Unrolled connections: weights times the output positions at which they read a real input.
        sops: Synaptic operations per sample, mean over samples.
        sops_per_step: Synaptic operations of the busiest step, mean over samples: where all cores wait for one another
            at the end of each step, that step sets the pace.
        memory_bits: Synaptic memory of the chip, every layer in the cheapest encoding it has; needs ``profile``.
        cores: Cores of the chip, as `slamp.map_cores` places the network on them; needs ``profile``.
        energy_pj: Energy per sample in pJ, mean over samples; needs a ``profile`` that prices every term counted.
        profile: The chip. Its limits of fan-in and fan-out hold as well, neuron by neuron.
        energy_set: Set of prices of the chip; by default its first that prices synaptic operations.

    Raises:
        BudgetError: Nothing is given, density and sparsity are both given, or a number is out of its range.
    """

    density: float | None = None
    sparsity: float | None = None
    synapses: float | None = None
    sops: float | None = None
    sops_per_step: float | None = None
    memory_bits: float | None = None
    cores: float | None = None
    energy_pj: float | None = None
    profile: Profile | None = None
    energy_set: str = ""

    def __post_init__(self) -> None:
        given = self.given
        if not given:
            raise BudgetError(f"budget: nothing is given; allowed are {', '.join(BUDGETS)}, such as density=0.1")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise BudgetError(f"budget: {name} is {value!r}; allowed is a finite number")
            # float32 numbers stand for the decimals they were written as: 0.1, not 0.10000000149
            object.__setattr__(self, name, float(str(value)) if isinstance(value, np.floating) else float(value))
        if self.cores is not None and (self.cores < 1 or self.cores != int(self.cores)):
            raise BudgetError(f"budget: cores is {self.cores:g}; allowed is a whole number from 1")
        if "density" in given and "sparsity" in given:
            raise BudgetError("budget: density and sparsity are both given; they are 1 - each other, so give one")
        if self.density is not None and not 0 < self.density <= 1:
            raise BudgetError(f"budget: density is {self.density:g}; allowed is above 0 and at most 1, the share kept")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise BudgetError(f"budget: sparsity is {self.sparsity:g}; allowed is 0 to below 1, the share removed")
        for name in ("synapses", "sops", "sops_per_step", "memory_bits", "energy_pj"):
            if name in given and given[name] <= 0:
                raise BudgetError(f"budget: {name} is {given[name]:g}; allowed is a number above 0")

    @property
    def given(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    def with_limits(self, limits: Mapping[str, float]) -> Budget:
        """Return the budget in which those limits replace the ones given."""
        return Budget(**{**self.given, **limits}, profile=self.profile, energy_set=self.energy_set)

    @property
    def measured(self) -> dict[str, float]:
        """The limits that only a run of the network can tell, by name."""
        return {name: value for name, value in self.given.items() if name in MEASURED}


BUDGETS = tuple(field.name for field in fields(Budget) if field.name not in ("profile", "energy_set"))
# What follows from spikes: a plan predicts it, a run of the pruned network decides it.
MEASURED = ("sops", "sops_per_step", "energy_pj")


def parse_budget(texts: Iterable[str], profile: Profile | None = None) -> Budget:
    """Read budgets as the command line gives them, ``["density=0.1", "sops=2e5"]``; ``profile`` is the chip of them.

    Raises:
        BudgetError: A text is not ``name=number``, names no budget, or names one twice.
    """
    values: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        name = name.strip()
        if not equals or name not in BUDGETS:
            raise BudgetError(f"budget: {text!r}; allowed is NAME=NUMBER with NAME one of {', '.join(BUDGETS)}")
        if name in values:
            raise BudgetError(f"budget: {name} is given twice; give it once")
        try:
            values[name] = float(number)
        except ValueError as error:
            raise BudgetError(f"budget: {text!r}: {number!r} is not a number; write it as 0.1 or 2e5") from error
    return Budget(**values, profile=profile, energy_set="")
