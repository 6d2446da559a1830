"""What changed since a checkpoint: listed, and refused where the numbers depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import changes

CONFIG = {"seed": 1, "train": {"lr": 0.1, "zero_stage": 1}, "data": {"workers": 2}}
VERSIONS = {"python": "3.11.7", "torch": "2.9.1+cu128", "timm": "1.0.3"}
HERE = Path("step-00000004")


def changed(config: dict | None = None, versions: dict | None = None, accepted: bool = False) -> str:
    now = CONFIG | (config or {}), VERSIONS | (versions or {})
    return changes.check(HERE, (CONFIG, VERSIONS), now, accepted)


def test_nothing_changed() -> None:
    assert changed() == ""


def test_what_has_no_effect_on_the_numbers_is_listed() -> None:
    said = changed({"data": {"workers": 4}}, {"python": "3.12.1", "torch": "2.9.1+cpu"})
    assert said == (
        "without effect on the numbers: data.workers (2 there, 4 now), python (3.11.7 there, 3.12.1 now), "
        "torch (2.9.1+cu128 there, 2.9.1+cpu now)"
    )


@pytest.mark.parametrize(
    "config, versions, told",
    [
        ({"train": {"lr": 0.2, "zero_stage": 3}}, {}, "train.lr (0.1 there, 0.2 now)"),
        ({}, {"torch": "2.10.0+cu128"}, "torch (2.9.1+cu128 there, 2.10.0+cu128 now)"),
        ({}, {"timm": "1.0.4"}, "timm (1.0.3 there, 1.0.4 now)"),
    ],
)
def test_what_the_numbers_depend_on_is_refused_unless_accepted(
    config: dict, versions: dict, told: str
) -> None:
    with pytest.raises(AuroraError, match="--accept-changes") as refused:
        changed(config, versions)
    assert told in str(refused.value) and "zero_stage" not in str(refused.value)
    assert f"accepted, though the numbers depend on it: {told}" in changed(config, versions, accepted=True)


def test_a_checkpoint_that_says_nothing_about_a_package_is_taken() -> None:
    assert changes.check(HERE, (None, {}), (CONFIG, VERSIONS), False) == ""
