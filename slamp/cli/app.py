"""The commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from slamp.budget import Budget, parse_budget
from slamp.calibrate import calibrate
from slamp.capture import capture, check_module
from slamp.cli.loading import load_function, load_network
from slamp.cli.output import Json, chosen_console, print_json, stdout_kept
from slamp.cli.profiles import profile_lines, profile_table, profiles_table
from slamp.cli.run_file import RunFile, checked_run, read_run_file
from slamp.cli.show import show_command
from slamp.cli.tables import module_table, print_forms, print_run, print_verdicts
from slamp.cli.usage import comparison_table, cores_table, encodings_table, usage_lines, usage_table
from slamp.compress import RUN, Run, compress, state_directory
from slamp.demo.run import run_demo
from slamp.errors import ArtifactError, RunFileError, UnsupportedModuleError
from slamp.health import health
from slamp.manifest import MANIFEST, open_artifact
from slamp.profile import installed_profiles, load_profile, profile_schema
from slamp.raster import load_samples
from slamp.report import HTML_NAME
from slamp.score import METHODS
from slamp.summary import FORMAT
from slamp.usage import usage
from slamp.verify import golden_input, verify_directory
from slamp.witnesses import find_witness

app = typer.Typer(
    help="Prune Norse spiking networks to a budget, export them, and prove the export spike by spike.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
witness_app = typer.Typer(help="Foreign simulators, each in an environment of its own.", no_args_is_help=True)
app.add_typer(witness_app, name="witness")
for _entry in entry_points(group="slamp.commands"):
    app.add_typer(_entry.load(), name=_entry.name)
app.command("show")(show_command)

# Spread over the file, because samples are often sorted by class.
HELD_OUT_EVERY = 4
DEFAULT_OUT = Path("build/compress")
METHOD_HELP = f"auto (default: slamp where SOPs are limited, else slamp-activity), {', '.join(METHODS)}."


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"slamp {version('slamp')}\n")
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    temporal: Annotated[bool, typer.Option(help="Spoken vowels and LIFCells instead of digits.")] = False,
    loihi: Annotated[
        bool, typer.Option("--loihi", help="Also Loihi: integers, a .net file, and Lava's verdict.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("build/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Decides all randomness.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train, prune, export and verify a network on real data."""
    console = chosen_console(as_json)
    with stdout_kept(as_json), _interruptible(out):
        if temporal and loihi:
            raise RunFileError(
                "demo: --temporal and --loihi together; .net files hold no biases of LIFCell; choose one"
            )
        run = run_demo(temporal=temporal, directory=out, seed=seed, resume=resume, console=console, loihi=loihi)
    _finish(run, console, as_json)


@app.command("compress")
def compress_command(
    network: Annotated[str, typer.Argument(help="package.module:factory, or a TOML run file alone.")],
    samples: Annotated[Path | None, typer.Argument(help="npz with spikes, optional labels and dt.")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors state dict of the network.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="density=0.1, sparsity=, synapses=, sops=2e5, sops_per_step=, memory_bits=, cores=1, energy_pj=; "
            "repeatable. The last three need --profile."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Chip: name or TOML file; for budgets of it, its limits, and a usage table.")
    ] = None,
    to: Annotated[list[str] | None, typer.Option(help="Target; repeatable. Default: nir.")] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"Where the result goes: a new directory. Default: {DEFAULT_OUT}.")
    ] = None,
    train: Annotated[str | None, typer.Option(help="package.module:train; without it nothing is retrained.")] = None,
    metric: Annotated[str | None, typer.Option(help="package.module:metric; default: accuracy on the labels.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="npz to verify on; default: every fourth of SAMPLES.")] = None,
    method: Annotated[str | None, typer.Option(help=METHOD_HELP)] = None,
    readout: Annotated[str | None, typer.Option(help="mean, sum, last or max over time; default: as NET does.")] = None,
    schedule: Annotated[str | None, typer.Option(help="one-shot or iterative. Default: one-shot.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides all randomness. Default: 0.")] = None,
    strict: Annotated[
        bool | None,
        typer.Option(help="Refuse what a target cannot say (default); --no-strict lets metadata say it."),
    ] = None,
    structured: Annotated[
        bool | None, typer.Option("--structured", help="Remove whole channels and neurons; shapes shrink.")
    ] = None,
    balance: Annotated[
        str | None, typer.Option(help="fan_out: as many weights for every source, where lists are padded.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Prune your network to a budget, retrain, export and verify it."""
    console = chosen_console(as_json)
    if network.endswith(".toml"):
        given = (
            samples,
            weights,
            budget,
            profile,
            to,
            out,
            train,
            metric,
            held_out,
            method,
            readout,
            schedule,
            seed,
            strict,
            structured,
            balance,
        )
        if any(value is not None for value in given):
            raise RunFileError(
                f"{network}: a run file says everything; leave out the other words, or drop the run file"
            )
        plan = read_run_file(Path(network))
    else:
        if samples is None or not budget:
            raise RunFileError("compress: give FACTORY, SAMPLES and at least one --budget, or a TOML run file")
        chosen = {
            "network": network,
            "samples": samples,
            "budget": parse_budget(budget).given,
            "out": out or DEFAULT_OUT,
            "weights": weights,
            "profile": profile,
            "to": to,
            "train": train,
            "metric": metric,
            "held_out": held_out,
            "method": method,
            "readout": readout,
            "schedule": schedule,
            "seed": seed,
            "strict": strict,
            "structured": structured,
            "balance": balance,
        }
        plan = checked_run({name: value for name, value in chosen.items() if value is not None}, where="compress")
    if resume and not state_directory(plan.out).exists():
        text = f"nothing to resume beside {plan.out}; starting anew"
        Console(stderr=True).print(text, style="yellow", soft_wrap=True, markup=False)
    with stdout_kept(as_json), _interruptible(plan.out):
        run = _compress(plan, resume=resume, progress=_progress(as_json))
    _finish(run, console, as_json)


@app.command("check-module")
def check_module_command(
    network: Annotated[str, typer.Argument(help="package.module:factory")],
    samples: Annotated[
        Path | None, typer.Argument(help="npz with spikes; the network is then run and compared.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Shape of one input sample, such as 1,28,28.")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors state dict of the network.")] = None,
    as_json: Json = False,
) -> None:
    """Say, module by module, whether a network can be captured; with SAMPLES also prove that it was."""
    console = chosen_console(as_json)
    raster = None if samples is None else load_samples(samples)
    shape = (raster.parts or raster.features) if raster is not None else _features(features)
    with stdout_kept(as_json):
        net = load_network(network, weights)
        reports = check_module(net, shape)
    problems = [report for report in reports if report.problem]
    proven: dict[str, Any] | None = None
    if not problems and raster is not None:
        graph = capture(net, raster)
        silent = calibrate(graph, raster).silent
        proven = {"samples": raster.batch, "steps": raster.steps, "graph_hash": graph.hash, "silent_layers": silent}
    if as_json:
        print_json({"modules": [asdict(report) for report in reports], "works": not problems, "captured": proven})
    else:
        console.print(module_table(reports))
        if proven and proven["silent_layers"]:
            console.print(
                f"captured, but no spike in {', '.join(proven['silent_layers'])}, so agreement proves nothing there; "
                "give livelier samples, or scale the weights up",
                style="yellow",
                soft_wrap=True,
            )
        elif proven:
            console.print(f"[bold green]captured[/]: every cell of {proven['samples']} samples agrees")
        elif not problems:
            console.print("every module can be captured; give SAMPLES to prove it cell for cell")
        for report in problems[1:]:
            console.print(f"also: {report.problem}", style="red", soft_wrap=True, markup=False, highlight=False)
    if problems:
        raise UnsupportedModuleError(problems[0].problem)


@app.command("verify")
def verify_command(
    directory: Annotated[Path, typer.Argument(help="An exported directory, or a result of slamp compress or demo.")],
    samples: Annotated[
        Path | None, typer.Argument(help="npz with spikes; default: the golden input beside the files.")
    ] = None,
    witness: Annotated[str | None, typer.Option(help="Replay by a foreign simulator, such as spikingjelly.")] = None,
    as_json: Json = False,
) -> None:
    """Replay an artifact and compare every spike with the graph it was written from.

    For a result of slamp compress or slamp demo every target in it is verified, and --json keys them by name.
    """
    console = chosen_console(as_json)
    raster = None if samples is None else load_samples(samples)
    runner = None if witness is None else find_witness(witness)
    found = {}
    artifacts = _artifacts(directory)
    for artifact in artifacts:
        result = verify_directory(
            artifact,
            raster,
            runner=None if runner is None else runner.replay,
            runner_name=witness or "",
            progress=_progress(as_json),
            record=runner is None,  # the certificate is the replay of the target's own runtime
        )
        found[str(artifact)] = result.to_json()
    if not as_json:
        print_verdicts(console, found, samples="golden" if raster is None else "")
        print_forms(console, artifacts)
    elif artifacts == [directory]:
        print_json(found[str(directory)])
    else:
        print_json({artifact.name: found[str(artifact)] for artifact in artifacts})
    if not all(result["equivalent"] for result in found.values()):
        raise typer.Exit(1)


@app.command("report")
def report_command(
    directory: Annotated[Path, typer.Argument(help="The result of slamp compress or slamp demo.")],
    as_json: Json = False,
) -> None:
    """Print the tables of an earlier run again and say where its page lies."""
    path = directory / RUN
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); name a result of slamp compress") from error
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise ArtifactError(f"{path}: is no {FORMAT} file; name a result of slamp compress of this version")
    if as_json:
        print_json(summary)
        return
    console = chosen_console(as_json)
    print_run(console, summary)
    console.print(_where(directory), soft_wrap=True, markup=False)


@app.command("profiles")
def profiles_command(
    profile: Annotated[str | None, typer.Argument(help="Name of a chip, or a TOML file of your own.")] = None,
    sources: Annotated[bool, typer.Option("--sources", help="Say where every number comes from.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a profile, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """List the hardware profiles, or show every number of one."""
    if schema:
        print_json(profile_schema())
        return
    console = chosen_console(as_json)
    if profile is None:
        found = [load_profile(name) for name in installed_profiles()]
        if as_json:
            print_json([entry.model_dump(mode="json", exclude_defaults=True) for entry in found])
        else:
            console.print(profiles_table(found))
        return
    chip = load_profile(profile)
    if as_json:
        print_json(chip.model_dump(mode="json", exclude_defaults=True))
        return
    console.print(profile_table(chip, sources=sources))
    for line in profile_lines(chip):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command("usage")
def usage_command(
    directory: Annotated[Path, typer.Argument(help="An exported directory, or a result of slamp compress or demo.")],
    samples: Annotated[
        Path | None, typer.Argument(help="npz with spikes; default: the golden input beside the files.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Name of a chip, or a TOML file of your own.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Compare all chips, one row each.")] = False,
    as_json: Json = False,
) -> None:
    """Say what an exported network takes of a chip, resource by resource, or how it fits on every chip."""
    if (profile is None) != everything:
        raise RunFileError("usage: give either --profile NAME or --all")
    artifact = open_artifact(_artifacts(directory)[0])
    graph = artifact.graph()
    raster = golden_input(artifact) if samples is None else load_samples(samples)
    activity = calibrate(graph, raster, fold=False)
    names = list(installed_profiles()) if profile is None else [profile]
    found = [usage(graph, load_profile(name), activity) for name in names]
    if as_json:
        print_json([entry.to_json() for entry in found] if everything else found[0].to_json())
        return
    console = chosen_console(as_json)
    if everything:
        console.print(comparison_table(found))
        return
    console.print(usage_table(found[0], width=console.width))
    if found[0].mapping is not None:
        console.print(cores_table(found[0].mapping, width=console.width))
    console.print(encodings_table(found[0]))
    for text in usage_lines(found[0]):
        console.print(text, soft_wrap=True, markup=False, highlight=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed and what each exporter can do here."""
    found = health()
    if as_json:
        print_json(found)
        return
    console = chosen_console(as_json)
    for title, entries in found.items():
        console.print(f"[bold]{title}[/]")
        for name, state in entries.items():
            console.print(f"  {name:<16} {state}", soft_wrap=True, highlight=False, markup=False)


@witness_app.command("install")
def witness_install(name: Annotated[str, typer.Argument(help="Such as spikingjelly.")]) -> None:
    """Create the environment of a foreign simulator (downloads its packages with pip)."""
    console = chosen_console(False)
    python = find_witness(name).install()
    console.print(f"{name}: ready, {python}", soft_wrap=True)


def _compress(plan: RunFile, *, resume: bool, progress: bool) -> Run:
    net = load_network(plan.network, plan.weights)
    raster = load_samples(plan.samples)
    if plan.held_out is None:
        if raster.batch < 2:
            raise RunFileError(f"{plan.samples}: holds {raster.batch} samples; at least 2 are needed, or --held-out")
        held = range(HELD_OUT_EVERY - 1, raster.batch, HELD_OUT_EVERY) or range(raster.batch - 1, raster.batch)
        held_out = raster.select(held)
        raster = raster.select([index for index in range(raster.batch) if index not in held])
    else:
        held_out = load_samples(plan.held_out)
    return compress(
        net,
        raster,
        held_out=held_out,
        budget=Budget(**plan.budget, profile=None, energy_set=""),
        profile=plan.profile,
        directory=plan.out,
        method=plan.method,
        to=plan.to,
        train=None if plan.train is None else load_function(plan.train, role="train"),
        metric=None if plan.metric is None else load_function(plan.metric, role="metric"),
        seed=plan.seed,
        schedule=plan.schedule,
        structured=plan.structured,
        balance=plan.balance,
        readout=plan.readout,
        options={target: {"strict": plan.strict} for target in plan.to} if not plan.strict else None,
        resume=resume,
        progress=progress,
    )


def _finish(run: Run, console: Console, as_json: bool) -> None:
    summary = run.summary()
    if as_json:
        print_json(summary)
    else:
        print_run(console, summary)
        console.print(_where(run.directory), soft_wrap=True, markup=False)
    if not all(found.equivalent for found in run.verifications.values()):
        raise typer.Exit(1)
    if run.problems:
        raise typer.Exit(2)


def _where(directory: Path) -> str:
    page = directory / HTML_NAME
    shown = f"{page}" if page.is_file() else "not written; pip install 'slamp[report]'"
    return f"result: {directory}   page: {shown}"


def _artifacts(directory: Path) -> list[Path]:
    """Return the directory itself, or the artifacts in it if it is a result of `slamp.compress`."""
    if (directory / MANIFEST).exists() or not (directory / RUN).is_file():
        return [directory]
    found = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))
    if not found:
        raise ArtifactError(f"{directory}: a result of slamp compress without an artifact in it; run it again")
    return found


def _features(text: str | None) -> tuple[int, ...]:
    if text is None:
        raise RunFileError("check-module: give SAMPLES or --features, such as --features 1,28,28")
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RunFileError(f"features: {text!r}; allowed are integers with commas, such as 1,28,28") from error
    if any(size < 1 for size in shape):
        raise RunFileError(f"features: {text!r}; allowed are positive integers")
    return shape


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """On Ctrl-C say how to go on, and end with the shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt as error:
        text = f"interrupted; nothing was written to {out}; the same command with --resume goes on"
        Console(stderr=True).print(text, style="yellow", soft_wrap=True, markup=False)
        raise typer.Exit(130) from error


def _progress(as_json: bool) -> bool:
    return not as_json and sys.stderr.isatty() and sys.stdout.isatty()
