"""The DeepSpeed settings of a run: a file from ds_configs/ (or the user's own) and what the recipe decides, merged.

The recipe owns batch sizes, accumulation, clipping, precision and the optimizer; the file owns ZeRO and
communication. A file that contradicts the recipe is an error, so that no setting is overruled in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError


def resolve_settings(
    config: TrainConfig, deepspeed_config: str | Path | dict | None, world_size: int
) -> dict[str, Any]:
    """The settings to give to `deepspeed.initialize`.

    Raises AuroraError for a missing or broken file, a batch that does not divide, or a setting that contradicts
    `config`.
    """
    per_step = world_size * config.accumulation
    if config.global_batch_size % per_step:
        raise AuroraError(
            f"train.global_batch_size is {config.global_batch_size}, which {world_size} ranks with "
            f"train.accumulation {config.accumulation} cannot share equally. Choose a multiple of {per_step}."
        )
    ours: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.global_batch_size // per_step,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_norm,
    }
    defaults: dict[str, Any] = {
        "steps_per_print": 1_000_000_000,
        # The optimizer is torch's AdamW; DeepSpeed's own CPU Adam would be compiled on first use.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": config.zero_stage},
    }
    if config.precision != "fp32":
        # Gradients of a few thousand entries: reducing them in fp32 costs nothing and keeps every rank's share.
        defaults["communication_data_type"] = "fp32"
    source, theirs = _read(deepspeed_config)
    for section in ("optimizer", "scheduler"):
        if section in theirs:
            raise AuroraError(
                f"{source} has a section {section!r}, but the optimizer is AdamW and the schedule is the recipe's, "
                "both set under train.*. Remove that section."
            )
    for key, value in ours.items():
        if theirs.get(key, "auto") not in ("auto", value):
            raise AuroraError(
                f"{source} has {key} {theirs[key]}, but the recipe (train.global_batch_size, train.accumulation, "
                f"train.clip_norm) on {world_size} ranks makes it {value}. Remove it from the file, or write "
                '"auto".'
            )
    settings = defaults | theirs | ours
    for section in ("bf16", "fp16"):
        wanted = config.precision == section
        given = theirs.get(section, {})
        if given.get("enabled", "auto") not in ("auto", wanted):
            raise AuroraError(
                f"{source} has {section}.enabled {json.dumps(given['enabled'])}, but the recipe has "
                f'train.precision {config.precision}. Change train.precision, or write "auto" in the file.'
            )
        settings[section] = given | {"enabled": wanted}
    if config.precision == "fp16" and not settings["zero_optimization"].get("stage", 0):
        # DeepSpeed 0.19 divides the gradients by the loss scale there, but never multiplies the loss by it.
        raise AuroraError(
            "train.precision fp16 needs a ZeRO stage of 1 or more: at stage 0 DeepSpeed does not scale the loss, and "
            "small gradients vanish. Set train.zero_stage 1 (ds_configs/zero1.json), or use train.precision bf16."
        )
    return json.loads(json.dumps(settings))


def _read(deepspeed_config: str | Path | dict | None) -> tuple[str, dict[str, Any]]:
    if deepspeed_config is None:
        return "The DeepSpeed settings", {}
    if isinstance(deepspeed_config, dict):
        return "The DeepSpeed settings", deepspeed_config
    path = Path(deepspeed_config)
    if not path.is_file():
        raise AuroraError(
            f"There is no DeepSpeed config file {path}. Give a JSON file: the repository's ds_configs/ has one for "
            "each ZeRO stage, and ds_configs/README.md says which to pick."
        )
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AuroraError(f"The DeepSpeed config file {path} is not valid JSON: {error}.") from error
    if not isinstance(read, dict):
        raise AuroraError(
            f"The DeepSpeed config file {path} holds a {type(read).__name__}, not a JSON object."
        )
    return f"The DeepSpeed config file {path}", read
