"""`retrain`: the user's own training loop, with the masks held."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from slamp.checkpoint import Checkpoint
from slamp.errors import TrainingError
from slamp.integer_training import check_quantized, integer_forward
from slamp.masks import Masks, masked_parameters
from slamp.profile import Profile
from slamp.progress import ticker
from slamp.raster import SpikeRaster


class Train(Protocol):
    """The user's training function. It trains ``net`` in place and returns nothing."""

    def __call__(
        self, net: torch.nn.Module, *, effort: float, generator: np.random.Generator, checkpoint: Checkpoint
    ) -> None:
        """Train ``net`` in place.

        Args:
            net: The network to train; put it in the mode you want.
            effort: Share of a full retraining: multiply your number of epochs by it.
            generator: Source of all randomness, such as the order of samples.
            checkpoint: ``checkpoint.load()`` gives what ``checkpoint.save(state)`` last kept, or None.
        """


def retrain(
    net: torch.nn.Module,
    masks: Masks,
    train: Train,
    *,
    effort: float = 1.0,
    generator: np.random.Generator | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    quantized: Profile | None = None,
    raster: SpikeRaster | None = None,
) -> torch.nn.Module:
    """Train a copy of ``net`` while pruned weights stay zero, and return the copy.

    The masks hold through every optimizer of torch, whether made before, inside or by ``train``: gradients and moments
    of pruned weights are zeroed before each optimizer step, the weights after it. torch's global random state is seeded
    from ``generator`` for the time of the training and restored afterwards, so that a seed determines the result.

    Args:
        net: The pruned network.
        masks: Which weights stay.
        train: The user's training function, see `Train`.
        effort: Share of a full retraining, > 0.
        generator: Source of randomness; ``numpy.random.default_rng(0)`` if None.
        checkpoint: Where ``train`` may save its progress.
        progress: Show the number of optimizer steps and the time.
        quantized: Chip in whose integers the network computes while it is trained, with straight-through gradients. Its
            weights are left on their grids, so that `slamp.quantize` loses nothing more.
        raster: Samples on which the scales are chosen, for ``quantized``.

    Raises:
        UnsupportedModuleError, UnsupportedNodeError, GraphError: The network cannot be quantized.
        TrainingError: ``train`` returned another network, revived pruned weights past the optimizer, or left
            numbers that are not finite.
        MaskError: The masks do not fit the network.
    """
    check_signature(train)
    check_quantized(quantized, raster)
    if not effort > 0:
        raise TrainingError(f"retrain: effort is {effort!r}; allowed is a positive share of a full retraining")
    generator = np.random.default_rng(0) if generator is None else generator
    trained = copy.deepcopy(net)
    _zero_pruned(masked_parameters(trained, masks))
    with (
        ticker("retraining", None, shown=progress, unit="steps") as advance,
        _masks_held(trained, masks, advance),
        _seeded(generator, trained),
        nullcontext() if quantized is None or raster is None else integer_forward(trained, quantized, raster),
    ):
        returned = train(trained, effort=effort, generator=generator, checkpoint=checkpoint or Checkpoint())  # type: ignore[func-returns-value]  # users may return by mistake
    if isinstance(returned, torch.nn.Module) and returned is not trained:
        raise TrainingError("retrain: the training function returned another network; train the one given, in place")
    _check_trained(trained, masks)
    return trained


def check_signature(train: Train) -> None:
    """Raise `TrainingError` unless a function can be called as slamp calls a training function."""
    try:
        signature = inspect.signature(train)
    except ValueError:  # a builtin that does not say
        return
    try:
        signature.bind(None, effort=1.0, generator=None, checkpoint=None)
    except TypeError as error:
        name = getattr(train, "__name__", repr(train))
        raise TrainingError(
            f"train: {name}{signature} cannot be called with effort, generator and checkpoint ({error}); "
            "write it as train(net, *, effort, generator, checkpoint)"
        ) from error


@contextmanager
def _masks_held(net: torch.nn.Module, masks: Masks, advance: Callable[[int], None]) -> Iterator[None]:
    """Hold masks through every optimizer step that touches a masked parameter of ``net``, also one put in its place."""
    pruned = {where: torch.tensor(~masks[name]) for name, where in masks.parameters.items() if name in masks.arrays}

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, gone in _own(optimizer, net, pruned):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0.0)
            _zero_moments(optimizer, parameter, gone)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, gone in _own(optimizer, net, pruned):
            with torch.no_grad():
                parameter.masked_fill_(gone, 0.0)
            _zero_moments(optimizer, parameter, gone)
        advance(1)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    for parameter, keep in masked_parameters(net, masks):
        if parameter.requires_grad:  # a frozen one has no gradient to mask
            handles.append(parameter.register_hook(lambda gradient, keep=keep: gradient.masked_fill(~keep, 0.0)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own(
    optimizer: Optimizer, net: torch.nn.Module, pruned: dict[str, torch.Tensor]
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Yield the masked parameters that an optimizer trains, each with where it is pruned."""
    found = dict(net.named_parameters())
    by_parameter = {found[where]: gone for where, gone in pruned.items() if where in found}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in by_parameter:
                yield parameter, by_parameter[parameter].to(parameter.device)


def _zero_moments(optimizer: Optimizer, parameter: torch.nn.Parameter, gone: torch.Tensor) -> None:
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            value.masked_fill_(gone, 0)


@contextmanager
def _seeded(generator: np.random.Generator, net: torch.nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index or 0 for p in net.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(generator.integers(2**31)))
        yield


def _zero_pruned(parameters: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    with torch.no_grad():
        for parameter, keep in parameters:
            parameter.masked_fill_(~keep, 0.0)


def _check_trained(net: torch.nn.Module, masks: Masks) -> None:
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{name}: training left NaN or infinity; lower the learning rate")
    # Looked up anew: the training function may have put other parameters in the place of the ones held.
    names = {parameter: name for name, parameter in net.named_parameters()}
    for parameter, keep in masked_parameters(net, masks):
        name = names[parameter]
        revived = (parameter != 0) & ~keep
        if bool(revived.any()):
            index = [int(axis) for axis in revived.nonzero()[0]]
            raise TrainingError(
                f"{name}: training revived {int(revived.sum())} pruned weights, the first at {index}; "
                "weights must change through a torch.optim optimizer only, which holds the masks"
            )
