"""The groups of AdamW: trainables with the same learning rate and weight decay. One group, unless the recipe asks for
more: a rate of its own for the image encoder or for named parts, parameters that do not decay (published for mPLUG and
EVE)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from aurora_ds.config import TrainConfig

IMAGE_ENCODER = "model.visual_encoder."  # what names of its parameters begin with, in every task


@dataclass(frozen=True)
class Group:
    """`lr`: what the schedule begins with, after the warm-up."""

    names: tuple[str, ...]
    lr: float
    weight_decay: float
    spread: bool = False  # experts, of which ranks hold different ones


def groups_of(names: Iterable[str], config: TrainConfig, spread: Collection[str] = ()) -> list[Group]:
    """The groups of trainables by name, none of them empty, in the order of their first members. Those of `spread` are
    in groups of their own."""
    found: dict[tuple[float, float, bool], list[str]] = {}
    for name in names:
        vision = config.vision_lr is not None and name.startswith(IMAGE_ENCODER)
        still = any(part in name for part in config.no_decay)
        multiple = config.lr_multiple if any(part in name for part in config.lr_multiple_of) else 1.0
        lr = multiple * (config.vision_lr if vision else config.lr)
        key = (lr, 0.0 if still else config.weight_decay, name in spread)
        found.setdefault(key, []).append(name)
    return [Group(tuple(members), *key) for key, members in found.items()]
