"""COCO and Flickr30k in both annotation forms. File names are the datasets' own, captions are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from drawn_data import draw, spooled

from aurora_ds.data.convert import convert, load_recipe
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError

COCO = {
    "train": ["train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg"],
    "val": ["val2014/COCO_val2014_000000184613.jpg"],
    "test": ["val2014/COCO_val2014_000000391895.jpg"],
}
FLICKR = {
    "train": ["flickr30k-images/1000092795.jpg", "flickr30k-images/10002456.jpg"],
    "val": ["flickr30k-images/1018148011.jpg"],
    "test": ["flickr30k-images/1007129816.jpg"],
}


def captions(image: str) -> list[str]:
    """Six captions: with a blank at the end, a line break inside, and capitals, as real ones have."""
    return [f"Words {n} about\n{image[-8:-4]}. " for n in range(6)]


def image_id(image: str) -> int:
    return int(Path(image).stem.split("_")[-1])


def write_blip(folder: Path, name: str, images: dict[str, list[str]]) -> None:
    train = [
        {"image": image, "caption": caption, "image_id": f"{name}_{image_id(image)}"}
        for image in images["train"]
        for caption in captions(image)
    ]
    (folder / f"{name}_train.json").write_text(json.dumps(train))
    for split in ("val", "test"):
        rows = [{"image": image, "caption": captions(image)} for image in images[split]]
        (folder / f"{name}_{split}.json").write_text(json.dumps(rows))


def karpathy_file(images: dict[str, list[str]], with_folder: bool) -> dict:
    rows, sentence = [], 0
    for split, names in images.items():
        for number, image in enumerate(names):
            folder, name = image.split("/")
            sentences = [
                {"raw": caption, "tokens": caption.split(), "imgid": len(rows), "sentid": 7 * (sentence + n)}
                for n, caption in enumerate(captions(image))
            ]
            sentence += len(sentences)
            row = {"filename": name, "imgid": len(rows), "sentids": [s["sentid"] for s in sentences]}
            # restval: COCO's validation photos that Karpathy's split trains on
            row |= {
                "split": "restval" if with_folder and split == "train" and number else split,
                "sentences": sentences,
            }
            rows.append(row | ({"filepath": folder, "cocoid": image_id(image)} if with_folder else {}))
    return {"dataset": "any", "images": rows}


def write_images(folder: Path, images: dict[str, list[str]], rename: Callable[[str], str] = str) -> None:
    for names in images.values():
        for image in names:
            draw(folder / rename(image), image_id(image))


def read(folder: Path) -> dict[str, list[tuple[str, dict]]]:
    manifest = Manifest.load(folder)
    reader = ShardReader(manifest)
    return {
        split: [reader.record(split, medium) for medium in range(manifest.media(split))]
        for split in manifest.splits
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    source = tmp_path / "coco"
    write_images(source, COCO)
    (source / "annotations").mkdir()
    write_blip(source / "annotations", "coco_karpathy", COCO)
    return source


def test_coco_blip_lists(coco: Path, tmp_path: Path) -> None:
    results = convert("coco_retrieval", coco, tmp_path / "out", workers=2)
    found = read(tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "val": 1, "test": 1}
    for split, rows in found.items():
        for image, (_, record) in zip(COCO[split], rows, strict=True):
            assert record["media_id"] == image and record["captions"] == captions(image)
    assert found["train"][1][1]["image_id"] == "coco_karpathy_42"
    assert results["annotations"] == [f"coco_karpathy_{split}.json" for split in ("test", "train", "val")]
    assert Manifest.load(tmp_path / "out").licence.startswith("Annotations CC BY 4.0")


def test_coco_karpathy_file_gives_the_same_media(coco: Path, tmp_path: Path) -> None:
    convert("coco_retrieval", coco, tmp_path / "lists")
    for path in (coco / "annotations").iterdir():
        path.unlink()
    (coco / "dataset_coco.json").write_text(json.dumps(karpathy_file(COCO, with_folder=True)))
    convert("coco_retrieval", coco, tmp_path / "file")
    lists, file = read(tmp_path / "lists"), read(tmp_path / "file")
    for split in COCO:
        assert [row[0] for row in lists[split]] == [row[0] for row in file[split]]
        assert [row[1]["captions"] for row in lists[split]] == [row[1]["captions"] for row in file[split]]
    record = file["train"][1][1]
    assert record["image_id"] == 42 and record["caption_ids"] == [7 * n for n in range(6, 12)]


def test_coco_2017_names_are_found(coco: Path, tmp_path: Path) -> None:
    for folder in ("train2014", "val2014"):
        for path in (coco / folder).iterdir():
            path.unlink()
    write_images(coco / "images", COCO, lambda image: f"train2017/{image_id(image):012d}.jpg")
    assert convert("coco_retrieval", coco, tmp_path / "out")["rejects"] == 0


def test_counts_that_are_not_expected_are_reported_and_with_strict_an_error(
    coco: Path, tmp_path: Path
) -> None:
    results = convert("coco_retrieval", coco, tmp_path / "out")
    assert results["mismatches"][0] == "train has 2 media and 12 pairs, expected 113287 and 566747"
    assert len(results["mismatches"]) == 3
    with pytest.raises(AuroraError, match="coco_retrieval is not what its recipe expects: train has 2 media"):
        convert("coco_retrieval", coco, tmp_path / "strict", strict=True)
    assert not list((tmp_path / "strict").glob("*.tar")), "counted before anything is written"
    limited = convert("coco_retrieval", coco, tmp_path / "limited", strict=True, limit=1)
    assert limited["mismatches"] == [], "with --limit other counts are wanted"


def test_counts_that_are_expected_pass_strict(coco: Path, tmp_path: Path) -> None:
    import yaml

    recipe = load_recipe("coco_retrieval").model_dump()
    recipe["expected"] = {"train": {"samples": 2, "pairs": 12}, "val": {"samples": 1, "pairs": 6}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert convert(tmp_path / "mine.yaml", coco, tmp_path / "out", strict=True)["mismatches"] == []


def test_an_incomplete_set_of_lists_names_what_is_missing(coco: Path, tmp_path: Path) -> None:
    (coco / "annotations/coco_karpathy_val.json").unlink()
    with pytest.raises(AuroraError, match="missing.*coco_karpathy_val.json.*dataset_coco.json"):
        convert("coco_retrieval", coco, tmp_path / "out")


def test_a_karpathy_file_with_an_unknown_split(coco: Path, tmp_path: Path) -> None:
    for path in (coco / "annotations").iterdir():
        path.unlink()
    content = karpathy_file(COCO, with_folder=True)
    content["images"][0]["split"] = "dev"
    (coco / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(
        AuroraError, match=r"images\[0\] with 'dev' .* expected one of train, restval, val, test as `split`"
    ):
        convert("coco_retrieval", coco, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "found a list without `images`"),
        ({"images": 3}, "found an object without `images`"),
        ({"images": [{"filename": "a.jpg"}]}, r"images\[0\] without `split` \(it has filename\)"),
        ({"images": ["a.jpg"]}, r"images\[0\] that is a text"),
        (
            {
                "images": [
                    {"filename": "a", "imgid": 0, "split": "val", "sentences": [{"raw": 3, "sentid": 0}]}
                ]
            },
            r"images\[0\].sentences\[0\] with '3' \(number\) as `raw`",
        ),
    ],
)
def test_karpathy_files_of_another_shape(coco: Path, tmp_path: Path, content: object, message: str) -> None:
    for path in (coco / "annotations").iterdir():
        path.unlink()
    (coco / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(AuroraError, match=message):
        convert("coco_retrieval", coco, tmp_path / "out")


@pytest.mark.parametrize("place", ["flickr30k-images", "images", "Images", "."])
def test_flickr_lists_find_photos_by_file_name(tmp_path: Path, place: str) -> None:
    source = tmp_path / "flickr"
    write_images(source, FLICKR, lambda image: f"{place}/{Path(image).name}")
    write_blip(source, "flickr30k", FLICKR)
    convert("flickr30k", source, tmp_path / "out")
    records = read(tmp_path / "out")
    assert [record["media_id"] for _, record in records["train"]] == FLICKR["train"]


def test_flickr_karpathy_file(tmp_path: Path) -> None:
    source = tmp_path / "flickr"
    write_images(source, FLICKR)
    (source / "dataset_flickr30k.json").write_text(json.dumps(karpathy_file(FLICKR, with_folder=False)))
    convert("flickr30k", source, tmp_path / "out")
    records = read(tmp_path / "out")
    assert {split: len(rows) for split, rows in records.items()} == {"train": 2, "val": 1, "test": 1}
    assert records["test"][0][1]["media_id"] == "1007129816.jpg"


# the datasets' own files, read in place


def drawn_for(media: list[str], folder: Path) -> None:
    """One tiny picture, linked under every name: a photo for each annotation without the photos."""
    draw(folder / "any.jpg", 1, (8, 8))
    for image in media:
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(folder / "any.jpg")


def test_the_real_coco_validation_list(shared: Path, tmp_path: Path) -> None:
    listed = shared / "data/annotations/karpathy_blip/coco_karpathy_val.json"
    content = json.loads(listed.read_text())
    for split in ("train", "val", "test"):
        (tmp_path / f"coco_karpathy_{split}.json").symlink_to(listed)
    media, spool = spooled("coco_retrieval", tmp_path)
    assert len(content) == len(media["val"]) == 5000 and not spool.reject_count()
    assert spool.counts()["val"] == (5000, 25010)
    assert [each.annotations["captions"] for each in media["val"]] == [row["caption"] for row in content]


def test_the_real_coco_list_through_shards(shared: Path, tmp_path: Path) -> None:
    listed = shared / "data/annotations/karpathy_blip/coco_karpathy_val.json"
    content = json.loads(listed.read_text())[:300]
    for split in ("train", "val", "test"):
        (tmp_path / f"coco_karpathy_{split}.json").symlink_to(listed)
    drawn_for([row["image"] for row in content], tmp_path)
    results = convert("coco_retrieval", tmp_path, tmp_path / "out", limit=300)
    assert results["splits"]["val"]["pairs"] == sum(len(row["caption"]) for row in content)
    records = read(tmp_path / "out")["val"]
    assert [record["captions"] for _, record in records] == [row["caption"] for row in content]


@pytest.mark.parametrize(
    ("recipe", "file", "counts"),
    [
        ("coco_retrieval", "karpathy_blip/dataset_coco.REBUILT_150.json", {"test": 100, "val": 50}),
        ("flickr30k", "flickr30k/dataset_flickr30k.REBUILT_200.json", {"test": 200}),
    ],
)
def test_karpathy_files_rebuilt_from_real_values(
    shared: Path, tmp_path: Path, recipe: str, file: str, counts: dict[str, int]
) -> None:
    content = json.loads((shared / "data/annotations" / file).read_text())
    (tmp_path / f"{file.split('/')[1].split('.')[0]}.json").symlink_to(shared / "data/annotations" / file)
    found, _ = spooled(recipe, tmp_path)
    assert {split: len(media) for split, media in found.items()} == counts
    raw = {
        (row.get("filepath", ""), row["filename"]): [s["raw"] for s in row["sentences"]]
        for row in content["images"]
    }
    for media in found.values():
        for each in media:
            folder, _, name = each.names.rpartition("/")
            assert each.annotations["captions"] == raw[folder, name]
