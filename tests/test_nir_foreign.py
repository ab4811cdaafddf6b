"""NIR files of other tools, taken literally: published spikes, and the whole road to Lava."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

import slamp
from exporters.nir_foreign import lift_foreign
from lava_artifacts import needs_lava
from slamp.errors import ArtifactError, UnsupportedNodeError
from slamp.nodes import IF, CubaLIF, Delay
from slamp.raster import SpikeRaster
from test_euler import recordings

SHARED = Path(__file__).parents[2] / "shared" / "data" / "nir"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party NIR files are not on this machine")


def lif(n: int, **values: Any) -> nir.LIF:
    known = {"tau": 0.01, "r": 1.0, "v_leak": 0.0, "v_threshold": 0.5, "v_reset": 0.0} | values
    return nir.LIF(**{key: np.full(n, value) for key, value in known.items()})


def network(nodes: dict[str, Any], edges: list[tuple[str, str]], inputs: int = 2, outputs: int = 2) -> nir.NIRGraph:
    ends = {"in": nir.Input({"input": np.array([inputs])}), "out": nir.Output({"output": np.array([outputs])})}
    return nir.NIRGraph({**ends, **nodes}, edges, type_check=False)


def one(node: Any) -> nir.NIRGraph:
    nodes = {"w": nir.Linear(np.array([[1.0, 0.5], [0.25, 2.0]])), "n": node}
    return network(nodes, [("in", "w"), ("w", "n"), ("n", "out")])


@needs_shared
@pytest.mark.parametrize("tool", ["norse", "snntorch", "exact"])
def test_the_published_neuron_spikes_when_published(tool: str) -> None:
    trace = np.loadtxt(SHARED / f"lif_{tool}.csv", delimiter=",")
    graph = slamp.load_nir(SHARED / "lif_norse.nir", dt=1e-4)
    raster = SpikeRaster(torch.tensor(trace[:, :1, None], dtype=torch.float32), 1e-4, kind="analog")
    assert np.flatnonzero(slamp.simulate(graph, raster).output.data[:, 0, 0]).tolist() == [460, 510, 710, 760]


def braille() -> tuple[slamp.SpikingGraph, SpikeRaster]:
    with np.load(SHARED / "braille_sample0.npz") as archive:
        x = archive["x"]
    graph = slamp.load_nir(SHARED / "braille_noDelay_bias_zero.nir", dt=1e-4)
    return graph, SpikeRaster(torch.tensor(x[:, None] > 0), 1e-4)


@needs_shared
def test_the_published_recurrent_network_spikes_as_snntorch_found() -> None:
    published = np.load(SHARED / "snntorch_activity_noDelay_bias_zero.npy").astype(bool)
    graph, raster = braille()
    assert sum(isinstance(node, Delay) for node in graph.nodes.values()) == 1
    run = slamp.simulate(graph, raster, record="spikes")
    hidden = run["lif1_lif"].spikes
    assert hidden is not None
    assert published.any()
    assert np.array_equal(hidden[:, 0].numpy(), published.reshape(hidden[:, 0].shape))


@needs_shared
@needs_lava
@pytest.mark.slow
def test_the_published_convolutional_network_travels_to_lava(tmp_path: Path) -> None:
    """The sinabs network of the NIR paper on N-MNIST: read, quantized, right, exported, and equal in Lava."""
    frames, labels = recordings(SHARED.parent / "nmnist_dev.npz", 12)
    raster = SpikeRaster(torch.tensor(frames), 1.0, torch.tensor(labels), kind="analog")
    graph = slamp.load_nir(SHARED / "cnn_sinabs.nir", dt=1.0)
    integers = slamp.quantize(graph, slamp.load_profile("loihi2"), slamp.calibrate(graph, raster.samples(0, 4)))
    assert slamp.accuracy(graph, raster) == 1.0
    assert slamp.accuracy(integers, raster) == 1.0
    found = slamp.fidelity(graph, integers, raster)
    assert all(layer.spikes > 0 and layer.differing_cells < 0.05 for layer in found.layers.values())
    few = raster.samples(0, 1)
    short = SpikeRaster(few.data[:120], 1.0, kind="analog")
    artifact = slamp.export(integers, to="lava", directory=tmp_path / "lava", golden=short)
    result = slamp.verify(artifact, integers, short)
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()
    assert all(rate > 0 for rate in result.rates.values())


@needs_shared
@needs_lava
@pytest.mark.slow
def test_the_published_recurrent_network_travels_to_lava(tmp_path: Path) -> None:
    graph, raster = braille()
    integers = slamp.quantize(graph, slamp.load_profile("loihi2"), slamp.calibrate(graph, raster))
    assert isinstance(integers.nodes["lif1_lif_last"], Delay)
    rates = [slamp.simulate(found, raster).output.data.double().mean((0, 1)) for found in (graph, integers)]
    assert rates[0].min() > 0.01
    assert float((rates[0] - rates[1]).abs().max()) < 0.05
    artifact = slamp.export(integers, to="lava", directory=tmp_path / "lava", golden=raster)
    assert "netx clips them" in artifact.manifest["options"]["why"]  # its recurrent weights are much larger
    result = slamp.verify(artifact, integers, raster)
    assert result.verdict == "identical", result.sentence()
    assert result.unobserved_layers == ()


def test_gains_go_into_the_weights() -> None:
    graph = lift_foreign(one(lif(2, r=4.0)), 1e-3, "value")
    assert graph.weighted["w"].weight.tolist() == [[4.0, 2.0], [1.0, 8.0]]
    counting = nir.IF(r=np.full(2, 500.0), v_threshold=np.ones(2), v_reset=np.full(2, -0.5))
    graph = lift_foreign(one(counting), 1e-3, "subtract")
    node = graph.nodes["n"]
    assert isinstance(node, IF)
    assert (node.reset, node.v_reset[0]) == ("subtract", -0.5)
    assert graph.weighted["w"].weight.tolist() == [[0.5, 0.25], [0.125, 1.0]]
    keys = {"tau_mem": 0.02, "tau_syn": 0.01, "r": 2.0, "v_leak": 0.0, "v_threshold": 1.0, "w_in": 10.0, "v_reset": 0.0}
    cuba = nir.CubaLIF(**{key: np.full(2, value) for key, value in keys.items()})
    graph = lift_foreign(one(cuba), 1e-3, "value")
    node = graph.nodes["n"]
    assert isinstance(node, CubaLIF)
    assert (node.decay_mem[0], node.decay_syn[0]) == (np.float32(0.05), np.float32(0.1))
    assert graph.weighted["w"].weight[0, 0] == pytest.approx(2.0)


def test_a_subgraph_is_opened() -> None:
    inner = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([2])}),
            "lif": lif(2),
            "rec": nir.Linear(np.eye(2)),
            "output": nir.Output({"output": np.array([2])}),
        },
        [("input", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")],
        type_check=False,
    )
    whole = network({"w": nir.Linear(np.eye(2)), "sub": inner}, [("in", "w"), ("w", "sub"), ("sub", "out")])
    graph = lift_foreign(whole, 1e-3, "value")
    assert set(graph.nodes) == {"in", "w", "sub_lif", "sub_rec", "sub_lif_last", "out"}
    assert graph.sources("sub_lif") == ("w", "sub_rec")
    assert graph.sources("sub_rec") == ("sub_lif_last",)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (one(nir.Threshold(np.ones(2))), "n: Threshold is not read from the files of other tools"),
        (
            network({"n": lif(2, r=3.0)}, [("in", "n"), ("n", "out")]),
            "in: drives n, whose input gain is 3; allowed are weights of its own",
        ),
        (one(lif(2, r=np.array([1.0, 2.0]))), "n: its input gain runs from 1 to 2"),
        (network({"n": lif(2), "lost": lif(2)}, [("in", "n"), ("n", "out")]), "lost: nothing leads from the input"),
        (
            network({"a.b": nir.Linear(np.eye(2)), "a_b": lif(2)}, [("in", "a.b"), ("a.b", "a_b"), ("a_b", "out")]),
            "rename them",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(graph: nir.NIRGraph, message: str) -> None:
    with pytest.raises(UnsupportedNodeError, match=message):
        lift_foreign(graph, 1e-3, "value")


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    nir.write(tmp_path / "a.nir", one(nir.Threshold(np.ones(2))))
    with pytest.raises(UnsupportedNodeError, match=r"a\.nir: n: Threshold is not read"):
        slamp.load_nir(tmp_path / "a.nir", dt=1e-3)
    with pytest.raises(ArtifactError, match=r"or give dt= \(and reset=\) to take it literally"):
        slamp.load_nir(tmp_path / "a.nir")
    with pytest.raises(slamp.SlampError, match="reset: 'foo'; allowed are value, subtract"):
        slamp.load_nir(tmp_path / "a.nir", dt=1e-3, reset="foo")  # type: ignore[arg-type]  # the mistake under test
    nir.write(tmp_path / "fast.nir", one(lif(2, tau=1e-4)))
    with pytest.raises(slamp.SlampError, match=r"fast\.nir: n: decay_mem is 10; allowed is 0 to 1"):
        slamp.load_nir(tmp_path / "fast.nir", dt=1e-3)
