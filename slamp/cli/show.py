"""`slamp show`: a network as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from slamp.atomic import write_atomically
from slamp.capture import capture
from slamp.cli.loading import load_network
from slamp.cli.output import Json, chosen_console, print_json, stdout_kept
from slamp.errors import ArtifactError, RunFileError
from slamp.graph import SpikingGraph, load_graph
from slamp.graph_picture import graph_svg
from slamp.overview import Overview, overview, said_steps
from slamp.raster import load_samples
from slamp.reading import load_nir

FILES = (".npz", ".nir")
CLOSES = "↺"


def show_command(
    network: Annotated[str, typer.Argument(help="package.module:factory, or a graph: graph.npz, network.nir.")],
    samples: Annotated[Path | None, typer.Argument(help="npz with spikes, to capture the network on.")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors state dict of the network.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the graph into this SVG file.")] = None,
    dt: Annotated[float | None, typer.Option(help="Time step for the .nir file of another tool.")] = None,
    as_json: Json = False,
) -> None:
    """Show the graph of a network: nodes, shapes, parameters, synapses, wiring, and with --svg a picture."""
    graph = _graph(network, samples, weights, dt, as_json)
    found = overview(graph)
    if svg is not None:
        title = f"{network}: {len(found.nodes)} nodes, {found.synapses:,} synapses"
        try:
            write_atomically(svg, graph_svg(found, title=title).encode())
        except OSError as error:
            raise ArtifactError(f"{svg}: cannot be written ({error}); name a file you may write") from error
    if as_json:
        print_json({**found.to_json(), "svg": None if svg is None else str(svg)})
        return
    console = chosen_console(as_json)
    console.print(graph_table(found))
    if any(edge.closes_cycle for edge in found.edges):
        console.print(f"{CLOSES} closes a cycle: heard after the steps of the delay", highlight=False)
    hint = "add --svg FILE" if svg is None else str(svg)
    console.print(f"picture: {hint}", soft_wrap=True, markup=False, highlight=False)


def graph_table(found: Overview) -> Table:
    """Return one row per node and the totals."""
    closing = {(edge.source, edge.target) for edge in found.edges if edge.closes_cycle}
    table = Table(title=_title(found), title_justify="left", show_footer=True)
    table.add_column("node", "total", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("parameters", f"{found.parameters:,}", justify="right", no_wrap=True)
    table.add_column("synapses", f"{found.synapses:,}", justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    for row in found.nodes:
        table.add_row(
            escape(row.name),
            row.type if row.delay is None else f"{row.type}, {said_steps(row.delay)}",
            "\N{MULTIPLICATION SIGN}".join(map(str, row.shape)),
            f"{row.parameters:,}" if row.parameters else "",
            "" if row.synapses is None else f"{row.synapses:,}",
            "\n".join(
                f"{escape(source)} {CLOSES}" if (source, row.name) in closing else escape(source)
                for source in row.sources
            ),
        )
    return table


def _title(found: Overview) -> str:
    read = f", output read by its {found.readout} over time" if found.readout else ""
    return f"{len(found.nodes)} nodes, dt {found.dt:g} s{read}"


def _graph(network: str, samples: Path | None, weights: Path | None, dt: float | None, as_json: bool) -> SpikingGraph:
    path = Path(network)
    if dt is not None and path.suffix != ".nir":
        raise RunFileError(f"show: {network} has a time step of its own; leave out --dt")
    if path.suffix in FILES:
        if samples is not None or weights is not None:
            raise RunFileError(f"show: {network} holds a graph with its weights; leave out SAMPLES and --weights")
        return load_graph(path) if path.suffix == ".npz" else load_nir(path, dt=dt)
    if samples is None:
        raise RunFileError(f"show: give SAMPLES to capture {network} on, or a graph file ({', '.join(FILES)}) alone")
    raster = load_samples(samples)
    with stdout_kept(as_json):
        return capture(load_network(network, weights), raster)
