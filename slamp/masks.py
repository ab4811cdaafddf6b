"""Masks: which weights stay, how they are applied to a module and stored beside it."""

from __future__ import annotations

import copy
import json
from collections.abc import ItemsView, Iterator, KeysView, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from slamp.allocate import Plan, masks_of_plan
from slamp.atomic import write_atomically
from slamp.balance import check_balance
from slamp.channels import Channels
from slamp.digests import kept_hash
from slamp.errors import ArtifactError, MaskError
from slamp.fans import within_fans
from slamp.score import Scores

MASKS_FORMAT = "slamp-masks-1"
PRUNED_FORMAT = "slamp-pruned-1"
PREFIX = "mask:"
CHANNELS_PREFIX = "channels:"
METADATA = "slamp"


@dataclass(frozen=True, eq=False)
class Masks:
    """One mask per weighted node; ``masks[name]`` is a read-only bool array of the weight's shape, True = keep.

    Attributes:
        arrays: The masks by node, in computing order.
        parameters: Name of the module parameter behind each node (empty for graphs that were not captured).
    """

    arrays: Mapping[str, np.ndarray]
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {}
        for name, array in self.arrays.items():
            if array.dtype != np.bool_:
                raise MaskError(f"{name}: the mask is {array.dtype}; allowed is bool, True = keep")
            frozen[name] = array.view()
            frozen[name].flags.writeable = False
        object.__setattr__(self, "arrays", MappingProxyType(frozen))
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the mask of a node."""
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over node names."""
        return iter(self.arrays)

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.arrays)

    def keys(self) -> KeysView[str]:
        """Return the node names."""
        return self.arrays.keys()

    def items(self) -> ItemsView[str, np.ndarray]:
        """Return (node, mask) pairs."""
        return self.arrays.items()

    @property
    def density(self) -> float:
        """Share of weights that stay, those of a shared parameter counted once."""
        return self.kept / self.size

    @property
    def kept(self) -> int:
        """Number of weights that stay, those of a shared parameter counted once."""
        return sum(int(np.count_nonzero(array)) for array in self._own())

    @property
    def size(self) -> int:
        """Number of weights, those of a shared parameter counted once."""
        return sum(array.size for array in self._own())

    def _own(self) -> list[np.ndarray]:
        """The mask of every parameter, once."""
        return list({self.parameters.get(name, f"/{name}"): array for name, array in self.arrays.items()}.values())

    @cached_property
    def hash(self) -> str:
        """sha256 over the masks; equals `slamp.manifest.mask_hash` of a graph pruned by them."""
        return kept_hash(self.arrays.items())


def make_masks(scores: Scores, plan: Plan, *, balance: str | None = None) -> Masks:
    """Keep exactly ``plan.keep[name]`` weights of every layer, the largest by score; of equals the lower flat index.

    Args:
        scores: What the plan was allocated from.
        plan: Result of `slamp.allocate`; the limits of fan-in and fan-out of its chip hold.
        balance: "fan_out" keeps as many weights for every source within a core's group of targets, at most as many as
            planned: Loihi 1 pads every list of a group to the longest (22 to 30 % of the memory at 10 % density).
            By default what the plan says.

    Raises:
        MaskError: The plan was made from other scores, or the balance is unknown.
    """
    if plan.method != scores.method or dict(plan.sizes) != scores.sizes:
        raise MaskError(
            f"masks: the plan is for {plan.method} on layers {dict(plan.sizes)}, the scores are {scores.method} on "
            f"{scores.sizes}; allocate from these scores"
        )
    balance = plan.balance if balance is None else balance
    check_balance(balance)
    scores = within_fans(scores, plan.profile)
    for name, layer in scores.layers.items():
        n = plan.keep[name]
        if not 1 <= n <= layer.curve.live:
            raise MaskError(f"{name}: the plan keeps {n} weights, allowed are 1 to {layer.curve.live}; allocate again")
    return Masks(masks_of_plan(scores, plan.keep, plan.profile, balance), scores.graph.parameters)


def masked_copy(net: torch.nn.Module, masks: Masks) -> torch.nn.Module:
    """Return a deep copy of ``net`` whose masked weights are zero.

    Raises:
        MaskError: A node's parameter is not in the module, has another shape, or is shared under another mask.
    """
    pruned = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, mask in masked_parameters(pruned, masks):
            parameter.masked_fill_(~mask, 0.0)
    return pruned


def masked_parameters(net: torch.nn.Module, masks: Masks) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Return (parameter, bool mask on its device) for every mask; raises `MaskError` where they do not fit."""
    found: dict[int, tuple[str, torch.nn.Parameter, torch.Tensor]] = {}
    for name, array in masks.items():
        where = masks.parameters.get(name)
        if where is None:
            raise MaskError(f"{name}: no module parameter is known behind it; make masks from a captured graph")
        try:
            parameter = net.get_parameter(where)
        except AttributeError as error:
            raise MaskError(f"{name}: the module has no parameter {where!r}; give the one that was captured") from error
        if tuple(parameter.shape) != array.shape:
            raise MaskError(
                f"{name}: the mask has shape {array.shape}, parameter {where} {tuple(parameter.shape)}; "
                "give the module that was captured"
            )
        mask = torch.tensor(array, device=parameter.device)
        other = found.get(id(parameter))
        if other is not None and not torch.equal(other[2], mask):
            raise MaskError(f"{name}: shares its weight with {other[0]} but not its mask; give each its own weight")
        found[id(parameter)] = (name, parameter, mask)
    return [(parameter, mask) for _, parameter, mask in found.values()]


def save_masks(masks: Masks, path: str | Path) -> None:
    """Write masks as one safetensors file; an existing file is replaced at once."""
    write_atomically(Path(path), save(_mask_tensors(masks), _metadata(masks, MASKS_FORMAT)))


def load_masks(path: str | Path) -> Masks:
    """Read masks written by `save_masks` or `save_pruned`.

    Raises:
        ArtifactError: The file is missing, damaged, or holds no masks.
    """
    return _read(Path(path))[1]


def load_channels(path: str | Path) -> Channels | None:
    """Read which channels of the original network a file of `save_pruned` keeps; None if it says nothing of channels.

    Raises:
        ArtifactError: The file is missing, damaged, or holds no masks.
    """
    return _read(Path(path))[2]


def save_pruned(net: torch.nn.Module, masks: Masks, path: str | Path, channels: Channels | None = None) -> None:
    """Write a module's state dict and its masks (names prefixed "mask:") as one safetensors file, atomically.

    Args:
        net: The pruned module.
        masks: Which of its weights stay.
        path: The file; an existing one is replaced at once.
        channels: Which channels of the original module are left in ``net`` (names prefixed "channels:" in the file),
            so that `slamp.restore_pruned` can make the smaller module again.

    Raises:
        MaskError: The masks or the channels do not fit the module, or a masked weight is not zero.
    """
    for parameter, mask in masked_parameters(net, masks):
        revived = int(((parameter != 0) & ~mask).sum())
        if revived:
            name = next(name for name, other in net.named_parameters() if other is parameter)
            raise MaskError(f"{name}: {revived} masked weights are not zero; save masked_copy(net, masks)")
    if channels is not None:
        _check_shrunk(net, masks, channels)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    tensors = {**state, **_mask_tensors(masks), **_channel_tensors(channels)}
    write_atomically(Path(path), save(tensors, _metadata(masks, PRUNED_FORMAT, channels)))


def load_pruned(path: str | Path) -> tuple[dict[str, torch.Tensor], Masks]:
    """Read a file of `save_pruned`: the state dict, for ``net.load_state_dict``, and the masks.

    Raises:
        ArtifactError: The file is missing, damaged, or was not written by `save_pruned`.
    """
    state, masks, _ = _read(Path(path))
    if not state:
        raise ArtifactError(f"{path}: holds masks but no weights; give a file written by save_pruned")
    return state, masks


def _mask_tensors(masks: Masks) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}{name}": torch.tensor(array) for name, array in masks.items()}


def _channel_tensors(channels: Channels | None) -> dict[str, torch.Tensor]:
    arrays = {} if channels is None else channels.arrays
    return {f"{CHANNELS_PREFIX}{name}": torch.tensor(array) for name, array in arrays.items()}


def _check_shrunk(net: torch.nn.Module, masks: Masks, channels: Channels) -> None:
    if odd := sorted(set(masks) ^ set(channels.arrays)):
        raise MaskError(
            f"{odd[0]}: the channels are of {list(channels.arrays)}, the masks of {list(masks)}; "
            "give those of the same network"
        )
    for name, kept in channels.kept.items():
        parameter = net.get_parameter(masks.parameters[name])
        if parameter.shape[0] != kept:
            raise MaskError(
                f"{name}: the channels keep {kept} outputs, parameter {masks.parameters[name]} has "
                f"{parameter.shape[0]}; save the module these channels were removed from"
            )


def _metadata(masks: Masks, kind: str, channels: Channels | None = None) -> dict[str, str]:
    # One entry: safetensors writes several in an order that changes from process to process.
    header = {"format": kind, "nodes": list(masks), "parameters": dict(masks.parameters)}
    if channels is not None:
        header["channels"] = list(channels.arrays)
    return {METADATA: json.dumps(header, sort_keys=True)}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Masks, Channels | None]:
    """Return what a file holds: tensors of the module, masks, and channels if it names any."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        if metadata.get("format") not in (MASKS_FORMAT, PRUNED_FORMAT):
            raise ArtifactError(
                f"{path}: format is {metadata.get('format')!r}; allowed are {MASKS_FORMAT}, {PRUNED_FORMAT}"
            )
        masks = Masks(
            {name: tensors.pop(f"{PREFIX}{name}").numpy() for name in metadata["nodes"]}, metadata["parameters"]
        )
        stays = {name: tensors.pop(f"{CHANNELS_PREFIX}{name}").numpy() for name in metadata.get("channels", ())}
        return tensors, masks, Channels(stays) if "channels" in metadata else None
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file; write it with save_masks or save_pruned") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: not a readable file of masks ({error}); save it again") from error
