"""Which line of a TOML file a key stands in: parsers of the standard library do not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEADER = re.compile(r"^\s*\[+\s*([^\]]+?)\s*\]+\s*(#.*)?$")
KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def line_of(text: str, keys: Sequence[str]) -> int:
    """Return the 1-based line of the longest leading part of ``keys`` that a table header or a key spells out.

    Entries inside an inline table are found at the line of the table. Without any match it is line 1.
    """
    best, found = 0, 1
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if header := HEADER.match(line):
            table = _parts(header[1])
            spelled = table
        elif key := KEY.match(line):
            spelled = table + _parts(key[1])
        else:
            continue
        depth = len(spelled)
        if depth > best and spelled == list(keys[:depth]):
            best, found = depth, number
    return found


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
