"""Steps Lava's own process models in one process. Started by Lava's interpreter, never imported; knows no slamp.

``python lava_models_runner.py DESCRIPTION.npz OUTPUT.npz ...``, pairs as many as you like. A description holds
``inputs`` (time, batch, *features), int32; ``network``, JSON as bytes; and the arrays that the JSON names:

* ``neurons``: by name ``shape`` (torch order), ``du``, ``dv``, ``vth``, ``bias_exp``, and ``reset_offset`` where
  the layer is to start anew at that time step; the mantissas of the biases
  are the array ``bias/NAME``.
* ``synapses``: ``source`` ("input", a neuron, or "always_on" with ``starts``, the step, counted from 0, from which on
  it spikes), ``target``, ``kind`` (dense, sparse, delay_dense, delay_sparse, conv), ``weight`` (name of an array),
  ``weight_exp``, ``sign_mode`` (Lava's number, 0: left to Lava), ``delay`` (name of an array), ``stride``,
  ``padding``, ``dilation`` (y, x), ``groups``. A delay_sparse has no delay where it has no weight.

``graded`` is 1 where the inputs are whole numbers, 0 (or absent) where they are spikes.

The output file gets ``u/NAME``, ``v/NAME``, ``s/NAME`` of every neuron layer, (time, batch, *shape). The models are
built by the compiler's own builder, and their ports by Lava's own classes; only the channels between them are lists.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

import numpy as np

if sys.version_info >= (3, 11):  # not the Python that Lava is made for
    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "lava_shim.py"))

from lava.magma.compiler.builders.py_builder import PyProcessBuilder
from lava.magma.compiler.utils import PortInitializer, VarInitializer
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.conv.process import Conv
from lava.proc.dense.models import PyDelayDenseModelBitAcc, PyDenseModelBitAcc
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.lif.models import PyLifModelBitAcc, PyLifResetModelBitAcc
from lava.proc.lif.process import LIF, LIFReset
from lava.proc.sparse.models import PyDelaySparseModelBitAcc, PySparseModelBitAcc
from lava.proc.sparse.process import DelaySparse, Sparse
from lava.utils.weightutils import SignMode
from scipy.sparse import csr_matrix

NEVER_AGAIN = 1 << 30  # steps until a second reset
GRADED_BITS = 24


class Channel:
    """Hands one message of a step from a sender to a receiver."""

    def __init__(self) -> None:
        self.data: Any = None

    def send(self, data: Any) -> None:
        """Keep the message."""
        self.data = np.array(data)

    def recv(self) -> Any:
        """Return the message."""
        return self.data


def main(description_path: str, output_path: str) -> None:
    """Run every sample in fresh models, and write the result by rename."""
    with np.load(description_path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    network = json.loads(arrays["network"].tobytes().decode())
    inputs = arrays["inputs"].astype(np.int32)
    found: dict[str, Any] = {}
    for name, neuron in network["neurons"].items():
        shape = (*inputs.shape[:2], *neuron["shape"])
        found |= {f"u/{name}": np.zeros(shape, np.int32), f"v/{name}": np.zeros(shape, np.int32)}
        found[f"s/{name}"] = np.zeros(shape, bool)
    for sample in range(inputs.shape[1]):
        _run(network, arrays, inputs[:, sample], {name: array[:, sample] for name, array in found.items()})
    with open(f"{output_path}.partial", "wb") as file:
        np.savez(file, **found)
    os.replace(f"{output_path}.partial", output_path)


def _run(network: Any, arrays: Any, inputs: Any, found: Any) -> None:
    neurons, arriving, leaving = {}, {}, {}
    for name, spec in network["neurons"].items():
        count = sum(synapse["target"] == name for synapse in network["synapses"])
        arriving[name], leaving[name] = [Channel() for _ in range(count)], Channel()
        neurons[name] = _neuron(spec, arrays[f"bias/{name}"], arriving[name], leaving[name])
    free = {name: list(channels) for name, channels in arriving.items()}
    shapes = {name: tuple(spec["shape"]) for name, spec in network["neurons"].items()}
    shapes |= {"input": inputs.shape[1:], "always_on": (1,)}
    graded = int(arrays.get("graded", 0))
    synapses = []
    for spec in network["synapses"]:
        source = shapes[spec["source"]]
        spikes = Channel()
        bits = GRADED_BITS * graded if spec["source"] == "input" else 0
        model, spatial = _synapse(spec, arrays, source, bits, (spikes, free[spec["target"]].pop(0)))
        synapses.append((model, spec, spikes, spatial, source))
    spatial_targets = {spec["target"] for spec in network["synapses"] if spec["kind"] == "conv"}
    values = {}
    for step in range(len(inputs)):
        # A synapse first sends the sum it made a step before; what it is to receive is still to come.
        for model, *_ in synapses:
            model.a_out.send(_held(model))
        for name, model in neurons.items():
            shape = tuple(network["neurons"][name]["shape"])
            for channel in arriving[name]:
                channel.data = _laid_out(channel.data, name in spatial_targets, shape)
            model.time_step = step + 1
            model.run_spk()
            u, v, s = (_torch_order(value, shape) for value in (model.u, model.v, leaving[name].data))
            found[f"u/{name}"][step], found[f"v/{name}"][step], found[f"s/{name}"][step] = u, v, s != 0
            values[name] = s
        values["input"] = inputs[step]
        for model, spec, spikes, spatial, shape in synapses:
            on = spec["source"] == "always_on"
            x = np.asarray(step >= spec["starts"] if on else values[spec["source"]]).reshape(shape)
            spikes.data = x.transpose(2, 1, 0) if spatial else x.reshape(-1)
            model.run_spk()  # sends the old sum once more, which nobody receives, and makes the new one


def _held(model: Any) -> Any:
    """Return the sum a synapse will send, as its model names it."""
    if isinstance(model, PyConvModelFixed):
        return model.a_buf
    if isinstance(model, (PyDelayDenseModelBitAcc, PyDelaySparseModelBitAcc)):
        return model.a_buff[:, 0]
    return model.a_buff


def _laid_out(data: Any, spatial: bool, shape: Any) -> Any:
    """Give flat sums into spatial neurons Lava's (x, y, channels) layout."""
    data = np.asarray(data)
    if len(shape) != 3:
        return data.reshape(shape)
    return data if data.ndim == 3 else data.reshape(shape).transpose(2, 1, 0)


def _torch_order(value: Any, shape: Any) -> Any:
    value = np.asarray(value)
    return value.transpose(2, 1, 0) if len(shape) == 3 else value.reshape(shape)


def _neuron(spec: Any, bias: Any, arriving: Any, leaving: Any) -> Any:
    shape = tuple(spec["shape"])
    lava_shape = shape[::-1] if len(shape) == 3 else shape
    values = {
        "shape": lava_shape,
        "du": spec["du"],
        "dv": spec["dv"],
        "vth": spec["vth"],
        "bias_mant": bias.transpose(2, 1, 0) if len(shape) == 3 else bias,
        "bias_exp": spec["bias_exp"],
    }
    ports = {"a_in": arriving, "s_out": [leaving]}
    if "reset_offset" not in spec:
        return _built(LIF(**values), PyLifModelBitAcc, ports)
    process = LIFReset(reset_interval=NEVER_AGAIN, reset_offset=spec["reset_offset"], **values)
    return _built(process, PyLifResetModelBitAcc, ports)


def _synapse(spec: Any, arrays: Any, source: Any, bits: int, channels: Any) -> Any:
    weight = arrays[spec["weight"]]
    mode = {"sign_mode": SignMode(spec["sign_mode"])} if spec.get("sign_mode") else {}
    ports = {"s_in": [channels[0]], "a_out": [channels[1]]}
    exponent = spec.get("weight_exp", 0)
    if spec["kind"] == "conv":
        process = Conv(
            weight=weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1),
            input_shape=source[::-1],
            stride=tuple(spec["stride"][::-1]),
            padding=tuple(spec["padding"][::-1]),
            dilation=tuple(spec["dilation"][::-1]),
            groups=spec["groups"],
            num_message_bits=bits,
        )
        return _built(process, PyConvModelFixed, ports), True
    if spec["kind"] == "sparse":
        process = Sparse(weights=csr_matrix(weight), weight_exp=exponent, num_message_bits=bits, **mode)
        return _built(process, PySparseModelBitAcc, ports), False
    if spec["kind"] in ("delay_dense", "delay_sparse"):
        sparse = spec["kind"] == "delay_sparse"
        delay = arrays[spec["delay"]].astype(int)  # Lava takes no other integers
        process = (DelaySparse if sparse else DelayDense)(
            weights=csr_matrix(weight) if sparse else weight,
            delays=csr_matrix(delay) if sparse else delay,
            max_delay=int(delay.max()),
            weight_exp=exponent,
            num_message_bits=bits,
            **mode,
        )
        return _built(process, PyDelaySparseModelBitAcc if sparse else PyDelayDenseModelBitAcc, ports), False
    process = Dense(weights=weight, weight_exp=exponent, num_message_bits=bits, **mode)
    return _built(process, PyDenseModelBitAcc, ports), False


def _built(process: Any, model: Any, ports: Any) -> Any:
    """Build a process model as Lava's compiler and runtime do, its ports connected to our channels."""
    builder = PyProcessBuilder(model, 0, process.proc_params)
    builder.set_variables([VarInitializer(var.name, var.shape, var.init, k) for k, var in enumerate(process.vars)])
    known = [(port, kind) for kind in ("in_ports", "out_ports") for port in getattr(process, kind)]
    initial = []
    for port, kind in known:
        kind_name = "InPort" if kind == "in_ports" else "OutPort"
        initial.append(PortInitializer(port.name, port.shape, np.int32, kind_name, 1))
    builder.set_py_ports(initial)
    builder.csp_ports = dict(ports)
    return builder.build()


if __name__ == "__main__":
    for first in range(1, len(sys.argv) - 1, 2):
        main(*sys.argv[first : first + 2])
