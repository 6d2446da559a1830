"""Encoded image bytes -> RGB pixels, as BLIP opens images (Pillow's convert("RGB")), with limits.

Pillow decodes everything; where simplejpeg is installed it decodes plain JPEGs, which gives the same pixels in less
time, and leaves to Pillow what is damaged or out of the ordinary. Only the formats that shards hold are tried, so no
rarely used decoder ever sees data. As published, EXIF orientation and colour profiles are ignored, alpha is dropped and
of an animation the first frame is taken. Unlike published, 16-bit grey is scaled, not clipped to white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from aurora_ds.data.image_ends import is_whole as is_whole
from aurora_ds.data.reader import BadSample
from aurora_ds.errors import AuroraError

# Format by content -> extension in a shard. A file opened as JPEG may turn out to be MPO, with more pictures behind
# the first.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
TRIED = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
Decoder = Literal["auto", "pillow", "simplejpeg"]
_JPEG_START = b"\xff\xd8\xff"
# What Pillow's decoders raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError)


def open_image(content: bytes, max_pixels: int, name: str, decoder: Decoder = "auto") -> Image.Image:
    """Encoded bytes -> RGB image, decoded in full. `name` is how messages call it.

    The size in the header is checked before pixels are decoded. Raises BadSample (too_large, not_an_image, decode).
    """
    return open_with_extension(content, max_pixels, name, decoder)[0]


def open_with_extension(
    content: bytes, max_pixels: int, name: str, decoder: Decoder = "auto"
) -> tuple[Image.Image, str]:
    """open_image, and the extension (jpg, png, webp, gif, bmp) that fits the content, whatever the file was called."""
    decode_jpeg = _jpeg_decoder(decoder)
    pixels = decode_jpeg(content, max_pixels) if decode_jpeg and content.startswith(_JPEG_START) else None
    if pixels is not None:
        return _image(pixels), EXTENSIONS["JPEG"]
    with warnings.catch_warnings():
        # What Pillow says of palettes and odd headers nobody can act on here.
        warnings.simplefilter("ignore")
        image = _open(content, max_pixels, name)
        try:
            return as_rgb(image), EXTENSIONS[image.format]
        except _DAMAGE as error:
            raise BadSample(f"Image {name} cannot be decoded: {error}.", reason="decode") from error


def header(content: bytes, max_pixels: int, name: str) -> tuple[str, int, int]:
    """(extension that fits the content, width, height) without decoding pixels. Raises BadSample as open_image does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(content, max_pixels, name)
    return EXTENSIONS[image.format], image.width, image.height


def _open(content: bytes, max_pixels: int, name: str) -> Image.Image:
    """An image whose header is read and whose size is allowed; its pixels are still encoded."""
    # Pillow refuses above twice a limit of its own. Ours decides, so Pillow's must not be the lower one.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = Image.open(io.BytesIO(content), formats=TRIED)
    except Image.DecompressionBombError as error:
        raise BadSample(
            f"Image {name} has more pixels than data.max_pixels ({max_pixels}): {error} It was not decoded. Shrink "
            "it before conversion.",
            reason="too_large",
        ) from error
    except UnidentifiedImageError as error:
        raise BadSample(
            f"Image {name} is not a JPEG, PNG, WebP, GIF or BMP image ({len(content)} bytes).",
            reason="not_an_image",
        ) from error
    except _DAMAGE as error:
        raise BadSample(f"Image {name} cannot be decoded: {error}.", reason="decode") from error
    if image.width * image.height > max_pixels:
        raise BadSample(
            f"Image {name} has {image.width} x {image.height} pixels, more than data.max_pixels ({max_pixels}); it "
            "was not decoded. Shrink it before conversion, or raise data.max_pixels.",
            reason="too_large",
        )
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB as BLIP has it: see above. Decodes what is not yet."""
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255: nearly everything turns white. Where that would happen the high byte is
        # taken, as Pillow does with 16-bit colour.
        values = np.asarray(image)
        if values.max() > 255:
            image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, 4), the fourth without meaning -> RGB image: over that very memory where Pillow lets it."""
    size = (pixels.shape[1], pixels.shape[0])
    return _map_rgb(pixels, size) if _maps_rgb() else _copy_rgb(pixels, size)


def _copy_rgb(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    # None: memory that is written in full need not be cleared before.
    image = Image.new("RGB", size, None)
    image.frombytes(pixels, "raw", "RGBX")
    return image


def _map_rgb(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    # What Image.frombuffer does, which calls such memory RGBX and then resizes a fourth band too.
    image = Image.Image()._new(Image.core.map_buffer(pixels, size, "raw", 0, ("RGB", 0, 1)))
    image.readonly = 1
    return image


@cache
def _maps_rgb() -> bool:
    """Whether this Pillow keeps RGB as mapped here: none of it is promised."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    try:
        mapped = _map_rgb(pixels, (3, 2))
        return mapped.mode == "RGB" and mapped.tobytes() == pixels[..., :3].tobytes()
    except (AttributeError, TypeError, ValueError):
        return False


@cache
def _jpeg_decoder(decoder: Decoder) -> Callable[[bytes, int], np.ndarray | None] | None:
    """A function (content, most pixels) -> uint8 (H, W, 4), or None for what Pillow must decode or refuse; None: no
    such function is wanted or installed."""
    if decoder == "pillow":
        return None
    try:
        import simplejpeg
    except ImportError as error:
        if decoder == "auto":
            return None
        raise AuroraError(
            "data.image_decoder is simplejpeg, but that package is not installed. Install it with `pip install "
            "simplejpeg`, or set data.image_decoder to auto or pillow."
        ) from error

    def decode(content: bytes, max_pixels: int) -> np.ndarray | None:
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(content)
            if width * height > max_pixels or space not in ("YCbCr", "Gray"):
                return None
            return simplejpeg.decode_jpeg(content, colorspace="RGBX")
        except ValueError:  # damage: Pillow repairs it or names it
            return None

    return decode
