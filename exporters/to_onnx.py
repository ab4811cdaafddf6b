"""ONNX: one step with explicit states, and the same step under `Scan` for whole sequences, in standard operators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from exporters.onnx_files import WEIGHTS, save_models
from exporters.onnx_model import check, sequence_model, step_model
from exporters.onnx_replay import run_model
from exporters.read_onnx import read_graph
from slamp.errors import ArtifactError, RasterError, RunFileError
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact, staged_artifact
from slamp.raster import SpikeRaster, load_samples, save_samples
from slamp.simulate import Recording, Trace, check_raster

FORMS = ("sequence", "step")
ROLES = {"step": "network", "sequence": "sequence"}
GOLDEN = "golden_input.npz"


@dataclass(frozen=True, slots=True)
class OnnxExporter:
    """ONNX for onnxruntime and whatever else reads it: ``step.onnx`` and ``sequence.onnx`` say exactly the graph.

    ``step.onnx`` takes the input of one step, (batch, *features), and every state, and gives the output, every layer of
    neurons (spikes as 0 and 1, membranes of readouts) and the states after the step. ``sequence.onnx`` takes an input
    of shape (time, batch, *features) and starts from the initial states. The metadata say what the states start as.

    Attributes:
        form: What `replay` runs, "sequence" or "step"; both give the same bits.
        optimize: Whether `replay` lets onnxruntime rewrite the operators for speed.
        external_above: Bytes of arrays beyond which they go into ``weights.bin`` beside both models, none of which can
            hold 2 GiB.
        golden: Held-out input; it is stored beside the models.

    Raises:
        RunFileError: An option has a value that is not allowed.
    """

    name: ClassVar[str] = "onnx"
    runtime: ClassVar[str] = "onnxruntime"
    form: Literal["sequence", "step"] = "sequence"
    optimize: bool = True
    external_above: int = 1 << 26
    golden: SpikeRaster | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise RunFileError(f"onnx: form is {self.form!r}; allowed are {', '.join(FORMS)}")
        if not isinstance(self.optimize, bool):
            raise RunFileError(f"onnx: optimize is {self.optimize!r}; allowed are True and False")
        if not isinstance(self.external_above, int) or not 0 <= self.external_above <= 1 << 30:
            raise RunFileError(f"onnx: external_above is {self.external_above!r}; allowed are 0 to 2^30 bytes")
        if not isinstance(self.golden, SpikeRaster | None):
            raise RunFileError(f"onnx: golden is {type(self.golden).__name__}; allowed is a SpikeRaster or None")

    def write(self, graph: SpikingGraph, directory: Path) -> Artifact:
        """Write ``step.onnx``, ``sequence.onnx``, ``weights.bin`` for large networks, ``golden_input.npz`` if given.

        Raises:
            UnsupportedNodeError: ONNX cannot say a node; nothing is written.
            RasterError: The golden raster does not fit the graph; nothing is written.
            OutputDirectoryError: The directory holds files that are not ours.
        """
        check(graph)
        if self.golden is not None:
            check_raster(graph, self.golden)
        options = {
            "external_above": self.external_above,
            "golden": None if self.golden is None else {"steps": self.golden.steps, "batch": self.golden.batch},
        }
        with staged_artifact(graph, Path(directory), target=self.name, options=options, latency_steps=0) as staged:
            models = {"step.onnx": partial(step_model, graph), "sequence.onnx": partial(sequence_model, graph)}
            if save_models(models, staged.directory, self.external_above):
                staged.roles["weights"] = WEIGHTS
            staged.roles.update({role: f"{form}.onnx" for form, role in ROLES.items()})
            if self.golden is not None:
                save_samples(self.golden, staged.directory / GOLDEN)
                staged.roles["golden_input"] = GOLDEN
        return Artifact(Path(directory), self.name, 0)

    def read(self, path: Path) -> SpikingGraph:
        """Return the graph in a file of either form that `write` wrote, bit for bit.

        Raises:
            ArtifactError: The file is missing, damaged, changed, or was written by another tool.
        """
        return read_graph(path)

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run the file of the chosen form in onnxruntime, on one thread, from the files alone.

        Raises:
            ArtifactError: The artifact is damaged.
            RasterError: The raster does not fit the network.
        """
        facts, found = run_model(artifact.file(ROLES[self.form]), inputs, optimize=self.optimize)
        name, kind = facts.output
        kept = np.float32 if facts.largest_input is None else np.int32  # as `simulate` keeps membranes
        traces = {
            layer: Trace(spikes=_spikes(found[layer]))
            if shown == "spikes"
            else Trace(v=torch.from_numpy(found[layer].astype(kept)))
            for layer, shown in facts.layers.items()
        }
        output = _spikes(found[name]) if kind == "spikes" else torch.from_numpy(found[name])
        return Recording(SpikeRaster(output, inputs.dt, kind="spikes" if kind == "spikes" else "analog"), traces)

    def read_golden(self, artifact: Artifact) -> SpikeRaster:
        """Return the held-out input stored beside the models, shape (time, batch, *features).

        Raises:
            ArtifactError: The artifact has none, or it is damaged.
        """
        path = artifact.file("golden_input")
        if path.name in artifact.altered_files():
            raise ArtifactError(f"{path}: is not what was exported; export again, or name a samples file")
        try:
            return load_samples(path)
        except RasterError as error:
            raise ArtifactError(f"{error}") from error


def _spikes(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values != 0)
