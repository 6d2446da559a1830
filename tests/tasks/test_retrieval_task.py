"""The retrieval losses: against a computation one pair at a time, on odd batches and queues, without a wait for the
device, and with gradients to everything trained."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import ENC, tiny_batch, tiny_task
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from aurora_ds.runtime.schedule import itc_alpha
from aurora_ds.tasks.feature_queue import EMPTY

PRESETS = ["aurora", "released"]


def one_step(task, batch, **arguments):
    """(losses, trace, the queue as it was before)."""
    queue = {name: t.clone() for name, t in task.queue.state().items()}
    trace: dict[str, torch.Tensor] = {}
    return task(batch, trace=trace, **arguments), trace, queue


# ---- the losses, pair by pair


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("media", [[0, 1, 2, 3], [0, 1, 0, 1], [7, 7, 7, 2]])
def test_matching_equals_one_pair_at_a_time(preset, media):
    """Each text alone and unpadded, with its image alone; then the head, the context, the cross entropy."""
    task = tiny_task(preset).task
    batch = tiny_batch(media=media)
    losses, trace, _ = one_step(task, batch)
    model, term = task.model, 0.1 * trace["text_embeds"][:, 0].mean(0)
    lengths, different = batch["attention_mask"].sum(1), [[a != b for b in media] for a in media]

    def logits(text: int, image: int, matching: bool):
        ids = batch["input_ids"][text : text + 1, : lengths[text]].clone()
        ids[:, 0] = ENC
        keys = model.text_encoder.image_kv(model.visual_encoder(batch["image"][image : image + 1]))
        state = model.text_encoder(ids, torch.ones_like(ids), image_kv=keys)[:, 0]
        return model.itm_head(state + term if matching or preset == "aurora" else state)

    each = [F.cross_entropy(logits(i, i, True), torch.tensor([1])) for i in range(4)]
    for row in range(4):
        if any(different[row]):
            image, text = int(trace["neg_image_idx"][row]), int(trace["neg_text_idx"][row])
            assert different[row][image] and different[row][text], "a negative shows another medium"
            each += [F.cross_entropy(logits(row, image, False), torch.tensor([0]))]
            each += [F.cross_entropy(logits(text, row, False), torch.tensor([0]))]
    torch.testing.assert_close(losses["loss_itm"], torch.stack(each).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_contrast_equals_loops_over_queries_and_keys(preset):
    task = tiny_task(preset).task
    task(tiny_batch(seed=9, media=[5, 1, 6, 7]))  # something in the queue, medium 1 among it
    batch = tiny_batch(media=[0, 1, 0, 3])
    losses, trace, queue = one_step(task, batch, alpha=0.3)
    temperature, total = task.temperature_value(), 0.0
    pairs = (
        ("image_feat", "image_feat_m", "text_feat_m", "text_queue"),
        ("text_feat", "text_feat_m", "image_feat_m", "image_queue"),
    )
    for query, query_m, key_m, queued in pairs:
        keys = [*trace[key_m], *queue[queued].t()]
        media = [*batch["media_index"].tolist(), *queue["idx_queue"].tolist()]
        if preset == "aurora":  # places of the queue that were never written are no keys
            keys = [k for k, m in zip(keys, media, strict=True) if m != EMPTY]
            media = [m for m in media if m != EMPTY]
        for row in range(4):
            logits = torch.stack([trace[query][row] @ key for key in keys]) / temperature
            soft = (torch.stack([trace[query_m][row] @ key for key in keys]) / temperature).softmax(0)
            hard = torch.tensor([float(m == media[row]) for m in media])
            target = 0.3 * soft + 0.7 * hard / hard.sum()
            total -= (target * logits.log_softmax(0)).sum() / 8
    torch.testing.assert_close(losses["loss_ita"], total, rtol=1e-5, atol=1e-6)
    assert torch.equal(losses["loss"], losses["loss_ita"] + losses["loss_itm"])


def test_the_loss_is_affine_in_alpha():
    batch = tiny_batch()
    none, some, all_soft = (tiny_task().task(batch, alpha=a)["loss_ita"] for a in (0.0, 0.4, 1.0))
    torch.testing.assert_close(some, 0.6 * none + 0.4 * all_soft)
    assert abs(none - all_soft) > 1e-3


def test_alpha_ramps_over_the_first_epoch():
    """As the published loop: step by step within epoch 0, constant afterwards."""
    wiring, per_epoch = tiny_task().wiring, 10
    for step in range(25):
        expected = itc_alpha(step // per_epoch, step % per_epoch, per_epoch, 0.4)
        assert wiring.loss_arguments(step, 0, per_epoch)["alpha"] == pytest.approx(expected)


def test_the_temperature_is_clamped_and_trained_when_asked():
    for value, expected in ((0.07, 0.07), (0.9, 0.5), (0.0001, 0.001)):
        assert tiny_task(retrieval={"temperature": value}).task.temperature() == pytest.approx(expected)
    task = tiny_task(retrieval={"train_temperature": True}).task
    task(tiny_batch())["loss"].backward()
    assert task.temp.grad.abs().sum() > 0
    assert tiny_task().task.temp is None


# ---- batches and queues of every kind


@pytest.mark.parametrize("preset", PRESETS)
def test_all_rows_of_one_medium_have_no_negatives(preset):
    """The matching loss is then that of the positives; nothing fails and gradients stay finite."""
    task = tiny_task(preset).task
    losses, trace, _ = one_step(task, tiny_batch(media=[3, 3, 3, 3]))
    expected = F.cross_entropy(trace["itm_logits"][:4], torch.ones(4, dtype=torch.int64))
    torch.testing.assert_close(losses["loss_itm"], expected)
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in task.prompts.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sampling", ["keyed", "torch", "argmax"])
def test_a_batch_of_one(preset, sampling):
    task = tiny_task(preset, retrieval={"negative_sampling": sampling}).task
    losses, trace, _ = one_step(task, tiny_batch(1))
    losses["loss"].backward()
    assert losses["loss"].isfinite() and trace["itm_logits"].shape == (3, 2)
    assert all(p.grad.isfinite().all() for p in task.prompts.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 11])
def test_queues_of_any_length(preset, length):
    """None, shorter than the batch, odd: after every step it holds the newest momentum features, oldest first out."""
    task = tiny_task(preset, retrieval={"queue_size": length}).task
    written = []
    for step in range(4):
        losses, trace, _ = one_step(
            task, tiny_batch(seed=step, media=[4 * step + i for i in range(4)]), step=step
        )
        assert losses["loss"].isfinite()
        written += list(
            zip(trace["image_feat_m"], trace["text_feat_m"], range(4 * step, 4 * step + 4), strict=True)
        )
        newest = written[len(written) - min(length, len(written)) :]
        stored = {int(i): column for column, i in enumerate(task.queue.ids) if i != EMPTY}
        assert sorted(stored) == [number for _, _, number in newest]
        for image, text, number in newest:
            assert torch.equal(task.queue.image[:, stored[number]], image)
            assert torch.equal(task.queue.text[:, stored[number]], text)


def test_padding_changes_nothing():
    batch = tiny_batch()
    wide = dict(batch)
    for name in ("input_ids", "attention_mask"):
        wide[name] = F.pad(batch[name], (0, 4))
    plain, padded = tiny_task().task(batch), tiny_task().task(wide)
    torch.testing.assert_close(plain["loss"], padded["loss"], rtol=1e-5, atol=1e-6)


def test_negatives_belong_to_the_step_not_to_the_generator():
    """The same step draws the same negatives whatever was drawn before; another step draws others."""
    batch, drawn = tiny_batch(8), []
    for seed, step in ((0, 3), (1, 3), (0, 4)):
        task = tiny_task().task
        torch.manual_seed(seed)
        _, trace, _ = one_step(task, batch, step=step)
        drawn.append(torch.cat([trace["neg_image_idx"], trace["neg_text_idx"]]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# ---- cost


class NoWaiting(TorchDispatchMode):
    """Fails on operations whose result size or value the host must read from the device."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "unique",
        "_unique2",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        masks = args[1] if name in ("index", "index_put_", "index_put") else ()
        assert not any(m is not None and m.dtype == torch.bool for m in masks), "a boolean index waits"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rank", [4, 5])
def test_a_step_never_waits_for_the_device(monkeypatch, rank):
    task = tiny_task(prompts={"rank": rank, "dropout": 0.1}, dropout=0.1).task
    batches = [tiny_batch(seed=seed) for seed in range(3)]

    def refuse(*arguments):
        raise AssertionError("a tensor's value was read in the step")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
            patch.setattr(torch.Tensor, name, refuse)
        with NoWaiting():
            for step, batch in enumerate(batches):
                task(batch, step=step)["loss"].backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        torch.ones(1).item()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_keys_and_values_of_an_image_are_computed_once(checkpointing):
    task = tiny_task(activation_checkpointing=checkpointing).task
    rows = []
    for layer in task.model.text_encoder.encoder.layer:
        layer.crossattention.self.kv.register_forward_hook(
            lambda module, args, out: rows.append(len(args[0]))
        )
    task(tiny_batch())["loss"].backward()
    assert rows == [4, 4], "one call per layer, one row per image"


# ---- gradients


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_every_trained_tensor_gets_a_gradient(preset, form):
    layout = {"mlp_layout": "block"} if form == "cp" else {}
    task = tiny_task(preset, prompts={"form": form} | layout).task
    task(tiny_batch())["loss"].backward()
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    modes = task.prompts.bank.modes.grad
    assert (modes.abs().amax(1) > 0).all(), "every column of every site"


def test_at_the_start_v_moves_first():
    """V = 0: the other factors wait one step for it, as published; heads and gates do not."""
    task = tiny_task(awake=False).task
    task(tiny_batch())["loss"].backward()
    still = {n for n, p in task.prompts.bank.named_parameters() if not p.grad.any()}
    assert still == {"down_32", "core", "modes"}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("preset", PRESETS)
def test_activation_checkpointing_gives_equal_gradients(preset, dropout):
    gradients = []
    for checkpointing in (False, True):
        task = tiny_task(
            preset, prompts={"dropout": dropout}, dropout=dropout, activation_checkpointing=checkpointing
        ).task
        torch.manual_seed(1)
        task(tiny_batch())["loss"].backward()
        gradients.append({n: p.grad for n, p in task.prompts.bank.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)


# ---- precision


@pytest.mark.parametrize("preset", PRESETS)
def test_16_bits_run_and_are_close(preset):
    batch = tiny_batch()
    exact = tiny_task(preset, retrieval={"negative_sampling": "argmax"}).task(batch)
    task = tiny_task(preset, retrieval={"negative_sampling": "argmax"}).task.bfloat16()
    losses = task(batch | {"image": batch["image"].bfloat16()})
    losses["loss"].backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.05)
    assert task.queue.image.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in task.prompts.parameters())


# ---- clips


@pytest.mark.parametrize("weights", ["off", "consistent", "released"])
@pytest.mark.parametrize("preset", PRESETS)
def test_clips_train(preset, weights):
    task = tiny_task(preset, retrieval={"frame_weights": weights}).task
    losses, trace, _ = one_step(task, tiny_batch(frames=3))
    losses["loss"].backward()
    assert trace["image_embeds"].shape == (4, 3 * 5, 32) and trace["frame_feat"].shape == (4, 3, 12)
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in task.prompts.parameters())


def test_a_clips_feature_is_the_projected_mean_of_its_frames():
    task = tiny_task().task.eval()
    clips = tiny_batch(frames=3)["image"]
    with torch.no_grad():
        task.prepare_evaluation({})
        out = task.encode_images({"image": clips})
        for row, clip in enumerate(clips):
            frames = task.model.visual_encoder(clip)
            expected = F.normalize(task.model.vision_proj(frames[:, 0].mean(0)), dim=0)
            torch.testing.assert_close(out["feature"][row], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out["tokens"][row], frames.flatten(0, 1), rtol=1e-5, atol=1e-6)


def test_a_clip_of_one_frame_is_an_image():
    batch = tiny_batch()
    image = tiny_task().task(batch)["loss"]
    clip = tiny_task().task(batch | {"image": batch["image"][:, None]})["loss"]
    torch.testing.assert_close(image, clip, rtol=1e-5, atol=1e-6)
