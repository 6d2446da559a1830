"""Phrases of shards with the boxes that they mean (visual grounding): checked, placed with their image, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora_ds.config import RunConfig
from aurora_ds.data.blank import BlankMedium
from aurora_ds.data.media import Medium
from aurora_ds.data.overhang import lies_within
from aurora_ds.data.placement import SHARE, Box, Placement, centred, drawn
from aurora_ds.errors import AuroraError


class Tokenizer(Protocol):
    """What this module needs of backbones.tokenizer.Tokenizer."""

    def encode(self, texts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask), int64 (texts, longest)."""
        ...


@dataclass(frozen=True)
class Phrase:
    """A phrase in lower case, and its box in pixels of the image: left, top, right, bottom."""

    text: str
    box: Box


@dataclass(frozen=True)
class PlacedMedium:
    """Stands where a media.Medium would: an image that is placed in its square as `placement` says, of which
    `annotation` tells."""

    medium: Medium | BlankMedium
    placement: Placement
    annotation: dict[str, Any]

    @property
    def key(self) -> str:
        """Of the sample."""
        return self.medium.key

    def shape(self, size: int) -> tuple[int, ...]:
        """Of the tensor that it becomes."""
        return self.medium.shape(size)

    def write(self, out: np.ndarray, config: RunConfig, random: np.random.Generator | None) -> None:
        """Transforms it into `out`, float32 of `shape`. What `random` is for was drawn with the placement."""
        if isinstance(self.medium, BlankMedium):
            self.medium.write(out, config, random)
        else:
            self.placement.write(self.medium.pixels, out)


def checked_phrase(entry: Mapping[str, Any], key: str, width: int, height: int) -> Phrase:
    """The phrase of an entry of sample `key`, whose image has `width` x `height` pixels; its box cut to the image.

    Raises AuroraError when it has no words, no box, or one that is not [left, top, width, height] within the image.
    """
    text, box = entry.get("phrase"), entry.get("box")
    if not isinstance(text, str) or not text.strip():
        raise AuroraError(
            f"Sample {key} has a phrase without words ({text!r}). Correct the annotations and convert them again."
        )
    where = f"Phrase {text!r} of sample {key}"
    if box is None:
        raise AuroraError(
            f"{where} has no box, so it can be neither learned nor judged. Give each phrase its box, [left, top, "
            "width, height] in pixels, and convert the annotations again."
        )
    numbers = box if isinstance(box, list | tuple) else ()
    if len(numbers) != 4 or not all(type(each) in (int, float) and np.isfinite(each) for each in numbers):
        raise AuroraError(
            f"{where} has {box!r} as its box; expected [left, top, width, height] in pixels. Convert the annotations "
            "again."
        )
    if not lies_within(box, width, height):
        raise AuroraError(
            f"{where} has the box {list(box)} (left, top, width, height), which does not lie in its image of {width} x "
            f"{height} pixels. Correct the annotations, or their image, and convert them again."
        )
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    return Phrase(text.strip().lower(), (float(left), float(top), float(right), float(bottom)))


def image_size(record: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Width and height of the image of a sample, by its record. Raises AuroraError for a clip or a set of images."""
    width, height = record.get("width"), record.get("height")
    if record.get("kind", "image") != "image":
        raise AuroraError(
            f"Sample {key} holds {record['kind']}, but grounding finds a box in one image. Use shards of single images "
            "with phrases, such as those of `aurora-ds shards convert refcoco`."
        )
    if type(width) is not int or type(height) is not int:
        raise AuroraError(
            f"The record of sample {key} does not say how large its image is (width, height), which places its boxes. "
            "Convert the dataset again with `aurora-ds shards convert`."
        )
    return width, height


def placed(
    medium: Medium | BlankMedium,
    entry: Mapping[str, Any],
    config: RunConfig,
    random: np.random.Generator | None,
) -> PlacedMedium:
    """A medium with one of its phrases, to train on: augmented by draws from `random`, or as in evaluation.

    `annotation` of the result: the `phrase` as it reads there, and the `box`, in shares of the square: left, top,
    right, bottom. Raises AuroraError as `checked_phrase` and `image_size` do.
    """
    pixels = getattr(medium, "pixels", None)
    whole = isinstance(pixels, Image.Image)
    width, height = pixels.size if whole else image_size(medium.record, medium.key)
    phrase = checked_phrase(entry, medium.key, width, height)
    side, text = config.backbone.vision.image_size, phrase.text
    if random is None:
        placement = centred(width, height, side)
    else:
        options, mirror = config.grounding, config.data.horizontal_flip
        placement, text = drawn(width, height, phrase.box, text, side, options, mirror, random)
    return PlacedMedium(medium, placement, {"phrase": text, "box": placement.into(phrase.box)})


def phrase_texts(config: RunConfig, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
    """What makes a batch's tensors of B annotations of `placed`: input_ids, attention_mask (B, L), and box int64
    (B, 4), centre x, centre y, width, height in units of SHARE of the square."""

    def texts(annotations: list[Any]) -> dict[str, Tensor]:
        ids, mask = encode_phrases([each["phrase"] for each in annotations], config, tokenizer)
        box = torch.tensor([each["box"] for each in annotations], dtype=torch.float64)
        first, last = box[:, :2], box[:, 2:]
        centres = torch.cat([(first + last) / 2, last - first], dim=1)
        return {"input_ids": ids, "attention_mask": mask, "box": (centres / SHARE).round().long()}

    return texts


def encode_phrases(phrases: Sequence[str], config: RunConfig, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (phrases, longest): lower case, [CLS] words [SEP]. Padding to the longest is as good as to
    grounding.max_tokens, which is published: nothing attends to it."""
    return tokenizer.encode([each.lower() for each in phrases], config.grounding.max_tokens)
