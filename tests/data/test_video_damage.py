"""What is no clip, or a broken one, is a BadSample with a reason; nothing else comes out, and nothing else is read."""

from __future__ import annotations

import builtins
import io
import struct
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_clips import make_clip

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.mp4_index import check_index
from aurora_ds.data.video import probe, read_frames, sample_frames
from aurora_ds.data.video_pyav import open_clip

HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Not Found</body></html>"


def reason_of(content: bytes) -> str:
    with pytest.raises(BadSample) as raised:
        sample_frames(content, 4, "uniform", name="some_clip")
    assert "some_clip" in str(raised.value)
    return raised.value.reason


@pytest.mark.parametrize("content", [b"", HTML, bytes(5000), b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_other_content_is_not_a_video(content: bytes) -> None:
    assert reason_of(content) == "not_a_video"


def test_sound_alone_is_not_a_video() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert reason_of(target.getvalue()) == "not_a_video"


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "flv"])
@pytest.mark.parametrize("share", [0.4, 0.6])
def test_a_cut_clip_is_refused(container: str, share: float) -> None:
    codec = "mpeg4" if container == "avi" else "libx264"
    options = {"movflags": "faststart"} if container == "mp4" else {}
    content = make_clip(codec=codec, container=container, count=75)
    if options:
        content = index_first(content)
    assert reason_of(content[: int(len(content) * share)]) == "decode"


@pytest.mark.parametrize("beyond", [0, 20, 300])
def test_an_mp4_cut_in_its_first_frame_is_refused(beyond: int) -> None:
    # PyAV 18.0 ends the whole process when such a stream is decoded.
    content = index_first(make_clip(count=75))
    assert reason_of(content[: content.index(b"mdat") + beyond]) == "decode"


def index_first(content: bytes) -> bytes:
    """The mp4 with its index before its frames, as most are that come over the network."""
    boxes, place = [], 0
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        boxes.append((kind, content[place : place + size]))
        place += size
    index = next(box for kind, box in boxes if kind == b"moov")
    start = index.index(b"stco") + 12
    (offset,) = struct.unpack(">I", index[start : start + 4])
    index = index[:start] + struct.pack(">I", offset + len(index)) + index[start + 4 :]
    first, *others = [box for kind, box in boxes if kind != b"moov"]
    return b"".join([first, index, *others])


def test_an_mp4_without_its_index_says_that_it_was_cut() -> None:
    content = make_clip()
    with pytest.raises(BadSample, match="damaged or was cut") as raised:
        probe(content[: content.index(b"moov") - 4], "clip")
    assert raised.value.reason == "decode"


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Cut, flipped bits, or a stretch of noise."""
    changed = bytearray(content)
    match random.integers(3):
        case 0:
            del changed[random.integers(len(changed)) :]
        case 1:
            for place in random.integers(0, len(changed), random.integers(1, 30)):
                changed[place] ^= 1 << random.integers(8)
        case 2:
            place = random.integers(len(changed))
            stretch = len(changed[place : place + random.integers(1, 400)])
            changed[place : place + stretch] = random.bytes(stretch)
    return bytes(changed)


@pytest.mark.parametrize(
    "form",
    [
        {"options": {"g": "10", "bf": "2"}},
        {"container": "matroska", "options": {"g": "10"}},
        {"container": "mpegts"},
        {"codec": "mpeg4", "container": "avi", "options": {"g": "10"}},
        {"codec": "gif", "container": "gif", "pixel_format": "rgb8"},
        {"container": "flv"},
    ],
    ids=["mp4", "mkv", "ts", "avi", "gif", "flv"],
)
def test_damaged_clips_give_frames_or_a_reason(form: dict) -> None:
    content, outcomes = make_clip(**form), Counter()
    for seed in range(120):
        broken = damage(content, np.random.default_rng(seed))
        try:
            # The size may be damaged too; without the limit, noise could ask for gigabytes.
            frames, seconds = sample_frames(broken, 4, "uniform", name="clip", max_pixels=1_000_000)
        except BadSample as error:
            outcomes[error.reason] += 1
            continue
        assert frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) == len(seconds) == 4
        assert (np.diff(seconds) >= 0).all()
        outcomes["frames"] += 1
    assert set(outcomes) <= {"frames", "decode", "not_a_video", "too_large"}
    assert outcomes["frames"] > 10, outcomes


def blank(content: bytes, numbers: range) -> bytes:
    """The clip with zeros in place of the packets `numbers`."""
    with open_clip(content, "clip") as clip:
        packets = [bytes(clip._packets[number]) for number in numbers]
    for packet in packets:
        assert content.count(packet) == 1
        content = content.replace(packet, bytes(len(packet)))
    return content


def test_a_damaged_frame_is_replaced_by_the_one_before() -> None:
    content = make_clip(codec="mjpeg", container="avi", pixel_format="yuvj420p", count=6)
    pictures = read_frames(blank(content, range(3, 4)), range(6), "clip")
    assert np.array_equal(pictures[3], pictures[2])
    assert not np.array_equal(pictures[2], pictures[1]) and not np.array_equal(pictures[4], pictures[2])


def test_a_clip_whose_frames_are_mostly_damaged_is_refused() -> None:
    content = make_clip(codec="mjpeg", container="avi", pixel_format="yuvj420p", count=6)
    with pytest.raises(BadSample, match="4 or more of the 6 frames asked for cannot be decoded") as raised:
        read_frames(blank(content, range(1, 5)), range(6), "clip")
    assert raised.value.reason == "decode"


def playlists(target: Path) -> dict[str, bytes]:
    """Texts that FFmpeg would follow to other files."""
    return {
        "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{target}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile {target}\n".encode(),
        "DASH": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            f'<Representation id="1"><BaseURL>file://{target}</BaseURL></Representation></AdaptationSet></Period></MPD>'
        ).encode(),
        "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "image sequence": f"{target}".encode(),
    }


@pytest.mark.parametrize("form", ["HLS", "concat", "DASH", "SDP", "image sequence"])
def test_playlists_are_refused_and_lead_nowhere(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "other.mp4"
    target.write_bytes(make_clip(count=3))
    opened, real = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *rest, **more: (opened.append(file), real(file, *rest, **more))[1]
    )
    assert reason_of(playlists(target)[form]) == "not_a_video"
    assert str(target) not in map(str, opened)


@pytest.mark.parametrize("fragments", [False, True])
def test_an_index_of_more_frames_than_bytes_is_not_built(fragments: bool) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if fragments else {}
    content = bytearray(make_clip(count=10, container_options=options))
    assert probe(bytes(content), "clip").frames == 10
    if fragments:
        struct.pack_into(">I", content, content.index(b"trun") + 8, 2**31)
    else:
        # Two thousand million samples of one byte each, without a list of them.
        struct.pack_into(">II", content, content.index(b"stsz") + 8, 1, 2**31)
        struct.pack_into(">I", content, content.index(b"stsc") + 16, 2**31)
        struct.pack_into(">I", content, content.index(b"stts") + 12, 2**31)
    with pytest.raises(BadSample, match="lists 2147483648 samples") as raised:
        probe(bytes(content), "clip")
    assert raised.value.reason == "decode"


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_index_is_looked_through_to_its_end(seed: int) -> None:
    random = np.random.default_rng(seed)
    content = bytearray(make_clip(count=5))
    start = content.index(b"moov")
    for place in random.integers(start - 4, len(content), 4):
        content[place] = random.integers(256)
    try:
        check_index(io.BytesIO(content), "clip")
    except BadSample as error:
        assert error.reason == "decode"


def test_a_codec_outside_the_list_is_refused() -> None:
    content = make_clip(codec="ffv1", container="matroska", count=3)
    with pytest.raises(BadSample, match="coded as ffv1") as raised:
        probe(content, "clip")
    assert raised.value.reason == "not_a_video"


def test_a_cover_picture_is_not_the_clip() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film = output.add_stream("libx264", rate=25)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        still = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        output.mux(cover.encode(still.reformat(format="yuvj420p")))
        output.mux(cover.encode(None))
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            frame.pts = number
            output.mux(film.encode(frame))
        output.mux(film.encode(None))
    info = probe(target.getvalue(), "clip")
    assert (info.width, info.height, info.frames) == (64, 48, 5)
