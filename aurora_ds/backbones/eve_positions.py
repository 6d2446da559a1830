"""Where EVE's tokens are: which entry of the relative-position table each pair of tokens has.

The table (A, heads · depth) is shared by all layers, layer i has columns i·heads to (i + 1)·heads. With w patches per
side, R = (2w - 1)² + 3 and T text positions, A = R + 2T + 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
