"""DeepSpeed settings: the files in ds_configs fit any recipe, and a file that contradicts the recipe is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.settings import resolve_settings

FILES = [
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero2_offload",
    "zero3_offload",
    "zero3_hpz",
    "zero3_zeropp",
    "zero3_nvme",
]
OF_ONE_PRECISION = {"zero1_bf16": "bf16", "zero1_fp16": "fp16"}


def test_without_a_file_the_recipe_decides_the_stage() -> None:
    settings = resolve_settings(
        TrainConfig(global_batch_size=12, accumulation=3, zero_stage=2), None, world_size=2
    )
    assert settings["zero_optimization"] == {"stage": 2}
    assert settings["train_batch_size"] == 12 and settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_file_takes_batch_and_precision_from_the_recipe(
    repository: Path, name: str, precision: str
) -> None:
    if (name, precision) == ("zero0", "fp16"):
        pytest.skip("refused, see below")
    config = TrainConfig(global_batch_size=8, precision=precision, clip_norm=0.5)
    settings = resolve_settings(config, repository / "ds_configs" / f"{name}.json", world_size=4)
    assert settings["zero_optimization"]["stage"] == int(name[4])
    assert settings["train_batch_size"] == 8 and settings["gradient_clipping"] == 0.5
    assert {each: settings[each]["enabled"] for each in ("bf16", "fp16")} == {
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
    }


@pytest.mark.parametrize("name, precision", OF_ONE_PRECISION.items())
def test_a_file_of_one_precision_insists_on_it(repository: Path, name: str, precision: str) -> None:
    file = repository / "ds_configs" / f"{name}.json"
    settings = resolve_settings(TrainConfig(global_batch_size=8, precision=precision), file, world_size=2)
    assert settings[precision]["enabled"] and settings["zero_optimization"]["stage"] == 1
    with pytest.raises(AuroraError, match=f"{precision}.enabled true.*train.precision fp32"):
        resolve_settings(TrainConfig(global_batch_size=8), file, world_size=2)


@pytest.mark.parametrize("name", [*FILES, *OF_ONE_PRECISION])
def test_deepspeed_knows_every_setting_of_every_file(repository: Path, name: str) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = json.loads((repository / "ds_configs" / f"{name}.json").read_text())["zero_optimization"]
    known = {field.alias or key for key, field in DeepSpeedZeroConfig.model_fields.items()}
    assert zero.keys() <= known | DeepSpeedZeroConfig.model_fields.keys()
    DeepSpeedZeroConfig(**zero)


def test_every_file_is_named_in_the_readme(repository: Path) -> None:
    readme = (repository / "ds_configs" / "README.md").read_text()
    found = sorted(path.stem for path in (repository / "ds_configs").glob("*.json"))
    assert found == sorted([*FILES, *OF_ONE_PRECISION]) and all(f"`{name}.json`" in readme for name in found)


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(AuroraError, match="global_batch_size is 10, which 4 ranks.*multiple of 8"):
        resolve_settings(TrainConfig(global_batch_size=10, accumulation=2), None, world_size=4)


@pytest.mark.parametrize(
    "theirs, text",
    [
        ({"optimizer": {"type": "Adam"}}, "section 'optimizer'"),
        ({"scheduler": {}}, "section 'scheduler'"),
        ({"train_batch_size": 64}, "train_batch_size 64.*makes it 8"),
        ({"gradient_clipping": 5.0}, "gradient_clipping 5.0.*makes it 0.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled true.*train.precision fp32"),
    ],
)
def test_a_setting_against_the_recipe_is_refused(theirs: dict, text: str) -> None:
    with pytest.raises(AuroraError, match=text):
        resolve_settings(TrainConfig(global_batch_size=8), theirs, world_size=2)


def test_fp16_at_stage_0_is_refused_because_its_loss_would_not_be_scaled() -> None:
    for given in (None, {"zero_optimization": {"stage": 0}}):
        with pytest.raises(AuroraError, match="fp16 needs a ZeRO stage of 1 or more.*zero1.json"):
            resolve_settings(TrainConfig(global_batch_size=8, precision="fp16"), given, world_size=1)


def test_other_settings_of_a_file_are_kept() -> None:
    theirs = {
        "fp16": {"enabled": "auto", "loss_scale_window": 50},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 7},
    }
    settings = resolve_settings(TrainConfig(global_batch_size=8, precision="fp16"), theirs, world_size=1)
    assert settings["fp16"] == {"enabled": True, "loss_scale_window": 50}
    assert settings["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 7}


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    for content, text in (
        (None, "no DeepSpeed config file"),
        ("{", "not valid JSON"),
        ("[1]", "holds a list"),
    ):
        path = tmp_path / "zero.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(AuroraError, match=f"{text}|zero.json {text}"):
            resolve_settings(TrainConfig(), path, world_size=1)


def test_settings_can_be_written_as_json() -> None:
    json.dumps(resolve_settings(TrainConfig(), {"zero_optimization": {"stage": 3}}, world_size=1))
