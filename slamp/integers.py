"""The part of a run that belongs to targets in fixed point: fine-tuning in integers, what it cost, two replays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from slamp.calibrate import calibrate
from slamp.capture import capture
from slamp.errors import MissingDependencyError, ProfileError, WitnessError
from slamp.fidelity import Fidelity, fidelity
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact, update_manifest
from slamp.measure import accuracy
from slamp.profile import Profile
from slamp.prune import Pruned
from slamp.quantize import quantize
from slamp.raster import SpikeRaster
from slamp.retrain import Train, retrain
from slamp.simulate import Recording
from slamp.verification import Verification
from slamp.verify import verify

FINE_TUNING = 0.5  # share of a full retraining
LAVA_SAMPLES = 64  # the target's own runtime is a thousand times slower than the simulator
CAPTURED_SAMPLES = 64
REREAD = "slamp's simulator on the file read back"


@dataclass(frozen=True, eq=False)
class Integers:
    """A pruned network in fixed point.

    Attributes:
        graph: What ships to targets in fixed point.
        net: The network it was made from: the pruned one, fine-tuned in integers where that helped.
        fine_tuned: True if it was.
        against_pruned: What quantization cost: measured against the pruned float network, on held-out samples.
        against_dense: What pruning and quantization cost together.
        note: Why it was not fine-tuned, or what chose; empty if there is nothing to say.
    """

    graph: SpikingGraph
    net: torch.nn.Module
    fine_tuned: bool
    against_pruned: Fidelity
    against_dense: Fidelity
    note: str

    def certificate(self, raster: SpikeRaster) -> dict[str, Any]:
        """Return what the manifest says beside the verdict: how the integers came from the Norse network."""
        return {
            "capture": {
                "what": "the network and its float graph, run side by side: every cell of every neuron layer agreed",
                "samples": min(CAPTURED_SAMPLES, raster.batch),
                "steps": raster.steps,
            },
            "quantization": {
                "what": "a measured loss on held-out samples, no part of the equivalence",
                **self.to_json(),
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "graph_hash": self.graph.hash,
            "fine_tuned": self.fine_tuned,
            "note": self.note,
            "against_pruned": self.against_pruned.to_json(),
            "against_dense": self.against_dense.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Sources:
    """What the integers are made from, and measured on.

    Attributes:
        pruned: The pruned network and its masks.
        shipped: Its float graph, batch normalization folded.
        dense: Float graph of the network as it was.
        raster: Calibration sample.
        held_out: Samples for the measurement.
    """

    pruned: Pruned
    shipped: SpikingGraph
    dense: SpikingGraph
    raster: SpikeRaster
    held_out: SpikeRaster


def needed_profile(profile: Profile | None, target: str) -> Profile:
    """Return the chip; raises `ProfileError` if none was named."""
    if profile is None:
        raise ProfileError(
            f"{target}: holds integers, and which ones depends on the chip; name it, such as profile='loihi2'"
        )
    return profile


def into_integers(
    sources: Sources, profile: Profile, *, train: Train | None, seed: int, readout: str, progress: bool
) -> Integers:
    """Quantize a pruned network, fine-tuned in integers where there is a training function.

    Of the network as it is and the fine-tuned one, that with the better accuracy on the calibration sample is taken
    (without labels the fine-tuned one). Held-out samples choose nothing.

    Raises:
        SlampError: What `slamp.quantize` and `slamp.retrain` raise.
    """
    raster = sources.raster
    plain = quantize(sources.shipped, profile, calibrate(sources.shipped, raster))
    graph, net, fine_tuned, note = plain, sources.pruned.net, False, "no training function"
    if train is not None and any(isinstance(module, NORMALIZING) for module in net.modules()):
        note = "normalizes batches, so it was quantized without fine-tuning"
    elif train is not None:
        generator = np.random.default_rng(seed)
        tuned = retrain(
            net,
            sources.pruned.masks,
            train,
            effort=FINE_TUNING,
            generator=generator,
            progress=progress,
            quantized=profile,
            raster=raster,
        )
        captured = capture(tuned, raster.samples(0, CAPTURED_SAMPLES))
        better = quantize(captured, profile, calibrate(captured, raster))
        note = ""
        kept = raster.labels is None or accuracy(better, raster, readout=readout) >= accuracy(
            plain, raster, readout=readout
        )
        if kept:
            graph, net, fine_tuned = better, tuned, True
        else:
            note = "fine-tuning in integers lowered the accuracy on the calibration sample and was not taken"
    return Integers(
        graph=graph,
        net=net,
        fine_tuned=fine_tuned,
        against_pruned=fidelity(sources.shipped, graph, sources.held_out, readout=readout),
        against_dense=fidelity(sources.dense, graph, sources.held_out, readout=readout),
        note=note,
    )


NORMALIZING = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


@runtime_checkable
class RereadingExporter(Protocol):
    """An exporter whose files slamp's own simulator can run too, read back."""

    def reread(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run the files, read back, in slamp's simulator; the recording is late as the target is."""


def verify_integers(
    artifact: Artifact, graph: SpikingGraph, held_out: SpikeRaster, exporter: object, *, progress: bool
) -> tuple[Verification, str]:
    """Verify the file on all samples by reading it back, and the target's own runtime on the first of them.

    Returns:
        The verification by the target's runtime and an empty text; or, if that runtime is absent or failed, the one by
        reading back and why.
    """
    again: Verification | None = None
    if isinstance(exporter, RereadingExporter):
        again = verify(
            artifact,
            graph,
            held_out,
            runner=exporter.reread,
            runner_name=REREAD,
            progress=progress,
            record=False,
        )
        update_manifest(artifact.directory, {"verification_of_the_file": again.to_json()})
        if not again.equivalent:
            return again, ""
    try:
        few = held_out.samples(0, min(LAVA_SAMPLES, held_out.batch))
        return verify(artifact, graph, few, progress=progress), ""
    except (MissingDependencyError, WitnessError) as error:
        if again is None:
            raise
        return again, str(error)


def fidelity_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of a table of `Fidelity.to_json`: layer, spikes, differing cells, count error, van Rossum distance."""
    return [
        (
            name,
            f"{layer['spikes']:,.1f}",
            f"{layer['differing_cells']:.2%}",
            f"{layer['spike_count_error']:.3f}",
            f"{layer['van_rossum']:.3f}",
        )
        for name, layer in found["layers"].items()
    ]
