"""On a CUDA device: a step of the `aurora` preset never makes the host wait, and computes what the CPU does."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import tiny_batch, tiny_task

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_synchronisation_in_forward_and_backward(dtype):
    task = tiny_task(prompts={"dropout": 0.1}, dropout=0.1).task.to("cuda", dtype)
    batches = [{n: t.cuda() for n, t in tiny_batch(seed=seed).items()} for seed in range(4)]
    for batch in batches:
        batch["image"] = batch["image"].to(dtype)
    task(batches[0], step=0)["loss"].backward()  # the queue and the momentum copies move to the device here
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, batch in enumerate(batches[1:], start=1):
            task(batch, step=step)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in task.prompts.parameters())


@pytest.mark.parametrize("preset", ["aurora", "released"])
def test_losses_and_gradients_equal_the_cpus(preset):
    """fp32 without TF32; negatives by argmax, because the two devices' generators differ."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    tasks = [tiny_task(preset, retrieval={"negative_sampling": "argmax"}).task for _ in range(2)]
    tasks[1].cuda()
    for step in range(3):
        batch = tiny_batch(seed=step)
        cpu = tasks[0](batch, step=step)["loss"]
        cuda = tasks[1]({n: t.cuda() for n, t in batch.items()}, step=step)["loss"]
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-5, atol=1e-5)
        cpu.backward(), cuda.backward()
    for (name, ours), theirs in zip(
        tasks[1].prompts.named_parameters(), tasks[0].prompts.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_keyed_negatives_are_the_cpus():
    from aurora_ds.tasks.negatives import keyed_uniform

    keys = torch.arange(1000)
    assert torch.equal(keyed_uniform(keys.cuda(), 42, 7, 1).cpu(), keyed_uniform(keys, 42, 7, 1))
