"""Visual grounding in a run: boxes of a split, on any number of ranks, and of single photos in their own pixels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_grounding import BINS, PHRASES, SIZE, phrase_shards, recipe, rows_of

import aurora_ds
from aurora_ds.assemble import Assembled, build_task
from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.cli import main
from aurora_ds.config import RunConfig
from aurora_ds.data.convert import samples
from aurora_ds.data.phrases import encode_phrases
from aurora_ds.data.placement import centred
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config
from aurora_ds.wiring import blocks, grounding
from aurora_ds.wiring.base import Evaluation
from aurora_ds.wiring.box_pictures import INNER, OUTER, with_box
from aurora_ds.wiring.pointed import HIT, Found, judged

os.environ.setdefault("DS_ACCELERATOR", "cpu")
TEXTS = Path(__file__).parents[1] / "goldens" / "mplug" / "h_text_and_data"
QUERIES = json.loads((TEXTS / "grounding_query.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small run over shards."""
    folder = tmp_path_factory.mktemp("grounding")
    return recipe(folder, phrase_shards(folder))


def assembled(made: Path, *overrides: str) -> Assembled:
    built = build_task(load_config(str(made), list(overrides)))
    built.task.eval()
    return built


def evaluated(built: Assembled) -> Evaluation:
    return built.wiring.evaluate(built.task, built.tokenizer)


def photo(made: Path, number: int) -> Path:
    return made.parent / "raw" / "images" / "test" / f"{number:02d}.png"


# ---- evaluation


def test_boxes_are_those_of_single_predictions_in_pixels_of_the_photo(made):
    found = evaluated(assembled(made)).files["boxes.json"]
    assert len(found) == 12 and len({tuple(row["box"].values()) for row in found}) > 2
    predictor = aurora_ds.load(recipe=str(made))
    rows = rows_of("test", 5)
    for row, said in zip(rows, found, strict=True):
        alone = predictor.predict(image=str(photo(made, int(row["image"][5:7]))), text=row["phrase"].upper())
        assert alone["box"] == said["box"] and alone["phrase"] == row["phrase"].upper()
        assert alone["probability"] == pytest.approx(said["probability"], abs=1e-4)
        assert said["true"] == dict(zip(("left", "top", "width", "height"), row["box"], strict=True))


def test_boxes_are_judged_where_they_were_found(made, monkeypatch):
    """A task that points at the true boxes, in steps of its tokens, is right; one that points past them is not."""
    built, side = assembled(made), 32
    rows = rows_of("test", 5)
    for shift, accuracy in ((0.0, 100.0), (0.5, 0.0)):
        answers = iter(rows)

        def boxes(batch: dict[str, Any], answers=answers, shift=shift) -> dict[str, torch.Tensor]:
            placed = []
            for _ in batch["input_ids"]:
                left, top, width, height = next(answers)["box"]
                x0, y0, x1, y1 = centred(*SIZE, side).into((left, top, left + width, top + height))
                placed.append([(x0 + x1) / 2 + shift, (y0 + y1) / 2, x1 - x0, y1 - y0])
            return {"box": torch.tensor(placed), "probability": torch.ones(len(placed))}

        monkeypatch.setattr(built.task, "boxes", boxes)
        found = evaluated(built)
        assert found.metrics["accuracy"] == accuracy
        assert found.metrics["mean_overlap"] == pytest.approx(accuracy, abs=0.01)
        if not shift:
            assert all(
                list(row["box"].values()) == pytest.approx(list(row["true"].values()), abs=0.011)
                for row in found.files["boxes.json"]
            )


def test_half_an_overlap_counts():
    found = [Found((0, 0, 1, 1), 1.0, overlap) for overlap in (HIT, 0.49, 1.0, 0.0)]
    assert judged(found) == {"accuracy": 50.0, "mean_overlap": pytest.approx(49.75)}


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_finds_the_same(made, ranks, monkeypatch):
    built = assembled(made)
    expected = evaluated(built).details[1]
    parts: list[list] = []

    def keep(own, count):
        parts.append(list(own))
        raise StopIteration

    monkeypatch.setattr(grounding, "in_order", keep)
    for rank in range(ranks):
        monkeypatch.setattr(blocks, "world", lambda rank=rank: (rank, ranks))
        with pytest.raises(StopIteration):
            evaluated(built)
    assert [each for block in range(3) for each in parts[block % ranks][block // ranks]] == expected


def test_blocks_decide_nothing_but_memory(made):
    expected = evaluated(assembled(made)).details[1]
    other = evaluated(assembled(made, "evaluate.image_batch_size=5", "evaluate.text_batch_size=64")).details[
        1
    ]
    assert [each.box for each in other] == [each.box for each in expected]


def test_the_picture_shows_predicted_and_true_boxes(made):
    built = assembled(made, "monitor.gallery_queries=3")
    name, shown = built.wiring.picture(built.tokenizer, evaluated(built))
    assert name == "boxes" and shown.dtype == np.uint8 and shown.shape[0] == 3
    assert shown.shape[1] > 3 * 144


# ---- what is wrong is told before training


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"box": [40.0, 2.0, 30.0, 9.0]}, "does not lie in its image of 48 x 36 pixels"),
        ({"phrase": "a boat", "box": [50.0, 50.0, 3.0, 3.0]}, "'a boat' of sample test-.* does not lie"),
    ],
)
def test_a_box_outside_its_image_is_refused(row, said, tmp_path, made, monkeypatch):
    monkeypatch.setattr(samples, "lies_within", lambda *_: True)  # which would not convert it
    shards = phrase_shards(tmp_path, {"test": [{"image": "test/00.png", "phrase": "a dog"} | row]})
    with pytest.raises(AuroraError, match=said):
        assembled(made, f"data.shards={shards}").wiring.check()


def test_a_list_without_a_box_is_not_converted(tmp_path):
    with pytest.raises(AuroraError, match=r"entry 0.*without `box`.*left, top|x, y, width, height"):
        phrase_shards(tmp_path, {"train": [{"image": "train/00.png", "phrase": "a dog"}]})


def test_a_split_without_phrases_is_refused(tmp_path, made):
    from tiny_runs import pair_shards

    with pytest.raises(AuroraError, match="no phrases"):
        assembled(made, f"data.shards={pair_shards(tmp_path)}").wiring.check()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["backbone.name=blip"], "task=grounding needs backbone.name=mplug"),
        (["grounding.bins=100000"], "must be different ones of backbone.text.vocab_size"),
        (["grounding.prefix_id=5", "grounding.first_bin_id=3"], "must be different ones"),
    ],
)
def test_contradictions_are_refused(made, overrides, said):
    with pytest.raises(AuroraError, match=said):
        load_config(str(made), overrides)


# ---- training and single predictions


@pytest.mark.parametrize("case", QUERIES, ids=lambda case: f"{case['text'][:8]} {case['max_query_len']}")
def test_recorded_phrases_have_the_recorded_tokens(case):
    """But for padding to the full length, which nothing attends to."""
    config = RunConfig.model_validate({"grounding": {"max_tokens": case["max_query_len"]}})
    ids, mask = encode_phrases([case["text"].title()], config, Tokenizer(TEXTS / "vocab.txt", plain=True))
    length = sum(case["mask"])
    assert ids.tolist() == [case["input_ids"][:length]] and mask.tolist() == [[1] * length]
    assert set(case["input_ids"][length:]) <= {0}


@pytest.fixture(scope="module")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    output = tmp_path_factory.mktemp("run") / "grounding"
    assert (
        main(
            [
                "train",
                str(made),
                "monitor.tensorboard=true",
                "monitor.gallery_queries=2",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    return output


def test_a_run_leaves_figures_boxes_and_an_adapter(trained):
    record = json.loads((trained / "results.json").read_text())
    assert record["task"] == "grounding" and (record["images"], record["phrases"]) == (5, 12)
    assert record["metrics"].keys() == {"accuracy", "mean_overlap"}
    assert len(json.loads((trained / "boxes.json").read_text())) == 12


def test_predict_tells_the_box_and_draws_it(trained, made, tmp_path, capsys):
    command = [
        "predict",
        "--adapter",
        str(trained),
        "--image",
        str(photo(made, 0)),
        "--image",
        str(photo(made, 1)),
    ]
    texts = ["--text", PHRASES[0], "--text", "the Ball"]
    assert main([*command, *texts, "--json", "--output", str(tmp_path / "said")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "said" / "results.json").read_text()) == record
    assert [each["phrase"] for each in record["predictions"]] == [PHRASES[0], "the Ball"] * 2
    for said in record["predictions"]:
        box = said["box"]
        assert 0 <= box["left"] <= box["left"] + box["width"] <= SIZE[0]
        assert 0 <= box["top"] <= box["top"] + box["height"] <= SIZE[1]
        drawn, plain = Image.open(said["drawn"]), Image.open(said["image"]).convert("RGB")
        corners = (box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"])
        assert drawn.tobytes() == with_box(plain, corners).tobytes() != plain.tobytes()
    assert len({said["drawn"] for said in record["predictions"]}) == 4


def test_an_exported_model_finds_the_same_boxes(made, tmp_path):
    run, merged, judged_again = tmp_path / "run", tmp_path / "merged", tmp_path / "judged"
    assert main(["train", str(made), "prompts.query_transform=false", "--output", str(run)]) == 0
    assert main(["export", "--adapter", str(run), "--format", "merged", "--output", str(merged)]) == 0
    checkpoint = f"backbone.checkpoint={merged / 'backbone.safetensors'}"
    assert main(["evaluate", str(made), checkpoint, "--output", str(judged_again)]) == 0
    rows = [json.loads((folder / "boxes.json").read_text()) for folder in (run, judged_again)]
    assert [row["box"] for row in rows[0]] == [row["box"] for row in rows[1]]


def test_a_drawn_box_frames_its_content(tmp_path):
    image = Image.new("RGB", (100, 80), (0, 0, 0))
    drawn = np.asarray(with_box(image, (20, 30, 60, 50), thickness=2))
    assert not drawn[30:50, 20:60].any(), "the content stays"
    assert tuple(drawn[29, 40]) == OUTER and tuple(drawn[26, 40]) == INNER
    assert tuple(drawn[50, 40]) == OUTER and tuple(drawn[40, 19]) == OUTER and tuple(drawn[40, 60]) == OUTER
    assert not image.getbbox(), "a copy is drawn on"


@pytest.mark.parametrize(
    ("text", "said"), [(None, "one phrase for each image"), ([" "], "None may be empty")]
)
def test_a_prediction_without_a_phrase_is_refused(made, text, said):
    predictor = aurora_ds.load(recipe=str(made))
    with pytest.raises(AuroraError, match=said):
        predictor.predict(image=[str(photo(made, 0))], text=text)


def test_clips_are_refused(made):
    with pytest.raises(AuroraError, match="takes an image"):
        aurora_ds.load(recipe=str(made)).predict(video=np.zeros((4, 16, 16, 3), np.uint8), text="a dog")


def test_training_moves_the_loss_of_what_it_sees(made):
    """Eight steps on one batch, without dropout and augmentation."""
    built = assembled(made, "train.method=full", "backbone.mplug.vision_attention_dropout=0")
    texts = built.wiring.train_texts(built.tokenizer)
    rows = [{"phrase": phrase, "box": (0.1 * n, 0.2, 0.3 + 0.1 * n, 0.6)} for n, phrase in enumerate(PHRASES)]
    batch = texts(rows) | {"image": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    assert int(batch["box"][1, 0]) == pytest.approx(0.25 * 2**24, abs=2) and BINS == 24
    optimizer = torch.optim.AdamW(built.task.parameters(), lr=3e-3)
    tokens = []
    for _ in range(8):
        losses = built.task(batch, what="loss")
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        tokens.append(float(losses["loss_tokens"]))
    assert tokens[-1] < 0.7 * tokens[0]
