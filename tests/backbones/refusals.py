"""Checkpoints that must not load."""

from __future__ import annotations

import pytest

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError


def refused(config: BackboneConfig, *parts: str) -> None:
    """The backbone does not load, and the error, one paragraph, has these parts."""
    with pytest.raises(AuroraError) as caught:
        load_backbone(config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
