"""Two-stage retrieval evaluation: contrastive top-k both ways, then matching scores, image by image.

Each image's keys and values are computed once, a pair that both directions want is scored once, and memory
is bounded by settings (`image_cache_mb`, `pairs_per_batch`), not by the gallery. Work is dealt to ranks in
fixed batches, so that every number is computed from the same tensors on any number of ranks, and the
results are equal to the last rank. Clips are images of several frames; where their frames are weighed by the text
(frame-aware attention), the weights of each pair come from the features of stage one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aurora_ds.config import RetrievalConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.candidates import (
    Forward,
    Texts,
    candidates_of_images,
    candidates_of_texts,
    features_of_images,
    features_of_texts,
)
from aurora_ds.tasks.collectives import world
from aurora_ds.tasks.frame_attention import frame_scales
from aurora_ds.tasks.retrieval_metrics import rank_of_targets, recall


@dataclass
class RetrievalResult:
    """Metrics and what is needed to show them. Equal on every rank."""

    metrics: dict[str, float]
    image_ranks: Tensor  # (images,) best rank of the image's captions; -1 for an image without any
    text_ranks: Tensor  # (texts,) rank of the caption's image
    text_candidates: Tensor  # (texts, k) image indices
    text_scores: Tensor  # (texts, k)
    pairs_scored: int  # over all ranks
    frames: int | None = None  # of each clip; None for images


def owned_images(count: int, batch_size: int) -> list[int]:
    """Images this rank works on: whole batches of consecutive images, dealt round-robin."""
    rank, size = world()
    return [i for i in range(count) if (i // batch_size) % size == rank]


class _TokenCache:
    """Image tokens kept between the stages up to a budget; the rest is encoded again. Frame features are all kept.

    Whole batches are kept or dropped: encoded again in another company, an image's last bits would differ."""

    def __init__(self, megabytes: int) -> None:
        self.left = megabytes * 2**20
        self.tokens: dict[int, Tensor] = {}  # number of the batch among this rank's -> (batch, N, D)
        self.frames: dict[int, Tensor] = {}  # of the same batches, (batch, T, E), where frames are weighed
        self.idle: Tensor | None = None  # (1, N, D) of any image, for calls that only keep step

    def offer(self, block: int, tokens: Tensor, frames: Tensor | None) -> None:
        if frames is not None:
            self.frames[block] = frames
        size = tokens.numel() * tokens.element_size()
        if size <= self.left:
            self.left -= size
            self.tokens[block] = tokens


@torch.no_grad()
def evaluate_retrieval(
    forward: Forward,
    read_images: Callable[[list[int]], Iterable[dict[str, Any]]],
    images: int,
    texts: Texts,
    options: RetrievalConfig,
    device: torch.device,
    image_batch_size: int,
    text_batch_size: int,
    image_shape: tuple[int, ...],
    lockstep: bool = False,
    tail: str = "similarity",
) -> RetrievalResult:
    """Evaluate on `images` media and their captions.

    Args:
        forward: the task's (or engine's) forward: `forward(batch, what=…)`.
        read_images: indices -> batches of `image`, in that order, `image_batch_size` at a time.
        image_shape: of one medium, (3, H, W) or (T, 3, H, W). lockstep: all ranks make the same calls
        (needed under ZeRO-3).
        tail: order of what was no candidate, see `retrieval_metrics`.
    The metrics of clips have `vid` for `img` in their names. An image without captions is in the gallery, but no query.
    Raises: AuroraError when reading returned another number of images than the split has, or a score is not finite.
    """
    rank, size = world()
    forward({}, what="prepare_evaluation")
    text_features = features_of_texts(forward, texts, text_batch_size, device, lockstep)
    mine = owned_images(images, image_batch_size)
    blocks = [mine[i : i + image_batch_size] for i in range(0, len(mine), image_batch_size)]
    cache = _TokenCache(options.image_cache_mb)
    features: list[Tensor] = []
    seen = 0
    for number, (block, batch) in enumerate(zip(blocks, read_images(mine), strict=False)):
        out = forward({"image": batch["image"].to(device)}, what="encode_images")
        if len(out["feature"]) != len(block):
            raise AuroraError(
                f"Evaluation read {len(out['feature'])} images where {len(block)} were planned; the "
                "shards do not match their manifest."
            )
        features.append(out["feature"])
        cache.idle = out["tokens"][:1].clone()
        seen += len(block)
        cache.offer(number, out["tokens"], out.get("frames"))
    if seen != len(mine):
        raise AuroraError(
            f"Evaluation read {seen} of {len(mine)} images on rank {rank}; the shards do not match their manifest."
        )
    batches = -(-images // image_batch_size)
    for _ in range(-(-batches // size) - len(blocks) if lockstep else 0):
        cache.idle = forward({"image": torch.zeros(1, *image_shape, device=device)}, what="encode_images")[
            "tokens"
        ]

    dim = text_features.shape[1]
    image_features = features_of_images(features, blocks, images, image_batch_size, dim, device)
    image_k, text_k = min(options.k_test, len(texts.input_ids)), min(options.k_test, images)
    media = texts.media_index.to(device)

    own_texts, rows, image_candidates, image_similarity, similarity_rank = candidates_of_images(
        features, blocks, text_features, media, image_k, text_batch_size
    )
    text_candidates, text_similarity_rank = candidates_of_texts(
        text_features, image_features, media, text_k, text_batch_size
    )
    scores = _Scores(image_candidates, mine, text_candidates)
    pairs = _score_pairs(
        forward,
        read_images,
        scores,
        cache,
        texts,
        text_features,
        options,
        device,
        image_batch_size,
        image_shape,
        lockstep,
    )
    _check_finite(text_features, image_features, scores.image_scores, scores.text_scores)

    beta = options.beta
    image_scores = scores.image_scores.to(device)
    text_scores = scores.text_scores.to(device)
    if size > 1:
        dist.all_reduce(text_scores)  # each entry was filled by the one rank that owns the image
    if beta:
        image_scores = image_scores + beta * image_similarity
        text_scores = text_scores + beta * torch.cat(
            [
                (t @ image_features.t()).gather(1, c)
                for t, c in zip(
                    text_features.split(text_batch_size), text_candidates.split(text_batch_size), strict=True
                )
            ]
        )

    image_ranks = torch.full((images,), -1, dtype=torch.int64, device=device)
    if len(own_texts):
        each = rank_of_targets(
            image_candidates, image_scores, rows, own_texts, similarity_rank, len(texts.input_ids), tail
        )
        best = image_ranks.new_full((len(mine),), -1)
        best = best.scatter_reduce_(0, rows, each, "amin", include_self=False)
        image_ranks[torch.tensor(mine, device=device)] = best
    if size > 1:
        dist.all_reduce(image_ranks, op=dist.ReduceOp.MAX)
    text_ranks = rank_of_targets(
        text_candidates,
        text_scores,
        torch.arange(len(media), device=device),
        media,
        text_similarity_rank,
        images,
        tail,
    )
    total = torch.tensor(pairs, device=device)
    if size > 1:
        dist.all_reduce(total)
    image_ranks, text_ranks = image_ranks.cpu(), text_ranks.cpu()
    frames = image_shape[0] if len(image_shape) == 4 else None
    return RetrievalResult(
        recall(image_ranks[image_ranks >= 0], text_ranks, "img" if frames is None else "vid"),
        image_ranks,
        text_ranks,
        text_candidates.cpu(),
        text_scores.cpu(),
        int(total),
        frames,
    )


def _check_finite(*numbers: Tensor) -> None:
    """Raises AuroraError on every rank when a number of any rank is none: NaN compares as neither better nor worse,
    and would count as found."""
    broken = torch.tensor(sum(int((~each.isfinite()).sum()) for each in numbers), device=numbers[0].device)
    if world()[1] > 1:
        dist.all_reduce(broken)
    if broken:
        raise AuroraError(
            f"Evaluation found {int(broken)} features or scores that are not finite numbers, so nothing can be ranked. "
            "The weights may have diverged, or overflowed in train.precision=fp16: evaluate an earlier checkpoint, or "
            "with train.precision=fp32."
        )


class _Scores:
    """Which pairs each own image needs, and where a score goes: into the image's row, the text's row, or
    both."""

    def __init__(self, image_candidates: Tensor, mine: list[int], text_candidates: Tensor) -> None:
        self.mine = mine
        self.image_candidates, self.text_candidates = image_candidates.cpu(), text_candidates.cpu()
        self.image_scores = torch.zeros(self.image_candidates.shape, dtype=torch.float32)
        self.text_scores = torch.zeros(self.text_candidates.shape, dtype=torch.float32)
        flat = self.text_candidates.flatten()
        self._by_image = flat.argsort(stable=True)  # entries of text_candidates grouped by image
        counts = torch.bincount(flat, minlength=(max(mine) + 1) if mine else 1)
        self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def wanted(self, row: int) -> tuple[Tensor, Tensor]:
        """For own image number `row`: the texts to score (each once), and the entries of text_candidates
        that want the image."""
        image = self.mine[row]
        entries = self._by_image[self._starts[image] : self._starts[image + 1]]
        return torch.cat(
            [self.image_candidates[row], entries // self.text_candidates.shape[1]]
        ).unique(), entries

    def put(self, row: int, texts: Tensor, scores: Tensor) -> None:
        """texts sorted ascending, with their scores."""
        _, entries = self.wanted(row)
        self.image_scores[row] = scores[torch.searchsorted(texts, self.image_candidates[row].contiguous())]
        if len(entries):
            self.text_scores.view(-1)[entries] = scores[
                torch.searchsorted(texts, entries // self.text_candidates.shape[1])
            ]


def _score_pairs(
    forward: Forward,
    read_images: Callable[[list[int]], Iterable[dict[str, Any]]],
    scores: _Scores,
    cache: _TokenCache,
    texts: Texts,
    text_features: Tensor,
    options: RetrievalConfig,
    device: torch.device,
    image_batch_size: int,
    image_shape: tuple[int, ...],
    lockstep: bool,
) -> int:
    """Matching scores of every wanted pair of the rank's images. Returns how many pairs were scored."""
    wanted = [scores.wanted(row)[0] for row in range(len(scores.mine))]
    calls = [-(-len(w) // options.pairs_per_batch) for w in wanted]
    plan = _common_calls(calls, device) if lockstep else calls
    blocks = range(-(-len(scores.mine) // image_batch_size))
    dropped = [number for number in blocks if number not in cache.tokens]
    encode = [int(number in dropped) for number in blocks]
    if lockstep:
        encode = _common_calls(encode, device)
    own_rows = range(len(scores.mine))
    again = _read_again(
        read_images,
        [scores.mine[row] for row in own_rows if row // image_batch_size in dropped],
        device,
    )
    total, idle = 0, torch.zeros(1, *image_shape, device=device)
    held: Tensor | None = None  # tokens of the batch at hand
    for row, common in enumerate(plan):
        own = row in own_rows
        block, place = divmod(row, image_batch_size)
        if place == 0:
            held = cache.tokens.pop(block, None)
            if own and held is None:
                held = forward({"image": next(again)}, what="encode_images")["tokens"]
            elif encode[block]:
                forward({"image": idle}, what="encode_images")
        tokens = held[place : place + 1] if own else cache.idle
        frames = cache.frames[block][place : place + 1] if own and cache.frames else None
        needed = sorted(wanted[row].tolist(), key=lambda t: (len(texts.input_ids[t]), t)) if own else []
        keys = forward({"tokens": tokens}, what="image_keys")["image_kv"]
        chunks = [
            needed[i : i + options.pairs_per_batch] for i in range(0, len(needed), options.pairs_per_batch)
        ]
        found: list[Tensor] = []
        for number in range(common):
            chunk = chunks[number] if number < len(chunks) else [0]
            batch = {"image_kv": keys, **texts.batch(chunk, device)}
            if frames is not None:
                batch["key_scale"] = frame_scales(text_features[chunk], frames, tokens.shape[1])
            logits = forward(batch, what="match")["logits"]
            if number < len(chunks):
                found.append(logits[:, 1])
        if needed:
            values = torch.cat(found).cpu()
            order = torch.tensor(needed).argsort()
            scores.put(row, torch.tensor(needed)[order], values[order])
            total += len(needed)
    return total


def _common_calls(calls: list[int], device: torch.device) -> list[int]:
    """Per image slot the largest number of calls that any rank makes, over the longest list of any rank."""
    _, size = world()
    if size == 1:
        return calls
    length = torch.tensor(len(calls), device=device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = torch.zeros(int(length), dtype=torch.int64, device=device)
    padded[: len(calls)] = torch.tensor(calls, dtype=torch.int64, device=device)
    dist.all_reduce(padded, op=dist.ReduceOp.MAX)
    return padded.tolist()


def _read_again(
    read_images: Callable[[list[int]], Iterable[dict[str, Any]]], indices: list[int], device: torch.device
) -> Iterable[Tensor]:
    """Pixels of the batches that the cache had no room for, in order."""
    if indices:
        for batch in read_images(indices):
            yield batch["image"].to(device)
