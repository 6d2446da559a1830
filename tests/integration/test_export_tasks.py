"""Exports of the tasks that read or write texts: judged as what they were made from, by us and by transformers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import draw, pair_shards, recipe

import aurora_ds
from aurora_ds.assemble import Assembled
from aurora_ds.cli import main
from aurora_ds.errors import AuroraError
from aurora_ds.export import run as export
from aurora_ds.export.attached import build, config_of, read_trained
from aurora_ds.recipe import load_config

os.environ.setdefault("DS_ACCELERATOR", "cpu")

GREEDY = {"method": "greedy", "max_length": 9, "min_length": 1}
WORDS = ("red", "blue", "two", "a boat", "on the grass")


def listed_shards(folder: Path, kind: str) -> Path:
    """Shards of pictures with questions or captions about them."""
    from aurora_ds.data.convert import convert

    raw = folder / "raw"
    for split, count in (("train", 12), ("test", 5)):
        rows = []
        for number in range(count):
            picture = {"image": f"{split}/{number}.png"}
            draw(raw / "images" / picture["image"], number * 3 + len(split))
            said = [WORDS[number % 5], WORDS[number % 3]]
            if kind == "questions":
                row = {"question_id": number, "question": f"what is {WORDS[number % 5]}", "answer": said}
                rows.append(picture | row)
            else:
                rows.append(picture | {"caption": [f"there is {each}" for each in said]})
        (raw / f"{split}.json").write_text(json.dumps(rows))
    convert(kind, raw, folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`trained(head, overrides…)`: the folder of a run of three steps, trained when first asked for."""
    from aurora_ds.train import main as train

    recipes: dict[str, Path] = {}
    runs: dict[tuple[str, ...], Path] = {}

    def trained(head: str, *overrides: str) -> Path:
        if head not in recipes:
            folder = tmp_path_factory.mktemp(head)
            kind = {"vqa": "questions", "caption": "folder"}.get(head)
            shards = pair_shards(folder) if kind is None else listed_shards(folder, kind)
            sections = {head: {"generation": GREEDY, "max_words": 12}} if kind else {}
            if head == "vqa":
                sections["vqa"] |= {"inference": "generate"}
            recipes[head] = recipe(folder, head, shards, prompts={"query_transform": False}, **sections)
        key = (head, *overrides)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("runs") / "run"
            assert train([str(recipes[head]), "--output", str(runs[key]), *overrides]) == 0
        return runs[key]

    return trained


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`exported(head, format)`: the folder, written when first asked for."""
    folders: dict[tuple[str, str], Path] = {}

    def exported(head: str, format: str) -> Path:
        if (head, format) not in folders:
            folders[head, format] = tmp_path_factory.mktemp("exported") / format
            export(trained(head), format, folders[head, format])
        return folders[head, format]

    return exported


def assembled(run: Path) -> Assembled:
    """The attached model of a run."""
    found = read_trained(run)
    return build(found, config_of(found, None), None)


def judged(folder: Path, run: Path, output: Path) -> dict:
    """results.json of the exported folder's own recipe, on the shards of the run that it was made from."""
    shards = re.search(r"shards: (\S+)", (run / "config.yaml").read_text())[1]
    assert (
        main(["evaluate", str(folder / "recipe.yaml"), f"data.shards={shards}", "--output", str(output)]) == 0
    )
    return json.loads((output / "results.json").read_text())


CASES = [("vqa", "merged"), ("caption", "merged"), ("nlvr", "merged"), ("vqa", "transformers")]


@pytest.mark.parametrize(("head", "format"), [*CASES, ("caption", "transformers")])
def test_the_recipe_beside_it_gives_the_results_of_the_run(
    head, format, trained, exported, tmp_path: Path
) -> None:
    found = judged(exported(head, format), trained(head), tmp_path)
    wanted = json.loads((trained(head) / "results.json").read_text())
    assert found["metrics"] == pytest.approx(wanted["metrics"]) and found["method"] == "frozen"
    for file in tmp_path.glob("*_result.json"):  # what it said, question by question, picture by picture
        assert json.loads(file.read_text()) == json.loads((trained(head) / file.name).read_text())


@pytest.mark.parametrize(
    ("head", "overrides"),
    [
        ("vqa", ("vqa.inference=rank", "data.video.frames=3")),
        ("nlvr", ("train.method=heads",)),
        ("caption", ("prompts.preset=released", "caption.generation.method=beam", "caption.prompt=there is")),
    ],
)
def test_the_run_s_settings_go_with_it(head, overrides, trained, tmp_path) -> None:
    """Into evaluation, and into predictions, which have neither recipe nor shards."""
    run = trained(head, *overrides)
    export(run, "merged", tmp_path / "out")
    wanted = json.loads((run / "results.json").read_text())
    found = judged(tmp_path / "out", run, tmp_path / "judged")
    assert found["metrics"] == pytest.approx(wanted["metrics"])
    assert {key: found[key] for key in ("task", "preset")} == {key: wanted[key] for key in ("task", "preset")}
    told, recipe = (
        load_config(str(path)) for path in (run / "config.yaml", tmp_path / "out" / "recipe.yaml")
    )
    assert getattr(recipe, head) == getattr(told, head) and recipe.data.video == told.data.video

    photo = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    asked = {"images": [photo, photo[::-1].copy()]} if head == "nlvr" else {"image": photo}
    asked |= {} if head == "caption" else {"text": "both are red"}
    said = [aurora_ds.load(folder).predict(**asked) for folder in (run, tmp_path / "out")]
    key = {"nlvr": "probabilities", "vqa": "answer", "caption": "caption"}[head]
    assert said[0][key] == pytest.approx(said[1][key]) if head == "nlvr" else said[0][key] == said[1][key]


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_the_merged_file_has_the_published_names_and_what_was_trained(head, trained, exported) -> None:
    described = json.loads((trained(head) / "adapter" / "adapter_config.json").read_text())["backbone"]
    frozen = load_file(described["config"]["checkpoint"])
    found = load_file(exported(head, "merged") / "backbone.safetensors")
    assert found.keys() == frozen.keys()
    changed = {name for name, value in frozen.items() if not torch.equal(found[name], value)}
    text = "text_encoder.encoder" if head != "caption" else "text_decoder.bert.encoder"
    part = "self1" if head == "nlvr" else "self"
    assert {
        "visual_encoder.blocks.0.attn.qkv.weight",
        f"{text}.layer.1.crossattention.{part}.key.weight",
    } <= changed
    assert ("cls_head.2.weight" in changed) == (head == "nlvr")
    assert not any("norm" in name.lower() or "embeddings" in name for name in changed)


@pytest.mark.parametrize("head", ["vqa", "caption"])
def test_the_code_of_the_readme_writes_what_the_attached_model_writes(
    head, trained, exported, tmp_path, capsys, monkeypatch
) -> None:
    """The photo has the model's own size: what Pillow and torchvision make of others differs by a level of grey."""
    from aurora_ds.data.image import test_transform

    rows, columns = np.mgrid[:16, :16]
    photo = Image.fromarray(np.stack([rows * 16, columns * 16, rows * columns], 2).astype(np.uint8))
    photo.save(tmp_path / "photo.jpg", quality=100)
    built = assembled(trained(head))
    with Image.open(tmp_path / "photo.jpg") as picture:
        image = test_transform(picture.convert("RGB"), 16)[None]
    batch = {"image": image}
    if head == "vqa":
        ids, mask = built.tokenizer.encode(["what is the dog doing?"], 20)
        batch |= {"input_ids": ids, "attention_mask": mask}
    built.task.eval().prepare_evaluation({})
    said = built.tokenizer.decode(built.task.generate(batch)["ids"])[0].strip()
    code = re.search(
        r"```python\n(.*?)```", (exported(head, "transformers") / "README.md").read_text(), re.S
    )[1]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.strip() == said and said


@pytest.mark.parametrize("head", ["vqa", "caption"])
def test_the_record_says_what_was_compared(head, exported) -> None:
    record = json.loads((exported(head, "transformers") / "record.json").read_text())
    names = {"vqa": {"question states", "answer logits"}, "caption": {"caption logits"}}[head]
    assert record["task"] == head and record["compared"].keys() == {"aurora_ds", "transformers"}
    for errors in record["compared"].values():
        assert errors.keys() == names and 0 < max(errors.values()) < 1e-5
    assert record["greedy_texts"] == "the same ids" and record["known_differences"]
    written = json.loads((exported(head, "transformers") / "generation_config.json").read_text())
    assert written["max_length"] == 9 and written["num_beams"] == 1


@pytest.mark.parametrize("load", ["BlipProcessor", "AutoProcessor"])
def test_the_processor_makes_our_ids_and_pixels(load, exported, trained) -> None:
    """Resizing may differ by a level of grey, a 68th of what the deviation of a colour is."""
    import transformers

    from aurora_ds.data.image import test_transform

    processor = getattr(transformers, load).from_pretrained(exported("vqa", "transformers"))
    tokenizer = assembled(trained("vqa")).tokenizer
    texts = ["what is this", "a Boat, unknownword and the RED dog's two", ""]
    ids, mask = tokenizer.encode(texts, 40)
    ids[:, 0] = tokenizer.enc_id
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8))
    found = processor(images=photo, text=texts, padding=True, return_tensors="pt")
    assert torch.equal(found["input_ids"], ids) and torch.equal(found["attention_mask"], mask)
    torch.testing.assert_close(
        found["pixel_values"][0], test_transform(photo, 16), atol=1.01 / 255 / 0.26, rtol=0
    )


def test_transformers_has_no_model_for_two_images(trained, tmp_path, capsys) -> None:
    command = ["export", "--adapter", str(trained("nlvr")), "--format", "transformers"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "no model for backbone.head=nlvr" in printed and "--format merged" in printed
    assert not any(tmp_path.iterdir())


def test_a_model_that_transformers_reads_otherwise_is_not_kept(trained, tmp_path, monkeypatch) -> None:
    from aurora_ds.export import transformers_folder

    right = transformers_folder.config_for

    def wrong(config):
        described = right(config)
        described["vision_config"]["layer_norm_eps"] = 1.0  # which our reading does not look at
        return described

    monkeypatch.setattr(transformers_folder, "config_for", wrong)
    with pytest.raises(AuroraError, match="read again by transformers and differs in its caption logits"):
        export(trained("caption"), "transformers", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_texts_that_transformers_writes_otherwise_are_an_error(trained, tmp_path, monkeypatch) -> None:
    from aurora_ds.export import transformers_folder

    right = transformers_folder.generation_arguments
    shorter = {"max_length": 6, "min_length": 6}
    monkeypatch.setattr(
        transformers_folder, "generation_arguments", lambda settings: right(settings) | shorter
    )
    with pytest.raises(AuroraError, match="by transformers and writes .* where the attached one writes"):
        export(trained("caption"), "transformers", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_fully_fine_tuned_run_is_exported_as_it_is(trained, tmp_path) -> None:
    run = trained("vqa", "train.method=full", "train.lr=1e-4")
    record = export(run, "transformers", tmp_path / "out")
    assert record["method"] == "full" and record["made_from"]["prompts"] is None
    wanted = json.loads((run / "results.json").read_text())["metrics"]
    assert judged(tmp_path / "out", run, tmp_path / "judged")["metrics"] == pytest.approx(wanted)


def test_an_exported_model_is_exported_in_another_format(trained, exported, tmp_path) -> None:
    record = export(exported("caption", "merged"), "transformers", tmp_path / "out")
    before = json.loads((exported("caption", "merged") / "record.json").read_text())
    assert record["made_from"] == before["made_from"] and record["format"] == "aurora_ds.transformers"
    wanted = json.loads((trained("caption") / "results.json").read_text())["metrics"]
    assert judged(tmp_path / "out", trained("caption"), tmp_path / "judged")["metrics"] == pytest.approx(
        wanted
    )


def test_a_vocabulary_that_is_a_tokenizer_json_goes_along(exported, tmp_path) -> None:
    """transformers itself saves no vocab.txt; the directory has to lead on from one that it saved."""
    first = shutil.copytree(exported("vqa", "transformers"), tmp_path / "first")
    (first / "vocab.txt").unlink()
    record = export(first, "transformers", tmp_path / "out")
    assert record["greedy_texts"] == "the same ids"
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["cls_token"] == "[ENC]"
    assert not (tmp_path / "out" / "vocab.txt").exists()


def test_a_file_of_another_task_is_refused_before_anything_is_written(exported, tmp_path, capsys) -> None:
    recipe = str(exported("caption", "merged") / "recipe.yaml")
    changes = ["task=vqa", "backbone.head=vqa", f"data.shards={tmp_path}"]
    assert main(["evaluate", recipe, *changes, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "made for another task (captioning)" in printed and "Missing tensors: text_encoder." in printed
    assert not (tmp_path / "out").exists()
