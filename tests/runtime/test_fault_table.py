"""docs/faults.md names tests that there are, and has a test for every fault."""

from __future__ import annotations

import re
from pathlib import Path


def rows(repository: Path) -> list[list[str]]:
    lines = (repository / "docs" / "faults.md").read_text(encoding="utf-8").partition("\n## ")[0].splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return table[1:]


def test_every_fault_has_a_test_that_there_is(repository: Path) -> None:
    found = rows(repository)
    assert len(found) > 15
    for fault, _, tests in found:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
        assert named, fault
        for file, test in named:
            text = (repository / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", text, re.MULTILINE), f"{file}::{test}"
