"""The Python tokenizer gives the words of the Java PTBTokenizer that COCO's caption evaluation runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.tasks.metrics.ptb_tokenizer import tokenize, tokenize_all, tokens


def test_every_recorded_line_has_the_words_of_the_java_program(repository: Path):
    recorded = json.loads((repository / "tests/goldens/metrics/ptb_lines.json").read_text(encoding="utf-8"))
    found = tokenize_all([line for line, _ in recorded])
    assert [[line, words] for (line, _), words in zip(recorded, found, strict=True)] == recorded


def test_all_captions_of_the_251_coco_images_have_the_words_of_the_java_program(shared: Path):
    folder = shared / "data/metrics/coco_fakecap"
    recorded = json.loads((folder / "subset251_per_image.json").read_text())
    captions: dict[str, list[str]] = {}
    for each in json.loads((folder / "subset251_gt.json").read_text())["annotations"]:
        captions.setdefault(str(each["image_id"]), []).append(each["caption"])
    assert {image: tokenize_all(texts) for image, texts in captions.items()} == recorded["ptb_refs"]
    results = json.loads((folder / "subset251_results.json").read_text())
    assert {str(each["image_id"]): [tokenize(each["caption"])] for each in results} == recorded["ptb_hyp"]


def test_all_captions_of_500_karpathy_images_have_the_words_of_the_java_program(shared: Path):
    source = shared / "data/annotations/karpathy_blip/coco_karpathy_test.json"
    oracle = shared / "data/metrics/coco_karpathy_loo500/ptb_tokenized.json"
    if not source.is_file() or not oracle.is_file():
        pytest.skip(f"{source.name} or {oracle.parent.name}/{oracle.name} is not in this reference folder")
    words = json.dumps(json.loads(oracle.read_text()))
    for entry in json.loads(source.read_text())[:500]:
        for caption in entry["caption"]:
            assert json.dumps(tokenize(caption)) in words, caption


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ""),
        ("   ", ""),
        ("...", ""),
        ("A dog.", "a dog"),
        ("a dog\nand a cat", "a dog and a cat"),
        ("(a)", "-lrb- a -rrb-"),
        ("what?!", "what ?!"),
        ("can't", "ca n't"),
    ],
)
def test_words_of_a_line(line: str, words: str):
    assert tokenize(line) == words


def test_punctuation_is_a_token_but_no_word():
    assert tokens('a "dog", she said.') == ["a", "''", "dog", "''", ",", "she", "said", "."]


def test_a_stop_after_a_single_letter_depends_on_the_next_caption():
    assert tokenize_all(["plan B.", "The end", "plan B.", "the end"]) == [
        "plan b",
        "the end",
        "plan b.",
        "the end",
    ]


def test_tokenizing_terminates_and_drops_nothing_but_known_characters():
    text = "".join(chr(code) for code in range(33, 0x2FF) if code != 0xAD)
    joined = "".join(tokens(" ".join(text)))
    assert all(sign.lower() in joined for sign in text if sign.isalnum() and sign not in "¼½¾")
