"""Names of published checkpoints (BLIP's, Aurora's), and what their tensors turn into here.

The modules carry the published names, with differences: query, key and value of a self-attention are one `qkv`, key and
value of a cross-attention one `kv`; CLIP's vision transformer has timm's names (clip_names.py); and learned positions
are resized to the configured image size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.backbones.clip_names import to_clip, to_timm
from aurora_ds.errors import AuroraError

FUSED = {"attention": ("qkv", ("query", "key", "value")), "crossattention": ("kv", ("key", "value"))}
SEPARATE_NAME = re.compile(
    r"(?P<attention>.*\.(?P<kind>(cross)?attention)\.self[01]?)\.(?P<part>\w+)\.(?P<leaf>weight|bias)"
)

QUEUES = (
    "image_queue",
    "text_queue",
    "idx_queue",
    "ptr_queue",
    "queue_ptr",
)  # the last: pre-training's name for the pointer
MOMENTUM_PARTS = ("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m")
# Beside a model, files may hold: position numbers (a buffer), an unused BERT pooler or word-prediction head, and
# the parts of pre-training that the model has no use for. Everything else that is not used is an error.
UNUSED = r"(^|\.)position_ids$|^text_encoder(_m)?\.(pooler|cls)\.|^text_decoder\.bert\.pooler\."
CONTRASTIVE = r"^(vision_proj|text_proj|itm_head)\.|^temp$"
IGNORED = {
    "retrieval": re.compile(rf"{UNUSED}|^text_decoder\."),
    "vqa": re.compile(rf"{UNUSED}|{CONTRASTIVE}"),
    "caption": re.compile(rf"{UNUSED}|{CONTRASTIVE}"),
    "nlvr": re.compile(rf"{UNUSED}|{CONTRASTIVE}|^text_decoder\."),
}
WORDS, WORD_BIAS = "text_decoder.bert.embeddings.word_embeddings.weight", "text_decoder.cls.predictions.bias"
TIED = {
    "text_decoder.cls.predictions.decoder.weight": WORDS,
    "text_decoder.cls.predictions.decoder.bias": WORD_BIAS,
}


@dataclass
class PublishedTensors:
    """A file's tensors by what they are for, under published names."""

    online: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)  # names without `_m`
    queues: dict[str, Tensor] = field(default_factory=dict)
    aurora: dict[str, Tensor] = field(default_factory=dict)  # `*_m` copies included, under their own names


def sort_published(state: Mapping[str, Tensor], head: str = "retrieval") -> PublishedTensors:
    """Every tensor of `state` in its place, for the model `head`; those that it ignores by declaration are left out.

    Raises AuroraError when a tensor that is stored twice because it is tied has two values."""
    result = PublishedTensors()
    # a captioner takes the decoder of pre-training, but none that was trained beside another text encoder (VQA)
    pretrained = any(name.startswith(("itm_head.", "vision_proj.")) for name in state)
    for name, tensor in (untied(state) if head in ("vqa", "caption") else state).items():
        top, _, rest = name.partition(".")
        if IGNORED[head].search(name) or (head == "caption" and pretrained and top == "text_encoder"):
            continue
        if name in QUEUES:
            result.queues[name] = tensor
        elif any(part.startswith("CP_") or part.endswith("_CP") for part in name.split(".")):
            result.aurora[name] = tensor
        elif top in MOMENTUM_PARTS:
            result.momentum[f"{top.removesuffix('_m')}.{rest}"] = tensor
        else:
            result.online[name] = tensor
    return result


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projection to the vocabulary is the word embedding: files store both, or either."""
    result = dict(state)
    for copy, name in TIED.items():
        if copy not in result:
            continue
        tensor = result.pop(copy)
        if not torch.equal(result.setdefault(name, tensor), tensor):
            raise AuroraError(
                f"'{copy}' differs from '{name}' in the checkpoint; in the published models they are one tensor. The "
                "file was changed, or is of another kind of model."
            )
    return result


def split_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> this package's. A projection with a missing part stays as it is, to be reported under
    its own name."""
    result: dict[str, Tensor] = {}
    for name, tensor in to_timm(state).items():
        match = SEPARATE_NAME.fullmatch(name)
        fused, parts = FUSED[match["kind"]] if match else ("", ())
        names = [f"{match['attention']}.{part}.{match['leaf']}" for part in parts] if match else []
        if name not in names or any(each not in state for each in names):
            result[name] = tensor
        elif name == names[0]:
            result[f"{match['attention']}.{fused}.{match['leaf']}"] = torch.cat(
                [state[each] for each in names]
            )
    return result


def published_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This package's names -> published ones, for weights and gradients alike; the inverse of `split_published`."""
    result: dict[str, Tensor] = {}
    for name, tensor in to_clip(state).items():
        match = SEPARATE_NAME.fullmatch(name)
        fused, parts = FUSED[match["kind"]] if match else ("", ())
        if not match or match["part"] != fused:
            result[name] = tensor
            continue
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            result[f"{match['attention']}.{part}.{match['leaf']}"] = rows.contiguous()
    return result


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under published names."""
    return published_tensors({name: tensor.detach() for name, tensor in model.state_dict().items()})


def resize_positions(positions: Tensor, patches: int, interpolation: str = "bicubic") -> Tensor:
    """Learned positions (1, 1 + n, D) -> (1, 1 + patches, D), or both without first axis: bicubic or bilinear on the
    square grid, without corner alignment or antialiasing, class position untouched, as the published loading code of a
    family does it.

    Raises AuroraError when one of the grids is not square."""
    if positions.dim() == 2:
        return resize_positions(positions[None], patches, interpolation)[0]
    old = positions.shape[1] - 1
    if old == patches:
        return positions
    before, after = round(old**0.5), round(patches**0.5)
    if before**2 != old or after**2 != patches:
        raise AuroraError(
            f"Positions of {old} patches cannot be resized to {patches}: both must be square grids."
        )
    grid = positions[:, 1:].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = grid if grid.dtype == torch.float64 else grid.float()
    grid = F.interpolate(grid, size=(after, after), mode=interpolation, align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], dim=1)
