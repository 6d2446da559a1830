"""The Aurora prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from aurora_ds.config.section import Section, Switchable


class PromptConfig(Section):
    """Aurora prompts. `preset` sets every field that is left null; see docs of prompts.presets."""

    preset: Literal["aurora", "released"] = "aurora"
    form: Literal["tucker", "cp"] | None = None
    rank: PositiveInt = 32
    scale: float = 1.0
    dropout: float = Field(0.1, ge=0, lt=1)
    dropout_position: Literal["released", "shared"] | None = None
    mlp_layout: Literal["interleaved", "block"] | None = Field(
        None, description="how MLP mode columns map to blocks; interleaved: as released"
    )
    sites: list[str] = Field(default_factory=lambda: ["*"], description="glob patterns over site names")
    query_transform: bool = True
    context: Annotated[Literal["off", "consistent", "released"] | None, Switchable] = None
    context_scale: float = 0.1
    train_heads: list[str] | None = Field(
        None,
        description="which of vision_proj, text_proj, itm_head (NLVR2: cls_head_0, cls_head_2) are trained",
    )
    momentum_factors: Literal["shared", "ema"] | None = Field(
        None, description="whether U, V, core have a momentum copy"
    )
