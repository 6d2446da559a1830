"""`aurora-ds verify` on recorded runs of the published code: all within tolerance, in double precision too, and a
wrong weight or output is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_ds.cli import main
from aurora_ds.errors import AuroraError
from aurora_ds.verify import run
from aurora_ds.verify.blip import gradients, retrieval_task
from aurora_ds.verify.blip_language import (
    caption_batch,
    caption_task,
    nlvr_batch,
    nlvr_task,
    vqa_batch,
    vqa_task,
)
from aurora_ds.verify.blip_language import gradients as language_gradients
from aurora_ds.verify.golden import Golden

GOLDENS = Path(__file__).parents[1] / "goldens" / "blip"
PARTS = ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors")


def batch_of(golden: Golden, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    inputs = golden.inputs
    return {
        "image": inputs["images"].to(dtype),
        "input_ids": inputs["text_input_ids"],
        "attention_mask": inputs["text_attention_mask"],
        "media_index": inputs["idx"],
        "sample_index": torch.arange(len(inputs["idx"])),
    }


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("blip_retrieval", 130),
        ("aurora_retrieval_image", 75),
        ("aurora_retrieval_video_2rank", 50),  # starts two processes
        ("blip_vqa", 160),
        ("blip_caption", 99),
        ("blip_nlvr", 306),
        ("aurora_vqa", 58),
        ("aurora_vqa_video", 56),
        ("pos_embed_interp", 18),
        ("text_norm", 240),
        ("schedules.json", 33),
    ],
)
def test_everything_recorded_is_within_tolerance(name, least, tmp_path, capsys):
    assert run([GOLDENS / name], tmp_path) == 0
    checks = json.loads((tmp_path / "results.json").read_text())[name]
    assert len(checks) >= least and all(check["passed"] for check in checks)
    assert "all outputs within tolerance" in capsys.readouterr().out
    uncompared = {check["name"] for check in checks if check["tolerance"] == "-"}
    assert uncompared <= {
        *("sim_i2t_m", "sim_t2i_m"),  # recorded attention scores under these two names
        "generate_greedy_cached_ids",  # an old decoding that contradicts training
    }


@pytest.mark.parametrize("name", ["blip_retrieval", "aurora_retrieval_image"])
def test_double_precision(name):
    """1e-9; what depends on the soft-target loss 1e-6, because the published code keeps hard targets in fp32."""
    golden = Golden.read(GOLDENS / name)
    exact = load_file(golden.folder / "outputs_f64.safetensors")
    task, trace = retrieval_task(golden).double(), {}
    losses = task(batch_of(golden, torch.float64), trace=trace)
    losses["loss"].backward()
    compared = set()
    for output, value in (losses | trace).items():
        expected = exact.get(output)
        if expected is None or expected.dim() != value.dim() or not expected.is_floating_point():
            continue
        assert value.dtype == torch.float64, output
        tolerance = 1e-6 if output in ("loss", "loss_ita") else 1e-9
        torch.testing.assert_close(value.detach(), expected, rtol=tolerance, atol=tolerance, msg=output)
        compared.add(output)
    assert {"loss", "loss_itm", "image_feat_m", "text_feat_m", "sim_i2t", "itm_logits"} <= compared
    for parameter, value in gradients(task).items():
        if (expected := exact.get(f"grad.{parameter}")) is not None:
            error = (value - expected).abs().max() / expected.abs().max()
            assert error <= 1e-6 or parameter.endswith("key.bias"), parameter


@pytest.mark.parametrize(
    ("name", "build", "batch"),
    [
        ("blip_vqa", vqa_task, vqa_batch),
        ("aurora_vqa", vqa_task, vqa_batch),
        ("aurora_vqa_video", vqa_task, vqa_batch),
        ("blip_caption", caption_task, caption_batch),
        ("blip_nlvr", nlvr_task, nlvr_batch),
    ],
)
def test_double_precision_of_language(name, build, batch):
    golden = Golden.read(GOLDENS / name)
    golden.inputs = {n: t.double() if t.is_floating_point() else t for n, t in golden.inputs.items()}
    exact = load_file(golden.folder / "outputs_f64.safetensors")
    task, trace = build(golden, torch.float64), {}
    losses = task(batch(golden), trace=trace)
    losses["loss"].backward()
    trace.pop("question_mask", None)  # whole numbers, which are no matter of precision
    for output, value in (losses | trace).items():
        assert value.dtype == torch.float64, output
        expected = exact[output].reshape(value.shape)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-9, msg=output)
    recorded = [n for n in exact if n.startswith("grad.")]
    assert bool(recorded) == name.startswith("aurora"), "full fine-tuning was recorded without gradients"
    found = language_gradients(task)
    for name in recorded:
        error = (found[name.removeprefix("grad.")] - exact[name]).abs().max() / exact[name].abs().max()
        assert error <= 1e-6, name


# ---- what is wrong is found and named


@pytest.fixture
def copied(tmp_path):
    """A golden folder that the test may damage."""
    return Path(shutil.copytree(GOLDENS / "aurora_retrieval_image", tmp_path / "golden"))


def edit(path: Path, name: str, change) -> None:
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss_itm", lambda t: t + 1e-4),
        ("eval.itm_logits_all", lambda t: t + 1e-4),
        ("grad.CP_C", lambda t: t * 1.001),
        ("neg_text_idx", lambda t: (t + 1) % 4),
        ("post.image_queue", lambda t: t.flip(1)),
        ("text_feat", lambda t: t[:3].clone()),
        ("image_feat_m", lambda t: torch.full_like(t, torch.nan)),
    ],
)
def test_a_wrong_output_is_named(copied, name, change, capsys):
    edit(copied / "outputs.safetensors", name, change)
    assert run([copied]) == 1
    out = capsys.readouterr().out
    wrong = [line.split()[0] for line in out.splitlines() if "OUT OF TOLERANCE" in line or "for (" in line]
    assert wrong == [name]
    assert "1 outputs out of tolerance" in out


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ("text_encoder.encoder.layer.0.crossattention.self.k_CP", "mm_pos_embeds"),
        ("visual_encoder_m.blocks.0.attn.qkv.weight", "image_embeds_m"),
        ("itm_head.bias", "itm_logits"),
    ],
)
def test_a_wrong_weight_is_found(copied, weight, named, capsys):
    edit(copied / "weights.safetensors", weight, lambda t: t + 0.1 * torch.arange(t.numel()).view_as(t))
    assert run([copied]) == 1
    wrong = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "OUT OF" in line]
    assert named in wrong and "sim_i2t" not in wrong


@pytest.mark.parametrize(
    ("folder", "name", "change"),
    [
        ("blip_caption", "generate_beam3_ids", lambda t: t.flip(0)),
        ("blip_caption", "generate_greedy_ids", lambda t: t.clamp(max=101)),
        ("blip_vqa", "rank.topk_ids", lambda t: t + (t == t[0, 0])),
        ("blip_vqa", "generate_beam3_sequences_scores", lambda t: t + 1e-4),
        ("aurora_vqa", "grad.text_decoder.bert.encoder.layer.1.CP_scalecross", lambda t: t * 1.001),
        ("aurora_vqa_video", "loss", lambda t: t * 3),  # the average over questions
        ("blip_nlvr", "prediction", lambda t: t.flip(1)),
    ],
)
def test_a_wrong_output_of_language_is_named(folder, name, change, tmp_path, capsys):
    copied = Path(shutil.copytree(GOLDENS / folder, tmp_path / "golden"))
    edit(copied / "outputs.safetensors", name, change)
    assert run([copied]) == 1
    wrong = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "OUT OF TOLERANCE" in line]
    assert wrong == [name]


def test_an_output_that_nothing_computes_is_no_success(copied, capsys):
    tensors = load_file(copied / "outputs.safetensors")
    save_file(tensors | {"attention_maps": torch.zeros(2)}, copied / "outputs.safetensors")
    assert run([copied]) == 1
    assert "attention_maps" in capsys.readouterr().out


def test_a_wrong_caption_rule_and_a_wrong_learning_rate(tmp_path, capsys):
    vectors = json.loads((GOLDENS / "text_norm" / "vectors.json").read_text())
    vectors["vectors"][3]["out"] += "s"
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "vectors.json").write_text(json.dumps(vectors))
    rates = json.loads((GOLDENS / "schedules.json").read_text())
    rates["cosine_lr_schedule"][1]["lr"] *= 1.01
    (tmp_path / "schedules.json").write_text(json.dumps(rates))
    assert run([tmp_path]) == 1, "a folder of golden folders is all of them"
    out = capsys.readouterr().out
    assert out.count("OUT OF TOLERANCE") == 2 and "2 outputs out of tolerance" in out


# ---- refused


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_file(copied, name):
    (copied / name).unlink()
    with pytest.raises(AuroraError, match="no golden folder|is no folder|missing"):
        run([copied])


@pytest.mark.parametrize("name", PARTS)
def test_a_torn_file(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:40])
    with pytest.raises(AuroraError, match="cannot be read"):
        run([copied])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c | {"case": "mplug_retrieval"},
            "case 'mplug_retrieval', which this release cannot build",
        ),
        (lambda c: {k: v for k, v in c.items() if k != "case"}, "case 'None'"),
        (lambda c: {k: v for k, v in c.items() if k != "vision_width"}, "lacks 'vision_width'"),
        (lambda c: [c], "holds a list"),
    ],
)
def test_a_configuration_that_describes_nothing_known(copied, change, message):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(change(config)))
    with pytest.raises(AuroraError, match=message):
        run([copied])


def test_no_folder(tmp_path):
    with pytest.raises(AuroraError, match="is no folder"):
        run([tmp_path / "gone"])


def test_an_empty_folder_verifies_nothing(tmp_path):
    with pytest.raises(AuroraError, match="no golden folder"):
        run([tmp_path])


# ---- the command


def test_exit_statuses(copied, tmp_path, capsys):
    """0 all right, 1 something is out, 2 wrong input in one paragraph without a stack trace."""
    text = str(GOLDENS / "text_norm")
    assert main(["verify", text, str(GOLDENS / "schedules.json"), "--output", str(tmp_path / "out")]) == 0
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())) == {"text_norm", "schedules.json"}
    edit(copied / "outputs.safetensors", "loss", lambda t: t * 2)
    capsys.readouterr()
    assert main(["verify", text, str(copied)]) == 1
    assert "1 outputs out of tolerance" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "gone")]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("aurora-ds: ") and "Traceback" not in error and len(error.strip().splitlines()) == 1
    )
