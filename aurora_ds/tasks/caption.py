"""Captioning of images and clips (BLIP §4): the loss of captions after a prompt, and captions written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import CaptionConfig, GenerationConfig, TextConfig
from aurora_ds.prompts import Prompts
from aurora_ds.tasks.collectives import sum_over_ranks, world
from aurora_ds.tasks.generation import Context, Written, write
from aurora_ds.tasks.language import LanguageTask, next_targets, token_losses, with_first


class CaptionTask(LanguageTask):
    """Loss and evaluation pieces of captioning.

    Args:
        model: backbone with `image_tokens`, `text_decoder`. text: for its special token ids.
        prompts: what was attached to `model`; None for full fine-tuning.
        prompt: int64 (P,), the tokenised words that captions begin with, first and end token around them.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts | None,
        options: CaptionConfig,
        text: TextConfig,
        prompt: Tensor,
    ) -> None:
        super().__init__(model, prompts)
        self.options, self.text = options, text
        # captions are about the prompt's continuation, so its end token is no part of it
        begin = torch.cat([prompt.new_tensor([text.bos_id]), prompt[1:-1]])
        self.register_buffer("prompt", begin, persistent=False)

    def loss(self, batch: dict[str, Any], trace: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`loss`, scalar: mean over the tokens that follow the prompt, of all ranks' captions.

        Args:
            batch: `image` (B, 3, H, W) or (B, T, 3, H, W); `input_ids`, `attention_mask` (B, L) of the captions with
                the prompt in front. trace: when given, intermediate tensors are put in (for verification).
        """
        self.refresh()
        tokens, decoder = self.image_tokens(batch["image"]), self.model.text_decoder
        ids, mask = with_first(batch["input_ids"], self.text.bos_id), batch["attention_mask"]
        states = decoder(ids, mask, decoder.context_kv(tokens))
        losses, _ = token_losses(
            decoder, states[:, :-1], next_targets(ids, mask, len(self.prompt)), self.options.label_smoothing
        )
        count = sum_over_ranks(losses.new_tensor([float(len(losses))])) / world()[1]  # tokens per rank
        if trace is not None:
            trace.update(image_embeds=tokens, logits=decoder.scores(states))
        return {"loss": losses.sum() / count.clamp(min=1)[0]}

    @torch.no_grad()
    def generate(self, batch: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
        """Written captions: `ids` (B, longest), the prompt in front, and `scores` (B,) as of `generation.write`.

        `sample_index` (B,) of the batch, where it is there, keys nucleus sampling."""
        context = Context(self.model.text_decoder.context_kv(self.image_tokens(batch["image"])))
        written = self.written(context, self.options.generation, batch.get("sample_index"), seed)
        return {"ids": written.ids, "scores": written.scores}

    def written(
        self, context: Context, settings: GenerationConfig, keys: Tensor | None = None, seed: int = 0
    ) -> Written:
        """Captions with this task's prompt and tokens; arguments as of `generation.write`."""
        ends = (self.text.sep_id, self.text.pad_id)
        return write(self.model.text_decoder, context, self.prompt, settings, *ends, keys, seed)


def caption_words(tokenizer: Tokenizer, ids: Tensor, prompt: Tensor) -> list[str]:
    """Written ids (B, L) as captions: what follows the words of `prompt` (P,), as published (BLIP §4)."""
    begin = tokenizer.decode(prompt[None])[0]
    return [text.removeprefix(begin).strip() for text in tokenizer.decode(ids)]
