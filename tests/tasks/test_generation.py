"""Written texts: the same as the plain published procedure writes, whatever the batch and the cache."""

from __future__ import annotations

import pytest
import torch
from plain_generation import beam_search, next_logits
from tiny_retrieval import tiny_backbone

from aurora_ds.backbones.models import new_model
from aurora_ds.config import GenerationConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.generation import Context, nucleus, write

END, PAD, BEGIN = 2, 0, 58


def decoder_of(seed: int, end_bias: float = 1.0):
    """A random decoder whose texts end now and then."""
    torch.manual_seed(seed)
    model = new_model(tiny_backbone(head="caption")).eval().text_decoder
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        model.cls.predictions.bias[END] += end_bias
    return model


def situation(seed: int, rows: int = 5):
    """(decoder, contexts (rows, 4, D), mask with padding in one row)."""
    decoder, context, mask = (
        decoder_of(seed),
        torch.randn(rows, 4, 32),
        torch.ones(rows, 4, dtype=torch.int64),
    )
    mask[1, 2:] = 0
    return decoder, context, mask


def written(decoder, context, mask, prompt=(BEGIN,), keys=None, seed=0, **settings):
    with torch.no_grad():
        about = Context(decoder.context_kv(context), mask)
    options = GenerationConfig(**{"max_length": 10, "min_length": 1} | settings)
    return write(decoder, about, torch.tensor(prompt), options, END, PAD, keys, seed)


def texts_of(ids: torch.Tensor) -> list[list[int]]:
    """Up to the end token, without it."""
    rows = [row.tolist() for row in ids]
    return [row[: row.index(END)] if END in row else row for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_length": 6},
        {"repetition_penalty": 1.5},
        {"beams": 1},
        {"beams": 5, "max_length": 5},
        {"beams": 2, "min_length": 3, "repetition_penalty": 0.8, "max_length": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", [(BEGIN,), (BEGIN, 7, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_beam_search_is_the_published_one(settings, prompt, seed):
    decoder, context, mask = situation(seed)
    found = written(decoder, context, mask, prompt, **settings)
    options = GenerationConfig(**{"max_length": 10, "min_length": 1} | settings)
    expected = beam_search(decoder, context, mask, torch.tensor([prompt]), options, END)
    assert texts_of(found.ids) == [text for text, _ in expected]
    torch.testing.assert_close(found.scores, torch.tensor([s for _, s in expected]), rtol=1e-5, atol=1e-5)


def test_the_cases_above_end_early_late_and_never():
    """Otherwise they would prove little."""
    lengths = {len(t) for seed in (0, 1) for t in texts_of(written(*situation(seed)).ids)}
    assert 10 in lengths and len(lengths) >= 3, lengths


@pytest.mark.parametrize("method", ["beam", "greedy", "nucleus"])
def test_a_text_does_not_depend_on_the_others_of_its_batch(method):
    decoder, context, mask = situation(3, rows=6)
    keys = torch.tensor([11, 5, 7, 100, 3, 8])
    together = written(decoder, context, mask, method=method, keys=keys)
    for rows in ([4], [5, 1, 0]):
        alone = written(decoder, context[rows], mask[rows], method=method, keys=keys[rows])
        assert texts_of(alone.ids) == [texts_of(together.ids)[row] for row in rows]
        torch.testing.assert_close(alone.scores, together.scores[rows])


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_takes_the_likeliest_token_of_the_whole_text(penalty):
    decoder, context, mask = situation(4)
    found = written(decoder, context, mask, method="greedy", min_length=4, repetition_penalty=penalty)
    for row, text in enumerate(found.ids.tolist()):
        ids, total = [BEGIN], 0.0
        while len(ids) < 10 and END not in ids:
            logits = next_logits(decoder, torch.tensor([ids]), context[row : row + 1], mask[row : row + 1])[0]
            plain = logits.log_softmax(0)
            for token in set(ids):
                logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            if len(ids) < 4:
                logits[END] = -torch.inf
            ids.append(int(logits.argmax()))
            total += plain[ids[-1]].item()
        assert text == ids + [PAD] * (len(text) - len(ids))
        assert found.scores[row].item() == pytest.approx(total / (len(ids) - (END in ids)), abs=1e-5)


def test_ends_and_padding():
    """The end token where a text ended, padding behind; none where the length was reached."""
    for seed in range(4):
        for method in ("beam", "greedy", "nucleus"):
            for row in written(*situation(seed), method=method).ids.tolist():
                if END in row:
                    assert set(row[row.index(END) + 1 :]) <= {PAD}
                else:
                    assert len(row) == 10


def test_least_length_counts_the_prompt():
    decoder, context, mask = situation(0)
    with torch.no_grad():
        decoder.cls.predictions.bias[END] += 50
    for least in (2, 5):
        for method in ("beam", "greedy", "nucleus"):
            ids = written(decoder, context, mask, (BEGIN, 7), method=method, min_length=least).ids
            assert {len(text) for text in texts_of(ids)} == {least}


# ---- nucleus


def test_nucleus_keeps_the_fewest_likeliest_tokens():
    scores = torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]).log()
    for top_p, top_k, kept in ((0.4, 0, 1), (0.6, 0, 2), (0.85, 0, 3), (1.0, 0, 5), (1.0, 2, 2)):
        probabilities = nucleus(scores, top_p, top_k)[0]
        assert probabilities.gt(0).tolist() == [True] * kept + [False] * (5 - kept)
    torch.testing.assert_close(nucleus(scores, 1.0)[0], scores[0].exp())


def test_nucleus_draws_by_seed_and_key():
    decoder, context, mask = situation(5)
    one, again, other = (
        written(decoder, context, mask, method="nucleus", top_p=1.0, seed=seed).ids for seed in (0, 0, 1)
    )
    assert texts_of(one) == texts_of(again) != texts_of(other)
    keys = torch.arange(5) + 100
    assert texts_of(written(decoder, context, mask, method="nucleus", top_p=1.0, keys=keys).ids) != texts_of(
        one
    )
    narrow = written(decoder, context, mask, method="nucleus", top_p=1e-6)
    assert torch.equal(narrow.ids, written(decoder, context, mask, method="greedy").ids)


def test_nucleus_draws_as_often_as_probable():
    decoder, context, _ = situation(6)
    context = context[:1].expand(4000, -1, -1)
    first = written(decoder, context, None, method="nucleus", top_p=1.0, top_k=0, max_length=2).ids[:, 1]
    expected = next_logits(decoder, torch.tensor([[BEGIN]]), context[:1], None)[0].softmax(0)
    share = torch.bincount(first, minlength=len(expected)) / 4000
    assert (share - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


# ---- refused


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ((BEGIN, 7, 8), {"max_length": 3}, "max_length=3 leaves no room after a prompt of 3 tokens"),
        ((BEGIN,), {"min_length": 11}, "min_length=11 exceeds generation.max_length=10"),
        ((BEGIN,), {"beams": 30}, "beams=30 is too many for a vocabulary of 60"),
        ((BEGIN,), {"max_length": 40, "min_length": 40}, "16 positions"),
    ],
)
def test_settings_that_cannot_be_met(prompt, settings, message):
    with pytest.raises(AuroraError, match=message):
        written(*situation(0), prompt, **settings)
