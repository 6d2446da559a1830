"""Kernels compiled for GPUs that are not here: nothing is spilled, shared memory suffices, tensor cores are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
PROGRAM = """
import json, sys
import torch
from aurora_ds.kernels import Plan
from aurora_ds.kernels.gpu.ahead_of_time import SHARED_LIMIT, SiteShape, compile_for, distinct
from aurora_ds.kernels.gpu.ahead_of_time import launches_of_bank, launches_of_norm, launches_of_projection

target, sites, dtype, bank, parts = json.load(sys.stdin)
dtype, found = getattr(torch, dtype), {}
launches = {}
for site in sites:
    made = launches_of_projection(SiteShape(*site, dtype), target)
    launches |= {f"{site} {part}": launch for part, launch in made.items() if not parts or part in parts}
if bank:
    for width in (768, 1024):
        for rank in (32, 64):
            made = launches_of_norm(width, rank, dtype, target)
            launches |= {f"norm {width} {rank} {part}": launch for part, launch in made.items()}
    launches |= launches_of_bank(Plan((768, 1024, 768), (3, 1, 1), (1, 4, 1), 64), target, dtype)
for name, launch in distinct(launches).items():
    need = compile_for(launch, target)
    found[name] = [need.registers, need.spilled, need.shared / SHARED_LIMIT[target], need.matrix_instructions]
print(json.dumps(found))
"""


def compiled(target, sites, dtype="bfloat16", bank=False, parts=(), timeout=250) -> dict[str, list]:
    """In a process of its own: others here may have imported Triton for its interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([target, sites, dtype, bank, parts]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def faults(found: dict[str, list]) -> list[str]:
    return [
        f"{name}: {registers} registers, {spilled} bytes spilled, {share:.0%} of shared memory"
        for name, (registers, spilled, share, _) in found.items()
        if spilled or share > 1
    ]


def test_the_projection_compiles_for_hopper():
    found = compiled("sm_90", [[2304, 768, 3, 1, 64, "tucker"]], parts=("z", "y", "dA parts"))
    assert not faults(found)
    assert all("HGMMA" in matrix for *_, matrix in found.values()), found


BASE_AND_LARGE = [
    [outputs * out, inputs * width, outputs, inputs, rank, form]
    for form in ("tucker", "cp")
    for rank in (32, 64)
    for width, out, outputs, inputs in [
        (768, 768, 3, 1),
        (768, 768, 1, 4),
        (1024, 768, 2, 1),
        (1024, 1024, 4, 1),
        (1024, 1024, 1, 4),
    ]
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", MATRIX)
def test_everything_compiles_without_spilling(target, dtype):
    sites = BASE_AND_LARGE if dtype == "bfloat16" else BASE_AND_LARGE[-5:] + BASE_AND_LARGE[5:7]
    found = compiled(target, sites, dtype, bank=True, timeout=3500)
    assert not faults(found)
    if dtype == "bfloat16":
        assert all(MATRIX[target] in found[name][3] for name in found if name.endswith("y")), found
