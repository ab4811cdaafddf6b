"""Where commands print: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable object instead of tables.")]


def chosen_console(as_json: bool) -> Console:
    """Return where people read: standard error if standard output is to hold one JSON object."""
    return Console(stderr=as_json)


def print_json(found: object) -> None:
    """Print one JSON object to standard output."""
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")


@contextmanager
def stdout_kept(as_json: bool) -> Iterator[None]:
    """Send what the user's own functions print to standard error if standard output is to hold one JSON object."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
