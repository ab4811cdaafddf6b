"""Runs a ``.net`` file in Lava's runtime through lava-dl's netx. Started by Lava's interpreter; knows nothing of slamp.

``python netx_runner.py NETWORK.net INPUT.npz OUTPUT.npz``. The input file holds ``inputs``, int32 (time, batch,
*features in torch order), and ``graded``, 0 or 1. Samples follow one another in one run: every layer starts anew
(LIFReset) at the step in which the first input of a sample reaches it. The output file gets, for every layer k that has
neurons, ``u/k``, ``v/k`` and ``s/k``, (time, batch, *neurons in torch order), aligned with the inputs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from lava.lib.dl.netx import hdf5
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.source import RingBuffer
from lava.proc.monitor.process import Monitor


def main(network_path: str, input_path: str, output_path: str) -> None:
    """Run all samples and write the result by rename."""
    with np.load(input_path, allow_pickle=False) as archive:
        inputs, graded = archive["inputs"].astype(np.int32), bool(archive["graded"])
    steps, batch = inputs.shape[:2]
    features = inputs.shape[2:]
    flowing = inputs.swapaxes(0, 1).reshape(steps * batch, *features)
    settings = {"input_message_bits": 24 if graded else 0}
    # netx adds one step to the offset itself and one more per layer; the first layer answers one step after the source.
    net = hdf5.Network(net_config=network_path, reset_interval=steps, reset_offset=1, **settings)
    depth = len(net.layers)
    total = steps * batch + depth
    data = np.concatenate([flowing, np.zeros((depth, *features), np.int32)])
    data = data.transpose(3, 2, 1, 0) if len(features) == 3 else data.reshape(total, -1).T
    source = RingBuffer(data=np.ascontiguousarray(data))
    source.s_out.connect(net.inp)
    probes = [
        [_probed(part, total) for part in (layer.neuron.u, layer.neuron.v, layer.neuron.s_out)] for layer in net.layers
    ]
    try:
        net.run(condition=RunSteps(num_steps=total), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        seen = [[_data(probe) for probe in trio] for trio in probes]
    finally:
        net.stop()
    arrays = {}
    for k, (u, v, s) in enumerate(seen):
        for key, values in (("u", u), ("v", v), ("s", s != 0)):
            part = values[k + 1 : k + 1 + steps * batch]
            part = part.transpose(0, 3, 2, 1) if part.ndim == 4 else part
            arrays[f"{key}/{k}"] = part.reshape(batch, steps, *part.shape[1:]).swapaxes(0, 1)
    with open(f"{output_path}.partial", "wb") as file:
        np.savez(file, **arrays)
    os.replace(f"{output_path}.partial", output_path)


def _probed(part: Any, steps: int) -> Any:
    monitor = Monitor()
    monitor.probe(part, steps)
    return monitor


def _data(monitor: Any) -> Any:
    (by_name,) = monitor.get_data().values()
    (values,) = by_name.values()
    return np.asarray(values)


if __name__ == "__main__":
    main(*sys.argv[1:4])
