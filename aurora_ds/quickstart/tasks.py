"""Every task of the toy world: its recipe, and shards of its data in the raw layout of own data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aurora_ds.data.convert import convert
from aurora_ds.errors import AuroraError
from aurora_ds.quickstart import clips, hypotheses, pairs, pointing, questions, world


@dataclass(frozen=True)
class WorldTask:
    """`recipe`: of the run; `data`: a key of DATA; `layout`: the dataset recipe that converts it; `family`: of the
    backbone."""

    recipe: str
    data: str
    layout: str
    family: str = "blip"


# Raw data by name -> what writes it into a folder, for so many media (pairs, hypotheses: statements) per split.
DATA: dict[str, Callable[..., Mapping[str, int]]] = {
    "questions": questions.write,
    "clips": clips.write,
    "captions": world.write,
    "pairs": pairs.write,
    "hypotheses": hypotheses.write,
    "phrases": pointing.write,
}
TASKS = {
    "vqa": WorldTask("vqa_world", "questions", "questions"),
    "videoqa": WorldTask("videoqa_world", "clips", "clip_questions"),
    "video_retrieval": WorldTask("retrieval_world_clips", "clips", "clips"),
    "caption": WorldTask("caption_world", "captions", "folder"),
    "nlvr": WorldTask("nlvr_world", "pairs", "pairs"),
    "grounding": WorldTask("grounding_world", "phrases", "phrases", "mplug"),
    "mplug_vqa": WorldTask("mplug_vqa_world", "questions", "questions", "mplug"),
    "mplug_caption": WorldTask("mplug_caption_world", "captions", "folder", "mplug"),
    "mplug_retrieval": WorldTask("mplug_retrieval_world", "captions", "folder", "mplug"),
    "mplug_video_retrieval": WorldTask("mplug_retrieval_world_clips", "clips", "clips", "mplug"),
    "mplug_videoqa": WorldTask("mplug_videoqa_world", "clips", "clip_questions", "mplug"),
    "mplug_video_caption": WorldTask("mplug_caption_world_clips", "clips", "clips", "mplug"),
    "mplug_nlvr": WorldTask("mplug_nlvr_world", "pairs", "pairs", "mplug"),
    "mplug_entailment": WorldTask("mplug_entailment_world", "hypotheses", "statements", "mplug"),
    "eve_retrieval": WorldTask("eve_retrieval_world", "captions", "folder", "eve"),
    "eve_vqa": WorldTask("eve_vqa_world", "questions", "questions", "eve"),
    "eve_nlvr": WorldTask("eve_nlvr_world", "pairs", "pairs", "eve"),
}


def shards_name(task: str) -> str:
    """The folder of a task's shards: families of backbones share them."""
    return task.removeprefix(f"{TASKS[task].family}_")


def make_shards(
    task: str, folder: str | Path, seed: int = 0, counts: Mapping[str, int] | None = None
) -> Path:
    """Raw data of the target domain in `folder`/raw_DATA, unless they are there, and shards of them in `folder`, under
    `shards_name`; their path is returned. Raises AuroraError for a task that the toy world does not have."""
    if task not in TASKS:
        raise AuroraError(f"The toy world has no task {task!r}; it has {', '.join(TASKS)}.")
    found, folder = TASKS[task], Path(folder)
    raw, writing = folder / f"raw_{found.data}", folder / f"raw_{found.data}.writing"
    if not raw.is_dir():
        if writing.exists():  # an earlier call was cut off while it rendered
            shutil.rmtree(writing)
        DATA[found.data](writing, "target", seed, counts)
        os.replace(writing, raw)
    shards = folder / shards_name(task)
    convert(found.layout, raw, shards)
    return shards
