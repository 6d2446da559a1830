"""The model of training on many GPUs: what it must give where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scaling

MEASURED = scaling.Measured(
    operations_per_pair=1e12,
    gradient_bytes=2e9,
    token_bytes=1e6,
    feature_bytes=4096.0,
    plan_seconds={str(gpus): 0.0 for gpus in scaling.GPUS},
    checkpoint_seconds=0.0,
    image_core_seconds=0.004,
)
ASSUMED = scaling.Assumed()


def test_one_gpu_computes_and_talks_to_nobody() -> None:
    step = scaling.predict(1, MEASURED, ASSUMED)
    assert step.compute == pytest.approx(32 * 1e12 / (312e12 * 0.4))
    assert step.gradients == step.features == step.negatives == step.agreements == step.straggler == 0.0


def test_large_gradients_travel_around_the_ring_and_small_ones_up_a_tree() -> None:
    settings = replace(ASSUMED, inter_gigabytes=10.0, inter_microseconds=10.0)
    large = scaling.predict(16, MEASURED, settings).gradients
    assert large == pytest.approx(2 * 15 / 16 * 2e9 / 10e9 + 2 * 15 * 10e-6)
    small = scaling.predict(1024, replace(MEASURED, gradient_bytes=4.0), settings).gradients
    assert small == pytest.approx(2 * 10 * 10e-6, rel=1e-3)


def test_more_gpus_are_never_more_efficient_and_a_perfect_cluster_loses_nothing() -> None:
    totals = [scaling.predict(gpus, MEASURED, ASSUMED).total for gpus in scaling.GPUS]
    assert totals == sorted(totals)
    nothing = dict.fromkeys(
        ("intra_microseconds", "inter_microseconds", "peer_microseconds", "sync_microseconds", "deviation"),
        0.0,
    )
    perfect = replace(ASSUMED, **nothing, intra_gigabytes=1e12, inter_gigabytes=1e12, evaluation_share=0.0)
    one, most = (scaling.predict(gpus, MEASURED, perfect).total for gpus in (1, 1024))
    assert most == pytest.approx(one)


def test_a_loader_that_is_too_slow_sets_the_step() -> None:
    slow = replace(ASSUMED, cores_per_gpu=0.1, evaluation_share=0.0)
    assert scaling.predict(8, MEASURED, slow).total == pytest.approx(32 * 0.004 * slow.image_scale / 0.1)


def test_assumptions_are_changed_by_name() -> None:
    assert scaling.changed(ASSUMED, ["batch=16", "inter_gigabytes=12.5"]) == replace(
        ASSUMED, batch=16, inter_gigabytes=12.5
    )
    with pytest.raises(SystemExit, match="inter_gigabytes"):
        scaling.changed(ASSUMED, ["bandwidth=3"])
