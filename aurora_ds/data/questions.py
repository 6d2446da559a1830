"""Questions of shards as tensors (BLIP §4, released code), and the list of answers that ranking chooses from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aurora_ds.config import RunConfig, VqaConfig
from aurora_ds.data.image_words import image_words
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.text import eve_question, pre_question
from aurora_ds.errors import AuroraError

ANSWER_LIST = "answer_list.json"
_UNCUT = 2**30  # tokens
_SHOWN = 5


class Tokenizer(Protocol):
    """What this module needs of backbones.tokenizer.Tokenizer."""

    @property
    def separator(self) -> str:
        """What stands for the end of a text inside one."""
        ...

    def encode(self, texts: list[str], max_tokens: int, single: bool = False) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask), int64 (texts, longest)."""
        ...


# ---- training


def answered(question: Mapping[str, Any], record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A question of sample `key` to train on, with the `dataset` that its record names.

    Raises AuroraError when it has no text, no answers, or one that is no text with a weight above 0."""
    where = f"Question {question.get('question_id', question.get('question'))!r} of sample {key}"
    answers = question.get("answers")
    if not isinstance(question.get("question"), str):
        raise AuroraError(f"{where} has no text. Correct the annotations and convert them again.")
    if not answers:
        raise AuroraError(
            f"{where} has no answers, so nothing can be learned from it. Train on a split with answers "
            "(data.train_split, data.mix): test splits have none. Of your own data, convert it again without the "
            "questions that nobody answered."
        )
    check_answers(answers, where)
    return {**question, "dataset": record.get("dataset")}


def check_answers(answers: Any, where: str) -> None:
    """Raises AuroraError when they are not [{"answer": text, "weight": number above 0}, …]; `where` names the
    question."""
    if not isinstance(answers, list):
        raise AuroraError(
            f"{where} has {answers!r} as its answers, which is no list. Convert the dataset again."
        )
    for each in answers:
        fields = each if isinstance(each, Mapping) else {}
        weight = fields.get("weight")
        if not isinstance(fields.get("answer"), str) or not isinstance(weight, int | float) or not weight > 0:
            raise AuroraError(
                f'{where} has the answer {json.dumps(each)[:120]}; expected {{"answer": text, "weight": number above '
                "0}. Convert the dataset again."
            )


def question_texts(config: RunConfig, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
    """What makes a batch's tensors of B questions that `answered` gave: input_ids, attention_mask (B, L) of the
    questions; answer_ids, answer_mask (A, La) of all their answers; answer_question int64 (A,), the row of the question
    that each belongs to; answer_weights fp32 (A,)."""
    options, positions = config.vqa, config.backbone.text.max_positions

    def texts(questions: list[Any]) -> dict[str, Tensor]:
        read = [
            as_read(each["question"], image_words(each, options), options, tokenizer) for each in questions
        ]
        input_ids, attention_mask = tokenizer.encode(read, options.max_tokens, single=True)
        answers = [(row, each) for row, question in enumerate(questions) for each in question["answers"]]
        answer_ids, answer_mask = encode_answers(
            [each["answer"] for _, each in answers], positions, tokenizer
        )
        weights = [loss_weight(each["weight"], questions[row]["dataset"], options) for row, each in answers]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "answer_ids": answer_ids,
            "answer_mask": answer_mask,
            "answer_question": torch.tensor([row for row, _ in answers]),
            "answer_weights": torch.tensor(weights, dtype=torch.float32),
        }

    return texts


def loss_weight(recorded: float, dataset: str | None, options: VqaConfig) -> float:
    """What an answer weighs in the loss: `recorded`, its share of the annotators, unless `options` says otherwise."""
    if dataset == "vg":
        return options.visual_genome_weight
    return recorded if options.answer_weight is None else options.answer_weight


def as_read(question: str, words: Sequence[str], options: VqaConfig, tokenizer: Tokenizer) -> str:
    """A question as the model reads it: cleaned by `options`, with the `words` of its image behind it."""
    if options.question_text != "as_is":
        clean = {"cleaned": pre_question, "eve": eve_question}[options.question_text]
        question = clean(question, options.max_words)
    return f" {tokenizer.separator} ".join([question, *words]) if words else question


def encode_answers(answers: Sequence[str], positions: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (answers, longest), nothing cut off. Raises AuroraError for an answer that has more tokens
    than the text transformer has `positions`."""
    ids, mask = tokenizer.encode(list(answers), _UNCUT)
    if ids.shape[1] > positions:
        longest = answers[int(mask.sum(1).argmax())]
        raise AuroraError(
            f"The answer {longest[:80]!r}… has {ids.shape[1]} tokens and the text transformer {positions} positions. "
            "Answers are never cut: shorten it in the data, or use a backbone with more positions "
            "(backbone.text.max_positions)."
        )
    return ids, mask


# ---- the answers to rank


@dataclass(frozen=True)
class AnswerList:
    """Answers in their order, and where they are from: `sha256` is of the JSON list, however its file is laid out."""

    answers: tuple[str, ...]
    place: str

    @property
    def sha256(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()


def answer_list(config: RunConfig) -> AnswerList:
    """The list in `vqa.answer_list`, else the one beside data.shards, whose checksum is in the manifest.

    Raises AuroraError when there is none, it was changed, or it is no JSON list of different texts."""
    if config.vqa.answer_list is not None:
        path = Path(config.vqa.answer_list).expanduser()
        return checked_list(_content(_bytes(path, "vqa.answer_list"), path), str(path))
    manifest = open_manifest(config)
    wanted, path = manifest.files.get(ANSWER_LIST), manifest.folder / ANSWER_LIST
    if wanted is None:
        raise AuroraError(
            f"The shards in {manifest.store.place} come without {ANSWER_LIST}, and vqa.inference=rank chooses from a "
            "list. Set vqa.answer_list to a JSON list of answers, or vqa.inference=generate to have answers written."
        )
    content = _bytes(path, "The manifest beside it")
    if hashlib.sha256(content).hexdigest() != wanted:
        raise AuroraError(
            f"{path} is not the file that the conversion wrote: its sha256 differs from the manifest's. Copy it again; "
            "to rank other answers, put them into a file of their own and set vqa.answer_list to it."
        )
    return checked_list(_content(content, path), str(path))


def checked_list(content: Any, place: str) -> AnswerList:
    """Raises AuroraError when it is no list of different, not empty texts."""
    if not isinstance(content, list) or not content or not all(isinstance(each, str) for each in content):
        found = f"a list of {len(content)}" if isinstance(content, list) else type(content).__name__
        raise AuroraError(
            f'{place}: found {found}; the answers to rank are a JSON list of texts, such as ["yes", "no"].'
        )
    blank = [number for number, each in enumerate(content) if not each.strip()]
    twice = [each for each, count in Counter(content).items() if count > 1]
    if blank or twice:
        faults = [f"answer {blank[0]} (counted from 0) is empty"] if blank else []
        if twice:
            more = ", …" if len(twice) > _SHOWN else ""
            faults.append(f"{', '.join(map(repr, twice[:_SHOWN]))}{more} more than once")
        raise AuroraError(
            f"{place}: {'; '.join(faults)}. Each answer to rank is there once; correct the list."
        )
    return AnswerList(tuple(content), place)


def _bytes(path: Path, who: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AuroraError(
            f"{who} names {path}, which cannot be read: {error.strerror}. Give the path of a JSON list of answers, or "
            "set vqa.inference=generate to have answers written."
        ) from error


def _content(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise AuroraError(f"{path} is no JSON ({error}). Give a JSON list of answers.") from error
