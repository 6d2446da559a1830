"""The toy world's two domains as data: splits of pictures with captions, written as images and BLIP-style lists.

The backbone in `assets/` was trained on `source`. `target` is the same kind of scenes seen and told differently.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import Phrasing, describe
from aurora_ds.quickstart.render import Look, render
from aurora_ds.quickstart.scenes import Scene, Statement, holds, sample_scene, twin

DomainName = Literal["source", "target"]
ASSETS = Path(__file__).parent / "assets"
SPLITS = ("train", "val", "test")
COUNTS = {"train": 800, "val": 100, "test": 200}
_TWIN_SHARE = 0.12  # share of draws followed by a twin, which only the stated relation tells apart
_MOST_DRAWS = 200  # draws of one picture before a split is called too large to be unambiguous


@dataclass(frozen=True)
class Domain:
    """How a domain is seen and how it is told."""

    look: Look
    phrasing: Phrasing


DOMAINS: dict[str, Domain] = {
    "source": Domain(Look(), Phrasing(rare=0.004, inverted=0.01)),
    "target": Domain(
        Look(
            cast=((0.76, 0.24, 0.00), (0.00, 0.81, 0.19), (0.23, 0.00, 0.77)),
            offset=(0.05, 0.0, 0.0),
            contrast=0.85,
            light_from=(0.8, -0.5),
            ambient=0.6,
            texture=1.6,
            tilt=12,
            outline=0.6,
            hatching=0.03,
            blur=(0.3, 0.8),
            grain=(0.02, 0.05),
            vignette=0.5,
        ),
        Phrasing(rare=0.6, inverted=0.7),
    ),
}


@dataclass(frozen=True)
class Picture:
    """One medium of a split: the scene, the statements made about it, and their words."""

    scene: Scene
    statements: tuple[Statement, ...]
    captions: tuple[str, ...]


class _Register:
    """Scenes and statements accepted so far, found by the pairs and triples of looks they hold."""

    def __init__(self) -> None:
        self.scenes: dict[frozenset, list[Scene]] = defaultdict(list)
        self.statements: dict[frozenset, list[Statement]] = defaultdict(list)

    @staticmethod
    def _keys(scene: Scene) -> Iterator[frozenset]:
        looks = [(group.kind, group.colour) for group in scene.groups]
        for size in (2, 3):
            yield from (frozenset(some) for some in combinations(looks, size))

    @staticmethod
    def _key(statement: Statement) -> frozenset:
        return frozenset((term.kind, term.colour) for term in statement.terms)

    def crosses(self, scene: Scene, statements: list[Statement]) -> bool:
        """Whether an accepted scene satisfies one of the new statements, or the new scene an accepted one."""
        return any(holds(s, other) for s in statements for other in self.scenes[self._key(s)]) or any(
            holds(s, scene) for key in self._keys(scene) for s in self.statements[key]
        )

    def add(self, scene: Scene, statements: list[Statement]) -> None:
        for key in self._keys(scene):
            self.scenes[key].append(scene)
        for statement in statements:
            self.statements[self._key(statement)].append(statement)


def random_numbers(domain: DomainName, split: str, seed: int, kind: int | None = None) -> np.random.Generator:
    """What the contents of a split are drawn from. `kind`: a number of its own for each kind of data, None for pictures
    with captions. Raises AuroraError where there is no such domain or split."""
    if domain not in DOMAINS:
        raise AuroraError(f"The toy world has no domain {domain!r}; its domains are: {', '.join(DOMAINS)}.")
    if split not in SPLITS:
        raise AuroraError(f"The toy world has no split {split!r}; its splits are: {', '.join(SPLITS)}.")
    own = [seed, list(DOMAINS).index(domain), SPLITS.index(split)]
    return np.random.default_rng(own if kind is None else [kind, *own])


def sample_split(
    domain: DomainName, split: str, number: int, captions: int = 3, seed: int = 0
) -> list[Picture]:
    """`number` pictures with `captions` captions each; no caption holds of another picture of the split.

    A pure function of its arguments. Raises AuroraError where the world has too few different scenes for that.
    """
    generator = random_numbers(domain, split, seed)
    phrasing = DOMAINS[domain].phrasing
    register, pictures = _Register(), []

    def propose(scene: Scene, relating: bool) -> bool:
        pairs = describe(scene, captions, phrasing, generator, relating)
        statements = [statement for statement, _ in pairs]
        if register.crosses(scene, statements):
            return False
        register.add(scene, statements)
        pictures.append(Picture(scene, tuple(statements), tuple(words for _, words in pairs)))
        return True

    draws = 0
    while len(pictures) < number:
        draws += 1
        if draws > _MOST_DRAWS * number:
            raise AuroraError(
                f"The toy world's {domain} {split} split cannot hold {number} pictures with {captions} "
                f"captions each that fit no other picture: {len(pictures)} were found. Ask for fewer pictures or "
                f"captions (the default is {COUNTS[split]} pictures with 3)."
            )
        scene = sample_scene(generator)
        twinned = generator.random() < _TWIN_SHARE
        if propose(scene, twinned) and twinned and len(pictures) < number:
            propose(twin(scene, generator), True)
    return pictures


def write(
    folder: str | Path,
    domain: DomainName = "target",
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    captions: int = 3,
) -> dict[str, int]:
    """Writes images/SPLIT/NNNNN.png and SPLIT.json for each split under `folder`; returns pictures written per split.

    train.json has one {"image", "caption", "image_id"} per caption; val.json and test.json have one
    {"image", "caption": [...]} per picture. `image` is relative to `folder`/images.
    Raises AuroraError if a list is already there.
    """
    folder = Path(folder)
    counts = dict(COUNTS if counts is None else counts)
    for split, number in counts.items():
        if (folder / f"{split}.json").exists():
            raise AuroraError(
                f"{folder / f'{split}.json'} already exists. Choose an empty folder for the toy world."
            )
        pictures = sample_split(domain, split, number, captions, seed)
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        entries: list[dict] = []
        for index, picture in enumerate(pictures):
            name = f"{split}/{index:05d}.png"
            render(picture.scene, DOMAINS[domain].look).save(folder / "images" / name)
            if split == "train":
                entries += [
                    {"image": name, "caption": words, "image_id": f"{domain}_{index:05d}"}
                    for words in picture.captions
                ]
            else:
                entries.append({"image": name, "caption": list(picture.captions)})
        (folder / f"{split}.json").write_text(json.dumps(entries, indent=0) + "\n")
    return counts
