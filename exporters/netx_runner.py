"""Runs a ``.net`` file in Lava's runtime through lava-dl's netx. Started by Lava's interpreter; knows nothing of slamp.

``python netx_runner.py NETWORK.net INPUT.npz OUTPUT.npz``. The input file holds ``inputs``, int32 (time, batch,
*features in torch order), and ``graded``, 0 or 1. Samples follow one another in one run: every layer starts anew
(LIFReset) at the step in which the first input of a sample reaches it. The output file gets, for every layer k that has
neurons, ``u/k``, ``v/k`` and ``s/k``, (time, batch, *neurons in torch order), aligned with the inputs.

Lava's monitors record them. Its runtime hands a monitor's data over value by value, which takes longer than the run, so
here each monitor writes its own file at the last step.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import numpy as np

if sys.version_info >= (3, 11):  # not the Python that Lava is made for
    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "lava_shim.py"))

from lava.lib.dl.netx import hdf5
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.source import RingBuffer
from lava.proc.monitor.models import PyMonitorModel
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
    place = os.path.dirname(os.path.abspath(output_path))
    for k, layer in enumerate(net.layers):
        for key, part in (("u", layer.neuron.u), ("v", layer.neuron.v), ("s", layer.neuron.s_out)):
            _record(part, total, os.path.join(place, f"{key}{k}.npy"))
    try:
        net.run(condition=RunSteps(num_steps=total), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    finally:
        net.stop()
    arrays = {}
    for k in range(depth):
        for key in ("u", "v", "s"):
            values = np.load(os.path.join(place, f"{key}{k}.npy"), allow_pickle=False)
            part = values[k + 1 : k + 1 + steps * batch]
            part = part.transpose(0, 3, 2, 1) if part.ndim == 4 else part
            part = part.reshape(batch, steps, *part.shape[1:]).swapaxes(0, 1)
            arrays[f"{key}/{k}"] = part != 0 if key == "s" else part.astype(np.int32)
    with open(f"{output_path}.partial", "wb") as file:
        np.savez(file, **arrays)
    os.replace(f"{output_path}.partial", output_path)


def _record(part: Any, steps: int, path: str) -> None:
    monitor = Monitor()
    monitor.probe(part, steps)
    monitor.proc_params["last_step"] = steps
    monitor.proc_params["path"] = path


def _kept(self: Any, names: str, count: str) -> None:
    if self.proc_params[count] and self.time_step == self.proc_params["last_step"]:
        np.save(self.proc_params["path"], getattr(self, self.proc_params[names][0]))


class KeepingMonitorModel:
    """Lava's monitor model, which also writes what it has recorded."""

    after_update = PyMonitorModel.run_post_mgmt
    with_spikes = PyMonitorModel.run_spk

    def run_post_mgmt(self: Any) -> None:
        """Record variables."""
        KeepingMonitorModel.after_update(self)
        _kept(self, "VarsData1", "n_ref_ports")

    def run_spk(self: Any) -> None:
        """Record spikes."""
        KeepingMonitorModel.with_spikes(self)
        _kept(self, "VarsData2", "n_in_ports")


PyMonitorModel.run_post_mgmt = KeepingMonitorModel.run_post_mgmt
PyMonitorModel.run_spk = KeepingMonitorModel.run_spk


if __name__ == "__main__":
    main(*sys.argv[1:4])
