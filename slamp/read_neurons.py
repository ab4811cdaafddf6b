"""Read Norse's neurons, of one step, over time or recurrent, into graph nodes, by exact type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import numpy as np
import torch
from norse.torch.functional.reset import reset_subtract, reset_value

from slamp.errors import UnsupportedModuleError
from slamp.nodes import IF, LI, LIF, LSNN, CubaLI, CubaLIF, LIFRefrac, Neuron, Shape, per_neuron
from slamp.raster import seconds

# "adjoint" is accepted by norse 1.1.0 when a cell is made, but its threshold then refuses to run.
DETERMINISTIC_SPIKE_METHODS = ("heaviside", "super", "triangle", "tanh", "circ", "heavi_erfc")
INPUT, RECURRENT = "input_weights", "recurrent_weights"

_ADEX = "adaptive exponential neurons are not captured; nearest is LSNNCell (adaptive threshold), or LIFCell"
_ADEX_REFRAC = "adaptive exponential neurons are not captured; nearest is LIFRefracCell (refractory), or LSNNCell"
_EX = "exponential neurons are not captured; nearest is LIFCell"
_IZHIKEVICH = "Izhikevich neurons are not captured; nearest is LSNNCell (adaptive threshold), or LIFCell"
_COMPARTMENTS = "neurons of several compartments are not captured; nearest is {}"
# Classes of neurons Norse has and slamp does not, by name: why, and what to take instead.
NEURON_ADVICE: Mapping[str, str] = {
    "CobaLIFCell": "neurons with conductances are not captured; nearest is LIFRecurrentCell, or LIFCell",
    "Izhikevich": _IZHIKEVICH,
    "IzhikevichCell": _IZHIKEVICH,
    "IzhikevichRecurrent": _IZHIKEVICH,
    "IzhikevichRecurrentCell": _IZHIKEVICH,
    "LIFAdEx": _ADEX,
    "LIFAdExCell": _ADEX,
    "LIFAdExRecurrent": _ADEX,
    "LIFAdExRecurrentCell": _ADEX,
    "LIFAdExRefracCell": _ADEX_REFRAC,
    "LIFAdExRefracRecurrent": _ADEX_REFRAC,
    "LIFAdExRefracRecurrentCell": _ADEX_REFRAC,
    "LIFCorrelation": "correlation sensors, which change weights, are not captured; nearest is LIFRecurrentCell",
    "LIFEx": _EX,
    "LIFExCell": _EX,
    "LIFExRecurrent": _EX,
    "LIFExRecurrentCell": _EX,
    "LIFMCRecurrentCell": _COMPARTMENTS.format("LIFRecurrentCell"),
    "LIFMCRefracRecurrentCell": _COMPARTMENTS.format("LIFRefracRecurrentCell"),
}


@dataclass(frozen=True)
class Kind:
    """How the neurons of one class of Norse are read.

    Attributes:
        read: From the module and the shape of its neurons to the node; the path is for messages.
        over_time: True if the module takes all steps at once, (time, batch, ...).
        weights: Names of the weights the module holds: those of its input, and those of its spikes of the step before.
        tensors: Parameters Norse calls tensor methods on, so that a plain number does not run.
        uniform: Parameters Norse fills the initial state with, so that one per neuron does not run.
    """

    read: Callable[[Any, Shape, str], Neuron]
    over_time: bool = False
    weights: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    uniform: tuple[str, ...] = ()

    @property
    def recurrent(self) -> bool:
        """True if the neurons hear their own spikes of the step before."""
        return RECURRENT in self.weights


def neuron_of(module: torch.nn.Module, shape: Shape, *, where: str, dt: float | None) -> Neuron:
    """Return the node of a module's neurons; weights the module holds are left to the caller.

    A step of the cell, of the module over time and of the recurrent one are the same node: what a recurrent module adds
    are two weights, whose currents Norse adds one after the other into ``i``, input first.

    Args:
        module: A module of a class in `KINDS`.
        shape: Shape of its neurons, without time and batch axes.
        where: Path of the module in the network, for messages.
        dt: Time step of the neurons read so far, or None.

    Raises:
        UnsupportedModuleError: The class, or one of the module's options, has no node.
        GraphError: A parameter does not fit the shape.
    """
    check_neuron(module, where=where, dt=dt)
    kind = KINDS[type(module)]
    neurons = int(getattr(module, "hidden_size", 0))
    if kind.weights and shape != (neurons,):
        raise UnsupportedModuleError(
            f"{where}: {type(module).__name__} has {neurons} neurons, and shape {shape} was asked for; "
            "give its input one feature axis per sample"
        )
    return kind.read(module, shape, where)


def check_neuron(module: torch.nn.Module, *, where: str, dt: float | None) -> None:
    """Raise `UnsupportedModuleError` for what is wrong with neurons whatever their shape; arguments as `neuron_of`."""
    kind = KINDS.get(type(module))
    name = type(module).__name__
    if kind is None:
        advice = NEURON_ADVICE.get(name, f"allowed are {', '.join(sorted(known.__name__ for known in KINDS))}")
        raise UnsupportedModuleError(f"{where}: {type(module).__module__}.{name} is not captured; {advice}")
    parameters = dict(_parameters(module.p))
    method = parameters.get("method", "heaviside")
    if method not in DETERMINISTIC_SPIKE_METHODS:
        raise UnsupportedModuleError(
            f"{where}: spike method {method!r} is probabilistic or unknown; "
            f"allowed are {', '.join(DETERMINISTIC_SPIKE_METHODS)}"
        )
    if dt is not None and dt != module.dt:
        raise UnsupportedModuleError(
            f"{where}: dt is {seconds(module.dt)!r} s, the neurons before it have {float(dt)!r} s; "
            "use one dt in the whole network"
        )
    if (reset := parameters.get("reset_method", reset_value)) not in (reset_value, reset_subtract):
        raise UnsupportedModuleError(
            f"{where}: reset_method {reset!r}; allowed are norse's reset_value and reset_subtract"
        )
    for key in kind.tensors:
        if not isinstance(value := parameters[key], torch.Tensor):
            raise UnsupportedModuleError(
                f"{where}: {key} is the plain number {value!r}, which norse cannot run; use torch.tensor({value!r})"
            )
    for key, value in parameters.items():
        if key in kind.uniform and isinstance(value, torch.Tensor) and value.ndim > 0:
            raise UnsupportedModuleError(
                f"{where}: {key} has shape {tuple(value.shape)}, and norse starts {name} with one number; "
                "use one for all neurons, of shape ()"
            )
        if isinstance(value, torch.Tensor) and value.ndim > 0 and value.dtype != torch.float32 and key != "alpha":
            raise UnsupportedModuleError(f"{where}: {key} is {value.dtype}; allowed is float32")
    for key in kind.weights:
        weight = getattr(module, key)
        if weight.dtype != torch.float32:
            raise UnsupportedModuleError(f"{where}: {key} is {weight.dtype}; allowed is float32; call net.float()")
    if "rho_reset" in parameters:
        _check_refractory(parameters["rho_reset"], where)


def _check_refractory(rho_reset: Any, where: str) -> None:
    steps = torch.as_tensor(rho_reset).detach()
    wrong = (steps < 0) | (steps != steps.round())
    if bool(wrong.any()):
        value = float(steps[wrong].flatten()[0])
        raise UnsupportedModuleError(
            f"{where}: rho_reset is {value:g}; allowed are whole numbers of steps from 0 on; "
            f"norse is refractory for {max(0, int(np.ceil(value)))} steps then, so give that number"
        )


def _parameters(p: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of every parameter; those of a LIF inside another neuron as its own."""
    for key, value in zip(p._fields, p, strict=True):
        if key == "lif":
            yield from _parameters(value)
        else:
            yield key, value


def _iaf(module: Any, shape: Shape, where: str) -> Neuron:
    p = module.p
    return IF(_number(p.v_th, shape, where), _number(p.v_reset, shape, where))


def _lif_box(module: Any, shape: Shape, where: str) -> Neuron:
    p = module.p
    return LIF(
        decay_mem=_decay(module, p.tau_mem_inv, shape, where),
        **_firing(p, shape, where),
        reset="value" if p.reset_method is reset_value else "subtract",
    )


def _lif(module: Any, shape: Shape, where: str) -> Neuron:
    p = module.p
    return CubaLIF(
        decay_syn=_decay(module, p.tau_syn_inv, shape, where),
        decay_mem=_decay(module, p.tau_mem_inv, shape, where),
        **_firing(p, shape, where),
    )


def _lif_refrac(module: Any, shape: Shape, where: str) -> Neuron:
    p = module.p.lif
    return LIFRefrac(
        decay_syn=_decay(module, p.tau_syn_inv, shape, where),
        decay_mem=_decay(module, p.tau_mem_inv, shape, where),
        **_firing(p, shape, where),
        refractory_steps=_number(module.p.rho_reset, shape, where),
    )


def _lsnn(module: Any, shape: Shape, where: str) -> Neuron:
    p = module.p
    return LSNN(
        decay_syn=_decay(module, p.tau_syn_inv, shape, where),
        decay_mem=_decay(module, p.tau_mem_inv, shape, where),
        decay_adapt=_decay(module, p.tau_adapt_inv, shape, where),
        **_firing(p, shape, where),
        beta=_number(p.beta, shape, where),
    )


def _li_box(module: Any, shape: Shape, where: str) -> Neuron:
    return LI(_decay(module, module.p.tau_mem_inv, shape, where), _number(module.p.v_leak, shape, where))


def _li(module: Any, shape: Shape, where: str) -> Neuron:
    p = module.p
    return CubaLI(
        decay_syn=_decay(module, p.tau_syn_inv, shape, where),
        decay_mem=_decay(module, p.tau_mem_inv, shape, where),
        v_leak=_number(p.v_leak, shape, where),
    )


def _firing(p: Any, shape: Shape, where: str) -> dict[str, Any]:
    return {
        "v_leak": _number(p.v_leak, shape, where),
        "v_threshold": _number(p.v_th, shape, where),
        "v_reset": _number(p.v_reset, shape, where),
    }


def _decay(module: Any, tau_inv: torch.Tensor | float, shape: Shape, where: str) -> np.ndarray:
    """Return dt times an inverse time constant, multiplied as Norse does in every step."""
    return _number(torch.as_tensor(module.dt * tau_inv), shape, where)


def _number(value: torch.Tensor | float, shape: Shape, where: str) -> np.ndarray:
    array = torch.as_tensor(value).detach().to("cpu", torch.float32).numpy()
    trimmed = array.reshape(array.shape[1:]) if array.ndim == len(shape) + 1 and array.shape[0] == 1 else array
    return per_neuron(trimmed, shape, where=where)


# Norse 1.1.0 has no LIFBox, LIBox or LIFRefrac over time, and no recurrent IAF, LI or box cells.
KINDS: Mapping[type[torch.nn.Module], Kind] = {
    norse.IAFCell: Kind(_iaf, tensors=("v_reset",)),
    norse.IAF: Kind(_iaf, over_time=True, tensors=("v_reset",)),
    norse.LIFBoxCell: Kind(_lif_box, tensors=("v_leak",)),
    norse.LIFCell: Kind(_lif),
    norse.LIF: Kind(_lif, over_time=True, uniform=("v_leak",)),
    norse.LIFRecurrentCell: Kind(_lif, weights=(INPUT, RECURRENT), uniform=("v_leak",)),
    norse.LIFRecurrent: Kind(_lif, over_time=True, weights=(INPUT, RECURRENT), uniform=("v_leak",)),
    norse.LIFRefracCell: Kind(_lif_refrac, tensors=("v_leak",), uniform=("v_leak",)),
    norse.LIFRefracRecurrentCell: Kind(_lif_refrac, weights=(INPUT, RECURRENT), tensors=("v_leak",)),
    norse.LIFRefracRecurrent: Kind(_lif_refrac, over_time=True, weights=(INPUT, RECURRENT), uniform=("v_leak",)),
    norse.LSNNCell: Kind(_lsnn, tensors=("v_leak", "v_th"), uniform=("v_leak",)),
    norse.LSNN: Kind(_lsnn, over_time=True, tensors=("v_leak", "v_th"), uniform=("v_leak", "v_th")),
    norse.LSNNRecurrentCell: Kind(_lsnn, weights=(INPUT, RECURRENT), tensors=("v_leak", "v_th"), uniform=("v_leak",)),
    norse.LSNNRecurrent: Kind(
        _lsnn, over_time=True, weights=(INPUT, RECURRENT), tensors=("v_leak", "v_th"), uniform=("v_leak", "v_th")
    ),
    norse.LIBoxCell: Kind(_li_box, tensors=("v_leak",)),
    norse.LICell: Kind(_li, tensors=("v_leak",)),
    norse.LI: Kind(_li, over_time=True, tensors=("v_leak",), uniform=("v_leak",)),
    norse.LILinearCell: Kind(_li, weights=(INPUT,), tensors=("v_leak",)),
}
