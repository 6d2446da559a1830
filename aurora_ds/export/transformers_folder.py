"""A directory that transformers loads as a model and a processor, and that model's word on the made-up input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.backbones.models import BlipModel
from aurora_ds.backbones.transformers_format import ARCHITECTURES, config_for, from_original
from aurora_ds.config import GenerationConfig
from aurora_ds.data.image import DEVIATION, MEAN
from aurora_ds.errors import AuroraError
from aurora_ds.export.attached import Merged
from aurora_ds.export.probe import TOLERANCE, made_up, next_word
from aurora_ds.export.transformers_card import card
from aurora_ds.tasks.language import with_first

SENTENCE = "is there a small red square, or two?"  # what the processor is tried with
# The token that a processor puts first. Question answering reads [ENC] there; the other models set their own, but for
# matching, which shares its processor with the features of texts, [CLS].
FIRST = {"retrieval": "[CLS]", "vqa": "[ENC]", "caption": "[CLS]"}


def write(folder: Path, merged: Merged, output: Path, description: str) -> None:
    """Weights, configuration, processor, generation settings and a README.md into `folder`, which
    will stand at `output`. Raises AuroraError for a model that transformers does not have."""
    head, text = merged.config.backbone.head, merged.config.backbone.text
    _write_json(folder / "config.json", config_for(merged.config.backbone))
    save_file(from_original(merged.tensors), folder / "model.safetensors", metadata={"format": "pt"})
    _write_processor(folder, merged)
    settings = generation_settings(merged)
    if settings is not None:
        ids = {"bos_token_id": text.bos_id, "eos_token_id": text.sep_id, "pad_token_id": text.pad_id}
        _write_json(folder / "generation_config.json", generation_arguments(settings) | ids)
    said = card(ARCHITECTURES[head], merged, output, description, settings and generation_arguments(settings))
    (folder / "README.md").write_text(said, encoding="utf-8")


def generation_settings(merged: Merged) -> GenerationConfig | None:
    """How the task writes texts; None for one that writes none."""
    config = merged.config
    return None if config.task == "retrieval" else getattr(config, config.task).generation


def generation_arguments(settings: GenerationConfig) -> dict[str, Any]:
    """The arguments of transformers' `generate` for these settings. Lengths count the first tokens there, too."""
    drawn = {"do_sample": True, "top_p": settings.top_p, "top_k": settings.top_k}
    return {
        "max_length": settings.max_length,
        "min_length": settings.min_length,
        "num_beams": settings.beams if settings.method in ("beam", "penalised_beam") else 1,
        "repetition_penalty": settings.repetition_penalty,
        **(drawn if settings.method == "nucleus" else {"do_sample": False}),
    }


def _write_processor(folder: Path, merged: Merged) -> None:
    """The image transform of evaluation, and our tokenizer. A WordPiece vocabulary is BERT's tokenizer, which every
    release knows; a tokenizer.json of another kind is taken as it is."""
    tokenizer, edge = merged.tokenizer, merged.config.backbone.vision.image_size
    first = FIRST[merged.config.backbone.head]
    pictures = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": edge, "width": edge},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(DEVIATION),
    }
    words = {
        "tokenizer_class": "BertTokenizer" if tokenizer.path.suffix == ".txt" else "PreTrainedTokenizerFast",
        "processor_class": "BlipProcessor",
        "do_lower_case": True,
        "model_max_length": merged.config.backbone.text.max_positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": True,
        "cls_token": first,
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "additional_special_tokens": ["[DEC]", "[ENC]"],
    }
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(folder / "tokenizer_config.json", words)
    (folder / "tokenizer.json").write_text(tokenizer.serialised(first), encoding="utf-8")


class Reader:
    """The directory as transformers loads it. Raises AuroraError when it does not take every tensor."""

    def __init__(self, folder: Path, merged: Merged) -> None:
        import transformers

        self.folder, self.merged, self.head = folder, merged, merged.config.backbone.head
        kind = getattr(transformers, ARCHITECTURES[self.head])
        with _quiet():
            self.model, report = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
        self.model.eval()
        wrong = {name: sorted(map(str, report[name])) for name in report if report[name]}
        if wrong:
            raise AuroraError(
                f"transformers {transformers.__version__} does not take the exported tensors as they are ({wrong}), so "
                "nothing was kept. Please report this; --format merged does not need it."
            )

    @torch.no_grad()
    def outputs(self) -> dict[str, Tensor]:
        """As `probe.outputs`, computed by transformers."""
        given, text, model = (
            made_up(self.merged.config.backbone),
            self.merged.config.backbone.text,
            self.model,
        )
        tokens = model.vision_model(pixel_values=given.images).last_hidden_state
        if self.head == "caption":
            ids = with_first(given.ids, text.bos_id)
            said = model(pixel_values=given.images, input_ids=ids, attention_mask=given.mask)
            return {"caption logits": said.logits}
        encoder_ids = with_first(given.ids, text.enc_id)
        if self.head == "vqa":
            question = {"attention_mask": given.mask, "encoder_hidden_states": tokens}
            states = model.text_encoder(input_ids=encoder_ids, **question).last_hidden_state
            ids = with_first(given.ids, text.bos_id)
            answers = {"attention_mask": given.mask, "encoder_hidden_states": states}
            return {
                "question states": states,
                "answer logits": model.text_decoder(input_ids=ids, **answers).logits,
            }
        alone = model.text_encoder(input_ids=given.ids, attention_mask=given.mask).last_hidden_state
        pairs = model(input_ids=encoder_ids, pixel_values=given.images, attention_mask=given.mask)
        return {
            "image features": F.normalize(model.vision_proj(tokens[:, 0]), dim=-1),
            "text features": F.normalize(model.text_proj(alone[:, 0]), dim=-1),
            "matching logits": pairs.itm_score,
        }

    @torch.no_grad()
    def check_greedy(self, ours: BlipModel) -> str:
        """Writes about the made-up input and compares with what the attached model wrote.
        Returns what was found, for the record. A text may differ from where two words are equally likely, to rounding.

        Raises AuroraError for any other difference. ours: the exported model, for the likelihoods."""
        text, settings = self.merged.config.backbone.text, generation_settings(self.merged)
        begin, wanted = self.merged.begin, self.merged.written
        given = made_up(self.merged.config.backbone)
        greedy = generation_arguments(settings.model_copy(update={"method": "greedy"}))
        ids, mask = with_first(given.ids, text.enc_id), given.mask
        if self.head == "caption":
            # it drops the last token of a prompt, [SEP], and puts its own in the place of the first
            ids = torch.cat([begin, begin.new_tensor([text.sep_id])]).expand(len(given.images), -1).clone()
            mask = torch.ones_like(ids)
        found = self.model.generate(input_ids=ids, pixel_values=given.images, attention_mask=mask, **greedy)
        ties = 0
        for row, (one, other) in enumerate(zip(wanted.tolist(), found.tolist(), strict=True)):
            one, other = _until(one, text.sep_id), _until(other, text.sep_id)
            if one == other:
                continue
            place = next(
                (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None
            )
            if place is None or not self._tie(ours, one, other, place, row):
                raise AuroraError(
                    f"The exported model was read again by transformers and writes {other} where the attached one "
                    f"writes {one} (greedy, made-up image {row}), so nothing was kept. Please report this with the "
                    "adapter's configuration."
                )
            ties += 1
        return (
            "the same ids"
            if not ties
            else f"the same ids, but for {ties} of {len(wanted)} texts with a tie in them"
        )

    def _tie(self, ours: BlipModel, one: list[int], other: list[int], place: int, row: int) -> bool:
        """Whether the tokens at `place` are equally likely there, to rounding."""
        logits = next_word(ours, one[:place], row)
        return float((logits[one[place]] - logits[other[place]]).abs() / logits.abs().max()) <= TOLERANCE

    def check_processor(self) -> None:
        """Raises AuroraError when the processor of the folder does not make our ids of a sentence."""
        from transformers import BlipProcessor

        with _quiet():
            processor = BlipProcessor.from_pretrained(self.folder, local_files_only=True)
        tokenizer = self.merged.tokenizer
        ids, _ = tokenizer.encode([SENTENCE], self.merged.config.backbone.text.max_positions)
        wanted = with_first(ids, tokenizer.enc_id)[0].tolist() if self.head == "vqa" else ids[0].tolist()
        found = processor(text=SENTENCE)["input_ids"]
        if found != wanted:
            raise AuroraError(
                f"The exported processor was read again by transformers and makes {found} of '{SENTENCE}' in place of "
                f"{wanted}, so nothing was kept. Please report this with {tokenizer.path}."
            )


def _until(ids: list[int], end: int) -> list[int]:
    """The text with its end token, without what pads it."""
    return ids[: ids.index(end) + 1] if end in ids else ids


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
