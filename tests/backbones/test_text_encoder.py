"""The text transformer: sharing an image's keys, padding, the residual of a layer, recomputation, initial weights."""

from __future__ import annotations

import pytest
import torch

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.errors import AuroraError


@pytest.fixture
def tokens(small_model):
    torch.manual_seed(1)
    return small_model.visual_encoder(torch.randn(3, 3, 32, 32)).detach()


def test_grouped_texts_equal_repeated_keys_in_value_and_gradient(small_model, tokens, texts):
    encoder = small_model.text_encoder
    ids, mask = texts(6, 9)
    results = []
    for pairing in ({"group_size": 2}, {"image_index": torch.tensor([0, 0, 1, 1, 2, 2])}):
        source = tokens.clone().requires_grad_()
        states = encoder(ids, mask, encoder.image_kv(source), **pairing)
        states.square().sum().backward()
        results.append((states, source.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-4)


def test_any_image_can_be_chosen_per_text(small_model, tokens, texts):
    encoder = small_model.text_encoder
    ids, mask = texts(3, 7)
    chosen = encoder(ids, mask, encoder.image_kv(tokens), image_index=torch.tensor([2, 2, 0]))
    expected = encoder(ids, mask, encoder.image_kv(tokens[[2, 2, 0]]))
    torch.testing.assert_close(chosen, expected)


def test_grouping_does_not_copy_keys(small_model, tokens, texts, monkeypatch):
    seen = []
    import aurora_ds.backbones.text as text

    def spy(query, key, *rest):
        seen.append((query.shape, key.data_ptr()))
        return attend(query, key, *rest)

    attend = text.attend
    monkeypatch.setattr(text, "attend", spy)
    keys = small_model.text_encoder.image_kv(tokens)
    small_model.text_encoder(*texts(12, 5), keys, group_size=4)
    assert [shape for shape, _ in seen[1::2]] == [
        (3, 2, 20, 16)
    ] * 2  # (images, heads, group·length, head width)
    assert [pointer for _, pointer in seen[1::2]] == [key.data_ptr() for key, _ in keys]


def test_padding_changes_nothing(small_model, tokens, texts):
    encoder = small_model.text_encoder
    ids, _ = texts(3, 6)
    ids, mask = ids.clamp(min=1), torch.ones(3, 6, dtype=torch.int64)
    padded_ids = torch.cat([ids, torch.zeros(3, 5, dtype=torch.int64)], 1)
    padded_mask = torch.cat([mask, torch.zeros(3, 5, dtype=torch.int64)], 1)
    for keys in (None, encoder.image_kv(tokens)):
        torch.testing.assert_close(encoder(padded_ids, padded_mask, keys)[:, :6], encoder(ids, mask, keys))


def test_key_scale_multiplies_the_keys_of_a_pair(small_model, tokens, texts):
    encoder = small_model.text_encoder
    scale = torch.rand(3, tokens.shape[1]) + 0.5
    keys = encoder.image_kv(tokens)
    scaled = [(key * scale[:, None, :, None], value) for key, value in keys]
    torch.testing.assert_close(encoder(*texts(3, 5), keys, key_scale=scale), encoder(*texts(3, 5), scaled))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_texts_of_one_image_may_each_scale_its_keys(small_model, tokens, texts, attention):
    encoder = small_model.text_encoder
    for layer in encoder.encoder.layer:
        layer.crossattention.self.eager = attention == "eager"
    scale = torch.rand(6, tokens.shape[1]) + 0.5
    ids, mask = texts(6, 5)
    keys = encoder.image_kv(tokens[:2])
    repeated = torch.arange(2).repeat_interleave(3)
    expected = encoder(ids, mask, keys, image_index=repeated, key_scale=scale)
    torch.testing.assert_close(encoder(ids, mask, keys, group_size=3, key_scale=scale), expected)


def test_residual_is_added_where_there_is_an_image_only(small_model, tokens, texts):
    encoder, calls = small_model.text_encoder, []
    keys = encoder.image_kv(tokens)
    plain = encoder(*texts(3, 5), keys)
    last = encoder.encoder.layer[-1]

    def residual(a_self, a_cross):
        calls.append((a_self.shape, a_cross.shape))
        return torch.full_like(a_self, 0.5)

    last.residual = residual
    torch.testing.assert_close(encoder(*texts(3, 5), keys), plain + 0.5)
    alone = encoder(*texts(3, 5))
    last.residual = lambda a_self, a_cross: None
    torch.testing.assert_close(encoder(*texts(3, 5), keys), plain)
    torch.testing.assert_close(encoder(*texts(3, 5)), alone)
    assert calls == [((3, 5, 32), (3, 5, 32))]


@pytest.mark.parametrize("grouped", [False, True])
def test_recomputation_changes_no_gradient(small_config, texts, grouped):
    """With keys and values computed inside the graph, dropout and stochastic depth on."""
    small_config.text.dropout = small_config.text.attention_dropout = small_config.vision.drop_path = 0.2
    image = torch.randn(2, 3, 32, 32)
    ids, mask = texts(4 if grouped else 2, 6)
    gradients = []
    for recompute in (False, True):
        small_config.activation_checkpointing = recompute
        torch.manual_seed(0)
        model = BlipRetrieval(small_config).train()
        torch.manual_seed(5)
        tokens = model.visual_encoder(image)
        keys = model.text_encoder.image_kv(tokens)
        model.text_encoder(ids, mask, keys, group_size=2 if grouped else None)[:, 0].square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)
    assert "visual_encoder.cls_token" in gradients[1]


def test_recomputation_keeps_fewer_activations(small_config, texts):
    saved = []
    for recompute in (False, True):
        small_config.activation_checkpointing = recompute
        model, count = BlipRetrieval(small_config).train(), 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.text_encoder(*texts(8, 20))
            model.visual_encoder(torch.randn(2, 3, 32, 32))
        saved.append(count)
    assert saved[1] < saved[0] / 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(small_model, texts, dtype):
    expected = small_model.text_encoder(*texts(2, 6))
    small_model.to(dtype)
    tokens = small_model.visual_encoder(torch.randn(2, 3, 32, 32, dtype=dtype))
    states = small_model.text_encoder(*texts(2, 6), small_model.text_encoder.image_kv(tokens))
    assert tokens.dtype == states.dtype == dtype
    assert states.isfinite().all()
    torch.testing.assert_close(small_model.text_encoder(*texts(2, 6)).float(), expected, rtol=0.1, atol=0.05)


def test_initial_weights_are_berts(small_model):
    for name, parameter in small_model.text_encoder.named_parameters():
        if name.endswith("LayerNorm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert 0.015 < parameter.std() < 0.025, name
    assert all(parameter.requires_grad for parameter in small_model.parameters())


def test_text_beyond_the_positions_is_refused(small_model, texts):
    with pytest.raises(AuroraError, match="41 tokens and the text transformer 40 positions"):
        small_model.text_encoder(*texts(1, 41))


@pytest.mark.parametrize("pairing", [{}, {"group_size": 3}, {"image_index": torch.tensor([0])}])
def test_texts_that_do_not_fit_the_images_are_refused(small_model, tokens, texts, pairing):
    keys = small_model.text_encoder.image_kv(tokens)
    with pytest.raises(ValueError, match="4 texts do not fit"):
        small_model.text_encoder(*texts(4, 5), keys, **pairing)
