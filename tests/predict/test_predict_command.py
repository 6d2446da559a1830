"""`aurora-ds predict`: its table, its record, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from predict_media import CAPTIONS, CLIPS, QUESTIONS, TEST, scores

import aurora_ds
from aurora_ds.cli import main


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
        (lambda folder: ["--image", TEST[0], Path(__file__)], "test_predict_command.py is not a JPEG"),
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
