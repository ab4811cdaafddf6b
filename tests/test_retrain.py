from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

from networks import pattern_loss, pattern_net, patterns
from slamp.capture import read_graph
from slamp.checkpoint import Checkpoint
from slamp.errors import MaskError, TrainingError
from slamp.masks import Masks, masked_parameters
from slamp.retrain import Train, retrain

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
TASK = patterns(batch=48, steps=6)

OPTIMIZERS: dict[str, Make] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
    "adam_decay": lambda parameters: torch.optim.Adam(parameters, lr=5e-3, weight_decay=1e-2, amsgrad=True),
    "adam_single": lambda parameters: torch.optim.Adam(parameters, lr=5e-3, foreach=False),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9, centered=True),
    "adam_fused": lambda parameters: torch.optim.Adam(parameters, lr=5e-3, fused=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
}


def network(density: float = 0.3, *, dropout: bool = False) -> tuple[SequentialState, Masks]:
    net = pattern_net(dropout=dropout)
    graph, _ = read_graph(net, TASK.features, TASK.dt)
    rng = np.random.default_rng(0)
    masks = Masks(
        {name: rng.random(node.weight.shape) < density for name, node in graph.weighted.items()}, graph.parameters
    )
    return net, masks


def steps(net: torch.nn.Module, optimizer: torch.optim.Optimizer, generator: np.random.Generator, count: int) -> None:
    net.train()
    for _ in range(count):
        chosen = torch.as_tensor(generator.permutation(TASK.batch)[:16])
        optimizer.zero_grad()
        pattern_loss(net, TASK, chosen).backward()
        optimizer.step()


def training(make: Make = OPTIMIZERS["adam"], count: int = 6) -> Train:
    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        steps(net, make(list(net.parameters())), generator, round(count * effort))

    return train


def assert_held(net: torch.nn.Module, masks: Masks) -> None:
    for parameter, mask in masked_parameters(net, masks):
        assert bool((parameter[~mask] == 0).all())
        assert not bool(torch.signbit(parameter[~mask]).any()) or bool((parameter[~mask] == 0).all())
        assert bool((parameter[mask] != 0).all())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_revives_a_weight(name: str) -> None:
    net, masks = network()
    trained = retrain(net, masks, training(OPTIMIZERS[name]))
    assert_held(trained, masks)
    for index in (0, 2, 4):
        kept = torch.tensor(masks[str(index)])
        assert bool((trained[index].weight != net[index].weight)[kept].float().mean() > 0.1), "nothing was trained"


def test_without_masks_held_the_same_training_revives_weights() -> None:
    """The comparison must be able to fail: Adam with moments of a dense training revives pruned weights."""
    net, masks = network()
    optimizer = OPTIMIZERS["adam"](list(net.parameters()))
    steps(net, optimizer, np.random.default_rng(0), 2)
    with torch.no_grad():
        for parameter, mask in masked_parameters(net, masks):
            parameter.mul_(mask)
    steps(net, optimizer, np.random.default_rng(0), 1)
    with pytest.raises(AssertionError):
        assert_held(net, masks)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_a_dense_training_revive_nothing(name: str) -> None:
    """The optimizer comes with the moments it had before pruning."""
    net, masks = network()
    before = OPTIMIZERS[name](list(net.parameters()))
    steps(net, before, np.random.default_rng(0), 3)
    stored = before.state_dict()
    seen: list[torch.optim.Optimizer] = []

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        optimizer = OPTIMIZERS[name](list(net.parameters()))
        optimizer.load_state_dict(stored)
        assert any(bool(value.any()) for state in optimizer.state.values() for value in state.values())
        steps(net, optimizer, generator, 4)
        seen.append(optimizer)

    trained = retrain(net, masks, train)
    assert_held(trained, masks)
    moments = 0
    for parameter, mask in masked_parameters(trained, masks):
        for key, value in seen[0].state[parameter].items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments += 1
                assert bool((value[~mask] == 0).all()), key
    assert moments >= 3


def test_an_optimizer_made_before_retraining_is_held_too() -> None:
    """One optimizer for everything, to which the copy's parameters are added."""
    net, masks = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    steps(net, optimizer, np.random.default_rng(0), 2)

    def train(copy: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        pairs = list(zip(net.parameters(), copy.parameters(), strict=True))
        optimizer.param_groups[0]["params"] = [new for _, new in pairs]
        for old, new in pairs:
            optimizer.state[new] = optimizer.state.pop(old)
        steps(copy, optimizer, generator, 3)

    trained = retrain(net, masks, train)
    assert_held(trained, masks)
    for parameter, mask in masked_parameters(trained, masks):
        assert not bool(optimizer.state[parameter]["exp_avg"][~mask].any())
        assert bool(optimizer.state[parameter]["exp_avg"][mask].any())


def test_the_optimizer_sees_no_gradient_of_pruned_weights() -> None:
    net, masks = network()
    seen: list[bool] = []

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        pattern_loss(net.train(), TASK, torch.arange(16)).backward()
        for parameter, mask in masked_parameters(net, masks):
            assert parameter.grad is not None
            seen.append(bool(parameter.grad[~mask].any()))
            seen.append(not bool(parameter.grad[mask].any()))

    retrain(net, masks, train)
    assert seen == [False] * 6


def test_a_frozen_layer_stays_frozen() -> None:
    net, masks = network()
    net[0].weight.requires_grad = False
    expected = net[0].weight * torch.tensor(masks["0"])
    trained = retrain(net, masks, training())
    assert torch.equal(trained[0].weight, expected)
    assert_held(trained, masks)


def test_other_networks_train_freely_meanwhile() -> None:
    net, masks = network()
    other = torch.nn.Linear(3, 2)
    initial = other.weight.detach().clone()

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        other(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    retrain(net, masks, train)
    assert bool((other.weight != initial).all())


def test_hooks_are_gone_afterwards_even_after_a_failure() -> None:
    net, masks = network()
    kept: list[torch.nn.Module] = []

    def failing(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        kept.append(net)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(net, masks, failing)
    steps(kept[0], torch.optim.Adam(kept[0].parameters(), lr=0.01), np.random.default_rng(0), 1)
    with pytest.raises(AssertionError):
        assert_held(kept[0], masks)


def test_the_network_given_is_left_alone() -> None:
    net, masks = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained = retrain(net, masks, training())
    assert trained is not net
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("dropout", [False, True])
def test_a_seed_decides_the_result(dropout: bool) -> None:
    net, masks = network(dropout=dropout)
    results = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(disturbance)
        results.append(retrain(net, masks, training(), generator=np.random.default_rng(seed)).state_dict())
    first, second, other = results
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("failing", [False, True])
def test_the_global_generator_is_restored(failing: bool) -> None:
    net, masks = network(dropout=True)

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        torch.rand(5)
        if failing:
            raise KeyboardInterrupt

    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002  # watched, not used
    try:
        retrain(net, masks, train)
    except KeyboardInterrupt:
        assert failing
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002  # watched, not used


def test_effort_and_generator_reach_the_training_function() -> None:
    net, masks = network()
    seen: dict[str, Any] = {}
    generator = np.random.default_rng(7)

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        seen.update(effort=effort, generator=generator, checkpoint=checkpoint)

    retrain(net, masks, train, effort=0.25, generator=generator)
    assert seen["effort"] == 0.25
    assert seen["generator"] is generator
    assert seen["checkpoint"].load() is None


@pytest.mark.parametrize("effort", [0.0, -1.0, float("nan")])
def test_effort_must_be_positive(effort: float) -> None:
    net, masks = network()
    with pytest.raises(TrainingError, match=r"effort is .*; allowed is a positive share"):
        retrain(net, masks, training(), effort=effort)


def assign(net: torch.nn.Module, masks: Masks) -> None:
    with torch.no_grad():
        net.get_parameter("2.weight").fill_(0.5)


def replace_parameter(net: torch.nn.Module, masks: Masks) -> None:
    net[2].weight = torch.nn.Parameter(torch.full_like(net[2].weight, 0.5))


def load_assigning(net: torch.nn.Module, masks: Masks) -> None:
    net.load_state_dict({name: torch.full_like(tensor, 0.5) for name, tensor in net.state_dict().items()}, assign=True)


@pytest.mark.parametrize("revive", [assign, replace_parameter, load_assigning])
def test_weights_revived_past_the_optimizer_are_found(revive: Callable[[torch.nn.Module, Masks], None]) -> None:
    net, masks = network()

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        revive(net, masks)

    name = "0.weight" if revive is load_assigning else "2.weight"
    pruned = int((~masks[name[0]]).sum())
    with pytest.raises(TrainingError, match=rf"{name}: training revived {pruned} pruned weights, the first at \["):
        retrain(net, masks, train)


def test_another_network_returned_is_refused() -> None:
    net, masks = network()
    with pytest.raises(TrainingError, match="returned another network; train the one given, in place"):
        retrain(net, masks, lambda net, **_: pattern_net())


def test_the_network_itself_may_be_returned() -> None:
    net, masks = network()
    assert_held(retrain(net, masks, lambda net, **_: net), masks)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["2.bias", "2.weight"])
def test_numbers_that_are_not_finite_are_refused(bad: float, where: str) -> None:
    net, masks = network()

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        with torch.no_grad():
            net.get_parameter(where).view(-1)[0] = bad

    with pytest.raises(TrainingError, match=f"{where}: training left NaN or infinity; lower the learning rate"):
        retrain(net, masks, train)


def test_statistics_that_are_not_finite_are_refused() -> None:
    net, _ = network()
    net = SequentialState(net[0], torch.nn.BatchNorm1d(40), *list(net.children())[1:])
    graph, _ = read_graph(net, TASK.features, TASK.dt)
    masks = Masks({name: np.ones(node.weight.shape, bool) for name, node in graph.weighted.items()}, graph.parameters)

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        net.get_buffer("1.running_var")[3] = float("nan")

    with pytest.raises(TrainingError, match=r"1\.running_var: training left NaN"):
        retrain(net, masks, train)


def test_foreign_masks_are_refused() -> None:
    _, masks = network()
    with pytest.raises(MaskError, match=r"2: the module has no parameter '2.weight'"):
        retrain(SequentialState(torch.nn.Linear(24, 40)), masks, training())


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("stop", [3, 7])
def test_an_interrupted_training_resumes_to_the_same_result(tmp_path: Path, stop: int, dropout: bool) -> None:
    """Stopped in the middle of an epoch of four steps; the epoch is repeated from the last checkpoint."""
    net, masks = network(dropout=dropout)

    def train_until(last: int | None) -> Train:
        def train(
            net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint
        ) -> None:
            seeds = [int(seed) for seed in generator.integers(2**31, size=3)]
            optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
            first = 0
            if (state := checkpoint.load()) is not None:
                net.load_state_dict(state["net"])
                optimizer.load_state_dict(state["optimizer"])
                torch.set_rng_state(state["random"])
                first = state["epoch"]
            for epoch in range(first, 3):
                rng = np.random.default_rng(seeds[epoch])
                for step in range(4):
                    if last is not None and 4 * epoch + step == last:
                        raise KeyboardInterrupt
                    steps(net, optimizer, rng, 1)
                checkpoint.save(
                    {
                        "net": net.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "random": torch.get_rng_state(),
                        "epoch": epoch + 1,
                    }
                )

        return train

    whole = retrain(net, masks, train_until(None), generator=np.random.default_rng(3)).state_dict()
    checkpoint = Checkpoint(tmp_path / "train.pt")
    with pytest.raises(KeyboardInterrupt):
        retrain(net, masks, train_until(stop), generator=np.random.default_rng(3), checkpoint=checkpoint)
    assert (tmp_path / "train.pt").exists() == (stop >= 4)
    resumed = retrain(net, masks, train_until(None), generator=np.random.default_rng(3), checkpoint=checkpoint)
    assert_held(resumed, masks)
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_progress_counts_optimizer_steps(capfd: pytest.CaptureFixture[str]) -> None:
    net, masks = network()
    shown = retrain(net, masks, training(), progress=True)
    assert torch.equal(shown[0].weight, retrain(net, masks, training())[0].weight)


def test_lbfgs_with_its_closure_revives_nothing() -> None:
    net, masks = network()

    def train(net: torch.nn.Module, **others: Any) -> None:
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = pattern_loss(net, TASK, torch.arange(16))
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)

    trained = retrain(net, masks, train)
    assert_held(trained, masks)
    assert not torch.equal(trained[0].weight, net[0].weight.detach() * torch.tensor(masks["0"]))


def test_a_parameter_put_in_place_of_another_is_held_too() -> None:
    net, masks = network()

    def train(net: torch.nn.Module, *, generator: np.random.Generator, **others: Any) -> None:
        net.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()}, assign=True)
        steps(net, torch.optim.Adam(net.parameters(), lr=5e-3), generator, 4)

    trained = retrain(net, masks, train)
    assert_held(trained, masks)


def test_a_parameter_thawed_inside_training_is_held() -> None:
    net, masks = network()
    net[2].weight.requires_grad_(False)

    def train(net: torch.nn.Module, *, generator: np.random.Generator, **others: Any) -> None:
        net[2].weight.requires_grad_(True)
        seen: list[torch.Tensor] = []
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        optimizer.register_step_pre_hook(lambda *_: seen.append(net[2].weight.grad.clone()))
        steps(net, optimizer, generator, 3)
        pruned = ~torch.tensor(masks["2"])
        assert all(bool((gradient[pruned] == 0).all()) for gradient in seen[1:]), "an optimizer saw pruned gradients"
        assert bool((optimizer.state[net[2].weight]["exp_avg"][pruned] == 0).all())

    assert_held(retrain(net, masks, train), masks)


def test_an_infinite_gradient_of_a_pruned_weight_does_no_harm() -> None:
    net, masks = network()

    def train(net: torch.nn.Module, **others: Any) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        pattern_loss(net, TASK, torch.arange(8)).backward()
        net[2].weight.grad[~torch.tensor(masks["2"])] = torch.inf
        optimizer.step()

    assert_held(retrain(net, masks, train), masks)
