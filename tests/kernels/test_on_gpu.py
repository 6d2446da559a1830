"""The Triton kernels on a GPU: the checks of the interpreter, and the sizes of real models."""

from __future__ import annotations

import pytest
import torch
from test_interpreter import ATOMIC, BOUND, EVERY_RANK, FEW, KEPT, SINGLE, drawn, findings, name, projection
from tiny_retrieval import tiny_batch, tiny_task

from aurora_ds.kernels import choice

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1500)]
# w_in, w_out and rows of a batch of 4 images at 384 px
REAL = [
    projection(layout, form, rank, (width, width, 4 * 577), "bfloat16", dropout, shared)
    for layout in ((1, 3), (4, 1))
    for form in ("tucker", "cp")
    for rank in (32, 64)
    for width in (768, 1024)
    for dropout, shared in ((0.0, False), (0.1, False), (0.1, True))
] + [
    {"what": "normed", "rank": rank, "width": width, "rows": 4 * 577, "dtype": "bfloat16"}
    for rank in (32, 64)
    for width in (768, 1024)
]


@pytest.mark.parametrize(
    "checks", [FEW, drawn(300), EVERY_RANK, REAL], ids=["few", "grid", "every rank", "real sizes"]
)
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


def test_only_the_low_rank_image_is_kept_and_atomics_are_near():
    *kept, first, second = findings(KEPT + ATOMIC, 600, interpreter="0")
    assert all(found["shapes"] == [[37, 4 * 5]] for found in kept)
    assert max(first["distances"] + second["distances"]) < BOUND["float32"]


@pytest.mark.parametrize("position", ["shared", "released"])
def test_a_training_step_of_a_model_is_the_torch_paths(position):
    """Shared x Uᵀ and LayerNorms with an epilogue included, which kernels=triton takes everywhere."""
    found = []
    for path in ("torch", "triton"):
        task = tiny_task(prompts={"dropout": 0.1, "dropout_position": position}).task.cuda().train()
        choice.use(path)
        try:
            torch.manual_seed(0)
            loss = task({n: t.cuda() for n, t in tiny_batch().items()}, step=0)["loss"]
            loss.backward()
        finally:
            choice.use("auto")
        found.append([loss.detach(), *(p.grad for p in task.prompts.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 4
    for got, want in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
