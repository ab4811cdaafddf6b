"""SpikingJelly as a witness. What needs its environment skips with a reason where that is not installed."""

import itertools
import json
import os
import sys
import time
from functools import cache
from pathlib import Path

import nir
import numpy as np
import pytest

from exporters import environments, witness_spikingjelly
from exporters.environments import witness_home
from exporters.nir_lowering import lower
from exporters.to_nir import NirExporter
from exporters.witness_spikingjelly import environment_python, install, replay, translate
from nir_networks import DT, NETWORKS, captured, raster_for, rates
from slamp.errors import MissingDependencyError, RasterError, UnsupportedNodeError, WitnessError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, Input, Linear, Output, uniform
from slamp.raster import SpikeRaster
from slamp.simulate import simulate

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
needs_environment = pytest.mark.skipif(
    environment_python() is None, reason="SpikingJelly's environment is not installed (exporters.witness_spikingjelly)"
)
EXPRESSIBLE = ("lif", "cuba", "cuba_leak", "if_reset", "conv_sum", "conv_kernels", "current_output")
REFUSED = {
    "lif_leak_reset": "1: resets to -0.2 and leaks to 0.1",
    "cuba_leak_reset": "1: resets to -0.2 and leaks to 0.1",
    "per_neuron": "1: has v_reset from",
    "subtract": "1: resets by subtraction",
    "readout_cuba": "3: is a CubaLI",
    "readout_box": "3: is a LI",
    "conv_groups": "0: is a convolution in 2 groups",
    "conv1d": "2: is a convolution in 3 groups",
    "scale": "1: is a Scale",
}
graph_of = cache(captured)


def fake_environment(home: Path, script: str) -> None:
    """An environment whose interpreter is a shell script."""
    python = home / "spikingjelly" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (home / "spikingjelly" / "ready.json").write_text("{}")


@pytest.fixture
def artifact(tmp_path):
    return NirExporter().write(graph_of("lif"), tmp_path / "out")


@needs_environment
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_foreign_runtime_spikes_cell_for_cell(name, tmp_path):
    graph, raster = graph_of(name), raster_for(NETWORKS[name].features, seed=1)
    found = replay(NirExporter().write(graph, tmp_path / "out"), raster)
    expected = simulate(graph, raster, record="spikes")
    for layer, rate in rates(graph, raster).items():
        assert 0.005 <= rate <= 0.5, layer
    assert set(found.traces) == set(graph.spiking)
    for layer in graph.spiking:
        assert int((found[layer].spikes != expected[layer].spikes).sum()) == 0, layer
    assert found.output.is_spikes == expected.output.is_spikes
    assert np.allclose(found.output.numpy(), expected.output.numpy(), atol=1e-5)


@needs_environment
@pytest.mark.slow
def test_foreign_runtime_sees_a_changed_weight(tmp_path):
    graph, raster = graph_of("lif"), raster_for((20,), seed=1)
    artifact = NirExporter().write(graph, tmp_path / "out")
    network = nir.read(artifact.file("network"))
    network.nodes["0"].weight[3, 3] += 2
    nir.write(artifact.file("network"), network)
    found, expected = replay(artifact, raster), simulate(graph, raster, record="spikes")
    assert bool((found["1"].spikes != expected["1"].spikes).any())


def ties() -> tuple[SpikingGraph, SpikeRaster]:
    """Weights in quarters and threshold 1: many membranes end exactly on the threshold."""
    weight = np.random.default_rng(0).integers(-2, 4, (12, 8)).astype(np.float32) / 4
    nodes = {
        "input": Input((8,)),
        "fc": Linear(weight),
        "if": IF(uniform(1.0, (12,)), uniform(0.0, (12,))),
        "output": Output((12,)),
    }
    names = list(nodes)
    graph = SpikingGraph(nodes, tuple(itertools.pairwise(names)), DT)
    return graph, raster_for((8,), seed=4)


@needs_environment
@pytest.mark.slow
def test_ties_fall_as_in_the_graph(tmp_path, monkeypatch):
    graph, raster = ties()
    expected = simulate(graph, raster, record="all")
    assert int((expected["if"].v == 1).sum()) > 50
    artifact = NirExporter().write(graph, tmp_path / "out")
    assert int((replay(artifact, raster)["if"].spikes != expected["if"].spikes).sum()) == 0
    monkeypatch.setattr(witness_spikingjelly, "translate", lambda network, dt: network)
    assert int((replay(artifact, raster)["if"].spikes != expected["if"].spikes).sum()) > 50


@needs_environment
@pytest.mark.slow
def test_refusal_of_the_runtime_comes_with_its_words(artifact, monkeypatch):
    def wrong(network: nir.NIRGraph, dt: float) -> nir.NIRGraph:
        network.nodes["1"].r = network.nodes["1"].r * 3
        return network

    monkeypatch.setattr(witness_spikingjelly, "translate", wrong)
    with pytest.raises(WitnessError, match=r"ended with code 1: [\s\S]*nir.LIF.r must equal 1 or tau / dt"):
        replay(artifact, raster_for((20,)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_express_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "nowhere"))
    artifact = NirExporter(strict=False).write(graph_of(name), tmp_path / "out")
    with pytest.raises(UnsupportedNodeError, match=f"{REFUSED[name]}.*SpikingJelly cannot express"):
        replay(artifact, raster_for(NETWORKS[name].features))


def test_memoryless_neuron_is_refused():
    network = lower(graph_of("lif"))
    network.nodes["1"].tau[:] = DT / 2
    with pytest.raises(UnsupportedNodeError, match="1: loses its whole membrane in one step"):
        translate(network, DT)


def test_cuba_without_weights_is_refused():
    for edges in (
        [("input", "1"), ("1", "output")],
        [("input", "0"), ("0", "1"), ("0", "3"), ("1", "output"), ("3", "output")],
    ):
        network = lower(graph_of("cuba"))
        network.edges = edges
        with pytest.raises(UnsupportedNodeError, match="is a CubaLIF without weights of its own"):
            translate(network, DT)


def test_translation_is_a_change_of_variable():
    graph = graph_of("cuba_leak")
    network = lower(graph)
    weight = network.nodes["0"].weight.copy()
    translated = translate(network, DT)
    node = translated.nodes["1"]
    decay = float(graph.nodes["1"].decay_mem.flat[0])
    assert np.allclose(translated.nodes["0"].weight, weight * decay, rtol=1e-6)
    assert np.allclose(node.r * decay, 1, rtol=1e-6)
    assert node.v_threshold[0] == np.nextafter(np.float32(np.float32(0.5) - np.float32(0.1)), np.float32(1))
    assert (node.v_leak == 0).all()
    assert (node.v_reset == 0).all()
    assert np.array_equal(network.nodes["0"].weight, weight)
    assert network.nodes["0"].metadata == {}
    assert network.nodes["1"].metadata["reset"] == "value"


def test_home_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path))
    assert witness_home() == tmp_path
    monkeypatch.delenv("SLAMP_WITNESS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert witness_home() == tmp_path / ".cache" / "slamp" / "witness"


def test_half_made_environment_is_none(tmp_path):
    fake_environment(tmp_path, "true")
    assert environment_python(tmp_path) == tmp_path / "spikingjelly" / "bin" / "python"
    (tmp_path / "spikingjelly" / "ready.json").unlink()
    assert environment_python(tmp_path) is None


@pytest.mark.slow
def test_failed_installation_leaves_nothing(tmp_path):
    with pytest.raises(WitnessError, match=r"ended with code 1: [\s\S]*No matching distribution"):
        install(tmp_path / "home", pip_arguments=("--no-index",))
    assert list((tmp_path / "home").iterdir()) == []
    assert environment_python(tmp_path / "home") is None


def test_finished_installation_replaces_an_older_one(tmp_path, monkeypatch):
    def pretend(command, time_limit_s):
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir()
            (Path(command[-1]) / "bin" / "python").write_text("")
        return ""

    monkeypatch.setattr(witness_spikingjelly, "run_child", pretend)
    fake_environment(tmp_path, "true")
    python = install(tmp_path)
    assert python == environment_python(tmp_path)
    assert "spikingjelly==2.0.0" in json.loads((tmp_path / "spikingjelly" / "ready.json").read_text())["requirements"]
    assert [path.name for path in tmp_path.iterdir()] == ["spikingjelly"]
    target = tmp_path / "elsewhere"
    (tmp_path / "spikingjelly").rename(target)
    (tmp_path / "spikingjelly").symlink_to(target)
    install(tmp_path)
    assert target.is_dir()
    assert not (tmp_path / "spikingjelly").is_symlink()


def test_missing_environment_says_how_to_install(artifact, monkeypatch, tmp_path):
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDependencyError, match="run: slamp witness install spikingjelly"):
        replay(artifact, raster_for((20,)))


def test_raster_that_does_not_fit_is_refused(artifact):
    with pytest.raises(RasterError, match=r"features \(7,\)"):
        replay(artifact, raster_for((7,)))


def test_crash_surfaces_what_it_said(artifact, monkeypatch, tmp_path):
    fake_environment(tmp_path / "home", "echo no such luck >&2; exit 3")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "home"))
    with pytest.raises(WitnessError, match="ended with code 3: no such luck"):
        replay(artifact, raster_for((20,)))


def test_ending_without_a_result_is_an_error(artifact, monkeypatch, tmp_path):
    fake_environment(tmp_path / "home", "echo nothing to do")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "home"))
    with pytest.raises(WitnessError, match="ended without a result: nothing to do"):
        replay(artifact, raster_for((20,)))


def test_time_limit_ends_the_child_and_its_children(artifact, monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "GRACE_S", 0.3)
    deaf = f"trap '' TERM; {sys.executable} -c 'import os, time; print(os.getpid(), flush=True); time.sleep(60)' & wait"
    fake_environment(tmp_path / "home", f"{deaf}; sleep 60")
    monkeypatch.setenv("SLAMP_WITNESS_HOME", str(tmp_path / "home"))
    started = time.monotonic()
    with pytest.raises(WitnessError, match="not done after 1 s") as caught:
        replay(artifact, raster_for((20,)), time_limit_s=1.0)
    assert time.monotonic() - started < 20
    grandchild = int(str(caught.value).rsplit(maxsplit=1)[-1])
    for _ in range(50):
        if not Path(f"/proc/{grandchild}").exists() or "Z" in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    os.kill(grandchild, 9)
    pytest.fail("a process outlived the time limit")
