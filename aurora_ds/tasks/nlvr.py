"""Statements about two images (NLVR2; BLIP §4): true or false."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.backbones.blip_nlvr import BlipNlvr
from aurora_ds.config import TextConfig
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.language import LanguageTask, with_first


class NlvrTask(LanguageTask):
    """Loss and evaluation pieces of two-image reasoning.

    Args:
        model: backbone with `visual_encoder`, a `text_encoder` that sees two images, `cls_head`.
        prompts: what was attached to `model`; None for full fine-tuning. text: for its special token ids.
    """

    def __init__(self, model: BlipNlvr, prompts: Prompts | None, text: TextConfig) -> None:
        super().__init__(model, prompts)
        self.text = text

    def logits(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> Tensor:
        """(B, 2) fp32 or wider, class 1 = true; `batch` as in `loss`, without labels."""
        images, encoder = batch["image"], self.model.text_encoder
        tokens = self.model.visual_encoder(images.flatten(0, 1)).unflatten(0, (-1, 2))  # (B, 2, N + 1, D)
        ids = with_first(batch["input_ids"], self.text.enc_id)
        states = encoder(ids, batch["attention_mask"], encoder.image_kv(tokens[:, 0], tokens[:, 1]))
        logits = self.model.cls_head(states[:, 0])
        if trace is not None:
            # recorded runs have all first images before all second ones
            trace.update(
                image_embeds=tokens.transpose(0, 1).flatten(0, 1), mm_embeds=states, prediction=logits
            )
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def loss(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`loss`, scalar: cross entropy, mean over statements.

        Args:
            batch: `image` (B, 2, 3, H, W), `input_ids`, `attention_mask` (B, L), `label` int64 (B,), 1 = true.
            trace: when given, intermediate tensors are put in (for verification).
        """
        self.refresh()
        return {"loss": F.cross_entropy(self.logits(batch, trace), batch["label"])}

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`logits` (B, 2), and `label` int64 (B,), the likelier class."""
        logits = self.logits(batch)
        return {"logits": logits, "label": logits.argmax(1)}
