"""What is read, and how."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from aurora_ds.config.section import Section

Sampling = Literal["uniform", "stride", "centre", "segment", "random", "head_tail", "clip"]


def _stretch(window: Any) -> Any:
    """A window, or one sentence for every way to get it wrong: a union of types tells of those that were not meant."""
    if window is None or window == "moments":
        return window
    start, end = window if isinstance(window, list | tuple) and len(window) == 2 else (None, None)
    last = math.inf if end is None else end
    if not all(type(each) in (int, float) for each in (start, last)) or not 0 <= start < last:
        raise ValueError("moments, or [start, end] in seconds with 0 <= start < end, where end may be null")
    return start, end


Stretch = Annotated[Literal["moments"] | tuple[float, float | None] | None, BeforeValidator(_stretch)]


class MixEntry(Section):
    """One dataset of a training mixture."""

    shards: str
    split: str = "train"
    weight: PositiveFloat = Field(
        1.0, description="how many times its samples are seen in an epoch; 0.5: each once in two epochs"
    )


class VideoConfig(Section):
    """Which frames of a clip are read, and by what."""

    frames: PositiveInt = 8
    short_clips: Literal["repeat", "error"] = Field(
        "repeat",
        description="of a clip with fewer frames than asked for: repeat them evenly, or take it for unreadable",
    )
    train_sampling: Sampling = Field("random", description="how frames are picked in training")
    eval_sampling: Sampling = Field("uniform", description="how frames are picked in evaluation")
    window: Stretch = Field(
        None,
        description="[start, end] in seconds: frames from this stretch of every clip, end null: to its end; moments: "
        "train on the moments of clips (DiDeMo), each with frames from its own stretch, evaluate on whole clips",
    )
    decoder: Literal["auto", "pyav", "torchcodec"] = Field(
        "auto", description="auto: PyAV; torchcodec needs FFmpeg's shared libraries"
    )


class DataConfig(Section):
    """Where shards are and how they are read."""

    shards: str | None = Field(
        None, description="folder that `shards convert` wrote, or its http(s)://, s3://, gs:// or hf:// URL"
    )
    cache: str | None = Field(
        None,
        description="folder for shards from URLs; unset: $AURORA_DS_CACHE, else ~/.cache/aurora_ds/shards",
    )
    cache_gb: PositiveFloat = Field(100.0, description="most that the cache may hold, in 10^9 bytes")
    train_split: str = "train"
    eval_split: str = "test"
    mix: list[MixEntry] = Field(
        default_factory=list,
        description="datasets to train on together, in place of shards and train_split; evaluation reads shards",
    )
    media: Literal["seen", "blank"] = Field(
        "seen",
        description="blank: the mean colour in the place of every image and clip, in training and evaluation: what "
        "text alone can do",
    )
    expand: Literal["pairs", "media"] = Field(
        "pairs",
        description="an epoch is every pair once, or every medium once with one annotation drawn for it",
    )
    shots: PositiveInt | None = Field(
        None,
        description="few-shot: train on this many media of each training split, drawn by the seed; null: on all",
    )
    lanes: PositiveInt = Field(
        64, description="parts that an epoch is cut into; ranks share them out, so a multiple of their number"
    )
    window: PositiveInt = Field(
        4096,
        description="samples of a lane that are shuffled among each other; larger: better mixed, less local",
    )
    workers: int = Field(2, ge=0)
    prefetch: PositiveInt = 2
    decoded_mb: int = Field(
        64,
        ge=0,
        description="memory per worker for decoded media, so that another pair of one need not decode it; a smaller "
        "window brings the pairs of a medium together",
    )
    augment: Literal["train", "none"] = Field(
        "train", description="train: crop, flip, jitter of colours, RandAugment; none: test transform"
    )
    crop_scale: tuple[float, float] = (0.5, 1.0)
    horizontal_flip: bool = True
    randaugment: bool = True
    randaugment_level: int = Field(5, ge=0, le=10, description="strength of its operations; EVE: 7")
    colour_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far brightness, contrast and saturation change; EVE: 0.4, without RandAugment. Visual "
        "grounding has its own (grounding.colour_jitter)",
    )
    max_pixels: PositiveInt = Field(
        100_000_000, description="images with more pixels are refused before decoding"
    )
    image_decoder: Literal["auto", "pillow", "simplejpeg"] = Field(
        "auto", description="auto: simplejpeg where it is installed, else Pillow; the pixels are the same"
    )
    video: VideoConfig = VideoConfig()
    bad_samples: Literal["error", "skip"] = Field(
        "skip", description="in training: put another sample in the place of an unreadable one, or stop"
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="with skip: the part of an epoch's samples above which the run stops"
    )
    slow_seconds: PositiveFloat = Field(
        60.0, description="say which shard is waited for when a batch takes longer"
    )
