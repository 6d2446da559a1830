"""Between our tensors and the published names: equal both ways, and refused where the layouts do not meet."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import awaken, tiny_task

from aurora_ds.errors import AuroraError
from aurora_ds.prompts.published import from_published, to_published


def bank_of(preset: str = "released", **settings):
    bank = tiny_task(preset, prompts=settings.pop("prompts", {}), **settings).task.prompts.bank
    awaken(bank)
    return bank, {name: p.detach() for name, p in bank.named_parameters()}


@pytest.mark.parametrize("preset", ["released", "aurora"])
def test_there_and_back(preset):
    bank, own = bank_of(preset)
    back = from_published(bank, to_published(bank, own))
    assert set(back) == set(own) and all(torch.equal(back[n], own[n]) for n in own)


def test_columns_lie_where_the_published_code_reads_them():
    bank, own = bank_of()
    tensors = to_published(bank, own)
    column = {site.name: own["modes"][site.column : site.column + site.columns] for site in bank.sites}
    block, layer = "visual_encoder.blocks.1", "text_encoder.encoder.layer.1"
    attention, mlp = tensors[f"{block}.attn.CP_attention"], tensors[f"{block}.mlp.mlp_CP"]
    assert (attention.shape, mlp.shape) == ((4, 4), (4, 8))
    assert torch.equal(attention[:, :3].t(), column[f"{block}.attn.qkv"])
    assert torch.equal(attention[:, 3:].t(), column[f"{block}.attn.proj"])
    assert torch.equal(mlp[:, :4].t(), column[f"{block}.mlp.fc1"])
    assert torch.equal(mlp[:, 4:].t(), column[f"{block}.mlp.fc2"])
    for i, letter in enumerate("qkv"):
        own_column = column[f"{layer}.attention.self.qkv"][i]
        assert torch.equal(tensors[f"{layer}.attention.self.{letter}_CP"], own_column[:, None])
    assert torch.equal(
        tensors[f"{layer}.crossattention.self.v_CP"][:, 0], column[f"{layer}.crossattention.self.kv"][1]
    )
    assert torch.equal(tensors[f"{layer}.CP_shiftcross"], own["gates"][1, 3])


def test_every_missing_name_is_listed_once():
    bank, own = bank_of()
    tensors = to_published(bank, own)
    del tensors["CP_C"], tensors["visual_encoder.blocks.0.mlp.mlp_CP"]
    with pytest.raises(AuroraError, match="lacks 2 tensors: CP_C, visual_encoder.blocks.0.mlp.mlp_CP"):
        from_published(bank, tensors)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("CP_U.weight", (4, 31)),
        ("CP_C", (4, 4, 5)),
        ("visual_encoder.blocks.0.attn.CP_attention", (4, 3)),
        ("text_encoder.encoder.layer.0.attention.self.q_CP", (5, 1)),
    ],
)
def test_another_shape(name, shape):
    bank, own = bank_of()
    with pytest.raises(AuroraError, match=r"has shape \[.*needs \["):
        from_published(bank, to_published(bank, own) | {name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "aurora", "prompts": {"form": "cp"}}, "tucker form at one width only"),
        ({"vision_width": 48}, "tucker form at one width only"),
        (
            {"prompts": {"sites": ["*attn.qkv"]}},
            r"all columns of .*attn.CP_attention'; the attached sites have \[0, 1, 2\]",
        ),
        ({"prompts": {"sites": ["*mlp.fc2"]}}, r"the attached sites have \[4, 5, 6, 7\] of 8"),
    ],
)
def test_what_the_published_layout_cannot_hold(settings, message):
    bank, own = bank_of(**settings)
    with pytest.raises(AuroraError, match=message):
        to_published(bank, own)
