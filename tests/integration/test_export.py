"""Exported models compute what the attached ones do, through every door a user has for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_ds.cli import main
from aurora_ds.errors import AuroraError
from aurora_ds.export import run as export

OUTPUTS = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10", "r_mean")


@pytest.fixture(scope="module")
def mergeable(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without query transformation; far enough that prompts, heads and running context all matter."""
    output = tmp_path_factory.mktemp("mergeable") / "run"
    train(output, "prompts.query_transform=false", "train.lr=1e-2", "train.schedule=constant")
    return output


@pytest.fixture(scope="module")
def merged(mergeable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "merged"
    assert main(["export", "--adapter", str(mergeable), "--output", str(output)]) == 0
    return output


def attached_outputs(adapter: Path) -> dict[str, torch.Tensor]:
    from aurora_ds.export.attached import build, config_of, read_trained
    from aurora_ds.export.probe import outputs

    trained = read_trained(adapter)
    assembled = build(trained, config_of(trained, None), None)
    return outputs(assembled.task.model, assembled.task.context.evaluation_term())


def reloaded_outputs(folder: Path) -> dict[str, torch.Tensor]:
    from aurora_ds.backbones.checkpoint import load_backbone
    from aurora_ds.export.probe import outputs
    from aurora_ds.recipe import load_config

    return outputs(load_backbone(load_config(str(folder / "recipe.yaml")).backbone).model)


def test_the_merged_file_computes_what_the_attached_model_does(mergeable: Path, merged: Path) -> None:
    wanted, found = attached_outputs(mergeable), reloaded_outputs(merged)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)
    record = json.loads((merged / "record.json").read_text())
    assert record["format"] == "aurora_ds.merged" and record["largest_relative_error"] < 1e-5


def test_it_has_the_published_names_and_other_weights_than_the_frozen_one(
    merged: Path, backbone: dict
) -> None:
    frozen, found = load_file(backbone["checkpoint"]), load_file(merged / "backbone.safetensors")
    assert found.keys() == frozen.keys()
    changed = {name for name, value in frozen.items() if not torch.equal(found[name], value)}
    assert "visual_encoder.blocks.0.attn.qkv.weight" in changed and "itm_head.bias" in changed
    assert "text_encoder.encoder.layer.1.crossattention.self.key.weight" in changed
    assert not any("norm" in name.lower() or "embeddings" in name for name in changed)


def test_the_recipe_beside_it_evaluates_to_the_same_recall(
    mergeable: Path, merged: Path, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    wanted = json.loads((mergeable / "results.json").read_text())["metrics"]
    small = ["retrieval.k_test=6", "data.workers=0", f"data.shards={shards}"]
    assert main(["evaluate", str(merged / "recipe.yaml"), *small, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert {name: found[name] for name in OUTPUTS} == pytest.approx({name: wanted[name] for name in OUTPUTS})


def test_transformers_loads_the_directory_and_gives_the_same_numbers(mergeable: Path, tmp_path: Path) -> None:
    from transformers import BlipForImageTextRetrieval

    from aurora_ds.config import BackboneConfig

    output = tmp_path / "hub"
    assert (
        main(["export", "--adapter", str(mergeable), "--format", "transformers", "--output", str(output)])
        == 0
    )
    theirs, info = BlipForImageTextRetrieval.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = BackboneConfig.model_validate(
        json.loads((mergeable / "adapter" / "adapter_config.json").read_text())["backbone"]["config"]
    )
    wanted = attached_outputs(mergeable)
    # the very pairs of _outputs
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 32, 32, generator=generator)
    ids = torch.randint(config.text.vocab_size, (2, 8), generator=generator)
    ids[:, 0] = config.text.enc_id
    with torch.no_grad():
        logits = theirs.eval()(input_ids=ids, pixel_values=image, attention_mask=torch.ones_like(ids))
        tokens = theirs.vision_model(pixel_values=image).last_hidden_state
        feature = torch.nn.functional.normalize(theirs.vision_proj(tokens[:, 0]), dim=-1)
    torch.testing.assert_close(feature, wanted["image features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.itm_score, wanted["matching logits"], atol=1e-5, rtol=1e-5)
    for name, value in reloaded_outputs(output).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-5, msg=name)


def test_the_code_of_the_readme_gives_similarity_and_match(
    mergeable: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    import re

    import numpy as np
    from PIL import Image

    import aurora_ds

    export(mergeable, "transformers", tmp_path / "hub")
    page = (tmp_path / "hub" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1].replace(
        "two dogs on a beach", "a red ball on the grass"
    )
    pixels = np.random.default_rng(0).integers(
        0, 256, (32, 32, 3), dtype=np.uint8
    )  # of the size it is resized to
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    names: dict = {}
    exec(code, names)
    said = aurora_ds.load(mergeable).predict(image="photo.jpg", text=["a red ball on the grass"])["texts"][0]
    assert names["similarity"].item() == pytest.approx(said["similarity"], abs=1e-5)
    assert names["match"].item() == pytest.approx(said["match"], abs=1e-5)


def test_a_fully_fine_tuned_run_keeps_its_temperature(train, tmp_path: Path) -> None:
    train(
        tmp_path / "run",
        "train.method=full",
        "train.max_steps=2",
        "retrieval.momentum_model=twin",
        "retrieval.temperature=0.03",
    )
    record = export(tmp_path / "run", "merged", tmp_path / "out")
    found, wanted = (
        load_file(folder / "backbone.safetensors")
        for folder in (tmp_path / "out", tmp_path / "run" / "adapter")
    )
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    assert record["temperature"] == pytest.approx(0.03) and float(found["temp"]) == pytest.approx(0.03)


def test_query_transformation_is_refused_with_what_to_set(
    train, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(tmp_path / "run", "train.max_steps=1")
    capsys.readouterr()
    status = main(["export", "--adapter", str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert status == 2 and "prompts.query_transform=false" in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_backbone_that_moved_is_named_by_the_option(
    mergeable: Path, backbone: dict, tmp_path: Path
) -> None:
    import shutil

    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(mergeable / "adapter", run)
    moved.mkdir()
    for file in Path(backbone["checkpoint"]).parent.iterdir():
        shutil.copy(file, moved)
    described = json.loads((run / "adapter_config.json").read_text())
    described["backbone"]["config"]["checkpoint"] = str(tmp_path / "gone.safetensors")
    (run / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(AuroraError, match="no such file.*--backbone"):
        export(run, "merged", tmp_path / "out")
    export(run, "merged", tmp_path / "out", moved / "tiny.safetensors")
    wrong = load_file(moved / "tiny.safetensors")
    save_file({name: value * 2 for name, value in wrong.items()}, moved / "other.safetensors")
    with pytest.raises(AuroraError, match="belongs to backbone 'tiny.safetensors'"):
        export(run, "merged", tmp_path / "out2", moved / "other.safetensors")


def test_an_output_that_is_not_empty_is_left_alone(mergeable: Path, merged: Path) -> None:
    before = (merged / "backbone.safetensors").read_bytes()
    with pytest.raises(AuroraError, match="not an empty folder"):
        export(mergeable, "merged", merged)
    assert (merged / "backbone.safetensors").read_bytes() == before
