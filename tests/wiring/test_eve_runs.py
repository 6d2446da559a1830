"""EVE through the tasks that serve every family: runs, adapters, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from question_runs import ANSWERS, answer_file, image_questions, image_sample, write_shards
from tiny_runs import pair_shards, recipe

from aurora_ds import train
from aurora_ds.assemble import build_task, load_trained
from aurora_ds.config import RunConfig
from aurora_ds.contradictions import contradictions
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import task_forward
from aurora_ds.export import folder
from aurora_ds.recipe import load_config

OPTIONS = {
    "nlvr": {},
    "vqa": {"max_tokens": 12},
    "retrieval": {
        "momentum_model": "off",
        "queue_size": 0,
        "alpha": 0.0,
        "negative_floor": 1e-5,
        "k_test": 3,
    },
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small recipe of each task over shards."""
    folder = tmp_path_factory.mktemp("eve")
    shards = {name: folder / name for name in ("asked", "captioned")}
    write_shards(
        shards["asked"],
        {
            name: [[image_sample(n, dataset="vqa", questions=image_questions(n)) for n in numbers]]
            for name, numbers in (("train", range(8)), ("test", range(20, 25)))
        },
        files=answer_file(shards["asked"]),
    )
    write_shards(
        shards["captioned"],
        {"train": [[image_sample(n) for n in range(8)]], "test": [[image_sample(n) for n in range(20, 25)]]},
    )
    places = {
        "nlvr": pair_shards(folder, train=6, test=3),
        "vqa": shards["asked"],
        "retrieval": shards["captioned"],
    }
    made = {}
    for task, place in places.items():
        made[task] = recipe(folder, task, place, "eve", **{task: OPTIONS[task]})
    return made


def config_of(recipes: dict[str, Path], task: str, *overrides: str) -> RunConfig:
    answers = [f"backbone.eve.answers={len(ANSWERS)}", "backbone.checkpoint=null"] if task == "vqa" else []
    # a new head for this list: the file's is for three answers
    names = [f"backbone.tokenizer={recipes[task].parent / f'backbone-{task}'}"] if task == "vqa" else []
    return load_config(str(recipes[task]), [*answers, *names, *overrides])


@pytest.mark.parametrize("task", list(OPTIONS))
@pytest.mark.parametrize("method", ["full", "aurora"])
def test_a_run_ends_with_results_and_comes_back(recipes, task: str, method: str, tmp_path: Path) -> None:
    config = config_of(recipes, task, f"train.method={method}")
    record = train.run(config, tmp_path / "run")
    assert record["metrics"] and all(value == value for value in record["metrics"].values())
    if method == "full":
        config.backbone.checkpoint = str(tmp_path / "run" / "adapter" / "backbone.safetensors")
        again = build_task(config)
    else:
        again = load_trained(config, str(tmp_path / "run" / "adapter"))
    again.task.eval()
    found = again.wiring.evaluate(task_forward(again), again.tokenizer)
    assert found.metrics == pytest.approx(record["metrics"])


def batch_of(built, task: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    texts = {
        "nlvr": [{"sentence": "a red boat", "label": "True"}, {"sentence": "a dog", "label": "False"}],
        "vqa": [
            {"question": "is it", "dataset": "vqa", "answers": [{"answer": ANSWERS[row], "weight": 0.7}]}
            for row in (0, 2)
        ],
        "retrieval": ["a red boat", "a small dog"],
    }[task]
    pair = (2,) if task == "nlvr" else ()
    return built.wiring.train_texts(built.tokenizer)(texts) | {
        "image": torch.randn(2, *pair, 3, 16, 16, generator=generator),
        "sample_index": torch.arange(2),
        "media_index": torch.arange(2),
    }


@pytest.mark.parametrize("task", list(OPTIONS))
def test_what_is_shown_is_learned(recipes, task: str) -> None:
    built = build_task(config_of(recipes, task, "train.method=full", "nlvr.swap=off"))
    batch = batch_of(built, task)
    optimizer = torch.optim.AdamW(built.task.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        loss = built.task(batch, step=0)["loss"] if task != "vqa" else built.task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("task", list(OPTIONS))
def test_the_balance_loss_counts(recipes, task: str) -> None:
    found = []
    for weight in (0.0, 10.0):
        built = build_task(
            config_of(
                recipes, task, "train.method=full", "nlvr.swap=off", f"backbone.eve.balance_weight={weight}"
            )
        )
        built.task.eval()
        with torch.no_grad():
            found.append(built.task(batch_of(built, task)))
    assert found[0]["loss_auxiliary"] == 0 and found[1]["loss_auxiliary"] >= 10 * 0.9
    torch.testing.assert_close(found[1]["loss"] - found[0]["loss"], found[1]["loss_auxiliary"])


def test_an_answer_list_of_another_length_than_the_head_is_refused(recipes) -> None:
    built = build_task(load_config(str(recipes["vqa"]), []))
    with pytest.raises(AuroraError, match=r"11 answers and the model's head tells 3 apart.*eve\.answers=11"):
        built.wiring.check()


@pytest.mark.parametrize(
    ("task", "overrides", "said"),
    [
        (
            "retrieval",
            ["retrieval.momentum_model=slot"],
            "has no momentum model: set retrieval.momentum_model=off",
        ),
        ("retrieval", ["retrieval.queue_size=8"], "retrieval.queue_size=0"),
        ("vqa", ["vqa.inference=generate"], "set vqa.inference=rank"),
        ("nlvr", ["backbone.eve.top_layers=[2]"], "must be layers 0 to 1"),
        ("nlvr", ["backbone.eve.moe.topk=5"], "must not exceed the number of experts"),
        ("nlvr", ["backbone.eve.nlvr_attention=true"], "set train.method=full"),
    ],
)
def test_contradictions_are_named(recipes, task: str, overrides: list[str], said: str) -> None:
    with pytest.raises(AuroraError) as refused:
        found = contradictions(load_config(str(recipes[task]), overrides))
        raise AuroraError("; ".join(found))
    assert said in str(refused.value)


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("task", "overrides", "said"),
    [
        ("retrieval", ["retrieval.max_tokens=41"], "retrieval.max_tokens (41) must be 2 to backbone.text.max_pos"),
        ("vqa", ["vqa.max_tokens=41"], "vqa.max_tokens (41) must be 2 to backbone.text.max_positions (40)"),
        ("nlvr", ["nlvr.max_tokens=41"], "nlvr.max_tokens (41) must be 2 to backbone.text.max_positions (40)"),
        ("vqa", [], "The list has 11 answers and the model's head tells 3 apart (backbone.eve.answers)"),
        ("vqa", ["backbone.eve.answers=11"], "backbone.eve.answers is 3 in the file and 11 in the configuration"),
        ("retrieval", ["backbone.eve.moe.experts=8"], "backbone.eve.moe.experts is 4 in the file and 8"),
        ("nlvr", ["backbone.eve.relative_positions=true"], "set backbone.eve.relative_positions=false"),
        ("nlvr", ["data.colour_jitter=2"], "data.colour_jitter"),
        ("retrieval", ["data.randaugment_level=11"], "data.randaugment_level"),
    ],
)  # fmt: skip
def test_wrong_input_ends_with_one_paragraph(
    recipes, task: str, overrides: list[str], said: str, command: str, tmp_path: Path, capsys
) -> None:
    from aurora_ds.cli import main

    shards = {"retrieval": "captioned", "vqa": "asked"}
    place = [f"data.shards={recipes[task].parent / shards[task]}"] if task in shards else []
    arguments = [command, str(recipes[task]), *place, *overrides, "--output", str(tmp_path / "output")]
    status, printed = main(arguments), capsys.readouterr().err
    assert status == 2 and said in " ".join(printed.split()) and "Traceback" not in printed
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize("task", list(OPTIONS))
def test_adapters_are_exported_and_predict(recipes, task: str, tmp_path: Path) -> None:
    train.run(config_of(recipes, task, "train.method=aurora"), tmp_path / "run")
    folder.run(
        tmp_path / "run", "merged", tmp_path / "merged"
    )  # computes what the attached model does, or raises
    answers = recipes["vqa"].parent / "asked" / "answer_list.json"
    overrides = [f"vqa.answer_list={answers}"] if task == "vqa" else []
    built = build_task(load_config(str(tmp_path / "merged" / "recipe.yaml"), overrides))
    built.task.eval()
    pair = (2,) if task == "nlvr" else ()
    media = torch.randn(2, *pair, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        said = built.wiring.predict(task_forward(built), built.tokenizer, media, ["a red boat", "a dog"])
    assert len(said) == 2
    with pytest.raises(AuroraError, match="transformers has no model for backbone.name=eve"):
        folder.run(tmp_path / "run", "transformers", tmp_path / "other")
