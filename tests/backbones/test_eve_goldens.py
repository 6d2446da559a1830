"""`aurora-ds verify` on recorded runs of EVE's published code, and on damaged ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from aurora_ds.errors import AuroraError
from aurora_ds.verify import run

GOLDENS = Path(__file__).parents[1] / "goldens" / "eve"
SHARED = Path(os.environ.get("AURORA_DS_SHARED", Path(__file__).parents[2] / "shared")) / "goldens" / "eve"


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("a1_trunk_moe_typeroute", 203),
        ("b1_moe_typeroute", 64),
        ("b3_moe_gumbel_recorded", 64),
        ("e1_nlvr_plain", 190),
        ("f_masks", 27),
        ("g_posinterp", 4),
        ("h_optim", 535),
        ("j_text_norm", 35),
    ],
)
def test_everything_recorded_is_within_tolerance(name: str, least: int, tmp_path: Path) -> None:
    assert run([GOLDENS / name], tmp_path) == 0
    checks = json.loads((tmp_path / "results.json").read_text())[name]
    assert len(checks) >= least and all(check["passed"] for check in checks)
    uncompared = [check["name"] for check in checks if check["tolerance"] == "-"]
    assert all(output.startswith("param_after_step") for output in uncompared), "AdamW is torch's"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no recorded runs in {SHARED}: set AURORA_DS_SHARED")
def test_all_recorded_runs(tmp_path: Path) -> None:
    assert run([SHARED], tmp_path) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == 24


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("b1_moe_typeroute", "vl.expert2"), ("b1_moe_typeroute", "text.grad.x"), ("e1_nlvr_plain", "loss_gate")],
)
def test_a_wrong_output_is_found(name: str, tensor: str, tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(GOLDENS / name, tmp_path / name))
    outputs = load_file(folder / "outputs.safetensors")
    outputs[tensor] = outputs[tensor] + 1
    save_file(outputs, folder / "outputs.safetensors")
    assert run([folder]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "OUT OF TOLERANCE" in line]
    assert tensor in line


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDENS / "b1_moe_typeroute", tmp_path / "golden"))
    weights = load_file(folder / "weights.safetensors")
    del weights["mlp_moe.moe.gate.wg.weight"]
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(AuroraError, match=r"missing mlp_moe\.moe\.gate\.wg\.weight"):
        run([folder])
