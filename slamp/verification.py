"""The result of a verification: a verdict and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slamp.compare import Difference
from slamp.errors import NotEquivalentError

VERDICTS = ("identical", "tie", "different", "silent")


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        verdict: "different" if any sample is or a file was altered; else "silent" if a spiking layer never fired, which
            proves nothing; else "tie" if a sample is one; else "identical".
        verdicts: The verdict of each sample; "silent" is one in which no layer of the graph spikes.
        counts: Samples per verdict.
        samples: Number of samples.
        steps: Time steps per sample (of the longest, if they vary).
        cells: Spike cells (step, sample, neuron) compared.
        spikes: Spikes of the graph's spiking layers.
        rates: Share of cells that spike, by spiking layer.
        silent_layers: Spiking layers of the graph without a spike in the whole run.
        first_difference: In the first sample that is "different"; None if there is none.
        ties: The first differing cells of tie samples, at most 100 of them; ``counts["tie"]`` counts all.
        altered_files: Files whose content is not the one the manifest states.
        file_difference: First parameter the artifact's file states otherwise than the graph; empty if none was found.
            Looked for where a file was altered or a cell differs.
        unobserved_layers: Spiking layers the replay does not show.
        latency_steps: Steps by which the target answers later.
        runner: What replayed the artifact.
        max_readout_error: Largest ``|graph - replay|`` of an analog output; None if the output spikes.
        readout_bound: Largest rounding bound among the samples whose readout was not equal bit for bit; None if none.
        graph_hash: Hash of the graph.
    """

    verdict: str
    verdicts: tuple[str, ...]
    counts: Mapping[str, int]
    samples: int
    steps: int
    cells: int
    spikes: int
    rates: Mapping[str, float]
    silent_layers: tuple[str, ...]
    first_difference: Difference | None
    ties: tuple[Difference, ...]
    altered_files: tuple[str, ...]
    file_difference: str
    unobserved_layers: tuple[str, ...]
    latency_steps: int
    runner: str
    max_readout_error: float | None
    readout_bound: float | None
    graph_hash: str

    @property
    def equivalent(self) -> bool:
        """True for "identical" and "tie"."""
        return self.verdict in ("identical", "tie")

    def sentence(self) -> str:
        """Return the verdict as readable text."""
        text = (
            f"{self.verdict}: {self.samples} samples, {self.steps} steps, {self.cells:,} cells, "
            f"{self.spikes:,} spikes, replayed by {self.runner}"
        )
        if self.counts["tie"]:
            text += f"; {self.counts['tie']} ties, the first: {self.ties[0].sentence()}"
        if self.silent_layers:
            text += f"; no spike in {', '.join(self.silent_layers)}: no evidence, give samples that make it fire"
        if self.unobserved_layers:
            text += f"; not observed in the replay: {', '.join(self.unobserved_layers)}"
        if self.altered_files:
            text += f"; altered since the export: {', '.join(self.altered_files)}"
        if self.first_difference:
            return f"{text}; {self.first_difference.sentence()}"
        return f"{text}; {self.file_difference}" if self.file_difference else text

    def raise_if_different(self) -> None:
        """Raise `NotEquivalentError` unless the artifact is proven equivalent ("different" and "silent" are not)."""
        if not self.equivalent:
            raise NotEquivalentError(self.sentence())

    def to_json(self) -> dict[str, Any]:
        """Return everything but the verdict of each single sample, ready for JSON."""
        error = self.max_readout_error
        return {
            "verdict": self.verdict,
            "equivalent": self.equivalent,
            "counts": dict(self.counts),
            "samples": self.samples,
            "steps": self.steps,
            "cells": self.cells,
            "spikes": self.spikes,
            "rates": dict(self.rates),
            "silent_layers": list(self.silent_layers),
            "first_difference": None if self.first_difference is None else self.first_difference.to_json(),
            "ties": [tie.to_json() for tie in self.ties],
            "altered_files": list(self.altered_files),
            "file_difference": self.file_difference,
            "unobserved_layers": list(self.unobserved_layers),
            "latency_steps": self.latency_steps,
            "runner": self.runner,
            "max_readout_error": str(error) if error == float("inf") else error,
            "readout_bound": self.readout_bound,
            "graph_hash": self.graph_hash,
        }
