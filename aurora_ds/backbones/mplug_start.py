"""mPLUG from the files that its pre-training began with: OpenAI's CLIP and bert-base-uncased (mPLUG §4.1).

CLIP gives the vision transformer, its positions resized (the published code lost them); BERT's first layers the text
encoder, its last ones the fusion encoder, all of them the decoder and its head. Cross-attention, the bridge between the
widths and the heads stay random.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from aurora_ds.backbones.clip_names import PREFIX
from aurora_ds.backbones.published import published_tensors, resize_positions, split_published
from aurora_ds.backbones.tensor_files import read_tensors, weights_file
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

_BERT_UNUSED = re.compile(r"(pooler|cls\.seq_relationship)\.|.*position_ids$|cls\.predictions\.decoder\.")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def begin(model: nn.Module, config: BackboneConfig) -> str:
    """Puts the files of `config.mplug` into `model`; returns what to call the weights.

    Raises AuroraError: no such file, none of its kind, tensors missing, unexpected or of another shape."""
    options, found = config.mplug, {}
    if options.clip is not None:
        found |= _of_clip(_existing("clip", options.clip), model)
    if options.bert is not None:
        found |= _of_bert(_existing("bert", options.bert), model)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    files = [Path(file).name for file in (options.clip, options.bert) if file is not None]
    return f"mplug ({' and '.join(files) or 'random weights'})"


def _existing(key: str, file: str) -> Path:
    path = Path(file).expanduser()
    if not path.exists():
        raise AuroraError(f"backbone.mplug.{key}={file}: there is no such file or directory.")
    return weights_file(path) if path.is_dir() else path


def _of_clip(path: Path, model: nn.Module) -> dict[str, Tensor]:
    tensors = _read_clip(path)
    visual = {
        f"{PREFIX}{name.removeprefix('visual.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith("visual.") and name != "visual.proj"
    }
    if not visual:
        raise AuroraError(
            f"backbone.mplug.clip={path} has no tensors named visual.…, as OpenAI's CLIP files have. Give ViT-B-16.pt "
            "for the base model or ViT-L-14.pt for the large one."
        )
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PREFIX)}
    found = split_published(visual)
    positions = f"{PREFIX}pos_embed"
    if positions in found:
        grid = found[positions].float()
        found[positions] = resize_positions(grid, own[positions].shape[1] - 1, "bilinear")
    _check(path, "clip", found, own)
    return found


def _read_clip(path: Path) -> dict[str, Tensor]:
    """OpenAI's files are TorchScript archives, others hold the tensors alone. No function of an archive is called."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if scripted:
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    return read_tensors(path)


def _of_bert(path: Path, model: nn.Module) -> dict[str, Tensor]:
    bert = {_bert_name(name): tensor for name, tensor in read_tensors(path).items()}
    bert = {name: tensor for name, tensor in bert.items() if not _BERT_UNUSED.match(name)}
    if "embeddings.word_embeddings.weight" not in bert:
        raise AuroraError(
            f"backbone.mplug.bert={path} has no embeddings.word_embeddings.weight, with or without `bert.` before it. "
            "Give bert-base-uncased, its file or its directory."
        )
    own = model.state_dict()
    wanted = published_tensors({name: tensor for name, tensor in own.items() if _from_bert(name)})
    found = {name: bert[_in_bert(name)] for name in wanted if _in_bert(name) in bert}
    fused = split_published(found)
    _check(path, "bert", fused, {name: tensor for name, tensor in own.items() if _from_bert(name)})
    return fused


def _bert_name(name: str) -> str:
    """Without the leading `bert.`; old files call a LayerNorm's weight gamma and its bias beta."""
    name = name.removeprefix("bert.")
    return re.sub(
        r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    )


def _from_bert(name: str) -> bool:
    parts = ("text_encoder.", "fusion_encoder.", "text_decoder.")
    return name.startswith(parts) and ".crossattention." not in name


def _in_bert(name: str) -> str:
    """Layers have BERT's numbers in all three parts."""
    return re.sub(r"^(text_encoder|fusion_encoder|text_decoder)\.(bert\.)?", "", name)


def _check(path: Path, key: str, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing = sorted(published_tensors({n: t for n, t in own.items() if n not in found}))
    unexpected = sorted(name for name in found if name not in own)
    wrong = [
        f"{n} {list(found[n].shape)} instead of {list(own[n].shape)}"
        for n in own
        if n in found and found[n].shape != own[n].shape
    ]
    if missing or unexpected or wrong:
        raise AuroraError(
            f"backbone.mplug.{key}={path} does not fit this backbone. Missing tensors: {_some(missing)}. Unexpected: "
            f"{_some(unexpected)}. Of another shape: {_some(wrong)}. The base model takes ViT-B/16, the large one "
            "ViT-L/14, and both bert-base-uncased."
        )


def _some(names: list[str]) -> str:
    return (", ".join(names[:8]) or "none") + (f" and {len(names) - 8} more" if len(names) > 8 else "")
