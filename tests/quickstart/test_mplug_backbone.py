"""The built-in mPLUG: one file serves every head, and it knows its own domain better than the other."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import BackboneConfig
from aurora_ds.quickstart.questions import language_vocabulary
from aurora_ds.quickstart.scenes import KINDS, Group, Scene
from aurora_ds.quickstart.world import ASSETS
from aurora_ds.recipe import load_config

MPLUG = ASSETS / "mplug"
SCRIPTS = Path(__file__).parents[2] / "scripts" / "world"


def described() -> dict:
    return json.loads((MPLUG / "backbone.json").read_text())


def load(head: str):
    config = BackboneConfig(checkpoint="builtin:world-mplug", head=head, **described())
    return load_backbone(config).model.eval()


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        specification = importlib.util.spec_from_file_location("train_mplug", SCRIPTS / "train_mplug.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module  # dataclasses look their module up by name
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


def test_the_assets_are_small() -> None:
    assert sum(file.stat().st_size for file in MPLUG.iterdir()) < 6e6


@pytest.mark.parametrize("head", ["retrieval", "vqa", "caption", "grounding"])
def test_every_head_reads_its_parts_of_the_one_file(head: str) -> None:
    own, other = load(head).state_dict(), load("vqa").state_dict()
    shared = own.keys() & other.keys()
    assert any(name.startswith("visual_encoder.") for name in shared)
    assert all(torch.equal(own[name], other[name]) for name in shared)


def test_the_script_makes_a_model_of_these_sizes_and_words(maker: ModuleType) -> None:
    sizes = described()
    own = BackboneConfig.model_validate(sizes)
    assert maker.backbone_config().model_dump(include=set(sizes)) == own.model_dump(include=set(sizes))
    words = (MPLUG / "vocab.txt").read_text().split()
    assert words == maker.word_list() and words[5 : 5 + len(language_vocabulary())] == language_vocabulary()


def test_the_recipe_has_the_tokens_of_boxes_that_the_script_trained(maker: ModuleType) -> None:
    recipe, trained = load_config("grounding_world").grounding, maker.box_tokens()
    tokens = ("bins", "prefix_id", "first_bin_id")
    assert [getattr(recipe, name) for name in tokens] == [getattr(trained, name) for name in tokens]
    tokenizer = Tokenizer(MPLUG / "vocab.txt", plain=True)
    assert trained.first_bin_id + trained.bins == len(tokenizer) - 1


def test_a_patch_belongs_to_the_thing_in_front_and_ground_to_none(maker: ModuleType) -> None:
    groups = (Group("box", "red", 1, 0.25, 0.25, 0.5), Group("ball", "blue", 2, 0.5, 0.5, 0.3))
    seen = maker.material_of_one(Scene("snow", groups, (), 5), "source")
    owners = seen.owners(4).view(4, 4).tolist()
    assert owners == [[0, 0, -1, -1], [0, 1, 1, -1], [-1, 1, 1, -1], [-1, -1, -1, -1]]


def test_an_image_encoder_learns_what_its_patches_show(maker: ModuleType) -> None:
    torch.manual_seed(3)
    generator = maker.np.random.default_rng(3)
    seen = maker.material([maker.sample_scene(generator) for _ in range(8)], "source", 1)
    visual = maker.WholeModel(maker.backbone_config()).visual_encoder.visual
    first, last = (maker.learn_to_see(visual, seen, steps, 8, 2e-3, generator) for steps in (1, 40))
    assert last["colour"] < 0.7 * first["colour"] and last["box, pixels"] < 0.5 * first["box, pixels"]


def test_a_linear_map_of_its_patches_tells_the_kind_of_thing(maker: ModuleType) -> None:
    generator = maker.np.random.default_rng(3)
    seen = maker.material([maker.sample_scene(generator) for _ in range(240)], "source", 1)
    owners = seen.owners(6)
    with torch.no_grad():
        tokens = load("grounding").image_tokens(seen.image(maker.np.arange(240)))[:, 1:]
    kinds = torch.tensor(
        [
            [KINDS.index(scene.groups[group].kind) if group >= 0 else -1 for group in row]
            for scene, row in zip(seen.scenes, owners.tolist(), strict=True)
        ]
    )
    known, asked = kinds[:180] >= 0, kinds[180:] >= 0
    map_ = torch.linalg.lstsq(tokens[:180][known], torch.eye(len(KINDS))[kinds[:180][known]]).solution
    told = (tokens[180:][asked] @ map_).argmax(-1)
    assert float((told == kinds[180:][asked]).float().mean()) > 0.5


def test_it_answers_in_the_source_domain_and_less_well_in_the_target(maker: ModuleType) -> None:
    """Measured again on fewer pictures than the recorded figures."""
    recorded = json.loads((MPLUG / "training.json").read_text())["answers right, percent"]
    model, texts = load("vqa"), maker.Texts(MPLUG / "vocab.txt", plain=True)
    for domain in ("source", "target"):
        with torch.no_grad():
            measured = maker.answered(model, texts, domain, number=60)
        assert measured["all"] > recorded[domain]["all"] - 10
    assert recorded["source"]["all"] > recorded["target"]["all"] + 8


def test_it_points_at_the_thing_that_is_meant_more_often_than_at_one_taken_blindly(maker: ModuleType) -> None:
    """Of two or three things; measured again on fewer pictures than the recorded figure."""
    recorded = json.loads((MPLUG / "training.json").read_text())["boxes right, percent"]
    model, texts = load("grounding"), maker.Texts(MPLUG / "vocab.txt", plain=True)
    with torch.no_grad():
        measured = maker.pointed_at(model, texts, "source", number=60)
    assert measured["all"] > max(45, recorded["source"]["all"] - 12)
