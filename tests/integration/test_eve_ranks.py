"""EVE fine-tuned on two ranks: retrieval trains and is judged as on one, also with experts spread; answers with experts
spread are bit for bit the same after a kill, with the noise of the gates, and show the experts' figures in TensorBoard.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from small_run import wait_for
from test_export_tasks import WORDS, listed_shards
from tiny_runs import recipe

from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import FILE, read

SETTINGS = {
    "vqa": {"vqa": {"inference": "rank", "distillation": 0.0, "max_words": 12}},
}
SPREAD = ["train.expert_parallel=2", "train.zero_stage=2"]
# no momentum model, as published; k_test below the number of captions, so that matching decides among candidates
RETRIEVAL = {"momentum_model": "off", "queue_size": 0, "alpha": 0.0, "k_test": 4, "max_words": 12}
STILL = [  # nothing in training is drawn by rank, or counted over a rank's batch alone
    *("prompts.dropout=0", "backbone.text.dropout=0", "data.augment=none"),
    *("backbone.eve.moe.topk=1", "backbone.eve.balance_weight=0"),
]
FULL = ["train.method=full", "train.lr=1e-3"]
# name: overrides, on one rank and on two
TRAINED = {"prompts": [], "full": FULL}
BOTH = {
    "prompts": [],
    "prompts, cut up": ["train.zero_stage=3"],
    "full": FULL,
    "full, spread": [*FULL, *SPREAD],
}
BLOCKS = {"blocks": [], "one block": ["evaluate.image_batch_size=16", "evaluate.text_batch_size=16"]}
WORKER = Path(__file__).with_name("language_ranks_worker.py")
MEDIA, CAPTIONS = 5, 10  # of the test split
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Task -> recipe and overrides of a few steps of full fine-tuning."""
    folder, made = tmp_path_factory.mktemp("eve"), {}
    for task, settings in SETTINGS.items():
        shards = listed_shards(folder / task, "questions" if task == "vqa" else "folder")
        path = recipe(folder / task, task, shards, name="eve", **settings)
        answers = folder / task / "answers.json"
        answers.write_text(json.dumps(sorted(WORDS)))
        own = [
            f"vqa.answer_list={answers}",
            f"backbone.eve.answers={len(WORDS)}",
            f"backbone.tokenizer={folder / task / f'backbone-{task}'}",
            "backbone.checkpoint=null",
        ]
        made[task] = [
            str(path),
            "train.method=full",
            "train.lr=1e-3",
            "train.eps=1e-6",
            *(own if task == "vqa" else []),
        ]
    return made


def test_killed_and_resumed_it_is_the_same_run(
    launch, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    steps = ["train.epochs=3", "train.max_steps=6", "train.save_every=1", "train.keep_last=9"]
    command = ["-m", "aurora_ds.train", *commands["vqa"], *steps]
    monitored = ["monitor.tensorboard=true", "backbone.eve.moe.capacity_factor=0.25"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = launch([*command, *SPREAD, *monitored, "--output", whole], 2)
    assert run.wait(1500) == [0, 0], run.output()[-6000:]
    run = launch([*command, *SPREAD, *monitored, "--output", parts], 2)
    wait_for(lambda: any(line["step"] >= 2 for line in read(parts / FILE)), run)
    run.kill()
    assert checkpoint.find(parts, "auto") is None or len(checkpoint.complete(parts)) < 6
    run = launch([*command, *SPREAD, *monitored, "--output", parts], 2)
    assert run.wait(1500) == [0, 0], run.output()[-6000:]
    names = ("train/loss", "train/gradient_norm", "train/experts/layer01/text/entropy")
    figures = [
        {line["step"]: [line[name] for name in names] for line in read(each / FILE) if "train/loss" in line}
        for each in (parts, whole)
    ]
    assert figures[0] == figures[1] and list(figures[1]) == [1, 2, 3, 4, 5, 6]
    files = [checkpoint.verify(checkpoint.find(each, "required"))["files"] for each in (parts, whole)]
    assert files[0] == files[1]
    assert_shown(whole)


def assert_shown(run: Path) -> None:
    """TensorBoard has the experts' figures of every step."""
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, SCALARS, EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "by_step"), {HISTOGRAMS: 0, SCALARS: 0}).Reload()
    for modality in ("vision", "text"):
        tag = f"train/experts/layer01/{modality}"
        for figure in ("load_max", "load_min", "entropy", "dropped"):
            values = [event.value for event in events.Scalars(f"{tag}/{figure}")]
            assert len(values) == 6 and all(0 <= value <= 4 for value in values), figure
        bars = [event.histogram_value for event in events.Histograms(f"{tag}/load")]
        assert len(bars) == 6 and all(len(each.bucket) == 4 and sum(each.bucket) > 0 for each in bars)


# ---- retrieval: training and evaluation do not depend on the number of ranks


@pytest.fixture(scope="module")
def retrieved(launch, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, tuple]]]:
    """Number of ranks -> of each rank, name -> evaluations and losses: of training runs, and of their adapters judged
    in blocks and in one block."""
    folder = tmp_path_factory.mktemp("retrieved")
    path = recipe(folder, "retrieval", listed_shards(folder, "folder"), name="eve", retrieval=RETRIEVAL)
    found = {}
    for ranks, runs in ((1, TRAINED), (2, BOTH)):
        work = folder / f"ranks-{ranks}"
        work.mkdir()
        jobs = [
            (name, "train", [str(path), *STILL, *own, "--output", str(work / name.replace(", ", "-"))])
            for name, own in runs.items()
        ]
        adapter = ["--adapter", str(folder / "ranks-1" / "prompts"), "--output", str(work / "judged")]
        jobs += [
            (cut, "evaluate", [str(path), *STILL, *own, *adapter]) for cut, own in BLOCKS.items()
        ]  # one adapter, whoever judges
        (work / "jobs.json").write_text(json.dumps(jobs))
        run = launch([WORKER, work], ranks)
        assert run.wait(1500) == [0] * ranks, run.output()[-6000:]
        found[ranks] = [pickle.loads((work / f"found-{rank}.pickle").read_bytes()) for rank in range(ranks)]
    return found


@pytest.mark.parametrize("name", BOTH)
def test_retrieval_trains_on_two_ranks_as_on_one(retrieved: dict[int, list], name: str) -> None:
    (alone,), both = retrieved[1], retrieved[2]
    (_, wanted), (_, losses) = alone[name.partition(",")[0]], both[0][name]
    assert len(set(wanted)) == 3 and losses == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("cut", BLOCKS)
def test_two_ranks_rerank_as_one_and_count_every_sample_once(retrieved: dict[int, list], cut: str) -> None:
    (alone,), both = retrieved[1], retrieved[2]
    ((metrics, facts, _, wanted),) = alone[cut][0]
    assert (len(wanted.image_ranks), len(wanted.text_ranks)) == (MEDIA, CAPTIONS)
    k = RETRIEVAL["k_test"]
    assert max(MEDIA, CAPTIONS) * k <= wanted.pairs_scored <= (MEDIA + CAPTIONS) * k
    for rank in both:
        ((said, told, _, found),) = rank[cut][0]
        assert (said, told) == (metrics, facts)
        for figure in ("image_ranks", "text_ranks", "text_candidates", "text_scores"):
            assert torch.equal(getattr(found, figure), getattr(wanted, figure)), figure
