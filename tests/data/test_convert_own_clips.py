"""Own clips by the recipe `clips`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aurora_ds.data.convert import convert
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError

CLIPS = Path(__file__).parent / "videos"


def source(folder: Path, entries: list[dict]) -> Path:
    (folder / "videos").mkdir(parents=True)
    for name in ("h265_video.mp4", "av1_video.mkv"):
        shutil.copy(CLIPS / name, folder / "videos" / name)
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder


def test_listed_clips_become_samples_with_their_captions(tmp_path: Path) -> None:
    entries = [
        {"video": "h265_video.mp4", "caption": ["a test card", "colours"], "video_id": 7},
        {"video": "av1_video.mkv", "caption": "another", "split": "test"},
    ]
    convert("clips", source(tmp_path / "source", entries), tmp_path / "shards")
    manifest = Manifest.load(tmp_path / "shards")
    assert {name: manifest.pairs(name) for name in manifest.splits} == {"train": 2, "test": 1}
    sample = ShardReader(manifest).read("train", 0)
    assert sample.kind == "video" and sample.media == (CLIPS / "h265_video.mp4").read_bytes()
    assert sample.record["captions"] == ["a test card", "colours"] and sample.record["video_id"] == 7
    assert sample.record["frames"] == 10 and sample.record["width"] == 128


def test_a_list_of_images_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="entry 0 without a text `video`"):
        convert("clips", source(tmp_path / "source", [{"image": "a.mp4", "caption": "x"}]), tmp_path / "out")
