"""What a BLIP model offers to prompts, and which images it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aurora_ds.errors import AuroraError


def test_sites_are_linears_vision_first(small_model):
    sites = small_model.sites()
    assert [site.name for site in sites[:4]] == [
        f"visual_encoder.blocks.0.{path}" for path in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert [site.name for site in sites[8:11]] == [
        f"text_encoder.encoder.layer.0.{path}"
        for path in ("attention.self.qkv", "crossattention.self.query", "crossattention.self.kv")
    ]
    assert len(sites) == 2 * 4 + 2 * 3
    for site in sites:
        linear = small_model.get_submodule(site.module_path)
        assert type(linear) is nn.Linear
        assert linear.out_features % site.outputs == linear.in_features % site.inputs == 0


def test_every_site_computes_through_its_own_call(small_model, texts):
    """So that a stand-in put in its place takes part, and hooks that gather partitioned weights run."""
    called = []
    for site in small_model.sites():
        small_model.get_submodule(site.module_path).register_forward_hook(
            lambda module, inputs, output, name=site.name: called.append(name)
        )
    keys = small_model.text_encoder.image_kv(small_model.visual_encoder(torch.randn(2, 3, 32, 32)))
    small_model.text_encoder(*texts(2, 5), keys)
    assert sorted(called) == sorted(site.name for site in small_model.sites())


def test_query_layers_and_heads(small_model):
    layers = small_model.query_layers()
    assert [(name, width) for name, _, width in layers] == [
        (f"text_encoder.encoder.layer.{i}", 32) for i in (0, 1)
    ]
    assert all(small_model.get_submodule(name) is layer for name, layer, _ in layers)
    assert list(small_model.heads()) == ["vision_proj", "text_proj", "itm_head"]


def test_image_of_another_size_is_refused(small_model):
    with pytest.raises(AuroraError, match="32 x 32 pixels and got images of 48 x 40"):
        small_model.visual_encoder(torch.randn(1, 3, 40, 48))
