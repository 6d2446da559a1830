"""Linears that read the same input are asked together, so that what depends on the input alone is done once.

A module that stands in for an `nn.Linear` may begin with such work. It then has `reads`, equal for modules whose
beginning is the same, `start(x)`, which does the work, and takes the result as its second argument. What was begun is
handed from one to the next and kept nowhere, so that it cannot outlive its input or the values it was made with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def project_each(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """linear(x) for each of `linears`; x (…, in_features)."""
    kinds = [getattr(linear, "reads", None) for linear in linears]
    begun: dict[Any, Tensor | None] = {}
    for linear, kind in zip(linears, kinds, strict=True):
        if kind is not None and kind not in begun and kinds.count(kind) > 1:
            begun[kind] = linear.start(x)
    return [
        linear(x) if begun.get(kind) is None else linear(x, begun[kind])
        for linear, kind in zip(linears, kinds, strict=True)
    ]
