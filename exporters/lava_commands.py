"""`slamp lava`: Lava's environment."""

from __future__ import annotations

import typer

from exporters import witness_lava

app = typer.Typer(help="Lava, Loihi's software, in an environment of its own.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def install() -> None:
    """Create Lava's environment (official lava-dl 0.6.0 on Python 3.10, about 6 GB, downloaded with pip)."""
    typer.echo(f"lava: ready, {witness_lava.install()}")
