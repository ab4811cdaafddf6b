"""Turn what a user names on the command line into objects, with one clear error where that fails."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from slamp.errors import ArtifactError, RunFileError


def load_object(reference: str, *, role: str) -> Any:
    """Import ``package.module:name`` (the current directory is searched too); ``role`` names it in errors."""
    module_name, colon, name = reference.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise RunFileError(f"{role}: {reference!r}; allowed is package.module:name, as in Python's import, no path")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RunFileError(
            f"{role}: cannot import {module_name!r} ({error}); run where it can be imported, and write "
            "package.module:name, without .py"
        ) from error
    except SyntaxError as error:
        raise RunFileError(f"{role}: {module_name!r} is not valid Python ({error}); correct it") from error
    found: Any = module
    for part in name.split("."):
        if part not in dir(found):
            raise RunFileError(f"{role}: {module_name} has no {name!r}; it has {_public(module)}")
        found = getattr(found, part)
    return found


def load_function(reference: str, *, role: str) -> Callable[..., Any]:
    """As `load_object`, for something that can be called."""
    found = load_object(reference, role=role)
    if not callable(found):
        raise RunFileError(f"{role}: {reference} is {type(found).__name__}; allowed is a function")
    function: Callable[..., Any] = found
    return function


def load_network(reference: str, weights: Path | None) -> torch.nn.Module:
    """Call a factory without arguments and load a safetensors state dict into its network."""
    factory = load_function(reference, role="factory")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise RunFileError(
            f"factory: {reference} cannot be called without arguments ({error}); write a function that can"
        ) from error
    net = factory()
    if not isinstance(net, torch.nn.Module):
        raise RunFileError(f"factory: {reference} returned {type(net).__name__}; allowed is a torch.nn.Module")
    if weights is None:
        return net
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{weights}: not a readable safetensors file ({error}); write it with safetensors.torch.save_file"
        ) from error
    state = {name: tensor for name, tensor in state.items() if not name.startswith("mask:")}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(f"{weights}: does not fit {reference}: {' '.join(str(error).split())}") from error
    return net


def _public(module: Any) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return ", ".join(name for name in own if not name.startswith("_"))[:200] or "nothing of its own"
