"""What an export starts from: the task with its trained values in place, and that task as plain weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.assemble import FULL_FILE, RECORD_FILE, Assembled, build_task, load_trained
from aurora_ds.config import RetrievalConfig, RunConfig, TextConfig
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import find_adapter
from aurora_ds.prompts.adapter import read_adapter
from aurora_ds.recipe import described_config

FULL_FORMAT = "aurora_ds.full"


@dataclass
class Trained:
    """The files of an adapter, or of a fully fine-tuned backbone: where, what their JSON says, the run it implies."""

    place: Path
    saved: dict[str, Any]
    config: RunConfig  # task, task's settings, clips; of the frozen backbone its file

    @property
    def full(self) -> bool:
        """Whether every weight was trained, so that there is nothing to merge."""
        return self.saved["format"] == FULL_FORMAT

    def build(self, backbone: str | Path | None) -> Assembled:
        """The task on the CPU in fp32. `backbone`: the frozen file, when it is not where the configuration says.

        Raises AuroraError when that file is missing or another one than the adapter was trained on."""
        config = self.config.model_copy(deep=True)
        if self.full:
            return build_task(config)
        if backbone is not None:
            config.backbone.checkpoint = str(backbone)
            tokenizer = config.backbone.tokenizer
            if tokenizer is not None and not Path(tokenizer).expanduser().exists():
                config.backbone.tokenizer = None  # it moved too: the one beside the backbone
        try:
            return load_trained(config, str(self.place))
        except AuroraError as error:
            if backbone is None:
                raise AuroraError(
                    f"{error} (The adapter's configuration names this backbone; --backbone FILE gives another place.)"
                ) from error
            raise


def read_trained(folder: str | Path) -> Trained:
    """The adapter, or the fully fine-tuned backbone, of a run's folder, a checkpoint or an adapter.

    Raises AuroraError when there is none, when weights cannot hold it, or when it does not say what it was trained on.
    """
    found = _full(Path(folder))
    place, saved = found if found is not None else _adapter(folder)
    if saved["backbone"].get("config") is None:
        raise AuroraError(
            f"The adapter in {place} does not say how its backbone was configured (backbone.config in its "
            "adapter_config.json), so the model cannot be built. Resume its run once, which saves it anew."
        )
    if saved.get("gate_layers"):
        raise AuroraError(
            f"The adapter in {place} uses the query transformation, a term after each of {len(saved['gate_layers'])} "
            "text layers that no weight of the plain backbone can hold, so a merged model would compute something "
            "else. Train with prompts.query_transform=false to export, or keep using the adapter as it is: "
            "`aurora-ds evaluate --adapter`."
        )
    config = _run_config(saved, place)
    if saved["format"] == FULL_FORMAT:
        config.train.method = "full"
        config.backbone.checkpoint = str(place / FULL_FILE)
    return Trained(place, saved, config)


def merge(assembled: Assembled) -> None:
    """Prompts into the weights, the running context into the matching head's bias, the temperature into `temp`."""
    task = assembled.task
    if task.prompts is not None:
        task.prompts.merge()
    if assembled.config.task != "retrieval":
        return
    term = task.context.evaluation_term()
    if term is not None:
        head = task.model.itm_head
        head.bias += head.weight @ term.to(head.weight)
    task.model.temp.fill_(task.temperature_value())


def _full(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """A fully fine-tuned backbone and what its record says, where training left one."""
    for place in (folder, folder / "adapter"):
        if (place / FULL_FILE).is_file() and (place / RECORD_FILE).is_file():
            try:
                record = json.loads((place / RECORD_FILE).read_text(encoding="utf-8"))
            except ValueError:  # a file of that name that is none of ours
                continue
            if isinstance(record, dict) and record.get("format") == FULL_FORMAT:
                return place, record
    return None


def _adapter(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    place = find_adapter(folder)
    return place, read_adapter(place)[1]


def _run_config(saved: dict[str, Any], place: Path) -> RunConfig:
    """The run whose evaluation is that of the trained one. Adapters that hold no settings (older ones) get the
    defaults."""
    settings, backbone = saved.get("settings", {}), dict(saved["backbone"]["config"])
    backbone |= {"momentum_weights": "ignore", "queue_weights": "ignore"}
    task = settings.get("task", backbone.get("head", "retrieval"))
    section = dict(settings.get(task, {}))
    if task == "retrieval":
        section |= {"queue_size": 0, **{key: saved.get(key) for key in ("temperature", "frame_weights")}}
        if "settings" not in saved:
            positions = TextConfig.model_validate(backbone["text"]).max_positions
            section["max_tokens"] = min(RetrievalConfig().max_tokens, positions)
    described = {"task": task, "backbone": backbone, task: section}
    if "video" in settings:
        described["data"] = {"video": settings["video"]}
    if "prompts" in saved:
        described["prompts"] = {"preset": saved["prompts"]["preset"]}
    return described_config(described, f"the trained model in {place}")
