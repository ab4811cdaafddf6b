"""Lets Lava 0.10.0 and netx of lava-dl 0.6.0, made for Python 3.10, run on a newer one and without torch.

Run by path, before Lava is imported, by the scripts that Lava's interpreter runs; knows nothing of slamp. Lava's
arithmetic is untouched:

* Since Python 3.11 a dataclass refuses defaults without a hash, and Lava's encoders have defaults of ``ByteEncoder``
  (lava/magma/compiler/var_model.py). It gets a hash.
* netx imports torch for an annotation, and slayer for resonate-and-fire neurons. Empty modules stand in for both.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from typing import Any

plain = dataclasses.dataclass


def with_hash(cls: Any = None, /, **options: Any) -> Any:
    """Make a dataclass, with a hash if it is Lava's ByteEncoder."""
    if cls is not None and cls.__name__ == "ByteEncoder":
        options["unsafe_hash"] = True
    return plain(cls, **options)


def no_resonators(*_: Any) -> Any:
    """Refuse what would need slayer."""
    raise NotImplementedError("resonate-and-fire neurons need lava-dl's slayer, which is not in this environment")


dataclasses.dataclass = with_hash
try:
    importlib.import_module("lava.magma.compiler.var_model")
finally:
    dataclasses.dataclass = plain

tensor_type = type("Tensor", (), {})
slayer = "lava.lib.dl.slayer"
for name, members in (
    ("torch", {"tensor": tensor_type, "Tensor": tensor_type}),  # scipy, too, looks for torch.Tensor
    (slayer, {}),
    (f"{slayer}.neuron", {}),
    (f"{slayer}.neuron.rf", {"neuron_params": no_resonators}),
):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)
