"""The plain baseline of the benchmarks: BLIP retrieval with Aurora, in ordinary PyTorch, computed the way the public
code does.

BLIP (arXiv 2201.12086) §3 and Aurora (arXiv 2305.08381) §3 as released: eager attention; x Uᵀ for each of q, k
and v; the core contracted with its mode column in every layer's forward; a whole momentum copy of the backbone,
moved in every step; one matching pass for positives and one for negatives, image tokens repeated for each pair;
negatives drawn in a loop; one query at a time in re-ranking. It shares nothing with aurora_ds but the published
parameter names, so weights go over by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODULE_PAIRS = ("visual_encoder", "vision_proj", "text_encoder", "text_proj")
TRAINED = ("CP", "vision_proj", "itm_head")
OUTSIDE_TOP_K = -100.0


@dataclass
class PlainSizes:
    """Sizes and options; the defaults are BLIP-base with the released Aurora settings."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768  # of both towers: the released factors are shared, so they must agree
    vision_depth: int = 12
    vision_heads: int = 12
    text_depth: int = 12
    text_heads: int = 12
    intermediate: int = 3072
    vocab_size: int = 30524
    max_positions: int = 512
    embed_dim: int = 256
    queue_size: int = 57600
    rank: int = 32
    dropout: float = 0.1  # text hidden states, text attention probabilities and prompts
    temperature: float = 0.07
    momentum: float = 0.995
    enc_id: int = 30523


class Factors(nn.Module):
    """The factors all layers share: U, V and the core."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.CP_U = nn.Linear(width, rank, bias=False)
        self.CP_V = nn.Linear(rank, width, bias=False)
        self.CP_C = nn.Parameter((torch.rand(rank, rank, rank) * 2 - 1) * math.sqrt(3) / rank)
        nn.init.zeros_(self.CP_V.weight)


def mode_columns(rank: int, columns: int) -> nn.Parameter:
    bound = math.sqrt(6 / (rank + columns))
    return nn.Parameter((torch.rand(rank, columns) * 2 - 1) * bound)


class VisionAttention(nn.Module):
    """Eager multi-head attention with updates on q, k, v and the output projection."""

    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.heads, self.factors = sizes.vision_heads, (factors,)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)
        self.CP_attention = mode_columns(sizes.rank, 4)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D)
        batch, tokens, width = x.shape
        factors = self.factors[0]
        slices = torch.einsum("abc,cj->abj", factors.CP_C, self.CP_attention)  # (R, R, 4)
        update = [factors.CP_V(self.dropout(factors.CP_U(x) @ slices[..., j])) for j in range(3)]
        qkv = self.qkv(x) + torch.cat(update, dim=-1)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        probabilities = ((q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5).softmax(-1)
        out = (probabilities @ v).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(out) + factors.CP_V(self.dropout(factors.CP_U(out) @ slices[..., 3]))


class VisionMlp(nn.Module):
    """Two projections, each with four mode columns; the flat core index mixes the columns, as published."""

    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.factors, self.rank = (factors,), sizes.rank
        self.fc1 = nn.Linear(sizes.width, 4 * sizes.width)
        self.fc2 = nn.Linear(4 * sizes.width, sizes.width)
        self.mlp_CP = mode_columns(sizes.rank, 8)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D)
        factors, rank = self.factors[0], self.rank
        slices = torch.einsum("abc,cj->abj", factors.CP_C, self.mlp_CP)  # (R, R, 8)
        first, second = slices[..., :4].reshape(rank, 4 * rank), slices[..., 4:].reshape(rank, 4 * rank)
        mixed = self.dropout(factors.CP_U(x) @ first).unflatten(-1, (4, rank))
        hidden = F.gelu(self.fc1(x) + factors.CP_V(mixed).flatten(-2))
        low = factors.CP_U(hidden.unflatten(-1, (4, -1))).flatten(-2)  # (B, N, 4R)
        return self.fc2(hidden) + factors.CP_V(self.dropout(low @ second.t()))


class VisionBlock(nn.Module):
    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = VisionAttention(sizes, factors)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = VisionMlp(sizes, factors)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.width, sizes.patch_size, sizes.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)  # (B, N, D)


class PlainVision(nn.Module):
    """Pre-norm vision transformer; all tokens after the last LayerNorm."""

    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        patches = (sizes.image_size // sizes.patch_size) ** 2
        self.patch_embed = PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.randn(1, 1, sizes.width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, patches + 1, sizes.width) * 0.02)
        self.blocks = nn.ModuleList(VisionBlock(sizes, factors) for _ in range(sizes.vision_depth))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, image: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, N + 1, D)
        x = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextSelf(nn.Module):
    """Queries, keys, values and eager attention of one text attention; keys and values may come from image tokens."""

    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.heads, self.factors = sizes.text_heads, (factors,)
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)
        self.q_CP, self.k_CP, self.v_CP = (mode_columns(sizes.rank, 1) for _ in range(3))
        self.dropout, self.prompt_dropout = nn.Dropout(sizes.dropout), nn.Dropout(sizes.dropout)

    def projected(self, linear: nn.Linear, x: Tensor, column: Tensor) -> Tensor:
        factors = self.factors[0]
        core = (factors.CP_C @ column).squeeze(-1)  # (R, R)
        return linear(x) + factors.CP_V(self.prompt_dropout(factors.CP_U(x)) @ core)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, d)

    def forward(self, x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        q = self.split(self.projected(self.query, x, self.q_CP))
        k = self.split(self.projected(self.key, source, self.k_CP))
        v = self.split(self.projected(self.value, source, self.v_CP))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + mask
        return (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(-2)


class AddAndNorm(nn.Module):
    """Projection, dropout, residual and LayerNorm after it."""

    def __init__(self, width_in: int, sizes: PlainSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class TextAttention(nn.Module):
    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.self = TextSelf(sizes, factors)
        self.output = AddAndNorm(sizes.width, sizes)

    def forward(self, x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        return self.output(self.self(x, mask, source), x)


class Intermediate(nn.Module):
    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.width, sizes.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class TextLayer(nn.Module):
    """Post-norm layer; with image tokens also cross-attention and the query transformation."""

    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.attention = TextAttention(sizes, factors)
        self.crossattention = TextAttention(sizes, factors)
        self.intermediate = Intermediate(sizes)
        self.output = AddAndNorm(sizes.intermediate, sizes)
        for name in ("CP_scaleself", "CP_shiftself", "CP_scalecross", "CP_shiftcross"):
            self.register_parameter(name, nn.Parameter(torch.randn(sizes.width) * 0.0002))

    def forward(self, x: Tensor, mask: Tensor, image: Tensor | None, image_mask: Tensor | None) -> Tensor:
        after_self = x = self.attention(x, mask, x)
        if image is None:
            return self.output(self.intermediate(x), x)
        after_cross = x = self.crossattention(x, image_mask, image)
        x = self.output(self.intermediate(x), x)
        x = x + 0.1 * (after_self * self.CP_scaleself + self.CP_shiftself)
        return x + 0.1 * (after_cross * self.CP_scalecross + self.CP_shiftcross)


class TextEmbeddings(nn.Module):
    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocab_size, sizes.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(sizes.max_positions, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, ids: Tensor) -> Tensor:  # (B, L) -> (B, L, D)
        return self.dropout(
            self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]])
        )


class LayerStack(nn.Module):
    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TextLayer(sizes, factors) for _ in range(sizes.text_depth))


class PlainText(nn.Module):
    """Text transformer; `image` (B, N, D) switches to the multimodal mode."""

    def __init__(self, sizes: PlainSizes, factors: Factors) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(sizes)
        self.encoder = LayerStack(sizes, factors)

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        x = self.embeddings(ids)
        additive = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        image_mask = None
        if image is not None:
            ones = torch.ones(image.shape[:2], dtype=x.dtype, device=x.device)
            image_mask = (1.0 - ones[:, None, None, :]) * -1e9
        for layer in self.encoder.layer:
            x = layer(x, additive, image, image_mask)
        return x


class PlainRetrieval(nn.Module):
    """The whole published training model: both towers, heads, momentum copies, queues, shared factors."""

    def __init__(self, sizes: PlainSizes, sampling: str = "multinomial") -> None:
        super().__init__()
        self.sizes, self.sampling = sizes, sampling
        factors = Factors(sizes.width, sizes.rank)
        self.visual_encoder = PlainVision(sizes, factors)
        self.text_encoder = PlainText(sizes, factors)
        self.vision_proj = nn.Linear(sizes.width, sizes.embed_dim)
        self.text_proj = nn.Linear(sizes.width, sizes.embed_dim)
        self.itm_head = nn.Linear(sizes.width, 2)
        self.visual_encoder_m = PlainVision(sizes, factors)
        self.text_encoder_m = PlainText(sizes, factors)
        self.vision_proj_m = nn.Linear(sizes.width, sizes.embed_dim)
        self.text_proj_m = nn.Linear(sizes.width, sizes.embed_dim)
        self.CP_U, self.CP_V, self.CP_C = factors.CP_U, factors.CP_V, factors.CP_C
        self.factors = (factors,)
        self.temp = nn.Parameter(torch.tensor(sizes.temperature))
        length = sizes.queue_size
        self.register_buffer("image_queue", F.normalize(torch.randn(sizes.embed_dim, length), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(sizes.embed_dim, length), dim=0))
        self.register_buffer("idx_queue", torch.full((1, length), -100))
        self.register_buffer("ptr_queue", torch.zeros(1, dtype=torch.long))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(part in name for part in TRAINED) and "_m." not in name)
        self.copy_momentum()

    @torch.no_grad()
    def copy_momentum(self) -> None:
        """Momentum copies start as the online weights."""
        for name in MODULE_PAIRS:
            for online, copy in self.pairs(name):
                copy.copy_(online)

    def pairs(self, name: str) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        return zip(getattr(self, name).parameters(), getattr(self, name + "_m").parameters(), strict=True)

    @torch.no_grad()
    def move_momentum(self) -> None:
        decay = self.sizes.momentum
        for name in MODULE_PAIRS:
            for online, copy in self.pairs(name):
                copy.data = copy.data * decay + online.data * (1.0 - decay)

    def forward(
        self, image: Tensor, ids: Tensor, mask: Tensor, idx: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W), ids and mask (B, L) padded, idx (B,) -> contrastive and matching loss."""
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        tokens = self.visual_encoder(image)
        image_feature = F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)
        text_cls = self.text_encoder(ids, mask)[:, 0]
        text_feature = F.normalize(self.text_proj(text_cls), dim=-1)
        idx = idx.view(-1, 1)
        idx_all = torch.cat([idx.t(), self.idx_queue], dim=1)
        same = torch.eq(idx, idx_all).float()
        hard = same / same.sum(1, keepdim=True)
        with torch.no_grad():
            self.move_momentum()
            image_m = F.normalize(self.vision_proj_m(self.visual_encoder_m(image)[:, 0]), dim=-1)
            text_m = F.normalize(self.text_proj_m(self.text_encoder_m(ids, mask)[:, 0]), dim=-1)
            keys_image = torch.cat([image_m.t(), self.image_queue.clone()], dim=1)
            keys_text = torch.cat([text_m.t(), self.text_queue.clone()], dim=1)
            target_i2t = alpha * F.softmax(image_m @ keys_text / self.temp, dim=1) + (1 - alpha) * hard
            target_t2i = alpha * F.softmax(text_m @ keys_image / self.temp, dim=1) + (1 - alpha) * hard
        sim_i2t = image_feature @ keys_text / self.temp
        sim_t2i = text_feature @ keys_image / self.temp
        loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * target_i2t, dim=1).mean()
        loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * target_t2i, dim=1).mean()
        self.enqueue(image_m, text_m, idx)
        loss_itm = self.matching(tokens, image_feature, text_cls, text_feature, ids, mask, idx)
        return (loss_i2t + loss_t2i) / 2, loss_itm

    @torch.no_grad()
    def enqueue(self, image_m: Tensor, text_m: Tensor, idx: Tensor) -> None:
        start, rows = int(self.ptr_queue), len(idx)
        self.image_queue[:, start : start + rows] = image_m.t()
        self.text_queue[:, start : start + rows] = text_m.t()
        self.idx_queue[:, start : start + rows] = idx.t()
        self.ptr_queue[0] = (start + rows) % self.sizes.queue_size

    def pick(self, weights: Tensor) -> int:
        if self.sampling == "argmax":
            return weights.argmax().item()
        return torch.multinomial(weights, 1).item()

    def matching(
        self,
        tokens: Tensor,
        image_feature: Tensor,
        text_cls: Tensor,
        text_feature: Tensor,
        ids: Tensor,
        mask: Tensor,
        idx: Tensor,
    ) -> Tensor:
        """Cross entropy over positives (one pass) and negatives (another)."""
        rows = len(tokens)
        ids = ids.clone()
        ids[:, 0] = self.sizes.enc_id
        context = 0.1 * text_cls.mean(0)  # reaches positives only, as released
        positive = self.text_encoder(ids, mask, tokens)[:, 0] + context
        with torch.no_grad():
            same = torch.eq(idx, idx.t())
            weights_i2t = F.softmax(image_feature @ text_feature.t() / self.temp, dim=1).masked_fill(same, 0)
            weights_t2i = F.softmax(text_feature @ image_feature.t() / self.temp, dim=1).masked_fill(same, 0)
        negative_images = torch.stack([tokens[self.pick(weights_t2i[b])] for b in range(rows)])
        negative_ids, negative_masks = [], []
        for b in range(rows):
            chosen = self.pick(weights_i2t[b])
            negative_ids.append(ids[chosen])
            negative_masks.append(mask[chosen])
        all_ids = torch.cat([ids, torch.stack(negative_ids)])
        all_masks = torch.cat([mask, torch.stack(negative_masks)])
        all_images = torch.cat([negative_images, tokens])
        negative = self.text_encoder(all_ids, all_masks, all_images)[:, 0]
        logits = self.itm_head(torch.cat([positive, negative]))
        labels = torch.cat([torch.ones(rows), torch.zeros(2 * rows)]).long().to(logits.device)
        return F.cross_entropy(logits, labels)

    # ---- evaluation, one query at a time ---------------------------------------------------------------------

    @torch.no_grad()
    def score_matrices(
        self,
        image_batches: Sequence[Tensor],
        ids: Tensor,
        mask: Tensor,
        k: int,
        beta: float,
        text_batch: int = 256,
    ) -> tuple[Tensor, Tensor]:
        """Re-ranked scores (images, texts) and (texts, images); -100 where a pair was no candidate.

        image_batches: of (B, 3, H, W). ids, mask (texts, 35). A query's k pairs are one call, the image repeated."""
        text_features = [
            F.normalize(self.text_proj(self.text_encoder(i, m)[:, 0]), dim=-1)
            for i, m in zip(ids.split(text_batch), mask.split(text_batch), strict=True)
        ]
        text_features = torch.cat(text_features)
        matching_ids = ids.clone()
        matching_ids[:, 0] = self.sizes.enc_id
        all_tokens, image_features = [], []
        for image in image_batches:
            tokens = self.visual_encoder(image)
            all_tokens.append(tokens)
            image_features.append(F.normalize(self.vision_proj(tokens[:, 0]), dim=-1))
        tokens = torch.cat(all_tokens)
        similarity = torch.cat(image_features) @ text_features.t()
        image_to_text = torch.full_like(similarity, OUTSIDE_TOP_K)
        for i, row in enumerate(similarity):
            values, chosen = row.topk(k)
            repeated = tokens[i].repeat(k, 1, 1)
            states = self.text_encoder(matching_ids[chosen], mask[chosen], repeated)[:, 0]
            image_to_text[i, chosen] = self.itm_head(states)[:, 1] + beta * values
        text_to_image = torch.full_like(similarity.t(), OUTSIDE_TOP_K)
        for t, row in enumerate(similarity.t()):
            values, chosen = row.topk(k)
            states = self.text_encoder(matching_ids[t].repeat(k, 1), mask[t].repeat(k, 1), tokens[chosen])[
                :, 0
            ]
            text_to_image[t, chosen] = self.itm_head(states)[:, 1] + beta * values
        return image_to_text, text_to_image
