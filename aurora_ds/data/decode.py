"""Encoded image bytes -> RGB pixels, as BLIP opens images, with limits. Pillow does the work.

Only the formats that shards hold are tried, so no rarely used decoder ever sees data. EXIF orientation is ignored, as
published: pixels are taken as they are stored.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from aurora_ds.data.image_ends import is_whole as is_whole
from aurora_ds.data.reader import BadSample

# Format by content -> extension in a shard. A file opened as JPEG may turn out to be MPO, with more pictures behind
# the first.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
TRIED = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def open_image(content: bytes, max_pixels: int, name: str) -> Image.Image:
    """Encoded bytes -> RGB image, decoded in full. `name` is how messages call it. Raises BadSample.

    The size in the header is checked before pixels are decoded. Palettes, grey, CMYK and alpha become RGB as Pillow's
    convert("RGB") does it; of an animation the first frame is taken.
    """
    return open_with_extension(content, max_pixels, name)[0]


def open_with_extension(content: bytes, max_pixels: int, name: str) -> tuple[Image.Image, str]:
    """open_image, and the extension (jpg, png, webp, gif, bmp) that fits the content, whatever the file was called."""
    try:
        with warnings.catch_warnings():
            # What Pillow says of palettes and odd headers nobody can act on here.
            warnings.simplefilter("ignore")
            image = _open(content, max_pixels, name)
            return image.convert("RGB"), EXTENSIONS[image.format]
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise BadSample(f"Image {name} cannot be decoded: {error}.", "decode") from error


def header(content: bytes, max_pixels: int, name: str) -> tuple[str, int, int]:
    """(extension that fits the content, width, height) without decoding pixels. Raises BadSample as open_image does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(content, max_pixels, name)
    return EXTENSIONS[image.format], image.width, image.height


def _open(content: bytes, max_pixels: int, name: str) -> Image.Image:
    """An image whose header is read and whose size is allowed; its pixels are still encoded."""
    try:
        image = Image.open(io.BytesIO(content), formats=TRIED)
    except Image.DecompressionBombError as error:
        raise BadSample(
            f"Image {name} is too large to be opened safely ({error}). Shrink it.", "too_large"
        ) from error
    except UnidentifiedImageError as error:
        raise BadSample(
            f"Image {name} is not a JPEG, PNG, WebP, GIF or BMP image ({len(content)} bytes).",
            reason="not_an_image",
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise BadSample(f"Image {name} cannot be decoded: {error}.", "decode") from error
    if image.width * image.height > max_pixels:
        raise BadSample(
            f"Image {name} has {image.width} x {image.height} pixels, more than data.max_pixels ({max_pixels}); it "
            "was not decoded. Shrink it before conversion, or raise data.max_pixels.",
            reason="too_large",
        )
    return image
