"""Where EVE's tokens are: which entry of the relative-position table each pair of tokens has.

The table (A, heads · depth) is shared by all layers, layer i has columns i·heads to (i + 1)·heads. With w patches per
side, R = (2w - 1)² + 3 and T text positions, A = R + 2T + 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aurora_ds.errors import AuroraError


def table_rows(side: int, text_positions: int) -> int:
    """A, for images of side · side patches."""
    return (2 * side - 1) ** 2 + 3 + 2 * text_positions + 2


def image_index(side: int) -> Tensor:
    """int64 (1 + side², 1 + side²), row = query, column = key; the class token is first and has entries of its own."""
    row, column = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    )
    rows, columns = row[:, None] - row + side - 1, column[:, None] - column + side - 1
    entries = (2 * side - 1) ** 2 + 3
    index = torch.empty(side**2 + 1, side**2 + 1, dtype=torch.int64)
    index[1:, 1:] = rows * (2 * side - 1) + columns
    index[0], index[:, 0], index[0, 0] = entries - 3, entries - 2, entries - 1
    return index


def text_index(side: int, text_positions: int, length: int) -> Tensor:
    """int64 (length, length); the first token is special, as the class token is."""
    last = table_rows(side, text_positions)
    first = (2 * side - 1) ** 2 + 5  # after the image's entries and the two between modalities
    place = torch.arange(length - 1)
    index = torch.empty(length, length, dtype=torch.int64)
    index[1:, 1:] = place - place[:, None] + text_positions - 2 + first
    index[0], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


def pair_index(side: int, text_positions: int, length: int) -> Tensor:
    """int64 (1 + side² + length, same): image, then text. Each side sees the other with one entry."""
    image, text = image_index(side), text_index(side, text_positions, length)
    entries = (2 * side - 1) ** 2 + 3
    above = torch.cat([image, torch.full((len(image), length), entries + 1)], dim=1)
    below = torch.cat([torch.full((length, len(image)), entries), text], dim=1)
    return torch.cat([above, below])


def resize_table(table: Tensor, side: int, text_positions: int) -> Tensor:
    """The table of a file, of images of any size -> that of images of side · side patches, (A, columns).

    As the published loading code does: the patches' differences, -(w - 1) to w - 1 along each axis, are taken for
    places that grow apart like a geometric series and end where those of the new image end, so that neighbours stay
    neighbours; between them a cubic spline is read at whole numbers. The other entries stay as they are.

    Raises:
        AuroraError: `text_positions` are not those of the file.
    """
    grid = len(table) - table_rows(side, text_positions) + (2 * side - 1) ** 2
    before, after = math.isqrt(max(grid, 0)), 2 * side - 1
    if before**2 != grid or before % 2 == 0:
        raise AuroraError(
            f"The file's table of relative positions has {len(table)} rows, which fit images of no size with "
            f"{text_positions} text positions. Set backbone.text.max_positions as the file was trained with."
        )
    if before == after:
        return table
    places = _places(before // 2, after // 2)
    read = spline(places, torch.arange(-(side - 1), side, dtype=torch.float64))
    patches = table[:grid].double().unflatten(0, (before, before))
    resized = torch.einsum("ai,bj,ijc->abc", read, read, patches).flatten(0, 1)
    return torch.cat([resized.to(table.dtype), table[grid:]])


def _places(steps: int, reach: int) -> Tensor:
    """0 in the middle, and `steps` places to each side: sums of 1, q, q², …, where the last one comes to `reach`; q is
    between 1.01 and 1.5."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (ratio**steps - 1) / (ratio - 1) > reach else (ratio, high)
    right = (low ** torch.arange(steps, dtype=torch.float64)).cumsum(0)
    return torch.cat([-right.flip(0), right.new_zeros(1), right])


def spline(places: Tensor, wanted: Tensor) -> Tensor:
    """fp64 (wanted, places): the values of a function at `places`, times this, are its cubic spline's at `wanted`.

    The third derivative is continuous at the second place and the last but one (so a cubic is read exactly); beyond the
    ends the value is that of the end. With fewer than four places, the polynomial through them.
    """
    wanted = wanted.clamp(places[0], places[-1])
    inner = places[2:-2] if len(places) > 3 else places[:0]
    degree = min(3, len(places) - 1)

    def basis(at: Tensor) -> Tensor:
        """Powers, and cubes from each inner place on."""
        scaled, knots = at / places[-1], inner / places[-1]
        powers = scaled[:, None] ** torch.arange(degree + 1)
        return torch.cat([powers, (scaled[:, None] - knots).clamp(min=0) ** 3], dim=1)

    return torch.linalg.solve(basis(places).t(), basis(wanted).t()).t()
