"""Learning rates as functions of the step or epoch number: pure, so a resumed run needs no scheduler state.

cosine per step with linear warm-up; cosine per epoch, as BLIP publishes it: lr = min + (lr0 - min)(1 + cos(pi e /
E)) / 2; the warm-up and step decay of BLIP's pre-training; and the ramp of the contrastive soft targets' weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aurora_ds.config import TrainConfig


def cosine_lr_schedule(epoch: float, max_epoch: float, init_lr: float, min_lr: float) -> float:
    """Half a cosine from `init_lr` at 0 to `min_lr` at `max_epoch` (BLIP fine-tuning, constant within an epoch)."""
    return (init_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * epoch / max_epoch)) + min_lr


def warmup_lr_schedule(step: int, max_step: int, init_lr: float, max_lr: float) -> float:
    """Linear from `init_lr` at step 0 to `max_lr` at `max_step`, then `max_lr` (BLIP pre-training, epoch 0)."""
    return min(max_lr, init_lr + (max_lr - init_lr) * step / max(max_step, 1))


def step_lr_schedule(epoch: int, init_lr: float, min_lr: float, decay_rate: float) -> float:
    """`init_lr` times `decay_rate` per epoch, never below `min_lr` (BLIP pre-training)."""
    return max(min_lr, init_lr * decay_rate**epoch)


def itc_alpha(epoch: int, step: int, steps_per_epoch: int, alpha: float) -> float:
    """Weight of the momentum model's soft targets: linear over the first epoch, then `alpha` (BLIP §3.2,
    fine-tuning).
    """
    if epoch > 0:
        return alpha
    return alpha * min(1.0, step / steps_per_epoch)


def learning_rate(
    step: int, config: TrainConfig, total_steps: int, steps_per_epoch: int, lr: float | None = None
) -> float:
    """The learning rate of optimizer step `step` (0 for the first) under `config.schedule`; `lr`: of a group that has
    another than `config.lr`. Warm-up begins with the same rate for all groups, and `min_lr` ends all, as published.

    cosine: warm-up over `warmup_steps`, then half a cosine over the steps that are left, `min_lr` at `total_steps`.
    cosine_epoch: constant within an epoch, as published; a warm-up of `warmup_steps` caps it when set.
    linear: the same with a straight line. constant: `lr`, after the warm-up.
    """
    lr = config.lr if lr is None else lr
    if step < config.warmup_steps:
        return warmup_lr_schedule(step, config.warmup_steps, config.warmup_lr, lr)
    if config.schedule == "constant":
        return lr
    if config.schedule == "cosine_epoch":
        epoch = min(step // max(steps_per_epoch, 1), config.epochs)
        return cosine_lr_schedule(epoch, config.epochs, lr, config.min_lr)
    decay_steps = max(total_steps - config.warmup_steps, 1)
    if config.schedule == "linear":
        left = 1 - min(step - config.warmup_steps, decay_steps) / decay_steps
        return config.min_lr + (lr - config.min_lr) * left
    return cosine_lr_schedule(min(step - config.warmup_steps, decay_steps), decay_steps, lr, config.min_lr)
