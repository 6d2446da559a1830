"""The families of backbones by `backbone.name`, and the models of a configuration."""

from __future__ import annotations

from torch import nn

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.backbones.blip_caption import BlipCaption
from aurora_ds.backbones.blip_family import BlipFamily
from aurora_ds.backbones.blip_nlvr import BlipNlvr
from aurora_ds.backbones.blip_vqa import BlipVqa
from aurora_ds.backbones.eve_family import EveFamily
from aurora_ds.backbones.family import Family
from aurora_ds.backbones.mplug_family import MplugFamily
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

BlipModel = BlipRetrieval | BlipVqa | BlipCaption | BlipNlvr
FAMILIES: dict[str, Family] = {"blip": BlipFamily(), "mplug": MplugFamily(), "eve": EveFamily()}


def family_of(config: BackboneConfig) -> Family:
    """The family of `config.name`. Raises AuroraError when this release has none of that name."""
    if config.name not in FAMILIES:
        raise AuroraError(
            f"backbone.name={config.name} is not built in this release; it has {', '.join(FAMILIES)}."
        )
    return FAMILIES[config.name]


def new_model(config: BackboneConfig) -> nn.Module:
    """The model of `config.head` with random weights, from torch's generator."""
    return family_of(config).new_model(config)
