"""Writes ``network.py``: the network of a ``.net`` file built from Lava's processes, for a reader to see and run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from exporters.net_format import NetLayer
from exporters.net_lines import input_lines
from slamp.nodes import Shape

SPARSE_BELOW = 0.5  # share of weights left, below which Sparse is built and pruned synapses are absent

IMPORTS = {
    "RunSteps": "lava.magma.core.run_conditions",
    "Loihi2SimCfg": "lava.magma.core.run_configs",
    "Conv": "lava.proc.conv.process",
    "DelayDense": "lava.proc.dense.process",
    "Dense": "lava.proc.dense.process",
    "RingBuffer as Sink": "lava.proc.io.sink",
    "RingBuffer as Source": "lava.proc.io.source",
    "LIF": "lava.proc.lif.process",
    "LIFReset": "lava.proc.lif.process",
    "Monitor": "lava.proc.monitor.process",
    "DelaySparse": "lava.proc.sparse.process",
    "Sparse": "lava.proc.sparse.process",
    "SignMode": "lava.utils.weightutils",
    "csr_matrix": "scipy.sparse",
}

KERNEL = '''def kernel(weight):
    """A kernel as Lava takes it: its axes are (x, y, channels), and it turns the kernel around."""
    return weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
'''

BEGIN = """def main(input_path, output_path=None):
    inputs = np.load(input_path)
    bits = 0 if inputs.dtype == bool else 24
    steps = len(inputs) + LATENCY
{widened}    data = np.concatenate([inputs, np.zeros((LATENCY, *inputs.shape[1:]), inputs.dtype)]).astype(np.int32)
    source = Source(data=np.ascontiguousarray({laid_out}))
"""

WIDENED = """    lines = np.ones((len(inputs), LINES, *inputs.shape[2:]), inputs.dtype)
    inputs = np.concatenate([inputs, lines], axis=1)
"""

HEAD = '''"""The network of {network}, built from Lava's processes; written by slamp. Needs lava-nc 0.10 and h5py.

    python network.py INPUT.npy [OUTPUT.npy]

INPUT.npy holds one sample, (time, {features}): bool for spikes, whole numbers for graded input. OUTPUT.npy gets {what}
of the last layer, (time, {outputs}), aligned with the input: in Lava every synapse takes a step, so the last layer
answers {latency} steps later.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
{imports}
NETWORK = Path(__file__).with_name("{network}")
LATENCY = {latency}
LINES = {lines}  # inputs beside those of INPUT.npy, which spike in every step: they carry biases of currents
NEVER_AGAIN = 1 << 30  # steps until a second reset


def held(weight):
    """Say how Dense and Sparse hold 8-bit weights exactly.

    With both signs they drop the last bit of a weight, so odd ones go in doubled, and the sums come out halved.
    """
    if weight.min() < 0 < weight.max() and not (weight % 2).any():
        return {{"weights": weight, "sign_mode": SignMode.MIXED}}
    if weight.min() < 0 < weight.max():
        return {{"weights": 2 * weight, "weight_exp": -1, "sign_mode": SignMode.MIXED}}
    return {{"weights": weight, "sign_mode": SignMode.EXCITATORY if weight.min() >= 0 else SignMode.INHIBITORY}}


def dense(weight, bits):
    """All synapses, also those of weight 0."""
    return Dense(num_message_bits=bits, **held(weight[()]))


def delayed(layer, bits):
    """All synapses, each with the steps it waits."""
    delays = layer["delay"][()].astype(int)
    return DelayDense(delays=delays, max_delay=int(delays.max()), num_message_bits=bits, **held(layer["weight"][()]))


def sparse(weight, bits):
    """The synapses that pruning left, and no others."""
    arguments = held(weight[()])
    arguments["weights"] = csr_matrix(arguments["weights"])
    return Sparse(num_message_bits=bits, **arguments)


{kernel}

def conv(layer, input_shape, bits):
    """A convolution."""
    axes = {{key: tuple(int(number) for number in layer[key][()][::-1]) for key in ("stride", "padding", "dilation")}}
    return Conv(
        weight=kernel(layer["weight"][()]),
        input_shape=input_shape,
        groups=int(layer["groups"][()]),
        num_message_bits=bits,
        **axes,
    )


def neurons(layer, shape, depth):
    """LIF neurons; with biases anywhere, they start anew when the first input reaches them, ``depth`` steps late."""
    fields = layer["neuron"]
    arguments = {{
        "shape": shape,
        "du": int(fields["iDecay"][()]) - 1,
        "dv": int(fields["vDecay"][()]),
        "vth": int(fields["vThMant"][()]),
    }}
    if "bias" in layer:
        arguments |= {{"bias_mant": np.broadcast_to(layer["bias"][()], shape), "bias_exp": 6}}
    if not BIASED:
        return LIF(**arguments)
    return LIFReset(reset_interval=NEVER_AGAIN, reset_offset=depth + 1, **arguments)


BIASED = {biased}


{begin}    with h5py.File(NETWORK, "r") as file:
'''

SPIKING_TAIL = """
    sink = Sink(shape={lava_shape}, buffer=steps)
    neurons{last}.s_out.connect(sink.a_in)
    source.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    found = sink.data.get().T != 0  # (time, {outputs})
    source.stop()
    found = found.reshape(steps, {outputs})[LATENCY:]
    print(f"{{int(found.sum())}} spikes in {{len(found)}} steps; per neuron {{found.sum(0).reshape(-1)}}")
"""

READOUT_TAIL = """
    monitor = Monitor()
    monitor.probe(neurons{last}.v, steps)
    source.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    ((found,),) = [by_name.values() for by_name in monitor.get_data().values()]
    source.stop()
    found = {time_first}.astype(np.int64).reshape(steps, {outputs})[LATENCY:]
    print(f"membranes after {{len(found)}} steps: {{found[-1].reshape(-1)}}")
"""

END = """    if output_path:
        np.save(output_path, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def network_script(features: Shape, layers: Sequence[NetLayer], *, network: str, readout: bool) -> str:
    """Return the text of ``network.py``.

    Args:
        features: Shape of the input.
        layers: What stands in the ``.net`` file, in its order.
        network: Name of that file, which lies beside the script.
        readout: True if the last layer's membranes are the output, False for spikes.
    """
    last = layers[-1]
    spatial = len(features) == 3 and layers[0].kind == "conv"
    names = {
        "network": network,
        "features": ", ".join(map(str, features)),
        "outputs": ", ".join(map(str, last.shape)),
        "what": "the membranes" if readout else "the spikes",
        "latency": len(layers),
        "lines": input_lines(features, layers),
        "last": len(layers),
        "biased": any(layer.bias is not None for layer in layers),
        "laid_out": "data.T" if spatial else "data.reshape(steps, -1).T",
        "lava_shape": _lava_shape(last),
        "time_first": "found.transpose(0, 3, 2, 1)" if last.kind == "conv" else "found",
        "imports": import_lines(set(IMPORTS) - {"DelaySparse"}),
        "kernel": KERNEL,
        "widened": WIDENED,
    }
    names["begin"] = BEGIN.format(**names)
    built = "".join(_layer_lines(features, layers))
    tail = (READOUT_TAIL if readout else SPIKING_TAIL).format(**names)
    return HEAD.format(**names) + built + _wiring(layers) + tail + END


def import_lines(names: AbstractSet[str]) -> str:
    """Return the lines that import some of `IMPORTS`."""
    lines = []
    for module in dict.fromkeys(IMPORTS.values()):
        wanted = [name for name, place in IMPORTS.items() if place == module and name in names]
        lines += [f"from {module} import {', '.join(wanted)}\n"] if wanted else []
    return "".join(lines)


def _layer_lines(features: Shape, layers: Sequence[NetLayer]) -> Iterator[str]:
    index, shape = 1, (features[0] + input_lines(features, layers), *features[1:])
    for depth, layer in enumerate(layers, start=1):
        index += int(layer.flattened)  # a flatten layer stands before it in the file
        kept = float((layer.weight != 0).mean())
        pad, bits = " " * 8, "bits" if depth == 1 else "0"
        yield f"{pad}# {layer.neuron!r} behind {layer.weights!r}, of whose weights {kept:.1%} are left\n"
        if layer.kind == "conv":
            made = f"conv(layer, {shape[::-1]}, {bits})"
        elif layer.delay is not None:
            made = f"delayed(layer, {bits})"
        else:
            made = _matrix("weight", layer.weight, bits)
        yield f'{pad}layer = file["layer/{index}"]\n'
        yield f"{pad}synapses{depth} = {made}\n"
        if layer.recurrent is not None:
            yield f"{pad}recurrent{depth} = {_matrix('weight_rec', layer.recurrent, '0')}\n"
        yield f"{pad}neurons{depth} = neurons(layer, {_lava_shape(layer)}, {depth})\n"
        index, shape = index + 1, layer.shape


def _matrix(key: str, weight: np.ndarray, bits: str) -> str:
    kind = "sparse" if float((weight != 0).mean()) < SPARSE_BELOW else "dense"
    return f'{kind}(layer["{key}"], {bits})'


def _wiring(layers: Sequence[NetLayer]) -> str:
    lines = ["    source.s_out.connect(synapses1.s_in)\n"]
    for depth, layer in enumerate(layers, start=1):
        if depth > 1:
            order = ".transpose([2, 1, 0]).flatten()" if layer.flattened else ""
            lines.append(f"    neurons{depth - 1}.s_out{order}.connect(synapses{depth}.s_in)\n")
        lines.append(f"    synapses{depth}.a_out.connect(neurons{depth}.a_in)\n")
        if layer.recurrent is not None:
            lines.append(f"    neurons{depth}.s_out.connect(recurrent{depth}.s_in)\n")
            lines.append(f"    recurrent{depth}.a_out.connect(neurons{depth}.a_in)\n")
    return "".join(lines)


def _lava_shape(layer: NetLayer) -> Shape:
    if layer.kind == "conv":
        return layer.shape[::-1]
    size = 1
    for extent in layer.shape:
        size *= extent
    return (size,)
