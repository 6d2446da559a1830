"""Tile sizes and launch options: by rule, never by timing, so that a shape has one answer on a device family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from aurora_ds.kernels.gpu.launch import target


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
        return options(self.warps, self.stages)


def options(warps: int, stages: int) -> dict[str, Any]:
    """Launch options. Fused multiply-adds are asked for by name, as Triton is about to change its default."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


# For the interpreter: odd shapes cross tile edges, and little is computed twice.
_SMALL = Tiles(32, 32, 32, 4, 2)


def rank_tile(rank: int, dtype: torch.dtype) -> int:
    """Columns of U and A that are taken at once: the rank, as a power of two from 16 to 64; fp32 to 32, because its
    products keep whole tiles in registers."""
    return min(32 if dtype == torch.float32 else 64, max(16, triton.next_power_of_2(rank)))


def projection_tiles(dtype: torch.dtype) -> Tiles:
    """Of y and dx. CDNA3 has 64 KB of shared memory, NVIDIA from sm_80 on 163 KB or more."""
    if target() == "interpreter":
        return _SMALL
    if dtype == torch.float32:
        return Tiles(64, 64, 16, 4, 2)
    if target().startswith("gfx"):
        return Tiles(128, 128, 32, 8, 2)
    return Tiles(128, 128, 64, 8, 3)


def skinny_tiles(dtype: torch.dtype) -> Tiles:
    """Of x Uᵀ and dy A; their columns are the rank tile."""
    if target() == "interpreter":
        return _SMALL
    if dtype == torch.float32:
        return Tiles(64, 32, 16, 4, 2)
    return Tiles(64, 64, 64, 4, 2 if target().startswith("gfx") else 4)


def norm_tiles(dtype: torch.dtype) -> Tiles:
    """Of a LayerNorm with a skinny product in it: few rows, so that many programs wait for memory at once."""
    if target() == "interpreter":
        return _SMALL
    if dtype == torch.float32:
        return Tiles(32, 32, 16, 4, 2)
    return Tiles(64, 64, 64, 4, 2)


def reduction_tiles(dtype: torch.dtype) -> Tiles:
    """Of xᵀ dz and dyᵀ z: `inner` are the rows that are summed at a time; their columns are the rank tile."""
    if target() == "interpreter":
        return _SMALL
    return Tiles(64, 64, 16 if dtype == torch.float32 else 32, 4, 2 if target().startswith("gfx") else 4)


def part_rows(rows: int, inner: int) -> int:
    """Rows of one part of a reduction over `rows`, a multiple of `inner`: at most 64 parts, whose sums are kept until
    they are added up. The split, and so the result, follows from the shape alone."""
    least = 2 * inner if target() == "interpreter" else 1024
    return max(least, triton.cdiv(triton.cdiv(rows, 64), inner) * inner)
