"""What is recorded of mPLUG's files at their real sizes: names and shapes, how pre-training nests them; the groups of
AdamW.

Models are made without memory; nothing is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora_ds.backbones.models import family_of, new_model
from aurora_ds.backbones.mplug_family import unnested
from aurora_ds.backbones.published import QUEUES, TIED, published_tensors, split_published
from aurora_ds.config import BackboneConfig, TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.groups import groups_of
from aurora_ds.verify.golden import Check

LISTED = "_state_dict.txt"
# by size, as published
SIZES: dict[str, dict[str, Any]] = {
    "base": {"vision": {"image_size": 384}, "mplug": {"stride": 3}},
    "large": {
        "vision": {"image_size": 336, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16},
        "mplug": {"stride": 6},
    },
}
TINY = {"width": 32, "heads": 2, "depth": 2, "patch_size": 16, "image_size": 32}
NUMBERS = {"position_ids", "prefix_ids", "target_ids", "bbox_prob_mask"}  # no parameters


def checks_of(folder: Path) -> list[Check] | None:
    """All checks of a folder of this kind; None for another. Raises AuroraError when it cannot be read."""
    lists = sorted(folder.glob(f"*{LISTED}"))
    if not lists or not (folder / "summary.json").is_file():
        return None
    summary = _json(folder / "summary.json")
    checks = [each for path in lists for each in _layout(path, summary)]
    if (folder / "pretrain_key_remap.json").is_file():
        checks += _nesting(_json(folder / "pretrain_key_remap.json"))
    if (folder / "optimizer_groups_tiny_vqa_distill.json").is_file():
        checks += _groups(_json(folder / "optimizer_groups_tiny_vqa_distill.json"))
    return checks


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AuroraError(f"{path} cannot be read ({error}).") from error


def _count(name: str, wrong: int) -> Check:
    return Check(name, wrong, wrong, "exact", wrong == 0)


def _layout(path: Path, summary: Mapping[str, Any]) -> list[Check]:
    """Every tensor of the listed file is one of the model's, in its shape, or known to be of no use; and the other way
    round. The sums of parameters are those recorded."""
    name = path.name.removesuffix(LISTED)
    size, _, head = name.partition("_")
    config = BackboneConfig.model_validate({"name": "mplug", "head": head, **SIZES[size]})
    with torch.device("meta"):
        model = new_model(config)
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    listed = {key: _empty(shape) for key, shape in lines}
    tensors = family_of(config).sort({k: t for k, t in listed.items() if not _tied(k)}, config)
    theirs, own = split_published(tensors.online), model.state_dict()
    misfits = set(theirs) ^ set(own) | {k for k in set(theirs) & set(own) if theirs[k].shape != own[k].shape}
    whole = {
        key: tensor.numel()
        for key, tensor in listed.items()
        if not _tied(key) and key not in QUEUES and key.split(".")[-1] not in NUMBERS
    }
    online = {key: count for key, count in whole.items() if not key.split(".")[0].endswith("_m")}
    idle = {key: count for key, count in online.items() if key not in tensors.online}
    recorded = summary[name]
    computing = sum(tensor.numel() for tensor in own.values())
    text_tower = sum(n for key, n in idle.items() if _of_text_tower(key))
    return [
        _count(f"{name}: tensors that do not fit", len(misfits)),
        _count(
            f"{name}: built and idle parameters", computing + sum(idle.values()) - recorded["params_online"]
        ),
        _count(
            f"{name}: momentum parameters",
            sum(whole.values()) - sum(online.values()) - recorded["params_momentum_copies"],
        ),
        _count(f"{name}: CLIP's text tower, not built", text_tower - recorded["clip_text_tower_unused"]),
    ]


def _of_text_tower(name: str) -> bool:
    return name.startswith("visual_encoder.") and not name.startswith("visual_encoder.visual.")


def _tied(name: str) -> bool:
    return name.replace("_decoder_m.", "_decoder.") in TIED


def _empty(shape: str) -> Tensor:
    axes = [] if shape == "scalar" else [int(axis) for axis in shape.split("x")]
    return torch.empty(axes, device="meta")


def _nesting(samples: list[dict[str, str | None]]) -> list[Check]:
    """Names of a pre-trained file as one of the published loaders makes them. These drop some; none is dropped here."""
    checks = []
    for sample in samples:
        expected = sample["vqa_caption_retrieval_video"] or sample["grounding"]
        checks.append(_count(sample["checkpoint_key"], int(unnested(sample["checkpoint_key"]) != expected)))
    return checks


def _groups(recorded: Mapping[str, Any]) -> list[Check]:
    """Learning rate and weight decay of each parameter that is built."""
    expected = {
        name: (group["lr"], group["weight_decay"]) for group in recorded["groups"] for name in group["params"]
    }
    config = BackboneConfig.model_validate(
        {
            "name": "mplug",
            "head": "vqa",
            "vision": TINY,
            "text": {"width": 24, "heads": 3, "depth": 4},
            "mplug": {"text_layers": 2, "fusion_layers": 3, "decoder_layers": 2, "stride": 2},
        }
    )
    with torch.device("meta"):
        model = new_model(config)
    rates = TrainConfig(lr=3e-5, vision_lr=5e-6, weight_decay=0.02, no_decay=["bias", "LayerNorm.weight"])
    wrong = 0
    for group in groups_of((f"model.{name}" for name, _ in model.named_parameters()), rates):
        members = {name.removeprefix("model."): None for name in group.names}
        tensors = {name: p for name, p in model.named_parameters() if name in members}
        wrong += sum(
            expected.get(name) != (group.lr, group.weight_decay) for name in published_tensors(tensors)
        )
    defaults = recorded["defaults"]
    return [
        _count("groups of AdamW: parameters in another", wrong),
        _count("AdamW: betas", int(tuple(defaults["betas"]) != rates.betas)),
        _count("AdamW: eps", int(defaults["eps"] != rates.eps)),
    ]
