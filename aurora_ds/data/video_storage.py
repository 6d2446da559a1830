"""Clips for storage in shards: as JPEG frames, or encoded again with short distances between key frames.

Both give the same bytes for the same clip and the same version of PyAV: one thread, no dates, no encoder's name.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

from PIL import Image

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.sampling import choose
from aurora_ds.data.video_container import MAX_PIXELS
from aurora_ds.data.video_pyav import Clip, exact_bicubic, open_clip
from aurora_ds.errors import AuroraError

JPEG_QUALITY = 90
CLOCK = Fraction(1, 90_000)  # of a second: what times are rounded to
# x264: visually near the source, and far quicker to encode than its default preset at a slightly larger size. Without
# cpu-independent it uses instructions that give other bytes on other processors, and at times from call to call.
X264 = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "cpu-independent=1"}


def frames_as_jpeg(
    content: bytes | Path, count: int, size: int | None, name: str, max_pixels: int = MAX_PIXELS
) -> list[tuple[float, bytes]]:
    """[(seconds, JPEG)] of `count` frames at the centres of equal stretches of the clip, in order.

    Fewer when the clip has fewer: none is stored twice. `size`: length of the shorter side, never enlarged; None
    keeps the size. Raises BadSample.
    """
    with open_clip(content, name, max_pixels) as clip:
        numbers = sorted(set(choose(clip.times, clip.seconds, count, "centre").tolist()))
        stored = []
        for number, pixels in zip(numbers, clip.each(numbers), strict=True):
            image = shrink(Image.fromarray(pixels), size)
            target = io.BytesIO()
            image.save(target, "JPEG", quality=JPEG_QUALITY)
            stored.append((float(clip.times[number]), target.getvalue()))
        return stored


def reencode(
    content: bytes | Path,
    gop_seconds: float = 0.5,
    size: int | None = None,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """The clip as an mp4 of H.264 with a key frame at least every `gop_seconds`; every frame keeps its time.

    Sound is dropped, rotation is applied to the pixels, and `size` is as in frames_as_jpeg. Sides are made even by
    leaving out the last row or column, which 4:2:0 needs. Raises BadSample; AuroraError where PyAV lacks x264.
    """
    import av

    if "libx264" not in av.codecs_available:
        raise AuroraError(
            "This PyAV was built without x264, which --video-reencode needs. Install PyAV from PyPI (`pip install "
            "av`), whose packages have it, or store frames with --video-frames."
        )
    with open_clip(content, name, max_pixels) as clip:
        try:
            return _encode(clip, gop_seconds, size)
        except av.FFmpegError as error:
            raise BadSample(f"Clip {name} cannot be encoded as H.264: {error}.", reason="decode") from error


def _encode(clip: Clip, gop_seconds: float, size: int | None) -> bytes:
    import av
    from av.codec.context import Flags
    from av.video.frame import PictureType

    target, numbers, next_key, mark = io.BytesIO(), range(len(clip)), 0.0, -1
    with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        rate = max(Fraction(len(clip) / clip.seconds).limit_denominator(1001), Fraction(1, 1001))
        stream = output.add_stream("libx264", rate=rate, options=X264)
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", CLOCK
        # Key frames are asked for by time below, so that a variable rate does not stretch the distance.
        stream.codec_context.gop_size = len(clip)
        stream.codec_context.flags |= Flags.bitexact
        for number, pixels in zip(numbers, clip.each(numbers), strict=True):
            image = shrink(Image.fromarray(pixels), size)
            image = image.crop((0, 0, image.width // 2 * 2 or 2, image.height // 2 * 2 or 2))
            if number == 0:
                stream.width, stream.height = image.size
            picture, second = av.VideoFrame.from_image(image), float(clip.times[number])
            picture = picture.reformat(format="yuv420p", interpolation=exact_bicubic(), threads=1)
            # Two frames within a tick of the clock still come one after the other.
            mark = max(round(second / CLOCK), mark + 1)
            picture.pts, picture.time_base = mark, CLOCK
            if second >= next_key:
                picture.pict_type, next_key = PictureType.I, second + gop_seconds - 1e-6
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return target.getvalue()


def shrink(image: Image.Image, size: int | None) -> Image.Image:
    """The image with its shorter side at most `size`, bicubic; aspect kept, never enlarged."""
    shorter = min(image.size)
    if size is None or shorter <= size:
        return image
    width, height = (max(1, round(side * size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
