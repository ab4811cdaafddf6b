"""Fixed-point graphs as lava-dl's .net files: the layout, what is refused, and the real Lava cell for cell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import slamp
from exporters import net_layers as lowering
from exporters.environments import run_child
from exporters.net_format import loaded_by_netx
from exporters.net_layers import net_layers
from exporters.to_lava import LavaExporter, reread
from exporters.witness_lava import environment_python
from lava_artifacts import check_reread, needs_lava
from net_networks import ZOO, as_matrices, biased, conv, dense, fed_back, pooled, readout, samples, steps, weights
from slamp.errors import (
    ArtifactError,
    MissingDependencyError,
    RasterError,
    RunFileError,
    UnsupportedNodeError,
    WitnessError,
)
from slamp.graph import SpikingGraph
from slamp.manifest import open_artifact
from slamp.nodes import (
    LI,
    Affine,
    Conv2d,
    CubaLIF,
    Delay,
    Input,
    Node,
    Output,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, cuba, linear, ones
from test_lava import fake_environment

each_graph = pytest.mark.parametrize("name", ZOO)


def edited(path: Path, key: str, index: tuple[int, ...], value: float) -> None:
    with h5py.File(path, "r+") as file:
        array = file[key][()]
        array[index] = value
        file[key][...] = array


# The files


@each_graph
def test_the_file_read_back_computes_the_same(name: str, tmp_path: Path) -> None:
    graph = ZOO[name]()
    check_reread(graph, samples(graph), tmp_path / "out")


@each_graph
def test_a_file_that_was_read_is_written_bit_for_bit(name: str, tmp_path: Path) -> None:
    exporter = LavaExporter()
    first = exporter.write(ZOO[name](), tmp_path / "first").file("network")
    graph = exporter.read(first)
    second = exporter.write(graph, tmp_path / "second").file("network")
    assert exporter.read(second).hash == graph.hash


def test_the_file_is_laid_out_as_lava_dl_does(tmp_path: Path) -> None:
    graph = pooled()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    assert artifact.latency_steps == 3
    assert artifact.manifest["roles"] == {
        "graph": "graph.npz",
        "network": "network.net",
        "script": "network.py",
    }
    with h5py.File(artifact.file("network")) as file:
        layers = [file[f"layer/{index}"] for index in range(len(file["layer"]))]
        assert [layer["type"][0] for layer in layers] == [b"input", b"conv", b"conv", b"flatten", b"dense"]
        assert all(layer["type"].shape == (1,) and layer["type"].dtype == "S10" for layer in layers)
        assert layers[0]["shape"][()].tolist() == [2, 8, 8]
        assert np.array_equal(layers[1]["weight"], graph.weighted["n0"].weight)
        assert layers[1]["padding"][()].tolist() == [1, 1]
        neuron = {key: layers[1][f"neuron/{key}"][()] for key in ("type", "iDecay", "vDecay", "vThMant")}
        assert neuron == {"type": b"CUBA", "iDecay": 4096, "vDecay": 1024, "vThMant": 100}
        # A pool of 2 x 2 before a 3 x 3 kernel: every weight four times, twice the stride and the padding.
        assert layers[2]["weight"].shape == (4, 3, 6, 6)
        assert np.array_equal(layers[2]["weight"][:, :, 1::2, ::2], graph.weighted["n3"].weight)
        assert layers[2]["stride"][()].tolist() == layers[2]["padding"][()].tolist() == [2, 2]
        assert layers[4]["weight"].shape == (5, 64)
        assert np.array_equal(layers[4]["weight"][:, 0], graph.weighted["n7"].weight[:, 0])
        assert {key: layers[4][f"neuron/{key}"][()] for key in ("iDecay", "vDecay")} == {"iDecay": 4096, "vDecay": 0}
        assert "bias" not in layers[4]


def test_a_readout_has_a_threshold_that_is_never_reached(tmp_path: Path) -> None:
    artifact = LavaExporter().write(readout(), tmp_path / "out")
    with h5py.File(artifact.file("network")) as file:
        assert file["layer/2/neuron/vThMant"][()] == 131072


def test_biases_of_a_convolution_stand_as_netx_takes_them(tmp_path: Path) -> None:
    artifact = LavaExporter().write(biased(), tmp_path / "out")
    with h5py.File(artifact.file("network")) as file:
        assert file["layer/1/bias"][()].tolist() == [20, -7, 0]
        assert file["layer/2/bias"].shape == (2, 3, 2)  # x, y, channels
        assert file["layer/4/bias"][()].tolist() == [50, -4096, 4095, 3]


def test_layers_netx_has_not_become_matrices() -> None:
    assert [layer.kind for layer in net_layers(as_matrices())] == ["dense"] * 4
    assert [layer.flattened for layer in net_layers(as_matrices())] == [True, False, False, False]
    assert [layer.kind for layer in net_layers(pooled())] == ["conv", "conv", "dense"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("padding", [0, 1])
def test_pools_of_every_kind_are_lowered_exactly(
    window: int, stride: int, size: int, padding: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(6)
    nodes = [SumPool2d((window, window), (stride, stride)), conv(weights(rng, 3, 2, 2, 2, low=-9, high=13))]
    nodes[1] = replace(nodes[1], padding=(padding, padding), stride=(1, 2))
    shape = chain(*nodes, features=(2, size, size)).shapes["n1"]
    graph = chain(*nodes, cuba(shape, du=2000, dv=100, vth=30), features=(2, size, size))
    artifact = LavaExporter().write(graph, tmp_path / "out")
    assert slamp.verify(artifact, graph, samples(graph, steps=12), runner=reread).verdict == "identical"


def test_golden_input_comes_back(tmp_path: Path) -> None:
    graph = dense()
    raster = samples(graph)
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out", golden=raster)
    assert bool((LavaExporter().read_golden(artifact).data == raster.data).all())
    assert slamp.verify_directory(artifact.directory, runner=reread).equivalent
    artifact.file("golden_input").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is not what was exported"):
        LavaExporter().read_golden(artifact)


def test_artifacts_of_before_there_were_lines_still_replay(tmp_path: Path) -> None:
    graph = dense()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    manifest = json.loads((artifact.directory / "manifest.json").read_text())
    del manifest["options"]["input_lines"], manifest["options"]["form"]
    (artifact.directory / "manifest.json").write_text(json.dumps(manifest))
    older = open_artifact(artifact.directory)
    assert slamp.verify(older, graph, samples(graph), runner=reread).verdict == "identical"


def test_options_are_checked() -> None:
    with pytest.raises(RunFileError, match="golden is int"):
        LavaExporter(golden=3)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(RunFileError, match="time_limit_s is 0"):
        LavaExporter(time_limit_s=0)


# What is refused


def one_layer(weight: object, neuron: Node | None = None) -> SpikingGraph:
    array = np.asarray(weight, dtype=np.float32)
    return chain(linear(array), neuron or cuba((len(array),)), features=(array.shape[1],))


def per_neuron(**changes: np.ndarray) -> CubaLIF:
    return replace(cuba((2,)), **{key: frozen_array(value) for key, value in changes.items()})


def skipping() -> SpikingGraph:
    nodes: dict[str, Node] = {
        "input": Input((1,)),
        "a": linear([[1.0]]),
        "skip": linear([[1.0]]),
        "n": cuba((1,)),
        "b": linear([[1.0]]),
        "m": cuba((1,)),
        "output": Output((1,)),
    }
    edges = (("input", "a"), ("input", "skip"), ("a", "n"), ("n", "b"), ("b", "m"), ("skip", "m"), ("m", "output"))
    return SpikingGraph(nodes, edges, DT, slamp.FixedPoint())


def twice() -> SpikingGraph:
    nodes: dict[str, Node] = {
        "input": Input((1,)),
        "now": linear([[1.0]]),
        "wait": steps(1),
        "late": linear([[2.0]]),
        "n": cuba((1,)),
        "output": Output((1,)),
    }
    edges = (("input", "now"), ("now", "n"), ("input", "wait"), ("wait", "late"), ("late", "n"), ("n", "output"))
    return SpikingGraph(nodes, edges, DT, slamp.FixedPoint())


UNIT = np.ones((2, 2))
PIXEL = frozen_array(np.ones((1, 1, 1, 1)))
REFUSED = {
    "float": (chain(linear([[1.0]]), cuba((1,)), features=(1,), arithmetic=slamp.Float32()), "quantize it first"),
    "decays": (one_layer(UNIT, per_neuron(decay_mem=np.array([0.5, 0.25]))), r"n1: decay_mem runs from 0\.25 to 0\.5"),
    "thresholds": (one_layer(UNIT, per_neuron(v_threshold=np.array([64.0, 0]))), "n1: v_threshold runs from 0 to 64"),
    "bias beyond the image": (
        chain(Conv2d(PIXEL, frozen_array(np.ones(1)), (1, 1), (1, 1), (1, 1), 1), cuba((1, 4, 4)), features=(1, 2, 2)),
        "n0: has a bias in the current of n1, or passes one on, and no weight of its kernel is inside the image",
    ),
    "slow bias": (
        chain(
            linear(UNIT),
            cuba((2,), du=10, vth=900),
            Affine(frozen_array(UNIT), frozen_array(np.array([0.0, 3]))),
            cuba((2,)),
            features=(2,),
        ),
        "n1: is to pass on a bias of the current of a later layer, .* 900, add up beyond 24 bits with iDecay 11",
    ),
    "late bias": (
        chain(Affine(frozen_array(UNIT), frozen_array(np.ones(2))), Delay(uniform(1, (2,))), cuba((2,)), features=(2,)),
        "n0: has a bias that n1 delays",
    ),
    "fine bias": (one_layer(UNIT, per_neuron(v_leak=np.array([0.0, 96]))), r"n1: v_leak\[1\] is 96"),
    "large bias": (one_layer(UNIT, per_neuron(v_leak=np.array([0.0, 64 * 4096]))), r"v_leak\[1\] is 262144.*64 times"),
    "fractions": (one_layer([[0.5, 1.0]]), r"n0: weight\[0, 0\] is 0\.5; a \.net file holds whole numbers"),
    "large weights": (one_layer([[1024.0, 8.0]]), "n0: weights run from 8 to 1024; netx clips"),
    "all zero": (one_layer([[0.0, 0.0]]), "n0: all weights are zero, on which netx crashes"),
    "power of two": (one_layer([[-8.0, -3.0]]), r"n0: netx loads weight\[0, 0\] as -7.* instead of -8"),
    "odd beyond 127": (one_layer([[0.0, -129.0]]), r"n0: netx loads weight\[0, 1\] as -?0 instead of -129"),
    "power of two and zero": (one_layer([[0.0, -1.0]]), r"n0: netx loads weight\[0, 1\] as -0\.5"),
    "skip": (skipping(), "input: the network branches here"),
    "long delay": (
        chain(Delay(uniform(60.0, (1,))), linear([[1.0]]), Delay(uniform(3.0, (1,))), cuba((1,)), features=(1,)),
        "n1: a synapse waits 63 steps; allowed are 0 to 62",
    ),
    "delay behind a pool": (
        chain(
            SumPool2d((2, 2), (2, 2)),
            Delay(frozen_array(np.array([[[0.0, 1.0]]]))),
            conv(PIXEL),
            cuba((1, 1, 2)),
            features=(1, 2, 4),
        ),
        "n1: delays the sums of n0 by 0 to 1 steps",
    ),
    "delay at the end": (
        chain(linear([[1.0]]), cuba((1,)), Delay(uniform(1.0, (1,))), features=(1,)),
        "n2: no neurons follow it",
    ),
    "recurrence after two steps": (
        fed_back(one_layer([[1.0]]), "n1", linear([[1.0]]), late=2.0),
        "back: Linear feeds n1 back after 2 to 2 steps; a .net file holds a linear layer and 1 step",
    ),
    "recurrence and delays": (
        fed_back(chain(steps(2), linear([[1.0]]), cuba((1,)), features=(1,)), "n2", linear([[1.0]])),
        "n2: has delays and feeds itself back by back; netx drops the weight exponent",
    ),
    "recurrence and an early bias": (
        fed_back(one_layer([[1.0]], cuba((1,), vth=5, bias=64 * 6)), "n1", linear([[1.0]])),
        "n1: its bias alone makes it fire in the 1 steps before its first input",
    ),
    "one synapse twice": (
        twice(),
        r"late: weight\[0, 0\] connects the same neurons as now 1 steps late, now 0",
    ),
    "no neurons between": (
        chain(linear([[1.0]]), linear([[1.0]]), cuba((1,)), features=(1,)),
        "n1: follows n0 without neurons between",
    ),
    "no weights": (chain(linear([[1.0]]), cuba((1,)), cuba((1,)), features=(1,)), "n2: has no weights of its own"),
    "no neurons": (chain(linear([[1.0]]), features=(1,)), "n0: no neurons follow it"),
    "pool at the end": (
        chain(conv(PIXEL), cuba((1, 2, 2)), SumPool2d((2, 2), (2, 2)), features=(1, 2, 2)),
        "n2: no neurons follow it",
    ),
    "pool behind weights": (
        chain(conv(PIXEL), SumPool2d((2, 2), (2, 2)), cuba((1, 1, 1)), features=(1, 2, 2)),
        "n1: SumPool2d between weights and neurons",
    ),
    "readout in the middle": (
        chain(linear([[1.0]]), LI(uniform(0.5, (1,)), uniform(0, (1,))), linear([[1.0]]), cuba((1,)), features=(1,)),
        "n1: is a readout, and n2 follows",
    ),
}


IN_PROCESSES = {
    "bias beyond the image",
    "slow bias",
    "late bias",
    "recurrence after two steps",
    "recurrence and delays",
    "one synapse twice",
    "fine bias",
    "large bias",
    "fractions",
    "large weights",
    "all zero",
    "power of two",
    "odd beyond 127",
    "power of two and zero",
    "skip",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_net_file_cannot_hold_is_refused_or_written_as_processes(name: str, tmp_path: Path) -> None:
    graph, message = REFUSED[name]
    with pytest.raises(UnsupportedNodeError, match=message):
        net_layers(graph)
    if name in IN_PROCESSES:
        artifact = LavaExporter().write(graph, tmp_path / "out")
        options = artifact.manifest["options"]
        assert options["form"] == "processes"
        assert re.search(message, options["why"])
        assert slamp.verify(artifact, graph, samples(graph), runner=reread).counts["different"] == 0
        return
    with pytest.raises(UnsupportedNodeError, match=message):
        LavaExporter().write(graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pools_that_overlap_may_need_more_than_eight_bits(tmp_path: Path) -> None:
    weight = frozen_array(np.array([[[[-100.0, 101.0], [99.0, 101.0]]]]))
    graph = chain(SumPool2d((2, 2), (1, 1)), conv(weight), cuba((1, 2, 2)), features=(1, 4, 4))
    with pytest.raises(
        UnsupportedNodeError, match=r"n1: with pools before it and biases of currents its weights run .* 8 bits"
    ):
        LavaExporter().write(graph, tmp_path / "out")


def test_a_matrix_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lowering, "DENSE_LIMIT", 1000)
    with pytest.raises(UnsupportedNodeError, match="n1: with its pools a matrix of 48 x 81, too large to write"):
        LavaExporter().write(as_matrices(), tmp_path / "out")


@needs_lava
def test_what_netx_makes_of_weights_is_restated_exactly(tmp_path: Path) -> None:
    """Random matrices of every sign mode, through netx's and Lava's own functions, whole and as a recurrent layer."""
    rng = np.random.default_rng(7)
    matrices = []
    for _ in range(600):
        low, high = [(-128, 128), (0, 256), (-256, 0), (-9, 1), (-4, 3), (0, 3)][rng.integers(6)]
        matrix = rng.integers(low, high, (3, 4)) * rng.choice([1, 2, 4]) * (rng.random((3, 4)) < 0.7)
        matrices.append(np.clip(matrix, -256, 254 if matrix.min() < 0 else 255))
    matrices = [matrix for matrix in matrices if matrix.any()]
    code = """
import sys, numpy as np
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
found = []
for weight in np.load(sys.argv[1]):
    held, bits, exponent, _ = optimize_weight_bits(weight)
    for part in (held, held[:, :2], held[:, 2:]):
        mode = determine_sign_mode(part)
        found.append(truncate_weights(clip_weights(part, mode, num_bits=8), mode, bits) * 2.0 ** exponent)
np.savez(sys.argv[2], *found)
"""
    np.save(tmp_path / "in.npy", matrices)
    run_child([str(environment_python()), "-I", "-c", code, str(tmp_path / "in.npy"), str(tmp_path / "out.npz")], 120)
    archive = np.load(tmp_path / "out.npz")
    found = [archive[f"arr_{index}"] for index in range(3 * len(matrices))]
    theirs = np.array(found[::3])
    assert np.array_equal(theirs, [loaded_by_netx(matrix) for matrix in matrices])
    for matrix, left, right in zip(matrices, found[1::3], found[2::3], strict=True):
        assert np.array_equal(left, loaded_by_netx(matrix[:, :2], scaled_with=matrix))
        assert np.array_equal(right, loaded_by_netx(matrix[:, 2:], scaled_with=matrix))
    changed = (theirs != np.array(matrices)).any(axis=(1, 2))
    assert 0 < changed.sum() < len(matrices) / 2


# The real Lava


@needs_lava
@pytest.mark.slow
@each_graph
def test_netx_on_lavas_runtime_equals_the_graph_in_every_cell(name: str, tmp_path: Path) -> None:
    graph = ZOO[name]()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    result = slamp.verify(artifact, graph, samples(graph))
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()
    assert all(0.01 < rate < 0.99 for rate in result.rates.values())
    assert result.cells > 2 * 25 * 3 * sum(int(np.prod(graph.shapes[layer])) for layer in graph.spiking)


@needs_lava
@pytest.mark.slow
def test_graded_input_equals_lava(tmp_path: Path) -> None:
    graph = dense()
    values = np.random.default_rng(8).integers(-3, 4, (20, 2, 20)).astype(np.float32)
    raster = SpikeRaster(torch.tensor(values), DT, kind="analog")
    artifact = LavaExporter(golden=raster).write(graph, tmp_path / "out")
    assert LavaExporter().read_golden(artifact).kind == "analog"
    assert slamp.verify_directory(artifact.directory).verdict == "identical"


@needs_lava
@pytest.mark.slow
def test_an_edited_weight_is_found_in_lava(tmp_path: Path) -> None:
    graph = dense()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    weight = graph.weighted["n2"].weight[4, 7]
    edited(artifact.file("network"), "layer/2/weight", (4, 7), weight + 40)
    result = slamp.verify(artifact, graph, samples(graph))
    assert result.verdict == "different"
    assert result.altered_files == ("network.net",)
    assert f"n3: weight[4, 7] is {weight + 40:g} in the file, {weight:g} in the graph" in result.sentence()
    first = result.first_difference
    assert first is not None
    assert (first.layer, first.neuron, first.quantity) == ("n3", (4,), "u")
    assert float(first.found) - float(first.expected) == 64 * 40


@pytest.mark.parametrize("bytes_", [b"rubbish", b""])
def test_a_damaged_file_is_named(bytes_: bytes, tmp_path: Path) -> None:
    artifact = LavaExporter().write(dense(), tmp_path / "out")
    artifact.file("network").write_bytes(bytes_)
    for attempt in (
        lambda: LavaExporter().replay(artifact, samples(dense())),
        lambda: LavaExporter().file_differences(artifact, dense()),
        lambda: LavaExporter().read(artifact.file("network")),
    ):
        with pytest.raises(ArtifactError, match=r"network\.net: .*(is damaged|not a readable \.net file)"):
            attempt()


@needs_lava
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["biased", "readout", "recurrent", "synapse_delays", "current_biases_of_convolutions", "even weights"]
)
def test_the_script_builds_the_same_network(name: str, tmp_path: Path) -> None:
    graph = ZOO[name]() if name in ZOO else one_layer([[200, -20, 4], [100, 50, -200]], cuba((2,), vth=350))
    artifact = LavaExporter().write(graph, tmp_path / "out")
    assert ("synapses2 = sparse(" in artifact.file("script").read_text()) == (name == "readout")
    raster = samples(graph, batch=1)
    np.save(tmp_path / "in.npy", raster.numpy()[:, 0])
    command = [str(environment_python()), str(artifact.file("script")), str(tmp_path / "in.npy")]
    run_child([*command, str(tmp_path / "found.npy")], 120)
    expected = slamp.simulate(graph, raster).output.data[:, 0].numpy()
    assert expected.any()
    assert np.array_equal(np.load(tmp_path / "found.npy"), expected)


# Lava absent, hanging, crashing, killed


def test_without_lava_the_installer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = LavaExporter().write(dense(), tmp_path / "out")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="slamp lava install"):
        slamp.verify(artifact, dense(), samples(dense()))
    assert slamp.verify(artifact, dense(), samples(dense()), runner=reread).equivalent


def test_a_raster_of_another_network_is_refused(tmp_path: Path) -> None:
    artifact = LavaExporter().write(dense(), tmp_path / "out")
    with pytest.raises(RasterError, match=r"features \(3,\); the artifact's network takes \(20,\)"):
        LavaExporter().replay(artifact, ones(9, 3))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no such luck >&2; exit 3", "ended with code 3: no such luck"),
        ("echo half way; kill -KILL $$", "was ended by SIGKILL; it said: half way"),
        ("echo started; sleep 60", "not done after 3 s.*it said: started"),
        ("echo nothing", "Lava ended without a result: nothing"),
    ],
    ids=["crash", "killed", "hang", "silence"],
)
def test_lavas_troubles_are_told(script: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = LavaExporter().write(dense(), tmp_path / "out")
    fake_environment(tmp_path / "home", script)
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "home"))
    limit = 3.0 if "sleep" in script else 60.0
    with pytest.raises(WitnessError, match=message):
        LavaExporter(time_limit_s=limit).replay(artifact, samples(dense()))


def processes_of(marker: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if marker.encode() in words and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def test_orphans_of_a_child_end_with_it(tmp_path: Path) -> None:
    marker = f"slamp-orphan-{os.getpid()}"
    run_child(["bash", "-c", f"(exec -a {marker} sleep 60) & exit 0"], 30)
    assert processes_of(marker) == []


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def mapped_by(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        found |= {line.rsplit("/", 1)[1] for line in lines if "/dev/shm/psm_" in line}
    return found


@needs_lava
@pytest.mark.slow
@pytest.mark.parametrize("way", ["time limit", "runner killed", "one process killed", "slamp killed"])
def test_lava_leaves_no_process_and_no_shared_memory(way: str, tmp_path: Path) -> None:
    """A long run in the real Lava is ended half way; the name of its file tells its processes apart."""
    graph = dense()
    artifact = LavaExporter().write(graph, tmp_path / "out")
    limit = 25 if way == "time limit" else 60
    code = f"""
import torch
from exporters.to_lava import LavaExporter
from slamp.manifest import open_artifact
from slamp.raster import SpikeRaster
raster = SpikeRaster(torch.zeros(200000, 1, 20, dtype=torch.bool), 1e-3)
LavaExporter(time_limit_s={limit}).replay(open_artifact("{artifact.directory}"), raster)
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    marker = str(artifact.file("network"))
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen([sys.executable, str(program)], stderr=said) as slamp_,
    ):
        try:
            wait_until(lambda: len(processes_of(marker)) >= 9 and len(mapped_by(processes_of(marker))) >= 8, 60)
            lavas = processes_of(marker)
            segments = mapped_by(lavas)
            if way == "runner killed":
                os.kill(min(lavas), signal.SIGKILL)
            elif way == "one process killed":
                os.kill(max(lavas), signal.SIGKILL)
            elif way == "slamp killed":
                slamp_.kill()
            slamp_.wait(90)
        finally:
            slamp_.kill()
    assert segments != set()
    wait_until(lambda: not processes_of(marker), 15)
    wait_until(lambda: not segments & shared_memory(), 5)
    if way != "slamp killed":
        found = (tmp_path / "said").read_text()
        assert "WitnessError" in found
        assert {"time limit": "not done after 25 s", "runner killed": "was ended by SIGKILL"}.get(
            way, "a process of Lava ended with code -9"
        ) in found


def wait_until(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
