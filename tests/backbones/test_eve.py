"""EVE's trunk and models: kinds of input, what outputs depend on, positions, sites, files, and wrong input."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.eve import EveTrunk, balance_loss
from aurora_ds.backbones.eve_heads import AttentionPool
from aurora_ds.backbones.models import new_model
from aurora_ds.config import BackboneConfig, TextConfig, VisionConfig
from aurora_ds.config.eve import EveConfig, ExpertConfig
from aurora_ds.config.pixels import DEVIATION, MEAN
from aurora_ds.errors import AuroraError

VISION = VisionConfig(image_size=16, patch_size=8, width=16, depth=3, heads=2, mlp_ratio=2)
TEXT = TextConfig(
    vocab_size=50,
    width=16,
    heads=2,
    max_positions=8,
    pad_id=1,
    cls_id=2,
    sep_id=3,
    bos_id=2,
    enc_id=2,
    dropout=0,
)
SMALL = {"top_layers": [2], "moe": ExpertConfig(experts=4)}


def trunk(
    attention: str = "sdpa", recompute: bool = False, vision: VisionConfig = VISION, **options
) -> EveTrunk:
    torch.manual_seed(0)
    made = EveTrunk(vision, TEXT, EveConfig(**{**SMALL, **options}), attention, recompute)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def backbone(head: str = "nlvr", image_size: int = 16, **options) -> BackboneConfig:
    vision = VISION.model_copy(update={"image_size": image_size})
    checkpoint = options.pop("checkpoint", None)
    return BackboneConfig(
        name="eve",
        head=head,
        vision=vision,
        text=TEXT.model_dump(),
        eve=EveConfig(**{**SMALL, "answers": 5, **options}),
        embed_dim=6,
        checkpoint=checkpoint,
    )


def images(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 50, (3, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6)[None] < torch.tensor([[6], [3], [4]])).long()
    return torch.where(mask.bool(), ids, 1), mask


# ---- passes


@pytest.mark.parametrize(
    "options", [{}, {"lower": "single"}, {"lower": "moe"}, {"top": "vl"}, {"relative_positions": True}]
)
def test_outputs_depend_on_neither_padding_nor_batch_mates(options: dict) -> None:
    made, (ids, mask) = trunk(**options), texts()
    whole = made(images(), ids, mask)
    changed = made(images(), torch.where(mask.bool(), ids, 40), mask)
    torch.testing.assert_close(whole.states[whole.mask], changed.states[whole.mask], rtol=1e-5, atol=1e-5)
    one = made(images()[1:2], ids[1:2, :3], mask[1:2, :3]).states[0]
    torch.testing.assert_close(whole.states[1, : len(one)], one, rtol=1e-5, atol=1e-5)
    assert whole.vision_tokens == 5 and torch.equal(whole.first_text, whole.states[:, 5])


@pytest.mark.parametrize("options", [{}, {"relative_positions": True}])
def test_fused_attention_equals_eager(options: dict) -> None:
    ids, mask = texts()
    fused, eager = (
        trunk(attention, **options)(images(), ids, mask).states for attention in ("sdpa", "eager")
    )
    torch.testing.assert_close(fused[mask.bool().any(1)][:, :5], eager[:, :5], rtol=1e-4, atol=1e-5)


def test_embedded_images_serve_later_passes() -> None:
    made, (ids, mask) = trunk(), texts()
    embedded = made(images(), layers=False).states
    later = made(image_tokens=embedded, input_ids=ids, attention_mask=mask)
    assert torch.equal(later.states, made(images(), ids, mask).states)


def test_masked_patches_are_not_seen() -> None:
    made, hidden = trunk(mask_embedding=True), torch.tensor([[1, 0, 0, 1]]).expand(3, -1)
    other = images().clone()
    other[:, :, :8, :8] = 7.0  # patch 0
    assert torch.equal(made(images(), image_mask=hidden).states, made(other, image_mask=hidden).states)
    with pytest.raises(AuroraError, match=r"backbone\.eve\.mask_embedding=true"):
        trunk()(images(), image_mask=hidden)


def test_recomputed_activations_change_nothing() -> None:
    ids, mask = texts()
    found = []
    for recompute in (False, True):
        made = trunk(recompute=recompute, vision=VISION.model_copy(update={"drop_path": 0.3})).train()
        torch.manual_seed(5)
        passed = made(images(), ids, mask)
        (passed.states.square().mean() + balance_loss([passed])).backward()
        found.append({n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_balance_loss_is_the_mean_over_layers_and_passes() -> None:
    made, (ids, mask) = trunk(top_layers=[1, 2]), texts()
    passes = [made(images()), made(images(), ids, mask)]
    each = [routing.balance for one in passes for routing in one.routings]
    assert len(each) == 4 and balance_loss(passes) == torch.stack(each).mean()
    assert balance_loss([trunk(top="vl")(images())]) == 0


# ---- sites


def test_prompts_find_attention_and_feed_forwards_and_experts_on_request() -> None:
    usual = trunk().sites("backbone")
    assert [site.name for site in usual if "layers.2" in site.name] == [
        "backbone.encoder.layers.2.attn.qkv",
        "backbone.encoder.layers.2.attn.proj",
    ]
    every = trunk(expert_sites=True)
    sites = every.sites("backbone")
    assert len(sites) == len(usual) + 2 * 4
    for site in sites:
        linear = every.get_submodule(site.module_path.removeprefix("backbone."))
        assert isinstance(linear, torch.nn.Linear)
        assert linear.out_features == 16 * site.outputs and linear.in_features == 16 * site.inputs


# ---- wrong input


def test_wrong_sizes_are_refused() -> None:
    made = trunk()
    with pytest.raises(AuroraError, match="9 tokens and EVE 8 text positions"):
        made(input_ids=torch.full((1, 9), 4))
    with pytest.raises(AuroraError, match=r"16 x 16 pixels and got 24 x 24"):
        made(images(size=24))
    with pytest.raises(AuroraError, match="frames of a clip"):
        trunk(relative_positions=True)(image_tokens=torch.zeros(1, 10, 16))
    with pytest.raises(AuroraError, match=r"top_layers names 3, and the trunk has layers 0 to 2"):
        trunk(top_layers=[2, 3])


def test_pooling_computes_in_the_precision_of_its_input() -> None:
    torch.manual_seed(0)
    pool, states = AttentionPool(16).eval(), torch.randn(2, 5, 16)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    expected = pool(states, mask)
    pooled = pool.bfloat16()(states.bfloat16(), mask)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), expected, rtol=0.05, atol=0.02)
    states[1, 3:] = 7.0
    torch.testing.assert_close(pool.float()(states, mask), expected, rtol=0.02, atol=0.01)


# ---- files


@pytest.fixture
def published(tmp_path) -> str:
    """A file as published: NLVR2's, with the position numbers that nothing needs."""
    torch.manual_seed(4)
    state = new_model(backbone()).state_dict()
    state["backbone.position_ids_vision"] = torch.arange(5)[None]
    save_file(state, tmp_path / "eve.safetensors")
    return str(tmp_path / "eve.safetensors")


def test_a_file_comes_back(published: str) -> None:
    loaded = load_backbone(backbone(checkpoint=published))
    torch.manual_seed(4)
    expected = new_model(backbone()).state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys() and not loaded.fresh
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_task_starts_with_a_new_head_and_the_same_trunk(published: str) -> None:
    loaded = load_backbone(backbone("vqa", checkpoint=published))
    assert set(loaded.fresh) == {
        f"output.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    }
    assert loaded.model.output[3].weight.shape == (5, 32)


def test_positions_are_resized_to_the_image_size(published: str) -> None:
    loaded = load_backbone(backbone(image_size=24, checkpoint=published))
    assert loaded.model.backbone.pos_embed_vision.shape == (10, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"moe": ExpertConfig(experts=8)}, r"backbone\.eve\.moe\.experts is 4 in the file and 8"),
        ({"relative_positions": True}, r"set backbone\.eve\.relative_positions=false"),
        ({"top_layers": [1]}, r"Missing tensors: backbone\.encoder\.layers\.1\.mlp_moe"),
    ],
)
def test_a_file_of_another_architecture_is_refused(published: str, options: dict, said: str) -> None:
    with pytest.raises(AuroraError, match=re.compile(said)):
        load_backbone(backbone(checkpoint=published, **options))


def test_pixels_are_brought_to_those_that_eve_was_trained_on() -> None:
    white = (1 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    image = white[:, None, None].expand(1, 3, 16, 16)
    torch.manual_seed(0)
    converts = new_model(backbone()).eval()
    as_they_are = new_model(backbone(pixels="as_they_are")).eval()
    as_they_are.load_state_dict(converts.state_dict())
    found = converts.image_tokens(image)
    torch.testing.assert_close(
        found, as_they_are.image_tokens(torch.ones(1, 3, 16, 16)), rtol=1e-5, atol=1e-6
    )
