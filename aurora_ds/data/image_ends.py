"""Does an encoded image reach its end mark? A look at the structure, without decoding any pixel.

A file that was cut loses its end; bit errors inside are the checksums' matter. Some encoders forget the mark, so a
False here means "decode it to know", not "damaged".
"""

from __future__ import annotations

import re

# In entropy-coded JPEG data a marker is FF and a byte that is no stuffing (00), filling (FF) or restart (D0 … D7).
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_LAST = b"\xff\xd9"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_whole(content: bytes, extension: str) -> bool:
    """Whether encoded bytes of the format `extension` (jpg, png, webp, gif, bmp) reach their end mark.

    Bytes after the end are allowed. Raises KeyError for another extension.
    """
    return _CHECKS[extension](content)


def _jpeg(content: bytes) -> bool:
    # The segments are walked, because thumbnails inside them have end marks of their own.
    place = 2
    while marker := _JPEG_MARKER.search(content, place):
        kind, place = marker[1][0], marker.end()
        if kind == _JPEG_END:
            return True
        # Nearly every file ends so, and then the pictures' data need not be searched, which takes ten times as long as
        # all else that a conversion does.
        if kind == _JPEG_SCAN and content.endswith(_JPEG_LAST):
            return True
        # All others up to the scan's data have a length; TEM (01) and SOI (D8) alone have none.
        if kind not in (0x01, 0xD8):
            place += int.from_bytes(content[place : place + 2], "big")
    return False


def _png(content: bytes) -> bool:
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            return place <= len(content)
    return False


def _webp(content: bytes) -> bool:
    return len(content) >= 12 and len(content) >= 8 + int.from_bytes(content[4:8], "little")


def _gif(content: bytes) -> bool:
    try:
        place = 13 + _colour_table(content[10])
        while (kind := content[place]) != 0x3B:
            if kind == 0x21:  # extension
                place += 2
            elif kind == 0x2C:  # image
                place += 11 + _colour_table(content[place + 9])
            else:
                return False
            while size := content[place]:
                place += 1 + size
            place += 1
    except IndexError:
        return False
    return True


def _colour_table(flags: int) -> int:
    """Bytes of the colour table that follows, if the flags say so."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(content: bytes) -> bool:
    return 0 < int.from_bytes(content[2:6], "little") <= len(content)


_CHECKS = {"jpg": _jpeg, "png": _png, "webp": _webp, "gif": _gif, "bmp": _bmp}
