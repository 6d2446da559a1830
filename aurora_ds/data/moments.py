"""Moments: annotations of a stretch of a clip, as DiDeMo has them (Hendricks et al. 2017), and where that stretch is.

A moment of a record is {"caption", "times", …}; times: [first, last] of the clip's 5-second segments, counted from 0,
both ends included, one per annotator.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from aurora_ds.data.bad_sample import BadSample

SEGMENT_SECONDS = 5.0


def stretch(moment: dict[str, Any], key: str) -> tuple[float, float]:
    """(start, end) in seconds: what most annotators chose, and of equally many the one named first.

    Raises BadSample for a moment without times; `key` is its sample's.
    """
    times = moment.get("times")
    spans = [tuple(span) for span in times] if _are_spans(times) else []
    if not spans:
        raise BadSample(
            f"Sample {key} has a moment whose times are {times!r}; they must be [first segment, last segment] of each "
            "annotator.",
            "record",
        )
    first, last = Counter(spans).most_common(1)[0][0]
    return SEGMENT_SECONDS * first, SEGMENT_SECONDS * (last + 1)


def _are_spans(times: Any) -> bool:
    return isinstance(times, list) and all(
        isinstance(span, list)
        and len(span) == 2
        and all(type(end) is int for end in span)
        and 0 <= span[0] <= span[1]
        for span in times
    )
