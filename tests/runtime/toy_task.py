"""A task small enough to train in milliseconds, built like the real one: a frozen trunk and queue, few trainables.

`core` has 262,144 entries, which ZeRO-3 cuts over the ranks at its default threshold; the others stay whole there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """All factors in one module, handed out as clones, as the prompts do."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.core = nn.Parameter(torch.randn(64, 64, 64, generator=generator) * 0.01)
        self.factor = nn.Parameter(torch.randn(7, 16, generator=generator) * 0.1)
        self.mode = nn.Parameter(torch.randn(3, generator=generator))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.core.clone(), self.factor.clone(), self.mode.clone()


class ToyTask(nn.Module):
    """Regression from 16 to 5 numbers; `temp` is a frozen scalar as in BLIP, `queue` a persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(16, 64).requires_grad_(False)
        self.temp = nn.Parameter(torch.tensor(0.07), requires_grad=False)
        self.bank = Bank()
        self.head = nn.Linear(64, 5)
        self.register_buffer("queue", torch.zeros(4, 5))

    def forward(self, batch: dict[str, Tensor], what: str = "loss") -> dict[str, Tensor] | Tensor:
        core, factor, mode = self.bank()
        x = batch["image"]
        hidden = self.trunk(x) + (x @ factor.t()) @ factor @ self.trunk.weight.t() * mode[0]
        hidden = hidden + torch.einsum("bi,ijk,bj->bk", hidden, core, hidden) * self.temp
        out = self.head(torch.tanh(hidden) + mode.sum())
        if what == "features":
            return out
        return {"loss": (out.float() - batch["target"].float()).square().mean()}


def global_batch(step: int, size: int = 8) -> dict[str, Tensor]:
    """The whole batch of a step, the same wherever it is made."""
    generator = torch.Generator().manual_seed(100 + step)
    return {
        "image": torch.randn(size, 16, generator=generator),
        "target": torch.randn(size, 5, generator=generator),
    }


def rank_batch(step: int, rank: int, world_size: int, size: int = 8) -> dict[str, Tensor]:
    """One rank's rows of a step's batch."""
    return {key: value[rank::world_size] for key, value in global_batch(step, size).items()}
