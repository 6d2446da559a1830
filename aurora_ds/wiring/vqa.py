"""Question answering in a run, on images and clips: weighted answers in training, ranked or written ones in evaluation.

An image is encoded once and its questions are answered in chunks. Zero-shot is an evaluation without adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import GenerationConfig, RunConfig
from aurora_ds.data.answer_classes import answer_targets
from aurora_ds.data.image_words import check_image_words, image_words
from aurora_ds.data.media import medium_shape, picture
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.questions import (
    AnswerList,
    answer_list,
    as_read,
    checked_list,
    encode_answers,
    question_texts,
)
from aurora_ds.data.reader import ShardReader
from aurora_ds.errors import AuroraError
from aurora_ds.prompts import Prompts
from aurora_ds.runtime import process_group
from aurora_ds.runtime.gallery import Answer, Query, gallery
from aurora_ds.tasks.answer_classes import AnswerClassTask, another_length
from aurora_ds.tasks.distilled_vqa import DistilledVqaTask
from aurora_ds.tasks.momentum import SlotMomentum, TwinMomentum
from aurora_ds.tasks.vqa import VqaTask
from aurora_ds.wiring.asked import Asked, asked_questions, judge, submission
from aurora_ds.wiring.base import (
    Evaluation,
    Forward,
    Wiring,
    attach_prompts,
    clip_conditions,
    ramped,
    twin_of,
)
from aurora_ds.wiring.blocks import eval_records, in_order, media_blocks, number_of_blocks

RESULT_FILE = "vqa_result.json"
SHOWN = 5  # answers of a prediction
MOST_COLUMNS = 8  # types beyond which a table shows the total alone


class Said(NamedTuple):
    """An answer: `score` is its share among the ranked ones, or the mean log-probability of a written one."""

    answer: str
    score: float


@dataclass(frozen=True)
class Answered:
    """What `VqaWiring.picture` shows. `credit`: of each question, 0 to 1; None without right answers."""

    asked: list[Asked]
    said: list[Said]
    credit: list[float] | None


class VqaWiring(Wiring):
    """Question answering on images and clips."""

    kind = "questions"
    headline = "accuracy"
    texts = "each"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.options, self.ranks = config.vqa, config.vqa.inference == "rank"
        self.classifies = config.backbone.name == "eve"  # one logit per answer of the list
        self._found: AnswerList | None = None
        self._adopted: AnswerList | None = None
        self._tokens: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone."""
        prompts = attach_prompts(loaded.model, self.config)
        if self.options.distillation:
            return self._distilled(loaded, prompts)
        if self.classifies:
            return AnswerClassTask(loaded.model, prompts, auxiliary=not self.config.backbone.eve.released)
        return VqaTask(loaded.model, prompts, self.options, self.config.backbone.text)

    def _distilled(self, loaded: LoadedBackbone, prompts: Prompts | None) -> nn.Module:
        model, options = loaded.model, self.options
        if options.momentum_model == "slot":
            momentum = SlotMomentum(model, prompts, dropout=False)
        else:
            momentum = TwinMomentum(model, prompts, twin_of(self.config), loaded.momentum, dropout=False)
        return DistilledVqaTask(model, prompts, options, self.config.backbone.text, momentum)

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """The weight of a momentum model's probabilities, where it is learned from."""
        options = self.options
        if not options.distillation:
            return {}
        return {
            "alpha": ramped(options.distillation, options.distillation_ramp_epochs, step, steps_per_epoch)
        }

    # ---- training --------------------------------------------------------------------------------

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Questions with their answers -> the tensors of `data.questions.question_texts`; for a classifier also
        `targets` (B, answers of the list)."""
        texts = question_texts(self.config, tokenizer)
        if not self.classifies:
            return texts
        answers = self._answers().answers
        return lambda questions: texts(questions) | {"targets": answer_targets(questions, answers)}

    def check(self) -> None:
        """What the evaluation at the end would stop at is an error now: no list of answers, questions that cannot be
        told apart or judged, words of images that are not there."""
        self._asked()
        check_image_words(self.config)
        answers = self._answers().answers if self.ranks else ()
        if self.classifies and len(answers) != self.config.backbone.eve.answers:
            raise AuroraError(another_length(len(answers), self.config.backbone.eve.answers))

    def adapter_facts(self, task: nn.Module, values: dict[str, Tensor]) -> dict[str, Any]:
        """The list of answers, so that prediction needs neither shards nor a file."""
        return {"answers": list(self._answers().answers)} if self.ranks else {}

    def adopt(self, task: nn.Module, saved: dict[str, Any]) -> None:
        """The list of answers, for where no other is named."""
        if "answers" in saved:
            self._adopted = checked_list(saved["answers"], "answers of the adapter")

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Accuracy, and the submission file; of a split without answers the file alone."""
        media, asked = self._asked()
        answers = self._encoded(tokenizer, process_group.device()) if self.ranks else None
        by_medium: list[list[int]] = [[] for _ in range(media)]
        for number, each in enumerate(asked):
            by_medium[each.medium].append(number)

        forward({}, what="prepare_evaluation")
        own = []
        for block, batch in media_blocks(self.config, media):
            about = [(number, medium - block.start) for medium in block for number in by_medium[medium]]
            own.append(self._block(forward, tokenizer, batch["image"], asked, about, answers))
        said = in_order(own, number_of_blocks(self.config, media))

        texts = [each.answer for each in said]
        judgement = judge(asked, texts, self.options.accuracy)
        return Evaluation(
            judgement.metrics,
            self._facts(media, asked),
            {RESULT_FILE: submission(asked, texts)},
            Answered(asked, said, judgement.credit),
        )

    def _asked(self) -> tuple[int, list[Asked]]:
        """How many media are judged, and their questions."""
        records = eval_records(self.config)
        return len(records), asked_questions(
            records, self.options.accuracy, partial(image_words, options=self.options)
        )

    def _block(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        image: Tensor,
        asked: list[Asked],
        about: list[tuple[int, int]],
        answers: tuple[Tensor, Tensor] | None,
    ) -> list[Said]:
        """Answers to the questions `about` = (number of the question, row of `image`), in their order."""
        if not about:
            return []
        tokens = forward({"image": image.to(process_group.device())}, what="encode_images")["tokens"]
        said = []
        for start in range(0, len(about), self.config.evaluate.text_batch_size):
            chunk = about[start : start + self.config.evaluate.text_batch_size]
            first, last = chunk[0][1], chunk[-1][1]
            batch = {
                # of the images of this chunk alone, as keys and values of every image are computed
                "tokens": tokens[first : last + 1],
                "image_index": torch.tensor([row - first for _, row in chunk], device=tokens.device),
                "sample_index": torch.tensor([number for number, _ in chunk], device=tokens.device),
            }
            questions = [
                as_read(asked[number].text, asked[number].words, self.options, tokenizer)
                for number, _ in chunk
            ]
            found = self._answer(forward, tokenizer, batch, questions, answers)
            said += [each[0] for each in found]
        return said

    def _answer(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        batch: dict[str, Tensor],
        questions: Sequence[str],
        answers: tuple[Tensor, Tensor] | None,
        shown: int = 1,
    ) -> list[list[Said]]:
        """The `shown` best of the ranked answers to each question (as `as_read` gives it), or the written one."""
        device = next(iter(batch.values())).device
        longest = self.options.eval_max_tokens or self.options.max_tokens
        ids, mask = tokenizer.encode(questions, longest, single=True)
        batch = batch | {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if answers is None:
            found = forward(batch, what="generate", seed=self.config.seed)
            texts = tokenizer.decode(found["ids"].cpu())
            return [
                [Said(text.strip(), score)]
                for text, score in zip(texts, found["scores"].tolist(), strict=True)
            ]
        found = forward(batch, what="rank", answers=answers, shown=shown)
        listed = self._answers().answers
        return [
            [Said(listed[row], share) for row, share in zip(rows, shares, strict=True)]
            for rows, shares in zip(found["leading"].tolist(), found["probability"].tolist(), strict=True)
        ]

    def _answers(self) -> AnswerList:
        """The answers that are ranked: those of vqa.answer_list, of the shards, of the adapter. Raises AuroraError."""
        if self._found is None:
            named = self.options.answer_list is not None or self.config.data.shards is not None
            if not named and self._adopted is None:
                raise AuroraError(
                    "vqa.inference=rank chooses from a list of answers, and none is given: set vqa.answer_list to a "
                    "JSON list, data.shards to shards with an answer_list.json, or vqa.inference=generate to have "
                    "answers written."
                )
            self._found = answer_list(self.config) if named else self._adopted
        return self._found

    def _encoded(self, tokenizer: Tokenizer, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tokens:
            positions = self.config.backbone.text.max_positions
            ids, mask = encode_answers(self._answers().answers, positions, tokenizer)
            self._tokens[device] = ids.to(device), mask.to(device)
        return self._tokens[device]

    def _facts(self, media: int, asked: list[Asked]) -> dict[str, Any]:
        config, options = self.config, self.options
        clips = len(medium_shape(config, open_manifest(config), config.data.eval_split)) == 4
        return {
            "clips" if clips else "images": media,
            "questions": len(asked),
            "judged_by": options.accuracy if asked[0].references else None,
            "inference": options.inference,
            **(
                {
                    "k_test": options.k_test,
                    "answers": len(self._answers().answers),
                    "answer_list_sha256": self._answers().sha256,
                }
                if self.ranks
                else {"generation": options.generation.model_dump(mode="json")}
            ),
            **(
                {"frames": config.data.video.frames, "sampling": config.data.video.eval_sampling}
                if clips
                else {}
            ),
        }

    # ---- results ---------------------------------------------------------------------------------

    def title(self, record: dict[str, Any]) -> str:
        """Media, questions, and what accuracy is meant."""
        media = "images" if "images" in record else "clips"
        how = {"vqa": ", VQA accuracy", "exact": ", exact match", None: ""}[record["judged_by"]]
        return f"{record['split']}: {record[media]} {media}, {record['questions']} questions{how}"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """Accuracy, then by type of the answer, or else of the question."""
        shown = {"accuracy": metrics["accuracy"]}
        for prefix in ("accuracy_answer_type/", "accuracy_question_type/"):
            types = {key.removeprefix(prefix): metrics[key] for key in metrics if key.startswith(prefix)}
            if 0 < len(types) <= MOST_COLUMNS:
                return [(name, shown | types)]
        return [(name, shown)]

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """How answers were found, and how clips were read."""
        if record["inference"] == "rank":
            sha256 = record["answer_list_sha256"][:12]
            how = f"ranked {record['answers']} answers (sha256 {sha256}), k {record['k_test']}"
        else:
            how = f"written: {described(GenerationConfig(**record['generation']))}"
        return [how, *clip_conditions(self.config, "clips" in record)]

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Media, each with a question, its answer, and the one that people gave."""
        return "answers", answer_gallery(self.config, evaluation.details)

    # ---- single predictions ----------------------------------------------------------------------

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """`question`, `answer`, `score`; with ranking `answers`, best first, each with its `probability` among those
        that were scored, and `score` is that of the best; of a written answer it is the mean log-probability."""
        if len(texts) != len(media) or not all(text.strip() for text in texts):
            raise AuroraError(
                f"Give one question for each image or clip: there are {len(media)} of these and {len(texts)} "
                "questions. None may be empty."
            )
        answers = self._encoded(tokenizer, media.device) if self.ranks else None
        forward({}, what="prepare_evaluation")
        read = [as_read(text, (), self.options, tokenizer) for text in texts]
        found = self._answer(forward, tokenizer, {"image": media}, read, answers, SHOWN)
        return [
            {"question": question, "answer": best[0].answer, "score": best[0].score}
            | ({"answers": [{"answer": a, "probability": p} for a, p in best]} if self.ranks else {})
            for question, best in zip(texts, found, strict=True)
        ]


def described(generation: GenerationConfig) -> str:
    """How text was written, in a few words."""
    how = {
        "beam": f"{generation.beams} beams",
        "penalised_beam": f"{generation.beams} penalised beams",
        "greedy": "greedy",
        "nucleus": f"nucleus p {generation.top_p:g}",
    }[generation.method]
    return f"{how}, {generation.min_length} to {generation.max_length} tokens"


def answer_gallery(config: RunConfig, found: Answered) -> np.ndarray:
    """uint8 (3, height, width): `monitor.gallery_queries` questions spread evenly over the answered ones, so that good
    and bad are shown as they come. Right is what earns half of the accuracy or more."""
    count = min(config.monitor.gallery_queries, len(found.asked))
    chosen = np.linspace(0, len(found.asked) - 1, count).round().astype(int) if count else []
    reader, queries = ShardReader(open_manifest(config)), []
    for number in chosen:
        asked, said = found.asked[number], found.said[number]
        credit = None if found.credit is None else found.credit[number]
        answers = [
            Answer(asked.text, None, label="question"),
            Answer(
                said.answer,
                None if credit is None else credit >= 0.5,
                credit,
                label="answer" * (credit is None),
            ),
        ]
        if asked.known is not None:
            answers.append(Answer(asked.known, None, label="given by people"))
        queries.append(Query(picture(config, reader, config.data.eval_split, asked.medium), answers))
    reader.close()
    return gallery(queries, 3)
