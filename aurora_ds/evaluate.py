"""Evaluation: a task, a split of tar shards, and the metrics of the field, equal on any number of ranks.

`aurora-ds evaluate RECIPE --adapter DIR --output DIR`, or the same through a launcher for many GPUs.
Without an adapter the frozen backbone itself is judged: the baseline that every number should stand beside. For
clips that is the zero-shot protocol: mean of frame features, all frames' tokens in matching, no frame weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from aurora_ds import arguments
from aurora_ds.assemble import Assembled, build_task, load_trained
from aurora_ds.config import RunConfig
from aurora_ds.data.media import clip_window
from aurora_ds.errors import AuroraError
from aurora_ds.prompts.adapter import TENSOR_FILE
from aurora_ds.recipe import load_config
from aurora_ds.runtime import checkpoint, process_group
from aurora_ds.runtime.run_folder import replace_file
from aurora_ds.whole_model import FULL_FILE, record_beside
from aurora_ds.wiring.base import Evaluation, Wiring

RESULTS_FILE = "results.json"


def results_record(
    assembled: Assembled, evaluation: Evaluation, seconds: float, adapter: str | None
) -> dict[str, Any]:
    """What results.json says: the metrics, and everything a reader needs to place them."""
    data = assembled.config.data
    # of the adapter's training, or of that of a whole model, which is judged as a backbone
    whole = record_beside(assembled.config.backbone.checkpoint) or {}
    shots = whole.get("shots") if adapter is None else data.shots
    return {
        "task": assembled.config.task,
        "split": data.eval_split,
        "metrics": {name: round(value, 4) for name, value in evaluation.metrics.items()},
        **provenance(assembled, adapter),
        **({"media": "blank"} if data.media == "blank" else {}),
        **({} if shots is None else {"shots": shots}),
        **({"window": data.video.window} if "clips" in evaluation.facts and clip_window(data.video) else {}),
        **evaluation.facts,
        "world_size": process_group.world_size(),
        "seconds": round(seconds, 2),
    }


def provenance(assembled: Assembled, adapter: str | None) -> dict[str, Any]:
    """Which model gave a result: method, adapter and backbone with their hashes, preset, numbers trained, seed."""
    config, prompts = assembled.config, assembled.task.prompts
    weights = (
        None if adapter is None else Path(adapter) / TENSOR_FILE
    )  # a run judges some before they are saved
    return {
        "method": "frozen" if adapter is None else config.train.method,
        "adapter": adapter,
        "adapter_sha256": _sha256(weights),
        "preset": config.prompts.preset,
        "trainable": None if prompts is None or adapter is None else prompts.report()["trainable"],
        "backbone": assembled.backbone,
        "seed": config.seed,
    }


def _sha256(path: Path | None) -> str | None:
    return None if path is None or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()


def write_results(folder: Path, evaluation: Evaluation, record: dict[str, Any]) -> None:
    """The task's own files, then results.json, which so stands for all of them."""
    for name, content in evaluation.files.items():
        replace_file(folder / name, content if isinstance(content, str) else json.dumps(content))
    replace_file(folder / RESULTS_FILE, json.dumps(record, indent=1))


def metrics_table(wiring: Wiring, rows: dict[str, dict[str, float]], title: str | None = None) -> Table:
    """name -> metrics, as a table in the task's columns."""
    table = Table(title=title)
    lines = [line for name, metrics in rows.items() for line in wiring.table_rows(name, metrics)]
    table.add_column("")
    for heading in lines[0][1]:
        table.add_column(heading, justify="right")
    for label, figures in lines:
        table.add_row(label, *(f"{value:.1f}" for value in figures.values()))
    return table


def print_results(wiring: Wiring, record: dict[str, Any]) -> None:
    """The table of one evaluation, on the screen; of a split without ground truth, that there is none."""
    if not record["metrics"]:
        print(
            f"{wiring.title(record)}: no metrics, since the split has no ground truth. {conditions(wiring, record)}"
        )
        return
    # a title or caption of the table would be broken to its width, hashes too, and some tables have one column
    print(wiring.title(record))
    Console().print(metrics_table(wiring, {record["method"]: record["metrics"]}))
    print(conditions(wiring, record))


def conditions(wiring: Wiring, record: dict[str, Any]) -> str:
    """What the numbers of a results record depend on, in one line: the table names it."""
    return placed(record, wiring.conditions(record))


def placed(record: dict[str, Any], of_task: Sequence[str]) -> str:
    """Backbone, what the task says, preset and seed of a record, in one line."""
    backbone = record["backbone"]
    return ", ".join(
        [
            f"{backbone['name']} (sha256 {str(backbone['sha256'])[:12]})",
            *([f"adapter (sha256 {record['adapter_sha256'][:12]})"] if record.get("adapter_sha256") else []),
            *of_task,
            *(["blank media"] if record.get("media") == "blank" else []),
            *([f"trained on {record['shots']} media of a split"] if "shots" in record else []),
            f"preset {record['preset']}",
            f"seed {record['seed']}",
        ]
    )


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
    place = checkpoint.latest(folder)
    if place is not None and (place / "adapter_config.json").is_file():
        return place
    raise AuroraError(
        f"No adapter in {folder}. Give a run's output folder, one of its checkpoints/step-…, or an exported adapter."
    )


def run(config: RunConfig, adapter: str | Path | None, output: str | Path) -> dict[str, Any]:
    """Evaluate and write `results.json` into `output`. Every rank takes part; rank 0 writes and prints."""
    process_group.start(config.train.collective_timeout_seconds)
    try:
        if config.data.shards is None:
            raise AuroraError(
                "Nothing to evaluate on: set data.shards=DIR, a folder written by `aurora-ds shards convert`."
            )
        place = None if adapter is None else str(find_adapter(adapter))
        assembled = judged_task(config, place, process_group.device())
        started = time.perf_counter()
        with process_group.explaining_lost_ranks():
            evaluation = assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer)
        record = results_record(assembled, evaluation, time.perf_counter() - started, place)
        if process_group.rank() == 0:
            write_results(Path(output), evaluation, record)
            print_results(assembled.wiring, record)
        return record
    finally:
        process_group.stop()


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def judged_task(config: RunConfig, adapter: str | None, device: torch.device) -> Assembled:
    """The task ready for evaluation on `device`, in train.precision: with the adapter in that folder, or the frozen
    backbone. Raises AuroraError."""
    if adapter is None and config.retrieval.frame_weights is None:
        # a backbone that was not trained with frame weights is not judged with them
        config = config.model_copy(deep=True)
        record = record_beside(config.backbone.checkpoint) or {}
        config.retrieval.frame_weights = record.get("frame_weights", "off")
    assembled = build_task(config) if adapter is None else load_trained(config, adapter)
    task = assembled.task.to(device, _DTYPES[config.train.precision]).eval()
    if adapter is None and task.prompts is not None:
        task.prompts.disable()
    return assembled


def task_forward(assembled: Assembled) -> Callable[..., dict]:
    """The task's own forward with images in its dtype, for evaluation without an engine."""
    task = assembled.task

    def forward(batch: dict[str, Any], what: str, **arguments: Any) -> dict:
        dtype = next(task.model.parameters()).dtype
        return task(
            {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()},
            what=what,
            **arguments,
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
