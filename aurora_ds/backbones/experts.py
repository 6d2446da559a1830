"""Modality-aware mixture of experts (EVE, AAAI 2024): a feed-forward of which each token uses a few parts.

    u = x + t                       t: the token's modality vector
    p = softmax(u Wgᵀ)              first expert: argmax p; next ones: largest of log p + Gumbel noise (training only)
    y = Σ w_e · FFN_e(u)            w: the chosen p, normalised over the chosen ones that had room

Tokens are sorted by expert, each expert sees one contiguous block of rows, and results are added back at their
token: the work grows with the tokens, and no (tokens, experts, capacity) tensor exists.

A token's output depends on its own sample alone. Padding is not routed, and by default nothing is dropped: with
sorted rows a full expert costs no padding, so a limit would only lose tokens. Where `capacity_factor` asks for one, it
is counted per sample. `released` does as the published code instead: padding is routed, and capacity is counted over
the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.expert_parallel import computed_by_ranks, even_shares
from aurora_ds.config.eve import ExpertConfig
from aurora_ds.errors import AuroraError

MIN_CAPACITY = 4
RELEASED_TOPK = 2
QUICK_GELU = 1.702


class Routing(NamedTuple):
    """Where the tokens of one call went. S: tokens, batch-major; E: experts; k: choices per token.

    All but the numbers below are of every token; padding that took no part has `kept` False and weight 0."""

    logits: Tensor  # (S, E) fp32, without noise
    experts: Tensor  # (k, S) int64
    kept: Tensor  # (k, S) bool: the choice was within the expert's capacity
    slots: Tensor  # (k, S) int64: number of the choice within its expert (and sample), from 0
    weights: Tensor  # (k, S) fp32
    balance: Tensor  # () load-balance loss, unweighted; 1 when the load is even
    first_counts: Tensor  # (E,) int64: first choices per expert, before dropping
    order: Tensor  # (k·S,) int64: choices (choice-major) sorted by expert; those of padding last
    counts: Tensor  # (E,) int64: choices per expert, before dropping
    capacity: int | None  # of the batch; None: without a limit, or one per sample
    takes_part: Tensor | None  # (S,) bool; None: every token


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), through SiLU, which keeps one tensor for the backward pass where the formula keeps two."""
    return F.silu(x * QUICK_GELU).div_(QUICK_GELU)


def gumbel_noise(logits: Tensor) -> Tensor:
    """Standard Gumbel noise like `logits`, from torch's generator of its device."""
    return -torch.empty_like(logits).exponential_().log()


class FeedForward(nn.Module):
    """fc1, quick GELU, fc2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        return self.fc2(quick_gelu(self.fc1(x)))


class FullPrecisionLinear(nn.Linear):
    """A linear without bias in fp32 (or wider), under autocast and with other weights too."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype))


class Gate(nn.Module):
    """Tokens -> Routing.

    `noise(logits)` gives what is added to the logits of all choices but the first; verification sets recorded values.
    """

    def __init__(self, width: int, config: ExpertConfig, released: bool) -> None:
        super().__init__()
        self.experts, self.released = config.experts, released
        self.topk = RELEASED_TOPK if released else config.topk
        self.capacity_factor = 1.0 if released else config.capacity_factor
        self.noise: Callable[[Tensor], Tensor] = gumbel_noise
        if self.topk > config.experts:
            raise AuroraError(
                f"A token cannot go to {self.topk} different experts where there are {config.experts}: lower topk, or "
                f"give more experts{' (released always takes two)' if released else ''}."
            )
        self.wg = FullPrecisionLinear(width, config.experts, bias=False)

    def forward(self, tokens: Tensor, samples: int, takes_part: Tensor | None) -> Routing:
        """tokens (S, D), of `samples` samples one after the other; takes_part bool (S,), None: all."""
        logits = self.wg(tokens)
        probabilities = logits.softmax(dim=-1)
        chosen = self._choose(logits.detach(), probabilities.detach())
        first_counts, balance = self._balance(probabilities, chosen[0], takes_part)
        order, counts, slots, kept, capacity = self._place(chosen, samples, takes_part)
        weights = probabilities.gather(1, chosen.t()).t() * kept  # (k, S)
        if (
            self.topk > 1
        ):  # a single choice keeps its probability: normalised, it would teach the gate nothing
            weights = weights / weights.sum(0).clamp(min=torch.finfo(weights.dtype).eps)
        return Routing(
            logits, chosen, kept, slots, weights, balance, first_counts, order, counts, capacity, takes_part
        )

    def _choose(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """(k, S): the most probable expert, then the largest remaining logits, with noise."""
        first = probabilities.argmax(dim=-1, keepdim=True)
        if self.topk == 1:
            return first.t()
        if self.training or self.released:
            logits = logits + self.noise(logits)
        others = logits.scatter(1, first, -torch.inf).topk(self.topk - 1, dim=-1).indices
        return torch.cat([first, others], dim=1).t()

    def _balance(
        self, probabilities: Tensor, first: Tensor, takes_part: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """First choices per expert, and E · Σ_e mean(p_e) · (share of first choices of e)."""
        if takes_part is None:
            counts, mean = torch.bincount(first, minlength=self.experts), probabilities.mean(0)
            tokens = len(first)
        else:
            tokens = takes_part.sum().clamp(min=1)
            counts = torch.zeros(self.experts, dtype=torch.int64, device=first.device)
            counts.index_add_(0, first, takes_part.to(torch.int64))
            mean = (probabilities * takes_part[:, None]).sum(0) / tokens
        return counts, self.experts * (mean * counts / tokens).sum()

    def _place(
        self, chosen: Tensor, samples: int, takes_part: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int | None]:
        """Order by expert, choices per expert, slots, which are kept, and the batch's capacity.

        Within an expert, all first choices come before all second ones, in token order each."""
        tokens = chosen.shape[1]
        groups = 1 if self.released else samples  # tokens that compete for the same room
        group = torch.arange(tokens, device=chosen.device) // (tokens // groups)
        key = chosen * groups + group
        if takes_part is not None:
            key = torch.where(takes_part, key, self.experts * groups)
        order = key.flatten().argsort(stable=True)
        sizes = torch.bincount(key.flatten(), minlength=self.experts * groups + 1)
        starts = sizes.cumsum(0) - sizes
        slots = torch.empty_like(order)
        slots[order] = torch.arange(len(order), device=order.device) - starts[key.flatten()[order]]
        slots = slots.view_as(chosen)
        counts = sizes[:-1].view(self.experts, groups).sum(1)
        kept = (
            torch.ones_like(chosen, dtype=torch.bool) if takes_part is None else takes_part.expand_as(chosen)
        )
        capacity = None
        if self.released:
            capacity = max(math.ceil(self.topk * tokens / self.experts), MIN_CAPACITY)
            kept = slots < capacity
        elif self.capacity_factor is not None:
            each = torch.full((groups,), tokens // groups, device=chosen.device)
            if takes_part is not None:
                each = takes_part.view(groups, -1).sum(1)
            limit = (self.topk * self.capacity_factor * each / self.experts).ceil().clamp(min=MIN_CAPACITY)
            kept = kept & (slots < limit[group])
        return order, counts, slots, kept, capacity


class ExpertList(nn.Module):
    """Gives the experts their published parent name, `experts.experts`. Holds all of them, or, after `hold`, the share
    of this rank in a group."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.experts: nn.ModuleList | nn.ModuleDict = nn.ModuleList(
            FeedForward(width, hidden) for _ in range(experts)
        )
        self.total = experts
        self.group: dist.ProcessGroup | None = None

    def hold(self, numbers: Sequence[int], group: dist.ProcessGroup | None) -> list[nn.Module]:
        """Go on with these experts, under the names that they have, and leave the others to the ranks of `group`.

        Returns: all experts as they were, for `hold_all`."""
        every = list(self.experts)
        self.experts = nn.ModuleDict({str(number): every[number] for number in numbers})
        self.group = group
        return every

    def hold_all(self, every: Sequence[nn.Module]) -> None:
        """The opposite of `hold`, in the mode (training or evaluation) of this module."""
        self.experts, self.group = nn.ModuleList(every).train(self.training), None

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """tokens (S, D) -> Σ over the kept choices of weight · expert, (S, D)."""
        kept = routing.kept.flatten()[routing.order]
        order = routing.order[kept]
        counts = torch.bincount(routing.experts.flatten()[order], minlength=self.total)
        source = order % len(tokens)
        rows, weights = tokens.index_select(0, source), routing.weights.flatten()[order, None]
        if self.group is not None:
            results = computed_by_ranks(rows, counts, self.experts.values(), self.group)
            weighted = results * weights.to(results.dtype)
            return torch.zeros_like(tokens, dtype=results.dtype).index_add_(0, source, weighted)
        # an expert without tokens is called too, with no rows: sharded parameters are gathered in the same order on
        # every rank, and each expert has a gradient
        sizes, result = even_shares(len(rows), self.total) if counts.is_meta else counts.tolist(), None
        pieces = (each.split(sizes) for each in (rows, weights, source))
        for expert, block, weight, places in zip(self.experts, *pieces, strict=True):
            found = expert(block)
            if result is None:
                result = torch.zeros_like(tokens, dtype=found.dtype)
            # block by block: no second copy of all rows
            result = result.index_add_(0, places, found * weight.to(found.dtype))
        return result


class ModalityExperts(nn.Module):
    """Modality vectors, gate and experts; published names.

    `watch(routing, is_vision)` is called with where tokens went in training, is_vision bool (N,): the image's.
    """

    def __init__(self, width: int, hidden: int, config: ExpertConfig, released: bool) -> None:
        super().__init__()
        self.released = released
        self.watch: Callable[[Routing, Tensor], None] | None = None
        self.vision_embed = nn.Parameter(torch.zeros(width)) if config.modality_embedding else None
        self.text_embed = nn.Parameter(torch.zeros(width)) if config.modality_embedding else None
        self.gate = Gate(width, config, released)
        self.experts = ExpertList(width, hidden, config.experts)

    def forward(self, x: Tensor, vision_tokens: int, mask: Tensor | None) -> tuple[Tensor, Routing]:
        samples, length, width = x.shape
        is_vision = torch.arange(length, device=x.device) < vision_tokens
        if self.vision_embed is not None:
            x = x + torch.where(is_vision[:, None], self.vision_embed, self.text_embed).to(x.dtype)
        tokens = x.reshape(-1, width)
        takes_part = None if mask is None or self.released else mask.reshape(-1)
        routing = self.gate(tokens, samples, takes_part)
        if self.watch is not None and self.training:
            self.watch(routing, is_vision)
        return self.experts(tokens, routing).view(samples, length, width), routing


class ExpertFeedForward(nn.Module):
    """The layer. `released`: as published, see above.

    Args:
        width: D. hidden: width of each expert's hidden state.
    """

    def __init__(self, width: int, hidden: int, config: ExpertConfig, released: bool = False) -> None:
        super().__init__()
        self.moe = ModalityExperts(width, hidden, config, released)

    def forward(self, x: Tensor, vision_tokens: int, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x (B, N, D), after the LayerNorm; the first `vision_tokens` of each sample are the image's -> (B, N, D).

        mask: bool (B, N), False = padding, whose output is 0 (published: is routed like any token); None: none."""
        return self.moe(x, vision_tokens, mask)

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """(path, linear) of the experts' projections, in order."""
        for number, expert in self.moe.experts.experts.named_children():
            for name in ("fc1", "fc2"):
                yield f"moe.experts.experts.{number}.{name}", getattr(expert, name)
