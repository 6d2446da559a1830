"""Evaluation: a task, a split of tar shards, and the metrics of the field, equal on any number of ranks.

`aurora-ds evaluate RECIPE --adapter DIR --output DIR`, or the same through a launcher for many GPUs.
Without an adapter the frozen backbone itself is judged: the baseline that every number should stand beside. For
clips that is the zero-shot protocol: mean of frame features, all frames' tokens in matching, no frame weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from aurora_ds import arguments
from aurora_ds.assemble import FULL_FILE, Assembled, build_task, load_trained, trained_frame_weights
from aurora_ds.config import RunConfig
from aurora_ds.data.loader import eval_image_loader, eval_texts
from aurora_ds.data.media import medium_shape
from aurora_ds.data.mixture import open_manifest
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.runtime import process_group
from aurora_ds.runtime.run_folder import replace_file
from aurora_ds.tasks.rerank import RetrievalResult, Texts, evaluate_retrieval

RESULTS_FILE = "results.json"

_IMAGE_COLUMNS = {
    "txt_r1": "TR@1",
    "txt_r5": "TR@5",
    "txt_r10": "TR@10",
    "img_r1": "IR@1",
    "img_r5": "IR@5",
    "img_r10": "IR@10",
    "r_mean": "mean",
}
_CLIP_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mdR": "MdR", "mnR": "MnR"}


def evaluate_split(
    forward: Callable[..., dict],
    config: RunConfig,
    tokenizer: Any,
    lockstep: bool = False,
    tail: str = "similarity",
) -> RetrievalResult:
    """Judge a task on `data.eval_split`. `forward` is the task's or the engine's; `lockstep` is needed
    under ZeRO-3."""
    texts = eval_texts(config, config.data.eval_split, tokenizer, config.evaluate.limit)
    size = config.evaluate.image_batch_size

    def read_images(indices: list[int]) -> Iterable[dict[str, Any]]:
        return eval_image_loader(
            config, config.data.eval_split, indices=indices, world_size=1, rank=0, batch_size=size
        )

    shape = medium_shape(config, open_manifest(config), config.data.eval_split)
    return evaluate_retrieval(
        forward,
        read_images,
        texts["media"],
        Texts(texts["input_ids"], texts["media_index"], config.backbone.text.pad_id),
        config.retrieval,
        process_group.device(),
        size,
        config.evaluate.text_batch_size,
        shape,
        lockstep,
        tail,
    )


def results_record(
    assembled: Assembled, result: RetrievalResult, seconds: float, adapter: str | None
) -> dict[str, Any]:
    """What results.json says: the metrics, and everything a reader needs to place them."""
    config = assembled.config
    prompts = assembled.task.prompts
    clips = {
        "frames": result.frames,
        "sampling": config.data.video.eval_sampling,
        "frame_weights": config.retrieval.frame_weights,
    }
    return {
        "task": config.task,
        "split": config.data.eval_split,
        "images" if result.frames is None else "clips": len(result.image_ranks),
        "texts": len(result.text_ranks),
        "metrics": {name: round(value, 4) for name, value in result.metrics.items()},
        "method": "frozen" if adapter is None else config.train.method,
        "adapter": adapter,
        "preset": config.prompts.preset,
        "trainable": None if prompts is None or adapter is None else prompts.report()["trainable"],
        "backbone": assembled.backbone,
        "k_test": config.retrieval.k_test,
        "beta": config.retrieval.beta,
        "seed": config.seed,
        **({} if result.frames is None else clips),
        "pairs_scored": result.pairs_scored,
        "world_size": process_group.world_size(),
        "seconds": round(seconds, 2),
    }


def metrics_table(rows: dict[str, dict[str, float]], title: str, caption: str | None = None) -> Table:
    """name -> metrics, as a table. Images: text retrieval (image to text), image retrieval (text to image), means, in
    a row. Clips: a row for each way, with the median and the mean rank."""
    clips = any("vid_r1" in metrics for metrics in rows.values())
    table = Table(title=title, caption=caption)
    table.add_column("")
    for head in (_CLIP_COLUMNS if clips else _IMAGE_COLUMNS).values():
        table.add_column(head, justify="right")
    for name, metrics in rows.items():
        if not clips:
            table.add_row(name, *(f"{metrics[key]:.1f}" for key in _IMAGE_COLUMNS))
            continue
        for query, way in (("vid", "text to video"), ("txt", "video to text")):
            table.add_row(f"{name}, {way}", *(f"{metrics[f'{query}_{key}']:.1f}" for key in _CLIP_COLUMNS))
    return table


def print_results(record: dict[str, Any]) -> None:
    """The table of one evaluation, on the screen."""
    media = "images" if "images" in record else "clips"
    title = f"{record['split']}: {record[media]} {media}, {record['texts']} captions, k {record['k_test']}"
    Console().print(metrics_table({record["method"]: record["metrics"]}, title, conditions(record)))


def conditions(record: dict[str, Any]) -> str:
    """What the numbers of a results record depend on, in one line: the table names it."""
    backbone = record["backbone"]
    parts = [f"{backbone['name']} (sha256 {str(backbone['sha256'])[:12]})"]
    if "clips" in record:
        parts.append(
            f"{record['frames']} frames {record['sampling']}, frame weights {record['frame_weights']}"
        )
    return ", ".join([*parts, f"preset {record['preset']}", f"seed {record['seed']}"])


def find_adapter(folder: str | Path) -> Path:
    """The adapter in `folder`: itself, a run's `adapter/`, or its newest checkpoint.

    Raises AuroraError when there is none, or a fully fine-tuned backbone in its place."""
    folder = Path(folder)
    for place in (folder, folder / "adapter"):
        if (place / FULL_FILE).is_file():
            raise AuroraError(
                f"{place} holds a fully fine-tuned backbone, not an adapter. It needs none: give it as "
                f"backbone.checkpoint={place / FULL_FILE}, without --adapter."
            )
        if (place / "adapter_config.json").is_file():
            return place
    latest = folder / "checkpoints" / "latest"
    if latest.is_file():
        place = latest.parent / latest.read_text(encoding="utf-8").strip()
        if (place / "adapter_config.json").is_file():
            return place
    raise AuroraError(
        f"No adapter in {folder}. Give a run's output folder, one of its checkpoints/step-…, or an exported adapter."
    )


def run(config: RunConfig, adapter: str | Path | None, output: str | Path) -> dict[str, Any]:
    """Evaluate and write `results.json` into `output`. Every rank takes part; rank 0 writes and prints."""
    process_group.start()
    try:
        if config.data.shards is None:
            raise AuroraError(
                "Nothing to evaluate on: set data.shards=DIR, a folder written by `aurora-ds shards convert`."
            )
        place = None if adapter is None else str(find_adapter(adapter))
        if place is None and config.retrieval.frame_weights is None:
            # a backbone that was not trained with frame weights is not judged with them
            config = config.model_copy(deep=True)
            config.retrieval.frame_weights = trained_frame_weights(config.backbone.checkpoint)
        assembled = build_task(config) if place is None else load_trained(config, place)
        task = assembled.task.to(process_group.device(), _DTYPES[config.train.precision]).eval()
        if place is None and task.prompts is not None:
            task.prompts.disable()
        started = time.perf_counter()
        with process_group.explaining_lost_ranks():
            result = evaluate_split(task_forward(assembled), assembled.config, assembled.tokenizer)
        record = results_record(assembled, result, time.perf_counter() - started, place)
        if process_group.rank() == 0:
            replace_file(Path(output) / RESULTS_FILE, json.dumps(record, indent=1))
            print_results(record)
        return record
    finally:
        process_group.stop()


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def task_forward(assembled: Assembled) -> Callable[..., dict]:
    """The task's own forward with images in its dtype, for evaluation without an engine."""
    task = assembled.task

    def forward(batch: dict[str, Any], what: str) -> dict:
        dtype = next(task.model.parameters()).dtype
        return task(
            {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()},
            what=what,
        )

    return forward


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m aurora_ds.evaluate`, `deepspeed --module aurora_ds.evaluate`, `torchrun -m
    aurora_ds.evaluate`."""
    parser = arguments.module_parser("aurora_ds.evaluate", "Evaluate a backbone, with or without an adapter.")
    arguments.add_evaluate(parser)
    chosen = arguments.parse(parser, list(sys.argv[1:] if argv is None else argv))
    return arguments.finish(
        lambda: run(load_config(chosen.recipe, chosen.overrides), chosen.adapter, chosen.output) and 0,
        debug=getattr(chosen, "debug", False),
    )


if __name__ == "__main__":
    sys.exit(main())
