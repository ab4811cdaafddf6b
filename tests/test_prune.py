from __future__ import annotations

import copy
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from norse.torch import SequentialState

from networks import ZOO, box, build, enliven, li, pattern_loss, pattern_net, patterns, spikes
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, read_graph
from slamp.checkpoint import Checkpoint
from slamp.errors import ArtifactError, BudgetError, SilentNetworkError
from slamp.masks import masked_parameters
from slamp.measured import measured_sops
from slamp.nodes import Conv1d, Conv2d
from slamp.prune import Pruned, Pruning, prune
from slamp.raster import SpikeRaster
from slamp.retrain import Train
from slamp.simulate import predictions, simulate
from slamp.taps import connections, weighted_sum

TASK = patterns(batch=96, steps=8)
HELD_OUT = patterns(batch=200, steps=8, seed=1)


def training(epochs: int = 4, *, stop: int | None = None) -> Train:
    """Adam on the task; ``stop`` interrupts it in the middle of that epoch."""

    def train(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        total = max(1, round(epochs * effort))
        seeds = [int(seed) for seed in generator.integers(2**31, size=total)]
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        first = 0
        if (state := checkpoint.load()) is not None:
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["epoch"]
        net.train()
        for epoch in range(first, total):
            order = torch.as_tensor(np.random.default_rng(seeds[epoch]).permutation(TASK.batch))
            for number, chosen in enumerate(order.split(24)):
                if epoch == stop and number == 2:
                    raise KeyboardInterrupt
                optimizer.zero_grad()
                pattern_loss(net, TASK, chosen).backward()
                optimizer.step()
            checkpoint.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1})

    return train


@pytest.fixture(scope="module")
def trained() -> SequentialState:
    net = pattern_net()
    training(8)(net, effort=1.0, generator=np.random.default_rng(0), checkpoint=Checkpoint())
    return net


def dense_sops(net: torch.nn.Module) -> float:
    return measured_sops(net, TASK)


def accuracy(net: torch.nn.Module) -> float:
    graph, _ = read_graph(net, TASK.features, TASK.dt)
    return float((predictions(simulate(graph, HELD_OUT)) == HELD_OUT.labels).float().mean())


def assert_sound(pruned: Pruned, budget: Budget) -> None:
    """Weights outside the masks are zero, every layer lives, every budget holds in measured use."""
    for parameter, mask in masked_parameters(pruned.net, pruned.masks):
        assert bool((parameter[~mask] == 0).all())
        assert bool(mask.any())
    graph = capture(pruned.net, TASK)
    sizes = {name: int((node.weight != 0).sum()) for name, node in graph.weighted.items()}
    total = sum(node.weight.size for node in graph.weighted.values())
    measured = calibrate(graph, TASK, fold=False).sops
    assert pruned.sops == pytest.approx(measured)
    if budget.density is not None:
        assert sum(sizes.values()) <= budget.density * total
    if budget.sparsity is not None:
        assert sum(sizes.values()) <= (1 - budget.sparsity) * total * (1 + 1e-12)
    if budget.sops is not None:
        assert measured <= budget.sops
    if budget.synapses is not None:
        used = 0.0
        for name, node in graph.weighted.items():
            taps = connections(node, graph.shapes[graph.sources(name)[0]])
            used += weighted_sum(node, node.weight != 0, taps)
        assert used <= budget.synapses


def test_the_dense_network_knows_the_task(trained: SequentialState) -> None:
    assert accuracy(trained) > 0.8


@pytest.mark.parametrize("schedule", ["one-shot", "iterative"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("retrained", [False, True], ids=["pruned", "retrained"])
def test_a_sop_budget_is_spent_to_98_percent_and_never_exceeded(
    trained: SequentialState, share: float, schedule: str, retrained: bool
) -> None:
    budget = Budget(sops=share * dense_sops(trained))
    train = training(3) if retrained else None
    pruned = prune(trained, TASK, Pruning(budget, train=train, schedule=schedule))
    assert_sound(pruned, budget)
    assert 0.98 * budget.sops <= pruned.sops <= budget.sops


def pictures(seed: int) -> tuple[SequentialState, SpikeRaster]:
    """Two convolutions, pools, biases and a readout, in which one early weight can move SOPs by a tenth."""
    torch.manual_seed(seed)
    net = SequentialState(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        box(),
        torch.nn.LPPool2d(1, 2),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        box(),
        torch.nn.LPPool2d(1, 2),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 9, 32),
        box(),
        torch.nn.Linear(32, 10),
        li(),
    )
    raster = spikes((1, 12, 12), steps=12, batch=24, seed=seed, rate=0.2)
    assert enliven(net, raster)
    return net, raster


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.7])
def test_sops_are_spent_where_single_weights_move_much(seed: int, share: float) -> None:
    net, raster = pictures(seed)
    budget = Budget(sops=share * measured_sops(net, raster))
    pruned = prune(net, raster, Pruning(budget))
    assert 0.98 * budget.sops <= pruned.sops <= budget.sops
    assert pruned.shortfall == ""
    assert measured_sops(pruned.net, raster) == pruned.sops


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one-shot", "iterative"])
@pytest.mark.parametrize("name", ["dense_box", "dense_cuba", "dense_if", "conv_box"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_zoo_spends_its_sops(name: str, seed: int, schedule: str) -> None:
    net, raster = build(name, seed=seed, batch=16)
    for share in (0.05, 0.1, 0.3, 0.6, 0.9):
        budget = Budget(sops=share * measured_sops(net, raster))
        pruned = prune(net, raster, Pruning(budget, schedule=schedule))
        assert pruned.sops <= budget.sops
        assert pruned.sops >= 0.98 * budget.sops, share


def test_what_single_weights_are_too_coarse_for_is_said() -> None:
    net, raster = build("dense_box", batch=16)
    budget = Budget(sops=0.01 * measured_sops(net, raster))
    pruned = prune(net, raster, Pruning(budget))
    assert pruned.sops < 0.98 * budget.sops
    assert re.match(r"\d\d\.\d% of the SOP budget is spent", pruned.shortfall)


def test_later_rounds_train_half_as_long_and_iterations_score_anew(
    trained: SequentialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    efforts: list[float] = []

    def train(net: torch.nn.Module, *, effort: float, **others: object) -> None:
        efforts.append(effort)

    prune(trained, TASK, Pruning(Budget(sops=0.2 * dense_sops(trained)), train=train))
    assert efforts[0] == 1.0
    assert set(efforts[1:]) == {0.5}
    scored: list[str] = []
    module = import_module("slamp.prune_weights")
    true_score = module.score
    monkeypatch.setattr(module, "score", lambda graph, *a, **k: scored.append(graph.hash) or true_score(graph, *a, **k))
    prune(trained, TASK, Pruning(Budget(density=0.5), train=train, schedule="iterative"))
    assert len(set(scored)) == len(scored) == 4, "0.8 ** 4 < 0.5: the dense network and three that were pruned"


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(BudgetError, match="'iterativ'; allowed are 'one-shot' and 'iterative'"):
        Pruning(Budget(density=0.5), schedule="iterativ")  # type: ignore[arg-type]  # what a user may write


def test_another_network_and_method_spend_their_sops_too() -> None:
    net = pattern_net(seed=3)
    for method in ("lamp", "slamp-activity", "erk"):
        budget = Budget(sops=0.3 * dense_sops(net))
        pruned = prune(net, TASK, Pruning(budget, method=method))
        assert_sound(pruned, budget)
        assert pruned.sops >= 0.98 * budget.sops
        assert pruned.plan.method == method


@pytest.mark.parametrize("schedule", ["one-shot", "iterative"])
@pytest.mark.parametrize(
    "budget",
    [Budget(density=0.1), Budget(sparsity=0.8), Budget(synapses=400), Budget(density=0.2, sops=4000.0)],
    ids=["density", "sparsity", "synapses", "both"],
)
def test_budgets_are_never_exceeded(trained: SequentialState, budget: Budget, schedule: str) -> None:
    pruned = prune(trained, TASK, Pruning(budget, train=training(2), schedule=schedule))
    assert_sound(pruned, budget)
    assert pruned.plan.binding


def test_a_density_budget_is_used_up(trained: SequentialState) -> None:
    pruned = prune(trained, TASK, Pruning(Budget(density=0.1)))
    total = sum(mask.size for _, mask in pruned.masks.items())
    kept = sum(int(mask.sum()) for _, mask in pruned.masks.items())
    assert kept == int(0.1 * total)
    assert len(pruned.rounds) == 1
    assert pruned.rounds[0].asked == {}


def test_pruning_and_retraining_keeps_what_the_network_knows(trained: SequentialState) -> None:
    pruned = prune(trained, TASK, Pruning(Budget(density=0.2), train=training(6)))
    assert accuracy(pruned.net) > accuracy(trained) - 0.05


def test_without_a_training_function_the_rates_are_restored_per_neuron(trained: SequentialState) -> None:
    pruned = prune(trained, TASK, Pruning(Budget(density=0.1)))
    for name, path in pruned.masks.parameters.items():
        weight, original = pruned.net.get_parameter(path).detach(), trained.get_parameter(path).detach()
        rows = [(weight[row] / original[row])[torch.tensor(pruned.masks[name][row])] for row in range(len(weight))]
        for gains in rows:
            torch.testing.assert_close(gains, gains[:1].expand_as(gains))
        assert len({round(float(gains[0]), 4) for gains in rows if len(gains)}) > 1


def test_the_iterative_schedule_removes_a_fifth_per_round(trained: SequentialState) -> None:
    pruned = prune(trained, TASK, Pruning(Budget(density=0.5), schedule="iterative", train=training(4)))
    assert [round(entry.density, 2) for entry in pruned.rounds] == [0.8, 0.64, 0.51, 0.5]


def test_the_iterative_schedule_approaches_sops_by_a_fifth_per_round(trained: SequentialState) -> None:
    dense = dense_sops(trained)
    pruned = prune(trained, TASK, Pruning(Budget(sops=0.5 * dense), schedule="iterative", train=training(4)))
    predicted = [entry.predicted["sops"] / dense for entry in pruned.rounds]
    assert predicted[:3] == pytest.approx([0.8, 0.64, 0.625], abs=0.02)
    assert pruned.rounds[2].measured["sops"] > 0.5 * dense
    assert pruned.rounds[3].asked["sops"] == pytest.approx(0.5 * dense)


def test_effort_is_shared_among_rounds(trained: SequentialState) -> None:
    efforts: dict[str, list[float]] = {"one-shot": [], "iterative": []}
    for schedule, seen in efforts.items():

        def train(
            net: torch.nn.Module,
            *,
            effort: float,
            generator: np.random.Generator,
            checkpoint: Checkpoint,
            seen: list[float] = seen,
        ) -> None:
            seen.append(effort)

        prune(trained, TASK, Pruning(Budget(density=0.5), schedule=schedule, train=train))
    assert efforts["one-shot"] == [1.0]
    assert efforts["iterative"] == [0.25] * 4


def test_the_network_given_is_left_alone(trained: SequentialState) -> None:
    before = copy.deepcopy(trained.state_dict())
    prune(trained, TASK, Pruning(Budget(sops=0.3 * dense_sops(trained)), train=training(1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_a_seed_decides_the_result(trained: SequentialState) -> None:
    budget = Budget(sops=0.3 * dense_sops(trained))
    states = [
        prune(trained, TASK, Pruning(budget, train=training(2), seed=seed)).net.state_dict() for seed in (0, 0, 1)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("schedule", ["one-shot", "iterative"])
def test_a_resumed_run_equals_an_uninterrupted_one(trained: SequentialState, tmp_path: Path, schedule: str) -> None:
    """Interrupted in the second round, in the middle of an epoch."""
    budget = Budget(sops=0.2 * dense_sops(trained))
    whole = prune(trained, TASK, Pruning(budget, train=training(8), schedule=schedule))
    assert len(whole.rounds) > 1
    plain, stopping = training(8), training(8, stop=1 if schedule == "one-shot" else 0)
    calls: list[float] = []

    def second_stops(
        net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint
    ) -> None:
        calls.append(effort)
        chosen = stopping if len(calls) == 2 else plain
        chosen(net, effort=effort, generator=generator, checkpoint=checkpoint)

    with pytest.raises(KeyboardInterrupt):
        prune(trained, TASK, Pruning(budget, train=second_stops, schedule=schedule, directory=tmp_path))
    assert (tmp_path / "round-0.safetensors").exists()
    assert not (tmp_path / "round-1.safetensors").exists()
    resumed_calls: list[float] = []

    def counted(net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint) -> None:
        resumed_calls.append(effort)
        plain(net, effort=effort, generator=generator, checkpoint=checkpoint)

    resumed = prune(trained, TASK, Pruning(budget, train=counted, schedule=schedule, directory=tmp_path))
    assert len(resumed_calls) == len(whole.rounds) - 1, "the finished round was trained again"
    for name, tensor in resumed.net.state_dict().items():
        assert torch.equal(tensor, whole.net.state_dict()[name]), name
    assert resumed.masks.hash == whole.masks.hash
    assert resumed.sops == whole.sops


def test_a_checkpoint_of_other_masks_is_not_resumed(trained: SequentialState, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prune(trained, TASK, Pruning(Budget(density=0.3), train=training(4, stop=2), directory=tmp_path))
    assert list(tmp_path.glob("train-0-*.pt"))
    fresh = prune(trained, TASK, Pruning(Budget(density=0.1), train=training(2)))
    beside = prune(trained, TASK, Pruning(Budget(density=0.1), train=training(2), directory=tmp_path))
    for name, tensor in beside.net.state_dict().items():
        assert torch.equal(tensor, fresh.net.state_dict()[name])


def test_a_round_of_another_run_is_refused(trained: SequentialState, tmp_path: Path) -> None:
    prune(trained, TASK, Pruning(Budget(density=0.3), train=training(1), directory=tmp_path))
    with pytest.raises(ArtifactError, match=r"round-0\.safetensors: belongs to another run; delete it"):
        prune(trained, TASK, Pruning(Budget(density=0.1), train=training(1), directory=tmp_path))


@pytest.mark.parametrize(
    ("budget", "name"),
    [(Budget(sops=1e-3), "sops"), (Budget(density=1e-6), "density"), (Budget(synapses=2), "synapses")],
)
def test_a_budget_below_one_weight_per_layer_is_refused(trained: SequentialState, budget: Budget, name: str) -> None:
    with pytest.raises(BudgetError, match=f"^{name}: the budget is .*ask for (a density of )?at least"):
        prune(trained, TASK, Pruning(budget))


def test_a_budget_above_the_dense_network_removes_nothing(trained: SequentialState) -> None:
    pruned = prune(trained, TASK, Pruning(Budget(sops=10 * dense_sops(trained))))
    assert pruned.masks.density == 1.0
    assert pruned.plan.binding == ()
    assert pruned.sops == dense_sops(trained)


def test_a_budget_no_trim_reaches_is_refused(trained: SequentialState, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("slamp.prune_weights", "slamp.spend"):
        monkeypatch.setattr(import_module(module), "measured_use", lambda net, raster, budget: {"sops": 7500.0})
    with pytest.raises(BudgetError, match=r"sops 5000 cannot be reached by trimming; the last trial used 1\.5 times"):
        prune(trained, TASK, Pruning(Budget(sops=5000.0)))


def test_a_budget_still_exceeded_after_trimming_is_refused(
    trained: SequentialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last check does not trust the trim."""
    monkeypatch.setattr(
        import_module("slamp.prune_weights"), "measured_use", lambda net, raster, budget: {"sops": 7500.0}
    )
    monkeypatch.setattr(import_module("slamp.prune_weights"), "trim", lambda net, *a, **k: (net, None))
    with pytest.raises(BudgetError, match=r"'sops': 5000\.0. is exceeded by .'sops': 7500\.0. measured after trimming"):
        prune(trained, TASK, Pruning(Budget(sops=5000.0)))


def test_a_silent_network_is_refused(trained: SequentialState) -> None:
    net = copy.deepcopy(trained)
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
        net[2].bias.mul_(1e-3)
    with pytest.raises(SilentNetworkError, match="3: never fires"):
        prune(net, TASK, Pruning(Budget(density=0.5), method="lamp"))


def test_convolutions_spend_their_sops() -> None:
    net = ZOO["conv_box"].build()
    raster = spikes((2, 8, 8), steps=15, batch=12)
    assert enliven(net, raster, low=0.06)
    dense = measured_sops(net, raster)
    pruned = prune(net, raster, Pruning(Budget(sops=0.2 * dense)))
    assert 0.98 * 0.2 * dense <= pruned.sops <= 0.2 * dense
    graph = capture(pruned.net, raster)
    assert any(isinstance(node, Conv1d | Conv2d) for node in graph.weighted.values())


def test_progress_can_be_shown(trained: SequentialState) -> None:
    shown = prune(trained, TASK, Pruning(Budget(density=0.3), train=training(1), progress=True))
    assert_sound(shown, Budget(density=0.3))
