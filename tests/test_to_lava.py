""".net files: what stands in them, what the real Lava makes of them, what they cannot hold."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import slamp
from exporters import environments
from exporters.net_layers import loaded_by_netx, net_layers
from exporters.to_lava import LavaExporter, reread
from exporters.witness_lava import environment_python
from slamp.errors import (
    ArtifactError,
    MissingDependencyError,
    OutputDirectoryError,
    RasterError,
    RunFileError,
    UnsupportedNodeError,
    WitnessError,
)
from slamp.graph import SpikingGraph
from slamp.manifest import file_sha256
from slamp.nodes import (
    IF,
    LIF,
    Affine,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Linear,
    Node,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from test_fixed_point import DT, chain, cuba, linear
from test_lava import fake_environment

needs_lava = pytest.mark.skipif(
    environment_python() is None, reason="Lava's environment is not installed (slamp lava install)"
)


def whole(seed: int, *shape: int, low: int = -60, high: int = 90, kept: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return frozen_array((rng.integers(low, high, shape) * (rng.random(shape) < kept)).astype(np.float32))


def raster_for(graph: SpikingGraph, *, batch: int = 3, steps: int = 20, rate: float = 0.4) -> SpikeRaster:
    rng = np.random.default_rng(9)
    return SpikeRaster(torch.tensor(rng.random((steps, batch, *graph.shapes[graph.input])) < rate), DT)


def lif(shape: tuple[int, ...], *, dv: int, vth: int, bias: np.ndarray | None = None) -> LIF:
    leak = uniform(0.0, shape) if bias is None else frozen_array(bias)
    return LIF(uniform(dv / 4096, shape), leak, uniform(vth * 64, shape), uniform(0.0, shape))


def dense_graph() -> SpikingGraph:
    return chain(
        linear(whole(0, 12, 20)), cuba((12,), du=1500, dv=400, vth=300), linear(whole(1, 5, 12)), cuba((5,), vth=400),
        features=(20,),
    )  # fmt: skip


def conv_graph() -> SpikingGraph:
    """Groups, uneven kernels and strides, dilation, a sum pool before a padded convolution, a pool before a matrix."""
    first = Conv2d(whole(2, 4, 1, 3, 2), None, (1, 1), (1, 0), (1, 2), 2)
    second = Conv2d(whole(3, 6, 4, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    return chain(
        first,
        cuba((4, 8, 8), du=3000, dv=900, vth=150),
        SumPool2d((2, 2), (2, 2)),
        second,
        IF(uniform(64.0 * 900, (6, 4, 4)), uniform(0.0, (6, 4, 4))),
        SumPool2d((2, 2), (2, 2)),
        Flatten(0, 2),
        linear(whole(4, 5, 24)),
        lif((5,), dv=500, vth=300),
        features=(2, 8, 10),
    )


def biased_graph() -> SpikingGraph:
    rng = np.random.default_rng(5)
    channel = np.broadcast_to(64.0 * rng.integers(-50, 90, (3, 1, 1)), (3, 4, 4)).astype(np.float32)
    each = (64.0 * rng.integers(-50, 90, (3, 4, 4))).astype(np.float32)
    kernel = Conv2d(whole(6, 3, 1, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    again = Conv2d(whole(7, 3, 3, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    return chain(
        kernel,
        lif((3, 4, 4), dv=1000, vth=200, bias=channel),
        again,
        lif((3, 4, 4), dv=700, vth=500, bias=each),
        Flatten(0, 2),
        linear(whole(8, 4, 48)),
        lif((4,), dv=300, vth=300, bias=np.array([64.0, -640.0, 6400.0, 0.0], dtype=np.float32)),
        features=(1, 4, 4),
    )


def readout_graph() -> SpikingGraph:
    readout = CubaLI(uniform(0.25, (3,)), uniform(0.125, (3,)), uniform(0.0, (3,)))
    nodes = (linear(whole(10, 12, 20)), cuba((12,), du=1500, dv=400, vth=300), linear(whole(11, 3, 12)), readout)
    return chain(*nodes, features=(20,))


GRAPHS = {"dense": dense_graph, "conv": conv_graph, "biased": biased_graph, "readout": readout_graph}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_file_read_back_computes_the_graph(name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    result = slamp.verify(artifact, graph, raster_for(graph), runner=reread, runner_name="reread")
    assert result.verdict == "identical", result.sentence()
    assert artifact.latency_steps == len(net_layers(graph))


@needs_lava
@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_lava_runs_the_file_and_every_cell_agrees(name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out", golden=raster_for(graph))
    result = slamp.verify_directory(tmp_path / "out")
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()
    assert result.cells >= 3 * sum(int(np.prod(graph.shapes[name])) for name in graph.spiking) * 60
    manifest = artifact.manifest
    assert manifest["arithmetic"] == "fixed-point"
    assert manifest["verification"]["runner"] == "Lava 0.10.0 (lava-dl 0.6.0, netx, fixed_pt)"
    assert manifest["files"]["network.net"]["sha256"] == file_sha256(tmp_path / "out" / "network.net")


@needs_lava
@pytest.mark.slow
def test_an_edited_weight_is_found_in_lava_and_named(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out", golden=raster_for(graph))
    with h5py.File(tmp_path / "out" / "network.net", "r+") as file:
        file["layer/1/weight"][0, 0] += 40
    result = slamp.verify_directory(tmp_path / "out")
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert result.first_difference.layer == "n1"
    assert result.first_difference.quantity == "u"
    assert "n1: weight[0, 0] is" in result.file_difference
    assert "network.net" in result.altered_files
    assert "the graph has u =" in result.sentence()
    assert artifact.target == "lava"


def test_the_file_holds_what_lava_dl_writes(tmp_path: Path) -> None:
    slamp.export(conv_graph(), to="lava", directory=tmp_path / "out")
    with h5py.File(tmp_path / "out" / "network.net") as file:
        kinds = [file[f"layer/{k}/type"][0].decode() for k in range(len(file["layer"]))]
        assert kinds == ["input", "conv", "conv", "flatten", "dense"]
        assert file["layer/0/shape"][()].tolist() == [2, 8, 10]
        assert file["layer/1/weight"].shape == (4, 1, 3, 2)
        # a 3 x 3 kernel behind a 2 x 2 sum pool is a 6 x 6 kernel in steps of 2
        assert file["layer/2/weight"].shape == (6, 4, 6, 6)
        assert file["layer/2/stride"][()].tolist() == [2, 2]
        assert file["layer/2/padding"][()].tolist() == [2, 2]
        assert file["layer/4/weight"].shape == (5, 96)
        neuron = {key: file[f"layer/1/neuron/{key}"][()] for key in ("type", "iDecay", "vDecay", "vThMant")}
        assert neuron == {"type": b"CUBA", "iDecay": 3001, "vDecay": 900, "vThMant": 150}
        assert file["layer/2/neuron/iDecay"][()] == 4096
        assert file["layer/2/neuron/vDecay"][()] == 0


def test_a_graph_comes_back(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    found = slamp.load_net(artifact.file("network"))
    for mine, theirs in zip(graph.nodes.values(), found.nodes.values(), strict=True):
        if isinstance(mine, (Linear, CubaLIF)):
            for key in mine.__dataclass_fields__:
                assert np.array_equal(getattr(mine, key), getattr(theirs, key))


def test_the_golden_input_is_the_one_given(tmp_path: Path) -> None:
    graph = dense_graph()
    raster = raster_for(graph)
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out", golden=raster)
    assert torch.equal(LavaExporter().read_golden(artifact).data, raster.data)
    (tmp_path / "out" / "golden_input.npz").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"golden_input\.npz: is not what was exported"):
        LavaExporter().read_golden(artifact)


def pooled(padding: tuple[int, int], size: tuple[int, int], window: tuple[int, int] = (2, 2)) -> SpikingGraph:
    conv = Conv2d(whole(12, 2, 1, 3, 3), None, (1, 1), padding, (1, 1), 1)
    nodes: list[Node] = [SumPool2d(window, (2, 2)), conv]
    shape = chain(*nodes, features=(1, *size)).shapes["n1"]
    return chain(*nodes, cuba(shape, vth=300), features=(1, *size))


def test_remainders_of_a_pool_are_cut_off_where_no_padding_needs_them(tmp_path: Path) -> None:
    graph = pooled((0, 0), (9, 11))
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    assert slamp.verify(artifact, graph, raster_for(graph), runner=reread).verdict == "identical"


@pytest.mark.parametrize(
    "weight", [[[5, -3]], [[127, -128]], [[254, -256]], [[255, 1]], [[-7, -3]], [[1, 0]], [[3, -1]]]
)
def test_weights_netx_keeps(weight: object) -> None:
    assert np.array_equal(loaded_by_netx(np.asarray(weight)), weight)


@pytest.mark.parametrize(("weight", "loaded"), [([[-8, -1]], [[-7, -1]]), ([[0, -129]], [[0, 0]])])
def test_weights_netx_changes(weight: object, loaded: object) -> None:
    assert np.array_equal(loaded_by_netx(np.asarray(weight)), loaded)


def one(*nodes: Node, features: tuple[int, ...] = (2,)) -> SpikingGraph:
    return chain(*nodes, features=features)


FIRST = linear([[3.0, -1.0]])
UNEVEN = LIF(*(frozen_array(np.array(values)) for values in ([0.5, 0.25], [0, 0], [64, 64], [0, 0])))
REFUSED: dict[str, tuple[SpikingGraph, str]] = {
    "float": (chain(FIRST, cuba((1,)), features=(2,), arithmetic=slamp.Float32()), "graph: is in float32"),
    "zeros": (one(linear([[0.0, 0.0]]), cuba((1,))), "n0: all weights are zero, on which netx crashes"),
    "power of two": (one(linear([[-8.0, -1.0]]), cuba((1,))), r"n0: netx loads weight\[0, 0\] as -7"),
    "large": (one(linear([[508.0, -4.0]]), cuba((1,))), "n0: weights run from -4 to 508; netx clips them"),
    "fraction": (one(linear([[0.5, -1.0]]), cuba((1,))), r"n0: weight\[0, 0\] is 0\.5; a .net file holds whole"),
    "delay": (one(Delay(uniform(1.0, (2,))), FIRST, cuba((1,))), "n0: Delay is not written"),
    "current bias": (
        one(Affine(frozen_array(np.ones((1, 2))), frozen_array(np.ones(1))), cuba((1,))),
        "n0: has a bias in the current of n1, an input line that is always on",
    ),
    "fine bias": (
        one(FIRST, lif((1,), dv=1, vth=9, bias=np.array([65.0]))),
        r"n1: v_leak\[0\] is 65; a .net file holds 64 times -4096 to 4095",
    ),
    "no weights": (one(cuba((2,))), "n0: has no weights of its own before it"),
    "two weights": (one(FIRST, linear([[1.0]]), cuba((1,))), "n1: follows n0 without neurons between"),
    "no neurons": (one(FIRST, cuba((1,)), linear([[1.0]])), "n2: no neurons follow it"),
    "decays": (
        one(linear([[3.0, -1.0], [1.0, 1.0]]), UNEVEN),
        r"n1: decay_mem runs from 0\.25 to 0\.5; a .net layer has one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_net_file_cannot_hold_is_named_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    graph, message = REFUSED[case]
    with pytest.raises(UnsupportedNodeError, match=message):
        slamp.export(graph, to="lava", directory=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_branches_are_refused(tmp_path: Path) -> None:
    nodes = {**one(FIRST, cuba((1,))).nodes, "skip": FIRST}
    edges = (("input", "n0"), ("n0", "n1"), ("input", "skip"), ("skip", "n1"), ("n1", "output"))
    graph = SpikingGraph(nodes, edges, DT, slamp.FixedPoint())
    with pytest.raises(UnsupportedNodeError, match="input: the network branches here"):
        slamp.export(graph, to="lava", directory=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"golden": 3}, "lava: golden is int"),
        ({"time_limit_s": 0}, "lava: time_limit_s is 0"),
        ({"speed": 1}, "its options are golden, time_limit_s"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=message):
        slamp.export(dense_graph(), to="lava", directory=tmp_path / "out", **options)


def test_somebody_elses_directory_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputDirectoryError, match=r"mine\.txt"):
        slamp.export(dense_graph(), to="lava", directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_lava_absent_crashing_and_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    raster = raster_for(graph)
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="run: slamp lava install"):
        slamp.verify(artifact, graph, raster)
    fake_environment(tmp_path / "crash", "echo no such luck >&2; exit 3")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "crash"))
    with pytest.raises(WitnessError, match="ended with code 3: no such luck"):
        slamp.verify(artifact, graph, raster)
    fake_environment(tmp_path / "quiet", "echo nothing")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "quiet"))
    with pytest.raises(WitnessError, match="Lava ended without a result: nothing"):
        slamp.verify(artifact, graph, raster)
    with pytest.raises(RasterError, match=r"raster: features \(7,\)"):
        LavaExporter().replay(artifact, SpikeRaster(torch.ones(2, 1, 7, dtype=torch.bool), DT))


def test_a_hanging_lava_is_ended_with_all_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "GRACE_S", 0.3)
    graph = dense_graph()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    deaf = f"trap '' TERM; {sys.executable} -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)' & wait"
    fake_environment(tmp_path / "home", f"{deaf}; sleep 60")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "home"))
    started = time.monotonic()
    with pytest.raises(WitnessError, match="not done after 1 s") as caught:
        LavaExporter(time_limit_s=1.0).replay(artifact, raster_for(graph))
    assert time.monotonic() - started < 20
    grandchild = int(str(caught.value).rsplit(maxsplit=1)[-1])
    assert not is_running(grandchild)


@needs_lava
@pytest.mark.slow
def test_a_real_lava_out_of_time_leaves_nothing_behind(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = slamp.export(graph, to="lava", directory=tmp_path / "out")
    long = raster_for(graph, batch=200, steps=500)
    before = set(os.listdir("/dev/shm"))
    with pytest.raises(WitnessError, match="not done after 12 s"):
        LavaExporter(time_limit_s=12.0).replay(artifact, long)
    time.sleep(1.0)
    assert {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} <= before
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"netx_runner" in command_of(path)]
    assert running == []


def command_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_running(process: int) -> bool:
    for _ in range(50):
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or "Z" in status.read_text().split()[2]:
            return False
        time.sleep(0.05)
    os.kill(process, 9)
    return True
