"""Image-text and video-text retrieval: contrastive loss with queue and soft targets, matching loss with hard negatives
(BLIP §3.2).

The task is the module that the engine wraps: `forward(batch)` gives the losses, `forward(batch, what=…)`
the pieces that evaluation needs. It asks a backbone for `image_states`, `text_states`, `image_keys`, `matched` and the
heads, and knows no file format.

With `contrast=global` every rank sees the global batch's keys, in the order of the global batch, and
negatives are keyed by sample: losses and gradients do not depend on the number of ranks. `contrast=local`
is the published per-rank form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.prompts import ContextEnhancement, Prompts
from aurora_ds.tasks.collectives import gather_rows, sum_over_ranks, world
from aurora_ds.tasks.contrast import Features, contrastive_loss
from aurora_ds.tasks.feature_queue import FeatureQueue
from aurora_ds.tasks.frame_attention import frame_scales
from aurora_ds.tasks.gathered_keys import gather_with_gradient
from aurora_ds.tasks.matching import fetch_chosen, pair_states
from aurora_ds.tasks.momentum import ModelFactory, SlotMomentum, TwinMomentum
from aurora_ds.tasks.negatives import draw, keyed_uniform

TEMPERATURE_RANGE = (0.001, 0.5)


def _wide(x: Tensor) -> Tensor:
    """16-bit numbers as fp32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@dataclass
class Online:
    """What the online model gave for the rank's batch, with graph."""

    tokens: Tensor  # (B, T·(N+1), D)
    frames: Tensor  # frame features (B, T, E)
    image: Tensor  # (B, E)
    text: Tensor  # (B, E)
    text_cls: Tensor  # (B, H)


class RetrievalTask(nn.Module):
    """Losses and evaluation pieces of retrieval over one backbone.

    Args:
        model: backbone with `image_states`, `text_states`, `image_keys`, `matched`, `vision_proj`, `text_proj`,
            `itm_head`.
        config: with its preset resolved. prompts: what was attached to `model`; None for full fine-tuning.
        temperature: the checkpoint's own, used when `retrieval.temperature` is null.
        twin: builds a bare second backbone (and its prompts) when `retrieval.momentum_model=twin`.
        momentum_weights, queues: the checkpoint's, when they were asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        prompts: Prompts | None,
        temperature: float,
        twin: ModelFactory | None = None,
        momentum_weights: dict[str, Tensor] | None = None,
        queues: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.prompts, self.config = model, prompts, config
        options = self.options = config.retrieval
        value = options.temperature or temperature
        self.temp = nn.Parameter(torch.tensor([float(value)])) if options.train_temperature else None
        self._temperature: Tensor | float = float(value)
        if prompts is None and options.momentum_model == "slot":
            raise AuroraError(
                "Full fine-tuning has no adapter slot to keep a momentum copy in. Set retrieval.momentum_model=twin."
            )
        dropout = bool(options.momentum_dropout)
        if options.momentum_model == "off":
            self.momentum_model = None
        elif options.momentum_model == "slot":
            self.momentum_model = SlotMomentum(model, prompts, dropout)
        else:
            self.momentum_model = TwinMomentum(
                model, prompts, twin, momentum_weights, dropout, without=model.FOR_PAIRS
            )
        self.queue = FeatureQueue(config.backbone.embed_dim, options.queue_size, config.seed)
        if queues:
            self.queue.load(queues)
        self.context = ContextEnhancement(
            # what was attached decides: heads alone train without context
            *(("off", 0.0) if prompts is None else (prompts.config.context, prompts.config.context_scale))
        )
        self.interleaved = options.contrast == "global"
        self.draw = draw  # verification puts recorded draws in its place

    # ---- entry points ----------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any], what: str = "loss", **arguments: Any) -> dict[str, Tensor]:
        """`what`: loss (needs `step`, `alpha`), encode_images, encode_texts, image_keys or match. One
        entry, so that an engine that gathers parameters per forward serves all of them."""
        return getattr(self, what)(batch, **arguments)

    def temperature(self) -> Tensor | float:
        """The clamped temperature; its gradient passes through the clamp, as the published in-place clamp
        lets it."""
        if self.temp is None:
            return min(max(self._temperature, TEMPERATURE_RANGE[0]), TEMPERATURE_RANGE[1])
        raw = self.temp.float().squeeze()
        return raw + (raw.clamp(*TEMPERATURE_RANGE) - raw).detach()

    def temperature_value(self) -> float:
        """The temperature as a number; while it is trained, as the last step read it (it may be partitioned now)."""
        return float(self._temperature)

    def _refresh_values(self, momentum: float | None):
        if self.prompts is None or self.prompts.active is None:
            return None
        return self.prompts.refresh(momentum)

    # ---- features --------------------------------------------------------------------------------

    def _image_features(self, model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image (B, 3, H, W) or clips (B, T, 3, H, W) -> tokens (B, T·(N+1), D), feature (B, E), frame
        features (B, T, E)."""
        frames = image.shape[1] if image.dim() == 5 else 1
        tokens, first = model.image_states(image.flatten(0, 1) if image.dim() == 5 else image)
        first = first.unflatten(0, (-1, frames))  # (B, T, D)
        feature = F.normalize(_wide(model.vision_proj(first.mean(1))), dim=-1)
        frame_features = (
            F.normalize(_wide(model.vision_proj(first)), dim=-1) if frames > 1 else feature.unsqueeze(1)
        )
        return tokens.unflatten(0, (-1, frames)).flatten(1, 2), feature, frame_features

    def _text_features(
        self, model: nn.Module, ids: Tensor, mask: Tensor, trace: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """ids, mask (B, L) -> state of the first token (B, H), feature (B, E)."""
        states = model.text_states(ids, mask)
        if trace is not None:
            trace["text_embeds"] = states
        first = states[:, 0]
        return first, F.normalize(_wide(model.text_proj(first)), dim=-1)

    # ---- training --------------------------------------------------------------------------------

    def loss(
        self,
        batch: dict[str, Any],
        step: int = 0,
        alpha: float | None = None,
        trace: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch: `loss` = `loss_ita` + `loss_itm` (scalars, fp32), mean over the rank's rows; and
        `loss_auxiliary`, where the model has a loss of its own.

        Args:
            step: optimizer step, a key of the negatives. alpha: weight of the soft targets in this step;
            null: the final one.
            trace: when given, intermediate tensors are put in, under the names of the published code (for
            verification).
        """
        with self.model.auxiliary() as auxiliary:
            losses = self._losses(batch, step, self.options.alpha if alpha is None else alpha, trace)
            own = auxiliary()
        return losses if own is None else losses | {"loss": losses["loss"] + own, "loss_auxiliary": own}

    def _losses(
        self, batch: dict[str, Any], step: int, alpha: float, trace: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        options = self.options
        temperature = self.temperature()
        self._temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
        ids, mask, media = batch["input_ids"], batch["attention_mask"], batch["media_index"]
        momentum_values = self._refresh_values(None if self.momentum_model is None else options.momentum)

        if self.momentum_model is not None:
            with torch.no_grad(), self.momentum_model(momentum_values, options.momentum) as other:
                tokens_m, image_m, _ = self._image_features(other, batch["image"])
                _, text_m = self._text_features(other, ids, mask)
        tokens, image, frames = self._image_features(self.model, batch["image"])
        text_cls, text = self._text_features(self.model, ids, mask, trace)

        if self.momentum_model is None:  # the keys are the batch's own features, and learn too
            tokens_m, image_m, text_m = tokens, image, text
            both = gather_with_gradient(torch.cat([image, text], dim=1), self.interleaved)
            all_image_m, all_text_m = both.chunk(2, dim=1)
            all_image, all_text = all_image_m.detach(), all_text_m.detach()
        else:
            gathered = gather_rows(
                torch.cat([image_m, text_m, image.detach(), text.detach()], dim=1), self.interleaved
            )
            all_image_m, all_text_m, all_image, all_text = gathered.chunk(4, dim=1)
        all_media = gather_rows(media, self.interleaved)

        everyone = options.contrast == "global"
        keys = Features(all_image_m, all_text_m, all_media) if everyone else Features(image_m, text_m, media)
        loss_ita = contrastive_loss(
            Features(image, text, media),
            Features(image_m, text_m, media),
            keys,
            self.queue.to(image.device),
            temperature,
            alpha,
            noise_is_negative=not everyone,
            trace=trace,
        )
        self.queue.write(all_image_m, all_text_m, all_media)

        online = Online(tokens, frames, image, text, text_cls)
        own, others = Features(image.detach(), text.detach(), media), Features(all_image, all_text, all_media)
        likeness = own, others
        if options.negative_similarity == "momentum":
            likeness = Features(image_m, text_m, media), Features(all_image_m, all_text_m, all_media)
        loss_itm = self._matching(batch, online, own, others, likeness, temperature, step, trace)
        if trace is not None:
            trace.update(
                image_embeds=tokens,
                image_embeds_m=tokens_m,
                image_feat=image,
                text_feat=text,
                image_feat_m=image_m,
                text_feat_m=text_m,
                frame_feat=frames,
            )
        return {"loss": loss_ita + loss_itm, "loss_ita": loss_ita, "loss_itm": loss_itm}

    def _matching(
        self,
        batch: dict[str, Any],
        online: Online,
        own: Features,
        others: Features,
        likeness: tuple[Features, Features],
        temperature: Tensor | float,
        step: int,
        trace: dict[str, Tensor] | None,
    ) -> Tensor:
        """Cross entropy over B positives, B texts with a negative image, B images with a negative text.

        `own`, `others`: online features of this rank's and of all ranks' pairs. `likeness`: features of the same, by
        which negatives are drawn."""
        ids, mask, media = batch["input_ids"], batch["attention_mask"], batch["media_index"]
        tokens, frames, rows = online.tokens, online.frames, len(media)
        image, text = own.image, own.text
        everywhere = self.options.negatives == "all_ranks" and world()[1] > 1
        candidates, keys = (others, likeness[1]) if everywhere else (own, likeness[0])
        with torch.no_grad():
            temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
            different = media[:, None] != candidates.media  # (B, candidates)
            floor, how = self.options.negative_floor, self.options.negative_sampling
            weights_image = ((text @ keys.image.t() / temperature).softmax(1) + floor) * different
            weights_text = ((image @ keys.text.t() / temperature).softmax(1) + floor) * different
            uniform = self._uniform(batch, step, rows)
            negative_image, usable_image = self.draw(weights_image, how, uniform[0])
            negative_text, usable_text = self.draw(weights_text, how, uniform[1])

        ids = torch.cat([ids.new_full((rows, 1), self.config.backbone.text.enc_id), ids[:, 1:]], dim=1)
        if everywhere:
            other_tokens, other_frames, other_ids, other_mask = fetch_chosen(
                tokens, frames, ids, mask, negative_image, negative_text, self.interleaved
            )
        else:
            other_tokens, other_frames = None, frames[negative_image]
            other_ids, other_mask = ids[negative_text], mask[negative_text]

        scales = None
        if self._weighs(frames):
            of_texts = torch.cat([text, text, candidates.text[negative_text]])
            of_frames = torch.cat([frames, other_frames, frames])
            scales = frame_scales(of_texts, of_frames, tokens.shape[1]).to(tokens.dtype)
        states = pair_states(
            self.model, tokens, other_tokens, negative_image, ids, mask, other_ids, other_mask, scales, trace
        )
        states = self.context.apply(states, self.context.training_term(online.text_cls), rows)
        logits = _wide(self.model.itm_head(states))
        labels = torch.cat([torch.ones_like(media), torch.zeros_like(media), torch.zeros_like(media)])
        # rows whose whole candidate set shows the same medium have no negative: they count as absent, on
        # all ranks alike
        usable = torch.cat([torch.ones_like(usable_image), usable_image, usable_text]).float()
        each = F.cross_entropy(logits, labels, reduction="none")
        if self.options.contrast == "global":
            loss = (each * usable).sum() * world()[1] / sum_over_ranks(usable.sum())
        else:
            loss = (each * usable).sum() / usable.sum()
        if trace is not None:
            trace.update(
                neg_image_idx=negative_image, neg_text_idx=negative_text, itm_logits=logits, itm_in=states
            )
            trace.update(neg_weights_t2i=weights_image, neg_weights_i2t=weights_text)
        return loss

    def _uniform(self, batch: dict[str, Any], step: int, rows: int) -> tuple[Tensor | None, Tensor | None]:
        if self.options.negative_sampling != "keyed":
            return None, None
        sample, seed = batch["sample_index"], self.config.seed
        return keyed_uniform(sample, seed, step, 0), keyed_uniform(sample, seed, step, 1)

    def _weighs(self, frames: Tensor) -> bool:
        """Whether the frames (B, T, E) of a clip get weights: an image has nothing to weigh."""
        return self.options.frame_weights != "off" and frames.shape[1] > 1

    # ---- evaluation ------------------------------------------------------------------------------

    def prepare_evaluation(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the adapter's values once; call before the other evaluation pieces. `batch` is not read."""
        self._refresh_values(None)
        return {}

    def encode_images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """-> `tokens` (B, T·(N+1), D), `feature` (B, E) fp32; where frames are weighed, theirs: `frames` (B, T, E)."""
        tokens, feature, frames = self._image_features(self.model, batch["image"])
        weighed = self._weighs(frames) and self.options.frame_weights == "consistent"
        return {"tokens": tokens, "feature": feature} | ({"frames": frames} if weighed else {})

    def encode_texts(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """-> `feature` (B, E) fp32."""
        return {"feature": self._text_features(self.model, batch["input_ids"], batch["attention_mask"])[1]}

    def image_keys(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`tokens` (B, N, D) -> `image_kv`, what matching needs of them: keys and values per layer."""
        return {"image_kv": self.model.image_keys(batch["tokens"])}

    def match(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`tokens` (1, N, D) or ready `image_kv` of one image, texts (P, L), perhaps `key_scale` (P, N) -> `logits`
        (P, 2) fp32. Texts start with any first token; the matching token is put there."""
        keys = batch["image_kv"] if "image_kv" in batch else self.model.image_keys(batch["tokens"])
        ids = batch["input_ids"].clone()
        ids[:, 0] = self.config.backbone.text.enc_id
        mask, scale = batch["attention_mask"], batch.get("key_scale")
        states = self.model.matched(ids, mask, keys, group_size=len(ids), key_scale=scale)[:, 0]
        term = self.context.evaluation_term()
        if term is not None:
            states = states + term.to(states)
        return {"logits": _wide(self.model.itm_head(states))}

    # ---- state that is neither backbone nor adapter ----------------------------------------------

    def buffers_to_save(self, with_queue: bool = True) -> dict[str, Tensor]:
        """Queue, momentum copies, running context: what training needs to go on where it was. Equal on
        every rank."""
        kept = {} if self.momentum_model is None else self.momentum_model.state()
        state = {k: v.detach().cpu().contiguous() for k, v in kept.items()}
        if with_queue:
            state |= {f"queue.{k}": v.detach().cpu().contiguous() for k, v in self.queue.state().items()}
        if self.context.running is not None:
            state["context_running"] = self.context.running.detach().cpu()
        return state

    def load_buffers(self, state: dict[str, Tensor]) -> None:
        if self.momentum_model is not None:
            self.momentum_model.load(state)
        queue = {k.removeprefix("queue."): v for k, v in state.items() if k.startswith("queue.")}
        if queue:
            self.queue.load(queue)
        if "context_running" in state:
            self.context.running = state["context_running"].clone()
