"""Dropout masks that are a pure function of (seed, element), so that none is ever kept: the backward pass and a
recomputed forward make the same one again, on any device.

Generator: Philox 4x32 with 7 rounds, the fewest that pass BigCrush (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011). Row m of a mask of width R takes the counters m·⌈R/4⌉ …, four elements each; an element is
kept when the upper 24 bits of its word are at least p·2²⁴. `gpu/masks.py` computes the same in Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7
BITS = 24
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def draw_seed() -> Tensor:
    """A seed from torch's CPU generator, () int64 on the CPU: reading it never waits for a device, and activation
    checkpointing, which restores that generator, draws the same one again."""
    return torch.randint(1 << 62, ())


def threshold(probability: float) -> int:
    """The smallest 24-bit word that is kept."""
    return round(probability * (1 << BITS))


def _words(seed: Tensor, count: int, device: torch.device) -> Tensor:
    """Philox words of the counters 0 … count-1 -> (count, 4) int64 in [0, 2³²)."""
    counter = torch.arange(count, device=device)
    state = [counter & _LOW, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)]
    keys = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(ROUNDS):
        # int64 products wrap; their 64 bits are those of the unsigned product all the same
        even, odd = state[2] * _MULTIPLIERS[1], state[0] * _MULTIPLIERS[0]
        state = [
            (even >> 32).bitwise_and_(_LOW).bitwise_xor_(state[1]).bitwise_xor_(keys[0]),
            even.bitwise_and_(_LOW),
            (odd >> 32).bitwise_and_(_LOW).bitwise_xor_(state[3]).bitwise_xor_(keys[1]),
            odd.bitwise_and_(_LOW),
        ]
        keys = [(key + weyl) & _LOW for key, weyl in zip(keys, _WEYL, strict=True)]
    return torch.stack(state, dim=1)


def dropout_mask(seed: Tensor, rows: int, width: int, probability: float, like: Tensor) -> Tensor:
    """(rows, width) in dtype and on the device of `like`: 1/(1-p) where an element is kept, 0 elsewhere."""
    groups = -(-width // 4)
    words = _words(seed, rows * groups, like.device).view(rows, 4 * groups)[:, :width]
    kept = (words >> (32 - BITS)) >= threshold(probability)
    return kept.to(like.dtype).mul_(1 / (1 - probability))
