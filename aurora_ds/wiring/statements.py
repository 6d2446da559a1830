"""Statements about media in a run, each of which gets one of a few labels: what NLVR2 and SNLI-VE have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import RunConfig
from aurora_ds.data.decode import open_image
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.text import caption_rule
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.gallery import Answer, Query, gallery
from aurora_ds.wiring.base import Evaluation, Forward, Wiring, percent
from aurora_ds.wiring.blocks import eval_records, in_order, media_blocks, number_of_blocks

PREDICTIONS_FILE = "predictions.csv"  # identifier,label
_COLUMNS = {"accuracy": "accuracy", "consistency": "consistency"}


@dataclass(frozen=True)
class Statement:
    """A sentence about a medium; `label`: its class, None where the split has none."""

    medium: int
    identifier: str
    sentence: str
    label: int | None


@dataclass(frozen=True)
class Judgement:
    """What the model says of a statement: the likeliest class, and how probable each is."""

    says: int
    probabilities: tuple[float, ...]


class StatementWiring(Wiring):
    """`labels`: names of the classes, in the order of the model's logits. `dataset`: whose files have them. `media`:
    what they are about, and how many images that is."""

    kind = "statements"
    headline = "accuracy"
    labels: ClassVar[tuple[str, ...]]
    dataset: ClassVar[str]
    media: ClassVar[str]
    images: ClassVar[int]

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.options = getattr(config, config.task)

    def check(self) -> None:
        """What the evaluation at the end would stop at is an error now."""
        self.statements(eval_records(self.config))

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Accuracy, `more_metrics`, and the predictions file; without labels the file alone."""
        records = eval_records(self.config)
        statements = self.statements(records)
        owned: list[list[int]] = [[] for _ in records]
        for number, statement in enumerate(statements):
            owned[statement.medium].append(number)
        forward({}, what="prepare_evaluation")
        own = (
            self._judge(
                forward,
                tokenizer,
                batch["image"],
                [(n, statements[n]) for medium in block for n in owned[medium]],
                block,
            )
            for block, batch in media_blocks(self.config, len(records))
        )
        judged = in_order(own, number_of_blocks(self.config, len(records)))
        facts, metrics = {self.media: len(records), "statements": len(statements)}, {}
        if statements[0].label is not None:
            right = [one.says == statement.label for one, statement in zip(judged, statements, strict=True)]
            metrics = {"accuracy": 100 * sum(right) / len(right)}
            self.more(metrics, facts, statements, right)
        lines = [
            f"{statement.identifier},{self.labels[one.says]}\n"
            for one, statement in zip(judged, statements, strict=True)
        ]
        files = {PREDICTIONS_FILE: "".join(lines)}
        facts |= self.settings()
        return Evaluation(metrics, facts, files, details=list(zip(statements, judged, strict=True)))

    def more(
        self,
        metrics: dict[str, float],
        facts: dict[str, Any],
        statements: list[Statement],
        right: list[bool],
    ) -> None:
        """Other metrics and facts, put in; `right`: whether each statement was judged so."""

    def settings(self) -> dict[str, Any]:
        """What else decided."""
        return {}

    @abstractmethod
    def asked(
        self, tokenizer: Tokenizer, statements: list[tuple[int, Statement]], first: int
    ) -> dict[str, Tensor]:
        """Numbered statements about a block whose first medium is `first`, as the task's `judge` takes them."""

    def _judge(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        image: Tensor,
        statements: list[tuple[int, Statement]],
        block: range,
    ) -> list[Judgement]:
        """Of the numbered statements about the media of a block."""
        if not statements:
            return []
        batch = {"image": image} | self.asked(tokenizer, statements, block.start)
        device = process_group.device()
        logits = forward(
            {name: value.to(device) for name, value in batch.items()},
            what="judge",
            at_once=self.config.evaluate.text_batch_size,
        )["logits"]
        return _judgements(logits)

    def statements(self, records: list[tuple[str, dict[str, Any]]]) -> list[Statement]:
        """All that is judged, checked before anything is."""
        found = []
        for medium, (key, record) in enumerate(records):
            self._check_images(key, record)
            for number, statement in enumerate(record.get("statements", [])):
                identifier = statement.get("identifier", f"{key}-{number}")
                sentence, label = self.cleaned(statement), self.label_of(statement, required=False)
                found.append(Statement(medium, identifier, sentence, label))
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

    def _check_images(self, key: str, record: dict[str, Any]) -> None:
        count = len(record.get("sizes", (0, 0))) if record.get("kind") == "images" else 1
        if count == self.images:
            return
        what, like = (
            ("no pair of images", "pairs, such as those of `aurora-ds shards convert nlvr2`")
            if self.images == 2
            else ("no single image", "single images, such as those of `aurora-ds shards convert snli_ve`")
        )
        raise AuroraError(
            f"Sample {key} of split {self.config.data.eval_split!r} is {what} (it holds {count}). Use shards of {like}."
        )

    def cleaned(self, statement: dict[str, Any]) -> str:
        """Its sentence by the family's rule. Raises AuroraError for one without words."""
        sentence = statement.get("sentence")
        clean = caption_rule(self.config.backbone.name)
        cleaned = clean(sentence, self.options.max_words) if isinstance(sentence, str) else ""
        if not cleaned:
            raise AuroraError(
                f"Statement {_name(statement)} has no words. Correct or remove it, and convert again."
            )
        return cleaned

    def label_of(self, statement: dict[str, Any], required: bool) -> int | None:
        """Its class. Raises AuroraError for another label, or none where one is `required`."""
        label = statement.get("label")
        if label is None and not required:
            return None
        if label not in self.labels:
            what = "no label" if label is None else f"the label {label!r}"
            raise AuroraError(
                f"Statement {_name(statement)} has {what}; it must be {' or '.join(reversed(self.labels))}, as in "
                f"{self.dataset}'s files. Correct the annotations and convert again, or use another split."
            )
        return self.labels.index(label)

    # ---- results ---------------------------------------------------------------------------------

    def title(self, record: dict[str, Any]) -> str:
        """Media and statements."""
        return f"{record['split']}: {record[self.media]} {self.media}, {record['statements']} statements"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """One row."""
        return [(name, percent(metrics, _COLUMNS))]

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Statements with what they are about, and what was said of them."""
        return "statements", statement_gallery(self.config, self.labels, evaluation.details)

    # ---- single predictions ----------------------------------------------------------------------

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """`label`, as in the dataset's files, and the `probabilities` of all, for each medium and its statement."""
        if len(texts) != len(media):
            what, each = ("pairs of images", "pair") if self.images == 2 else ("images", "image")
            raise AuroraError(
                f"{len(media)} {what} need as many statements, but {len(texts)} were given: one --text for each {each}."
            )
        ids, mask = tokenizer.encode(
            [self.cleaned({"sentence": text}) for text in texts], self.options.max_tokens
        )
        forward({}, what="prepare_evaluation")
        batch = {"image": media, "input_ids": ids.to(media.device), "attention_mask": mask.to(media.device)}
        return [
            {
                "statement": text,
                "label": self.labels[one.says],
                "probabilities": dict(zip(reversed(self.labels), reversed(one.probabilities), strict=True)),
            }
            for text, one in zip(texts, _judgements(forward(batch, what="predict")["logits"]), strict=True)
        ]


def statement_gallery(
    config: RunConfig, labels: tuple[str, ...], judged: list[tuple[Statement, Judgement]]
) -> np.ndarray:
    """uint8 (3, height, width): `monitor.gallery_queries` statements spread evenly over the judged ones."""
    count = min(config.monitor.gallery_queries, len(judged))
    chosen = np.linspace(0, len(judged) - 1, count).round().astype(int) if count else []
    reader, queries = ShardReader(open_manifest(config)), []
    for statement, one in (judged[place] for place in chosen):
        sample, data = reader.read(config.data.eval_split, statement.medium), config.data
        right = None if statement.label is None else one.says == statement.label
        said = labels[one.says] + {None: "", True: ", right", False: ", wrong"}[right]
        images = [
            np.asarray(open_image(part.content, data.max_pixels, sample.key, data.image_decoder))
            for part in sample.parts
        ]
        answers = [Answer(image, right, one.probabilities[one.says], label=said) for image in images]
        queries.append(Query(statement.sentence, answers))
    reader.close()
    return gallery(queries, 2)


def _judgements(logits: Tensor) -> list[Judgement]:
    says, probabilities = logits.argmax(1), logits.softmax(1)
    return [
        Judgement(one, tuple(each)) for one, each in zip(says.tolist(), probabilities.tolist(), strict=True)
    ]


def _name(statement: dict[str, Any]) -> str:
    return str(statement.get("identifier") or repr(statement.get("sentence")))


def _listed(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
