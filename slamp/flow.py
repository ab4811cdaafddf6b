"""Which memory holds numbers that depend on the inputs, seen below torch's functions.

What is read from a run is what torch's functions did. Compiled code, copies and other names of one memory are not seen
there: here they are, so that nothing that depends on the input is taken for a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Flow(TorchDispatchMode):
    """Follows, while it is active, the memory that depends on the inputs.

    Args:
        fixed: Tensors by name that must not be written to.
        refuse: Makes the error for a write to one of them, of its name.
    """

    def __init__(self, fixed: Iterable[tuple[str, torch.Tensor]], refuse: Callable[[str], Exception]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not say
        self._refuse = refuse
        self._fixed = {_memory(tensor): name for name, tensor in fixed if _has_memory(tensor)}
        self._dependent: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # wrapping it for the compiler would import that, which takes a second

    def add(self, tensor: torch.Tensor) -> None:
        """Declare that a tensor depends on the inputs."""
        self._dependent.add(_memory(tensor))

    def holds(self, tensor: torch.Tensor) -> bool:
        """True if a tensor's memory holds numbers that depend on the inputs."""
        return _has_memory(tensor) and _memory(tensor) in self._dependent

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one of torch's own functions and mark what it gives, or writes to, if what it reads is marked."""
        with torch._C.DisableTorchFunction():  # what is asked here is nothing the user's code does
            return self._followed(func, args, kwargs or {})

    def _followed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        written = _written(func, args, kwargs)
        for tensor in written:
            if _has_memory(tensor) and (name := self._fixed.get(_memory(tensor))):
                raise self._refuse(name)
        name = func.__name__.partition(".")[0]
        of_shape = name.startswith("new_") or name.endswith("_like")
        dependent = not of_shape and any(self.holds(item) for item in _leaves((args, kwargs)))
        result = func(*args, **kwargs)
        made = {_memory(item) for item in [*written, *_leaves(result)] if _has_memory(item)}
        if dependent:
            self._dependent |= made
        elif not written:
            self._dependent -= made  # memory that was freed and given out again
        return result


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the arguments that a function writes to."""
    found: list[torch.Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            found += _leaves(given)
    return found


def _leaves(tree: Any) -> list[torch.Tensor]:
    return [item for item in tree_leaves(tree) if isinstance(item, torch.Tensor)]


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
