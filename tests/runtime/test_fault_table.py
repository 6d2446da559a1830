"""docs/faults.md and docs/monitoring.md name tests that there are, and have one for every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def rows(document: Path) -> list[list[str]]:
    """Those of the table whose last column is of tests."""
    lines = document.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.endswith("tests, in `tests/` |")) + 2
    end = next((n for n, line in enumerate(lines[first:], first) if not line.startswith("| ")), len(lines))
    return [line.strip("| ").split(" | ") for line in lines[first:end]]


@pytest.mark.parametrize(("document", "least"), [("faults.md", 15), ("monitoring.md", 6)])
def test_every_row_has_a_test_that_there_is(document: str, least: int, repository: Path) -> None:
    found = rows(repository / "docs" / document)
    assert len(found) >= least
    for row in found:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[-1])
        assert named, row[0]
        for file, test in named:
            text = (repository / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", text, re.MULTILINE), f"{file}::{test}"
