"""Times Lava's real runtime on a feed-forward network. Started by Lava's interpreter, never imported; knows no slamp.

``python lava_runtime.py DESCRIPTION.npz RESULT.npz``. The description is that of `exporters.lava_models_runner`, with
one sample and every layer listed before the next. The result holds ``seconds_per_step`` without the start (compiling,
forking, the first step) and ``spikes`` of the last layer, (time, *neurons), in Lava's own time.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

if sys.version_info >= (3, 11):  # not the Python that Lava is made for
    runpy.run_path(str(Path(__file__).parents[1] / "exporters" / "lava_shim.py"))

from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer as Source
from lava.proc.lif.process import LIF
from lava.utils.weightutils import SignMode


def main(description_path: str, result_path: str) -> None:
    with np.load(description_path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    network = json.loads(arrays["network"].tobytes().decode())
    inputs = arrays["inputs"][:, 0]  # (time, *features)
    data = inputs.transpose(*range(inputs.ndim - 1, 0, -1), 0)  # Lava's (x, y, channels, time)
    source = Source(data=data)
    port, shape = source.s_out, inputs.shape[1:]
    for spec in network["synapses"]:
        neuron = network["neurons"][spec["target"]]
        synapse = _synapse(spec, arrays[spec["weight"]], shape)
        if spec["kind"] == "dense" and len(shape) == 3:
            port = port.transpose([2, 1, 0]).flatten()
        port.connect(synapse.s_in)
        shape = tuple(neuron["shape"])
        lif = LIF(
            shape=shape[::-1],
            du=neuron["du"],
            dv=neuron["dv"],
            vth=neuron["vth"],
            bias_mant=0,
            bias_exp=0,
        )
        synapse.a_out.connect(lif.a_in)
        port = lif.s_out
    sink = Sink(shape=shape[::-1], buffer=len(inputs))
    port.connect(sink.a_in)
    run_cfg = Loihi2SimCfg(select_tag="fixed_pt")
    sink.run(condition=RunSteps(num_steps=1), run_cfg=run_cfg)
    begin = time.perf_counter()
    sink.run(condition=RunSteps(num_steps=len(inputs) - 1), run_cfg=run_cfg)
    seconds = (time.perf_counter() - begin) / (len(inputs) - 1)
    spikes = np.moveaxis(sink.data.get(), -1, 0)
    sink.stop()
    np.savez(result_path, seconds_per_step=seconds, spikes=spikes.transpose(0, *range(spikes.ndim - 1, 0, -1)) != 0)


def _synapse(spec: Any, weight: Any, shape: Any) -> Any:
    if spec["kind"] == "dense":
        mode = SignMode(spec["sign_mode"])
        return Dense(weights=weight, weight_exp=spec["weight_exp"], sign_mode=mode)
    return Conv(
        weight=weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1),
        input_shape=shape[::-1],
        stride=tuple(spec["stride"][::-1]),
        padding=tuple(spec["padding"][::-1]),
        dilation=tuple(spec["dilation"][::-1]),
        groups=spec["groups"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
