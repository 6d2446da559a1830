"""What an export starts from: the task with its trained values in place, and that task as plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora_ds.assemble import Assembled, build_task, load_trained
from aurora_ds.backbones.eve_pretraining import DECODERS
from aurora_ds.backbones.published import to_published
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.export import probe
from aurora_ds.trained import Trained, find_trained

# of an adapter, which a merged model is judged with, or which its results name
FACTS = ("temperature", "frame_weights", "answers", "shots")


def read_trained(folder: str | Path) -> Trained:
    """The adapter or the whole model in `folder`. Raises AuroraError when there is none, weights cannot hold it, or it
    does not say what it was trained on."""
    trained = find_trained(folder)
    saved, place = trained.saved, trained.folder
    if trained.weights is None and (saved["backbone"].get("config") is None or "settings" not in saved):
        raise AuroraError(
            f"The adapter in {place} does not say how it is used (backbone.config and settings in its "
            "adapter_config.json), so the model cannot be built: an older release wrote it. Resume its run once, which "
            "saves it anew."
        )
    if saved.get("gate_layers"):
        raise AuroraError(
            f"The adapter in {place} uses the query transformation, a term after each of {len(saved['gate_layers'])} "
            "text layers that no weight of the plain backbone can hold, so a merged model would compute something "
            "else. Train with prompts.query_transform=false to export, or keep using the adapter as it is: "
            "`aurora-ds evaluate --adapter`."
        )
    return trained


def config_of(trained: Trained, backbone: str | Path | None) -> RunConfig:
    """The run whose evaluation is that of `trained`. `backbone`: the frozen file, when it is not where it was.

    Raises AuroraError when that file is missing, or the settings are not those of this release."""
    with _naming_the_option(trained, backbone):
        config = trained.config(None, [] if backbone is None else [f"backbone.checkpoint={backbone}"])
    tokenizer = config.backbone.tokenizer
    if backbone is not None and tokenizer is not None and not Path(tokenizer).expanduser().exists():
        config.backbone.tokenizer = None  # it moved too: the one beside the backbone
    config.vqa.distillation = 0.0  # of training
    if config.task == "retrieval":
        config.retrieval.queue_size = 0
        config.retrieval.temperature = trained.saved.get("temperature")
        config.retrieval.frame_weights = trained.saved.get("frame_weights")
    if trained.adapter is None:
        config.train.method = "full"
    return config


def build(trained: Trained, config: RunConfig, backbone: str | Path | None) -> Assembled:
    """The task on the CPU in fp32. Raises AuroraError when the backbone is another than the adapter's."""
    if trained.adapter is None:
        return build_task(config)
    with _naming_the_option(trained, backbone):
        return load_trained(config, trained.adapter)


@dataclass
class Merged:
    """The model as plain weights, and what the attached one computed: all that an export needs, without the task."""

    tensors: dict[str, Tensor]  # under published names, each in memory of its own
    config: RunConfig  # of the run, its preset resolved
    tokenizer: Tokenizer
    record: dict[str, Any]  # where the weights come from, and the facts that the model is judged with
    outputs: dict[str, Tensor]  # `probe.outputs` of the attached model
    begin: Tensor | None = None  # int64 (P,), what its texts begin with; None: it writes none
    written: Tensor | None = None  # `probe.greedy` of it


@torch.no_grad()
def merged(trained: Trained, config: RunConfig, backbone: str | Path | None) -> Merged:
    """The trained values merged into the weights of the frozen backbone. Raises AuroraError as `build` does, and when
    the tokenizer is not the backbone's."""
    assembled = build(trained, config, backbone)
    if assembled.tokenizer.unusable:
        raise AuroraError(assembled.tokenizer.unusable)
    task, text = assembled.task, assembled.config.backbone.text
    head = assembled.config.task
    found = Merged(
        {},
        assembled.config,
        assembled.tokenizer,
        provenance(trained, assembled),
        probe.outputs(task.model, task.context.evaluation_term() if head == "retrieval" else None),
    )
    if head in ("vqa", "caption") and hasattr(task.model, "text_decoder"):
        found.begin = torch.tensor([text.bos_id]) if head == "vqa" else task.prompt
        found.written = probe.greedy(task.model, found.begin, task.options.generation)
    merge(assembled)
    tensors = to_published(task.model)
    if head == "pretrain":  # what fine-tuning starts from
        tensors = {name: value for name, value in tensors.items() if not name.startswith(DECODERS)}
    found.tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return found


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


def provenance(trained: Trained, assembled: Assembled) -> dict[str, Any]:
    """What a record says of where the weights come from. A whole model that was exported before keeps its word."""
    saved = trained.saved
    if trained.adapter is None:
        frozen = {
            "backbone": {key: saved.get("backbone", {}).get(key) for key in ("name", "sha256")},
            "prompts": None,
        }
        made_from = saved.get("made_from", frozen)
    else:
        made_from = {"backbone": assembled.backbone, "prompts": saved["prompts"]}
    facts = {key: saved[key] for key in FACTS if key in saved}
    # with its configuration: sizes are read from there where the file is given as backbone.checkpoint
    config = assembled.config.backbone.model_dump(mode="json")
    backbone = {"name": made_from["backbone"]["name"], "config": config}
    own = {"task": assembled.config.task, "method": trained.method, "backbone": backbone}
    return own | {"made_from": made_from, **facts}


@contextmanager
def _naming_the_option(trained: Trained, backbone: str | Path | None) -> Iterator[None]:
    """Errors about an adapter's backbone say what the command line has for it."""
    try:
        yield
    except AuroraError as error:
        if backbone is not None or trained.adapter is None:
            raise
        raise AuroraError(
            f"{error} (The adapter's configuration names this backbone; --backbone FILE gives another place.)"
        ) from error
