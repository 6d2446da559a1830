"""Which frames of a clip are taken: pure functions of the frames' times, their number and a random generator.

A clip is `times`, the seconds at which its frames appear, counted from its first frame, and `seconds`, when its last
frame ends. The frame at second t is the last one that appeared by then, so frames of unequal length are counted by the
time they are seen, never as t * fps. All strategies give `count` frame numbers in order; a clip with fewer frames
repeats some, evenly.

| strategy | frames | where it comes from |
|---|---|---|
| uniform | number floor(i * frames / count) | arange(0, n, n / count): BLIP (arXiv 2201.12086), zero-shot video |
| stride | number i * floor(frames / count), the clip's tail unseen | mPLUG (arXiv 2205.12005) |
| centre | at the centre of each of `count` equal stretches of time | |
| segment | at a random second of each of `count` equal stretches | TSN (arXiv 1608.00859) |
| random | `count` different frames, sorted | Aurora (arXiv 2305.08381), MSR-VTT, training and test |
| head_tail | half of them random in the first half, half in the second | ALPRO (arXiv 2112.09583) |
| clip | evenly over a random stretch of `clip_seconds`, both ends included | Aurora, DiDeMo (8/3 s) |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.errors import AuroraError

Strategy = Literal["uniform", "stride", "centre", "segment", "random", "head_tail", "clip"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
RANDOM_STRATEGIES = ("segment", "random", "head_tail", "clip")
CLIP_SECONDS = 8 / 3
ShortClips = Literal["repeat", "error"]


def choose(
    times: np.ndarray,
    seconds: float,
    count: int,
    how: Strategy,
    generator: np.random.Generator | None = None,
    window: tuple[float, float | None] | None = None,
    clip_seconds: float = CLIP_SECONDS,
    name: str = "a clip",
    short_clips: ShortClips = "repeat",
) -> np.ndarray:
    """int64 (count,): numbers of the frames to take, ascending.

    times: float64 (frames,), ascending from 0, in seconds. `window` (start, end) in seconds limits the choice to the
    frames seen in that stretch; end None: to the clip's end. Random strategies draw from `generator` only. `name` is
    how messages call the clip. `short_clips`: what becomes of fewer frames than `count`. Raises AuroraError for an
    unknown strategy, a missing generator or a count below 1, BadSample for a window outside the clip (window), and for
    too few frames with short_clips=error (too_short).
    """
    if how not in STRATEGIES:
        raise AuroraError(f"Frame sampling {how!r} does not exist. Choose from: {', '.join(STRATEGIES)}.")
    if count < 1:
        raise AuroraError(f"{count} frames of a clip cannot be taken; ask for one or more.")
    if how in RANDOM_STRATEGIES and generator is None:
        raise AuroraError(f"Frame sampling {how!r} is random and needs a generator. Hand one in.")
    first, end, start_second, end_second = _window(times, seconds, window, name)
    if short_clips == "error" and end - first < count:
        raise BadSample(
            f"{count} frames are asked of {name}, which has {end - first}{'' if window is None else ' in the window'}. "
            "Ask for fewer (data.video.frames), or set data.video.short_clips=repeat to see some several times.",
            "too_short",
        )
    if how in _BY_NUMBER:
        return first + _BY_NUMBER[how](end - first, count, generator)
    if how == "clip":
        marks = _clip(start_second, end_second, count, clip_seconds, generator)
    else:
        share = 0.5 if how == "centre" else generator.random(count)
        marks = start_second + (np.arange(count) + share) * ((end_second - start_second) / count)
    return np.clip(frame_at(times, marks), first, end - 1)


def frame_at(times: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """int64: for each second in `marks`, the number of the frame that is on screen then; after the end, the last."""
    # A mark that is computed to hit a frame's time must not fall before it by a rounding error.
    return np.maximum(np.searchsorted(times, np.asarray(marks) + 1e-6, side="right") - 1, 0)


def _window(
    times: np.ndarray, seconds: float, window: tuple[float, float | None] | None, name: str
) -> tuple[int, int, float, float]:
    """(first frame, frame after the last, start second, end second) of the stretch."""
    if window is None:
        return 0, len(times), 0.0, seconds
    start, end = float(window[0]), seconds if window[1] is None else min(float(window[1]), seconds)
    if not 0 <= start < end:
        to = "its end" if window[1] is None else f"{float(window[1]):g} s"
        raise BadSample(
            f"The window from {start:g} s to {to} is not in {name} of {seconds:.3f} s. Its start must be 0 or "
            "more, before its end and before the end of the clip.",
            "window",
        )
    first = int(frame_at(times, np.array([start]))[0])
    return first, max(int(np.searchsorted(times, end - 1e-6)), first + 1), start, end


def _uniform(frames: int, count: int, generator: np.random.Generator | None) -> np.ndarray:
    return np.arange(count) * frames // count


def _stride(frames: int, count: int, generator: np.random.Generator | None) -> np.ndarray:
    return np.arange(count) * (frames // count) if frames >= count else _uniform(frames, count, None)


def _random(frames: int, count: int, generator: np.random.Generator) -> np.ndarray:
    if frames < count:
        return _uniform(frames, count, None)
    return np.sort(generator.choice(frames, count, replace=False)).astype(np.int64)


def _head_tail(frames: int, count: int, generator: np.random.Generator) -> np.ndarray:
    half, head = frames // 2, count // 2
    if half < head or frames - half < count - head:
        return _uniform(frames, count, None)
    parts = [_random(half, head, generator), half + _random(frames - half, count - head, generator)]
    return np.concatenate(parts)


def _clip(start: float, end: float, count: int, length: float, generator: np.random.Generator) -> np.ndarray:
    """`count` seconds from the start to the end of a random stretch of `length` (of everything, when shorter)."""
    length = min(length, end - start)
    start += generator.random() * (end - start - length)
    return np.linspace(start, start + length, count)


_BY_NUMBER: dict[str, Callable[[int, int, np.random.Generator | None], np.ndarray]] = {
    "uniform": _uniform,
    "stride": _stride,
    "random": _random,
    "head_tail": _head_tail,
}
