"""What training and evaluation ask of a task, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from torch import Tensor, nn

from aurora_ds.backbones.checkpoint import LoadedBackbone
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import RunConfig
from aurora_ds.data.media import clip_window
from aurora_ds.prompts import Prompts, attach
from aurora_ds.tasks.momentum import ModelFactory

Forward = Callable[..., dict[str, Any]]  # the task's, or the engine's: forward(batch, what=…, …)


@dataclass
class Evaluation:
    """What judging a split gave; equal on every rank.

    metrics: name -> figure, for TensorBoard and tables. facts: what else a results record says: how many were judged,
    and the settings that decided. files: name -> JSON content, or text as it is, written beside results.json. details:
    whatever the task's `picture` needs.
    """

    metrics: dict[str, float]
    facts: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    details: Any = None


class Wiring(ABC):
    """One task's part in a run.

    `kind`: the annotations that it trains on, as manifests count them. `headline`: the metric by which the best adapter
    is kept, higher is better. `shown`: label -> loss, for the progress bar beside the sum. `keeps_step`: its evaluation
    can make the same calls on all ranks, and so leave the model cut up under ZeRO-3; others are judged with it whole.
    `takes`: media that `predict` can be given. `texts`: how many come with them there: one for each medium, all for
    each, or none.
    `every_annotation`: a training sample comes with all annotations of its medium, not with one.
    """

    kind: ClassVar[str]
    headline: ClassVar[str]
    shown: Mapping[str, str] = MappingProxyType({})
    keeps_step: ClassVar[bool] = False
    every_annotation: bool = False
    takes: ClassVar[tuple[Literal["image", "video", "pair"], ...]] = ("image", "video")
    texts: ClassVar[Literal["each", "all", "none"]] = "each"

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @abstractmethod
    def build(self, loaded: LoadedBackbone) -> nn.Module:
        """The task over a backbone, prompts attached, on the CPU in fp32. Raises AuroraError."""

    # ---- training --------------------------------------------------------------------------------

    @abstractmethod
    def train_texts(self, tokenizer: Tokenizer) -> Callable[[list[Any]], dict[str, Any]]:
        """What makes a batch's tensors of its annotations (see `annotated_loader`)."""

    def adopt(self, task: nn.Module, saved: dict[str, Any]) -> None:  # noqa: B027 - nothing is a fine answer
        """What a task with an adapter in it takes from the adapter's configuration, to be judged or trained on
        (train.start_from)."""

    def check(self) -> None:  # noqa: B027
        """What the evaluation at the end would stop at is an error now. Writes nothing. Raises AuroraError."""

    def before_training(self, task: nn.Module, output: Path) -> None:  # noqa: B027
        """What must be there before the first step, fresh or resumed; `output`: the run's folder. All ranks together.
        Raises AuroraError."""

    def loss_arguments(self, step: int, micro: int, steps_per_epoch: int) -> dict[str, Any]:
        """Arguments of the loss in micro-batch `micro` of the optimizer step after `step`."""
        return {}

    def figures(self, task: nn.Module, step: int, steps_per_epoch: int) -> dict[str, float]:
        """What TensorBoard shows of the training beside the losses."""
        return {}

    def adapter_facts(self, task: nn.Module, values: dict[str, Tensor]) -> dict[str, Any]:
        """What an adapter's configuration says beside what all say; `values`: the trained ones by task name."""
        return {}

    # ---- evaluation ------------------------------------------------------------------------------

    @abstractmethod
    def evaluate(self, forward: Forward, tokenizer: Tokenizer, lockstep: bool = False) -> Evaluation:
        """Judge a task on `data.eval_split`; all ranks together. `lockstep`: all ranks must make the same calls, as
        under ZeRO-3; only where `keeps_step`. Raises AuroraError."""

    @abstractmethod
    def title(self, record: dict[str, Any]) -> str:
        """What a results record judged, for the head of its table."""

    @abstractmethod
    def table_rows(self, name: str, metrics: dict[str, float]) -> list[tuple[str, dict[str, float]]]:
        """Rows of a table of results: (label, heading -> figure); the same headings for all."""

    def conditions(self, record: dict[str, Any]) -> list[str]:
        """What the figures of a record depend on, beside backbone, preset and seed."""
        return []

    def picture(self, tokenizer: Tokenizer, evaluation: Evaluation) -> tuple[str, np.ndarray] | None:
        """Name and uint8 (3, height, width) of what TensorBoard shows of it: `monitor.gallery_queries` rows."""
        return None

    # ---- single predictions ----------------------------------------------------------------------

    @abstractmethod
    def predict(
        self, forward: Forward, tokenizer: Tokenizer, media: Tensor, texts: list[str]
    ) -> list[dict[str, Any]]:
        """What the task says about media that no shard holds: one JSON-able dict per medium.

        Args:
            media: float32 (B, 3, S, S), clips (B, T, 3, S, S), pairs (B, 2, 3, S, S), normalised, on the task's device.
            texts: one per medium (a question, a statement); retrieval: any number, all for each medium; captions: none.
        Raises: AuroraError for another number of texts, or an empty one.
        """

    def in_original(self, said: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        """What `predict` said of an image as it holds of the image before it was resized; `record`: as shards have
        it."""
        return said

    def drawing(self, said: dict[str, Any], image: Image.Image) -> Image.Image | None:
        """The RGB image with what was said of it drawn in, in its own pixels; None where there is nothing to draw."""
        return None


def attach_prompts(model: nn.Module, config: RunConfig) -> Prompts | None:
    """Prompts on a backbone according to `train.method`: all of Aurora, the heads alone, or nothing
    (everything trains)."""
    if config.train.method == "full":
        model.requires_grad_(True)
        return None
    prompts = config.prompts
    if config.train.method == "heads":
        prompts = prompts.model_copy(update={"query_transform": False, "context": "off"})
    sites = model.sites() if config.train.method == "aurora" else []
    return attach(model, sites, prompts, model.query_layers(), model.heads(), seed=config.seed)


def twin_of(config: RunConfig) -> ModelFactory:
    """Makes a bare second backbone of a run, with prompts of its own."""

    def factory() -> tuple[nn.Module, Prompts | None]:
        other = new_model(config.backbone)
        return other, attach_prompts(other, config)

    return factory


def ramped(weight: float, epochs: float, step: int, steps_per_epoch: int) -> float:
    """The weight of soft targets after `step` steps: from zero over the first `epochs`, then constant (BLIP §3.2)."""
    steps = epochs * steps_per_epoch
    return weight * (min(1.0, step / steps) if steps else 1.0)


def percent(metrics: dict[str, float], columns: dict[str, str]) -> dict[str, float]:
    """heading -> figure, for the metrics that `columns` names and that are there."""
    return {heading: metrics[name] for name, heading in columns.items() if name in metrics}


def clip_conditions(config: RunConfig, clips: bool, extra: Sequence[str] = ()) -> list[str]:
    """How clips were read, for the line under a table; nothing for images."""
    video, window = config.data.video, clip_window(config.data.video)
    start, end = window or (0, None)
    stretch = [] if window is None else [f"{start:g} s to {'the end' if end is None else f'{end:g} s'}"]
    return [", ".join([f"{video.frames} frames {video.eval_sampling}", *stretch, *extra])] if clips else []
