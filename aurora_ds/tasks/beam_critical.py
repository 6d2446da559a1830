"""Self-critical training on the texts of a beam search, as mPLUG's published code does it, but without dropout.

    loss = - mean over the texts of all images  (reward - baseline) · score / length

score: of `penalised_beam`, which has divided by a power of the length already; length: tokens, the prompt's included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.backbones.text import KeysValues
from aurora_ds.tasks.generation import Context
from aurora_ds.tasks.language import next_targets, token_losses
from aurora_ds.tasks.penalised_beam import Hypothesis, hypotheses, length_penalty
from aurora_ds.tasks.self_critical import SelfCriticalTask
from aurora_ds.tasks.writer import Writer


class BeamCriticalTask(SelfCriticalTask):
    """SelfCriticalTask whose texts are the `samples` best of a beam search."""

    def loss(self, batch: dict[str, Any], step: int = 0) -> dict[str, Tensor]:
        """As of SelfCriticalTask; `step` is not read: nothing is drawn."""
        self.refresh()
        decoder = self.model.text_decoder
        seen = decoder.context_kv(self.image_tokens(batch["image"]))
        fixed = Context([(keys.detach(), values.detach()) for keys, values in seen])
        settings = self.options.generation.model_copy(
            update={"method": "penalised_beam", "beams": self.options.self_critical.samples}
        )
        ends = (self.text.sep_id, self.text.pad_id)
        with torch.no_grad():
            texts = hypotheses(Writer(decoder, fixed, self.prompt, len(fixed), settings, *ends))
        ids, _ = padded([text.ids for each in texts for text in each], self.prompt, self.text.pad_id)
        prepared = self.prepared(batch)
        rewards = self.rewards(ids, prepared)
        baseline = self.baseline(rewards, fixed, prepared)
        loss = beam_loss(decoder, seen, texts, rewards - baseline, self.prompt, self.text.pad_id)
        return {"loss": loss, "reward": rewards.mean(), "reward_baseline": baseline.mean()}


def beam_loss(
    decoder: TextDecoder,
    seen: Sequence[KeysValues],
    texts: Sequence[Sequence[Hypothesis]],
    advantage: Tensor,
    prompt: Tensor,
    pad: int,
) -> Tensor:
    """The loss above, scalar, with gradients of the scores. `texts`: as many for each image; `advantage`: their rewards
    less the baseline, (images, texts per image)."""
    ids, mask = padded([text.ids for each in texts for text in each], prompt, pad)
    states = decoder(ids[:, :-1], mask[:, :-1], seen, group_size=advantage.shape[1])
    losses, rows = token_losses(decoder, states, next_targets(ids, mask, len(prompt)), 0.0)
    total = losses.new_zeros(len(ids)).index_add(0, rows, -losses)
    lengths = mask.sum(1)
    penalty = losses.new_tensor([length_penalty(length - len(prompt)) for length in lengths.tolist()])
    return -(advantage.flatten().to(total) * total / penalty / lengths).mean()


def padded(rows: Sequence[Sequence[int]], like: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask int64 (rows, longest), on the device of `like`."""
    longest = max(len(row) for row in rows)
    ids = like.new_tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = like.new_tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask
