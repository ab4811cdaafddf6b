"""ONNX: real onnxruntime computes the graph, in both forms, the same bits, from files that read back to the graph."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import fixed_point_strategies
import networks
import recurrent_networks
import slamp
from exporters.onnx_integers import _check_sums, largest_input
from exporters.to_onnx import OnnxExporter
from slamp.errors import ArtifactError, GraphError, RasterError, RunFileError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact
from slamp.nodes import (
    IF,
    LI,
    LIF,
    LSNN,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    LIFRefrac,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Output,
    Pad,
    Permute,
    Place,
    Reshape,
    Scale,
    Shape,
    SumPool2d,
    Take,
    Upsample2d,
    frozen_array,
    uniform,
)
from slamp.raster import SpikeRaster
from slamp.shapes import output_shape
from slamp.simulate import Recording, simulate
from slamp.verification import Verification

DT = 1e-3
FORMS = ("step", "sequence")
NEURONS = (IF, LIF, CubaLIF, LIFRefrac, LSNN, LI, CubaLI)


def neuron(kind: type[Neuron], shape: Shape, rng: np.random.Generator, *, vary: bool = False, **changes: Any) -> Neuron:
    """Neurons that fire on inputs of about one; parameters vary from neuron to neuron if asked for."""
    middle = {
        "decay_syn": 0.4,
        "decay_mem": 0.3,
        "decay_adapt": 0.1,
        "v_leak": 0.05,
        "v_threshold": 0.4,
        "v_reset": -0.1,
        "beta": 0.2,
        "refractory_steps": 2.0,
    }
    values: dict[str, Any] = {}
    for key in (name for name in kind.__annotations__ if name in middle):
        spread = rng.uniform(0.6, 1.4, shape) * middle[key]
        spread = np.round(spread) if key == "refractory_steps" else spread
        values[key] = frozen_array(spread) if vary else uniform(middle[key], shape)
    return kind(**values, **changes)


def linear(rng: np.random.Generator, outputs: int, inputs: int) -> Linear:
    return Linear(frozen_array(rng.normal(0.3, 0.5, (outputs, inputs)) * 3 / math.sqrt(inputs)))


def graph_of(nodes: dict[str, Node], edges: list[tuple[str, str]]) -> SpikingGraph:
    """Add the output behind the last node."""
    last = list(nodes)[-1]
    known: dict[str, Shape] = {}
    for name, node in nodes.items():
        if isinstance(node, Delay):
            known[name] = node.steps.shape
            continue
        before = [known[source] for source, target in edges if target == name]
        known[name] = output_shape(name, node, node.shape if isinstance(node, Input) else before[0])
    return SpikingGraph({**nodes, "out": Output(known[last])}, (*edges, (last, "out")), DT)


def chain(*middle: Node, features: Shape = (2, 4, 6), behind: Callable[..., Neuron] | None = None) -> SpikingGraph:
    """Spikes of a layer of ``features``, the nodes, then weights and neurons behind one axis."""
    rng = np.random.default_rng(7)
    first = Scale(frozen_array(np.linspace(0.9, 1.7, features[0])), frozen_array(np.linspace(0.0, 0.1, features[0])))
    nodes: dict[str, Node] = {"in": Input(features), "first": first, "z": neuron(LIF, features, rng)}
    shape = features
    for index, node in enumerate(middle):
        nodes[f"n{index}"] = node
        shape = output_shape(f"n{index}", node, shape)
    nodes |= {"flat": Flatten(0, len(shape) - 1)} if len(shape) > 1 else {}
    nodes |= {"w": linear(rng, 5, math.prod(shape)), "last": (behind or neuron)(CubaLIF, (5,), rng)}
    return graph_of(nodes, list(pairwise(nodes)))


def raster_for(graph: SpikingGraph, seed: int = 0, *, steps: int = 12) -> SpikeRaster:
    rng = np.random.default_rng(seed)
    return SpikeRaster(rng.random((steps, 3, *graph.shapes[graph.input])) < 0.4, graph.dt)


def fires(graph: SpikingGraph, raster: SpikeRaster) -> bool:
    run = simulate(graph, raster, record="spikes")
    return all(bool(run[name].spikes.any()) for name in graph.spiking)


def bits(recording: Recording) -> dict[str, np.ndarray]:
    """Everything a recording shows, by name."""
    found = {"": recording.output.numpy()}
    for name, trace in recording.traces.items():
        shown = trace.v if trace.spikes is None else trace.spikes
        assert shown is not None
        found[name] = shown.numpy()
    return found


def proven(graph: SpikingGraph, raster: SpikeRaster, directory: Path, **options: Any) -> Artifact:
    """Export, check both files, verify all ways of running them, read both back; return the artifact."""
    assert fires(graph, raster)
    artifact = OnnxExporter(**options).write(graph, directory)
    for optimize in (True, False):
        shown = []
        for form in FORMS:
            exporter = OnnxExporter(form=form, optimize=optimize)
            result = slamp.verify(artifact, graph, raster, runner=exporter.replay)
            assert result.verdict in ("identical", "tie"), (form, optimize, result.sentence())
            assert result.unobserved_layers == ()
            assert result.silent_layers == ()
            shown.append(bits(exporter.replay(artifact, raster)))
        step, sequence = shown
        assert (
            step.keys()
            == sequence.keys()
            == {"", *(name for name in graph.nodes if isinstance(graph.nodes[name], NEURONS))}
        )
        for name, values in step.items():
            assert values.dtype == sequence[name].dtype
            assert values.tobytes() == sequence[name].tobytes(), name
    for form in FORMS:
        path = directory / f"{form}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        assert slamp.load_onnx(path).hash == graph.hash
    return artifact


@pytest.mark.parametrize("name", sorted(networks.ZOO))
def test_the_zoo_is_equal_in_both_forms(name: str, tmp_path: Path) -> None:
    net, raster = networks.build(name)
    proven(slamp.capture(net, raster), raster, tmp_path / "out")


@pytest.mark.parametrize("make", recurrent_networks.DRIVERS, ids=lambda make: make.__name__)
def test_recurrence_skips_and_heads_are_equal(make: type[torch.nn.Module], tmp_path: Path) -> None:
    _, graph, raster = recurrent_networks.living(make)
    proven(graph, raster, tmp_path / "out")


MIDDLES: dict[str, tuple[Node, ...]] = {
    "conv_same": (Conv2d(frozen_array(np.full((3, 2, 2, 3), 0.3)), None, (1, 1), "same", (2, 1), 1),),
    "conv_groups": (Conv2d(uniform(0.4, (4, 1, 3, 2)), frozen_array(np.arange(4) / 7), (2, 1), (1, 0), (1, 2), 2),),
    "sum_pool": (SumPool2d((3, 3), (1, 2)),),
    "mean_pool": (AvgPool2d((3, 2), (1, 1), (1, 1)),),
    "max_pool": (MaxPool2d((2, 2), (1, 1), (1, 1), (1, 2)),),
    "adaptive": (AdaptiveAvgPool2d((2, 3)),),
    "adaptive_of_several": (AdaptiveAvgPool2d((3, 4)),),
    "moved": (Permute((2, 0, 1)), Take(0, 1, 5), Place(2, 1, 6), Reshape((6, 8))),
    "repeated": (Upsample2d((2, 3)),),
    "pad_constant": (Pad(((1, 0), (0, 2)), "constant", 0.5),),
    "pad_reflect": (Pad(((1, 2), (3, 0)), "reflect"),),
    "pad_replicate": (Pad(((1, 2), (3, 0)), "replicate"),),
    "pad_circular": (Pad(((1, 2), (3, 0)), "circular"),),
    "no_delay": (Delay(uniform(0.0, (2, 4, 6))),),
    "delay": (Delay(uniform(3.0, (2, 4, 6))),),
    "delays": (Delay(frozen_array(1 + np.arange(48).reshape(2, 4, 6) % 3)),),
    "some_delays": (Delay(frozen_array(np.arange(48).reshape(2, 4, 6) % 4)),),
}


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_every_node_is_equal(middle: tuple[Node, ...], tmp_path: Path) -> None:
    graph = chain(*middle)
    proven(graph, raster_for(graph), tmp_path / "out")


@pytest.mark.parametrize("vary", [False, True], ids=["uniform", "per_neuron"])
@pytest.mark.parametrize("kind", NEURONS, ids=lambda kind: kind.__name__)
def test_every_neuron_is_equal_on_several_edges(kind: type[Neuron], vary: bool, tmp_path: Path) -> None:
    """Three edges, one of them late: added one by one to a current, else to one another first."""
    rng = np.random.default_rng(3)
    nodes: dict[str, Node] = {
        "in": Input((8,)),
        "a": linear(rng, 6, 8),
        "b": Affine(frozen_array(rng.normal(0.1, 0.3, (6, 8))), frozen_array(rng.normal(0, 0.1, 6))),
        "last": Delay(uniform(1.0, (6,))),
        "rec": Linear(frozen_array(rng.normal(0, 0.2, (6, 6)))),
        "n": neuron(kind, (6,), rng, vary=vary),
        "w": linear(rng, 4, 6),
        "end": neuron(IF, (4,), rng, vary=vary, reset="subtract"),
    }
    edges = [("in", "a"), ("in", "b"), ("n", "last"), ("last", "rec"), ("a", "n"), ("rec", "n"), ("b", "n")]
    graph = graph_of(nodes, [*edges, ("n", "w"), ("w", "end")])
    proven(graph, raster_for(graph), tmp_path / "out")


def test_parameters_of_channels_stay_apart(tmp_path: Path) -> None:
    """Views that repeat one number per channel, as captured networks have them, are not uniform."""
    graph = chain()
    channels = np.broadcast_to(np.array([0.1, 0.6], np.float32)[:, None, None], (2, 4, 6))
    graph = graph.with_nodes({"z": replace(graph.nodes["z"], v_threshold=channels, v_leak=channels / 4)})
    other = graph.with_nodes({"z": replace(graph.nodes["z"], v_threshold=uniform(0.1, (2, 4, 6)))})
    raster = raster_for(graph)
    first, second = (simulate(each, raster, record="spikes")["z"].spikes for each in (graph, other))
    assert not torch.equal(first, second)
    proven(graph, raster, tmp_path / "out")


@st.composite
def random_graphs(draw: st.DrawFn) -> SpikingGraph:
    """Layers of drawn types; each reads one or two earlier values, some of them its own, late."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    nodes: dict[str, Node] = {"in": Input((draw(st.integers(3, 6)),))}
    edges: list[tuple[str, str]] = []
    sizes = {"in": nodes["in"].shape[0]}  # type: ignore[union-attr]  # it is the input
    for layer in range(draw(st.integers(1, 3))):
        size = draw(st.integers(2, 5))
        kind = draw(st.sampled_from([IF, LIF, CubaLIF]))
        reset = draw(st.sampled_from(["value", "subtract"]))
        name = f"n{layer}"
        sources = draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=2, unique=True))
        if draw(st.booleans()):
            steps = frozen_array(rng.integers(1, 4, size)) if draw(st.booleans()) else uniform(1.0, (size,))
            nodes[f"late{layer}"] = Delay(steps)
            edges.append((name, f"late{layer}"))
            nodes[f"rec{layer}"] = Linear(frozen_array(rng.normal(0, 0.3, (size, size))))
            edges += [(f"late{layer}", f"rec{layer}"), (f"rec{layer}", name)]
        nodes[name] = neuron(kind, (size,), rng, vary=draw(st.booleans()), reset=reset)
        for source in sources:
            nodes[f"w{layer}{source}"] = linear(rng, size, sizes[source])
            edges += [(source, f"w{layer}{source}"), (f"w{layer}{source}", name)]
        sizes[name] = size
    heard = {source for source, target in edges if target.startswith("w")}
    for name in [name for name in sizes if name not in heard]:
        nodes[f"head{name}"] = linear(rng, 3, sizes[name])
        edges.append((name, f"head{name}"))
    nodes["end"] = neuron(draw(st.sampled_from([LI, CubaLI, CubaLIF])), (3,), rng)
    edges += [(name, "end") for name in nodes if name.startswith("head")]
    return SpikingGraph({**nodes, "out": Output((3,))}, (*edges, ("end", "out")), DT)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=random_graphs(), seed=st.integers(0, 100))
def test_random_graphs_are_equal(tmp_path: Path, graph: SpikingGraph, seed: int) -> None:
    raster = raster_for(graph, seed)
    assume(fires(graph, raster))
    proven(graph, raster, tmp_path / "out")


def test_a_stream_needs_nothing_but_the_file(tmp_path: Path) -> None:
    """A user's loop: states start as the metadata say, go from call to call, and end as the sequence's do."""
    _, graph, raster = recurrent_networks.living(recurrent_networks.Recurrent)
    OnnxExporter().write(graph, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "step.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["graph_hash"] == graph.hash
    assert float(said["dt"]) == graph.dt
    states = {
        name: np.full((raster.batch, *shape), start, np.int64 if whole else np.float32)
        for name, shape, start, whole in json.loads(said["states"])
    }
    assert set(states) == {value.name for value in model.graph.input} - {graph.input}
    stepping = onnxruntime.InferenceSession(tmp_path / "out" / "step.onnx")
    shown = []
    for x in raster.numpy().astype(np.float32):
        found = stepping.run([graph.output, *(f"{name}_out" for name in states)], {graph.input: x, **states})
        shown.append(found[0])
        states = dict(zip(states, found[1:], strict=True))
    assert np.abs(np.stack(shown)).sum() > 0
    whole = onnxruntime.InferenceSession(tmp_path / "out" / "sequence.onnx")
    ends = whole.run(
        [graph.output, *(f"{name}_out" for name in states)], {graph.input: raster.numpy().astype(np.float32)}
    )
    for one, other in zip([np.stack(shown), *states.values()], ends, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_neuron_can_be_read_in_the_file(tmp_path: Path) -> None:
    """A call names node, type, dt, time constants and reset; symbolic axes are named; shapes are inferred."""
    graph = chain()
    OnnxExporter().write(graph, tmp_path / "out")
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "out" / "step.onnx"), strict_mode=True)
    (call,) = (node for node in model.graph.node if node.name == "last")
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in call.attribute}
    assert (call.domain, call.op_type) == ("slamp", "CubaLIF")
    assert said["reset"] == b"value"
    assert said["dt"] == pytest.approx(DT)
    assert said["tau_mem"] == pytest.approx([DT / 0.3])
    assert said["tau_syn"] == pytest.approx([DT / 0.4])
    assert "v_threshold = 0.4" in call.doc_string
    (function,) = (function for function in model.functions if function.name == "CubaLIF")
    assert {node.domain for node in function.node} == {""}
    assert [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 2, 4, 6,
    ]  # fmt: skip
    sequence = onnx.load(tmp_path / "out" / "sequence.onnx")
    (output, *_) = sequence.graph.output
    assert [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim] == ["time", "batch", 5]


def test_large_weights_lie_beside_both_models(tmp_path: Path) -> None:
    weight = frozen_array(np.random.default_rng(0).normal(0.1, 0.3, (16, 2, 3, 3)))
    graph = chain(Conv2d(weight, None, (1, 1), (1, 1), (1, 1), 1))
    raster = raster_for(graph)
    artifact = proven(graph, raster, tmp_path / "out", external_above=0)
    assert artifact.manifest["roles"]["weights"] == "weights.bin"
    weights = tmp_path / "out" / "weights.bin"
    stored = sum(node.weight.nbytes for node in graph.weighted.values())
    assert stored <= weights.stat().st_size < stored + 3 * 4096
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(ArtifactError, match="damaged"):
        OnnxExporter().read(artifact.file("network"))
    with pytest.raises(ArtifactError, match="onnxruntime refuses it"):
        OnnxExporter().replay(artifact, raster)
    weights.write_bytes(bytes(4) + whole[4:])
    with pytest.raises(ArtifactError, match="its content has hash"):
        OnnxExporter().read(artifact.file("sequence"))
    assert slamp.verify(artifact, graph, raster).altered_files == ("weights.bin",)


def rewritten(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def wrong_decay(model: onnx.ModelProto) -> None:
    (function,) = (function for function in model.functions if function.name == "CubaLIF")
    (node,) = (node for node in function.node if node.output[0] == "i_out")
    node.op_type = "Add"


@pytest.mark.parametrize("form", FORMS)
def test_another_meaning_of_a_neuron_is_different(form: str, tmp_path: Path) -> None:
    graph = chain()
    raster = raster_for(graph)
    artifact = proven(graph, raster, tmp_path / "out")
    rewritten(tmp_path / "out" / f"{form}.onnx", wrong_decay)
    result = slamp.verify(artifact, graph, raster, runner=OnnxExporter(form=form).replay)
    assert isinstance(result, Verification)
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert result.first_difference.layer == "last"
    with pytest.raises(ArtifactError, match=r"function 'CubaLIF' is not what its graph says"):
        slamp.load_onnx(tmp_path / "out" / f"{form}.onnx")


def test_neurons_without_a_known_bound_are_never_a_tie(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = chain(behind=lambda kind, shape, rng: neuron(LSNN, shape, rng))
    raster = raster_for(graph)
    artifact = proven(graph, raster, tmp_path / "out")
    threshold = frozen_array(rng.uniform(0.1, 0.2, (5,)))
    other = graph.with_nodes({"last": replace(graph.nodes["last"], v_threshold=threshold)})
    wrong = OnnxExporter().write(other, tmp_path / "wrong")
    result = slamp.verify(artifact, graph, raster, runner=lambda _, inputs: OnnxExporter().replay(wrong, inputs))
    assert result.verdict == "different"
    assert result.first_difference is not None
    assert "no bound is known with a LSNN (last)" in result.first_difference.cause


def other_opset(model: onnx.ModelProto) -> None:
    next(entry for entry in model.opset_import if entry.domain == "").version = 20


def renamed_state(model: onnx.ModelProto) -> None:
    old = model.graph.input[1].name
    model.graph.input[1].name = "membrane"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = "membrane"


def other_format(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "format").value = "slamp-onnx-0"


def no_states(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "states").value = "[1"


def other_weight(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w/weight")
    tensor.raw_data = bytes(4) + tensor.raw_data[4:]


def other_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Gemm").attribute[0].i = 0


@pytest.mark.parametrize(
    ("change", "words", "replays"),
    [
        (other_opset, r"operator sets are \{'': 20, 'slamp': 1\}, allowed are \{'': 19, 'slamp': 1\}", False),
        (renamed_state, r"inputs are not those its metadata state \('membrane'\)", False),
        (other_format, r"'slamp-onnx-0', allowed is 'slamp-onnx-1'", False),
        (no_states, r"not a readable ONNX file of slamp \(JSONDecodeError", False),
        (other_weight, "its content has hash", True),
        (other_operator, "operator 'w' is not what its graph says", True),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_changed_file_is_refused(
    change: Callable[[onnx.ModelProto], None], words: str, replays: bool, tmp_path: Path
) -> None:
    graph = chain()
    artifact = OnnxExporter().write(graph, tmp_path / "out")
    rewritten(artifact.file("network"), change)
    with pytest.raises(ArtifactError, match=words):
        slamp.load_onnx(artifact.file("network"))
    if not replays:
        with pytest.raises(ArtifactError, match=words):
            OnnxExporter(form="step").replay(artifact, raster_for(graph))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    graph = chain(features=(1, 2, 2))
    directory = tmp_path_factory.mktemp("damaged")
    artifact = OnnxExporter().write(graph, directory / "out")
    path = artifact.file(data.draw(st.sampled_from(["network", "sequence"])))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    raster = raster_for(graph, steps=2)
    for call in (
        lambda: slamp.load_onnx(path).hash == graph.hash,
        lambda: OnnxExporter(form="step").replay(artifact, raster),
        lambda: OnnxExporter(form="sequence").replay(artifact, raster),
    ):
        try:
            assert call()
        except ArtifactError:
            continue


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere\.onnx: there is no such file"):
        slamp.load_onnx(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ArtifactError, match=r"text\.onnx: not a readable ONNX file"):
        slamp.load_onnx(tmp_path / "text.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save(helper.make_model(made), tmp_path / "foreign.onnx")
    with pytest.raises(ArtifactError, match=r"foreign\.onnx: its metadata name the format None"):
        slamp.load_onnx(tmp_path / "foreign.onnx")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(network=fixed_point_strategies.networks())
def test_fixed_point_is_exact(tmp_path: Path, network: fixed_point_strategies.Network) -> None:
    """Every cell, and the states after the last step, as Lava's integers are; recurrence, delays, graded inputs."""
    graph, whole = network.graph(), network.raster()
    raster = SpikeRaster(whole.data[:40], whole.dt, kind=whole.kind)
    expected = simulate(graph, raster, record="all")
    assume(expected.spike_count)
    try:
        artifact = OnnxExporter().write(graph, tmp_path / "out")
        runs = {
            (form, optimize): OnnxExporter(form=form, optimize=optimize).replay(artifact, raster)
            for form, optimize in product(FORMS, (True, False))
        }
    except (UnsupportedNodeError, RasterError):
        largest = 1.0 if raster.is_spikes else float(raster.data.abs().max())
        with pytest.raises(GraphError, match="its sums may reach"):
            _check_sums(graph, largest)
        return
    for run in runs.values():
        assert torch.equal(run.output.data, expected.output.data)
        for name, trace in run.traces.items():
            assert trace.spikes is None or torch.equal(trace.spikes, expected[name].spikes), name
            assert trace.v is None or torch.equal(trace.v, expected[name].v), name
    session = onnxruntime.InferenceSession(tmp_path / "out" / "sequence.onnx")
    states = [value.name for value in session.get_outputs() if value.name.endswith(("/v_out", "/i_out"))]
    ends = session.run(states, {graph.input: raster.numpy().astype(np.float32)})
    assert len(states) == 2 * len(expected.traces)
    for path, found in zip(states, ends, strict=True):
        name, _, letter = path.removesuffix("_out").partition("/")
        assert found.dtype == np.int64
        assert np.array_equal(found, getattr(expected[name], letter)[-1].numpy()), path
    for form in FORMS:
        onnx.checker.check_model(str(tmp_path / "out" / f"{form}.onnx"), full_check=True)
        assert slamp.load_onnx(tmp_path / "out" / f"{form}.onnx").hash == graph.hash


def test_a_quantized_network_is_identical(tmp_path: Path) -> None:
    """With pools, shared windows and biases; a changed weight is different, for integers know no ties."""
    net, raster = networks.build("conv_pool_norm")
    graph = slamp.fold_batchnorm(slamp.capture(net, raster), raster).graph
    graph = slamp.quantize(graph, slamp.load_profile("loihi2"), slamp.calibrate(graph, raster))
    artifact = proven(graph, raster, tmp_path / "out")
    assert slamp.verify(artifact, graph, raster).verdict == "identical"
    name, node = list(graph.weighted.items())[-1]
    other = graph.with_nodes({name: replace(node, weight=frozen_array(node.weight[::-1]))})
    wrong = OnnxExporter().write(other, tmp_path / "wrong")
    result = slamp.verify(artifact, graph, raster, runner=lambda _, inputs: OnnxExporter().replay(wrong, inputs))
    assert result.verdict == "different"
    half = SpikeRaster(raster.data / 2, raster.dt, kind="analog")
    with pytest.raises(RasterError, match=r"holds fractions, or values up to 0\.5"):
        OnnxExporter().replay(artifact, half)


def test_sums_that_float32_cannot_hold_are_refused_before_a_byte(tmp_path: Path) -> None:
    shape = (1, 4, 4)
    nodes: dict[str, Node] = {
        "in": Input((4, 4, 4)),
        "c": Conv2d(uniform(255 / 256, (1, 4, 3, 3)), None, (1, 1), (1, 1), (1, 1), 1),
        "n": IF(uniform(64.0, shape), uniform(0.0, shape)),
        "out": Output(shape),
    }
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), DT, slamp.FixedPoint())
    assert largest_input(graph) * 36 * 255 <= 2**24 < largest_input(graph) * 2 * 36 * 255
    wide = (1 << 9, 12, 12)
    nodes["in"] = Input(wide)
    nodes["c"] = Conv2d(uniform(255 / 256, (1, *wide)), None, (1, 1), (0, 0), (1, 1), 1)
    nodes["n"], nodes["out"] = IF(uniform(64.0, (1, 1, 1)), uniform(0.0, (1, 1, 1))), Output((1, 1, 1))
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), DT, slamp.FixedPoint())
    with pytest.raises(UnsupportedNodeError, match=r"c: its sums may reach 18800640 units; allowed are 2\^24"):
        OnnxExporter().write(graph, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "loop"}, "form is 'loop'; allowed are sequence, step"),
        ({"optimize": 1}, "optimize is 1"),
        ({"external_above": -1}, "external_above is -1"),
        ({"golden": "x"}, "golden is str"),
    ],
)
def test_an_option_is_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RunFileError, match=words):
        OnnxExporter(**options)


def test_a_raster_must_fit(tmp_path: Path) -> None:
    graph = chain()
    artifact = OnnxExporter().write(graph, tmp_path / "out")
    fitting = raster_for(graph)
    for wrong in (SpikeRaster(fitting.data[..., :5], DT), SpikeRaster(fitting.data, 2 * DT)):
        with pytest.raises(RasterError, match=r"the artifact's network takes \(2, 4, 6\)"):
            OnnxExporter().replay(artifact, wrong)


@pytest.mark.parametrize("kind", [IF, LIF, CubaLIF, LIFRefrac, LSNN])
def test_a_membrane_at_its_threshold_does_not_fire(kind: type[Neuron], tmp_path: Path) -> None:
    half, one, none = (uniform(value, (1,)) for value in (0.5, 1.0, 0.0))
    synapse = {"decay_syn": one} if kind in (CubaLIF, LIFRefrac, LSNN) else {}
    leak = {} if kind is IF else {"decay_mem": half, "v_leak": none}
    own = {LIFRefrac: {"refractory_steps": none}, LSNN: {"decay_adapt": none, "beta": none}}.get(kind, {})
    made = kind(v_threshold=one, v_reset=none, **synapse, **leak, **own)
    nodes: dict[str, Node] = {"input": Input((1,)), "n": made, "output": Output((1,))}
    graph = SpikingGraph(nodes, tuple(pairwise(nodes)), DT)
    at = 1.0 if kind is IF else 2.0  # reaches the threshold exactly; twice that passes it
    values = torch.zeros(4, 2, 1)
    values[0, 0], values[0, 1] = at, 2 * at
    raster = SpikeRaster(values, DT, kind="analog")
    expected = simulate(graph, raster, record="all")
    v = expected["n"].v
    assert v is not None
    assert bool((v == 1.0).any()), "no membrane at the threshold, so nothing is asked"
    assert expected.spike_count > 0
    artifact = OnnxExporter().write(graph, tmp_path / "out")
    for form in FORMS:
        found = OnnxExporter(form=form).replay(artifact, raster)
        assert torch.equal(found.output.data, expected.output.data)
