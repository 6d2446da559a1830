"""Media that a caller hands over, in place of shards: paths, bytes, Pillow images, arrays -> Medium.

They are decoded and their frames chosen as evaluation does it, so that a file gives the same tensor as the sample of a
shard that holds it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from aurora_ds.config import RunConfig
from aurora_ds.data.blank import BlankMedium
from aurora_ds.data.decode import as_rgb, open_image
from aurora_ds.data.media import Medium, clip_window, frame_draws
from aurora_ds.data.sampling import choose
from aurora_ds.data.video import sample_frames
from aurora_ds.errors import AuroraError

Kind = Literal["image", "video", "pair"]


def given_medium(kind: Kind, given: Any, config: RunConfig, name: str) -> Medium | BlankMedium:
    """A medium decoded.

    Args:
        kind: "image": a path, encoded bytes, a Pillow image, or uint8 (H, W, 3). "video": a path, encoded bytes, or
            frames uint8 (T, H, W, 3), which stand for equal stretches of the clip. "pair": two images.
        config: its data section says how images are decoded and which frames are taken.
        name: what messages call what has no path.
    Raises: AuroraError for another type or shape, a file that cannot be read, content that cannot be decoded.
    """
    record: dict[str, Any] = {}
    if kind == "image":
        pixels: Any = _image(given, config, name)
        record = {"kind": "image", "width": pixels.width, "height": pixels.height}
    elif kind == "video":
        pixels = _clip(given, config, name)
    else:
        pixels = [_image(one, config, f"{name}, image {number}") for number, one in enumerate(given)]
    medium = Medium(_name(given, name), record, pixels)
    if config.data.media == "blank":
        return BlankMedium(medium.key, record, medium.shape(1)[:-3])
    return medium


def _image(given: Any, config: RunConfig, name: str) -> Image.Image:
    data = config.data
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview):
        return open_image(_content(given), data.max_pixels, _name(given, name), data.image_decoder)
    if isinstance(given, Image.Image):
        try:
            return as_rgb(given)
        except (
            OSError,
            SyntaxError,
            ValueError,
        ) as error:  # a file that Pillow has not read to its end before
            raise AuroraError(f"{name} cannot be decoded: {error}.") from error
    if isinstance(given, np.ndarray):
        return Image.fromarray(_checked(given, 3, "an image is uint8 (H, W, 3)", name))
    raise AuroraError(
        f"{name} is of type {type(given).__name__}. An image is a path, the bytes of a JPEG, PNG, WebP, GIF or BMP "
        "file, a Pillow image, or a NumPy array uint8 (H, W, 3) in RGB."
    )


def _clip(given: Any, config: RunConfig, name: str) -> np.ndarray:
    video = config.data.video
    window, draws = clip_window(video), frame_draws(config)
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview):
        return sample_frames(
            existing_file(given) if isinstance(given, str | os.PathLike) else bytes(given),
            video.frames,
            video.eval_sampling,
            draws,
            name=_name(given, name),
            window=window,
            size=config.backbone.vision.image_size,
            max_pixels=config.data.max_pixels,
            decoder=video.decoder,
            short_clips=video.short_clips,
        )[0]
    if isinstance(given, np.ndarray):
        frames = _checked(given, 4, "a clip is uint8 (T, H, W, 3)", name)
        if window is not None or video.eval_sampling == "clip":
            raise AuroraError(
                f"{name} is an array, which has frames but no seconds, so data.video.window and the sampling `clip` "
                "mean nothing to it. Cut the array yourself, and set data.video.window=null and "
                "data.video.eval_sampling=uniform."
            )
        numbers = choose(
            np.arange(len(frames)),
            len(frames),
            video.frames,
            video.eval_sampling,
            draws,
            name=name,
            short_clips=video.short_clips,
        )
        return frames[numbers]
    raise AuroraError(
        f"{name} is of type {type(given).__name__}. A clip is a path, the bytes of a video file, or a NumPy array of "
        "frames uint8 (T, H, W, 3) in RGB."
    )


def _checked(array: np.ndarray, dimensions: int, wanted: str, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-1] != 3 or 0 in array.shape:
        raise AuroraError(
            f"{name} is an array of {array.dtype} {array.shape}, but {wanted}, RGB from 0 to 255, not empty."
        )
    return np.ascontiguousarray(array)


def _name(given: Any, name: str) -> str:
    return str(given) if isinstance(given, str | os.PathLike) else name


def _content(given: Any) -> bytes:
    if not isinstance(given, str | os.PathLike):
        return bytes(given)
    path = existing_file(given)
    try:
        return path.read_bytes()
    except OSError as error:
        raise AuroraError(f"{path} cannot be read: {error.strerror}.") from error


def existing_file(given: str | os.PathLike) -> Path:
    """A path that a caller named, if it is a file that can be read. Raises AuroraError."""
    if "://" in str(given):
        raise AuroraError(
            f"{given} is a URL. Fetch the file first and give its path, or its bytes in Python."
        )
    path = Path(given).expanduser()
    if not path.is_file():
        what = "a folder, where one file is needed" if path.is_dir() else "not there"
        raise AuroraError(f"The file {path} is {what}.")
    if not os.access(path, os.R_OK):
        raise AuroraError(f"The file {path} may not be read by this user.")
    return path
