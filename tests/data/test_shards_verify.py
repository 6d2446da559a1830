"""What `shards verify` finds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from written_shards import Written, image_sample, picture, write_all_kinds, write_shards

from aurora_ds.data.manifest import INDEX_NAME, MANIFEST_NAME, Manifest, own_sha256
from aurora_ds.data.shard_index import ShardIndex, write_index
from aurora_ds.data.shard_scan import Problem
from aurora_ds.data.shardcheck import find_problems, verify_shards
from aurora_ds.errors import AuroraError


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shards, tmp_path / "copy")


def problems_of(folder: Path, workers: int = 1) -> list[Problem]:
    return find_problems(Manifest.load(folder), workers)[0]


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


def sign_again(folder: Path) -> None:
    """Gives the manifest the right checksums of all files, so that the samples themselves must show the damage."""
    content = json.loads((folder / MANIFEST_NAME).read_text())
    entries = [shard for split in content["splits"].values() for shard in split["shards"]]
    for entry in [*entries, content["index"]]:
        entry["sha256"] = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
        entry["bytes"] = (folder / entry["file"]).stat().st_size
    content["sha256"] = own_sha256(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    """Writes the index with other numbers, signed."""
    tensors = load_file(folder / INDEX_NAME)
    change(tensors)
    written = write_index(folder / INDEX_NAME, ShardIndex(tensors).parts())
    content = json.loads((folder / MANIFEST_NAME).read_text())
    content["index"]["crc32"] = written.crc32
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
    sign_again(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_good_shards_pass(shards: Path, workers: int) -> None:
    result = verify_shards(shards, workers)
    assert result == {
        "folder": str(shards),
        "dataset": "folder",
        "shards": 9,
        "samples": 56,
        "pairs": 111,
        "bytes": sum(path.stat().st_size for path in shards.glob("*.tar")),
        "problems": 0,
    }


def test_samples_of_every_kind_pass(tmp_path: Path) -> None:
    write_all_kinds(tmp_path)
    assert problems_of(tmp_path) == []


# --- whole files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (lambda f: (f / "train-000001.tar").unlink(), "train-000001.tar", "shard_missing"),
        (lambda f: os.truncate(f / "train-000001.tar", 5000), "train-000001.tar", "size"),
        (lambda f: (f / "train-000001.tar").write_bytes(b""), "train-000001.tar", "size"),
        (lambda f: flip(f / "train-000001.tar", -1), "train-000001.tar", "padding"),
        (lambda f: flip(f / "train-000001.tar", 700), "train-000001.tar", "checksum"),
        (lambda f: (f / "train-000099.tar").write_bytes(b""), "train-000099.tar", "extra"),
        (lambda f: flip(f / INDEX_NAME, -1), INDEX_NAME, "checksum"),
        (lambda f: (f / "train-000001.tar").write_bytes(b"no tar" * 9999), "train-000001.tar", "checksum"),
    ],
)
def test_damaged_files_are_named(
    copy: Path, damage: Callable[[Path], object], file: str, reason: str
) -> None:
    damage(copy)
    assert (file, reason) in {(problem.file, problem.reason) for problem in problems_of(copy)}


def test_files_beside_the_shards_are_checked(tmp_path: Path) -> None:
    sums = {name: hashlib.sha256(b"[]").hexdigest() for name in ("gt.json", "gone.json", "../out.json")}
    folder = tmp_path / "shards"
    write_shards(folder, {"train": [[image_sample(0)]]}, files=sums)
    (folder / "gt.json").write_bytes(b"[1]")
    (tmp_path / "out.json").write_bytes(b"[]")
    found = {problem.file: problem.reason for problem in problems_of(folder)}
    assert found == {"gt.json": "checksum", "gone.json": "missing", "../out.json": "missing"}


def test_a_changed_manifest_is_found_even_where_nothing_depends_on_it(copy: Path) -> None:
    path = copy / MANIFEST_NAME
    content = path.read_text()
    path.write_text(content.replace("\n", " "))  # another layout says the same
    assert problems_of(copy) == []
    path.write_text(content.replace('"dataset": "folder"', '"dataset": "holder"'))
    assert problems_of(copy) == [Problem(MANIFEST_NAME, "checksum", "it was changed after it was written")]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_cut_shard_names_the_samples_that_are_gone(copy: Path) -> None:
    address = Manifest.load(copy).address("train", 11)  # the fifth of train-000001.tar
    os.truncate(copy / address.shard, address.start + 700)
    gone = [(p.number, p.key) for p in problems_of(copy) if p.reason == "shard_cut"]
    assert gone == [(4, None), (5, None), (6, None)]


def test_one_flipped_bit_names_shard_and_sample(copy: Path) -> None:
    address = Manifest.load(copy).address("train", 8)
    flip(copy / address.shard, address.end - 1, 1)  # in the padding behind the medium: nothing else notices
    sample, whole = problems_of(copy)
    assert (sample.file, sample.number, sample.key) == ("train-000001.tar", 1, "train-0000008-008")
    assert sample.reason == "checksum" and whole.number is None
    assert str(sample).startswith("train-000001.tar, sample 1 (train-0000008-008): its bytes are not those")


def test_an_unreadable_key_is_told_by_number(copy: Path) -> None:
    address = Manifest.load(copy).address("train", 1)
    flip(copy / address.shard, address.start + 100)  # in the header of its record
    sample = problems_of(copy)[0]
    assert (sample.number, sample.key, sample.reason) == (1, None, "not_a_sample")
    assert "sample 1 (key unreadable): train-000000.tar has no tar header" in str(sample)


def test_exchanged_shards_are_found(copy: Path) -> None:
    one, two = copy / "train-000000.tar", copy / "train-000001.tar"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert {problem.file for problem in problems_of(copy)} == {one.name, two.name}


def test_exchanged_media_are_found(copy: Path) -> None:
    manifest = Manifest.load(copy)
    one, two = manifest.address("train", 0), manifest.address("train", 5)
    content = (copy / one.shard).read_bytes()
    blocks = content[one.start : one.end], content[two.start : two.end]
    middle = content[one.end : two.start]
    (copy / one.shard).write_bytes(blocks[1] + middle + blocks[0] + content[two.end :])
    numbers = {problem.number for problem in problems_of(copy)}
    assert {0, 5} <= numbers


@pytest.mark.parametrize(
    ("media", "record", "message"),
    [
        ([("jpg", b"no picture")], {}, "is not a JPEG"),
        ([("jpg", picture(0)[:900])], {}, "cannot be decoded"),
        ([("png", picture(0))], {}, "it is called .png, but its content is .jpg"),
        ([("jpg", picture(0, size=(50, 40)))], {}, "it has 50 x 40 pixels, but its record says 120 x 90"),
        *[
            ([("0.jpg", picture(0))], {"kind": "images", "sizes": sizes}, "size of each of its 1 media")
            for sizes in ([], [[120, 90], [1, 1]], [120, 90], [[120]], "120x90")
        ],
        ([("mp4", b"no clip")], {"kind": "video"}, "Clip odd"),
    ],
)
def test_media_that_were_written_wrong_are_found_whatever_the_checksums_say(
    tmp_path: Path, media: list[tuple[str, bytes]], record: dict, message: str
) -> None:
    odd = Written("odd", {"width": 120, "height": 90, "captions": ["one"], **record}, media)
    write_shards(tmp_path, {"train": [[image_sample(1), odd, image_sample(2)]]})
    (problem,) = problems_of(tmp_path)
    assert (problem.number, problem.key) == (1, "odd") and message in problem.message


def test_damaged_frames_and_pairs_are_found(tmp_path: Path) -> None:
    manifest = write_all_kinds(tmp_path)
    for split in ("pairs", "clips", "frames"):
        address = manifest.address(split, 1)
        flip(tmp_path / address.shard, address.end - 600)
    found = {(p.file, p.number, p.key) for p in problems_of(tmp_path, workers=2) if p.number is not None}
    assert found == {
        ("pairs-000000.tar", 1, "pair-30"),
        ("clips-000000.tar", 1, "clip-1"),
        ("frames-000000.tar", 1, "frames-5"),
    }


# --- manifest and index against the shards ---------------------------------------------------------------------------


def test_counts_that_do_not_fit_are_found(copy: Path) -> None:
    def change(tensors: dict) -> None:
        tensors["test/counts/captions"][:2] = tensors["test/counts/captions"][1::-1]

    change_index(copy, change)
    first, second = problems_of(copy)
    assert (first.key, first.message) == ("test-0000000-000", "it has 1 captions, the index says 2")
    assert second.number == 1


def test_counts_that_do_not_sum_are_found(copy: Path) -> None:
    change_index(copy, lambda tensors: tensors["test/counts/captions"].__setitem__(0, 9))
    index, sample = problems_of(copy)
    assert index.file == INDEX_NAME and "test-000000.tar" in index.message
    assert (sample.file, sample.number) == ("test-000000.tar", 0)


def test_places_that_do_not_fit_are_found(copy: Path) -> None:
    change_index(copy, lambda tensors: tensors["test/offsets"].__setitem__(1, 10**12))
    found = {(problem.number, problem.reason) for problem in problems_of(copy)}
    assert found == {(0, "index"), (1, "index")}


def test_two_shards_with_the_same_samples_are_found(tmp_path: Path) -> None:
    twice = [image_sample(7), image_sample(8)]
    write_shards(tmp_path, {"train": [twice, [image_sample(9)]], "test": [twice[1:]]})
    (problem,) = problems_of(tmp_path)
    assert (problem.file, problem.key, problem.reason) == ("test-000000.tar", "image-8", "duplicate_key")
    assert "train-000000.tar" in problem.message


def test_members_that_the_index_does_not_know_are_found(copy: Path) -> None:
    content = json.loads((copy / MANIFEST_NAME).read_text())
    split = content["splits"]["test"]
    last = split["shards"][-1]  # says now that its last sample is not there
    captions = int(load_file(copy / INDEX_NAME)["test/counts/captions"][-1])
    for entry, names in ((last, ("pairs", "samples")), (split, ("pairs", "samples"))):
        entry[names[0]] -= captions
        entry[names[1]] -= 1
    last["counts"]["captions"] -= captions
    (copy / MANIFEST_NAME).write_text(json.dumps(content))
    change_index(
        copy,
        lambda tensors: tensors.update({name: tensors[name][:-1] for name in tensors if name[:4] == "test"}),
    )
    assert {(problem.file, problem.reason) for problem in problems_of(copy)} == {
        (last["file"], "padding"),
        (last["file"], "tar"),
    }


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_has_every_problem(copy: Path, tmp_path: Path) -> None:
    for path in copy.glob("*.tar"):
        flip(path, 700)
        flip(path, 9000)
    report = tmp_path / "new/report.jsonl"
    with pytest.raises(AuroraError) as error:
        verify_shards(copy, report=report)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(lines) >= 3 * 9 - 1 and set(lines[0]) == {"file", "reason", "message", "number", "key"}
    text = str(error.value)
    assert f"has {len(lines)} problem(s) (" in text and f"and {len(lines) - 10} more" in text
    assert f"All are in {report}." in text


def test_the_report_of_good_shards_is_empty(shards: Path, tmp_path: Path) -> None:
    verify_shards(shards, report=tmp_path / "report.jsonl")
    assert (tmp_path / "report.jsonl").read_text() == ""


def test_a_broken_manifest_is_in_the_report_too(copy: Path, tmp_path: Path) -> None:
    (copy / MANIFEST_NAME).write_text("{")
    with pytest.raises(AuroraError, match="is not JSON"):
        verify_shards(copy, report=tmp_path / "report.jsonl")
    assert json.loads((tmp_path / "report.jsonl").read_text())["reason"] == "manifest"
