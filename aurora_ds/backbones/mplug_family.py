"""The family of mPLUG: its models, and what its published files hold.

Names of a fine-tuned file are those of the modules. Pre-training nests two of its parts one deeper
(`text_encoder.bert.…`, `fusion_encoder.fusion.…` or `.bert.…`); both are read. The published loading code drops every
name of the fusion encoder that is *not* nested, so a fine-tuned model never got back in; here it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from aurora_ds.backbones.blip import INITIAL_TEMPERATURE
from aurora_ds.backbones.blip_nlvr import doubled, fresh_head
from aurora_ds.backbones.family import Family
from aurora_ds.backbones.mplug import (
    MplugCaption,
    MplugEntailment,
    MplugGrounding,
    MplugNlvr,
    MplugRetrieval,
    MplugVqa,
)
from aurora_ds.backbones.mplug_start import begin
from aurora_ds.backbones.mplug_text import connected_layers
from aurora_ds.backbones.published import QUEUES, PublishedTensors, untied
from aurora_ds.backbones.shapes import Shapes
from aurora_ds.config import BackboneConfig

_NESTED = re.compile(r"((?:text|fusion)_encoder(?:_m)?)\.(?:bert|fusion)\.")
_LAYER = re.compile(r"fusion_encoder\.encoder\.layer\.(\d+)\.(\w+)\.")
# never computed with, in any model: CLIP's text tower and projection, position numbers, word predictions and poolers of
# the encoders, embeddings of the fusion encoder, what the grounding code recomputes
_UNUSED = re.compile(
    r"visual_encoder\.(transformer|token_embedding|positional_embedding|ln_final|text_projection|logit_scale)(\.|$)"
    r"|visual_encoder\.visual\.proj$|(.*\.)?position_ids$|(text|fusion)_encoder\.(cls|pooler)\."
    r"|text_decoder\.bert\.pooler\.|fusion_encoder\.embeddings\.|(prefix_ids|target_ids|bbox_prob_mask)$"
)
# parts that the other models have
_OTHERS = {
    "retrieval": ("text_decoder.",),
    "vqa": ("vision_proj.", "text_proj.", "itm_head.", "temp"),
    "caption": ("text_encoder.", "fusion_encoder.", "vision_proj.", "text_proj.", "itm_head.", "temp"),
    "grounding": ("vision_proj.", "text_proj.", "itm_head.", "temp"),
    "nlvr": ("text_decoder.", "vision_proj.", "text_proj.", "itm_head.", "temp"),
    "entailment": ("text_decoder.", "vision_proj.", "text_proj.", "itm_head.", "temp"),
}


def unnested(name: str) -> str:
    """A name of any published nesting as that of the module."""
    return _NESTED.sub(r"\1.", name.removeprefix("module."), count=1)


class MplugFamily(Family):
    """mPLUG (Li et al., EMNLP 2022)."""

    title = "mPLUG"
    models = {
        "retrieval": MplugRetrieval,
        "vqa": MplugVqa,
        "caption": MplugCaption,
        "grounding": MplugGrounding,
        "nlvr": MplugNlvr,
        "entailment": MplugEntailment,
    }
    positions, interpolation = "visual_encoder.visual.pos_embed", "bilinear"
    optional = {"temp": INITIAL_TEMPERATURE}
    unused = (
        "May be there without being used: CLIP's text tower, layers of the fusion encoder before its last "
        "backbone.mplug.fusion_layers, parts of other heads, and momentum weights and queues unless they are asked for."
    )

    def start(self, config: BackboneConfig) -> tuple[nn.Module, str]:
        """See mplug_start."""
        model = self.new_model(config)
        return model, begin(model, config)

    def sort(self, state: Mapping[str, Tensor], config: BackboneConfig) -> PublishedTensors:
        """Names of every published nesting as those of the modules."""
        state = {unnested(name): tensor for name, tensor in state.items()}
        result = PublishedTensors()
        for name, tensor in (untied(state) if config.head != "retrieval" else state).items():
            top, _, rest = name.partition(".")
            plain = name if not top.endswith("_m") else f"{top.removesuffix('_m')}.{rest}"
            if name in QUEUES:
                result.queues[name] = tensor
            elif not self._used(plain, config):
                continue
            elif plain == name:
                result.online[name] = tensor
            elif self.has_momentum(plain):
                result.momentum[plain] = tensor
        result.momentum = untied(result.momentum)
        return result

    def _used(self, name: str, config: BackboneConfig) -> bool:
        if _UNUSED.match(name) or name.startswith(_OTHERS[config.head]):
            return False
        layer = _LAYER.match(name)
        if layer is None:
            return True
        number, part = int(layer[1]), layer[2]
        first = config.text.depth - config.mplug.fusion_layers
        return number >= first and not (part == "crossattention" and number in connected_layers(config))

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, int | float]:
        """All but the numbers of heads, of fusion layers and the stride, which cannot be seen."""
        found, visual = Shapes(state), "visual_encoder.visual"
        found.read(f"{visual}.conv1.weight", vision__width=0, vision__patch_size=3)
        found.ratio(f"{visual}.transformer.resblocks.0.mlp.c_fc.weight", "vision.mlp_ratio")
        found.depth(rf"{visual}\.transformer\.resblocks\.(\d+)\.", "vision.depth")
        text = "text_encoder" if any(n.startswith("text_encoder.") for n in state) else "text_decoder.bert"
        found.read(f"{text}.embeddings.word_embeddings.weight", text__vocab_size=0, text__width=1)
        found.read(f"{text}.embeddings.position_embeddings.weight", text__max_positions=0)
        found.read(f"{text}.embeddings.token_type_embeddings.weight", text__token_types=0)
        found.read(f"{text}.encoder.layer.0.intermediate.dense.weight", text__intermediate=0)
        found.read("vision_proj.weight", embed_dim=0)
        found.depth(r"text_encoder\.encoder\.layer\.(\d+)\.", "mplug.text_layers")
        found.depth(r"fusion_encoder\.encoder\.layer\.(\d+)\.", "text.depth")
        found.depth(r"text_decoder\.bert\.encoder\.layer\.(\d+)\.", "mplug.decoder_layers")
        return found.sizes

    def lacking(self, sizes: Mapping[str, int | float], head: str) -> str | None:
        """Patch embedding and text embeddings are in every file."""
        if "vision.width" in sizes and "text.width" in sizes:
            return None
        text = "text_decoder.bert" if head == "caption" else "text_encoder"
        return f"visual_encoder.visual.conv1 or the embeddings of the text transformer ({text}.*)"

    def completed(
        self, state: dict[str, Tensor], config: BackboneConfig
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Statements about images are judged by a head that pre-training has not, those about pairs by two
        cross-attentions a layer, which begin alike."""
        model = self.models[config.head]
        if not issubclass(model, MplugEntailment | MplugNlvr):
            return state, []
        state = doubled(state) if config.head == "nlvr" else state
        fresh = fresh_head(state, config.text, model.CLASSES)
        return state | fresh, list(fresh)
