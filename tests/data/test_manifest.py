"""manifest.json: what is where, and clear words when it is missing or broken."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aurora_ds.data.manifest import INDEX_NAME, MANIFEST_NAME, Manifest
from aurora_ds.data.shard_index import ShardIndex, write_index
from aurora_ds.errors import AuroraError


def test_counts_of_the_dataset(manifest: Manifest) -> None:
    assert manifest.media("train") == 45 and manifest.pairs("train") == 90
    assert manifest.media("test") == 11 and manifest.pairs("test") == 21
    assert [shard.samples for shard in manifest.split("train").shards] == [7, 7, 7, 7, 7, 7, 3]


def test_pairs_are_numbered_medium_by_medium(manifest: Manifest) -> None:
    media, which = manifest.locate_pairs("train", np.arange(manifest.pairs("train")))
    expected = [(medium, caption) for medium in range(45) for caption in range(1 + medium % 3)]
    assert list(zip(media.tolist(), which.tolist(), strict=True)) == expected


def test_a_kind_that_no_sample_has_counts_zero(manifest: Manifest) -> None:
    assert manifest.pairs("train", "questions") == 0


def test_save_and_load_give_the_same(manifest: Manifest, tmp_path: Path) -> None:
    manifest.model_copy().save(tmp_path)
    again = Manifest.load(tmp_path)
    assert again.model_dump() == manifest.model_dump()
    assert again.fingerprint("train") == manifest.fingerprint("train") != manifest.fingerprint("test")


def test_missing_folder_and_unfinished_folder(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="no folder .*nowhere.*shards convert"):
        Manifest.load(tmp_path / "nowhere")
    with pytest.raises(AuroraError, match="holds no finished shards.*continues"):
        Manifest.load(tmp_path)


def test_unknown_split_names_those_there_are(manifest: Manifest) -> None:
    with pytest.raises(AuroraError, match="no split 'dev'; they have train, test"):
        manifest.media("dev")


def damaged(shards: Path, tmp_path: Path, change) -> Path:
    content = json.loads((shards / MANIFEST_NAME).read_text())
    change(content)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    shutil.copy(shards / INDEX_NAME, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=9), "schema 9; this version reads schema 1"),
        (lambda m: m["splits"]["train"].update(samples=44), "shards sum to 45 samples"),
        (lambda m: m.pop("index"), "names no index"),
        (lambda m: m["index"].update(bytes=9), r"index.safetensors has \d+ bytes, the manifest says 9"),
        (
            lambda m: m["splits"]["train"]["shards"][0].update(file="../train.tar"),
            "splits.train.shards.0.file",
        ),
        (lambda m: m["splits"]["train"]["shards"][1]["counts"].update(captions=7), "its counts sum to"),
        (lambda m: m.update(extra=1), "extra"),
    ],
)
def test_a_changed_manifest_is_refused(shards: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        Manifest.load(damaged(shards, tmp_path, change))


def change_index(shards: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of the folder's manifest whose index has other numbers, and the size that the manifest says."""
    tensors = load_file(shards / INDEX_NAME)
    change(tensors)
    shutil.copy(shards / MANIFEST_NAME, tmp_path)
    write_index(tmp_path / INDEX_NAME, ShardIndex(tensors).parts())
    return tmp_path


def test_the_index_is_a_plain_safetensors_file(shards: Path, manifest: Manifest) -> None:
    tensors = load_file(shards / INDEX_NAME)
    assert {name: (len(each), each.dtype.name) for name, each in tensors.items()} == {
        "train/offsets": (45 + 7, "int64"),
        "train/counts/captions": (45, "int32"),
        "train/crc32": (45, "uint32"),
        "train/crc32/record": (45, "uint32"),
        "test/offsets": (11 + 2, "int64"),
        "test/counts/captions": (11, "int32"),
        "test/crc32": (11, "uint32"),
        "test/crc32/record": (11, "uint32"),
    }
    assert tensors["train/counts/captions"].tolist() == [1 + number % 3 for number in range(45)]
    assert hashlib.sha256((shards / INDEX_NAME).read_bytes()).hexdigest() == manifest.index.sha256


def test_places_of_samples(manifest: Manifest) -> None:
    assert manifest.kinds("train") == ("captions",)
    assert [manifest.shard_of("train", medium) for medium in (0, 6, 7, 44)] == [0, 0, 1, 6]
    offsets = manifest.offsets("train", 1)
    assert len(offsets) == 8 and offsets[0] == 0
    assert manifest.address("train", 8) == ("train-000001.tar", offsets[1], offsets[2])


def test_a_count_that_was_changed_is_found_when_it_is_used(shards: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["train/counts/captions"][9] += 1

    changed = Manifest.load(change_index(shards, tmp_path, change))
    with pytest.raises(AuroraError, match=r"counts of captions do not sum .* of train-000001.tar"):
        changed.pairs("train")


def test_exchanged_counts_are_found_when_they_are_used(shards: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["train/counts/captions"][[0, 2]] = [3, 1]

    changed = Manifest.load(change_index(shards, tmp_path, change))
    with pytest.raises(AuroraError, match="counts of captions in train are not those that were written"):
        changed.locate_pairs("train", np.arange(3))


def test_an_offset_beyond_its_shard_is_found_when_it_is_used(shards: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["test/offsets"][1] = 10**12

    changed = Manifest.load(change_index(shards, tmp_path, change))
    with pytest.raises(AuroraError, match="medium 0 of test would be bytes 0 to 1000000000000"):
        changed.address("test", 0)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{no json at all "])
def test_a_damaged_index_is_refused(shards: Path, tmp_path: Path, damage: bytes) -> None:
    shutil.copy(shards / MANIFEST_NAME, tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(damage)
    with pytest.raises(AuroraError, match="not the index that its manifest describes"):
        Manifest.load(tmp_path)


def test_a_missing_index_is_named(shards: Path, tmp_path: Path) -> None:
    shutil.copy(shards / MANIFEST_NAME, tmp_path)
    with pytest.raises(AuroraError, match="index.safetensors cannot be read.*copy both"):
        Manifest.load(tmp_path)


def test_an_index_of_another_shape_is_refused(shards: Path, tmp_path: Path) -> None:
    content = json.loads((shards / MANIFEST_NAME).read_text())
    shutil.copy(shards / INDEX_NAME, tmp_path)
    shard = content["splits"]["test"]["shards"].pop()
    for field in ("samples", "pairs"):
        content["splits"]["test"][field] -= shard[field]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(AuroraError, match="test/offsets has 13 numbers, the manifest asks for 8"):
        Manifest.load(tmp_path)


def test_a_cut_manifest_is_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copy(shards / MANIFEST_NAME, tmp_path)
    content = (tmp_path / MANIFEST_NAME).read_bytes()
    (tmp_path / MANIFEST_NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(AuroraError, match="is not JSON"):
        Manifest.load(tmp_path)
