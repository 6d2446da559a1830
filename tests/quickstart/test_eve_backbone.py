"""The built-in EVE: small, serves its three tasks with the heads that it has, and answers better than by chance."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.tokenizer import tokenizer_for
from aurora_ds.config import BackboneConfig
from aurora_ds.quickstart.questions import answer_list, language_vocabulary
from aurora_ds.quickstart.world import ASSETS
from aurora_ds.recipe import load_config

EVE = ASSETS / "eve"
SCRIPTS = Path(__file__).parents[2] / "scripts" / "world"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import train_eve
    finally:
        sys.path.remove(str(SCRIPTS))
    return train_eve


def load(head: str):
    sizes = json.loads((EVE / "backbone.json").read_text())
    return load_backbone(BackboneConfig(checkpoint="builtin:world-eve", head=head, **sizes))


def test_the_assets_are_small() -> None:
    assert sum(file.stat().st_size for file in EVE.iterdir()) < 4e6


def test_heads_of_two_tasks_come_with_it_and_the_third_starts_anew() -> None:
    trunks = []
    for head, fresh in (("retrieval", 0), ("vqa", 0), ("nlvr", 6)):
        loaded = load(head)
        assert len(loaded.fresh) == fresh and loaded.name == "builtin:world-eve"
        trunks.append(loaded.model.backbone.state_dict())
    for name, tensor in trunks[0].items():
        assert all(torch.equal(tensor, other[name]) for other in trunks[1:]), name


@pytest.mark.parametrize("task", ["retrieval", "vqa", "nlvr"])
def test_a_recipe_takes_its_sizes_and_its_words(task: str) -> None:
    backbone = load_config(f"eve_{task}_world").backbone
    assert backbone.eve.top_layers == [3] and backbone.eve.answers == len(answer_list())
    assert tokenizer_for(backbone).path == EVE / "vocab.txt"


def test_the_script_makes_a_model_of_these_sizes_and_words(maker: ModuleType) -> None:
    own = BackboneConfig.model_validate(json.loads((EVE / "backbone.json").read_text()))
    assert maker.eve_config().model_dump() == own.model_dump()
    assert (EVE / "vocab.txt").read_text().split()[5:] == language_vocabulary()


def test_it_begins_with_what_the_built_in_blip_sees(maker: ModuleType) -> None:
    """The trunk gets a tensor of the right shape under each name that it is given, and every expert the same."""
    given, trunk = maker.seeing(), load("retrieval").model.backbone.state_dict()
    assert all(given[name].shape == trunk[name].shape for name in given)
    experts = [given[f"encoder.layers.3.mlp_moe.moe.experts.experts.{e}.fc1.weight"] for e in range(4)]
    assert all(torch.equal(experts[0], other) for other in experts[1:])


def test_it_finds_and_answers_as_recorded(maker: ModuleType) -> None:
    """Measured again on fewer pictures, among which finding is easier."""
    recorded = json.loads((EVE / "training.json").read_text())["figures, percent"]
    words = tokenizer_for(load_config("eve_vqa_world").backbone)
    measured = maker.figures(EVE / "backbone.safetensors", words, number=60)
    for domain in ("source", "target"):
        assert measured[domain]["answers"] > recorded[domain]["answers"] - 10
        assert measured[domain]["tr@10"] >= recorded[domain]["tr@10"] > 2 * 100 * 10 / 200
    assert recorded["source"]["answers"] > 30
