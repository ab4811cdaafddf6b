"""The forward-Euler runner: hand-computed traces, torch as a second opinion on convolutions, published spike times."""

import itertools
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from exporters.euler import run

SHARED = Path(__file__).parents[2] / "shared" / "data" / "nir"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party NIR files are not on this machine")


def full(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def written(tmp_path: Path, nodes: dict[str, object], edges: list[tuple[str, str]]) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "net.nir"
    nir.write(path, nir.NIRGraph(nodes, edges, type_check=False))
    return path


def chain(tmp_path: Path, *nodes: object, shape: tuple[int, ...] = (1,)) -> Path:
    named = {"in": nir.Input(np.array(shape)), **{f"n{k}": node for k, node in enumerate(nodes)}}
    named["out"] = nir.Output(np.array(shape))
    names = list(named)
    return written(tmp_path, named, list(itertools.pairwise(names)))


def drive(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None, None]


def test_lif_trace_by_hand(tmp_path):
    # dt / tau = 0.5: v = 0.5, then 0.75 -> spike at 1.125 > 1, reset to -1, then -0.25
    node = nir.LIF(tau=full(2), r=full(1), v_leak=full(0), v_threshold=full(1), v_reset=full(-1))
    result = run(chain(tmp_path, node), drive(1, 1, 1.5, 0.5, 9), 1.0)
    assert result.output[:, 0, 0].tolist() == [False, False, True, False, True]
    assert result.output.dtype == np.bool_
    assert np.array_equal(result.spikes["n0"], result.output)


def test_lif_starts_at_v_leak_and_uses_r(tmp_path):
    node = nir.LIF(tau=full(2), r=full(4), v_leak=full(0.5), v_threshold=full(1), v_reset=full(0))
    # v = 0.5 + 0.5 * (4 * 0.25) = 1, not above; then 1 + 0.5 * (0.5 + 4 * 0.25 - 1) = 1.25
    assert run(chain(tmp_path, node), drive(0.25, 0.25), 1.0).output[:, 0, 0].tolist() == [False, True]


def test_if_adds_dt_times_r_and_starts_at_v_reset(tmp_path):
    node = nir.IF(r=full(10), v_threshold=full(1), v_reset=full(0.25))
    # dt * r = 1: 0.25 + 0.75 = 1 is not above 1 (tie), then 1.25 is; after the reset 0.25 + 0.5
    assert run(chain(tmp_path, node), drive(0.75, 0.25, 0.5), 0.1).output[:, 0, 0].tolist() == [False, True, False]


def test_cuba_lif_uses_the_new_current(tmp_path):
    node = nir.CubaLIF(
        tau_mem=full(2),
        tau_syn=full(4),
        r=full(1),
        v_leak=full(0),
        v_threshold=full(0.4),
        v_reset=full(0),
        w_in=full(4),
    )
    # gain 1, I = 1, v = 0.5 > 0.4 in the very first step; I = 0.75, v = 0.375; I = 0.5625, v = 0.46875 > 0.4
    assert run(chain(tmp_path, node), drive(1, 0, 0), 1.0).output[:, 0, 0].tolist() == [True, False, True]


def test_readouts_give_membranes(tmp_path):
    li = nir.LI(tau=full(2), r=full(1), v_leak=full(0.5))
    result = run(chain(tmp_path, li), drive(1, 0), 1.0)
    assert result.membranes["n0"][:, 0, 0].tolist() == [1.0, 0.75]
    assert result.output.dtype == np.float32
    assert not result.spikes
    cuba = nir.CubaLI(tau_mem=full(2), tau_syn=full(4), r=full(2), v_leak=full(0), w_in=full(4))
    assert run(chain(tmp_path, cuba), drive(1, 0), 1.0).output[:, 0, 0].tolist() == [1.0, 1.25]


def test_subtract_is_an_argument(tmp_path):
    path = chain(tmp_path, nir.IF(r=full(1), v_threshold=full(1), v_reset=full(0)))
    assert run(path, drive(1.75, 0.5), 1.0).output[:, 0, 0].tolist() == [True, False]
    assert run(path, drive(1.75, 0.5), 1.0, subtract=frozenset({"n0"})).output[:, 0, 0].tolist() == [True, True]


def test_two_edges_into_a_node_are_added(tmp_path):
    one, two = nir.Linear(weight=full(1).reshape(1, 1)), nir.Linear(weight=full(2).reshape(1, 1))
    nodes = {"in": nir.Input(np.array([1])), "a": one, "b": two, "out": nir.Output(np.array([1]))}
    path = written(tmp_path, nodes, [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")])
    assert run(path, drive(1, 0, 3), 1.0).output[:, 0, 0].tolist() == [3.0, 0.0, 9.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1},
        {"kernel": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 1), "groups": 2},
        {"kernel": (2, 3), "stride": (1, 3), "padding": (0, 4), "dilation": (3, 2), "groups": 4},
        {"kernel": (1, 4), "stride": (1, 1), "padding": "same", "dilation": (1, 1), "groups": 1},
        {"kernel": (3, 2), "stride": (2, 2), "padding": "valid", "dilation": (1, 3), "groups": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_convolution_agrees_with_torch(tmp_path, monkeypatch, settings):
    monkeypatch.setattr("exporters.euler_layers.COLUMN_BYTES", 20_000)  # several blocks of samples
    generator = np.random.default_rng(0)
    groups = settings["groups"]
    weight = generator.normal(size=(8, 4 // groups, *settings["kernel"])).astype(np.float32)
    bias = generator.normal(size=8).astype(np.float32)
    x = generator.normal(size=(2, 3, 4, 9, 11)).astype(np.float32)
    node = nir.Conv2d((9, 11), weight, settings["stride"], settings["padding"], settings["dilation"], groups, bias)
    found = run(chain(tmp_path, node, shape=(4, 9, 11)), x, 1.0).output
    arguments = (settings["stride"], settings["padding"], settings["dilation"], groups)
    expected = torch.conv2d(torch.from_numpy(x[1]), torch.from_numpy(weight), torch.from_numpy(bias), *arguments)
    assert found[1].shape == expected.shape
    assert np.allclose(found[1], expected.numpy(), atol=1e-5)


def test_conv1d_agrees_with_torch(tmp_path):
    generator = np.random.default_rng(1)
    weight, bias = generator.normal(size=(6, 2, 3)).astype(np.float32), generator.normal(size=6).astype(np.float32)
    x = generator.normal(size=(1, 2, 4, 20)).astype(np.float32)
    node = nir.Conv1d(20, weight, 2, 3, 2, 2, bias)
    expected = torch.conv1d(torch.from_numpy(x[0]), torch.from_numpy(weight), torch.from_numpy(bias), 2, 3, 2, 2)
    found = run(chain(tmp_path, node, shape=(4, 20)), x, 1.0).output[0]
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_pools_flatten_and_scale(tmp_path):
    x = np.arange(2 * 4 * 4, dtype=np.float32).reshape(1, 1, 2, 4, 4)
    two, zero, one = np.array([2, 2]), np.array([0, 0]), np.array([1, 1])
    total = run(chain(tmp_path, nir.SumPool2d(two, two, zero), shape=(2, 4, 4)), x, 1.0).output
    assert total[0, 0, 0].tolist() == [[10, 18], [42, 50]]
    mean = run(chain(tmp_path, nir.AvgPool2d(two, two, one), shape=(2, 4, 4)), x, 1.0).output
    assert mean[0, 0, 0].tolist() == [[0, 0.75, 0.75], [3, 7.5, 4.5], [3, 6.75, 3.75]]
    scale = np.full((2, 4, 4), 2, dtype=np.float32)
    path = chain(tmp_path, nir.Scale(scale), nir.Flatten(np.array([2, 4, 4]), 1, -1), shape=(2, 4, 4))
    assert run(path, x, 1.0).output[0, 0].tolist() == (2 * x[0, 0].reshape(2, 16)).tolist()


def test_metadata_changes_nothing(tmp_path):
    node = nir.LIF(tau=full(2), r=full(1), v_leak=full(0), v_threshold=full(1), v_reset=full(0))
    plain = run(chain(tmp_path, node), drive(3, 1, 3), 1.0).output
    node.metadata = {"reset": "subtract", "dt": full(7), "decay_mem": full(0.1)}
    assert np.array_equal(run(chain(tmp_path, node), drive(3, 1, 3), 1.0).output, plain)
    assert plain.any()


def test_refusals_say_what_is_wrong(tmp_path):
    lif = nir.LIF(tau=full(2), r=full(1), v_leak=full(0), v_threshold=full(1), v_reset=full(0))
    weight = nir.Linear(weight=np.ones((1, 2), dtype=np.float32))
    flat, square = nir.Flatten(np.array([1, 1]), 1, 0), np.ones((1, 2, 3, 3), dtype=np.float32)
    conv = nir.Conv2d((3, 3), square, 1, 0, 1, 1, np.zeros(1, dtype=np.float32))
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    deep = nir.Linear(weight=np.ones((2, 1, 1), dtype=np.float32))
    padded = nir.Conv2d((1, 1), square, 1, (1, 1, 1), 1, 1, np.zeros(1, dtype=np.float32))
    one, x = nir.Input(np.array([1])), drive(1)
    cases = [
        ("n0: I is not known", chain(tmp_path / "a", nir.I(full(1))), x),
        ("n0: delays by -3 steps", chain(tmp_path / "l", nir.Delay(full(-3))), x),
        (
            r"n0: stride, padding, dilation or window of shape \(3,\)",
            chain(tmp_path / "m", padded, shape=(2, 1, 1)),
            np.ones((1, 1, 2, 1, 1)),
        ),
        (r"n0: receives shape \(1,\), allowed is \(2,\)", chain(tmp_path / "b", weight), x),
        ("allowed is first before last", chain(tmp_path / "c", flat, shape=(1, 1)), x[..., None]),
        ("allowed are 3 axes with 2 channels", chain(tmp_path / "d", conv), x),
        (r"allowed is \(channels, y, x\)", chain(tmp_path / "e", pool), x),
        ("allowed are two axes", chain(tmp_path / "f", deep), x),
        (r"inputs: shape \(1, 1, 2\); allowed is \(time, batch, 1\)", chain(tmp_path / "g", lif), np.ones((1, 1, 2))),
        ("found 0 Output nodes", written(tmp_path / "h", {"in": one, "a": lif}, [("in", "a")]), x),
        ("a: LIF has 0 inputs", written(tmp_path / "i", {"in": one, "a": lif}, []), x),
        ("names a node the file does not have", written(tmp_path / "j", {"in": one}, [("in", "b")]), x),
        ("lies on a cycle", written(tmp_path / "k", {"in": one, "a": lif}, [("in", "a"), ("a", "a")]), x),
    ]
    for message, path, inputs in cases:
        with pytest.raises(ValueError, match=message):
            run(path, inputs, 1.0)
    with pytest.raises(ValueError, match="other: reset by subtraction is asked for"):
        run(chain(tmp_path, lif), x, 1.0, subtract=frozenset({"other"}))


def test_delays_by_whole_steps_neuron_by_neuron(tmp_path):
    path = chain(tmp_path, nir.Delay(full(0, 2)), shape=(2,))
    found = run(path, np.arange(1, 9, dtype=np.float32).reshape(4, 1, 2), 1.0).output[:, 0]
    assert found.tolist() == [[1, 0], [3, 0], [5, 2], [7, 4]]


def test_a_threshold_passes_what_lies_above_it(tmp_path):
    path = chain(tmp_path, nir.Threshold(full(0.5, 1)), shape=(2,))
    found = run(path, np.array([[[0.5, 1.0]], [[0.75, 1.5]]], dtype=np.float32), 1.0).output[:, 0]
    assert found.tolist() == [[False, False], [True, True]]


def test_a_cycle_is_late_by_its_delay_alone(tmp_path):
    nodes = {
        "in": nir.Input(np.array([1])),
        "late": nir.Delay(full(2)),
        "sum": nir.Scale(full(1)),
        "half": nir.Scale(full(0.5)),
    }
    edges = [("in", "sum"), ("half", "sum"), ("sum", "late"), ("late", "half"), ("sum", "out")]
    path = written(tmp_path / "x", {**nodes, "out": nir.Output(np.array([1]))}, edges)
    x = np.zeros((6, 1, 1), dtype=np.float32)
    x[0] = 8
    assert run(path, x, 1.0).output.ravel().tolist() == [8, 0, 4, 0, 2, 0]
    nodes |= {"late": nir.Delay(full(2, 2)), "half": nir.Linear(weight=np.ones((1, 2), dtype=np.float32))}
    path = written(tmp_path / "y", {**nodes, "out": nir.Output(np.array([1]))}, edges)
    with pytest.raises(ValueError, match=r"late: closes a cycle with delays of shape \(2,\) and receives \(1,\)"):
        run(path, x, 1.0)
    nodes["half"] = nir.Scale(full(0.5))
    path = written(tmp_path / "z", {**nodes, "out": nir.Output(np.array([1]))}, edges)
    with pytest.raises(ValueError, match=r"sum: its edges bring shapes \[\(1,\), \(2,\)\]; allowed are equal shapes"):
        run(path, x, 1.0)


def test_imports_neither_slamp_nor_torch():
    code = "import sys, exporters.euler; print(sorted({'slamp', 'torch'} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_shared
@pytest.mark.parametrize("tool", ["norse", "snntorch", "exact"])
def test_published_single_neuron_spikes(tool):
    trace = np.loadtxt(SHARED / f"lif_{tool}.csv", delimiter=",")
    result = run(SHARED / "lif_norse.nir", trace[:, :1].astype(np.float32)[:, None], 1e-4)
    assert np.flatnonzero(result.output[:, 0, 0]).tolist() == [460, 510, 710, 760]
    assert np.flatnonzero(trace[:, 2]).tolist() == [460, 510, 710, 760]


def recordings(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test recordings as event counts in 1 ms bins, (300, count, 2, 34, 34), and their digits."""
    frames = np.zeros((300, count, 2, 34, 34), dtype=np.float32)
    with np.load(path) as archive:
        offsets = archive["test_offsets"]
        for sample in range(count):
            events = slice(offsets[sample], offsets[sample + 1])
            t, x, y, p = (archive[f"test_{name}"][events].astype(int) for name in "txyp")
            early = t < 300_000
            np.add.at(frames, (t[early] // 1000, sample, p[early], y[early], x[early]), 1)
        return frames, archive["test_labels"][:count]


@needs_shared
@pytest.mark.parametrize("subtracting", [False, True], ids=["reset to zero", "reset by subtraction"])
def test_the_published_convolutional_network_reads_event_camera_digits(subtracting):
    """The sinabs network of the NIR paper on N-MNIST recordings, in 1 ms bins, as it was trained."""
    frames, labels = recordings(SHARED.parent / "nmnist_dev.npz", 12)
    path = SHARED / "cnn_sinabs.nir"
    nodes = nir.read(path, type_check=False).nodes
    neurons = frozenset(name for name, node in nodes.items() if isinstance(node, nir.IF))
    result = run(path, frames, 1.0, subtract=neurons if subtracting else frozenset())
    assert (result.output.sum(0).argmax(1) == labels).all()
    assert all(0.0005 < spikes.mean() < 0.5 for spikes in result.spikes.values())


@needs_shared
def test_published_network_needs_a_known_graph():
    with pytest.raises(ValueError, match="lies on a cycle"):
        run(SHARED / "braille_noDelay_bias_zero.nir", np.zeros((1, 1, 12), dtype=np.float32), 1e-4)
