"""The benchmark of EVE's pre-training: its measures by hand, and in short what it shows."""

from __future__ import annotations

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
    from eve_pretraining import fit

    task = SimpleNamespace(model=Reader(), mask_id=5, text=SimpleNamespace(pad_id=0))
    images = torch.tensor([0.0, 1.0, -1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    scores = fit(task, images, torch.tensor([[1, 4, 4, 3, 2], [1, 3, 2, 0, 0]]))
    for picture, pixel in enumerate((0.0, 1.0, -1.0)):
        likely = (pixel * torch.arange(6.0)).log_softmax(0)
        assert scores[picture, 0] == pytest.approx(float(2 * likely[4] + likely[3]), rel=1e-5)
        assert scores[picture, 1] == pytest.approx(float(likely[3]), rel=1e-5)


def test_recall_counts_the_best() -> None:
    from eve_pretraining import recall

    scores = torch.tensor([[3.0, 1, 2], [3, 2, 1], [2, 3, 1]])
    assert [recall(scores, at) for at in (1, 2, 3)] == pytest.approx([100 / 3, 200 / 3, 100])


@pytest.mark.slow
def test_a_short_pre_training_lifts_the_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the benchmark's steps: settings are told apart by then, colours begin to be."""
    import eve_pretraining

    monkeypatch.setattr(eve_pretraining, "PICTURES", 800)
    eve_pretraining.prepare(tmp_path)
    found = eve_pretraining.run(tmp_path, 0, 250)
    untrained, trained = found["untrained"], found["pre-trained"]
    assert found["metrics"]["text_accuracy"] > 35
    assert trained["image R@10"] > untrained["image R@10"] + 8
