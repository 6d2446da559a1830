"""The built-in backbone of the language tasks: it sees as the retrieval backbone does, and serves every task."""

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
from aurora_ds.quickstart.world import ASSETS

LANGUAGE = ASSETS / "language"
SCRIPTS = Path(__file__).parents[2] / "scripts" / "world"


def load(head: str):
    sizes = json.loads((LANGUAGE / "backbone.json").read_text())
    return load_backbone(BackboneConfig(checkpoint="builtin:world-language", head=head, **sizes))


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        specification = importlib.util.spec_from_file_location(
            "train_language", SCRIPTS / "train_language.py"
        )
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


def test_the_assets_are_small() -> None:
    assert sum(file.stat().st_size for file in LANGUAGE.iterdir()) < 5e6


@pytest.mark.parametrize("head", ["retrieval", "vqa", "caption", "nlvr"])
def test_every_task_starts_from_it_with_the_image_encoder_of_retrieval(head: str) -> None:
    own = load(head).model.visual_encoder.state_dict()
    sizes = json.loads((ASSETS / "backbone.json").read_text())
    retrieval = load_backbone(
        BackboneConfig(checkpoint="builtin:world", **sizes)
    ).model.visual_encoder.state_dict()
    assert own.keys() == retrieval.keys()
    for name, tensor in retrieval.items():
        torch.testing.assert_close(own[name], tensor.half().float(), rtol=0, atol=0)


def test_the_script_makes_a_model_of_these_sizes_and_words(maker: ModuleType) -> None:
    sizes = json.loads((LANGUAGE / "backbone.json").read_text())
    own = BackboneConfig.model_validate(sizes)
    assert maker.language_config().model_dump(include=set(sizes)) == own.model_dump(include=set(sizes))
    tokenizer = Tokenizer(LANGUAGE / "vocab.txt")
    assert (tokenizer.bos_id, tokenizer.enc_id) == (sizes["text"]["bos_id"], sizes["text"]["enc_id"])
    assert (LANGUAGE / "vocab.txt").read_text().split()[5:] == language_vocabulary()


def test_it_answers_in_the_source_domain_and_less_well_in_the_target(maker: ModuleType) -> None:
    """Measured again on fewer pictures than the recorded figures."""
    recorded = json.loads((LANGUAGE / "training.json").read_text())["answers right, percent"]
    model, texts = load("vqa").model, maker.Texts(LANGUAGE / "vocab.txt")
    for domain in ("source", "target"):
        measured = maker.answered(model, texts, domain, number=60)
        assert measured["all"] > recorded[domain]["all"] - 10
    assert recorded["source"]["all"] > recorded["target"]["all"] + 15
