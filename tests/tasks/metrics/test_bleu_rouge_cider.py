"""BLEU, ROUGE-L and CIDEr-D equal pycocoevalcap's and published scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.bleu import bleu, count_ngrams
from aurora_ds.tasks.metrics.cider import CiderD, DocumentFrequency, cider_d
from aurora_ds.tasks.metrics.ptb_tokenizer import tokenize
from aurora_ds.tasks.metrics.rouge import longest_common_subsequence, rouge_l

REFERENCES = ["a dog runs on grass", "the dog runs", "a brown dog is running on green grass"]


def scores_of(
    captions: list[str], references: list[list[str]]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Corpus and single scores of raw captions."""
    candidates = [tokenize(text) for text in captions]
    texts = [[tokenize(text) for text in each] for each in references]
    words, reference_words = (
        [text.split() for text in candidates],
        [[text.split() for text in each] for each in texts],
    )
    bleus = bleu(words, reference_words)
    single = {f"Bleu_{n + 1}": bleus.items[:, n] for n in range(4)}
    single |= {"ROUGE_L": rouge_l(candidates, texts), "CIDEr": cider_d(words, reference_words)}
    corpus = {f"Bleu_{n + 1}": float(bleus.corpus[n]) for n in range(4)}
    return corpus | {name: float(single[name].mean()) for name in ("ROUGE_L", "CIDEr")}, single


@pytest.mark.parametrize("which", ["good", "bad"])
def test_clipscore_example(repository: Path, which: str):
    known = json.loads((repository / "tests/goldens/metrics/clipscore_example.json").read_text())
    images = sorted(known["references"])
    corpus, single = scores_of(
        [known[which]["captions"][each] for each in images], [known["references"][each] for each in images]
    )
    published = known[which]["published"]
    for name, score in corpus.items():
        assert score == pytest.approx(known[which]["pycocoevalcap"][name], abs=1e-12)
        there = {"ROUGE_L": "ROUGE", "CIDEr": "CIDER"}.get(name, name.upper().replace("_", "-"))
        assert abs(score - published[there]) <= 0.5e-4
    for row, image in enumerate(images):
        for name, column in single.items():
            assert column[row] == pytest.approx(known[which]["per_item"][image][name], abs=0.6e-6)


def test_nlg_eval_example(repository: Path):
    known = json.loads((repository / "tests/goldens/metrics/nlg_eval_example.json").read_text())
    corpus, _ = scores_of(known["candidates"], known["references"])
    for name, score in corpus.items():
        assert score == pytest.approx(known["published"][name], abs=0.6e-6)


def test_no_match_scores_as_the_original_does():
    (one,) = bleu([["cat"]], [[["dog"]]]).items
    # 1-grams: 1e-15 of 1; longer: 1e-15 of 1e-9
    assert one == pytest.approx(
        [1e-15 ** (1 / n) * 1e-6 ** ((n - 1) / n) for n in (1, 2, 3, 4)], rel=1e-6, abs=0
    )
    assert rouge_l(["cat"], [["dog"]])[0] == 0.0


def test_a_caption_without_words_scores_nothing():
    assert bleu([[]], [[["dog"]]]).items.max() == 0.0
    assert rouge_l([""], [["a dog"]])[0] == 0.0
    assert cider_d([[], ["cat"]], [[["dog"]], [["cat"]]])[0] == 0.0


def test_closest_reference_length_and_of_two_the_shorter():
    assert bleu([["a"] * 5], [[["b"] * 3, ["b"] * 7, ["b"] * 9]]).lengths == (5, 3)


def test_a_match_counts_at_most_as_often_as_in_one_reference():
    result = bleu([["the"] * 7], [[["the", "cat", "the"], ["the"]]])
    assert result.matches[0] == 2 and result.guesses.tolist() == [7, 6, 5, 4]


def test_short_captions_are_penalised():
    long = ["a", "b", "c", "d", "e", "f"]
    assert bleu([long[:3]], [[long]]).corpus[0] == pytest.approx(np.exp(-1), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(some.lists(some.sampled_from("abc"), max_size=9), some.lists(some.sampled_from("abc"), max_size=9))
def test_common_subsequence_equals_the_table(first: list[str], second: list[str]):
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(first, second) == table[-1, -1]


def test_ngrams_of_a_short_text():
    assert count_ngrams(["a", "b", "a"]) == {
        ("a",): 2, ("b",): 1, ("a", "b"): 1, ("b", "a"): 1, ("a", "b", "a"): 1,
    }  # fmt: skip


def test_cider_of_one_image_is_zero_because_every_ngram_is_in_every_document():
    assert cider_d([["a", "dog"]], [[["a", "dog"]]])[0] == 0.0


def test_cider_falls_with_the_difference_in_length():
    references = [[text.split() for text in REFERENCES], [["two", "cats", "sleep"]]]
    scorer = CiderD(DocumentFrequency.of(references))
    prepared = scorer.prepare(references[0])
    text = REFERENCES[0].split()
    assert scorer.score(text, prepared) > scorer.score(text * 3, prepared) > 0


def test_a_frequency_table_gives_the_scores_of_the_corpus_it_was_counted_on(tmp_path: Path):
    references = [[text.split() for text in REFERENCES], [["two", "cats", "sleep"]], [["a", "red", "bus"]]]
    candidates = [["a", "dog", "runs"], ["cats", "sleep"], ["a", "bus"]]
    DocumentFrequency.of(references).save(tmp_path / "frequency.json")
    scorer = CiderD(DocumentFrequency.load(tmp_path / "frequency.json"))
    prepared = [scorer.prepare(each) for each in references]
    rewards = scorer.rewards([[each, each[:1]] for each in candidates], prepared)
    assert rewards.shape == (3, 2) and rewards.dtype == np.float32
    assert rewards[:, 0] == pytest.approx(cider_d(candidates, references), rel=1e-6)
    assert (rewards[:, 1] < rewards[:, 0]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "no document-frequency table"),
        ("[]", "documents or counts are missing"),
        ('{"documents": 0, "counts": {}}', "documents or counts are missing"),
        ('{"documents": 2, "counts": {"a dog": 3}}', "count of 'a dog' is 3"),
    ],
)
def test_another_frequency_file_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "frequency.json").write_text(content)
    with pytest.raises(AuroraError, match=message):
        DocumentFrequency.load(tmp_path / "frequency.json")


def test_ngrams_of_one_document_can_be_left_out() -> None:
    texts = [[["a", "dog", "runs"]], [["a", "cat", "runs"], ["a", "cat"]], [["no", "dog"]]]
    whole = DocumentFrequency.of(texts)
    small = whole.compact()
    assert set(small.counts) == {("a",), ("dog",), ("runs",)} and len(whole.counts) > 10
    for candidate in (["a", "dog", "runs"], ["a", "cat", "sits"]):
        scores = [CiderD(each).score(candidate, CiderD(each).prepare(texts[1])) for each in (whole, small)]
        assert scores[0] == scores[1]
