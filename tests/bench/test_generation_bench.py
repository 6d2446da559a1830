"""The generation benchmark's judgement of results that differ: equal in fp64 is a tie, anything else an error."""

from __future__ import annotations

import generation
import pytest


def runs_that_differ_in_the_second() -> dict[str, list[dict]]:
    return {"plain": [{"found": [[5], [6], [7]]}], "aurora": [{"found": [[5], [8], [7]]}]}


def test_what_differs_in_fp32_alone_is_a_tie(monkeypatch):
    asked = []

    def equal(script, options, threads):
        asked.append(options)
        return {"found": [[6]]}

    monkeypatch.setattr(generation, "fresh_process", equal)
    assert generation.settled("captions", runs_that_differ_in_the_second(), ["--quick"], 1) == [1]
    assert asked == [
        ["--measure", name, "--quick", "--kind", "captions", "--again", "1"] for name in ("plain", "aurora")
    ]


def test_what_differs_in_fp64_too_is_an_error(monkeypatch):
    monkeypatch.setattr(
        generation, "fresh_process", lambda script, options, threads: {"found": [[options[1]]]}
    )
    with pytest.raises(SystemExit, match=r"\[1\] differ .* in fp64 too"):
        generation.settled("captions", runs_that_differ_in_the_second(), [], 1)
