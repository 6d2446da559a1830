"""Question answering with a momentum model as teacher: what its weight does, and that the copy follows."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_language import asked, tiny

from aurora_ds.config import VqaConfig
from aurora_ds.tasks.distilled_vqa import DistilledVqaTask
from aurora_ds.tasks.momentum import SlotMomentum, TwinMomentum


def taught(kind: str, momentum: float = 0.5) -> tuple[DistilledVqaTask, torch.nn.Module]:
    """A task with a teacher, and the plain one over the same model."""
    plain = tiny("vqa", "aurora" if kind == "slot" else None)
    if kind == "slot":
        teacher = SlotMomentum(plain.model, plain.prompts, dropout=False)
    else:
        other = copy.deepcopy(plain.model)
        weights = {n: t + 0.05 for n, t in plain.model.state_dict().items()}
        teacher = TwinMomentum(plain.model, None, lambda: (other, None), weights, dropout=False)
    options = VqaConfig(distillation=0.4, momentum=momentum)
    return DistilledVqaTask(plain.model, plain.prompts, options, plain.text, teacher).eval(), plain


@pytest.mark.parametrize("kind", ["slot", "twin"])
def test_the_weight_goes_from_the_answers_to_the_teacher_s_words(kind):
    task, plain = taught(kind, momentum=1.0)
    batch = asked()
    answers, words, mixed, usual = (
        task(batch, what="loss", **arguments)["loss"]
        for arguments in ({"alpha": 0.0}, {"alpha": 1.0}, {"alpha": 0.3}, {})
    )
    assert torch.allclose(answers, plain(batch, what="loss")["loss"])
    assert not torch.allclose(answers, words)
    assert torch.allclose(mixed, 0.7 * answers + 0.3 * words)
    assert torch.allclose(usual, 0.6 * answers + 0.4 * words)


def test_the_teacher_learns_nothing_by_gradient_and_follows():
    task, _ = taught("twin")
    twin, online = task.momentum_model.twin, dict(task.model.named_parameters())
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    task(asked(), what="loss")["loss"].backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(parameter.detach(), (before[name] + online[name].detach()) / 2)


def test_parts_that_stand_still():
    task, _ = taught("twin")
    task.momentum_model.still += ("text_encoder.",)
    before = {name: p.detach().clone() for name, p in task.momentum_model.twin.named_parameters()}
    task(asked(), what="loss")
    for name, parameter in task.momentum_model.twin.named_parameters():
        assert torch.equal(parameter.detach(), before[name]) == name.startswith("text_encoder.")


def test_the_copy_is_saved_and_read_again():
    task, _ = taught("slot")
    task(asked(), what="loss")
    saved = task.buffers_to_save()
    again, _ = taught("slot")
    again.load_buffers(saved)
    assert {k: v.tolist() for k, v in again.buffers_to_save().items()} == {
        k: v.tolist() for k, v in saved.items()
    }
    assert saved
