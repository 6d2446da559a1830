"""All caption scores of a result file against a ground-truth file, both in COCO's layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics import java_metrics, ptb_tokenizer
from aurora_ds.tasks.metrics.bleu import bleu
from aurora_ds.tasks.metrics.cider import cider_d
from aurora_ds.tasks.metrics.json_source import Identifier, is_identifier, json_content, origin
from aurora_ds.tasks.metrics.rouge import rouge_l

_RESULTS = 'results are [{"image_id": 42, "caption": "a dog"}], one entry per image'
GROUND_TRUTH = (
    'ground truth is {"images": [{"id": 42}], "annotations": [{"image_id": 42, "caption": "a dog"}]}'
)


def caption_scores(
    results: Path | str | Sequence[Mapping[str, Any]],
    ground_truth: Path | str | Mapping[str, Any],
    java: bool = True,
) -> dict[str, Any]:
    """BLEU-1..4, ROUGE-L and CIDEr-D (METEOR and SPICE where Java and pycocoevalcap are there).

    Args:
        results: a file or the list in it: `[{"image_id", "caption"}]`. ground_truth: a file or its content: COCO's
        caption annotations. Clips are images here. java: whether METEOR and SPICE are tried.
    Returns: {"tokenizer": its name, "images": how many, "scores": {"Bleu_1" … "Bleu_4", "ROUGE_L", "CIDEr", …} as
        fractions (CIDEr 0 to 10), "skipped": {metric: why it is not in scores}, "lengths": words of {"candidates",
        "references" (the closest)}, "per_image": {image id: {"Bleu_1" …, "ROUGE_L", "CIDEr"}}}. Keys of `scores` have
        the names that coco-caption prints.
    Raises:
        AuroraError: a file or an entry has another layout; an image is missing, unknown or there twice; an image has no
        reference.
    """
    references = _references(ground_truth)
    captions = _captions(results)
    _same_images(
        captions, references, origin(results, "the results"), origin(ground_truth, "the ground truth")
    )
    identifiers = list(references)
    candidates = ptb_tokenizer.tokenize_all([captions[each] for each in identifiers])
    flat = iter(ptb_tokenizer.tokenize_all([text for each in identifiers for text in references[each]]))
    texts = [[next(flat) for _ in references[each]] for each in identifiers]

    candidate_words = [text.split() for text in candidates]
    reference_words = [[text.split() for text in each] for each in texts]
    bleus = bleu(candidate_words, reference_words)
    columns = {f"Bleu_{n + 1}": bleus.items[:, n] for n in range(bleus.items.shape[1])}
    columns["ROUGE_L"] = rouge_l(candidates, texts)
    columns["CIDEr"] = cider_d(candidate_words, reference_words)
    scores = {f"Bleu_{n + 1}": float(score) for n, score in enumerate(bleus.corpus)}
    scores |= {name: float(columns[name].mean()) for name in ("ROUGE_L", "CIDEr")}
    skipped: dict[str, str] = {}
    for name, compute in (("METEOR", java_metrics.meteor), ("SPICE", java_metrics.spice)):
        found = compute(candidates, texts) if java else "not asked for"
        (skipped if isinstance(found, str) else scores)[name] = found
    return {
        "tokenizer": ptb_tokenizer.NAME,
        "images": len(identifiers),
        "scores": scores,
        "skipped": skipped,
        "lengths": {"candidates": bleus.lengths[0], "references": bleus.lengths[1]},
        "per_image": {
            each: {name: float(column[row]) for name, column in columns.items()}
            for row, each in enumerate(identifiers)
        },
    }


def check_images(images: Sequence[Identifier], ground_truth: object, where: str) -> None:
    """Raises what `caption_scores` would raise for captions of `images`, before any is written. `where`: how messages
    name the ground truth."""
    _same_images(dict.fromkeys(images), _references(ground_truth, where), "the evaluated split", where)


def _captions(results: object) -> dict[Identifier, str]:
    """Image id -> its only caption."""
    where = origin(results, "the results")
    entries = json_content(results, _RESULTS)
    if not isinstance(entries, list):
        raise AuroraError(f"{where}: expected a list, found {type(entries).__name__}. Caption {_RESULTS}.")
    captions: dict[Identifier, str] = {}
    twice: Counter[Identifier] = Counter()
    for number, entry in enumerate(entries):
        image, caption = _entry(entry, f"{where}, entry {number}", _RESULTS)
        if image in captions:
            twice[image] += 1
        captions[image] = caption
    if twice:
        raise AuroraError(
            f"{where}: {_some(twice)} more than one caption. Caption {_RESULTS}; several ranks that each evaluated the "
            "same image must be merged before."
        )
    return captions


def _references(ground_truth: object, where: str | None = None) -> dict[Identifier, list[str]]:
    """Image id -> its captions, images in the order of the file's `images`, or of first appearance without those."""
    where = where or origin(ground_truth, "the ground truth")
    content = json_content(ground_truth, GROUND_TRUTH)
    annotations = content.get("annotations") if isinstance(content, Mapping) else None
    images = content.get("images", []) if isinstance(content, Mapping) else None
    if not isinstance(annotations, list) or not isinstance(images, list) or not annotations:
        raise AuroraError(f"{where}: no list of annotations. Caption {GROUND_TRUTH}.")
    references: dict[Identifier, list[str]] = {}
    for number, image in enumerate(images):
        identifier = image.get("id") if isinstance(image, Mapping) else None
        if not is_identifier(identifier):
            raise AuroraError(f"{where}: image {number} has no id (integer or text). Caption {GROUND_TRUTH}.")
        if identifier in references:
            raise AuroraError(f"{where}: image {identifier!r} is listed twice. Keep one entry per image.")
        references[identifier] = []
    for number, annotation in enumerate(annotations):
        image, caption = _entry(annotation, f"{where}, annotation {number}", GROUND_TRUTH)
        if images and image not in references:
            raise AuroraError(
                f"{where}: annotation {number} is of image {image!r}, which is not under images."
            )
        references.setdefault(image, []).append(caption)
    bare = [image for image, texts in references.items() if not texts]
    if bare:
        raise AuroraError(
            f"{where}: {_some(bare)} no reference caption. Remove them from images, or add captions."
        )
    return references


def _entry(entry: object, where: str, layout: str) -> tuple[Identifier, str]:
    image = entry.get("image_id") if isinstance(entry, Mapping) else None
    caption = entry.get("caption") if isinstance(entry, Mapping) else None
    if not is_identifier(image) or not isinstance(caption, str):
        shown = json.dumps(entry, default=str)[:120]
        raise AuroraError(
            f"{where}: {shown} has no image_id (integer or text) with a caption (text). Caption {layout}."
        )
    return image, caption


def _same_images(captions: Mapping, references: Mapping, results: str, ground_truth: str) -> None:
    missing = [each for each in references if each not in captions]
    unknown = [each for each in captions if each not in references]
    if not missing and not unknown:
        return
    parts = []
    if missing:
        parts.append(f"{_some(missing)} no caption in {results}")
    if unknown:
        parts.append(f"{_some(unknown)} no reference in {ground_truth}")
    hint = ""
    if {str(each) for each in missing} & {str(each) for each in unknown}:
        hint = " Some ids differ only in type: write integers as integers in both."
    raise AuroraError(
        f"{' and '.join(parts)}. Scores of other images compare with nothing: evaluate exactly the "
        f"images of the ground truth, or cut the ground truth to them.{hint}"
    )


def _some(identifiers: Sequence | Mapping) -> str:
    """`2 images (5, 9) have`: how many, and the first few."""
    first = ", ".join(repr(each) for each in list(identifiers)[:5]) + (", …" if len(identifiers) > 5 else "")
    return f"{len(identifiers)} image{'' if len(identifiers) == 1 else 's'} ({first}) {_verb(identifiers)}"


def _verb(identifiers: Sequence | Mapping) -> str:
    return "has" if len(identifiers) == 1 else "have"
