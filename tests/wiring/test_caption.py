"""Captioning in a run: texts of a batch, captions of a split and their scores, the file, self-critical training after
likelihood, errors, predictions."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from caption_runs import TEST, captions_of, clip_shards, image_recipe, image_shards, read
from safetensors.torch import load_file

from aurora_ds import evaluate, train
from aurora_ds.assemble import Assembled, build_task
from aurora_ds.data.loader import annotated_loader, eval_image_loader
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.tasks.caption import caption_words
from aurora_ds.tasks.metrics.captioning import caption_scores
from aurora_ds.tasks.metrics.cider import DocumentFrequency
from aurora_ds.wiring import blocks
from aurora_ds.wiring.base import Evaluation
from aurora_ds.wiring.caption import CAPTIONS_FILE, FREQUENCY_FILE

os.environ.setdefault("DS_ACCELERATOR", "cpu")

SELF_CRITICAL = ["caption.objective=self_critical", "caption.self_critical.samples=3", "data.expand=media"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small run over shards of images."""
    folder = tmp_path_factory.mktemp("images")
    return image_recipe(folder, image_shards(folder / "shards"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    return image_recipe(folder, clip_shards(folder / "shards"))


@pytest.fixture(scope="module")
def likelihood(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the first stage."""
    output = tmp_path_factory.mktemp("runs") / "likelihood"
    assert train.main([str(made), "--output", str(output), "train.evaluate_every=1"]) == 0
    return output


def assembled(made: Path, *overrides: str) -> Assembled:
    """Its task, in evaluation."""
    built = build_task(load_config(str(made), list(overrides)))
    built.task.eval()
    return built


def judged(built: Assembled) -> Evaluation:
    return built.wiring.evaluate(built.task, built.tokenizer)


# ---- batches


@pytest.mark.parametrize("prompt", ["'a picture of '", "A picture of"])
def test_a_text_is_the_prompt_and_the_cleaned_caption(made: Path, prompt: str) -> None:
    built = assembled(made, "caption.max_words=6", "caption.max_tokens=11", f"caption.prompt={prompt}")
    batch = built.wiring.train_texts(built.tokenizer)(
        ["A red ball: to the LEFT of (two) boxes!", "Two boxes.", "a a a a a a a a a a a a a a a a a a a a"]
    )
    words = built.tokenizer.decode(batch["input_ids"])
    assert words == [
        "a picture of a red ball to the left",
        "a picture of two boxes",
        "a picture of a a a a a a",
    ]
    assert batch["attention_mask"].sum(1).tolist() == [11, 7, 11]


def test_captions_need_no_prompt(made: Path) -> None:
    built = assembled(made, "caption.prompt=''")
    ids = built.wiring.train_texts(built.tokenizer)(["Two boxes"])["input_ids"]
    assert built.tokenizer.decode(ids) == ["two boxes"]
    assert len(judged(built).files[CAPTIONS_FILE]) == TEST


def test_long_captions_lose_their_end(made: Path) -> None:
    built = assembled(made, "caption.max_tokens=8")
    ids = built.wiring.train_texts(built.tokenizer)(["a red ball and two boxes"])["input_ids"]
    assert built.tokenizer.decode(ids) == ["a picture of a red ball"]


@pytest.mark.parametrize("stage", [[], SELF_CRITICAL])
def test_a_caption_without_words_is_an_error_that_names_its_sample(made: Path, stage: list[str]) -> None:
    built = assembled(made, "data.train_split=blank", *stage)
    texts = built.wiring.train_texts(built.tokenizer)
    every = built.wiring.every_annotation
    loader = annotated_loader(built.config, "captions", texts, 1, 0, 0, every=every)
    with pytest.raises(AuroraError, match=r"caption ' \. ' has no words.*one of the samples image-4"):
        list(loader)


def test_self_critical_batches_bring_all_captions_of_a_medium(made: Path) -> None:
    built = assembled(made, *SELF_CRITICAL)
    texts = built.wiring.train_texts(built.tokenizer)
    seen = {}
    for batch in annotated_loader(built.config, "captions", texts, 1, 0, 0, every=True):
        seen |= dict(zip(batch["keys"], batch["references"], strict=True))
    assert len(seen) == 12
    assert seen["image-5"] == [
        "a red ball and two boxes in the snow",
        "there is a red ball to the left of two boxes",
        "we find a red ball",
    ]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("caption.max_tokens=5", "caption.max_tokens leaves no room"),
        ("caption.generation={max_length: 4, min_length: 1}", "caption.generation.max_length leaves no room"),
    ],
)
def test_a_prompt_must_leave_room(made: Path, override: str, named: str) -> None:
    with pytest.raises(AuroraError, match=named):
        assembled(made, override)


# ---- evaluation


@pytest.mark.parametrize("method", ["beam", "greedy", "nucleus"])
def test_evaluation_is_that_of_each_image_alone(made: Path, method: str) -> None:
    built = assembled(made, f"caption.generation.method={method}")
    found, expected = judged(built), []
    for batch in eval_image_loader(built.config, "test", None, 1, 0, 1):
        alone = {"image": batch["image"], "sample_index": batch["media_index"]}
        ids = built.task(alone, what="generate", seed=built.config.seed)["ids"]
        (words,) = caption_words(built.tokenizer, ids, built.task.prompt)
        expected.append({"image_id": 1020 + len(expected), "caption": words})
    assert found.files[CAPTIONS_FILE] == expected and len(expected) == TEST
    assert len({row["caption"] for row in expected}) > 2
    truth = [
        {"image_id": 1000 + number, "caption": caption}
        for number in range(20, 20 + TEST)
        for caption in captions_of(number)
    ]
    scores = caption_scores(expected, {"annotations": truth}, java=False)["scores"]
    assert found.metrics["cider"] == pytest.approx(100 * scores["CIDEr"])
    assert found.metrics["bleu_1"] == pytest.approx(100 * scores["Bleu_1"])
    assert list(found.metrics) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert found.facts["skipped"] == {"METEOR": "not asked for", "SPICE": "not asked for"}
    assert (found.facts["images"], found.facts["generation"]["method"]) == (TEST, method)


def test_the_prompt_is_no_part_of_a_caption(made: Path) -> None:
    built = assembled(made)
    batch = next(iter(eval_image_loader(built.config, "test", None, 1, 0, TEST)))
    ids = built.task({"image": batch["image"]}, what="generate")["ids"]
    whole = built.tokenizer.decode(ids)
    assert all(text.startswith("a picture of ") for text in whole)
    told = [row["caption"] for row in judged(built).files[CAPTIONS_FILE]]
    assert [f"a picture of {caption}" for caption in told] == whole


def test_openings_are_cut_off_where_words_follow(made: Path) -> None:
    wiring = assembled(made, "caption.cut_after=['a video of', 'a video showing']").wiring
    written = [
        "a video of a dog",
        "this is a video showing a video of two cats",
        "a video offering",
        "a video of",
    ]
    assert wiring._cut(written) == ["a dog", "two cats", "a video offering", "a video of"]


def test_any_number_of_ranks_writes_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = assembled(made, "caption.generation.method=nucleus")
    expected = judged(built).files[CAPTIONS_FILE]
    parts = []
    for rank in range(3):
        monkeypatch.setattr(blocks, "world", lambda rank=rank: (rank, 3))
        monkeypatch.setattr(
            "aurora_ds.wiring.caption.in_order", lambda own, blocks: parts.append(list(own)) or [""] * TEST
        )
        built.wiring._write(built.task, built.tokenizer, TEST)
    rows = [row for block in range(4) for row in parts[block % 3][block // 3]]
    assert rows == [row["caption"] for row in expected]


def test_a_split_without_captions_gives_the_file_alone(made: Path, tmp_path: Path, capsys) -> None:
    overrides = ["data.eval_split=bare", "data.media=blank"]
    assert evaluate.main([str(made), *overrides, "--output", str(tmp_path)]) == 0
    record, printed = read(tmp_path / "results.json"), " ".join(capsys.readouterr().out.split())
    assert (record["metrics"], record["media"]) == ({}, "blank")
    assert "bare: 3 images" in printed and "no ground truth" in printed and "blank media" in printed
    rows = read(tmp_path / CAPTIONS_FILE)
    assert [row["image_id"] for row in rows] == [1030, 1031, 1032]
    assert all(set(row) == {"image_id", "caption"} for row in rows)


def test_domains_of_nocaps_have_their_means(made: Path, tmp_path: Path) -> None:
    written = judged(assembled(made, "data.eval_split=domains")).files[CAPTIONS_FILE]
    copy = write_truth(
        made, tmp_path, "domains", {1060: written[0]["caption"], 1061: "a hill", 1062: "we find snow"}
    )
    built = assembled(made, "data.eval_split=domains", *copy)
    found = judged(built)
    cider = found.details.cider
    assert cider[0] > 1, "the caption that was written is its own ground truth"
    assert found.metrics["cider_in_domain"] == pytest.approx(50 * (cider[0] + cider[2]))
    assert found.metrics["cider_near_domain"] == pytest.approx(100 * cider[1])
    assert found.metrics["cider"] == pytest.approx(100 * sum(cider) / 3)
    assert "CIDEr near" in built.wiring.table_rows("", found.metrics)[0][1]


def test_two_media_of_one_name_are_refused(made: Path) -> None:
    with pytest.raises(AuroraError, match="Media 0 and 1 of split 'twice' .* both called 1050"):
        judged(assembled(made, "data.eval_split=twice"))


def write_truth(made: Path, folder: Path, split: str, captions: dict[int, str]) -> list[str]:
    """A copy of the shards with this ground truth of a split beside it, and the override that reads it."""
    shutil.copytree(Path(load_config(str(made)).data.shards), folder / "shards")
    told = [{"image_id": name, "id": name, "caption": caption} for name, caption in captions.items()]
    content = {"images": [{"id": name} for name in captions], "annotations": told}
    (folder / "shards" / f"{split}_gt.json").write_text(json.dumps(content))
    return [f"data.shards={folder / 'shards'}"]


def snow(names: range) -> dict[int, str]:
    return dict.fromkeys(names, "we find snow")


def test_the_ground_truth_beside_the_shards_is_used(made: Path, tmp_path: Path) -> None:
    found = judged(assembled(made, *write_truth(made, tmp_path, "test", snow(range(1020, 1020 + TEST)))))
    assert found.facts["ground_truth"] == "test_gt.json"
    assert found.details.references == [["we find snow"]] * TEST


def test_ground_truth_of_other_media_is_an_error_before_anything_is_written(
    made: Path, tmp_path: Path
) -> None:
    longer = write_truth(made, tmp_path, "test", snow(range(1020, 1029)))
    with pytest.raises(AuroraError, match=r"2 images \(1027, 1028\) have no caption in the evaluated split"):
        judged(assembled(made, *longer))
    # a part of the split was asked for, so the rest of the ground truth is not missed
    found = judged(assembled(made, *longer, "evaluate.limit=3"))
    assert found.facts["images"] == 3 and "cider" in found.metrics
    shorter = write_truth(made, tmp_path / "less", "test", snow(range(1020, 1024)))
    with pytest.raises(
        AuroraError, match=r"3 images \(1024, 1025, 1026\) have no reference in .*test_gt.json"
    ):
        judged(assembled(made, *shorter))


def test_clips_are_called_by_their_name_and_say_how_they_were_read(clips: Path) -> None:
    built = assembled(clips)
    found = judged(built)
    assert [row["image_id"] for row in found.files[CAPTIONS_FILE]] == ["clip4", "clip5", "clip6"]
    assert (found.facts["clips"], found.facts["frames"]) == (3, 3)
    record = {"split": "test", **found.facts}
    assert built.wiring.title(record) == "test: 3 clips, 3 beams, 5 to 12 tokens"
    assert "3 frames uniform" in built.wiring.conditions(record)[0]


def test_the_picture_has_a_row_for_each_of_some_media(made: Path) -> None:
    built = assembled(made, "monitor.gallery_queries=3")
    name, drawn = built.wiring.picture(built.tokenizer, judged(built))
    assert name == "captions" and drawn.shape[0] == 3 and drawn.shape[1] > 400


# ---- whole runs


def test_a_run_trains_keeps_the_best_and_leaves_its_captions(
    likelihood: Path, made: Path, tmp_path: Path
) -> None:
    record = read(likelihood / "results.json")
    assert record["best"]["cider"] >= record["metrics"]["cider"]
    assert len(read(likelihood / CAPTIONS_FILE)) == TEST
    again = ["--adapter", str(likelihood), "--output", str(tmp_path)]
    assert evaluate.main([str(made), *again]) == 0
    assert read(tmp_path / "results.json")["metrics"] == record["metrics"]
    assert read(tmp_path / CAPTIONS_FILE) == read(likelihood / CAPTIONS_FILE)


def values(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_the_second_stage_begins_with_the_first_ones_adapter_and_resumes_exactly(
    likelihood: Path, made: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(likelihood / "adapter", start)
    settings = [str(made), *SELF_CRITICAL, f"train.start_from={start}", "train.lr=1e-3", "train.save_every=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*settings, "train.max_steps=4", "--output", str(whole)]) == 0
    assert train.main([*settings, "train.max_steps=2", "--output", str(parts)]) == 0
    # what it began with is no longer needed
    shutil.rmtree(start)
    assert train.main([*settings, "train.max_steps=4", "--output", str(parts)]) == 0
    first, found, expected = values(likelihood), values(parts), values(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    moved = max(float((expected[name] - first[name]).abs().max()) for name in first)
    assert 0 < moved < 0.02, "from where the first stage ended"
    frequency = DocumentFrequency.load(whole / FREQUENCY_FILE)
    assert frequency.documents == 12 and frequency.counts["we", "find"] == 6
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all("train/reward" in line for line in lines if "train/loss" in line)


def test_parameters_that_are_cut_up_are_refused(made: Path, tmp_path: Path) -> None:
    built = assembled(made, *SELF_CRITICAL)
    next(built.task.parameters()).ds_id = 0  # as ZeRO-3 of a --deepspeed-config leaves them
    with pytest.raises(AuroraError, match="does not work with ZeRO stage 3"):
        built.wiring.before_training(built.task, tmp_path)
    assert not list(tmp_path.iterdir())


def test_document_frequencies_of_another_run_can_be_given(
    likelihood: Path, made: Path, tmp_path: Path
) -> None:
    built = assembled(made, *SELF_CRITICAL, f"caption.self_critical.frequency={tmp_path / 'df.json'}")
    with pytest.raises(AuroraError, match="is no document-frequency table"):
        built.wiring.before_training(built.task, tmp_path)
    DocumentFrequency.of([[["we", "find"]]]).save(tmp_path / "df.json")
    built.wiring.before_training(built.task, tmp_path)
    assert built.task.reward.frequency.documents == 1 and not (tmp_path / FREQUENCY_FILE).exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts.rank=8"], "trained with other settings .*rank: 4 there, 8 here"),
        (["backbone.checkpoint=null"], "belongs to backbone"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    likelihood: Path, made: Path, tmp_path: Path, capsys, overrides: list[str], message: str
) -> None:
    begin = [str(made), f"train.start_from={likelihood}", *overrides, "--output", str(tmp_path / "run")]
    vocabulary = Path(load_config(str(made)).backbone.checkpoint).parent
    assert train.main([*begin, f"backbone.tokenizer={vocabulary}"]) == 2
    assert_found(message, capsys.readouterr().err)


def assert_found(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, " ".join(text.split())), text


def test_a_dry_run_checks_what_is_begun_with(made: Path, tmp_path: Path, capsys) -> None:
    begin = [str(made), f"train.start_from={tmp_path}", "--output", str(tmp_path / "run"), "--dry-run"]
    assert train.main(begin) == 2
    assert_found("No adapter in", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["caption.self_critical.samples=1"], "samples .1. must be at least 2"),
        (["train.zero_stage=3"], "does not work with train.zero_stage=3"),
        (["data.video.window=moments"], "rewards a caption by all captions of its medium"),
        (["train.start_from=runs/x", "train.method=full"], "train.method=full has none"),
    ],
)
def test_settings_that_do_not_fit_together(made: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        load_config(str(made), [*SELF_CRITICAL, *overrides])


# ---- single predictions


def test_a_prediction_is_the_evaluated_caption_and_its_score(made: Path) -> None:
    built = assembled(made)
    batch = next(iter(eval_image_loader(built.config, "test", None, 1, 0, 2)))
    told = built.wiring.predict(built.task, built.tokenizer, batch["image"], [])
    expected = judged(built).files[CAPTIONS_FILE][:2]
    assert [each["caption"] for each in told] == [row["caption"] for row in expected]
    assert all(each["score"] < 0 for each in told)
    with pytest.raises(AuroraError, match="takes no text"):
        built.wiring.predict(built.task, built.tokenizer, batch["image"], ["a dog"])
