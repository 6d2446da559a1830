"""Retrieval in a run: captions, the ramp of the soft targets, two-stage evaluation, its table and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import RunConfig
from aurora_ds.data.loader import caption_texts, eval_image_loader, eval_texts
from aurora_ds.data.media import medium_shape
from aurora_ds.data.mixture import open_manifest
from aurora_ds.data.text import caption_rule
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.tasks.frame_attention import frame_scales
from aurora_ds.tasks.rerank import RetrievalResult, Texts, evaluate_retrieval
from aurora_ds.tasks.retrieval import RetrievalTask
from aurora_ds.wiring.base import (
    Evaluation,
    Forward,
    Wiring,
    attach_prompts,
    clip_conditions,
    percent,
    ramped,
    twin_of,
)
from aurora_ds.wiring.gallery import retrieval_gallery

_IMAGE_COLUMNS = {
    "txt_r1": "TR@1",
    "txt_r5": "TR@5",
    "txt_r10": "TR@10",
    "img_r1": "IR@1",
    "img_r5": "IR@5",
    "img_r10": "IR@10",
    "r_mean": "mean",
}
_CLIP_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mdR": "MdR", "mnR": "MnR"}


class RetrievalWiring(Wiring):
    """Image-text and video-text retrieval."""

    kind = "captions"
    headline = "r_mean"
    shown = {"ita": "loss_ita", "itm": "loss_itm"}
    keeps_step = True
    texts = "all"

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone, its temperature frozen: the task has its own."""
        config, model = self.config, loaded.model
        temperature = float(model.temp.detach())
        prompts = attach_prompts(model, config)
        model.temp.requires_grad_(False)

        twin = twin_of(config)
        return RetrievalTask(model, config, prompts, temperature, twin, loaded.momentum, loaded.queues)

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Captions -> input_ids, attention_mask."""
        return caption_texts(self.config, tokenizer)

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """`step` counts micro-batches: negatives are drawn anew for each."""
        return {
            "step": step * self.config.train.accumulation + micro,
            "alpha": self._alpha(step, steps_per_epoch),
        }

    def _alpha(self, step: int, steps_per_epoch: int) -> float:
        options = self.config.retrieval
        return ramped(options.alpha, options.alpha_ramp_epochs, step, steps_per_epoch)

    def figures(self, task: nn.Module, step: int, steps_per_epoch: int) -> dict[str, float]:
        """Temperature and weight of the soft targets."""
        return {
            "temperature": task.temperature_value(),
            "soft_target_weight": self._alpha(step, steps_per_epoch),
        }

    def adapter_facts(self, task: nn.Module, values: dict[str, Tensor]) -> dict[str, Any]:
        """Temperature, trained or not, and what clips were trained with."""
        return {
            "temperature": task.temperature_value() if task.temp is None else float(values["temp"]),
            "frame_weights": self.config.retrieval.frame_weights,
        }

    def adopt(self, task: nn.Module, saved: dict[str, Any]) -> None:
        """The running context, and the temperature where it is trained."""
        if "context_running" in saved:
            task.context.running = saved["context_running"]
        if task.temp is not None and "temperature" in saved:
            task.temp.data.fill_(saved["temperature"])

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Recall, both ways."""
        result = evaluate_split(forward, self.config, tokenizer, lockstep)
        options = self.config.retrieval
        clips = {
            "frames": result.frames,
            "sampling": self.config.data.video.eval_sampling,
            "frame_weights": options.frame_weights,
        }
        facts = {
            "images" if result.frames is None else "clips": len(result.image_ranks),
            "texts": len(result.text_ranks),
            "k_test": options.k_test,
            "beta": options.beta,
            **({} if result.frames is None else clips),
            "pairs_scored": result.pairs_scored,
        }
        return Evaluation(result.metrics, facts, details=result)

    def title(self, record: dict[str, Any]) -> str:
        """Media, captions, k."""
        media = "images" if "images" in record else "clips"
        return f"{record['split']}: {record[media]} {media}, {record['texts']} captions, k {record['k_test']}"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """Images: text retrieval (image to text), image retrieval (text to image), means, in a row. Clips: a row for
        each way, with the median and the mean rank."""
        if "vid_r1" not in metrics:
            return [(name, percent(metrics, _IMAGE_COLUMNS))]
        ways = (("vid", "text to video"), ("txt", "video to text"))
        return [
            (f"{name}, {way}", {head: metrics[f"{query}_{key}"] for key, head in _CLIP_COLUMNS.items()})
            for query, way in ways
        ]

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """How clips were read and weighed."""
        clips = "clips" in record
        weights = [f"frame weights {record['frame_weights']}"] if clips else []
        return clip_conditions(self.config, clips, weights)

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """How well each text fits each medium: `texts`, best first, each with `similarity` (contrastive, -1 to 1),
        `match` (probability of the matching head) and `score` (matching logit + beta · similarity)."""
        if not texts or not all(text.strip() for text in texts):
            raise AuroraError(
                "Retrieval needs texts to compare with: give --text with words, once or several times."
            )
        clean = caption_rule(self.config.backbone.name)
        ids, mask = tokenizer.encode(
            [clean(text, self.config.retrieval.max_words) for text in texts],
            self.config.retrieval.max_tokens,
            single=True,
        )
        read = {"input_ids": ids.to(media.device), "attention_mask": mask.to(media.device)}
        forward({}, what="prepare_evaluation")
        words = forward(read, what="encode_texts")["feature"]
        said = []
        for one in media.split(1):
            seen = forward({"image": one}, what="encode_images")
            scale = {}
            if "frames" in seen:
                scale = {"key_scale": frame_scales(words, seen["frames"], seen["tokens"].shape[1])}
            logits = forward({"tokens": seen["tokens"], **read, **scale}, what="match")["logits"]
            similarity = (seen["feature"] @ words.t())[0]
            score = logits[:, 1] + self.config.retrieval.beta * similarity
            order = score.argsort(descending=True, stable=True).tolist()
            said.append(
                {
                    "texts": [
                        {
                            "text": texts[i],
                            "similarity": float(similarity[i]),
                            "match": float(logits[i].softmax(0)[1]),
                            "score": float(score[i]),
                        }
                        for i in order
                    ]
                }
            )
        return said

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Captions with their five best media."""
        return "top5", retrieval_gallery(self.config, tokenizer, evaluation.details)


def evaluate_split(
    forward: Forward,
    config: RunConfig,
    tokenizer: Tokenizer,
    lockstep: bool = False,
    tail: str = "similarity",
) -> RetrievalResult:
    """Judge a retrieval task on `data.eval_split`. `forward` is the task's or the engine's; `lockstep` is needed
    under ZeRO-3; `tail` as in `tasks.retrieval_metrics`."""
    texts = eval_texts(config, config.data.eval_split, tokenizer, config.evaluate.limit)
    size = config.evaluate.image_batch_size

    def read_images(indices: list[int]) -> Iterable[dict[str, Any]]:
        return eval_image_loader(
            config, config.data.eval_split, indices=indices, world_size=1, rank=0, batch_size=size
        )

    shape = medium_shape(config, open_manifest(config), config.data.eval_split)
    return evaluate_retrieval(
        forward,
        read_images,
        texts["media"],
        Texts(texts["input_ids"], texts["media_index"], config.backbone.text.pad_id),
        config.retrieval,
        process_group.device(),
        size,
        config.evaluate.text_batch_size,
        shape,
        lockstep,
        tail,
    )
