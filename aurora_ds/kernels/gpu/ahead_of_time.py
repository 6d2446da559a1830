"""Compile recorded launches for GPUs that are not here, and read what the compiled kernels need.

Triton carries the assemblers of both vendors, so this runs on any machine.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from aurora_ds.kernels import choice
from aurora_ds.kernels.gpu import merging, norming, products, projection, reconstruction
from aurora_ds.kernels.gpu.launch import Launch, recording
from aurora_ds.kernels.reconstruct import Plan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes that one program may have: CUDA's programming guide (compute capabilities 8.0, 9.0, 10.0); CDNA3's whitepaper.
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
_MATRIX_INSTRUCTIONS = ("HGMMA", "UTCHMMA", "HMMA", "v_mfma")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs: registers per thread, bytes spilled per thread, bytes of shared memory."""

    kernel: str
    target: str
    registers: int
    spilled: int
    shared: int
    matrix_instructions: dict[str, int]


def _source(launch: Launch) -> tuple[ASTSource, dict]:
    """What Triton's launcher would compile: pointers and integers that are multiples of 16 are known to be."""
    kernel, signature, constants, facts = launch.kernel, {}, {}, {}
    given = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | launch.settings
    for place, parameter in enumerate(kernel.params):
        value, name = given.pop(parameter.name), parameter.name
        by_value = isinstance(value, int) and not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[name], facts[(place,)] = _POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (by_value and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = parameter.annotation_type or "i32"
            if by_value and value % 16 == 0:
                facts[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, facts), given


def distinct(launches: dict[str, Launch]) -> dict[str, Launch]:
    """Without those that are the same compiled kernel as one before."""
    found = {}
    for name, launch in launches.items():
        source, options = _source(launch)
        key = (
            launch.kernel.fn.__name__,
            str(source.signature),
            str(source.constants),
            str(source.attrs),
            str(options),
        )
        found.setdefault(key, (name, launch))
    return dict(found.values())


def compile_for(launch: Launch, target: str) -> Resources:
    """Compile and measure. Raises what Triton raises when the target cannot run the kernel."""
    source, options = _source(launch)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    read = _from_amdgcn if target.startswith("gfx") else _from_cubin
    registers, spilled, text = read(compiled.asm)
    found = {name: len(re.findall(rf"\b{name}", text)) for name in _MATRIX_INSTRUCTIONS}
    return Resources(
        launch.kernel.fn.__name__,
        target,
        registers,
        spilled,
        compiled.metadata.shared,
        {name: count for name, count in found.items() if count},
    )


def _from_cubin(assembly: dict) -> tuple[int, int, str]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(assembly["cubin"])
        file.flush()

        def output(*command: str) -> str:
            return subprocess.run(
                [str(tools / command[0]), *command[1:], file.name], capture_output=True, text=True, check=True
            ).stdout

        usage, text = output("cuobjdump", "-res-usage"), output("nvdisasm")
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    return int(registers), int(stack) + int(local), text


def _from_amdgcn(assembly: dict) -> tuple[int, int, str]:
    text = assembly["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

    # scalar registers are spilled into lanes of vector registers; what reaches memory is the private segment
    spilled = max(4 * number("vgpr_spill_count"), number("private_segment_fixed_size"))
    return number("vgpr_count"), spilled, text


@dataclass(frozen=True)
class SiteShape:
    """One adapted linear, as far as its kernels depend on it."""

    d_out: int
    d_in: int
    outputs: int
    inputs: int
    rank: int
    form: str  # tucker or cp
    dtype: torch.dtype = torch.bfloat16


def launches_of_projection(site: SiteShape, target: str, rows: int = 32 * 577) -> dict[str, Launch]:
    """What one forward and backward pass of a site starts, by what it makes, with dropout."""
    rank, inputs = site.rank, site.inputs

    def empty(*shape: int, dtype: torch.dtype = site.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    diagonal, mix = None, empty(site.d_out, inputs * rank)
    if site.form == "cp":
        diagonal = empty(max(site.outputs, inputs), rank, dtype=torch.float32)
        mix = empty(site.d_out // site.outputs, rank)
    x, weight, down = empty(rows, site.d_in), empty(site.d_out, site.d_in), empty(rank, site.d_in // inputs)
    seed = torch.tensor(1 << 40)
    with recording(target) as launches:
        y, z = projection.forward(x, weight, empty(site.d_out), down, mix, diagonal, inputs, 1.0, 0.1, seed)
        projection.backward(y, x, z, weight, down, mix, diagonal, 1.0, 0.1, seed, (True, True, True))
        products.masked(z, inputs, 0.1, seed)
    names = ("z", "y", "dA parts", "dA", "dz", "dU parts", "dU", "dx", "mask of a shared z")
    return dict(zip(names, launches, strict=True))


def launches_of_norm(
    width: int, rank: int, dtype: torch.dtype, target: str, rows: int = 32 * 577
) -> dict[str, Launch]:
    """What a LayerNorm of `width` numbers that makes x Uᵀ starts, forward and backward; and the parts of dU, as they
    are added up by atomics."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight, down = empty(rows, width), empty(width), empty(rank, width)
    before = choice.sums()
    choice.use_sums("atomic")
    try:
        with recording(target) as launches:
            h, z, mean, deviation = norming.forward(x, weight, weight, down, 1e-6)
            norming.backward(h, z, x, h, mean, deviation, weight, down, (True, True))
    finally:
        choice.use_sums(before)
    return dict(zip(("h and z", "dx through a norm", "dU by atomics", "dU of them"), launches, strict=True))


def launches_of_bank(plan: Plan, target: str, dtype: torch.dtype) -> dict[str, Launch]:
    """What the reconstruction of a model's sites starts, forward and backward, and merging the first of them."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rank, width = plan.rank, plan.widths[0]
    up, slices = empty(sum(plan.distinct), rank), empty(sum(plan.columns), rank, rank)
    with recording(target) as launches:
        flat = reconstruction.forward(up, slices, plan, dtype)
        reconstruction.backward(flat, up, slices, plan)
        down, mix = empty(rank, width, dtype=dtype), empty(width, rank, dtype=dtype)
        merging.merge(empty(width, width, dtype=dtype), down, mix, 1, 1.0)
    return dict(zip(("A", "dG", "dV", "merge"), launches, strict=True))
