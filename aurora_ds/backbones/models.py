"""The BLIP models by `backbone.head`."""

from __future__ import annotations

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.backbones.blip_caption import BlipCaption
from aurora_ds.backbones.blip_nlvr import BlipNlvr
from aurora_ds.backbones.blip_vqa import BlipVqa
from aurora_ds.config import BackboneConfig

BlipModel = BlipRetrieval | BlipVqa | BlipCaption | BlipNlvr
MODELS: dict[str, type[BlipModel]] = {
    "retrieval": BlipRetrieval,
    "vqa": BlipVqa,
    "caption": BlipCaption,
    "nlvr": BlipNlvr,
}


def new_model(config: BackboneConfig) -> BlipModel:
    """The model of `config.head` with random weights, from torch's generator."""
    return MODELS[config.head](config)
