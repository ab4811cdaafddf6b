"""Runs one small network in Lava's real runtime. Started by Lava's interpreter, never imported.

``python lava_runtime_runner.py DESCRIPTION.npz OUTPUT.npz``: the files that `exporters.lava_models_runner` takes, one
sample. What is in the network is fixed here: a convolution into ``conv``, that flattened through a dense, a sparse and
a delayed synapse into ``dense``, and ``dense`` back into itself.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

import numpy as np

if sys.version_info >= (3, 11):  # not the Python that Lava is made for
    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../exporters/lava_shim.py"))

from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.conv.process import Conv
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.io.source import RingBuffer
from lava.proc.lif.process import LIF
from lava.proc.monitor.process import Monitor
from lava.proc.sparse.process import Sparse
from scipy.sparse import csr_matrix


def main(description_path: str, output_path: str) -> None:
    with np.load(description_path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    network = json.loads(arrays["network"].tobytes().decode())
    specs = {spec["kind"] + ("/rec" if spec["source"] == "dense" else ""): spec for spec in network["synapses"]}
    steps = len(arrays["inputs"])
    source = RingBuffer(data=arrays["inputs"][:, 0].transpose(3, 2, 1, 0).astype(np.int32))
    layers = {name: lif(spec, arrays[f"bias/{name}"]) for name, spec in network["neurons"].items()}
    spec = specs["conv"]
    conv = Conv(
        weight=arrays[spec["weight"]][:, :, ::-1, ::-1].transpose(0, 3, 2, 1),
        input_shape=arrays["inputs"].shape[:1:-1],
        stride=tuple(spec["stride"][::-1]),
        padding=tuple(spec["padding"][::-1]),
        dilation=tuple(spec["dilation"][::-1]),
        groups=spec["groups"],
    )
    source.s_out.connect(conv.s_in)
    conv.a_out.connect(layers["conv"].a_in)
    weights = {kind: {"weight_exp": spec.get("weight_exp", 0)} for kind, spec in specs.items()}
    matrix = {kind: arrays[spec["weight"]] for kind, spec in specs.items()}
    delays = arrays[specs["delay_dense"]["delay"]].astype(int)
    between = [
        Dense(weights=matrix["dense"], **weights["dense"]),
        Sparse(weights=csr_matrix(matrix["sparse"]), **weights["sparse"]),
        DelayDense(weights=matrix["delay_dense"], delays=delays, max_delay=int(delays.max()), **weights["delay_dense"]),
    ]
    for process in between:
        layers["conv"].s_out.transpose([2, 1, 0]).flatten().connect(process.s_in)
        process.a_out.connect(layers["dense"].a_in)
    back = Dense(weights=matrix["dense/rec"], **weights["dense/rec"])
    layers["dense"].s_out.connect(back.s_in)
    back.a_out.connect(layers["dense"].a_in)
    monitors = {}
    for name, layer in layers.items():
        for key, part in (("u", layer.u), ("v", layer.v), ("s", layer.s_out)):
            monitors[f"{key}/{name}"] = (Monitor(), layer, part)
            monitors[f"{key}/{name}"][0].probe(part, steps)
    try:
        source.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        found = {}
        for name, (monitor, layer, part) in monitors.items():
            values = np.asarray(monitor.get_data()[layer.name][part.name])
            values = values.transpose(0, 3, 2, 1) if values.ndim == 4 else values
            found[name] = values[:, None] != 0 if name.startswith("s/") else values[:, None].astype(np.int32)
    finally:
        source.stop()
    with open(f"{output_path}.partial", "wb") as file:
        np.savez(file, **found)
    os.replace(f"{output_path}.partial", output_path)


def lif(spec: Any, bias: Any) -> LIF:
    shape = tuple(spec["shape"][::-1])
    bias = bias.transpose(2, 1, 0) if bias.ndim == 3 else bias
    return LIF(shape=shape, du=spec["du"], dv=spec["dv"], vth=spec["vth"], bias_mant=bias, bias_exp=spec["bias_exp"])


if __name__ == "__main__":
    main(*sys.argv[1:3])
