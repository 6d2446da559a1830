"""Visual entailment in a run: labels, statements of one photo read together, the predictions file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_runs import entailment_shards, pair_shards, recipe

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.wiring.blocks import media_blocks
from aurora_ds.wiring.statements import PREDICTIONS_FILE

os.environ.setdefault("DS_ACCELERATOR", "cpu")
PHOTOS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small run over shards."""
    folder = tmp_path_factory.mktemp("entailment")
    sections = {"prompts": {"query_transform": False}, "data": {"eval_split": "test"}}
    return recipe(folder, "entailment", entailment_shards(folder), name="mplug", **sections)


def assembled(made: Path, *overrides: str) -> Assembled:
    """Its task, in evaluation."""
    built = build_task(load_config(str(made), list(overrides)))
    built.task.eval()
    return built


def test_statements_of_a_photo_are_judged_as_each_by_itself(made: Path) -> None:
    built = assembled(made, "evaluate.text_batch_size=2")
    found = built.wiring.evaluate(built.task, built.tokenizer)
    images = {
        medium: batch["image"][row]
        for block, batch in media_blocks(built.config, PHOTOS)
        for row, medium in enumerate(block)
    }
    lines, right = found.files[PREDICTIONS_FILE].splitlines(), 0
    assert len(lines) == len(found.details) == 9 and found.facts["images"] == PHOTOS
    for line, (statement, judged) in zip(lines, found.details, strict=True):
        (alone,) = built.wiring.predict(
            built.task, built.tokenizer, images[statement.medium][None], [statement.sentence]
        )
        assert line == f"{statement.identifier},{alone['label']}"
        assert list(alone["probabilities"].values()) == pytest.approx(judged.probabilities[::-1], abs=1e-5)
        right += built.wiring.labels[statement.label] == alone["label"]
    assert found.metrics == {"accuracy": pytest.approx(100 * right / 9)}
    assert len({judged.probabilities for _, judged in found.details}) == 9


def test_classes_are_in_mplug_s_order(made: Path) -> None:
    built = assembled(made)
    rows = [{"sentence": "a dog", "label": label} for label in ("entailment", "neutral", "contradiction")]
    texts = built.wiring.train_texts(built.tokenizer)(rows)
    assert texts["label"].tolist() == [2, 1, 0]
    batch = texts | {"image": torch.randn(3, 3, 16, 16)}
    loss, logits = built.task(batch)["loss"], built.task(batch, what="predict")["logits"]
    assert loss.item() == pytest.approx(-logits.log_softmax(1)[range(3), [2, 1, 0]].mean().item(), abs=1e-5)


@pytest.mark.parametrize(("label", "said"), [("True", "'True'"), (None, "no label")])
def test_other_labels_are_refused(made: Path, label: str | None, said: str) -> None:
    built = assembled(made)
    with pytest.raises(
        AuroraError, match=f"dev-1 has .*{said}.*entailment or neutral or contradiction.*SNLI-VE"
    ):
        built.wiring.train_texts(built.tokenizer)(
            [{"sentence": "a dog", "identifier": "dev-1", "label": label}]
        )


def test_pairs_of_images_are_refused(made: Path, tmp_path: Path) -> None:
    built = assembled(made, f"data.shards={pair_shards(tmp_path, train=2, test=2)}", "data.eval_split=test")
    with pytest.raises(AuroraError, match=r"no single image \(it holds 2\).*convert snli_ve"):
        built.wiring.check()


def test_each_image_needs_a_statement(made: Path) -> None:
    built = assembled(made)
    with pytest.raises(AuroraError, match="1 images need as many statements, but 2 were given"):
        built.wiring.predict(built.task, built.tokenizer, torch.zeros(1, 3, 16, 16), ["a dog", "a boat"])
