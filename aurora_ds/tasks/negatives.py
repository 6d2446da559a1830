"""Choosing hard negatives: one per row, drawn with probability proportional to given weights, without a
loop or a sync.

`keyed` draws from numbers that are a function of (seed, step, sample, stream): the same sample gets the
same negative on any number of ranks and after any restart.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch takes."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on int64 bit patterns; a bijection."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def keyed_uniform(keys: Tensor, seed: int, step: int, stream: int) -> Tensor:
    """keys (…,) int64 -> float64 in [0, 1), a function of (seed, step, stream, key) alone, equal on every
    device."""
    golden = 0x9E3779B97F4A7C15
    state = _scramble(keys.new_full((), _signed(seed * golden + 1)))
    for part in (step, stream):
        state = _scramble(state + _signed((part + 1) * golden))
    bits = _scramble(_scramble(state + keys * _signed(golden)))
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def draw(weights: Tensor, how: str, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One column per row, with probability proportional to `weights` (rows, columns) >= 0.

    Args:
        how: `keyed` inverts the cumulative sum at `uniform` (rows,); `torch` uses the global generator;
        `argmax` takes the largest.
    Returns: index (rows,) int64, and usable (rows,) bool: False where a row has no positive weight (index
    is then 0).
    """
    usable = (weights > 0).any(1)
    if how == "argmax":
        return weights.argmax(1), usable
    if how == "torch":
        return torch.multinomial(torch.where(usable[:, None], weights, torch.ones_like(weights)), 1).squeeze(
            1
        ), usable
    cumulative = weights.double().cumsum(1)
    target = uniform.to(cumulative) * cumulative[:, -1]
    index = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
    # rounding may run past the last positive weight
    last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(1)
    return torch.minimum(index, last).masked_fill(~usable, 0), usable
