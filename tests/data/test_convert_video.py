"""Clips into shards: as they are, as stored frames, encoded again; what is refused and what may not be mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from drawn_clips import CLIP_RECIPE, decode_all, make_clip

from aurora_ds.data.convert import convert, samples
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import Sample, ShardReader
from aurora_ds.data.shardcheck import verify_shards
from aurora_ds.errors import AuroraError


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    """Four clips of 40 frames; b.mp4 is a WebM by content, and c.avi was turned by a quarter in the camera."""
    return {
        "a.mp4": make_clip(),
        "b.mp4": make_clip("libvpx-vp9", "webm"),
        "c.avi": make_clip(size=(96, 64), rotation=90),
        "d.mp4": make_clip(size=(48, 32)),
    }


@pytest.fixture
def source(tmp_path: Path, clips: dict[str, bytes]) -> Path:
    """A folder with the clips and a caption for each."""
    folder = tmp_path / "source"
    (folder / "clips").mkdir(parents=True)
    for name, content in clips.items():
        (folder / "clips" / name).write_bytes(content)
    rows = [{"image": name, "caption": f"words of {name}", "split": "train"} for name in clips]
    (folder / "annotations.json").write_text(json.dumps(rows))
    (tmp_path / "clips.yaml").write_text(yaml.safe_dump(CLIP_RECIPE))
    return folder


def run(source: Path, output: str = "out", **option: Any) -> list[Sample]:
    """All samples after a conversion to `output` beside the source."""
    folder = source.parent / output
    convert(source.parent / "clips.yaml", source, folder, **option)
    manifest = Manifest.load(folder)
    reader = ShardReader(manifest)
    return [reader.read("train", number) for number in range(manifest.media("train"))]


def test_clips_are_stored_as_they_are_under_the_extension_of_their_content(
    source: Path, clips: dict[str, bytes]
) -> None:
    found = run(source)
    assert [sample.media for sample in found] == list(clips.values())
    assert [sample.extension for sample in found] == ["mp4", "webm", "mp4", "mp4"]
    record = found[2].record
    assert (record["kind"], record["width"], record["height"], record["frames"]) == ("video", 64, 96, 40)
    assert record["seconds"] == pytest.approx(40 / record["fps"]) and record["captions"] == ["words of c.avi"]
    verify_shards(source.parent / "out")


def test_frames_in_place_of_clips(source: Path, clips: dict[str, bytes]) -> None:
    found = run(source, video_frames=4, size=24)
    for sample in found:
        assert sample.kind == "frames" and [part.extension for part in sample.parts] == ["jpg"] * 4
        assert min(sample.record["width"], sample.record["height"]) == 24
        seconds = sample.record["frame_seconds"]
        assert seconds == sorted(seconds) and len(seconds) == 4
        assert sample.record["source"]["frames"] == 40
    assert (found[2].record["source"]["width"], found[2].record["source"]["height"]) == (64, 96)
    verify_shards(source.parent / "out")


def test_clips_encoded_again_keep_their_frames(source: Path, clips: dict[str, bytes]) -> None:
    for sample, content in zip(run(source, video_reencode=True), clips.values(), strict=True):
        assert sample.kind == "video" and sample.extension == "mp4" and sample.media != content
        assert sample.record["frames"] == sample.record["source"]["frames"] == 40
        before, after = decode_all(content), decode_all(sample.media)
        if before[0].shape == after[0].shape:
            assert np.abs(np.stack(before).astype(int) - np.stack(after)).mean() < 8
    verify_shards(source.parent / "out")


@pytest.mark.parametrize("option", [{}, {"video_frames": 3}, {"video_reencode": True, "size": 24}])
def test_bytes_do_not_depend_on_workers(source: Path, option: dict[str, Any]) -> None:
    folders = [f"workers_{workers}" for workers in (1, 2, 3)]
    for workers, folder in enumerate(folders, 1):
        run(source, folder, workers=workers, **option)
    first, *others = (
        {
            path.name: path.read_bytes()
            for path in (source.parent / folder).glob("[tmi]*")
            if path.suffix != ".json"
        }
        for folder in folders
    )
    assert len(first) == 3 and all(other == first for other in others)


def test_a_folder_goes_on_only_with_the_same_storage(source: Path) -> None:
    run(source)
    for option in ({"video_frames": 4}, {"video_reencode": True}, {"check": "decode"}):
        with pytest.raises(AuroraError, match="belongs to another conversion"):
            run(source, **option)


def test_what_is_no_clip_is_rejected_with_a_reason(source: Path) -> None:
    (source / "clips/a.mp4").write_bytes(b"no clip at all")
    (source / "clips/d.mp4").unlink()
    assert len(run(source, max_rejects=2)) == 2
    rejects = [json.loads(line) for line in (source.parent / "out/rejects.jsonl").read_text().splitlines()]
    assert [reject["media_id"] for reject in rejects] == ["a.mp4", "d.mp4"]
    assert rejects[1]["reason"] == "there is no such video file" and "a.mp4" in rejects[0]["reason"]
    verify_shards(source.parent / "out")


def test_a_file_that_changes_while_it_is_read_leaves_no_trace(
    source: Path, clips: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = samples._blocks

    def shrinking(path: Path):
        content = b"".join(plain(path))
        yield content[:-1] if path.name == "a.mp4" else content + b"x" * (path.name == "c.avi")

    monkeypatch.setattr(samples, "_blocks", shrinking)
    found = run(source, max_rejects=2)
    assert [sample.media for sample in found] == [clips["b.mp4"], clips["d.mp4"]]
    reasons = (source.parent / "out/rejects.jsonl").read_text()
    assert "became shorter while it was read" in reasons and "became longer while it was read" in reasons
    verify_shards(source.parent / "out")


def test_long_clips_are_not_held_in_memory(source: Path, clips: dict[str, bytes]) -> None:
    sizes = [len(block) for block in samples._blocks(source / "clips/a.mp4")]
    assert sum(sizes) == len(clips["a.mp4"]) and max(sizes) <= samples.BLOCK == 1 << 20


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"video_frames": 4, "video_reencode": True}, "exclude each other"),
        ({"size": 24}, "--size goes with --video-frames or --video-reencode"),
        ({"video_frames": 0}, "--video-frames must be at least 1"),
        ({"video_frames": 4, "size": 0}, "--size must be at least 1"),
    ],
)
def test_options_that_do_not_fit(source: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        run(source, **option)


def test_frames_of_images_are_refused(source: Path, small_recipe: Path) -> None:
    with pytest.raises(AuroraError, match="--video-frames is for video, but folder has images"):
        convert(small_recipe, source, source.parent / "out", video_frames=4)
