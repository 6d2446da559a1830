"""manifest.json: what is where, and clear words when it is missing or broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aurora_ds.data.manifest import MANIFEST_NAME, Manifest
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
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=9), "schema 9; this version reads schema 1"),
        (lambda m: m["splits"]["train"].update(samples=44), "shards sum to 45 samples"),
        (lambda m: m["splits"]["train"]["shards"][0]["offsets"].pop(), "7 offsets for 7 samples"),
        (
            lambda m: m["splits"]["train"]["shards"][0].update(file="../train.tar"),
            "splits.train.shards.0.file",
        ),
        (lambda m: m["splits"]["train"]["shards"][1]["counts"].update(captions=[1] * 7), "its counts sum to"),
        (lambda m: m.update(extra=1), "extra"),
    ],
)
def test_a_changed_manifest_is_refused(shards: Path, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        Manifest.load(damaged(shards, tmp_path, change))


def test_a_cut_manifest_is_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copy(shards / MANIFEST_NAME, tmp_path)
    content = (tmp_path / MANIFEST_NAME).read_bytes()
    (tmp_path / MANIFEST_NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(AuroraError, match="is not JSON"):
        Manifest.load(tmp_path)
