"""`shrink`: remove whole channels and neurons from a module, so that every shape behind them really gets smaller.

What is left computes what the whole network computes with the outgoing weights of the removed outputs set to zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from norse.torch.module.snn import SNNCell

from slamp.capture import read_graph
from slamp.chain_modules import check_chain, leaves
from slamp.channels import Channels, check_channels, removable
from slamp.errors import MaskError, UnsupportedModuleError
from slamp.graph import SpikingGraph
from slamp.masks import load_channels, load_pruned
from slamp.nodes import Shape
from slamp.read_sites import node_name
from slamp.shrunk_graph import shrunk_activity, shrunk_graph

__all__ = ["Channels", "removable", "restore_pruned", "shrink", "shrunk_activity", "shrunk_graph"]

WeightedModule = torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d
NORMALIZATIONS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
TensorT = TypeVar("TensorT", torch.nn.Parameter, torch.Tensor)


def shrink(net: torch.nn.Module, channels: Channels, features: Shape, dt: float = 1e-3) -> torch.nn.Module:
    """Return a deep copy of ``net`` from which the channels that go are removed.

    Weights, biases, batch normalizations and neuron parameters that are given per neuron get smaller, and the modules
    say so (``in_features``, ``out_channels``, ``num_features``, ...). Containers, names, training mode and
    ``requires_grad`` stay. Optimizers made for ``net`` do not know the new parameters: make new ones.

    Args:
        net: The network, as `capture` takes it.
        channels: Which outputs of every weighted node of its graph stay.
        features: Shape of one input sample at one step.
        dt: Time step of its neurons in seconds.

    Raises:
        MaskError: The channels do not belong to the network, or cannot be removed from it.
        UnsupportedModuleError: The network is no `SequentialState`.
    """
    graph, _ = read_graph(net, features, dt)
    check_modules(graph, net)
    check_channels(graph, channels)
    return _shrunk_module(net, channels)


def check_modules(graph: SpikingGraph, net: torch.nn.Module) -> None:
    """Raise unless channels can be removed from a network: all its weights are in layers that say their sizes.

    Raises:
        UnsupportedModuleError: It is no `SequentialState`.
        MaskError: A module holds weights otherwise, as recurrent cells do; the message names the node.
    """
    check_chain(net)
    for name in graph.weighted:
        path, _, field = graph.parameters[name].rpartition(".")
        module = net.get_submodule(path)
        if field != "weight" or not isinstance(module, WeightedModule):
            raise MaskError(
                f"{name}: is {field} of {type(module).__name__}, and channels are removed from networks of "
                "torch.nn.Linear, Conv1d and Conv2d only; prune single weights instead"
            )


def restore_pruned(net: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Return a copy of ``net`` with the shapes and the weights of a file of `save_pruned`.

    Args:
        net: The network the pruning began with, or one of the shapes the file holds; its weights do not matter, but
            neuron parameters that torch does not store (those of Norse cells) are taken from it.
        path: The file.

    Raises:
        ArtifactError: The file is missing, damaged, or was not written by `save_pruned`.
        MaskError: The file is of another network.
    """
    state, _ = load_pruned(path)
    channels = load_channels(path)
    restored = copy.deepcopy(net)
    if channels is not None and _first_difference(net, state):
        try:
            restored = _shrunk_module(net, channels)
        except (MaskError, UnsupportedModuleError) as error:
            raise MaskError(f"{path}: {error}") from error
    if difference := _first_difference(restored, state):
        raise MaskError(f"{path}: {difference}; give the network that was pruned to this file")
    restored.load_state_dict(state)
    return restored


def _shrunk_module(net: torch.nn.Module, channels: Channels) -> torch.nn.Module:
    """Cut every module of a copy; what each has to cut follows from its own sizes, so features are not needed."""
    check_chain(net)
    small = copy.deepcopy(net)
    done: dict[torch.nn.Module, tuple[np.ndarray, int]] = {}
    kept, axes = np.ones(1, dtype=bool), 0  # of the values that pass; what enters the network stays whole
    for path, module in leaves(small):
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)):
            outputs = _outputs_that_stay(module, channels, path)
            _cut_weighted(module, outputs, kept, path)
            kept, axes = outputs, module.weight.ndim - 1
        elif isinstance(module, torch.nn.Flatten):
            axes -= max(module.end_dim % (axes + 1) - module.start_dim % (axes + 1), 0)
        elif module not in done:
            _cut_per_channel(module, kept, axes, path)
            done[module] = (kept, axes)
        elif _holds_per_channel(module) and not _alike(done[module], (kept, axes)):
            raise MaskError(
                f"{path}: {type(module).__name__} is used several times, for channels of which different ones stay; "
                "give each use its own module"
            )
    return small


def _outputs_that_stay(module: WeightedModule, channels: Channels, path: str) -> np.ndarray:
    name, outputs = node_name(path), int(module.weight.shape[0])
    if name not in channels.arrays or channels[name].size != outputs:
        found = {name: array.size for name, array in channels.arrays.items()}
        raise MaskError(
            f"{path}: has {outputs} outputs, the channels are of layers with {found}; give the network they are of"
        )
    return channels[name]


def _cut_weighted(module: WeightedModule, outputs: np.ndarray, inputs: np.ndarray, path: str) -> None:
    module.weight = _cut(_cut(module.weight, outputs, 0, path), inputs, 1, path)
    if module.bias is not None:
        module.bias = _cut(module.bias, outputs, 0, path)
    if isinstance(module, torch.nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    else:
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups


def _cut_per_channel(module: torch.nn.Module, keep: np.ndarray, axes: int, path: str) -> None:
    """Cut a batch normalization, or the parameters of neurons whose shape has ``axes`` axes; leave the rest alone."""
    if keep.all():
        return
    if isinstance(module, NORMALIZATIONS):
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name)
            if tensor is not None:
                setattr(module, name, _cut(tensor, keep, 0, path))
                module.num_features = getattr(module, name).shape[0]
    elif isinstance(module, SNNCell):
        module.p = _cut_parameters(module.p, keep, axes, path)


def _cut_parameters(p: Any, keep: np.ndarray, axes: int, path: str) -> Any:
    """Cut parameters that broadcast to (batch, *neurons): the first axis of the neurons is the axes-th from the end."""
    cut = {}
    for name, value in p._asdict().items():
        if isinstance(value, tuple):  # those of the LIF inside another neuron
            cut[name] = _cut_parameters(value, keep, axes, path)
        elif isinstance(value, torch.Tensor) and value.ndim >= axes and value.shape[value.ndim - axes] > 1:
            cut[name] = _cut(value, keep, value.ndim - axes, path)
    return p._replace(**cut)


def _holds_per_channel(module: torch.nn.Module) -> bool:
    return isinstance(module, NORMALIZATIONS) or (isinstance(module, SNNCell) and _spread(module.p))


def _spread(p: Any) -> bool:
    """Say whether neurons differ in a parameter."""
    tensors = [value for value in p if isinstance(value, torch.Tensor)]
    inner = [value for value in p if isinstance(value, tuple)]
    return any(tensor.numel() > 1 for tensor in tensors) or any(_spread(value) for value in inner)


def _alike(one: tuple[np.ndarray, int], other: tuple[np.ndarray, int]) -> bool:
    """Say whether two uses of a module cut the same from it."""
    if one[0].all() and other[0].all():
        return True
    return np.array_equal(one[0], other[0]) and one[1] == other[1]


def _cut(tensor: TensorT, keep: np.ndarray, axis: int, path: str) -> TensorT:
    """Return the entries along an axis that stay; several entries per channel are a block of neighbors."""
    if keep.all():
        return tensor
    size = int(tensor.shape[axis])
    if size % keep.size:
        raise MaskError(
            f"{path}: {size} values do not divide among the {keep.size} channels before it; "
            "give the network the channels are of"
        )
    entries = np.flatnonzero(keep.repeat(size // keep.size))
    cut = tensor.detach().index_select(axis, torch.as_tensor(entries, device=tensor.device))
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(cut, requires_grad=tensor.requires_grad)
    return cut.requires_grad_(tensor.requires_grad)


def _first_difference(net: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """Say where the names and shapes of a module's state are not those of ``state``, or nothing."""
    own = net.state_dict()
    for name in [*state, *own]:
        found = [tuple(tensors[name].shape) if name in tensors else "missing" for tensors in (own, state)]
        if found[0] != found[1]:
            return f"{name} is {found[0]} in the module, {found[1]} in the file"
    return ""
