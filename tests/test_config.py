"""Recipes and overrides become a RunConfig, or an error that says what was wrong, where, and what is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from aurora_ds import recipe as recipe_module
from aurora_ds.config import RunConfig
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import fingerprint, load_config, to_yaml


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "train:\n  lr: 1e-4\n  epochs: 3\nbackbone:\n  vision: {width: 384, heads: 6}\n", encoding="utf-8"
    )
    return str(path)


def error_of(recipe: str, *overrides: str) -> str:
    with pytest.raises(AuroraError) as caught:
        load_config(recipe, list(overrides))
    message = str(caught.value)
    assert "\n" not in message, "an error is one paragraph"
    return message


# reading -------------------------------------------------------------------------------------------------------------


def test_layers_win_in_order(mine: str):
    config = load_config(mine, ["train.epochs=5"])
    assert (config.train.lr, config.train.epochs, config.train.weight_decay) == (1e-4, 5, 0.05)
    assert (config.backbone.vision.width, config.backbone.vision.depth) == (384, 12)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=3e-5", 3e-5),
        ("train.lr=1", 1.0),
        ("train.max_steps=null", None),
        ("train.max_steps=7", 7),
        ("retrieval.train_temperature=true", True),
        ("data.crop_scale=[0.2, 1]", (0.2, 1.0)),
        ("prompts.sites=[a.*, 'b']", ["a.*", "b"]),
        ("prompts.form=cp", "cp"),
        ("data.shards=2014", "2014"),
        ("data.shards=007", "007"),
        ("data.shards=null", None),
        ("data.shards=/data/a=b,c", "/data/a=b,c"),
        ("description=on: both", "on: both"),
        ("description=", ""),
        (" train.epochs =4", 4),
    ],
)
def test_override_values_are_typed(mine: str, override: str, value: object):
    config: object = load_config(mine, [override])
    for part in override.partition("=")[0].strip().split("."):
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize("key", ["prompts.context", "retrieval.frame_weights"])
def test_off_is_off_though_yaml_takes_it_for_false(mine: str, key: str, tmp_path: Path):
    section, name = key.split(".")
    assert getattr(getattr(load_config(mine, [f"{key}=off"]), section), name) == "off"
    (tmp_path / "run.yaml").write_text(f"{section}: {{{name}: off}}\n")
    assert getattr(getattr(load_config(str(tmp_path / "run.yaml")), section), name) == "off"


def test_later_overrides_win(mine: str):
    assert load_config(mine, ["seed=1", "seed=2"]).seed == 2


def test_a_part_of_a_section_leaves_its_other_defaults(mine: str):
    config = load_config(mine, ["vqa.generation.method=greedy"])
    assert config.vqa.generation == RunConfig().vqa.generation.model_copy(update={"method": "greedy"})
    assert (config.vqa.generation.min_length, config.vqa.generation.max_length) == (1, 10)
    for section, default in RunConfig():
        for name, part in default if isinstance(default, BaseModel) else ():
            if isinstance(part, BaseModel):
                emptied = type(default).model_validate({name: {}})
                assert getattr(emptied, name) == part, f"{section}.{name}"


def test_a_section_can_be_given_as_a_mapping(mine: str):
    vision = load_config(mine, ["backbone.vision={depth: 2, heads: 12}"]).backbone.vision
    assert (vision.width, vision.depth, vision.heads) == (384, 2, 12)


def test_the_saved_yaml_gives_the_same_run(mine: str, tmp_path: Path):
    config = load_config(mine, ["prompts.sites=['visual_encoder.*']", "description='ä: #1'"])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(saved)) == config
    assert fingerprint(load_config(str(saved))) == fingerprint(config)


def test_the_fingerprint_depends_on_values_only(mine: str):
    same = [
        load_config(mine, overrides)
        for overrides in ([], ["train.lr=0.0001"], ["train.epochs=3", "train.lr=1e-4"])
    ]
    assert len({fingerprint(config) for config in same}) == 1
    assert fingerprint(load_config(mine, ["seed=43"])) != fingerprint(same[0])
    assert len(fingerprint(same[0])) == 64


def test_a_builtin_backbone_brings_its_sizes(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = tmp_path / "backbone.json"
    sizes.write_text(
        json.dumps({"vision": {"width": 96, "heads": 3}, "text": {"width": 64, "heads": 2}, "embed_dim": 32})
    )
    monkeypatch.setattr(recipe_module, "BUILTIN_SIZES", {"builtin:world": sizes})
    backbone = load_config(mine, ["backbone.checkpoint=builtin:world"]).backbone
    assert (backbone.text.width, backbone.embed_dim) == (64, 32)
    assert (backbone.vision.width, backbone.vision.heads) == (384, 6), "the recipe's own sizes win"


def test_a_checkpoint_of_ours_brings_its_sizes_and_the_recipe_still_wins(mine: str, tmp_path: Path):
    sizes = {"vision": {"width": 48, "depth": 2, "drop_path": 0.3}, "text": {"dropout": 0.0}, "embed_dim": 16}
    config = sizes | {"checkpoint": "gone.pth", "momentum_weights": "read"}
    record = {"format": "aurora_ds.full", "backbone": {"name": "x", "sha256": "y", "config": config}}
    checkpoint = tmp_path / "backbone.safetensors"
    checkpoint.touch()
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    for given in (checkpoint, tmp_path):
        backbone = load_config(mine, [f"backbone.checkpoint={given}"]).backbone
        assert (backbone.vision.width, backbone.vision.depth, backbone.embed_dim) == (384, 2, 16)
        assert (backbone.vision.drop_path, backbone.text.dropout) == (0.0, 0.1), (
            "how to train is the recipe's"
        )
        assert (backbone.checkpoint, backbone.momentum_weights) == (str(given), "ignore")
    for none_of_ours in ('{"format": "other", "backbone": {"config": {"embed_dim": 3}}}', "[1]", "{"):
        (tmp_path / "record.json").write_text(none_of_ours, encoding="utf-8")
        assert load_config(mine, [f"backbone.checkpoint={checkpoint}"]).backbone.embed_dim == 256


# unknown keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.epoch=1", "train.epochs"),
        ("trian.lr=1", "train.lr"),
        ("lr=1", "train.lr"),
        ("train.batch_size=1", "train.global_batch_size"),
        ("retrieval.lr=1", "train.lr"),
        ("backbone.vison.width=8", "backbone.vision.width"),
        ("vision.width=8", "backbone.vision.width"),
        ("prompt.rank=8", "prompts.rank"),
    ],
)
def test_an_unknown_override_names_the_nearest_key(mine: str, override: str, nearest: str):
    message = error_of(mine, override)
    assert f"override `{override}`" in message
    assert f"unknown key {override.partition('=')[0]}" in message
    assert f"Did you mean {nearest}?" in message


def test_an_unknown_key_lists_what_its_section_has(mine: str):
    message = error_of(mine, "backbone.vision.blocks=3")
    assert "backbone.vision has image_size, patch_size, width, depth, heads, mlp_ratio, drop_path" in message


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "typo.yaml"
    path.write_text("train: {learn: 1, epochs: 2}\nretrieval: {alpah: 0.4}\n")
    message = error_of(str(path))
    assert str(path) in message
    assert "unknown key train.learn" in message
    assert "Did you mean retrieval.alpha?" in message, "all unknown keys are reported together"


def test_nothing_is_suggested_when_nothing_is_near(mine: str):
    assert "Did you mean" not in error_of(mine, "zzzzzz=1")


def test_a_key_below_a_value_is_an_error(mine: str):
    assert "train.lr is one value" in error_of(mine, "train.lr.max=3")


# wrong values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.lr=fast", ["train.lr = 'fast'", "valid number"]),
        ("train.epochs=0", ["train.epochs = 0", "greater than 0"]),
        ("prompts.rank=0", ["prompts.rank = 0", "greater than 0"]),
        ("prompts.rank=-4", ["prompts.rank = -4", "greater than 0"]),
        ("prompts.form=tuckr", ["prompts.form = 'tuckr'", "'tucker' or 'cp'"]),
        ("train.zero_stage=4", ["train.zero_stage = 4", "0, 1, 2 or 3"]),
        ("train.betas=[0.9]", ["train.betas = [0.9]", "item 1 is missing"]),
        ("data.crop_scale=[a, 1]", ["data.crop_scale = ['a', 1]", "item 0 should be a valid number"]),
        ("train=3", ["train = 3", "a section"]),
        ("backbone=3", ["backbone = 3", "a section"]),
        ("train=null", ["train = None", "a section"]),
        ("task=cooking", ["task = 'cooking'", "'retrieval'"]),
    ],
)
def test_a_wrong_value_says_where_and_what_is_allowed(mine: str, override: str, parts: list[str]):
    message = error_of(mine, override)
    assert f"override `{override}`" in message
    for part in parts:
        assert part in message


def test_a_wrong_value_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text("train: {lr: slow}\n")
    assert f"in recipe {path}" in error_of(str(path), "seed=1")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["train.global_batch_size=10", "train.accumulation=4"],
            "must be a multiple of train.accumulation (4)",
        ),
        (
            ["backbone.vision.heads=5"],
            "backbone.vision.width (384) must be a multiple of backbone.vision.heads (5)",
        ),
        (["backbone.text.heads=7"], "backbone.text.width (768)"),
        (["backbone.vision.image_size=100"], "backbone.vision.patch_size (16)"),
        (["backbone.text.vocab_size=100"], "must lie in its vocab_size (100)"),
        (["prompts.sites=[]"], "prompts.sites is empty"),
        (["prompts.train_heads=[itm_head, image_proj]"], "names image_proj"),
        (["backbone.head=vqa"], "backbone.head (vqa) must be the model of the task (retrieval)"),
        (
            ["backbone.head=nlvr", "backbone.momentum_weights=read"],
            "backbone.head=nlvr has neither momentum weights nor queues",
        ),
        (["backbone.head=caption", "prompts.train_heads=[itm_head]"], "but the heads are none"),
        (["data.crop_scale=[0.9, 0.5]"], "data.crop_scale (0.9, 0.5)"),
        (["retrieval.max_tokens=600"], "retrieval.max_tokens (600)"),
        (["train.min_lr=1"], "train.min_lr (1.0)"),
        (["train.betas=[0.9, 1.0]"], "train.betas (0.9, 1.0)"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(mine: str, overrides: list[str], part: str):
    assert part in error_of(mine, *overrides)


# unreadable input ----------------------------------------------------------------------------------------------------


def test_an_unknown_recipe_lists_the_recipes():
    message = error_of("retreival_coco")
    assert "Did you mean retrieval_coco?" in message
    assert "retrieval_flickr_large" in message


@pytest.mark.parametrize("name", ["missing.yaml", "no/such/file", ""])
def test_a_missing_file_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "There is no recipe" in error_of(name)


def test_a_folder_is_not_a_recipe(tmp_path: Path):
    assert "it is a folder" in error_of(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "it is empty"),
        (b"- a\n- b\n", "it is a list"),
        (b"just words\n", "unknown key just words"),
        (b"train: {lr: 1\n", "cannot be read as YAML"),
        (b"seed: 1\nseed: 2\n", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"seed: ${nowhere}\n", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_an_error(tmp_path: Path, content: bytes, part: str):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = error_of(str(path))
    assert str(path) in message
    assert part in message


@pytest.mark.parametrize("override", ["train.lr", "=3", "--lr", ""])
def test_an_override_needs_a_key_and_a_value(mine: str, override: str):
    assert "not of the form key=value" in error_of(mine, override)


def test_an_override_that_is_not_yaml_is_an_error(mine: str):
    assert "prompts.sites=[a" in error_of(mine, "prompts.sites=[a")


def test_an_unknown_builtin_backbone_is_an_error(mine: str):
    assert "builtin:world" in error_of(mine, "backbone.checkpoint=builtin:moon")


def test_every_default_is_a_valid_run():
    assert RunConfig.model_validate(yaml.safe_load(to_yaml(RunConfig()))) == RunConfig()
