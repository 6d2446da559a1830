"""What data.shards may be: a local folder, or the URL of one under a listed protocol.

fsspec knows protocols that run commands, unpack archives or chain filesystems; none of those ever gets to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aurora_ds.errors import AuroraError

# Protocol -> the package in which fsspec finds it.
PROTOCOLS = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
}
_PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):(//)?")


@dataclass(frozen=True)
class Location:
    """The URL of a folder of shards, without a slash at its end."""

    protocol: str
    url: str

    def of(self, name: str) -> str:
        """The URL of a file in it; `name` is a plain file name."""
        return f"{self.url}/{name}"

    def __str__(self) -> str:
        """The URL without a password."""
        return re.sub(r"//[^/@]*@", "//", self.url)


def is_remote(shards: str | Path) -> bool:
    """Whether it is a URL that `location_of` accepts. Raises AuroraError for one that it refuses."""
    return isinstance(location_of(shards), Location)


def location_of(shards: str | Path) -> Location | Path:
    """A local folder or a remote location. Raises AuroraError for any protocol that is not listed."""
    text = str(shards)
    found = _PROTOCOL.match(text)
    if "::" in text or (found and found[1].lower() == "pipe"):
        raise AuroraError(
            f"{text} is not read: URLs that run a command or chain file systems are refused. {_ALLOWED}"
        )
    if found is None or not found[2]:
        return Path(shards)
    protocol = found[1].lower()
    if protocol not in PROTOCOLS:
        raise AuroraError(f"{protocol}:// URLs are not read ({text}). {_ALLOWED}")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise AuroraError(f"{text} is not a URL ({error}). {_ALLOWED}") from error
    if parts.query or parts.fragment or not parts.netloc or "*" in text:
        raise AuroraError(
            f"{text} does not name a folder: file names are put behind it, so it must have a host or bucket, and "
            "no '?', '#' or '*'."
        )
    return Location(protocol, protocol + text[len(protocol) :].rstrip("/"))


_ALLOWED = (
    "data.shards may be a local folder (without file://), or the URL of a folder that begins with "
    f"{', '.join(f'{protocol}://' for protocol in PROTOCOLS)}."
)
