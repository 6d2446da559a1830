"""The built-in backbone: it loads as any checkpoint does, knows its own domain, and is lost in the other.

The figures it was published with are in assets/training.json;
here they are measured again on fewer pictures (about 5 s on a free machine).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from aurora_ds.backbones.checkpoint import LoadedBackbone, load_backbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import BackboneConfig
from aurora_ds.quickstart.captions import vocabulary
from aurora_ds.quickstart.world import ASSETS

SCRIPT = Path(__file__).parents[2] / "scripts" / "world" / "train_backbone.py"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    specification = importlib.util.spec_from_file_location("train_backbone", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up by name
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded() -> LoadedBackbone:
    sizes = json.loads((ASSETS / "backbone.json").read_text())
    return load_backbone(BackboneConfig(checkpoint="builtin:world", **sizes))


def test_the_script_makes_a_model_of_these_sizes(maker: ModuleType) -> None:
    sizes = json.loads((ASSETS / "backbone.json").read_text())
    own = BackboneConfig.model_validate(sizes)  # with what was not there to be said when the file was made
    assert maker.backbone_config().model_dump(include=set(sizes)) == own.model_dump(include=set(sizes))


def test_the_asset_is_small() -> None:
    assert (ASSETS / "backbone.safetensors").stat().st_size < 6e6


def test_the_tokenizer_gives_the_ids_of_training(maker: ModuleType, loaded: LoadedBackbone) -> None:
    captions = ["an orange ball to the left of two blue boxes", " ".join(vocabulary()[:30])]
    ids, mask = Tokenizer(ASSETS / "vocab.txt").encode(captions, 40)
    expected_ids, expected_mask = maker.WordIds(loaded.model.config.text)(captions)
    assert ids.tolist() == expected_ids.tolist()
    assert mask.tolist() == expected_mask.tolist()


def test_it_knows_the_source_domain_and_not_the_target(maker: ModuleType, loaded: LoadedBackbone) -> None:
    recorded = json.loads((ASSETS / "training.json").read_text())["figures"]
    words = maker.WordIds(loaded.model.config.text)
    for domain in ("source", "target"):
        measured = maker.recall(loaded.model, words, domain, number=50)
        # Fewer pictures to choose from make it easier: at least the recorded figure, less what 50 pictures may scatter.
        for figure in ("tr@1", "ir@1"):
            assert measured[figure] > recorded[domain][figure] - 10
    assert min(recorded["source"]["tr@1"], recorded["source"]["ir@1"]) > 55
    assert max(recorded["target"]["tr@1"], recorded["target"]["ir@1"]) < 40
