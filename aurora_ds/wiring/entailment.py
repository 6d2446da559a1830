"""Visual entailment (SNLI-VE) in a run: what a photo says of a statement, and how often that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.tasks.entailment import EntailmentTask
from aurora_ds.wiring.base import attach_prompts
from aurora_ds.wiring.statements import Statement, StatementWiring


class EntailmentWiring(StatementWiring):
    """Statements about single images. Classes are in mPLUG's order."""

    labels = ("contradiction", "neutral", "entailment")
    dataset = "SNLI-VE"
    media, images = "images", 1
    takes = ("image",)

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone."""
        prompts = attach_prompts(loaded.model, self.config)
        return EntailmentTask(loaded.model, prompts, self.config.backbone.text)

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Statements -> input_ids, attention_mask, label."""

        def texts(statements: list[dict[str, Any]]) -> dict[str, Tensor]:
            labels = [self.label_of(statement, required=True) for statement in statements]
            ids, mask = self._encoded(tokenizer, [self.cleaned(statement) for statement in statements])
            return {"input_ids": ids, "attention_mask": mask, "label": torch.tensor(labels)}

        return texts

    def asked(
        self, tokenizer: Tokenizer, statements: list[tuple[int, Statement]], first: int
    ) -> dict[str, Tensor]:
        """Their texts, and the image of each."""
        ids, mask = self._encoded(tokenizer, [each.sentence for _, each in statements])
        rows = torch.tensor([each.medium - first for _, each in statements])
        return {"input_ids": ids, "attention_mask": mask, "image_index": rows}

    def _encoded(self, tokenizer: Tokenizer, sentences: list[str]) -> tuple[Tensor, Tensor]:
        return tokenizer.encode(sentences, self.options.max_tokens)
