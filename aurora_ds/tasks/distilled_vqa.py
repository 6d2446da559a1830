"""Question answering that also learns the word probabilities of a momentum model (ALBEF, Li et al., 2021, §3.4; mPLUG).

Each token's loss is (1 - alpha) · cross entropy of the answer + alpha · cross entropy of the momentum model's
probabilities. mPLUG's published code computes these, but its alpha never reaches the loss: there it is that of VqaTask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.config import TextConfig, VqaConfig
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.language import Teacher
from aurora_ds.tasks.momentum import SlotMomentum, TwinMomentum
from aurora_ds.tasks.vqa import VqaTask


class DistilledVqaTask(VqaTask):
    """VqaTask with a teacher: its own momentum copy. Arguments as of VqaTask; `momentum`: the copy, of `model`."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts | None,
        options: VqaConfig,
        text: TextConfig,
        momentum: SlotMomentum | TwinMomentum,
    ) -> None:
        super().__init__(model, prompts, options, text)
        self.momentum_model = momentum

    def loss(
        self, batch: dict[str, Any], alpha: float | None = None, trace: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """As of VqaTask; `alpha`: weight of the momentum model's probabilities in this step; null: the final one."""
        alpha = self.options.distillation if alpha is None else alpha
        values = None
        if self.prompts is not None and self.prompts.active is not None:
            values = self.prompts.refresh(self.options.momentum)
        with torch.no_grad(), self.momentum_model(values, self.options.momentum) as other:
            states = self.answers(batch, None, other)[:, :-1]
            teacher = Teacher(other.text_decoder, states, alpha)
            if trace is not None:
                trace["momentum_logits"] = other.text_decoder.scores(states)
        return self.taught(batch, teacher, trace)

    def buffers_to_save(self, with_queue: bool = True) -> dict[str, Tensor]:
        """The momentum copies; equal on every rank."""
        return {k: v.detach().cpu().contiguous() for k, v in self.momentum_model.state().items()}

    def load_buffers(self, state: dict[str, Tensor]) -> None:
        self.momentum_model.load(state)
