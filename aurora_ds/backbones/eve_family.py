"""The family of EVE: its models, and what its published files hold.

Names of a file are those of the modules. The trunk's are the same in every file; heads are those of the task that it
was trained for. A file without the heads of `backbone.head` starts the task with new ones, from torch's generator; a
head that the file does have is always loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from aurora_ds.backbones.eve import INITIAL_STD
from aurora_ds.backbones.eve_heads import EveNlvr, EveRetrieval, EveVqa
from aurora_ds.backbones.eve_positions import resize_table
from aurora_ds.backbones.eve_pretraining import EvePretraining
from aurora_ds.backbones.family import Family
from aurora_ds.backbones.published import PublishedTensors
from aurora_ds.backbones.shapes import Shapes
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

_TRUNK = "backbone."
_TABLE = "backbone.encoder.relative_position_bias_table"
_MASK = "backbone.mask_embed_vision"
# position numbers, and what only pre-training had
_UNUSED = re.compile(
    r"backbone\.position_ids_(vision|text)$|(mitc_|itc_vl_|mitm_head)|mitc_temp$|(decoder|mim_|mlm_)"
)
_HEAD_PARTS = ("itc_", "itm_head.", "output.", "attn1.", "attn2.", "fc.", "attn_pool.", "nlvr2_output.")
_LAYER = r"backbone\.encoder\.layers\.(\d+)\."


class EveFamily(Family):
    """EVE (AAAI 2024)."""

    title = "EVE"
    models = {"retrieval": EveRetrieval, "vqa": EveVqa, "nlvr": EveNlvr, "pretrain": EvePretraining}
    positions, interpolation = "backbone.pos_embed_vision", "bicubic"
    unused = (
        "May be there without being used: position_ids, heads of other tasks, parts of pre-training, and the mask "
        "embedding unless backbone.eve.mask_embedding is set."
    )

    def sort(self, state: Mapping[str, Tensor], config: BackboneConfig) -> PublishedTensors:
        """The trunk, and the heads that `config.head` has too."""
        result = PublishedTensors()
        own = self._without_trunk(config)
        # two heads have the same names; one reads one pass, the other two
        first = "output.0.weight"
        if first in own and first in state and own[first].shape != state[first].shape:
            own = {}
        for name, tensor in state.items():
            name = name.removeprefix("module.")
            if name not in own and (_UNUSED.match(name) or name.startswith(_HEAD_PARTS)):
                continue
            if name == _MASK and not config.eve.mask_embedding:
                continue
            result.online[name] = tensor
        trained = result.online.pop("temp", None)  # how a fully fine-tuned model of ours names it
        if trained is not None and "itc_temp" in self._without_trunk(config):
            result.online["itc_temp"] = trained.reshape(())
        return result

    def _without_trunk(self, config: BackboneConfig) -> dict[str, Tensor]:
        """New heads, made beside the smallest trunk."""
        vision = config.vision.model_copy(update={"depth": 1, "image_size": config.vision.patch_size})
        # the head of pre-training has a number for each word
        words = config.text.vocab_size if config.head == "pretrain" else 1
        text = config.text.model_copy(update={"vocab_size": words, "max_positions": 1})
        eve = config.eve.model_copy(update={"top_layers": [], "lower": "single"})
        small = config.model_copy(update={"vision": vision, "text": text, "eve": eve})
        return {n: t for n, t in self.new_model(small).state_dict().items() if not n.startswith(_TRUNK)}

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, int | float]:
        """All but the number of attention heads and of choices per token, which cannot be seen."""
        found = Shapes(state)
        found.read("backbone.patch_embed.weight", vision__width=0, vision__patch_size=3)
        found.read("backbone.word_embedding.weight", text__vocab_size=0)
        found.read("backbone.pos_embed_text", text__max_positions=0)
        found.depth(_LAYER, "vision.depth")
        found.ratio("backbone.encoder.layers.0.mlp_imag.fc1.weight", "vision.mlp_ratio")
        found.read("itc_vision_proj_head.weight", embed_dim=0)
        if "output.0.weight" in state and state["output.0.weight"].shape[1] == found.sizes.get(
            "vision.width"
        ):
            found.read("output.3.weight", eve__answers=0)
        gates = [n for n in state if re.match(_LAYER + r"mlp_moe\.moe\.gate\.wg\.weight$", n)]
        top = [n for n in gates if n.replace("mlp_moe.moe.gate.wg", "norm2_vl") in state]
        for gate, key in ((top, "eve.moe.experts"), (sorted(set(gates) - set(top)), "eve.lower_moe.experts")):
            if gate:
                found.sizes[key] = state[gate[0]].shape[0]
        return found.sizes

    def lacking(self, sizes: Mapping[str, int | float], head: str) -> str | None:
        """Patch and word embeddings are in every file."""
        if "vision.width" in sizes and "text.vocab_size" in sizes:
            return None
        return "backbone.patch_embed or backbone.word_embedding"

    def completed(
        self, state: dict[str, Tensor], config: BackboneConfig
    ) -> tuple[dict[str, Tensor], list[str]]:
        """New heads where the file has none of the task."""
        state = self._with_table(state, config)
        heads = self._without_trunk(config)
        if (
            config.head == "pretrain" and _MASK not in state
        ):  # of a trunk that was trained without hidden patches
            heads[_MASK] = torch.nn.init.trunc_normal_(
                torch.empty(config.vision.width), std=INITIAL_STD, a=-INITIAL_STD, b=INITIAL_STD
            )
        if any(name in state for name in heads):
            return state, []
        return state | heads, list(heads)

    def _with_table(self, state: dict[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
        """Relative positions, where there are some, as of images of the size of `config`."""
        table = state.get(_TABLE)
        if (table is not None) != config.eve.relative_positions:
            raise AuroraError(
                f"The file has {'relative' if table is not None else 'absolute'} positions: set "
                f"backbone.eve.relative_positions={'true' if table is not None else 'false'}."
            )
        if table is None:
            return state
        side = config.vision.image_size // config.vision.patch_size
        return {**state, _TABLE: resize_table(table, side, config.text.max_positions)}

    def has_momentum(self, name: str) -> bool:
        """EVE has no momentum model."""
        return False
