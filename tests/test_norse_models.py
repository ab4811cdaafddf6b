"""Norse's own models and the networks in its tasks: captured cell for cell, pruned, exported where NIR can say them."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from norse.torch import LIFParameters, LIFRefracCell, LSNNCell, SequentialState
from norse.torch.models.conv import ConvNet, ConvNet4
from norse.torch.models.mobilenet import MobileNetV2
from norse.torch.models.vgg import vgg11, vgg11_bn

import slamp
from exporters.to_nir import NirExporter
from networks import spikes
from norse_tasks import import_task
from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, neuron_nodes
from slamp.demo.lively import enliven
from slamp.errors import SilentNetworkError, UnsupportedModuleError, UnsupportedNodeError
from slamp.fold import fold_batchnorm
from slamp.graph import SpikingGraph
from slamp.masks import make_masks
from slamp.nodes import LSNN, AdaptiveAvgPool2d, CubaLI, LIFRefrac, MaxPool2d, Sum, Upsample2d
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.score import score
from slamp.simulate import simulate

DENSITY = 0.2
SMALL_IMAGES, CIFAR = (1, 28, 28), (3, 32, 32)


def seen_firing(graph: SpikingGraph, raster: SpikeRaster) -> None:
    """Fail unless every layer of spikes fires: what is silent proves nothing."""
    recording = simulate(graph, raster, record="spikes")
    counts = {name: int(recording.traces[name].spikes.sum()) for name in graph.spiking}  # type: ignore[union-attr]  # recorded
    assert counts
    assert all(counts.values()), counts


def pruned_and_captured(net: torch.nn.Module, raster: SpikeRaster) -> tuple[SpikingGraph, SpikingGraph]:
    """Capture a network, prune it and capture the result; capture itself compares every cell of every neuron layer."""
    dense = capture(net, raster)
    seen_firing(dense, raster)
    scores = score(dense, calibrate(dense, raster))
    masks = make_masks(scores, allocate(scores, Budget(density=DENSITY)))
    sparse = capture(recover(net, masks, raster), raster)
    seen_firing(sparse, raster)
    kept = sum(int(np.count_nonzero(node.weight)) for node in sparse.weighted.values())
    assert 0.95 * DENSITY < kept / sum(node.weight.size for node in sparse.weighted.values()) <= DENSITY
    return dense, sparse


def assert_exported(graph: SpikingGraph, raster: SpikeRaster, directory: Path) -> None:
    found = slamp.verify(slamp.export(graph, to="nir", directory=directory), graph, raster)
    assert found.verdict in ("identical", "tie"), found
    assert found.spikes > 0


@pytest.mark.parametrize("make", [ConvNet, ConvNet4], ids=["ConvNet", "ConvNet4"])
def test_convolutional_networks_are_captured_pruned_and_exported(
    make: Callable[[], torch.nn.Module], tmp_path: Path
) -> None:
    net, raster = make(), spikes(SMALL_IMAGES, steps=6, batch=2)
    enliven(net, raster.data.to(torch.float32))
    dense, sparse = pruned_and_captured(net, raster)
    assert sum(isinstance(node, MaxPool2d) for node in dense.nodes.values()) == 2
    assert_exported(sparse, raster, tmp_path / "nir")


def test_mobilenet_is_captured_pruned_and_exported_once_folded(tmp_path: Path) -> None:
    # At a width of 0.25 Norse's first block adds a tuple to a tensor: 32 and 16 channels both become 8.
    net = MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])
    raster = spikes(CIFAR, steps=5, batch=2)
    enliven(net, raster.data.to(torch.float32))
    dense, sparse = pruned_and_captured(net, raster)
    assert isinstance(dense.nodes["pool"], AdaptiveAvgPool2d)
    assert any(isinstance(node, Sum) for node in dense.nodes.values())  # the block with a path around it
    with pytest.raises(UnsupportedNodeError, match=r"Scale shifts .* NIR's Scale has no shift"):
        NirExporter().write(sparse, tmp_path / "shifting")
    folded = fold_batchnorm(sparse, raster).graph
    seen_firing(folded, raster)
    assert_exported(folded, raster, tmp_path / "nir")


@pytest.mark.slow
def test_all_of_mobilenet_is_captured() -> None:
    net, raster = MobileNetV2(num_classes=10), spikes(CIFAR, steps=4, batch=2)
    enliven(net, raster.data.to(torch.float32))
    graph = capture(net, raster)
    assert len(graph.spiking) == 35
    seen_firing(graph, raster)


@pytest.mark.slow
def test_vgg11_is_captured_pruned_and_exported(tmp_path: Path) -> None:
    net, raster = vgg11(num_classes=10), spikes(CIFAR, steps=4, batch=2)
    enliven(net, raster.data.to(torch.float32))
    dense, sparse = pruned_and_captured(net, raster)
    assert isinstance(dense.nodes["avgpool"], Upsample2d)
    assert_exported(sparse, raster, tmp_path / "nir")


@pytest.mark.slow
def test_vgg11_with_batch_normalization_is_captured_and_pruned(tmp_path: Path) -> None:
    net, raster = vgg11_bn(num_classes=10), spikes(CIFAR, steps=4, batch=2)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.1)  # type: ignore[union-attr]  # statistics are kept
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]  # has statistics
                module.bias.normal_(0.0, 0.1)
    enliven(net, raster.data.to(torch.float32))
    _, sparse = pruned_and_captured(net, raster)
    with pytest.raises(UnsupportedNodeError, match=r"Scale shifts .* NIR's Scale has no shift"):
        NirExporter().write(sparse, tmp_path / "nir")


VGG16 = """
from pathlib import Path
import torch
from norse.torch.models.vgg import vgg16
from networks import spikes
from slamp.capture import capture
from slamp.demo.lively import enliven

def peak():  # of this process alone; getrusage starts from the parent's
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

torch.manual_seed(0)
net, raster = vgg16(num_classes=10), spikes((3, 32, 32), steps=3, batch=2)
enliven(net, raster.data.to(torch.float32))
weights = sum(parameter.numel() * 4 for parameter in net.parameters())
before = peak()
graph = capture(net, raster)
print(len(graph.spiking), weights, before, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of a process from Linux")
def test_capture_of_vgg16_takes_memory_for_its_weights_thrice_at_most() -> None:
    """The graph holds them once, the run beside the module once more; the rest is one layer's at a time."""
    done = subprocess.run(
        [sys.executable, "-c", VGG16], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    layers, weights, before, extra = map(int, done.stdout.split())
    assert layers == 15
    assert weights > 500 << 20
    assert before < 2 * weights  # else what comes on top could hide below an earlier peak
    assert weights < extra < 3 * weights


# Parts of Norse's tasks


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    return lambda name: import_task(name, monkeypatch)


def line_of(module: ModuleType, text: str) -> str:
    """Return "FILE:LINE" of the only line of a module that holds ``text``."""
    source = Path(str(module.__file__))
    numbers = [number for number, line in enumerate(source.read_text().splitlines(), 1) if text in line]
    assert len(numbers) == 1
    return f"{source}:{numbers[0]}: "


def test_the_network_in_the_mnist_task_is_captured(task: Callable[[str], ModuleType]) -> None:
    net = task("mnist").LIFConvNet(784, seq_length=6, input_scale=1.0).rsnn
    raster = spikes(SMALL_IMAGES, steps=6, batch=2)
    enliven(net, raster.data.to(torch.float32))
    seen_firing(capture(net, raster), raster)


def test_the_encoder_in_the_mnist_task_is_refused_by_its_line(task: Callable[[str], ModuleType]) -> None:
    module = task("mnist")
    with pytest.raises(UnsupportedModuleError) as refused:
        capture(module.LIFConvNet(784, seq_length=6, input_scale=1.0), spikes((784,), steps=6, batch=2))
    assert str(refused.value).startswith(line_of(module, "x = self.constant_current_encoder("))


def test_both_parts_of_the_cifar10_task_are_captured_and_pruned(
    task: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    p = LIFParameters(v_th=torch.as_tensor(0.4))
    net = task("cifar10").LIFConvNet(6, 3, lr=1e-3, optimizer="adam", p=p)
    raster = spikes(CIFAR, steps=6, batch=2)
    enliven(net.features, raster.data.to(torch.float32), by_steps=True)
    dense, sparse = pruned_and_captured(net.features, raster)
    assert_exported(sparse, raster, tmp_path / "nir")
    features = simulate(dense, raster).output
    readout = capture(net.classification, features)
    assert [type(readout.nodes[name]) for name in neuron_nodes(readout)] == [CubaLI]
    assert bool(simulate(readout, features).output.data.any())


def test_noise_in_the_cifar10_task_is_refused_by_its_line(task: Callable[[str], ModuleType]) -> None:
    module = task("cifar10")
    net = module.LIFConvNet(6, 3, lr=1e-3, optimizer="adam", p=LIFParameters())
    with pytest.raises(UnsupportedModuleError, match="randn draws random numbers") as refused:
        capture(net, spikes(CIFAR, steps=6, batch=2))
    assert str(refused.value).startswith(line_of(module, "torch.randn("))


@pytest.mark.parametrize("neurons", ["lif", "lsnn", "lsnnlif"])
def test_the_memory_task_is_captured_as_a_layer_and_as_a_whole(
    task: Callable[[str], ModuleType], neurons: str, tmp_path: Path
) -> None:
    """The whole takes its input batch first, stacks steps in pieces, and returns spikes, readouts and a state."""
    settings = Namespace(
        seq_length=4,
        seq_repetitions=1,
        optimizer="adam",
        learning_rate=0.01,
        regularization_factor=0.01,
        regularization_target=10,
        model="super",
        neuron_model=neurons,
        dt=0.001,
    )
    net, raster = task("memory").MemoryNet(20, 2, settings), spikes((20,), steps=12, batch=3)
    enliven(net, raster.data.to(torch.float32).transpose(0, 1))
    seen_firing(capture(net.layer, raster), raster)
    whole, sparse = pruned_and_captured(net, raster)
    # The spikes, then the readout of every step.
    assert whole.shapes[whole.output] == (22,)
    output = simulate(whole, raster).output.data
    spiking, _, _ = net(raster.data.to(torch.float32).transpose(0, 1))
    assert torch.equal(output[:, :, :20], spiking)
    assert bool(output[:, :, 20:].any())
    if neurons == "lif":
        assert_exported(sparse, raster, tmp_path / "nir")
    else:
        with pytest.raises(UnsupportedNodeError, match="is LSNN, and NIR has no neuron with adaptive threshold"):
            NirExporter().write(sparse, tmp_path / "nir")


@pytest.mark.parametrize("model", ["lif_model", "lsnn_model"])
def test_the_speech_commands_task_is_captured(task: Callable[[str], ModuleType], model: str) -> None:
    net, raster = getattr(task("speech_commands.model"), model)(n_features=32), spikes((80,), steps=10, batch=3)
    enliven(net, raster.data.to(torch.float32))
    graph, _ = pruned_and_captured(net, raster)
    assert graph.readout == "last"


@pytest.mark.parametrize(("cell", "node"), [(LIFRefracCell, LIFRefrac), (LSNNCell, LSNN)])
def test_neurons_nir_lacks_are_refused_by_name(cell: type[torch.nn.Module], node: type, tmp_path: Path) -> None:
    net, raster = SequentialState(torch.nn.Linear(8, 6), cell()), spikes((8,), steps=20)
    enliven(net, raster.data.to(torch.float32), by_steps=True)
    graph = capture(net, raster)
    seen_firing(graph, raster)
    with pytest.raises(UnsupportedNodeError, match=rf"^1: is {node.__name__}, and NIR has no neuron"):
        NirExporter().write(graph, tmp_path / "nir")
    assert not (tmp_path / "nir").exists()


def test_a_network_without_input_cannot_be_made_to_fire() -> None:
    net = SequentialState(torch.nn.Linear(8, 6, bias=False), LSNNCell())
    with pytest.raises(SilentNetworkError, match=r"^1: never fires"):
        enliven(net, torch.zeros(5, 2, 8), by_steps=True)


class InPieces(torch.nn.Module):
    """Returns its steps in pieces of two, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = LSNNCell()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take (time, batch, features)."""
        state, steps = None, []
        for each in x:
            z, state = self.cell(each, state)
            steps.append(z)
        return torch.stack([torch.stack(steps[t : t + 2]) for t in range(0, len(steps), 2)])


def test_an_output_in_pieces_alone_is_refused_by_its_line() -> None:
    """With 5 steps it does not run at all, so what is said is about the run with all of them."""
    with pytest.raises(UnsupportedModuleError, match=r"stack: the output is cut into pieces; join them by torch\.cat"):
        capture(InPieces(), spikes((8,), steps=6))


NOISY = """
import torch
class Noisy(torch.nn.Module):
    def forward(self, x):
        return torch.stack([step + torch.rand(1) for step in x])
"""


def test_packages_whose_names_begin_like_torch_are_the_users() -> None:
    file = f"{Path(torch.__file__).parent}vision/net.py"
    names: dict[str, Any] = {"__name__": "net"}
    exec(compile(NOISY, file, "exec"), names)
    with pytest.raises(UnsupportedModuleError) as refused:
        capture(names["Noisy"](), spikes((8,), steps=6))
    assert str(refused.value).startswith(f"{file}:5: rand draws random numbers")
