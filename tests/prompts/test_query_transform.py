"""The query transformation: the released formula after each text layer that sees an image, and only there."""

from __future__ import annotations

import torch
from tiny_retrieval import tiny_batch, tiny_task


def layer_record(task):
    """Inputs of every layer's residual and the layer's output in one multimodal pass."""
    encoder, batch, records = task.model.text_encoder, tiny_batch(), []
    for layer in encoder.encoder.layer:
        inner = layer.residual

        def spy(a_self, a_cross, inner=inner):
            records.append([a_self, a_cross, inner(a_self, a_cross)])
            return records[-1][2]

        layer.residual = spy
        layer.register_forward_hook(lambda module, args, out: records and records[-1].append(out))
    with torch.no_grad():
        tokens = task.model.visual_encoder(batch["image"])
        encoder(batch["input_ids"], batch["attention_mask"], image_kv=encoder.image_kv(tokens))
    return records


def test_what_is_added_is_the_released_formula():
    task = tiny_task().task.eval()
    gates = task.prompts.bank.gates.detach()
    records = layer_record(task)
    assert len(records) == 2
    for index, (a_self, a_cross, added, out) in enumerate(records):
        scale_self, shift_self, scale_cross, shift_cross = gates[index]
        expected = 0.1 * (a_self * scale_self + shift_self) + 0.1 * (a_cross * scale_cross + shift_cross)
        torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-6)
        layer = task.model.text_encoder.encoder.layer[index]
        with torch.no_grad():
            plain = layer.output(layer.intermediate(a_cross), a_cross)
        torch.testing.assert_close(out, plain + expected, rtol=1e-5, atol=1e-6)


def test_text_alone_is_untouched():
    task = tiny_task().task.eval()
    batch = tiny_batch()
    with torch.no_grad():
        before = task.encode_texts(batch)["feature"]
        task.prompts.bank.gates.mul_(10)
        task.prompts.enable()
        assert torch.equal(task.encode_texts(batch)["feature"], before)


def test_both_shifts_get_the_same_gradient():
    task = tiny_task().task
    task(tiny_batch())["loss"].backward()
    gradient = task.prompts.bank.gates.grad
    assert torch.equal(gradient[:, 1], gradient[:, 3]) and gradient[:, 1].abs().max() > 0


def test_switched_off():
    task = tiny_task(prompts={"query_transform": False}).task
    assert "gates" not in dict(task.prompts.bank.named_parameters())
    assert all(layer.residual is None for layer in task.model.text_encoder.encoder.layer)


def test_a_disabled_adapter_adds_nothing():
    task = tiny_task().task.eval()
    task.prompts.disable()
    assert all(record[2] is None for record in layer_record(task))
