"""Files of tensors: the library's bytes without its copies, and what is in them that should not be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from aurora_ds.runtime import tensor_file

TENSORS = {
    "weights": torch.randn(3, 5),
    "a": torch.randn(7).to(torch.bfloat16),
    "step": torch.tensor(4),
    "scale": torch.tensor(2.0, dtype=torch.float64),
    "größe": torch.randn(4, 6).t(),
    "nothing": torch.zeros(0, 3),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.randn(3).half(),
    "count": torch.arange(3, dtype=torch.int32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(b"".join(tensor_file.pieces(TENSORS)))
    return path


def test_the_bytes_are_the_librarys(path: Path) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert path.read_bytes() == save(contiguous)
    assert tensor_file.sha256(path) == hashlib.sha256(save(contiguous)).hexdigest()


def test_tensors_that_share_memory_are_each_written_whole(tmp_path: Path) -> None:
    whole, path = torch.arange(6.0), tmp_path / "shared.safetensors"
    shared = {"whole": whole, "front": whole[:3]}
    path.write_bytes(b"".join(tensor_file.pieces(shared)))
    assert tensor_file.differences(path, shared) == []


@pytest.mark.parametrize(
    "change",
    [
        {"weights": TENSORS["weights"] + 1e-6},
        {"weights": TENSORS["weights"].reshape(5, 3)},
        {"weights": TENSORS["weights"].double()},
        {"other": torch.zeros(2)},
    ],
    ids=["value", "shape", "dtype", "name"],
)
def test_what_differs_is_named(path: Path, change: dict[str, torch.Tensor]) -> None:
    assert tensor_file.differences(path, TENSORS) == []
    assert tensor_file.differences(path, TENSORS | change) == list(change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, value: float) -> None:
    good = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    bad = good.clone()
    bad[617] = value
    assert tensor_file.not_finite({"good": good, "bad": bad, "none": good[:0], "step": torch.tensor(3)}) == [
        "bad"
    ]
