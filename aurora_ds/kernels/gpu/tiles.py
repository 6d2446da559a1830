"""Tile sizes and launch options: by rule, never by timing, so that a shape has one answer on a device family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton


@dataclass(frozen=True)
class Tiles:
    """Rows, columns and inner step of a program's tile, and how it is launched."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


SMALL = Tiles(
    32, 32, 32, 4, 2
)  # for the interpreter: odd shapes cross tile edges, and little is computed twice


def rank_tile(rank: int) -> int:
    """Columns of U and A that are taken at once: the rank, as a power of two from 16 to 64."""
    return min(64, max(16, triton.next_power_of_2(rank)))


def projection_tiles(dtype: torch.dtype, target: str) -> Tiles:
    """Of y and dx. 64 KB of shared memory on AMD's CDNA3, 163 KB or more on NVIDIA's from sm_80."""
    wide = dtype == torch.float32
    if target.startswith("gfx"):
        return Tiles(128, 128, 16 if wide else 32, 8, 2)
    return Tiles(128, 128, 32 if wide else 64, 8, 3)


def skinny_tiles(dtype: torch.dtype, target: str) -> Tiles:
    """Of x Uᵀ and dy A (columns: the rank tile, whatever stands here)."""
    wide = dtype == torch.float32
    if target.startswith("gfx"):
        return Tiles(64, 64, 32, 4, 2)
    return Tiles(128, 64, 32 if wide else 64, 4, 4)


def reduction_tiles(dtype: torch.dtype, target: str) -> Tiles:
    """Of xᵀ dz and dyᵀ z: `inner` are the rows that are summed at a time."""
    return Tiles(64, 64, 32, 4, 2 if target.startswith("gfx") else 4)
