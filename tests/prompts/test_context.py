"""Context enhancement: the released label leak, the consistent form with its running mean, and off."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import tiny_batch, tiny_task

from aurora_ds.prompts import ContextEnhancement

ROWS = 4


def step(mode: str, seed: int = 0):
    """(task, what the head saw, the same without context, 0.1 · mean text state) of one training step."""
    task, trace = tiny_task(prompts={"context": mode}).task, {}
    task(tiny_batch(ROWS, seed), trace=trace)
    states = torch.cat([trace["mm_pos_embeds"][:, 0], trace["mm_neg_embeds"][:, 0]])
    return task, trace["itm_in"], states, 0.1 * trace["text_embeds"][:, 0].mean(0)


def test_released_is_added_to_positives_only():
    _, seen, states, term = step("released")
    torch.testing.assert_close(seen[:ROWS], states[:ROWS] + term)
    assert torch.equal(seen[ROWS:], states[ROWS:])


def test_consistent_is_added_to_every_pair_alike():
    _, seen, states, term = step("consistent")
    torch.testing.assert_close(seen, states + term)


def test_off_adds_nothing():
    task, seen, states, _ = step("off")
    assert torch.equal(seen, states) and task.context.running is None


@pytest.mark.parametrize("mode", ["released", "consistent"])
def test_the_gradient_goes_through_the_context(mode):
    context = ContextEnhancement(mode, 0.1)
    text = torch.randn(3, 5, requires_grad=True)
    context.apply(torch.zeros(6, 5), context.training_term(text), 3).sum().backward()
    torch.testing.assert_close(text.grad, torch.full((3, 5), 0.1 * (3 if mode == "released" else 6) / 3))


def test_the_running_mean_follows_and_serves_evaluation():
    context, batches = ContextEnhancement("consistent", 0.1), torch.randn(3, 6, 5)
    expected = batches[0].mean(0)
    for number, batch in enumerate(batches):
        context.training_term(batch)
        if number:
            expected = 0.9 * expected + 0.1 * batch.mean(0)
    torch.testing.assert_close(context.running, expected)
    torch.testing.assert_close(context.evaluation_term(), 0.1 * expected)


@pytest.mark.parametrize("mode", ["released", "off"])
def test_other_modes_have_no_evaluation_term(mode):
    context = ContextEnhancement(mode, 0.1)
    context.training_term(torch.randn(3, 5))
    assert context.evaluation_term() is None


def test_matching_at_evaluation_adds_the_running_mean():
    task, *_ = step("consistent")
    task.eval()
    batch = tiny_batch(1)
    pair = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        task.prepare_evaluation({})
        pair["tokens"] = task.encode_images(batch)["tokens"]
        with_context, running = task.match(pair)["logits"], task.context.running
        task.context.running = None
        without = task.match(pair)["logits"]
        weight = task.prompts.values.heads["itm_head"][0]
    torch.testing.assert_close(
        with_context - without, (0.1 * running @ weight.t())[None], rtol=1e-4, atol=1e-6
    )


def test_before_the_first_step_there_is_no_running_mean():
    assert ContextEnhancement("consistent", 0.1).evaluation_term() is None
