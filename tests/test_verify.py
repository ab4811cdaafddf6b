from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from slamp.errors import ArtifactError, NotEquivalentError, RasterError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact, open_artifact, read_manifest, staged_artifact
from slamp.nodes import Affine, Linear, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, Trace, simulate
from slamp.verification import Verification
from slamp.verify import verify, verify_directory
from verify_networks import (
    DT,
    STEPS,
    chain,
    changed,
    conv_graph,
    dense_graph,
    lif,
    raster,
    reference_run,
    with_entry,
)

Runner = Callable[[Artifact, SpikeRaster], Recording]


class FakeExporter:
    """Writes nothing but the graph; replays the graph in ``replayed`` and reads files as that graph."""

    name = "fake"
    replayed: SpikingGraph
    inputs: SpikeRaster

    def write(self, graph: SpikingGraph, directory: Path) -> Artifact:
        return write(graph, directory)

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        return simulate(self.replayed, inputs, record="spikes")

    def read(self, path: Path) -> SpikingGraph:
        return self.replayed

    def read_golden(self, artifact: Artifact) -> SpikeRaster:
        return self.inputs


def write(graph: SpikingGraph, directory: Path, *, latency_steps: int = 0) -> Artifact:
    with staged_artifact(graph, directory, target="fake", options={}, latency_steps=latency_steps) as staged:
        (staged.directory / "network.bin").write_bytes(b"network")
        staged.roles["network"] = "network.bin"
    return open_artifact(directory)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> type[FakeExporter]:
    class Installed(FakeExporter):
        pass

    monkeypatch.setattr(import_module("slamp.verify"), "find_exporter", lambda name: Installed)
    return Installed


def running(graph: SpikingGraph) -> Runner:
    return lambda artifact, inputs: simulate(graph, inputs, record="spikes")


def judged(graph: SpikingGraph, runner: Runner, directory: Path, **options: object) -> Verification:
    inputs = raster(graph)
    reference_run(graph, inputs)
    return verify(write(graph, directory), graph, inputs, runner=runner, **options)  # type: ignore[arg-type]  # keywords


def first_cell(graph: SpikingGraph, other: SpikingGraph, layer: str) -> tuple[int, int, tuple[int, ...]]:
    """Brute force: (sample, step, neuron) of the first differing cell, sample before step before neuron."""
    inputs = raster(graph)
    a, b = (simulate(g, inputs, record="spikes")[layer].spikes for g in (graph, other))
    for sample in range(inputs.batch):
        for step in range(inputs.steps):
            for neuron in np.ndindex(*a.shape[2:]):
                if a[(step, sample, *neuron)] != b[(step, sample, *neuron)]:
                    return sample, step, neuron
    raise AssertionError("the sabotage changes no spike, so it tests nothing")


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_identical_artifact_is_certified(tmp_path: Path, batch: int) -> None:
    graph = conv_graph()
    result = judged(graph, running(graph), tmp_path / "out", batch=batch, runner_name="simulator")
    assert result.verdict == "identical"
    assert result.equivalent
    assert result.counts == {"identical": 6, "tie": 0, "different": 0, "silent": 0}
    assert result.cells == STEPS * 6 * (108 + 12 + 4 + 4)
    assert result.spikes == reference_run(graph, raster(graph)).spike_count
    assert set(result.rates) == {"lif1", "lif2", "lif3"}
    assert result.max_readout_error is None
    result.raise_if_different()
    stored = read_manifest(tmp_path / "out")["verification"]
    assert len(stored.pop("samples_sha256")) == 64
    assert stored == json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert stored["runner"] == "simulator"
    assert result.sentence().startswith("identical: 6 samples, 40 steps, 30,720 cells")


def conv_weight(graph: SpikingGraph) -> np.ndarray:
    node = graph.nodes["fc1"]
    assert isinstance(node, Affine)
    return with_entry(node.weight, (3, 5), float(node.weight[3, 5]) + 1.0)


SABOTAGES: dict[str, tuple[str, Callable[[SpikingGraph], SpikingGraph], str, str]] = {
    # name: (first layer that differs, sabotage, cause without the file, cause with the file)
    "weight": (
        "lif2",
        lambda graph: changed(graph, "fc1", weight=conv_weight(graph)),
        "a parameter of neuron 3",
        "fc1: weight[3, 5] is ",
    ),
    "threshold": (
        "lif1",
        lambda graph: changed(graph, "lif1", v_threshold=uniform(0.45, (3, 6, 6))),
        "threshold: the spikes fit one from 0.4",
        "lif1: v_threshold[0, 0, 0] is 0.449999988 in the file, 0.5 in the graph",
    ),
    "decay": (
        "lif2",
        lambda graph: changed(graph, "lif2", decay_mem=uniform(1 - np.exp(-0.1), (12,))),
        "decay: exponential, decay_mem",
        "lif2: decay_mem[0] is 0.0951",
    ),
    "reset": (
        "lif2",
        lambda graph: changed(graph, "lif2", reset="subtract"),
        "reset: by subtraction instead of by value",
        "lif2: reset is 'subtract' in the file, 'value' in the graph",
    ),
    "bias": (
        "lif3",
        lambda graph: graph.with_nodes({"fc2": Linear(graph.nodes["fc2"].weight)}),  # type: ignore[union-attr]  # Affine
        "bias: dropped",
        "fc2: is Linear in the file, Affine in the graph; the bias is missing in the file",
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotage_is_found_and_named_with_layer_step_and_neuron(name: str, tmp_path: Path) -> None:
    layer, sabotage, cause, _ = SABOTAGES[name]
    graph = conv_graph()
    result = judged(graph, running(sabotage(graph)), tmp_path / "out")
    assert result.verdict == "different"
    assert not result.equivalent
    first = result.first_difference
    assert first is not None
    assert first.layer == layer
    assert (first.sample, first.step, first.neuron) == first_cell(graph, sabotage(graph), layer)
    assert cause in first.cause
    assert first.margin is not None
    assert first.bound is not None
    assert abs(first.margin) > first.bound
    with pytest.raises(NotEquivalentError, match=rf"different: .*layer {layer}, step {first.step}, sample"):
        result.raise_if_different()


@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotaged_file_is_found_through_its_exporter(name: str, tmp_path: Path, exporter: type[FakeExporter]) -> None:
    layer, sabotage, convention, parameter = SABOTAGES[name]
    graph = conv_graph()
    exporter.replayed = sabotage(graph)
    result = verify(write(graph, tmp_path / "out"), graph, raster(graph))
    assert result.verdict == "different"
    assert result.runner == "fake exporter"
    first = result.first_difference
    assert first is not None
    assert first.layer == layer
    assert first.cause.startswith(parameter)
    assert convention in first.cause


def test_delay_of_one_step_is_found_and_named(tmp_path: Path) -> None:
    graph = conv_graph()

    def late(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        recording = simulate(graph, inputs, record="spikes")
        return delayed(recording, 1, only="lif2")

    first = judged(graph, late, tmp_path / "out").first_difference
    assert first is not None
    assert first.layer == "lif2"
    assert first.cause.startswith("latency: the layer answers 1 step late")
    spikes = simulate(graph, raster(graph), record="spikes")["lif2"].spikes[:, 0]
    assert first.step == int(spikes.any(1).nonzero()[0])
    assert first.neuron == (int(spikes[first.step].nonzero()[0]),)


def delayed(recording: Recording, steps: int, only: str = "") -> Recording:
    def late(spikes: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(spikes[:steps]), spikes])[: spikes.shape[0]]

    traces = {
        name: Trace(spikes=late(trace.spikes)) if only in ("", name) else trace
        for name, trace in recording.traces.items()
        if trace.spikes is not None
    }
    output = recording.output if only else SpikeRaster(late(recording.output.data), kind="spikes")
    return Recording(output, traces)


def test_stated_latency_is_taken_out_and_every_step_is_compared(tmp_path: Path) -> None:
    graph = conv_graph()
    inputs = raster(graph)
    artifact = write(graph, tmp_path / "out", latency_steps=2)

    def late(artifact: Artifact, padded: SpikeRaster) -> Recording:
        assert padded.steps == STEPS + 2
        return delayed(simulate(graph, padded, record="spikes"), 2)

    result = verify(artifact, graph, inputs, runner=late)
    assert result.verdict == "identical"
    assert result.steps == STEPS
    assert result.latency_steps == 2
    early = verify(artifact, graph, inputs, runner=running(graph))
    assert early.verdict == "different"
    assert early.first_difference is not None
    assert "2 steps early" in early.first_difference.cause


def test_the_certificate_is_not_replaced_by_weaker_evidence(tmp_path: Path) -> None:
    graph = conv_graph()
    artifact, inputs = write(graph, tmp_path / "out"), raster(graph)
    verify(artifact, graph, inputs, runner=running(graph))
    recorded = artifact.manifest["verification"]
    assert recorded["samples_sha256"] == hashlib.sha256(inputs.numpy().tobytes()).hexdigest()
    assert verify(artifact, graph, inputs.samples(0, 2), runner=running(graph)).verdict == "identical"
    assert artifact.manifest["verification"] == recorded
    empty = SpikeRaster(torch.zeros_like(inputs.data), DT)
    quiet = changed(graph, "conv", bias=uniform(-1.0, (3,)))
    verify(artifact, graph, empty, runner=running(graph))
    assert artifact.manifest["verification"]["samples"] == inputs.batch
    verify(artifact, graph, inputs.samples(0, 2), runner=running(quiet))
    assert artifact.manifest["verification"]["verdict"] == "different"


# --- ties ----------------------------------------------------------------------------------------------------------


def tie_graph(margin: float) -> SpikingGraph:
    """Halves everywhere, so float32 is exact; the threshold lies ``margin`` below a membrane that occurs."""
    rng = np.random.default_rng(9)
    return chain(
        {
            "fc1": Linear(frozen_array(rng.integers(-2, 3, (10, 12)) / 2)),
            "lif1": lif((10,), decay_mem=0.5, v_leak=0.0, v_reset=0.0, v_threshold=0.75 - margin),
            "fc2": Linear(frozen_array(rng.integers(-1, 4, (4, 10)) / 2)),
            "lif2": lif((4,), decay_mem=0.5, v_leak=0.0, v_reset=0.0, v_threshold=0.5 + 2**-12),
        },
        features=(12,),
        out=(4,),
    )


def nudged(graph: SpikingGraph, amount: float) -> SpikingGraph:
    """Move the threshold of the first layer, so that only membranes close to it spike differently."""
    return changed(graph, "lif1", v_threshold=frozen_array(graph.nodes["lif1"].v_threshold + np.float32(amount)))  # type: ignore[union-attr]  # a LIF


@pytest.mark.parametrize(("margin", "verdict"), [(2.0**-22, "tie"), (1e-3, "different")])
def test_cell_within_rounding_is_a_tie_and_one_farther_off_is_not(margin: float, verdict: str, tmp_path: Path) -> None:
    graph = tie_graph(margin)
    result = judged(graph, running(nudged(graph, 2 * margin)), tmp_path / "out")
    assert result.verdict == verdict
    assert result.counts[verdict] > 0
    difference = result.ties[0] if verdict == "tie" else result.first_difference
    assert difference is not None
    assert difference.layer == "lif1"
    assert difference.membrane == 0.75
    assert difference.margin == pytest.approx(margin, rel=1e-3)
    assert difference.bound is not None
    assert difference.bound < 1e-4
    assert result.equivalent is (verdict == "tie")
    if verdict == "tie":
        assert difference.cause.startswith("tie: ")
        assert result.first_difference is None
        result.raise_if_different()
        assert f"{result.counts['tie']} ties, the first: layer lif1" in result.sentence()


def test_defect_after_a_tie_in_the_same_sample_is_still_different(tmp_path: Path) -> None:
    graph = tie_graph(2.0**-22)
    tied = nudged(graph, 2.0**-21)
    worse = changed(tied, "lif2", v_threshold=uniform(0.4, (4,)))
    result = judged(graph, running(worse), tmp_path / "out")
    assert result.verdict == "different"
    first = result.first_difference
    assert first is not None
    causes = [first.cause] + [tie.cause for tie in result.ties]
    assert result.counts["tie"] == 0, causes
    alone = raster(graph).samples(*_tied_sample(graph, tied))
    only = verify(write(graph, tmp_path / "alone"), graph, alone, runner=running(worse))
    assert only.first_difference is not None
    assert only.first_difference.layer == "lif2"
    assert "after a tie earlier in this sample" in only.first_difference.cause


def _tied_sample(graph: SpikingGraph, tied: SpikingGraph) -> tuple[int, int]:
    inputs = raster(graph)
    a, b = (simulate(g, inputs, record="spikes")["lif1"].spikes for g in (graph, tied))
    sample = int((a != b).flatten(2).any(2).any(0).nonzero()[0])
    return sample, sample + 1


def test_wrong_output_after_a_tie_is_different(tmp_path: Path) -> None:
    graph = tie_graph(2.0**-22)
    tied = nudged(graph, 2.0**-21)

    def runner(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        recording = simulate(tied, inputs, record="spikes")
        return Recording(SpikeRaster(~recording.output.data, kind="spikes"), recording.traces)

    alone = raster(graph).samples(*_tied_sample(graph, tied))
    first = verify(write(graph, tmp_path / "out"), graph, alone, runner=runner).first_difference
    assert first is not None
    assert first.layer == "output"
    assert "do not explain this output" in first.cause


def test_tie_is_recognized_from_the_output_alone(tmp_path: Path) -> None:
    whole = tie_graph(2.0**-22)
    parts = {name: whole.nodes[name] for name in ("fc1", "lif1")}
    graph = chain(parts, features=(12,), out=(10,))

    def output_only(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        return Recording(simulate(nudged(graph, 2.0**-21), inputs).output)

    result = judged(graph, output_only, tmp_path / "out")
    assert result.verdict == "tie"
    assert result.ties[0].layer == "lif1"
    assert result.unobserved_layers == ("lif1",)


def test_a_tie_seen_in_the_output_alone_does_not_excuse_what_follows(tmp_path: Path) -> None:
    whole = tie_graph(2.0**-22)
    graph = chain({name: whole.nodes[name] for name in ("fc1", "lif1")}, features=(12,), out=(10,))
    tied = nudged(graph, 2.0**-21)
    start, stop = _tied_sample(graph, tied)

    def inverted_later(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        spikes, expected = (simulate(g, inputs).output.data.clone() for g in (tied, graph))
        first = int((spikes != expected).flatten(1).any(1).nonzero()[0])
        spikes[first + 1 :] = ~spikes[first + 1 :]
        return Recording(SpikeRaster(spikes, kind="spikes"))

    only = verify(write(graph, tmp_path / "out"), graph, raster(graph).samples(start, stop), runner=inverted_later)
    assert only.verdict == "different"
    assert only.first_difference is not None
    assert "after a tie earlier in this sample" in only.first_difference.cause
    assert "lif1 taken as in the graph" in only.first_difference.cause


def test_ties_are_listed_up_to_a_hundred_and_counted_in_full(tmp_path: Path) -> None:
    graph = tie_graph(2.0**-22)
    inputs = raster(graph, samples=130)
    reference_run(graph, inputs)
    result = verify(write(graph, tmp_path / "out"), graph, inputs, runner=running(nudged(graph, 2.0**-21)))
    assert result.counts["tie"] > 100
    assert len(result.ties) == 100
    assert result.ties[-1].sample > 64, "samples are counted over all batches"


# --- evidence ------------------------------------------------------------------------------------------------------


def test_silent_run_proves_nothing(tmp_path: Path) -> None:
    graph = dense_graph()
    silent = SpikeRaster(torch.zeros(STEPS, 3, 20, dtype=torch.bool), DT)
    dead = graph.with_nodes({"fc2": Linear(graph.nodes["fc2"].weight)})  # type: ignore[union-attr]  # without its bias
    result = verify(write(dead, tmp_path / "out"), dead, silent, runner=running(dead))
    assert result.verdict == "silent"
    assert result.verdicts == ("silent",) * 3
    assert result.silent_layers == ("lif1", "lif2")
    assert not result.equivalent
    with pytest.raises(NotEquivalentError, match=r"silent: .*no spike in lif1, lif2: no evidence"):
        result.raise_if_different()


def test_one_silent_layer_is_enough_to_prove_nothing(tmp_path: Path) -> None:
    graph = changed(dense_graph(), "lif2", v_threshold=uniform(1e6, (8,)))
    result = verify(write(graph, tmp_path / "out"), graph, raster(graph), runner=running(graph))
    assert result.verdict == "silent"
    assert result.silent_layers == ("lif2",)
    assert result.counts["identical"] == 6


def test_one_silent_sample_does_not_spoil_the_run(tmp_path: Path) -> None:
    graph = dense_graph()
    graph = graph.with_nodes({"fc2": Linear(graph.nodes["fc2"].weight)})  # type: ignore[union-attr]  # without its bias
    inputs = raster(graph)
    inputs.data[:, 2] = False
    result = verify(write(graph, tmp_path / "out"), graph, inputs, runner=running(graph))
    assert result.verdict == "identical"
    assert result.verdicts[2] == "silent"


def test_network_without_spiking_layers_is_silent(tmp_path: Path) -> None:
    graph = chain({"fc": Linear(frozen_array(np.ones((2, 3))))}, features=(3,), out=(2,))
    assert verify(write(graph, tmp_path / "out"), graph, raster(graph), runner=running(graph)).verdict == "silent"


def test_layers_the_replay_lacks_are_named(tmp_path: Path) -> None:
    graph = conv_graph()

    def output_only(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        return Recording(simulate(graph, inputs).output)

    result = judged(graph, output_only, tmp_path / "out")
    assert result.verdict == "identical"
    assert result.unobserved_layers == ("lif1", "lif2", "lif3")
    assert "not observed in the replay: lif1, lif2, lif3" in result.sentence()


def test_difference_seen_only_in_the_output_is_named_by_its_layer(tmp_path: Path) -> None:
    graph = conv_graph()
    other = changed(graph, "lif3", reset="subtract")

    def output_only(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        return Recording(simulate(other, inputs).output)

    first = judged(graph, output_only, tmp_path / "out").first_difference
    assert first is not None
    assert first.layer == "lif3"
    assert (first.sample, first.step, first.neuron) == first_cell(graph, other, "lif3")
    assert first.cause.startswith("reset: by subtraction")


def test_output_that_is_not_its_layers_spikes_is_different(tmp_path: Path) -> None:
    graph = conv_graph()

    def permuted(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        recording = simulate(graph, inputs, record="spikes")
        return Recording(SpikeRaster(recording.output.data.flip(2), kind="spikes"), recording.traces)

    first = judged(graph, permuted, tmp_path / "out").first_difference
    assert first is not None
    assert first.layer == "output"
    assert first.cause.startswith("output: its layer's spikes agree")


def test_unexplained_difference_says_so(tmp_path: Path) -> None:
    graph = dense_graph()

    def noise(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        spikes = torch.from_numpy(np.random.default_rng(0).random((STEPS, 6, 16)) < 0.2)
        return Recording(simulate(graph, inputs).output, {"lif1": Trace(spikes=spikes)})

    first = judged(graph, noise, tmp_path / "out").first_difference
    assert first is not None
    assert first.cause.startswith("unknown; no known wrong convention gives these spikes")


# --- analog readouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["LI", "CubaLI", "current"])
def test_readout_within_rounding_is_identical_and_beyond_it_is_different(readout: str, tmp_path: Path) -> None:
    graph = conv_graph(readout=readout)
    inputs = raster(graph)
    reference_run(graph, inputs)
    artifact = write(graph, tmp_path / "out")

    def off(amount: float) -> Runner:
        def runner(artifact: Artifact, inputs: SpikeRaster) -> Recording:
            recording = simulate(graph, inputs, record="spikes")
            data = recording.output.data.clone()
            data[7, 2, 1] += amount
            return Recording(SpikeRaster(data, kind="analog"), recording.traces)

        return runner

    exact = verify(artifact, graph, inputs, runner=off(0))
    assert exact.verdict == "identical"
    assert exact.max_readout_error == 0
    assert exact.readout_bound is None
    rounded = verify(artifact, graph, inputs, runner=off(2e-7))
    assert rounded.verdict == "identical"
    assert 0 < (rounded.max_readout_error or 0) <= (rounded.readout_bound or 0) < 2e-4
    wrong = verify(artifact, graph, inputs, runner=off(1e-3))
    assert wrong.verdict == "different"
    assert wrong.counts["different"] == 1
    first = wrong.first_difference
    assert first is not None
    assert (first.layer, first.step, first.sample, first.neuron) == ("output", 7, 2, (1,))
    assert first.cause.startswith("value: ")


def test_spikes_that_differ_come_before_the_readout_they_change(tmp_path: Path) -> None:
    graph = conv_graph(readout="LI")
    first = judged(graph, running(changed(graph, "lif2", reset="subtract")), tmp_path / "out").first_difference
    assert first is not None
    assert first.layer == "lif2"


def test_wrong_readout_decay_is_named_from_the_file(tmp_path: Path, exporter: type[FakeExporter]) -> None:
    graph = conv_graph(readout="LI")
    exporter.replayed = changed(graph, "readout", decay_mem=uniform(0.3, (4,)))
    first = verify(write(graph, tmp_path / "out"), graph, raster(graph)).first_difference
    assert first is not None
    assert first.cause.startswith("readout: decay_mem[0] is 0.300000012 in the file, 0.200000003 in the graph")


# --- artifacts -----------------------------------------------------------------------------------------------------


def test_altered_file_is_different_even_if_the_spikes_agree(tmp_path: Path) -> None:
    graph = conv_graph()
    artifact = write(graph, tmp_path / "out")
    (artifact.directory / "network.bin").write_bytes(b"Network")
    result = verify(artifact, graph, raster(graph), runner=running(graph))
    assert result.verdict == "different"
    assert result.counts["identical"] == 6
    assert result.altered_files == ("network.bin",)
    assert result.first_difference is None
    with pytest.raises(NotEquivalentError, match=r"altered since the export: network\.bin"):
        result.raise_if_different()


def test_altered_file_is_still_replayed_so_that_the_cell_is_named(tmp_path: Path) -> None:
    graph = conv_graph()
    artifact = write(graph, tmp_path / "out")
    (artifact.directory / "network.bin").write_bytes(b"Network")
    other = SABOTAGES["reset"][1](graph)
    first = verify(artifact, graph, raster(graph), runner=running(other)).first_difference
    assert first is not None
    assert first.layer == "lif2"
    assert first.cause.startswith("file altered since the export: network.bin; reset: by subtraction")


def test_another_graph_is_refused(tmp_path: Path) -> None:
    graph, other = dense_graph(0), dense_graph(1)
    artifact = write(graph, tmp_path / "out")
    with pytest.raises(ArtifactError, match="asked about graph"):
        verify(artifact, other, raster(graph), runner=running(graph))
    assert read_manifest(artifact.directory)["verification"] is None


def test_rasters_one_after_another_are_one_run(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = write(graph, tmp_path / "out")
    pieces = (raster(graph, seed) for seed in range(3))
    result = verify(artifact, graph, pieces, runner=running(graph), batch=4, progress=True, record=False)
    assert result.samples == 18
    assert result.verdict == "identical"
    assert read_manifest(artifact.directory)["verification"] is None, "record=False writes nothing"


def test_first_difference_counts_samples_over_all_batches(tmp_path: Path) -> None:
    graph = dense_graph()
    good, bad = raster(graph, 1), raster(graph, 2)
    other = changed(graph, "lif1", reset="subtract")
    seen: list[int] = []

    def later(artifact: Artifact, inputs: SpikeRaster) -> Recording:
        seen.append(inputs.batch)
        return simulate(graph if len(seen) == 1 else other, inputs, record="spikes")

    first = verify(write(graph, tmp_path / "out"), graph, [good, bad], runner=later).first_difference
    assert first is not None
    assert first.sample >= 6


def test_no_samples_and_no_batch_are_refused(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = write(graph, tmp_path / "out")
    with pytest.raises(RasterError, match="there are no samples"):
        verify(artifact, graph, [], runner=running(graph))
    with pytest.raises(RasterError, match="batch is 0"):
        verify(artifact, graph, raster(graph), runner=running(graph), batch=0)


def test_directory_is_verified_from_its_manifest_alone(tmp_path: Path, exporter: type[FakeExporter]) -> None:
    graph = dense_graph()
    exporter.replayed, exporter.inputs = graph, raster(graph)
    write(graph, tmp_path / "out")
    assert verify_directory(tmp_path / "out", raster(graph, 3)).samples == 6
    golden = verify_directory(tmp_path / "out", batch=2)
    assert golden.verdict == "identical"
    assert read_manifest(tmp_path / "out")["verification"]["verdict"] == "identical"
    exporter.replayed = changed(graph, "lif1", reset="subtract")
    assert verify_directory(tmp_path / "out").verdict == "different"


def test_directory_without_golden_input_needs_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        name = "fake"

        def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
            raise AssertionError("not reached")

    monkeypatch.setattr(import_module("slamp.verify"), "find_exporter", lambda name: Plain)
    write(dense_graph(), tmp_path / "out")
    with pytest.raises(ArtifactError, match="exporter 'fake' leaves no golden input; name a samples file"):
        verify_directory(tmp_path / "out")


def test_directory_whose_graph_was_replaced_is_refused(tmp_path: Path, exporter: type[FakeExporter]) -> None:
    graph = dense_graph()
    artifact = write(graph, tmp_path / "out")
    dense_graph(1).save(artifact.file("graph"))
    with pytest.raises(ArtifactError, match="the manifest states"):
        verify_directory(tmp_path / "out", raster(graph))


def test_verdict_is_plain_data() -> None:
    result = Verification(
        "identical", ("identical",), {}, 1, 1, 1, 1, {}, (), None, (), (), "", (), 0, "runner", None, None, "hash"
    )
    assert replace(result, verdict="silent").equivalent is False
