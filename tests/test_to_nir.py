"""The NIR exporter: the file is the graph, it replays spike by spike, and it is read back bit for bit."""

import itertools
import os
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from exporters import nir_lowering, to_nir
from exporters.nir_lowering import lift, lower
from exporters.to_nir import NirExporter
from nir_networks import DT, NETWORKS, captured, raster_for, rates
from slamp.errors import ArtifactError, OutputDirectoryError, RasterError, RunFileError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.manifest import file_sha256, update_manifest
from slamp.nodes import CubaLIF, Input, Linear, Output, Scale, uniform
from slamp.simulate import Recording, simulate
from slamp.verify import verify, verify_directory

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "nir"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party NIR files are not on this machine")
ROUNDING = 1e-5  # a first difference this near the threshold is a tie
NOT_PLAIN = {  # what nir 1.0.8 infers wrongly, so that nir.read needs type_check=False
    "conv_kernels": "a kernel that is not square",
    "conv_groups": "groups in two dimensions",
    "conv1d": "groups in one dimension",
}

graph_of = cache(captured)


def exporter_for(name: str) -> NirExporter:
    return NirExporter(strict=name != "subtract")


def differing_cells(graph: SpikingGraph, expected: Recording, found: Recording) -> int:
    return sum(int((expected[name].spikes != found[name].spikes).sum()) for name in graph.spiking)


def first_margin(graph: SpikingGraph, expected: Recording, found: Recording) -> float:
    """Distance from the threshold at the first differing cell of the first differing step."""
    firsts = []
    for position, name in enumerate(graph.spiking):
        cells = (expected[name].spikes != found[name].spikes).nonzero()
        if len(cells):
            t, sample, *neuron = (int(index) for index in cells[0])
            membrane = expected[name].v[(t, sample, *neuron)].item()
            firsts.append((t, position, abs(membrane - graph.nodes[name].v_threshold[tuple(neuron)])))
    return min(firsts)[2] if firsts else 0.0


def rewrite(artifact, node: str, **changes: object) -> None:
    """Change parameters of one node of the exported file and leave all metadata as it is."""
    path = artifact.file("network")
    network = nir.read(path, type_check=False)
    for key, change in changes.items():
        setattr(network.nodes[node], key, change(getattr(network.nodes[node], key)))
    nir.write(path, network)


@pytest.mark.parametrize("name", NETWORKS)
def test_file_reads_back_bit_for_bit(name, tmp_path):
    graph = graph_of(name)
    artifact = exporter_for(name).write(graph, tmp_path / "out")
    back = NirExporter().read(artifact.file("network"))
    assert back.hash == graph.hash
    assert back.parameters == graph.parameters
    assert artifact.graph().hash == graph.hash


@pytest.mark.parametrize("name", NETWORKS)
def test_replay_spikes_cell_for_cell(name, tmp_path):
    graph, raster = graph_of(name), raster_for(NETWORKS[name].features, seed=1)
    exporter = exporter_for(name)
    artifact = exporter.write(graph, tmp_path / "out")
    expected, found = simulate(graph, raster, record="all"), exporter.replay(artifact, raster)
    for layer, rate in rates(graph, raster).items():
        assert 0.005 <= rate <= 0.5, layer
    assert set(found.traces) == {node for node in graph.nodes if node in expected.traces}
    assert first_margin(graph, expected, found) <= ROUNDING
    if first_margin(graph, expected, found) == 0.0:
        assert differing_cells(graph, expected, found) == 0
    assert found.output.is_spikes == expected.output.is_spikes
    assert torch.allclose(found.output.data.float(), expected.output.data.float(), atol=1e-5)
    for trace, reference in ((found[node], expected[node]) for node in found.traces):
        if trace.spikes is None:
            assert torch.allclose(trace.v, reference.v, atol=1e-5)


def test_replay_agrees_exactly_on_every_network_here(tmp_path):
    total = 0
    for name in NETWORKS:
        graph, raster = graph_of(name), raster_for(NETWORKS[name].features, seed=2)
        artifact = exporter_for(name).write(graph, tmp_path / name)
        found = exporter_for(name).replay(artifact, raster)
        total += differing_cells(graph, simulate(graph, raster, record="spikes"), found)
    assert total == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_other_readers_get_the_file(name, tmp_path):
    path = exporter_for(name).write(graph_of(name), tmp_path / "out").file("network")
    if name in NOT_PLAIN:
        with pytest.raises(ValueError, match="type mismatch"):
            nir.read(path)
        network = nir.read(path, type_check=False)
    else:
        network = nir.read(path)
    assert set(network.nodes) == set(graph_of(name).nodes)
    for node in network.nodes.values():
        for array in (value for value in vars(node).values() if isinstance(value, np.ndarray)):
            assert array.ndim >= 1
            assert array.dtype in (np.float32, np.int64)


SABOTAGE = {
    "one weight": ("cuba", "0", {"weight": lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, w + 3, w)}),
    "dropped bias": ("cuba", "0", {"bias": np.zeros_like}),
    "threshold": ("cuba", "3", {"v_threshold": lambda v: v * 1.3}),
    "tau": ("cuba", "1", {"tau_mem": lambda tau: tau * 2}),
    "synaptic tau": ("cuba", "1", {"tau_syn": lambda tau: tau * 2}),
    "w_in": ("cuba", "1", {"w_in": np.ones_like}),
    "v_reset": ("if_reset", "1", {"v_reset": np.zeros_like}),
    "v_leak": ("lif_leak", "1", {"v_leak": np.zeros_like}),
    "r": ("if", "1", {"r": lambda r: r * 0.7}),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_replay_sees_a_change_that_the_metadata_hides(what, tmp_path):
    name, node, changes = SABOTAGE[what]
    graph, raster = graph_of(name), raster_for(NETWORKS[name].features, seed=1)
    artifact = NirExporter().write(graph, tmp_path / "out")
    rewrite(artifact, node, **changes)
    found = NirExporter().replay(artifact, raster)
    expected = simulate(graph, raster, record="all")
    assert differing_cells(graph, expected, found) > 0
    assert first_margin(graph, expected, found) > ROUNDING
    with pytest.raises(ArtifactError, match="changed"):
        NirExporter().read(artifact.file("network"))


def test_replay_needs_the_manifest_to_reset_by_subtraction(tmp_path):
    graph, raster = graph_of("subtract"), raster_for((20,), seed=1)
    exporter = NirExporter(strict=False)
    artifact = exporter.write(graph, tmp_path / "out")
    assert artifact.manifest["options"]["reset_by_subtraction"] == list(graph.spiking)
    as_others_read_it = NirExporter(strict=False).write(
        graph.with_nodes({name: replace(node, reset="value") for name, node in graph.spiking.items()}), tmp_path / "b"
    )
    expected = simulate(graph, raster, record="spikes")
    assert differing_cells(graph, expected, exporter.replay(artifact, raster)) == 0
    assert differing_cells(graph, expected, exporter.replay(as_others_read_it, raster)) > 0


def test_time_constants_say_the_equations():
    graph = graph_of("cuba")
    network, node = lower(graph), graph.nodes["1"]
    lowered = network.nodes["1"]
    assert np.allclose(lowered.tau_mem, 1 / 130, rtol=1e-6)
    assert np.allclose(lowered.tau_syn, 1 / 210, rtol=1e-6)
    assert np.allclose(lowered.w_in, 1 / 0.21, rtol=1e-6)
    assert (lowered.r == 1).all()
    assert ((DT / lowered.tau_mem.astype(np.float64)).astype(np.float32) == node.decay_mem).all()
    assert np.allclose(lower(graph_of("if")).nodes["1"].r, 1000)


def test_no_other_time_constant_gives_more_decays_back():
    decays = np.random.default_rng(0).uniform(0.01, 1, 20_000).astype(np.float32)
    tau = nir_lowering._time_constant(decays, DT)

    def gives_back(candidates):
        return (DT / candidates.astype(np.float64)).astype(np.float32) == decays

    others = [np.nextafter(tau, np.float32(end)) for end in (0, 1)]
    assert not (gives_back(others[0]) | gives_back(others[1]))[~gives_back(tau)].any()
    assert gives_back(tau).mean() > 0.8
    assert np.abs((DT / tau.astype(np.float64)).astype(np.float32) - decays).max() <= np.spacing(np.float32(0.9))


def test_gain_is_one_where_a_float32_factor_can_make_it_one():
    share = np.random.default_rng(1).uniform(0.01, 1, 20_000)
    factor = nir_lowering._unit_gain(share)
    nearest = (1 / share).astype(np.float32)

    def is_one(candidates):
        return (share * candidates.astype(np.float64)).astype(np.float32) == 1

    others = [np.nextafter(nearest, np.float32(end)) for end in (0, np.inf)]
    assert (is_one(factor) == (is_one(nearest) | is_one(others[0]) | is_one(others[1]))).all()
    assert is_one(factor).mean() > is_one(nearest).mean() > 0.5


def test_contract_stands_in_the_metadata(tmp_path):
    path = NirExporter().write(graph_of("cuba"), tmp_path / "out").file("network")
    network = nir.read(path)
    assert network.metadata["dt"].tolist() == [DT]
    assert network.metadata["latency_steps"].tolist() == [0]
    assert network.metadata["scheme"] == network.nodes["1"].metadata["scheme"] == "forward-euler"
    assert network.metadata["tie_rule"] == "v > v_threshold"
    assert network.nodes["1"].metadata["reset"] == "value"
    assert network.nodes["1"].metadata["initial_state"] == "v = v_leak; I = 0"
    assert network.nodes["1"].metadata["update_order"].startswith("I += dt/tau_syn")
    decays = network.nodes["1"].metadata["decay_mem"]
    assert decays.tobytes() == np.ascontiguousarray(graph_of("cuba").nodes["1"].decay_mem).tobytes()
    assert not any(key in network.nodes["0"].metadata for key in ("weight", "bias"))


def test_golden_rasters_in_nirs_own_format(tmp_path):
    for name, observable in (("cuba", "spikes"), ("readout_box", "values")):
        graph, raster = graph_of(name), raster_for((20,), seed=3)
        artifact = NirExporter(golden=raster).write(graph, tmp_path / name)
        given = nir.read_data(artifact.file("golden_input")).nodes["input"].observables["spikes"]
        assert given.dt == DT
        assert given.data.dtype == np.bool_
        assert np.array_equal(given.data, raster.numpy().swapaxes(0, 1))
        results, run = nir.read_data(artifact.file("golden_output")).nodes, simulate(graph, raster, record="spikes")
        assert np.array_equal(results["output"].observables[observable].data, run.output.numpy().swapaxes(0, 1))
        assert np.array_equal(results["1"].observables["spikes"].data, run["1"].spikes.numpy().swapaxes(0, 1))
        assert run["1"].spikes.any()
    assert np.array_equal(results["3"].observables["v"].data, run["3"].v.numpy().swapaxes(0, 1))
    assert artifact.manifest["options"]["golden"] == {"steps": raster.steps, "batch": raster.batch}


def test_golden_raster_flattens_features(tmp_path):
    raster = raster_for((2, 8, 8))
    artifact = NirExporter(golden=raster).write(graph_of("conv_sum"), tmp_path / "out")
    data = nir.read_data(artifact.file("golden_input")).nodes["input"].observables["spikes"].data
    assert data.shape == (raster.batch, raster.steps, 128)


def test_golden_raster_that_does_not_fit_leaves_nothing(tmp_path):
    with pytest.raises(RasterError, match="features"):
        NirExporter(golden=raster_for((7,))).write(graph_of("cuba"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def small(**changes: object) -> SpikingGraph:
    values = {key: uniform(0.5, (2,)) for key in ("decay_syn", "decay_mem", "v_leak", "v_threshold", "v_reset")}
    nodes = {
        "input": Input((2,)),
        "fc": Linear(np.eye(2, dtype=np.float32)),
        "lif": CubaLIF(**{**values, **changes}),
        "output": Output((2,)),
    }
    names = list(nodes)
    return SpikingGraph(nodes, tuple(itertools.pairwise(names)), DT)


@pytest.mark.parametrize("key", ["decay_mem", "decay_syn"])
@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_infinite_time_constant_is_refused(key, value, tmp_path):
    graph = small(**{key: np.array([0.5, value], dtype=np.float32)})
    with pytest.raises(UnsupportedNodeError, match=rf"lif: {key}\[1\] is .* an infinite time constant.*IAFCell"):
        NirExporter().write(graph, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_subtraction_is_refused_when_strict(tmp_path):
    with pytest.raises(UnsupportedNodeError, match=r"1: LIF resets by subtraction.*strict=False"):
        NirExporter().write(graph_of("subtract"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_scale_with_shift_is_refused(tmp_path):
    graph = graph_of("scale")
    shifted = replace(graph.nodes["1"], shift=np.full(4, 0.25, dtype=np.float32))
    assert isinstance(shifted, Scale)
    with pytest.raises(UnsupportedNodeError, match=r"1: Scale shifts by up to 0.25.*slamp.fold_batchnorm"):
        NirExporter().write(graph.with_nodes({"1": shifted}), tmp_path / "out")


def test_unknown_compression_is_refused():
    with pytest.raises(RunFileError, match="compression is 'zip'; allowed are auto, gzip, lzf, none"):
        NirExporter(compression="zip")
    assert NirExporter(compression="lzf").compression == "lzf"


def test_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(nir, "write", full_disk)
    with pytest.raises(OSError, match="no space left"):
        NirExporter().write(graph_of("cuba"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_directory_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputDirectoryError, match=r"thesis\.tex"):
        NirExporter().write(graph_of("cuba"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_earlier_artifact_is_replaced(tmp_path):
    NirExporter(golden=raster_for((20,))).write(graph_of("cuba"), tmp_path / "out")
    artifact = NirExporter().write(graph_of("if"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["graph.npz", "manifest.json", "network.nir"]
    assert artifact.altered_files() == []
    assert NirExporter().read(artifact.file("network")).hash == graph_of("if").hash


def test_damaged_files_give_one_clear_error(tmp_path):
    good = NirExporter().write(graph_of("cuba"), tmp_path / "out").file("network").read_bytes()
    path, generator = tmp_path / "bad.nir", np.random.default_rng(0)
    damaged = [b"", b"not HDF5 at all", *(good[: int(size)] for size in generator.integers(1, len(good) - 100, 20))]
    for position in generator.integers(0, len(good) - 100, 50):
        damaged.append(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"bad\.nir: .*export again"):
            NirExporter().read(path)


def test_missing_file_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.nir: there is no such file"):
        NirExporter().read(tmp_path / "none.nir")


def test_file_of_another_tool_is_refused(tmp_path):
    network = lower(graph_of("lif"))
    network.metadata = {}
    nir.write(tmp_path / "foreign.nir", network)
    with pytest.raises(ArtifactError, match=r"foreign\.nir: holds no metadata of slamp.*give dt="):
        NirExporter().read(tmp_path / "foreign.nir")
    nir.write(tmp_path / "node.nir", network.nodes["0"])
    with pytest.raises(ArtifactError, match=r"node\.nir: "):
        NirExporter().read(tmp_path / "node.nir")


def test_changed_wiring_or_header_is_refused():
    def altered() -> nir.NIRGraph:
        return lower(graph_of("lif"))

    network = altered()
    network.edges = network.edges[:-1]
    with pytest.raises(ArtifactError, match=r"edges: .* is on one side only; the file was changed"):
        lift(network)
    network = altered()
    network.metadata["graph"] = network.metadata["graph"].replace("float32", "float16")
    with pytest.raises(ArtifactError, match="not written by slamp"):
        lift(network)


def test_header_that_is_not_json_names_the_file(tmp_path):
    network = lower(graph_of("lif"))
    network.metadata["graph"] = "{"
    nir.write(tmp_path / "odd.nir", network)
    with pytest.raises(ArtifactError, match=r"odd\.nir: not a readable NIR file.*JSONDecodeError"):
        NirExporter().read(tmp_path / "odd.nir")


def test_replay_refuses_inputs_that_do_not_fit(tmp_path):
    artifact = NirExporter().write(graph_of("cuba"), tmp_path / "out")
    with pytest.raises(RasterError, match=r"features \(7,\) and dt 0.001 s; the artifact's network takes \(20,\)"):
        NirExporter().replay(artifact, raster_for((7,)))
    with pytest.raises(RasterError, match=r"dt 0.002 s"):
        NirExporter().replay(artifact, replace(raster_for((20,)), dt=2e-3))


def test_replay_of_a_file_the_runner_refuses(tmp_path):
    artifact = NirExporter().write(graph_of("cuba"), tmp_path / "out")
    network = nir.read(artifact.file("network"))
    network.edges = [*network.edges, ("3", "2")]
    nir.write(artifact.file("network"), network)
    with pytest.raises(ArtifactError, match=r"network\.nir: the forward-Euler runner refuses it.*cycle"):
        NirExporter().replay(artifact, raster_for((20,)))


def test_what_is_lowered_cannot_change_the_graph():
    graph = graph_of("per_neuron")
    before, network = graph.hash, lower(graph)
    for array in (network.nodes["0"].weight, network.nodes["1"].v_threshold):
        with suppress(ValueError):  # a view of the graph's own numbers, which are read-only
            array[:] = 7
    assert graph.hash == before == SpikingGraph(graph.nodes, graph.edges, graph.dt).hash


def test_an_artifact_moves_as_a_whole(tmp_path):
    NirExporter(golden=raster_for((20,), seed=1)).write(graph_of("cuba"), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert verify_directory(tmp_path / "there").verdict == "identical"


def resealed(artifact) -> None:
    """End an edited file with a seal of its own and state its sha256, as one who forges a file would."""
    path = artifact.file("network")
    to_nir._seal(path)
    files = {**artifact.manifest["files"], "network.nir": {"sha256": file_sha256(path), "bytes": path.stat().st_size}}
    update_manifest(artifact.directory, {"files": files})


STATED = {
    "one weight": "0: weight[0, 3] is",
    "dropped bias": "0: bias[0] is 0 in the file",
    "threshold": "3: v_threshold[0] is",
    "tau": "1: tau_mem[0] is",
    "synaptic tau": "1: tau_syn[0] is",
    "w_in": "1: w_in[0] is 1 in the file",
    "v_reset": "1: v_reset[0] is 0 in the file",
    "v_leak": "1: v_leak[0] is 0 in the file",
    "r": "1: r[0] is",
}


@pytest.mark.parametrize("forged", [False, True], ids=["altered", "forged"])
@pytest.mark.parametrize("what", SABOTAGE)
def test_verify_names_the_cell_and_the_parameter_that_was_changed(what, forged, tmp_path):
    name, node, changes = SABOTAGE[what]
    graph, raster = graph_of(name), raster_for(NETWORKS[name].features, seed=1)
    artifact = NirExporter().write(graph, tmp_path / "out")
    rewrite(artifact, node, **changes)
    if forged:
        resealed(artifact)
    result = verify(artifact, graph, raster)
    assert result.verdict == "different"
    assert result.altered_files == (() if forged else ("network.nir",))
    first = result.first_difference
    assert first is not None
    expected, found = simulate(graph, raster, record="spikes"), NirExporter().replay(artifact, raster)
    differs = expected[first.layer].spikes != found[first.layer].spikes
    assert bool(differs[(first.step, first.sample, *first.neuron)])
    assert not bool(differs[: first.step, first.sample].any())
    assert graph.order.index(first.layer) > graph.order.index(node) or first.layer == node
    assert result.file_difference.startswith(STATED[what])
    assert STATED[what] in first.cause


def test_a_changed_parameter_no_spike_shows_is_named_all_the_same(tmp_path):
    graph, raster = graph_of("cuba"), raster_for((20,), seed=1)
    artifact = NirExporter().write(graph, tmp_path / "out")
    rewrite(artifact, "3", v_reset=lambda v: np.nextafter(v, np.float32(9)))
    result = verify(artifact, graph, raster)
    assert result.verdict == "different"
    assert result.file_difference.startswith("3: v_reset[0] is")
    assert "3: v_reset[0] is" in result.sentence()


def test_a_delay_of_one_step_in_the_file_is_found_and_named(tmp_path):
    graph, raster = graph_of("cuba"), raster_for((20,), seed=1)
    artifact = NirExporter().write(graph, tmp_path / "out")
    path = artifact.file("network")
    network = nir.read(path, type_check=False)
    shape = network.nodes["2"].output_type["output"]
    network.nodes["late"] = nir.Delay(np.full(shape, DT, dtype=np.float32))
    network.edges = [edge for edge in network.edges if edge != ("2", "3")] + [("2", "late"), ("late", "3")]
    nir.write(path, network)
    result = verify(artifact, graph, raster)
    first = result.first_difference
    assert first is not None
    assert first.layer == "3"
    assert "latency: the input arrives 1 step late" in first.cause
    assert "late: the file has this node, the graph has not" in result.file_difference


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.metadata.update(dt=np.array([2e-3])),
        lambda network: network.metadata.update(scheme="rk4"),
        lambda network: network.nodes["1"].metadata.update(reset="subtract"),
    ],
    ids=["dt", "scheme", "reset"],
)
def test_metadata_that_contradicts_the_graph_is_refused(change):
    network = lower(graph_of("cuba"))
    change(network)
    with pytest.raises(ArtifactError, match=r"metadata.* in the file, .* in the graph.*was changed"):
        lift(network)


@pytest.mark.parametrize("cut", [1, 40, to_nir.SEAL_BYTES - 1, to_nir.SEAL_BYTES, to_nir.SEAL_BYTES + 1])
def test_a_file_cut_at_its_end_is_refused(cut, tmp_path):
    path = NirExporter().write(graph_of("cuba"), tmp_path / "out").file("network")
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(ArtifactError, match=r"network\.nir: .*(cut short|damaged|truncated)"):
        NirExporter().read(path)


@needs_shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.nir")), ids=lambda path: path.stem)
def test_files_of_other_tools_are_refused_with_one_clear_error(path):
    with pytest.raises(ArtifactError, match=f"{path.name}: holds no metadata of slamp.*give dt="):
        NirExporter().read(path)


def test_a_damaged_golden_input_is_refused(tmp_path):
    artifact = NirExporter(golden=raster_for((20,), seed=1)).write(graph_of("cuba"), tmp_path / "out")
    path = artifact.file("golden_input")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden_input\.nird: is not what was exported"):
        verify_directory(artifact.directory)


@pytest.mark.parametrize("names", [5, [["1"]], "1"])
def test_a_manifest_with_odd_resets_is_refused(names, tmp_path):
    graph = graph_of("cuba")
    artifact = NirExporter().write(graph, tmp_path / "out")
    update_manifest(artifact.directory, {"options": {"reset_by_subtraction": names}})
    with pytest.raises(ArtifactError, match=r"reset_by_subtraction is .*allowed is a list of node names"):
        verify(artifact, graph, raster_for((20,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"strict": "no"}, "strict is 'no'"), ({"golden": 3}, "golden is int"), ({"compression": "zip"}, "'zip'")],
)
def test_options_of_another_kind_are_refused(options, message):
    with pytest.raises(RunFileError, match=message):
        NirExporter(**options)
