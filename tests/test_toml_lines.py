from __future__ import annotations

import pytest

from slamp.toml_lines import line_of

TEXT = """\
# a comment
top = 1

[limits]  # of the chip
cores = { value = 3,
          unit = "cores" }
"quoted key" = 2

[energy.'my set']
sop.value = 3
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["top"], 2),
        (["limits"], 4),
        (["limits", "cores"], 5),
        (["limits", "cores", "unit"], 5),
        (["limits", "quoted key"], 7),
        (["limits", "missing"], 4),
        (["energy", "my set", "sop", "value"], 10),
        (["energy", "my set", "sop", "unit"], 9),
        (["nothing"], 1),
        ([], 1),
    ],
)
def test_the_line_of_a_key(keys: list[str], line: int) -> None:
    assert line_of(TEXT, keys) == line
