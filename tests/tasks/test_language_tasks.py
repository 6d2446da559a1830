"""Question answering, captioning and image pairs on tiny models: what the losses count, and that what is computed once
gives the numbers of computing everything for each."""

from __future__ import annotations

import pytest
import torch
from plain_generation import next_logits
from tiny_language import asked, captions, pairs, texts, tiny
from tiny_retrieval import BOS, CLS, ENC, PAD, SEP, tiny_backbone, tiny_batch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.config import CaptionConfig, GenerationConfig, RunConfig, TrainConfig, VqaConfig
from aurora_ds.presets import with_preset
from aurora_ds.tasks import caption
from aurora_ds.tasks.vqa import VqaTask


def loss_of_one(task: VqaTask, states: Tensor, mask: Tensor, answer: Tensor) -> float:
    """The loss of one answer without padding, each token from the whole text before it."""
    ids, total = torch.cat([torch.tensor([BOS]), answer[1:]]), 0.0
    for place in range(1, len(ids)):
        logits = next_logits(task.model.text_decoder, ids[None, :place], states[None], mask[None])
        total += F.cross_entropy(
            logits, ids[place : place + 1], label_smoothing=task.options.label_smoothing
        ).item()
    return total


# ---- question answering


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_weighs_the_summed_token_losses_of_the_answers(smoothing):
    task, batch = tiny("vqa", options=VqaConfig(label_smoothing=smoothing)), asked()
    states, mask = task.questions(batch)
    expected = 0.0
    for i, owner in enumerate(batch["answer_question"].tolist()):
        answer = batch["answer_ids"][i, : int(batch["answer_mask"][i].sum())]
        one = loss_of_one(task, states[owner], mask[owner], answer)
        expected += one * batch["answer_weights"][i].item() / 3
    assert task(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_questions_start_with_enc_and_see_their_image():
    task, batch = tiny("vqa"), asked()
    for name, change in (
        ("input_ids", lambda t: t.index_fill(1, torch.tensor([0]), ENC)),
        ("image", lambda t: t + 1),
    ):
        same = torch.allclose(
            task.questions(batch)[0], task.questions(batch | {name: change(batch[name])})[0]
        )
        assert same == (name == "input_ids")


@pytest.mark.parametrize(("per", "factor"), [("question", 1), ("frame", 3)])
def test_clips_count_like_images_unless_asked_otherwise(per, factor):
    batch = asked(frames=3)
    usual = tiny("vqa")(batch)["loss"]
    torch.testing.assert_close(tiny("vqa", options=VqaConfig(loss_per=per))(batch)["loss"] * factor, usual)
    still = {**batch, "image": batch["image"][:, :1]}
    torch.testing.assert_close(
        tiny("vqa")(still)["loss"], tiny("vqa")(still | {"image": batch["image"][:, 0]})["loss"]
    )


def answer_list() -> tuple[Tensor, Tensor]:
    """Nine answers; some share their first word, one is a single word."""
    ids, mask = texts(9, 6, seed=4)
    ids[3, 1] = ids[5, 1] = ids[0, 1]
    ids[8] = torch.tensor([CLS, ids[1, 1], SEP, PAD, PAD, PAD])
    mask[8] = torch.tensor([1, 1, 1, 0, 0, 0])
    return ids, mask


@pytest.mark.parametrize("preset", [None, "aurora", "released"])
@pytest.mark.parametrize("k", [1, 4, 9, 50])
def test_ranking_scores_the_likeliest_candidates_in_full(k, preset):
    task, batch, answers = tiny("vqa", preset, VqaConfig(k_test=k)), asked(), answer_list()
    found = task(batch, what="rank", answers=answers)
    states, mask = task.questions(batch)
    for question in range(3):
        first = next_logits(
            task.model.text_decoder,
            torch.tensor([[BOS]]),
            states[question : question + 1],
            mask[question : question + 1],
        )[0].softmax(0)
        order = sorted(range(9), key=lambda i: -first[answers[0][i, 1]].item())[:k]
        losses = {
            i: loss_of_one(task, states[question], mask[question], answers[0][i, : int(answers[1][i].sum())])
            for i in order
        }
        best = min(losses, key=losses.get)
        assert found["answer"][question].item() == best
        assert found["score"][question].item() == pytest.approx(-losses[best], abs=1e-4)


def test_ranking_in_parts_gives_the_same():
    batch, answers, found = asked((1, 1, 1, 1, 1)), answer_list(), []
    for at_once in (1, 8, 1000):
        task = tiny("vqa", options=VqaConfig(k_test=4, answers_per_batch=at_once))
        found.append(task(batch, what="rank", answers=answers))
    for other in found[1:]:
        assert torch.equal(found[0]["answer"], other["answer"])
        torch.testing.assert_close(found[0]["score"], other["score"])


def test_answers_of_one_word_alone():
    ids = torch.tensor([[CLS, word, SEP] for word in (5, 9, 20)])
    task, batch = tiny("vqa"), asked()
    found = task(batch, what="rank", answers=(ids, torch.ones_like(ids)))
    states, mask = task.questions(batch)
    losses = torch.tensor(
        [[loss_of_one(task, states[q], mask[q], answer) for answer in ids] for q in range(3)]
    )
    assert torch.equal(found["answer"], losses.argmin(1))


@pytest.mark.parametrize("padding", ["masked", "seen"])
def test_written_answers_and_the_padding_of_their_questions(padding):
    options = VqaConfig(question_padding=padding, generation=GenerationConfig(max_length=9, min_length=6))
    task, batch = tiny("vqa", options=options), asked((1,) * 6, seed=2)
    together = task(batch, what="generate")
    longest = int(batch["attention_mask"].sum(1).min())
    row = int(batch["attention_mask"].sum(1).argmin())
    alone = {
        "image": batch["image"][row : row + 1],
        "input_ids": batch["input_ids"][row : row + 1, :longest],
        "attention_mask": batch["attention_mask"][row : row + 1, :longest],
    }
    same = torch.allclose(
        task(alone, what="generate")["scores"], together["scores"][row : row + 1], atol=1e-5
    )
    assert same == (padding == "masked")


@pytest.mark.parametrize("preset", ["aurora", "released"])
@pytest.mark.parametrize("head", ["vqa", "caption"])
def test_the_cache_has_the_prompts_in_it(head, preset):
    """Written token by token with prompts in place, as from whole texts; and the prompts matter."""
    generation = GenerationConfig(method="greedy", max_length=10, min_length=10)
    options = {"vqa": VqaConfig(generation=generation), "caption": CaptionConfig(generation=generation)}[head]
    task, batch = tiny(head, preset, options), asked()
    ids = task(batch, what="generate")["ids"]
    context, mask = task.image_tokens(batch["image"]), None
    if head == "vqa":
        context, mask = task.questions(batch)
    start = 1 if head == "vqa" else len(task.prompt)
    for length in range(start, 10):
        logits = next_logits(task.model.text_decoder, ids[:, :length], context, mask)
        logits[:, SEP] = -torch.inf
        assert torch.equal(logits.argmax(1), ids[:, length])
    task.prompts.disable()
    assert not torch.equal(task(batch, what="generate")["ids"], ids)


# ---- captioning


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_caption_loss_is_the_mean_over_tokens_after_the_prompt(smoothing):
    task, batch, losses = tiny("caption", options=CaptionConfig(label_smoothing=smoothing)), captions(), []
    tokens = task.image_tokens(batch["image"])
    for row in range(3):
        ids = torch.cat(
            [torch.tensor([BOS]), batch["input_ids"][row, 1 : int(batch["attention_mask"][row].sum())]]
        )
        for place in range(3, len(ids)):
            logits = next_logits(task.model.text_decoder, ids[None, :place], tokens[row : row + 1], None)
            losses.append(F.cross_entropy(logits, ids[place : place + 1], label_smoothing=smoothing).item())
    assert task(batch)["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_ranks_with_more_tokens_count_more(monkeypatch):
    """The mean of two ranks' losses is the loss of all their captions in one batch."""
    task, batch = tiny("caption"), tiny_batch(4, seed=3)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    counts = [(part["attention_mask"].sum(1) - len(task.prompt)).sum().item() for part in parts]
    assert counts[0] != counts[1]
    whole, sums = task(batch)["loss"], lambda x: x.new_tensor([float(sum(counts))])
    monkeypatch.setattr(caption, "sum_over_ranks", sums)
    monkeypatch.setattr(caption, "world", lambda: (0, 2))
    torch.testing.assert_close((task(parts[0])["loss"] + task(parts[1])["loss"]) / 2, whole)


def test_captions_begin_with_the_prompt():
    options = CaptionConfig(generation=GenerationConfig(max_length=10))
    for frames in (0, 2):
        ids = tiny("caption", options=options)(tiny_batch(3, frames=frames), what="generate")["ids"]
        assert ids[:, :3].tolist() == [[BOS, 7, 8]] * 3


def test_all_frames_of_a_clip_are_seen():
    task, batch = tiny("caption"), captions()
    image = tiny_batch(3, frames=3)["image"]
    losses = {
        "all": task(batch | {"image": image})["loss"],
        "other last": task(batch | {"image": torch.cat([image[:, :2], image[:, :1]], dim=1)})["loss"],
        "turned": task(batch | {"image": image.flip(1)})["loss"],
    }
    assert not torch.allclose(losses["all"], losses["other last"])
    torch.testing.assert_close(losses["all"], losses["turned"], msg="there is no embedding of time")


# ---- image pairs


def test_image_pair_loss_and_prediction():
    task, batch = tiny("nlvr"), pairs()
    found = task(batch, what="predict")
    assert torch.equal(found["label"], found["logits"].argmax(1))
    torch.testing.assert_close(task(batch)["loss"].detach(), F.cross_entropy(found["logits"], batch["label"]))


def test_both_images_of_a_pair_are_seen_and_told_apart():
    task, batch = tiny("nlvr"), pairs()
    usual = task(batch, what="predict")["logits"]
    for changed in (batch["image"].flip(1), batch["image"][:, [0, 0]], batch["image"][:, [1, 1]]):
        assert not torch.allclose(task(batch | {"image": changed}, what="predict")["logits"], usual)


# ---- all


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
@pytest.mark.parametrize("preset", ["aurora", "released"])
def test_every_prompt_learns_and_nothing_else(head, preset):
    task = tiny(head, preset).train()
    batch = {"vqa": asked(), "caption": captions(), "nlvr": pairs()}[head]
    task(batch)["loss"].backward()
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    assert all(name.startswith("prompts.") for name in trained)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values()), head
    heads = {name.rpartition("_")[0].rpartition(".")[2] for name in trained if "cls_head" in name}
    assert heads == ({"cls_head_0", "cls_head_2"} if head == "nlvr" else set())


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_half_precision_gives_finite_wide_losses(head):
    task = tiny(head, None).to(torch.bfloat16)
    batch = {"vqa": asked(), "caption": captions(), "nlvr": pairs()}[head]
    loss = task(batch | {"image": batch["image"].to(torch.bfloat16)})["loss"]
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize("head", ["retrieval", "vqa", "caption", "nlvr"])
def test_a_preset_trains_the_heads_that_the_model_has(head):
    config = with_preset(RunConfig(backbone=tiny_backbone(head=head), train=TrainConfig()))
    expected = {"retrieval": ["vision_proj", "text_proj", "itm_head"], "nlvr": ["cls_head_0", "cls_head_2"]}
    assert config.prompts.train_heads == expected.get(head, [])
