"""Tars made to harm: nothing is extracted, no name becomes a path, no size is believed, nothing is unpickled."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import get_args

import pytest

from aurora_ds.data.manifest import SampleAddress
from aurora_ds.data.reader import BadSample, Kind, Part, Sample, parse_sample

RECORD = json.dumps({"schema": 1, "captions": ["a"]}).encode()
SIZE = slice(124, 136)  # where a tar header has the size


def header(name: str, size: int, type_: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One tar header."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, type_, link
    return member.tobuf(tarfile.USTAR_FORMAT)


def member(name: str, content: bytes) -> bytes:
    """Header, content and padding."""
    return header(name, len(content)) + content + bytes(-len(content) % 512)


def with_size(block: bytes, field: bytes) -> bytes:
    """The header at the start of `block` with another size field and a right checksum."""
    changed = bytearray(block)
    changed[SIZE] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def parse(block: bytes) -> Sample:
    return parse_sample(block, SampleAddress("train-000000.tar", 0, len(block)))


def refused(block: bytes, message: str) -> BadSample:
    with pytest.raises(BadSample, match=message) as caught:
        parse(block)
    return caught.value


GOOD = member("a.json", RECORD)


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "/etc/a.jpg",
        "a/../../a.jpg",
        "a\\..\\a.jpg",
        ".a.jpg",
        "a\n.jpg",
        "b/a.jpg",
        "\x1b[2Ja.jpg",
        "./a.jpg",
    ],
)
def test_names_are_plain(name: str) -> None:
    for block in (
        GOOD + member(name, b"x"),
        member(name.replace("jpg", "json"), RECORD) + member("a.jpg", b"x"),
    ):
        assert refused(block, "is not a file with a plain name").reason == "not_a_sample"


@pytest.mark.parametrize(
    "type_",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        b"Z",
    ],
)
def test_only_regular_files_are_read(type_: bytes) -> None:
    content = b"x" * 100
    block = header("a.jpg", len(content), type_, "/etc/passwd") + content + bytes(412)
    refused(GOOD + block, "is not a file with a plain name")
    refused(block + GOOD, "is not a file with a plain name")


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_not_followed(format_: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        long = tarfile.TarInfo("x" * 150 + "/../../etc/passwd.jpg")
        tar.addfile(long)
    refused(GOOD + buffer.getvalue(), "is not a file with a plain name")


def test_a_long_name_in_the_prefix_field_is_a_path() -> None:
    refused(GOOD + member("d" * 100 + "/" + "e" * 60 + ".jpg", b"x"), "is not a file with a plain name")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (b"77777777777\0", "reaches beyond its sample"),
        (b"\x80" + b"\x7f" + b"\xff" * 10, "reaches beyond its sample"),
        (b"00000001001\0", "reaches beyond its sample|is not JSON"),
        (b"\xff" * 12, "is not a file with a plain name"),
        (b"\xff" * 11 + b"\x00", "is not a file with a plain name"),
        (b"-0000000001\0", "is not a file with a plain name"),
        (b"99999999999\0", "no tar header"),
        (b"abcdefghijk\0", "no tar header"),
    ],
)
def test_sizes_are_not_believed(field: bytes, message: str) -> None:
    refused(GOOD + with_size(member("a.jpg", b"x"), field), message)
    refused(with_size(GOOD, field) + member("a.jpg", b"x"), message)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (GOOD + GOOD + member("a.jpg", b"x"), "type that samples do not have"),
        (GOOD + member("a.jpg", b"x") + member("a.jpg", b"y"), "hold 2 media that are not named as one"),
        (GOOD + member("a.jpg", b"x") + member("a.png", b"y"), "hold 2 media that are not named as one"),
        (GOOD + member("a.jpg", b"x") + GOOD, "type that samples do not have"),
        (member("a.jpg", b"x") + GOOD, "begins with 'a.jpg', not with its record"),
        (GOOD + member("b.jpg", b"x"), "'b.jpg' stands among those of sample a"),
        (GOOD + member("a.0.jpg", b"x"), "hold 1 media that are not named as one"),
        (GOOD + bytes(512) + member("a.jpg", b"x"), "no tar header"),
        (GOOD, "hold 0 media"),
        (member("a.b.json", RECORD) + member("a.b.jpg", b"x"), "begins with 'a.b.json', not with its record"),
        (b"", "no tar header"),
    ],
)
def test_a_sample_is_one_record_and_its_media(block: bytes, message: str) -> None:
    refused(block, message)


@pytest.mark.parametrize(
    "extension", ["pickle", "pkl", "pyd", "pth", "npy", "json", "exe", "svg", "", "jpg.gz", "JPG"]
)
def test_types_are_listed(extension: str) -> None:
    refused(GOOD + member(f"a.{extension}", b"x"), "type that samples do not have|stands among")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b"", "is not JSON"),
        (b"[]", "not a record of schema 1"),
        (
            b'{"schema": 1, "kind": "pickle"}',
            "is of kind 'pickle'; this version reads image, images, video, frames",
        ),
        (b'{"schema": 1, "kind": ["image"]}', "is of kind"),
        (b'{"schema": 1, "kind": null}', "is of kind None"),
    ],
)
def test_records_are_checked(content: bytes, message: str) -> None:
    assert refused(member("a.json", content) + member("a.jpg", b"x"), message).reason == "record"


def record(kind: str) -> bytes:
    return member("a.json", json.dumps({"schema": 1, "kind": kind}).encode())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("image", ["a.webp"]),
        ("video", ["a.mkv"]),
        ("images", ["a.0.jpg", "a.1.png"]),
        ("frames", [f"a.{number:03d}.jpg" for number in range(12)]),
        ("frames", ["a.000.jpg"]),
        ("frames", [f"a.{number}.jpg" for number in range(12)]),
    ],
)
def test_every_kind_is_read(kind: str, names: list[str]) -> None:
    sample = parse(record(kind) + b"".join(member(name, name.encode()) for name in names))
    assert sample.kind == kind and sample.key == "a"
    assert sample.parts == tuple(Part(name.rpartition(".")[2], name.encode()) for name in names)


def test_kinds_of_older_records_go_by_the_extension() -> None:
    kinds = {
        extension: parse(GOOD + member(f"a.{extension}", b"x")).kind
        for extension in ("jpg", "mp4", "avi", "gif")
    }
    assert kinds == {"jpg": "image", "mp4": "video", "avi": "video", "gif": "image"}
    assert set(kinds.values()) < set(get_args(Kind))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("image", ["a.mp4"]),
        ("video", ["a.jpg"]),
        ("images", ["a.jpg"]),
        ("images", ["a.0.jpg", "a.2.jpg"]),
        ("images", ["a.1.jpg", "a.0.jpg"]),
        ("images", ["a.0.mp4"]),
        ("frames", ["a.000.jpg", "a.000.jpg"]),
        ("frames", ["a.000.jpg", "a.1.jpg"]),
        ("frames", ["a.+0.jpg"]),
        ("images", []),
    ],
)
def test_media_are_named_as_their_kind_asks(kind: str, names: list[str]) -> None:
    refused(record(kind) + b"".join(member(name, b"x") for name in names), f"is of kind '{kind}'")


def test_the_only_medium_is_asked_for_by_name() -> None:
    pair = parse(record("images") + member("a.0.jpg", b"x") + member("a.1.jpg", b"y"))
    for name in ("media", "extension"):
        with pytest.raises(BadSample, match=r"Sample a holds 2 media \(images\), where one is expected"):
            getattr(pair, name)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse(GOOD + member("a.jpg", b"x"))
    refused(GOOD + member("../a.jpg", b"x"), "plain name")
    assert not list(tmp_path.iterdir())
