"""Clips as JPEG frames, and encoded again."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_clips import decode_all, make_clip
from PIL import Image

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.video import frames_as_jpeg, probe, read_frames, reencode
from aurora_ds.data.video_pyav import open_clip

NASA = (Path(__file__).parent / "videos" / "nasa_13013.mp4").read_bytes()


def test_frames_are_those_at_the_centres() -> None:
    stored = frames_as_jpeg(NASA, 5, None, "nasa")
    assert [second for second, _ in stored] == pytest.approx([1.28, 3.88, 6.48, 9.08, 11.68])
    pictures = read_frames(NASA, [32, 97, 162, 227, 292], "nasa")
    for (_, content), picture in zip(stored, pictures, strict=True):
        image = Image.open(io.BytesIO(content))
        assert image.format == "JPEG" and image.size == (320, 180)
        assert np.abs(np.asarray(image).astype(int) - picture).mean() < 3


@pytest.mark.parametrize(("size", "stored_size"), [(90, (160, 90)), (180, (320, 180)), (4000, (320, 180))])
def test_the_shorter_side_is_shrunk_and_never_enlarged(size: int, stored_size: tuple[int, int]) -> None:
    assert Image.open(io.BytesIO(frames_as_jpeg(NASA, 1, size, "nasa")[0][1])).size == stored_size
    info = probe(reencode(make_clip(count=3, size=(320, 180)), size=size, name="clip"), "clip")
    assert (info.width, info.height) == stored_size


def test_a_short_clip_gives_each_frame_once() -> None:
    stored = frames_as_jpeg(make_clip(count=3), 8, None, "clip")
    assert [second for second, _ in stored] == pytest.approx([0, 0.04, 0.08])


@pytest.fixture(scope="module")
def encoded() -> bytes:
    return reencode(NASA, 0.5, None, "nasa")


def test_reencoding_keeps_every_frame_and_its_look(encoded: bytes) -> None:
    info = probe(encoded, "nasa")
    assert (info.codec, info.width, info.height, info.frames, info.extension) == (
        "h264",
        320,
        180,
        325,
        "mp4",
    )
    assert info.seconds == pytest.approx(13.0) and info.fps == pytest.approx(25.0)
    numbers = [0, 100, 324]
    before, after = (read_frames(content, numbers, "nasa").astype(int) for content in (NASA, encoded))
    assert np.abs(before - after).mean() < 3


def test_reencoding_shortens_the_distance_between_key_frames(encoded: bytes) -> None:
    with open_clip(NASA, "nasa") as clip:
        assert len(clip._keys) == 2
    with open_clip(encoded, "nasa") as clip:
        marks = sorted(mark for mark, _ in clip._keys)
        assert max(np.diff(marks)) * float(clip._stream.time_base) <= 0.5 + 0.04


def test_reencoding_drops_the_sound(encoded: bytes) -> None:
    with av.open(io.BytesIO(encoded)) as container:
        assert len(container.streams) == 1


def test_reencoding_twice_gives_the_same_bytes(encoded: bytes) -> None:
    assert reencode(NASA, 0.5, None, "other name") == encoded
    assert frames_as_jpeg(NASA, 3, 90, "nasa") == frames_as_jpeg(NASA, 3, 90, "other name")


def test_reencoding_applies_rotation() -> None:
    turned = make_clip(count=4, rotation=90)
    again = reencode(turned, name="clip")
    info = probe(again, "clip")
    assert (info.width, info.height, info.rotation) == (48, 64, 0)
    difference = np.stack(decode_all(again)).astype(int) - read_frames(turned, range(4), "clip")
    assert np.abs(difference).mean() < 20


def test_reencoding_keeps_a_variable_rate() -> None:
    marks = [0.04 * n for n in range(10)] + [0.4 + 0.2 * n for n in range(10)]
    varied = make_clip(container="matroska", count=20, times=[3 + mark for mark in marks])
    again = reencode(varied, 0.5, name="clip")
    with open_clip(again, "clip") as clip:
        assert clip.times == pytest.approx(marks, abs=2e-3)
        # An mp4 does not say how long its last frame stays.
        assert clip.seconds == pytest.approx(probe(varied, "clip").seconds, abs=0.2)
        keys = sorted(mark for mark, _ in clip._keys)
        assert max(np.diff(keys)) * float(clip._stream.time_base) < 0.71


def test_reencoding_parts_frames_that_come_too_close() -> None:
    crowded = make_clip(container="matroska", count=6, times=[0, 0.001, 0.002, 0.003, 0.004, 60.0])
    with open_clip(reencode(crowded, name="clip"), "clip") as clip:
        assert clip.times == pytest.approx([0, 0.001, 0.002, 0.003, 0.004, 60.0], abs=1e-3)


def test_a_clip_that_x264_does_not_take_is_a_bad_sample() -> None:
    wide = make_clip(codec="mjpeg", container="avi", pixel_format="yuvj420p", size=(16_800, 16), count=1)
    with pytest.raises(BadSample, match="cannot be encoded as H.264"):
        reencode(wide, name="clip")


def test_reencoding_makes_odd_sides_even() -> None:
    odd = make_clip(count=3, size=(65, 49), pixel_format="yuv444p")
    info = probe(reencode(odd, name="clip"), "clip")
    assert (info.width, info.height) == (64, 48)


def test_a_broken_clip_is_not_stored() -> None:
    for store in (lambda c: frames_as_jpeg(c, 4, None, "bad_clip"), lambda c: reencode(c, name="bad_clip")):
        with pytest.raises(BadSample, match="bad_clip"):
            store(NASA[:50_000])
