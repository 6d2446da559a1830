"""Frames by number are those of a plain sequential decode, bit for bit, whatever the codec and container."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_clips import RATE, decode_all, make_clip
from PIL import Image

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.video import probe, read_frames, resize_frames, sample_frames
from aurora_ds.data.video_pyav import Clip, open_clip
from aurora_ds.errors import AuroraError

VIDEOS = Path(__file__).parent / "videos"
REAL = [
    "nasa_13013.mp4",
    "nasa_vp8_hidden_frames.webm",
    "h265_video.mp4",
    "av1_video.mkv",
    "video_270.mov",
]
MADE = {
    "h264, closed groups": {"options": {"g": "10", "bf": "2"}},
    "h264, open groups": {
        "options": {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
    },
    "h264, gradual refresh": {"options": {"g": "10", "x264-params": "intra-refresh=1"}, "count": 60},
    "h264 in avi, reordered": {"container": "avi", "options": {"g": "10", "bf": "2"}},
    "h264 in mkv, 4:2:2": {"container": "matroska", "options": {"g": "7"}, "pixel_format": "yuv422p"},
    "h264 in ts": {"container": "mpegts", "options": {"g": "7", "bf": "2"}},
    "h264 in flv": {"container": "flv", "options": {"g": "7"}},
    "h264, fragments": {
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
        "options": {"g": "7", "bf": "2"},
    },
    "h264, 10 bits": {"options": {"g": "7"}, "pixel_format": "yuv420p10le"},
    "h264, 4:4:4, odd": {"options": {"g": "7"}, "pixel_format": "yuv444p", "size": (65, 49)},
    "h264, late start": {
        "container": "matroska",
        "options": {"g": "10"},
        "times": [5 + n / RATE for n in range(40)],
    },
    "hevc, open groups": {
        "codec": "libx265",
        "options": {"x265-params": "keyint=10:min-keyint=10:open-gop=1:log-level=none:pools=none"},
    },
    "vp9, odd": {
        "codec": "libvpx-vp9",
        "container": "webm",
        "size": (65, 49),
        "options": {"g": "10", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "16"},
    },
    "vp8": {"codec": "libvpx", "container": "webm", "options": {"g": "10", "auto-alt-ref": "1"}},
    "mpeg4 in avi, reordered": {"codec": "mpeg4", "container": "avi", "options": {"g": "10", "bf": "2"}},
    "mpeg2 in mpg": {"codec": "mpeg2video", "container": "mpeg", "options": {"g": "9", "bf": "2"}},
    "wmv2": {"codec": "wmv2", "container": "asf", "options": {"g": "9"}},
    "mjpeg": {"codec": "mjpeg", "container": "avi", "pixel_format": "yuvj420p"},
    "gif": {"codec": "gif", "container": "gif", "pixel_format": "rgb8"},
    "prores": {"codec": "prores_ks", "container": "mov", "pixel_format": "yuv422p10le"},
}


@pytest.mark.parametrize("case", MADE)
def test_frames_of_a_made_clip_equal_sequential_decoding(case: str) -> None:
    content = make_clip(**MADE[case])
    assert_equals_sequential(content, case)


def test_the_readme_tells_where_every_clip_is_from() -> None:
    readme = (VIDEOS / "README.md").read_text()
    present = {path.name for path in VIDEOS.iterdir()} - {"README.md"}
    assert set(REAL) < present and all(name in readme for name in present)


@pytest.mark.parametrize("name", REAL)
def test_frames_of_a_real_clip_equal_sequential_decoding(name: str) -> None:
    assert_equals_sequential((VIDEOS / name).read_bytes(), name)


def assert_equals_sequential(content: bytes, name: str) -> None:
    """All frames, and some dozen random choices of frames, against the plain loop."""
    expected = decode_all(content)
    random = np.random.default_rng(0)
    with open_clip(content, name) as clip:
        assert len(clip) == len(expected)
        every = [np.array_equal(*pair) for pair in zip(clip.each(range(len(clip))), expected, strict=True)]
        assert all(every)
    for size in [1, 1, 1, 2, 2, 3, 4, 5]:
        wanted = random.choice(len(expected), min(size, len(expected)), replace=False)
        for number, picture in zip(wanted, read_frames(content, wanted, name), strict=True):
            assert np.array_equal(picture, expected[number])


def count_fed_packets(content: bytes, wanted: list[int], jumps: bool = True) -> int:
    """How many packets are handed to the decoder to get the frames `wanted`."""
    return count_work(content, wanted, jumps)[0]


def count_work(content: bytes, wanted: list[int], jumps: bool = True) -> tuple[int, int]:
    """(packets handed to the decoder, frames that it made of them) to get the frames `wanted`."""
    with open_clip(content, "clip", jumps=jumps) as clip:
        context, packets, frames = clip._context, [], []

        class Counting:
            flush_buffers, name, skip_frame = context.flush_buffers, context.name, "DEFAULT"

            def decode(self, packet: object) -> list:
                context.skip_frame = self.skip_frame
                packets.append(packet)
                made = context.decode(packet)
                frames.extend(made)
                return made

        clip._context = Counting()
        list(clip.each(wanted))
        return len(packets), len(frames)


def test_decoding_jumps_to_key_frames_but_never_back() -> None:
    short = make_clip(options={"g": "10", "bf": "0", "sc_threshold": "0"})
    assert count_fed_packets(short, [20]) <= 3
    assert count_fed_packets(short, [3, 5, 39]) <= 6 + 10 + 2
    # Both are in one group: going forward is cheaper than starting it again.
    assert count_fed_packets(short, [21, 25]) <= 8
    assert count_fed_packets(short, [39], jumps=False) >= 40


def test_a_single_group_is_decoded_forward_once() -> None:
    single = make_clip(options={"g": "250", "bf": "0", "sc_threshold": "0"})
    assert count_fed_packets(single, [0, 10, 20, 30]) <= 32


def test_pictures_that_no_other_needs_are_passed_over() -> None:
    content = make_clip(options={"g": "250", "bf": "3", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"})
    # Three of four pictures are B frames, which nothing refers to.
    assert count_work(content, [38])[1] <= 15
    assert count_work(content, [38], jumps=False)[1] >= 38


def test_a_frame_that_jumping_does_not_find_is_found_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_clip(options={"g": "10", "bf": "2"})
    expected = decode_all(content)
    # A container that calls every picture a key frame would lead jumps astray.
    monkeypatch.setattr(Clip, "_key", lambda self, mark: len(self._packets) - 2 if self._jumps else 0)
    for number, picture in zip([3, 25], read_frames(content, [3, 25], "clip"), strict=True):
        assert np.array_equal(picture, expected[number])


def test_gradual_refresh_is_noticed_and_decoded_in_turn() -> None:
    content = make_clip(**MADE["h264, gradual refresh"])
    with open_clip(content, "clip") as clip:
        assert clip._keys and clip._jumps
        list(clip.each([45]))
        assert not clip._jumps


def test_frames_come_in_the_order_asked_for_and_repeat() -> None:
    content = make_clip(count=12)
    expected = decode_all(content)
    pictures = read_frames(content, [7, 2, 2, 11], "clip")
    assert pictures.dtype == np.uint8 and pictures.shape == (4, 48, 64, 3)
    assert all(np.array_equal(pictures[i], expected[n]) for i, n in enumerate([7, 2, 2, 11]))


def test_frames_beyond_the_clip_are_the_callers_mistake() -> None:
    content = make_clip(count=12)
    with pytest.raises(AuroraError, match="frames 0 to 11"):
        read_frames(content, [3, 12], "clip")


@pytest.mark.parametrize("number", [15, 35])
def test_frames_equal_those_of_the_ffmpeg_program(number: int) -> None:
    expected = np.asarray(Image.open(VIDEOS / f"nasa_13013.mp4.stream0.frame0000{number}.png").convert("RGB"))
    picture = read_frames((VIDEOS / "nasa_13013.mp4").read_bytes(), [number], "nasa")[0]
    # FFmpeg releases may round the conversion from YUV differently; the one PyAV brings gives equal pixels.
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_of_several_video_streams_the_first_counts() -> None:
    info = probe(VIDEOS / "nasa_13013.mp4", "nasa")
    assert (info.width, info.height, info.frames, info.codec) == (320, 180, 325, "h264")
    assert info.seconds == pytest.approx(13.0) and info.fps == pytest.approx(25.0)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(degrees: int) -> None:
    plain, turned = make_clip(count=3), make_clip(count=3, rotation=degrees)
    info = probe(turned, "clip")
    assert info.rotation == degrees
    assert (info.width, info.height) == ((64, 48) if degrees % 180 == 0 else (48, 64))
    expected = np.rot90(read_frames(plain, [1], "clip")[0], degrees // 90)
    assert np.array_equal(read_frames(turned, [1], "clip")[0], expected)


def test_times_start_at_zero_and_follow_a_variable_rate() -> None:
    marks = [0.04 * n for n in range(10)] + [0.4 + 0.2 * n for n in range(10)]
    late = [7 + mark for mark in marks]
    with open_clip(make_clip(container="matroska", count=20, times=late), "clip") as clip:
        assert clip.times == pytest.approx(marks, abs=2e-3)
        assert clip.seconds == pytest.approx(2.24, abs=0.05)
        assert clip.shown_at(0) == pytest.approx(7, abs=2e-3)


def test_seconds_are_those_of_the_frames_on_screen() -> None:
    marks = [0.04 * n for n in range(10)] + [0.4 + 0.2 * n for n in range(10)]
    content = make_clip(container="matroska", count=20, times=marks)
    # 2.24 s in four: the centres are 0.28, 0.84, 1.40 and 1.96 s, and half of the frames come in the first 0.4 s.
    _, seconds = sample_frames(content, 4, "centre", name="clip")
    assert seconds == pytest.approx([0.28, 0.8, 1.4, 1.8], abs=2e-3)


def test_frames_before_an_edits_start_are_not_shown() -> None:
    source, target = make_clip(options={"g": "50", "bf": "2"}), io.BytesIO()
    with av.open(io.BytesIO(source)) as read, av.open(target, "w", format="mp4") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                # An edit list makes the first ten frames a run-up: needed for decoding, before second 0.
                packet.pts, packet.dts = packet.pts - 5120, packet.dts - 5120
                packet.stream = stream
                write.mux(packet)
    with av.open(io.BytesIO(target.getvalue())) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    assert_equals_sequential(target.getvalue(), "edited")


def test_an_info_tells_the_extension_that_fits_the_content() -> None:
    assert probe(make_clip(count=2, container="matroska"), "clip").extension == "mkv"
    assert probe(make_clip(count=2, container="mov"), "clip").extension == "mov"
    assert probe(make_clip(count=2, container="webm", codec="libvpx"), "clip").extension == "webm"
    assert probe(make_clip(container="mpegts"), "clip").extension == "ts"


def test_an_info_calls_the_codec_by_its_usual_name() -> None:
    assert probe(VIDEOS / "av1_video.mkv", "clip").codec == "av1"


def test_a_clip_with_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(BadSample, match="64 x 48") as raised:
        read_frames(make_clip(count=2), [0], "clip", max_pixels=64 * 48 - 1)
    assert raised.value.reason == "too_large"


def test_a_file_is_read_like_its_bytes() -> None:
    path = VIDEOS / "h265_video.mp4"
    assert probe(path, "clip") == probe(path.read_bytes(), "clip")


def test_frames_can_come_resized_close_to_pillows_way() -> None:
    content = (VIDEOS / "nasa_13013.mp4").read_bytes()
    frames, seconds = sample_frames(content, 4, "uniform", name="nasa")
    small, same_seconds = sample_frames(content, 4, "uniform", name="nasa", size=112)
    assert small.shape == (4, 112, 112, 3) and np.array_equal(seconds, same_seconds)
    by_pillow = resize_frames(frames, 112).astype(int)
    # FFmpeg scales the colour planes before they are joined with the brightness, Pillow after.
    assert np.abs(small - by_pillow).mean() < 1.5
    assert np.array_equal(small, sample_frames(content, 4, "uniform", name="nasa", size=112)[0])


def test_a_turned_clip_comes_resized_the_right_way_up() -> None:
    turned = make_clip(count=3, rotation=90)
    small = sample_frames(turned, 1, "uniform", name="clip", size=24)[0][0].astype(int)
    whole = sample_frames(turned, 1, "uniform", name="clip")[0]
    whole = resize_frames(whole, 24)[0]
    assert np.abs(small - whole).mean() < 0.3 * np.abs(np.rot90(small, 2) - whole).mean()


def test_a_size_that_changes_inside_a_clip_becomes_the_first_one() -> None:
    parts = [make_clip(container="mpegts", count=20, size=size) for size in ((64, 48), (96, 32))]
    pictures = read_frames(b"".join(parts), range(36), "clip")
    assert pictures.shape == (36, 48, 64, 3)
    assert {frame.shape for frame in decode_all(b"".join(parts))} == {(48, 64, 3), (32, 96, 3)}
