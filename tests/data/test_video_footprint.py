"""What reading a clip leaves behind and takes meanwhile: no memory, no open file, no thread."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest
from drawn_clips import make_clip

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.video import probe, read_frames, sample_frames
from aurora_ds.data.video_pyav import open_clip

VIDEOS = Path(__file__).parent / "videos"


def test_opening_many_clips_does_not_grow_memory() -> None:
    whole = make_clip(count=30, size=(320, 240), options={"g": "10"})
    process, resident = psutil.Process(), []
    gc.disable()  # closing must not wait for the collector
    try:
        for number in range(600):
            try:
                sample_frames(whole[: len(whole) // (1 + number % 3 // 2)], 2, "uniform", name="clip")
            except BadSample:
                assert number % 3 == 2
            if number % 300 == 299:
                resident.append(process.memory_info().rss)
    finally:
        gc.enable()
    # One clip takes some 3 MB while it is open.
    assert resident[1] - resident[0] < 8 * 2**20


def test_files_are_closed_after_success_and_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((VIDEOS / "nasa_13013.mp4").read_bytes()[:9000])
    before = (
        sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    )
    probe(VIDEOS / "h265_video.mp4", "clip")
    with pytest.raises(BadSample):
        probe(broken, "clip")
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "h265_video.mp4", "av1_video.mkv"])
def test_decoding_starts_no_thread(name: str) -> None:
    process = psutil.Process()
    before = process.num_threads()
    with open_clip((VIDEOS / name).read_bytes(), name) as clip:
        for _ in clip.each([0, 5]):
            assert process.num_threads() == before


def test_a_picture_that_outgrows_the_limit_inside_a_clip_is_not_decoded() -> None:
    small, large = (make_clip(container="mpegts", count=20, size=size) for size in ((64, 48), (320, 240)))
    wanted = range(10, 30)
    assert read_frames(small + large, wanted, "clip").shape == (20, 48, 64, 3)
    with pytest.raises(BadSample) as raised:
        read_frames(small + large, wanted, "clip", max_pixels=100 * 100)
    assert raised.value.reason == "decode"
