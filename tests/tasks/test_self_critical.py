"""Self-critical training: the loss against one computed token by token, draws that belong to samples, a reward that
rises."""

from __future__ import annotations

import pytest
import torch
from plain_generation import next_logits
from tiny_language import PROMPT, tiny
from tiny_retrieval import BOS, CLS, PAD, SEP, tiny_backbone, tiny_batch
from torch import Tensor

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import CaptionConfig, GenerationConfig, SelfCriticalConfig
from aurora_ds.tasks import self_critical
from aurora_ds.tasks.caption import caption_words
from aurora_ds.tasks.metrics.cider import CiderD, DocumentFrequency
from aurora_ds.tasks.self_critical import SelfCriticalTask, up_to_end

REFERENCES = [
    ["w10 w11 w12 w13", "w10 w20"],
    ["w21 w22 w23 w24"],
    ["w30 w31 w10", "w32 w33", "w30 w31 w32"],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of the tiny model's ids: `w10` is 10."""
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    special = {PAD: "[PAD]", CLS: "[CLS]", SEP: "[SEP]", 3: "[UNK]"}
    path.write_text("\n".join(special.get(number, f"w{number}") for number in range(BOS)))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def reward() -> CiderD:
    """Every word is rare among fifty documents, so every hit counts."""
    texts = [[text.split() for text in each] for each in REFERENCES]
    return CiderD(DocumentFrequency(DocumentFrequency.of(texts).counts, 50))


def task_of(
    tokenizer: Tokenizer, reward: CiderD, preset: str | None = "aurora", **settings
) -> SelfCriticalTask:
    """Over the tiny captioner; it writes at most five tokens after its prompt."""
    options = CaptionConfig(
        objective="self_critical",
        generation=GenerationConfig(max_length=8, min_length=0),
        self_critical=SelfCriticalConfig(**settings),
    )
    plain = tiny("caption", preset)
    task = SelfCriticalTask(plain.model, plain.prompts, options, tiny_backbone().text, PROMPT, tokenizer, 42)
    task.reward = reward
    return task


def batch_of(rows: list[int]) -> dict[str, Tensor]:
    """Images 0 to 2 with their references, in any order."""
    return {
        "image": tiny_batch(3, seed=1)["image"][rows],
        "references": [REFERENCES[row] for row in rows],
        "sample_index": torch.tensor(rows) + 100,
    }


def drawn(
    task: SelfCriticalTask, monkeypatch: pytest.MonkeyPatch, batch: dict, step: int = 0
) -> tuple[dict, Tensor]:
    """The losses of a step, and what was drawn for it."""
    seen = []
    plain = task._drawn
    monkeypatch.setattr(task, "_drawn", lambda *arguments: seen.append(plain(*arguments)) or seen[-1])
    losses = task(batch, step=step)
    monkeypatch.undo()
    return losses, seen[0]


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_the_loss_is_the_one_computed_token_by_token(tokenizer, reward, monkeypatch, baseline):
    task, batch = task_of(tokenizer, reward, samples=3, baseline=baseline), batch_of([0, 1, 2])
    losses, ids = drawn(task, monkeypatch, batch)
    tokens, total, count, rewards, baselines = task.image_tokens(batch["image"]), 0.0, 0, [], []
    greedy_task = task_of(tokenizer, reward)
    greedy_task.options.generation = GenerationConfig(method="greedy", max_length=8, min_length=0)
    greedy = caption_words(tokenizer, greedy_task(batch, what="generate")["ids"], task.prompt)
    for image in range(3):
        prepared = reward.prepare([text.split() for text in REFERENCES[image]])
        own = [
            reward.score(words.split(), prepared)
            for words in caption_words(tokenizer, ids[3 * image : 3 * image + 3], task.prompt)
        ]
        for place in range(3):
            others = [own[other] for other in range(3) if other != place]
            against = (
                sum(others) / 2 if baseline == "others" else reward.score(greedy[image].split(), prepared)
            )
            rewards.append(own[place])
            baselines.append(against)
            text = ids[3 * image + place]
            for end in range(len(PROMPT) - 1, len(text)):
                logits = next_logits(
                    task.model.text_decoder, text[None, :end], tokens[image : image + 1], None
                )
                total -= (own[place] - against) * float(logits.log_softmax(1)[0, text[end]])
                count += 1
                if text[end] == SEP:
                    break
    assert len(set(rewards)) > 2, "a test of equal rewards would show nothing"
    assert losses["loss"].item() == pytest.approx(total / count, rel=1e-4)
    assert float(losses["reward"]) == pytest.approx(sum(rewards) / 9, rel=1e-5)
    assert float(losses["reward_baseline"]) == pytest.approx(sum(baselines) / 9, rel=1e-5)


def test_the_gradient_raises_the_better_caption_and_lowers_the_worse(tokenizer, reward, monkeypatch):
    task, batch = task_of(tokenizer, reward, samples=2), batch_of([0, 1, 2])
    losses, ids = drawn(task, monkeypatch, batch)
    scores = task.rewards(ids, [reward.prepare([t.split() for t in each]) for each in REFERENCES])
    image = int((scores[:, 0] - scores[:, 1]).abs().argmax())
    better = int(scores[image].argmax())

    def probability(place: int) -> float:
        text, tokens = ids[2 * image + place], task.image_tokens(batch["image"][image : image + 1])
        last = int(up_to_end(text[None], SEP).sum())
        return sum(
            float(
                next_logits(task.model.text_decoder, text[None, :end], tokens, None).log_softmax(1)[
                    0, text[end]
                ]
            )
            for end in range(len(PROMPT) - 1, last)
        )

    before = probability(better) - probability(1 - better)
    losses["loss"].backward()
    with torch.no_grad():
        for parameter in task.prompts.bank.parameters():
            parameter -= parameter.grad
    task.refresh()
    assert probability(better) - probability(1 - better) > before + 0.01


def test_captions_that_earn_alike_teach_nothing(tokenizer, reward):
    task, batch = task_of(tokenizer, reward), batch_of([0, 1, 2])
    losses = task(batch | {"references": [["nothing of this"]] * 3})
    losses["loss"].backward()
    assert losses["reward"] == 0 and losses["loss"] == 0
    assert all(not parameter.grad.any() for parameter in task.prompts.bank.parameters())


def test_a_sample_draws_the_same_captions_in_any_batch_and_others_at_each_step(
    tokenizer, reward, monkeypatch
):
    task = task_of(tokenizer, reward, samples=3)
    whole = drawn(task, monkeypatch, batch_of([0, 1, 2]))[1]
    for row in range(3):
        alone = drawn(task, monkeypatch, batch_of([row]))[1]
        assert torch.equal(alone, whole[3 * row : 3 * row + 3, : alone.shape[1]])
    assert len({tuple(text) for text in whole.tolist()}) > 6
    assert not torch.equal(drawn(task, monkeypatch, batch_of([0, 1, 2]), step=1)[1][:, 4:6], whole[:, 4:6])


def test_the_mean_of_two_ranks_losses_is_the_loss_of_one_batch(tokenizer, reward, monkeypatch):
    task = task_of(tokenizer, reward, samples=2)
    whole = task(batch_of([0, 1, 2]))
    tokens = [
        int(up_to_end(drawn(task, monkeypatch, batch_of(rows))[1], SEP)[:, 3:].sum())
        for rows in ([0], [1, 2])
    ]
    monkeypatch.setattr(self_critical, "sum_over_ranks", lambda count: torch.tensor([float(sum(tokens))]))
    monkeypatch.setattr(self_critical, "world", lambda: (0, 2))
    parts = [task(batch_of(rows))["loss"] for rows in ([0], [1, 2])]
    torch.testing.assert_close(sum(parts) / 2, whole["loss"])


def test_dropout_stays_off(tokenizer, reward):
    task = task_of(tokenizer, reward).train()
    assert not any(module.training for module in task.modules())


def test_texts_end_with_their_first_end_token():
    ids = torch.tensor([[5, SEP, PAD, PAD], [5, 6, 7, 8], [5, PAD, SEP, PAD]])
    assert up_to_end(ids, SEP).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_the_reward_rises(tokenizer, reward, baseline):
    task = task_of(tokenizer, reward, preset=None, samples=8, baseline=baseline)
    batch = batch_of([0, 1, 2])
    optimizer, rewards = torch.optim.Adam(task.model.parameters(), 3e-3), []
    for step in range(60):
        losses = task(batch, step=step)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        rewards.append(float(losses["reward"]))
    first, last = sum(rewards[:10]) / 10, sum(rewards[-10:]) / 10
    assert last > 2 * first + 0.1, (first, last)
