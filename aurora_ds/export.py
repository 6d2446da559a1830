"""Export: the backbone with an adapter merged into its weights, which then needs nothing of this package's method.

`merged` writes `backbone.safetensors` under published names (give it as backbone.checkpoint, or to any code that
reads BLIP's own); `transformers` writes a BlipForImageTextRetrieval directory. Both can hold W + ΔW and the trained
heads; the running context of the matching head is a constant and goes into that head's bias. The query transformation
is no weight: an adapter with it is refused. What was written is read again and its outputs are compared with the
attached model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from aurora_ds.assemble import RECORD_FILE, Assembled, copy_vocabulary, load_trained
from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.published import to_published
from aurora_ds.backbones.transformers_format import config_for, from_original
from aurora_ds.config import BackboneConfig, RunConfig
from aurora_ds.data.image import DEVIATION, MEAN
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import find_adapter
from aurora_ds.prompts.adapter import read_adapter
from aurora_ds.recipe import to_yaml
from aurora_ds.runtime.run_folder import replace_folder

TOLERANCE = 1e-4  # of the largest output; merging rounds once per weight
_PROBE_TOKENS = 8


def run(
    adapter: str | Path, format: str, output: str | Path, backbone: str | Path | None = None
) -> dict[str, Any]:
    """Write the merged model of `adapter` into the new or empty folder `output`; returns what record.json says.

    Args:
        adapter: a run's folder, a checkpoint or an adapter. format: merged or transformers.
        backbone: the frozen backbone's file, when it is no longer where the adapter's configuration says.
    Raises: AuroraError when the adapter cannot be expressed as weights, belongs to another backbone, or the output is
        not empty, cannot be written, or computes something else than the attached model.
    """
    writers: dict[str, Callable[[Path, Assembled], None]] = {
        "merged": _write_merged,
        "transformers": _write_transformers,
    }
    if format not in writers:
        raise AuroraError(f"There is no export format {format!r}; the formats are {' and '.join(writers)}.")
    place, output = find_adapter(adapter), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise AuroraError(f"The output {output} exists and is not an empty folder. Give another --output.")
    assembled, saved = _attached(place, backbone)
    config = assembled.config.backbone
    with torch.no_grad():
        wanted = _outputs(assembled.task.model.eval(), config, assembled.task.context.evaluation_term())
        _merge(assembled)
    error = 0.0

    def write(folder: Path) -> None:
        nonlocal error
        writers[format](folder, assembled)
        copy_vocabulary(folder, assembled)
        error = _largest_error(folder, format, config, wanted)
        record = {
            "format": f"aurora_ds.{format}",
            "version": 1,
            "made_from": {"backbone": assembled.backbone, "prompts": saved["prompts"]},
            "temperature": assembled.task.temperature_value(),
            "frame_weights": assembled.config.retrieval.frame_weights,
            "largest_relative_error": error,
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        weights = "backbone.safetensors" if format == "merged" else ""
        recipe = RunConfig(
            description=f"{assembled.backbone['name']} with an adapter merged into it",
            backbone=config.model_copy(update={"checkpoint": str(output / weights), "tokenizer": None}),
        )
        recipe.retrieval.max_tokens = min(recipe.retrieval.max_tokens, config.text.max_positions)
        (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")

    replace_folder(output, write)
    print(
        f"{output}: {format}, largest difference to the attached model {error:.1e} of its largest output. "
        f"Use it as backbone.checkpoint={output / 'backbone.safetensors' if format == 'merged' else output}, or "
        f"evaluate it with `aurora-ds evaluate {output / 'recipe.yaml'} data.shards=DIR --output DIR`."
    )
    return json.loads((output / RECORD_FILE).read_text(encoding="utf-8"))


def _attached(place: Path, backbone: str | Path | None) -> tuple[Assembled, dict[str, Any]]:
    """The backbone that the adapter names, with the adapter attached, and the adapter's configuration."""
    _, saved = read_adapter(place)
    described = saved["backbone"].get("config")
    if described is None:
        raise AuroraError(
            f"The adapter in {place} does not say how its backbone was configured (backbone.config in its "
            "adapter_config.json), so the model cannot be built. Resume its run once, which saves it anew."
        )
    if saved["gate_layers"]:
        raise AuroraError(
            f"The adapter in {place} uses the query transformation, a term after each of {len(saved['gate_layers'])} "
            "text layers that no weight of the plain backbone can hold, so a merged model would compute something "
            "else. Train with prompts.query_transform=false to export, or keep using the adapter as it is: "
            "`aurora-ds evaluate --adapter`."
        )
    config = BackboneConfig.model_validate(described)
    config.momentum_weights = config.queue_weights = "ignore"
    if backbone is not None:
        config.checkpoint = str(backbone)
    run_config = RunConfig(backbone=config)
    run_config.retrieval.queue_size = 0
    run_config.retrieval.temperature = saved.get("temperature")
    try:
        return load_trained(run_config, str(place)), saved
    except AuroraError as error:
        if backbone is None:
            raise AuroraError(
                f"{error} (The adapter's configuration names this backbone; --backbone FILE gives another place.)"
            ) from error
        raise


def _merge(assembled: Assembled) -> None:
    """Prompts into the weights, the running context into the matching head's bias, the temperature into `temp`."""
    task, head = assembled.task, assembled.task.model.itm_head
    task.prompts.merge()
    term = task.context.evaluation_term()
    if term is not None:
        head.bias += head.weight @ term.to(head.weight)
    task.model.temp.fill_(task.temperature_value())


def _write_merged(folder: Path, assembled: Assembled) -> None:
    save_file(_plain(to_published(assembled.task.model)), folder / "backbone.safetensors")


def _write_transformers(folder: Path, assembled: Assembled) -> None:
    config = assembled.config.backbone
    tensors = from_original(to_published(assembled.task.model))
    save_file(_plain(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_for(config), indent=2), encoding="utf-8")
    edge = config.vision.image_size
    pictures = {
        "image_processor_type": "BlipImageProcessor",
        "size": {"height": edge, "width": edge},
        "resample": 3,
        "image_mean": list(MEAN),
        "image_std": list(DEVIATION),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2), encoding="utf-8")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _outputs(model: nn.Module, config: BackboneConfig, term: Tensor | None) -> dict[str, Tensor]:
    """What retrieval asks of a model, on two made-up pairs: features (2, E), logits (2, 2), the temperature."""
    generator = torch.Generator().manual_seed(0)
    edge = config.vision.image_size
    image = torch.randn(2, 3, edge, edge, generator=generator)
    length = min(_PROBE_TOKENS, config.text.max_positions)
    ids = torch.randint(config.text.vocab_size, (2, length), generator=generator)
    ids[:, 0] = config.text.cls_id
    mask = torch.ones_like(ids)
    tokens = model.visual_encoder(image)
    states = model.text_encoder(ids, mask)
    pair_ids = torch.cat([torch.full_like(ids[:, :1], config.text.enc_id), ids[:, 1:]], dim=1)
    pairs = model.text_encoder(pair_ids, mask, image_kv=model.text_encoder.image_kv(tokens))[:, 0]
    return {
        "image features": F.normalize(model.vision_proj(tokens[:, 0]), dim=-1),
        "text features": F.normalize(model.text_proj(states[:, 0]), dim=-1),
        "matching logits": model.itm_head(pairs if term is None else pairs + term.to(pairs)),
    }


def _largest_error(folder: Path, format: str, config: BackboneConfig, wanted: dict[str, Tensor]) -> float:
    """Load what was written as a user would, and compare. Raises AuroraError when it is another model."""
    checkpoint = folder / "backbone.safetensors" if format == "merged" else folder
    again = load_backbone(config.model_copy(update={"checkpoint": str(checkpoint)})).model.eval()
    with torch.no_grad():
        found = _outputs(again, config, None)
    errors = {
        name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in wanted.items()
    }
    worst = max(errors, key=errors.get)
    if not errors[worst] <= TOLERANCE:
        raise AuroraError(
            f"The exported model was read again and differs in its {worst} by {errors[worst]:.1e} of the largest "
            f"(allowed: {TOLERANCE:.0e}), so nothing was kept. Please report this with the adapter's configuration."
        )
    return errors[worst]
