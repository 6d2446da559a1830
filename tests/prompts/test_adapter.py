"""An adapter on disk: written and read back bit for bit, and refused whole when it does not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_retrieval import awaken, tiny_batch, tiny_task

from aurora_ds.assemble import load_trained
from aurora_ds.errors import AuroraError
from aurora_ds.prompts import load_adapter, read_adapter, save_adapter
from aurora_ds.prompts.adapter import CONFIG_FILE, TENSOR_FILE, describe


def save(assembled, folder: Path, **extra) -> Path:
    """The task's adapter as training writes it."""
    prompts = assembled.task.prompts
    config = describe(prompts, "default", assembled.backbone, {"method": "aurora"} | extra)
    save_adapter(folder, dict(prompts.bank.named_parameters()), config, assembled.task.context.running)
    return folder


def answers(task) -> list[torch.Tensor]:
    batch = tiny_batch(seed=3)
    with torch.no_grad():
        task.prepare_evaluation({})
        encoded = task.encode_images(batch)
        logits = task.match(
            {"tokens": encoded["tokens"][:1]} | {k: batch[k] for k in ("input_ids", "attention_mask")}
        )
        return [encoded["feature"], task.encode_texts(batch)["feature"], logits["logits"]]


@pytest.fixture
def saved(tmp_path):
    """(assembled task after a training step, its adapter's folder)."""
    assembled = tiny_task()
    assembled.task(tiny_batch())
    return assembled, save(assembled, tmp_path / "adapter")


@pytest.mark.parametrize("preset", ["aurora", "released"])
@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_read_back_bit_for_bit(tmp_path, preset, form):
    layout = {"mlp_layout": "block"} if form == "cp" else {}
    assembled = tiny_task(preset, prompts={"form": form} | layout)
    assembled.task(tiny_batch())
    folder = save(assembled, tmp_path)
    fresh = tiny_task(preset, prompts={"form": form} | layout, awake=False)
    config = load_adapter(fresh.task.prompts, folder, fresh.backbone)
    for (name, ours), theirs in zip(
        fresh.task.prompts.bank.named_parameters(), assembled.task.prompts.bank.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert ("context_running" in config) == (preset == "aurora")


def test_the_loaded_task_answers_the_same(saved):
    """Its own settings win over the recipe's, and the running context comes with it."""
    assembled, folder = saved
    assembled.task.eval()
    other_recipe = tiny_task(prompts={"rank": 7, "form": "cp"}).config
    loaded = load_trained(other_recipe, str(folder))
    loaded.task.eval()
    assert loaded.config.prompts == assembled.config.prompts
    assert torch.equal(loaded.task.context.running, assembled.task.context.running)
    assert all(torch.equal(a, b) for a, b in zip(answers(loaded.task), answers(assembled.task), strict=True))


def test_heads_alone_answer_the_same_after_loading(tmp_path):
    assembled = tiny_task(method="heads")
    assembled.task(tiny_batch())
    folder = save(assembled, tmp_path, method="heads")
    loaded = load_trained(tiny_task(method="heads").config, str(folder))
    for task in (assembled.task, loaded.task):
        task.eval()
    assert all(torch.equal(a, b) for a, b in zip(answers(loaded.task), answers(assembled.task), strict=True))


def test_loaded_beside_another_under_its_own_name(saved):
    assembled, folder = saved
    prompts = assembled.task.prompts
    awaken(prompts.bank, seed=1)
    load_adapter(prompts, folder, assembled.backbone, "second")
    assert list(prompts.banks) == ["default", "second"] and prompts.active == "second"
    assert not torch.equal(prompts.banks["default"].modes, prompts.banks["second"].modes)


def test_size_at_full_width():
    """R = 32 with three heads in fp32, BLIP-base widths: at most 3 MB."""
    numbers = 324098 + 768 * 256 + 256
    assert numbers * 4 <= 3 * 10**6


def refused(assembled, folder, message):
    """Loading fails with one paragraph and leaves the adapters as they were."""
    prompts = assembled.task.prompts
    before = {n: p.clone() for n, p in prompts.named_parameters()}
    with pytest.raises(AuroraError, match=message) as error:
        load_adapter(prompts, folder, assembled.backbone, "loaded")
    assert "\n" not in str(error.value) and list(prompts.banks) == ["default"]
    assert all(torch.equal(p, before[n]) for n, p in prompts.named_parameters())


def test_an_adapter_of_another_backbone(saved):
    assembled, folder = saved
    assembled.backbone = {"name": "another.pth", "sha256": "f" * 64}
    refused(
        assembled, folder, r"belongs to backbone 'blip \(random weights\)'.*is 'another.pth' \(sha256 ffff"
    )


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"rank": 5}, "other settings .*rank: 4 there, 5 here"),
        ({"form": "cp"}, "other settings .*form: tucker there, cp here"),
        ({"mlp_layout": "interleaved"}, "other settings .*mlp_layout: block there, interleaved here"),
        ({"scale": 2.0}, "other settings .*scale: 1.0 there, 2.0 here"),
        ({"sites": ["text_encoder.*"]}, "other sites .*14 there, 6 here"),
        ({"query_transform": False}, "other gate_layers .*2 there, 0 here"),
        ({"train_heads": ["itm_head"]}, "other heads .*3 there, 1 here"),
    ],
)
def test_an_adapter_of_other_settings(saved, prompts, message):
    assembled, folder = saved
    here = tiny_task(prompts=prompts)
    here.backbone = assembled.backbone
    refused(here, folder, message)


def test_not_while_another_is_merged(saved):
    assembled, folder = saved
    assembled.task.prompts.merge()
    refused(assembled, folder, "load an adapter while adapter 'default' is merged")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
def test_a_missing_file(saved, name):
    assembled, folder = saved
    (folder / name).unlink()
    refused(assembled, folder, f"{name} is missing")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
@pytest.mark.parametrize("keep", [0, 5, 700])
def test_a_torn_file(saved, name, keep):
    assembled, folder = saved
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    refused(assembled, folder, "cannot be read")


def change(folder: Path, edit) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(edit(config)))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: [c], "holds a list"),
        (lambda c: {}, "format None version None"),
        (lambda c: c | {"version": 2}, "version 2; this release reads 'aurora_ds.adapter' version 1"),
        (lambda c: c | {"format": "aurora_ds.full"}, "format 'aurora_ds.full'"),
        (lambda c: {k: v for k, v in c.items() if k != "tensors"}, r"lacks \['tensors'\]"),
        (lambda c: c | {"tensors": c["tensors"] | {"core": [9, 9, 9]}}, r"'core' has shape \[4, 4, 4\]"),
    ],
)
def test_a_configuration_of_another_kind(saved, edit, message):
    assembled, folder = saved
    change(folder, edit)
    refused(assembled, folder, message)


@pytest.mark.parametrize("settings", [{"rank": 4, "colour": "red"}, {"rank": -1}, 3])
def test_settings_that_this_release_does_not_know(saved, settings):
    assembled, folder = saved
    change(folder, lambda c: c | {"prompts": settings})
    with pytest.raises(AuroraError, match="not those of this release") as error:
        load_trained(assembled.config, str(folder))
    assert "\n" not in str(error.value)


def test_a_missing_and_an_unknown_tensor(saved):
    assembled, folder = saved
    tensors = load_file(folder / TENSOR_FILE)
    save_file({"extra": tensors.pop("core"), **tensors}, folder / TENSOR_FILE)
    refused(assembled, folder, r"missing \['core'\], unexpected \['extra'\]")


def test_values_that_are_not_finite_are_neither_read_nor_written(saved, tmp_path):
    assembled, folder = saved
    tensors, config = read_adapter(folder)
    tensors["modes"][0, 0] = float("nan")
    with pytest.raises(AuroraError, match="'modes' holds values that are not finite"):
        save_adapter(tmp_path / "new", tensors, config)
    assert not (tmp_path / "new" / TENSOR_FILE).exists()
    save_file(tensors, folder / TENSOR_FILE)
    refused(assembled, folder, "'modes' holds values that are not finite")
