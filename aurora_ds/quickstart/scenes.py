"""Scene graphs of the toy world: what stands where. Pictures and captions are both made from them.

A scene has a setting and two or three groups of like objects on a loose 2 x 2 grid, in units of the picture's side.
`holds` is the judge that keeps captions from fitting another picture of the same split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("ball", "box", "cone", "ring", "star", "cup", "heart", "tree", "house", "fish")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SETTINGS = ("grass", "sand", "water", "snow", "wood", "brick")
RELATIONS = ("left", "right", "above", "below", "behind", "front")

# A colour that would vanish in its setting is not painted there.
HIDDEN = {
    ("green", "grass"),
    ("yellow", "sand"),
    ("blue", "water"),
    ("white", "snow"),
    ("orange", "wood"),
    ("red", "brick"),
}
_CELLS = ((0.26, 0.31), (0.74, 0.31), (0.26, 0.72), (0.74, 0.72))
# A relation is stated in words only beyond the clear distance, and rules out another picture already at the faint one.
_CLEAR, _FAINT = 0.30, 0.06


@dataclass(frozen=True)
class Group:
    """`count` like objects side by side around (x, y), y downwards; `size` is the height of one of them."""

    kind: str
    colour: str
    count: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Groups in the order they are painted: a later one covers an earlier. `behind`: pairs (back, front) of groups."""

    setting: str
    groups: tuple[Group, ...]
    behind: tuple[tuple[int, int], ...]
    seed: int


@dataclass(frozen=True)
class Term:
    """At least `count` objects of this kind and colour, in one group."""

    kind: str
    colour: str
    count: int


@dataclass(frozen=True)
class Statement:
    """What a caption claims: a distinct group for each term, a relation of terms 0 and 1, a setting."""

    terms: tuple[Term, ...]
    relation: str | None = None
    setting: str | None = None


def related(scene: Scene, first: int, second: int, relation: str, distance: float) -> bool:
    """Whether group `first` is left of, above, behind … group `second` by at least `distance` (picture sides)."""
    if relation == "behind":
        return (first, second) in scene.behind
    if relation == "front":
        return (second, first) in scene.behind
    a, b = scene.groups[first], scene.groups[second]
    offset = {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
    return offset >= distance


def clear_relations(scene: Scene, first: int, second: int) -> list[str]:
    """The relations a person would state of two groups. Of one behind another only that: the shift is slight."""
    pair = [r for r in ("behind", "front") if related(scene, first, second, r, _CLEAR)]
    return pair or [
        r for r in ("left", "right", "above", "below") if related(scene, first, second, r, _CLEAR)
    ]


def holds(statement: Statement, scene: Scene) -> bool:
    """Whether a reader could take the statement as true of the scene.

    Generous on purpose: 'a red ball' holds of two red balls, and 'left of' of a slight shift. A caption that does
    not hold even so of any other picture of its split identifies its own.
    """
    if statement.setting is not None and statement.setting != scene.setting:
        return False
    choices = [
        [
            index
            for index, group in enumerate(scene.groups)
            if (group.kind, group.colour) == (term.kind, term.colour) and group.count >= term.count
        ]
        for term in statement.terms
    ]

    def assign(chosen: tuple[int, ...]) -> bool:
        if len(chosen) == len(choices):
            relation = statement.relation
            return relation is None or related(scene, chosen[0], chosen[1], relation, _FAINT)
        return any(assign((*chosen, index)) for index in choices[len(chosen)] if index not in chosen)

    return assign(())


def sample_scene(generator: np.random.Generator) -> Scene:
    """One random scene; no two of its groups share kind and colour, so its terms are unambiguous."""
    setting = str(generator.choice(SETTINGS))
    allowed = [colour for colour in COLOURS if (colour, setting) not in HIDDEN]
    number = 3 if generator.random() < 0.35 else 2
    stacked = (
        generator.random() < 0.25
    )  # one behind the other: of different colours, so that their edge shows
    looks: list[tuple[str, str]] = []
    while len(looks) < number:
        kind, colour = str(generator.choice(KINDS)), str(generator.choice(allowed))
        look = (kind, colour)
        if look not in looks and not (stacked and len(looks) == 1 and colour == looks[0][1]):
            looks.append(look)
    cells = [_CELLS[i] for i in generator.permutation(4)]
    groups: list[Group] = []
    for index, (kind, colour) in enumerate(looks):
        x, y = np.asarray(cells[index]) + generator.uniform(-0.05, 0.05, 2)
        count = int(generator.choice([1, 2, 3], p=[0.66, 0.22, 0.12]))
        size = float(generator.uniform(0.34, 0.42)) if count == 1 else float(generator.uniform(0.23, 0.27))
        if stacked and index < 2:
            count, size = 1, float(generator.uniform(0.36, 0.42))
        reach = size * (0.5 if count == 1 else 1.0)  # keeps the outer objects of a row inside the picture
        x, y = np.clip(x, reach, 1 - reach), np.clip(y, 0.9 * reach, 1 - 0.9 * reach)
        groups.append(Group(kind, colour, count, float(x), float(y), size))
    behind: tuple[tuple[int, int], ...] = ()
    if stacked:
        back = groups[0]
        side = 0.15 if back.x < 0.5 else -0.15
        front = groups[1]
        x = float(np.clip(back.x + side, 0.2, 0.8))
        y = float(np.clip(back.y + 0.17, 0.2, 0.8))
        groups[0] = Group(back.kind, back.colour, 1, back.x, y - 0.17, back.size)
        groups[1] = Group(front.kind, front.colour, 1, x, y, front.size)
        if number == 3:
            # The third group goes to the far column, away from the two that overlap.
            far = [cell for cell in _CELLS if (cell[0] < 0.5) != (back.x < 0.5)]
            cell = far[int(generator.integers(len(far)))]
            third = groups[2]
            groups[2] = Group(third.kind, third.colour, 1, 0.84 if cell[0] > 0.5 else 0.16, cell[1], 0.28)
        behind = ((0, 1),)
    return Scene(setting, tuple(groups), behind, int(generator.integers(2**62)))


def twin(scene: Scene, generator: np.random.Generator) -> Scene:
    """The scene with the places of its first two groups exchanged: only a relation tells the two apart."""
    first, second, *rest = scene.groups
    places = (
        Group(first.kind, first.colour, first.count, second.x, second.y, first.size),
        Group(second.kind, second.colour, second.count, first.x, first.y, second.size),
    )
    if scene.behind:
        # The order of painting decides who is in front, so the one in front has to come last.
        places = (
            Group(second.kind, second.colour, 1, first.x, first.y, first.size),
            Group(first.kind, first.colour, 1, second.x, second.y, second.size),
        )
    return Scene(scene.setting, (*places, *rest), scene.behind, int(generator.integers(2**62)))
