"""Writes ``network.py`` beside ``network.npz``: the network built from Lava's processes, one visible line for each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from exporters.lava_lowering import ALWAYS_ON, INPUT
from exporters.net_script import BEGIN, END, KERNEL, READOUT_TAIL, SPIKING_TAIL, import_lines
from exporters.process_files import ProcessNetwork
from slamp.arithmetic import SignMode
from slamp.conventions import said_steps
from slamp.nodes import Shape

HEAD = '''"""The network of {network}, built from Lava's processes; written by slamp. Needs lava-nc 0.10.

    python network.py INPUT.npy [OUTPUT.npy]

INPUT.npy holds one sample, (time, {features}): bool for spikes, whole numbers for graded input. OUTPUT.npy gets {what}
of {output}, (time, {outputs}), aligned with the input: in Lava every synapse takes a step, so that layer answers
{late} later.

{why}
"""

import sys
from pathlib import Path

import numpy as np
{imports}
NETWORK = Path(__file__).with_name("{network}")
LATENCY = {latency}
'''

PROCESSES = {
    "dense": "Dense",
    "sparse": "Sparse",
    "delay_dense": "DelayDense",
    "delay_sparse": "DelaySparse",
    "conv": "Conv",
}
NEVER_AGAIN = "NEVER_AGAIN = 1 << 30  # steps until a second reset\n"

ALWAYS_ON_LINE = '''def always_on(steps, starts):
    """An input line that spikes in every step from ``starts`` on: the bias of a layer's current."""
    return Source(data=(np.arange(steps) >= starts).astype(np.int32)[None])
'''

LOAD = """    with np.load(NETWORK, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
"""


def process_script(network: ProcessNetwork, *, name: str, readout: bool, why: str) -> str:
    """Return the text of ``network.py``.

    Args:
        network: What stands in the file.
        name: Name of the file, which lies beside the script.
        readout: True if the membranes of the output layer are the output, False for spikes.
        why: Why there is no ``.net`` file.
    """
    number = {layer: index for index, layer in enumerate(network.neurons, start=1)}
    output, spatial = network.output, _spatial(network)
    outputs = network.header["output"]["shape"]
    biased = any("reset_offset" in spec for spec in network.neurons.values())
    kinds = {synapse["kind"] for synapse in network.synapses}
    lines = any(synapse["source"] == ALWAYS_ON for synapse in network.synapses)
    names = {
        "network": name,
        "features": ", ".join(map(str, network.header["input"])),
        "what": "the membranes" if readout else "the spikes",
        "output": ascii(output),
        "outputs": ", ".join(map(str, outputs)),
        "latency": network.latency_steps[output],
        "late": said_steps(network.latency_steps[output]),
        "why": textwrap.fill(f"Why no .net file: {_harmless(why)}", 120),
        "widened": "",
        "imports": import_lines(_imported(kinds, readout=readout, biased=biased)),
        "laid_out": "data.T" if INPUT in spatial else "data.reshape(steps, -1).T",
        "last": number[output],
        "lava_shape": _lava_shape(network, output, spatial),
        "time_first": "found.transpose(0, 3, 2, 1)" if output in spatial else "found",
    }
    parts = [HEAD.format(**names) + (NEVER_AGAIN if biased else "")]
    parts += [KERNEL] if "conv" in kinds else []
    parts += [ALWAYS_ON_LINE] if lines else []
    body = [BEGIN.format(**names), LOAD, "\n    # Neurons\n", *_neuron_lines(network, spatial)]
    body += ["\n    # Synapses\n", *_synapse_lines(network, spatial), "\n    # Who is connected to whom\n"]
    body += [*_wiring(network, number, spatial), (READOUT_TAIL if readout else SPIKING_TAIL).format(**names), END]
    return "\n\n".join([*parts, "".join(body)])


def _harmless(text: str) -> str:
    """Return a text that cannot end the docstring it stands in."""
    return ascii(text)[1:-1].replace("\\'", "'").replace("\\", "/").replace('"', "'")


def _imported(kinds: set[str], *, readout: bool, biased: bool) -> set[str]:
    names = {"RunSteps", "Loihi2SimCfg", "RingBuffer as Source", "LIFReset" if biased else "LIF"}
    names |= {"Monitor"} if readout else {"RingBuffer as Sink"}
    names |= {"SignMode"} if kinds - {"conv"} else set()
    names |= {"csr_matrix"} if kinds & {"sparse", "delay_sparse"} else set()
    return names | {PROCESSES[kind] for kind in kinds}


def _spatial(network: ProcessNetwork) -> set[str]:
    """Names of the input and layers that a convolution reads or drives: they have Lava's axes (x, y, channels)."""
    convolutions = [synapse for synapse in network.synapses if synapse["kind"] == "conv"]
    return {synapse[end] for synapse in convolutions for end in ("source", "target")}


def _lava_shape(network: ProcessNetwork, layer: str, spatial: set[str]) -> Shape:
    shape = network.shape(layer)
    return shape[::-1] if layer in spatial else (int(np.prod(shape)),)


def _neuron_lines(network: ProcessNetwork, spatial: set[str]) -> Iterator[str]:
    for index, (layer, spec) in enumerate(network.neurons.items(), start=1):
        arguments = [f"shape={_lava_shape(network, layer, spatial)}", *(f"{key}={spec[key]}" for key in ("du", "dv"))]
        arguments.append(f"vth={spec['vth']}")
        if network.arrays[f"bias/{layer}"].any():
            order = ".transpose(2, 1, 0)" if layer in spatial else ".reshape(-1)"
            key = ascii(f"bias/{layer}")
            arguments += [f"bias_mant=arrays[{key}]{order}", f"bias_exp={spec['bias_exp']}"]
        kind = "LIF"
        if "reset_offset" in spec:
            kind = "LIFReset"
            arguments += ["reset_interval=NEVER_AGAIN", f"reset_offset={spec['reset_offset']}"]
        yield f"    # {layer!a} answers {said_steps(spec['latency'])} later\n"
        yield f"    neurons{index} = {kind}({', '.join(arguments)})\n"


def _synapse_lines(network: ProcessNetwork, spatial: set[str]) -> Iterator[str]:
    for index, synapse in enumerate(network.synapses, start=1):
        source, target = synapse["source"], synapse["target"]
        yield f"    # {synapse['name']!a}: {source!a} to {target!a}, {_kept(network, synapse)}\n"
        if source == ALWAYS_ON:
            yield f"    on{index} = always_on(steps, starts={synapse['starts']})\n"
        yield f"    synapses{index} = {_made(network, synapse, spatial)}\n"


def _kept(network: ProcessNetwork, synapse: Mapping[str, Any]) -> str:
    if synapse["source"] == ALWAYS_ON:
        return "the bias of its current"
    return f"{float((network.arrays[synapse['weight']] != 0).mean()):.1%} of the weights are left"


def _made(network: ProcessNetwork, synapse: Mapping[str, Any], spatial: set[str]) -> str:
    weight, kind = f"arrays[{synapse['weight']!a}]", synapse["kind"]
    bits = ["num_message_bits=bits"] if synapse["source"] == INPUT else []
    if kind == "conv":
        axes = [f"{key}={tuple(synapse[key][::-1])}" for key in ("stride", "padding", "dilation")]
        shape = _lava_shape(network, synapse["source"], spatial)
        arguments = [f"weight=kernel({weight})", f"input_shape={shape}", *axes, f"groups={synapse['groups']}", *bits]
        return f"Conv({', '.join(arguments)})"
    mode = SignMode(synapse["sign_mode"]).name
    held = [f"weight_exp={synapse['weight_exp']}", f"sign_mode=SignMode.{mode}", *bits]
    weight = f"csr_matrix({weight})" if "sparse" in kind else weight
    late = []
    if "delay" in synapse:
        delay = f"arrays[{synapse['delay']!a}].astype(int)"
        delay = f"csr_matrix({delay})" if "sparse" in kind else delay
        late = [f"delays={delay}", f"max_delay={int(network.arrays[synapse['delay']].max())}"]
    return f"{PROCESSES[kind]}({', '.join([f'weights={weight}', *late, *held])})"


def _wiring(network: ProcessNetwork, number: Mapping[str, int], spatial: set[str]) -> Iterator[str]:
    for index, synapse in enumerate(network.synapses, start=1):
        source, target, flat = synapse["source"], synapse["target"], synapse["kind"] != "conv"
        given = {INPUT: "source", ALWAYS_ON: f"on{index}"}.get(source) or f"neurons{number[source]}"
        order = ".transpose([2, 1, 0]).flatten()" if flat and source in spatial else ""
        yield f"    {given}.s_out{order}.connect(synapses{index}.s_in)\n"
        shape = network.shape(target)
        order = f".reshape({shape}).transpose([2, 1, 0])" if flat and target in spatial else ""
        yield f"    synapses{index}.a_out{order}.connect(neurons{number[target]}.a_in)\n"
