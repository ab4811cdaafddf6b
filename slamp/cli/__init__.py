"""The command line. Exit codes: 0 done and equivalent, 1 not equivalent, 2 bad input, unsupported or infeasible.

A crash, such as an error raised by the user's own training function, ends with its traceback and exit code 2, because
1 is kept for artifacts that were compared and differ. An interrupted run ends with 130.
"""

from __future__ import annotations

import sys
import traceback

from rich.console import Console
from rich.markup import escape

from slamp.errors import NotEquivalentError, SlampError


def main() -> None:
    """Run the command line and exit."""
    from slamp.cli.app import app  # imports torch and norse, so only when it is needed

    try:
        app()
    except NotEquivalentError as error:
        _say(error)
        sys.exit(1)
    except SlampError as error:
        _say(error)
        sys.exit(2)
    except Exception:  # noqa: BLE001  # the process boundary: shown in full, only the exit code is ours to set
        traceback.print_exc()
        sys.exit(2)


def _say(error: SlampError) -> None:
    line = " ".join(str(error).split())
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(line)}", highlight=False, emoji=False)
