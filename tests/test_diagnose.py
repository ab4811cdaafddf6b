from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slamp.compare import compare
from slamp.conventions import Convention, run_convention
from slamp.diagnose import find_parameter_difference, parameter_differences, probable_cause
from slamp.errors import ArtifactError, GraphError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact, staged_artifact
from slamp.nodes import IF, LI, Affine, CubaLIF, Linear, Node, frozen_array, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, Trace, simulate
from verify_networks import chain, changed, conv_graph, cuba, dense_graph, lif, raster, reference_run, with_entry


def cause_of(graph: SpikingGraph, replayed: Recording, inputs: SpikeRaster) -> str:
    """Diagnose the first difference, as `verify` does."""
    reference = reference_run(graph, inputs)
    first = compare(reference, replayed, order=graph.order).first_difference
    assert first is not None, "the sabotage changes no spike, so it tests nothing"
    sample = slice(first.sample, first.sample + 1)
    spikes = {name: reference[name].spikes[:, sample] for name in graph.spiking}
    inside = inputs.samples(first.sample, first.sample + 1)
    return probable_cause(graph, first.layer, inside, spikes, replayed[first.layer].spikes[:, sample])


def sabotaged(graph: SpikingGraph, name: str, **fields: object) -> Callable[[SpikeRaster], Recording]:
    return lambda inputs: simulate(changed(graph, name, **fields), inputs, record="spikes")


def decays(graph: SpikingGraph, change: Callable[[np.ndarray], np.ndarray]) -> SpikingGraph:
    """Change both decays of the CubaLIF layer lif1 of the dense graph."""
    node = graph.nodes["lif1"]
    assert isinstance(node, CubaLIF)
    both = {key: frozen_array(change(getattr(node, key).astype(np.float64))) for key in ("decay_mem", "decay_syn")}
    return changed(graph, "lif1", **both)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"reset": "subtract"}, "reset: by subtraction instead of by value"),
        ({"v_reset": uniform(0.0, (16,))}, "reset: to 0 instead of v_reset"),
        ({"v_reset": uniform(0.05, (16,))}, "reset: to v_leak instead of v_reset"),
        ({"v_leak": uniform(0.0, (16,))}, "leak: v_leak is ignored"),
        ({"v_threshold": uniform(0.42, (16,))}, "threshold: the spikes fit one from 0.4"),
    ],
)
def test_wrong_neuron_parameter_is_named(fields: dict[str, object], word: str) -> None:
    graph = dense_graph()
    inputs = raster(graph)
    assert cause_of(graph, sabotaged(graph, "lif1", **fields)(inputs), inputs).startswith(word)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda decay: -np.expm1(-decay), "decay: exponential, decay_mem and decay_syn"),
        (lambda decay: 1 - decay, "decay: the share kept is taken for the share lost in decay_mem and decay_syn"),
        (lambda decay: decay * 0.1, "dt: 0.1 times"),
        (lambda decay: decay * 0.001, "dt: 0.001 times"),
        (lambda decay: np.minimum(decay * 10, 1), "dt: 10 times"),
    ],
)
def test_wrong_decay_convention_is_named(change: Callable[[np.ndarray], np.ndarray], word: str) -> None:
    graph = dense_graph()
    inputs = raster(graph)
    replayed = simulate(decays(graph, change), inputs, record="spikes")
    assert word in cause_of(graph, replayed, inputs)


@pytest.mark.parametrize(
    ("factor", "word"),
    [
        (0.3, "gain: the input is multiplied by decay_syn (0.3)"),
        (1 / 0.3, "gain: the input is divided by decay_syn"),
        (10, "gain: the input is divided by decay_mem (0.1)"),
    ],
)
def test_wrong_gain_is_named(factor: float, word: str) -> None:
    graph = dense_graph()
    inputs = raster(graph)
    node = graph.nodes["fc1"]
    assert isinstance(node, Linear)
    replayed = simulate(changed(graph, "fc1", weight=frozen_array(node.weight * factor)), inputs, record="spikes")
    assert cause_of(graph, replayed, inputs).startswith(word)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_late_and_early_layers_are_named(steps: int) -> None:
    graph = dense_graph()
    inputs = raster(graph)
    spikes = reference_run(graph, inputs)["lif1"].spikes
    said = "1 step" if steps == 1 else f"{steps} steps"
    for shift, word in ((steps, "late"), (-steps, "early")):
        moved = torch.roll(spikes, shift, 0)
        moved[:shift] = False if shift > 0 else moved[:shift]
        replayed = Recording(SpikeRaster(torch.zeros(40, 6, 8, dtype=torch.bool)), {"lif1": Trace(spikes=moved)})
        assert cause_of(graph, replayed, inputs).startswith(f"latency: the layer answers {said} {word}")


def test_input_that_arrives_late_is_named() -> None:
    graph = conv_graph()
    inputs = raster(graph)
    late = SpikeRaster(torch.roll(inputs.data, 1, 0).index_fill(0, torch.tensor([0]), False), inputs.dt)
    replayed = simulate(graph, late, record="spikes")
    # a bias reaches the neurons from the first step on, so the whole layer being late is not what happened
    assert "latency: the layer" not in cause_of(graph, replayed, inputs)
    unbiased = dense_graph()
    inputs = raster(unbiased)
    late = SpikeRaster(torch.roll(inputs.data, 1, 0).index_fill(0, torch.tensor([0]), False), inputs.dt)
    shifted_start = changed(unbiased, "lif1", v_leak=uniform(0.3, (16,)))
    cause = cause_of(shifted_start, simulate(shifted_start, late, record="spikes"), inputs)
    assert cause.startswith("latency: ")


def test_dropped_bias_is_named() -> None:
    graph = conv_graph()
    inputs = raster(graph)
    conv = changed(graph, "conv", bias=None)
    assert cause_of(graph, simulate(conv, inputs, record="spikes"), inputs) == "bias: dropped"
    fc2 = graph.with_nodes({"fc2": Linear(graph.nodes["fc2"].weight)})  # type: ignore[union-attr]  # fc2 is Affine
    assert cause_of(graph, simulate(fc2, inputs, record="spikes"), inputs) == "bias: dropped"


def with_layer(graph: SpikingGraph, inputs: SpikeRaster, convention: Convention) -> Recording:
    """Record a replay in which the first layer follows another convention."""
    with torch.no_grad():
        weight = torch.tensor(graph.nodes["fc1"].weight)  # type: ignore[union-attr]  # fc1 is weighted
        drive = torch.stack([torch.nn.functional.linear(step, weight) for step in inputs.data.float()])
    spikes, _ = run_convention(convention, drive)
    return Recording(simulate(graph, inputs).output, {"lif1": Trace(spikes=spikes)})


def first_layer(node: Node, seed: int = 5) -> SpikingGraph:
    """One layer on a grid of sixteenths, so that membranes hit the threshold exactly."""
    rng = np.random.default_rng(seed)
    weight = frozen_array(rng.integers(-3, 5, (16, 20)) / 16)
    return chain({"fc1": Linear(weight), "lif1": node}, features=(20,), out=(16,))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inclusive": True}, "tie: spikes at v >= v_threshold"),
        ({"resets": False}, "reset: none takes place"),
        ({"start": 0.25}, "initial state: v starts at v_reset"),
    ],
)
def test_wrong_rule_of_an_if_layer_is_named(changes: dict[str, object], word: str) -> None:
    node = IF(uniform(1.0, (16,)), uniform(0.25 if "start" in changes else 0.0, (16,)))
    graph = first_layer(node)
    inputs = raster(graph, rate=0.1)
    if "start" in changes:  # the graph starts at v_leak, the replay at v_reset
        graph = first_layer(lif((16,), v_leak=0.0, v_reset=-0.5, decay_mem=0.5, v_threshold=0.3))
        node, changes = graph.nodes["lif1"], {"start": -0.5}  # type: ignore[assignment]  # a LIF from here on
    replayed = with_layer(graph, inputs, Convention(node, **changes))  # type: ignore[arg-type]  # keyword values
    assert cause_of(graph, replayed, inputs).startswith(word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"current": "before"}, "order: the membrane sees the current before the input"),
        ({"current": "decayed"}, "order: the membrane sees the current after its decay"),
        ({"start": 0.0}, "initial state: v starts at 0"),
    ],
)
def test_wrong_order_and_start_of_a_cuba_layer_are_named(changes: dict[str, object], word: str) -> None:
    graph = dense_graph()
    if "start" in changes:
        graph = changed(graph, "lif1", v_leak=uniform(0.4, (16,)), v_reset=uniform(-0.8, (16,)))
    inputs = raster(graph)
    replayed = with_layer(graph, inputs, Convention(graph.nodes["lif1"], **changes))  # type: ignore[arg-type]  # keyword values
    assert word in cause_of(graph, replayed, inputs)


def test_the_right_convention_gives_the_graphs_spikes() -> None:
    for graph in (
        dense_graph(),
        dense_graph(reset="subtract"),
        first_layer(IF(uniform(1.0, (16,)), uniform(0.0, (16,)))),
    ):
        inputs = raster(graph)
        replayed = with_layer(graph, inputs, Convention(graph.nodes["lif1"]))  # type: ignore[arg-type]  # a spiking node
        assert torch.equal(replayed["lif1"].spikes, simulate(graph, inputs, record="spikes")["lif1"].spikes)


def test_wrong_weight_narrows_the_search_to_its_neuron() -> None:
    graph = dense_graph()
    inputs = raster(graph)
    weight = with_entry(graph.nodes["fc1"].weight, (3, 5), 1.5)  # type: ignore[union-attr]  # fc1 is Linear
    cause = cause_of(graph, sabotaged(graph, "fc1", weight=weight)(inputs), inputs)
    assert cause.startswith("a parameter of neuron 3 (weight, bias, threshold, decay, leak or reset)")


def test_silent_layer_is_called_silent_and_no_convention_alone_is_blamed() -> None:
    graph = dense_graph()
    inputs = raster(graph)
    cause = cause_of(graph, sabotaged(graph, "lif1", v_threshold=uniform(1e9, (16,)))(inputs), inputs)
    assert cause.startswith("silent: the layer never spikes in the replay, or gain: ")
    assert "dt: 0.001 times" in cause


def test_what_no_convention_explains_stays_unexplained() -> None:
    graph = dense_graph()
    inputs = raster(graph)
    noise = torch.from_numpy(np.random.default_rng(0).random((40, 6, 16)) < 0.2)
    replayed = Recording(SpikeRaster(torch.zeros(40, 6, 8, dtype=torch.bool)), {"lif1": Trace(spikes=noise)})
    assert cause_of(graph, replayed, inputs) == ""


def test_layer_behind_a_readout_can_be_run_alone() -> None:
    base = dense_graph()
    nodes = {
        "fc1": base.nodes["fc1"],
        "li": LI(uniform(0.3, (16,)), uniform(0.1, (16,))),
        "fc2": base.nodes["fc2"],
        "lif2": lif((8,), v_threshold=0.7),
    }
    graph = chain(nodes, features=(20,), out=(8,))
    inputs = raster(graph)
    replayed = sabotaged(graph, "lif2", reset="subtract")(inputs)
    assert cause_of(graph, replayed, inputs).startswith("reset: by subtraction")


def test_layers_that_cannot_be_run_alone_are_refused() -> None:
    graph = dense_graph()
    inputs = raster(graph)
    spikes = {name: trace.spikes for name, trace in reference_run(graph, inputs).traces.items()}
    with pytest.raises(GraphError, match="fc1: does not spike"):
        probable_cause(graph, "fc1", inputs, spikes, spikes["lif1"])
    with pytest.raises(GraphError, match="lif1: its spikes are not recorded"):
        probable_cause(graph, "lif1", inputs, {}, spikes["lif1"])
    with pytest.raises(GraphError, match="lif1: its spikes are not recorded, so lif2 cannot be run alone"):
        probable_cause(graph, "lif2", inputs, {"lif2": spikes["lif2"]}, ~spikes["lif2"])


def test_parameters_are_compared_field_by_field() -> None:
    graph = conv_graph()
    assert parameter_differences(graph, conv_graph()) == []
    fc1 = graph.nodes["fc1"]
    assert isinstance(fc1, Affine)
    value = float(fc1.weight[3, 5])
    other = changed(graph, "fc1", weight=with_entry(fc1.weight, (3, 5), 0.52))
    assert parameter_differences(graph, other) == [
        f"fc1: weight[3, 5] is 0.519999981 in the file, {value:.9g} in the graph (1 of 324 entries differ)"
    ]
    for fields, line in (
        ({"reset": "subtract"}, "lif1: reset is 'subtract' in the file, 'value' in the graph"),
        ({"v_threshold": uniform(1.0, (3, 6, 6))}, "lif1: v_threshold[0, 0, 0] is 1 in the file, 0.5 in the graph"),
    ):
        assert parameter_differences(graph, changed(graph, "lif1", **fields))[0].startswith(line)
    assert parameter_differences(graph, changed(graph, "conv", bias=None)) == ["conv: bias is missing in the file"]
    assert parameter_differences(changed(graph, "conv", bias=None), graph) == [
        "conv: bias is missing in the graph, the file has one"
    ]
    linear = graph.with_nodes({"fc1": Linear(fc1.weight)})
    assert parameter_differences(graph, linear) == [
        "fc1: is Linear in the file, Affine in the graph; the bias is missing in the file"
    ]


def test_structure_is_compared_as_well() -> None:
    graph = dense_graph()
    assert parameter_differences(graph, SpikingGraph(graph.nodes, graph.edges, 1e-4))[0].startswith("dt is 0.0001 s")
    renamed = SpikingGraph(
        {("lif9" if name == "lif1" else name): node for name, node in graph.nodes.items()},
        tuple((("lif9" if a == "lif1" else a), ("lif9" if b == "lif1" else b)) for a, b in graph.edges),
        graph.dt,
    )
    lines = parameter_differences(graph, renamed)
    assert lines == ["lif1: the node is missing in the file", "lif9: the file has this node, the graph has not"]
    skip = SpikingGraph(
        {**graph.nodes, "skip": Linear(frozen_array(np.ones((8, 20))))},
        (*graph.edges, ("input", "skip"), ("skip", "lif2")),
        graph.dt,
    )
    swapped = SpikingGraph(skip.nodes, tuple(reversed(skip.edges)), graph.dt)
    assert "edges: their order differs" in parameter_differences(skip, swapped)
    moved = tuple(
        ("lif1", "fc2") if edge == ("fc2", "lif2") else edge for edge in skip.edges if edge != ("lif1", "fc2")
    )
    other = SpikingGraph(skip.nodes, (*moved, ("fc2", "output")), graph.dt)
    assert any(line.endswith("is on one side only") for line in parameter_differences(skip, other))
    smaller = changed(graph, "fc1", weight=frozen_array(np.ones((16, 20))))
    wide = chain({"fc1": Linear(frozen_array(np.ones((16, 21)))), "lif1": cuba((16,))}, features=(21,), out=(16,))
    assert "fc1: weight has shape (16, 21) in the file, (16, 20) in the graph" in parameter_differences(smaller, wide)


class FakeReader:
    """Reads every file as one given graph."""

    name = "fake"

    def __init__(self, graph: SpikingGraph | None) -> None:
        self.graph = graph

    def write(self, graph: SpikingGraph, directory: Path) -> Artifact:
        with staged_artifact(graph, directory, target="fake", options={}) as staged:
            (staged.directory / "network.bin").write_bytes(b"x")
            staged.roles["network"] = "network.bin"
        return Artifact(directory, "fake")

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        return simulate(artifact.graph(), inputs, record="spikes")

    def read(self, path: Path) -> SpikingGraph:
        if self.graph is None:
            raise ArtifactError(f"{path}: cannot be read")
        return self.graph


def test_the_file_is_read_to_find_the_parameter(tmp_path: Path) -> None:
    graph = dense_graph()
    artifact = FakeReader(None).write(graph, tmp_path / "out")
    other = changed(graph, "lif2", v_threshold=uniform(0.6, (8,)))
    assert find_parameter_difference(artifact, graph, FakeReader(other)).startswith("lif2: v_threshold[0] is 0.6")
    assert find_parameter_difference(artifact, graph, FakeReader(graph)) == ""
    assert find_parameter_difference(artifact, graph, FakeReader(None)) == "", "an unreadable file is no finding"
    (artifact.directory / "network.bin").unlink()
    assert find_parameter_difference(artifact, graph, FakeReader(other)) == ""


def test_a_layer_with_its_own_neuron_parameters_is_still_diagnosed() -> None:
    graph = dense_graph()
    rng = np.random.default_rng(2)
    node = replace(
        graph.nodes["lif1"],  # type: ignore[type-var]  # a CubaLIF
        v_threshold=frozen_array(rng.uniform(0.4, 0.6, 16)),
        v_leak=frozen_array(rng.uniform(0, 0.1, 16)),
        decay_syn=frozen_array(rng.uniform(0.2, 0.4, 16)),
    )
    graph = graph.with_nodes({"lif1": node})
    inputs = raster(graph)
    assert cause_of(graph, sabotaged(graph, "lif1", reset="subtract")(inputs), inputs).startswith("reset: ")
    thresholds = frozen_array(rng.uniform(0.4, 0.6, 16))
    assert cause_of(graph, sabotaged(graph, "lif1", v_threshold=thresholds)(inputs), inputs) == ""
