"""Batches of clips, sets of images, other annotations and several datasets; media decoded once; memory used again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from written_shards import (
    QUESTIONS,
    Written,
    clip_sample,
    frames_sample,
    image_sample,
    pair_sample,
    picture,
    write_shards,
)

from aurora_ds.config import MixEntry, RunConfig
from aurora_ds.data import loader, media
from aurora_ds.data.batch_memory import BatchMemory
from aurora_ds.data.clip import clip_transform, sample_clip
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError

Configs = Callable[..., RunConfig]


def clip_config(make: Configs, folder: Path, **data: object) -> RunConfig:
    config = make(global_batch_size=2, shards=str(folder), **data)
    config.data.video.frames = 3
    return config


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, four as video and two as frames; one has two captions."""
    folder = tmp_path_factory.mktemp("clips")
    two = {"captions": ["blocks move", "something moves"]}
    first = [clip_sample(0, **two), clip_sample(1), clip_sample(2)]
    write_shards(folder, {"train": [first, [clip_sample(3), frames_sample(4), frames_sample(5)]]})
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_are_batches_of_frames(run_config: Configs, tokenizer, clips: Path, workers: int) -> None:
    config = clip_config(run_config, clips, workers=workers)
    batches = list(loader.train_loader(config, tokenizer, 1, 0, epoch=0))
    assert [batch["image"].shape for batch in batches] == [(2, 3, 3, 16, 16)] * 3
    assert all(torch.isfinite(batch["image"]).all() and len(batch["input_ids"]) == 2 for batch in batches)
    again = list(loader.train_loader(clip_config(run_config, clips), tokenizer, 1, 0, epoch=0))
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(batches, again, strict=True))


def test_frames_are_drawn_anew_each_epoch_and_alike_for_the_captions_of_a_clip(
    run_config: Configs, tokenizer, clips: Path
) -> None:
    config = clip_config(run_config, clips, augment="none", decoded_mb=0)
    config.train.global_batch_size = 7

    def frames(epoch: int) -> dict[int, torch.Tensor]:
        batch = next(iter(loader.train_loader(config, tokenizer, 1, 0, epoch)))
        assert sorted(batch["sample_index"].tolist()) == list(range(7))
        return dict(zip(batch["sample_index"].tolist(), batch["image"], strict=True))

    first, second = frames(0), frames(1)
    assert torch.equal(first[0], first[1]), "two captions of one clip"
    assert sum(not torch.equal(first[pair], second[pair]) for pair in range(7)) >= 4


def test_evaluation_takes_even_frames(run_config: Configs, clips: Path) -> None:
    config = clip_config(run_config, clips)
    batches = list(loader.eval_image_loader(config, "train", None, 1, 0, 4))
    assert [batch["image"].shape for batch in batches] == [(4, 3, 3, 16, 16), (2, 3, 3, 16, 16)]
    manifest = open_manifest(config)
    sample = ShardReader(manifest).read("train", 5)
    frames, _ = sample_clip(sample, 3, "uniform", max_pixels=10**6)
    assert torch.equal(batches[1]["image"][1], clip_transform(frames, 16))
    assert media.medium_shape(config, manifest, "train") == (3, 3, 16, 16)
    shown = [media.picture(config, ShardReader(manifest), "train", number) for number in (0, 5)]
    assert [each.shape for each in shown] == [(48, 64, 3), (90, 120, 3)]


def test_clips_come_resized_unless_they_will_be_augmented(run_config: Configs, clips: Path) -> None:
    config = clip_config(run_config, clips)
    splits = [(open_manifest(config), "train")]
    readers = [media.MediaReader(config, splits, "uniform", augmented=each) for each in (False, True)]
    assert [reader.read(0, 0).pixels.shape for reader in readers] == [(3, 16, 16, 3), (3, 48, 64, 3)]


def test_other_annotations_and_sets_of_images(run_config: Configs, tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {
            "train": [[image_sample(n, questions=QUESTIONS * 2) for n in range(4)]],
            "pairs": [[pair_sample(n) for n in range(0, 40, 10)]],
        },
    )

    def texts(annotations: list[dict]) -> dict[str, torch.Tensor]:
        return {"question": torch.tensor([entry["question_id"] for entry in annotations])}

    config = run_config(global_batch_size=4, shards=str(tmp_path))
    batches = list(loader.annotated_loader(config, "questions", texts, 1, 0, 0))
    assert [batch["question"].tolist() for batch in batches] == [[7] * 4] * 2
    config.data.train_split = "pairs"

    def sentences(annotations: list[dict]) -> dict[str, torch.Tensor]:
        return {"length": torch.tensor([len(entry["sentence"]) for entry in annotations])}

    batch = next(iter(loader.annotated_loader(config, "statements", sentences, 1, 0, 0)))
    assert batch["image"].shape == (4, 2, 3, 16, 16) and batch["length"].tolist() == [25] * 4


def test_a_record_that_does_not_have_its_annotation_is_a_bad_sample(
    run_config: Configs, tokenizer, tmp_path: Path
) -> None:
    samples = [image_sample(n) for n in range(6)]
    samples[2] = Written("image-2", {"captions": [3]}, [("jpg", picture(2))])
    write_shards(tmp_path, {"train": [samples]})
    config = run_config(global_batch_size=11, shards=str(tmp_path), max_bad_share=0.1)
    batch = next(iter(loader.train_loader(config, tokenizer, 1, 0, 0)))
    assert [(entry["key"], entry["reason"]) for entry in batch["bad"]] == [("image-2", "no_annotation")]
    assert batch["skipped"] == 1 and "image-2" not in batch["keys"]


def test_images_and_clips_are_not_mixed(run_config: Configs, tokenizer, tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [[image_sample(0), clip_sample(1)]]})
    config = run_config(global_batch_size=3, shards=str(tmp_path))
    with pytest.raises(AuroraError, match="Images and clips.*cannot be in one run"):
        next(iter(loader.train_loader(config, tokenizer, 1, 0, 0)))


def test_media_expansion_reads_every_medium_once(run_config: Configs, tokenizer, manifest: Manifest) -> None:
    config = run_config(global_batch_size=9, expand="media")
    seen = [list(loader.train_loader(config, tokenizer, 1, 0, epoch)) for epoch in (0, 1)]
    for batches in seen:
        assert sorted(n for batch in batches for n in batch["media_index"].tolist()) == list(range(45))
        for batch in batches:
            owners, _ = manifest.locate_pairs("train", batch["sample_index"].numpy())
            assert owners.tolist() == batch["media_index"].tolist()
    first, second = ({n for batch in batches for n in batch["sample_index"].tolist()} for batches in seen)
    assert first != second, "another annotation is drawn in another epoch"


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_mixture_is_read_by_its_weights(
    run_config: Configs, tokenizer, shards: Path, tmp_path: Path, world_size: int
) -> None:
    write_shards(tmp_path, {"train": [[image_sample(n) for n in range(10)]]})
    mix = [MixEntry(shards=str(shards), weight=0.5), MixEntry(shards=str(tmp_path), weight=2.0)]
    config = run_config(global_batch_size=5 * world_size, mix=mix, lanes=10)
    counts: Counter[int] = Counter()
    for epoch in (0, 1):
        for rank in range(world_size):
            for batch in loader.train_loader(config, tokenizer, world_size, rank, epoch):
                counts.update(batch["sample_index"].tolist())
                for key, medium in zip(batch["keys"], batch["media_index"].tolist(), strict=True):
                    place = (
                        f"{shards.name}/train/train-"
                        if medium < 45
                        else f"{tmp_path.name}/train/image-{medium - 45}"
                    )
                    assert key.startswith(place)
    if world_size == 1:  # 45 pairs an epoch of the first (90 pairs), 40 of the second (20 pairs)
        assert [counts[n] for n in range(110)] == [1] * 90 + [4] * 20
    else:  # batches of 10: the last 5 of 85 are left out
        assert sum(counts.values()) == 160 and max(counts[n] for n in range(90)) == 1


def test_a_pair_that_comes_twice_in_an_epoch_is_augmented_in_two_ways(
    run_config: Configs, tokenizer, shards: Path
) -> None:
    config = run_config(global_batch_size=90, mix=[MixEntry(shards=str(shards), weight=2.0)])
    rows: dict[int, list[torch.Tensor]] = {}
    for batch in loader.train_loader(config, tokenizer, 1, 0, 0):
        for pair, image in zip(batch["sample_index"].tolist(), batch["image"], strict=True):
            rows.setdefault(pair, []).append(image)
    assert all(len(images) == 2 for images in rows.values())
    assert sum(torch.equal(*images) for images in rows.values()) < 5


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image is decoded."""
    counts: Counter[str] = Counter()
    plain = media.open_image
    monkeypatch.setattr(media, "open_image", lambda *a: counts.update([a[2]]) or plain(*a))
    return counts


def test_a_medium_in_the_buffer_is_decoded_once(
    run_config: Configs, tokenizer, decoded: Counter[str]
) -> None:
    config = run_config(global_batch_size=90)
    batch = next(iter(loader.train_loader(config, tokenizer, 1, 0, 0)))
    assert len(batch["keys"]) == 90 and set(decoded.values()) == {1} and len(decoded) == 45
    decoded.clear()
    without = next(
        iter(loader.train_loader(run_config(global_batch_size=90, decoded_mb=0), tokenizer, 1, 0, 0))
    )
    assert sum(decoded.values()) == 90
    assert torch.equal(batch["image"], without["image"]), "the buffer changes nothing"


def test_the_buffer_is_bounded_and_drops_what_was_used_longest_ago(
    run_config: Configs, manifest: Manifest, decoded: Counter[str]
) -> None:
    reader = media.MediaReader(run_config(), [(manifest, "train")], "uniform", buffer_mb=1)
    reader._room = 3 * 40 * 32 * 3  # three pictures
    for medium in (0, 1, 2, 0, 3, 0, 1):
        reader.read(0, medium, keep=True)
    assert [place[1] for place in reader._kept] == [3, 0, 1]
    assert sum(decoded.values()) == 5, "0 stayed, 1 was dropped for 3"
    assert reader._room == 0


def test_a_batch_that_is_kept_is_never_written_again(run_config: Configs, tokenizer) -> None:
    """Slots go round while some batches, or parts of them, are held."""
    config = run_config(global_batch_size=2, workers=1)
    plain = list(loader.train_loader(run_config(global_batch_size=2), tokenizer, 1, 0, 0))
    kept: list[tuple[int, torch.Tensor]] = []
    for number, batch in enumerate(loader.train_loader(config, tokenizer, 1, 0, 0)):
        assert torch.equal(batch["image"], plain[number]["image"])
        if number % 3 == 0:
            kept.append((number, batch["image"][1]))
        del batch
    assert len(kept) == 15
    for number, row in kept:
        assert torch.equal(row, plain[number]["image"][1])


def test_slots_come_back_when_nobody_looks_at_them() -> None:
    memory = BatchMemory(slots=2, floats=12)
    first, second = memory.take((2, 6)), memory.take((3, 4))
    assert (first.number, second.number) == (0, 1) and memory.take((2, 6)) is None
    assert memory.take((13, 1)) is None, "larger than a slot"
    first.rows()[:] = 7.0
    tensor = first.tensor()
    row = tensor[1]
    del tensor
    assert memory.take((2, 6)) is None and row.tolist() == [7.0] * 6
    del row
    assert memory.take((2, 6)).number == first.number
    assert np.array_equal(memory.rows(0, (2, 2)).shape, (2, 2))


def test_the_first_free_slot_is_taken_so_that_few_are_ever_touched() -> None:
    memory = BatchMemory(slots=4, floats=12)
    taken = [memory.take((12,)) for _ in range(3)]
    for slot in (taken[2], taken[0]):
        memory.release(slot.number)
    assert [memory.take((12,)).number for _ in range(3)] == [0, 2, 3]


def test_its_descriptors_are_closed_with_it() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory = BatchMemory(slots=5, floats=12)
    assert len(os.listdir("/proc/self/fd")) == before + 10
    del memory
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.gpu
def test_slots_are_pinned_for_a_gpu(run_config: Configs, tokenizer) -> None:
    plain = list(loader.train_loader(run_config(), tokenizer, 1, 0, 0))
    for batch, other in zip(
        loader.train_loader(run_config(workers=2), tokenizer, 1, 0, 0), plain, strict=True
    ):
        assert batch["image"].is_pinned() and torch.equal(batch["image"], other["image"])
