"""Frozen weights from a file: published `.pth`, the same names in safetensors, or a transformers-format directory.

Nothing loads in part: each tensor of the file is used, asked for separately, declared as ignored
(published.py), or an error, and so is each tensor that the model lacks. Only tensors are read
(`weights_only=True`): no code of the file runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aurora_ds.backbones import transformers_format
from aurora_ds.backbones.family import Family
from aurora_ds.backbones.models import family_of
from aurora_ds.backbones.published import (
    published_tensors,
    resize_positions,
    split_published,
    to_published,
)
from aurora_ds.backbones.tensor_files import read_tensors, weights_file
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

__all__ = [
    "LoadedBackbone", "load_backbone", "published_tensors", "read_tensors", "resize_positions", "resolve_checkpoint",
    "split_published", "to_published",
]  # fmt: skip

_ASSETS = Path(__file__).parent.parent / "quickstart" / "assets"
BUILT_IN = {
    "builtin:world": _ASSETS / "backbone.safetensors",
    "builtin:world-language": _ASSETS / "language" / "backbone.safetensors",
    "builtin:world-mplug": _ASSETS / "mplug" / "backbone.safetensors",
    "builtin:world-eve": _ASSETS / "eve" / "backbone.safetensors",
}
CHUNK = 1 << 20


@dataclass
class LoadedBackbone:
    """A model with its weights, and what else the file held when it was asked for."""

    model: nn.Module
    momentum: dict[str, Tensor] | None  # the `*_m` tensors, under the names of the model's own
    queues: dict[str, Tensor] | None
    aurora: dict[str, Tensor]  # `CP_*` tensors of an Aurora file, `*_m` ones included, under published names
    sha256: str  # of the file with the weights
    name: str  # the file's name, or `builtin:…`
    fresh: tuple[
        str, ...
    ] = ()  # tensors that the file cannot have and that were drawn at random, published names


def load_backbone(config: BackboneConfig, dtype: torch.dtype = torch.float32) -> LoadedBackbone:
    """The model of `config` on the CPU in `dtype` (`temp` in fp32), with the weights of `config.checkpoint`.

    A null checkpoint gives random weights, from torch's generator. Positions are resized to `config.vision.image_size`.

    Raises:
        AuroraError: no such file; not readable as tensors; another architecture (every size that differs is
            named); missing or unexpected tensors (listed); momentum weights or queues asked for and not there.
    """
    family = family_of(config)
    if config.checkpoint is None:
        model, name = family.start(config)
        model = _with_dtype(model, dtype)
        return LoadedBackbone(model, None, None, {}, _fingerprint(model), name)
    path = resolve_checkpoint(config.checkpoint)
    file = weights_file(path) if path.is_dir() else path
    state = read_tensors(file)
    if path.is_dir():
        state = family.from_folder(path, config, state)
    tensors, advice = family.sort(state, config), family.advice(state, config.head)
    _check_architecture(tensors.online, config, path, advice)
    tensors.online, fresh = family.completed(tensors.online, config)
    with torch.device("meta"):  # names and shapes only: the weights come from the file
        model = family.new_model(config)
    own = model.state_dict()
    model.load_state_dict(_fit(tensors.online, own, path, dtype, family, advice=advice), assign=True)
    if config.momentum_weights == "read":
        expected = {n: t for n, t in own.items() if family.has_momentum(n)}
        if not tensors.momentum:
            raise AuroraError(
                f"{path} has no momentum weights (visual_encoder_m.… and so on), and "
                "backbone.momentum_weights=read asks for them. Set backbone.momentum_weights=ignore, or give "
                "a pre-trained or retrieval checkpoint as published."
            )
        momentum = _fit(tensors.momentum, expected, path, dtype, family, "momentum ")
    if config.queue_weights == "read" and not tensors.queues:
        raise AuroraError(
            f"{path} has no feature queues (image_queue, text_queue), and backbone.queue_weights=read asks "
            "for them. Set backbone.queue_weights=ignore to begin with an empty queue."
        )
    return LoadedBackbone(
        model,
        momentum if config.momentum_weights == "read" else None,
        tensors.queues if config.queue_weights == "read" else None,
        tensors.aurora,
        _sha256(file),
        config.checkpoint if config.checkpoint in BUILT_IN else path.name,
        tuple(fresh),
    )


def resolve_checkpoint(checkpoint: str) -> Path:
    """`builtin:NAME` or a path -> a path that exists. Raises AuroraError otherwise."""
    if checkpoint.startswith("builtin:") and checkpoint not in BUILT_IN:
        raise AuroraError(
            f"backbone.checkpoint={checkpoint} names no built-in backbone; there is {', '.join(BUILT_IN)}."
        )
    path = BUILT_IN.get(checkpoint) or Path(checkpoint).expanduser()
    if not path.exists():
        raise AuroraError(
            f"backbone.checkpoint={checkpoint}: there is no such file or directory. It takes a published .pth "
            f"file, a .safetensors file with the same names, a directory in transformers' format, or one of "
            f"{', '.join(BUILT_IN)}."
        )
    return path


def _check_architecture(
    state: Mapping[str, Tensor], config: BackboneConfig, path: Path, advice: str | None
) -> None:
    family = family_of(config)
    sizes = family.sizes(state)
    lacking = family.lacking(sizes, config.head)
    if lacking is not None:
        what = (
            f"is no {family.title} checkpoint." if advice is None else f"does not fit this backbone. {advice}"
        )
        raise AuroraError(
            f"{path} {what} It lacks {lacking}. Its names begin with {', '.join(sorted(state)[:4]) or 'nothing known'}."
        )
    configured = {key: transformers_format.configured(config, key) for key in sizes}
    different = {
        key: value
        for key, value in sizes.items()
        if not math.isclose(value, configured[key], abs_tol=1 / 1024)
    }
    if different:
        listed = ", ".join(
            f"backbone.{key} is {value} in the file and {configured[key]} in the configuration"
            for key, value in different.items()
        )
        recipe = {
            1024: "recipes for this file end in _large",
            768: "recipes for this file do not end in _large",
        }.get(different.get("vision.width"), "a recipe made for this file has them")
        raise AuroraError(
            f"{path} has another architecture than this run is configured for: {listed}. Give the right file, "
            f"or set its sizes ({recipe}): {' '.join(f'backbone.{key}={value}' for key, value in different.items())}."
        )


def _fit(
    published: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    family: Family,
    what: str = "",
    advice: str | None = None,
) -> dict[str, Tensor]:
    """Published tensors as the model `own` wants them: fused, resized, in `dtype`, in memory of their own."""
    state = split_published(published)
    positions = family.positions
    if positions in state and positions in own:
        patches = own[positions].shape[-2] - 1
        state[positions] = resize_positions(state[positions], patches, family.interpolation)
    missing = sorted(
        published_tensors({n: t for n, t in own.items() if n not in state and n not in family.optional})
    )
    unexpected = sorted(n for n in state if n not in own)
    # a part of a projection that lacks another part is not unexpected: the other one is missing
    parts = [n for n in unexpected if n in missing]
    missing, unexpected = [n for n in missing if n not in parts], [n for n in unexpected if n not in parts]
    wrong = [
        f"{n} {list(state[n].shape)} instead of {list(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or unexpected or wrong:
        raise AuroraError(
            f"{path} does not fit this backbone. {f'{advice} ' if advice else ''}Missing {what}tensors: "
            f"{_listed(missing)}. Unexpected: {_listed(unexpected)}. Of another shape: {_listed(wrong)}."
            f"{'' if advice else f' {family.unused}'}"
        )
    result = {
        n: t.to(torch.float32 if n == "temp" else dtype, copy=True).contiguous() for n, t in state.items()
    }
    absent = {n: value for n, value in family.optional.items() if n in own and n not in result}
    return result | {n: torch.tensor(value) for n, value in absent.items()}


def _with_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    temperature = getattr(model, "temp", None)
    value = None if temperature is None else temperature.data
    model.to(dtype)
    if temperature is not None:
        model.temp.data = value
    return model


def _listed(names: list[str], most: int = 12) -> str:
    return (", ".join(names[:most]) or "none") + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fingerprint(model: nn.Module) -> str:
    """Tells random models of different seeds or sizes apart; the beginning of each tensor does, in a fraction
    of the time."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().numpy().tobytes())
    return digest.hexdigest()
