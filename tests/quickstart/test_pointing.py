"""Phrases of the toy world mean one thing, and their boxes are where it was painted."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import ImageChops

from aurora_ds.data.convert import convert
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart import pointing
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES
from aurora_ds.quickstart.questions import language_vocabulary
from aurora_ds.quickstart.render import Look, render, render_with_boxes
from aurora_ds.quickstart.scenes import Group, Scene, related

PLAIN = Look(grain=(0, 0), blur=(0, 0), light_from=(0.0, -0.8))
SCENE = Scene(
    "snow", (Group("ball", "red", 1, 0.3, 0.4, 0.4), Group("box", "blue", 2, 0.6, 0.75, 0.24)), (), 5
)


def named(names: dict[str, tuple], words: list[str]) -> set[str]:
    """What of a kind is spoken of."""
    every = {
        what: [word for name in both for word in ([name] if isinstance(name, str) else name)]
        for what, both in names.items()
    }
    return {what for what, known in every.items() if set(known) & set(words)}


@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_phrase_means_one_group(domain):
    seen: Counter[str] = Counter()
    for scene, pointings in pointing.sample_pointings(domain, "train", 150, each=4):
        for each in pointings:
            seen[each.kind] += 1
            words = each.words.split()
            kinds, colours = named(KIND_NAMES, words), named(COLOUR_NAMES, words)
            if each.kind == "place":
                (other,) = [n for n, group in enumerate(scene.groups) if group.kind in kinds]
                relation = next(
                    r for r in ("left", "right", "above", "below", "behind", "front") if r in words
                )
                fitting = [
                    n
                    for n in range(len(scene.groups))
                    if n != other and related(scene, n, other, relation, 0.06)
                ]
            else:
                fitting = [
                    n
                    for n, group in enumerate(scene.groups)
                    if (not kinds or group.kind in kinds) and (not colours or group.colour in colours)
                ]
            assert fitting == [each.group], each.words
            assert set(words) <= set(language_vocabulary())
    assert min(seen.values()) > 20 and len(seen) == 4


def test_boxes_hold_what_was_painted_and_no_more():
    """Taken away, a group changes pixels of its box alone, but for its shadow below."""
    whole, boxes = render_with_boxes(SCENE, PLAIN)
    without = render(Scene("snow", SCENE.groups[:1], (), 5), PLAIN)
    changed = np.argwhere(np.abs(np.asarray(ImageChops.difference(whole, without))).max(-1) > 40)
    (first_y, first_x), (last_y, last_x) = changed.min(0), changed.max(0) + 1
    left, top, right, bottom = boxes[1]
    assert abs(first_x - left) <= 2 and abs(last_x - right) <= 2 and abs(first_y - top) <= 2
    assert bottom - 1.5 <= last_y <= bottom + 4
    # two of them side by side, each as wide as it is high
    assert right - left == pytest.approx(1.9 * (bottom - top), rel=0.15)


def test_boxes_leave_pictures_as_they_were():
    assert render(SCENE, PLAIN).tobytes() == render_with_boxes(SCENE, PLAIN)[0].tobytes()


def test_it_becomes_shards_with_boxes_inside_their_images(tmp_path):
    written = pointing.write(tmp_path / "raw", counts={"train": 6, "test": 3})
    convert("phrases", tmp_path / "raw", tmp_path / "shards")
    manifest = Manifest.load(tmp_path / "shards")
    reader = ShardReader(manifest)
    records = [reader.record("train", number)[1] for number in range(6)]
    assert sum(len(record["phrases"]) for record in records) == written["train"] == 18
    rows = json.loads((tmp_path / "raw" / "train.json").read_text())
    assert [p for record in records for p in record["phrases"]] == [
        {k: row[k] for k in ("phrase", "box")} for row in rows
    ]
    for row in rows:
        left, top, width, height = row["box"]
        assert left >= 0 and top >= 0 and left + width <= 60 and top + height <= 60 and min(width, height) > 5
    with pytest.raises(AuroraError, match="already exists"):
        pointing.write(tmp_path / "raw", counts={"train": 6})
