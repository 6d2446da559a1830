"""Wrong media, texts, folders and recipes of single predictions: one paragraph each."""

from __future__ import annotations

import pytest
from predict_media import CLIPS, PHOTOS, QUESTIONS, TEST

import aurora_ds
from aurora_ds.errors import AuroraError


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
