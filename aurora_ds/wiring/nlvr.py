"""Statements about pairs of images (NLVR2) in a run: exchanged images, accuracy and consistency.

Official identifiers are split-set-pair-sentence. One sentence is written for the pairs of a set, true of some and false
of others; consistency is the share of sentences that are judged right for all their pairs (Suhr et al. 2019, §6).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.tasks.nlvr import NlvrTask, drawn_to_turn
from aurora_ds.wiring.base import attach_prompts
from aurora_ds.wiring.statements import Statement, StatementWiring

_IDENTIFIER = re.compile(r"(\w+-\d+)-\d+-(\d+)")
_OTHER_SIDE = {"left": "right", "right": "left"}


class NlvrWiring(StatementWiring):
    """Two-image reasoning."""

    labels = ("False", "True")
    dataset = "NLVR2"
    media, images = "pairs", 2
    takes = ("pair",)

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone."""
        prompts = attach_prompts(loaded.model, self.config)
        return NlvrTask(loaded.model, prompts, self.config.backbone.text, self.config.seed)

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Statements -> input_ids, attention_mask, label; with nlvr.swap also the sentences for exchanged images,
        swapped_ids, swapped_mask, of the same shape."""
        options = self.options

        def texts(statements: list[dict[str, Any]]) -> dict[str, Tensor]:
            sentences = [self.cleaned(statement) for statement in statements]
            labels = [self.label_of(statement, required=True) for statement in statements]
            turned = [] if options.swap == "off" else [exchanged(sentence) for sentence in sentences]
            ids, mask = tokenizer.encode(sentences + turned, options.max_tokens)
            count = len(sentences)
            found = {
                "input_ids": ids[:count],
                "attention_mask": mask[:count],
                "label": torch.tensor(labels).long(),
            }
            return found | ({"swapped_ids": ids[count:], "swapped_mask": mask[count:]} if turned else {})

        return texts

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """`step` keys which pairs are exchanged."""
        return {"step": step}

    def more(
        self,
        metrics: dict[str, float],
        facts: dict[str, Any],
        statements: list[Statement],
        right: list[bool],
    ) -> None:
        """Consistency, where identifiers are official."""
        groups = [_group(statement) for statement in statements]
        if None not in groups:
            wrong = {group for group, each in zip(groups, right, strict=True) if not each}
            metrics["consistency"] = 100 * (1 - len(wrong) / len(set(groups)))
            facts["sentences"] = len(set(groups))

    def settings(self) -> dict[str, Any]:
        """Whether images were exchanged."""
        return {"swap": self.options.swap}

    def asked(
        self, tokenizer: Tokenizer, statements: list[tuple[int, Statement]], first: int
    ) -> dict[str, Tensor]:
        """Their texts, the pair of each, and which are about exchanged images."""
        numbers = torch.tensor([number for number, _ in statements])
        turned = torch.zeros(len(numbers), dtype=torch.bool)
        if self.options.swap == "released":
            turned = drawn_to_turn(numbers, self.config.seed, 0)
        sentences = [
            exchanged(each.sentence) if turn else each.sentence
            for (_, each), turn in zip(statements, turned.tolist(), strict=True)
        ]
        ids, mask = tokenizer.encode(sentences, self.options.max_tokens)
        pairs = torch.tensor([each.medium - first for _, each in statements])
        return {"input_ids": ids, "attention_mask": mask, "pair": pairs, "turned": turned}

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """Whether images were exchanged."""
        return ["images exchanged at random"] if record["swap"] == "released" else []


def exchanged(sentence: str) -> str:
    """The sentence for exchanged images: the words left and right in each other's place, as published: words are what
    stands between spaces, so `leftmost` stays."""
    return " ".join(_OTHER_SIDE.get(word, word) for word in sentence.split(" "))


def _group(statement: Statement) -> tuple[str, ...] | None:
    """The same for all statements of one sentence; None without an official identifier."""
    found = _IDENTIFIER.fullmatch(statement.identifier)
    return found and found.groups()
