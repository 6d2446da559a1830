"""Two-image reasoning in a run: labels, exchanged images, accuracy and consistency, the predictions file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import pair_rows, pair_shards, recipe
from torch.nn import functional as F

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.tasks.nlvr import drawn_to_turn
from aurora_ds.wiring import statements as wiring_statements
from aurora_ds.wiring.base import Evaluation
from aurora_ds.wiring.nlvr import exchanged

os.environ.setdefault("DS_ACCELERATOR", "cpu")

NAMES = ("input_ids", "attention_mask")
PAIRS = 7  # in blocks of two


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small run over shards."""
    folder = tmp_path_factory.mktemp("nlvr")
    return recipe(folder, "nlvr", pair_shards(folder, test=PAIRS))


def assembled(made: Path, *overrides: str) -> Assembled:
    """Its task, in evaluation."""
    built = build_task(load_config(str(made), list(overrides)))
    built.task.eval()
    return built


def evaluated(built: Assembled) -> Evaluation:
    return built.wiring.evaluate(built.task, built.tokenizer)


def batch_of(built: Assembled, statements: list[dict[str, Any]], seed: int = 0) -> dict[str, torch.Tensor]:
    """As the loader makes it, with noise for images."""
    count, generator = len(statements), torch.Generator().manual_seed(seed)
    return built.wiring.train_texts(built.tokenizer)(statements) | {
        "image": torch.randn(count, 2, 3, 16, 16, generator=generator),
        "sample_index": torch.arange(count) + 100,
    }


# ---- training


def test_statements_become_texts_and_labels(made: Path) -> None:
    built = assembled(made, "nlvr.swap=off")
    rows = [{"sentence": "Both photos: a boat!", "label": "True"}, {"sentence": "a boat", "label": "False"}]
    found = built.wiring.train_texts(built.tokenizer)(rows)
    assert found["label"].tolist() == [1, 0]
    ids, mask = built.tokenizer.encode(["both photos a boat", "a boat"], 20)
    assert torch.equal(found["input_ids"], ids) and torch.equal(found["attention_mask"], mask)
    assert found.keys() == {"input_ids", "attention_mask", "label"}


@pytest.mark.parametrize(
    ("label", "said"),
    [({"label": "entailment"}, "'entailment'"), ({"label": True}, "True"), ({}, "no label")],
)
def test_other_labels_than_true_and_false_are_refused(made: Path, label: dict[str, Any], said: str) -> None:
    built = assembled(made)
    with pytest.raises(AuroraError, match=f"dev-1-0-0 has .*{said}.*True or False"):
        built.wiring.train_texts(built.tokenizer)([{"sentence": "a dog", "identifier": "dev-1-0-0", **label}])


def test_statements_without_words_are_refused(made: Path) -> None:
    built = assembled(made)
    with pytest.raises(AuroraError, match=r"'\.\.\.' has no words"):
        built.wiring.train_texts(built.tokenizer)([{"sentence": "...", "label": "True"}])


def test_left_and_right_are_exchanged_as_words() -> None:
    assert exchanged("the left dog is right of the leftmost") == "the right dog is left of the leftmost"


def test_exchanged_pairs_are_read_with_their_words_exchanged(made: Path) -> None:
    built = assembled(made)
    sentences = ["the left photo has a cup", "a red box right there", "both photos", "left", "a", "b"]
    rows = [{"sentence": sentence, "label": "True"} for sentence in sentences]
    batch = batch_of(built, rows)
    turned = drawn_to_turn(batch["sample_index"], built.config.seed, step=4)
    assert 0 < turned.sum() < 6
    by_hand = [
        {**row, "sentence": exchanged(row["sentence"]) if turn else row["sentence"]}
        for row, turn in zip(rows, turned, strict=True)
    ]
    plain = assembled(made, "nlvr.swap=off")
    wanted = batch_of(plain, by_hand)
    wanted["image"] = torch.stack(
        [image.flip(0) if turn else image for image, turn in zip(batch["image"], turned, strict=True)]
    )
    torch.testing.assert_close(built.task(batch, step=4), plain.task(wanted))
    assert not torch.allclose(built.task(batch, step=5)["loss"], built.task(batch, step=4)["loss"])


def test_which_pairs_are_exchanged_depends_on_seed_step_and_sample_alone() -> None:
    samples = torch.arange(1000)
    turned = drawn_to_turn(samples, 1, 2)
    assert 430 < turned.sum() < 570
    assert torch.equal(drawn_to_turn(samples[1::2], 1, 2), turned[1::2])
    for other in (drawn_to_turn(samples, 2, 2), drawn_to_turn(samples, 1, 3)):
        assert 430 < (other != turned).sum() < 570


def test_a_sample_that_is_no_pair_is_refused_in_training(made: Path) -> None:
    built = assembled(made)
    batch = batch_of(built, [{"sentence": "a dog", "label": "True"}])
    for image, count in ((batch["image"][:, 0], 1), (batch["image"][:, [0, 1, 0]], 3)):
        with pytest.raises(AuroraError, match=f"a sample holds {count}"):
            built.task(batch | {"image": image})


# ---- evaluation


def test_statements_of_a_pair_are_judged_as_each_by_itself(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = assembled(made)
    seen = []
    encode = built.task.model.visual_encoder.forward
    monkeypatch.setattr(
        built.task.model.visual_encoder, "forward", lambda images: seen.append(len(images)) or encode(images)
    )
    found = evaluated(built)
    assert seen == [4, 4, 4, 2], "two pairs at once, each pair once"
    images = {
        pair: batch["image"][row]
        for batch in blocks(built)
        for row, pair in enumerate(batch["media_index"].tolist())
    }
    for statement, judged in found.details:
        alone = built.wiring.predict(
            built.task, built.tokenizer, images[statement.medium][None], [statement.sentence]
        )
        assert alone[0]["label"] == str(bool(judged.says))
        assert alone[0]["probabilities"]["True"] == pytest.approx(judged.probabilities[1], abs=1e-5)
    assert len({judged.probabilities[1] for _, judged in found.details}) == len(pair_rows("test", PAIRS))


def blocks(built: Assembled) -> list[dict[str, Any]]:
    from aurora_ds.data.loader import eval_image_loader

    return list(eval_image_loader(built.config, "test", None, 1, 0, 2))


def test_accuracy_and_consistency_as_the_official_script_counts(made: Path) -> None:
    found = evaluated(assembled(made))
    said = dict(line.split(",") for line in found.files["predictions.csv"].splitlines())
    rows = pair_rows("test", PAIRS)
    right = {row["identifier"]: said[row["identifier"]].lower() == row["label"].lower() for row in rows}
    sentences: dict[str, bool] = {}
    for identifier, one in right.items():
        split, group, _, number = identifier.split("-")
        sentences[f"{split}-{group}-{number}"] = sentences.get(f"{split}-{group}-{number}", True) and one
    assert said.keys() == right.keys()
    assert 0 < sum(right.values()) < len(right)
    assert found.metrics["accuracy"] == pytest.approx(100 * sum(right.values()) / len(right))
    assert found.metrics["consistency"] == pytest.approx(100 * sum(sentences.values()) / len(sentences))
    assert found.facts == {
        "pairs": PAIRS,
        "statements": len(rows),
        "sentences": len(sentences),
        "swap": "train",
    }


def test_exchanged_in_evaluation_only_as_released(made: Path) -> None:
    plain = evaluated(assembled(made))
    built = assembled(made, "nlvr.swap=released")
    turned = drawn_to_turn(torch.arange(len(plain.details)), built.config.seed, 0).tolist()
    images = {
        pair: batch["image"][row]
        for batch in blocks(built)
        for row, pair in enumerate(batch["media_index"].tolist())
    }
    for (statement, usual), (_, judged), turn in zip(
        plain.details, evaluated(built).details, turned, strict=True
    ):
        if turn:
            image = images[statement.medium].flip(0)[None]
            alone = built.wiring.predict(built.task, built.tokenizer, image, [exchanged(statement.sentence)])
            assert judged.probabilities[1] == pytest.approx(alone[0]["probabilities"]["True"], abs=1e-5)
        else:
            assert judged.probabilities[1] == pytest.approx(usual.probabilities[1], abs=1e-5)
    assert 0 < sum(turned) < len(turned)


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Records of the split as `change` makes them of those in the shards."""
    original = wiring_statements.eval_records
    monkeypatch.setattr(
        wiring_statements,
        "eval_records",
        lambda config: [(key, change(dict(record))) for key, record in original(config)],
    )


def without(name: str) -> Any:
    """Statements without one field."""
    return lambda record: (
        record
        | {"statements": [{k: v for k, v in each.items() if k != name} for each in record["statements"]]}
    )


def test_a_split_without_labels_gives_predictions_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = assembled(made)
    wanted = evaluated(built).files
    changed(monkeypatch, without("label"))
    found = evaluated(built)
    assert found.metrics == {} and found.files == wanted
    assert built.wiring.picture(built.tokenizer, found)[0] == "statements"


def test_without_official_identifiers_there_is_no_consistency(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = assembled(made)
    wanted = evaluated(built)
    changed(monkeypatch, without("identifier"))
    found = evaluated(built)
    assert found.metrics == {"accuracy": wanted.metrics["accuracy"]} and "sentences" not in found.facts
    names = [line.split(",")[0] for line in found.files["predictions.csv"].splitlines()]
    assert len(set(names)) == len(names) == found.facts["statements"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"kind": "image"}, "no pair of images.*holds 1"),
        (lambda record: record | {"sizes": [[9, 9]] * 3}, "no pair of images.*holds 3"),
        (lambda record: record | {"statements": []}, "no statements to judge"),
        (
            lambda record: (
                record
                | {"statements": [each | {"identifier": "test-0-0-0"} for each in record["statements"]]}
            ),
            "1 identifiers more than once.*test-0-0-0",
        ),
        (
            lambda record: record | {"statements": [*record["statements"][1:], {"sentence": "a"}]},
            f"labels for some statements and none for {PAIRS}",
        ),
        (
            lambda record: record | {"statements": [{"sentence": "a", "label": "neutral"}]},
            "the label 'neutral'",
        ),
    ],
)
def test_wrong_splits_are_refused_before_anything_is_judged(
    made: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    built = assembled(made)
    changed(monkeypatch, change)
    monkeypatch.setattr(built.task, "forward", lambda *_, **__: pytest.fail("judged"))
    with pytest.raises(AuroraError, match=message):
        evaluated(built)


def test_the_picture_shows_both_images_of_statements(made: Path) -> None:
    built = assembled(made, "monitor.gallery_queries=3")
    name, picture = built.wiring.picture(built.tokenizer, evaluated(built))
    assert name == "statements" and picture.dtype == "uint8" and picture.shape[0] == 3
    assert picture.shape[1] > 3 * 144
    unlike = built.wiring.picture(
        built.tokenizer, evaluated(assembled(made, "nlvr.swap=released", "seed=3"))
    )[1]
    assert picture.shape == unlike.shape and (picture != unlike).any(), "probabilities are in it"


def test_predictions_say_label_and_probabilities(made: Path) -> None:
    built = assembled(made)
    media = torch.randn(2, 2, 3, 16, 16)
    found = built.wiring.predict(built.task, built.tokenizer, media, ["A dog.", "the left photo"])
    logits = [
        built.task.logits(
            {
                "image": media[i : i + 1],
                **dict(zip(NAMES, built.tokenizer.encode([text], 20), strict=True)),
            }
        )
        for i, text in enumerate(["a dog", "the left photo"])
    ]
    for one, expected in zip(found, logits, strict=True):
        false, true = F.softmax(expected, 1)[0].tolist()
        assert one["probabilities"] == pytest.approx({"True": true, "False": false}, abs=1e-5)
        assert one["label"] == str(true > false)
    json.dumps(found)
    with pytest.raises(AuroraError, match="2 pairs of images need as many statements, but 1"):
        built.wiring.predict(built.task, built.tokenizer, media, ["a dog"])


# ---- a whole run


def test_training_and_evaluation_from_the_command_line(made: Path, tmp_path: Path) -> None:
    from aurora_ds import evaluate, train

    run, judged = tmp_path / "run", tmp_path / "judged"
    assert (
        train.main([str(made), "--output", str(run), "monitor.tensorboard=true", "monitor.gallery_queries=2"])
        == 0
    )
    assert evaluate.main([str(made), "--adapter", str(run), "--output", str(judged)]) == 0
    inside, after = (json.loads((folder / "results.json").read_text()) for folder in (run, judged))
    assert inside["metrics"] == after["metrics"] and after["metrics"].keys() == {"accuracy", "consistency"}
    assert (run / "predictions.csv").read_text() == (judged / "predictions.csv").read_text()
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["heads"] == ["cls_head_0", "cls_head_2"] and adapter["settings"]["task"] == "nlvr"


@pytest.mark.parametrize("method", ["heads", "full"])
def test_the_head_alone_or_everything_can_be_trained(made: Path, tmp_path: Path, method: str) -> None:
    from aurora_ds import evaluate, train

    run, judged = tmp_path / "run", tmp_path / "judged"
    assert train.main([str(made), "--output", str(run), f"train.method={method}"]) == 0
    trained = ["--adapter", str(run)]
    if method == "full":
        trained = [f"backbone.checkpoint={run / 'adapter' / 'backbone.safetensors'}"]
    assert evaluate.main([str(made), "--output", str(judged), *trained]) == 0
    inside, after = (json.loads((folder / "results.json").read_text()) for folder in (run, judged))
    assert inside["metrics"] == after["metrics"]
    assert (run / "predictions.csv").read_text() == (judged / "predictions.csv").read_text()


def test_blank_media_are_all_judged_alike(made: Path) -> None:
    found = evaluated(assembled(made, "data.media=blank"))
    said = {}
    for statement, judged in found.details:
        said.setdefault(statement.sentence, set()).add(round(judged.probabilities[1], 5))
    assert all(len(each) == 1 for each in said.values())
