"""Which path an op takes: Triton kernels, or PyTorch with the vendor's library.

`auto` reads choices.json, which scripts/bench/prompted_linear.py --write-choices makes from measurements on a device
family. A shape or family that was not measured takes the torch path: nothing is ever timed during training, and the
number of rows is no part of the key, so that all ranks choose alike.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Setting = Literal["auto", "triton", "torch"]
Sums = Literal["ordered", "atomic"]
TABLE = Path(__file__).with_name("choices.json")
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_setting: Setting = "auto"
_sums: Sums = "ordered"
_family: str | None = None  # set by agree()


def use(setting: Setting) -> None:
    """Choose for this process, from here on. Triton where it cannot run is refused by `obstacle`, not here."""
    global _setting
    if setting not in ("auto", "triton", "torch"):
        raise ValueError(f"kernels must be auto, triton or torch, not {setting!r}")
    _setting = setting


def setting() -> Setting:
    """What `use` was told last; `auto` before."""
    return _setting


def use_sums(order: Sums) -> None:
    """How the Triton kernels add up the parts of a gradient of U or A, from here on in this process: `ordered` repeats
    bit for bit; `atomic` adds in the order in which parts finish, keeps one sum in place of all parts, and does not."""
    global _sums
    if order not in ("ordered", "atomic"):
        raise ValueError(f"sums must be ordered or atomic, not {order!r}")
    _sums = order


def sums() -> Sums:
    """What `use_sums` was told last; `ordered` before."""
    return _sums


@functools.cache
def _triton_present() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def triton_runs_on(device_type: str) -> bool:
    return (device_type == "cuda" or interpreted()) and _triton_present()


def obstacle() -> str | None:
    """Why the Triton path cannot run in this process; None when it can."""
    if not _triton_present():
        return "Triton is not installed"
    if not torch.cuda.is_available() and not interpreted():
        return "there is no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests, very slowly)"
    return None


def family() -> str:
    """The family of this process's device, for which measurements hold: `sm_90`, `gfx942`; `cpu` without a GPU."""
    return _family_of(torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"


@functools.cache
def _family_of(index: int) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def key(dtype: torch.dtype, d_out: int, d_in: int, rank: int, inputs: int) -> str:
    """A row of the table: `bfloat16 2304x768 r64 i1`."""
    return f"{str(dtype).removeprefix('torch.')} {d_out}x{d_in} r{rank} i{inputs}"


@functools.cache
def _measured(family_name: str) -> dict[str, Literal["triton", "torch"]]:
    """The rows of a device family."""
    return json.loads(TABLE.read_text(encoding="utf-8"))["families"].get(family_name, {})


def agree() -> None:
    """Fix the table for this run: that of the family all ranks have. Ranks on unlike devices share `mixed`, for which
    nothing is measured. Every rank calls this, once the process group is up."""
    global _family
    _family = family()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, (_family, _triton_present()))
        _family = _family if len(set(every)) == 1 else "mixed"


def _path(device_type: str, dtype: torch.dtype, shape: str) -> Literal["triton", "torch"]:
    if _setting == "torch" or dtype not in _TRITON_DTYPES or not triton_runs_on(device_type):
        return "torch"
    if _setting == "triton":
        return "triton"
    return _measured(_family or family()).get(shape, "torch")


# Constant while a graph is traced: torch.compile must not look into files and environment variables. This is what
# torch.compiler.assume_constant_result does, which imports the whole compiler (and Triton) first.
_path._dynamo_marked_constant = True


def path_of_projection(
    device: torch.device,
    dtype: torch.dtype,
    d_out: int,
    d_in: int,
    rank: int,
    inputs: int,
    from_z: bool = False,
) -> Literal["triton", "torch"]:
    """The path of one projection: by setting, device, dtype and shape; never by the number of rows. `from_z`: one that
    goes on from a shared x Uᵀ."""
    return _path(device.type, dtype, key(dtype, d_out, d_in, rank, inputs) + (" from z" if from_z else ""))


def path_of_start(
    device: torch.device, dtype: torch.dtype, d_in: int, rank: int, inputs: int, norm: bool = False
) -> Literal["triton", "torch"]:
    """The path of x Uᵀ made by itself, or, with `norm`, of a LayerNorm that makes it in one kernel (`torch`: the site
    makes its own)."""
    return _path(device.type, dtype, key(dtype, rank, d_in, rank, inputs) + (" norm" if norm else " z"))


def path_for(x: Tensor, weight: Tensor, down: Tensor, inputs: int) -> Literal["triton", "torch"]:
    """`path_of_projection` for the tensors of a call; mixed dtypes (autocast) take the torch path."""
    if not x.dtype == weight.dtype == down.dtype:
        return "torch"
    return path_of_projection(x.device, x.dtype, *weight.shape, down.shape[0], inputs)


def path_of_reconstruction(slices: Tensor) -> Literal["triton", "torch"]:
    """The path of `reconstruct`, from the core slices (columns, R, R)."""
    return _path(slices.device.type, slices.dtype, f"reconstruct r{slices.shape[-1]}")


def describe(device_type: str) -> str:
    """For the log: which path runs on the device, and why."""
    if _setting == "torch":
        return "torch, as set"
    if not triton_runs_on(device_type):
        return f"torch, because {obstacle() or 'the device is no GPU'}"
    if _setting == "triton":
        return "triton, as set" + (", in its interpreter" if interpreted() else "") + _unordered()
    rows = _measured(_family or family())
    if not rows:
        return (
            f"torch, because nothing was measured on {_family or family()} yet (kernels=triton takes Triton)"
        )
    fused = sum(path == "triton" for path in rows.values())
    return (
        f"measured on {_family or family()}: triton for {fused} of {len(rows)} shapes, torch for all others"
        + _unordered()
    )


def _unordered() -> str:
    return "; gradients of factors added up by atomics, whose bits do not repeat" if _sums == "atomic" else ""
