"""Scene -> questions with short answers, and what ten people would answer.

A question asks for something that the scene alone decides, and within a kind of question every answer is asked for
about equally often, so that the words of a question do not give its answer away. As people do, annotators use one or
the other name of a thing, and now and then look badly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, Phrasing, vocabulary
from aurora_ds.quickstart.render import render
from aurora_ds.quickstart.scenes import COLOURS, KINDS, Scene, clear_relations, sample_scene
from aurora_ds.quickstart.world import DOMAINS, DomainName, random_numbers

COUNTS = {"train": 800, "val": 100, "test": 250}
ANNOTATORS = 10
CARELESS = 0.08  # chance that an annotator gives another answer of the kind
# Answer -> its usual and its rarer name.
PLACES = {
    "grass": ("grass", "lawn"),
    "sand": ("sand", "beach"),
    "water": ("water", "lake"),
    "snow": ("snow", "field"),
    "wood": ("floor", "planks"),
    "brick": ("brick", "masonry"),
}
_ANSWERS = {
    "thing": {kind: (usual[0], rare[0]) for kind, (usual, rare) in KIND_NAMES.items()},
    "colour": COLOUR_NAMES,
    "place": PLACES,
    "number": {number: (word, word) for number, word in ((1, "one"), (2, "two"), (3, "three"))},
    "truth": {truth: (word, word) for truth, word in ((True, "yes"), (False, "no"))},
    "way": {way: (way, way) for way in ("across", "down")},
}
# Kind of question -> what its answers are, and its forms: plain, then as the target domain asks.
_FORMS = {
    "colour": ("colour", "what colour is the {kind}", "the {kind} is of which colour"),
    "thing": ("thing", "what thing is {colour}", "which thing there is {colour}"),
    "number": ("number", "how many {kinds} are there", "of {kinds} how many do we find"),
    "place": ("place", "where is this", "across which place is this"),
    "exists": ("truth", "is there {a}", "do we find {a}"),
    "row": (
        "way",
        "which way do the {kind} and the {other} go",
        "the {kind} and the {other} go which way",
    ),
}
ANSWER_WORDS = ("yes", "no", "across", "down", "floor", "field")
_QUESTION_WORDS = (
    "what", "how", "many", "colour", "where", "which", "way", "do", "does", "go", "goes", "thing", "place", "this",
    "still", "both", "each", "has", "have", "only", "other", "photos", "pictures", "not", "same", "more", "than",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """`kind`: a key of what is asked; `truth`: the answer as the scene has it; `answers`: of ANNOTATORS people."""

    kind: str
    words: str
    truth: str
    answers: tuple[str, ...]


def language_vocabulary() -> list[str]:
    """Every word of captions, questions, answers and statements: the captions' own first, in their order."""
    words = dict.fromkeys([*vocabulary(), *_QUESTION_WORDS, *ANSWER_WORDS])
    for _, *forms in _FORMS.values():
        words.update(dict.fromkeys(w for form in forms for w in form.split() if not w.startswith("{")))
    return list(words)


def answer_list() -> list[str]:
    """Every answer that somebody may give."""
    return list(dict.fromkeys(n for names in _ANSWERS.values() for pair in names.values() for n in pair))


class Asker:
    """Asks about scenes, one kind after the other, and remembers which answers were seldom the right one."""

    def __init__(
        self, phrasing: Phrasing, generator: np.random.Generator, kinds: Iterable[str] = tuple(_FORMS)
    ):
        self.phrasing, self.generator, self.kinds = phrasing, generator, tuple(kinds)
        self._asked: Counter[tuple[str, object]] = Counter()

    def ask(self, scene: Scene, number: int) -> list[Question]:
        """`number` questions of different kinds about the scene; fewer where it gives occasion to fewer."""
        found: list[Question] = []
        for kind in self.generator.permutation(self.kinds):
            possible = list(_possible(str(kind), scene, self.generator))
            if not possible or len(found) == number:
                continue
            least = min(self._asked[kind, answer] for answer in _ANSWERS[_FORMS[kind][0]])
            seldom = min(self._asked[kind, truth] for truth, _ in possible)
            if seldom > least + 2:
                continue
            rarest = [each for each in possible if self._asked[kind, each[0]] == seldom]
            truth, slots = rarest[int(self.generator.integers(len(rarest)))]
            self._asked[kind, truth] += 1
            found.append(self._question(str(kind), truth, slots))
        return found

    def _question(self, kind: str, truth: object, slots: dict[str, str]) -> Question:
        what, *forms = _FORMS[kind]
        form = forms[int(self.generator.random() < self.phrasing.inverted)]
        slots = {name: self._name(*name_of) for name, name_of in slots.items()}
        names = _ANSWERS[what]
        answers = []
        for _ in range(ANNOTATORS):
            given = truth
            if self.generator.random() < CARELESS:
                others = [other for other in names if other != truth]
                given = others[int(self.generator.integers(len(others)))]
            answers.append(names[given][int(self.generator.random() < self.phrasing.rare)])
        return Question(kind, form.format(**slots), names[truth][0], tuple(answers))

    def _name(self, what: str, *of: object) -> str:
        rare = int(self.generator.random() < self.phrasing.rare)
        if what == "kind":
            kind, count = of
            return KIND_NAMES[kind][rare][int(count > 1)]
        if what == "colour":
            return COLOUR_NAMES[of[0]][rare]
        kind, colour = of
        colour = COLOUR_NAMES[colour][rare]
        article = "an" if colour[0] in "aeiou" else "a"
        return f"{article} {colour} {self._name('kind', kind, 1)}"


def _possible(kind: str, scene: Scene, generator: np.random.Generator) -> Iterator[tuple[object, dict]]:
    """(true answer, slots of the form) of every unambiguous question of a kind. A slot: how `_name` is to name it."""
    kinds, colours = (Counter(getattr(g, name) for g in scene.groups) for name in ("kind", "colour"))
    alone = [group for group in scene.groups if kinds[group.kind] == 1]
    if kind == "colour":
        yield from ((g.colour, {"kind": ("kind", g.kind, 1)}) for g in alone if g.count == 1)
    elif kind == "thing":
        for g in scene.groups:
            if colours[g.colour] == 1:
                yield g.kind, {"colour": ("colour", g.colour)}
    elif kind == "number":
        yield from ((g.count, {"kinds": ("kind", g.kind, 2)}) for g in alone)
    elif kind == "place":
        yield scene.setting, {}
    elif kind == "exists":
        yield from _looks(scene, generator)
    elif kind == "row":
        for first, second in ((0, 1), (1, 0)):
            a, b = scene.groups[first], scene.groups[second]
            relations = clear_relations(scene, first, second)
            plain = len(relations) == 1 and relations[0] not in ("behind", "front")
            if plain and kinds[a.kind] == kinds[b.kind] == 1:
                way = "across" if relations[0] in ("left", "right") else "down"
                yield way, {"kind": ("kind", a.kind, a.count), "other": ("kind", b.kind, b.count)}


def _looks(scene: Scene, generator: np.random.Generator) -> Iterator[tuple[bool, dict]]:
    """Is there a KIND of COLOUR? One that is there, and one of two things mixed up or with a colour that is not."""
    there = {(group.kind, group.colour) for group in scene.groups}
    kind, colour = sorted(there)[int(generator.integers(len(there)))]
    yield True, {"a": ("a", kind, colour)}
    mixed = [(g.kind, h.colour) for g in scene.groups for h in scene.groups]
    mixed += [(kind, str(generator.choice(COLOURS))), (str(generator.choice(KINDS)), colour)]
    absent = sorted(set(mixed) - there)
    if absent:
        kind, colour = absent[int(generator.integers(len(absent)))]
        yield False, {"a": ("a", kind, colour)}


def sample_questions(
    domain: DomainName, split: str, number: int, each: int = 3, seed: int = 0
) -> list[tuple[Scene, list[Question]]]:
    """`number` scenes with `each` questions of different kinds. A pure function of its arguments."""
    generator = random_numbers(domain, split, seed, kind=1)
    asker = Asker(DOMAINS[domain].phrasing, generator)
    scenes = [sample_scene(generator) for _ in range(number)]
    return [(scene, asker.ask(scene, each)) for scene in scenes]


def write(
    folder: str | Path,
    domain: DomainName = "target",
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    each: int = 3,
) -> dict[str, int]:
    """Writes images/SPLIT/NNNNN.png, SPLIT.json and answer_list.json as `shards convert questions` takes them.

    SPLIT.json: [{image, question, question_id, answer: [ANNOTATORS texts]}]. Returns questions written per split.
    Raises AuroraError if a list is already there."""
    folder, written = Path(folder), {}
    for split, number in dict(COUNTS if counts is None else counts).items():
        if (folder / f"{split}.json").exists():
            raise AuroraError(f"{folder / f'{split}.json'} already exists. Choose an empty folder.")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        rows: list[dict] = []
        for index, (scene, questions) in enumerate(sample_questions(domain, split, number, each, seed)):
            name = f"{split}/{index:05d}.png"
            render(scene, DOMAINS[domain].look).save(folder / "images" / name)
            for question in questions:
                rows.append({"image": name, "question": question.words, "question_id": len(rows)})
                rows[-1]["answer"] = list(question.answers)
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=0) + "\n")
        written[split] = len(rows)
    (folder / "answer_list.json").write_text(json.dumps(answer_list()) + "\n")
    return written
