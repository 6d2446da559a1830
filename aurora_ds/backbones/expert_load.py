"""How the tokens of a layer were spread over its experts, summed over calls, for images and texts apart."""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_ds.backbones.experts import Routing

MODALITIES = ("vision", "text")
# of a modality: tokens, their gates' entropies, their choices, those dropped; then the choices of each expert
SUMS = ("tokens", "entropy", "choices", "dropped")


class ExpertLoad:
    """Sums of one layer since they were last taken. On the device of the tokens: nothing waits for them before."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self._sums: Tensor | None = None  # fp64 (modalities, sums and experts)

    @torch.no_grad()
    def add(self, routing: Routing, is_vision: Tensor) -> None:
        """A call's routing, of S tokens of whole samples; is_vision: bool (N,), of a sample's tokens."""
        experts, kept, logits = routing.experts, routing.kept, routing.logits.detach()
        modality = torch.where(is_vision, 0, 1).repeat(len(logits) // len(is_vision))  # (S,)
        part = torch.ones_like(modality) if routing.takes_part is None else routing.takes_part.long()
        if self._sums is None:
            width = len(SUMS) + self.experts
            self._sums = torch.zeros(len(MODALITIES), width, dtype=torch.float64, device=logits.device)
        log = logits.log_softmax(-1)
        each = torch.stack(
            [part, -(log.exp() * log).sum(-1) * part, len(experts) * part, (~kept).sum(0) * part], dim=1
        )
        self._sums[:, : len(SUMS)].index_add_(0, modality, each.double())
        place = modality * self._sums.shape[1] + len(SUMS) + experts  # (k, S)
        self._sums.view(-1).index_add_(0, place.flatten(), part.expand_as(place).flatten().double())

    def take(self) -> dict[str, list[float]]:
        """Modality -> the sums, in the order of `SUMS`, then by expert; zeros where nothing came. Begins anew."""
        if self._sums is None:
            return {name: [0.0] * (len(SUMS) + self.experts) for name in MODALITIES}
        rows = self._sums.tolist()
        self._sums = None
        return dict(zip(MODALITIES, rows, strict=True))
