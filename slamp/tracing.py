"""What a module does when it is run: its calls of neurons and of torch functions, and how tensors flow between them.

Tensors are told apart by identity. What the calls mean, and which of them belong to one time step, is read elsewhere
(`slamp.steps`).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import norse.torch
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from slamp.errors import UnsupportedModuleError
from slamp.flow import Flow


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


Leaf = Callable[[torch.nn.Module], bool]
Check = Callable[[torch.nn.Module, str], None]
# Where no user's code is: of Norse, that is norse.torch without its models, which are networks like the user's, as are
# those of norse.task.
_NORSE = Path(str(norse.__file__)).parent / "torch"
_PACKAGES = (
    Path(str(torch.__file__)).parent,
    *(_NORSE / part for part in ("functional", "module", "utils")),
    Path(__file__).parent,
)
LIBRARIES = tuple(f"{path}{os.sep}" for path in _PACKAGES)
FUNCTIONAL = f"{_NORSE / 'functional'}{os.sep}"
# Drawn numbers differ from run to run, so nothing can be proven of them.
RANDOM = words(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli poisson multinomial "
    "binomial normal_ uniform_ bernoulli_ random_ exponential_ geometric_ cauchy_ log_normal_ rrelu "
    "gumbel_softmax"
)
# A number read into Python may decide what is computed, which a graph cannot follow.
READS = words(
    "item tolist numpy __bool__ __int__ __float__ __index__ __complex__ __array__ __contains__ is_nonzero "
    "equal allclose"
)


@dataclass(frozen=True)
class Line:
    """A place in the user's code, or in a module of torch or Norse that the user's code built (``file`` is empty)."""

    file: str
    number: int
    path: str

    def __str__(self) -> str:
        """Return "FILE:LINE", or the module's path where no code of the user is involved."""
        return f"{self.file}:{self.number}" if self.file else self.path


@dataclass(eq=False)
class Call:
    """One call of a function or of a leaf module.

    Attributes:
        function: Name of the torch function, or "" for a leaf module.
        module: The leaf module, or None.
        path: Path of the leaf module, or of the module that called the function.
        arguments: Positional arguments; tensors are replaced by `Value`.
        options: Keyword arguments, likewise.
        result: What it returned, likewise.
        line: Where the user's code made the call.
        kind: Class of the module of torch that called the function, or of the leaf module; "" in the user's code.
        functional: Function of `norse.torch.functional` that made the call, or "".
        place: The chain of callers; two calls with equal places are one piece of code run twice.
    """

    function: str
    module: torch.nn.Module | None
    path: str
    arguments: tuple[Any, ...] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    result: Any = field(repr=False)
    line: Line
    place: tuple[Any, ...] = field(repr=False)
    kind: str = ""
    functional: str = ""

    @property
    def where(self) -> str:
        """Where the call was made, for messages."""
        return place_of(self.line, self.path)

    @property
    def what(self) -> str:
        """What was called, for messages."""
        return self.kind or self.function


@dataclass(eq=False)
class Value:
    """A tensor at one moment. ``call`` made it (None: an input or a constant); ``name`` is that of a parameter.

    ``known`` is False for what depends on the inputs. ``version`` counts the writes to its memory, and ``unseen`` says
    where it was used though it was computed, or written to, in a way that no call shows.
    """

    tensor: torch.Tensor = field(repr=False)
    call: Call | None = field(default=None, repr=False)
    name: str = ""
    known: bool = True
    input: int | None = None
    version: int = 0
    unseen: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor, batch axis included."""
        return tuple(self.tensor.shape)


@dataclass(eq=False)
class Trace:
    """A run: calls in order, the results of the module calls that the driver made, the modules entered by path."""

    calls: list[Call] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    entered: dict[str, torch.nn.Module] = field(default_factory=dict)


class Tracer(TorchFunctionMode):
    """Records what runs while it is active."""

    def __init__(self, net: torch.nn.Module, leaf: Leaf, check: Check) -> None:
        super().__init__()
        self.trace = Trace()
        self.failure = ""  # the module in which the user's code raised, and what it received
        self._leaf = leaf
        self._check = check
        self._kinds: list[str] = []
        self._paths = {module: name or "(net)" for name, module in net.named_modules()}
        named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        self._values: dict[int, Value] = {}
        for name, tensor in reversed(named):  # the first name of a shared parameter stays
            self._values[id(tensor)] = Value(tensor, name=name, version=_version(tensor))
        self._flow = Flow(net.named_parameters(), self._writes)
        self._drawn = _generators()
        self._refusal: UnsupportedModuleError | None = None
        self._stack: list[str] = []
        self._quiet = 0
        self._base: FrameType | None = None

    def input(self, tensor: torch.Tensor) -> torch.Tensor:
        """Declare a tensor as an input; return it."""
        value = Value(tensor, known=False, input=len(self.trace.inputs), version=_version(tensor))
        self._flow.add(tensor)
        self.trace.inputs.append(value)
        self._values[id(tensor)] = value
        return tensor

    def value(self, tensor: torch.Tensor) -> Value:
        """Return the present value of a tensor."""
        found = self._values.get(id(tensor))
        version = _version(tensor)
        if found is None or found.tensor is not tensor:
            found = self._values[id(tensor)] = Value(tensor, version=version)
            how = "was computed from the input by what cannot be followed (compiled code, a copy made by Python)"
        else:
            how = "was written to under another name of the same memory, such as a view"
        written = found.version != version and (not found.known or self._flow.holds(tensor))
        if written or (found.known and self._flow.holds(tensor)):
            message = (
                f"{self._line(self._frames())}: uses a tensor that {how}; compute a new tensor by torch's functions"
            )
            found = self._values[id(tensor)] = Value(tensor, known=False, version=version, unseen=message)
        return found

    def run(self, net: torch.nn.Module, *arguments: Any) -> Any:
        """Call the network and keep what it returns."""
        self._base = sys._getframe()
        with self, self._flow, _module_calls(self._call_module), _own_functions(self._call_own):
            try:
                result = net(*arguments)
            except Exception as error:
                raise (self._refusal or error) from error  # operators of Python make another error of it
        if self._refusal is not None:
            raise self._refusal
        self.trace.results.append(self._valued(result))
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a torch function and record it if tensors are among its arguments and results."""
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if self._refusal is not None:  # Python's operators try something else after an error
            raise self._refusal
        if name == "__set__" and isinstance(args[0], torch.nn.Parameter) and self.value(args[0]).name:
            raise self._writes(self.value(args[0]).name)
        if name == "__get__":
            found = func(*args, **kwargs)
            if not isinstance(found, torch.Tensor) or self.value(args[0]).known:
                return found
            attribute = getattr(getattr(func, "__self__", None), "__name__", "attribute")
            name = "detach" if attribute == "data" else attribute
            self._record(name, None, self._valued(tuple(args[:1])), {}, found, known=False)
            return found
        if name in PASSED:
            return func(*args, **kwargs)
        if self._drawn != _generators():
            raise self._refuse(
                "draws random numbers of Python's or NumPy's generator", "leave noise out of the forward pass"
            )
        if name in RANDOM and kwargs.get("training", True):
            raise self._refuse(f"{name} draws random numbers", "leave noise out of the forward pass in evaluation")
        tensors = [value for value in tensors_in((args, kwargs)) if not self.value(value).known]
        if tensors and name in READS:
            raise self._refuse(
                f"{name} reads a number that depends on the input into Python",
                "what a step computes must not depend on it; use tensor operations, or read it outside of the module",
            )
        arguments, options = self._valued(tuple(args)), self._valued(dict(kwargs))
        changed = _changed_in_place(name, arguments, options)
        kept = changed.tensor.detach().clone() if changed is not None and changed.known else None
        before = torch.get_rng_state()
        result = func(*args, **kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            raise self._refuse(f"{name} draws random numbers", "leave noise out of the forward pass in evaluation")
        if any(True for _ in tensors_in((args, kwargs))):
            self._record(name, None, arguments, options, result, known=not tensors)
        if changed is not None and kept is not None:
            changed.tensor = kept  # the constant that was read before is what it was then
        return result

    def _call_own(self, kind: type, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a function that the user made of `torch.autograd.Function`, which torch's modes do not see."""
        if self._quiet:
            return call(*args, **kwargs)
        known = all(self.value(tensor).known for tensor in tensors_in((args, kwargs)))
        arguments, options = self._valued(args), self._valued(kwargs)
        self._quiet += 1
        try:
            result = call(*args, **kwargs)
        finally:
            self._quiet -= 1
        self._record(f"{kind.__name__}.apply", None, arguments, options, result, known=known)
        return result

    def _call_module(self, call: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        path = self._paths.get(module)
        if path is None and not self._quiet and self._leaf(module):
            kind = type(module).__name__
            raise self._refuse(f"{kind} is no part of the module", "make it once, as an attribute, in __init__")
        if self._quiet or path is None:
            return call(module, *args, **kwargs)
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise self._refuse(
                f"{path}: {type(module).__name__} is compiled code, which cannot be followed",
                "give the module it was made from",
            )
        self._stack.append(path)
        self.trace.entered.setdefault(path, module)
        of_torch = type(module).__module__.startswith("torch.nn.")
        self._kinds.append(type(module).__name__ if of_torch or self._leaf(module) else "")
        try:
            self._check(module, place_of(self._line(self._frames()), path))
            if not self._leaf(module):
                return call(module, *args, **kwargs)
            arguments, options = self._valued(args), self._valued(kwargs)
            known = all(self.value(tensor).known for tensor in tensors_in((args, kwargs)))
            self._quiet += 1
            try:
                result = call(module, *args, **kwargs)
            finally:
                self._quiet -= 1
            self._record("", module, arguments, options, result, known=known)
        except Exception:
            shapes = [tuple(tensor.shape[1:]) for tensor in tensors_in((args, kwargs))]
            if not self.failure and shapes:
                allowed = _allowed(module)
                self.failure = f"{path}: {type(module).__name__} receives shape {shapes[0]} per sample{allowed}"
            elif not self.failure:
                self.failure = f"{path}: {type(module).__name__}"
            raise
        else:
            return result
        finally:
            self._stack.pop()
            self._kinds.pop()

    def _record(
        self, name: str, module: torch.nn.Module | None, arguments: Any, options: Any, result: Any, *, known: bool
    ) -> None:
        frames = self._frames()
        if module is None:
            arguments, options = _by_position(arguments, options)
        call = Call(
            function=name,
            module=module,
            path=self._stack[-1] if self._stack else "(net)",
            arguments=arguments,
            options=options,
            result=None,
            line=self._line(frames),
            kind=self._kinds[-1] if self._kinds and not _by_user(frames) else "",
            functional=next((f.f_code.co_name for f in frames if f.f_code.co_filename.startswith(FUNCTIONAL)), ""),
            place=(self._stack[-1] if self._stack else "", *((id(f.f_code), f.f_lasti) for f in frames)),
        )
        changed = _changed_in_place(name, arguments, options)
        for tensor in [*tensors_in(result), *([changed.tensor] if changed is not None else [])]:
            old = self._values.get(id(tensor))
            passed = old is not None and old.tensor is tensor and changed is None and module is None
            if not passed:
                now_known = known and (changed is None or changed.known)
                self._values[id(tensor)] = Value(tensor, call, known=now_known, version=_version(tensor))
                if not now_known:
                    self._flow.add(tensor)
        call.result = self._valued(changed.tensor if result is None and changed is not None else result)
        self.trace.calls.append(call)

    def _valued(self, tree: Any) -> Any:
        return _mapped(tree, self.value)

    def _frames(self) -> list[FrameType]:
        frames: list[FrameType] = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame is not self._base:
            frames.append(frame)
            frame = frame.f_back
        return frames

    def _line(self, frames: Sequence[FrameType]) -> Line:
        path = self._stack[-1] if self._stack else "(net)"
        for frame in frames:
            if not frame.f_code.co_filename.startswith(LIBRARIES):
                return Line(frame.f_code.co_filename, frame.f_lineno, path)
        return Line("", 0, path)

    def _writes(self, name: str) -> UnsupportedModuleError:
        return self._refuse(
            f"writes to the parameter {name}", "change parameters once, before capturing, and not in forward"
        )

    def _refuse(self, found: str, advice: str) -> UnsupportedModuleError:
        error = UnsupportedModuleError(f"{self._line(self._frames())}: {found}; {advice}")
        self._refusal = self._refusal or error
        return error


# What says something about a tensor but not its numbers, and what torch calls on the way.
PASSED = words(
    "size dim ndimension numel nelement is_floating_point is_complex is_contiguous stride storage_offset "
    "__len__ get_device element_size __hash__ __repr__ __format__ data_ptr requires_grad_ "
    "register_hook retain_grad zeros_like ones_like full_like empty_like new_zeros new_ones new_full "
    "new_empty backward is_inference untyped_storage is_same_size __set__ __delete__ _is_view has_names"
)


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor's memory was written to, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _generators() -> tuple[Any, Any]:
    """Return the states of the generators that torch does not know."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # what users draw from
    return random.getstate(), (kind, np.asarray(keys).tobytes(), *rest)


def _by_position(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a function's arguments with the operands in their positions, and NumPy's names of options as torch's."""
    named = {{"axis": "dim", "keepdims": "keepdim"}.get(key, key): item for key, item in options.items()}
    for position, name in enumerate(("input", "other")):
        if name in named and len(arguments) == position:
            arguments = (*arguments, named.pop(name))
    return arguments, named


def _by_user(frames: Sequence[FrameType]) -> bool:
    """True if code of the user, such as a hook, runs inside of the innermost module."""
    for frame in frames:
        if frame.f_code is Tracer._call_module.__code__:
            return False
        if not frame.f_code.co_filename.startswith(LIBRARIES):
            return True
    return False


def _allowed(module: torch.nn.Module) -> str:
    """Say what shape a module takes, for messages."""
    match module:
        case torch.nn.Linear():
            return f", allowed is ({module.in_features},)"
        case torch.nn.Conv1d() | torch.nn.Conv2d():
            return f", allowed is ({', '.join([str(module.in_channels), *'yx'[2 - len(module.kernel_size) :]])})"
        case torch.nn.BatchNorm1d():
            return f", allowed is ({module.num_features},) or ({module.num_features}, x)"
        case torch.nn.BatchNorm2d():
            return f", allowed is ({module.num_features}, y, x)"
    p = getattr(module, "p", None)
    fields = p._asdict() if isinstance(p, tuple) and hasattr(p, "_asdict") else {}
    size = getattr(module, "input_size", None)
    known = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor) and value.ndim}
    found = [f"{name} has shape {tuple(value.shape)}" for name, value in known.items()]
    return "".join([f", allowed is ({size},)" if isinstance(size, int) else "", *[f", its {item}" for item in found]])


def place_of(line: Line, path: str) -> str:
    """Return a line of code and the path of the module that stands there, or the path alone."""
    return f"{line}: {path}" if line.file and path != "(net)" else str(line)


def _changed_in_place(name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Value | None:
    """Return the value whose tensor a function writes to, or None."""
    if isinstance(out := options.get("out"), Value):
        return out
    inplace = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    inplace = inplace or (name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__"))
    inplace = inplace or bool(options.get("inplace"))
    first = arguments[0] if arguments else None
    return first if inplace and isinstance(first, Value) else None


@contextmanager
def _own_functions(wrapper: Callable[..., Any]) -> Iterator[None]:
    original = torch.autograd.Function.__dict__["apply"]

    def apply(kind: type, *args: Any, **kwargs: Any) -> Any:
        return wrapper(kind, original.__get__(None, kind), args, kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]  # for the time of a run
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]  # as it was


@contextmanager
def _module_calls(wrapper: Callable[..., Any]) -> Iterator[None]:
    original = torch.nn.Module.__call__

    def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, module, args, kwargs)

    torch.nn.Module.__call__ = call  # type: ignore[method-assign]  # as torch.fx does
    try:
        yield
    finally:
        torch.nn.Module.__call__ = original  # type: ignore[method-assign]  # as it was


def _mapped(tree: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Replace the tensors in nested tuples, named tuples, lists and dictionaries."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(item, function) for item in tree))
    if isinstance(tree, (tuple, list)):
        return (
            type(tree)(_mapped(item, function) for item in tree)
            if type(tree) in (tuple, list)
            else tuple(_mapped(item, function) for item in tree)
        )
    if isinstance(tree, dict):
        return {key: _mapped(item, function) for key, item in tree.items()}
    return tree


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_in(item)


def values_in(tree: Any) -> Iterator[Value]:
    """Yield the values in nested tuples, lists and dictionaries."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from values_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from values_in(item)
