"""Scene -> phrases, each with the box of the one group that it means: by its look, or by where it stands.

A phrase fits no other group of its scene even to a generous reader. Words for left and right are the plain ones, so
that mirrored pictures can be told with them exchanged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, RELATION_NAMES, Phrasing
from aurora_ds.quickstart.render import Box, render_with_boxes
from aurora_ds.quickstart.scenes import Scene, clear_relations, related, sample_scene
from aurora_ds.quickstart.world import DOMAINS, DomainName, random_numbers

COUNTS = {"train": 800, "val": 100, "test": 250}
_FAINT = 0.06  # from here on a reader could take one thing for being left of another
# Kind of phrase -> its forms: plain, then as the target domain talks.
_FORMS = {
    "look": ("the {colour} {kind}", "{kind} of {colour} colour"),
    "kind": ("the {kind}", "only {kind}"),
    "colour": ("the {colour} thing", "thing of {colour} colour"),
    "place": ("the thing {relation} the {kind}", "{relation} the {kind} the thing"),
}


@dataclass(frozen=True)
class Pointing:
    """`words` mean group number `group` of a scene; `kind`: a key of how they do."""

    kind: str
    words: str
    group: int


def point(scene: Scene, number: int, phrasing: Phrasing, generator: np.random.Generator) -> list[Pointing]:
    """Up to `number` different phrases about groups of the scene."""
    possible = list(_possible(scene))
    found: dict[str, Pointing] = {}
    for chosen in generator.permutation(len(possible)):
        kind, group, slots = possible[int(chosen)]
        form = _FORMS[kind][int(generator.random() < phrasing.inverted)]
        rare = int(generator.random() < phrasing.rare)
        words = form.format(**{name: _name(name, rare, *of) for name, of in slots.items()})
        found.setdefault(words, Pointing(kind, words, group))
    return list(found.values())[:number]


def _possible(scene: Scene) -> Iterator[tuple[str, int, dict[str, tuple]]]:
    """(kind of phrase, group, slots of the form) of every phrase that means one group alone."""
    kinds, colours = (Counter(getattr(group, name) for group in scene.groups) for name in ("kind", "colour"))
    for number, group in enumerate(scene.groups):
        names = {"kind": (group.kind, group.count), "colour": (group.colour,)}
        yield "look", number, names
        if kinds[group.kind] == 1:
            yield "kind", number, {"kind": names["kind"]}
        if colours[group.colour] == 1:
            yield "colour", number, {"colour": names["colour"]}
        for other, seen in enumerate(scene.groups):
            if other == number or kinds[seen.kind] > 1:
                continue
            for relation in clear_relations(scene, number, other):
                third = [each for each in range(len(scene.groups)) if each not in (number, other)]
                if not any(related(scene, each, other, relation, _FAINT) for each in third):
                    yield "place", number, {"relation": (relation,), "kind": (seen.kind, seen.count)}


def _name(what: str, rare: int, *of: object) -> str:
    if what == "relation":
        return RELATION_NAMES[of[0]][0]
    if what == "colour":
        return COLOUR_NAMES[of[0]][rare]
    kind, count = of
    return KIND_NAMES[kind][rare][int(count > 1)]


def sample_pointings(
    domain: DomainName, split: str, number: int, each: int = 3, seed: int = 0
) -> list[tuple[Scene, list[Pointing]]]:
    """`number` scenes with up to `each` phrases. A pure function of its arguments."""
    generator = random_numbers(domain, split, seed, kind=5)
    phrasing = DOMAINS[domain].phrasing
    scenes = [sample_scene(generator) for _ in range(number)]
    return [(scene, point(scene, each, phrasing, generator)) for scene in scenes]


def write(
    folder: str | Path,
    domain: DomainName = "target",
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    each: int = 3,
) -> dict[str, int]:
    """Writes images/SPLIT/NNNNN.png and SPLIT.json as `shards convert phrases` takes them: [{image, phrase, box}].

    Returns phrases written per split. Raises AuroraError if a list is already there."""
    folder, written = Path(folder), {}
    for split, number in dict(COUNTS if counts is None else counts).items():
        if (folder / f"{split}.json").exists():
            raise AuroraError(f"{folder / f'{split}.json'} already exists. Choose an empty folder.")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        rows: list[dict] = []
        for index, (scene, pointings) in enumerate(sample_pointings(domain, split, number, each, seed)):
            name = f"{split}/{index:05d}.png"
            picture, boxes = render_with_boxes(scene, DOMAINS[domain].look)
            picture.save(folder / "images" / name)
            rows += [
                {"image": name, "phrase": pointing.words, "box": _as_listed(boxes[pointing.group])}
                for pointing in pointings
            ]
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=0) + "\n")
        written[split] = len(rows)
    return written


def _as_listed(box: Box) -> list[float]:
    """Left, top, width, height in hundredths of a pixel, as lists of boxes have them."""
    left, top, right, bottom = (round(each, 2) for each in box)
    return [left, top, round(right - left, 2), round(bottom - top, 2)]
