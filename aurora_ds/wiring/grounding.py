"""Visual grounding in a run: a phrase and a photo -> the box that the phrase means.

A photo is encoded once for all its phrases. Splits are judged one at a time (data.eval_split=val, testA, testB).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.data.phrases import encode_phrases, image_size, phrase_texts
from aurora_ds.data.placement import Box, centred
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.tasks.boxes import corners, overlap
from aurora_ds.tasks.grounding import GroundingTask
from aurora_ds.wiring.base import Evaluation, Forward, Wiring, attach_prompts, percent
from aurora_ds.wiring.blocks import eval_records, in_order, media_blocks, number_of_blocks
from aurora_ds.wiring.box_pictures import box_gallery, with_box
from aurora_ds.wiring.pointed import Found, Pointed, as_json, judged, pointed_phrases

BOXES_FILE = "boxes.json"  # what was found for each phrase
_COLUMNS = {"accuracy": "Acc@0.5", "mean_overlap": "mean IoU"}


class GroundingWiring(Wiring):
    """Visual grounding on photos."""

    kind = "phrases"
    headline = "accuracy"
    shown = {"tokens": "loss_tokens"}
    takes = ("image",)
    texts = "each"

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone."""
        prompts = attach_prompts(loaded.model, self.config)
        return GroundingTask(loaded.model, prompts, self.config.grounding)

    # ---- training --------------------------------------------------------------------------------

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Phrases with their boxes -> the tensors of `data.phrases.phrase_texts`."""
        return phrase_texts(self.config, tokenizer)

    def check(self) -> None:
        """What the evaluation at the end would stop at is an error now: phrases without box, boxes outside images."""
        pointed_phrases(eval_records(self.config))

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Share of boxes that overlap by half or more, mean overlap, and the boxes as a file."""
        records = eval_records(self.config)
        pointed = pointed_phrases(records)
        by_medium: list[list[Pointed]] = [[] for _ in records]
        for each in pointed:
            by_medium[each.medium].append(each)

        forward({}, what="prepare_evaluation")
        own = (
            self._block(forward, tokenizer, batch["image"], block, [by_medium[medium] for medium in block])
            for block, batch in media_blocks(self.config, len(records))
        )
        found = in_order(own, number_of_blocks(self.config, len(records)))
        boxes = [
            {
                "key": asked.key,
                "phrase": asked.phrase.text,
                "box": as_json(said.box),
                "true": as_json(asked.phrase.box),
                "probability": round(said.probability, 4),
                "overlap": round(said.overlap, 4),
            }
            for asked, said in zip(pointed, found, strict=True)
        ]
        facts = {"images": len(records), "phrases": len(pointed)}
        return Evaluation(judged(found), facts, {BOXES_FILE: boxes}, details=(pointed, found))

    def _block(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        image: Tensor,
        block: range,
        asked: Sequence[Sequence[Pointed]],
    ) -> list[Found]:
        """Boxes of all phrases about the images of a block, `asked` of each."""
        about = [each for phrases in asked for each in phrases]
        if not about:
            return []
        device, found = process_group.device(), []
        tokens = forward({"image": image.to(device)}, what="encode_images")["tokens"]
        for start in range(0, len(about), self.config.evaluate.text_batch_size):
            chunk = about[start : start + self.config.evaluate.text_batch_size]
            rows = torch.tensor([each.medium - block.start for each in chunk], device=tokens.device)
            batch = {"tokens": tokens, "image_index": rows}
            texts = [each.phrase.text for each in chunk]
            for each, (box, probability) in zip(
                chunk, self._boxes(forward, tokenizer, batch, texts), strict=True
            ):
                placement = centred(*each.size, self.config.backbone.vision.image_size)
                pair = torch.tensor([box, placement.into(each.phrase.box)])
                found.append(Found(placement.back(box), probability, float(overlap(*pair))))
        return found

    def _boxes(
        self, forward: Forward, tokenizer: Tokenizer, batch: dict[str, Tensor], phrases: Sequence[str]
    ) -> list[tuple[Box, float]]:
        """(box in shares of the square: left, top, right, bottom; probability) of each phrase."""
        device = next(iter(batch.values())).device
        ids, mask = encode_phrases(phrases, self.config, tokenizer)
        said = forward(batch | {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, what="boxes")
        boxes = corners(said["box"].float().cpu()).tolist()
        return [(tuple(box), share) for box, share in zip(boxes, said["probability"].tolist(), strict=True)]

    def title(self, record: dict[str, Any]) -> str:
        """Photos and phrases."""
        return f"{record['split']}: {record['images']} images, {record['phrases']} phrases"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """One row."""
        return [(name, percent(metrics, _COLUMNS))]

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Phrases, each with its photo and the predicted box, and with the true one."""
        return "boxes", box_gallery(self.config, *evaluation.details)

    # ---- single predictions ----------------------------------------------------------------------

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """`phrase`, `box` in shares of the square (left, top, right, bottom), which `in_original` turns into pixels,
        `probability`."""
        if len(texts) != len(media) or not all(text.strip() for text in texts):
            raise AuroraError(
                f"Give one phrase for each image: there are {len(media)} of these and {len(texts)} phrases. None may "
                "be empty."
            )
        forward({}, what="prepare_evaluation")
        found = self._boxes(forward, tokenizer, {"image": media}, texts)
        return [
            {"phrase": text, "box": box, "probability": probability}
            for text, (box, probability) in zip(texts, found, strict=True)
        ]

    def in_original(self, said: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        """The box in pixels of the photo: left, top, width, height."""
        width, height = image_size(record, "given")
        placement = centred(width, height, self.config.backbone.vision.image_size)
        return said | {"box": as_json(placement.back(said["box"]))}

    def drawing(self, said: dict[str, Any], image: Image.Image) -> Image.Image | None:
        """The photo with the box."""
        left, top, width, height = (said["box"][name] for name in ("left", "top", "width", "height"))
        return with_box(image, (left, top, left + width, top + height))
