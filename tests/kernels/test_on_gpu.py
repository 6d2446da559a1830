"""The Triton kernels on a GPU: the checks of the interpreter, and the sizes of real models."""

from __future__ import annotations

import pytest
from test_interpreter import BOUND, FEW, SINGLE, drawn, findings, name, projection

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1500)]
# w_in, w_out and rows of a batch of 4 images at 384 px
REAL = [
    projection(layout, form, rank, (width, width, 4 * 577), "bfloat16", dropout)
    for layout in ((1, 3), (4, 1))
    for form in ("tucker", "cp")
    for rank in (32, 64)
    for width in (768, 1024)
    for dropout in (0.0, 0.1)
]


@pytest.mark.parametrize("checks", [FEW, drawn(300), REAL], ids=["few", "grid", "real sizes"])
def test_values_and_gradients_are_within_the_dtypes_bound_and_repeat(checks):
    for check, found in zip(checks, findings(checks, 1400, interpreter="0"), strict=True):
        bound = BOUND[check["dtype"]] if check["dtype"] != "bfloat16" else 8e-3
        assert max(found["distances"]) < bound, (name(check), found)
        assert found.get("repeats", True), name(check)


def test_masks_recomputation_tracing_registration_and_adapters():
    found = dict(zip(map(name, SINGLE), findings(SINGLE, 1400, interpreter="0"), strict=True))
    for check, finding in found.items():
        assert finding.get("equal", True) and finding.get("passed", True), check
        assert max(finding.get("distances", [0.0])) < 1e-5, check
