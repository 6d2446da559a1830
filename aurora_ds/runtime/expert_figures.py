"""Figures of experts for the log: of every layer that has some, for images and texts apart, over all ranks.

Each rank brings sums (how many choices each expert had, and so on) among its other figures, and what is shown is
computed from their sums over ranks: `load_max`, `load_min` (choices of the busiest and the idlest expert, 1 where all
have the same), `entropy` (of the gate's probabilities, as a share of the largest that there is), `dropped` (share of
choices that found no room), and the choices of each expert as a histogram.
"""

from __future__ import annotations

import math
import re

from torch import nn

from aurora_ds.backbones.expert_load import SUMS, ExpertLoad
from aurora_ds.backbones.experts import ModalityExperts

PREFIX = "experts"
_LAYER = re.compile(r"\.layers\.(\d+)\.")


class ExpertFigures:
    """Watches the experts of a task. Where there are none, nothing is added to any figure."""

    def __init__(self, task: nn.Module) -> None:
        self._loads: dict[str, ExpertLoad] = {}
        for name, module in task.named_modules():
            if isinstance(module, ModalityExperts):
                number = _LAYER.search(name)
                layer = f"layer{int(number[1]):02d}" if number else name
                self._loads[layer] = load = ExpertLoad(module.experts.total)
                module.watch = load.add

    def own(self) -> dict[str, float]:
        """This rank's sums since the last call; the same names on every rank."""
        return {
            f"{PREFIX}/{layer}/{modality}/{place}": value
            for layer, load in self._loads.items()
            for modality, sums in load.take().items()
            for place, value in enumerate(sums)
        }

    def shown(self, figures: dict[str, float | str]) -> tuple[dict[str, float | str], dict[str, list[float]]]:
        """Figures over all ranks, among them the sums -> figures to be shown instead, and choices by expert."""
        sums: dict[str, list[float]] = {}
        rest = {}
        for name, value in figures.items():
            if name.startswith(f"{PREFIX}/"):
                sums.setdefault(name.rpartition("/")[0], []).append(float(value))
            else:
                rest[name] = value
        loads = {}
        for name, values in sums.items():
            tokens, entropy, choices, dropped = values[: len(SUMS)]
            if not tokens:  # none of this modality came
                continue
            load = values[len(SUMS) :]
            loads[f"{name}/load"] = load
            rest |= {
                f"{name}/load_max": max(load) * len(load) / choices,
                f"{name}/load_min": min(load) * len(load) / choices,
                f"{name}/entropy": entropy / tokens / math.log(len(load)) if len(load) > 1 else 0.0,
                f"{name}/dropped": dropped / choices,
            }
        return rest, loads
