"""The momentum model as a slot over the one backbone and as a second backbone: the same numbers where the checkpoint's
`*_m` weights equal its online ones, over real optimizer steps."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import awaken, tiny_batch, tiny_config

from aurora_ds.assemble import build_task
from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.models import new_model
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.momentum import TwinMomentum

STEPS, DECAY = 4, 0.9


def build(preset: str, form: str, factors: str = "ema", explicit: bool = False, **backbone):
    config = tiny_config(
        preset,
        prompts={"momentum_factors": factors},
        retrieval={"momentum_model": form, "negative_sampling": "keyed"},
        **backbone,
    )
    torch.manual_seed(0)
    loaded = load_backbone(config.backbone)
    if explicit:  # what a published checkpoint stores beside its weights
        skip = ("temp", "itm_head")
        loaded.momentum = {
            n: t.clone() for n, t in loaded.model.state_dict().items() if not n.startswith(skip)
        }
    task = build_task(config, loaded).task
    awaken(task.prompts.bank)
    task.train()
    return task


def train(task, steps=range(STEPS), dtype=torch.float32):
    """(losses of each step, trained tensors, momentum copies) under AdamW."""
    optimizer = torch.optim.AdamW(task.prompts.parameters(), lr=3e-3)
    losses = []
    for step in steps:
        batch = tiny_batch(seed=step)
        loss = task(batch | {"image": batch["image"].to(dtype)}, step=step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    bank = task.prompts.bank
    return torch.stack(losses), {n: p.detach() for n, p in bank.named_parameters()}, bank.shadow


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("factors", ["shared", "ema"])
@pytest.mark.parametrize("preset", ["aurora", "released"])
def test_slot_and_twin_give_the_same_numbers(preset, factors, explicit):
    slot = train(build(preset, "slot", factors))
    twin = train(build(preset, "twin", factors, explicit))
    assert slot[0][0] != slot[0][1]
    torch.testing.assert_close(slot[0], twin[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(slot[1:], twin[1:], strict=True):
        assert set(ours) == set(theirs)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("factors", ["shared", "ema"])
def test_the_copies_follow_the_trained_tensors(factors):
    """p_m <- m p_m + (1 - m) p in every forward, before the momentum pass; the matching head has no copy."""
    task = build("aurora", "slot", factors)
    bank = task.prompts.bank
    optimizer = torch.optim.AdamW(bank.parameters(), lr=1e-2)
    expected = {n: p.detach().clone() for n, p in bank.named_parameters()}
    for step in range(3):
        online = {n: p.detach().clone() for n, p in bank.named_parameters()}
        loss = task(tiny_batch(seed=step), step=step)["loss"]
        expected = {n: DECAY * t + (1 - DECAY) * online[n] for n, t in expected.items()}
        for name, copy in bank.shadow.items():
            torch.testing.assert_close(copy, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    without = {"itm_head_weight", "itm_head_bias"}
    if factors == "shared":
        without |= {"down_32", "up_32", "core"}
    assert set(expected) - set(bank.shadow) == without


def test_the_slot_costs_as_many_numbers_as_are_trained():
    task = build("aurora", "slot")
    task(tiny_batch())
    trained = sum(p.numel() for p in task.prompts.bank.parameters())
    assert sum(t.numel() for t in task.momentum_model.state().values()) <= trained


def test_the_twin_follows_the_frozen_backbone():
    task = build("released", "twin")
    twin = dict(task.momentum_model.twin.named_parameters())
    weight, online = (
        twin["visual_encoder.blocks.0.attn.qkv.weight"],
        task.model.visual_encoder.blocks[0].attn.qkv,
    )
    with torch.no_grad():
        weight.add_(1.0)
    task(tiny_batch())
    torch.testing.assert_close(weight - online.weight, torch.full_like(weight, DECAY))
    assert not any(p.requires_grad for p in twin.values())


@pytest.mark.parametrize("form", ["slot", "twin"])
def test_after_the_step_the_online_model_is_back(form):
    task = build("aurora", form)
    task(tiny_batch())
    assert task.model.training and all(m.training for m in task.model.modules())
    assert task.prompts.values.gates[0].requires_grad, "values with graph, not the momentum copies"


@pytest.mark.parametrize(("dropout", "differs"), [(True, True), (False, False)])
def test_dropout_in_the_momentum_pass_as_asked(dropout, differs):
    config = tiny_config(retrieval={"momentum_dropout": dropout}, dropout=0.5)
    task = build_task(config).task.train()
    seen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trace = {}
        task(tiny_batch(), trace=trace)
        seen.append(trace["text_feat_m"])
    assert torch.allclose(*seen, atol=1e-5) != differs


@pytest.mark.parametrize("form", ["slot", "twin"])
def test_saved_state_goes_on_bit_for_bit(form):
    whole = build("aurora", form)
    first, _, _ = train(whole, range(2))
    trained = {n: p.detach().clone() for n, p in whole.prompts.bank.named_parameters()}
    buffers = {n: t.clone() for n, t in whole.buffers_to_save().items()}
    expected, _, _ = train(whole, range(2, 4))
    fresh = build("aurora", form)
    fresh.prompts.bank.load_state_dict(trained)
    fresh.load_buffers(buffers)
    found, _, _ = train(fresh, range(2, 4))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", ["slot", "twin"])
def test_copies_of_another_run_are_refused(form):
    """Taken in part they would restart the rest from the present in silence."""
    buffers = build("aurora", form).buffers_to_save()
    task = build("aurora", form)
    task(tiny_batch())
    buffers |= {n: t for n, t in task.buffers_to_save().items() if n.startswith("momentum.")}
    core = buffers.pop("momentum.core")
    with pytest.raises(AuroraError, match=r"\['core'\] missing"):
        build("aurora", form).load_buffers(buffers)
    with pytest.raises(AuroraError, match=r"\['core'\] of another shape"):
        build("aurora", form).load_buffers(buffers | {"momentum.core": core[:2]})


@pytest.mark.parametrize("form", ["slot", "twin"])
def test_16_bit_training_runs_and_is_close(form):
    """The copies stay in fp32: a change of a thousandth would be lost in 16 bits."""
    exact, _, _ = train(build("aurora", form))
    task = build("aurora", form).bfloat16()
    rough, _, shadow = train(task, dtype=torch.bfloat16)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    assert {t.dtype for t in shadow.values()} == {torch.float32}
    if form == "twin":
        assert {p.dtype for p in task.momentum_model.twin.parameters()} == {torch.float32}


def test_a_twin_has_no_part_that_features_do_without():
    """mPLUG's fusion encoder reads pairs alone."""
    sizes = {"vision": {"image_size": 16, "patch_size": 8, "width": 32, "depth": 1, "heads": 2}}
    sizes["text"] = {"vocab_size": 150, "width": 32, "depth": 2, "heads": 2, "intermediate": 48}
    sizes["text"] |= {"cls_id": 101, "sep_id": 102, "bos_id": 101, "enc_id": 101}
    sizes["mplug"] = {"text_layers": 1, "fusion_layers": 2, "stride": 1}
    config = BackboneConfig.model_validate({"name": "mplug", **sizes})
    model = new_model(config).eval()
    kept = model.state_dict()
    twin = TwinMomentum(model, None, lambda: (new_model(config), None), kept, False, without=model.FOR_PAIRS)
    lost = set(kept) - set(twin.twin.state_dict())
    assert lost == {name for name in kept if name.startswith("fusion_encoder.")} and lost
    image, (ids, mask) = torch.randn(2, 3, 16, 16), (torch.ones(2, 4).long(), torch.ones(2, 4).long())
    with twin(None, 0.5) as other:
        assert torch.equal(other.image_states(image)[1], model.image_states(image)[1])
        assert torch.equal(other.text_states(ids, mask), model.text_states(ids, mask))
