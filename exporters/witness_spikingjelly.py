"""SpikingJelly as a witness: a foreign runtime, in an environment of its own, runs the file that was exported.

SpikingJelly 2.0.0 reads a dialect of NIR, so the file is rewritten first, by changes of variable that leave the spikes
as they are: thresholds move up by one float32 step because it fires at ``v >= v_threshold``; for CubaLIF the input
gain of the membrane goes into the weights before it (``r = tau_mem / dt``), and ``v_leak`` is shifted to 0. What it
cannot express is refused by name before anything runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nir
import numpy as np

from exporters.environments import HOME_VARIABLE, READY, finished_python, new_environment, run_child, witness_home
from exporters.euler_spikes import carries_spikes
from exporters.to_nir import check_input, read_nir, recording_of, subtracting_nodes, without_metadata
from slamp.errors import MissingDependencyError, UnsupportedNodeError, WitnessError
from slamp.manifest import Artifact
from slamp.raster import SpikeRaster
from slamp.simulate import Recording

REQUIREMENTS = ("numpy", "nir==1.0.8", "nirtorch==2.6", "loguru", "tqdm")
WITHOUT_DEPENDENCIES = ("spikingjelly==2.0.0",)  # it asks for torchvision, torchaudio and tensorboard, unused here
WEIGHTED = (nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d)
PASSED_THROUGH = (nir.SumPool2d, nir.AvgPool2d, nir.Flatten)
STATELESS = (nir.Input, nir.Output, *WEIGHTED, *PASSED_THROUGH)


def environment_python(home: Path | None = None) -> Path | None:
    """Return the interpreter of a finished SpikingJelly environment, or None if there is none."""
    return finished_python("spikingjelly", home)


def install(home: Path | None = None, *, pip_arguments: Sequence[str] = (), time_limit_s: float = 1800.0) -> Path:
    """Create the SpikingJelly environment (about 1 GB) and return its interpreter.

    It is built beside its place and renamed when complete, so a half-made one is never taken for a finished one; an
    older one is replaced.

    Args:
        home: Directory of the environments, default `witness_home`.
        pip_arguments: Added to every pip call, such as ``("--extra-index-url", ...)`` for torch without CUDA.
        time_limit_s: Limit of each command in seconds.

    Raises:
        WitnessError: venv or pip failed; nothing is left behind.
    """
    torch_version = version("torch").partition("+")[0]
    with new_environment("spikingjelly", home) as partial:
        python = partial / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *pip_arguments]
        run_child([sys.executable, "-m", "venv", str(partial)], time_limit_s)
        run_child([*pip, f"torch=={torch_version}", *REQUIREMENTS], time_limit_s)
        run_child([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], time_limit_s)
        pins = [f"torch=={torch_version}", *REQUIREMENTS, *WITHOUT_DEPENDENCIES]
        (partial / READY).write_text(json.dumps({"requirements": pins}) + "\n")
    return (witness_home() if home is None else home) / "spikingjelly" / "bin" / "python"


def replay(artifact: Artifact, inputs: SpikeRaster, *, time_limit_s: float = 600.0) -> Recording:
    """Run the artifact's ``network.nir`` in SpikingJelly.

    Args:
        artifact: What `exporters.to_nir.NirExporter` wrote.
        inputs: Shape (time, batch, *features).
        time_limit_s: After so many seconds the child process, and all it started, is ended.

    Returns:
        The output, and the spikes of every spiking layer.

    Raises:
        UnsupportedNodeError: SpikingJelly cannot express a node; nothing has run.
        MissingDependencyError: Its environment is not installed.
        RasterError: The raster does not fit the network.
        WitnessError: SpikingJelly refused the file, crashed or ran out of time; the message ends with its own words.
    """
    manifest = artifact.manifest
    network = read_nir(artifact.file("network"))
    check_input(network, inputs, manifest["dt"])
    if subtracting := subtracting_nodes(artifact):
        raise _refused(subtracting[0], "resets by subtraction, which its NIR import has no field for")
    translated, names = _numbered(translate(network, manifest["dt"]))
    python = environment_python()
    if python is None:
        raise MissingDependencyError(
            f"SpikingJelly: no finished environment in {witness_home()}; run: slamp witness install spikingjelly, "
            f"or name another place in {HOME_VARIABLE}"
        )
    with tempfile.TemporaryDirectory(prefix="slamp-witness-") as directory, without_metadata(translated) as path:
        given, result = Path(directory) / "input.npz", Path(directory) / "output.npz"
        np.savez(given, inputs=inputs.numpy())
        script = Path(__file__).with_name("spikingjelly_runner.py")
        command = [str(python), "-I", str(script), str(path), str(given), str(result), repr(manifest["dt"])]
        words = run_child(command, time_limit_s)
        if not result.is_file():
            raise WitnessError(f"{artifact.directory}: SpikingJelly ended without a result: {words}")
        with np.load(result, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    output = arrays.pop("output")
    if carries_spikes(translated):
        output = output > 0
    spikes = {names[name.removeprefix("spikes/")]: array for name, array in arrays.items()}
    return recording_of(output, spikes, {}, inputs.dt)


def translate(network: nir.NIRGraph, dt: float) -> nir.NIRGraph:
    """Return the network in SpikingJelly's dialect, with the same spikes; the argument is left as it is.

    Raises:
        UnsupportedNodeError: It cannot be said there; the message names the node.
    """
    nodes: dict[str, Any] = {}
    gains: dict[str, float] = {}
    for name, node in network.nodes.items():
        if isinstance(node, STATELESS):
            if isinstance(node, (nir.Conv1d, nir.Conv2d)) and int(node.groups) != 1:
                raise _refused(name, f"is a convolution in {int(node.groups)} groups")
            nodes[name] = node
        elif isinstance(node, (nir.IF, nir.LIF)):
            nodes[name] = _translate_simple(name, node, dt)
        elif isinstance(node, nir.CubaLIF):
            nodes[name] = _translate_cuba(name, node, dt)
            gains[_weighted_before(name, network)] = dt / float(_uniform(name, node, "tau_mem"))
        else:
            raise _refused(name, f"is a {type(node).__name__}, which its NIR import does not know")
    for name, gain in gains.items():
        nodes[name] = _scaled(nodes[name], gain)
    return nir.NIRGraph(nodes, list(network.edges), type_check=False)


def _translate_simple(name: str, node: Any, dt: float) -> Any:
    v_reset = _uniform(name, node, "v_reset")
    v_threshold = np.nextafter(_filled(node, _uniform(name, node, "v_threshold")), np.float32(np.inf))
    if isinstance(node, nir.IF):
        return nir.IF(r=node.r, v_threshold=v_threshold, v_reset=_filled(node, v_reset))
    v_leak, tau = _uniform(name, node, "v_leak"), float(_uniform(name, node, "tau"))
    if v_leak != v_reset:
        raise _refused(name, f"resets to {v_reset:g} and leaks to {v_leak:g}; the two must be equal")
    if tau <= dt:
        raise _refused(name, "loses its whole membrane in one step (tau <= dt)")
    return nir.LIF(
        tau=node.tau, r=node.r, v_leak=_filled(node, v_leak), v_threshold=v_threshold, v_reset=_filled(node, v_reset)
    )


def _translate_cuba(name: str, node: Any, dt: float) -> Any:
    v_leak, v_reset = _uniform(name, node, "v_leak"), _uniform(name, node, "v_reset")
    if v_leak != v_reset:
        raise _refused(name, f"resets to {v_reset:g} and leaks to {v_leak:g}; the two must be equal")
    tau_mem, tau_syn = (max(float(_uniform(name, node, key)), dt) for key in ("tau_mem", "tau_syn"))
    v_threshold = np.float32(_uniform(name, node, "v_threshold") - v_leak)
    zeros = _filled(node, np.float32(0))
    return nir.CubaLIF(
        tau_mem=np.full(node.r.shape, tau_mem),
        tau_syn=np.full(node.r.shape, tau_syn),
        r=np.full(node.r.shape, tau_mem / dt),
        w_in=np.full(node.r.shape, tau_syn / dt),
        v_leak=zeros,
        v_reset=zeros,
        v_threshold=np.nextafter(_filled(node, v_threshold), np.float32(np.inf)),
    )


def _weighted_before(name: str, network: nir.NIRGraph) -> str:
    """Name of the weighted node whose output, alone and to nobody else, reaches a CubaLIF."""
    current = name
    while True:
        sources = [source for source, target in network.edges if target == current]
        if len(sources) != 1 or sum(source == sources[0] for source, _ in network.edges) != 1:
            raise _refused(name, "is a CubaLIF without weights of its own before it")
        current = sources[0]
        if isinstance(network.nodes[current], WEIGHTED):
            return str(current)
        if not isinstance(network.nodes[current], PASSED_THROUGH):
            raise _refused(name, "is a CubaLIF without weights of its own before it")


def _scaled(node: Any, gain: float) -> Any:
    weight = (node.weight.astype(np.float64) * gain).astype(np.float32)
    if isinstance(node, nir.Linear):
        return nir.Linear(weight=weight)
    bias = (node.bias.astype(np.float64) * gain).astype(np.float32)
    if isinstance(node, nir.Affine):
        return nir.Affine(weight=weight, bias=bias)
    kind = nir.Conv1d if isinstance(node, nir.Conv1d) else nir.Conv2d
    return kind(node.input_shape, weight, node.stride, node.padding, node.dilation, node.groups, bias)


def _numbered(network: nir.NIRGraph) -> tuple[nir.NIRGraph, dict[str, str]]:
    """Return the network with nodes n0, n1, ... (nirtorch renames Python's keywords), and their names."""
    number = {name: f"n{k}" for k, name in enumerate(network.nodes)}
    nodes = {number[name]: node for name, node in network.nodes.items()}
    edges = [(number[source], number[target]) for source, target in network.edges]
    return nir.NIRGraph(nodes, edges, type_check=False), {short: name for name, short in number.items()}


def _uniform(name: str, node: Any, key: str) -> Any:
    values = getattr(node, key)
    if values.min() != values.max():
        raise _refused(
            name, f"has {key} from {values.min():g} to {values.max():g}; it must be the same for all neurons"
        )
    return values.flat[0]


def _filled(node: Any, value: Any) -> np.ndarray:
    return np.full(node.r.shape, value, dtype=np.float32)


def _refused(name: str, found: str) -> UnsupportedNodeError:
    return UnsupportedNodeError(
        f"{name}: {found}, and SpikingJelly cannot express that; verify with the forward-Euler runner alone"
    )
