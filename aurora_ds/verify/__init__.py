"""Verification against recorded outputs of the published implementations."""

from aurora_ds.verify.run import run

__all__ = ["run"]
