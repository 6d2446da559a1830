"""The pairs of the matching loss: negatives fetched from other ranks, and the states of all three kinds of pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.tasks.collectives import RowExchange, gather_rows


def fetch_chosen(
    tokens: Tensor,
    frames: Tensor,
    ids: Tensor,
    mask: Tensor,
    negative_image: Tensor,
    negative_text: Tensor,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The chosen rows of all ranks: image tokens with gradient, their frames' features, ids and mask of texts padded to
    the longest of any rank. `interleaved`: row i of rank r is row i * ranks + r of all.

    Here, on more than one rank only, the host waits for the device once: for what each rank wants."""
    rows, longest = len(ids), negative_image.new_tensor([ids.shape[1]])
    asked = gather_rows(torch.cat([negative_image, negative_text, longest])[None], interleaved=False)
    if ids.is_meta:
        images, texts, padding = *2 * (RowExchange.evenly(rows, ids.device),), (0, 0)
    else:
        asked = asked.cpu()
        images = RowExchange(asked[:, :rows], interleaved, rows, ids.device)
        texts = RowExchange(asked[:, rows:-1], interleaved, rows, ids.device)
        padding = (0, int(asked[:, -1].max()) - ids.shape[1])
    packed = torch.cat([F.pad(ids, padding), F.pad(mask, padding)], dim=1)
    other_ids, other_mask = texts.fetch(packed).chunk(2, dim=1)
    return images.fetch(tokens), images.fetch(frames.detach()), other_ids, other_mask


def pair_states(
    model: nn.Module,
    tokens: Tensor,
    other_tokens: Tensor | None,
    negative_image: Tensor,
    ids: Tensor,
    mask: Tensor,
    other_ids: Tensor,
    other_mask: Tensor,
    scales: Tensor | None,
    trace: dict[str, Tensor] | None,
) -> Tensor:
    """First-token states of the three kinds of pairs, (3B, H). Keys and values of an image are computed
    once: the rank's own images serve their positive and their negative text from the same ones."""
    matched, rows = model.matched, len(ids)
    keys = model.image_keys(tokens)
    other_keys = keys if other_tokens is None else model.image_keys(other_tokens)
    index = negative_image if other_tokens is None else None
    length = max(ids.shape[1], other_ids.shape[1])

    def both(one: Tensor, another: Tensor) -> Tensor:  # (2B, length): a row of each in turn
        padded = [F.pad(each, (0, length - each.shape[1])) for each in (one, another)]
        return torch.stack(padded, dim=1).flatten(0, 1)

    if scales is None:
        own = matched(both(ids, other_ids), both(mask, other_mask), keys, group_size=2)
        positive, other = own.unflatten(0, (rows, 2)).unbind(1)
        crossed = matched(ids, mask, other_keys, image_index=index)
    else:
        # grouped, attention would form its whole score matrix, and keep it for the backward pass
        positive_scale, crossed_scale, other_scale = scales.chunk(3)
        positive = matched(ids, mask, keys, key_scale=positive_scale)
        crossed = matched(ids, mask, other_keys, image_index=index, key_scale=crossed_scale)
        other = matched(other_ids, other_mask, keys, key_scale=other_scale)
    if trace is not None:
        trace["mm_pos_embeds"], trace["mm_neg_embeds"] = positive, torch.cat([crossed, other])
    return torch.cat([positive[:, 0], crossed[:, 0], other[:, 0]])
