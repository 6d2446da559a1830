"""Pairs of pictures with statements that are true or false of both, in NLVR2's manner: every statement is made of two
pairs, of one truly and of the other falsely, so that its words alone say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, SETTING_NAMES, Phrasing
from aurora_ds.quickstart.render import render
from aurora_ds.quickstart.scenes import COLOURS, HIDDEN, KINDS, SETTINGS, Scene, sample_scene
from aurora_ds.quickstart.world import DOMAINS, DomainName, random_numbers

COUNTS = {"train": 1000, "val": 60, "test": 240}  # statements with a pair each
# What is claimed -> (of the first picture?, of the second?) when it is true, and when not; of a thing in plain and in
# turned form, and of the place.
_CLAIMS = {
    "some": (((1, 0), (0, 1)), ((0, 0),), "there is {a}", "in one photo we find {a}", "one photo is {s}"),
    "both": (((1, 1),), ((1, 0), (0, 1)), "both photos have {a}", "we find {a} in each photo", "both photos are {s}"),
}  # fmt: skip
_PLACES = 0.5  # share of statements about the place


@dataclass(frozen=True)
class Pair:
    """Two scenes and whether the statement `sentence` holds of them; `claim`: a key of what is claimed."""

    first: Scene
    second: Scene
    claim: str
    sentence: str
    truth: bool


class _Thing:
    """A thing that a statement is about."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.kind, self.colour = str(generator.choice(KINDS)), str(generator.choice(COLOURS))

    def sentence(self, claim: str, phrasing: Phrasing, generator: np.random.Generator) -> str:
        kind = KIND_NAMES[self.kind][int(generator.random() < phrasing.rare)][0]
        colour = COLOUR_NAMES[self.colour][int(generator.random() < phrasing.rare)]
        form = _CLAIMS[claim][2 + int(generator.random() < phrasing.inverted)]
        return form.format(a=f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}")

    def scene(self, there: bool, generator: np.random.Generator) -> Scene:
        """A scene with the thing, or one without, half of which have something of its kind or its colour."""
        while True:
            kind, colour, scene = self.kind, self.colour, sample_scene(generator)
            if not there:
                keep = generator.random()
                kind = kind if keep < 0.25 else str(generator.choice(KINDS))
                colour = colour if 0.25 <= keep < 0.5 else str(generator.choice(COLOURS))
            place = int(generator.integers(len(scene.groups)))
            groups = list(scene.groups)
            groups[place] = replace(groups[place], kind=kind, colour=colour)
            looks = {(group.kind, group.colour) for group in groups}
            shown = (colour, scene.setting) not in HIDDEN and len(looks) == len(groups)
            if shown and ((self.kind, self.colour) in looks) == there:
                return replace(scene, groups=tuple(groups))


class _Place:
    """A setting that a statement is about."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.setting = str(generator.choice(SETTINGS))

    def sentence(self, claim: str, phrasing: Phrasing, generator: np.random.Generator) -> str:
        return _CLAIMS[claim][4].format(
            s=SETTING_NAMES[self.setting][int(generator.random() < phrasing.rare)]
        )

    def scene(self, there: bool, generator: np.random.Generator) -> Scene:
        while True:
            scene = sample_scene(generator)
            if (scene.setting == self.setting) == there:
                return scene


def sample_pairs(domain: DomainName, split: str, number: int, seed: int = 0) -> list[Pair]:
    """`number` pairs; statement 2 n is that of pairs 2 n and 2 n + 1. A pure function of its arguments."""
    generator = random_numbers(domain, split, seed, kind=4)
    pairs: list[Pair] = []
    while len(pairs) < number:
        claim = str(generator.choice(list(_CLAIMS)))
        about = (_Place if generator.random() < _PLACES else _Thing)(generator)
        sentence = about.sentence(claim, DOMAINS[domain].phrasing, generator)
        for truth in (True, False):
            ways = _CLAIMS[claim][0 if truth else 1]
            first, second = (
                about.scene(bool(there), generator) for there in ways[int(generator.integers(len(ways)))]
            )
            pairs.append(Pair(first, second, claim, sentence, truth))
    return pairs[:number]


def write(
    folder: str | Path, domain: DomainName = "target", seed: int = 0, counts: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Writes images/SPLIT/NNNNN-0.png and -1.png and SPLIT.json as `shards convert pairs` takes them (NLVR2 lists of
    BLIP with identifiers). Returns statements written per split. Raises AuroraError if a list is already there."""
    folder, counts = Path(folder), dict(COUNTS if counts is None else counts)
    for split, number in counts.items():
        if (folder / f"{split}.json").exists():
            raise AuroraError(f"{folder / f'{split}.json'} already exists. Choose an empty folder.")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for index, pair in enumerate(sample_pairs(domain, split, number, seed)):
            names = [f"{split}/{index:05d}-{side}.png" for side in (0, 1)]
            for name, scene in zip(names, (pair.first, pair.second), strict=True):
                render(scene, DOMAINS[domain].look).save(folder / "images" / name)
            identifier = f"{split}-{index // 2}-{index % 2}-0"
            row = {"images": names, "sentence": pair.sentence, "label": str(pair.truth)}
            rows.append(row | {"identifier": identifier})
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=0) + "\n")
    return counts
