"""The support table of the README is what networks do."""

from __future__ import annotations

import difflib

import pytest

import support_table


@pytest.mark.slow
def test_the_readme_holds_the_table_that_networks_give() -> None:
    (block,) = support_table.BLOCK.findall(support_table.README.read_text())
    found = support_table.table()
    lines = "\n".join(difflib.unified_diff(block.splitlines(), found.splitlines(), "README.md", "networks", n=0))
    assert not lines, f"the table in README.md is not what the networks do; run: {support_table.COMMAND}\n{lines}"
