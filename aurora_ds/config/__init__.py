"""RunConfig: the one typed description of a run. Unknown keys and wrong values are errors.

The models only describe. recipe.py reads YAML recipes and dotted overrides into them; contradictions.py holds what
single fields cannot say. A field without `description` means what its name says.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from aurora_ds.config.backbone import BackboneConfig, TextConfig, VisionConfig
from aurora_ds.config.data import DataConfig, MixEntry, Sampling, VideoConfig
from aurora_ds.config.mplug import MplugConfig
from aurora_ds.config.pretrain import PretrainConfig
from aurora_ds.config.prompts import PromptConfig
from aurora_ds.config.run import EvalConfig, MonitorConfig, TrainConfig
from aurora_ds.config.section import Section
from aurora_ds.config.tasks import (
    CaptionConfig,
    EntailmentConfig,
    GenerationConfig,
    GroundingConfig,
    NlvrConfig,
    RetrievalConfig,
    SelfCriticalConfig,
    VqaConfig,
)

__all__ = [
    "BackboneConfig", "CaptionConfig", "DataConfig", "EntailmentConfig", "EvalConfig", "GenerationConfig",
    "GroundingConfig", "MixEntry", "MonitorConfig", "MplugConfig", "NlvrConfig", "PretrainConfig", "PromptConfig",
    "RetrievalConfig", "RunConfig", "Sampling", "SelfCriticalConfig", "TextConfig", "TrainConfig",
    "VideoConfig", "VisionConfig", "VqaConfig",
]  # fmt: skip


class RunConfig(Section):
    """Everything that decides a run's result."""

    task: Literal["retrieval", "vqa", "caption", "nlvr", "entailment", "grounding", "pretrain"] = "retrieval"
    description: str = ""
    seed: int = 42
    kernels: Literal["auto", "triton", "torch"] = Field(
        "auto", description="path of the fused projection; auto: Triton where it was measured to be faster"
    )
    kernel_sums: Literal["ordered", "atomic"] = Field(
        "ordered",
        description="how Triton kernels add up gradients of the factors; atomic: less memory, not the same bits again",
    )
    backbone: BackboneConfig = BackboneConfig()
    prompts: PromptConfig = PromptConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    vqa: VqaConfig = VqaConfig()
    caption: CaptionConfig = CaptionConfig()
    nlvr: NlvrConfig = NlvrConfig()
    entailment: EntailmentConfig = EntailmentConfig()
    grounding: GroundingConfig = GroundingConfig()
    pretrain: PretrainConfig = PretrainConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvalConfig = EvalConfig()
    monitor: MonitorConfig = MonitorConfig()
