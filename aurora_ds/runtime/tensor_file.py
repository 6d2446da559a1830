"""Tensors as a safetensors file, written from where they lie and compared in place.

The library's own `save` builds the whole file in memory first, from copies; with the feature queues of retrieval
(118 MB) that is most of a checkpoint's time. The bytes written here are the library's, and it reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# As the format names them, in the order in which it stores them: wide ones first, so that all are aligned.
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_CHUNK = 2**20


def pieces(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """The parts of a safetensors file, in order: its header and each tensor's memory. CPU tensors; while the file is
    written they must not change. Only tensors that are not contiguous are copied."""
    rank = list(_DTYPES)
    header, data, end = {}, [], 0
    for name in sorted(tensors, key=lambda name: (rank.index(tensors[name].dtype), name)):
        tensor = tensors[name].detach().contiguous()
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        if tensor.numel():
            data.append(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *data]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    found = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            # one pass without a mask as large as the tensor; a NaN becomes both ends
            ends = torch.stack(torch.aminmax(tensor))
            if not bool(torch.isfinite(ends).all()):
                found.append(name)
    return found


def differences(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names that the file lacks, has too many, or holds with other values. Raises SafetensorError when it is none, and
    OSError when it cannot be read."""
    with safe_open(str(path), framework="pt") as stored:
        names = set(stored.keys())
        wrong = names ^ tensors.keys()
        for name in names & tensors.keys():
            saved, wanted = stored.get_tensor(name), tensors[name].detach()
            if saved.shape != wanted.shape or saved.dtype != wanted.dtype or not torch.equal(saved, wanted):
                wrong.add(name)
    return sorted(wrong)


def sha256(path: Path) -> str:
    """Of what the file holds, read in pieces."""
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
