"""Question answering by classification (EVE, after VQA's usual practice): one logit per answer of a list.

Loss: binary cross entropy of each answer against its soft target, summed over the answers, mean over questions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.errors import AuroraError
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.language import LanguageTask


class AnswerClassTask(LanguageTask):
    """Loss and evaluation pieces.

    Args:
        model: backbone with `image_tokens`, and `answered`, which gives a logit per answer.
        prompts: what was attached to `model`; None for full fine-tuning.
        auxiliary: add the model's own loss (published: computed, and left out).
    """

    def __init__(self, model: nn.Module, prompts: Prompts | None, auxiliary: bool = True) -> None:
        super().__init__(model, prompts)
        self.auxiliary = auxiliary

    @torch.no_grad()
    def encode_images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`tokens` (images, N, D) of `image`: they serve all questions about an image."""
        return {"tokens": self.image_tokens(batch["image"])}

    def loss(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`loss`, scalar, = `loss_answers` + `loss_auxiliary`, which counts where `auxiliary` says so.

        Args:
            batch: `image` (B, 3, H, W) or (B, T, 3, H, W); `input_ids`, `attention_mask` (B, L) of the questions;
                `targets` fp32 (B, answers) in [0, 1].
            trace: when given, intermediate tensors are put in (for verification).
        """
        self.refresh()
        said = self._answered(batch)
        loss = F.binary_cross_entropy_with_logits(said.logits, batch["targets"]) * said.logits.shape[1]
        if trace is not None:
            trace.update(logits=said.logits, cls_embedding=said.states)
        total = loss + said.auxiliary if self.auxiliary else loss
        return {"loss": total, "loss_answers": loss, "loss_auxiliary": said.auxiliary}

    @torch.no_grad()
    def rank(
        self, batch: dict[str, Any], answers: tuple[Tensor, Tensor], shown: int = 1
    ) -> dict[str, Tensor]:
        """The best of the list for each question: `answer` int64 (B,), its row, `score` (B,), its logit; `leading`
        int64 (B, shown or fewer), best first (ties: the earlier in the list), with `probability`, that each is right.

        Args:
            batch: as in `loss`, without targets; or `tokens` of `encode_images` with `image_index` int64 (B,).
            answers: ids and mask of the list, of which only the length is read.
        Raises: AuroraError when the list has another length than the model has logits."""
        logits = self._answered(batch).logits
        if len(answers[0]) != logits.shape[1]:
            raise AuroraError(another_length(len(answers[0]), logits.shape[1]))
        best = logits.sort(dim=1, descending=True, stable=True)
        leading = best.indices[:, :shown]
        return {
            "answer": leading[:, 0],
            "score": best.values[:, 0],
            "leading": leading,
            "probability": best.values[:, :shown].sigmoid(),
        }

    def _answered(self, batch: dict[str, Any]) -> Any:
        tokens = batch["tokens"] if "tokens" in batch else self.image_tokens(batch["image"])
        if "image_index" in batch:
            tokens = tokens.index_select(0, batch["image_index"])
        said = self.model.answered(batch["input_ids"], batch["attention_mask"], tokens)
        wide = said.logits.float() if said.logits.dtype in (torch.bfloat16, torch.float16) else said.logits
        return said._replace(logits=wide)


def another_length(answers: int, classes: int) -> str:
    """What to say of a list that does not fit the model's head."""
    return (
        f"The list has {answers} answers and the model's head tells {classes} apart (backbone.eve.answers). Give the "
        "list that the head was trained with as vqa.answer_list; or, to train a new head, set "
        f"backbone.eve.answers={answers} and start from a checkpoint without one."
    )
