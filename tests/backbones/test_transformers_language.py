"""Directories of transformers' BlipForConditionalGeneration and BlipForQuestionAnswering load, and give its numbers.

Two differences are transformers' own: it ignores the padding of the question in the decoder's cross-attention,
and its question answering has no text width of its own.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.published import to_published
from aurora_ds.backbones.transformers_format import config_for, from_original
from aurora_ds.config import BackboneConfig, CaptionConfig, GenerationConfig, VqaConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.caption import CaptionTask
from aurora_ds.tasks.vqa import VqaTask

KINDS = {"caption": BlipForConditionalGeneration, "vqa": BlipForQuestionAnswering}


def made(head: str, folder):
    """A random model of transformers, saved: (model, our configuration of the directory)."""
    torch.manual_seed(0)
    width = 32 if head == "vqa" else 24
    vision = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    text = {"vocab_size": 124, "hidden_size": 32, "encoder_hidden_size": width, "intermediate_size": 64}
    text |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "is_decoder": True,
    }
    config = BlipConfig(
        vision_config=vision | {"intermediate_size": 4 * width, "patch_size": 8, "layer_norm_eps": 1e-6},
        text_config=text | {"bos_token_id": 122, "sep_token_id": 102, "eos_token_id": 102, "pad_token_id": 0},
        image_text_hidden_size=16,
    )
    model = KINDS[head](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases and small weights are too kind to find errors
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model, width


@pytest.fixture(params=["caption", "vqa"])
def pair(request, small_config: BackboneConfig, tmp_path):
    """(head, transformers' model, our model) of one directory."""
    theirs, width = made(request.param, tmp_path / "blip")
    small_config.vision.width = width
    config = small_config.model_copy(update={"checkpoint": str(tmp_path / "blip"), "head": request.param})
    with torch.no_grad():
        yield request.param, theirs, load_backbone(config).model.eval()


def next_tokens(decoder: TextDecoder, context, ids, mask=None):
    return decoder.scores(decoder(ids, mask, decoder.context_kv(context)))


def test_same_logits(pair, texts):
    head, theirs, ours = pair
    image, (ids, mask) = torch.randn(3, 3, 32, 32), texts(3, 9)
    tokens = ours.visual_encoder(image)
    if head == "caption":
        found = next_tokens(ours.text_decoder, tokens, ids, mask)
        expected = theirs(pixel_values=image, input_ids=ids, attention_mask=mask).logits
    else:
        question = texts(3, 6)[0].clamp(min=1)
        states = ours.text_encoder(question, torch.ones_like(question), ours.text_encoder.image_kv(tokens))
        asked = theirs.text_encoder(
            input_ids=question,
            attention_mask=torch.ones_like(question),
            encoder_hidden_states=theirs.vision_model(image).last_hidden_state,
        ).last_hidden_state
        torch.testing.assert_close(states, asked, rtol=1e-5, atol=1e-5)
        found = next_tokens(ours.text_decoder, states, ids, mask)
        expected = theirs.text_decoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=asked, return_dict=True
        ).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_same_caption_loss(small_config, texts, tmp_path):
    """With label smoothing set there and the prompt masked by the caller, as theirs needs it."""
    theirs, width = made("caption", tmp_path / "blip")
    theirs.text_decoder.label_smoothing = 0.1
    small_config.vision.width = width
    config = small_config.model_copy(update={"checkpoint": str(tmp_path / "blip"), "head": "caption"})
    image, (ids, mask) = torch.randn(3, 3, 32, 32), texts(3, 9)
    ids[:, 0] = 122
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    prompt = torch.tensor([101, 7, 8, 102])
    task = CaptionTask(load_backbone(config).model.eval(), None, CaptionConfig(), config.text, prompt)
    found = task({"image": image, "input_ids": ids, "attention_mask": mask})["loss"]
    expected = theirs(pixel_values=image, input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_same_greedy_texts(pair, texts):
    """Theirs pads finished texts with the end token. Questions have no padding here."""
    head, theirs, ours = pair
    settings = GenerationConfig(method="greedy", max_length=12, min_length=1)
    image, question = torch.randn(6, 3, 32, 32), texts(6, 6)[0].clamp(min=1)
    batch = {"image": image, "input_ids": question, "attention_mask": torch.ones_like(question)}
    if head == "caption":
        prompt = torch.tensor([101, 7, 8, 102])
        task = CaptionTask(ours, None, CaptionConfig(generation=settings), ours.config.text, prompt)
        begin = torch.tensor([[122, 7, 8, 102]] * 6)  # it drops the last token itself
        expected = theirs.generate(pixel_values=image, input_ids=begin, max_length=12, num_beams=1)
    else:
        task = VqaTask(ours, None, VqaConfig(generation=settings), ours.config.text)
        asked = question.clone()
        asked[:, 0] = 123
        expected = theirs.generate(
            pixel_values=image,
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_length=12,
            num_beams=1,
        )

    def written(ids):
        return [row[: row.index(102)] if 102 in row else row for row in ids.tolist()]

    assert written(task(batch, what="generate")["ids"]) == written(expected)


@pytest.mark.parametrize("head", ["caption", "vqa"])
def test_transformers_reads_what_we_write(head, small_config, texts, tmp_path):
    """config_for and from_original together make a directory from which transformers computes our numbers."""
    if head == "vqa":
        small_config.vision.width = 32
    torch.manual_seed(2)
    ours = new_model(small_config.model_copy(update={"head": head})).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        described = config_for(ours.config)
        assert described["architectures"] == [KINDS[head].__name__]
        (tmp_path / "config.json").write_text(json.dumps(described))
        save_file(
            from_original(to_published(ours)), tmp_path / "model.safetensors", metadata={"format": "pt"}
        )
        theirs, report = KINDS[head].from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        image, (ids, mask) = torch.randn(3, 3, 32, 32), texts(3, 9)
        context = ours.visual_encoder(image)
        if head == "vqa":
            context = ours.text_encoder(ids, mask, ours.text_encoder.image_kv(context))
        found = next_tokens(ours.text_decoder, context, ids, mask)
        expected = theirs.eval().text_decoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=context, return_dict=True
        )
    torch.testing.assert_close(found, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "part"), [("nlvr", "no model for backbone.head=nlvr"), ("vqa", "24 .* and 32")]
)
def test_what_transformers_cannot_hold(head, part, small_config):
    with pytest.raises(AuroraError, match=part):
        config_for(small_config.model_copy(update={"head": head}))


@pytest.mark.parametrize("head", ["caption", "vqa"])
def test_the_other_kind_of_directory_is_refused(head, small_config, tmp_path):
    _, width = made("vqa" if head == "caption" else "caption", tmp_path / "blip")
    small_config.vision.width = width
    config = small_config.model_copy(update={"checkpoint": str(tmp_path / "blip"), "head": head})
    with pytest.raises(AuroraError, match="seems to be made for another task"):
        load_backbone(config)


def test_sizes_are_compared_but_for_the_space_that_is_not_used(small_config, tmp_path):
    _, width = made("caption", tmp_path / "blip")
    small_config.vision.width, small_config.text.depth, small_config.embed_dim = width, 3, 99
    config = small_config.model_copy(update={"checkpoint": str(tmp_path / "blip"), "head": "caption"})
    with pytest.raises(AuroraError, match="backbone.text.depth is 2 there and 3") as caught:
        load_backbone(config)
    assert "embed_dim" not in str(caught.value)
