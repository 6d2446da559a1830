"""Text rules of BLIP (arXiv 2201.12086), mPLUG (EMNLP 2022) and EVE (AAAI 2024), as their released code has them:
captions and questions before tokenisation."""

from __future__ import annotations

import re
from collections.abc import Callable

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_EVE_PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~]")
_SPACE_RUN = re.compile(r"\s{2,}")


def pre_caption(caption: str, max_words: int = 50) -> str:
    """Lower case, `.!"()*#:;~` to spaces, runs of white space to one space, trimmed, at most `max_words` words.

    As published, a single tab or newline inside stays, and words are what stands between single spaces.
    """
    text = _PUNCTUATION.sub(" ", caption.lower())
    text = _SPACE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return _first_words(text, max_words)


def pre_question(question: str, max_words: int = 50) -> str:
    """Lower case, `.!"()*#:;~` removed, spaces at the end removed, at most `max_words` words. Inner spaces stay."""
    return _first_words(_PUNCTUATION.sub("", question.lower()).rstrip(" "), max_words)


def mplug_caption(caption: str, max_words: int = 30) -> str:
    """mPLUG: lower case, `,.'!?"()*#:;~` removed, `-` and `/` to spaces, "<person>" to "person", runs of white space to
    one space, trimmed, at most `max_words` words."""
    text = _without_eve_punctuation(caption).replace("<person>", "person")
    return _first_words(_SPACE_RUN.sub(" ", text).rstrip("\n").strip(" "), max_words)


def eve_caption(caption: str, max_words: int = 30) -> str:
    """EVE: backquotes removed, and the rest as mPLUG."""
    return mplug_caption(caption.replace("`", ""), max_words)


def eve_question(question: str, max_words: int = 30) -> str:
    """EVE: lower case, `,.'!?"()*#:;~` removed, `-` and `/` to spaces, spaces at the end removed, at most `max_words`
    words. Inner spaces stay, and two in a row have an empty word between them."""
    return _first_words(_without_eve_punctuation(question).rstrip(" "), max_words)


def caption_rule(backbone: str) -> Callable[[str, int], str]:
    """What cleans captions and statements for a family of backbones."""
    return {"eve": eve_caption, "mplug": mplug_caption}.get(backbone, pre_caption)


def _without_eve_punctuation(text: str) -> str:
    return _EVE_PUNCTUATION.sub("", text.lower()).replace("-", " ").replace("/", " ")


def _first_words(text: str, max_words: int) -> str:
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text
