"""Directories written by transformers load, and give the numbers that transformers' own model gives."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.published import to_published
from aurora_ds.backbones.transformers_format import config_for, from_original
from aurora_ds.errors import AuroraError


@pytest.fixture(scope="module")
def theirs():
    """A small random model of transformers, vision and text of different widths, LayerNorm eps as in BLIP."""
    torch.manual_seed(0)
    config = BlipConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": 124,
            "hidden_size": 32,
            "encoder_hidden_size": 24,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 40,
            "is_decoder": True,
        },
        image_text_hidden_size=16,
    )
    model = BlipForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # its initial biases are zero and its weights small: too kind to find errors
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def saved(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "blip")
    return tmp_path / "blip"


def load(small_config, folder, **changes):
    return load_backbone(small_config.model_copy(update={"checkpoint": str(folder), **changes}))


def our_outputs(model, image, ids, mask):
    """(cosines, matching logits) as transformers' model computes them: the text keeps its first token for matching."""
    with torch.no_grad():
        tokens = model.visual_encoder(image)
        seen = F.normalize(model.vision_proj(tokens[:, 0]), dim=-1)
        told = F.normalize(model.text_proj(model.text_encoder(ids, mask)[:, 0]), dim=-1)
        states = model.text_encoder(ids, mask, model.text_encoder.image_kv(tokens))
        return seen @ told.t(), model.itm_head(states[:, 0])


def their_outputs(model, image, ids, mask):
    arguments = {"input_ids": ids, "pixel_values": image, "attention_mask": mask}
    with torch.no_grad():
        return model(**arguments, use_itm_head=False).itm_score, model(
            **arguments, use_itm_head=True
        ).itm_score


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_same_cosines_and_matching_logits(theirs, saved, small_config, texts, file):
    if file == "pytorch_model.bin":
        (saved / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), saved / file)
    loaded = load(small_config, saved)
    image, (ids, mask) = torch.randn(3, 3, 32, 32), texts(3, 9)
    expected = their_outputs(theirs, image, ids, mask)
    actual = our_outputs(loaded.model.eval(), image, ids, mask)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-5)
    assert loaded.model.temp.item() == pytest.approx(0.07)
    assert loaded.name == "blip"


def test_transformers_reads_what_we_describe(small_model, small_config, texts):
    """config_for and from_original together make transformers compute our numbers."""
    twin = BlipForImageTextRetrieval(BlipConfig(**config_for(small_config))).eval()
    twin.load_state_dict(from_original(to_published(small_model)), strict=True)
    image, (ids, mask) = torch.randn(3, 3, 32, 32), texts(3, 9)
    torch.testing.assert_close(
        our_outputs(small_model.eval(), image, ids, mask),
        their_outputs(twin, image, ids, mask),
        rtol=1e-5,
        atol=1e-5,
    )


def test_positions_are_resized(saved, small_config):
    small_config.vision.image_size = 48
    assert load(small_config, saved).model.visual_encoder.pos_embed.shape == (1, 37, 24)


def refused(small_config, folder, *parts):
    with pytest.raises(AuroraError) as caught:
        load(small_config, folder)
    for part in parts:
        assert part in str(caught.value)


def test_sizes_that_disagree_are_named_with_the_keys_to_set(saved, small_config):
    small_config.text.heads, small_config.vision.depth = 4, 3
    refused(
        small_config,
        saved,
        "backbone.text.heads is 2 there and 4 in the configuration",
        "backbone.text.heads=2",
        "backbone.vision.depth=2",
    )


def test_heads_left_out_mean_transformers_default(saved, small_config):
    described = json.loads((saved / "config.json").read_text())
    described["text_config"].pop("num_attention_heads")
    (saved / "config.json").write_text(json.dumps(described))
    refused(small_config, saved, "backbone.text.heads is 8 there and 2 in the configuration")


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda d: (d / "config.json").unlink(), "config.json cannot be read"),
        (lambda d: (d / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda d: (d / "config.json").write_text("[]"), "a model of type 'None'"),
        (lambda d: (d / "config.json").write_text('{"model_type": "clip"}'), "a model of type 'clip'"),
        (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_directory_that_is_not_one(saved, small_config, change, part):
    change(saved)
    refused(small_config, saved, part)
