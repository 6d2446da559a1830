"""Encoded image bytes -> RGB pixels, as BLIP opens images, with limits. Pillow does the work.

Only the formats that shards hold are tried, so no rarely used decoder ever sees data. EXIF orientation is ignored, as
published: pixels are taken as they are stored.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from aurora_ds.data.reader import BadSample

TRIED = ("JPEG", "PNG", "WEBP")
# Format by content -> extension in a shard. A file opened as JPEG may turn out to be MPO, with more pictures behind
# the first.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def open_image(content: bytes, max_pixels: int, name: str) -> Image.Image:
    """Encoded bytes -> RGB image, decoded in full. `name` is how messages call it. Raises BadSample.

    The size in the header is checked before pixels are decoded. Palettes, grey, CMYK and alpha become RGB as Pillow's
    convert("RGB") does it; of an animation the first frame is taken.
    """
    return open_with_extension(content, max_pixels, name)[0]


def open_with_extension(content: bytes, max_pixels: int, name: str) -> tuple[Image.Image, str]:
    """open_image, and the extension (jpg, png, webp) that fits the content, whatever the file was called."""
    try:
        with warnings.catch_warnings():
            # max_pixels is our own limit, and what Pillow says of palettes and odd headers nobody can act on here.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=TRIED)
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(
                    f"Image {name} has {width} x {height} pixels, more than data.max_pixels ({max_pixels}); it was "
                    "not decoded. Shrink it before conversion, or raise data.max_pixels.",
                    "too_large",
                )
            return image.convert("RGB"), EXTENSIONS[image.format]
    except Image.DecompressionBombError as error:
        raise BadSample(
            f"Image {name} is too large to be opened safely ({error}). Shrink it.", "too_large"
        ) from error
    except UnidentifiedImageError as error:
        raise BadSample(
            f"Image {name} is not a JPEG, PNG or WebP image ({len(content)} bytes).", "not_an_image"
        ) from error
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise BadSample(f"Image {name} cannot be decoded: {error}.", "decode") from error
