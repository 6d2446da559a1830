"""What the kernels' benchmarks make of their measurements, and what their cost model says of sharing."""

from __future__ import annotations

import json

import kernel_choices
import kernel_costs
import kernel_starts
import pytest

from aurora_ds.kernels import choice

KV, QKV, FC1 = "bfloat16 1536x768 r64 i1", "bfloat16 2304x768 r64 i1", "bfloat16 3072x768 r64 i1"
START = "bfloat16 64x768 r64 i1"


def row(case: str, d_out: int, first: float, by_torch: float, by_triton: float) -> dict:
    names = kernel_starts.SHARED if case == "shared" else kernel_starts.NORMED
    micro = dict(zip(names, (first, by_torch, by_triton), strict=True))
    return {"shape": case, "sizes": [d_out, 768], "rank": 64, "case": case, "microseconds": micro}


def test_the_faster_path_is_chosen_and_the_epilogue_only_where_it_pays_for_every_site():
    both = [row("shared", 1536, 9, 8, 7), row("norm", 2304, 9, 6, 5), row("norm", 3072, 9, 8, 9)]
    found = kernel_starts.chosen(both)
    assert found[f"{KV} from z"] == found[f"{START} z"] == found[f"{QKV} from z"] == "triton"
    assert found[f"{FC1} from z"] == "torch"
    assert found[f"{START} norm"] == "triton"
    assert kernel_starts.chosen([*both, row("norm", 768, 4, 5, 5)])[f"{START} norm"] == "torch"


def test_rows_of_other_benchmarks_stay(tmp_path, monkeypatch):
    table = tmp_path / "choices.json"
    table.write_text(
        json.dumps({"families": {"cpu": {"a": "torch", "b": "torch"}, "sm_80": {"a": "triton"}}})
    )
    monkeypatch.setattr(choice, "TABLE", table)
    monkeypatch.setattr(choice, "family", lambda: "cpu")
    monkeypatch.setattr(kernel_choices, "REPOSITORY", tmp_path)
    kernel_choices.write({"b": "triton", "c": "torch"})
    families = json.loads(table.read_text())["families"]
    assert families == {"cpu": {"a": "torch", "b": "triton", "c": "torch"}, "sm_80": {"a": "triton"}}


@pytest.mark.parametrize(
    "shape", [s for each in kernel_costs.SHAPES.values() for s in each if s.outputs == 2]
)
def test_one_site_alone_shares_nothing_and_many_pay_for_u_once(shape):
    rows, rank = 577, 64
    own = kernel_costs.prompted(shape, rank, rows, 2).operations
    assert kernel_costs.shared(shape, rank, rows, 2, 1).operations == own
    saved = 12 * (own - kernel_costs.shared(shape, rank, rows, 2, 12).operations)
    assert saved == pytest.approx(11 * 6 * rows * rank * shape.d_in)
