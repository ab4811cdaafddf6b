"""Our ONNX files run in onnxruntime, whole sequences at once or step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from exporters.read_onnx import Facts, facts_of, load_model
from slamp.errors import ArtifactError, RasterError
from slamp.raster import SpikeRaster

REFUSALS = (
    RuntimeError,
    ValueError,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.ModelLoaded,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
)
QUIET = 3  # onnxruntime's log level for errors


def run_model(path: Path, inputs: SpikeRaster, *, optimize: bool) -> tuple[Facts, dict[str, np.ndarray]]:
    """Run a model on a raster from its file alone.

    Args:
        path: A file of either form.
        inputs: Shape (time, batch, *features).
        optimize: Let onnxruntime rewrite the operators for speed.

    Returns:
        What the model states, and by name the output and every layer, float32 (time, batch, *features).

    Raises:
        ArtifactError: The file is missing or damaged, or onnxruntime refuses it.
        RasterError: The raster does not fit the network.
    """
    facts = facts_of(load_model(path, weights=False), path)
    if (inputs.features, inputs.dt) != (facts.input[1], facts.dt):
        raise RasterError(
            f"raster: features {inputs.features} and dt {inputs.dt!r} s; the artifact's network takes {facts.input[1]} "
            f"at dt {facts.dt!r} s; bin the events anew, or reshape"
        )
    x = np.ascontiguousarray(inputs.numpy(), dtype=np.float32)
    if facts.largest_input is not None and not bool(((x % 1 == 0) & (np.abs(x) <= facts.largest_input)).all()):
        raise RasterError(
            f"raster: holds fractions, or values up to {np.abs(x).max():g}; the artifact's network, in fixed point, "
            f"takes whole numbers up to {facts.largest_input:g}; keep a first layer with analog input on the host"
        )
    names = [facts.output[0], *facts.layers]
    try:
        session = _session(path, optimize)
        if facts.form == "sequence":
            found = session.run(names, {facts.input[0]: x})
        else:
            found = _run_steps(session, facts, names, x)
    except REFUSALS as error:
        raise ArtifactError(f"{path}: onnxruntime refuses it ({error}); export again") from error
    return facts, dict(zip(names, found, strict=True))


def _session(path: Path, optimize: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _run_steps(session: Any, facts: Facts, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    batch = x.shape[1]
    states = {}
    for each in facts.states:
        start = facts.starts[each.name] if isinstance(each.start, str) else each.start
        kind = np.int64 if each.whole else np.float32
        states[each.name] = np.array(np.broadcast_to(start, (batch, *each.shape)), kind)
    wanted = names + [each.out for each in facts.states]
    steps = []
    for now in x:
        found = session.run(wanted, {facts.input[0]: now, **states})
        steps.append(found[: len(names)])
        states = {each.name: value for each, value in zip(facts.states, found[len(names) :], strict=True)}
    return [np.stack(values) for values in zip(*steps, strict=True)]
