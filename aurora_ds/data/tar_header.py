"""The tar header of a regular file as our shards have it: made, and recognised, in a tenth of tarfile's time."""

from __future__ import annotations

import tarfile

from aurora_ds.data.bad_sample import BadSample


def _empty_header() -> bytes:
    header = tarfile.TarInfo("")
    header.mode = 0o644
    return header.tobuf(tarfile.USTAR_FORMAT)


_HEADER = _empty_header()
_HEADER_SUM = sum(_HEADER[:148]) + sum(_HEADER[156:]) + 8 * ord(" ") - 11 * ord("0")


def tar_header(name: str, size: int) -> bytes:
    """The header of a regular file, as tarfile makes it in USTAR format, in a tenth of the time.

    Raises BadSample for a name of more than 100 bytes or a size of 8 GiB or more, which need other formats.
    """
    encoded, digits = name.encode("ascii"), b"%011o" % size
    if len(encoded) > 100 or len(digits) > 11:
        raise BadSample(f"{name} of {size} bytes does not fit a plain tar header", reason="too_large")
    checksum = b"%06o\0 " % (_HEADER_SUM + sum(encoded) + sum(digits))
    return b"".join(
        (encoded.ljust(100, b"\0"), _HEADER[100:124], digits, _HEADER[135:148], checksum, _HEADER[156:])
    )


def plain_member(header: bytes) -> tuple[str, int] | None:
    """(name, size) of a header that is byte for byte what tar_header writes; None for any other one."""
    try:
        name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
        return (name, size) if size >= 0 and header == tar_header(name, size) else None
    except (ValueError, BadSample):
        return None
