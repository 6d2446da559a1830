"""The error of one sample, with a reason that is counted."""

from __future__ import annotations

from typing import Literal

from aurora_ds.errors import AuroraError

Reason = Literal[
    "shard_cut",
    "shard_missing",
    "not_a_sample",
    "record",
    "not_an_image",
    "not_a_video",
    "too_large",
    "decode",
    "no_annotation",
    "checksum",
    "unreachable",
    "window",
    "too_short",
]


class BadSample(AuroraError):
    """One sample cannot be used; `reason` says why. data.bad_samples=skip puts another in its place."""

    def __init__(self, message: str, reason: Reason):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, Reason]]:
        return type(self), (str(self), self.reason)
