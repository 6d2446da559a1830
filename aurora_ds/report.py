"""What a run is, for people: the attach report before it, the settings that it is compared by after it."""

from __future__ import annotations

from typing import Any

from aurora_ds.assemble import Assembled
from aurora_ds.kernels import choice as kernel_choice
from aurora_ds.runtime import process_group


def attach_report(assembled: Assembled, steps_per_epoch: int) -> str:
    """Sites, shapes, counts and share, as plain lines (launchers prefix them)."""
    config, task = assembled.config, assembled.task
    lines = [
        f"backbone   {assembled.backbone['name']}  sha256 {assembled.backbone['sha256'][:12]}",
        f"steps      {steps_per_epoch} per epoch, {config.train.epochs} epochs, global batch "
        f"{config.train.global_batch_size}",
    ]
    if task.prompts is None:
        count = sum(p.numel() for p in task.parameters() if p.requires_grad)
        return "\n".join(
            [*lines, f"method     {config.train.method}: {count:,} numbers trained, the whole backbone"]
        )
    report = task.prompts.report()
    extra = 1 if getattr(task, "temp", None) is not None else 0
    sites = (
        ", ".join(f"{count} {group.replace('_', ' ')}" for group, count in report["sites"].items()) or "none"
    )
    lines += [
        f"method     {config.train.method}, preset {report['preset']}, {report['form']} rank {report['rank']}",
        f"sites      {sites}; query transformation in {report['query_transform_layers']} layers",
        f"kernels    {kernel_choice.describe(process_group.device().type)}",
    ]
    lines += [
        f"  {name:<22} {'x'.join(map(str, shape)):>14} {count:>10,}"
        for name, (shape, count) in report["tensors"].items()
    ]
    trained = report["trainable"] + extra
    lines.append(
        f"trained    {trained:,} of {report['backbone']:,} numbers, {100 * trained / report['backbone']:.4f} %"
    )
    return "\n".join(lines)


def hyperparameters(assembled: Assembled) -> dict[str, Any]:
    """The settings that runs are compared by; all of them are in the config page."""
    config = assembled.config
    settings = config.model_dump(mode="json")
    task = settings[config.task]
    chosen = {
        "prompts": ("preset", "form", "rank", "scale", "dropout", "query_transform", "context"),
        config.task: tuple(key for key, value in task.items() if not isinstance(value, dict | list)),
        "train": ("method", "epochs", "global_batch_size", "lr", "schedule", "weight_decay", "precision"),
    }
    picked = {section: {key: settings[section][key] for key in keys} for section, keys in chosen.items()}
    return {"backbone": assembled.backbone["name"], "seed": config.seed, **picked}
