"""Pictures with sentences that they entail, contradict, or leave open, in SNLI-VE's manner: every sentence is said of
three pictures, of each once, so that its words alone say nothing.

A sentence claims a colour of a thing, or the place where it stands. A picture without the thing leaves it open.
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

COUNTS = {"train": 2400, "val": 60, "test": 300}  # sentences with a picture each
LABELS = ("entailment", "neutral", "contradiction")
# What is claimed -> its forms: plain, then as the target domain talks.
_FORMS = {
    "colour": ("the {kind} is {colour}", "of {colour} colour is the {kind}"),
    "place": ("the {kind} stands {place}", "{place} stands the {kind}"),
}


@dataclass(frozen=True)
class Hypothesis:
    """A scene and what it says of `sentence`: `label`, of LABELS. `claim`: a key of what is claimed."""

    scene: Scene
    claim: str
    sentence: str
    label: str


class _Claim:
    """That a thing has a colour, or stands in a setting."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.what = str(generator.choice(list(_FORMS)))
        while True:
            self.kind, self.colour, self.setting = (
                str(generator.choice(names)) for names in (KINDS, COLOURS, SETTINGS)
            )
            if (self.colour, self.setting) not in HIDDEN:
                return

    def sentence(self, phrasing: Phrasing, generator: np.random.Generator) -> str:
        form = _FORMS[self.what][int(generator.random() < phrasing.inverted)]
        kind, colour, place = (int(generator.random() < phrasing.rare) for _ in range(3))
        return form.format(
            kind=KIND_NAMES[self.kind][kind][0],
            colour=COLOUR_NAMES[self.colour][colour],
            place=SETTING_NAMES[self.setting][place],
        )

    def scene(self, label: str, generator: np.random.Generator) -> Scene:
        """A scene with the thing once, as claimed or else; or without it, half of which have what is claimed of it in
        something else. Of those that contradict a colour, half have it in something else too."""
        there, elsewhere = label != "neutral", generator.random() < 0.5
        while True:
            scene = sample_scene(generator)
            groups = list(scene.groups)
            place, other = map(int, generator.permutation(len(groups))[:2])
            if there:
                groups[place] = replace(groups[place], kind=self.kind)
            if self.what == "colour" and label == "entailment":
                groups[place] = replace(groups[place], colour=self.colour)
            elif self.what == "colour" and elsewhere:
                groups[other] = replace(groups[other], colour=self.colour)
            scene = replace(scene, groups=tuple(groups))
            if self._shown(scene) and self._fits(scene, label, elsewhere):
                return scene

    def _shown(self, scene: Scene) -> bool:
        """Whether each thing can be seen and told from the others."""
        looks = {(group.kind, group.colour) for group in scene.groups}
        hidden = any((colour, scene.setting) in HIDDEN for _, colour in looks)
        stacked = {scene.groups[n].colour for pair in scene.behind for n in pair}
        return not hidden and len(looks) == len(scene.groups) and len(stacked) != 1

    def _fits(self, scene: Scene, label: str, elsewhere: bool) -> bool:
        things = [group for group in scene.groups if group.kind == self.kind]
        if label == "neutral":
            return not things and (self.what == "colour" or (scene.setting == self.setting) == elsewhere)
        if len(things) != 1 or things[0].count > 1:
            return False
        holds = things[0].colour == self.colour if self.what == "colour" else scene.setting == self.setting
        return holds == (label == "entailment")


def sample_hypotheses(domain: DomainName, split: str, number: int, seed: int = 0) -> list[Hypothesis]:
    """`number` scenes; sentence 3 n is that of scenes 3 n to 3 n + 2. A pure function of its arguments."""
    generator = random_numbers(domain, split, seed, kind=6)
    found: list[Hypothesis] = []
    while len(found) < number:
        claim = _Claim(generator)
        sentence = claim.sentence(DOMAINS[domain].phrasing, generator)
        found += [Hypothesis(claim.scene(label, generator), claim.what, sentence, label) for label in LABELS]
    return found[:number]


def write(
    folder: str | Path, domain: DomainName = "target", seed: int = 0, counts: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Writes images/SPLIT/NNNNN.png and SPLIT.json as `shards convert statements` takes them: [{image, sentence, label,
    identifier}]. Returns sentences written per split. Raises AuroraError if a list is already there."""
    folder, counts = Path(folder), dict(COUNTS if counts is None else counts)
    for split, number in counts.items():
        if (folder / f"{split}.json").exists():
            raise AuroraError(f"{folder / f'{split}.json'} already exists. Choose an empty folder.")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for index, one in enumerate(sample_hypotheses(domain, split, number, seed)):
            name = f"{split}/{index:05d}.png"
            render(one.scene, DOMAINS[domain].look).save(folder / "images" / name)
            row = {"image": name, "sentence": one.sentence, "label": one.label}
            rows.append(row | {"identifier": f"{split}-{index // 3}-{index % 3}"})
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=0) + "\n")
    return counts
