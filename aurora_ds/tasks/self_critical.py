"""Self-critical training of captions (Rennie et al., 2017): what the model writes is rewarded by its CIDEr-D.

    loss = - 1/N · Σ over captions drawn  (reward - baseline) · Σ_t ln p(token t | tokens before, image)

N: tokens drawn, prompts left out, over all ranks. baseline: the reward of the image's greedy caption (as published), or
the mean reward of the other captions drawn for it (Luo, 2020), which needs no decoding of its own. Dropout is off: the
probability that is raised or lowered is the one by which the caption was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import CaptionConfig, GenerationConfig, TextConfig
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.caption import CaptionTask, caption_words
from aurora_ds.tasks.collectives import sum_over_ranks, world
from aurora_ds.tasks.generation import Context
from aurora_ds.tasks.language import next_targets, token_losses
from aurora_ds.tasks.metrics.cider import CiderD
from aurora_ds.tasks.metrics.ptb_tokenizer import tokenize


class SelfCriticalTask(CaptionTask):
    """CaptionTask with another loss. `reward`, a CiderD over the training captions' document frequencies, is set before
    the first step.

    Args:
        tokenizer: turns what is drawn into words. seed: of the draws; others as of CaptionTask.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts | None,
        options: CaptionConfig,
        text: TextConfig,
        prompt: Tensor,
        tokenizer: Tokenizer,
        seed: int,
    ) -> None:
        super().__init__(model, prompts, options, text, prompt)
        self.tokenizer, self.seed = tokenizer, seed
        self.reward: CiderD | None = None
        self.train(False)

    def train(self, mode: bool = True) -> SelfCriticalTask:
        """Dropout stays off in training."""
        return super().train(False)

    def loss(self, batch: dict[str, Any], step: int = 0) -> dict[str, Tensor]:
        """`loss` as above; `reward`, `reward_baseline`: means of this rank's captions, 1 where tables print 100.

        Args:
            batch: `image` (B, 3, H, W) or (B, T, 3, H, W); `references`: for each its captions, words joined by blanks;
                `sample_index` (B,). step: captions are drawn by (seed, step, sample), whatever the ranks.
        """
        self.refresh()
        decoder = self.model.text_decoder
        seen = decoder.context_kv(self.image_tokens(batch["image"]))
        fixed = Context([(keys.detach(), values.detach()) for keys, values in seen])
        samples = self.options.self_critical.samples
        ids = self._drawn(fixed, batch["sample_index"], step)
        prepared = self.prepared(batch)
        rewards = self.rewards(ids, prepared)
        baseline = self.baseline(rewards, fixed, prepared)

        mask = up_to_end(ids, self.text.sep_id)
        states = decoder(ids[:, :-1], mask[:, :-1], seen, group_size=samples)
        losses, rows = token_losses(decoder, states, next_targets(ids, mask, len(self.prompt)), 0.0)
        count = sum_over_ranks(losses.new_tensor([float(len(losses))])) / world()[1]  # tokens per rank
        loss = ((rewards - baseline).flatten()[rows] * losses).sum() / count[0]
        return {"loss": loss, "reward": rewards.mean(), "reward_baseline": baseline.mean()}

    def _drawn(self, context: Context, samples: Tensor, step: int) -> Tensor:
        """ids (B·n, L): n captions of each image, one after the other."""
        options, count = self.options.self_critical, self.options.self_critical.samples
        settings = GenerationConfig(
            method="nucleus",
            top_p=options.top_p,
            top_k=options.top_k,
            max_length=self.options.generation.max_length,
            # an end that is forbidden where the model wants it would be a draw from another distribution
            min_length=0,
        )
        numbers = samples[:, None] * count + torch.arange(count, device=samples.device)
        return self.written(context, settings, numbers.flatten(), (self.seed << 32) + step).ids

    def prepared(self, batch: dict[str, Any]) -> list[Any]:
        """The references of each image as the reward wants them."""
        return [self.reward.prepare([text.split() for text in each]) for each in batch["references"]]

    def baseline(self, rewards: Tensor, context: Context, prepared: Sequence[Any]) -> Tensor:
        """What the rewards (B, texts per image) are compared with, of the same shape."""
        how = self.options.self_critical.baseline
        if how == "greedy":
            settings = self.options.generation.model_copy(update={"method": "greedy"})
            return self.rewards(self.written(context, settings).ids, prepared).expand_as(rewards)
        if how == "all":
            return rewards.mean(1, keepdim=True).expand_as(rewards)
        return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)

    def rewards(self, ids: Tensor, prepared: Sequence[Any]) -> Tensor:
        """fp32 (B, texts per image) of ids (B·texts, L)."""
        words = [tokenize(text).split() for text in caption_words(self.tokenizer, ids, self.prompt)]
        each = len(words) // len(prepared)
        rows = [words[first : first + each] for first in range(0, len(words), each)]
        return torch.from_numpy(self.reward.rewards(rows, prepared)).to(ids.device)


def up_to_end(ids: Tensor, end: int) -> Tensor:
    """ids (B, L) -> int64 (B, L): 1 up to the first end token, 0 after it."""
    ended = (ids == end).long()
    return (ended.cumsum(1) - ended == 0).long()
