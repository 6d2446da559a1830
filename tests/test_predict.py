"""Single predictions: from Python and the command line, for every task, as evaluation answers for the same media."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import pair_shards, recipe

import aurora_ds
from aurora_ds.cli import main
from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import judged_task, task_forward
from aurora_ds.recipe import load_config
from aurora_ds.wiring.base import Evaluation

os.environ.setdefault("DS_ACCELERATOR", "cpu")

DATA = Path(__file__).parent / "data"
PHOTOS = DATA / "photos" / "images"
TRAIN, TEST = sorted(PHOTOS.glob("*.jpg"))[:4], [*sorted(PHOTOS.glob("vg_*")), PHOTOS / "chelsea.png"]
CLIPS = [DATA / "videos" / name for name in ("nasa_13013.mp4", "video_270.mov", "h265_video.mp4")]
CAPTIONS = ["a red ball on the grass", "two blue cups on the sand", "a tree by a brick wall"]
QUESTIONS = ["are there two red balls", "is the tree to the left", "are there some blue cups"]
ANSWERS = ["red", "blue", "two", "on the grass", "a brick wall"]
FAMILIES = {"retrieval": "folder", "vqa": "questions", "caption": "folder", "nlvr": "pairs"}  # by task


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Shards of a family of own data: photographs or clips with captions or questions, drawn pairs with statements."""
    made: dict[str, Path] = {}

    def rows(media: list[Path], first: int) -> list[dict[str, Any]]:
        return [
            {"image": path.name, "video": path.name, "video_id": path.stem, "caption": CAPTIONS[number % 3]}
            | {
                "question": QUESTIONS[number % 3],
                "question_id": first + number,
                "answer": ANSWERS[number % 5],
            }
            for number, path in enumerate(media)
        ]

    def write(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        if family == "pairs":
            return pair_shards(folder, train=6, test=3)
        splits = {"train": CLIPS, "test": CLIPS} if "clip" in family else {"train": TRAIN, "test": TEST}
        for number, (split, media) in enumerate(splits.items()):
            listed = rows(media, 100 * number)
            (folder / f"{split}.json").write_text(json.dumps(listed))
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, listed)))
            for path in media:
                shutil.copy(path, folder)
        (folder / "answer_list.json").write_text(json.dumps(ANSWERS))
        convert(family, folder, folder / "shards")
        return folder / "shards"

    def shards(family: str) -> Path:
        if family not in made:
            made[family] = write(family)
        return made[family]

    return shards


@pytest.fixture(scope="module")
def recipes(shards, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The recipe of a task, over shards of its own and a backbone with random weights."""
    made: dict[str, Path] = {}
    options = {
        "retrieval": {"queue_size": 8, "beta": 0.5},
        "vqa": {"k_test": 3},
        "caption": {"prompt": "a photo of ", "generation": {"max_length": 9, "min_length": 4}},
        "nlvr": {},
    }

    def recipes(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(f"{task}-recipe")
            made[task] = recipe(folder, task, shards(FAMILIES[task]), **{task: options[task]})
        return made[task]

    return recipes


@pytest.fixture(scope="module")
def runs(recipes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a short run of a task."""
    made: dict[str, Path] = {}

    def runs(task: str) -> Path:
        if task not in made:
            from aurora_ds.train import run

            made[task] = tmp_path_factory.mktemp(task) / "run"
            with redirect_stdout(StringIO()):  # not what the test that comes first prints
                run(load_config(str(recipes(task)), ["evaluate.limit=1"]), made[task])
        return made[task]

    return runs


def evaluated(recipe: Path, run: Path | None, *overrides: str) -> Evaluation:
    """What evaluation finds on the whole test split."""
    adapter = None if run is None else str(run / "adapter")
    assembled = judged_task(load_config(str(recipe), list(overrides)), adapter, torch.device("cpu"))
    with torch.no_grad():
        return assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer)


# ---- as evaluation


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {each["text"]: each["score"] for each in found["texts"]}


@pytest.mark.parametrize(
    ("family", "keyword", "media"), [("folder", "image", TEST), ("clips", "video", CLIPS)]
)
def test_retrieval_scores_are_those_of_evaluation(
    family: str, keyword: str, media: list[Path], recipes, runs, shards
) -> None:
    there = [f"data.shards={shards(family)}", "data.video.frames=3"]
    result = evaluated(recipes("retrieval"), runs("retrieval"), *there).details
    predictor = aurora_ds.load(runs("retrieval"), overrides=["data.video.frames=3"])
    found = [scores(each) for each in predictor.predict(**{keyword: media}, text=CAPTIONS)]
    assert result.text_candidates.shape == (len(media), len(media))
    ranked = zip(result.text_candidates.tolist(), result.text_scores.tolist(), strict=True)
    for text, (candidates, values) in enumerate(ranked):
        expected = [found[medium][CAPTIONS[text % 3]] for medium in candidates]
        assert values == pytest.approx(expected, abs=1e-4)


def test_answers_are_those_of_evaluation(recipes, runs) -> None:
    details = evaluated(recipes("vqa"), runs("vqa")).details
    predictor = aurora_ds.load(runs("vqa"))
    found = predictor.predict(
        image=[TEST[each.medium] for each in details.asked], text=[each.text for each in details.asked]
    )
    assert [each["answer"] for each in found] == [said.answer for said in details.said]
    assert [each["score"] for each in found] == pytest.approx([said.score for said in details.said], rel=1e-4)
    assert len(found) == len(TEST) and all(len(each["answers"]) == 3 for each in found)


def test_answers_about_clips_by_the_frozen_backbone_are_those_of_evaluation(recipes, shards) -> None:
    settings = ["data.video.frames=3", "vqa.inference=generate", "vqa.accuracy=exact"]
    details = evaluated(recipes("vqa"), None, f"data.shards={shards('clip_questions')}", *settings).details
    predictor = aurora_ds.load(recipe=recipes("vqa"), overrides=settings)
    for asked, said in zip(details.asked, details.said, strict=True):
        found = predictor.predict(video=CLIPS[asked.medium], text=asked.text)
        assert found["answer"] == said.answer and found["score"] == pytest.approx(said.score, rel=1e-4)
    assert predictor.about["method"] == "frozen" and predictor.about["adapter"] is None


def test_captions_are_those_of_evaluation(recipes, runs) -> None:
    evaluation = evaluated(recipes("caption"), runs("caption"))
    found = aurora_ds.load(runs("caption")).predict(image=TEST)
    assert [each["caption"] for each in found] == [
        row["caption"] for row in evaluation.files["captions.json"]
    ]
    assert all(each["score"] < 0 for each in found)


def test_judged_statements_are_those_of_evaluation(recipes, runs, shards) -> None:
    details = evaluated(recipes("nlvr"), runs("nlvr")).details
    images = shards("pairs").parent / "raw" / "images" / "test"
    pairs = [[images / f"{each.pair:02d}-{side}.png" for side in (0, 1)] for each, _ in details]
    found = aurora_ds.load(runs("nlvr")).predict(images=pairs, text=[each.sentence for each, _ in details])
    for each, (_, judged) in zip(found, details, strict=True):
        assert each["label"] == str(judged.says)
        assert each["probabilities"]["True"] == pytest.approx(judged.probability, rel=1e-4)
    assert len(found) >= 6


# ---- from Python


def test_one_medium_gives_a_dict_and_lists_give_lists(runs) -> None:
    answers = aurora_ds.load(runs("vqa"))
    one = answers.predict(image=TEST[0], text=QUESTIONS[0])
    assert answers.predict(image=[TEST[0]], text=QUESTIONS[0]) == [one]
    two = answers.predict(image=TEST[0], text=QUESTIONS[:2])
    assert [each["question"] for each in two] == QUESTIONS[:2] and two[0]["answer"] == one["answer"]
    shared = answers.predict(image=TEST[:2], text=QUESTIONS[0])
    assert [each["question"] for each in shared] == [QUESTIONS[0]] * 2
    assert answers.predict(image=[], text=QUESTIONS[0]) == []


def test_however_an_image_comes_the_answer_is_the_same(runs) -> None:
    captions = aurora_ds.load(runs("caption"))
    wanted = captions.predict(image=TEST[0])
    opened = Image.open(TEST[0])
    for given in (str(TEST[0]), TEST[0].read_bytes(), opened, np.asarray(opened.convert("RGB"))):
        assert captions.predict(image=given) == wanted


def test_more_media_than_fit_a_batch_are_answered_in_order(runs) -> None:
    small = aurora_ds.load(runs("caption"), overrides=["evaluate.image_batch_size=2"])
    found = small.predict(image=TEST)
    alone = [small.predict(image=each) for each in TEST]
    assert [each["caption"] for each in found] == [each["caption"] for each in alone]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in alone], rel=1e-4)


def test_a_predictor_says_which_model_it_is(runs, recipes) -> None:
    from aurora_ds.backbones.checkpoint import load_backbone

    about = aurora_ds.load(runs("caption")).about
    assert (about["task"], about["method"], about["preset"]) == ("caption", "aurora", "aurora")
    assert about["adapter"] == str(runs("caption") / "adapter") and about["seed"] == 42
    assert about["backbone"]["sha256"] == load_backbone(load_config(str(recipes("caption"))).backbone).sha256


@pytest.mark.parametrize("task", FAMILIES)
def test_a_checkpoint_predicts_too_and_loading_leaves_the_callers_random_numbers(task: str, runs) -> None:
    place = next((runs(task) / "checkpoints").glob("step-*"))  # trains, when it is asked for first
    torch.manual_seed(7)
    before = torch.get_rng_state()
    predictor = aurora_ds.load(place)
    assert torch.equal(torch.get_rng_state(), before)
    assert not predictor._assembled.task.training and predictor.config.task == task


def test_the_frozen_backbone_answers_otherwise(runs, recipes) -> None:
    trained = aurora_ds.load(runs("retrieval")).predict(image=TEST[0], text=CAPTIONS)
    frozen = aurora_ds.load(recipe=str(recipes("retrieval"))).predict(image=TEST[0], text=CAPTIONS)
    assert scores(trained) != pytest.approx(scores(frozen), abs=1e-3)


def test_blank_media_are_answered_from_the_text_alone(recipes) -> None:
    blank = aurora_ds.load(recipe=recipes("retrieval"), overrides=["data.media=blank"])
    first, second = blank.predict(image=TEST[:2], text=CAPTIONS)
    assert first == second


def test_frames_and_window_are_those_of_the_call(recipes) -> None:
    clips = aurora_ds.load(recipe=recipes("caption"), overrides=["data.video.frames=2"])
    many = aurora_ds.load(
        recipe=recipes("caption"), overrides=["data.video.frames=4", "data.video.window=[3,6]"]
    )
    wanted = many.predict(video=CLIPS[0])["score"]
    assert clips.predict(video=CLIPS[0], frames=4, window=(3, 6))["score"] == wanted
    assert clips.predict(video=CLIPS[0])["score"] != wanted
    with pytest.raises(AuroraError, match="frames=0 of a clip: Input should be greater than 0"):
        clips.predict(video=CLIPS[0], frames=0)


def test_half_precision_and_a_named_device(runs) -> None:
    half = aurora_ds.load(runs("retrieval"), device="cpu", precision="bf16")
    full = aurora_ds.load(runs("retrieval"), device="cpu")
    found = [scores(each.predict(image=TEST[0], text=CAPTIONS)) for each in (half, full)]
    assert found[0] == pytest.approx(found[1], abs=0.2) and found[0] != found[1]


# ---- other places than runs


def test_exported_and_fully_trained_models_predict_from_their_folder(recipes, tmp_path: Path) -> None:
    from aurora_ds.export import run as export
    from aurora_ds.train import run

    short = ["train.max_steps=1", "evaluate.limit=1"]
    run(load_config(str(recipes("vqa")), [*short, "prompts.query_transform=false"]), tmp_path / "run")
    export(tmp_path / "run", "merged", tmp_path / "exported")
    shutil.move(tmp_path / "exported", tmp_path / "merged")  # it names its own weights wherever it is
    run(load_config(str(recipes("vqa")), [*short, "train.method=full"]), tmp_path / "full")
    asked = {"image": TEST[0], "text": QUESTIONS[0]}
    wanted = aurora_ds.load(tmp_path / "run").predict(**asked)
    merged = aurora_ds.load(tmp_path / "merged")
    assert merged.predict(**asked)["score"] == pytest.approx(wanted["score"], rel=1e-3)
    assert merged.about["adapter"] == str(tmp_path / "merged")
    full = aurora_ds.load(tmp_path / "full")
    assert full.about["method"] == "full" and full.predict(**asked)["answer"] in ANSWERS


def test_a_backbone_that_moved_is_named(runs, recipes, tmp_path: Path) -> None:
    shutil.copytree(runs("caption") / "adapter", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(place.read_text())
    here = Path(saved["backbone"]["config"]["checkpoint"])
    saved["backbone"]["config"]["checkpoint"] = "gone.safetensors"
    place.write_text(json.dumps(saved))
    with pytest.raises(AuroraError, match="gone.safetensors: there is no such file.*backbone=FILE"):
        aurora_ds.load(tmp_path)
    moved = aurora_ds.load(tmp_path, backbone=here).predict(image=TEST[0])
    assert moved == aurora_ds.load(runs("caption")).predict(image=TEST[0])


def test_an_adapter_without_settings_needs_a_recipe(runs, recipes, tmp_path: Path) -> None:
    shutil.copytree(runs("caption") / "adapter", tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(place.read_text())
    del saved["settings"]
    place.write_text(json.dumps(saved))
    with pytest.raises(AuroraError, match="does not say how it is used.*Give the recipe"):
        aurora_ds.load(tmp_path)
    found = aurora_ds.load(tmp_path, recipe=recipes("caption")).predict(image=TEST[0])
    assert found == aurora_ds.load(runs("caption")).predict(image=TEST[0])


# ---- mistakes


@pytest.mark.parametrize(
    ("task", "asked", "message"),
    [
        ("nlvr", {"image": TEST[0], "text": "a"}, "nlvr takes two images.*not an image"),
        ("nlvr", {"video": CLIPS[0], "text": "a"}, "nlvr takes two images.*not a clip"),
        ("nlvr", {"images": TEST[:3], "text": "a"}, "two images.*here are 3"),
        ("nlvr", {"images": TEST[:2]}, "1 pairs of images need"),
        ("vqa", {"images": TEST[:2], "text": "a"}, "takes an image.*or a clip.*not two images"),
        ("vqa", {"image": TEST[0]}, "one question for each"),
        ("vqa", {"image": TEST[0], "text": " "}, "one question for each"),
        ("vqa", {"image": TEST[:3], "text": QUESTIONS[:2]}, "2 texts were given for 3 media"),
        ("vqa", {"image": TEST[0], "text": 3}, "A text is of type int"),
        ("vqa", {"image": TEST[0], "text": [3]}, "A text is of type int"),
        ("caption", {"image": TEST[0], "text": "a"}, "takes no text"),
        ("retrieval", {"image": TEST[0]}, "needs texts"),
        ("caption", {}, "No medium was given"),
        ("caption", {"image": TEST[0], "video": CLIPS[0]}, "Several media were given"),
        ("caption", {"image": CLIPS[0]}, "nasa_13013.mp4 is not a JPEG"),
        ("caption", {"video": TEST[0]}, "is not a video of a known kind"),
        ("caption", {"image": "no/such.jpg"}, "no/such.jpg is not there"),
        ("caption", {"image": PHOTOS}, "a folder, where one file is needed"),
    ],
    ids=str,
)
def test_wrong_media_and_texts(task: str, asked: dict, message: str, predictors) -> None:
    with pytest.raises(AuroraError, match=message):
        predictors(task).predict(**asked)


@pytest.fixture(scope="module")
def predictors(runs) -> Callable[[str], aurora_ds.Predictor]:
    made: dict[str, aurora_ds.Predictor] = {}

    def predictors(task: str) -> aurora_ds.Predictor:
        if task not in made:
            made[task] = aurora_ds.load(runs(task))
        return made[task]

    return predictors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Nothing to predict with"),
        ({"recipe": "no_such"}, "There is no recipe"),
        ({"adapter": "no/such/folder"}, "No adapter in"),
        ({"recipe": "retrieval_world", "device": "cuda:77"}, "no device 'cuda:77'"),
        ({"recipe": "retrieval_world", "precision": "fp8"}, "train.precision = 'fp8'"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded(arguments: dict, message: str) -> None:
    with pytest.raises(AuroraError, match=message):
        aurora_ds.load(**arguments)


def test_shards_of_a_recipe_need_not_be_there(recipes) -> None:
    elsewhere = ["data.shards=no/such/shards"]
    assert aurora_ds.load(recipe=recipes("caption"), overrides=elsewhere).predict(image=TEST[0])["caption"]
    with pytest.raises(AuroraError, match="none is given: set vqa.answer_list"):
        aurora_ds.load(recipe=recipes("vqa"), overrides=elsewhere).predict(image=TEST[0], text=QUESTIONS[0])


def test_a_recipe_of_another_task_is_refused(runs, recipes) -> None:
    with pytest.raises(AuroraError, match="trained for the task caption, but .* is a recipe of vqa"):
        aurora_ds.load(runs("caption"), recipe=recipes("vqa"))


# ---- the command


def command(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_results(runs, tmp_path: Path, capsys) -> None:
    adapter, output = runs("retrieval"), tmp_path / "out"
    texts = [part for text in CAPTIONS for part in ("--text", text)]
    assert command("--adapter", adapter, "--image", *TEST[:2], *texts, "--output", output) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("retrieval, aurora", "similarity", "match", "tiny.safetensors (sha256 ", "preset aurora"):
        assert part in shown, part
    record = json.loads((output / "results.json").read_text())
    assert [each["image"] for each in record["predictions"]] == [str(path) for path in TEST[:2]]
    assert [len(each["texts"]) for each in record["predictions"]] == [3, 3]
    wanted = aurora_ds.load(adapter).predict(image=TEST[1], text=CAPTIONS)
    assert scores(record["predictions"][1]) == pytest.approx(scores(wanted))


def test_every_question_is_put_to_every_image_and_json_is_all_that_is_printed(runs, capsys) -> None:
    asked = ("--text", QUESTIONS[0], "--text", QUESTIONS[1], "--json")
    assert command("--adapter", runs("vqa"), "--image", TEST[0], "--image", TEST[1], *asked) == 0
    record = json.loads(capsys.readouterr().out)
    found = [(each["image"], each["question"]) for each in record["predictions"]]
    assert found == [(str(path), question) for path in TEST[:2] for question in QUESTIONS[:2]]
    assert record["method"] == "aurora" and len(record["backbone"]["sha256"]) == 64


def test_pairs_are_taken_two_by_two(runs, shards, capsys) -> None:
    images = sorted((shards("pairs").parent / "raw" / "images" / "test").iterdir())[:4]
    said = ("--text", "both photos have a small boat")
    assert command("--adapter", runs("nlvr"), "--image", *images, *said, "--json") == 0
    pairs = [each["images"] for each in json.loads(capsys.readouterr().out)["predictions"]]
    assert pairs == [list(map(str, images[:2])), list(map(str, images[2:]))]
    assert command("--adapter", runs("nlvr"), "--image", *images[:2], *said) == 0
    shown = capsys.readouterr().out
    assert "True 0." in shown and images[0].name in shown and images[1].name in shown
    assert command("--adapter", runs("nlvr"), "--image", images[0], *said) == 2
    assert "an even number of files" in capsys.readouterr().err


def test_settings_may_stand_in_place_of_a_recipe_and_after_files(runs, recipes, capsys) -> None:
    adapter = ("--adapter", runs("caption"))
    assert command("data.video.frames=2", *adapter, "--video", CLIPS[0], "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert command(*adapter, "--video", CLIPS[0], "data.video.frames=2", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert first["predictions"] == second["predictions"]
    assert (first["frames"], first["sampling"]) == (2, "uniform")
    assert command(recipes("caption"), "--video", CLIPS[0], "data.video.frames=2") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "caption, frozen" in shown and "2 frames uniform" in shown


def damaged_clip(folder: Path) -> Path:
    path = folder / "cut.mp4"
    path.write_bytes(CLIPS[0].read_bytes()[:200_000])
    return path


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (lambda folder: ["--image", folder / "none.jpg"], "none.jpg is not there"),
        (lambda folder: ["--image", TEST[0], Path(__file__)], "test_predict.py is not a JPEG"),
        (lambda folder: ["--video", damaged_clip(folder)], "cut.mp4"),
        (lambda folder: ["--image", "https://example.org/a.jpg"], "is a URL"),
    ],
    ids=["missing", "no image", "damaged clip", "URL"],
)
def test_a_wrong_file_is_one_paragraph_and_nothing_is_written(media, message, runs, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    assert command("--adapter", runs("caption"), *media(tmp_path), "--output", output) == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.strip().splitlines()) == 1 and printed.out == ""
    assert not output.exists()


def test_the_results_of_a_run_are_not_written_over(runs, capsys) -> None:
    before = (runs("caption") / "results.json").read_bytes()
    assert command("--adapter", runs("caption"), "--image", TEST[0], "--output", runs("caption")) == 2
    assert "holds the results of something else" in capsys.readouterr().err
    assert (runs("caption") / "results.json").read_bytes() == before
