"""The model that a golden folder of mPLUG describes, in the names of the published configuration files."""

from __future__ import annotations

from typing import Any

from aurora_ds.config import BackboneConfig
from aurora_ds.verify.golden import Golden


def backbone_config(golden: Golden, head: str, **changes: Any) -> BackboneConfig:
    """Sizes and weights of the folder, without dropout; `changes`: other settings. Folders without images have no
    vision transformer, those without a joint space no `embed_dim`. Raises AuroraError for a size that is not told."""
    bert, clip, task = (golden.config[part] for part in ("bert", "clip", "task_config"))
    vision: dict[str, Any] = {}
    if clip is not None:
        vision = {
            "image_size": task["image_res"],
            "patch_size": clip["patch"],
            "width": clip["width"],
            "depth": clip["layers"],
            "heads": clip["heads"],
        }
    return BackboneConfig.model_validate(
        {
            "name": "mplug",
            "head": head,
            "checkpoint": str(golden.folder / "weights.safetensors"),
            **({"embed_dim": task["embed_dim"]} if "embed_dim" in task else {}),
            "vision": vision,
            "text": {
                "vocab_size": bert["vocab_size"],
                "width": bert["hidden_size"],
                "depth": bert["num_hidden_layers"],
                "heads": bert["num_attention_heads"],
                "intermediate": bert["intermediate_size"],
                "max_positions": bert["max_position_embeddings"],
                "token_types": bert["type_vocab_size"],
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            "mplug": {
                "text_layers": bert["text_encoder_layers"],
                "fusion_layers": bert["fusion_layers"],
                "decoder_layers": bert["text_decode_layers"],
                "stride": bert["stride_layer"],
                "vision_attention_dropout": 0.0,
            },
            **changes,
        }
    )
