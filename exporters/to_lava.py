"""Lava/Loihi: a lava-dl ``.net`` file that netx loads, replayed by the real Lava in an environment of its own.

What no ``.net`` file holds is written as Lava's processes: arrays, and a script that builds the network from them.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from exporters.environments import HOME_VARIABLE, run_child, witness_home
from exporters.net_files import check_written, differences, features_of, write_net
from exporters.net_layers import net_layers
from exporters.net_lines import input_lines
from exporters.net_script import network_script
from exporters.process_files import (
    ProcessNetwork,
    process_differences,
    process_network,
    read_process_network,
    run_processes,
    write_processes,
)
from exporters.process_script import process_script
from exporters.read_net import read_net
from exporters.read_processes import read_processes
from exporters.witness_lava import environment_python
from slamp.archives import read_arrays
from slamp.arithmetic import FixedPoint
from slamp.errors import (
    ArtifactError,
    MissingDependencyError,
    RasterError,
    RunFileError,
    UnsupportedNodeError,
    WitnessError,
)
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact, StagedArtifact, staged_artifact
from slamp.nodes import READOUT
from slamp.raster import SpikeRaster
from slamp.simulate import Recording, Trace, check_raster, simulate

NETWORK = "network.net"
PROCESSES = "network.npz"
GOLDEN = "golden_input.npz"
SCRIPT = "network.py"


@dataclass(frozen=True, slots=True)
class LavaExporter:
    """lava-dl's ``.net`` file for `lava.lib.dl.netx.hdf5.Network`, in Loihi's integers; else Lava's processes.

    Attributes:
        golden: Held-out input, stored beside the file.
        time_limit_s: After so many seconds a replay in Lava, and all it started, is ended.

    Raises:
        RunFileError: An option has a value that is not allowed.
    """

    name: ClassVar[str] = "lava"
    arithmetic: ClassVar[str] = "fixed-point"
    runtime: ClassVar[str] = "Lava 0.10.0 (lava-dl 0.6.0, netx, fixed_pt)"
    processes_runtime: ClassVar[str] = (
        "Lava 0.10.0 (process models stepped, fixed_pt; no .net file can hold this network)"
    )
    golden: SpikeRaster | None = None
    time_limit_s: float = 600.0

    def __post_init__(self) -> None:
        if not isinstance(self.golden, SpikeRaster | None):
            raise RunFileError(f"lava: golden is {type(self.golden).__name__}; allowed is a SpikeRaster or None")
        if not self.time_limit_s > 0:
            raise RunFileError(f"lava: time_limit_s is {self.time_limit_s!r}; allowed is a positive number of seconds")

    def write(self, graph: SpikingGraph, directory: Path) -> Artifact:
        """Write ``network.net``, ``network.py``, and ``golden_input.npz`` if there is a golden raster.

        The script builds and runs the same network from Lava's processes, for a reader to see. Biases of currents
        become weights of lines: the input then takes ``input_lines`` (see the manifest's options) more features
        (channels, if it is spatial), which are to spike in every step; `replay` and the script add them. A network
        that no .net file can hold, or that netx would load otherwise, is written as ``network.npz``, which the script
        reads; the manifest's options say which ``form`` it is, "net" or "processes", and in the latter case ``why``.

        Layer k of the network answers k steps later in Lava; the manifest's latency is that of the last layer.

        Raises:
            UnsupportedNodeError: Neither form can hold a node; nothing is written.
            RasterError: The golden raster does not fit the graph; nothing is written.
            OutputDirectoryError: The directory holds files that are not ours.
        """
        try:
            layers = net_layers(graph)
        except UnsupportedNodeError as refusal:
            return self._write_processes(graph, Path(directory), refusal)
        if self.golden is not None:
            check_raster(graph, self.golden)
        options = {
            "form": "net",
            "neurons": [layer.neuron for layer in layers],
            "shapes": [list(graph.shapes[layer.neuron]) for layer in layers],
            "input_lines": input_lines(graph.shapes[graph.input], layers),
            "readout": isinstance(graph.nodes[layers[-1].neuron], READOUT),
            "output_shape": list(graph.shapes[graph.output]),
        }
        latency = len(layers)
        with staged_artifact(
            graph, Path(directory), target=self.name, options=options, latency_steps=latency
        ) as staged:
            write_net(staged.directory / NETWORK, graph.shapes[graph.input], layers)
            staged.roles["network"] = NETWORK
            check_written(staged.directory / NETWORK, graph, layers)
            script = network_script(
                graph.shapes[graph.input], layers, network=NETWORK, readout=bool(options["readout"])
            )
            (staged.directory / SCRIPT).write_text(script)
            staged.roles["script"] = SCRIPT
            self._write_golden(staged)
        return Artifact(Path(directory), self.name, latency)

    def _write_processes(self, graph: SpikingGraph, directory: Path, refusal: UnsupportedNodeError) -> Artifact:
        """Write what no ``.net`` file holds; ``refusal`` says why none does."""
        if not isinstance(graph.arithmetic, FixedPoint):
            raise refusal
        try:
            network = process_network(graph)
        except UnsupportedNodeError as error:
            raise UnsupportedNodeError(f"as a .net file: {refusal}; as Lava's processes: {error}") from error
        if self.golden is not None:
            check_raster(graph, self.golden)
        neurons = [*(name for name in network.neurons if name != network.output), network.output]
        readout = isinstance(graph.nodes[network.output], READOUT)
        options = {
            "form": "processes",
            "why": str(refusal),
            "neurons": neurons,
            "shapes": [list(graph.shapes[name]) for name in neurons],
            "readout": readout,
            "output_shape": list(graph.shapes[graph.output]),
        }
        latency = network.latency_steps[network.output]
        with staged_artifact(graph, directory, target=self.name, options=options, latency_steps=latency) as staged:
            write_processes(staged.directory / PROCESSES, network)
            staged.roles["network"] = PROCESSES
            found = next(process_differences(read_process_network(staged.directory / PROCESSES), network), "")
            if found:
                raise UnsupportedNodeError(f"graph: the file states otherwise: {found}")
            script = process_script(network, name=PROCESSES, readout=readout, why=str(refusal))
            (staged.directory / SCRIPT).write_text(script)
            staged.roles["script"] = SCRIPT
            self._write_golden(staged)
        return Artifact(directory, self.name, latency)

    def _write_golden(self, staged: StagedArtifact) -> None:
        if self.golden is None:
            return
        with (staged.directory / GOLDEN).open("wb") as file:
            np.savez_compressed(file, spikes=self.golden.numpy(), dt=np.float64(self.golden.dt))
        staged.roles["golden_input"] = GOLDEN

    def runtime_for(self, artifact: Artifact) -> str:
        """Name what replays an artifact."""
        return self.processes_runtime if _in_processes(artifact) else self.runtime

    def read(self, path: Path) -> SpikingGraph:
        """Return the graph in a ``.net`` file or a ``network.npz``; its dt is 1 ms, which neither states.

        Names are those of `exporters.read_net`, or the neurons' own.
        """
        return read_processes(path) if Path(path).suffix == ".npz" else read_net(path)

    def read_golden(self, artifact: Artifact) -> SpikeRaster:
        """Return the held-out input stored beside the network; raises `ArtifactError` if there is none."""
        path = artifact.file("golden_input")
        if path.name in artifact.altered_files():
            raise ArtifactError(f"{path}: is not what was exported; export again, or name a samples file")
        arrays = read_arrays(path)
        return SpikeRaster(torch.tensor(arrays["spikes"]), float(arrays["dt"]))

    def file_differences(self, artifact: Artifact, graph: SpikingGraph) -> list[str]:
        """Return what the network's file states otherwise than ``graph``, one line per field."""
        path = artifact.file("network")
        if _in_processes(artifact):
            return list(process_differences(read_process_network(path), process_network(graph)))
        try:
            return list(differences(path, net_layers(graph)))
        except (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ArtifactError(f"{path}: is damaged ({error}); export again") from error

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run ``network.net`` in Lava's runtime, loaded by netx, ``fixed_pt``; or step Lava's models of the processes.

        Of processes only ``network.npz`` is read; ``network.py``, which is code, is not run.
        Every layer is given at the latency of the last one; traces hold spikes, ``v`` after reset and ``i`` (Lava's u).

        Raises:
            MissingDependencyError: Lava's environment is not installed.
            RasterError: The raster does not fit the network.
            WitnessError: Lava refused the file, crashed or ran out of time; the message ends with its own words.
        """
        if _in_processes(artifact):
            return _replay_processes(artifact, inputs, self.time_limit_s)
        path = artifact.file("network")
        given_inputs = _with_lines(artifact, inputs)
        python = environment_python()
        if python is None:
            raise MissingDependencyError(
                f"Lava: no finished environment in {witness_home()}; run: slamp lava install, or name another place in "
                f"{HOME_VARIABLE}"
            )
        with tempfile.TemporaryDirectory(prefix="slamp-lava-") as directory:
            given, result = Path(directory) / "input.npz", Path(directory) / "output.npz"
            np.savez(given, inputs=given_inputs.numpy().astype(np.int32), graded=np.int64(not inputs.is_spikes))
            # alone in its directory, see there
            script = Path(shutil.copy(Path(__file__).with_name("netx_runner.py"), directory))
            (Path(directory) / "shim").mkdir()
            shutil.copy(Path(__file__).with_name("lava_shim.py"), Path(directory) / "shim")
            words = run_child([str(python), "-I", str(script), str(path), str(given), str(result)], self.time_limit_s)
            if not result.is_file():
                raise WitnessError(f"{artifact.directory}: Lava ended without a result: {words}")
            with np.load(result, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        return _recording(artifact, arrays, inputs.dt)

    def reread(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run the file, read back, in slamp's own simulator."""
        return reread(artifact, inputs)


def reread(artifact: Artifact, inputs: SpikeRaster) -> Recording:
    """Run the file, read back by slamp's own reader, in slamp's own simulator: a proof about the file, not about Lava.

    Layers are given at the latency of the last one, as Lava would answer.
    """
    if _in_processes(artifact):
        _process_network_of(artifact)
        graph = read_processes(artifact.file("network"), dt=inputs.dt)
        names = artifact.manifest["options"]["neurons"]
        run = simulate(graph, inputs, record="all")
    else:
        graph = read_net(artifact.file("network"), dt=inputs.dt)
        run = simulate(graph, _with_lines(artifact, inputs), record="all")
        names = [name for name in graph.nodes if name in run.traces]  # in the order of the file
    arrays: dict[str, np.ndarray] = {}
    traces = [run[name] for name in names]
    for k, trace in enumerate(traces):
        assert trace.i is not None
        assert trace.v is not None
        arrays |= {f"u/{k}": trace.i.numpy(), f"v/{k}": trace.v.numpy()}
        arrays[f"s/{k}"] = np.zeros(trace.v.shape, bool) if trace.spikes is None else trace.spikes.numpy()
    return _recording(artifact, arrays, inputs.dt)


def _in_processes(artifact: Artifact) -> bool:
    """True for an artifact in Lava's processes, False for a ``.net`` file."""
    return bool(artifact.manifest["options"].get("form") == "processes")


def _replay_processes(artifact: Artifact, inputs: SpikeRaster, time_limit_s: float) -> Recording:
    """Step Lava's own process models, built from the file alone."""
    network = _process_network_of(artifact)
    _check_features(inputs, network.shape("input"))
    answer = run_processes(network, inputs, time_limit_s=time_limit_s)
    names = artifact.manifest["options"]["neurons"]
    arrays = {f"{key}/{k}": answer[f"{key}/{name}"] for k, name in enumerate(names) for key in ("u", "v", "s")}
    return _recording(artifact, arrays, inputs.dt)


def _process_network_of(artifact: Artifact) -> ProcessNetwork:
    """Read ``network.npz``; raises `ArtifactError` if its layers are not those the manifest names."""
    path, options = artifact.file("network"), artifact.manifest["options"]
    network = read_process_network(path)
    found = {name: list(network.shape(name)) for name in network.neurons}
    for name, shape in zip(options["neurons"], options["shapes"], strict=True):
        if found.get(name) != shape:
            raise ArtifactError(
                f"{path}: layer {name} has shape {found.get(name)}, the manifest states {shape}; export again"
            )
    return network


def _check_features(inputs: SpikeRaster, features: tuple[int, ...]) -> None:
    if inputs.features != features:
        raise RasterError(f"raster: features {inputs.features}; the artifact's network takes {features}; reshape")


def _recording(artifact: Artifact, arrays: dict[str, np.ndarray], dt: float) -> Recording:
    """Turn Lava's arrays, aligned with the inputs, into a recording in which every layer is late by the latency."""
    options = artifact.manifest["options"]
    late = artifact.latency_steps
    traces = {}
    last: torch.Tensor | None = None
    for k, (name, shape) in enumerate(zip(options["neurons"], options["shapes"], strict=True)):
        u, v, s = (_late(arrays[f"{key}/{k}"], late, shape) for key in ("u", "v", "s"))
        readout = options["readout"] and k == len(options["neurons"]) - 1
        traces[name] = Trace(None if readout else s.to(torch.bool), v.to(torch.int32), u.to(torch.int32))
        last = v.to(torch.float32) if readout else s.to(torch.bool)
    assert last is not None
    data = last.reshape(*last.shape[:2], *options["output_shape"])
    return Recording(SpikeRaster(data, dt, kind="analog" if options["readout"] else "spikes"), traces)


def _late(array: np.ndarray, steps: int, shape: list[int]) -> torch.Tensor:
    own = math.prod(shape)  # lines that are always on stand behind them
    tensor = torch.from_numpy(np.ascontiguousarray(array)).flatten(2)[..., :own].reshape(*array.shape[:2], *shape)
    empty = torch.zeros(min(steps, len(tensor)), *tensor.shape[1:], dtype=tensor.dtype)
    return torch.cat([empty, tensor[: len(tensor) - len(empty)]])


def _with_lines(artifact: Artifact, inputs: SpikeRaster) -> SpikeRaster:
    """Return inputs with the lines the network takes beside them; raises `RasterError` if they do not fit."""
    taken = features_of(artifact.file("network"))
    lines = artifact.manifest["options"].get("input_lines", 0)
    _check_features(inputs, (taken[0] - lines, *taken[1:]))
    if not lines:
        return inputs
    data = inputs.data
    on = torch.ones(*data.shape[:2], lines, *taken[1:], dtype=data.dtype, device=data.device)
    return SpikeRaster(torch.cat([data, on], dim=2), inputs.dt, kind=inputs.kind)
