"""Photos, clips and words that are asked about in single predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
PHOTOS = DATA / "photos" / "images"
TRAIN, TEST = sorted(PHOTOS.glob("*.jpg"))[:4], [*sorted(PHOTOS.glob("vg_*")), PHOTOS / "chelsea.png"]
CLIPS = [DATA / "videos" / name for name in ("nasa_13013.mp4", "video_270.mov", "h265_video.mp4")]
CAPTIONS = ["a red ball on the grass", "two blue cups on the sand", "a tree by a brick wall"]
QUESTIONS = ["are there two red balls", "is the tree to the left", "are there some blue cups"]
ANSWERS = ["red", "blue", "two", "on the grass", "a brick wall"]
FAMILIES = {"retrieval": "folder", "vqa": "questions", "caption": "folder", "nlvr": "pairs"}  # by task


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {each["text"]: each["score"] for each in found["texts"]}
