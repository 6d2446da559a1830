"""Which URLs are read at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.data.remote import open_shards
from aurora_ds.data.remote.location import Location, location_of
from aurora_ds.errors import AuroraError


@pytest.mark.parametrize(
    "url",
    [
        "pipe:curl -s http://host/shards",
        "pipe://host/shards",
        "PIPE:cat /etc/passwd",
        "simplecache::http://host/shards",
        "filecache::s3://bucket/shards",
        "zip://shards::http://host/a.zip",
        "file:///data/shards",
        "ssh://host/shards",
        "sftp://host/shards",
        "github://owner:repo@main/shards",
        "memory://shards",
        "reference://shards",
        "s3a://bucket/shards",
        "ftp://host/shards",
        "gopher+x://host/shards",
    ],
)
def test_only_listed_protocols_are_read(url: str) -> None:
    with pytest.raises(
        AuroraError, match=r"data.shards may be a local folder.*http://, https://, s3://, gs://, hf://"
    ):
        open_shards(url)


@pytest.mark.parametrize(
    "url", ["http://host/a?token=1", "s3://", "https://host/a#b", "s3://bucket/*", "http://[x/shards"]
)
def test_a_url_must_name_a_folder(url: str) -> None:
    with pytest.raises(AuroraError, match="does not name a folder|is not a URL"):
        open_shards(url)


@pytest.mark.parametrize("text", ["shards/coco", "/data/a b", "data:v1/shards", "C:/shards", Path("x") / "y"])
def test_all_else_is_a_local_folder(text: str | Path) -> None:
    assert location_of(text) == Path(text)


@pytest.mark.parametrize("protocol", ["http", "https", "s3", "gs", "hf"])
def test_files_are_put_behind_the_url(protocol: str) -> None:
    location = location_of(f"{protocol.upper()}://Bucket/Some/Folder//")
    assert location == Location(protocol, f"{protocol}://Bucket/Some/Folder")
    assert location.of("a.tar") == f"{protocol}://Bucket/Some/Folder/a.tar"


def test_passwords_are_not_shown() -> None:
    assert str(location_of("https://me:secret@host/shards")) == "https://host/shards"
