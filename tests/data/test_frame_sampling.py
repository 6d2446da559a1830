"""Which frames each strategy takes."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_ds.config import Sampling
from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.sampling import RANDOM_STRATEGIES, STRATEGIES, choose, frame_at
from aurora_ds.errors import AuroraError


def test_the_configuration_offers_every_strategy() -> None:
    assert get_args(Sampling) == STRATEGIES


def steady(frames: int, fps: float = 25.0) -> tuple[np.ndarray, float]:
    """(times, seconds) of a clip of constant rate."""
    return np.arange(frames) / fps, frames / fps


def pick(frames: int, count: int, how: str, seed: int = 0, **more: object) -> list[int]:
    return choose(*steady(frames), count, how, np.random.default_rng(seed), **more).tolist()


@pytest.mark.parametrize("frames", [8, 9, 100, 325, 1000])
@pytest.mark.parametrize("count", [4, 8, 12])
def test_uniform_is_the_published_arange(frames: int, count: int) -> None:
    published = np.arange(0, frames, frames / count).astype(int)[:count]
    assert pick(frames, count, "uniform") == published.tolist() or frames < count


def test_stride_leaves_the_tail_as_published() -> None:
    assert pick(100, 12, "stride") == [8 * i for i in range(12)]
    assert pick(100, 12, "uniform")[-1] == 91


@given(frames=st.integers(1, 300), count=st.integers(1, 20))
def test_uniform_goes_to_the_end_whether_or_not_the_length_divides(frames: int, count: int) -> None:
    steps = np.diff([*pick(frames, count, "uniform"), frames])  # the last: from the last frame taken to the end
    assert np.ptp(steps) <= 1


def test_stride_leaves_several_steps_at_the_end() -> None:
    assert np.diff([*pick(31, 8, "stride"), 31]).tolist() == [3] * 7 + [10]
    assert np.diff([*pick(31, 8, "uniform"), 31]).tolist() == [3, 4, 4, 4, 4, 4, 4, 4]


def test_centre_takes_the_middle_of_equal_stretches() -> None:
    assert pick(80, 8, "centre") == [5, 15, 25, 35, 45, 55, 65, 75]
    assert pick(3, 3, "centre") == [0, 1, 2]


def test_centre_goes_by_time_where_the_rate_varies() -> None:
    # Ten frames in the first second, then one a second for nine seconds.
    times = np.concatenate([np.arange(10) / 10, np.arange(1, 10)])
    chosen = choose(times, 10.0, 5, "centre")
    assert chosen.tolist() == [10, 12, 14, 16, 18]
    assert choose(times, 10.0, 5, "uniform").tolist() == [0, 3, 7, 11, 15]


@pytest.mark.parametrize("seed", range(20))
def test_segment_takes_one_frame_of_each_stretch(seed: int) -> None:
    chosen = pick(80, 8, "segment", seed)
    assert [number // 10 for number in chosen] == list(range(8))


def test_random_takes_different_frames_and_reaches_all() -> None:
    seen = [pick(12, 8, "random", seed) for seed in range(50)]
    assert all(sorted(set(chosen)) == chosen for chosen in seen)
    assert set(sum(seen, [])) == set(range(12))


def test_head_tail_takes_half_of_each_half() -> None:
    for seed in range(20):
        chosen = pick(31, 8, "head_tail", seed)
        assert chosen == sorted(chosen) and sum(number < 15 for number in chosen) == 4
    assert max(pick(31, 8, "head_tail", seed)[-1] for seed in range(50)) == 30


def test_clip_is_an_even_walk_over_a_stretch_of_fixed_length() -> None:
    starts, ends = set(), set()
    for seed in range(200):
        chosen = pick(200, 8, "clip", seed, clip_seconds=2.0)
        assert 48 <= chosen[-1] - chosen[0] <= 51
        assert np.ptp(np.diff(chosen)) <= 1
        starts.add(chosen[0])
        ends.add(chosen[-1])
    assert min(starts) <= 3 and max(ends) >= 197


def test_clip_longer_than_the_video_takes_it_all() -> None:
    assert pick(50, 8, "clip", clip_seconds=8 / 3) == [0, 7, 14, 21, 28, 35, 42, 49]


@pytest.mark.parametrize("how", STRATEGIES)
@given(frames=st.integers(1, 300), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_every_strategy_gives_count_frames_of_the_clip_in_order(
    how: str, frames: int, count: int, seed: int
) -> None:
    chosen = np.array(pick(frames, count, how, seed))
    assert chosen.shape == (count,)
    assert (np.diff(chosen) >= 0).all() and 0 <= chosen[0] and chosen[-1] < frames
    if frames == 1:
        assert not chosen.any()


@pytest.mark.parametrize("how", ["uniform", "stride", "random", "head_tail", "centre"])
def test_fewer_frames_than_asked_are_repeated_evenly(how: str) -> None:
    assert np.bincount(pick(3, 8, how)).tolist() in ([3, 3, 2], [3, 2, 3])
    assert pick(8, 8, how) == list(range(8))


@pytest.mark.parametrize("how", STRATEGIES)
def test_fewer_frames_than_asked_can_be_refused(how: str) -> None:
    assert len(pick(8, 8, how, short_clips="error")) == 8
    with pytest.raises(
        BadSample, match="8 frames are asked of a clip, which has 7.*short_clips=repeat"
    ) as found:
        pick(7, 8, how, short_clips="error")
    assert found.value.reason == "too_short"
    with pytest.raises(BadSample, match="which has 3 in the window"):
        pick(250, 8, how, window=(1.0, 1.12), short_clips="error")


@pytest.mark.parametrize("how", STRATEGIES)
def test_a_window_limits_every_strategy(how: str) -> None:
    for seed in range(20):
        chosen = pick(250, 8, how, seed, window=(2.0, 5.0), clip_seconds=1.0)
        assert 50 <= chosen[0] and chosen[-1] <= 125
    if how not in ("clip", "stride"):
        assert max(pick(250, 8, how, seed, window=(2.0, None))[-1] for seed in range(50)) > 210


def test_a_window_within_one_frame_takes_that_frame() -> None:
    assert pick(250, 4, "uniform", window=(1.01, 1.02)) == [25] * 4
    assert pick(250, 4, "centre", window=(1.01, 1.02)) == [25] * 4


@pytest.mark.parametrize("window", [(-1.0, 2.0), (3.0, 3.0), (10.0, None), (4.0, 2.0)])
def test_a_window_outside_the_clip_is_refused(window: tuple[float, float | None]) -> None:
    with pytest.raises(AuroraError, match="is not in a clip of 10.000 s"):
        pick(250, 8, "uniform", window=window)


@pytest.mark.parametrize("how", RANDOM_STRATEGIES)
def test_random_strategies_depend_on_their_generator_only(how: str) -> None:
    assert pick(250, 8, how, 3) == pick(250, 8, how, 3)
    assert len({tuple(pick(250, 8, how, seed)) for seed in range(8)}) > 1
    with pytest.raises(AuroraError, match="needs a generator"):
        choose(*steady(250), 8, how)


def test_wrong_requests_are_told() -> None:
    with pytest.raises(AuroraError, match="uniform, stride, centre"):
        pick(250, 8, "unifrom")
    with pytest.raises(AuroraError, match="one or more"):
        pick(250, 0, "uniform")


def test_a_frame_stays_on_screen_until_the_next() -> None:
    times = np.array([0.0, 1.0, 1.5])
    assert frame_at(times, np.array([0.0, 0.99, 1.0, 1.49, 1.5, 99.0])).tolist() == [0, 0, 1, 1, 2, 2]
