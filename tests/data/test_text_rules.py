"""pre_caption and pre_question are the published ones."""

from __future__ import annotations

import json
from pathlib import Path

from aurora_ds.data.text import pre_caption, pre_question

RULES = {"pre_caption": pre_caption, "pre_question": pre_question}


def test_recorded_texts_are_equal(goldens: Path) -> None:
    vectors = json.loads((goldens / "blip/text_norm/vectors.json").read_text())["vectors"]
    assert len(vectors) >= 200
    wrong = [v for v in vectors if RULES[v["fn"]](v["in"], v["max_words"]) != v["out"]]
    assert not wrong


def test_caption_loses_case_and_punctuation_and_keeps_first_words() -> None:
    assert pre_caption("  Two DOGS (one black); run!!  Fast...\n", 30) == "two dogs one black run fast"
    assert pre_caption("one two three four", 3) == "one two three"
    assert pre_caption("...", 30) == ""


def test_a_single_tab_inside_a_caption_stays() -> None:
    assert pre_caption("a\tb \t c", 30) == "a\tb c"


def test_question_has_punctuation_deleted_and_keeps_inner_spaces() -> None:
    assert pre_question("Is it  12:30 p.m.?  ", 50) == "is it  1230 pm?"
