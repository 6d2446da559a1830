"""Annotation files read as streams, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.data.convert import json_stream
from aurora_ds.errors import AuroraError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "prefix", "expected"),
    [
        ([{"a": 1, "b": [0.5, None]}, "ü"], "item", [{"a": 1, "b": [0.5, None]}, "ü"]),
        ({"info": {}, "images": [1, 2], "more": [3]}, "images.item", [1, 2]),
        ({"images": []}, "images.item", []),
        ([], "item", []),
    ],
)
def test_items(tmp_path: Path, content: object, prefix: str, expected: list) -> None:
    found = list(json_stream.items(written(tmp_path, json.dumps(content)), prefix))
    assert found == expected
    assert [type(each) for each in found] == [type(each) for each in expected]


def test_floats_are_floats(tmp_path: Path) -> None:
    assert [type(each) for each in json_stream.items(written(tmp_path, "[0.5, 3]"), "item")] == [float, int]


def test_pairs_of_an_object(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": [1], "b": {"c": 2}}')
    assert list(json_stream.pairs(path)) == [("a", [1]), ("b", {"c": 2})]
    assert list(json_stream.pairs(path, "b")) == [("c", 2)]
    with pytest.raises(AuroraError, match="found an object, expected an object at 'd'"):
        list(json_stream.pairs(path, "d"))


def test_lines(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": 1}\n\n[2]\n')
    assert list(json_stream.lines(path)) == [(1, {"a": 1}), (3, [2])]
    path.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(AuroraError, match=r"annotations.json, line 2, is not JSON .*get it again"):
        list(json_stream.lines(path))


def test_entries_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, "[" + ", ".join(map(str, range(100_000))))
    stream = json_stream.items(path, "item")
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AuroraError, match=r"annotations.json is not JSON .*It may be cut"):
        list(stream)


@pytest.mark.parametrize("text", ["", "<html>404</html>", '{"images": [1, ', "[1] tail"])
def test_files_that_are_not_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(AuroraError, match="annotations.json is not JSON .*get it again"):
        list(json_stream.items(written(tmp_path, text), "images.item"))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(AuroraError, match="annotations.json is not JSON"):
        list(json_stream.items(path, "item"))


@pytest.mark.parametrize(
    ("text", "prefix", "found"),
    [
        ('{"images": 1}', "item", r"found an object, expected a list"),
        ("[1]", "images.item", r"found a list without `images`"),
        ('{"images": {"a": 1}}', "images.item", r"found an object without `images`"),
        ("3", "item", "found a number, expected a list"),
    ],
)
def test_files_of_another_shape(tmp_path: Path, text: str, prefix: str, found: str) -> None:
    with pytest.raises(AuroraError, match=found):
        list(json_stream.items(written(tmp_path, text), prefix))


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    for read in (
        json_stream.load,
        json_stream.file_sha256,
        lambda path: list(json_stream.items(path, "item")),
    ):
        with pytest.raises(AuroraError, match="none.json cannot be read: No such file"):
            read(tmp_path / "none.json")
