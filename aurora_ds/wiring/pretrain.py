"""Masked pre-training in a run: images with captions, from any shards of them.

A medium is judged with its first caption, what is hidden being the same whenever it is. TensorBoard shows original,
masked and reconstructed pictures with their completed captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.tokenizer import Tokenizer, tokenizer_for
from aurora_ds.data.image import to_pixels
from aurora_ds.data.text import caption_rule
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group
from aurora_ds.runtime.gallery import Answer, Query, gallery
from aurora_ds.tasks.pretraining import PretrainingTask
from aurora_ds.wiring.base import Evaluation, Forward, Wiring, percent
from aurora_ds.wiring.blocks import eval_records, in_order, media_blocks, number_of_blocks

CAPTIONS_FILE = "completed.json"  # what was put in the place of hidden words
GREY = 128  # of a masked patch in pictures
_COLUMNS = {
    "text_accuracy": "words right %",
    "perplexity": "perplexity",
    "image_explained": "pixels explained %",
}


@dataclass(frozen=True)
class Completed:
    """A medium of which parts were hidden. `pictures`: uint8 (H, W, 3), original, masked and reconstructed, of those
    that are shown."""

    key: str
    caption: str
    marked: str  # the caption, guesses in brackets
    words: int
    right: int
    text_loss: float
    image_error: float
    image_variance: float
    pictures: tuple[np.ndarray, ...] = ()


class PretrainWiring(Wiring):
    """Masked modelling of images and captions."""

    kind = "captions"
    headline = "text_accuracy"
    shown = {"image": "loss_image", "text": "loss_text"}
    takes = ("image",)
    texts = "each"

    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a trunk, all of which is trained, and of which random weights are a fine start. Raises
        AuroraError when nothing stands for hidden words."""
        config, vision = self.config, self.config.backbone.vision
        loaded.model.requires_grad_(True)
        mask_id = config.pretrain.mask_id
        if mask_id is None:
            mask_id = tokenizer_for(config.backbone).mask_id
        if mask_id is None or mask_id >= config.backbone.text.vocab_size:
            raise AuroraError(
                f"Nothing stands for hidden words: the vocabulary {tokenizer_for(config.backbone).path} has no [MASK]"
                f"{'' if mask_id is None else f' below backbone.text.vocab_size, but {mask_id}'}. Set pretrain.mask_id "
                "to a token of it that no caption has."
            )
        grid = vision.image_size // vision.patch_size
        return PretrainingTask(
            loaded.model, config.pretrain, config.backbone.text, mask_id, grid, config.seed
        )

    # ---- training --------------------------------------------------------------------------------

    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Captions -> input_ids, attention_mask."""

        def texts(captions: list[str]) -> dict[str, Tensor]:
            input_ids, attention_mask = tokenizer.encode(
                self._cleaned(captions), self.config.pretrain.max_tokens
            )
            return {"input_ids": input_ids, "attention_mask": attention_mask}

        return texts

    def _cleaned(self, captions: Sequence[str]) -> list[str]:
        clean = caption_rule(self.config.backbone.name)
        return [clean(caption, self.config.pretrain.max_words) for caption in captions]

    def check(self) -> None:
        """What the evaluation at the end would stop at is an error now: media without captions."""
        self._captions(eval_records(self.config))

    def _captions(self, records: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The first caption of each medium. Raises AuroraError where there is none."""
        found = []
        for key, record in records:
            captions = record.get("captions", [])
            if not captions:
                raise AuroraError(
                    f"Sample {key} of split {self.config.data.eval_split!r} in {self.config.data.shards} has no "
                    "caption, and pre-training is judged by hidden words of one. Give a split of images with captions "
                    "as data.eval_split."
                )
            found.append(captions[0])
        return found

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """`step`, by which parts are hidden."""
        return {"step": step}

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Losses of hidden patches and tokens, share of tokens guessed, completed captions as a file."""
        records = eval_records(self.config)
        captions = self._captions(records)
        count = min(self.config.monitor.gallery_queries, len(records))
        drawn = set(np.linspace(0, len(records) - 1, count).round().astype(int).tolist())
        forward({}, what="prepare_evaluation")
        own = (
            self._block(forward, tokenizer, batch["image"], block, records, captions, drawn)
            for block, batch in media_blocks(self.config, len(records))
        )
        found = in_order(own, number_of_blocks(self.config, len(records)))
        completed = [
            {
                "key": one.key,
                "caption": one.caption,
                "completed": one.marked,
                "words": one.words,
                "right": one.right,
            }
            for one in found
        ]
        facts = {"images": len(found), "hidden_words": sum(one.words for one in found)}
        return Evaluation(self._metrics(found), facts, {CAPTIONS_FILE: completed}, details=found)

    def _metrics(self, found: Sequence[Completed]) -> dict[str, float]:
        options = self.config.pretrain
        text = float(np.mean([one.text_loss for one in found]))
        image = float(np.mean([one.image_error for one in found]))
        variance = float(np.mean([one.image_variance for one in found]))
        words = sum(one.words for one in found)
        return {
            "loss": options.image_weight * image + options.text_weight * text,
            "image_loss": image,
            "text_loss": text,
            "perplexity": float(np.exp(text)),
            "text_accuracy": 100 * sum(one.right for one in found) / max(words, 1),
            "image_explained": 100 * (1 - image / variance) if variance else 0.0,
        }

    def _block(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        image: Tensor,
        block: range,
        records: Sequence[tuple[str, dict[str, Any]]],
        captions: Sequence[str],
        drawn: set[int],
    ) -> list[Completed]:
        """The media of a block with parts hidden; pictures of those that are `drawn`."""
        own = [captions[medium] for medium in block]
        keys = [records[medium][0] for medium in block]
        shown = {place for place, medium in enumerate(block) if medium in drawn}
        return self._completed(forward, tokenizer, image.to(process_group.device()), own, keys, block, shown)

    def _completed(
        self,
        forward: Forward,
        tokenizer: Tokenizer,
        image: Tensor,
        captions: Sequence[str],
        keys: Sequence[str],
        samples: Sequence[int],
        shown: set[int],
    ) -> list[Completed]:
        """Images (B, 3, S, S) with a caption each, parts hidden as of `samples`; pictures of the rows `shown`."""
        batch = self.train_texts(tokenizer)(list(captions))
        batch = {name: tensor.to(image.device) for name, tensor in batch.items()}
        batch |= {"image": image, "sample_index": torch.tensor(list(samples), device=image.device)}
        said = forward(batch, what="judge")
        ids = batch["input_ids"].cpu()
        rows = {name: said[name].cpu() for name in ("places", "real", "guesses")}
        figures = {
            name: said[name].tolist()
            for name in ("words", "right", "text_loss", "image_error", "image_variance")
        }
        found = []
        for row, (key, caption) in enumerate(zip(keys, captions, strict=True)):
            real = rows["real"][row]
            guesses = dict(
                zip(rows["places"][row][real].tolist(), rows["guesses"][row][real].tolist(), strict=True)
            )
            pictures = self._pictures(image[row], said, row) if row in shown else ()
            own = {name: values[row] for name, values in figures.items()}
            found.append(
                Completed(key, caption, _marked(ids[row], guesses, tokenizer), **own, pictures=pictures)
            )
        return found

    def _pictures(self, image: Tensor, said: dict[str, Tensor], row: int) -> tuple[np.ndarray, ...]:
        """Original, masked, reconstructed: uint8 (S, S, 3)."""
        original, side = to_pixels(image), self.config.backbone.vision.patch_size
        grid = image.shape[-1] // side
        hidden = said["patches"][row].view(grid, grid).cpu().numpy().repeat(side, 0).repeat(side, 1)
        masked = np.where(hidden[..., None], np.uint8(GREY), original)
        return original, masked, to_pixels(said["pixels"][row])

    def title(self, record: dict[str, Any]) -> str:
        """Images and hidden words."""
        return f"{record['split']}: {record['images']} images and captions, {record['hidden_words']} hidden tokens"

    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """One row."""
        return [(name, percent(metrics, _COLUMNS))]

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """How much is hidden."""
        options = self.config.pretrain
        return [
            f"hidden: {100 * options.image_share:g} % of patches ({options.image_pattern}), "
            f"{100 * options.text_share:g} % of tokens"
        ]

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Captions, guesses in brackets, with original, masked and reconstructed pictures."""
        titles = ("original", "masked", "reconstructed")
        queries = [
            Query(
                one.marked,
                [Answer(image, None, label=title) for image, title in zip(one.pictures, titles, strict=True)],
            )
            for one in evaluation.details
            if one.pictures
        ]
        return "reconstructions", gallery(queries, len(titles))

    # ---- single predictions ----------------------------------------------------------------------

    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """`caption`, the same `completed` with guesses of hidden words in brackets, how many `words` were hidden and
        how many are `right`, and `image_loss`, the error of hidden patches."""
        if len(texts) != len(media) or not all(text.strip() for text in texts):
            raise AuroraError(
                f"Pre-training hides parts of an image and its caption: {len(media)} images need as many captions with "
                f"words, but {len(texts)} texts were given. Give one --text for each image."
            )
        forward({}, what="prepare_evaluation")
        return [
            {
                "caption": one.caption,
                "completed": one.marked,
                "words": one.words,
                "right": one.right,
                "image_loss": one.image_error,
            }
            for one in self._completed(
                forward, tokenizer, media, texts, [""] * len(texts), [0] * len(texts), set()
            )
        ]


def _marked(ids: Tensor, guesses: dict[int, int], tokenizer: Tokenizer) -> str:
    """The words of a text, hidden ones as `[guess]`, or `[guess, was word]` where that is wrong."""
    special = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id}
    parts = []
    for place, true in enumerate(ids.tolist()):
        if true in special:
            continue
        word = tokenizer.piece(true)
        if place not in guesses:
            parts.append(word)
        elif guesses[place] == true:
            parts.append(f"[{word}]")
        else:
            parts.append(f"[{tokenizer.piece(guesses[place])}, was {word}]")
    return " ".join(parts)
