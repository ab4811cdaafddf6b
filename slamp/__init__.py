"""Prune Norse spiking networks to a budget, export them, and prove the export spike by spike.

The pipeline is one function per step, each with one frozen result::

    raster  = slamp.SpikeRaster(data, dt=1e-3)
    graph   = slamp.capture(net, raster)
    scores  = slamp.score(graph, slamp.calibrate(graph, raster))
    masks   = slamp.make_masks(scores, slamp.allocate(scores, slamp.Budget(density=0.1)))
    pruned  = slamp.retrain(slamp.recover(net, masks, raster), masks, train)
    shipped = slamp.capture(pruned, raster)
    slamp.verify(slamp.export(shipped, to="nir", directory="build/nir"), shipped, held_out).raise_if_different()

`slamp.compress` does all of it in one call.
"""

from importlib.metadata import version as _version

from slamp import errors
from slamp.activity import Activity
from slamp.allocate import Plan, allocate
from slamp.arithmetic import FixedPoint, Float32
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import capture, check_module
from slamp.checkpoint import Checkpoint
from slamp.compress import Run, compress
from slamp.errors import SlampError
from slamp.exporting import export, installed_exporters
from slamp.fidelity import Fidelity, fidelity
from slamp.fold import fold_batchnorm
from slamp.graph import SpikingGraph, load_graph
from slamp.manifest import Artifact, open_artifact
from slamp.mapping import CoreMap, map_cores
from slamp.masks import Masks, load_masks, load_pruned, make_masks, save_masks, save_pruned
from slamp.measure import accuracy
from slamp.profile import Profile, installed_profiles, load_profile
from slamp.prune import Pruned, Pruning, prune
from slamp.quantize import quantize
from slamp.raster import SpikeRaster, join, load_samples, save_samples
from slamp.reading import load_net, load_nir, load_onnx
from slamp.recover import recover
from slamp.retrain import Train, retrain
from slamp.score import Scores, score
from slamp.shrink import restore_pruned
from slamp.simulate import Recording, simulate
from slamp.usage import Usage, usage
from slamp.verification import Verification
from slamp.verify import verify, verify_directory

__version__ = _version("slamp")

__all__ = [
    "Activity",
    "Artifact",
    "Budget",
    "Checkpoint",
    "CoreMap",
    "Fidelity",
    "FixedPoint",
    "Float32",
    "Masks",
    "Plan",
    "Profile",
    "Pruned",
    "Pruning",
    "Recording",
    "Run",
    "Scores",
    "SlampError",
    "SpikeRaster",
    "SpikingGraph",
    "Train",
    "Usage",
    "Verification",
    "accuracy",
    "allocate",
    "calibrate",
    "capture",
    "check_module",
    "compress",
    "errors",
    "export",
    "fidelity",
    "fold_batchnorm",
    "installed_exporters",
    "installed_profiles",
    "join",
    "load_graph",
    "load_masks",
    "load_net",
    "load_nir",
    "load_onnx",
    "load_profile",
    "load_pruned",
    "load_samples",
    "make_masks",
    "map_cores",
    "open_artifact",
    "prune",
    "quantize",
    "recover",
    "restore_pruned",
    "retrain",
    "save_masks",
    "save_pruned",
    "save_samples",
    "score",
    "simulate",
    "usage",
    "verify",
    "verify_directory",
]
