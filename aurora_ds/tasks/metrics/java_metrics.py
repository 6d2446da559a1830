"""METEOR and SPICE through pycocoevalcap and Java, where both are there; otherwise the reason why not, not a number."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

INSTALL = "pip install pycocoevalcap"
# What a Java program that dies half-way looks like from here: a broken pipe, an empty answer, an exit status.
_FAILURES = (OSError, ValueError, KeyError, subprocess.SubprocessError)


def obstacle(metric: str) -> str | None:
    """Why `metric` ("METEOR" or "SPICE") cannot be computed on this machine; None when it can."""
    if shutil.which("java") is None:
        return "no java in PATH"
    if importlib.util.find_spec("pycocoevalcap") is None:
        return f"pycocoevalcap is not installed ({INSTALL})"
    if metric == "SPICE" and not _spice_models().is_file():
        # its own code would now fetch 384 MB over plain http, in the middle of an evaluation
        return (
            f"{_spice_models().name} is missing; fetch it once (384 MB): "
            "python -m pycocoevalcap.spice.get_stanford_models"
        )
    return None


def _spice_models() -> Path:
    package = importlib.util.find_spec("pycocoevalcap")
    folder = Path(next(iter(package.submodule_search_locations)))
    return folder / "spice" / "lib" / "stanford-corenlp-3.6.0.jar"


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float | str:
    """METEOR 1.5 of tokenised captions over the corpus; a text says why there is none."""
    reason = obstacle("METEOR")
    if reason is not None:
        return reason
    from pycocoevalcap.meteor.meteor import Meteor

    return _corpus_score(Meteor, candidates, references)


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float | str:
    """SPICE of tokenised captions, mean over the corpus; a text says why there is none."""
    reason = obstacle("SPICE")
    if reason is not None:
        return reason
    from pycocoevalcap.spice.spice import Spice

    return _corpus_score(Spice, candidates, references)


def _corpus_score(
    scorer: type, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> float | str:
    try:
        score, _ = scorer().compute_score(
            {row: list(texts) for row, texts in enumerate(references)},
            {row: [text] for row, text in enumerate(candidates)},
        )
    except _FAILURES as error:
        return f"its Java program failed ({type(error).__name__}: {error}); is Java new enough, and enough memory free?"
    return float(score)
