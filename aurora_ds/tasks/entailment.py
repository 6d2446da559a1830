"""Visual entailment (SNLI-VE): an image entails a statement, contradicts it, or neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.config import TextConfig
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.language import LanguageTask, wide, with_first


class EntailmentTask(LanguageTask):
    """Loss and evaluation pieces.

    Args:
        model: backbone with `image_tokens`, `image_keys` and `judged`, which gives a logit per class.
        prompts: what was attached to `model`; None for full fine-tuning. text: for its special token ids.
    """

    def __init__(self, model: nn.Module, prompts: Prompts | None, text: TextConfig) -> None:
        super().__init__(model, prompts)
        self.text = text

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(B, classes) fp32 or wider; `batch` as in `loss`, without labels."""
        keys = self.model.image_keys(self.image_tokens(batch["image"]))
        ids = with_first(batch["input_ids"], self.text.enc_id)
        return wide(self.model.judged(ids, batch["attention_mask"], keys).logits)

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`loss`, scalar: cross entropy, mean over statements.

        Args: batch: `image` (B, 3, H, W), `input_ids`, `attention_mask` (B, L), `label` int64 (B,)."""
        self.refresh()
        return {"loss": F.cross_entropy(self.logits(batch), batch["label"])}

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`logits` (B, classes)."""
        return {"logits": self.logits(batch)}

    @torch.no_grad()
    def judge(self, batch: dict[str, Any], at_once: int = 256) -> dict[str, Tensor]:
        """`logits` (S, classes) of statements about images, each of which is encoded once.

        Args:
            batch: `image` (images, 3, H, W); `input_ids`, `attention_mask` (S, L); `image_index` int64 (S,), the row of
                `image` that each statement is about.
            at_once: statements that are read together.
        """
        keys = self.model.image_keys(self.image_tokens(batch["image"]))
        ids = with_first(batch["input_ids"], self.text.enc_id)
        parts = zip(
            *(each.split(at_once) for each in (ids, batch["attention_mask"], batch["image_index"])),
            strict=True,
        )
        logits = [self.model.judged(own, mask, keys, index).logits for own, mask, index in parts]
        return {"logits": wide(torch.cat(logits))}
