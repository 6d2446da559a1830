"""Recorded rules of mPLUG that need no model: texts, word pieces, learning rates of its configuration files.

Its tokenizer ends no single text, and ours ends every text with [SEP]: what is compared is what stands before the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import VqaConfig
from aurora_ds.data.convert.rows import Row
from aurora_ds.data.convert.vqa import answer_weights, detected
from aurora_ds.data.image_words import image_words
from aurora_ds.data.questions import as_read, loss_weight
from aurora_ds.data.text import eve_question, mplug_caption
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.schedule import cosine_lr_schedule, warmup_lr_schedule
from aurora_ds.tasks.metrics.vqa_accuracy import answer_accuracy, normalise_answer
from aurora_ds.verify import mplug_boxes
from aurora_ds.verify.golden import Check

NOT_HERE = {
    "coco_caption_dataset": "records of its annotation files; shards hold their own",
    "retrieval_dataset": "records of its annotation files; shards hold their own",
    "video_frame_indices": "whole steps that never reach a clip's end; ours do",
    "vqa_label_metric": "a metric of its training loop; ours is VQA's official one",
}
OLDER = "an older copy of the official program, which leaves number words and articles of annotators; ours is the newer"
ABOVE = "begins above its own maximum, as published for lr2; ours begins at the maximum"


def checks_of(folder: Path) -> list[Check] | None:
    """All checks of a folder of this kind; None for another. Raises AuroraError when it cannot be read."""
    if not (folder / "lr_schedules.json").is_file() or not (folder / "vocab.txt").is_file():
        return None
    checks: list[Check] = []
    for path in sorted(folder.glob("*.json")):
        record = _json(path)
        if path.stem in ("pre_caption", "pre_question"):
            rule = {"pre_caption": mplug_caption, "pre_question": eve_question}[path.stem]
            for number, each in enumerate(record):
                same = rule(each["input"], each["max_words"]) == each["output"]
                checks.append(_exact(f"{path.stem} {number}", same))
        elif path.stem == "tokenizer":
            checks += _pieces(record, Tokenizer(folder / "vocab.txt", plain=True))
        elif path.stem == "lr_schedules":
            checks += _rates(record)
        elif path.stem in mplug_boxes.RULES:
            tokenizer = Tokenizer(folder / "vocab.txt", plain=True)
            checks += mplug_boxes.RULES[path.stem](record, tokenizer)
        elif path.stem == "vqa_dataset":
            checks += _questions(record, path, Tokenizer(folder / "vocab.txt", plain=True))
        elif path.stem == "vqa_metric":
            checks += _accuracies(record)
        else:
            note = NOT_HERE.get(path.stem, "nothing computes it here")
            checks.append(Check(path.stem, 0.0, 0.0, "-", path.stem in NOT_HERE, note))
    return checks


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AuroraError(f"{path} cannot be read ({error}).") from error


def _exact(name: str, same: bool) -> Check:
    return Check(name, float(not same), float(not same), "exact", same)


def _pieces(record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Check]:
    for kind in ("single", "truncated"):
        for number, each in enumerate(record[kind]):
            most = each.get("max_length", len(each["input_ids"])) + 1
            own = tokenizer.encode([each["text"]], most)[0][0, :-1].tolist()
            yield _exact(f"{kind} {number}", own == each["input_ids"])
    batch = record["batch_longest"]
    ids, mask = tokenizer.encode(batch["texts"], len(batch["input_ids"][0]) + 1)
    for row, wanted in enumerate(batch["input_ids"]):
        length = int(mask[row].sum()) - 1
        yield _exact(f"batch {row}", ids[row, :length].tolist() + [0] * (len(wanted) - length) == wanted)


def _questions(record: dict[str, Any], path: Path, tokenizer: Tokenizer) -> Iterator[Check]:
    """What becomes of an entry of its lists: the text of the question, the answers and their weights."""
    for each in record["rows"]:
        entry = record["annotations"][each["index"]]
        options = VqaConfig(
            question_text="as_is",
            add_ocr=each["add_ocr"],
            add_objects=each["add_object"],
            visual_genome_weight=0.5,
        )
        question = entry | detected(Row(path, f"annotations[{each['index']}]", entry))
        name = f"vqa_dataset {each['index']}, {each['add_ocr']:d} {each['add_object']:d}"
        read = as_read(entry["question"], image_words(question, options), options, tokenizer)
        yield _exact(f"{name}: question", read == each["train_question"] == each["test_question"])
        given = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
        answers = answer_weights(given)
        texts = [f"{answer['answer']}{tokenizer.separator}" for answer in answers]
        yield _exact(f"{name}: answers", texts == each["train_answers"])
        weights = [loss_weight(answer["weight"], entry["dataset"], options) for answer in answers]
        yield _largest(f"{name}: weights", list(zip(weights, each["train_weights"], strict=True)))


def _accuracies(record: dict[str, Any]) -> Iterator[Check]:
    for key, wanted in record["per_question"].items():
        answers = [each["answer"] for each in record["ground_truth"][key]["answers"]]
        name = f"accuracy of question {key}"
        if any(each != normalise_answer(each) for each in answers):
            yield Check(name, 0.0, 0.0, "-", True, OLDER)
            continue
        found = 100 * answer_accuracy(record["predictions"][key]["answer"], answers)
        yield _largest(name, [(found, wanted)])
    for number, each in enumerate(record["normalisation"]):
        yield _exact(f"normalised answer {number}", normalise_answer(each["input"]) == each["full"])


def _rates(record: dict[str, Any]) -> Iterator[Check]:
    for name, each in record.items():
        schedule = each["schedular"]
        starts = each["optimizer"]["lr1"], each["optimizer"]["lr2"]
        warmup, units = schedule["warmup_lr"], schedule["warmup_epochs"]
        for number, lr in enumerate(starts):
            found = f"{name} lr{number + 1}"
            later = [
                (cosine_lr_schedule(row["epoch"], schedule["epochs"], lr, schedule["min_lr"]), row["lr1_lr2"])
                for row in each["later_epochs"]
            ]
            yield _largest(f"{found}, epochs", [(own, pair[number]) for own, pair in later])
            if warmup > lr:
                yield Check(f"{found}, warm-up", 0.0, 0.0, "-", True, ABOVE)
                continue
            begun = [
                (warmup_lr_schedule(row["after_iteration"] / 100, units, warmup, lr), row["lr1_lr2"][number])
                for row in each["epoch0_warmup"]
            ]
            yield _largest(f"{found}, warm-up", begun)


def _largest(name: str, pairs: list[tuple[float, float]]) -> Check:
    absolute = max((abs(own - wanted) for own, wanted in pairs), default=0.0)
    relative = max((abs(own - wanted) / wanted for own, wanted in pairs), default=0.0)
    return Check(name, absolute, relative, "1e-9 rel", relative <= 1e-9)
