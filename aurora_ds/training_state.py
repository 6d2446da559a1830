"""What a checkpoint says of its run beside tensors, and whether it is a checkpoint of this run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import changes, checkpoint


def of(
    step: int,
    steps_per_epoch: int,
    plan: str,
    config: RunConfig,
    backbone: Mapping[str, Any],
    best: Mapping[str, Any],
) -> dict[str, Any]:
    """The state after optimizer step `step`. `plan`: fingerprint of the order of samples. `best`: the headline metric
    reached so far and its step."""
    return {
        "epoch": step // steps_per_epoch,
        "cursor": {"step_in_epoch": step % steps_per_epoch, "steps_per_epoch": steps_per_epoch, "plan": plan},
        "samples": step * config.train.global_batch_size,
        "random": "every random number is keyed by (seed, step) or (seed, epoch, pair)",
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "backbone": backbone,
        "best": best,
    }


def check(
    found: Path,
    loaded: checkpoint.Loaded,
    backbone: Mapping[str, Any],
    plan: str,
    config: RunConfig,
    accept_changes: bool,
) -> str:
    """What changed since `loaded` was written to `found`, in words.

    Raises AuroraError: it is of another backbone or another order of samples, or settings or versions changed on which
    the numbers depend and `accept_changes` is not given."""
    theirs = loaded.state.get("backbone", {})
    if theirs.get("sha256") != backbone["sha256"]:
        raise AuroraError(
            f"The checkpoint {found} was trained on backbone {theirs.get('name')} with another sha256 than the one "
            f"loaded now ({backbone['name']}). Give the backbone.checkpoint it was trained on."
        )
    if loaded.state["cursor"].get("plan") != plan:
        raise AuroraError(
            f"The checkpoint {found} was trained on another order of samples: other shards, mixture or weights, or "
            "another seed, data.lanes, data.window or data.expand. Its place in the epoch means nothing here; give "
            "the settings that it was trained with."
        )
    return changes.check(
        found,
        (loaded.state.get("config"), loaded.versions),
        (config.model_dump(mode="json"), checkpoint.versions()),
        accept_changes,
    )
