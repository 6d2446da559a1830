"""The task of a recipe and a batch of it out of shapes alone: no weights are read, no memory is taken, any size works.

Everything goes through the seams of a run (family of backbones, wiring, its `train_texts`), so what a run would
compute is what is traced, whichever backbone and task it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.backbones.checkpoint import BUILT_IN, LoadedBackbone
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.tokenizer import tokenizer_for
from aurora_ds.config import RunConfig
from aurora_ds.data.media import medium_shape
from aurora_ds.data.mixture import open_manifest
from aurora_ds.errors import AuroraError
from aurora_ds.plan.trace import Shapes

ANSWERS = 4  # distinct ones of a VQA question, about what ten annotators give
ANSWER_WORDS = 2
_UNLIMITED = 512


def build(config: RunConfig, dtype: torch.dtype, shapes: Shapes) -> Assembled:
    """The task of `config` on the meta device, its parameters in `dtype`, as the engine casts them; `shapes` sees what
    is made. Raises AuroraError for what the recipe gets wrong."""
    config = config.model_copy(deep=True)
    backbone = config.backbone
    named = backbone.checkpoint
    if backbone.tokenizer is not None and not Path(backbone.tokenizer).expanduser().exists():
        backbone.tokenizer = None  # texts are made up and as long as they may be, whatever the vocabulary
    elif backbone.tokenizer is None and named is not None:
        if named in BUILT_IN or Path(named).expanduser().exists():
            backbone.tokenizer = str(tokenizer_for(backbone).path)
    if config.data.shards is not None and not Path(config.data.shards).is_dir():
        config.data.shards = None
    config.backbone.checkpoint, config.kernels = None, "torch"  # sizes are the recipe's
    config.backbone.momentum_weights = config.backbone.queue_weights = "ignore"
    with torch.device("meta"), shapes:
        model = new_model(config.backbone)
        loaded = LoadedBackbone(model, None, None, {}, "", "shapes alone")
        assembled = build_task(config, loaded)
        assembled.tokenizer.unusable = ""  # ids are counted, not looked at
        if config.task == "vqa" and config.data.shards is None and config.vqa.answer_list is None:
            answers = [f"answer {number}" for number in range(config.backbone.eve.answers)]
            assembled.wiring.adopt(assembled.task, {"answers": answers})
        task = assembled.task
        for module in task.modules():
            _cast(module, dtype)
        if task.prompts is not None:
            with torch.no_grad():
                task.prompts.refresh()
        return assembled


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def media_shape(config: RunConfig, takes: tuple[str, ...]) -> tuple[int, ...]:
    """Shape of a medium in a batch: of the recipe's shards where they are on this machine, else images, unless the
    recipe says how clips are read (any of data.video)."""
    size = config.backbone.vision.image_size
    if takes == ("pair",):
        return (2, 3, size, size)
    shards = config.data.shards
    if shards is not None and (Path(shards) / "manifest.json").is_file():
        return medium_shape(config, open_manifest(config), config.data.train_split)
    clips = "video" in takes and bool(config.data.video.model_fields_set)
    return (config.data.video.frames, 3, size, size) if clips else (3, size, size)


def annotations(config: RunConfig, kind: str, every: bool) -> Any:
    """An annotation of `kind` as long as the recipe lets texts be, so that the plan holds for every batch. Raises
    AuroraError for a kind it does not know."""
    options = getattr(config, config.task)
    lengths = (getattr(options, name, _UNLIMITED) for name in ("max_words", "max_tokens"))
    words = " ".join(["dog"] * min(lengths))
    answers = [{"answer": " ".join(["dog"] * ANSWER_WORDS), "weight": 1 / ANSWERS}] * ANSWERS
    size = config.backbone.vision.image_size
    made: dict[str, Callable[[], Any]] = {
        "captions": lambda: words,
        "questions": lambda: {
            "question": words,
            "answers": answers,
            "dataset": None,
            # read where the recipe puts them behind the question
            "ocr": ["dog"] * options.max_tokens,
            "objects": ["dog"] * options.max_tokens,
        },
        "statements": lambda: {
            "sentence": words,
            "label": "neutral" if config.task == "entailment" else "True",
        },
        "phrases": lambda: {
            "phrase": words,
            "box": [0.0, 0.0, size / 2, size / 2],
            "width": size,
            "height": size,
        },
    }
    if kind not in made:
        raise AuroraError(
            f"`aurora-ds plan` knows no annotation of the kind {kind}, which task {config.task} trains on; it plans "
            f"for {', '.join(made)}."
        )
    one = made[kind]()
    return [one] * 5 if every else one


def batch(assembled: Assembled, rows: int) -> dict[str, Any]:
    """A micro-batch of `rows` samples on the meta device as a loader gives it: all that it puts in, floats in fp32."""
    config, wiring = assembled.config, assembled.wiring
    with torch.device("cpu"):
        annotation = annotations(config, wiring.kind, wiring.every_annotation)
        texts = wiring.train_texts(assembled.tokenizer)([annotation] * rows)
    numbers = torch.zeros(rows, dtype=torch.int64, device="meta")
    image = torch.empty(rows, *media_shape(config, wiring.takes), device="meta")
    loaded = {"image": image, "media_index": numbers, "sample_index": numbers, "keys": [""] * rows}
    for name, value in texts.items():
        if isinstance(value, Tensor):
            value = torch.empty(value.shape, dtype=value.dtype, device="meta")
        loaded[name] = value
    return loaded


def placed(loaded: dict[str, Any], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The batch as `Engine.place` puts it on the device: floats in `dtype`. On a GPU (`cuda`) all of it is a copy, on a
    CPU only what is cast. Call inside Shapes."""
    there = {}
    for name, value in loaded.items():
        if isinstance(value, Tensor):
            wanted = dtype if value.is_floating_point() else value.dtype
            value = value.to(wanted, copy=device == "cuda")
        there[name] = value
    return there
