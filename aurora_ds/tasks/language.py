"""What the tasks that read or write text about images share: the way into the model, and the loss of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.decoder import TextDecoder
from aurora_ds.prompts import Prompts

NO_TARGET = -100


class LanguageTask(nn.Module):
    """A task over a backbone with `image_tokens`. `prompts`: what was attached to it; None for full fine-tuning.

    Subclasses have `loss` and pieces for evaluation, which `forward` reaches by name."""

    def __init__(self, model: nn.Module, prompts: Prompts | None) -> None:
        super().__init__()
        self.model, self.prompts = model, prompts

    def forward(self, batch: dict[str, Any], what: str = "loss", **arguments: Any) -> dict[str, Tensor]:
        """`what`: loss, prepare_evaluation, or a piece of evaluation. One entry, so that an engine that gathers
        parameters per forward serves all of them."""
        return getattr(self, what)(batch, **arguments)

    def refresh(self) -> None:
        """Compute the adapter's values anew, with graph: once per step."""
        if self.prompts is not None and self.prompts.active is not None:
            self.prompts.refresh()

    @torch.no_grad()
    def prepare_evaluation(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the adapter's values once; call before the other evaluation pieces. `batch` is not read."""
        self.refresh()
        return {}

    def buffers_to_save(self, with_queue: bool = True) -> dict[str, Tensor]:
        """State that is neither backbone nor adapter: none."""
        return {}

    def load_buffers(self, state: dict[str, Tensor]) -> None:
        """The opposite of `buffers_to_save`."""

    def image_tokens(self, image: Tensor, model: nn.Module | None = None) -> Tensor:
        """image (B, 3, H, W), or clips (B, T, 3, H, W), whose frames follow each other -> (B, T·(N+1), D). `model`:
        which sees them, if not this task's."""
        model = model or self.model
        if image.dim() == 4:
            return model.image_tokens(image)
        tokens = model.image_tokens(image.flatten(0, 1))
        return tokens.unflatten(0, image.shape[:2]).flatten(1, 2)


def with_first(ids: Tensor, token: int) -> Tensor:
    """ids (B, L) with their first token replaced: it says what the text is for."""
    return torch.cat([ids.new_full((len(ids), 1), token), ids[:, 1:]], dim=1)


@dataclass(frozen=True)
class Teacher:
    """A decoder whose word probabilities are learned beside the targets, its `states` (B, L, H) without graph of the
    same texts, and the `weight` of that part of the loss."""

    decoder: TextDecoder
    states: Tensor
    weight: float


def token_losses(
    decoder: TextDecoder,
    states: Tensor,
    targets: Tensor,
    label_smoothing: float,
    teacher: Teacher | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the next token at every position that has a target; the others are not even projected.

    Args:
        states: (B, L, H), of a decoder. targets: int64 (B, L), `NO_TARGET` where there is none. teacher: the loss is
            (1 - weight) times that of the targets plus weight times that of the teacher's probabilities.
    Returns: losses (n,) fp32 or wider, and the row of each (n,).
    """
    rows, places = (targets != NO_TARGET).nonzero(as_tuple=True)
    logits = wide(decoder.scores(states[rows, places]))
    losses = F.cross_entropy(logits, targets[rows, places], reduction="none", label_smoothing=label_smoothing)
    if teacher is None:
        return losses, rows
    with torch.no_grad():
        soft = wide(teacher.decoder.scores(teacher.states[rows, places])).softmax(1)
    soft_losses = F.cross_entropy(logits, soft, reduction="none")
    return (1 - teacher.weight) * losses + teacher.weight * soft_losses, rows


def wide(logits: Tensor) -> Tensor:
    """16-bit numbers as fp32; others as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def next_targets(ids: Tensor, mask: Tensor, prompt: int = 1) -> Tensor:
    """What each position but the last is to predict: targets (B, L - 1) for ids (B, L); padding and the first `prompt`
    tokens are not predicted."""
    targets = ids.masked_fill(~mask.to(torch.bool), NO_TARGET)[:, 1:].clone()
    targets[:, : prompt - 1] = NO_TARGET
    return targets
