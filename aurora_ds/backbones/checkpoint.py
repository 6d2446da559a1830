"""Frozen weights from a file: published `.pth`, the same names in safetensors, or a transformers-format directory.

Nothing loads in part: each tensor of the file is used, asked for separately, declared as ignored
(published.py), or an error, and so is each tensor that the model lacks. Only tensors are read
(`weights_only=True`): no code of the file runs.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aurora_ds.backbones import blip_nlvr, transformers_format
from aurora_ds.backbones.made_for import another_task
from aurora_ds.backbones.models import BlipModel, new_model
from aurora_ds.backbones.published import (
    published_tensors,
    resize_positions,
    sort_published,
    split_published,
    to_published,
)
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

__all__ = [
    "LoadedBackbone", "load_backbone", "published_tensors", "read_tensors", "resize_positions", "resolve_checkpoint",
    "sizes_of", "split_published", "to_published",
]  # fmt: skip

_ASSETS = Path(__file__).parent.parent / "quickstart" / "assets"
BUILT_IN = {
    "builtin:world": _ASSETS / "backbone.safetensors",
    "builtin:world-language": _ASSETS / "language" / "backbone.safetensors",
}
OPTIONAL = ("temp",)  # models made for inference alone do not store it; BLIP's initial value stands in
CHUNK = 1 << 20


@dataclass
class LoadedBackbone:
    """A model with its weights, and what else the file held when it was asked for."""

    model: BlipModel
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
    if config.checkpoint is None:
        model = _with_dtype(new_model(config), dtype)
        return LoadedBackbone(model, None, None, {}, _fingerprint(model), f"{config.name} (random weights)")
    path = resolve_checkpoint(config.checkpoint)
    file = transformers_format.weights_file(path) if path.is_dir() else path
    state = read_tensors(file)
    if path.is_dir():
        transformers_format.check_sizes(path, config)
        state = transformers_format.to_original(state)
    tensors, fresh, advice = sort_published(state, config.head), [], another_task(state, config.head)
    _check_architecture(tensors.online, config, path, advice)
    if config.head == "nlvr":
        tensors.online, fresh = blip_nlvr.from_pretrained(tensors.online, config.text)
    with torch.device("meta"):  # names and shapes only: the weights come from the file
        model = new_model(config)
    own = model.state_dict()
    model.load_state_dict(_fit(tensors.online, own, path, dtype, advice=advice), assign=True)
    if config.momentum_weights == "read":
        expected = {n: t for n, t in own.items() if not n.startswith(("temp", "itm_head."))}
        if not tensors.momentum:
            raise AuroraError(
                f"{path} has no momentum weights (visual_encoder_m.… and so on), and "
                "backbone.momentum_weights=read asks for them. Set backbone.momentum_weights=ignore, or give "
                "a pre-trained or retrieval checkpoint as published."
            )
        momentum = _fit(tensors.momentum, expected, path, dtype, "momentum ")
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` or PyTorch file (the dict itself, or the one under its key `model`), by name."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"  # the format before PyTorch 1.6 cannot be mapped into memory
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AuroraError(
            f"{path} cannot be read as tensors ({reason[:200]}). It may be cut off, no checkpoint at all, or "
            "hold Python objects, which are never loaded. Fetch it again, or store its tensors alone."
        ) from error
    content = content.get("model", content) if isinstance(content, dict) else content
    tensors = {n: t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise AuroraError(
            f"{path} holds no named tensors. A published checkpoint is a dict of tensors, or has one under "
            "the key 'model'."
        )
    return tensors


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int | float]:
    """Sizes that names and shapes give away, by configuration key (`vision.width`, …). Attention heads cannot
    be seen."""
    sizes: dict[str, int | float] = {}

    def read(name: str, **keys: int) -> None:
        if name in state:
            sizes.update({key.replace("__", "."): state[name].shape[axis] for key, axis in keys.items()})

    read("visual_encoder.patch_embed.proj.weight", vision__width=0, vision__patch_size=3)
    text = "text_decoder.bert" if not any(n.startswith("text_encoder.") for n in state) else "text_encoder"
    read(f"{text}.embeddings.word_embeddings.weight", text__vocab_size=0, text__width=1)
    read(f"{text}.embeddings.position_embeddings.weight", text__max_positions=0)
    read(f"{text}.encoder.layer.0.intermediate.dense.weight", text__intermediate=0)
    read("vision_proj.weight", embed_dim=0)
    if "visual_encoder.blocks.0.mlp.fc1.weight" in state:
        hidden, width = state["visual_encoder.blocks.0.mlp.fc1.weight"].shape
        sizes["vision.mlp_ratio"] = hidden / width
    for key, layer in (
        ("vision.depth", r"visual_encoder\.blocks\.(\d+)\."),
        ("text.depth", rf"{re.escape(text)}\.encoder\.layer\.(\d+)\."),
    ):
        numbers = [int(match[1]) for match in (re.match(layer, name) for name in state) if match]
        if numbers:
            sizes[key] = max(numbers) + 1
    return sizes


def _check_architecture(
    state: Mapping[str, Tensor], config: BackboneConfig, path: Path, advice: str | None
) -> None:
    sizes = sizes_of(state)
    if "vision.width" not in sizes or "text.width" not in sizes:
        what = "is no BLIP checkpoint." if advice is None else f"does not fit this backbone. {advice}"
        text = "text_decoder" if config.head == "caption" else "text_encoder"
        raise AuroraError(
            f"{path} {what} It lacks visual_encoder.patch_embed or the embeddings of the text transformer ({text}.*). "
            f"Its names begin with {', '.join(sorted(state)[:4]) or 'nothing known'}."
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
    what: str = "",
    advice: str | None = None,
) -> dict[str, Tensor]:
    """Published tensors as the model `own` wants them: fused, resized, in `dtype`, in memory of their own."""
    state = split_published(published)
    positions = "visual_encoder.pos_embed"
    if positions in state and positions in own:
        state[positions] = resize_positions(state[positions], own[positions].shape[1] - 1)
    missing = sorted(
        published_tensors({n: t for n, t in own.items() if n not in state and n not in OPTIONAL})
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
        unused = (
            " May be there without being used: text_decoder.*, position_ids, and momentum weights and queues unless "
            "they are asked for."
        )
        raise AuroraError(
            f"{path} does not fit this backbone. {f'{advice} ' if advice else ''}Missing {what}tensors: "
            f"{_listed(missing)}. Unexpected: {_listed(unexpected)}. Of another shape: {_listed(wrong)}."
            f"{'' if advice else unused}"
        )
    result = {
        n: t.to(torch.float32 if n == "temp" else dtype, copy=True).contiguous() for n, t in state.items()
    }
    if "temp" in own and "temp" not in result:
        result["temp"] = torch.tensor(transformers_format.TEMPERATURE)
    return result


def _with_dtype(model: BlipModel, dtype: torch.dtype) -> BlipModel:
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


def _fingerprint(model: BlipModel) -> str:
    """Tells random models of different seeds or sizes apart; the beginning of each tensor does, in a fraction
    of the time."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().numpy().tobytes())
    return digest.hexdigest()
