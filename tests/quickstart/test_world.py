"""The toy world's splits: no caption fits another picture, else R@K means nothing; files are as readers expect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.scenes import holds
from aurora_ds.quickstart.world import COUNTS, sample_split, write


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_caption_of_a_split_holds_of_its_own_picture_only(domain: str, seed: int) -> None:
    pictures = sample_split(domain, "test", COUNTS["test"], 3, seed)
    assert len(pictures) == COUNTS["test"]
    for index, picture in enumerate(pictures):
        for statement in picture.statements:
            assert [i for i, other in enumerate(pictures) if holds(statement, other.scene)] == [index]


def test_captions_of_a_split_are_all_different() -> None:
    captions = [caption for picture in sample_split("target", "train", 400) for caption in picture.captions]
    assert len(set(captions)) == len(captions) == 1200


def test_a_split_has_pairs_that_only_a_relation_tells_apart() -> None:
    pictures = sample_split("target", "test", 200)
    contents = [
        (p.scene.setting, frozenset((g.kind, g.colour, g.count) for g in p.scene.groups)) for p in pictures
    ]
    assert len(contents) - len(set(contents)) >= 10


def test_same_seed_same_split_other_seed_other_split() -> None:
    assert sample_split("target", "test", 20, seed=5) == sample_split("target", "test", 20, seed=5)
    assert sample_split("target", "test", 20, seed=5) != sample_split("target", "test", 20, seed=6)
    assert sample_split("target", "test", 20, seed=5) != sample_split("target", "val", 20, seed=5)


def test_written_files_have_the_published_list_form(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 3, "test": 4}
    assert write(tmp_path / "world", "target", seed=0, counts=counts, captions=2) == counts
    train = json.loads((tmp_path / "world" / "train.json").read_text())
    assert len(train) == 12
    assert set(train[0]) == {"image", "caption", "image_id"}
    assert len({entry["image_id"] for entry in train}) == 6
    test = json.loads((tmp_path / "world" / "test.json").read_text())
    assert len(test) == 4
    assert set(test[0]) == {"image", "caption"}
    assert [len(entry["caption"]) for entry in test] == [2] * 4
    for entry in [*train, *test]:
        with Image.open(tmp_path / "world" / "images" / entry["image"]) as picture:
            assert picture.mode == "RGB"


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, "source", seed=3, counts={"test": 3})
    first, second = (
        sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("one", "two")
    )
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_domains_look_different_and_share_their_words() -> None:
    words = {
        domain: {
            word
            for p in sample_split(domain, "train", 300)
            for caption in p.captions
            for word in caption.split()
        }
        for domain in ("source", "target")
    }
    assert len(words["target"] - words["source"]) < 0.5 * len(words["target"])
    rare = {"crimson", "azure", "sphere", "cottage"}
    assert rare <= words["target"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moon", "test", 5), "no domain 'moon'.*source, target"),
        (("target", "holdout", 5), "no split 'holdout'.*train, val, test"),
        (("target", "test", 9000, 5), "cannot hold 9000 pictures"),
    ],
)
def test_wrong_requests_are_explained(
    arguments: tuple, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora_ds.quickstart.world._MOST_DRAWS", 0.01)
    with pytest.raises(AuroraError, match=message):
        sample_split(*arguments)


def test_a_world_is_not_written_over_another(tmp_path: Path) -> None:
    write(tmp_path, counts={"test": 2})
    with pytest.raises(AuroraError, match="already exists"):
        write(tmp_path, counts={"test": 2})


def test_pictures_are_not_flat() -> None:
    from aurora_ds.quickstart.render import render
    from aurora_ds.quickstart.world import DOMAINS

    for domain in ("source", "target"):
        picture = sample_split(domain, "test", 1)[0]
        assert np.asarray(render(picture.scene, DOMAINS[domain].look), np.float32).std() > 15
