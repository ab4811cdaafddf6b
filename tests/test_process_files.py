"""Fixed-point graphs that no .net file holds, as Lava's processes: the file, the script, the real Lava."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slamp
from exporters.environments import run_child
from exporters.lava_lowering import lava_description, with_inputs
from exporters.process_files import (
    ProcessNetwork,
    process_differences,
    process_network,
    read_process_network,
    write_processes,
)
from exporters.process_script import process_script
from exporters.read_processes import read_processes
from exporters.to_lava import LavaExporter, reread
from exporters.witness_lava import environment_python, run_models
from feedback_networks import random_feedback
from lava_artifacts import check_reread, needs_lava
from slamp.cli import main
from slamp.errors import ArtifactError, MissingDependencyError, RasterError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact
from slamp.nodes import (
    Affine,
    Conv2d,
    CubaLI,
    Delay,
    Flatten,
    Input,
    Node,
    Output,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, cuba, linear, ones
from test_lava import differing_cells
from test_to_lava import conv, dense, samples, weights


def joined(nodes: dict[str, Node], *edges: str) -> SpikingGraph:
    """A fixed-point graph; edges are written "a b", from a to b."""
    pairs = tuple((first, second) for first, second in (edge.split(" ") for edge in edges))
    return SpikingGraph(nodes, pairs, DT, slamp.FixedPoint())


def steps(*late: int) -> Delay:
    return Delay(frozen_array(np.array(late)))


def skip() -> SpikingGraph:
    """A pruned chain of three layers and paths around its second; quotes in a name."""
    rng = np.random.default_rng(0)
    pruned = weights(rng, 9, 12) * (rng.random((9, 12)) < 0.2)
    return joined(
        {
            "input": Input((16,)),
            "a": linear(weights(rng, 12, 16)),
            "na": cuba((12,), du=2000, dv=400, vth=200),
            "b": linear(pruned),
            "n\"b'": cuba((9,), du=2500, dv=300, vth=60),
            "c": linear(weights(rng, 5, 9)),
            "around": linear(weights(rng, 5, 16) * (rng.random((5, 16)) < 0.3)),
            "beside": linear(weights(rng, 5, 12)),
            "nc": cuba((5,), du=3000, dv=300, vth=200),
            "output": Output((5,)),
        },
        *("input a", "a na", "na b", "b n\"b'", "n\"b' c", "c nc", "input around", "around nc", "na beside"),
        *("beside nc", "nc output"),
    )


def recurrent() -> SpikingGraph:
    """Recurrence, a slow way back, delays per source and per target, the output not in the last layer."""
    rng = np.random.default_rng(1)
    return joined(
        {
            "input": Input((10,)),
            "late": steps(*rng.integers(0, 20, 10)),
            "in": linear(weights(rng, 8, 10)),
            "last": Delay(uniform(1.0, (8,))),
            "rec": linear(weights(rng, 8, 8)),
            "na": cuba((8,), du=1500, dv=300, vth=150),
            "up": linear(weights(rng, 6, 8) / 4),
            "staggered": steps(*rng.integers(0, 9, 6)),
            "nb": cuba((6,), du=1500, dv=300, vth=30),
            "slow": Delay(uniform(7.0, (6,))),
            "back": linear(weights(rng, 8, 6)),
            "output": Output((8,)),
        },
        *("input late", "late in", "in na", "na last", "last rec", "rec na", "na up", "up staggered", "staggered nb"),
        *("nb slow", "slow back", "back na", "na output"),
    )


def pooled_branch() -> SpikingGraph:
    """Pools before convolutions on two paths of different length, a convolution behind, and a linear layer."""
    rng = np.random.default_rng(2)
    halved = SumPool2d((2, 2), (2, 2))
    return joined(
        {
            "input": Input((2, 8, 6)),
            "a": conv(weights(rng, 3, 2, 3, 3), padding=1),
            "na": cuba((3, 8, 6), du=2000, dv=400, vth=150),
            "pool": halved,
            "b": conv(weights(rng, 4, 3, 3, 3), padding=1),
            "short": halved,
            "aside": conv(weights(rng, 4, 2, 1, 1)),
            "nb": cuba((4, 4, 3), du=2000, dv=400, vth=400),
            "c": Conv2d(weights(rng, 2, 4, 2, 3), None, (2, 1), (0, 1), (1, 1), 1),
            "nc": cuba((2, 2, 3), du=2000, dv=400, vth=150),
            "flat": Flatten(0, 2),
            "d": linear(weights(rng, 4, 12)),
            "nd": cuba((4,), du=2000, dv=400, vth=80),
            "output": Output((4,)),
        },
        *("input a", "a na", "na pool", "pool b", "b nb", "input short", "short aside", "aside nb", "nb c", "c nc"),
        *("nc flat", "flat d", "d nd", "nd output"),
    )


def lif_cell_bias() -> SpikingGraph:
    """LIFCells behind layers with a bias, and a readout with a bias too fine for a .net file; nothing is pruned."""
    rng = np.random.default_rng(3)
    first = replace(conv(weights(rng, 3, 2, 3, 3)), bias=frozen_array(np.array([90.0, -40, 7])))
    second = Affine(weights(rng, 6, 48), frozen_array(rng.integers(-50, 60, 6)))
    third = Affine(weights(rng, 3, 6), frozen_array(np.array([4.0, -9, 0])))
    return chain(
        first,
        cuba((3, 4, 4), du=1000, dv=400, vth=300),
        Flatten(0, 2),
        second,
        cuba((6,), du=1000, dv=400, vth=600),
        third,
        CubaLI(uniform(0.25, (3,)), uniform(0.125, (3,)), uniform(3.0, (3,))),
        features=(2, 6, 6),
    )


def quiet_bias() -> SpikingGraph:
    """Biases of membranes beside a skip path: layers start anew at the step their first input reaches them."""
    rng = np.random.default_rng(4)

    def biased(count: int) -> Node:
        return replace(cuba((count,), du=2000, dv=300, vth=150), v_leak=frozen_array(64 * rng.integers(-9, 40, count)))

    graph = skip()
    return graph.with_nodes({"na": biased(12), "nc": biased(5)})


def no_bias_in_common() -> SpikingGraph:
    """One layer of a chain that a .net file holds but for one odd bias."""
    rng = np.random.default_rng(5)
    odd = replace(cuba((3, 4, 3), du=2500, dv=300, vth=100), v_leak=frozen_array(rng.integers(-900, 3000, (3, 4, 3))))
    return chain(
        conv(weights(rng, 3, 2, 3, 3)),
        odd,
        conv(weights(rng, 2, 3, 2, 2)),
        cuba((2, 3, 2), du=2500, dv=300, vth=200),
        Flatten(0, 2),
        features=(2, 6, 5),
    )


ZOO: dict[str, Callable[[], SpikingGraph]] = {
    graph.__name__: graph for graph in (skip, recurrent, pooled_branch, lif_cell_bias, quiet_bias, no_bias_in_common)
}
each_graph = pytest.mark.parametrize("name", ZOO)


def edited(artifact: Artifact, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Change the header and the arrays of a file."""
    path = artifact.file("network")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays.pop("network").tobytes().decode())
    change(header, arrays)
    write_processes(path, ProcessNetwork(header, arrays))


# The files


@each_graph
def test_the_file_read_back_computes_the_same(name: str, tmp_path: Path) -> None:
    graph = ZOO[name]()
    check_reread(graph, samples(graph), tmp_path / "out")


@each_graph
def test_what_is_read_back_is_written_the_same(name: str, tmp_path: Path) -> None:
    """Read as a graph and lowered again, a file states the same layers and latencies."""
    exporter = LavaExporter()
    first = exporter.write(ZOO[name](), tmp_path / "first")
    again = process_network(exporter.read(first.file("network")))
    network = read_process_network(first.file("network"))
    assert again.latency_steps == network.latency_steps
    for layer, spec in network.neurons.items():
        assert {key: again.neurons[layer][key] for key in ("du", "dv", "vth")} == {
            key: spec[key] for key in ("du", "dv", "vth")
        }


def test_the_manifest_says_which_form_and_why(tmp_path: Path) -> None:
    artifact = LavaExporter().write(skip(), tmp_path / "out")
    options = artifact.manifest["options"]
    assert options["form"] == "processes"
    assert options["why"] == "input: the network branches here; a .net file is a chain of layers"
    assert artifact.manifest["roles"] == {"graph": "graph.npz", "network": "network.npz", "script": "network.py"}
    assert artifact.latency_steps == 3
    assert LavaExporter().write(dense(), tmp_path / "net").manifest["options"]["form"] == "net"


def test_the_output_need_not_be_in_the_last_layer(tmp_path: Path) -> None:
    artifact = LavaExporter().write(recurrent(), tmp_path / "out")
    assert artifact.latency_steps == read_process_network(artifact.file("network")).latency_steps["na"] == 1
    assert artifact.manifest["options"]["neurons"][-1] == "na"


def test_the_file_holds_plain_arrays(tmp_path: Path) -> None:
    artifact = LavaExporter().write(lif_cell_bias(), tmp_path / "out")
    with np.load(artifact.file("network"), allow_pickle=False) as archive:
        assert {archive[name].dtype.kind for name in archive.files} <= {"i", "u"}
        header = json.loads(archive["network"].tobytes().decode())
    lines = [synapse for synapse in header["synapses"] if synapse["source"] == "always_on"]
    assert [(line["target"], line["starts"]) for line in lines] == [("n1", 0), ("n4", 1), ("n6", 2)]
    assert header["input"] == [2, 6, 6]
    assert header["output"] == {"neuron": "n6", "shape": [3]}


def test_a_bias_per_channel_stays_with_its_convolution(tmp_path: Path) -> None:
    artifact = LavaExporter().write(lif_cell_bias(), tmp_path / "out")
    read = read_processes(artifact.file("network"))
    assert read.shapes["n1"] == (3, 4, 4)
    (node,) = [node for node in read.nodes.values() if isinstance(node, Conv2d)]
    assert node.bias is not None
    assert node.bias.tolist() == [90, -40, 7]


def test_pruned_layers_are_sparse_and_hold_surviving_synapses_only(tmp_path: Path) -> None:
    graph = skip()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    script = artifact.file("script").read_text()
    assert "synapses1 = Dense(" in script
    assert "synapses2 = Sparse(weights=csr_matrix(arrays['weight/b/na'])" in script
    assert "synapses4 = DelaySparse(weights=csr_matrix(arrays['weight/around/input'])" in script
    assert "synapses5 = DelayDense(" in script
    network = read_process_network(artifact.file("network"))
    for synapse in network.synapses:
        assert np.array_equal(network.weights(synapse), graph.weighted[synapse["name"]].weight)
    kinds = {synapse["name"]: synapse["kind"] for synapse in network.synapses}
    assert kinds == {"a": "dense", "b": "sparse", "c": "dense", "around": "delay_sparse", "beside": "delay_dense"}


def test_the_script_cannot_be_broken_by_names_or_reasons() -> None:
    network = process_network(skip())
    script = process_script(network, name="network.npz", readout=False, why='"""\nimport os\n"""\\')
    assert "\nimport os" not in script
    compile(script, "network.py", "exec")


def test_golden_input_comes_back(tmp_path: Path) -> None:
    graph = skip()
    raster = samples(graph)
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out", golden=raster)
    assert bool((LavaExporter().read_golden(artifact).data == raster.data).all())
    assert slamp.verify_directory(artifact.directory, runner=reread).equivalent
    with pytest.raises(RasterError, match="raster: features"):
        LavaExporter(golden=ones(3, 4)).write(graph, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# What both forms refuse


def read_out_twice() -> SpikingGraph:
    return joined(
        {
            "input": Input((2,)),
            "a": linear(np.ones((2, 2))),
            "na": cuba((2,)),
            "nb": cuba((2,)),
            "output": Output((2,)),
        },
        *("input a", "a na", "a nb", "na output", "nb output"),
    )


def hasty() -> SpikingGraph:
    graph = recurrent()
    return graph.with_nodes({"staggered": Delay(uniform(0.0, (6,))), "slow": Delay(uniform(1.0, (6,)))})


BOTH = {
    "several thresholds": (
        skip().with_nodes({"nc": replace(cuba((5,)), v_threshold=frozen_array(64 * np.arange(5)))}),
        "as a .net file: input: the network branches here; .*; as Lava's processes: nc: v_threshold runs from 0 to 256",
    ),
    "sum of layers": (read_out_twice(), "output: gives na and nb; allowed are spikes or membranes of one layer"),
    "short cycle": (hasty(), "lies on a cycle of more synapses than steps of delay"),
}


@pytest.mark.parametrize("name", BOTH)
def test_what_both_forms_refuse_names_both_reasons(name: str, tmp_path: Path) -> None:
    graph, message = BOTH[name]
    with pytest.raises(UnsupportedNodeError, match=message) as found:
        LavaExporter().write(graph, tmp_path / "out")
    assert "as a .net file: " in str(found.value)
    assert not (tmp_path / "out").exists()


# Files that were changed


def test_an_edited_weight_is_named(tmp_path: Path) -> None:
    graph = skip()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    weight = graph.weighted["c"].weight[4, 7]

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["weight/c/n\"b'"][4, 7] += 2 * 5

    edited(artifact, change)
    (line,) = LavaExporter().file_differences(artifact, graph)
    assert line == f"nc: c/n\"b': weight[4, 7] is {weight + 5:g} in the file, {weight:g} in the graph"
    result = slamp.verify(artifact, graph, samples(graph), runner=reread)
    assert (result.verdict, result.altered_files) == ("different", ("network.npz",))


def test_other_changes_are_named() -> None:
    wanted = process_network(quiet_bias())
    header = json.loads(json.dumps(wanted.header))
    arrays = {key: np.array(array) for key, array in wanted.arrays.items()}
    header["neurons"]["na"]["du"] = 5
    header["synapses"][4]["source"] = "input"
    header["output"]["shape"] = [5, 1]
    arrays["bias/nc"][2] = 77
    arrays["delay/beside/na"][0, 1] = 9
    lost = header["synapses"].pop(0)
    header["neurons"]["more"] = header["neurons"]["na"]
    lines = list(process_differences(ProcessNetwork(header, arrays), wanted))
    bias = wanted.arrays["bias/nc"][2]
    assert lost["name"] == "a"
    assert lines == [
        "output is {'neuron': 'nc', 'shape': [5, 1]} in the file, {'neuron': 'nc', 'shape': [5]} in the graph",
        "more is in the file, the graph has none",
        "na: du is 5 in the file, 2000 in the graph",
        f"nc: bias mantissa[2] is 77 in the file, {bias} in the graph",
        "na: a/input is missing in the file",
        "nc: beside/na: delay[0, 1] is 9 in the file, 1 in the graph",
        "nc: beside/na: source is input in the file, na in the graph",
    ]


def neuron(key: str, value: object) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda header, arrays: header["neurons"]["na"].update({key: value})


def synapse(index: int, key: str, value: object) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda header, arrays: header["synapses"][index].update({key: value})


def array(key: str, value: np.ndarray) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda header, arrays: arrays.update({key: value})


DAMAGED = {
    "format": (lambda header, arrays: header.update(format="x"), "format is 'x', allowed is 'slamp-lava-processes-1'"),
    "shape": (neuron("shape", [0]), r"na: shape is \[0\], allowed are sizes of at least 1"),
    "number": (neuron("du", 0.5), r"na: du is 0\.5, allowed are whole numbers"),
    "exponent of a bias": (neuron("bias_exp", 9), "na: bias_exp is 9, allowed are 0 to 7"),
    "output": (lambda header, arrays: header["output"].update(neuron="x"), "output is 'x', allowed are na"),
    "source": (synapse(0, "source", "x"), "a from x to na: there are no such layers"),
    "kind": (synapse(0, "kind", "x"), "a from input to na: kind is 'x', allowed are dense"),
    "exponent": (synapse(0, "weight_exp", 99), "a from input to na: weight_exp is 99, allowed are -8 to 7"),
    "weights": (array("weight/a/input", np.zeros((3, 3), np.int32)), r"weight/a/input: shape is \(3, 3\), allowed is"),
    "fractions": (array("weight/a/input", np.zeros((12, 16))), "weight/a/input: dtype is float64"),
    "delays": (array("delay/beside/na", np.full((5, 12), 63)), "beside from na to nc: delays run from 63 to 63"),
    "missing": (lambda header, arrays: arrays.pop("bias/na"), "not a readable .* file .KeyError: 'bias/na'"),
    "stride": (
        lambda header, arrays: header["synapses"][0].update(kind="conv", stride=[1], groups=1),
        r"a from input to na: stride is \[1\], allowed are two whole numbers from 1 on",
    ),
    "flat": (
        lambda header, arrays: header["synapses"][0].update(
            kind="conv", groups=1, **{key: [1, 1] for key in ("stride", "padding", "dilation")}
        ),
        "a from input to na: is a convolution between layers that are not",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    artifact = LavaExporter().write(skip(), tmp_path / "out")
    change, message = DAMAGED[name]
    edited(artifact, change)  # type: ignore[arg-type]  # a lambda that gives something back
    with pytest.raises(ArtifactError, match=message):
        LavaExporter().replay(artifact, samples(skip()))
    with pytest.raises(ArtifactError, match=message):
        reread(artifact, samples(skip()))


def test_a_kernel_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    graph = pooled_branch()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    edited(artifact, synapse(0, "groups", 0))
    with pytest.raises(ArtifactError, match="a from input to na: groups is 0, allowed are whole numbers from 1 on"):
        reread(artifact, samples(graph))
    edited(artifact, synapse(0, "groups", 1))
    edited(artifact, array("weight/a/input", np.ones((4, 2, 3, 3), np.int32)))
    with pytest.raises(ArtifactError, match="a from input to na: its kernel has 4 outputs, its target 3 channels"):
        reread(artifact, samples(graph))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"network\.npz: there is no such file"):
        read_process_network(tmp_path / "network.npz")
    (tmp_path / "network.npz").write_bytes(b"PK nothing")
    with pytest.raises(ArtifactError, match="not a readable slamp-lava-processes-1 file"):
        LavaExporter().read(tmp_path / "network.npz")


MEANINGLESS = {
    "too early": (neuron("latency", 3), "a from input to na: arrives 2 steps before the step it was sent in"),
    "another start": (neuron("reset_offset", 7), "na: starts anew at step 7; allowed is 2, its first input"),
    "decay": (neuron("dv", 5000), "na: decay_mem is"),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_no_graph_means_is_not_read_back(name: str, tmp_path: Path) -> None:
    artifact = LavaExporter().write(skip(), tmp_path / "out")
    change, message = MEANINGLESS[name]
    edited(artifact, change)
    with pytest.raises(ArtifactError, match=message):
        reread(artifact, samples(skip()))


def test_a_line_that_starts_too_early_or_late_is_read_so(tmp_path: Path) -> None:
    graph = lif_cell_bias()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    edited(artifact, synapse(3, "starts", 0))
    with pytest.raises(ArtifactError, match="n3: its line starts 1 steps before n4 does"):
        reread(artifact, samples(graph))
    edited(artifact, synapse(3, "starts", 4))
    result = slamp.verify(artifact, graph, samples(graph), runner=reread)
    assert result.first_difference is not None
    assert (result.first_difference.layer, result.first_difference.step) == ("n4", 0)


def test_layers_of_another_network_are_refused(tmp_path: Path) -> None:
    artifact = LavaExporter().write(skip(), tmp_path / "out")
    write_processes(artifact.file("network"), process_network(recurrent()))
    with pytest.raises(ArtifactError, match=r"layer na has shape \[8\], the manifest states \[12\]"):
        LavaExporter().replay(artifact, samples(skip()))


def test_a_raster_of_another_network_is_refused(tmp_path: Path) -> None:
    artifact = LavaExporter().write(skip(), tmp_path / "out")
    with pytest.raises(RasterError, match=r"features \(3,\); the artifact's network takes \(16,\)"):
        LavaExporter().replay(artifact, ones(9, 3))


def test_without_lava_the_installer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = LavaExporter().write(skip(), tmp_path / "out")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="slamp lava install"):
        LavaExporter().replay(artifact, samples(skip()))


# The real Lava


@needs_lava
@each_graph
def test_lavas_own_models_equal_the_graph_in_every_cell(name: str, tmp_path: Path) -> None:
    graph = ZOO[name]()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    result = slamp.verify(artifact, graph, samples(graph))
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()
    assert "process models stepped" in result.runner
    assert all(0.01 < rate < 0.99 for rate in result.rates.values())
    assert result.cells > 2 * 25 * 3 * sum(int(np.prod(graph.shapes[layer])) for layer in graph.spiking)


@needs_lava
def test_graded_input_equals_lava(tmp_path: Path) -> None:
    """Graded or not is decided when it runs: the file is the same."""
    graph = skip()
    values = np.random.default_rng(8).integers(-3, 4, (20, 2, 16)).astype(np.float32)
    raster = SpikeRaster(torch.tensor(values), DT, kind="analog")
    artifact = LavaExporter(golden=raster).write(graph, tmp_path / "out")
    plain = LavaExporter().write(graph, tmp_path / "plain")
    assert artifact.file("network").read_bytes() == plain.file("network").read_bytes()
    assert slamp.verify_directory(artifact.directory).verdict == "identical"


@needs_lava
def test_an_edited_weight_is_found_in_lava(tmp_path: Path) -> None:
    graph = skip()
    artifact = LavaExporter().write(graph, tmp_path / "out")

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["weight/beside/na"][2, 3] += 2 * 40

    edited(artifact, change)
    result = slamp.verify(artifact, graph, samples(graph))
    assert result.verdict == "different"
    assert result.altered_files == ("network.npz",)
    assert "nc: beside/na: weight[2, 3] is" in result.sentence()
    first = result.first_difference
    assert first is not None
    assert (first.layer, first.neuron, first.quantity) == ("nc", (2,), "u")
    assert float(first.found) - float(first.expected) == 64 * 40


@needs_lava
def test_the_script_is_not_run_and_the_graph_is_not_asked(tmp_path: Path) -> None:
    """The replay has the arrays and the manifest, and nothing else."""
    graph = skip()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    expected = LavaExporter().replay(artifact, samples(graph))
    artifact.file("script").write_text("raise SystemExit(3)")
    artifact.file("graph").unlink()
    found = LavaExporter().replay(artifact, samples(graph))
    assert expected.spike_count > 100
    assert torch.equal(found.output.data, expected.output.data)


@needs_lava
def test_the_command_line_verifies_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    graph = recurrent()
    artifact = LavaExporter(golden=samples(graph)).write(graph, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["slamp", "verify", str(artifact.directory)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "identical" in said
    assert "replayed by Lava 0.10.0 (process models stepped, fixed_pt; no .net file can hold this network)" in said
    assert "in the form processes, because in: the network branches here" in said
    assert artifact.manifest["verification"]["verdict"] == "identical"


@needs_lava
@pytest.mark.parametrize("name", ZOO)
def test_the_script_gives_the_output_in_lavas_runtime(name: str, tmp_path: Path) -> None:
    graph = ZOO[name]()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    raster = samples(graph, batch=1)
    np.save(tmp_path / "in.npy", raster.numpy()[:, 0])
    command = [str(environment_python()), str(artifact.file("script")), str(tmp_path / "in.npy")]
    run_child([*command, str(tmp_path / "found.npy")], 120)
    expected = slamp.simulate(graph, raster).output.data[:, 0].numpy()
    assert expected.any()
    assert np.array_equal(np.load(tmp_path / "found.npy"), expected)


@needs_lava
@pytest.mark.slow
def test_random_networks_in_sparse_processes_equal_lava_in_every_cell() -> None:
    """The networks of tests/feedback_networks.py with every matrix in Sparse or DelaySparse."""
    cases = [random_feedback(seed) for seed in range(15)]
    networks = [with_inputs(lava_description(graph, sparse_below=2.0), raster) for graph, raster in cases]
    kinds = [spec["kind"] for network in networks for spec in json.loads(bytes(network.arrays["network"]))["synapses"]]
    assert set(kinds) <= {"sparse", "delay_sparse", "delay_dense", "dense"}
    assert kinds.count("delay_sparse") > 30
    answers = run_models([network.arrays for network in networks], time_limit_s=900)
    found = [
        differing_cells(graph, raster, answer, network.latency_steps)
        for (graph, raster), network, answer in zip(cases, networks, answers, strict=True)
    ]
    assert found == [0] * 15
    assert sum(bool(answer["s/na"].any() and answer["s/nb"].any()) for answer in answers) > 8
