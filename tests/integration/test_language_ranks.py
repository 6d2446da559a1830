"""Two ranks judge every language task as one does, to the last digit of every number, and train it alike.

Seven or five media in blocks of two are uneven on 2 ranks; one block of all leaves a rank without any. Under ZeRO-3,
where ranks write texts of unequal length, the evaluation gathers the model, and training goes on as if it had not been.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import STILL
from tiny_grounding import phrase_shards
from tiny_grounding import recipe as grounding_recipe
from tiny_runs import entailment_shards, pair_shards, recipe

QUESTIONS = ["vqa.k_test=6", "vqa.answers_per_batch=16"]
CLIPS = ["data.video.frames=3", "vqa.accuracy=exact"]
# name: (task, shards, overrides)
CASES = {
    "vqa, ranked": ("vqa", "questions", QUESTIONS),
    "vqa, written": ("vqa", "questions", ["vqa.inference=generate"]),
    "videoqa, ranked": ("vqa", "clip_questions", [*QUESTIONS, *CLIPS]),
    "videoqa, written": ("vqa", "clip_questions", ["vqa.inference=generate", *CLIPS]),
    "captions, beams": ("caption", "captions", []),
    "captions, drawn": ("caption", "captions", ["caption.generation.method=nucleus"]),
    "captions of clips": ("caption", "clips", ["data.video.frames=3"]),
    "pairs": ("nlvr", "pairs", []),
    "pairs, exchanged": ("nlvr", "pairs", ["nlvr.swap=released"]),
    "entailment": ("entailment", "statements", []),
    "boxes": ("grounding", "phrases", ["backbone.mplug.vision_attention_dropout=0"]),
}
BLOCKS = {"blocks": [], "one block": ["evaluate.image_batch_size=16"]}
CUT = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Case -> its recipe and overrides."""
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import clips, questions, world

    folder = tmp_path_factory.mktemp("language")
    questions.write(folder / "asked", counts={"train": 6, "test": 7}, each=2)
    clips.write(folder / "moving", counts={"train": 8, "test": 5}, each=2)
    world.write(folder / "seen", counts={"train": 8, "test": 7}, captions=2)
    raw = {"questions": "asked", "clip_questions": "moving", "clips": "moving", "captions": "seen"}
    for name, place in raw.items():
        convert("folder" if name == "captions" else name, folder / place, folder / "shards" / name)
    shards = {name: folder / "shards" / name for name in raw} | {"pairs": pair_shards(folder / "pairs")}
    shards["phrases"] = phrase_shards(folder / "phrases")
    tasks = {task: recipe(folder, task, Path()) for task in ("vqa", "caption", "nlvr")}
    shards["statements"] = entailment_shards(folder / "statements")
    mplug = {"name": "mplug", "prompts": {"query_transform": False}}
    tasks["entailment"] = recipe(folder, "entailment", Path(), **mplug)
    tasks["grounding"] = grounding_recipe(folder, Path())
    return {
        name: [str(tasks[task]), f"data.shards={shards[data]}", *overrides]
        for name, (task, data, overrides) in CASES.items()
    }


# ---- evaluation


@pytest.fixture(scope="module")
def judged(work, recipes: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list]:
    """Number of ranks -> what each of them found in evaluations of every case, in blocks and in one block."""
    folder = tmp_path_factory.mktemp("judged")
    jobs = [
        (f"{case}: {cut}", "evaluate", [*settings, *overrides, "--output", str(folder / "out")])
        for case, settings in recipes.items()
        for cut, overrides in BLOCKS.items()
    ]
    return {ranks: work(jobs, ranks) for ranks in (1, 2)}


@pytest.mark.parametrize("cut", BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_judge_as_one_does_to_the_last_digit(judged: dict[int, list], case: str, cut: str) -> None:
    name = f"{case}: {cut}"
    (alone,), both = judged[1], judged[2]
    (wanted,) = alone[name].evaluations
    metrics, _, files, _ = wanted
    assert metrics and files
    for found in both:
        assert found[name].evaluations == [wanted]


# ---- training

TRAINED = ("vqa, ranked", "videoqa, written", "captions, beams", "pairs", "boxes")
REWARDED = ["caption.objective=self_critical", "caption.self_critical.samples=3"]


@pytest.fixture(scope="module")
def trained(work, recipes: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """Number of ranks -> the losses of a few steps of every task, and the folder of its run."""
    runs: dict[int, dict] = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp("trained")
        settings = {case: recipes[case] for case in TRAINED}
        settings["captions, rewarded"] = [*recipes["captions, beams"], *REWARDED]
        folders = {case: folder / str(number) for number, case in enumerate(settings)}
        jobs = [
            (case, "train", [*settings[case], *STILL, "--output", str(folders[case])]) for case in settings
        ]
        found = work(jobs, ranks)[0]
        runs[ranks] = {case: (found[case].losses, folders[case]) for case in settings}
    return runs


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*TRAINED, "captions, rewarded"])
def test_two_ranks_train_as_one_does(trained: dict[int, dict], case: str) -> None:
    (alone, one), (losses, two) = trained[1][case], trained[2][case]
    assert len(alone) == 3 and len(set(alone)) == 3
    assert losses == pytest.approx(alone, rel=1e-5)
    torch.testing.assert_close(adapter(two), adapter(one), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def cut_up(work, recipes: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Runs of two epochs on 2 ranks under ZeRO-3, everything cut up: `evaluated` between the epochs and at the end, and
    `not` between them; and the adapter of the former judged by 1 rank, `alone`."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "cut.json").write_text(json.dumps(CUT))

    def run(case: str, every: int) -> list[str]:
        output = str(folder / f"{TRAINED.index(case)}-{every}")
        settings = ["train.max_steps=null", f"train.evaluate_every={every}", "train.zero_stage=3"]
        return [*recipes[case], *settings, "--deepspeed-config", str(folder / "cut.json"), "--output", output]

    jobs = [(f"{case}: {every}", "train", run(case, every)) for case in TRAINED for every in (0, 1)]
    runs = work(jobs, 2)
    afterwards = [
        (case, "evaluate", [*recipes[case], "--adapter", run(case, 1)[-1], "--output", str(folder / "out")])
        for case in TRAINED
    ]
    (alone,) = work(afterwards, 1)
    return {
        case: {
            "evaluated": [found[f"{case}: 1"] for found in runs],
            "not": [found[f"{case}: 0"] for found in runs],
            "alone": alone[case],
            "folders": [Path(run(case, every)[-1]) for every in (1, 0)],
        }
        for case in TRAINED
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_ranks_under_zero_3_judge_as_one_rank_does_afterwards(cut_up: dict[str, dict], case: str) -> None:
    (alone,) = cut_up[case]["alone"].evaluations
    for rank in cut_up[case]["evaluated"]:
        between, last = rank.evaluations
        assert last == alone
        assert between[3] != last[3], "training had gone on"


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_training_under_zero_3_goes_on_as_if_it_had_not_been_evaluated(
    cut_up: dict[str, dict], case: str
) -> None:
    for judged, plain in zip(cut_up[case]["evaluated"], cut_up[case]["not"], strict=True):
        assert len(judged.losses) > 4 and judged.losses == plain.losses
    with_it, without = map(adapter, cut_up[case]["folders"])
    assert with_it.keys() == without.keys()
    assert all(torch.equal(with_it[name], without[name]) for name in without)
