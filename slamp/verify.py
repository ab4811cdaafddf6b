"""`verify`: does the exported artifact spike exactly as the graph it was written from?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from slamp.arithmetic import FixedPoint
from slamp.causality import causal_groups
from slamp.compare import Comparison, Difference, compare, shifted
from slamp.diagnose import find_parameter_difference, probable_cause
from slamp.errors import ArtifactError, RasterError
from slamp.exporting import Exporter, find_exporter
from slamp.fixed_conventions import fixed_cause
from slamp.graph import SpikingGraph
from slamp.judge import judge_sample, spikes_of
from slamp.manifest import Artifact, open_artifact, update_manifest
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.rounding import output_bound
from slamp.simulate import Recording, Trace, output_neuron, simulate
from slamp.verification import VERDICTS, Verification

MAX_TIES = 100
DIAGNOSED_SAMPLES = 8

Runner = Callable[[Artifact, SpikeRaster], Recording]


@runtime_checkable
class GoldenExporter(Protocol):
    """An exporter that leaves an input raster beside its files."""

    def read_golden(self, artifact: Artifact) -> SpikeRaster:
        """Return the golden input of an artifact; raises `slamp.errors.ArtifactError` if there is none."""


@runtime_checkable
class NamingExporter(Protocol):
    """An exporter whose runtime depends on the artifact."""

    def runtime_for(self, artifact: Artifact) -> str:
        """Name what replays an artifact."""


def verify(
    artifact: Artifact,
    graph: SpikingGraph,
    samples: SpikeRaster | Iterable[SpikeRaster],
    *,
    batch: int = 64,
    runner: Runner | None = None,
    runner_name: str = "",
    progress: bool = False,
    record: bool = True,
) -> Verification:
    """Replay an artifact and compare it, cell for cell, with the graph.

    Args:
        artifact: What an exporter wrote.
        graph: The graph it was written from.
        samples: A raster, or rasters one after another; at most ``batch`` samples are in memory at once.
        batch: Samples per run.
        runner: Replays the artifact in place of its exporter, such as a foreign simulator.
        runner_name: What to call the runner in the result.
        progress: Show a progress bar.
        record: Write the result into the manifest, entry "verification", unless one on more samples stands there and
            nothing speaks against it.

    Raises:
        ArtifactError: The graph is not the one the artifact was written from, or a file cannot be read.
        RasterError: There are no samples, or they do not fit the graph.
        ExporterNotFoundError, MissingDependencyError: The artifact's exporter is not there.
    """
    if batch < 1:
        raise RasterError(f"verify: batch is {batch}; allowed is a positive number of samples")
    stated = artifact.manifest["graph_hash"]
    if graph.hash != stated:
        raise ArtifactError(
            f"{artifact.directory}: written from graph {stated[:12]}, asked about graph {graph.hash[:12]}; "
            "export this graph, or verify with Artifact.graph()"
        )
    exporter = None if runner else find_exporter(artifact.target)()
    replay = exporter.replay if exporter else runner
    assert replay is not None
    tally = _Tally(tuple(artifact.altered_files()))
    digest = hashlib.sha256()  # which samples the certificate speaks of
    rasters = [samples] if isinstance(samples, SpikeRaster) else samples
    with ticker("verifying", samples.batch if isinstance(samples, SpikeRaster) else None, shown=progress) as advance:
        for raster in rasters:
            for piece in raster.batches(batch):
                digest.update(piece.numpy().tobytes())
                reference = simulate(graph, piece, record="all" if in_integers(graph) else "spikes")
                replayed = replay(artifact, _padded(piece, artifact.latency_steps))
                _judge_batch(tally, _Batch(artifact, graph, piece, reference, replayed))
                advance(piece.batch)
    if not tally.verdicts:
        raise RasterError("verify: there are no samples; give at least one raster")
    file_difference = ""
    if exporter is not None and (tally.altered or tally.first_difference):
        file_difference = find_parameter_difference(artifact, graph, exporter)
    name = runner_name or (runtime_of(exporter, artifact) if exporter else "runner")
    result = tally.result(graph, artifact.latency_steps, name, file_difference)
    if record and not _weaker(result, artifact.manifest["verification"]):
        entry = {**result.to_json(), "samples_sha256": digest.hexdigest()}
        update_manifest(artifact.directory, {"verification": entry})
    return result


def runtime_of(exporter: Exporter, artifact: Artifact) -> str:
    """Name what an exporter replays an artifact with: what it says itself, else its class variable ``runtime``."""
    if isinstance(exporter, NamingExporter):
        return exporter.runtime_for(artifact)
    return str(vars(type(exporter)).get("runtime", f"{exporter.name} exporter"))


def _weaker(result: Verification, recorded: object) -> bool:
    """True if a result adds nothing to the one on record: it finds no difference, on fewer samples or in silence."""
    if not isinstance(recorded, dict) or not recorded.get("equivalent") or result.verdict == "different":
        return False
    fewer = result.samples < int(recorded.get("samples", 0)) or result.spikes < int(recorded.get("spikes", 0))
    return result.verdict == "silent" or fewer


def verify_directory(
    directory: str | Path,
    samples: SpikeRaster | None = None,
    *,
    batch: int = 64,
    runner: Runner | None = None,
    runner_name: str = "",
    progress: bool = False,
    record: bool = True,
) -> Verification:
    """Verify an artifact from its manifest alone.

    Args:
        directory: Where ``manifest.json`` lies.
        samples: Inputs; None for the golden input beside the files.
        batch: Samples per run.
        runner: Replays the artifact in place of its exporter, such as a foreign simulator.
        runner_name: What to call the runner in the result.
        progress: Show a progress bar.
        record: Write the result into the manifest.

    Raises:
        ArtifactError: The manifest or a file is missing or damaged, or there are neither samples nor a golden input.
    """
    artifact = open_artifact(directory)
    graph = artifact.graph()
    return verify(
        artifact,
        graph,
        golden_input(artifact) if samples is None else samples,
        batch=batch,
        runner=runner,
        runner_name=runner_name,
        progress=progress,
        record=record,
    )


def golden_input(artifact: Artifact) -> SpikeRaster:
    """Return the input raster an exporter left beside its files.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    exporter = find_exporter(artifact.target)()
    if not isinstance(exporter, GoldenExporter):
        raise ArtifactError(
            f"{artifact.directory}: exporter {artifact.target!r} leaves no golden input; name a samples file"
        )
    return exporter.read_golden(artifact)


@dataclass(frozen=True, eq=False)
class _Batch:
    """One batch, run both ways."""

    artifact: Artifact
    graph: SpikingGraph
    inputs: SpikeRaster
    reference: Recording
    replayed: Recording


@dataclass
class _Tally:
    """What the batches so far have shown."""

    altered: tuple[str, ...]
    verdicts: list[str] = field(default_factory=list)
    steps: int = 0
    cells: int = 0
    spikes: dict[str, int] = field(default_factory=dict)
    spike_cells: dict[str, int] = field(default_factory=dict)
    first_difference: Difference | None = None
    ties: list[Difference] = field(default_factory=list)
    unobserved: dict[str, None] = field(default_factory=dict)
    readout_error: float | None = None
    readout_bound: float | None = None

    def result(self, graph: SpikingGraph, latency_steps: int, runner: str, file_difference: str) -> Verification:
        """Return the verification."""
        first = self.first_difference
        if first is not None:
            first = replace(first, cause=_cause(self.altered, file_difference, first.cause))
        counts = {verdict: self.verdicts.count(verdict) for verdict in VERDICTS}
        silent = tuple(name for name in graph.spiking if not self.spikes.get(name))
        verdict = "tie" if counts["tie"] else "identical"
        if silent or not any(self.spikes.values()):
            verdict = "silent"
        if counts["different"] or self.altered:
            verdict = "different"
        return Verification(
            verdict=verdict,
            verdicts=tuple(self.verdicts),
            counts=counts,
            samples=len(self.verdicts),
            steps=self.steps,
            cells=self.cells,
            spikes=sum(self.spikes.values()),
            rates={name: self.spikes[name] / self.spike_cells[name] for name in graph.spiking},
            silent_layers=silent,
            first_difference=first,
            ties=tuple(self.ties),
            altered_files=self.altered,
            file_difference=file_difference,
            unobserved_layers=tuple(self.unobserved),
            latency_steps=latency_steps,
            runner=runner,
            max_readout_error=self.readout_error,
            readout_bound=self.readout_bound,
            graph_hash=graph.hash,
        )


def _padded(raster: SpikeRaster, steps: int) -> SpikeRaster:
    """Append empty steps, so that a target that answers later answers every step."""
    if steps == 0:
        return raster
    empty = torch.zeros_like(raster.data[:1]).expand(steps, *raster.data.shape[1:])
    return SpikeRaster(torch.cat([raster.data, empty]), raster.dt, raster.labels, kind=raster.kind)


def _judge_batch(tally: _Tally, batch: _Batch) -> None:
    latency = batch.artifact.latency_steps
    integers = in_integers(batch.graph)
    groups = causal_groups(batch.graph)
    comparison = compare(
        batch.reference,
        batch.replayed,
        latency_steps=latency,
        order=[name for group in groups for name in group],
        cycles=[group for group in groups if len(group) > 1],
        states=integers,
    )
    tally.steps = max(tally.steps, comparison.steps)
    tally.cells += comparison.cells
    tally.unobserved.update(dict.fromkeys(comparison.unobserved))
    active = _count_spikes(tally, batch)
    firsts = list(comparison.first_differences)
    if comparison.readout_errors and integers:
        _compare_whole_readout(tally, batch, comparison, firsts)
    elif comparison.readout_errors:
        _compare_readout(tally, batch, comparison, firsts)
    offset = len(tally.verdicts)
    for sample, first in enumerate(firsts):
        if first is None:
            tally.verdicts.append("identical" if active[sample] else "silent")
            continue
        if integers:  # fixed point knows no ties
            verdict, difference = "different", first
        else:
            verdict, difference = judge_sample(
                batch.graph, batch.inputs, batch.reference, batch.replayed, comparison, first
            )
        tally.verdicts.append(verdict)
        if verdict == "different" and tally.first_difference is None:
            known = _fixed_convention if integers else _convention
            difference = replace(difference, cause=difference.cause or known(batch, comparison, difference))
            tally.first_difference = replace(difference, sample=offset + sample)
        if verdict == "tie" and len(tally.ties) < MAX_TIES:
            tally.ties.append(replace(difference, sample=offset + sample))


def _count_spikes(tally: _Tally, batch: _Batch) -> list[bool]:
    """Add the graph's spikes to the tally; return for each sample whether any layer spiked."""
    active = torch.zeros(batch.inputs.batch, dtype=torch.bool)
    for name in batch.graph.spiking:
        spikes = batch.reference[name].spikes
        assert spikes is not None
        tally.spikes[name] = tally.spikes.get(name, 0) + int(spikes.sum())
        tally.spike_cells[name] = tally.spike_cells.get(name, 0) + spikes.numel()
        active |= spikes.transpose(0, 1).flatten(1).any(1).cpu()
    return [bool(value) for value in active]


def in_integers(graph: SpikingGraph) -> bool:
    """True for a graph in fixed point."""
    return isinstance(graph.arithmetic, FixedPoint)


def _compare_whole_readout(
    tally: _Tally, batch: _Batch, comparison: Comparison, firsts: list[Difference | None]
) -> None:
    """Hold an output of whole numbers against the graph's: every one must agree."""
    steps, latency = comparison.steps, batch.artifact.latency_steps
    expected = batch.reference.output.data[:steps].cpu().double()
    found = shifted(batch.replayed.output.data, latency, steps).cpu().double()
    for sample, error in enumerate(comparison.readout_errors):
        tally.readout_error = max(tally.readout_error or 0.0, error)
        if error and firsts[sample] is None:
            step, *neuron = (int(index) for index in (expected != found)[:, sample].nonzero()[0])
            cell = (step, sample, *neuron)
            at = (batch.graph.output, step, sample, tuple(neuron))
            firsts[sample] = Difference(*at, float(expected[cell]), float(found[cell]))


def _compare_readout(tally: _Tally, batch: _Batch, comparison: Comparison, firsts: list[Difference | None]) -> None:
    """Compare an analog output by value, where spikes agree; fill ``firsts`` where it is out of bound."""
    steps, latency = comparison.steps, batch.artifact.latency_steps
    for sample, error in enumerate(comparison.readout_errors):
        if firsts[sample] is not None:
            continue
        tally.readout_error = max(tally.readout_error or 0.0, error)
        if error == 0.0:
            continue
        bounded = output_bound(
            batch.graph, batch.inputs.samples(sample, sample + 1), spikes_of(batch.reference, sample)
        )
        spread = bounded.spread[:steps, 0]
        tally.readout_bound = max(tally.readout_bound or 0.0, float(spread.max()))
        expected = batch.reference.output.data[:steps, sample].cpu().double()
        found = shifted(batch.replayed.output.data, latency, steps)[:, sample].cpu().double()
        beyond = ~((expected - found).abs() <= spread)  # a NaN is beyond any bound
        if bool(beyond.any()):
            step, *neuron = (int(index) for index in beyond.nonzero()[0])
            cell = (step, *neuron)
            firsts[sample] = Difference(
                batch.graph.output,
                step,
                sample,
                tuple(neuron),
                float(expected[cell]),
                float(found[cell]),
                membrane=float(bounded.value[(step, 0, *neuron)]),
                bound=float(spread[cell]),
            )


def _cause(altered: Sequence[str], file_difference: str, found: str) -> str:
    """Say what is known about the cause of the first difference, strongest evidence first."""
    known = [f"file altered since the export: {', '.join(altered)}"] if altered else []
    known += [text for text in (file_difference, found) if text]
    if not (file_difference or found):
        known.append(
            "unknown; no known wrong convention gives these spikes: look for a wrong parameter of this layer or of the "
            "weights before it"
        )
    return "; ".join(known)


def _convention(batch: _Batch, comparison: Comparison, difference: Difference) -> str:
    """Look for a wrong convention in the samples of the batch that differ in the same layer first."""
    graph, layer = batch.graph, difference.layer
    trace = batch.replayed.traces.get(layer)
    if trace is not None and trace.spikes is not None:
        found, compared = trace.spikes, layer
    elif layer == output_neuron(graph) and batch.replayed.output.is_spikes:
        output = batch.replayed.output
        found, compared = output.data.reshape(output.steps, output.batch, *graph.shapes[layer]), graph.output
    else:
        return ""
    firsts = comparison.first_differences
    chosen = _alike(firsts, compared, difference.sample)
    inputs = SpikeRaster(batch.inputs.data[:, chosen], batch.inputs.dt, kind=batch.inputs.kind)
    spikes = {
        name: trace.spikes[:, chosen] for name, trace in batch.reference.traces.items() if trace.spikes is not None
    }
    latency, steps = batch.artifact.latency_steps, comparison.steps
    heard = {
        name: shifted(trace.spikes, latency, steps)[:, chosen]
        for name, trace in batch.replayed.traces.items()
        if trace.spikes is not None
    }
    replayed = shifted(found, latency, steps)[:, chosen]
    return probable_cause(graph, layer, inputs, spikes, replayed, heard)


def _alike(firsts: Sequence[Difference | None], layer: str, least: int) -> list[int]:
    """Return some samples that differ in a layer first, from sample ``least`` on."""
    same = [sample for sample, first in enumerate(firsts) if first is not None and first.layer == layer]
    return [sample for sample in same if sample >= least][:DIAGNOSED_SAMPLES]


def _fixed_convention(batch: _Batch, comparison: Comparison, difference: Difference) -> str:
    """Look for a wrong integer convention in the samples of the batch that differ in the same layer first."""
    graph, latency, steps = batch.graph, batch.artifact.latency_steps, comparison.steps
    chosen = _alike(comparison.first_differences, difference.layer, difference.sample) or [difference.sample]
    layer = output_neuron(graph) if difference.layer == graph.output else difference.layer
    if layer is None:
        return ""
    trace = batch.replayed.traces.get(layer)
    if trace is None:  # only the output is shown
        data = batch.replayed.output.data
        data = data.reshape(*data.shape[:2], *graph.shapes[layer])
        trace = Trace(spikes=data) if batch.replayed.output.is_spikes else Trace(v=data)
    shown = Trace(*(_chosen(part, latency, steps, chosen) for part in (trace.spikes, trace.v, trace.i)))
    expected = {
        name: Trace(*(_chosen(part, 0, steps, chosen) for part in (known.spikes, known.v, known.i)))
        for name, known in batch.reference.traces.items()
    }
    inputs = SpikeRaster(batch.inputs.data[:steps, chosen], batch.inputs.dt, kind=batch.inputs.kind)
    return fixed_cause(graph, layer, inputs, expected, shown)


def _chosen(part: torch.Tensor | None, latency: int, steps: int, samples: list[int]) -> torch.Tensor | None:
    return None if part is None else shifted(part, latency, steps)[:, samples].cpu()
