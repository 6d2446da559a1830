"""From a configuration to a task: frozen backbone, prompts, losses. Shared by training, evaluation, export
and verification."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone, load_backbone
from aurora_ds.backbones.published import published_tensors
from aurora_ds.backbones.tokenizer import Tokenizer, tokenizer_for
from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.presets import with_preset
from aurora_ds.prompts import load_adapter
from aurora_ds.prompts.adapter import attached_config, describe, read_adapter, with_context
from aurora_ds.prompts.kernel_path import choose_kernels
from aurora_ds.whole_model import FULL_FILE, RECORD_FILE
from aurora_ds.wiring import of as wiring_of
from aurora_ds.wiring.base import Wiring

_BANK = "prompts.banks.default."


@dataclass
class Assembled:
    """A task and what it was made of."""

    task: nn.Module
    wiring: Wiring
    config: RunConfig  # with its preset resolved
    backbone: dict[str, Any]  # name and sha256 of the frozen weights, as adapters record them

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The backbone's tokenizer; read when first asked for."""
        return tokenizer_for(self.config.backbone)


def build_task(config: RunConfig, loaded: LoadedBackbone | None = None) -> Assembled:
    """The task of `config`, weights in place, on the CPU in fp32.

    Raises AuroraError for anything wrong with the backbone's files or the prompts' settings, and for kernels that
    cannot run here."""
    config = with_preset(config)
    choose_kernels(config.kernels, config.kernel_sums)
    torch.manual_seed(config.seed)
    loaded = loaded or load_backbone(config.backbone)
    wiring = wiring_of(config)
    task = wiring.build(loaded)
    return Assembled(task, wiring, config, {"name": loaded.name, "sha256": loaded.sha256})


def adapter_files(
    assembled: Assembled, values: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trained values by task name -> the adapter's tensors and configuration."""
    config, task = assembled.config, assembled.task
    settings = config.model_dump(mode="json")
    extra = {
        "method": config.train.method,
        "embed_dim": config.backbone.embed_dim,
        # how the adapter is used: with it, prediction needs no recipe
        "settings": {
            "task": config.task,
            config.task: settings[config.task],
            "video": settings["data"]["video"],
        },
        **({} if config.data.shots is None else {"shots": config.data.shots}),
        **assembled.wiring.adapter_facts(task, values),
    }
    # with its configuration, so that export and prediction can build the backbone from the adapter alone
    backbone = assembled.backbone | {"config": settings["backbone"]}
    if task.prompts is None:
        tensors = {name.removeprefix("model."): value for name, value in values.items()}
        return tensors, {"format": "aurora_ds.full", "version": 1, "backbone": backbone, **extra}
    own = {name.removeprefix(_BANK): value for name, value in values.items() if name.startswith(_BANK)}
    context = getattr(task, "context", None)  # retrieval has one
    tensors = with_context(own, None if context is None else context.running)
    return tensors, describe(task.prompts, "default", backbone, extra)


def save_full(folder: Path, values: dict[str, Tensor], record: dict[str, Any]) -> None:
    """A fully fine-tuned model: `backbone.safetensors` under published names, to be given as
    backbone.checkpoint. A temperature of the record is a tensor of the published files."""
    folder.mkdir(parents=True, exist_ok=True)
    temperature = {"temp": torch.tensor(record["temperature"])} if "temperature" in record else {}
    tensors = temperature | values
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in published_tensors(tensors).items()
    }
    save_file(tensors, folder / FULL_FILE)
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def copy_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Put the tokenizer's file beside weights, where it is looked for."""
    path = tokenizer.path
    shutil.copyfile(path, folder / ("tokenizer.json" if path.suffix == ".json" else "vocab.txt"))


def start_from(assembled: Assembled, folder: Path) -> None:
    """Put a saved adapter's values into a task before it is trained, for a further stage of training. What is no part
    of an adapter (the optimizer's moments, a queue) begins anew.

    Raises AuroraError: the adapter is of another task, method, backbone or shape, or everything is trained here.
    """
    config, task = assembled.config, assembled.task
    _, saved = read_adapter(folder)
    theirs = saved.get("settings", {}).get("task", config.task)
    for key, there, here in (
        ("task", theirs, config.task),
        ("train.method", saved.get("method", config.train.method), config.train.method),
    ):
        if there != here:
            raise AuroraError(
                f"train.start_from: the adapter in {folder} was trained with {key}={there}, but this run has "
                f"{key}={here}. Give an adapter of the same {key}; a whole backbone is given as backbone.checkpoint."
            )
    loaded = load_adapter(task.prompts, folder, assembled.backbone)
    assembled.wiring.adopt(task, loaded)


def load_trained(config: RunConfig, adapter: str, loaded: LoadedBackbone | None = None) -> Assembled:
    """The task with a saved adapter in place; the adapter's own prompts settings win over the recipe's, and clips are
    judged with the frame weights it was trained with, unless the recipe says otherwise.

    Raises AuroraError when the adapter belongs to another task or backbone."""
    _, saved = read_adapter(adapter)
    theirs = saved.get("settings", {}).get("task", config.task)
    if theirs != config.task:
        raise AuroraError(
            f"The adapter in {adapter} was trained for the task {theirs}, but this recipe is of {config.task}. Give a "
            f"recipe of {theirs}, or an adapter of {config.task}."
        )
    config = config.model_copy(deep=True)
    config.prompts = attached_config(saved)
    config.train.method = saved.get("method", "aurora")
    config.data.shots = saved.get("shots")  # of its training; evaluation reads a split whole
    if config.retrieval.frame_weights is None:
        config.retrieval.frame_weights = saved.get("frame_weights")
    if config.train.method == "full":
        raise AuroraError(
            f"{adapter} holds a fully fine-tuned backbone, not an adapter. Give its file as "
            "backbone.checkpoint instead."
        )
    assembled = build_task(config, loaded)
    assembled.wiring.adopt(assembled.task, load_adapter(assembled.task.prompts, adapter, assembled.backbone))
    return assembled
