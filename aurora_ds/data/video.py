"""Frames of encoded clips: what a clip is, frames by number, frames by a sampling strategy, and clips for storage.

Containers, frame numbers and times are PyAV's work (aurora_ds.data.video_pyav), whatever decodes. Times are seconds
from the clip's first frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from aurora_ds.data.sampling import CLIP_SECONDS, ShortClips, Strategy, choose
from aurora_ds.data.video_container import MAX_PIXELS
from aurora_ds.data.video_pyav import Clip, VideoInfo, open_clip
from aurora_ds.data.video_storage import frames_as_jpeg as frames_as_jpeg
from aurora_ds.data.video_storage import reencode as reencode

# auto is PyAV: torchcodec is not faster on a CPU, and its colours of 10-bit clips differ.
Decoder = Literal["auto", "pyav", "torchcodec"]


def probe(content: bytes | Path, name: str, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Length, frames, size and codec of a clip; its first frame is decoded. Raises BadSample."""
    with open_clip(content, name, max_pixels) as clip:
        return clip.info()


def read_frames(
    content: bytes | Path,
    numbers: Sequence[int],
    name: str,
    max_pixels: int = MAX_PIXELS,
    decoder: Decoder = "auto",
) -> np.ndarray:
    """uint8 (T, H, W, 3): frames by number from 0, as shown. Raises BadSample; AuroraError for wrong numbers."""
    with open_clip(content, name, max_pixels) as clip:
        return _pictures(content, clip, numbers, decoder)


def sample_frames(
    content: bytes | Path,
    count: int,
    how: Strategy,
    generator: np.random.Generator | None = None,
    *,
    name: str,
    window: tuple[float, float | None] | None = None,
    clip_seconds: float = CLIP_SECONDS,
    size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    decoder: Decoder = "auto",
    short_clips: ShortClips = "repeat",
) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 (count, H, W, 3), seconds float64 (count,)): `count` frames chosen as sampling.choose does.

    `window`: (start, end) in seconds, end None for the clip's end. `size`: frames are scaled to size x size, aspect not
    kept, as the published readers do it (FFmpeg's bicubic filter, on the way from YUV to RGB). Raises BadSample with
    its reason; AuroraError for a wrong strategy or count.
    """
    with open_clip(content, name, max_pixels) as clip:
        numbers = choose(
            clip.times, clip.seconds, count, how, generator, window, clip_seconds, f"clip {name}", short_clips
        )
        return _pictures(content, clip, numbers, decoder, size), clip.times[numbers]


def _pictures(
    content: bytes | Path, clip: Clip, numbers: Sequence[int], decoder: Decoder, size: int | None = None
) -> np.ndarray:
    clip.check(numbers)
    if decoder != "torchcodec":
        return clip.pictures(numbers, size)
    from aurora_ds.data import video_torchcodec

    frames = video_torchcodec.pictures(content, clip, numbers)
    return frames if size is None else resize_frames(frames, size)


def resize_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 (T, H, W, 3) -> (T, size, size, 3) by Pillow's bicubic filter, for frames that come as RGB."""
    resized = [Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(frame) for frame in resized])
