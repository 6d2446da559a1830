"""Scenes, pictures and captions of the toy world: same seed same world, and captions that are true."""

from __future__ import annotations

import re

import numpy as np
import pytest

from aurora_ds.quickstart.captions import Phrasing, describe, phrase, vocabulary
from aurora_ds.quickstart.render import PALETTE, SIDE, Look, places, render
from aurora_ds.quickstart.scenes import (
    COLOURS,
    Group,
    Scene,
    Statement,
    Term,
    clear_relations,
    holds,
    sample_scene,
    twin,
)


def two(first: tuple, second: tuple, behind: tuple = (), setting: str = "sand") -> Scene:
    groups = tuple(Group(kind, colour, count, x, y, 0.3) for kind, colour, count, x, y in (first, second))
    return Scene(setting, groups, behind, 0)


RED_BALL, BLUE_BOX = Term("ball", "red", 1), Term("box", "blue", 1)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (Statement((RED_BALL, BLUE_BOX)), True),
        (Statement((BLUE_BOX, RED_BALL)), True),
        (Statement((RED_BALL, BLUE_BOX), "left"), True),
        (Statement((BLUE_BOX, RED_BALL), "left"), False),
        (Statement((BLUE_BOX, RED_BALL), "right"), True),
        (Statement((RED_BALL, BLUE_BOX), "above"), False),
        (Statement((RED_BALL, BLUE_BOX), "behind"), False),
        (Statement((RED_BALL, BLUE_BOX), None, "sand"), True),
        (Statement((RED_BALL, BLUE_BOX), None, "snow"), False),
        (Statement((Term("ball", "red", 2), BLUE_BOX)), False),
        (Statement((RED_BALL, RED_BALL)), False),
    ],
)
def test_holds_judges_terms_relation_and_setting(statement: Statement, expected: bool) -> None:
    scene = two(("ball", "red", 1, 0.25, 0.5), ("box", "blue", 2, 0.75, 0.5))
    assert holds(statement, scene) is expected


def test_one_behind_the_other_is_stated_as_that_only() -> None:
    scene = two(("ball", "red", 1, 0.3, 0.3), ("box", "blue", 1, 0.45, 0.5), behind=((0, 1),))
    assert clear_relations(scene, 0, 1) == ["behind"]
    assert clear_relations(scene, 1, 0) == ["front"]


def test_a_twin_keeps_the_things_and_turns_the_relations() -> None:
    generator = np.random.default_rng(3)
    for _ in range(200):
        scene = sample_scene(generator)
        other = twin(scene, generator)
        looks = sorted((g.kind, g.colour, g.count) for g in scene.groups)
        assert looks == sorted((g.kind, g.colour, g.count) for g in other.groups)
        assert scene.setting == other.setting
        for statement, _ in describe(scene, 2, Phrasing(0, 0), generator, relating=True):
            if statement.relation is not None and len(statement.terms) == 2:
                assert holds(statement, scene)
                assert not holds(statement, other)


def test_plain_words_say_what_the_statement_says() -> None:
    statement = Statement((Term("ball", "orange", 1), Term("box", "blue", 2)), "left", "wood")
    generator = np.random.default_rng(0)
    sentences = {phrase(statement, Phrasing(0, 0), generator) for _ in range(50)}
    assert "an orange ball to the left of two blue boxes on a wooden floor" in sentences
    assert "on a wooden floor an orange ball is to the left of two blue boxes" in sentences
    turned = {phrase(statement, Phrasing(1, 1), generator) for _ in range(50)}
    assert "west of a pair of azure cubes we find one amber sphere across some planks" in turned


def test_captions_are_true_of_their_scene_and_made_of_known_words() -> None:
    words = set(vocabulary())
    generator = np.random.default_rng(1)
    for _ in range(100):
        scene = sample_scene(generator)
        for statement, caption in describe(scene, 3, Phrasing(0.5, 0.5), generator):
            assert holds(statement, scene)
            assert set(caption.split()) <= words
            assert re.fullmatch(r"[a-z]+( [a-z]+)*", caption)
            assert len(caption.split()) <= 30  # the reader's limit of words


def test_objects_stay_inside_the_picture() -> None:
    generator = np.random.default_rng(2)
    for _ in range(200):
        for group in sample_scene(generator).groups:
            for x, y in places(group):
                assert -0.06 < x - group.size / 2 and x + group.size / 2 < 1.06
                assert -0.06 < y - group.size / 2 and y + group.size / 2 < 1.06


def test_a_picture_is_a_function_of_scene_and_look() -> None:
    scene = sample_scene(np.random.default_rng(4))
    first, second = (np.asarray(render(scene, Look())) for _ in range(2))
    assert first.shape == (SIDE, SIDE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, np.asarray(render(scene, Look(contrast=0.7))))


@pytest.mark.parametrize("kind", ["ball", "box", "ring", "star", "heart"])
def test_an_object_has_its_colour(kind: str) -> None:
    """What an object changes in the picture is nearer to its colour than to any other colour of the palette."""
    for colour in COLOURS:
        setting = "sand" if colour in ("green", "red", "white") else "grass"
        scene = Scene(setting, (Group(kind, colour, 1, 0.5, 0.5, 0.5),), (), 5)
        empty = Scene(setting, (), (), 5)
        plain = Look(blur=(0, 0), grain=(0, 0), vignette=0)
        picture, without = (np.asarray(render(s, plain), np.float32) for s in (scene, empty))
        changed = (np.abs(picture - without).sum(-1) > 60)[8:48]
        seen = np.median(picture[8:48][changed], axis=0)
        distances = {name: np.abs(seen - np.asarray(value)).sum() for name, value in PALETTE.items()}
        assert min(distances, key=distances.get) == colour
