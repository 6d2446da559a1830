"""EVE's models: the trunk with the heads of retrieval, question answering and NLVR2, under the published names.

A fused pass is read from its text's class token. What is learned from the heads' outputs is a task's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.attention import attend, merge_heads, split_heads
from aurora_ds.backbones.blip_nlvr import Judged
from aurora_ds.backbones.eve import INITIAL_STD, EveStates, EveTrunk, balance_loss
from aurora_ds.backbones.site import Site
from aurora_ds.config import BackboneConfig
from aurora_ds.config.pixels import DEVIATION, MEAN

INITIAL_TEMPERATURE = 0.07
HEAD_DROPOUT = 0.1
PADDING_SCORE = -1e4


class EveModel(nn.Module):
    """The trunk as `backbone`, and what prompts ask of any model."""

    HEADS: Mapping[str, str] = {}

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = EveTrunk(
            config.vision, config.text, config.eve, config.attention, config.activation_checkpointing
        )

    def sites(self) -> list[Site]:
        """What prompts may adapt, layer by layer."""
        return self.backbone.sites("backbone")

    def query_layers(self) -> list[tuple[str, nn.Module, int]]:
        """None: the layers attend to image and text at once, so there is no text query to transform."""
        return []

    def heads(self) -> dict[str, str]:
        """Name, the same in all families -> module path of the heads' linears, always in the same order."""
        return dict(self.HEADS)

    def image_tokens(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + patches, D): embedded, for any number of passes with texts."""
        return self.backbone(self.pixels(image), layers=False).states

    def pixels(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) as loaders give it, as the trunk takes it."""
        if self.config.eve.pixels == "as_they_are":
            return image
        deviation, mean = image.new_tensor([DEVIATION, MEAN])[:, :, None, None]
        return 2 * (image * deviation + mean) - 1

    def loaded(self, pixels: Tensor) -> Tensor:
        """The opposite of `pixels`."""
        if self.config.eve.pixels == "as_they_are":
            return pixels
        deviation, mean = pixels.new_tensor([DEVIATION, MEAN])[:, :, None, None]
        return ((pixels + 1) / 2 - mean) / deviation


class EveRetrieval(EveModel):
    """Features of images and texts by themselves, and how well a pair fits."""

    HEADS = {
        "vision_proj": "itc_vision_proj_head",
        "text_proj": "itc_text_proj_head",
        "itm_head": "itm_head",
    }

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        width = config.vision.width
        self.itc_vision_proj_head = nn.Linear(width, config.embed_dim, bias=False)
        self.itc_text_proj_head = nn.Linear(width, config.embed_dim, bias=False)
        self.itm_head = nn.Linear(width, 2)
        self.itc_temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE, dtype=torch.float32))
        # published: images and texts by themselves are read without relative positions
        self.relative_alone = not config.eve.released
        self._passes: list[EveStates] | None = None
        for path in self.HEADS.values():
            _initialise(getattr(self, path))

    @property
    def temp(self) -> nn.Parameter:
        """The contrastive temperature, by the name that all families have."""
        return self.itc_temp

    @property
    def vision_proj(self) -> nn.Module:
        """The same of the projection of image features."""
        return self.itc_vision_proj_head

    @property
    def text_proj(self) -> nn.Module:
        """The same of the projection of text features."""
        return self.itc_text_proj_head

    def image_states(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> tokens (B, N, D) for `matched`, here embedded alone; and the state (B, D) of the image."""
        tokens = self.image_tokens(image)
        return tokens, self._first(self._pass(image_tokens=tokens, relative=self.relative_alone))

    def text_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts by themselves, ids and mask (B, L) -> the state of each, (B, 1, D)."""
        one = self._pass(input_ids=ids, attention_mask=mask, relative=self.relative_alone)
        return self._first(one)[:, None]

    def image_keys(self, tokens: Tensor) -> Tensor:
        """What matching needs of image tokens: themselves."""
        return tokens

    def matched(
        self,
        ids: Tensor,
        mask: Tensor,
        keys: Tensor,
        image_index: Tensor | None = None,
        group_size: int | None = None,
        key_scale: Tensor | None = None,
    ) -> Tensor:
        """States (B, L, D) of texts, ids and mask (B, L), read with the images of `keys`: row by row, by `image_index`,
        or `group_size` texts of each image in turn."""
        if group_size is not None and len(keys) > 1 and self.config.eve.released:
            # published: every kind of pair in a pass of its own, which shares its experts' capacity
            turns = [
                self.matched(ids[turn::group_size], mask[turn::group_size], keys)
                for turn in range(group_size)
            ]
            return torch.stack(turns, dim=1).flatten(0, 1)
        if image_index is not None:
            keys = keys.index_select(0, image_index)
        elif group_size is not None:
            keys = keys.repeat_interleave(group_size, dim=0)
        one = self._pass(image_tokens=keys, input_ids=ids, attention_mask=mask)
        return one.states[:, one.vision_tokens :]

    def _pass(self, **arguments: Any) -> EveStates:
        one = self.backbone(**arguments)
        if self._passes is not None:
            self._passes.append(one)
        return one

    @contextmanager
    def auxiliary(self) -> Iterator[Callable[[], Tensor]]:
        """Inside, every pass counts; the function that is given computes the loss of the model's own over them."""
        self._passes = passes = []
        try:
            yield lambda: self.config.eve.balance_weight * balance_loss(passes)
        finally:
            self._passes = None

    def _first(self, states: EveStates) -> Tensor:
        """(B, D): the first token. Published evaluation leaves out the last norm, with which training was done."""
        skips_norm = self.config.eve.released and not self.training
        return (states.before_norm if skips_norm else states.states)[:, 0]


class EveVqa(EveModel):
    """Image and question -> one logit per answer of a list."""

    HEADS = {"cls_head_0": "output.0", "cls_head_2": "output.3"}

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        width = config.vision.width
        self.output = _two_layers(width, 2 * width, config.eve.answers)

    def answered(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> Judged:
        """Questions, ids and mask (B, L), and embedded images (B, N, D), row by row -> logits (B, answers); `states`
        are those of the questions' class tokens, (B, D)."""
        one = self.backbone(image_tokens=tokens, input_ids=ids, attention_mask=mask)
        auxiliary = self.config.eve.balance_weight * balance_loss([one])
        return Judged(self.output(one.first_text), one.first_text, auxiliary)


class HeadAttention(nn.Module):
    """Multi-head attention of one sequence over another, with torch's parameter names."""

    def __init__(self, width: int, heads: int, eager: bool) -> None:
        super().__init__()
        self.heads, self.eager = heads, eager
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, others: Tensor, mask: Tensor | None) -> Tensor:
        """queries, others (B, N, D); mask bool (B, N), False = padding of the others; None: none -> (B, N, D)."""
        width = queries.shape[-1]
        own, other = self.in_proj_weight.split([width, 2 * width])
        own_bias, other_bias = self.in_proj_bias.split([width, 2 * width])
        (query,) = split_heads(F.linear(queries, own, own_bias), 1, self.heads)
        key, value = split_heads(F.linear(others, other, other_bias), 2, self.heads)
        keys = None if mask is None else mask[:, None, None, :]
        dropout = HEAD_DROPOUT if self.training else 0.0
        return self.out_proj(merge_heads(attend(query, key, value, keys, dropout, self.eager)))


class AttentionPool(nn.Module):
    """(B, N, D) -> (B, D): a weighted sum whose weights are learned from each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 1), nn.ReLU())
        self.dropout = nn.Dropout(HEAD_DROPOUT)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.fc(states)[..., 0]
        if mask is not None:
            scores = scores + PADDING_SCORE * ~mask
        weights = self.dropout(scores.softmax(dim=1).to(states.dtype))
        return (weights[:, None] @ states)[:, 0]


class EveNlvr(EveModel):
    """Two images and a statement -> logits (B, 2), class 1 = true. Each image is read with the statement; the head
    sees the two class tokens, or, with `nlvr_attention`, both sequences attending to each other, pooled."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        width = config.vision.width
        self.attends = config.eve.nlvr_attention
        if not self.attends:
            self.HEADS = {"cls_head_0": "output.0", "cls_head_2": "output.3"}
            self.output = _two_layers(2 * width, 2 * width, 2)
            return
        self.HEADS = {"cls_head_0": "fc.0", "cls_head_2": "nlvr2_output"}
        eager = config.attention == "eager"
        self.attn1 = HeadAttention(width, config.vision.heads, eager)
        self.attn2 = HeadAttention(width, config.vision.heads, eager)
        self.fc = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(HEAD_DROPOUT))
        self.attn_pool = AttentionPool(width)
        self.nlvr2_output = nn.Linear(2 * width, 2)

    def pair_keys(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of first and second images (pairs, N, D), for `judged`."""
        return first, second

    def judged(
        self, ids: Tensor, mask: Tensor, keys: tuple[Tensor, Tensor], index: Tensor | None = None
    ) -> Judged:
        """Statements, ids and mask (B, L), about the pairs of `keys`; `index` int64 (B,): the pair of each; None: in
        their order."""
        chosen = keys if index is None else [tokens.index_select(0, index) for tokens in keys]
        passes = [self.backbone(image_tokens=tokens, input_ids=ids, attention_mask=mask) for tokens in chosen]
        states = torch.stack([one.states for one in passes])
        auxiliary = self.config.eve.balance_weight * balance_loss(passes)
        return Judged(self._logits(passes), states, auxiliary)

    def _logits(self, passes: list[EveStates]) -> Tensor:
        if not self.attends:
            return self.output(torch.cat([one.first_text for one in passes], dim=1))
        left, right, mask = passes[0].states, passes[1].states, passes[0].mask
        from_right, from_left = self.attn1(left, right, mask), self.attn2(right, left, mask)
        merged = [
            self.fc(torch.cat([from_right, left], dim=-1)),
            self.fc(torch.cat([from_left, right], dim=-1)),
        ]
        return self.nlvr2_output(torch.cat([self.attn_pool(each, mask) for each in merged], dim=1))


def _two_layers(width: int, hidden: int, classes: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes)
    )
    for number in (0, 3):
        _initialise(layers[number])
    return layers


def _initialise(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=INITIAL_STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
