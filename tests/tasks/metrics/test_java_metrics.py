"""METEOR and SPICE: computed where Java and pycocoevalcap are, otherwise a reason and no number."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest

from aurora_ds.tasks.metrics import java_metrics
from aurora_ds.tasks.metrics.captioning import caption_scores


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, scorer: type) -> None:
    """A package pycocoevalcap under `folder` with `scorer` as Meteor and as Spice, and some java."""
    names = ("pycocoevalcap", "pycocoevalcap.meteor", "pycocoevalcap.meteor.meteor", "pycocoevalcap.spice")
    for name in (*names, "pycocoevalcap.spice.spice"):
        module = types.ModuleType(name)
        module.Meteor = module.Spice = scorer
        monkeypatch.setitem(sys.modules, name, module)
    spec = types.SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(java_metrics.shutil, "which", lambda _: "/usr/bin/java")


class Half:
    def compute_score(self, references: dict, candidates: dict) -> tuple[float, None]:
        assert references == {0: ["a dog", "the dog"]} and candidates == {0: ["dog"]}
        return 0.5, None


class Broken:
    def compute_score(self, references: dict, candidates: dict) -> tuple[float, None]:
        raise BrokenPipeError("java is gone")


def test_the_score_is_what_pycocoevalcap_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed(monkeypatch, tmp_path, Half)
    assert java_metrics.meteor(["dog"], [["a dog", "the dog"]]) == 0.5


def test_a_java_program_that_dies_is_a_reason_not_a_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed(monkeypatch, tmp_path, Broken)
    assert "BrokenPipeError: java is gone" in java_metrics.meteor(["dog"], [["a dog"]])


def test_spice_without_its_models_does_not_fetch_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed(monkeypatch, tmp_path, Half)
    reason = java_metrics.spice(["dog"], [["a dog", "the dog"]])
    assert "stanford-corenlp-3.6.0.jar is missing" in reason and "384 MB" in reason
    (tmp_path / "spice/lib").mkdir(parents=True)
    (tmp_path / "spice/lib/stanford-corenlp-3.6.0.jar").touch()
    assert java_metrics.spice(["dog"], [["a dog", "the dog"]]) == 0.5


def test_without_the_package_the_reason_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(java_metrics.shutil, "which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda _: None)
    assert java_metrics.meteor([], []) == "pycocoevalcap is not installed (pip install pycocoevalcap)"


@pytest.mark.slow
def test_meteor_equals_the_known_score(shared: Path):
    pytest.importorskip("pycocoevalcap", reason="METEOR needs pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("METEOR needs java")
    folder = shared / "data/metrics/coco_fakecap"
    found = caption_scores(folder / "subset251_results.json", folder / "subset251_gt.json")
    known = json.loads((folder / "known_scores.json").read_text())["recomputed_here_subset251"]["corpus"]
    assert found["scores"]["METEOR"] == pytest.approx(known["METEOR"], abs=1e-9)
