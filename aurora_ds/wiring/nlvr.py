"""Statements about pairs of images (NLVR2) in a run: labels, exchanged images, accuracy and consistency.

Official identifiers are split-set-pair-sentence. One sentence is written for the pairs of a set, true of some and false
of others; consistency is the share of sentences that are judged right for all their pairs (Suhr et al. 2019, §6).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import RunConfig
from aurora_ds.data.decode import open_image
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.text import caption_rule
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.gallery import Answer, Query, gallery
from aurora_ds.tasks.nlvr import NlvrTask, drawn_to_turn
from aurora_ds.wiring.base import Evaluation, Forward, Wiring, attach_prompts, percent
from aurora_ds.wiring.blocks import eval_records, in_order, media_blocks, number_of_blocks

PREDICTIONS_FILE = "predictions.csv"  # as the official script reads it: identifier,label
LABELS = {"True": True, "False": False}
_COLUMNS = {"accuracy": "accuracy", "consistency": "consistency"}
_IDENTIFIER = re.compile(r"(\w+-\d+)-\d+-(\d+)")
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Statement:
    """A sentence about a pair; `label` None where the split has none."""

    pair: int
    identifier: str
    sentence: str
    label: bool | None

    @property
    def group(self) -> tuple[str, ...] | None:
        """The same for all statements of one sentence; None without an official identifier."""
        found = _IDENTIFIER.fullmatch(self.identifier)
        return found and found.groups()


@dataclass(frozen=True)
class Judgement:
    """What the model says of a statement: whether it is true, and how probable that is."""

    says: bool
    probability: float


class NlvrWiring(Wiring):
    """Two-image reasoning."""

    kind = "statements"
    headline = "accuracy"
    takes = ("pair",)

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone."""
        prompts = attach_prompts(loaded.model, self.config)
        return NlvrTask(loaded.model, prompts, self.config.backbone.text, self.config.seed)

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Statements -> input_ids, attention_mask, label; with nlvr.swap also the sentences for exchanged images,
        swapped_ids, swapped_mask, of the same shape."""
        options = self.config.nlvr

        def texts(statements: list[dict[str, Any]]) -> dict[str, Tensor]:
            sentences = [self._cleaned(statement) for statement in statements]
            labels = [_label(statement, required=True) for statement in statements]
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

    def check(self) -> None:
        """What the evaluation at the end would stop at is an error now."""
        self._statements(eval_records(self.config))

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """`step` keys which pairs are exchanged."""
        return {"step": step}

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Accuracy, consistency where identifiers are official, and the predictions file; without labels the file
        alone."""
        records = eval_records(self.config)
        statements = self._statements(records)
        owned: list[list[int]] = [[] for _ in records]
        for number, statement in enumerate(statements):
            owned[statement.pair].append(number)
        forward({}, what="prepare_evaluation")
        own = (
            self._judge(
                forward,
                tokenizer,
                batch["image"],
                [(n, statements[n]) for pair in block for n in owned[pair]],
                block,
            )
            for block, batch in media_blocks(self.config, len(records))
        )
        judged = in_order(own, number_of_blocks(self.config, len(records)))
        facts = {"pairs": len(records), "statements": len(statements)}
        metrics = {}
        if statements[0].label is not None:
            right = [one.says == statement.label for one, statement in zip(judged, statements, strict=True)]
            metrics = {"accuracy": 100 * sum(right) / len(right)}
            groups = [statement.group for statement in statements]
            if None not in groups:
                wrong = {group for group, each in zip(groups, right, strict=True) if not each}
                metrics["consistency"] = 100 * (1 - len(wrong) / len(set(groups)))
                facts["sentences"] = len(set(groups))
        lines = [
            f"{statement.identifier},{one.says}\n" for one, statement in zip(judged, statements, strict=True)
        ]
        facts["swap"] = self.config.nlvr.swap
        files = {PREDICTIONS_FILE: "".join(lines)}
        return Evaluation(metrics, facts, files, details=list(zip(statements, judged, strict=True)))

    def _judge(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        image: Tensor,
        statements: list[tuple[int, Statement]],
        block: range,
    ) -> list[Judgement]:
        """Of the numbered statements about the pairs of a block."""
        if not statements:
            return []
        numbers = torch.tensor([number for number, _ in statements])
        turned = torch.zeros(len(numbers), dtype=torch.bool)
        if self.config.nlvr.swap == "released":
            turned = drawn_to_turn(numbers, self.config.seed, 0)
        sentences = [
            exchanged(each.sentence) if turn else each.sentence
            for (_, each), turn in zip(statements, turned.tolist(), strict=True)
        ]
        ids, mask = tokenizer.encode(sentences, self.config.nlvr.max_tokens)
        pairs = torch.tensor([each.pair - block.start for _, each in statements])
        batch = {"image": image, "input_ids": ids, "attention_mask": mask, "pair": pairs, "turned": turned}
        device = process_group.device()
        logits = forward(
            {name: value.to(device) for name, value in batch.items()},
            what="judge",
            at_once=self.config.evaluate.text_batch_size,
        )["logits"]
        return _judgements(logits)

    def _statements(self, records: list[tuple[str, dict[str, Any]]]) -> list[Statement]:
        """All that is judged, checked before anything is."""
        found = []
        for pair, (key, record) in enumerate(records):
            count = len(record.get("sizes", (0, 0))) if record.get("kind") == "images" else 1
            if count != 2:
                raise AuroraError(
                    f"Sample {key} of split {self.config.data.eval_split!r} is no pair of images (it holds {count}). "
                    "Use shards of pairs, such as those of `aurora-ds shards convert nlvr2`."
                )
            for number, statement in enumerate(record.get("statements", [])):
                identifier = statement.get("identifier", f"{key}-{number}")
                sentence, label = self._cleaned(statement), _label(statement, required=False)
                found.append(Statement(pair, identifier, sentence, label))
        place = f"Split {self.config.data.eval_split!r} in {self.config.data.shards}"
        if not found:
            raise AuroraError(
                f"{place} has no statements to judge. Set data.eval_split; `aurora-ds shards inspect` shows what there "
                "is."
            )
        twice = [name for name, count in Counter(each.identifier for each in found).items() if count > 1]
        if twice:
            raise AuroraError(
                f"{place} has {len(twice)} identifiers more than once ({_listed(twice)}), so predictions could not be "
                "told apart. Give each statement its own identifier and convert the shards again."
            )
        bare = [each.identifier for each in found if each.label is None]
        if bare and len(bare) < len(found):
            raise AuroraError(
                f"{place} has labels for some statements and none for {len(bare)} ({_listed(bare)}). Give all of them "
                "labels, or none, for the predictions alone."
            )
        return found

    def _cleaned(self, statement: dict[str, Any]) -> str:
        sentence = statement.get("sentence")
        clean = caption_rule(self.config.backbone.name)
        cleaned = clean(sentence, self.config.nlvr.max_words) if isinstance(sentence, str) else ""
        if not cleaned:
            raise AuroraError(
                f"Statement {_name(statement)} has no words. Correct or remove it, and convert again."
            )
        return cleaned

    def title(self, record: dict[str, Any]) -> str:
        """Pairs and statements."""
        return f"{record['split']}: {record['pairs']} pairs, {record['statements']} statements"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """One row."""
        return [(name, percent(metrics, _COLUMNS))]

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """Whether images were exchanged."""
        return ["images exchanged at random"] if record["swap"] == "released" else []

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Statements with both images, and what was said of them."""
        return "statements", statement_gallery(self.config, evaluation.details)

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """`label`, True or False as in NLVR2's files, and the `probabilities` of both, for each pair and its
        statement."""
        if len(texts) != len(media):
            raise AuroraError(
                f"{len(media)} pairs of images need as many statements, but {len(texts)} were given: one --text for "
                "each pair."
            )
        ids, mask = tokenizer.encode(
            [self._cleaned({"sentence": text}) for text in texts], self.config.nlvr.max_tokens
        )
        forward({}, what="prepare_evaluation")
        batch = {"image": media, "input_ids": ids.to(media.device), "attention_mask": mask.to(media.device)}
        return [
            {
                "statement": text,
                "label": str(one.says),
                "probabilities": {"True": one.probability, "False": 1 - one.probability},
            }
            for text, one in zip(texts, _judgements(forward(batch, what="predict")["logits"]), strict=True)
        ]


def exchanged(sentence: str) -> str:
    """The sentence for exchanged images: the words left and right in each other's place, as published: words are what
    stands between spaces, so `leftmost` stays."""
    return " ".join(_OTHER_SIDE.get(word, word) for word in sentence.split(" "))


def statement_gallery(config: RunConfig, judged: list[tuple[Statement, Judgement]]) -> np.ndarray:
    """uint8 (3, height, width): `monitor.gallery_queries` statements spread evenly over the judged ones."""
    count = min(config.monitor.gallery_queries, len(judged))
    chosen = np.linspace(0, len(judged) - 1, count).round().astype(int) if count else []
    reader, queries = ShardReader(open_manifest(config)), []
    for statement, one in (judged[place] for place in chosen):
        sample, data = reader.read(config.data.eval_split, statement.pair), config.data
        right = None if statement.label is None else one.says == statement.label
        said = f"{one.says}" + {None: "", True: ", right", False: ", wrong"}[right]
        score = one.probability if one.says else 1 - one.probability
        images = [
            np.asarray(open_image(part.content, data.max_pixels, sample.key, data.image_decoder))
            for part in sample.parts
        ]
        answers = [Answer(image, right, score, label=said) for image in images]
        queries.append(Query(statement.sentence, answers))
    reader.close()
    return gallery(queries, 2)


def _judgements(logits: Tensor) -> list[Judgement]:
    says, probability = logits.argmax(1).bool(), logits.softmax(1)[:, 1]
    return [Judgement(*each) for each in zip(says.tolist(), probability.tolist(), strict=True)]


def _label(statement: dict[str, Any], required: bool) -> bool | None:
    label = statement.get("label")
    if label is None and not required:
        return None
    if label not in LABELS:
        what = "no label" if label is None else f"the label {label!r}"
        raise AuroraError(
            f"Statement {_name(statement)} has {what}; it must be True or False, as in NLVR2's files. Correct the "
            "annotations and convert again, or use another split."
        )
    return LABELS[label]


def _name(statement: dict[str, Any]) -> str:
    return str(statement.get("identifier") or repr(statement.get("sentence")))


def _listed(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
