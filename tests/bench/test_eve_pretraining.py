"""The benchmark of EVE's pre-training: its measures by hand, and in short what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


class Reader:
    """Guesses word w, of 6, with a logit that is the first pixel of the picture times w."""

    def guessed(self, images: Tensor, ids: Tensor, mask: Tensor, places: Tensor) -> tuple[Tensor, None]:
        assert (ids.gather(1, places) == 5).all(), "what is guessed is hidden"
        assert (ids == 5).sum() == places.numel(), "nothing else is"
        return images[:, 0, 0, :1, None] * torch.arange(6.0).expand(*places.shape, 6), None


def test_each_word_of_a_caption_counts_once() -> None:
    from pretraining_judge import fit

    task = SimpleNamespace(model=Reader(), mask_id=5, text=SimpleNamespace(pad_id=0))
    images = torch.tensor([0.0, 1.0, -1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    scores = fit(task, images, torch.tensor([[1, 4, 4, 3, 2], [1, 3, 2, 0, 0]]))
    for picture, pixel in enumerate((0.0, 1.0, -1.0)):
        likely = (pixel * torch.arange(6.0)).log_softmax(0)
        assert scores[picture, 0] == pytest.approx(float(2 * likely[4] + likely[3]), rel=1e-5)
        assert scores[picture, 1] == pytest.approx(float(likely[3]), rel=1e-5)


def test_recall_counts_the_best() -> None:
    from pretraining_judge import recall

    scores = torch.tensor([[3.0, 1, 2], [3, 2, 1], [2, 3, 1]])
    assert [recall(scores, at) for at in (1, 2, 3)] == pytest.approx([100 / 3, 200 / 3, 100])


def test_questions_are_put_as_captions() -> None:
    from pretraining_judge import CLOZE, as_caption

    from aurora_ds.quickstart.questions import _FORMS

    assert set(CLOZE) == set(_FORMS)
    assert as_caption("colour", "what colour is the ball") == "a photo of a ? ball and a [MASK] [MASK]"
    assert as_caption("exists", "is there an orange cup") == "a photo of an orange cup ?"
    with pytest.raises(ValueError, match="of which colour"):
        as_caption("colour", "the ball is of which colour")


class Echo:
    """Its states are the ids that it reads; before them, those of two image tokens."""

    def image_tokens(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :1, None].expand(-1, 2, 1)

    def backbone(self, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        states = torch.cat([image_tokens, input_ids[..., None].float()], 1)
        return SimpleNamespace(states=states + 10 * image_tokens[:, :1], vision_tokens=2)


def test_the_probe_reads_the_hidden_answer() -> None:
    from pretraining_judge import Asked, features

    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    ids = torch.tensor([[2, 4, 7, 3], [2, 8, 9, 3], [2, 8, 5, 3]])
    places, owners = torch.tensor([1, 2, 2]), torch.tensor([0, 1, 0])
    asked = Asked(images, ids, torch.ones_like(ids), places, owners, torch.zeros(3), ["colour"] * 3)
    assert features(SimpleNamespace(model=Echo()), asked).flatten().tolist() == [4, 19, 5]


def test_the_likeliest_word_that_answers_counts() -> None:
    from pretraining_judge import Asked, zero_shot

    model = SimpleNamespace(
        mlm_head=lambda states, _: states,
        backbone=SimpleNamespace(word_embedding=SimpleNamespace(weight=None)),
    )
    likely = torch.tensor([[9.0, 1, 3, 2.5, 0], [9.0, 1, 3, 1, 0], [9.0, 1, 3, 1, 0], [9.0, 0, 0, 0, 0]])
    said = {"thing": {7: torch.tensor([2]), 8: torch.tensor([3, 1])}, "place": {5: torch.tensor([4])}}
    truths, none = torch.tensor([7, 8, 7, 0]), torch.zeros(0)
    asked = Asked(none, none, none, none, none, truths, ["thing", "thing", "place", "exists"])
    found = zero_shot(SimpleNamespace(model=model), likely, asked, said)
    assert found["zero-shot, thing"] == 50 and found["zero-shot, place"] == 0
    assert found["zero-shot, all"] == pytest.approx(100 / 3)


def test_the_record_shows_every_seed_above_the_untrained_trunk() -> None:
    """By so many points: the least of the seeds with pre-training over the best without."""
    from measurement import RESULTS

    runs = json.loads((RESULTS / "eve_pretraining.json").read_text())["runs"]
    margins = {
        "retrieval": {"image R@1": 20, "image R@10": 50, "text R@10": 50},
        "questions": {"zero-shot, all": 15, "600 pictures, all": 3, "600 pictures, colour": 15},
    }
    assert len(runs) == 3 and all(each["processor_seconds"] <= 360 for each in runs)
    for of, names in margins.items():
        for name, margin in names.items():
            least, most = (
                pick(each[way][of][name] for each in runs)
                for pick, way in ((min, "pre-trained"), (max, "untrained"))
            )
            assert least >= most + margin, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_pre_training_lifts_the_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small part of the benchmark's steps: settings are told apart by then, colours begin to be."""
    import eve_pretraining
    import pretraining_judge

    monkeypatch.setattr(eve_pretraining, "PICTURES", 800)
    monkeypatch.setattr(pretraining_judge, "ASKED", {"train": 300, "test": 150})
    eve_pretraining.prepare(tmp_path)
    found = eve_pretraining.run(tmp_path, 0, 250)
    assert found["metrics"]["text_accuracy"] > 35
    ranks, answers = (
        {way: found[way][of] for way in found if "trained" in way} for of in ("retrieval", "questions")
    )
    assert ranks["pre-trained"]["image R@10"] > ranks["untrained"]["image R@10"] + 8
    assert answers["pre-trained"]["zero-shot, place"] > answers["untrained"]["zero-shot, place"] + 30
