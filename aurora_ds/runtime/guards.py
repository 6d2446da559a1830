"""Stops a run that does not learn, while it is young: each check names the parameters or samples at fault.

Before step 1 every trainable must be in the optimizer; after step 1 each must have had a finite gradient; after K
steps each must have moved by more than weight decay moves it. A loss that is not finite ends the run on every rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.engine import Engine, StepReport

# Rounding of one fp32 multiplication, relative.
_ROUNDING = 2.0**-23
_MOST_NAMES = 12
# The fp16 loss scale starts at 2^16 and halves at every second skip at the slowest.
_MOST_SKIPPED = 40


class NotFinite(AuroraError):
    """A loss or a gradient is not finite, on every rank alike; the weights are those of the last good step."""


class Guards:
    """The checks of one run. Made before its first step; raises AuroraError when a trainable is not optimized."""

    def __init__(self, engine: Engine, moved_after: int) -> None:
        self.engine = engine
        self.moved_after = moved_after
        self._steps_seen = 0
        self._skipped_in_a_row = 0
        self._decay = dict.fromkeys(engine.shapes, 1.0)
        self._finite: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._check_optimizer()
        self._watch_gradients()
        start = engine.trainable_values()
        self._start: dict[str, Tensor] | None = start if process_group.rank() == 0 else {}

    def check_losses(
        self,
        losses: dict[str, Tensor],
        keys: Sequence[str],
        step: int,
        agree: Callable[[Tensor], bool] = lambda finite: not process_group.any_rank(not finite),
    ) -> None:
        """Raise NotFinite on every rank when a loss on any rank is not finite, with that rank's sample keys.

        Called before backward, so the weights are still those of the last good step. Collective; one device sync.
        `agree`: whether it is true on all ranks what is true here.
        """
        scalars = {name: value.detach() for name, value in losses.items() if isinstance(value, Tensor)}
        finite = torch.stack([torch.isfinite(value).all() for value in scalars.values()]).all()
        if agree(finite):
            return
        bad, message = [name for name, value in scalars.items() if not torch.isfinite(value).all()], ""
        if bad:
            message = (
                f"The loss is not finite in step {step}: {', '.join(bad)}, on the samples {', '.join(keys)}. The "
                "weights were not updated and the last checkpoint is kept. Look at these samples, lower train.lr, "
                "or set train.clip_norm."
            )
        _stop_together(not message, message)

    def after_step(self, report: StepReport) -> None:
        """The checks that are due after one optimizer step. Collective; costs nothing once the run is past them."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if report.skipped else 0
        if report.skipped:
            self._check_skipped(report.step)
            return
        self._steps_seen += 1
        for group, rate in zip(self.engine.groups, report.rates, strict=True):
            for name in group.names:
                self._decay[name] *= 1.0 - rate * group.weight_decay
        if self._steps_seen == 1:
            self._check_gradients(report.step)
        if self._start is not None and self._steps_seen == self.moved_after:
            self._check_moved(report.step)

    def _check_optimizer(self) -> None:
        owned = {id(parameter) for parameter in self.engine.partitions.optimized()}
        trainable = {
            id(value): name for name, value in self.engine.task.named_parameters() if value.requires_grad
        }
        left_out = sorted(name for key, name in trainable.items() if key not in owned)
        frozen = sorted(
            name
            for name, value in self.engine.task.named_parameters()
            if id(value) in owned and id(value) not in trainable
        )
        if left_out or frozen:
            raise AuroraError(
                f"The optimizer does not hold exactly the trainable parameters: left out {_listed(left_out)}, "
                f"frozen but held {_listed(frozen)}. Decide what is trained before the engine is built."
            )

    def _watch_gradients(self) -> None:
        def watch(name: str) -> Any:
            def record(gradient: Tensor) -> None:
                finite = torch.isfinite(gradient).all()
                self._finite[name] = finite & self._finite[name] if name in self._finite else finite

            return record

        # Hooks see the local gradient at every ZeRO stage, before it is reduced, cut or dropped.
        for name, parameter in self.engine.trainables.items():
            self._hooks.append(parameter.register_hook(watch(name)))

    def _check_skipped(self, step: int) -> None:
        broken = sorted(name for name, finite in self._finite.items() if not finite.item())
        self._finite.clear()
        # fp16 finds its loss scale by skipping steps whose gradients overflow; judge the first real one.
        if self.engine.config.precision == "fp16" and self._skipped_in_a_row <= _MOST_SKIPPED:
            return
        named = f" for {_listed(broken)}" if broken else ""
        _stop_together(
            False,
            f"The gradients are not finite in step {step}{named}, so the weights were not updated. The last "
            "checkpoint is kept. Lower train.lr, set train.clip_norm, or use train.precision fp32, and resume.",
        )

    def _check_gradients(self, step: int) -> None:
        for hook in self._hooks:
            hook.remove()
        missing = sorted(set(self.engine.trainables) - set(self._finite))
        broken = sorted(name for name, finite in self._finite.items() if not finite.item())
        self._finite.clear()
        message = ""
        if missing or broken:
            message = (
                f"After step {step} not every trainable parameter has a finite gradient: none for "
                f"{_listed(missing)}, not finite for {_listed(broken)}. A parameter without a gradient takes no "
                "part in the loss: freeze it, or switch on the part of the model that uses it."
            )
        process_group.agree(not message, message)

    def _check_moved(self, step: int) -> None:
        values = self.engine.trainable_values()
        message = ""
        if process_group.rank() == 0:
            tolerance = _ROUNDING * (self.moved_after + 1)
            still, moved = [], set()
            for name, start in self._start.items():
                decayed = start * self._decay[name]
                if bool(((values[name] - decayed).abs() <= tolerance * start.abs()).all()):
                    still.append(name)
                else:
                    moved.add(_any_expert(name))
            # an expert to which no token went yet is none that cannot learn
            still = [name for name in still if _any_expert(name) not in moved]
            if still:
                message = (
                    f"After {self.moved_after} steps (step {step}) these trainable parameters have not moved: "
                    f"{_listed(sorted(still))}. Raise train.lr, check that the loss depends on them, or freeze "
                    "them (train.moved_after sets when this is checked)."
                )
        self._start = None
        process_group.agree(not message, message)


def _stop_together(finite: bool, message: str) -> NoReturn:
    try:
        process_group.stop_together(finite, message)
    except AuroraError as error:
        raise NotFinite(str(error)) from error


def _any_expert(name: str) -> str:
    """The same name for all experts of a layer."""
    return re.sub(r"\bexperts\.\d+\.", "experts.*.", name)


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
