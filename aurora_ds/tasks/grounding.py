"""Visual grounding (mPLUG §4): a phrase and an image -> the box that the phrase means, written as four tokens.

A box is (centre x, centre y, width, height) in shares of the image's square, each a step of 0 to `bins`; only these
tokens can be written. The loss of a token is weighed by how far off the box is: |written - true| times 1 - GIoU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.text import KeyValueCache
from aurora_ds.config import GroundingConfig
from aurora_ds.data.placement import SHARE
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.boxes import corners, generalised_overlap, quantised
from aurora_ds.tasks.language import LanguageTask

SIDES = 4  # tokens of a box
FARTHEST = 5.0  # where the distance of a side is cut off, as published


class GroundingTask(LanguageTask):
    """Loss and evaluation pieces of visual grounding.

    Args:
        model: backbone with `image_tokens`, `read` (tokens of images and texts -> states) and `text_decoder`.
        prompts: what was attached to `model`; None for full fine-tuning.
    """

    def __init__(self, model: nn.Module, prompts: Prompts | None, options: GroundingConfig) -> None:
        super().__init__(model, prompts)
        self.options = options

    @torch.no_grad()
    def encode_images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`tokens` (images, N, D) of `image`: computed once, they serve all phrases about an image."""
        return {"tokens": self.image_tokens(batch["image"])}

    def loss(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`loss`, scalar: the mean over boxes and sides of token loss times distance times 1 - GIoU; the weights are of
        the likeliest tokens, without gradient. `loss_tokens`: the mean token loss, for the curves.

        Args:
            batch: `image` (B, 3, H, W), `input_ids`, `attention_mask` (B, L), `box` int64 (B, 4) in units of
                SHARE.
            trace: when given, intermediate tensors are put in (for verification).
        """
        self.refresh()
        true, options = batch["box"].float() * SHARE, self.options
        targets = quantised(true, options.bins)  # (B, 4)
        written = torch.cat([self._first(targets), targets[:, :-1] + options.first_bin_id], dim=1)
        states, mask = self._read(batch)
        decoder = self.model.text_decoder
        every = decoder.scores(decoder(written, None, decoder.context_kv(states), mask))
        scores = self._of_bins(every)  # (B, 4, bins + 1)
        losses = F.cross_entropy(scores.transpose(1, 2), targets, reduction="none")
        with torch.no_grad():
            found = scores.argmax(-1).to(true) / options.bins
            distance = (found - true).abs().clamp(max=FARTHEST)  # (B, 4)
            apart = 1 - generalised_overlap(corners(found), corners(true))  # (B,)
        weights = distance * apart[:, None]
        if trace is not None:
            trace.update(
                logits=every, targets=targets, losses=losses, found=found, distance=distance, apart=apart
            )
        if options.weighting == "batch":
            # as released: the losses of each box meet the weights of all
            weights = weights.mean(0, keepdim=True)
        return {"loss": (losses * weights).mean(), "loss_tokens": losses.detach().mean()}

    @torch.no_grad()
    def boxes(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What the phrases mean: `box` fp32 (B, 4), the likeliest tokens one after the other, and `probability` (B,) of
        these four.

        Args:
            batch: `input_ids`, `attention_mask` (B, L), and either `image`, one per phrase, or `tokens` of
                `encode_images` with `image_index` int64 (B,), the row of them that each phrase is about.
            trace: as in `loss`.
        """
        states, mask = self._read(batch)
        decoder, options, cache = self.model.text_decoder, self.options, KeyValueCache()
        kv = decoder.context_kv(states)
        token = self._first(batch["input_ids"])
        bins, steps = [], []
        log_probability = states.new_zeros(len(states), dtype=torch.float32)
        for _ in range(SIDES):
            every = decoder.scores(decoder(token, None, kv, mask, cache=cache)[:, -1])
            best = self._of_bins(every).float().log_softmax(-1).max(-1)
            log_probability += best.values
            bins.append(best.indices)
            steps.append(every)
            token = best.indices[:, None] + options.first_bin_id
        found = torch.stack(bins, dim=1)
        if trace is not None:
            trace.update(bins=found, step_logits=torch.stack(steps, dim=1))
        return {"box": found.float() / options.bins, "probability": log_probability.exp()}

    def _read(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """States (B, N + L, H) of each image read with its phrase, and their mask (B, N + L)."""
        tokens = batch["tokens"] if "tokens" in batch else self.image_tokens(batch["image"])
        return self.model.read(batch["input_ids"], batch["attention_mask"], tokens, batch.get("image_index"))

    def _first(self, like: Tensor) -> Tensor:
        """The token that a box begins with, int64 (B, 1)."""
        return like.new_full((len(like), 1), self.options.prefix_id)

    def _of_bins(self, scores: Tensor) -> Tensor:
        """Of scores (…, V) those of the tokens of boxes (…, bins + 1), fp32 or wider."""
        first = self.options.first_bin_id
        scores = scores[..., first : first + self.options.bins + 1]
        return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
