"""Captions for scoring: COCO with its ids and ground truth, the official COCO JSON, MacCap's Flickr30k, nocaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_tools import ANNOTATIONS, draw_all, entries_of, of_kind, read_back, write_json

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError

LISTED: list[dict[str, Any]] = json.loads((ANNOTATIONS / "coco_karpathy_val.json").read_text())
TRUTH: dict[str, Any] = json.loads((ANNOTATIONS / "coco_karpathy_val_gt.json").read_text())
OFFICIAL: dict[str, Any] = json.loads((ANNOTATIONS / "captions_val2014.json").read_text())


def blip_source(folder: Path, truth: bool = True) -> Path:
    """BLIP's lists: the excerpt as val and test, its first captions one by one as train."""
    source = folder / "coco"
    train = [
        {"image": row["image"], "caption": caption, "image_id": f"coco_{number}"}
        for number, row in enumerate(LISTED[:2])
        for caption in row["caption"]
    ]
    write_json(source / "annotations/coco_karpathy_train.json", train)
    for split in ("val", "test"):
        write_json(source / f"annotations/coco_karpathy_{split}.json", LISTED)
        if truth:
            write_json(source / f"annotations/coco_gt/coco_karpathy_{split}_gt.json", TRUTH)
    draw_all(source, [row["image"] for row in LISTED])
    return source


def image_number(name: str) -> int:
    return int(name.rpartition("_")[2].removesuffix(".jpg"))


def test_captions_have_coco_s_numbers_and_ids(tmp_path: Path) -> None:
    convert("coco_caption", blip_source(tmp_path), tmp_path / "out")
    records = read_back(tmp_path / "out")
    by_image: dict[int, list[dict[str, Any]]] = {}
    for each in TRUTH["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each)
    for row, record in zip(LISTED, records["test"], strict=True):
        number = image_number(row["image"])
        assert (record["media_id"], record["image_id"]) == (row["image"], number)
        assert record["captions"] == row["caption"]
        assert record["caption_ids"] == [each["id"] for each in by_image[number]]
    assert [record["image_id"] for record in records["train"]] == [
        image_number(row["image"]) for row in LISTED[:2]
    ]
    assert records["train"][0]["captions"] == LISTED[0]["caption"]


@pytest.mark.parametrize("truth", [True, False])
def test_the_ground_truth_is_coco_s(tmp_path: Path, truth: bool) -> None:
    convert("coco_caption", blip_source(tmp_path, truth), tmp_path / "out")
    for split in ("val", "test"):
        written = json.loads((tmp_path / f"out/{split}_gt.json").read_text())
        assert {each["id"] for each in written["images"]} == {each["id"] for each in TRUTH["images"]}
        told = [(each["image_id"], each["caption"]) for each in written["annotations"]]
        assert sorted(told) == sorted((each["image_id"], each["caption"]) for each in TRUTH["annotations"])
        if truth:
            assert sorted(each["id"] for each in written["annotations"]) == sorted(
                each["id"] for each in TRUTH["annotations"]
            )
    assert not (tmp_path / "out/train_gt.json").exists()


def test_a_ground_truth_of_other_captions_is_an_error(tmp_path: Path) -> None:
    source = blip_source(tmp_path)
    other = json.loads(json.dumps(TRUTH))
    other["annotations"][6]["caption"] = "Something else."
    write_json(source / "annotations/coco_gt/coco_karpathy_test_gt.json", other)
    with pytest.raises(
        AuroraError, match="does not have the captions of its list: for image .*Something else"
    ):
        convert("coco_caption", source, tmp_path / "out")


def test_a_list_of_photos_that_are_not_coco_s_is_an_error(tmp_path: Path) -> None:
    source = blip_source(tmp_path)
    write_json(source / "annotations/coco_karpathy_val.json", [{"image": "a.jpg", "caption": ["A man."]}])
    with pytest.raises(
        AuroraError, match="coco_karpathy_val.json names an image a.jpg, which is no file name"
    ):
        convert("coco_caption", source, tmp_path / "out")


# the official JSON


def official_source(folder: Path) -> Path:
    source = folder / "official"
    for split in ("train", "val"):
        write_json(source / f"annotations/captions_{split}2014.json", OFFICIAL)
    draw_all(source, [f"val2014/{image['file_name']}" for image in OFFICIAL["images"]])
    return source


@pytest.mark.parametrize("recipe", ["coco_caption", "coco_retrieval"])
def test_the_official_json(tmp_path: Path, recipe: str) -> None:
    results = convert(recipe, official_source(tmp_path), tmp_path / "out")
    records = read_back(tmp_path / "out")
    files = {image["id"]: image["file_name"] for image in OFFICIAL["images"]}
    for split in ("train", "val"):
        captions: dict[int, list[tuple[int, str]]] = {}
        for each in OFFICIAL["annotations"]:
            captions.setdefault(each["image_id"], []).append((each["id"], each["caption"]))
        assert len(records[split]) == 5
        for record in records[split]:
            told = list(zip(record["caption_ids"], record["captions"], strict=True))
            assert told == captions[record["image_id"]]
            assert record["media_id"] == files[record["image_id"]]
    assert results["mismatches"] == [
        "train has 5 media and 25 pairs, expected 82783 and 414113",
        "val has 5 media and 25 pairs, expected 40504 and 202654",
    ]


def test_captions_without_an_image_and_images_without_a_caption_are_told(tmp_path: Path) -> None:
    content = json.loads(json.dumps(OFFICIAL))
    gone = content["images"].pop(1)
    added = content["images"][0] | {"id": 7, "file_name": "COCO_val2014_000000000007.jpg"}
    content["images"].append(added)
    write_json(tmp_path / "captions.json", content)
    entries, rejects = of_kind(entries_of("coco_caption", "coco", tmp_path, val="captions.json"))
    lost = [each["id"] for each in OFFICIAL["annotations"] if each["image_id"] == gone["id"]]
    assert {entry.annotation_id for entry in entries} & set(lost) == set()
    assert [reject.reason for reject in rejects] == [
        *(f"caption {number} is of an image that is not in `images`" for number in lost),
        "the image has no caption",
    ]
    assert rejects[-1].media_id == "COCO_val2014_000000000007.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["images"][0].pop("file_name"), r"images\[0\] without `file_name`"),
        (
            lambda content: content["annotations"][3].update(caption=None),
            r"annotations\[3\] with 'None' \(null\)",
        ),
        (
            lambda content: content["annotations"][3].update(image_id="1"),
            "expected a whole number as `image_id`",
        ),
        (lambda content: content.pop("annotations"), "without `annotations`"),
        (lambda content: content["images"].clear(), "an empty list 'images'"),
    ],
)
def test_official_files_of_another_shape(tmp_path: Path, change: Any, message: str) -> None:
    content = json.loads(json.dumps(OFFICIAL))
    change(content)
    write_json(tmp_path / "captions.json", content)
    with pytest.raises(AuroraError, match=message):
        entries_of("coco_caption", "coco", tmp_path, val="captions.json")


# MacCap's Flickr30k: names are the dataset's own, captions are not

MACCAP = [
    {"split": "test", "image_name": "1007129816.jpg", "captions": ["A man.\n", "A hat. ", "A man."]},
    {"split": "val", "image_name": "1018148011.jpg", "captions": ["Two men."]},
]


def test_maccap_s_list(tmp_path: Path) -> None:
    write_json(tmp_path / "flickr30k_test.json", MACCAP)
    draw_all(tmp_path, [f"flickr30k-images/{row['image_name']}" for row in MACCAP])
    convert("flickr30k", tmp_path, tmp_path / "out")
    records = read_back(tmp_path / "out")
    assert {split: [each["captions"] for each in rows] for split, rows in records.items()} == {
        "test": [["A man.\n", "A hat. ", "A man."]],
        "val": [["Two men."]],
    }


@pytest.mark.parametrize(
    "change", [{"captions": "A man."}, {"captions": [1]}, {"split": None}, {"image_name": ""}]
)
def test_maccap_lists_of_another_shape(tmp_path: Path, change: dict[str, Any]) -> None:
    write_json(tmp_path / "list.json", [MACCAP[0] | change])
    with pytest.raises(AuroraError, match=f"entry 0 with .* as `{next(iter(change))}`"):
        entries_of("flickr30k", "maccap", tmp_path, all="list.json")


# nocaps


def nocaps_official() -> dict[str, Any]:
    """The layout of the official file, with captions of our own."""
    images = [
        {"id": number, "file_name": Path(row["image"]).name, "open_images_id": Path(row["image"]).stem}
        | {"domain": domain, "width": 40, "height": 32}
        for number, (row, domain) in enumerate(
            zip(nocaps_list()[:3], ("in-domain", "near-domain", "out-domain"), strict=True)
        )
    ]
    annotations = [
        {"image_id": number % 3, "id": number, "caption": f"Number {number}."} for number in range(30)
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def nocaps_list() -> list[dict[str, Any]]:
    return json.loads((ANNOTATIONS / "nocaps_val.json").read_text())


def test_nocaps_keeps_the_domain_of_each_image(tmp_path: Path) -> None:
    official = nocaps_official()
    write_json(tmp_path / "nocaps_val_4500_captions.json", official)
    info = {"images": [{"id": 0, "file_name": "abc.jpg"}], "info": {}}
    write_json(tmp_path / "nocaps_test_image_info.json", info)
    draw_all(tmp_path, [f"val/{image['file_name']}" for image in official["images"]] + ["test/abc.jpg"])
    convert("nocaps", tmp_path, tmp_path / "out")
    records = read_back(tmp_path / "out")
    for record, image in zip(records["val"], official["images"], strict=True):
        for name in ("domain", "open_images_id"):
            assert record[name] == image[name]
        assert record["image_id"] == image["id"]
        assert record["caption_ids"] == [
            each["id"] for each in official["annotations"] if each["image_id"] == image["id"]
        ]
    (test,) = records["test"]
    assert (test["image_id"], test.get("captions", [])) == (0, [])
    written = json.loads((tmp_path / "out/val_gt.json").read_text())
    assert len(written["annotations"]) == 30 and len(written["images"]) == 3


def test_blip_s_nocaps_list_has_images_only(tmp_path: Path) -> None:
    listed = nocaps_list()
    write_json(tmp_path / "nocaps_val.json", listed)
    draw_all(tmp_path, [row["image"] for row in listed])
    results = convert("nocaps", tmp_path, tmp_path / "out")
    records = read_back(tmp_path / "out")["val"]
    assert [(record["media_id"], record["image_id"]) for record in records] == [
        (row["image"], row["img_id"]) for row in listed
    ]
    assert results["splits"]["val"] == results["splits"]["val"] | {"samples": 4, "pairs": 0}


# the datasets' own files, read in place


def test_the_real_coco_ground_truth_fits_its_list(shared: Path) -> None:
    entries, rejects = of_kind(
        entries_of(
            "coco_caption",
            "blip",
            shared / "data/annotations/karpathy_blip",
            val="coco_karpathy_val.json",
            val_gt="coco_gt/coco_karpathy_val_gt.json",
        )
    )
    truth = json.loads(
        (shared / "data/annotations/karpathy_blip/coco_gt/coco_karpathy_val_gt.json").read_text()
    )
    assert [(e.extra["image_id"], e.annotation_id, e.annotation) for e in entries] == [
        (each["image_id"], each["id"], each["caption"]) for each in truth["annotations"]
    ]
    assert (len(entries), rejects) == (25010, [])


def test_real_lists_cut_each_on_its_own_are_told_image_by_image(shared: Path) -> None:
    entries, rejects = of_kind(
        entries_of(
            "coco_caption",
            "coco",
            shared / "data/annotations/coco_captions",
            train="captions_train2014.first100.json",
        )
    )
    lost = [reject for reject in rejects if "not in `images`" in reject.reason]
    captioned = {entry.extra["image_id"] for entry in entries}
    assert len(entries) + len(lost) == 100
    assert len(rejects) - len(lost) == 100 - len(captioned)


def test_the_real_maccap_and_nocaps_lists(shared: Path) -> None:
    folder = shared / "data/annotations"
    entries, _ = of_kind(
        entries_of("flickr30k", "maccap", folder / "flickr30k", all="maccap_flickr30k_test.first200.json")
    )
    assert len(entries) == 1000 and {entry.split for entry in entries} == {"test"}
    entries, _ = of_kind(entries_of("nocaps", "blip", folder / "nocaps", val="nocaps_val.json"))
    assert len({entry.media for entry in entries}) == len(entries) == 4500
