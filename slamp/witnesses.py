"""Foreign simulators that can replay an artifact, found by entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from slamp.errors import ExporterNotFoundError
from slamp.manifest import Artifact
from slamp.raster import SpikeRaster
from slamp.simulate import Recording

GROUP = "slamp.witnesses"


class Witness(Protocol):
    """A foreign simulator in an environment of its own."""

    def environment_python(self) -> Path | None:
        """Return the interpreter of its environment, or None if that is not installed."""

    def install(self) -> Path:
        """Create the environment and return its interpreter."""

    def replay(self, artifact: Artifact, inputs: SpikeRaster) -> Recording:
        """Run the artifact's files in the simulator."""


def installed_witnesses() -> list[str]:
    """Names of the witnesses that are registered."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def find_witness(name: str) -> Witness:
    """Return the witness called ``name``; raises `ExporterNotFoundError` if there is none."""
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            loaded: Any = entry.load()
            return cast(Witness, loaded)
    allowed = ", ".join(installed_witnesses()) or "none"
    raise ExporterNotFoundError(f"witness: {name!r} is not registered; allowed here are {allowed}")
