"""Clips of the toy world: two things, of which one moves, with captions and questions; and both in the raw layouts that
`shards convert clips` and `shards convert clip_questions` take.

The frames of a clip are seen as a set (nothing in the model tells their order), so a way and its way back are one
motion: across or down. Clips come in twins that differ by the way alone, and in the middle of it not at all.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aurora_ds.errors import AuroraError
from aurora_ds.quickstart.captions import COLOUR_NAMES, KIND_NAMES, SETTING_NAMES, Phrasing
from aurora_ds.quickstart.questions import PLACES
from aurora_ds.quickstart.render import SIDE, Look, render
from aurora_ds.quickstart.scenes import COLOURS, HIDDEN, KINDS, SETTINGS, Group, Scene
from aurora_ds.quickstart.world import DOMAINS, DomainName, random_numbers

RATE, FRAMES = 6, 6  # frames a second, frames of a clip
COUNTS = {"train": 240, "val": 24, "test": 100}
WAYS = {"across": (1, 0), "down": (0, 1)}
_TOLD = {"across": "to the left and to the right", "down": "above and below"}  # in captions
_SPAN = 0.32  # how far from its middle a thing moves, in picture sides
_FORMS = {  # the first two kinds of question no single frame answers
    "how": ("how does the {kind} go", "the {kind} goes how"),
    "does": ("does the {kind} go {way}", "do we find the {kind} goes {way}"),
    "colour": ("what colour is the {kind}", "the {kind} is of which colour"),
    "place": ("where is this", "across which place is this"),
}
_TYPES = {"how": "how", "colour": "what", "place": "where"}
_CAPTIONS = (
    ("{a} goes {way} {s}", "there is {b} still and {a} goes {way}", "{a} goes {way} and {b} is still {s}"),
    ("{way} goes {a} {s}", "we find {b} still and also {a} goes {way} {s}"),
)


@dataclass(frozen=True)
class Clip:
    """`mover`: in the middle of its way; `rest`: what stays where it is; `way`: a key of WAYS."""

    setting: str
    mover: Group
    rest: Group
    way: str
    seed: int

    def frames(self, look: Look, count: int = FRAMES) -> np.ndarray:
        """uint8 (count, SIDE, SIDE, 3); the noise of all frames is the same."""
        right, down = WAYS[self.way]
        steps = np.linspace(-_SPAN, _SPAN, count)
        places = [replace(self.mover, x=self.mover.x + right * s, y=self.mover.y + down * s) for s in steps]
        scenes = [Scene(self.setting, (self.rest, place), (), self.seed) for place in places]
        return np.stack([np.asarray(render(scene, look)) for scene in scenes])


@dataclass(frozen=True)
class ClipQuestion:
    """`kind`: a key of what is asked."""

    kind: str
    words: str
    answer: str


def sample_clip(generator: np.random.Generator) -> Clip:
    """Two things of different kinds and colours: one goes through the middle, one rests in a corner."""
    setting = str(generator.choice(SETTINGS))
    colours = [colour for colour in COLOURS if (colour, setting) not in HIDDEN]
    kinds, chosen = generator.permutation(KINDS)[:2], generator.permutation(colours)[:2]
    places = (np.asarray((0.5, 0.5)), 0.5 + 0.31 * generator.choice([-1, 1], 2))
    groups = [
        Group(str(kind), str(colour), 1, *map(float, place + generator.uniform(-0.02, 0.02, 2)), size)
        for kind, colour, place, size in zip(kinds, chosen, places, (0.34, 0.3), strict=True)
    ]
    return Clip(setting, *groups, str(generator.choice(list(WAYS))), int(generator.integers(2**62)))


def sample_split(domain: DomainName, split: str, number: int, seed: int = 0) -> list[Clip]:
    """`number` clips, every second the twin of the one before. A pure function of its arguments."""
    generator = random_numbers(domain, split, seed, kind=2)
    clips: list[Clip] = []
    while len(clips) < number:
        clip = sample_clip(generator)
        clips += [clip, replace(clip, way="down" if clip.way == "across" else "across")]
    return clips[:number]


def _name(names: tuple, phrasing: Phrasing, generator: np.random.Generator) -> str:
    name = names[int(generator.random() < phrasing.rare)]
    return name if isinstance(name, str) else name[0]


def caption(clip: Clip, phrasing: Phrasing, generator: np.random.Generator) -> str:
    """A true sentence that says how the mover goes."""
    slots = {"way": _TOLD[clip.way], "s": _name(SETTING_NAMES[clip.setting], phrasing, generator)}
    for slot, group in (("a", clip.mover), ("b", clip.rest)):
        colour = _name(COLOUR_NAMES[group.colour], phrasing, generator)
        article = "an" if colour[0] in "aeiou" else "a"
        slots[slot] = f"{article} {colour} {_name(KIND_NAMES[group.kind], phrasing, generator)}"
    forms = _CAPTIONS[int(generator.random() < phrasing.inverted)]
    return forms[int(generator.integers(len(forms)))].format(**slots)


def ask(
    clip: Clip, number: int, phrasing: Phrasing, generator: np.random.Generator, given: Counter
) -> list[ClipQuestion]:
    """`number` questions of different kinds. Answers have their usual names: they are judged by equality.

    given: how often each (kind of question, answer) was right so far; of two things to ask, the rarer answer wins."""
    found: list[ClipQuestion] = []
    for kind in map(str, generator.permutation(list(_FORMS))[:number]):
        possible = _possible(kind, clip)
        slots, answer = min(possible, key=lambda each: (given[kind, each[1]], generator.random()))
        given[kind, answer] += 1
        names = {
            slot: value if slot == "way" else _name(KIND_NAMES[value], phrasing, generator)
            for slot, value in slots.items()
        }
        form = _FORMS[kind][int(generator.random() < phrasing.inverted)]
        found.append(ClipQuestion(kind, form.format(**names), answer))
    return found


def _possible(kind: str, clip: Clip) -> list[tuple[dict[str, str], str]]:
    """(slots of the form, answer) of what may be asked."""
    mover = clip.mover.kind
    other = next(way for way in WAYS if way != clip.way)
    return {
        "how": [({"kind": mover}, clip.way)],
        "does": [({"kind": mover, "way": clip.way}, "yes"), ({"kind": mover, "way": other}, "no")],
        "colour": [({"kind": g.kind}, COLOUR_NAMES[g.colour][0]) for g in (clip.mover, clip.rest)],
        "place": [({}, PLACES[clip.setting][0])],
    }[kind]


def encode(frames: np.ndarray) -> bytes:
    """An mp4 of the frames, RATE a second, nearly without loss."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "10", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return target.getvalue()


def write(
    folder: str | Path,
    domain: DomainName = "target",
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    each: int = 4,
) -> dict[str, int]:
    """Writes videos/SPLITNNNN.mp4 with a caption per clip (SPLIT.json) and `each` questions (SPLIT.jsonl, ClipBERT's
    layout). Returns clips written per split. Raises AuroraError if a list is already there."""
    folder, counts = Path(folder), dict(COUNTS if counts is None else counts)
    generator, phrasing = np.random.default_rng([3, seed]), DOMAINS[domain].phrasing
    for split, number in counts.items():
        if (folder / f"{split}.json").exists():
            raise AuroraError(f"{folder / f'{split}.json'} already exists. Choose an empty folder.")
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        captions, questions, given = [], [], Counter()
        for index, clip in enumerate(sample_split(domain, split, number, seed)):
            name = f"{split}{index:04d}"
            (folder / "videos" / f"{name}.mp4").write_bytes(encode(clip.frames(DOMAINS[domain].look)))
            captions.append({"video": f"{name}.mp4", "caption": caption(clip, phrasing, generator)})
            for question in ask(clip, each, phrasing, generator, given):
                row = {"video_id": name, "question": question.words, "answer": question.answer}
                kind = {"answer_type": _TYPES[question.kind]} if question.kind in _TYPES else {}
                questions.append(json.dumps(row | kind))
        (folder / f"{split}.json").write_text(json.dumps(captions, indent=0) + "\n")
        (folder / f"{split}.jsonl").write_text("\n".join(questions) + "\n")
    return counts
