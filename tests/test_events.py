"""The event-driven engine against the batched one: every cell of u, v and s. Against Lava: test_lava_properties.py."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import slamp
from fixed_point_strategies import Network, networks
from slamp import events
from slamp.errors import GraphError, RasterError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    Affine,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Shape,
    SumPool2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape
from slamp.simulate import Recording
from test_fixed_point import DT, chain, cuba, linear, ones

STEPS = 40
# torch says that it copies; it pads the same
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def both(graph: SpikingGraph, raster: SpikeRaster) -> tuple[Recording, Recording]:
    """The run of each engine, everything recorded."""
    batched = slamp.simulate(graph, raster, record="all", engine="batched")
    return batched, slamp.simulate(graph, raster, record="all", engine="events")


def difference(batched: Recording, found: Recording) -> list[str]:
    """Say what differs between two recordings: cells, dtypes, shapes, names."""
    pairs = [("output", batched.output.data, found.output.data)]
    if list(batched.traces) != list(found.traces):
        return ["traces"]
    for name, trace in batched.traces.items():
        pairs += [(f"{key} of {name}", getattr(trace, key), getattr(found[name], key)) for key in ("spikes", "v", "i")]
    wrong = []
    for what, left, right in pairs:
        if left is None or right is None:
            wrong += [what] if left is not right else []
        elif left.dtype != right.dtype or left.shape != right.shape or not torch.equal(left, right):
            wrong.append(what)
    return wrong


def random_weight(rng: np.random.Generator, shape: Shape, *, exponents: tuple[int, int]) -> np.ndarray:
    """8-bit weights of any sign mode, some of them zero, with an exponent."""
    low, high = [(-128, 127), (0, 255), (-255, 0)][rng.choice(3, p=[0.6, 0.3, 0.1])]
    weight = rng.integers(low, high + 1, shape) * (rng.random(shape) < rng.choice([0.2, 0.7, 1.0]))
    return frozen_array((weight * 2.0 ** rng.integers(*exponents)).astype(np.float32))


def random_raster(rng: np.random.Generator, batch: int, features: Shape) -> SpikeRaster:
    """Spikes at any rate, or whole numbers of both signs."""
    data = rng.random((STEPS, batch, *features)) < rng.choice([0.02, 0.1, 0.4, 0.9])
    if rng.random() < 0.3:
        graded = torch.tensor(data * rng.integers(-60, 61, data.shape), dtype=torch.float32)
        return SpikeRaster(graded, DT, kind="analog")
    return SpikeRaster(torch.tensor(data), DT)


def random_neurons(rng: np.random.Generator, shape: Shape, drive: float, *, last: bool) -> Node:
    """Any kind of neuron; every parameter may differ from neuron to neuron."""

    def decay(most: int) -> np.ndarray:
        size = shape if rng.random() < 0.5 else ()
        return frozen_array(np.broadcast_to(rng.integers(0, most + 1, size) / 4096, shape).copy())

    bias = frozen_array((rng.integers(-4096, 4096, shape) * (rng.random() < 0.5)).astype(np.float32))
    threshold = frozen_array(64.0 * np.clip(rng.integers(0, max(2, int(2 * drive)), shape), 0, 131071))
    most = int(rng.choice([300, 4096]))
    if last and rng.random() < 0.4:
        return CubaLI(decay(most), decay(most), bias) if rng.random() < 0.5 else LI(decay(most), bias)
    kind = rng.integers(3)
    if kind == 0:
        return IF(threshold, uniform(0.0, shape))
    if kind == 1:
        return LIF(decay(most), bias, threshold, uniform(0.0, shape))
    return CubaLIF(decay(most), decay(most), bias, threshold, uniform(0.0, shape))


def random_bias(rng: np.random.Generator, outputs: int) -> np.ndarray:
    return frozen_array((rng.integers(-100, 101, outputs) * 2.0 ** rng.integers(-3, 3)).astype(np.float32))


def random_node(rng: np.random.Generator, shape: Shape, exponents: tuple[int, int]) -> Node:
    """A dense layer, a convolution over one axis or two, or a pool, that takes inputs of a shape."""
    if len(shape) == 1:
        outputs = int(rng.integers(2, 40))
        weight = random_weight(rng, (outputs, shape[0]), exponents=exponents)
        return Linear(weight) if rng.random() < 0.5 else Affine(weight, random_bias(rng, outputs))
    if len(shape) == 3 and min(shape[1:]) >= 3 and rng.random() < 0.25:
        return SumPool2d((2, int(rng.integers(1, 4))), (int(rng.integers(1, 4)), 1))
    axes, groups = len(shape) - 1, 2 if shape[0] % 2 == 0 and rng.random() < 0.5 else 1
    kernel = tuple(int(size) for size in rng.integers(1, 4, axes))
    outputs = groups * int(rng.integers(1, 4))
    weight = random_weight(rng, (outputs, shape[0] // groups, *kernel), exponents=exponents)
    bias = random_bias(rng, outputs) if rng.random() < 0.5 else None
    dilation = tuple(int(size) for size in rng.integers(1, 3, axes))
    if rng.random() < 0.3:
        return (Conv1d if axes == 1 else Conv2d)(weight, bias, (1,) * axes, "same", dilation, groups)
    stride = tuple(int(size) for size in rng.integers(1, 4, axes))
    padding = tuple(int(size) for size in rng.integers(2, 4, axes))
    return (Conv1d if axes == 1 else Conv2d)(weight, bias, stride, padding, dilation, groups)


def random_graph(seed: int) -> tuple[SpikingGraph, SpikeRaster]:
    """A network of every kind of node; the second neuron layer also hears the input and the first."""
    rng = np.random.default_rng([seed, 4])
    features: Shape = [(30,), (4, 9, 8), (2, 17)][rng.integers(3)]
    raster = random_raster(rng, int(rng.integers(1, 6)), features)
    exponents = (-5, 1)
    nodes: dict[str, Node] = {"input": Input(features)}
    edges: list[tuple[str, str]] = []
    shapes: dict[str, Shape] = {"input": features}

    def add(name: str, node: Node, source: str) -> str:
        nodes[name], shapes[name] = node, output_shape(name, node, shapes[source])
        edges.append((source, name))
        return name

    here = "input"
    depth = int(rng.integers(1, 4))
    for layer in range(depth):
        if layer and len(shapes[here]) > 1 and rng.random() < 0.6:
            here = add(f"flatten{layer}", Flatten(0, len(shapes[here]) - 1), here)
        node = random_node(rng, shapes[here], exponents)
        here = add(f"w{layer}", node, here)
        if isinstance(node, SumPool2d):
            here = add(f"w{layer}b", random_node(rng, shapes[here], exponents), here)
        arriving, size = [here], shapes[here]
        if len(size) == 1:
            for source in [f"n{k}" for k in range(layer)] + ["input"]:
                if len(shapes[source]) == 1 and rng.random() < 0.5:
                    weight = random_weight(rng, (size[0], shapes[source][0]), exponents=exponents)
                    arriving.append(add(f"{source}skip{layer}", Linear(weight), source))
        here = add(f"n{layer}", random_neurons(rng, size, 60.0, last=layer == depth - 1), arriving[0])
        edges += [(source, here) for source in arriving[1:]]
    add("output", Output(shapes[here]), here)
    return SpikingGraph(nodes, tuple(edges), DT, slamp.FixedPoint()), raster


def test_both_engines_agree_on_networks_of_every_kind() -> None:
    spiking, kinds = 0, set()
    for seed in range(150):
        graph, raster = random_graph(seed)
        batched, found = both(graph, raster)
        assert difference(batched, found) == [], seed
        spiking += bool(batched.spike_count)
        kinds |= {type(node) for node in graph.nodes.values()}
    assert spiking > 100
    assert kinds == set(events.KNOWN)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks(delays=False))
def test_both_engines_agree_on_the_networks_lava_is_asked_about(network: Network) -> None:
    """Currents that wrap, membranes that saturate, weights of every exponent."""
    assert difference(*both(network.graph(), network.raster())) == []


def test_pieces_of_steps_and_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, raster = random_graph(3)
    batched, found = both(graph, raster)
    assert batched.spike_count
    for cells in (1, 500, 5000):
        monkeypatch.setattr(events, "CHUNK_CELLS", cells)
        assert difference(batched, slamp.simulate(graph, raster, record="all", engine="events")) == []
    assert difference(batched, found) == []


@pytest.mark.parametrize("row_density", [0.0, 1.1])
def test_lists_and_rows_give_the_same(monkeypatch: pytest.MonkeyPatch, row_density: float) -> None:
    monkeypatch.setattr(events, "ROW_DENSITY", row_density)
    for seed in range(150, 180):
        assert difference(*both(*random_graph(seed))) == [], seed


def test_sums_beyond_32_bits_of_units_are_exact() -> None:
    # In units of 2^-8 the sums reach 2^32.
    weight = [[2.0**-8, 127 * 2.0**-8, 0.5]]
    values = [[2.0**24 - 1, 1.0, 2.0**23], [-(2.0**24) + 1, 2.0, -(2.0**23)], [2.0**24 - 127, 1.0, 0.0]]
    raster = SpikeRaster(torch.tensor(values)[:, None], DT, kind="analog")
    graph = chain(linear(weight), cuba((1,), du=4095, dv=4096, vth=131071), features=(3,))
    batched, found = both(graph, raster)
    assert difference(batched, found) == []
    assert batched["n1"].i is not None
    assert int(batched["n1"].i.max()) > 2**27


def test_a_recording_holds_what_was_asked_for() -> None:
    graph, raster = random_graph(11)
    for record in ("output", "spikes"):
        batched = slamp.simulate(graph, raster, record=record, engine="batched")
        found = slamp.simulate(graph, raster, record=record, engine="events")
        assert difference(batched, found) == []
        assert bool(found.traces) == (record == "spikes")


def test_a_current_as_output_is_the_same() -> None:
    graph = chain(linear(np.arange(6).reshape(2, 3) - 2), features=(3,))
    batched, found = both(graph, ones(4, 3))
    assert difference(batched, found) == []
    assert found.output.data[0, 0].tolist() == [-3.0, 6.0]


def test_a_wrong_number_is_seen() -> None:
    """The comparison fails for one weight, one bias and one threshold that differ."""
    weight = np.array([[5.0, -3.0, 9.0], [1.0, 7.0, -2.0]])
    neurons = cuba((2,), du=900, dv=200, vth=20)
    raster = SpikeRaster(torch.tensor(np.random.default_rng(0).random((50, 2, 3)) < 0.5), DT)
    right = slamp.simulate(chain(linear(weight), neurons, features=(3,)), raster, record="all", engine="batched")
    other = weight.copy()
    other[1, 2] = -3.0
    for nodes, expected in (
        ((linear(other), neurons), {"i of n1", "v of n1"}),
        ((linear(weight), replace(neurons, v_leak=uniform(1.0, (2,)))), {"v of n1"}),
        ((linear(weight), replace(neurons, v_threshold=uniform(64 * 40, (2,)))), {"output", "spikes of n1", "v of n1"}),
    ):
        found = slamp.simulate(chain(*nodes, features=(3,)), raster, record="all", engine="events")
        assert expected <= set(difference(right, found))


def test_unknown_engines_and_float_graphs_are_refused() -> None:
    graph = chain(linear([[1.0]]), cuba((1,)), features=(1,))
    with pytest.raises(GraphError, match="engine: 'fast'; allowed are auto, batched, events"):
        slamp.simulate(graph, ones(2, 1), engine="fast")  # type: ignore[arg-type]  # the mistake under test
    twin = chain(linear([[1.0]]), cuba((1,)), features=(1,), arithmetic=slamp.Float32())
    for engine in ("batched", "events"):
        with pytest.raises(GraphError, match=f"engine: '{engine}' is for fixed-point graphs, and this one is in float"):
            slamp.simulate(twin, ones(2, 1), engine=engine)
    with pytest.raises(RasterError, match="raster: features"):
        slamp.simulate(graph, ones(2, 3), engine="events")
    large = chain(linear([[16384.0] * 1025]), cuba((1,)), features=(1025,))
    with pytest.raises(GraphError, match="n0: its sums may reach 16793600; allowed is 16777216"):
        slamp.simulate(large, ones(1, 1025), engine="events")


def test_a_node_the_engine_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, raster = chain(linear([[1.0]]), cuba((1,)), features=(1,)), ones(2, 1)
    monkeypatch.setattr(events, "KNOWN", tuple(kind for kind in events.KNOWN if kind is not Linear))
    with pytest.raises(GraphError, match="n0: Linear is unknown to the event-driven engine; use engine='batched'"):
        slamp.simulate(graph, raster, engine="events")
    assert slamp.simulate(graph, raster, engine="auto").output.steps == 2


def test_sums_beyond_32_bits_go_to_the_batched_engine() -> None:
    pooled = chain(SumPool2d((2, 2), (2, 2)), Flatten(0, 2), linear([[2.0**-8]]), cuba((1,)), features=(1, 2, 2))
    raster = SpikeRaster(torch.full((5000, 1, 1, 2, 2), 2.0**29), DT, kind="analog")
    with pytest.raises(GraphError, match="n1: its inputs may reach 2147483648, beyond the 32-bit integers"):
        slamp.simulate(pooled, raster, engine="events")
    assert slamp.simulate(pooled, raster).output.steps == 5000


def test_auto_takes_events_for_long_runs_of_few_samples_or_few_spikes() -> None:
    graph = chain(linear(np.ones((2, 10))), cuba((2,)), features=(10,))

    def raster(steps: int, batch: int, rate: float) -> SpikeRaster:
        return SpikeRaster(torch.tensor(np.random.default_rng(0).random((steps, batch, 10)) < rate), DT)

    assert not events.worth_events(graph, raster(4999, 1, 0.1))
    assert events.worth_events(graph, raster(5000, 1, 0.9))
    assert events.worth_events(graph, raster(100, 50, 0.1))
    assert not events.worth_events(graph, raster(100, 50, 0.3))
    assert (
        difference(
            slamp.simulate(graph, raster(5000, 1, 0.9)), slamp.simulate(graph, raster(5000, 1, 0.9), engine="batched")
        )
        == []
    )


def test_importing_slamp_loads_no_compiler() -> None:
    code = "import sys, slamp; raise SystemExit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_writable_cache_the_engine_compiles_anew(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from numba.core import caching\n"
        "def no(self): raise OSError('read-only')\n"
        "for locator in caching.CacheImpl._locator_classes: locator.ensure_cache_path = no\n"
        "import numpy as np\n"
        "from slamp import event_loops as loops\n"
        "events = np.zeros(3, np.int64)\n"
        "assert loops._events_of(np.array([0, 1, 1], np.uint8), events) == 2\n"
        "assert events[:2].tolist() == [1, 2]\n"
    )
    found = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_delays_and_cycles_go_to_the_batched_engine() -> None:
    nodes: dict[str, Node] = {
        "input": Input((2,)),
        "w": linear([[90.0, 70.0]]),
        "n": cuba((1,)),
        "late": Delay(uniform(1, (1,))),
        "back": linear([[-60.0]]),
        "output": Output((1,)),
    }
    edges = (("input", "w"), ("w", "n"), ("n", "late"), ("late", "back"), ("back", "n"), ("n", "output"))
    graph = SpikingGraph(nodes, edges, DT, slamp.FixedPoint())
    with pytest.raises(GraphError, match="late: Delay is unknown to the event-driven engine; use engine='batched'"):
        slamp.simulate(graph, ones(5000, 2), engine="events")
    assert slamp.simulate(graph, ones(5000, 2)).output.data.any()


def test_both_engines_take_what_either_takes() -> None:
    graded = chain(linear([[255 / 256]]), features=(1,))
    large = SpikeRaster(torch.full((3, 1, 1), 1e6), DT, kind="analog")
    found = [slamp.simulate(graded, large, engine=engine).output.data for engine in ("batched", "events")]
    assert found[0].tolist() == found[1].tolist() == [[[996093.0]]] * 3
    with pytest.raises(GraphError, match="record: 'foo'; allowed are output, spikes, all"):
        slamp.simulate(graded, large, record="foo")  # type: ignore[arg-type]  # the mistake under test
