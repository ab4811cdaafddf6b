"""The fixed-point simulator against Lava 0.10's own process models: every cell of u, v and s."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slamp
from exporters import witness_lava
from exporters.lava_lowering import lava_network
from exporters.witness_lava import environment_python, find_python, install, run_models
from fixed_point_strategies import INPUT, Dense, Feed, Inputs, Late, Layer, Network, Neurons, Weights, Wire
from lava_artifacts import needs_lava
from slamp.errors import MissingDependencyError, UnsupportedNodeError, WitnessError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    LIF,
    Affine,
    Conv1d,
    Conv2d,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.simulate import Recording
from test_fixed_point import DT, chain, cuba, linear, ones

SHARED = Path(__file__).parents[2] / "shared" / "data" / "netx"
PLAIN = Network(
    features=(20,),
    layers=(
        Layer((Feed((Wire(INPUT),), Dense(12), Weights("mixed", 2, 0.7, seed=0)),), Neurons("CubaLIF", 300, 200, 4000)),
        Layer((Feed((Wire(0),), Dense(8), Weights("excitatory", 0, 0.7, seed=1)),), Neurons("CubaLIF", 900, 100, 3000)),
    ),
    inputs=Inputs(0.3, seed=0),
)
# n0 hears itself a step later and n1 five steps later, n1 also the input.
RECURRENT = Network(
    features=(6,),
    layers=(
        Layer(
            (
                Feed((Wire(INPUT, Late(0, 62, seed=1)),), Dense(5), Weights("mixed", 1, 1.0, seed=2)),
                Feed((Wire(0, Late(1, 1)),), Dense(5), Weights("mixed", 0, 0.7, seed=3)),
                Feed((Wire(1, Late(5, 5)),), Dense(5), Weights("mixed", 0, 0.7, seed=4)),
            ),
            Neurons("CubaLIF", 300, 200, 800),
        ),
        Layer(
            (
                Feed((Wire(0),), Dense(4), Weights("excitatory", 0, 0.7, seed=5), behind=Late(0, 29, seed=6)),
                Feed((Wire(INPUT),), Dense(4), Weights("mixed", 0, 0.7, seed=7)),
            ),
            Neurons("CubaLIF", 900, 100, 2000),
        ),
    ),
    inputs=Inputs(0.3, seed=8),
)


def differing_cells(
    graph: SpikingGraph, raster: SpikeRaster, answer: Mapping[str, np.ndarray], latency: Mapping[str, int]
) -> int:
    """Cells of u, v and s in which Lava departs from the simulator, each layer after its latency."""
    return unlike_lava(slamp.simulate(graph, raster, record="all"), answer, latency)


def unlike_lava(record: Recording, answer: Mapping[str, np.ndarray], latency: Mapping[str, int]) -> int:
    """Cells of u, v and s in which Lava departs from a recording, each layer after its latency."""
    wrong = 0
    for name, trace in record.traces.items():
        assert trace.i is not None
        assert trace.v is not None
        late = slice(latency[name], latency[name] + record.output.steps)
        wrong += int((answer[f"u/{name}"][late] != trace.i.numpy()).sum())
        wrong += int((answer[f"v/{name}"][late] != trace.v.numpy()).sum())
        if trace.spikes is not None:
            wrong += int((answer[f"s/{name}"][late] != trace.spikes.numpy()).sum())
        else:
            wrong += int(answer[f"s/{name}"].sum())
    return wrong


def flooded(seed: int) -> tuple[SpikingGraph, SpikeRaster]:
    """Sums near the largest allowed, step after step: currents leave 24 bits, and 32, by more than one turn."""
    rng = np.random.default_rng(seed)
    inputs = int(rng.integers(300, 514))
    weight = 128.0 * rng.integers(200, 256, (6, inputs)) * rng.choice([-1, 1])
    decay_syn, decay_mem = rng.choice([1, 3, 100, 2000]) / 4096, int(rng.integers(0, 4097)) / 4096
    neuron = CubaLIF(
        uniform(decay_syn, (6,)),
        uniform(decay_mem, (6,)),
        uniform(128.0 * rng.choice([-4096, 0, 4095]), (6,)),
        uniform(64.0 * rng.integers(0, 131072), (6,)),
        uniform(0.0, (6,)),
    )
    data = rng.random((60, 2, inputs)) < rng.random((60, 1, 1))
    return chain(linear(weight), neuron, features=(inputs,)), SpikeRaster(torch.tensor(data), DT)


@needs_lava
def test_currents_that_flood_equal_lava() -> None:
    cases = [flooded(seed) for seed in range(16)]
    networks = [lava_network(graph, raster) for graph, raster in cases]
    answers = run_models([network.arrays for network in networks])
    for (graph, raster), network, answer in zip(cases, networks, answers, strict=True):
        assert differing_cells(graph, raster, answer, network.latency_steps) == 0
        runs = [slamp.simulate(graph, raster, record="all", engine=engine)["n1"] for engine in ("batched", "events")]
        for key in ("i", "v", "spikes"):
            assert torch.equal(getattr(runs[0], key), getattr(runs[1], key))
    assert sum(bool((np.abs(answer["u/n1"].astype(np.int64)) > 2**25).any()) for answer in answers) > 8
    assert any((np.diff(np.sign(answer["u/n1"].astype(float)), axis=0) != 0).any() for answer in answers)


@needs_lava
def test_biases_of_a_layer_have_one_exponent() -> None:
    def biased(*values: float) -> SpikingGraph:
        bias = frozen_array(np.array(values, dtype=np.float32))
        neuron = CubaLIF(uniform(0.5, (4,)), uniform(0.25, (4,)), bias, uniform(6400, (4,)), uniform(0.0, (4,)))
        return chain(linear(np.ones((4, 3))), neuron, features=(3,))

    with pytest.raises(UnsupportedNodeError, match="n1: its biases need several exponents"):
        lava_network(biased(5.0, -4096 * 128.0, 4095 * 128.0, 77 * 4), ones(3, 3))
    graph = biased(128.0, -4096 * 128.0, 4095 * 128.0, 7 * 128.0)
    network = lava_network(graph, ones(9, 3))
    (answer,) = run_models([network.arrays])
    assert differing_cells(graph, ones(9, 3), answer, network.latency_steps) == 0
    assert answer["s/n1"].any()


@needs_lava
def test_a_wrong_weight_is_seen_in_lavas_answer() -> None:
    graph, raster = PLAIN.graph(), PLAIN.raster()
    network = lava_network(graph, raster)
    (answer,) = run_models([network.arrays])
    assert differing_cells(graph, raster, answer, network.latency_steps) == 0
    name = next(iter(graph.weighted))
    node = graph.weighted[name]
    weight = np.array(node.weight)
    weight.flat[np.argmax(np.abs(weight))] = 0
    values = {key: getattr(node, key) for key in node.__dataclass_fields__} | {"weight": frozen_array(weight)}
    assert differing_cells(graph.with_nodes({name: type(node)(**values)}), raster, answer, network.latency_steps) > 0


@needs_lava
@pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party .net files are not beside the repository")
def test_a_network_of_lava_dl_equals_lava() -> None:
    graph = slamp.load_net(SHARED / "trained_mnist_network.net")
    raster = SpikeRaster(torch.tensor(np.random.default_rng(0).random((60, 2, 784)) < 0.15), DT)
    network = lava_network(graph, raster)
    (answer,) = run_models([network.arrays])
    assert answer["s/neuron2"].any()
    assert network.latency_steps == {"neuron0": 1, "neuron1": 2, "neuron2": 3}
    assert differing_cells(graph, raster, answer, network.latency_steps) == 0


def lowered() -> dict[str, SpikingGraph]:
    """Pools, biases in the current and convolutions that Lava's Conv has not, before layers that fire."""
    rng = np.random.default_rng(11)

    def weights(*shape: int, unit: float = 1.0) -> np.ndarray:
        return frozen_array(rng.integers(-50, 52, shape) * unit)

    def steps(low: int, high: int, *shape: int) -> Delay:
        return Delay(frozen_array(rng.integers(low, high, shape)))

    def kernel(*shape: int, bias: object = None, **settings: object) -> Conv2d:
        given = None if bias is None else frozen_array(np.asarray(bias, dtype=np.float32))
        known = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | settings
        return Conv2d(weights(*shape), given, **known)  # type: ignore[arg-type]  # as named

    def graph(*nodes: Node, features: tuple[int, ...] = (2, 8, 8)) -> SpikingGraph:
        shape = list(chain(*nodes, features=features).shapes.values())[-1]
        return chain(*nodes, cuba(shape, du=1500, dv=300, vth=150), features=features)

    line = Conv1d(weights(3, 2, 3), frozen_array(np.array([9.0, -5, 0])), (2,), (1,), (1,), 1)
    return {
        "pool and linear": graph(SumPool2d((2, 2), (2, 2)), Flatten(0, 2), Linear(weights(5, 32))),
        "pool and convolution": graph(SumPool2d((2, 2), (2, 2)), kernel(3, 2, 3, 3, padding=(1, 1))),
        "pool and fractions": graph(SumPool2d((2, 2), (2, 2)), Flatten(0, 2), Linear(weights(5, 32, unit=0.25))),
        "convolution and Flatten": graph(kernel(3, 2, 3, 3, bias=[4, -9, 40]), Flatten(0, 2)),
        "uneven padding": graph(kernel(3, 2, 2, 2, padding="same")),
        "one axis": graph(line, features=(2, 9)),
        "delay and convolution": graph(steps(0, 9, 2, 8, 8), kernel(3, 2, 3, 3, stride=(2, 1))),
        "convolution and delay": graph(kernel(3, 2, 3, 3), steps(0, 9, 3, 6, 6)),
        "delay and pool": graph(
            steps(0, 4, 2, 8, 8), SumPool2d((2, 2), (2, 2)), Delay(uniform(3.0, (2, 4, 4))), kernel(3, 2, 2, 2)
        ),
        "bias": graph(Affine(weights(6, 10), frozen_array(np.array([50.0, -90, 0, 7, 1, -1]))), features=(10,)),
        "bias at 64 times": graph(Affine(weights(2, 10), frozen_array(np.array([640.0, -6400]))), features=(10,)),
        "fractional bias": graph(Affine(weights(3, 10), frozen_array(np.array([0.75, -0.75, 30]))), features=(10,)),
        "fractional weights": graph(
            Affine(weights(3, 10, unit=0.125), frozen_array(np.array([9.0, -3, 2]))), features=(10,)
        ),
        "bias per channel": graph(kernel(3, 2, 3, 3, bias=[30, -100, 5])),
        "bias and delay": graph(
            Affine(weights(4, 10), frozen_array(np.array([60.0, -9, 30, 2]))), steps(0, 7, 4), features=(10,)
        ),
        "fractional kernel": graph(Conv2d(weights(3, 2, 3, 3, unit=0.5), None, (1, 1), (0, 0), (1, 1), 1)),
    }


@needs_lava
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_pools_biases_and_other_convolutions_equal_lava_in_every_cell() -> None:
    cases = lowered()
    rng = np.random.default_rng(12)
    rasters = [
        SpikeRaster(torch.tensor(rng.random((40, 2, *graph.shapes[graph.input])) < 0.3), DT) for graph in cases.values()
    ]
    networks = [lava_network(graph, raster) for graph, raster in zip(cases.values(), rasters, strict=True)]
    answers = run_models([network.arrays for network in networks])
    for (name, graph), raster, network, answer in zip(cases.items(), rasters, networks, answers, strict=True):
        (layer,) = graph.spiking
        assert 0.01 < answer[f"s/{layer}"].mean() < 0.7, name
        assert differing_cells(graph, raster, answer, network.latency_steps) == 0, name


def test_what_has_no_process_of_lava_is_refused() -> None:
    spatial = ones(2, 1, 4, 4)
    conv = Conv2d(frozen_array(np.ones((1, 1, 1, 1))), None, (1, 1), (0, 0), (1, 1), 1)
    with pytest.raises(UnsupportedNodeError, match="n1: SumPool2d before neurons has no process"):
        lava_network(chain(conv, SumPool2d((2, 2), (2, 2)), cuba((1, 2, 2)), features=(1, 4, 4)), spatial)
    rounded = Affine(frozen_array(np.full((1, 1), 0.5)), frozen_array(np.full(1, 0.5)))
    with pytest.raises(UnsupportedNodeError, match="n0: weights and bias are fractional"):
        lava_network(chain(rounded, cuba((1,)), features=(1,)), ones(2, 1))
    large = SumPool2d((2, 2), (1, 1)), replace(conv, weight=frozen_array(np.array([[[[-100.0, 101], [99, 101]]]])))
    with pytest.raises(UnsupportedNodeError, match=r"n1: with the pools before it its weights run .* 8 bits"):
        lava_network(chain(*large, cuba((1, 2, 2)), features=(1, 4, 4)), spatial)
    mixed = LIF(frozen_array(np.array([0.5, 0.25])), uniform(0, (2,)), uniform(64, (2,)), uniform(0, (2,)))
    with pytest.raises(UnsupportedNodeError, match=r"n1: decay_mem runs from 0\.25 to 0\.5; Lava's LIF has one"):
        lava_network(chain(linear(np.ones((2, 1))), mixed, features=(1,)), ones(2, 1))
    with pytest.raises(UnsupportedNodeError, match="graph: is in float32"):
        lava_network(chain(linear([[1.0]]), cuba((1,)), features=(1,), arithmetic=slamp.Float32()), ones(2, 1))


def test_a_shorter_path_waits_for_the_longer_one() -> None:
    nodes: dict[str, Node] = {
        "input": Input((1,)),
        "a": linear([[1.0]]),
        "na": cuba((1,)),
        "b": linear([[1.0]]),
        "skip": linear([[1.0]]),
        "nb": cuba((1,)),
        "output": Output((1,)),
    }
    edges = (("input", "a"), ("a", "na"), ("na", "b"), ("b", "nb"), ("input", "skip"), ("skip", "nb"), ("nb", "output"))
    graph = SpikingGraph(nodes, edges, DT, slamp.FixedPoint())
    network = lava_network(graph, ones(2, 1))
    assert network.latency_steps == {"na": 1, "nb": 2}
    delays = [array.tolist() for name, array in network.arrays.items() if name.startswith("delay/")]
    assert delays == [[[1]]]  # the shorter path waits a step


def joined(weight: object) -> SpikingGraph:
    """The input twice, once delayed, summed before the weights, which drive two layers at different latencies."""
    nodes: dict[str, Node] = {
        "input": Input((2,)),
        "late": Delay(frozen_array(np.array([2.0, 5.0]))),
        "w": linear(weight),
        "na": cuba((2,), du=2000, dv=200, vth=40),
        "up": linear([[50.0, 30.0], [20.0, 9.0]]),
        "nb": cuba((2,), du=2000, dv=200, vth=40),
        "output": Output((2,)),
    }
    edges = [("input", "late"), ("late", "w"), ("input", "w"), ("w", "na"), ("na", "up"), ("up", "nb"), ("w", "nb")]
    return SpikingGraph(nodes, (*edges, ("nb", "output")), DT, slamp.FixedPoint())


@needs_lava
def test_weights_with_several_sources_and_targets_equal_lava() -> None:
    graph = joined([[40.0, -7.0], [-3.0, 25.0]])
    raster = SpikeRaster(torch.tensor(np.random.default_rng(0).random((60, 3, 2)) < 0.4), DT)
    network = lava_network(graph, raster)
    (answer,) = run_models([network.arrays])
    assert answer["s/na"].any()
    assert answer["s/nb"].any()
    assert differing_cells(graph, raster, answer, network.latency_steps) == 0


def test_sums_that_lava_rounds_apart_are_refused() -> None:
    with pytest.raises(UnsupportedNodeError, match="w: has fractional weights and sums input and input"):
        lava_network(joined([[0.5, 1.0], [1.0, 1.0]]), ones(2, 2))


def test_names_of_sources_are_taken() -> None:
    graph = chain(linear([[1.0]]), cuba((1,)), features=(1,))
    nodes = {{"n1": "always_on"}.get(name, name): node for name, node in graph.nodes.items()}
    edges = tuple(tuple({"n1": "always_on"}.get(end, end) for end in edge) for edge in graph.edges)
    with pytest.raises(UnsupportedNodeError, match="always_on: is a layer of neurons, and the name is taken"):
        lava_network(SpikingGraph(nodes, edges, DT, slamp.FixedPoint()), ones(2, 1))  # type: ignore[arg-type]  # pairs


def fixed_point(nodes: dict[str, Node], *edges: tuple[str, str]) -> SpikingGraph:
    named = {"input": Input((4,)), **nodes, "output": Output((4,))}
    return SpikingGraph(named, edges, DT, slamp.FixedPoint())


@needs_lava
@pytest.mark.parametrize("sources", [1, 2], ids=["two targets", "one source twice"])
def test_two_delays_at_one_weight_equal_lava(sources: int) -> None:
    rng = np.random.default_rng(0)
    neurons = cuba((4,), du=500, dv=300, vth=200)
    late: dict[str, Node] = {name: Delay(uniform(steps, (4,))) for name, steps in (("soon", 2.0), ("later", 5.0))}
    weights = linear(rng.integers(0, 255, (4, 4)))
    if sources == 2:
        edges = [("input", "soon"), ("input", "later"), ("soon", "w"), ("later", "w"), ("w", "n"), ("n", "output")]
        graph = fixed_point({**late, "w": weights, "n": neurons}, *edges)
    else:
        edges = [("input", "w"), ("w", "soon"), ("w", "later"), ("soon", "n"), ("n", "x"), ("x", "m"), ("later", "m")]
        graph = fixed_point({**late, "w": weights, "n": neurons, "x": weights, "m": neurons}, *edges, ("m", "output"))
    raster = SpikeRaster(torch.tensor(rng.random((50, 1, 4)) < 0.3), DT)
    network = lava_network(graph, raster)
    (answer,) = run_models([network.arrays])
    assert answer["s/n"].any()
    assert differing_cells(graph, raster, answer, network.latency_steps) == 0


def test_a_cycle_that_lava_cannot_keep_up_with_is_refused() -> None:
    graph = RECURRENT.graph()
    at_once, soon = (Delay(uniform(steps, graph.shapes["n1"])) for steps in (0.0, 1.0))
    hasty = graph.with_nodes({"before0_2_0": soon, "behind1_0": at_once})
    with pytest.raises(UnsupportedNodeError, match="lies on a cycle of more synapses than steps of delay"):
        lava_network(hasty, RECURRENT.raster())


def biased(bias: float) -> SpikingGraph:
    graph = RECURRENT.graph()
    return graph.with_nodes({"n0": cuba(graph.shapes["n0"], du=2000, dv=100, vth=200, bias=int(bias))})


def test_spikes_of_a_bias_before_the_start_are_refused_where_they_last() -> None:
    raster = RECURRENT.raster()
    with pytest.raises(UnsupportedNodeError, match="n0: its bias alone makes it fire in the 1 steps before its first"):
        lava_network(biased(200 * 64 + 64), raster)
    assert "reset_offset" in bytes(lava_network(biased(200 * 64), raster).arrays["network"]).decode()


@needs_lava
def test_a_quiet_bias_and_recurrence_equal_lava() -> None:
    raster = RECURRENT.raster()
    graph = biased(64 * 30)
    network = lava_network(graph, raster)
    (answer,) = run_models([network.arrays])
    assert answer["s/n0"].any()
    assert differing_cells(graph, raster, answer, network.latency_steps) == 0


def test_delays_lava_does_not_have_are_refused() -> None:
    uneven = Delay(frozen_array(np.array([[[0.0, 1.0]]], dtype=np.float32)))
    behind = SumPool2d((1, 1), (1, 1)), uneven, Flatten(0, 2), linear([[1.0, 1.0]])
    with pytest.raises(UnsupportedNodeError, match="n1: delays the sums of n0 by 0 to 1 steps"):
        lava_network(chain(*behind, cuba((1,)), features=(1, 1, 2)), ones(2, 1, 1, 2))
    late = Delay(frozen_array(np.array([0.0, 1.0], dtype=np.float32)))
    with pytest.raises(UnsupportedNodeError, match="n1: has fractional weights behind different delays"):
        lava_network(chain(late, linear([[0.5, 0.25]]), cuba((1,)), features=(2,)), ones(2, 2))
    far = Delay(uniform(62.0, (1,)))
    with pytest.raises(UnsupportedNodeError, match="n2: needs delays of 124 steps; allowed are 0 to 62"):
        lava_network(chain(far, far, linear([[1.0]]), cuba((1,)), features=(1,)), ones(2, 1))


def test_missing_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="Lava: no finished environment in"):
        run_models([])


def fake_environment(home: Path, script: str) -> None:
    (home / "lava" / "bin").mkdir(parents=True)
    python = home / "lava" / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (home / "lava" / "ready.json").write_text("{}")


def test_a_crash_a_hang_and_silence_are_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays = {"inputs": np.zeros((1, 1, 1), np.int32)}
    for name, script, message in (
        ("crash", "echo no such luck >&2; exit 3", "ended with code 3: no such luck"),
        ("hang", "sleep 60", "not done after 0.5 s"),
        ("silence", "echo nothing", "Lava ended without a result: nothing"),
    ):
        fake_environment(tmp_path / name, script)
        monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / name))
        with pytest.raises(WitnessError, match=message):
            run_models([arrays], time_limit_s=0.5 if name == "hang" else 60)


def test_no_python_is_found_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert find_python() is None


@pytest.mark.parametrize("official", [True, False], ids=["python3.10", "another python"])
def test_what_is_installed_depends_on_the_python(
    official: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def pretend(command: list[str], time_limit_s: float) -> str:
        commands.append(command)
        if "venv" in command:
            packages = Path(command[-1]) / "lib" / "python3.10" / "site-packages"
            (packages / "tests").mkdir(parents=True)
            (packages / "lava").mkdir()
            (Path(command[-1]) / "bin").mkdir()
            (Path(command[-1]) / "bin" / "python").write_text("")
        return ""

    monkeypatch.setattr(witness_lava, "run_child", pretend)
    monkeypatch.setattr(witness_lava, "find_python", lambda: Path("/found/python3.10") if official else None)
    assert install(tmp_path) == environment_python(tmp_path)
    ready = json.loads((tmp_path / "lava" / "ready.json").read_text())
    assert ready["shimmed"] is not official
    assert ready["python"] == ("3.10" if official else "{}.{}".format(*sys.version_info))
    assert "lava-dl==0.6.0" in ready["requirements"]
    assert commands[0][0] == ("/found/python3.10" if official else sys.executable)
    assert any("--ignore-requires-python" in command for command in commands) is not official
    assert commands[-1][-1].endswith("netx_runner.py")  # what does not import is not finished
    assert [path.name for path in (tmp_path / "lava").glob("lib/*/site-packages/*")] == ["lava"]


@pytest.mark.slow
def test_failed_installation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(WitnessError, match="ended with code 1"):
        install(tmp_path / "home", pip_arguments=("--no-index", "--find-links", str(tmp_path)))
    assert list((tmp_path / "home").iterdir()) == []
