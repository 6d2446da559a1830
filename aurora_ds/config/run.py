"""How a run trains, judges and reports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from aurora_ds.config.section import Section


class TrainConfig(Section):
    """The optimisation. `global_batch_size`: samples of one optimizer step, over all ranks and accumulation steps."""

    method: Literal["aurora", "heads", "full"] = "aurora"
    start_from: str | None = Field(
        None, description="an adapter, or a run's folder that has one, whose values training begins with"
    )
    epochs: PositiveInt = 6
    max_steps: PositiveInt | None = Field(
        None, description="stop after this many optimizer steps, whatever the epochs say"
    )
    global_batch_size: PositiveInt = 128
    accumulation: PositiveInt = 1
    lr: PositiveFloat = 1e-5
    vision_lr: PositiveFloat | None = Field(
        None, description="of the image encoder's own weights, which only method=full trains; null: lr"
    )
    lr_multiple: PositiveFloat = Field(1.0, description="of what lr_multiple_of names: lr times this")
    lr_multiple_of: list[str] = Field(
        [], description="parameters whose names have one of these in them, such as the heads of EVE"
    )
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "cosine_epoch", "linear", "constant"] = Field(
        "cosine",
        description="cosine_epoch: constant within an epoch, as published; linear: to min_lr at the end",
    )
    warmup_steps: int = Field(0, ge=0)
    warmup_lr: float = Field(0.0, ge=0, description="learning rate of step 0 when warmup_steps > 0")
    weight_decay: float = Field(0.05, ge=0)
    no_decay: list[str] = Field(
        [], description="parameters whose names have one of these in them do not decay, such as bias"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip_norm: float = Field(0.0, ge=0, description="0: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="used when no --deepspeed-config is given")
    expert_parallel: PositiveInt = Field(
        1,
        description="ranks that share the experts of a backbone, each holding an equal part; 1: all on each rank",
    )
    save_every: int = Field(
        0, ge=0, description="optimizer steps between checkpoints; 0: at the end of each epoch"
    )
    save_queue: bool = True
    keep_last: PositiveInt = 2
    evaluate_every: int = Field(
        0, ge=0, description="epochs between evaluations on data.eval_split; 0: only at the end"
    )
    moved_after: PositiveInt = Field(
        20, description="steps after which every trainable must have changed, or the run stops"
    )
    collective_timeout_seconds: PositiveFloat = Field(
        1800.0, description="a rank that waits longer for the others, all of them being alive, ends the run"
    )
    unreachable_seconds: PositiveFloat = Field(
        25.0,
        description="without a sign of life from another host for so long, the run ends; shorter cuts pass",
    )


class EvalConfig(Section):
    """Evaluation batches."""

    image_batch_size: PositiveInt = 32
    text_batch_size: PositiveInt = 256
    limit: PositiveInt | None = Field(None, description="evaluate on the first N media only")
    java: bool = Field(
        True, description="captions: METEOR and SPICE too, where Java and pycocoevalcap are there"
    )


class MonitorConfig(Section):
    """TensorBoard and progress."""

    tensorboard: bool = True
    log_every: PositiveInt = 10
    profile_steps: list[PositiveInt] = Field(
        [],
        description="optimizer steps of which torch's profiler leaves a trace in OUTPUT/profile, e.g. [20, 22]",
    )
    profile_ranks: list[NonNegativeInt] = Field([0], description="ranks that are traced")
    gallery_queries: int = Field(8, ge=0, description="queries in the top-5 picture grid; 0: none")
