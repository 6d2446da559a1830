"""Every clip of the reference material: what it is, or why it is none; and the second decoder over all of them."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_clips import decode_all, make_clip
from PIL import Image

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.video import probe, read_frames
from aurora_ds.data.video_pyav import open_clip, to_pixels
from aurora_ds.errors import AuroraError

# Size as shown and number of frames, or the reason of the BadSample.
EXPECTED: dict[str, tuple[int, int, int] | str] = {
    "decord/corrupted.mp4": (1280, 720, 50),
    "decord/flipping_a_pancake.mkv": (426, 240, 310),
    "decord/video_0.mov": (568, 320, 3),
    "decord/video_180.mov": (568, 320, 3),
    "decord/video_270.mov": (320, 568, 3),
    "derived/nasa_2s.gif": (160, 90, 10),
    "derived/nasa_audio_only.mp4": "not_a_video",
    "derived/nasa_faststart_3s.mp4": (320, 180, 75),
    "derived/nasa_faststart_TRUNCATED60.mp4": "decode",
    "derived/nasa_fragmented_3s.mp4": (320, 180, 75),
    "derived/nasa_gray_1s.mp4": (320, 180, 25),
    "derived/nasa_hevc_1s.mp4": (320, 180, 25),
    "derived/nasa_mjpeg_2s.avi": (320, 180, 50),
    "derived/nasa_mpeg4_mp3_3s.avi": (320, 180, 75),
    "derived/nasa_odd_dims_yuv444_2s.mp4": (321, 181, 50),
    "derived/nasa_vfr_4s.mp4": (320, 180, 55),
    "derived/nasa_vp9_3s.webm": (320, 180, 75),
    "derived/zero_bytes.mp4": "not_a_video",
    "torchcodec/av1_video.mkv": (640, 360, 125),
    "torchcodec/bt709_full_range.mp4": (1280, 720, 30),
    "torchcodec/h264_10bits.mp4": (200, 200, 30),
    "torchcodec/h265_video.mp4": (128, 128, 10),
    "torchcodec/nasa_13013.mp4": (320, 180, 325),
    "torchcodec/nasa_13013.mp4.audio.mp3": "not_a_video",
    "torchcodec/sine_mono_s16.wav": "not_a_video",
}
# One packet of it cannot be decoded: of its 50 frames 49 are its own.
DAMAGED = "decord/corrupted.mp4"
NOT_CLIPS = {".png", ".json", ".tsv", ".txt"}
VIDEOS = Path(__file__).parent / "videos"


@pytest.fixture(scope="module")
def videos(shared: Path) -> Path:
    folder = shared / "data" / "videos"
    if not folder.is_dir():
        pytest.skip("the reference material has no data/videos")
    return folder


def test_every_clip_of_the_material_is_in_the_table(videos: Path) -> None:
    present = {str(path.relative_to(videos)) for path in videos.rglob("*") if path.is_file()}
    clips = {name for name in present if Path(name).suffix not in NOT_CLIPS}
    assert clips == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_clip_is_what_the_table_says(videos: Path, name: str) -> None:
    content, expected = (videos / name).read_bytes(), EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(BadSample) as raised:
            probe(content, name)
        assert raised.value.reason == expected and name in str(raised.value)
        return
    info = probe(content, name)
    assert (info.width, info.height, info.frames) == expected
    first, last = read_frames(content, [0, info.frames - 1], name)
    assert first.shape == last.shape == (info.height, info.width, 3)


@pytest.mark.parametrize("name", [name for name, is_clip in EXPECTED.items() if not isinstance(is_clip, str)])
def test_frames_of_a_clip_equal_sequential_decoding(videos: Path, name: str) -> None:
    content = (videos / name).read_bytes()
    if name == DAMAGED:
        expected = decode_past_damage(content)
        assert len(expected) == 49
        pictures = iter(read_frames(content, range(50), name))
        # The frames that were decoded come in order; the one between them repeats its predecessor.
        matched = [any(np.array_equal(picture, frame) for picture in pictures) for frame in expected]
        assert all(matched)
        return
    expected = decode_all(content)
    wanted = np.random.default_rng(0).choice(len(expected), min(6, len(expected)), replace=False)
    for number, picture in zip(wanted, read_frames(content, wanted, name), strict=True):
        assert np.array_equal(picture, expected[number])


def decode_past_damage(content: bytes) -> list[np.ndarray]:
    """Sequential decoding that passes over packets that cannot be decoded."""
    frames = []
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                frames += [
                    to_pixels(frame) for frame in stream.codec_context.decode(packet if packet.size else None)
                ]
            except av.error.InvalidDataError:
                continue
    return frames


@pytest.mark.parametrize("number", [0, 1, 15, 35])
def test_frames_equal_the_reference_pictures(videos: Path, number: int) -> None:
    content = (videos / "torchcodec" / "nasa_13013.mp4").read_bytes()
    path = videos / "torchcodec" / "ref" / f"nasa_13013.mp4.stream0.frame{number:06d}.png"
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    picture = read_frames(content, [number], "nasa")[0]
    # Equal with the FFmpeg that PyAV 18 brings; 1 allows another release to round otherwise.
    assert np.abs(picture - expected).max() <= 1


@pytest.fixture(scope="module")
def torchcodec() -> None:
    """Skips where torchcodec is not installed or finds no FFmpeg."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec cannot be used here: {str(error).strip().splitlines()[0]}")


def assert_torchcodec_agrees(content: bytes, name: str) -> None:
    with open_clip(content, name) as clip:
        frames = len(clip)
    numbers = [frames * position // 8 for position in (5, 1, 1, 7, 0)]
    ours, theirs = (read_frames(content, numbers, name, decoder=each) for each in ("pyav", "torchcodec"))
    assert theirs.dtype == np.uint8 and ours.shape == theirs.shape
    if "10bits" in name:
        # FFmpeg releases enlarge the colour planes of 10-bit pictures by different filters.
        assert 0 < np.abs(ours.astype(int) - theirs).mean() < 4
    else:
        assert np.array_equal(ours, theirs)


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize("name", ["nasa_13013.mp4", "h265_video.mp4", "av1_video.mkv", "video_270.mov"])
def test_torchcodec_gives_the_same_frames(name: str) -> None:
    assert_torchcodec_agrees((VIDEOS / name).read_bytes(), name)


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize(
    "form",
    [
        {
            "options": {"g": "10", "bf": "2"},
            "container": "matroska",
            "times": [3 + 0.04 * n for n in range(40)],
        },
        {"times": [0.04 * n for n in range(20)] + [0.8 + 0.16 * n for n in range(20)]},
        {"rotation": 180},
    ],
    ids=["late start", "variable rate", "turned"],
)
def test_torchcodec_gives_the_same_frames_of_unusual_clips(form: dict) -> None:
    assert_torchcodec_agrees(make_clip(**form), "clip")


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize("name", [name for name, is_clip in EXPECTED.items() if not isinstance(is_clip, str)])
def test_torchcodec_gives_the_same_frames_of_the_material(videos: Path, name: str) -> None:
    content = (videos / name).read_bytes()
    if name == DAMAGED:
        with pytest.raises(BadSample, match="by torchcodec") as raised:
            read_frames(content, range(50), name, decoder="torchcodec")
        assert raised.value.reason == "decode"
    else:
        assert_torchcodec_agrees(content, name)


def test_torchcodec_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from aurora_ds.data import video_torchcodec

    video_torchcodec._decoder_class.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(AuroraError, match=r"data\.video\.decoder=pyav"):
        read_frames(make_clip(count=3), [0], "clip", decoder="torchcodec")
