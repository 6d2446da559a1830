"""The one place from which kernels start; inside `recording` they are only written down, to be compiled ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from aurora_ds.kernels import choice


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments; tensors may be on torch's meta device."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    settings: dict[str, Any]


_recorded: list[Launch] | None = None
_target: str | None = None


@contextmanager
def recording(target: str) -> Iterator[list[Launch]]:
    """Write launches down instead of running them, with tile sizes for `target` (sm_90, gfx942, …)."""
    global _recorded, _target
    before = _recorded, _target
    _recorded, _target = [], target
    try:
        yield _recorded
    finally:
        _recorded, _target = before


def target() -> str:
    """What tile sizes are for: the recorded target, `interpreter`, or this device's family."""
    return _target or ("interpreter" if choice.interpreted() else choice.family())


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """kernel[grid](*arguments, **settings), on the device of the first argument, a tensor."""
    if _recorded is None:
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **settings)
    else:
        _recorded.append(Launch(kernel, grid, arguments, settings))
