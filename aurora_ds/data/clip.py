"""A sample's clip -> frames -> float32 (T, 3, S, S), for clips stored as video and for those stored as JPEG frames.

As published (BLIP and Aurora on video), frames are resized straight to S x S, aspect not kept, then normalised like
images. The published readers resize inside the decoder (decord, by FFmpeg's bicubic filter); so does `sample_clip` with
a `size`. Without one, and for clips stored as JPEG frames, Pillow's bicubic filter resizes, as it does images.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.decode import open_image
from aurora_ds.data.image import PUBLISHED, Augmentation, write_pixels, write_test, write_train
from aurora_ds.data.reader import Sample
from aurora_ds.data.sampling import CLIP_SECONDS, ShortClips, Strategy, choose
from aurora_ds.data.video import Decoder, sample_frames

BICUBIC = Image.Resampling.BICUBIC


def sample_clip(
    sample: Sample,
    count: int,
    how: Strategy,
    generator: np.random.Generator | None = None,
    *,
    window: tuple[float, float | None] | None = None,
    clip_seconds: float = CLIP_SECONDS,
    size: int | None = None,
    max_pixels: int,
    decoder: Decoder = "auto",
    short_clips: ShortClips = "repeat",
) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 (count, H, W, 3), seconds float64 (count,)) of a sample of kind "video" or "frames".

    `size`: frames come resized to size x size, for transforms that do not cut: quicker, and less to keep in memory.
    A clip stored as frames is sampled by the same strategies, each stored frame standing for an equal stretch of the
    clip. Raises BadSample; AuroraError for a wrong strategy or count.
    """
    if sample.kind == "video":
        return sample_frames(
            sample.media,
            count,
            how,
            generator,
            name=sample.key,
            window=window,
            clip_seconds=clip_seconds,
            size=size,
            max_pixels=max_pixels,
            decoder=decoder,
            short_clips=short_clips,
        )
    if sample.kind != "frames":
        raise BadSample(f"Sample {sample.key} is of kind {sample.kind!r}, not a clip.", reason="not_a_video")
    stamps, seconds = _stored_times(sample)
    stretches = np.arange(len(stamps)) * (seconds / len(stamps))
    name = f"clip {sample.key}"
    numbers = choose(stretches, seconds, count, how, generator, window, clip_seconds, name, short_clips)
    # A stored frame that is asked for several times is decoded once.
    pixels: dict[int, np.ndarray] = {}
    for number in dict.fromkeys(numbers.tolist()):
        name = f"{sample.key}, frame {number}"
        image = open_image(sample.parts[number].content, max_pixels, name)
        pixels[number] = np.asarray(image if size is None else image.resize((size, size), BICUBIC))
    frames = [pixels[number] for number in numbers.tolist()]
    if len({frame.shape for frame in frames}) > 1:
        raise BadSample(f"Sample {sample.key} holds frames of different sizes.", reason="decode")
    return np.stack(frames), stamps[numbers]


def clip_transform(frames: np.ndarray, size: int) -> Tensor:
    """uint8 (T, H, W, 3) -> float32 (T, 3, size, size), normalised.

    Bicubic, aspect not kept, unless the frames have that size already.
    """
    out = torch.empty(len(frames), 3, size, size)
    write_clip(frames, out.numpy())
    return out


def write_clip(frames: np.ndarray, rows: np.ndarray) -> None:
    """clip_transform into `rows`, float32 (T, 3, size, size)."""
    for frame, planes in zip(frames, rows, strict=True):
        if frame.shape[:2] == planes.shape[1:]:
            write_pixels(frame, planes)
        else:
            write_test(Image.fromarray(frame), planes)


def train_clip_transform(
    frames: np.ndarray,
    size: int,
    random: np.random.Generator,
    augmentation: Augmentation = PUBLISHED,
) -> Tensor:
    """uint8 (T, H, W, 3) -> float32 (T, 3, size, size), normalised, every frame augmented by the same draws.

    One crop, one flip and the same operations for all frames, so that nothing moves that did not move in the clip.
    """
    out = torch.empty(len(frames), 3, size, size)
    write_train_clip(frames, out.numpy(), random, augmentation)
    return out


def write_train_clip(
    frames: np.ndarray, rows: np.ndarray, random: np.random.Generator, augmentation: Augmentation
) -> None:
    """train_clip_transform into `rows`, float32 (T, 3, size, size)."""
    ours = copy.deepcopy(random)
    for number, (frame, planes) in enumerate(zip(frames, rows, strict=True)):
        # The last frame draws from `random` itself, which so ends where one image would leave it.
        draws = random if number == len(frames) - 1 else copy.deepcopy(ours)
        write_train(Image.fromarray(frame), planes, draws, augmentation)


def _stored_times(sample: Sample) -> tuple[np.ndarray, float]:
    """(seconds of each stored frame, seconds of the clip) by the record. Raises BadSample when they do not fit."""
    stamps, source = sample.record.get("frame_seconds"), sample.record.get("source")
    seconds = source.get("seconds") if isinstance(source, dict) else None
    fits = isinstance(stamps, list) and len(stamps) == len(sample.parts) and len(stamps) > 0
    numbers = [*(stamps if fits else []), seconds]
    if not fits or not all(isinstance(each, int | float) for each in numbers) or not seconds > 0:
        raise BadSample(
            f"Sample {sample.key} has {len(sample.parts)} frames, and its record must say when each is seen "
            "(frame_seconds) and how long the clip is (source.seconds).",
            reason="record",
        )
    return np.asarray(stamps, dtype=np.float64), float(seconds)
