"""Every value of small annotation files replaced by every kind of wrong one: entries, or an error of ours."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_tools import ANNOTATIONS
from test_convert_refcoco import REFERENCES, TUPLES

from aurora_ds.data.convert.progress import counter
from aurora_ds.data.convert.recipe import load_recipe
from aurora_ds.data.convert.sources import FAMILIES
from aurora_ds.data.convert.spool import open_spool
from aurora_ds.errors import AuroraError

WRONG = [None, True, -1, 1.5, 10**30, "", " \n", "\ud800", [], [None], {"a": 1}]
GONE = object()
UNREAD = """info license licenses categories segmentation tokens a_objects q_objects coco_url flickr_url date_captured
left_url right_url validation extra_validations query writer synset area iscrowd height width""".split()


def excerpt(name: str) -> Any:
    text = (ANNOTATIONS / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.startswith("nlvr2") else json.loads(text)


def cut(content: Any) -> Any:
    """The same with one entry in every list and without what no reader looks at: tests stay fast."""
    if isinstance(content, list):
        return content if isinstance(content[0], float) else [cut(each) for each in content[:1]]
    if isinstance(content, dict):
        return {name: cut(value) for name, value in content.items() if name not in UNREAD}
    return content


SNLI = {"Flickr30K_ID": "1", "gold_label": "neutral", "pairID": "1.jpg#0r1n", "sentence2": "A man."}
LISTED = {
    "image": "val2014/COCO_val2014_000000000042.jpg",
    "question": "What?",
    "question_id": 1,
    "answer": ["a"],
}
OFFICIAL_VQA = {
    "train": cut(excerpt("v2_OpenEnded_mscoco_train2014_questions.json")),
    "train_answers": cut(excerpt("v2_mscoco_train2014_annotations.json")),
}
INSTANCES = cut(excerpt("instances.json"))
KARPATHY = {
    "filename": "a.jpg", "imgid": 0, "cocoid": 5, "split": "val", "sentences": [{"raw": "A.", "sentid": 3}]
}  # fmt: skip
# recipe, format, files by their key
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("vqav2", "official", OFFICIAL_VQA),
    ("vqav2", "blip", {"train": [LISTED]}),
    (
        "visual_genome_qa",
        "official",
        {"questions": cut(excerpt("question_answers.json")), "images": cut(excerpt("image_data.json"))},
    ),
    ("nlvr2", "official", {"dev": cut(excerpt("nlvr2_dev.json"))}),
    ("nlvr2", "blip", {"dev": [{"images": ["a.png", "b.png"], "sentence": "A.", "label": "True"}]}),
    ("snli_ve", "official", {"dev": [SNLI]}),
    ("snli_ve", "albef", {"dev": [{"image": "1", "sentence": "A.", "label": "neutral"}]}),
    ("statements", "list", {"train": [
        {"image": "a.jpg", "sentence": "A.", "label": "neutral", "identifier": "a-1"},
    ]}),
    ("refcoco", "refer", {"refs": cut(REFERENCES), "instances": INSTANCES}),
    ("refcoco_plus", "xvlm", {
        "train": [{"image": "a.jpg", "text": "a", "ref_id": 1}], "refs": cut(REFERENCES), "instances": INSTANCES,
    }),
    ("refcoco", "transvg", {"val": TUPLES[:1]}),
    ("phrases", "list", {"train": [{"image": "a.jpg", "phrase": "a dog", "box": [1, 2, 3, 4]}]}),
    ("coco_caption", "coco", {"val": cut(excerpt("captions_val2014.json"))}),
    ("coco_caption", "karpathy", {"all": {"images": [KARPATHY]}}),
    ("coco_caption", "blip", {
        "val": cut(excerpt("coco_karpathy_val.json")), "val_gt": cut(excerpt("coco_karpathy_val_gt.json")),
    }),
    ("flickr30k", "maccap", {"all": [{"split": "test", "image_name": "a.jpg", "captions": ["A."]}]}),
    ("nocaps", "blip", {"val": cut(excerpt("nocaps_val.json"))}),
]  # fmt: skip


def places(content: Any, here: tuple = ()) -> Iterator[tuple]:
    """Paths of all values in a JSON tree."""
    if here:
        yield here
    for key in (
        content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    ):
        yield from places(content[key], (*here, key))


def damaged(content: Any) -> Iterator[tuple[str, Any]]:
    """(what was done, the content with one value replaced or gone), and the whole replaced."""
    for wrong in WRONG:
        yield f"all is {wrong!r}", wrong
    for place in places(content):
        for wrong in (*WRONG, GONE):
            changed = copy.deepcopy(content)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            if wrong is GONE:
                del holder[place[-1]]
            else:
                holder[place[-1]] = wrong
            yield f"{place} is {'gone' if wrong is GONE else repr(wrong)}", changed


def write(path: Path, recipe: str, form: str, content: Any) -> None:
    if form == "transvg":
        torch.save(content, path)
    elif path.name == "refs":
        path.write_bytes(pickle.dumps(content))
    elif form == "official" and recipe in ("nlvr2", "snli_ve"):
        path.write_text(
            "".join(f"{json.dumps(row)}\n" for row in content) if isinstance(content, list) else "7\n"
        )
    else:
        path.write_text(json.dumps(content))


def read_all(folder: Path, recipe: str, form: str, files: dict[str, Any]) -> None:
    """Reads the family's entries into a spool, as a conversion does."""
    loaded = load_recipe(recipe)
    way = next(way for way in loaded.annotations if way.format == form)
    entries = FAMILIES[loaded.family].read(way, {key: folder / key for key in files})
    (folder / "spool").unlink(missing_ok=True)
    with counter("reading") as progress:
        open_spool(folder / "spool", "any", entries, None, progress).close()


@pytest.mark.parametrize(
    ("recipe", "form", "files"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_damaged_annotations_are_errors_of_ours(
    tmp_path: Path, recipe: str, form: str, files: dict[str, Any]
) -> None:
    for key, content in files.items():
        write(tmp_path / key, recipe, form, content)
    read_all(tmp_path, recipe, form, files)
    refused = 0
    for key, content in files.items():
        for what, changed in damaged(content):
            write(tmp_path / key, recipe, form, changed)
            try:
                read_all(tmp_path, recipe, form, files)
            except AuroraError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{key}: {what}") from error
        write(tmp_path / key, recipe, form, content)
    assert refused > 10
