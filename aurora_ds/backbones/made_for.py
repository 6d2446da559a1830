"""What a published file was trained for, by its names, and which models may start from it."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = {
    "pre-training": "pre-training",
    "retrieval": "retrieval",
    "vqa": "question answering",
    "caption": "captioning",
    "nlvr": "NLVR2",
    "encoders": "it has encoders alone",
}
# by backbone.head; what a file has beside the model's own parts does no harm
STARTS_FROM = {
    "retrieval": {"retrieval", "pre-training"},
    "vqa": {"vqa", "pre-training"},
    "caption": {"caption", "pre-training"},
    "nlvr": {"nlvr", "retrieval", "vqa", "pre-training", "encoders"},
}
_SAID = {
    "retrieval": "retrieval starts from a pre-trained or a retrieval checkpoint",
    "vqa": "question answering (backbone.head=vqa) starts from a VQA or a pre-trained checkpoint",
    "caption": "captioning (backbone.head=caption) starts from a captioning or a pre-trained checkpoint",
    "nlvr": "two-image reasoning (backbone.head=nlvr) starts from an NLVR2 or a pre-trained checkpoint",
}


def made_for(names: Iterable[str]) -> str | None:
    """A key of NAMED for a file's tensors under published names; None for what is no BLIP model."""
    names = list(names)
    parts = {name.partition(".")[0] for name in names}
    if "visual_encoder" not in parts:
        return None
    if "cls_head" in parts or any(".crossattention.self0." in name for name in names):
        return "nlvr"
    encoder, decoder = "text_encoder" in parts, "text_decoder" in parts
    if parts & {"itm_head", "vision_proj", "text_proj"}:
        return "pre-training" if decoder else "retrieval"
    if decoder:
        return "vqa" if encoder else "caption"
    return "encoders" if encoder else None


def another_task(names: Iterable[str], head: str) -> str | None:
    """What to say of a file that was trained for something that `head` cannot start from; None when it can, or when the
    file does not tell."""
    kind = made_for(names)
    if kind is None or kind in STARTS_FROM[head]:
        return None
    return f"It seems to be made for another task ({NAMED[kind]}): {_SAID[head]}."
