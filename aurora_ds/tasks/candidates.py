"""First stage of retrieval evaluation: contrastive features, the best k both ways, and each pair's contrastive rank.

Of equal similarities the higher index goes first, at the cut after the k best as well: the order is the same on every
machine, and a model that gives all pairs one similarity finds what chance finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from aurora_ds.tasks.collectives import world

Forward = Callable[..., dict[str, Tensor]]


@dataclass
class Texts:
    """All captions of a split: token ids per caption, and the medium each describes."""

    input_ids: Sequence[Sequence[int] | Tensor]
    media_index: Tensor  # (texts,) int64
    pad_id: int

    def batch(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Padded to the longest of the chosen."""
        rows = [torch.as_tensor(self.input_ids[i]) for i in indices]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def features_of_texts(
    forward: Forward, texts: Texts, batch_size: int, device: torch.device, lockstep: bool
) -> Tensor:
    """(texts, E): fixed batches of length-sorted texts, dealt to ranks, gathered."""
    rank, size = world()
    order = sorted(range(len(texts.input_ids)), key=lambda i: (len(texts.input_ids[i]), i))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    features: Tensor | None = None
    for number in range(-(-len(chunks) // size)):
        index = number * size + rank
        if index >= len(chunks) and not lockstep:
            continue
        chunk = chunks[min(index, len(chunks) - 1)]
        out = forward(texts.batch(chunk, device), what="encode_texts")["feature"]
        if features is None:
            features = torch.zeros(len(order), out.shape[1], device=device)
        if index < len(chunks):
            features[torch.tensor(chunk, device=device)] = out
    if size > 1:
        width = torch.tensor(0 if features is None else features.shape[1], device=device)
        dist.all_reduce(width, op=dist.ReduceOp.MAX)
        features = torch.zeros(len(order), int(width), device=device) if features is None else features
        dist.all_reduce(features)  # every row was filled by exactly one rank
    return features


def features_of_images(
    features: list[Tensor],
    blocks: list[list[int]],
    images: int,
    batch_size: int,
    dim: int,
    device: torch.device,
) -> Tensor:
    """(images, E) on every rank from the blocks each rank encoded."""
    result = torch.zeros(images, dim, device=device)
    for block, feature in zip(blocks, features, strict=True):
        result[block[0] : block[0] + len(block)] = feature
    if world()[1] > 1:
        dist.all_reduce(result)
    return result


def candidates_of_images(
    features: list[Tensor],
    blocks: list[list[int]],
    text: Tensor,
    media: Tensor,
    k: int,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Stage one from images to texts, for this rank's images, block by block: the same products on any number of
    ranks.

    Returns: the captions of the own images (m,); the row of each one's image among the own (m,); per image its top-k
    texts (rows, k) and their similarities (rows, k); and the contrastive rank of each own caption (m,).
    """
    owned, rows, candidates, similarities, ranks = [], [], [], [], []
    first = 0
    for feature, block in zip(features, blocks, strict=True):
        similarity = feature @ text.t()
        indices, values = best_of(similarity, k)
        candidates.append(indices)
        similarities.append(values)
        texts = ((media >= block[0]) & (media <= block[-1])).nonzero().squeeze(1)
        inside = media[texts] - block[0]
        ranks += [
            contrastive_rank(similarity[i], t)
            for i, t in zip(inside.split(batch_size), texts.split(batch_size), strict=True)
        ]
        owned.append(texts)
        rows.append(inside + first)
        first += len(block)
    if not features:
        none = media.new_empty(0)
        return none, none, media.new_empty(0, k), text.new_empty(0, k), none
    return tuple(torch.cat(parts) for parts in (owned, rows, candidates, similarities, ranks))


def candidates_of_texts(
    text: Tensor, image: Tensor, media: Tensor, k: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Per text its top-k images (texts, k) and the contrastive rank of its own image (texts,); in blocks of
    texts."""
    candidates, ranks = [], []
    for block, target in zip(text.split(batch_size), media.split(batch_size), strict=True):
        similarity = block @ image.t()
        candidates.append(best_of(similarity, k)[0])
        ranks.append(contrastive_rank(similarity, target))
    return torch.cat(candidates), torch.cat(ranks)


def best_of(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices, values) of each row's k largest, (n, k) each. Which of several equal ones `topk` takes is not defined,
    so rows with such a tie at the cut are sorted."""
    values, indices = similarity.topk(k, dim=1)
    cut = values[:, -1:]
    tied = (similarity == cut).sum(1) > (values == cut).sum(1)
    if tied.any():
        backwards = similarity[tied].flip(1).argsort(dim=1, descending=True, stable=True)[:, :k]
        indices[tied] = similarity.shape[1] - 1 - backwards
    return indices, values


def contrastive_rank(similarity: Tensor, targets: Tensor) -> Tensor:
    """Place (0 is best) of column `targets[i]` in row i of similarity (n, gallery) -> (n,)."""
    own = similarity.gather(1, targets[:, None])
    later = torch.arange(similarity.shape[1], device=similarity.device) > targets[:, None]
    return ((similarity > own) | ((similarity == own) & later)).sum(1)
