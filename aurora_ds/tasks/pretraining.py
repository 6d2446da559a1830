"""Masked pre-training on pairs of image and caption (EVE, AAAI 2024): hidden patches are reconstructed beside the whole
caption, hidden words guessed beside the whole image, in two passes of one trunk. No contrast, no matching.

What is hidden is a function of (seed, step, sample), so it is the same on any number of ranks and after any restart.
Losses are means over a sample's hidden parts, then over samples: ranks with more hidden words do not weigh more.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.eve import EveStates
from aurora_ds.backbones.eve_pretraining import Reconstruction
from aurora_ds.config import PretrainConfig, TextConfig
from aurora_ds.data.patch_masks import block_mask
from aurora_ds.tasks.language import LanguageTask, wide
from aurora_ds.tasks.negatives import keyed_uniform

_PATCHES, _WORDS = 4, 5  # streams of these draws; those of other tasks are below
_EPS = 1e-6  # under the deviation of a patch, which may have one colour


class Hidden(NamedTuple):
    """What a batch does not show. K: most hidden tokens of a caption."""

    patches: Tensor  # bool (B, patches)
    places: Tensor  # int64 (B, K): positions of hidden tokens
    real: Tensor  # bool (B, K): False where a caption has fewer


class Seen(NamedTuple):
    """What the two passes over a batch gave."""

    hidden: Hidden
    pictured: Reconstruction
    errors: Tensor  # (B, patches) mean squares
    worded: EveStates
    true: Tensor  # int64 (B, K)
    surprise: Tensor  # (B, K) cross entropy
    guesses: Tensor  # int64 (B, K)


class PretrainingTask(LanguageTask):
    """Losses and evaluation of masked pre-training.

    Args:
        model: backbone with `reconstructed`, `guessed`, `auxiliary_of` and `picture`. text: for its special ids.
        mask_id: the token that stands for a hidden one. grid: patches of an image's side. seed: of what is hidden.
    """

    def __init__(
        self, model: nn.Module, options: PretrainConfig, text: TextConfig, mask_id: int, grid: int, seed: int
    ) -> None:
        super().__init__(model, None)
        self.options, self.text, self.mask_id, self.grid, self.seed = options, text, mask_id, grid, seed

    def loss(
        self, batch: dict[str, Any], step: int = 0, trace: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`loss`, scalar: weighed `loss_image` (squared error of hidden patches) and `loss_text` (cross entropy of
        hidden tokens), plus `loss_auxiliary`, the experts' own; `words_right`, the share of hidden tokens guessed.

        Args:
            batch: `image` (B, 3, H, W), `input_ids`, `attention_mask` (B, L), `sample_index` int64 (B,).
            step: optimizer steps made before.
            trace: when given, intermediate tensors are put in.
        """
        seen = self._both(batch, step)
        image = _mean_of(seen.errors, seen.hidden.patches).mean()
        text = _mean_of(seen.surprise, seen.hidden.real).mean()
        auxiliary = self.model.auxiliary_of([seen.pictured.states, seen.worded])
        right = _mean_of((seen.guesses == seen.true).to(text.dtype), seen.hidden.real).mean()
        if trace is not None:
            trace.update(errors=seen.errors, surprise=seen.surprise, pixels=seen.pictured.pixels)
        return {
            "loss": self.options.image_weight * image + self.options.text_weight * text + auxiliary,
            "loss_image": image.detach(),
            "loss_text": text.detach(),
            "loss_auxiliary": auxiliary.detach(),
            "words_right": right,
        }

    @torch.no_grad()
    def judge(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of each sample: `image_error` (B,) and `image_variance` (B,) of hidden patches, mean squares, the latter
        about the mean colour of what is hidden; `text_loss` (B,), `words`, how many are hidden, and `right` ones; and
        `guesses` int64 (B, K) at `places` that are `real`, `patches` bool (B, patches), `pixels`: pictures (B, 3, H, W)
        as loaders give them, hidden patches reconstructed. `batch` as in `loss`; what is hidden does not depend on a
        step."""
        seen = self._both(batch, 0)
        hidden, patches = seen.hidden, seen.pictured.targets
        pixels = torch.where(
            hidden.patches[..., None], self._as_pixels(seen.pictured.pixels, patches), patches
        )
        return {
            "image_error": _mean_of(seen.errors, hidden.patches),
            "image_variance": _variance(self._target(patches), hidden.patches),
            "text_loss": _mean_of(seen.surprise, hidden.real),
            "words": hidden.real.sum(1),
            "right": ((seen.guesses == seen.true) & hidden.real).sum(1),
            "guesses": seen.guesses,
            "places": hidden.places,
            "real": hidden.real,
            "patches": hidden.patches,
            "pixels": self.model.picture(pixels),
        }

    def _both(self, batch: dict[str, Any], step: int) -> Seen:
        """The two passes."""
        hidden, ids, mask = self.hidden(batch, step), batch["input_ids"], batch["attention_mask"]
        pictured = self.model.reconstructed(batch["image"], ids, mask, hidden.patches)
        target = self._target(pictured.targets)
        errors = (pictured.pixels.to(target.dtype) - target).square().mean(-1)
        scores, worded = self.model.guessed(
            batch["image"], self._with_hidden(ids, hidden), mask, hidden.places
        )
        true, scores = ids.gather(1, hidden.places), wide(scores)
        surprise = F.cross_entropy(scores.flatten(0, 1), true.flatten(), reduction="none").view_as(true)
        return Seen(hidden, pictured, errors, worded, true, surprise, scores.detach().argmax(-1))

    # ---- what is hidden --------------------------------------------------------------------------

    def hidden(self, batch: dict[str, Any], step: int) -> Hidden:
        """What is hidden of each sample in a step. Of a caption a share of its tokens, special ones excepted, and at
        least one."""
        samples = batch["sample_index"]
        return Hidden(
            self._hidden_patches(samples, step), *self._hidden_words(samples, step, batch["input_ids"])
        )

    def _hidden_patches(self, samples: Tensor, step: int) -> Tensor:
        patches = self.grid**2
        count = min(max(1, round(self.options.image_share * patches)), patches - 1)
        if self.options.image_pattern == "random":
            keys = samples[:, None] * patches + torch.arange(patches, device=samples.device)
            ranks = keyed_uniform(keys, self.seed, step, _PATCHES).argsort(1).argsort(1)
            return ranks < count
        if samples.is_meta:
            return torch.empty(len(samples), patches, dtype=torch.bool, device="meta")
        masks = [
            block_mask(
                (self.grid, self.grid),
                count,
                random.Random(f"{self.seed} {step} {sample}"),
                min(self.options.smallest_block, count),
            )
            for sample in samples.tolist()
        ]
        return torch.stack([torch.from_numpy(mask.reshape(-1)) for mask in masks]).to(samples.device)

    def _hidden_words(self, samples: Tensor, step: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        text, length, share = self.text, ids.shape[1], self.options.text_share
        shown = (ids == text.pad_id) | (ids == text.cls_id) | (ids == text.sep_id)
        # keyed by the most positions there are, not by the batch's, which differ between numbers of ranks
        keys = samples[:, None] * text.max_positions + torch.arange(length, device=ids.device)
        order = keyed_uniform(keys, self.seed, step, _WORDS).masked_fill(shown, 2.0).argsort(1)
        words = (~shown).sum(1)
        counts = (words * share).round().clamp(min=1).minimum(words)
        most = max(1, round((length - 2) * share))
        real = torch.arange(most, device=ids.device) < counts[:, None]
        return order[:, :most], real

    def _with_hidden(self, ids: Tensor, hidden: Hidden) -> Tensor:
        kept = ids.gather(1, hidden.places)
        return ids.scatter(1, hidden.places, torch.where(hidden.real, self.mask_id, kept))

    # ---- pixels ----------------------------------------------------------------------------------

    def _target(self, patches: Tensor) -> Tensor:
        """What is to be reconstructed, fp32 or wider."""
        patches = wide(patches)
        if not self.options.normalise_patches:
            return patches
        mean, deviation = _statistics(patches)
        return (patches - mean) / deviation

    def _as_pixels(self, reconstructed: Tensor, patches: Tensor) -> Tensor:
        """Reconstructed targets as pixels; where these are normalised, with the true patch's mean and deviation."""
        if not self.options.normalise_patches:
            return reconstructed.to(patches.dtype)
        mean, deviation = _statistics(wide(patches))
        return (wide(reconstructed) * deviation + mean).to(patches.dtype)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen ones of each row, (B, n) -> (B,); 0 where there are none."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def _variance(target: Tensor, hidden: Tensor) -> Tensor:
    """(B,): of hidden patches (B, patches, 3 · side²), about the mean of each colour."""
    colours = target.unflatten(-1, (3, -1))
    chosen = hidden[:, :, None, None]
    mean = (colours.mean(-1, keepdim=True) * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True)
    return _mean_of((colours - mean).square().flatten(2).mean(-1), hidden)


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, (…, 1)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + _EPS).sqrt()
