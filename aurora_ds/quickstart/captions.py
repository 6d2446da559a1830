"""Scene -> captions. A caption is a statement (what is claimed) put in words by a phrasing (how a domain talks).

The two domains claim the same kinds of things. They differ in the order of a sentence and in which of the two names
for a thing is the usual one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aurora_ds.quickstart.scenes import Scene, Statement, Term, clear_relations, holds

# Usual and rare name of each thing, singular and plural.
KIND_NAMES = {
    "ball": (("ball", "balls"), ("sphere", "spheres")),
    "box": (("box", "boxes"), ("cube", "cubes")),
    "cone": (("cone", "cones"), ("funnel", "funnels")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "star": (("star", "stars"), ("starlet", "starlets")),
    "cup": (("cup", "cups"), ("mug", "mugs")),
    "heart": (("heart", "hearts"), ("valentine", "valentines")),
    "tree": (("tree", "trees"), ("shrub", "shrubs")),
    "house": (("house", "houses"), ("cottage", "cottages")),
    "fish": (("fish", "fish"), ("carp", "carp")),
}
COLOUR_NAMES = {
    "red": ("red", "crimson"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "ivory"),
    "black": ("black", "ebony"),
}
SETTING_NAMES = {
    "grass": ("on the grass", "across a lawn"),
    "sand": ("on the sand", "across a beach"),
    "water": ("on the water", "across a lake"),
    "snow": ("in the snow", "across a winter field"),
    "wood": ("on a wooden floor", "across some planks"),
    "brick": ("by a brick wall", "across some masonry"),
}
NUMBER_NAMES = {1: ("a", "one"), 2: ("two", "a pair of"), 3: ("three", "a trio of")}
RELATION_NAMES = {
    "left": ("to the left of", "west of"),
    "right": ("to the right of", "east of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "behind": ("behind", "partly hidden by"),
    "front": ("in front of", "partly hiding"),
}
_PLAIN = ("{a} {r} {b} {s}", "there {v} {a} {r} {b} {s}", "{s} {a} {v} {r} {b}", "a photo of {a} {r} {b} {s}")
_INVERTED = ("{r} {b} we find {a} {s}", "{s} {r} {b} there stands {a}", "picture {s} with {r} {b} {a}")
_LISTS = (
    ("{a} and {b} {s}", "a photo of {a} and {b} {s}"),
    ("we find {b} and also {a} {s}", "picture {s} with {b} plus {a}"),
)
_LISTS_OF_THREE = (
    ("{a} {b} and {c} {s}", "there {v} {a} {b} and {c} {s}"),
    ("we find {c} {b} and also {a} {s}", "picture {s} with {b} plus {c} plus {a}"),
)


@dataclass(frozen=True)
class Phrasing:
    """How a domain talks: `rare`, the chance of a thing's rarer name; `inverted`, of a sentence turned round."""

    rare: float
    inverted: float


def vocabulary() -> list[str]:
    """Every word that a caption of either domain can hold, in a fixed order."""
    names = [
        *KIND_NAMES.values(),
        *COLOUR_NAMES.values(),
        *SETTING_NAMES.values(),
        *NUMBER_NAMES.values(),
        *RELATION_NAMES.values(),
    ]
    phrases: list[str] = [*_PLAIN, *_INVERTED, *(p for pair in (*_LISTS, *_LISTS_OF_THREE) for p in pair)]
    for pair in names:
        for name in pair:
            phrases += [name] if isinstance(name, str) else list(name)
    words: dict[str, None] = {"is": None, "are": None, "an": None}
    for phrase in phrases:
        words.update(dict.fromkeys(word for word in phrase.split() if not word.startswith("{")))
    return list(words)


def _article(words: str) -> str:
    return "an" + words[1:] if words.startswith("a ") and words[2] in "aeiou" else words


def sample_statement(scene: Scene, generator: np.random.Generator, relating: bool = False) -> Statement:
    """A true statement about two or three groups of the scene; `relating`: about the first two, with a relation."""
    order = [0, 1] if relating else [int(i) for i in generator.permutation(len(scene.groups))]
    if relating and generator.random() < 0.5:
        order = [1, 0]
    terms = tuple(Term(scene.groups[i].kind, scene.groups[i].colour, scene.groups[i].count) for i in order)
    setting = scene.setting if generator.random() < 0.5 else None
    if len(terms) == 3 and generator.random() < 0.35:
        return Statement(terms, None, setting)
    relations = clear_relations(scene, order[0], order[1])
    if not relations or (not relating and generator.random() < 0.2):
        return Statement(terms if len(terms) == 3 and not relations else terms[:2], None, setting)
    return Statement(terms[:2], relations[int(generator.integers(len(relations)))], setting)


def phrase(statement: Statement, phrasing: Phrasing, generator: np.random.Generator) -> str:
    """The statement in words: lower case, no punctuation, at most about 20 words."""

    def pick(pair: tuple) -> str | tuple[str, str]:
        return pair[int(generator.random() < phrasing.rare)]

    def choose(forms: tuple[str, ...]) -> str:
        return forms[int(generator.integers(len(forms)))]

    things = []
    for term in statement.terms:
        kind = pick(KIND_NAMES[term.kind])[int(term.count > 1)]
        things.append(_article(f"{pick(NUMBER_NAMES[term.count])} {pick(COLOUR_NAMES[term.colour])} {kind}"))
    slots = dict(zip("abc", things, strict=False))
    slots["v"] = "is" if statement.terms[0].count == 1 else "are"
    slots["s"] = "" if statement.setting is None else pick(SETTING_NAMES[statement.setting])
    inverted = generator.random() < phrasing.inverted
    if statement.relation is None:
        form = choose((_LISTS if len(things) == 2 else _LISTS_OF_THREE)[int(inverted)])
    else:
        form = choose(_INVERTED if inverted else _PLAIN)
        slots["r"] = pick(RELATION_NAMES[statement.relation])
    return " ".join(form.format(**slots).split())


def describe(
    scene: Scene, number: int, phrasing: Phrasing, generator: np.random.Generator, relating: bool = False
) -> list[tuple[Statement, str]]:
    """`number` captions with different wording, each with the statement it makes. All statements hold of the scene."""
    pairs: list[tuple[Statement, str]] = []
    while len(pairs) < number:  # every scene has far more wordings than captions are asked for
        statement = sample_statement(scene, generator, relating)
        words = phrase(statement, phrasing, generator)
        if all(words != other for _, other in pairs):
            assert holds(statement, scene), (statement, scene)
            pairs.append((statement, words))
    return pairs
