"""The Triton kernels in Triton's interpreter, against the formula in float64: odd shapes, ranks 1 to 70, all dtypes,
both forms, all block layouts."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
# Relative distance from float64: inputs are the same numbers there, so this is rounding in between and of the result.
# The interpreter cuts bfloat16 off where GPUs round to the nearest.
BOUND = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1.5e-2}
LAYOUTS = [(1, 1), (1, 2), (1, 3), (1, 4), (4, 1)]
RANKS = [1, 3, 16, 33, 64, 70]
SHAPES = [(19, 37, 41), (48, 64, 33), (33, 40, 7), (64, 32, 64), (1, 1, 1)]  # w_in, w_out, M


def projection(layout, form, rank, shape, dtype, dropout, shared=False, strided=False) -> dict[str, Any]:
    width_in, width_out, rows = shape
    return {
        "what": "projection",
        "inputs": layout[0],
        "outputs": layout[1],
        "form": form,
        "rank": rank,
        "width_in": width_in,
        "width_out": width_out,
        "rows": rows,
        "dtype": dtype,
        "dropout": dropout,
        "shared": shared,
        "strided": strided,
    }


def drawn(count: int) -> list[dict[str, Any]]:
    """`count` cases of the whole grid, the same in every run, each value of each axis among the first of them."""
    grid = list(itertools.product(LAYOUTS, ["tucker", "cp"], RANKS, SHAPES, BOUND, [0.0, 0.3], [False, True]))
    random.Random(5).shuffle(grid)
    return [projection(*each) for each in grid[:count]]


FEW = [
    *drawn(14),
    projection((1, 3), "tucker", 5, (19, 37, 41), "float32", 0.3, strided=True),
    projection((4, 1), "cp", 5, (19, 37, 41), "bfloat16", 0.0, strided=True),
    projection((1, 3), "tucker", 5, (19, 37, 0), "float32", 0.3),
    projection((1, 2), "cp", 5, (19, 37, 41), "float32", 0.3, shared=True, strided=True),
    projection((4, 1), "tucker", 5, (19, 37, 0), "float32", 0.3, shared=True),
    projection((4, 1), "cp", 5, (19, 37, 0), "float32", 0.0),
    {"what": "normed", "rank": 5, "width": 37, "rows": 41, "dtype": "float32", "strided": True},
    {"what": "normed", "rank": 70, "width": 64, "rows": 33, "dtype": "float16"},
    {"what": "normed", "rank": 1, "width": 64, "rows": 7, "dtype": "bfloat16"},
    {"what": "normed", "rank": 3, "width": 37, "rows": 0, "dtype": "float32"},
    {"what": "reconstruction", "rank": 3, "dtype": "float32"},
    {"what": "reconstruction", "rank": 33, "dtype": "bfloat16"},
    {"what": "merging", "inputs": 1, "rank": 5, "dtype": "float32"},
    {"what": "merging", "inputs": 4, "rank": 64, "dtype": "float16"},
]
ATOMIC = [
    {**projection((1, 3), "tucker", 33, (19, 37, 200), "float32", 0.3), "what": "atomic"},
    {**projection((4, 1), "cp", 5, (19, 37, 141), "float32", 0.0), "what": "atomic"},
]
KEPT = [{"what": "kept", "shared": False}, {"what": "kept", "shared": True}]
# each rank from 1 to 64 once, layouts, forms, dtypes and the rest in turn
EVERY_RANK = [
    projection(
        LAYOUTS[rank % 5],
        ("tucker", "cp")[rank // 2 % 2],
        rank,
        SHAPES[rank % 3],
        list(BOUND)[rank // 3 % 3],
        (0.0, 0.3)[rank % 2],
        rank % 7 < 3,
    )
    for rank in range(1, 65)
]
SINGLE = [
    {"what": "mask", "rows": 37, "rank": 33},
    {"what": "checkpointed"},
    {"what": "compiled", "form": "tucker", "shared": False},
    {"what": "compiled", "form": "cp", "shared": False},
    {"what": "compiled", "form": "cp", "shared": True},
    {"what": "registered"},
    {"what": "adapter", "form": "tucker", "layout": "block", "position": "shared"},
    {"what": "adapter", "form": "cp", "layout": "block", "position": "shared"},
    {"what": "adapter", "form": "tucker", "layout": "interleaved", "position": "shared"},
    {"what": "adapter", "form": "cp", "layout": "block", "position": "released"},
]


def findings(checks: list[dict[str, Any]], timeout: int, interpreter: str = "1") -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(HERE / "kernel_checks.py")],
        input=json.dumps(checks),
        env=os.environ
        | {
            "TRITON_INTERPRET": interpreter,
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def few() -> dict[str, dict[str, Any]]:
    checks = FEW + SINGLE + KEPT + ATOMIC  # the last switch to atomics and back
    return {json.dumps(c): f for c, f in zip(checks, findings(checks, 280), strict=True)}


def name(check: dict[str, Any]) -> str:
    return " ".join(str(value) for value in check.values())


@pytest.mark.parametrize("check", FEW, ids=name)
def test_values_and_gradients_are_within_the_dtypes_bound(check, few):
    found = few[json.dumps(check)]
    assert max(found["distances"]) < BOUND[check["dtype"]], found
    assert found.get("repeats", True)


@pytest.mark.parametrize("check", ATOMIC, ids=name)
def test_sums_by_atomics_are_near_the_ordered_ones(check, few):
    assert max(few[json.dumps(check)]["distances"]) < BOUND["float32"]


@pytest.mark.parametrize("check", KEPT, ids=name)
def test_only_the_low_rank_image_is_kept_besides_the_input(check, few):
    assert few[json.dumps(check)]["shapes"] == [[37, 4 * 5]]


def test_the_kernels_mask_is_the_twins(few):
    found = few[json.dumps(SINGLE[0])]
    assert found["equal"] and 0.55 < found["kept"] < 0.65


def test_recomputing_the_forward_pass_draws_the_same_mask(few):
    assert few[json.dumps(SINGLE[1])]["equal"]


@pytest.mark.parametrize("check", SINGLE[2:5], ids=name)
def test_the_op_is_traced_without_a_break(check, few):
    assert max(few[json.dumps(check)]["distances"]) == 0


def test_the_ops_are_registered_as_torch_asks(few):
    assert few[json.dumps(SINGLE[5])]["passed"]


@pytest.mark.parametrize("check", SINGLE[6:], ids=name)
def test_an_adapter_trains_and_merges_as_on_the_torch_path(check, few):
    """Only CP goes without A, and not with dropout where the published code has it, which needs the slices."""
    found = few[json.dumps(check)]
    assert max(found["distances"]) < 2e-6
    assert found["warmed"] == 3
    assert found["diagonals"] == (check["form"] == "cp" and check["position"] == "shared")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_large_part_of_the_grid():
    checks = drawn(500) + EVERY_RANK
    for check, found in zip(checks, findings(checks, 1700), strict=True):
        assert max(found["distances"]) < BOUND[check["dtype"]] and found["repeats"], (check, found)
