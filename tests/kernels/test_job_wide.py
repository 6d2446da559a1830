"""What all ranks of a job have in common: one table of choices, kernels compiled once a machine, one log line."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from tiny_retrieval import tiny_task

from aurora_ds.kernels import choice
from aurora_ds.report import attach_report
from aurora_ds.runtime import process_group


@pytest.mark.parametrize(
    ("other", "agreed"),
    [(("sm_90", True), "sm_90"), (("sm_80", True), "mixed"), (("sm_90", False), "mixed")],
)
def test_unlike_ranks_take_no_measurements_at_all(monkeypatch, other, agreed):
    """Another family, or no Triton on one of the ranks: then the torch path runs everywhere."""

    def gather(every, own):
        every[:] = [own, other]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(choice, "family", lambda: "sm_90")
    monkeypatch.setattr(choice, "_triton_present", lambda: True)
    monkeypatch.setattr(choice, "_family", None)
    choice.agree()
    assert choice._family == agreed


@pytest.mark.parametrize(("local", "order"), [(0, ["work", "barrier"]), (1, ["barrier", "work"])])
def test_the_first_rank_of_a_machine_compiles_before_the_others(monkeypatch, local, order):
    seen = []
    monkeypatch.setattr(process_group, "local_rank", lambda: local)
    monkeypatch.setattr(process_group, "barrier", lambda: seen.append("barrier"))
    assert process_group.first_on_node(lambda value: seen.append("work") or value, 7) == 7
    assert seen == order


def test_one_line_of_the_attach_report_says_which_path_runs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(process_group, "device", lambda: torch.device("cpu"))
    lines = [line for line in attach_report(tiny_task(), 3).splitlines() if line.startswith("kernels")]
    assert len(lines) == 1 and "torch, because" in lines[0]
