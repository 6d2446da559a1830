"""Converting own data: what comes out, and what is said when the input is wrong."""

from __future__ import annotations

import json
import os
import resource
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from aurora_ds.data.convert import convert, load_recipe, recipe_names
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError


def annotations(source: Path) -> list[dict]:
    return json.loads((source / "annotations.json").read_text())


def rewrite(source: Path, content: object) -> None:
    (source / "annotations.json").write_text(json.dumps(content))


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size: enough for a reader to know that it is too large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 60) + b"IDAT" + bytes(60)


def test_results_and_records(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    results = convert(small_recipe, source, tmp_path / "out")
    sizes = {
        name: sum(path.stat().st_size for path in (tmp_path / "out").glob(f"{name}-*.tar"))
        for name in ("train", "test")
    }
    assert results["splits"] == {
        "train": {
            "samples": 12,
            "pairs": 24,
            "counts": {"captions": 24},
            "shards": 2,
            "bytes": sizes["train"],
        },
        "test": {"samples": 4, "pairs": 7, "counts": {"captions": 7}, "shards": 1, "bytes": sizes["test"]},
    }
    assert results["rejects"] == 0 and (tmp_path / "out/rejects.jsonl").read_text() == ""
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    manifest = Manifest.load(tmp_path / "out")
    _, record = ShardReader(manifest).record("train", 2)
    assert record == {
        "schema": 1,
        "kind": "image",
        "media_id": "train/002.jpg",
        "width": 40,
        "height": 32,
        "captions": [f"train picture 2 told in {'many ' * n}words." for n in range(3)],
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_workers(
    source: Path, small_recipe: Path, tmp_path: Path, workers: int
) -> None:
    convert(small_recipe, source, tmp_path / "one", workers=1)
    convert(small_recipe, source, tmp_path / "many", workers=workers)
    assert tars(tmp_path / "one") == tars(tmp_path / "many")
    for name in ("manifest.json", "index.safetensors", "rejects.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_train_list_with_an_entry_per_caption(source: Path, tmp_path: Path) -> None:
    rows = [
        {"image": entry["image"], "caption": caption, "image_id": f"id_{number}"}
        for number, entry in enumerate(annotations(source))
        if entry["split"] == "train"
        for caption in entry["caption"]
    ]
    # an image's captions need not stand together; its number is its first appearance
    (source / "train.json").write_text(json.dumps(rows[::2] + rows[1::2]))
    (source / "annotations.json").unlink()
    results = convert("folder", source, tmp_path / "out")
    assert (results["splits"]["train"]["samples"], results["splits"]["train"]["pairs"]) == (12, 24)
    reader = ShardReader(Manifest.load(tmp_path / "out"))
    order = list(dict.fromkeys(row["image_id"] for row in rows[::2] + rows[1::2]))
    assert [reader.record("train", n)[1]["image_id"] for n in range(12)] == order


def test_limit_takes_the_first_of_each_split(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    results = convert(small_recipe, source, tmp_path / "out", limit=3)
    assert {name: split["samples"] for name, split in results["splits"].items()} == {"train": 3, "test": 3}


def test_the_name_of_a_file_does_not_decide_its_type(source: Path, tmp_path: Path) -> None:
    (source / "images/train/004.png").write_bytes((source / "images/train/000.jpg").read_bytes())
    convert("folder", source, tmp_path / "out")
    assert ShardReader(Manifest.load(tmp_path / "out")).read("train", 4).extension == "jpg"


def test_keys_have_no_dot_and_one_sample_each(source: Path, tmp_path: Path) -> None:
    entries = annotations(source)
    for number, name in enumerate(["a.b.c.jpg", "à é.jpg", "_" * 90 + ".jpg"]):
        (source / "images" / entries[number]["image"]).rename(source / "images" / name)
        entries[number]["image"] = name
    rewrite(source, entries)
    convert("folder", source, tmp_path / "out")
    reader = ShardReader(Manifest.load(tmp_path / "out"))
    keys = [reader.record("train", n)[0] for n in range(12)]
    assert len(set(keys)) == 12 and not any("." in key for key in keys)
    assert reader.record("train", 0)[1]["media_id"] == "a.b.c.jpg"


# what is wrong with single samples: rejects


def test_rejects_are_listed_with_reasons(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    entries = annotations(source)
    entries[1]["caption"] = []
    entries[2]["caption"] = ["fine", " . ", "also fine"]
    entries[3]["caption"] = "..."
    entries[5]["image"] = "../outside.jpg"
    rewrite(source, entries)
    (source / "images/train/006.jpg").unlink()
    (source / "images/train/007.jpg").write_bytes(b"no image")
    content = (source / "images/train/008.jpg").read_bytes()
    (source / "images/train/008.jpg").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (4, 4)).save(source / "images/train/010.jpg", "TIFF")
    (source / "images/train/011.jpg").write_bytes(png_header(12_000, 10_000))
    results = convert(small_recipe, source, tmp_path / "out", max_rejects="60%")
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    reasons = {reject["media_id"]: reject["reason"] for reject in rejects}
    assert results["rejects"] == len(rejects) == 9
    for image, reason in {
        "train/001.jpg": "the caption list is empty",
        "train/002.jpg": "caption 1 is blank",
        "train/003.jpg": "all captions are blank",
        "../outside.jpg": "leads out of the source folder",
        "train/006.jpg": "no such image file",
        "train/007.jpg": "not a JPEG, PNG, WebP, GIF or BMP image",
        "train/008.jpg": "cannot be decoded",
        "train/010.jpg": "not a JPEG, PNG, WebP, GIF or BMP image",
        "train/011.jpg": "has 12000 x 10000 pixels, more than data.max_pixels (100000000); it was not decoded",
    }.items():
        assert reason in reasons[image]
    assert results["splits"]["train"]["samples"] == 4
    assert ShardReader(Manifest.load(tmp_path / "out")).record("train", 1)[1]["captions"] == [
        "fine",
        "also fine",
    ]


@pytest.mark.parametrize("allowed", [0, "0", "1%", "5.5%"])
def test_too_many_rejects_are_an_error_that_names_the_first(
    source: Path, tmp_path: Path, allowed: int | str
) -> None:
    (source / "images/train/003.jpg").write_bytes(b"no image")
    with pytest.raises(
        AuroraError, match=r"1 rejects so far.*--max-rejects allows \(0\).*train/003.jpg of train"
    ):
        convert("folder", source, tmp_path / "out", max_rejects=allowed)
    assert not (tmp_path / "out/manifest.json").exists()
    assert "train/003.jpg" in (tmp_path / "out/rejects.jsonl").read_text()


def test_a_wrong_image_folder_stops_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    (source / "images").rename(source / "pictures")
    with pytest.raises(AuroraError, match="16 rejects so far.*no such image file"):
        convert("folder", source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_repaired_image_is_taken_up_by_the_same_command(
    source: Path, small_recipe: Path, tmp_path: Path
) -> None:
    path = source / "images/train/008.jpg"
    good = path.read_bytes()
    path.write_bytes(b"no image")
    with pytest.raises(AuroraError, match="rejects so far"):
        convert(small_recipe, source, tmp_path / "out")
    path.write_bytes(good)
    convert(small_recipe, source, tmp_path / "out")
    convert(small_recipe, source, tmp_path / "fresh")
    assert tars(tmp_path / "out") == tars(tmp_path / "fresh")


def test_a_split_of_which_nothing_is_left(source: Path, tmp_path: Path) -> None:
    for path in (source / "images/test").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(AuroraError, match="Nothing is left of split test"):
        convert("folder", source, tmp_path / "out", max_rejects="50%")


# what is wrong with the whole: errors


def test_missing_source_says_what_it_must_look_like(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match=r"no source folder .*nowhere[\s\S]*DIR/annotations.json"):
        convert("folder", tmp_path / "nowhere", tmp_path / "out")


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(AuroraError, match="missing annotations.json"):
        convert("folder", tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "found an object, expected a list"),
        ([], "empty list"),
        (["a.jpg"], "entry 0 without a text `image`"),
        ([{"caption": "x"}], "entry 0 without a text `image`"),
        ([{"image": "a.jpg", "caption": 3}], r"entry 0 \(a.jpg\) with another `caption`"),
        ([{"image": "a.jpg", "caption": ["x", None]}], "with another `caption`"),
        ([{"image": "a.jpg", "caption": "x", "split": 1}], "`split` that is no text"),
        ([{"image": "a.jpg", "caption": "x", "split": "../x"}], "name a split '../x'"),
        ([{"image": "a.jpg", "caption": "x", "image_id": [1]}], "`image_id` that is neither"),
        (
            [
                {"image": "a.jpg", "caption": "x", "image_id": 1},
                {"image": "b.jpg", "caption": "y", "image_id": 1},
            ],
            "1 is given to both a.jpg and b.jpg",
        ),
    ],
)
def test_annotations_of_another_shape(source: Path, tmp_path: Path, content: object, message: str) -> None:
    rewrite(source, content)
    with pytest.raises(AuroraError, match=message):
        convert("folder", source, tmp_path / "out")


def test_annotations_that_are_not_json(source: Path, tmp_path: Path) -> None:
    (source / "annotations.json").write_text("<html>404</html>")
    with pytest.raises(AuroraError, match="is not JSON .*a web page saved in its place"):
        convert("folder", source, tmp_path / "out")


def test_unknown_recipe_names_the_nearest(source: Path, tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="no dataset recipe 'flickr30'.*Did you mean flickr30k"):
        convert("flickr30", source, tmp_path / "out")
    with pytest.raises(AuroraError, match=r"no dataset recipe '.*mine.yaml'"):
        convert(tmp_path / "mine.yaml", source, tmp_path / "out")


def test_a_recipe_with_an_unknown_key(small_recipe: Path) -> None:
    small_recipe.write_text(small_recipe.read_text() + "\nshard_size: 3\n")
    with pytest.raises(AuroraError, match="shard_size: .*Keys of a dataset recipe: name, family"):
        load_recipe(small_recipe)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(max_rejects="many"), "--max-rejects must be a number"),
        (dict(max_rejects=1.5), "--max-rejects must be a number"),
        (dict(limit=0), "--limit must be at least 1"),
        (dict(workers=0), "--workers must be at least 1"),
        (dict(executor="moon"), "no executor 'moon'; there is local"),
    ],
)
def test_wrong_options(source: Path, tmp_path: Path, option: dict, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        convert("folder", source, tmp_path / "out", **option)


def test_folders_with_unusual_names(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    unusual = source.rename(tmp_path / "a b%20#1?ü")
    convert(small_recipe, unusual, tmp_path / "out %3f#?ö", workers=2)
    assert len(tars(tmp_path / "out %3f#?ö")) == 3


def test_an_output_that_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(AuroraError, match="output folder .* cannot be made"):
        convert("folder", source, tmp_path / "out")


def test_an_index_that_cannot_be_written_is_told_and_the_next_run_continues(
    source: Path, small_recipe: Path, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "out/index.safetensors"
    in_the_way.mkdir(parents=True)
    with pytest.raises(AuroraError, match="index.safetensors.*: Is a directory.*the same command continues"):
        convert(small_recipe, source, tmp_path / "out")
    in_the_way.rmdir()
    assert convert(small_recipe, source, tmp_path / "out")["rejects"] == 0


def test_a_full_disk_is_told_and_loses_nothing(source: Path, small_recipe: Path, tmp_path: Path) -> None:
    first = tmp_path / "out/train-000000.tar"
    convert(small_recipe, source, tmp_path / "whole")
    size = (tmp_path / "whole/train-000000.tar").stat().st_size
    big = source / "images/train/009.png"
    Image.effect_noise((400, 400), 90).save(big)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # room for the annotations and the first shard, not for the second
    assert size < 60_000 < big.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(
            AuroraError, match="train-000001.tar cannot be written.*the same command continues"
        ):
            convert(small_recipe, source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert first.stat().st_size == size and not (tmp_path / "out/train-000001.tar").exists()
    results = convert(small_recipe, source, tmp_path / "out")
    assert results["splits"]["train"]["samples"] == 12


def test_recipes_are_found_and_complete() -> None:
    assert set(recipe_names()) >= {"coco_retrieval", "flickr30k", "folder"}
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.licence and recipe.obtain and recipe.layout
    assert load_recipe("coco_retrieval").expected["train"].pairs == 566_747


def test_sources_are_only_read(source: Path, tmp_path: Path) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in source.rglob("*")}
    convert("folder", source, tmp_path / "out", workers=2)
    assert {path: os.stat(path).st_mtime_ns for path in source.rglob("*")} == before
