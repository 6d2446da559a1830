"""The models for answering, captioning and image pairs: recorded numbers, what they offer to prompts, the cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.text import KeyValueCache
from aurora_ds.config import BackboneConfig

HEADS = ("vqa", "caption", "nlvr")
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def first_token(ids: Tensor, token: int) -> Tensor:
    return torch.cat([torch.full_like(ids[:, :1], token), ids[:, 1:]], dim=1)


def outputs_of(model: nn.Module, head: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the published forward computes, by recorded name. 122 begins an answer or caption, 123 a question."""
    tokens = model.visual_encoder(inputs["images"])
    if head == "vqa":
        ids, mask = first_token(inputs["question_input_ids"], 123), inputs["question_attention_mask"]
        states = model.text_encoder(ids, mask, model.text_encoder.image_kv(tokens))
        owner = torch.arange(len(ids)).repeat_interleave(inputs["n"])
        answers = model.text_decoder(
            first_token(inputs["answer_input_ids"], 122),
            inputs["answer_attention_mask"],
            model.text_decoder.context_kv(states),
            mask,
            owner,
        )
        found = {"question_states": states, "answer_logits": model.text_decoder.scores(answers)}
    elif head == "caption":
        states = model.text_decoder(
            first_token(inputs["text_input_ids"], 122),
            inputs["text_attention_mask"],
            model.text_decoder.context_kv(tokens),
        )
        found = {"logits": model.text_decoder.scores(states)}
    else:
        ids, mask = first_token(inputs["text_input_ids"], 123), inputs["text_attention_mask"]
        states = model.text_encoder(ids, mask, model.text_encoder.image_kv(*tokens.chunk(2)))
        found = {"mm_embeds": states, "prediction": model.cls_head(states[:, 0])}
    return found | {"image_embeds": tokens}


def converted(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["fp32", "fp64"])
@pytest.mark.parametrize("head", HEADS)
def test_forward_as_recorded(language_records, head, dtype, tolerance):
    record = language_records[head]
    expected = record.outputs if dtype is torch.float32 else record.exact_outputs()
    model = load_backbone(record.config(head=head), dtype).model.eval()
    with torch.no_grad():
        found = outputs_of(model, head, converted(record.inputs, dtype))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("head", HEADS)
def test_eager_attention_gives_the_same_numbers(language_records, head):
    record = language_records[head]
    with torch.no_grad():
        sdpa, eager = (
            outputs_of(
                load_backbone(record.config(head=head, attention=kind)).model.eval(), head, record.inputs
            )
            for kind in ("sdpa", "eager")
        )
    torch.testing.assert_close(sdpa, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_activation_checkpointing_changes_no_gradient(language_records, head):
    record, gradients = language_records[head], []
    for recompute in (False, True):
        model = load_backbone(record.config(head=head, activation_checkpointing=recompute)).model.train()
        sum(value.square().mean() for value in outputs_of(model, head, record.inputs).values()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(grad is not None for grad in gradients[0].values())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("head", "text_sites", "layers", "heads"),
    [("vqa", 12, 4, []), ("caption", 6, 2, []), ("nlvr", 8 * 5, 8, ["cls_head_0", "cls_head_2"])],
)
def test_what_prompts_can_adapt(language_records, head, text_sites, layers, heads):
    record = language_records[head]
    model = load_backbone(record.config(head=head)).model.eval()
    called = []
    for site in model.sites():
        linear = model.get_submodule(site.module_path)
        assert type(linear) is nn.Linear
        assert linear.out_features % site.outputs == linear.in_features % site.inputs == 0
        linear.register_forward_hook(lambda *_, name=site.name: called.append(name))
    outputs_of(model, head, record.inputs)
    assert sorted(called) == sorted(site.name for site in model.sites()), "each computes through its own call"
    assert sum(site.modality != "vision" for site in model.sites()) == text_sites
    assert [model.get_submodule(name) for name, _, _ in model.query_layers()] == [
        layer for _, layer, _ in model.query_layers()
    ]
    assert len(model.query_layers()) == layers and list(model.heads()) == heads
    assert all(isinstance(model.get_submodule(path), nn.Linear) for path in model.heads().values())


@pytest.mark.parametrize("head", HEADS)
def test_vision_and_text_of_different_widths(language_records, small_config, head):
    """And every answer attends to question states, which have the text's width."""
    small_config.vision.patch_size, small_config.vision.image_size = 8, 32
    model = new_model(small_config.model_copy(update={"head": head})).eval()
    found = outputs_of(model, head, language_records[head].inputs)
    assert all(value.isfinite().all() for value in found.values())
    if head == "vqa":
        layer = model.text_decoder.bert.encoder.layer[0]
        assert layer.crossattention.self.kv.in_features == 32
        assert model.text_encoder.encoder.layer[0].crossattention.self.kv.in_features == 24


@pytest.fixture
def decoder(small_config: BackboneConfig):
    """(decoder, keys and values of three contexts, their mask); vision and text of different widths."""
    torch.manual_seed(0)
    decoder = new_model(small_config.model_copy(update={"head": "caption"})).eval().text_decoder
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    with torch.no_grad():
        yield decoder, decoder.context_kv(torch.randn(3, 6, 24)), mask


@pytest.mark.parametrize("steps", [[1] * 7, [4, 1, 2], [7]])
def test_a_cache_gives_the_states_of_the_whole_text(decoder, texts, steps):
    model, context, mask = decoder
    ids = texts(3, 7)[0].clamp(min=1)
    whole, cache, parts = model(ids, None, context, mask), KeyValueCache(), []
    for part in ids.split(steps, dim=1):
        parts.append(model(part, None, context, mask, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert cache.length == 7


def test_a_cache_follows_rows_that_are_reordered_repeated_and_grouped(decoder, texts):
    """Three prompts become two beams each; beams are exchanged twice before the next token."""
    model, context, mask = decoder
    prompt, following = texts(3, 4)[0].clamp(min=1), torch.tensor([[5], [6], [7], [8], [9], [10]])
    cache = KeyValueCache()
    model(prompt, None, context, mask, cache=cache)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    cache.reorder(rows)
    model(following, None, context, mask, group_size=2, cache=cache)
    for order in ([1, 0, 3, 3, 4, 5], [0, 0, 2, 3, 5, 4]):
        cache.reorder(torch.tensor(order))
        rows, following = rows[order], following[order]
    last = model(following + 20, None, context, mask, group_size=2, cache=cache)
    texts_now = torch.cat([prompt[rows], following, following + 20], dim=1)
    whole = model(texts_now, None, context, mask, context_index=rows)
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)


def test_branches_of_a_cache_do_not_disturb_each_other(decoder, texts):
    model, context, mask = decoder
    prompt, cache = texts(3, 4)[0].clamp(min=1), KeyValueCache()
    model(prompt, None, context, mask, cache=cache)
    for rows, token in (([2, 2, 0], 9), ([1], 11), ([0, 1, 2], 12)):
        rows = torch.tensor(rows)
        following = torch.full((len(rows), 1), token)
        branch = cache.branch(rows)
        last = model(following, None, context, mask, context_index=rows, cache=branch)
        whole = model(torch.cat([prompt[rows], following], dim=1), None, context, mask, context_index=rows)
        torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)
        assert (cache.length, branch.length) == (4, 5)


def test_a_token_does_not_see_what_follows(decoder, texts):
    model, context, mask = decoder
    ids = texts(3, 7)[0].clamp(min=1)
    other = torch.cat([ids[:, :4], ids[:, 4:] + 3], dim=1)
    before, after = model(ids, None, context, mask), model(other, None, context, mask)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_of_the_context_is_not_seen(decoder, texts):
    model, context, mask = decoder
    ids = texts(3, 5)[0].clamp(min=1)
    changed = [tuple(each.clone() for each in pair) for pair in context]
    for pair in changed:
        for each in pair:
            each[1, :, 4:] = 7.0
    torch.testing.assert_close(model(ids, None, context, mask), model(ids, None, changed, mask))
    assert not torch.allclose(model(ids, None, context)[1], model(ids, None, changed)[1])
