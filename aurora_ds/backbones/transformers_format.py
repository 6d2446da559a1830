"""Directories in transformers' format, names and sizes, in and out: BlipForImageTextRetrieval,
BlipForQuestionAnswering, BlipForConditionalGeneration.

Only the file layout is used. Differences of that model: no temperature is stored, its vision LayerNorms
default to eps 1e-5 (ours keep BLIP's 1e-6 whatever config.json says: the weights were trained so), and
matching texts keep [CLS] first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

TEMPERATURE = 0.07  # BLIP's initial one, for files that store none
# original -> transformers; the longer names first
NAMES = (
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
)
BLOCK_NAMES = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
SIZES = {
    "vision.width": ("vision_config", "hidden_size"),
    "vision.depth": ("vision_config", "num_hidden_layers"),
    "vision.heads": ("vision_config", "num_attention_heads"),
    "vision.patch_size": ("vision_config", "patch_size"),
    "text.width": ("text_config", "hidden_size"),
    "text.depth": ("text_config", "num_hidden_layers"),
    "text.heads": ("text_config", "num_attention_heads"),
    "text.intermediate": ("text_config", "intermediate_size"),
    "text.max_positions": ("text_config", "max_position_embeddings"),
    "text.vocab_size": ("text_config", "vocab_size"),
    "embed_dim": ("image_text_hidden_size",),
}
ARCHITECTURES = {
    "retrieval": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
    "caption": "BlipForConditionalGeneration",
}
DEFAULT_HEADS = {"vision.heads": 12, "text.heads": 8}


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers names -> published names. The temperature, which the format lacks, is set to BLIP's initial 0.07."""
    result = {}
    for name, tensor in state.items():
        for original, theirs in NAMES:
            if name.startswith(theirs):
                name = original + name.removeprefix(theirs)
                break
        if name.startswith("visual_encoder.blocks."):
            for original, theirs in BLOCK_NAMES:
                name = name.replace(theirs, original)
        result[name] = tensor
    result.setdefault("temp", torch.tensor(TEMPERATURE))
    return result


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> transformers names; the temperature is left out."""
    result = {}
    for name, tensor in state.items():
        if name == "temp":
            continue
        if name.startswith("visual_encoder.blocks."):
            for original, theirs in BLOCK_NAMES:
                name = name.replace(original, theirs)
        for original, theirs in NAMES:
            if name.startswith(original):
                name = theirs + name.removeprefix(original)
                break
        result[name] = tensor
    return result


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the directory, checked to be BLIP's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AuroraError(
            f"{path} cannot be read ({error}); a transformers-format checkpoint directory needs it."
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "blip":
        raise AuroraError(
            f"{path} describes a model of type '{kind}'; this backbone takes model_type 'blip'."
        )
    return config


def configured(config: BackboneConfig, key: str) -> int | float:
    """The value of a dotted key such as `vision.width`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check_sizes(folder: Path, config: BackboneConfig) -> None:
    """Raises AuroraError naming every size in which the directory and the configuration differ, and what to set.

    Sizes that config.json leaves out show in the tensors, but for the number of heads: there transformers'
    default counts."""
    theirs, different = read_config(folder), {}
    for key, places in SIZES.items():
        if key == "embed_dim" and config.head != "retrieval":
            continue  # of a space that the other models do not project to
        value: Any = theirs
        for place in places:
            value = value.get(place) if isinstance(value, dict) else None
        value = DEFAULT_HEADS.get(key) if value is None else value
        if value is not None and value != configured(config, key):
            different[key] = value
    for part in ("vision_config", "text_config"):
        activation = (theirs.get(part) or {}).get("hidden_act", "gelu")
        if activation != "gelu":
            raise AuroraError(
                f"{folder / 'config.json'}: {part}.hidden_act is '{activation}'; BLIP computes with 'gelu'."
            )
    if different:
        listed = ", ".join(
            f"backbone.{key} is {value} there and {configured(config, key)} in the configuration"
            for key, value in different.items()
        )
        raise AuroraError(
            f"{folder / 'config.json'} describes another architecture than this run is configured for: "
            f"{listed}. Give the right directory, or set its sizes: "
            f"{' '.join(f'backbone.{key}={value}' for key, value in different.items())}."
        )


def config_for(config: BackboneConfig) -> dict[str, Any]:
    """The config.json that makes transformers build the same model, or an AuroraError where it has none.

    Two of its defaults would not do: eps 1e-5 of the vision LayerNorms, and 8 text heads. `is_decoder` is what
    gives its text layers a cross-attention; it masks nothing by itself."""
    vision, text = config.vision, config.text
    if config.name != "blip":
        raise AuroraError(
            f"transformers has no model for backbone.name={config.name}. A file under published names holds it: "
            "`aurora-ds export --format merged`."
        )
    if config.head not in ARCHITECTURES:
        raise AuroraError(
            f"transformers has no model for backbone.head={config.head}; it has them for "
            f"{', '.join(ARCHITECTURES)}. A file under published names holds it: `aurora-ds export --format merged`."
        )
    if config.head == "vqa" and vision.width != text.width:
        raise AuroraError(
            f"transformers' BlipForQuestionAnswering needs one width for images and text; these are {vision.width} "
            f"(backbone.vision.width) and {text.width} (backbone.text.width). It cannot hold this model; "
            "`aurora-ds export --format merged` can."
        )
    return {
        "architectures": [ARCHITECTURES[config.head]],
        "model_type": "blip",
        "projection_dim": config.embed_dim,
        "image_text_hidden_size": config.embed_dim,
        "vision_config": {
            "model_type": "blip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": round(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        },
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.intermediate,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_positions,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "is_decoder": True,
            "bos_token_id": text.bos_id,
            "pad_token_id": text.pad_id,
            "eos_token_id": text.sep_id,
            "sep_token_id": text.sep_id,
        },
    }
