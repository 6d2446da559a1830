"""Phrases with boxes reach training: an image, its phrase and its box move together, the same on any number of workers
and ranks; what is wrong with a box is said."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import WordTokenizer
from PIL import Image
from written_shards import Written, clip_sample, pair_sample, write_shards

from aurora_ds.config import RunConfig
from aurora_ds.data.image import DEVIATION, MEAN
from aurora_ds.data.loader import annotated_loader, eval_image_loader
from aurora_ds.data.phrases import checked_phrase, image_size, phrase_texts
from aurora_ds.data.placement import SHARE, centred
from aurora_ds.errors import AuroraError

SIZE = (90, 60)
BOX = (20, 10, 30, 40)  # left, top, width, height of what is white in every image
DARK = (0 - MEAN[0]) / DEVIATION[0]
BRIGHT = (1 - MEAN[0]) / DEVIATION[0]


def sample(number: int, **record: object) -> Written:
    pixels = np.zeros((*SIZE[::-1], 3), np.uint8)
    left, top, width, height = BOX
    pixels[top : top + height, left : left + width] = 255
    Image.fromarray(pixels).save(png := BytesIO(), "PNG")
    phrases = [
        {"phrase": f"Left thing {number}", "box": list(BOX)},
        {"phrase": "upright cup", "box": [0, 0, 45, 60]},
    ]
    record = {"kind": "image", "width": SIZE[0], "height": SIZE[1], "phrases": phrases} | record
    return Written(f"image-{number}", record, [("png", png.getvalue())])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phrases")
    write_shards(
        folder,
        {"train": [[sample(n) for n in range(6)], [sample(n) for n in range(6, 12)]], "test": [[sample(0)]]},
    )
    return folder


def config(shards: Path, **data: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "task": "grounding",
            "data": {"shards": str(shards), "lanes": 4, "workers": 0, **data},
            "backbone": {"vision": {"image_size": 48}},
            "train": {"global_batch_size": 8},
        }
    )


class Words(WordTokenizer):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode(self, texts: list[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.texts += texts
        return super().encode(texts, max_tokens)


def batches(
    settings: RunConfig, ranks: int = 1, rank: int = 0, epoch: int = 0
) -> tuple[list[dict], list[str]]:
    tokenizer = Words()
    texts = phrase_texts(settings, tokenizer)
    return list(annotated_loader(settings, "phrases", texts, ranks, rank, epoch)), tokenizer.texts


def test_white_is_inside_the_box_of_every_training_sample(shards):
    seen, (made, texts) = set(), batches(config(shards, augment="train"))
    rows = [(image, box) for batch in made for image, box in zip(batch["image"], batch["box"], strict=True)]
    assert len(rows) == 24 and made[0]["box"].dtype == torch.int64
    for (image, box), text in zip(rows, texts, strict=True):
        x, y, width, height = (each * 48 for each in (box * SHARE).tolist())
        inside = [
            round(edge)
            for edge in (y - height / 2 + 2, y + height / 2 - 2, x - width / 2 + 2, x + width / 2 - 2)
        ]
        if "thing" in text:
            assert image[0, inside[0] : inside[1], inside[2] : inside[3]].min() > 0.5
            seen.add(text.split()[0])
        else:
            assert text == "upright cup"
    assert seen == {"left", "right"}, "some are mirrored"


def test_evaluation_and_training_without_augmentation_see_the_same(shards):
    plain, _ = batches(config(shards, augment="none"))
    (judged,) = list(eval_image_loader(config(shards), "test", None, 1, 0, 4))
    assert torch.equal(judged["image"][0], plain[0]["image"][0])
    assert not judged["image"][0, :, :8].any(), "padded above, and below"
    assert judged["image"][0, 0, 8 + 5 + 2, 10 + 2] == pytest.approx(BRIGHT, abs=1e-4)
    placement = centred(*SIZE, 48)
    left, top, width, height = BOX
    x0, y0, x1, y1 = placement.into((left, top, left + width, top + height))
    boxes = {tuple((row * SHARE).tolist()) for batch in plain for row in batch["box"]}
    assert any(
        row == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), abs=1e-7) for row in boxes
    )
    assert len(boxes) == 2


def test_samples_do_not_depend_on_workers_or_ranks(shards):
    expected, texts = batches(config(shards), epoch=1)
    with_workers, _ = batches(config(shards, workers=2), epoch=1)
    for one, other in zip(expected, with_workers, strict=True):
        assert all(
            torch.equal(one[name], other[name]) for name in ("image", "input_ids", "box", "sample_index")
        )
    halves = [batches(config(shards), 2, rank, epoch=1)[0] for rank in (0, 1)]
    for whole, *parts in zip(expected, *halves, strict=True):
        for name in ("image", "box", "sample_index"):
            assert torch.equal(torch.stack([part[name] for part in parts], dim=1).flatten(0, 1), whole[name])
    assert not torch.equal(expected[0]["box"], batches(config(shards), epoch=0)[0][0]["box"])


def test_blank_images_keep_their_boxes(shards):
    (seen, _), (blank, _) = batches(config(shards)), batches(config(shards, media="blank"))
    assert not any(batch["image"].any() for batch in blank)
    assert all(torch.equal(one["box"], other["box"]) for one, other in zip(seen, blank, strict=True))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"phrase": "a dog"}, "'a dog' of sample key has no box"),
        ({"phrase": "a dog", "box": [1, 2, 3]}, r"has \[1, 2, 3\] as its box"),
        ({"phrase": "a dog", "box": [1, 2, "3", 4]}, "as its box"),
        ({"phrase": "a dog", "box": [1, 2, float("nan"), 4]}, "as its box"),
        ({"phrase": "a dog", "box": [80, 10, 20, 20]}, r"does not lie in its image of 90 x 60"),
        ({"phrase": "a dog", "box": [-5, 10, 20, 20]}, "does not lie in its image"),
        ({"phrase": "a dog", "box": [100, 100, 20, 20]}, "does not lie in its image"),
        ({"phrase": "a dog", "box": [10, 10, 0, 20]}, "does not lie in its image"),
        ({"phrase": " ", "box": [1, 2, 3, 4]}, "phrase without words"),
        ({"box": [1, 2, 3, 4]}, "phrase without words"),
    ],
)
def test_wrong_boxes_and_phrases_are_told(entry, said):
    with pytest.raises(AuroraError, match=said):
        checked_phrase(entry, "key", 90, 60)


def test_a_box_may_reach_past_its_image_by_a_rounded_pixel():
    found = checked_phrase({"phrase": "A Dog ", "box": [-0.4, 20.5, 91.0, 40]}, "key", 90, 60)
    assert (found.text, found.box) == ("a dog", (0, 20.5, 90, 60))


@pytest.mark.parametrize("made", [clip_sample, pair_sample])
def test_boxes_are_about_single_images(made, tmp_path):
    with pytest.raises(AuroraError, match="finds a box in one image"):
        image_size(made(0).record, "key")
    written = made(0)
    broken = Written(
        written.key, {**written.record, "phrases": [{"phrase": "a dog", "box": [1, 2, 3, 4]}]}, written.media
    )
    write_shards(tmp_path, {"train": [[broken]]})
    settings = config(tmp_path, lanes=1)
    settings.train.global_batch_size = 1
    with pytest.raises(AuroraError, match="finds a box in one image"):
        batches(settings)


def test_a_record_without_sizes_is_refused_where_they_are_needed():
    with pytest.raises(AuroraError, match="does not say how large"):
        image_size({}, "key")
