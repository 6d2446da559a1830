"""What the presets train: the published sets and counts for `released`, the text projection more for `aurora`.

Counts at BLIP-base and ViT-L sizes are taken from models without memory (the meta device).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_retrieval import tiny_batch, tiny_config, tiny_task

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.models import new_model
from aurora_ds.config import BackboneConfig, PromptConfig, RunConfig, VisionConfig
from aurora_ds.errors import AuroraError
from aurora_ds.presets import with_preset, with_prompt_preset
from aurora_ds.prompts import attach
from aurora_ds.prompts.published import from_published, to_published
from aurora_ds.verify.blip import backbone_config
from aurora_ds.verify.blip_language import vqa_task
from aurora_ds.verify.golden import Golden

GOLDENS = Path(__file__).parents[1] / "goldens"
COUNTS = json.loads((GOLDENS / "aurora_counts.json").read_text())
RANKS = [8, 16, 32, 64]
TEXT_PROJECTION = 768 * 256 + 256


@cache
def full_size(preset: str, rank: int, large: bool = False):
    """Prompts on BLIP of the published sizes."""
    vision = VisionConfig(width=1024, depth=24, heads=16) if large else VisionConfig()
    with torch.device("meta"):
        model = BlipRetrieval(BackboneConfig(vision=vision))
    config = PromptConfig(preset=preset, rank=rank)
    return attach(model, model.sites(), config, model.query_layers(), model.heads()), model


def trained(prompts) -> int:
    return sum(p.numel() for p in prompts.parameters() if p.requires_grad)


@pytest.mark.parametrize("rank", RANKS)
def test_released_trains_as_many_numbers_as_published(rank):
    prompts, model = full_size("released", rank)
    published = COUNTS["ranks"][str(rank)]
    assert trained(prompts) == published["trainable"]
    assert not any(p.requires_grad for p in model.parameters()), "the backbone is frozen, heads included"
    report = prompts.report()
    assert report["trainable"] == published["trainable"]
    assert report["backbone"] == COUNTS["backbone_online"]
    assert report["share_percent"] == pytest.approx(published["share_percent"], abs=5e-5)


@pytest.mark.parametrize(("rank", "trainable"), [(8, 88_832), (16, 107_008), (32, 164_864), (64, 452_608)])
def test_question_answering_trains_as_many_numbers_as_published(rank, trainable):
    """Prompts in both text transformers, nothing in the word prediction. 361,230,140 frozen ones at 384 px."""
    with torch.device("meta"):
        model = new_model(BackboneConfig(head="vqa"))
    config = PromptConfig(preset="released", rank=rank)
    report = attach(model, model.sites(), config, model.query_layers(), model.heads()).report()
    assert (report["trainable"], report["backbone"]) == (trainable, 361_230_140)


def test_names_trained_for_question_answering_are_those_of_the_recorded_run():
    golden = Golden.read(GOLDENS / "blip" / "aurora_vqa")
    bank = vqa_task(golden).prompts.bank
    assert sorted(to_published(bank, dict(bank.named_parameters()))) == sorted(golden.config["trainable"])


def group_of(published_name: str) -> str:
    """The count's group of a published tensor."""
    leaf = published_name.rpartition(".")[2]
    if published_name.startswith("CP_"):
        return published_name[3]
    if leaf in ("q_CP", "k_CP", "v_CP"):
        return "text_encoder_cross_P" if "crossattention" in published_name else "text_encoder_self_P"
    known = {"CP_attention": "vit_attn_P", "mlp_CP": "vit_mlp_P"}
    if leaf in known:
        return known[leaf]
    return "text_encoder_GQT" if leaf.startswith("CP_") else published_name.partition(".")[0]


@pytest.mark.parametrize("rank", RANKS)
def test_released_groups_have_the_published_counts(rank):
    prompts, _ = full_size("released", rank)
    tensors = to_published(prompts.bank, dict(prompts.bank.named_parameters()))
    groups: dict[str, int] = {}
    for name, tensor in tensors.items():
        groups[group_of(name)] = groups.get(group_of(name), 0) + tensor.numel()
    assert groups == COUNTS["ranks"][str(rank)]["groups"]
    assert len(tensors) == COUNTS["trained_tensors"]


@pytest.mark.parametrize("rank", RANKS)
def test_aurora_is_released_and_the_text_projection(rank):
    released, aurora = full_size("released", rank)[0].bank, full_size("aurora", rank)[0].bank
    shapes = [{n: tuple(p.shape) for n, p in bank.named_parameters()} for bank in (released, aurora)]
    assert set(shapes[1]) - set(shapes[0]) == {"text_proj_weight", "text_proj_bias"}
    assert shapes[0].items() <= shapes[1].items()
    assert trained(aurora) == COUNTS["ranks"][str(rank)]["trainable"] + TEXT_PROJECTION


def test_names_trained_are_those_of_the_recorded_run():
    """Shapes too, and the way back: published names -> ours -> published names."""
    golden = Golden.read(GOLDENS / "blip" / "aurora_retrieval_image")
    model = load_backbone(backbone_config(golden)).model
    config = PromptConfig(preset="released", rank=golden.config["R"])
    bank = attach(model, model.sites(), config, model.query_layers(), model.heads()).bank
    names = to_published(bank, dict(bank.named_parameters()))
    assert sorted(names) == sorted(golden.config["trainable"])
    recorded = Golden.read(golden.folder).outputs
    for name, tensor in names.items():
        assert tensor.shape == recorded[f"grad.{name}"].shape, name
    back = from_published(bank, names)
    for name, parameter in bank.named_parameters():
        assert torch.equal(back[name], parameter), name


@pytest.mark.parametrize("rank", [8, 32])
def test_vision_of_another_width_than_the_text(rank):
    """ViT-L: one U and one V per width, one core for all."""
    prompts, _ = full_size("aurora", rank, large=True)
    shapes = {n: tuple(p.shape) for n, p in prompts.bank.named_parameters()}
    assert {n: s for n, s in shapes.items() if n.startswith(("down_", "up_"))} == {
        "down_768": (rank, 768),
        "down_1024": (rank, 1024),
        "up_768": (768, rank),
        "up_1024": (1024, rank),
    }
    columns = 24 * (4 + 8) + 12 * 6
    assert shapes["modes"] == (columns, rank)
    heads = (1024 + 768 + 2) * 256 + 768 * 2 + 2
    assert trained(prompts) == 2 * rank * (768 + 1024) + rank**3 + columns * rank + 12 * 4 * 768 + heads


@pytest.mark.parametrize("preset", ["aurora", "released"])
def test_two_widths_train(preset):
    task = tiny_task(preset, vision_width=48).task
    task(tiny_batch())["loss"].backward()
    for name, parameter in task.prompts.bank.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("preset", ["aurora", "released"])
@pytest.mark.parametrize("rank", [1, 5, 6, 7])
def test_ranks_that_four_does_not_divide(preset, rank):
    task = tiny_task(preset, prompts={"rank": rank}).task
    task(tiny_batch())["loss"].backward()
    gradients = {n: p.grad for n, p in task.prompts.bank.named_parameters()}
    assert gradients["core"].shape == (rank, rank, rank)
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients.values())


def test_initial_values_are_the_published_ones():
    """V zero, so that training starts at the backbone; the others within and near their bounds."""
    bank = full_size_on_cpu()
    assert not bank.up_768.any()
    for tensor, bound in (
        (bank.down_768, 768**-0.5),
        (bank.core, 3**0.5 / 32),
        (bank.modes[:4], (6 / 36) ** 0.5),  # q, k, v, projection of the first vision block
        (bank.modes[4:12], (6 / 40) ** 0.5),  # its MLP
        (bank.modes[-6:], (6 / 33) ** 0.5),  # text
    ):
        assert 0.9 * bound < tensor.detach().abs().max() <= bound
    assert float(bank.gates.detach().std()) == pytest.approx(0.0002, rel=0.05)


def full_size_on_cpu():
    """The adapter alone, on the CPU."""
    prompts, _ = full_size("released", 32)
    return type(prompts.bank)(
        prompts.config, prompts.sites, prompts.gate_layers, {}, torch.Generator().manual_seed(0)
    )


def test_a_backbone_with_fresh_prompts_is_that_backbone():
    """V = 0 and copied heads leave only the gates, which are of the order of 1e-5."""
    task = tiny_task(awake=False, prompts={"query_transform": False}).task.eval()
    batch = tiny_batch()
    with torch.no_grad():
        task.prepare_evaluation({})
        prompted = task.encode_images(batch)["feature"]
        task.prompts.disable()
        plain = task.encode_images(batch)["feature"]
    torch.testing.assert_close(prompted, plain, rtol=0, atol=1e-6)


def test_what_is_set_wins_over_the_preset():
    config = with_preset(RunConfig(prompts=PromptConfig(preset="released", context="off", train_heads=[])))
    assert (config.prompts.context, config.prompts.train_heads) == ("off", [])
    assert (config.prompts.mlp_layout, config.retrieval.contrast) == ("interleaved", "local")
    assert with_preset(config) == config


def test_presets_do_not_share_their_lists():
    with_prompt_preset(PromptConfig()).train_heads.append("another")
    assert "another" not in with_prompt_preset(PromptConfig()).train_heads


def test_the_published_mlp_layout_has_no_cp_form():
    with pytest.raises(AuroraError, match="mlp_layout=block, or prompts.form=tucker"):
        with_preset(RunConfig(prompts=PromptConfig(preset="released", form="cp")))


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_that_is_no_rank_is_refused(rank):
    with pytest.raises(ValueError, match="rank"):
        PromptConfig(rank=rank)


def test_heads_alone():
    """`train.method=heads`: three heads, no prompt, no context term."""
    task = tiny_task(method="heads").task
    assert {n.rpartition("_")[0] for n, _ in task.prompts.bank.named_parameters()} == {
        "vision_proj",
        "text_proj",
        "itm_head",
    }
    assert task.context.mode == "off"
    task(tiny_batch())["loss"].backward()
    assert all(p.grad is not None for p in task.prompts.bank.parameters())


def test_full_fine_tuning_needs_a_second_model():
    with pytest.raises(AuroraError, match="momentum_model=twin"):
        tiny_task(method="full")
    task = tiny_task(method="full", retrieval={"momentum_model": "twin"}).task
    assert task.prompts is None and all(
        p.requires_grad == (n != "temp") for n, p in task.model.named_parameters()
    )
    assert tiny_config().train.method == "aurora"
