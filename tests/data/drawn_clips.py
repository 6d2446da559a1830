"""Small clips that tests make with PyAV: noise that moves, so that every frame differs from every other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

from aurora_ds.data.video_pyav import to_pixels

RATE = 25
CLIP_RECIPE = {
    "name": "clips",
    "family": "folder",
    "title": "x",
    "licence": "x",
    "obtain": "x",
    "layout": "x",
    "media": "video",
    "media_folders": ["clips"],
    "annotations": [{"format": "blip", "files": {"all": "annotations.json"}}],
    "samples_per_shard": 2,
}


def draw_frames(count: int, width: int, height: int) -> np.ndarray:
    """uint8 (count, height, width, 3): blocks of colour that shift by two pixels a frame, with a little noise."""
    random = np.random.default_rng(count + width)
    blocks = random.integers(0, 256, (height // 8 + 2, (width + 2 * count) // 8 + 2, 3), dtype=np.uint8)
    wide = blocks.repeat(8, 0).repeat(8, 1)
    frames = np.stack([wide[:height, 2 * n : 2 * n + width] for n in range(count)])
    noise = random.integers(-6, 7, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def make_clip(
    codec: str = "libx264",
    container: str = "mp4",
    count: int = 40,
    size: tuple[int, int] = (64, 48),
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    rotation: int = 0,
) -> bytes:
    """An encoded clip. `times`: seconds at which frames appear (default: RATE a second, from 0)."""
    target = io.BytesIO()
    with av.open(target, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        if rotation:
            stream.set_display_rotation(rotation)
        # Some codecs allow the frame rate only as their clock.
        base = Fraction(1, RATE) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        marks = range(count) if times is None else [round(second * 1000) for second in times]
        for pixels, mark in zip(draw_frames(count, *size), marks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = mark, base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


def decode_all(content: bytes, stream: int = 0) -> list[np.ndarray]:
    """Every frame by the plainest loop there is: the reference for reading some of them."""
    with av.open(io.BytesIO(content)) as container:
        container.streams.video[stream].thread_type = "NONE"
        return [to_pixels(frame) for frame in container.decode(video=stream)]
