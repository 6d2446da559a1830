"""What training or export left in a folder, and how it is used: an adapter over a frozen backbone, or a whole model.

Both carry their settings (the task's, the backbone's, how clips are read), so no recipe is needed to use them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.backbones.checkpoint import resolve_checkpoint
from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import find_adapter
from aurora_ds.prompts.adapter import CONFIG_FILE, read_adapter
from aurora_ds.recipe import described_config, load_config
from aurora_ds.whole_model import FULL_FILE, RECORD_FILE, record_beside

EXPORTED_RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Trained:
    """A trained model on disk.

    `saved`: what its JSON says. `weights`: of a whole model, what is given as backbone.checkpoint; None: an adapter.
    """

    folder: Path
    saved: dict[str, Any]
    weights: Path | None = None

    @property
    def method(self) -> str:
        """How it was trained (aurora, heads, full); of an export that does not say so, its format."""
        return self.saved.get("method") or str(self.saved["format"]).removeprefix("aurora_ds.")

    @property
    def adapter(self) -> str | None:
        """The adapter's folder; None for a whole model."""
        return str(self.folder) if self.weights is None else None

    def config(self, recipe: str | None, overrides: Sequence[str]) -> RunConfig:
        """The run that it is used by: its own settings, or those of `recipe`, with `overrides` on top.

        Raises AuroraError: it has no settings and there is no recipe, the recipe is for another task, the backbone is
        not where it was in training.
        """
        own = (
            [] if self.weights is None else [f"backbone.checkpoint={self.weights}", "backbone.tokenizer=null"]
        )
        changes = [*own, *overrides]
        if recipe is not None:
            config = load_config(recipe, changes)
            task = self._settings().get("task", config.task)
            if task != config.task:
                raise AuroraError(
                    f"{self.folder} was trained for the task {task}, but {recipe} is a recipe of {config.task}. Leave "
                    "the recipe out: the folder says what it needs."
                )
            return config
        if (self.folder / EXPORTED_RECIPE).is_file():
            return load_config(str(self.folder / EXPORTED_RECIPE), changes)
        config = described_config(self._described(), f"the settings of {self.folder}", changes)
        if config.backbone.checkpoint is not None:
            try:
                resolve_checkpoint(config.backbone.checkpoint)
            except AuroraError as error:
                raise AuroraError(
                    f"{error} {self.folder} was trained on that file: say where it is now by "
                    "backbone.checkpoint=FILE (in Python: backbone=FILE)."
                ) from error
        return config

    def _settings(self) -> dict[str, Any]:
        settings = self.saved.get("settings")
        return settings if isinstance(settings, dict) else {}

    def _described(self) -> dict[str, Any]:
        """What a recipe would say."""
        settings, backbone = self._settings(), self.saved["backbone"].get("config")
        task = settings.get("task")
        if backbone is None or task not in settings or "video" not in settings:
            raise AuroraError(
                f"{self.folder} does not say how it is used (settings and backbone.config in its "
                f"{CONFIG_FILE if self.weights is None else RECORD_FILE}): an older release wrote it. Give the recipe "
                "that it was trained with as well."
            )
        described = {"task": task, task: settings[task], "data": {"video": settings["video"]}}
        if task == "pretrain":
            described["train"] = {"method": "full"}  # it has no other
        # they are for training, and an exported or fully fine-tuned file has none
        return described | {"backbone": backbone | {"momentum_weights": "ignore", "queue_weights": "ignore"}}


def find_trained(folder: str | Path) -> Trained:
    """The trained model of a run's folder, a checkpoint, an adapter, an exported or a fully fine-tuned model.

    Raises AuroraError when there is none, or its files cannot be read."""
    folder = Path(folder).expanduser()
    for place in (folder, folder / "adapter"):
        record = record_beside(place)
        if record is not None:
            whole = place / FULL_FILE
            return Trained(place, record, whole if whole.is_file() else place)
    place = find_adapter(folder)
    return Trained(place, read_adapter(place)[1])
