"""What checkpoints ask an engine for, without an engine."""

from __future__ import annotations

import torch


class FakeEngine:
    """Trained state without DeepSpeed: what save and load ask an engine for."""

    def __init__(self, fill: float = 1.0, shape: tuple[int, ...] = (3, 4)) -> None:
        self.state = {
            "p.master": torch.full(shape, fill),
            "p.exp_avg": torch.zeros(shape),
            "step": torch.tensor(7),
        }

    def trainable_values(self) -> dict:
        return {"p": self.state["p.master"]}

    def optimizer_state(self) -> dict:
        return self.state

    def load_optimizer_state(self, state: dict) -> None:
        self.state = state
