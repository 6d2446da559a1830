"""The forward pass of both encoders equals the published code's, in single and in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.backbones.checkpoint import load_backbone

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


@pytest.fixture(scope="module", params=PRECISIONS, ids=["fp32", "fp64"])
def case(request, retrieval_record):
    """(model, inputs, compare) in one precision; compare(name, value) holds value against the record."""
    dtype, tolerance = request.param
    outputs = retrieval_record.outputs if dtype is torch.float32 else retrieval_record.exact_outputs()
    model = load_backbone(retrieval_record.config(), dtype).model.eval()
    inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in retrieval_record.inputs.items()}

    def compare(name: str, value: Tensor) -> None:
        torch.testing.assert_close(value, outputs[name], rtol=tolerance, atol=tolerance)

    with torch.no_grad():
        yield model, inputs, compare


def matching_ids(ids: Tensor, enc_id: int = 123) -> Tensor:
    return torch.cat([torch.full_like(ids[:, :1], enc_id), ids[:, 1:]], dim=1)


def test_image_tokens(case):
    model, inputs, compare = case
    compare("image_embeds", model.visual_encoder(inputs["images"]))


def test_text_states_without_an_image(case):
    model, inputs, compare = case
    compare("text_embeds", model.text_encoder(inputs["text_input_ids"], inputs["text_attention_mask"]))


def test_text_states_with_the_own_image(case):
    model, inputs, compare = case
    keys = model.text_encoder.image_kv(model.visual_encoder(inputs["images"]))
    ids = matching_ids(inputs["text_input_ids"])
    compare("mm_pos_embeds", model.text_encoder(ids, inputs["text_attention_mask"], image_kv=keys))


def test_projected_features(case):
    model, inputs, compare = case
    first_image = model.visual_encoder(inputs["eval_images"])[:, 0]
    first_text = model.text_encoder(inputs["eval_text_input_ids"], inputs["eval_text_attention_mask"])[:, 0]
    compare("eval.image_embeds", F.normalize(model.vision_proj(first_image), dim=-1))
    compare("eval.text_embeds", F.normalize(model.text_proj(first_text), dim=-1))


@pytest.mark.parametrize("how", ["image_index", "group_size"])
def test_matching_logits_of_every_pair(case, how):
    model, inputs, compare = case
    keys = model.text_encoder.image_kv(model.visual_encoder(inputs["eval_images"]))
    images, texts = len(inputs["eval_images"]), len(inputs["eval_text_input_ids"])
    ids = matching_ids(inputs["eval_text_input_ids"]).repeat(images, 1)  # image-major
    mask = inputs["eval_text_attention_mask"].repeat(images, 1)
    pairing = {
        "image_index": {"image_index": torch.arange(images).repeat_interleave(texts)},
        "group_size": {"group_size": texts},
    }[how]
    states = model.text_encoder(ids, mask, image_kv=keys, **pairing)
    compare("eval.itm_logits_all", model.itm_head(states[:, 0]).unflatten(0, (images, texts)))


def test_eager_attention_gives_the_same_numbers(retrieval_record):
    config = retrieval_record.config(attention="eager")
    model = load_backbone(config).model.eval()
    inputs, outputs = retrieval_record.inputs, retrieval_record.outputs
    with torch.no_grad():
        tokens = model.visual_encoder(inputs["images"])
        states = model.text_encoder(
            matching_ids(inputs["text_input_ids"]),
            inputs["text_attention_mask"],
            model.text_encoder.image_kv(tokens),
        )
    torch.testing.assert_close(tokens, outputs["image_embeds"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states, outputs["mm_pos_embeds"], rtol=1e-5, atol=1e-5)
