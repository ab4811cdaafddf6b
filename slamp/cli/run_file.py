"""The TOML run file of `slamp compress`: the command line's words, one for one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from slamp.budget import BUDGETS
from slamp.errors import BudgetError, RunFileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class RunFile(BaseModel):
    """What to compress, how, and where to. Paths are relative to the run file.

    Example::

        network = "package.module:factory"
        samples = "samples.npz"
        weights = "state.safetensors"
        train = "package.module:train"
        to = ["nir"]
        out = "build"

        [budget]
        density = 0.1
        sops = 2e5
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    samples: Path
    budget: dict[str, Annotated[float, Strict()]] = Field(min_length=1)
    out: Path
    held_out: Path | None = None
    weights: Path | None = None
    profile: str | None = None
    to: tuple[str, ...] = Field(default=("nir",), min_length=1)
    train: str | None = None
    metric: str | None = None
    method: str = "auto"
    readout: Literal["mean", "sum", "last", "max"] | None = None
    schedule: Literal["one-shot", "iterative"] = "one-shot"
    seed: int = Field(default=0, ge=0, strict=True)
    strict: bool = Field(default=True, strict=True)
    structured: bool = Field(default=False, strict=True)
    balance: Literal["", "fan_out"] = ""


def read_run_file(path: Path) -> RunFile:
    """Read and check a run file.

    Raises:
        RunFileError: The file is missing, is not TOML, or has unknown, missing or wrong entries; each is listed.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror}); name a TOML run file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path}: not TOML: {error}") from error
    run = checked_run(content, where=str(path))
    base = path.parent
    return run.model_copy(
        update={
            "samples": base / run.samples,
            "profile": str(base / run.profile) if run.profile and run.profile.endswith(".toml") else run.profile,
            "out": base / run.out,
            "weights": None if run.weights is None else base / run.weights,
            "held_out": None if run.held_out is None else base / run.held_out,
        }
    )


def checked_run(content: Mapping[str, Any], *, where: str) -> RunFile:
    """Check the entries of a run file, or the words of a command line; ``where`` names them in errors.

    Raises:
        RunFileError: An entry is unknown, missing or wrong; each is listed.
        BudgetError: A budget has an unknown name.
    """
    try:
        run = RunFile(**content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            + ("" if problem["type"] == "missing" else f", found {problem['input']!r:.60}")
            for problem in error.errors()
        )
        named = {problem["type"] for problem in error.errors()} & {"extra_forbidden", "missing"}
        allowed = f"; allowed are {', '.join(RunFile.model_fields)}" if named else ""
        raise RunFileError(f"{where}: {problems}{allowed}") from error
    if unknown := sorted(set(run.budget) - set(BUDGETS)):
        raise BudgetError(f"{where}: budget {', '.join(unknown)} is unknown; allowed are {', '.join(BUDGETS)}")
    return run
