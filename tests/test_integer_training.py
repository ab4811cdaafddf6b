"""Training through Loihi's integers: what runs forward is what will be shipped, and it learns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

import slamp
from networks import box, cuba, enliven, iaf, li, li_box, pattern_loss, pattern_net, patterns, spikes
from slamp.capture import read_graph
from slamp.errors import TrainingError, UnsupportedModuleError
from slamp.integer_training import integer_forward
from slamp.quantize import quantization
from slamp.raster import SpikeRaster

LOIHI = slamp.load_profile("loihi2")


def conv_net() -> SequentialState:
    return SequentialState(
        torch.nn.Conv2d(2, 6, 3, padding=1),
        box(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(6, 8, 3, stride=2, groups=2),
        cuba(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 2 * 2, 5),
        iaf(),
    )


NETS: dict[str, tuple[Callable[[], SequentialState], tuple[int, ...]]] = {
    "LIFCell": (lambda: SequentialState(torch.nn.Linear(20, 30), cuba(), torch.nn.Linear(30, 8), cuba()), (20,)),
    "LIFBoxCell": (lambda: SequentialState(torch.nn.Linear(20, 30), box(), torch.nn.Linear(30, 8), box()), (20,)),
    "IAFCell": (lambda: SequentialState(torch.nn.Linear(20, 30), iaf(), torch.nn.Linear(30, 8), iaf()), (20,)),
    "shifted": (lambda: SequentialState(torch.nn.Linear(20, 30), cuba(v_leak=-0.2, v_reset=-0.2, v_th=0.2)), (20,)),
    "LICell": (lambda: SequentialState(torch.nn.Linear(20, 30), cuba(), torch.nn.Linear(30, 3), li()), (20,)),
    "LIBoxCell": (lambda: SequentialState(torch.nn.Linear(20, 30), box(), torch.nn.Linear(30, 3), li_box()), (20,)),
    "convolutions": (conv_net, (2, 10, 10)),
}


def outputs(net: torch.nn.Module, raster: SpikeRaster) -> torch.Tensor:
    state, steps = None, []
    for x in raster.data:
        y, state = net(x.to(torch.float32), state)
        steps.append(y)
    return torch.stack(steps)


def shipped_output(net: torch.nn.Module, raster: SpikeRaster) -> torch.Tensor:
    """What the quantized graph gives, readouts in units of Norse's membrane."""
    graph, _ = read_graph(net, raster.features, raster.dt)
    found = quantization(graph, LOIHI, slamp.calibrate(graph, raster))
    data = slamp.simulate(found.graph, raster).output.data
    name = list(graph.nodes)[-2]
    node = graph.nodes[name]
    if data.dtype == torch.bool:
        return data.to(torch.float32)
    return data.double() * torch.tensor(np.array(node.decay_mem)).double() / (found.layers[name].scale * 64)


@pytest.mark.parametrize("name", NETS)
def test_the_network_computes_what_will_be_shipped(name: str) -> None:
    make, features = NETS[name]
    net, raster = make(), spikes(features, rate=0.5, steps=40)
    if name not in ("LICell", "LIBoxCell"):
        assert enliven(net, raster)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with integer_forward(net, LOIHI, raster):
        inside = outputs(net, raster).detach()
    expected = shipped_output(net, raster)
    assert inside.any()
    assert torch.allclose(inside.double(), expected.double(), rtol=1e-6, atol=1e-12)
    if inside.unique().numel() == 2:
        assert torch.equal(inside, expected)
    left = [parameter.detach() for parameter in net.parameters()]
    assert not all(torch.equal(old, new) for old, new in zip(before, left, strict=True))  # they lie on grids now


@pytest.mark.parametrize("seed", [8, 29])
def test_weights_that_were_changed_inside_ship_as_they_computed(seed: int) -> None:
    """Scaled weights may lie on a finer or coarser grid too; the scale of the training is the one that is kept."""
    torch.manual_seed(seed)
    net, raster = NETS["LIFCell"][0](), spikes((20,), rate=0.5, steps=40)
    assert enliven(net, raster)
    with integer_forward(net, LOIHI, raster):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(0.2)
        inside = outputs(net, raster).detach()
    graph, _ = read_graph(net, raster.features, raster.dt)
    found = quantization(graph, LOIHI, slamp.calibrate(graph, raster))
    assert {name: layer.scale for name, layer in found.layers.items()} == {
        name: layer.scale for name, layer in graph.scales.items()
    }
    assert torch.equal(shipped_output(net, raster), inside)
    with torch.no_grad():
        next(net.parameters()).mul_(1.01)  # off the grid: the scale is chosen anew
    changed, _ = read_graph(net, raster.features, raster.dt)
    again = quantization(changed, LOIHI, slamp.calibrate(changed, raster))
    first = next(iter(found.layers))
    assert again.layers[first].scale != found.layers[first].scale


def test_gradients_pass_straight_through() -> None:
    net, raster = NETS["LIFCell"][0](), spikes((20,), rate=0.5)
    assert enliven(net, raster)
    with integer_forward(net, LOIHI, raster):
        outputs(net, raster).sum().backward()
        for parameter in net.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
            parameter.grad = None
    outputs(net, raster).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_training_lowers_the_loss_and_masks_hold() -> None:
    raster, net = patterns(), pattern_net()
    graph = slamp.capture(net, raster)
    activity = slamp.calibrate(graph, raster)
    scores = slamp.score(graph, activity, method="slamp-activity")
    masks = slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.4)))
    pruned = slamp.recover(net, masks, raster)
    losses: list[float] = []

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: object) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(30):
            loss = pattern_loss(net, raster, torch.arange(raster.batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    trained = slamp.retrain(pruned, masks, train, quantized=LOIHI, raster=raster)
    assert losses[-1] < 0.8 * losses[0]
    final = slamp.capture(trained, raster)
    integers = slamp.quantize(final, LOIHI, slamp.calibrate(final, raster))
    for name, node in integers.weighted.items():
        assert not node.weight[~masks[name]].any()
        whole = final.weighted[name].weight
        ratio = node.weight[node.weight != 0] / whole[node.weight != 0]
        assert np.allclose(ratio, ratio[0], rtol=1e-5)  # one scale, nothing rounded
    inside = outputs(trained, raster)  # float again
    assert inside.any()


def test_the_network_is_as_it_was_where_training_fails() -> None:
    net, raster = NETS["LIFCell"][0](), spikes((20,), rate=0.5)
    assert enliven(net, raster)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), integer_forward(net, LOIHI, raster):
        raise RuntimeError("stop")
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert all("forward" not in vars(module) for module in net.modules())


def test_what_cannot_be_trained_in_integers_is_refused() -> None:
    raster = spikes((20,), rate=0.5)
    shared = cuba()
    twice = SequentialState(torch.nn.Linear(20, 20), shared, torch.nn.Linear(20, 20), shared)
    several = pytest.raises(UnsupportedModuleError, match="1_2: its module LIFCell stands at several places")
    with several, integer_forward(twice, LOIHI, raster):
        pass
    assert all("forward" not in vars(module) for module in twice.modules())
    normal = SequentialState(torch.nn.Linear(20, 6), torch.nn.BatchNorm1d(6), cuba())
    normalizes = pytest.raises(UnsupportedModuleError, match="normalizes batches, which Loihi does not")
    with normalizes, integer_forward(normal, LOIHI, raster):
        pass


def test_samples_are_needed_for_the_scales() -> None:
    net = pattern_net()
    graph = slamp.capture(net, patterns())
    scores = slamp.score(graph, method="lamp")
    masks = slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.5)))
    with pytest.raises(TrainingError, match="quantized= needs raster="):
        slamp.retrain(net, masks, lambda net, **rest: None, quantized=LOIHI)
