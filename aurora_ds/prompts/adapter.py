"""An adapter on disk: `adapter_config.json` and `adapter_model.safetensors`, tied to its backbone by sha256.

The configuration names every site and every tensor with its shape, so that a file for another backbone,
another rank or another preset is refused with the difference spelled out, and nothing is ever loaded in part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora_ds.config import PromptConfig
from aurora_ds.errors import AuroraError
from aurora_ds.prompts.attach import Prompts

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
FORMAT, VERSION = "aurora_ds.adapter", 1
PARTS = ("backbone", "prompts", "sites", "gate_layers", "heads", "tensors")
# settings that decide what the stored numbers mean without showing in their names or shapes
MEANING = ("form", "rank", "scale", "mlp_layout")


def describe(
    prompts: Prompts, name: str, backbone: dict[str, Any], extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of `adapter_config.json` for adapter `name`. `backbone`: {"name", "sha256", …} of the
    frozen model."""
    bank = prompts.banks[name]
    return {
        "format": FORMAT,
        "version": VERSION,
        "backbone": backbone,
        "prompts": prompts.config.model_dump(),
        "sites": [
            {
                "name": s.name,
                "inputs": s.inputs,
                "outputs": s.outputs,
                "width_in": s.width_in,
                "width_out": s.width_out,
                "column": s.column,
            }
            for s in prompts.sites
        ],
        "gate_layers": bank.gate_layers,
        "heads": list(prompts.head_paths),
        "tensors": {n: list(getattr(p, "ds_shape", p.shape)) for n, p in bank.named_parameters()},
        **(extra or {}),
    }


def save_adapter(
    folder: str | Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    context_running: Tensor | None = None,
) -> None:
    """Write an adapter. `tensors`: name -> full fp32 value, as `describe` lists them (gathered first under
    ZeRO-3).

    Raises AuroraError when a tensor is missing, has another shape than the configuration says, or is not
    finite."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = with_context(tensors, context_running)
    check_tensors(tensors, config, str(folder))
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / TENSOR_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")


def with_context(tensors: dict[str, Tensor], running: Tensor | None) -> dict[str, Tensor]:
    """The adapter's tensors and, where context enhancement keeps one, its running mean."""
    return tensors if running is None else {**tensors, "context_running": running.detach().float()}


def check_tensors(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> None:
    """Names, shapes and finiteness against the configuration; AuroraError naming what is wrong."""
    expected = config["tensors"]
    missing, extra = (
        sorted(set(expected) - set(tensors)),
        sorted(set(tensors) - set(expected) - {"context_running"}),
    )
    if missing or extra:
        raise AuroraError(
            f"Adapter {where}: tensors missing {missing or 'none'}, unexpected {extra or 'none'}. The "
            "file is not whole or not of this run."
        )
    for name, shape in expected.items():
        if list(tensors[name].shape) != shape:
            raise AuroraError(
                f"Adapter {where}: '{name}' has shape {list(tensors[name].shape)}, its configuration says {shape}."
            )
        if not torch.isfinite(tensors[name]).all():
            raise AuroraError(f"Adapter {where}: '{name}' holds values that are not finite.")


def read_adapter(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a saved adapter. Raises AuroraError when a file is missing, torn or of
    another kind."""
    folder = Path(folder)
    for file in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / file).is_file():
            raise AuroraError(
                f"No adapter in {folder}: {file} is missing. Give a folder written by training "
                "(…/adapter or …/checkpoints/step-…)."
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSOR_FILE)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise AuroraError(
            f"The adapter in {folder} cannot be read: {error}. Its writing may have been cut off."
        ) from error
    if not isinstance(config, dict):
        raise AuroraError(
            f"{folder / CONFIG_FILE} holds a {type(config).__name__}, not an object: no adapter."
        )
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise AuroraError(
            f"{folder / CONFIG_FILE} is format {config.get('format')!r} version "
            f"{config.get('version')!r}; this release reads "
            f"{FORMAT!r} version {VERSION}."
        )
    if absent := [part for part in PARTS if part not in config]:
        raise AuroraError(
            f"{folder / CONFIG_FILE} lacks {absent}. It was cut or edited: take it from a backup."
        )
    check_tensors(tensors, config, str(folder))
    return tensors, config


def load_adapter(
    prompts: Prompts, folder: str | Path, backbone: dict[str, Any], name: str = "default"
) -> dict[str, Any]:
    """Load a saved adapter under `name` (added when new) and enable it.

    Raises AuroraError when it was trained on another backbone, or with other sites, rank, form or heads
    than attached here.
    Returns the adapter's configuration; `context_running` is left in it as a tensor when present."""
    prompts.refuse_if_merged("load an adapter")
    tensors, config = read_adapter(folder)
    theirs, ours = config["backbone"], backbone
    if theirs.get("sha256") != ours.get("sha256"):
        raise AuroraError(
            f"The adapter in {folder} belongs to backbone '{theirs.get('name')}' (sha256 "
            f"{str(theirs.get('sha256'))[:12]}…), but the loaded "
            f"backbone is '{ours.get('name')}' (sha256 {str(ours.get('sha256'))[:12]}…). Set "
            "backbone.checkpoint to the file it was trained on."
        )
    here = describe(prompts, next(iter(prompts.banks)), ours)
    here["settings"] = {name: here["prompts"][name] for name in MEANING}
    there = {**config, "settings": {name: config["prompts"].get(name) for name in MEANING}}
    for part in ("settings", "sites", "gate_layers", "heads", "tensors"):
        if here[part] != there[part]:
            raise AuroraError(
                f"The adapter in {folder} was trained with other {part} than are attached here "
                f"({_difference(there[part], here[part])}). "
                "Use the prompts settings of its adapter_config.json."
            )
    bank = prompts.banks[name] if name in prompts.banks else prompts.add(name)
    running = tensors.pop("context_running", None)
    with torch.no_grad():
        for parameter_name, parameter in bank.named_parameters():
            parameter.copy_(tensors[parameter_name])
    prompts.enable(name)
    return config if running is None else {**config, "context_running": running}


def attached_config(config: dict[str, Any]) -> PromptConfig:
    """The prompts settings an adapter was trained with. Raises AuroraError for settings this release does not know."""
    try:
        return PromptConfig(**config["prompts"])
    except (ValidationError, TypeError) as error:
        raise AuroraError(
            f"The prompts settings in {CONFIG_FILE} are not those of this release: {' '.join(str(error).split())}. It "
            "was edited, or written by a newer release."
        ) from error


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict):
        keys = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        return "; ".join(f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in keys[:3])
    return (
        f"{len(theirs)} there, {len(ours)} here" if len(theirs) != len(ours) else "same number, other content"
    )
