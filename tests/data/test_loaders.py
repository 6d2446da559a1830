"""Batches: what they hold, and that workers, ranks and restarts change nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aurora_ds.config import RunConfig
from aurora_ds.data import loader
from aurora_ds.data.decode import open_image
from aurora_ds.data.image import test_transform
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.text import pre_caption
from aurora_ds.errors import AuroraError

Configs = Callable[..., RunConfig]


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert same, name


def interleave(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Ranks' batches -> the global batch: row i of rank r is global row i * ranks + r."""
    joined = {}
    for name in ("image", "media_index", "sample_index"):
        joined[name] = torch.stack([batch[name] for batch in batches], dim=1).flatten(0, 1)
    joined["keys"] = [key for row in zip(*(batch["keys"] for batch in batches), strict=True) for key in row]
    return joined


def test_a_training_batch(run_config: Configs, tokenizer, manifest: Manifest) -> None:
    batches = list(loader.train_loader(run_config(), tokenizer, 2, 1, epoch=0))
    assert len(batches) == 5 == loader.steps_per_epoch(run_config(), 2)
    for batch in batches:
        assert batch["image"].shape == (8, 3, 16, 16) and batch["image"].dtype == torch.float32
        assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
        assert (batch["input_ids"][:, 0] == 101).all()
        assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max(), (
            "padded to the longest only"
        )
        media, _ = manifest.locate_pairs("train", batch["sample_index"].numpy())
        assert batch["media_index"].tolist() == media.tolist()
        assert batch["keys"] == [f"train-{medium:07d}-{medium:03d}" for medium in media]
        assert batch["skipped"] == 0


def test_texts_belong_to_their_images(run_config: Configs, tokenizer, manifest: Manifest) -> None:
    config = run_config(augment="none")
    reader = ShardReader(manifest)
    for batch in loader.train_loader(config, tokenizer, 1, 0, epoch=2):
        media, which = manifest.locate_pairs("train", batch["sample_index"].numpy())
        for row, (medium, caption) in enumerate(zip(media.tolist(), which.tolist(), strict=True)):
            sample = reader.read("train", medium)
            ids, _ = tokenizer.encode([pre_caption(sample.record["captions"][caption], 30)], 35)
            length = int(batch["attention_mask"][row].sum())
            assert torch.equal(batch["input_ids"][row, :length], ids[0])
            plain = test_transform(open_image(sample.media, 10_000, "picture"), 16)
            assert torch.equal(batch["image"][row], plain)


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_global_batches_do_not_depend_on_ranks(
    run_config: Configs,
    tokenizer,
    world_size: int,
    accumulation: int,
) -> None:
    config = run_config(accumulation=accumulation)
    alone = list(loader.train_loader(config, tokenizer, 1, 0, epoch=1))
    ranks = [list(loader.train_loader(config, tokenizer, world_size, r, epoch=1)) for r in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(alone)} == {5 * accumulation}
    for step, whole in enumerate(alone):
        together = interleave([batches[step] for batches in ranks])
        assert_equal(together, {name: whole[name] for name in together})


def test_accumulation_cuts_the_same_batch_into_pieces(run_config: Configs, tokenizer) -> None:
    whole = next(iter(loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0)))
    pieces = list(loader.train_loader(run_config(accumulation=4), tokenizer, 1, 0, epoch=0))[:4]
    assert torch.equal(torch.cat([piece["image"] for piece in pieces]), whole["image"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than the machine's cores
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(run_config: Configs, tokenizer, workers: int) -> None:
    here = list(loader.train_loader(run_config(), tokenizer, 2, 0, epoch=3))
    there = list(loader.train_loader(run_config(workers=workers), tokenizer, 2, 0, epoch=3))
    assert len(here) == len(there)
    for ours, theirs in zip(here, there, strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_gives_exactly_the_following_batches(run_config: Configs, tokenizer, workers: int) -> None:
    config = run_config(accumulation=2, workers=workers)
    whole = list(loader.train_loader(config, tokenizer, 2, 1, epoch=0))
    for start in range(6):
        rest = list(loader.train_loader(config, tokenizer, 2, 1, epoch=0, start_step=start))
        assert len(rest) == len(whole) - 2 * start
        for ours, theirs in zip(rest, whole[2 * start :], strict=True):
            assert_equal(ours, theirs)


def test_resume_on_other_ranks_continues_the_same_global_batches(run_config: Configs, tokenizer) -> None:
    alone = list(loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0))[3:]
    ranks = [
        list(loader.train_loader(run_config(), tokenizer, 4, rank, epoch=0, start_step=3))
        for rank in range(4)
    ]
    for step, whole in enumerate(alone):
        together = interleave([batches[step] for batches in ranks])
        assert_equal(together, {name: whole[name] for name in together})


def test_resume_reads_nothing_of_what_it_skips(
    run_config: Configs,
    tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    plain = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, split, n: read.append(n) or plain(self, split, n))
    (batch,) = loader.train_loader(run_config(decoded_mb=0), tokenizer, 1, 0, epoch=0, start_step=4)
    assert sorted(read) == sorted(set(batch["media_index"].tolist()))


def test_a_step_beyond_the_epoch_is_refused(run_config: Configs, tokenizer) -> None:
    with pytest.raises(AuroraError, match="Step 6 is not in an epoch of 5 steps"):
        loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0, start_step=6)
    assert len(loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0, start_step=5)) == 0


def test_augmentation_is_keyed_by_seed_epoch_and_pair(run_config: Configs, tokenizer) -> None:
    def images(epoch: int, seed: int = 42) -> dict[int, torch.Tensor]:
        config = run_config()
        config.seed = seed
        batches = loader.train_loader(config, tokenizer, 1, 0, epoch=epoch)
        return {
            int(pair): image
            for batch in batches
            for pair, image in zip(batch["sample_index"], batch["image"], strict=True)
        }

    first, second, other = images(0), images(1), images(0, seed=7)
    shared = [pair for pair in first if pair in second and pair in other]
    assert len(shared) > 60
    assert sum(torch.equal(first[pair], second[pair]) for pair in shared) < 3
    assert sum(torch.equal(first[pair], other[pair]) for pair in shared) < 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_sees_each_image_once(run_config: Configs, world_size: int, batch_size: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        batches = loader.eval_image_loader(run_config(), "test", None, world_size, rank, batch_size)
        listed = list(batches)
        assert len(listed) == len(batches)
        for batch in listed:
            assert batch["image"].shape == (len(batch["keys"]), 3, 16, 16)
            assert (batch["media_index"] % world_size == rank).all()
            seen += batch["media_index"].tolist()
    assert sorted(seen) == list(range(11))


def test_evaluation_of_chosen_images_keeps_their_order(run_config: Configs, manifest: Manifest) -> None:
    batches = list(loader.eval_image_loader(run_config(workers=2), "test", [7, 0, 3], 1, 0, 2))
    assert [batch["media_index"].tolist() for batch in batches] == [[7, 0], [3]]
    sample = ShardReader(manifest).read("test", 3)
    assert torch.equal(batches[1]["image"][0], test_transform(open_image(sample.media, 10_000, "x"), 16))


def test_evaluation_texts(run_config: Configs, tokenizer) -> None:
    texts = loader.eval_texts(run_config(), "test", tokenizer)
    owners = [medium for medium in range(11) for _ in range(1 + medium % 3)]
    assert texts["media_index"].tolist() == owners and texts["media"] == 11
    assert texts["text_index"].tolist() == list(range(21))
    assert texts["captions"][:3] == ["test picture 0 told in words"] + [
        f"test picture 1 told in {many}words" for many in ("", "many ")
    ]
    assert [len(row) for row in texts["input_ids"]][:3] == [8, 8, 9], "no padding"
    assert all(int(row[0]) == 101 and int(row[-1]) == 102 for row in texts["input_ids"])
    first = loader.eval_texts(run_config(), "test", tokenizer, limit=2)
    assert first["captions"] == texts["captions"][:3] and first["media"] == 2
    ids, mask = loader.pad_texts(texts["input_ids"][:3], pad_id=0)
    assert ids.shape == (3, 9) and mask.sum(1).tolist() == [8, 8, 9] and ids[0, 8] == 0


def test_long_texts_are_cut_to_max_tokens(run_config: Configs, tokenizer) -> None:
    config = run_config()
    config.retrieval.max_words, config.retrieval.max_tokens = 5, 6
    batch = next(iter(loader.train_loader(config, tokenizer, 1, 0, epoch=0)))
    assert batch["input_ids"].shape[1] == 6 and (batch["input_ids"][:, 5] == 102).all()


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> tuple[Path, int]:
    """(shards with one image of train destroyed, its medium number)"""
    folder, medium = shutil.copytree(shards, tmp_path / "damaged"), 17
    manifest = Manifest.load(folder)
    address = manifest.address("train", medium)
    media_header = 512 + 512 * -(-len(_record_bytes(manifest, medium)) // 512)
    with open(folder / address.shard, "r+b") as file:
        file.seek(address.start + media_header + 512)
        file.write(bytes(200))
    return folder, medium


def _record_bytes(manifest: Manifest, medium: int) -> bytes:
    address = manifest.address("train", medium)
    header = (manifest.folder / address.shard).read_bytes()[address.start : address.start + 512]
    return b"x" * int(header[124:135], 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run_with_its_key(
    run_config: Configs,
    tokenizer,
    damaged: tuple[Path, int],
    workers: int,
) -> None:
    config = run_config(shards=str(damaged[0]), workers=workers, bad_samples="error")
    with pytest.raises(AuroraError) as caught:
        list(loader.train_loader(config, tokenizer, 1, 0, epoch=0))
    message = str(caught.value)
    assert "train-0000017-017" in message and "data.bad_samples=skip" in message
    assert "Traceback" not in message


def test_skipped_images_are_replaced_alike_for_all_ranks_and_counted(
    run_config: Configs,
    tokenizer,
    damaged: tuple[Path, int],
) -> None:
    folder, medium = damaged
    config = run_config(shards=str(folder), max_bad_share=0.1)
    alone = list(loader.train_loader(config, tokenizer, 1, 0, epoch=0))
    ranks = [list(loader.train_loader(config, tokenizer, 2, rank, epoch=0)) for rank in range(2)]
    assert sum(batch["skipped"] for batch in alone) >= 1
    for step, whole in enumerate(alone):
        assert medium not in whole["media_index"].tolist() and len(whole["keys"]) == 16
        together = interleave([batches[step] for batches in ranks])
        assert_equal(together, {name: whole[name] for name in together})
        assert sum(batches[step]["skipped"] for batches in ranks) == whole["skipped"]


def test_evaluation_never_skips(run_config: Configs, damaged: tuple[Path, int]) -> None:
    config = run_config(shards=str(damaged[0]), max_bad_share=1.0)
    with pytest.raises(AuroraError, match="train-0000017-017"):
        list(loader.eval_image_loader(config, "train", [16, 17], 1, 0, 2))


def test_a_killed_worker_is_told_in_words(
    run_config: Configs, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()
    monkeypatch.setattr(ShardReader, "read", lambda *_: os._exit(9) if os.getpid() != parent else None)
    with pytest.raises(AuroraError, match="data worker process was killed"):
        list(loader.train_loader(run_config(workers=2), tokenizer, 1, 0, epoch=0))


def test_shards_must_be_named(run_config: Configs, tokenizer) -> None:
    with pytest.raises(AuroraError, match="data.shards is not set"):
        loader.train_loader(run_config(shards=None), tokenizer, 1, 0, epoch=0)


def test_more_ranks_than_lanes(run_config: Configs, tokenizer) -> None:
    with pytest.raises(AuroraError, match="8 ranks cannot share 4 lanes"):
        loader.train_loader(run_config(lanes=4), tokenizer, 8, 0, epoch=0)


def test_global_random_state_is_not_used(run_config: Configs, tokenizer) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = list(loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0))
    np.random.seed(1)
    torch.manual_seed(1)
    for ours, theirs in zip(first, loader.train_loader(run_config(), tokenizer, 1, 0, epoch=0), strict=True):
        assert_equal(ours, theirs)
