"""Progress on anything that takes longer than two seconds, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def ticker(title: str, total: int | None, *, shown: bool, unit: str = "samples") -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar by a number of units; without ``shown`` it does nothing.

    Args:
        title: What is going on.
        total: Units until done, or None if unknown.
        shown: Whether to draw at all; nothing is drawn where standard error is not a terminal.
        unit: Name of the units.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda count: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}"))
    with Progress(*columns, TextColumn(unit), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        yield advance
