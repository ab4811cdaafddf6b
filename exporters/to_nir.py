"""NIR: one HDF5 file that any NIR tool reads, and golden rasters beside it.

The HDF5 library crashes on some damaged files, so ours end in a line with the sha256 of all bytes before it, which HDF5
does not look at and which is checked before HDF5 sees the file. A file without that line is read as it is.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import nir
import numpy as np
import torch

from exporters import euler
from exporters.nir_differences import differences
from exporters.nir_lowering import lift, lower, reset_by_subtraction, wiring_conventions
from slamp.errors import ArtifactError, RasterError, RunFileError
from slamp.graph import SpikingGraph, worth_compressing
from slamp.manifest import Artifact, staged_artifact
from slamp.raster import Kind, SpikeRaster
from slamp.simulate import Recording, Trace, check_raster, is_spiking_output, simulate

COMPRESSIONS = ("auto", "gzip", "lzf", "none")
SEAL = b"\nslamp-sha256 "
SEAL_BYTES = len(SEAL) + 64 + 1
# What h5py and nir raise for a file that is damaged, truncated or something else (nir asserts and indexes freely).
UNREADABLE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class NirExporter:
    """Neuromorphic Intermediate Representation: ``network.nir`` says exactly the graph.

    Recurrence passes an explicit ``nir.Delay`` of a step on every cycle, so no reader has to guess which edge is late.
    Any NIR tool reads the file, with one exception: nir 1.0.8 infers the shapes behind a convolution with groups or
    with a kernel that is not square wrongly, and then ``nir.read`` needs ``type_check=False``.

    Attributes:
        strict: Refuse reset by subtraction, which NIR cannot say. With False it is stated in the metadata alone.
        compression: HDF5 filter of the arrays, "gzip", "lzf" or "none"; "auto" is "gzip" where it is worth its time,
            which it is not for large networks without zeros.
        golden: Held-out input; it is stored with the spikes it causes, in NIR's own data format.

    Raises:
        RunFileError: An option has a value that is not allowed.
    """

    name: ClassVar[str] = "nir"
    strict: bool = True
    compression: str = "auto"
    golden: SpikeRaster | None = None

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise RunFileError(f"nir: compression is {self.compression!r}; allowed are {', '.join(COMPRESSIONS)}")
        if not isinstance(self.strict, bool):
            raise RunFileError(f"nir: strict is {self.strict!r}; allowed are True and False")
        if not isinstance(self.golden, SpikeRaster | None):
            raise RunFileError(f"nir: golden is {type(self.golden).__name__}; allowed is a SpikeRaster or None")

    def write(self, graph: SpikingGraph, directory: Path) -> Artifact:
        """Write ``network.nir``, and ``golden_input.nird`` and ``golden_output.nird`` if there is a golden raster.

        Golden data have shape (samples, time, neurons), features flattened, keyed by node name: "spikes" (bool), "v"
        (membrane of a readout) or "values" (float32). The output file also holds every spiking layer.

        Raises:
            UnsupportedNodeError: NIR cannot say a node; nothing is written.
            RasterError: The golden raster does not fit the graph; nothing is written.
            OutputDirectoryError: The directory holds files that are not ours.
        """
        network = lower(graph, self.strict)
        worth = "gzip" if worth_compressing(graph) else "none"
        compression = worth if self.compression == "auto" else self.compression
        filtering = None if compression == "none" else compression
        options = {
            "strict": self.strict,
            "compression": compression,
            "golden": None if self.golden is None else {"steps": self.golden.steps, "batch": self.golden.batch},
            "reset_by_subtraction": reset_by_subtraction(graph),
            "output": "spikes" if is_spiking_output(graph) else "values",
            **wiring_conventions(graph),
        }
        golden = None if self.golden is None else _golden(graph, self.golden)
        with staged_artifact(graph, Path(directory), target=self.name, options=options, latency_steps=0) as staged:
            nir.write(staged.directory / "network.nir", network, compression=filtering)
            _seal(staged.directory / "network.nir")
            staged.roles["network"] = "network.nir"
            for role, data in (golden or {}).items():
                nir.write_data(staged.directory / f"{role}.nird", data, compression=filtering)
                staged.roles[role] = f"{role}.nird"
        return Artifact(Path(directory), self.name, 0)

    def read(self, path: Path) -> SpikingGraph:
        """Return the graph in a file that `write` wrote, bit for bit.

        Raises:
            ArtifactError: The file is missing, damaged, changed, or was written by another tool.
        """
        network = read_nir(path)
        try:
            graph = lift(network)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error
        except UNREADABLE as error:
            raise _unreadable(Path(path), error) from error
        if not _is_sealed(path):
            raise ArtifactError(f"{path}: lacks the seal slamp ends it with; it was cut short or changed; export again")
        return graph

    def file_differences(self, artifact: Artifact, graph: SpikingGraph) -> list[str]:
        """Return what ``network.nir`` states otherwise than ``graph``, one line per field; empty if nothing.

        Raises:
            ArtifactError: The file is missing or damaged.
        """
        return list(differences(lower(graph, strict=False), read_nir(artifact.file("network"))))

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run ``network.nir``, its metadata stripped, in the forward-Euler runner, which imports nothing of slamp.

        The manifest gives the two facts NIR has no field for: dt, and the nodes that reset by subtraction.

        Raises:
            ArtifactError: The artifact is damaged.
            RasterError: The raster does not fit the network.
        """
        manifest = artifact.manifest
        path = artifact.file("network")
        network = read_nir(path)
        check_input(network, inputs, manifest["dt"])
        subtract = frozenset(subtracting_nodes(artifact))
        with without_metadata(network) as bare:
            try:
                run = euler.run(bare, inputs.numpy(), manifest["dt"], subtract=subtract)
            except (ValueError, KeyError) as error:
                raise ArtifactError(f"{path}: the forward-Euler runner refuses it ({error}); export again") from error
        output = run.output.astype(np.float32) if manifest["options"].get("output") == "values" else run.output
        return recording_of(output, run.spikes, run.membranes, inputs.dt)

    def read_golden(self, artifact: Artifact) -> SpikeRaster:
        """Return the held-out input stored beside the network, shape (time, batch, *features).

        Raises:
            ArtifactError: The artifact has none, or it is damaged.
        """
        path = artifact.file("golden_input")
        if path.name in artifact.altered_files():
            raise ArtifactError(f"{path}: is not what was exported; export again, or name a samples file")
        inputs = read_nir(artifact.file("network")).inputs
        try:
            (shape,) = (entry.input_type["input"] for entry in inputs.values())
            (node,) = nir.read_data(path).nodes.values()
            ((observable, data),) = node.observables.items()
            array = data.data.transpose(1, 0, 2).reshape(
                data.n_time_steps, data.n_samples, *(int(size) for size in shape)
            )
        except UNREADABLE as error:
            raise _unreadable(path, error) from error
        return SpikeRaster(torch.tensor(array), float(data.dt), kind="spikes" if observable == "spikes" else "analog")


def read_nir(path: Path) -> nir.NIRGraph:
    """Read a NIR file without nir's type inference; raises `ArtifactError` if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        found = "is no file" if path.exists() else "there is no such file"
        raise ArtifactError(f"{path}: {found}; name a .nir file")
    _check_seal(path)
    try:
        return nir.read(path, type_check=False)  # a file that holds no NIRGraph is refused there
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


@contextmanager
def without_metadata(network: nir.NIRGraph) -> Iterator[Path]:
    """Yield a temporary NIR file of the network with every piece of metadata removed, in place; gone afterwards."""
    network.metadata = {}
    for node in network.nodes.values():
        node.metadata = {}
    with tempfile.TemporaryDirectory(prefix="slamp-nir-") as directory:
        bare = Path(directory) / "bare.nir"
        nir.write(bare, network)
        yield bare


def check_input(network: nir.NIRGraph, inputs: SpikeRaster, dt: float) -> None:
    """Raise `RasterError` unless the raster has the network's dt and the shape of its Input node."""
    shapes = [tuple(int(size) for size in node.input_type["input"]) for node in network.inputs.values()]
    if [inputs.features] != shapes or inputs.dt != dt:
        raise RasterError(
            f"raster: features {inputs.features} and dt {inputs.dt!r} s; the artifact's network takes "
            f"{', '.join(map(str, shapes)) or 'no input'} at dt {dt!r} s; bin the events anew, or reshape"
        )


def subtracting_nodes(artifact: Artifact) -> list[str]:
    """Return the nodes that the manifest says reset by subtraction; raises `ArtifactError` if it names none."""
    names = artifact.manifest["options"].get("reset_by_subtraction", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(
            f"{artifact.directory}: the manifest's reset_by_subtraction is {names!r:.60}, allowed is a list of node "
            "names; export again"
        )
    return names


def recording_of(
    output: np.ndarray, spikes: Mapping[str, np.ndarray], membranes: Mapping[str, np.ndarray], dt: float
) -> Recording:
    """Turn arrays of shape (time, batch, *features) into a `Recording`; a bool output is spikes."""
    traces = {name: Trace(spikes=torch.from_numpy(array)) for name, array in spikes.items()}
    traces |= {name: Trace(v=torch.from_numpy(array)) for name, array in membranes.items()}
    kind: Kind = "spikes" if output.dtype == np.bool_ else "analog"
    return Recording(SpikeRaster(torch.from_numpy(output), dt, kind=kind), traces)


def _golden(graph: SpikingGraph, raster: SpikeRaster) -> dict[str, nir.NIRGraphData]:
    check_raster(graph, raster)
    run = simulate(graph, raster, record="spikes")
    outputs = {}
    for name, trace in run.traces.items():
        observable, data = ("spikes", trace.spikes) if trace.spikes is not None else ("v", trace.v)
        assert data is not None
        outputs[name] = (observable, data)
    outputs[graph.output] = ("spikes" if run.output.is_spikes else "values", run.output.data)
    inputs = {graph.input: ("spikes" if raster.is_spikes else "values", raster.data)}
    return {"golden_input": _graph_data(inputs, graph.dt), "golden_output": _graph_data(outputs, graph.dt)}


def _graph_data(nodes: dict[str, tuple[str, torch.Tensor]], dt: float) -> nir.NIRGraphData:
    found = {}
    for name, (observable, data) in nodes.items():
        array = data.detach().cpu().flatten(2).transpose(0, 1).contiguous().numpy()
        found[name] = nir.NIRNodeData({observable: nir.TimeGriddedData(array, dt)})
    return nir.NIRGraphData(found)


def _seal(path: Path) -> None:
    digest = _sha256(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(SEAL + digest.encode() + b"\n")


def _is_sealed(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - SEAL_BYTES, 0))
        return file.read().startswith(SEAL)


def _check_seal(path: Path) -> None:
    size = max(path.stat().st_size - SEAL_BYTES, 0)
    with path.open("rb") as file:
        file.seek(size)
        seal = file.read()
    if seal.startswith(SEAL) and seal != SEAL + _sha256(path, size).encode() + b"\n":
        raise ArtifactError(f"{path}: its bytes do not have the sha256 it ends in; it is damaged; export again")


def _sha256(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _unreadable(path: Path, error: BaseException) -> ArtifactError:
    return ArtifactError(
        f"{path}: not a readable NIR file of slamp ({type(error).__name__}: {error}); it is damaged, truncated or of "
        "another format; export again"
    )
