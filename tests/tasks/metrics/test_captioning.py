"""Caption scores of COCO-format files: known scores, and files that do not fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics import java_metrics
from aurora_ds.tasks.metrics.captioning import caption_scores

TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [
        {"image_id": 1, "id": 10, "caption": "A dog runs."},
        {"image_id": 2, "id": 11, "caption": "Two cats sleep on a bed."},
        {"image_id": 1, "id": 12, "caption": "The dog is running."},
    ],
}
RESULTS = [{"image_id": 2, "caption": "two cats sleep"}, {"image_id": 1, "caption": "a dog runs"}]
NATIVE = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


def test_the_251_coco_images_have_the_known_scores(shared: Path):
    folder = shared / "data/metrics/coco_fakecap"
    found = caption_scores(folder / "subset251_results.json", folder / "subset251_gt.json", java=False)
    known = json.loads((folder / "known_scores.json").read_text())["recomputed_here_subset251"]["corpus"]
    for name in NATIVE:
        assert found["scores"][name] == pytest.approx(known[name], abs=1e-12)
    single = json.loads((folder / "subset251_per_image.json").read_text())["scores"]
    for image, scores in found["per_image"].items():
        for name, score in scores.items():
            assert score == pytest.approx(single[str(image)][name], abs=0.6e-6)


def test_one_caption_against_the_others_of_500_coco_images_has_the_known_scores(
    shared: Path, repository: Path
):
    entries = json.loads((shared / "data/annotations/karpathy_blip/coco_karpathy_val.json").read_text())[:500]
    truth = {
        "annotations": [
            {"image_id": image, "caption": caption}
            for image, entry in enumerate(entries)
            for caption in entry["caption"][1:]
        ]
    }
    results = [{"image_id": image, "caption": entry["caption"][0]} for image, entry in enumerate(entries)]
    found = caption_scores(results, truth, java=False)
    known = json.loads((repository / "tests/goldens/metrics/coco_val_loo500.json").read_text())["corpus"]
    for name in NATIVE:
        assert found["scores"][name] == pytest.approx(known[name], abs=1e-9)


def test_files_and_their_content_give_the_same(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    from_files = caption_scores(tmp_path / "results.json", str(tmp_path / "truth.json"), java=False)
    assert from_files == caption_scores(RESULTS, TRUTH, java=False)
    assert from_files["images"] == 2 and list(from_files["per_image"]) == [1, 2]
    assert from_files["lengths"] == {"candidates": 6, "references": 9}


def test_the_result_names_its_tokenizer():
    assert "PTBTokenizer 3.4.1" in caption_scores(RESULTS, TRUTH, java=False)["tokenizer"]


def test_what_java_would_compute_is_skipped_with_the_reason_without_java(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(java_metrics.shutil, "which", lambda _: None)
    found = caption_scores(RESULTS, TRUTH)
    assert found["skipped"] == {"METEOR": "no java in PATH", "SPICE": "no java in PATH"}
    assert set(found["scores"]) == set(NATIVE)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (RESULTS[:1], r"1 image \(1\) has no caption in the results"),
        ([*RESULTS, {"image_id": 3, "caption": "a"}], r"1 image \(3\) has no reference in the ground truth"),
        ([*RESULTS, {"image_id": 1, "caption": "a"}], r"1 image \(1\) has more than one caption"),
        ([{"image_id": str(each["image_id"]), "caption": "a"} for each in RESULTS], "differ only in type"),
        ([{"image_id": 1}], "entry 0: .*has no image_id"),
        ([{"image_id": True, "caption": "a"}], "entry 0"),
        ([{"image_id": 1, "caption": None}], "entry 0"),
        ({"annotations": []}, "expected a list, found dict"),
    ],
)
def test_results_that_do_not_fit_are_refused(results: object, message: str):
    with pytest.raises(AuroraError, match=message):
        caption_scores(results, TRUTH, java=False)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([], "no list of annotations"),
        ({"annotations": []}, "no list of annotations"),
        ({**TRUTH, "images": [{"id": 1}]}, "image 2, which is not under images"),
        ({**TRUTH, "images": [{"id": 1}, {"id": 2}, {"id": 3}]}, r"1 image \(3\) has no reference caption"),
        ({**TRUTH, "images": [{"id": 1}, {"id": 1}]}, "image 1 is listed twice"),
        ({**TRUTH, "images": [{"name": "x"}]}, "image 0 has no id"),
        ({"annotations": [{"image_id": 1}]}, "annotation 0"),
    ],
)
def test_ground_truth_that_is_none_is_refused(truth: object, message: str):
    with pytest.raises(AuroraError, match=message):
        caption_scores(RESULTS, truth, java=False)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path):
    with pytest.raises(AuroraError, match="nowhere.json cannot be read"):
        caption_scores(tmp_path / "nowhere.json", TRUTH, java=False)
    (tmp_path / "cut.json").write_text('[{"image_id": 1')
    with pytest.raises(AuroraError, match="cut.json cannot be read as JSON"):
        caption_scores(tmp_path / "cut.json", TRUTH, java=False)
