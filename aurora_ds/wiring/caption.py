"""Captioning in a run: captions with their prompt, or rewards (self-critical); captions written once for every medium,
their scores and the file of them; the prediction for one.

The best adapter is the one with the highest CIDEr-D, the reward of self-critical training too. BLIP's code selects by
CIDEr + BLEU-4, of which CIDEr is by far the larger part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer, tokenizer_for
from aurora_ds.config import RunConfig
from aurora_ds.data.media import medium_shape, picture
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.references import training_captions
from aurora_ds.data.text import pre_caption
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.gallery import Answer, Query, gallery
from aurora_ds.tasks.beam_critical import BeamCriticalTask
from aurora_ds.tasks.caption import CaptionTask, caption_words
from aurora_ds.tasks.metrics.captioning import caption_scores
from aurora_ds.tasks.metrics.cider import CiderD, DocumentFrequency
from aurora_ds.tasks.metrics.ptb_tokenizer import tokenize
from aurora_ds.tasks.self_critical import SelfCriticalTask
from aurora_ds.wiring.base import Evaluation, Forward, Wiring, attach_prompts, clip_conditions, percent
from aurora_ds.wiring.blocks import eval_records, in_order, media_blocks, number_of_blocks
from aurora_ds.wiring.caption_truth import Truth, ground_truth, identities

CAPTIONS_FILE = "captions.json"  # as the evaluation servers of COCO and nocaps take it
FREQUENCY_FILE = "document_frequency.json"
_METRICS = {
    **{f"Bleu_{n}": f"bleu_{n}" for n in (1, 2, 3, 4)},
    "METEOR": "meteor",
    "ROUGE_L": "rouge_l",
    "CIDEr": "cider",
    "SPICE": "spice",
}
_COLUMNS = {
    **{f"bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "spice": "SPICE",
    "cider_in_domain": "CIDEr in",
    "cider_near_domain": "CIDEr near",
    "cider_out_domain": "CIDEr out",
}
_SHOWN = 5


@dataclass
class _Told:
    """What was written about each medium, in order; with ground truth also its captions and CIDEr-D (0 to 10)."""

    captions: list[str]
    references: list[list[str]] | None = None
    cider: list[float] | None = None


class CaptionWiring(Wiring):
    """Captioning of images and clips."""

    kind = "captions"
    headline = "cider"
    texts = "none"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.every_annotation = config.caption.objective == "self_critical"
        if self.every_annotation:
            self.shown = {"reward": "reward"}

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone, for the objective. Raises AuroraError when the prompt leaves no room for words."""
        config, options = self.config, self.config.caption
        tokenizer = tokenizer_for(config.backbone)
        prompt = tokenizer.encode([options.prompt], config.backbone.text.max_positions)[0][0]
        # both count the first token, not the end token
        for name, most in (
            ("max_tokens", options.max_tokens - 1),
            ("generation.max_length", options.generation.max_length),
        ):
            if most < len(prompt):
                raise AuroraError(
                    f"caption.{name} leaves no room for a caption after the prompt {options.prompt!r}, which is "
                    f"{len(prompt) - 1} tokens with the one that begins a text. Shorten caption.prompt, or set "
                    f"caption.{name} higher."
                )
        arguments = (
            loaded.model,
            attach_prompts(loaded.model, config),
            options,
            config.backbone.text,
            prompt,
        )
        if options.objective == "self_critical":
            kind = BeamCriticalTask if options.self_critical.texts == "beams" else SelfCriticalTask
            return kind(*arguments, tokenizer, config.seed)
        return CaptionTask(*arguments)

    # ---- training --------------------------------------------------------------------------------

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Any]]:
        """Captions -> input_ids, attention_mask, of the prompt and the caption. Self-critical: all captions of each
        medium -> references, their words joined by blanks."""
        options = self.config.caption

        def likelihood(captions: list[str]) -> dict[str, Any]:
            cleaned = [_cleaned(caption, options.max_words) for caption in captions]
            texts = [f"{options.prompt.strip()} {caption}".strip() for caption in cleaned]
            input_ids, attention_mask = tokenizer.encode(texts, options.max_tokens)
            return {"input_ids": input_ids, "attention_mask": attention_mask}

        def self_critical(media: list[list[str]]) -> dict[str, Any]:
            for captions in media:
                for caption in captions:
                    _cleaned(caption, options.max_words)
            return {"references": [[tokenize(caption) for caption in captions] for captions in media]}

        return self_critical if self.every_annotation else likelihood

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """Self-critical: `step` counts micro-batches, captions are drawn anew for each."""
        return {"step": step * self.config.train.accumulation + micro} if self.every_annotation else {}

    def check(self) -> None:
        """The ground truth that the evaluation at the end needs."""
        self._records()

    def before_training(self, task: nn.Module, output: Path) -> None:
        """Self-critical: the document frequencies of the reward, counted once, kept in the run's folder."""
        if not self.every_annotation:
            return
        if any(hasattr(parameter, "ds_id") for parameter in task.parameters()):
            raise AuroraError(
                "caption.objective=self_critical does not work with ZeRO stage 3: ranks write captions of unequal "
                "length, and would wait for each other's parameters. Use stage 0, 1 or 2: what is trained is small."
            )
        given = self.config.caption.self_critical.frequency
        path = output / FREQUENCY_FILE if given is None else Path(given)
        if given is None:
            process_group.first_rank(self._count, path)
        task.reward = CiderD(DocumentFrequency.load(path))

    def _count(self, path: Path) -> None:
        if path.is_file():
            return
        print(f"Counting the n-grams of the training captions, once, into {path}", flush=True)
        media = training_captions(self.config)
        frequency = DocumentFrequency.of([tokenize(each).split() for each in captions] for captions in media)
        temporary = path.with_name(f".{path.name}")
        frequency.compact().save(temporary)
        os.replace(temporary, path)

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Metrics as the field prints them (CIDEr 133.3); none for a split without captions, only the file."""
        config = self.config
        records, names, truth = self._records()
        forward({}, what="prepare_evaluation")
        captions = self._write(forward, tokenizer, len(records))
        results = [{"image_id": n, "caption": caption} for n, caption in zip(names, captions, strict=True)]
        facts, told = self._facts(len(records)), _Told(captions)
        if truth is None:
            return Evaluation({}, facts, {CAPTIONS_FILE: results}, told)
        judged = process_group.first_rank(caption_scores, results, truth.content, config.evaluate.java)
        cider = [judged["per_image"][name]["CIDEr"] for name in names]
        metrics = {_METRICS[name]: 100 * score for name, score in judged["scores"].items()}
        metrics = {name: metrics[name] for name in _METRICS.values() if name in metrics}
        metrics |= _by_domain(records, cider)
        facts |= {
            "ground_truth": truth.source,
            "words": judged["tokenizer"],
            "skipped": judged["skipped"],
            "lengths": judged["lengths"],
        }
        told = _Told(captions, truth.captions(names), cider)
        return Evaluation(metrics, facts, {CAPTIONS_FILE: results}, told)

    def _records(self) -> tuple[list[dict[str, Any]], list[Any], Truth | None]:
        """Records of the split, what its media are called, and its ground truth, checked."""
        records = [record for _, record in eval_records(self.config)]
        names = identities(self.config, records)
        return records, names, ground_truth(self.config, records, names)

    def _write(self, forward: Forward, tokenizer: Tokenizer, media: int) -> list[str]:
        """The captions of the first `media` media of the split; nucleus sampling is keyed by a medium's number."""
        device, prompt = process_group.device(), self._prompt(tokenizer)

        def blocks() -> Any:
            for _, batch in media_blocks(self.config, media):
                seen = {"image": batch["image"].to(device), "sample_index": batch["media_index"].to(device)}
                ids = forward(seen, what="generate", seed=self.config.seed)["ids"]
                yield self._cut(caption_words(tokenizer, ids, prompt))

        return in_order(blocks(), number_of_blocks(self.config, media))

    def _prompt(self, tokenizer: Tokenizer) -> Tensor:
        text = self.config.backbone.text
        return tokenizer.encode([self.config.caption.prompt], text.max_positions)[0][0]

    def _cut(self, captions: list[str]) -> list[str]:
        """What follows the openings of caption.cut_after, where anything does."""
        for opening in self.config.caption.cut_after:
            rests = [f" {caption} ".partition(f" {opening.strip()} ")[2].strip() for caption in captions]
            captions = [rest or caption for rest, caption in zip(rests, captions, strict=True)]
        return captions

    def _facts(self, media: int) -> dict[str, Any]:
        """How many media were judged, and what decided what was written about them."""
        config, generation = self.config, self.config.caption.generation
        clips = len(medium_shape(config, open_manifest(config), config.data.eval_split)) == 4
        own = {"beam": ("beams",), "penalised_beam": ("beams",), "nucleus": ("top_p", "top_k")}.get(
            generation.method, ()
        )
        always = ("method", "max_length", "min_length", "repetition_penalty")
        written = {name: getattr(generation, name) for name in (*always, *own)}
        frames = {"frames": config.data.video.frames, "sampling": config.data.video.eval_sampling}
        return {
            "clips" if clips else "images": media,
            "prompt": config.caption.prompt,
            "generation": written,
            **(frames if clips else {}),
        }

    def title(self, record: dict[str, Any]) -> str:
        """Media, and how captions were written."""
        media, written = "images" if "images" in record else "clips", record["generation"]
        how = {
            "beam": f"{written.get('beams')} beams",
            "penalised_beam": f"{written.get('beams')} penalised beams",
            "greedy": "greedy",
            "nucleus": f"nucleus, top p {written.get('top_p')}",
        }[written["method"]]
        lengths = f"{written['min_length']} to {written['max_length']} tokens"
        return f"{record['split']}: {record[media]} {media}, {how}, {lengths}"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """A row with what there is: METEOR and SPICE need Java, domains are those of nocaps."""
        return [(name, percent(metrics, _COLUMNS))]

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """How clips were read, the prompt, and what was skipped."""
        penalty = record["generation"]["repetition_penalty"]
        return [
            *clip_conditions(self.config, "clips" in record),
            f"prompt {record['prompt']!r}",
            *([f"repetition penalty {penalty}"] if penalty != 1 else []),
            *(f"no {metric} ({reason})" for metric, reason in record.get("skipped", {}).items()),
        ]

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Media spread evenly over the split, with the caption written and the ground truth's."""
        told, config = evaluation.details, self.config
        reader = ShardReader(open_manifest(config))
        count, queries = min(config.monitor.gallery_queries, len(told.captions)), []
        for number in np.linspace(0, len(told.captions) - 1, count).round().astype(int).tolist():
            score = None if told.cider is None else told.cider[number]
            answers = [Answer(told.captions[number], None, score, "written" if score is None else "CIDEr")]
            references = [] if told.references is None else told.references[number]
            answers += [Answer(caption, None, label="ground truth") for caption in references]
            queries.append(Query(picture(config, reader, config.data.eval_split, number), answers))
        reader.close()
        return "captions", gallery(queries, _SHOWN)

    # ---- single predictions ----------------------------------------------------------------------

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """`caption`, and `score`, the mean log-probability of its tokens (see tasks/generation.py)."""
        if texts:
            raise AuroraError(
                "Captioning takes no text: it writes one. The words that a caption begins with are caption.prompt."
            )
        forward({}, what="prepare_evaluation")
        written = forward({"image": media}, what="generate", seed=self.config.seed)
        captions = self._cut(caption_words(tokenizer, written["ids"], self._prompt(tokenizer)))
        return [
            {"caption": caption, "score": float(score)}
            for caption, score in zip(captions, written["scores"], strict=True)
        ]


def _cleaned(caption: str, max_words: int) -> str:
    cleaned = pre_caption(caption, max_words)
    if not cleaned.strip():
        raise AuroraError(
            f"The caption {caption!r} has no words, so there is nothing to learn from it. Remove it from the "
            "annotations, or the medium if it has no other, and convert again."
        )
    return cleaned


def _by_domain(records: Sequence[Mapping[str, Any]], cider: Sequence[float]) -> dict[str, float]:
    """nocaps: mean CIDEr-D of each domain's images, with the document frequencies of all; empty for others."""
    of_domain: dict[str, list[float]] = {}
    for record, score in zip(records, cider, strict=True):
        if record.get("domain"):
            of_domain.setdefault(record["domain"], []).append(score)
    return {
        f"cider_{domain.replace('-', '_')}": 100 * float(np.mean(scores))
        for domain, scores in sorted(of_domain.items())
    }
