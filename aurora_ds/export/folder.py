"""An exported folder: weights, vocabulary, where they come from, a recipe; written whole or not at all."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from aurora_ds.assemble import copy_vocabulary
from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.transformers_format import config_for
from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.export import probe, transformers_folder
from aurora_ds.export.attached import Merged, config_of, merged, read_trained
from aurora_ds.export.transformers_card import known_differences
from aurora_ds.recipe import to_yaml
from aurora_ds.runtime.run_folder import replace_folder
from aurora_ds.trained import Trained
from aurora_ds.whole_model import FULL_FILE, RECORD_FILE

FORMATS = ("merged", "transformers")


def run(
    adapter: str | Path, format: str, output: str | Path, backbone: str | Path | None = None
) -> dict[str, Any]:
    """Write the merged model of `adapter` into the new or empty folder `output`; returns what record.json says.

    Args:
        adapter: a run's folder, a checkpoint or an adapter; a fully fine-tuned or an exported model too, which has
            nothing to merge.
        format: merged or transformers.
        backbone: the frozen backbone's file, when it is no longer where the adapter's configuration says.
    Raises: AuroraError when the adapter cannot be expressed as weights or the format cannot hold the model, when the
        adapter belongs to another backbone, or the output is not empty, cannot be written, or computes something else
        than the attached model.
    """
    if format not in FORMATS:
        raise AuroraError(f"There is no export format {format!r}; the formats are {' and '.join(FORMATS)}.")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise AuroraError(f"The output {output} exists and is not an empty folder. Give another --output.")
    trained = read_trained(adapter)
    config = config_of(trained, backbone)
    if format == "transformers":
        config_for(config.backbone)  # before the weights are read
    model = merged(trained, config, backbone)
    gc.collect()  # the attached model, which is as large as what is read again below
    checkpoint = output / FULL_FILE if format == "merged" else output
    recipe = _recipe(config, trained, model, checkpoint)

    def fill(folder: Path) -> None:
        copy_vocabulary(folder, model.tokenizer)
        if format == "merged":
            save_file(model.tensors, folder / FULL_FILE)
        else:
            transformers_folder.write(folder, model, output, recipe.description)
        record = {
            "format": f"aurora_ds.{format}",
            "version": 1,
            **model.record,
            **_compared(folder, format, model),
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")

    replace_folder(output, fill)
    record = json.loads((output / RECORD_FILE).read_text(encoding="utf-8"))
    if config.task == "pretrain":
        print(
            f"{output}: the trunk without decoders, largest difference to the trained one "
            f"{record['largest_relative_error']:.1e} of its largest output. Give it to a recipe of fine-tuning as "
            f"backbone.checkpoint={checkpoint}."
        )
        return record
    print(
        f"{output}: {format}, largest difference to the attached model {record['largest_relative_error']:.1e} of its "
        f"largest output. Use it as backbone.checkpoint={checkpoint} with backbone.head={recipe.task}, or evaluate it "
        f"with `aurora-ds evaluate {output / 'recipe.yaml'} data.shards=DIR --output DIR`."
        + (f" {output / 'README.md'} says how transformers uses it." if format == "transformers" else "")
    )
    return record


def _compared(folder: Path, format: str, model: Merged) -> dict[str, Any]:
    """Load what was written as users would, and compare. Raises AuroraError when it is another model."""
    place = folder / FULL_FILE if format == "merged" else folder
    again = load_backbone(model.config.backbone.model_copy(update={"checkpoint": str(place)})).model
    errors = {"aurora_ds": probe.differences(model.outputs, probe.outputs(again), "aurora_ds")}
    facts: dict[str, Any] = {}
    if format == "transformers":
        read = transformers_folder.Reader(folder, model)
        errors["transformers"] = probe.differences(model.outputs, read.outputs(), "transformers")
        if model.written is not None:
            facts["greedy_texts"] = read.check_greedy(again)
        read.check_processor()
        facts["known_differences"] = known_differences(model)
    return {
        "compared": errors,
        **facts,
        "largest_relative_error": max(error for each in errors.values() for error in each.values()),
    }


def _recipe(config: RunConfig, trained: Trained, model: Merged, checkpoint: Path) -> RunConfig:
    """What evaluates the exported file as `config` does the trained one: its task's settings, how clips are read."""
    recipe = config.model_copy(deep=True)
    if trained.adapter is not None:
        recipe.description = f"{model.record['made_from']['backbone']['name']} with an adapter merged into it"
    elif not recipe.description:
        recipe.description = f"{trained.saved['backbone']['name']}, fully fine-tuned"
    recipe.backbone.checkpoint, recipe.backbone.tokenizer = str(checkpoint), None
    recipe.retrieval.temperature = None  # in the file
    recipe.train.method = "full" if recipe.task == "pretrain" else "aurora"
    recipe.prompts.preset = model.config.prompts.preset
    return recipe
