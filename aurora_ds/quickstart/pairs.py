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
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, Phrasing
from aurora_ds.quickstart.render import render
from aurora_ds.quickstart.scenes import COLOURS, HIDDEN, KINDS, Scene, sample_scene
from aurora_ds.quickstart.world import DOMAINS, SPLITS, DomainName

COUNTS = {"train": 1600, "val": 100, "test": 300}  # statements with a pair each
# What is claimed -> (in the left picture?, in the right?) when it is true, and when not; plain and turned form.
_CLAIMS = {
    "left": (((1, 0),), ((0, 1),), "the left photo has {a}", "picture to the left there is {a}"),
    "right": (((0, 1),), ((1, 0),), "the right photo has {a}", "picture to the right there is {a}"),
    "some": (((1, 0), (0, 1)), ((0, 0),), "there is {a}", "in one photo we find {a}"),
    "both": (((1, 1),), ((1, 0), (0, 1)), "both photos have {a}", "we find {a} in each photo"),
}


@dataclass(frozen=True)
class Pair:
    """Two scenes and whether the statement `sentence` holds of them; `claim`: a key of what is claimed."""

    left: Scene
    right: Scene
    claim: str
    sentence: str
    truth: bool


def _has(scene: Scene, look: tuple[str, str]) -> bool:
    return any((group.kind, group.colour) == look for group in scene.groups)


def _scene(look: tuple[str, str], there: bool, generator: np.random.Generator) -> Scene:
    """A scene with a thing of this (kind, colour), or one without that has its kind or its colour."""
    kind, colour = look
    while True:
        scene = sample_scene(generator)
        if not there:
            if generator.random() < 0.5:
                kind, colour = look[0], str(generator.choice(COLOURS))
            else:
                kind, colour = str(generator.choice(KINDS)), look[1]
        place = int(generator.integers(len(scene.groups)))
        groups = list(scene.groups)
        groups[place] = replace(groups[place], kind=kind, colour=colour)
        result = replace(scene, groups=tuple(groups))
        looks = {(group.kind, group.colour) for group in groups}
        if (
            (colour, scene.setting) not in HIDDEN
            and len(looks) == len(groups)
            and _has(result, look) == there
        ):
            return result


def _sentence(claim: str, look: tuple[str, str], phrasing: Phrasing, generator: np.random.Generator) -> str:
    kind = KIND_NAMES[look[0]][int(generator.random() < phrasing.rare)][0]
    colour = COLOUR_NAMES[look[1]][int(generator.random() < phrasing.rare)]
    form = _CLAIMS[claim][2 + int(generator.random() < phrasing.inverted)]
    return form.format(a=f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}")


def sample_pairs(domain: DomainName, split: str, number: int, seed: int = 0) -> list[Pair]:
    """`number` pairs; statement 2 n is that of pairs 2 n and 2 n + 1. A pure function of its arguments."""
    if domain not in DOMAINS or split not in SPLITS:
        raise AuroraError(
            f"The toy world has no {domain} {split}; its domains are {', '.join(DOMAINS)}, its splits "
            f"{', '.join(SPLITS)}."
        )
    generator = np.random.default_rng([4, seed, list(DOMAINS).index(domain), SPLITS.index(split)])
    pairs: list[Pair] = []
    while len(pairs) < number:
        claim = str(generator.choice(list(_CLAIMS)))
        look = (str(generator.choice(KINDS)), str(generator.choice(COLOURS)))
        sentence = _sentence(claim, look, DOMAINS[domain].phrasing, generator)
        for truth in (True, False):
            ways = _CLAIMS[claim][0 if truth else 1]
            left, right = (
                _scene(look, bool(there), generator) for there in ways[int(generator.integers(len(ways)))]
            )
            pairs.append(Pair(left, right, claim, sentence, truth))
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
            for name, scene in zip(names, (pair.left, pair.right), strict=True):
                render(scene, DOMAINS[domain].look).save(folder / "images" / name)
            identifier = f"{split}-{index // 2}-{index % 2}-0"
            row = {"images": names, "sentence": pair.sentence, "label": str(pair.truth)}
            rows.append(row | {"identifier": identifier})
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=0) + "\n")
    return counts
