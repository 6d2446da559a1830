"""What `shards verify` finds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from aurora_ds.data.manifest import INDEX_NAME, MANIFEST_NAME, Manifest
from aurora_ds.data.shard_index import ShardIndex, write_index
from aurora_ds.data.shardcheck import find_problems, verify_shards
from aurora_ds.errors import AuroraError


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shards, tmp_path / "copy")


@pytest.mark.parametrize("workers", [1, 2])
def test_good_shards_pass(shards: Path, workers: int) -> None:
    result = verify_shards(shards, workers)
    assert result == {
        "folder": str(shards),
        "dataset": "folder",
        "shards": 9,
        "samples": 56,
        "pairs": 111,
        "bytes": sum(path.stat().st_size for path in shards.glob("*.tar")),
        "problems": 0,
    }


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def sign_again(folder: Path, file: str) -> None:
    """Gives the manifest the checksum of a damaged shard, so that the samples themselves must show the damage."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    for split in content["splits"].values():
        for shard in split["shards"]:
            if shard["file"] == file:
                shard["sha256"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train-000001.tar").unlink(), "train-000001.tar: it cannot be read"),
        (lambda f: os.truncate(f / "train-000001.tar", 5000), "train-000001.tar: it has 5000 bytes"),
        (lambda f: flip(f / "test-000000.tar", 700), "test-000000.tar: its sha256 is not the manifest's"),
        (
            lambda f: (f / "train-000099.tar").write_bytes(b""),
            "train-000099.tar: it is in the folder but not in",
        ),
    ],
)
def test_damaged_files_are_named(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(AuroraError, match=message):
        verify_shards(copy)


def test_damaged_samples_are_found_even_with_a_right_checksum(copy: Path) -> None:
    manifest = Manifest.load(copy)
    second = manifest.address("train", 1).start
    flip(copy / "train-000000.tar", second + 100)  # in the header of its record
    flip(copy / "train-000000.tar", manifest.address("train", 3).start + 512)  # the record's first letter
    sign_again(copy, "train-000000.tar")
    problems, counts = find_problems(Manifest.load(copy))
    assert any(f"no tar header at byte {second}" in problem for problem in problems)
    assert any("train-0000003-003.json is not JSON" in problem for problem in problems)
    assert counts["samples"] == 56


def test_counts_that_do_not_fit_are_found(copy: Path) -> None:
    tensors = load_file(copy / INDEX_NAME)
    counts = tensors["test/counts/captions"]
    counts[:2] = counts[1::-1]
    write_index(copy / INDEX_NAME, ShardIndex(tensors).parts())
    with pytest.raises(AuroraError, match=r"test-0000000-000 has \{'captions': 1\}, the manifest says"):
        verify_shards(copy)


def test_two_shards_with_the_same_samples_are_found(copy: Path) -> None:
    shutil.copy(copy / "train-000000.tar", copy / "train-000001.tar")
    content = json.loads((copy / MANIFEST_NAME).read_text())
    first, second = content["splits"]["train"]["shards"][:2]
    content["splits"]["train"]["shards"][1] = {**first, "file": second["file"]}
    split = content["splits"]["train"]
    for name in ("samples", "pairs"):
        split[name] += first[name] - second[name]
    tensors = load_file(copy / INDEX_NAME)
    for name, size in (("train/offsets", 8), ("train/counts/captions", 7)):
        tensors[name][size : 2 * size] = tensors[name][:size]
    write_index(copy / INDEX_NAME, ShardIndex(tensors).parts())
    (copy / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(AuroraError, match="key train-0000000-000 is also in train-000000.tar"):
        verify_shards(copy)
