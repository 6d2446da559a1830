"""The family of BLIP: its models, and what its published files and transformers-format directories hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aurora_ds.backbones import blip_nlvr, transformers_format
from aurora_ds.backbones.blip import INITIAL_TEMPERATURE, BlipRetrieval
from aurora_ds.backbones.blip_caption import BlipCaption
from aurora_ds.backbones.blip_nlvr import BlipNlvr
from aurora_ds.backbones.blip_vqa import BlipVqa
from aurora_ds.backbones.family import Family
from aurora_ds.backbones.made_for import another_task
from aurora_ds.backbones.published import PublishedTensors, sort_published
from aurora_ds.backbones.shapes import Shapes
from aurora_ds.config import BackboneConfig


class BlipFamily(Family):
    """BLIP (Li et al., 2022), and what Aurora made of it."""

    title = "BLIP"
    models = {"retrieval": BlipRetrieval, "vqa": BlipVqa, "caption": BlipCaption, "nlvr": BlipNlvr}
    positions, interpolation = "visual_encoder.pos_embed", "bicubic"
    optional = {"temp": INITIAL_TEMPERATURE}  # models made for inference alone do not store it
    unused = (
        "May be there without being used: text_decoder.*, position_ids, and momentum weights and queues unless "
        "they are asked for."
    )

    def sort(self, state: Mapping[str, Tensor], config: BackboneConfig) -> PublishedTensors:
        """See `published.sort_published`."""
        return sort_published(state, config.head)

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, int | float]:
        """All but the numbers of attention heads, which cannot be seen."""
        found = Shapes(state)
        found.read("visual_encoder.patch_embed.proj.weight", vision__width=0, vision__patch_size=3)
        text = (
            "text_decoder.bert" if not any(n.startswith("text_encoder.") for n in state) else "text_encoder"
        )
        found.read(f"{text}.embeddings.word_embeddings.weight", text__vocab_size=0, text__width=1)
        found.read(f"{text}.embeddings.position_embeddings.weight", text__max_positions=0)
        found.read(f"{text}.encoder.layer.0.intermediate.dense.weight", text__intermediate=0)
        found.read("vision_proj.weight", embed_dim=0)
        found.ratio("visual_encoder.blocks.0.mlp.fc1.weight", "vision.mlp_ratio")
        found.depth(r"visual_encoder\.blocks\.(\d+)\.", "vision.depth")
        found.depth(rf"{re.escape(text)}\.encoder\.layer\.(\d+)\.", "text.depth")
        return found.sizes

    def lacking(self, sizes: Mapping[str, int | float], head: str) -> str | None:
        """Patch embedding and text embeddings are in every file."""
        if "vision.width" in sizes and "text.width" in sizes:
            return None
        text = "text_decoder" if head == "caption" else "text_encoder"
        return f"visual_encoder.patch_embed or the embeddings of the text transformer ({text}.*)"

    def advice(self, state: Mapping[str, Tensor], head: str) -> str | None:
        """See `made_for.another_task`."""
        return another_task(state, head)

    def from_folder(
        self, folder: Path, config: BackboneConfig, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Sizes of config.json checked, names mapped."""
        transformers_format.check_sizes(folder, config)
        return transformers_format.to_original(state)

    def completed(
        self, state: dict[str, Tensor], config: BackboneConfig
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Two-image reasoning starts from models of one image."""
        return blip_nlvr.from_pretrained(state, config.text) if config.head == "nlvr" else (state, [])
