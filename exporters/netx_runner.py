"""Runs a ``.net`` file in Lava's runtime through lava-dl's netx. Started by Lava's interpreter; knows nothing of slamp.

``python netx_runner.py NETWORK.net INPUT.npz OUTPUT.npz``. The input file holds ``inputs``, int32 (time, batch,
*features in torch order), and ``graded``, 0 or 1. Samples follow one another in one run: every layer starts anew
(LIFReset) at the step in which the first input of a sample reaches it. With delays or recurrence spikes of one sample
would reach the next, so there each sample is a run of its own. The output file gets, for every layer k that has
neurons, ``u/k``, ``v/k`` and ``s/k``, (time, batch, *neurons in torch order), aligned with the inputs.

Start a copy of it that lies alone in a directory: Lava's compiler imports every file beside the one that defines a
process, and this one defines a process.
"""

from __future__ import annotations

import multiprocessing.process
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

if sys.version_info >= (3, 11):  # not the Python that Lava is made for
    here = Path(__file__).resolve().parent
    runpy.run_path(str(next(path for path in (here / "lava_shim.py", here / "shim" / "lava_shim.py") if path.exists())))

from lava.lib.dl.netx.hdf5 import Network
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.io.source import RingBuffer

GRADED_BITS = 24
# netx adds one, as Lava counts steps from 1; a synapse takes another before the first input reaches the first layer.
RESET_OFFSET = 1
WATCH_S = 1.0
PARENT = os.getppid()


class Recorder(AbstractProcess):  # type: ignore[misc]  # Lava is not installed where types are checked
    """Writes u, v and s of a layer of neurons to files; Lava's Monitor hands its data over number by number."""

    def __init__(self, *, shape: Any, steps: int, directory: str) -> None:
        super().__init__(shape=shape, steps=steps, directory=directory)
        self.spikes = InPort(shape=shape)
        self.u_now = RefPort(shape=shape)
        self.v_now = RefPort(shape=shape)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRecorderModel(PyLoihiProcessModel):  # type: ignore[misc]  # as above
    """Takes the spikes in the phase of spikes and the states in the one after it, as `lava.proc.monitor` does."""

    spikes: PyInPort = LavaPyType(PyInPort.VEC_DENSE, int)
    u_now: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, int)
    v_now: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, int)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.shape = (proc_params["steps"], *proc_params["shape"])
        self.directory = proc_params["directory"]
        self.files: dict[str, Any] = {}

    def run_spk(self) -> None:
        """Keep the spikes of this step."""
        if not self.files:  # here and not in the constructor: that runs before the fork
            for key in ("u", "v", "s"):
                self.files[key] = np.lib.format.open_memmap(f"{self.directory}/{key}.npy", "w+", np.int32, self.shape)
        self.files["s"][self.time_step - 1] = self.spikes.recv()

    def post_guard(self) -> bool:
        """Ask for the phase after the spikes."""
        return True

    def run_post_mgmt(self) -> None:
        """Keep the states after this step."""
        self.files["u"][self.time_step - 1] = self.u_now.read()
        self.files["v"][self.time_step - 1] = self.v_now.read()


def main(network_path: str, input_path: str, output_path: str) -> None:
    """Run all samples and write the result by rename."""
    with np.load(input_path, allow_pickle=False) as archive:
        inputs, graded = archive["inputs"].astype(np.int32), bool(archive["graded"])
    with h5py.File(network_path, "r") as file:
        lasting = any("delay" in layer or "weight_rec" in layer for layer in file["layer"].values())
    runs = np.split(inputs, inputs.shape[1], axis=1) if lasting else [inputs]
    found = [_arrays(network_path, run, graded, Path(output_path).parent) for run in runs]
    arrays: dict[str, Any] = {key: np.concatenate([run[key] for run in found], axis=1) for key in found[0]}
    with open(f"{output_path}.partial", "wb") as file:
        np.savez(file, **arrays)
    os.replace(f"{output_path}.partial", output_path)


def _arrays(network_path: str, inputs: Any, graded: bool, scratch: Path) -> dict[str, Any]:
    """Run samples after one another in one network; return what its layers did."""
    steps, batch, *features = inputs.shape
    network = Network(
        net_config=network_path,
        input_message_bits=GRADED_BITS if graded else 0,
        reset_interval=steps,
        reset_offset=RESET_OFFSET,
    )
    depth = len(network.layers)
    total = steps * batch + depth
    flowing = inputs.swapaxes(0, 1).reshape(steps * batch, *features)
    data = np.concatenate([flowing, np.zeros((depth, *features), np.int32)])
    # Lava's order is (x, y, channels, time); a network that begins with a dense layer takes flat features.
    data = data.transpose(3, 2, 1, 0) if len(network.inp.shape) == 3 else data.reshape(total, -1).T
    source = RingBuffer(data=np.ascontiguousarray(data))
    source.s_out.connect(network.inp)
    arrays = {}
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        places = [Path(directory) / str(index) for index in range(depth)]
        for layer, place in zip(network.layers, places):  # noqa: B905  # Python 3.10's zip, lengths are equal
            place.mkdir()
            recorder = Recorder(shape=layer.neuron.s_out.shape, steps=total, directory=str(place))
            layer.neuron.s_out.connect(recorder.spikes)
            recorder.u_now.connect_var(layer.neuron.u)
            recorder.v_now.connect_var(layer.neuron.v)
        _run(source, total)
        for index, place in enumerate(places):
            for key in ("u", "v", "s"):
                part = np.load(place / f"{key}.npy")[index + 1 : index + 1 + steps * batch]
                part = part.transpose(0, 3, 2, 1) if part.ndim == 4 else part
                arrays[f"{key}/{index}"] = part.reshape(batch, steps, *part.shape[1:]).swapaxes(0, 1)
    return arrays


def _run(process: Any, steps: int) -> None:
    """Run to the end. Where a process of Lava failed, ``run`` or ``stop`` may hang for ever: say why, end the group."""
    done = False
    try:
        with _watched(process):
            process.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        done = True
    finally:
        if not done:
            traceback.print_exc()
            _give_up(process)
    process.stop()


@contextmanager
def _watched(process: Any) -> Iterator[None]:
    """Meanwhile, give up if a process of Lava has died, or the process that started us."""

    def look(*_: object) -> None:
        if os.getppid() != PARENT:
            _give_up(process)
        for child in list(multiprocessing.process._children):  # type: ignore[attr-defined]  # the public way forgets
            if child.exitcode not in (None, 0):
                print(f"a process of Lava ended with code {child.exitcode}", file=sys.stderr)
                _give_up(process)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, WATCH_S, WATCH_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(process: Any) -> None:
    """Say what failed in the processes of Lava, and end them and ourselves."""
    runtime = process.runtime
    for actor in runtime._messaging_infrastructure.actors if runtime is not None else ():
        if getattr(actor, "exception", None):
            print(actor.exception[1], file=sys.stderr)
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:4])
