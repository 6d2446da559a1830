"""`aurora-ds verify` on recorded mPLUG: every case within tolerance, and wrong weights are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from aurora_ds.cli import main
from aurora_ds.errors import AuroraError
from aurora_ds.verify.run import check_folder

FOLDER = Path(__file__).parents[1] / "goldens" / "mplug"


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("a_visual_encoder", 27),
        ("b_fusion_stride2", 16),
        ("d_caption", 27),
        ("e_retrieval", 48),
        ("h_text_and_data", 194),
    ],
)
def test_everything_recorded_is_within_tolerance(case, count, capsys):
    assert main(["verify", str(FOLDER / case)]) == 0
    assert f"{count} of {count} within tolerance" in capsys.readouterr().out


@pytest.mark.parametrize(
    "case",
    [
        "b_fusion_stride4_no_connection",
        "c_vqa_nodistill",
        "c_vqa_distill_wide_vit",
        "g1_video_retrieval",
        "g2_videoqa_rank",
        "g3_videocap_prompt",
        pytest.param("i_key_layout", marks=pytest.mark.slow),
    ],
)
def test_larger_cases_read_in_place(goldens: Path, case):
    assert [check.name for check in check_folder(goldens / "mplug" / case) if not check.passed] == []


@pytest.mark.parametrize(
    ("weight", "output"),
    [
        (
            "fusion_encoder.encoder.layer.4.attention.self.key.weight",
            "inter.fusion_layer4",
        ),  # the connected one
        ("fusion_encoder.encoder.layer.3.crossattention.output.dense.bias", "inter.fusion_layer3"),
    ],
)
def test_a_wrong_weight_is_found_where_it_is(tmp_path, weight, output):
    folder = shutil.copytree(FOLDER / "b_fusion_stride2", tmp_path / "changed")
    weights = load_file(folder / "weights.safetensors")
    weights[weight].view(-1)[0] += 0.05
    save_file(weights, folder / "weights.safetensors")
    wrong = [check.name for check in check_folder(folder) if not check.passed]
    layers = [name for name in wrong if name.startswith("inter.")]
    assert layers[0] == output


def test_a_golden_without_its_sizes_is_refused(tmp_path):
    folder = shutil.copytree(FOLDER / "a_visual_encoder", tmp_path / "changed")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"stride_layer"', '"stride"'))
    with pytest.raises(AuroraError, match="lacks 'stride_layer'"):
        check_folder(folder)
