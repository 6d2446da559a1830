"""Made-up input, and what a model computes of it: two models that agree on it are taken for the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.models import BlipModel
from aurora_ds.config import BackboneConfig, GenerationConfig, VqaConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.entailment import EntailmentTask
from aurora_ds.tasks.generation import Context, write
from aurora_ds.tasks.language import with_first
from aurora_ds.tasks.nlvr import NlvrTask
from aurora_ds.tasks.vqa import VqaTask

TOLERANCE = 1e-4  # of the largest output; merging rounds once per weight
_TOKENS = 8


@dataclass
class MadeUp:
    """Two images, or pairs of them, (2, 3, S, S) or (2, 2, 3, S, S), normalised; two texts int64 (2, L), unpadded."""

    images: Tensor
    ids: Tensor

    @property
    def mask(self) -> Tensor:
        """int64 (2, L): ones."""
        return torch.ones_like(self.ids)


def made_up(config: BackboneConfig) -> MadeUp:
    """Always the same input for models of one size."""
    generator = torch.Generator().manual_seed(0)
    edge, text = config.vision.image_size, config.text
    shape = (2, 2, 3, edge, edge) if config.head == "nlvr" else (2, 3, edge, edge)
    images = torch.randn(shape, generator=generator)
    ids = torch.randint(text.vocab_size, (2, min(_TOKENS, text.max_positions)), generator=generator)
    return MadeUp(images, with_first(ids, text.cls_id))


@torch.no_grad()
def outputs(model: BlipModel, term: Tensor | None = None) -> dict[str, Tensor]:
    """What tasks ask of a model, by name. `term` (H,): what the task adds to the states that are matched."""
    config, given = model.config, made_up(model.config)
    return _OUTPUTS[config.head](model.eval(), config, given, term)


def _retrieval(
    model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None
) -> dict[str, Tensor]:
    tokens, first = model.image_states(given.images)
    states = model.text_states(given.ids, given.mask)
    pair_ids = with_first(given.ids, config.text.enc_id)
    pairs = model.matched(pair_ids, given.mask, model.image_keys(tokens))[:, 0]
    return {
        "image features": F.normalize(model.vision_proj(first), dim=-1),
        "text features": F.normalize(model.text_proj(states[:, 0]), dim=-1),
        "matching logits": model.itm_head(pairs if term is None else pairs + term.to(pairs)),
    }


def _vqa(model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None) -> dict[str, Tensor]:
    if hasattr(model, "answered"):  # by a classifier
        tokens = model.image_tokens(given.images)
        return {"answer logits": model.answered(given.ids, given.mask, tokens).logits}
    states = _questions(model, given)
    return {"question states": states, "answer logits": _next_words(model, config, given, states)}


def _caption(
    model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None
) -> dict[str, Tensor]:
    return {"caption logits": _next_words(model, config, given, model.image_tokens(given.images))}


def _nlvr(model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None) -> dict[str, Tensor]:
    batch = {"image": given.images, "input_ids": given.ids, "attention_mask": given.mask}
    return {"statement logits": NlvrTask(model, None, config.text).logits(batch)}


def _entailment(
    model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None
) -> dict[str, Tensor]:
    batch = {"image": given.images, "input_ids": given.ids, "attention_mask": given.mask}
    return {"statement logits": EntailmentTask(model, None, config.text).logits(batch)}


def _grounding(
    model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None
) -> dict[str, Tensor]:
    states, _ = model.read(given.ids, given.mask, model.image_tokens(given.images))
    return {"phrase states": states, "box logits": _next_words(model, config, given, states)}


def _pretrain(
    model: nn.Module, config: BackboneConfig, given: MadeUp, term: Tensor | None
) -> dict[str, Tensor]:
    one = model.backbone(image_tokens=model.image_tokens(given.images), input_ids=given.ids)
    return {"pair states": one.states}


_OUTPUTS = {
    "retrieval": _retrieval,
    "vqa": _vqa,
    "caption": _caption,
    "nlvr": _nlvr,
    "entailment": _entailment,
    "grounding": _grounding,
    "pretrain": _pretrain,
}


def _questions(model: nn.Module, given: MadeUp) -> Tensor:
    batch = {"image": given.images, "input_ids": given.ids, "attention_mask": given.mask}
    return VqaTask(model, None, VqaConfig(), model.config.text).questions(batch)[0]


def _next_words(model: nn.Module, config: BackboneConfig, given: MadeUp, context: Tensor) -> Tensor:
    decoder = model.text_decoder
    ids = with_first(given.ids, config.text.bos_id)
    return decoder.scores(decoder(ids, given.mask, decoder.context_kv(context)))


@torch.no_grad()
def greedy(model: BlipModel, begin: Tensor, settings: GenerationConfig) -> Tensor:
    """ids (2, longest) of the texts that a model with a decoder writes about the made-up input, after `begin` (P,),
    the likeliest token each time, with the lengths and the repetition penalty of `settings`."""
    text, context = model.config.text, Context(model.text_decoder.context_kv(_context(model)))
    settings = settings.model_copy(update={"method": "greedy"})
    return write(model.text_decoder, context, begin, settings, text.sep_id, text.pad_id).ids


@torch.no_grad()
def next_word(model: BlipModel, ids: list[int], row: int) -> Tensor:
    """Logits (V,) of what follows `ids`, which were written about the made-up image `row`."""
    decoder = model.text_decoder
    kv = decoder.context_kv(_context(model)[row : row + 1])
    return decoder.scores(decoder(torch.tensor([ids]), None, kv)[0, -1])


def _context(model: BlipModel) -> Tensor:
    """What the decoder attends to: image tokens, or the states of questions."""
    given = made_up(model.config)
    return model.image_tokens(given.images) if model.config.head == "caption" else _questions(model, given)


def differences(wanted: dict[str, Tensor], found: dict[str, Tensor], reader: str) -> dict[str, float]:
    """Largest difference of each output, as a part of its largest value.

    Raises AuroraError when one exceeds TOLERANCE; `reader`: who read the exported model."""
    errors = {
        name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in wanted.items()
    }
    worst = max(errors, key=errors.get)
    if not errors[worst] <= TOLERANCE:
        raise AuroraError(
            f"The exported model was read again by {reader} and differs in its {worst} by {errors[worst]:.1e} of the "
            f"largest (allowed: {TOLERANCE:.0e}), so nothing was kept. Please report this with the adapter's "
            "configuration."
        )
    return errors
