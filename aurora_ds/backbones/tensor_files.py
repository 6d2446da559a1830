"""Tensors by name out of files. Only tensors are read (`weights_only=True`): no code of a file runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aurora_ds.errors import AuroraError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` or PyTorch file (the dict itself, or the one under its key `model` or
    `module`), by name."""
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
    for key in ("module", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    tensors = {n: t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise AuroraError(
            f"{path} holds no named tensors. A published checkpoint is a dict of tensors, or has one under "
            "the key 'model' or 'module'."
        )
    return tensors


def weights_file(folder: Path) -> Path:
    """The one file with the tensors. Raises AuroraError when there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise AuroraError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin; a transformers-format checkpoint "
        "holds one of them."
    )
