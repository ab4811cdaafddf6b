"""Norse's own tasks, imported without the packages that only their training, data and plots need."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import norse.torch
import pytest
import torch

UNUSED = (
    "pytorch_lightning",
    "torchvision",
    "torch.utils.tensorboard",
    "matplotlib",
    "matplotlib.colors",
    "matplotlib.gridspec",
    "matplotlib.pyplot",
    "norse.torch.utils.plot",
)


class Stand(ModuleType):
    """A package the network does not use; whatever is asked of it is another."""

    LightningModule = torch.nn.Module

    def __getattr__(self, name: str) -> ModuleType:
        """Return a stand-in for a name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Stand(name)


def import_task(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """Import a module of norse.task; with ``patch``, it and the stand-ins leave `sys.modules` again.

    They are used whether the packages are installed or not, so that a test does not depend on it. Skips the test if
    Norse itself lacks the module.
    """
    whole = f"norse.task.{name}"
    if find_spec(whole) is None:
        pytest.skip(f"this Norse has no {whole}")
    # cifar10 imports these from a package that has no such names in norse 1.1.0, so that it cannot run by itself.
    for cell in ("LIFCell", "LICell", "SequentialState"):
        patch.setattr(norse.torch.module, cell, getattr(norse.torch, cell), raising=False)
    for package in UNUSED:
        patch.setitem(sys.modules, package, Stand(package))
    patch.setitem(sys.modules, whole, Stand(whole))  # noted by the patch, so that it is undone
    del sys.modules[whole]
    return importlib.import_module(whole)
