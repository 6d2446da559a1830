"""The model of training on many GPUs: what it must give where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import scaling
import scaling_model
import scaling_report

MEASURED = scaling_model.Measured(
    operations_per_pair=1e12,
    gradient_bytes=2e9,
    exchanged_bytes=1.8e6,
    gathered_bytes=4096.0,
    memory_bytes={},
    plan_seconds={str(gpus): 0.0 for gpus in scaling_model.GPUS},
    checkpoint_seconds=0.0,
    image_core_seconds=0.004,
)
ASSUMED = scaling_model.Assumed()


def test_one_gpu_computes_and_talks_to_nobody() -> None:
    step = scaling_model.predict(1, MEASURED, ASSUMED)
    assert step.compute == pytest.approx(32 * 1e12 / (312e12 * 0.4))
    assert step.gradients == step.features == step.negatives == step.agreements == step.straggler == 0.0


def test_large_gradients_travel_around_the_ring_and_small_ones_up_a_tree() -> None:
    settings = replace(ASSUMED, inter_gigabytes=10.0, inter_microseconds=10.0)
    large = scaling_model.predict(16, MEASURED, settings).gradients
    assert large == pytest.approx(2 * 15 / 16 * 2e9 / 10e9 + 2 * 15 * 10e-6)
    small = scaling_model.predict(1024, replace(MEASURED, gradient_bytes=4.0), settings).gradients
    assert small == pytest.approx(2 * 10 * 10e-6, rel=1e-3)


def test_more_gpus_are_never_more_efficient_and_a_perfect_cluster_loses_nothing() -> None:
    totals = [scaling_model.predict(gpus, MEASURED, ASSUMED).total for gpus in scaling_model.GPUS]
    assert totals == sorted(totals)
    nothing = dict.fromkeys(
        ("intra_microseconds", "inter_microseconds", "peer_microseconds", "sync_microseconds", "deviation"),
        0.0,
    )
    perfect = replace(ASSUMED, **nothing, intra_gigabytes=1e12, inter_gigabytes=1e12, evaluation_share=0.0)
    one, most = (scaling_model.predict(gpus, MEASURED, perfect).total for gpus in (1, 1024))
    assert most == pytest.approx(one)


def test_a_loader_that_is_too_slow_sets_the_step() -> None:
    slow = replace(ASSUMED, cores_per_gpu=0.1, evaluation_share=0.0)
    assert scaling_model.predict(8, MEASURED, slow).total == pytest.approx(
        32 * 0.004 * slow.image_scale / 0.1
    )


def test_assumptions_are_changed_by_name() -> None:
    assert scaling.changed(ASSUMED, ["batch=16", "inter_gigabytes=12.5"]) == replace(
        ASSUMED, batch=16, inter_gigabytes=12.5
    )
    with pytest.raises(SystemExit, match="inter_gigabytes"):
        scaling.changed(ASSUMED, ["bandwidth=3"])


def test_the_planners_bytes_come_apart_into_what_goes_to_all_and_what_goes_to_some() -> None:
    ranks = {gpus: {"task": (gpus - 1) * 100.0 + (gpus - 1) / gpus * 5000.0} for gpus in (2, 8, 1024)}
    planned = {"gpus": {"1": {"task": 0.0}} | {str(gpus): each for gpus, each in ranks.items()}}
    assert scaling.shares(planned) == pytest.approx((100.0, 5000.0))
    planned["gpus"]["8"]["task"] *= 1.5
    with pytest.raises(SystemExit, match="do not grow"):
        scaling.shares(planned)


def test_the_document_has_the_tables_of_the_newest_result(repository: Path) -> None:
    text = (repository / "docs" / "scaling.md").read_text(encoding="utf-8")
    record = scaling.read("scaling")
    assert scaling_report.document(text, record) == text, "run scripts/bench/scaling.py"
    record["measured"]["checkpoint_seconds"] *= 2
    assert scaling_report.document(text, record) != text


def test_the_documents_sentences_are_of_the_newest_result(repository: Path) -> None:
    text = " ".join((repository / "docs" / "scaling.md").read_text(encoding="utf-8").split())
    record = scaling.read("scaling")
    facts, assumed = scaling_model.Measured(**record["measured"]), scaling_model.Assumed(**record["assumed"])
    most = scaling_model.GPUS[-1]
    slow = replace(assumed, inter_gigabytes=assumed.inter_gigabytes / 2)
    few = replace(assumed, batch=4096 // most)
    wide = replace(assumed, batch=4096 // 16)
    shrunk = (
        scaling_model.predict(16, facts, wide).total
        / scaling_model.predict(most, facts, few).total
        * 16
        / most
    )
    one, last = (scaling_model.predict(gpus, facts, assumed) for gpus in (1, most))
    gathered = facts.gathered_bytes * assumed.batch * most
    cores = assumed.batch * facts.image_core_seconds * assumed.image_scale / one.total
    for sentence in (
        f"({gathered / 1e6:.0f} MB at 1,024 GPUs)",
        f"1,024 GPUs fall to {scaling_model.efficiency(most, facts, slow):.2f}",
        f"at 4 pairs per GPU the efficiency is {shrunk:.2f}",
        f"three flags in one call, is {1e3 * last.agreements:.1f} ms",
        f"the slowest of 1,024 costs {100 * last.straggler / last.compute:.0f} %",
        f"need {cores:.1f} cores per GPU",
        f"{facts.gradient_bytes / 1e6:.0f} MB of gradients cost half a millisecond",
    ):
        assert sentence in text, sentence
    assert last.gradients == pytest.approx(0.5e-3, rel=0.2)
    assert facts.plan_seconds[str(most)] < 1e-3, "less than a millisecond, as it says"
