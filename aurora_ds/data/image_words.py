"""Words of an image behind its question (mPLUG, EMNLP 2022, as its released training of VQA does): what was read on the
image (OCR), the names of the objects that a detector found. They are part of the annotations; nothing is detected here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora_ds.config import RunConfig, VqaConfig
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.mixture import open_manifest, open_mixture
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.text import eve_question
from aurora_ds.errors import AuroraError

OCR_WORDS = (
    30  # as published, after cleaning; names of objects are cut by the question's length in tokens alone
)
_LOOKED_AT = (
    200  # media of a split, before a run: its first ones, as shards behind an address are fetched whole
)


def image_words(question: Mapping[str, Any], options: VqaConfig) -> list[str]:
    """The texts that stand behind a question of a record, in their order: the words of `ocr`, cleaned, then the
    names in `objects`, each as often as it was found. None for what the record lacks or `options` leaves out.

    Raises AuroraError for a field that is not a list of texts."""
    found = []
    if options.add_ocr and (words := _texts(question, "ocr")):
        found.append(eve_question(" ".join(words), OCR_WORDS))
    if options.add_objects and (names := _texts(question, "objects")):
        found.append(" ".join(names))
    return found


def check_image_words(config: RunConfig) -> None:
    """Look for the words that the recipe asks for, in some media of what is trained on (any of its splits) and of the
    split that is judged. Raises AuroraError where there are none: the run would be another than its recipe says."""
    fields = {"add_ocr": "ocr", "add_objects": "objects"}
    wanted = {switch: field for switch, field in fields.items() if getattr(config.vqa, switch)}
    if not wanted:
        return
    trained = [(source.manifest, source.split) for source in open_mixture(config, "questions").sources]
    for splits in (trained, [(open_manifest(config), config.data.eval_split)]):
        found = set().union(*(_fields(*each, list(wanted.values())) for each in splits))
        lacking = [switch for switch, field in wanted.items() if field not in found]
        if lacking:
            where = " and of ".join(
                f"split {split!r} in {manifest.store.place}" for manifest, split in splits
            )
            raise AuroraError(
                f"{' and '.join(f'vqa.{each}' for each in lacking)}: words of the image are to stand behind each "
                f"question, and no question of {where} has any (its first {_LOOKED_AT} media). Convert "
                "annotations with `ocr` and `object_label`, such as mPLUG's lists, or do without: "
                f"{' '.join(f'vqa.{each}=false' for each in lacking)}."
            )


def _fields(manifest: Manifest, split: str, wanted: Sequence[str]) -> set[str]:
    """Which of the fields some question has, of the first media of the split."""
    reader, found = ShardReader(manifest), set()
    try:
        for medium in range(min(_LOOKED_AT, manifest.media(split))):
            for question in reader.record(split, medium)[1].get("questions") or []:
                found |= {name for name in wanted if question.get(name)}
            if len(found) == len(wanted):
                break
    finally:
        reader.close()
    return found


def _texts(question: Mapping[str, Any], name: str) -> list[str]:
    value = question.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise AuroraError(
            f"Question {question.get('question_id', question.get('question'))!r} has {str(value)[:80]} as `{name}`; "
            "expected a list of texts. Convert the dataset again."
        )
    return value
