"""Masked pre-training: what is hidden, what is learned, runs, and what comes out of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from question_runs import image_sample, write_shards
from safetensors.torch import load_file
from tiny_runs import recipe
from torch import Tensor, nn

from aurora_ds import train
from aurora_ds.assemble import Assembled, build_task
from aurora_ds.config import PretrainConfig, RunConfig, TextConfig
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import task_forward
from aurora_ds.export import folder
from aurora_ds.recipe import load_config
from aurora_ds.tasks.pretraining import PretrainingTask

CAPTIONS = ("a red boat", "a small dog and two green trees by a brick wall", "three white stars")
SIDE = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recipe over images with captions."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_shards(
        folder / "shards",
        {
            "train": [[image_sample(n, captions=list(CAPTIONS)) for n in range(8)]],
            "test": [[image_sample(n, captions=list(CAPTIONS)) for n in range(20, 25)]],
            "bare": [[image_sample(n, statements=[]) for n in range(30, 32)]],
        },
    )
    return recipe(folder, "pretrain", folder / "shards", "eve", train={"method": "full"})


@pytest.fixture(scope="module")
def ran(made: Path) -> tuple[Path, dict]:
    """A run of it, and its results."""
    output = made.parent / "run"
    return output, train.run(load_config(str(made), ["monitor.tensorboard=true"]), output)


def batch_of(built: Assembled, samples: list[int]) -> dict[str, Tensor]:
    texts = built.wiring.train_texts(built.tokenizer)([CAPTIONS[n % 3] for n in samples])
    images = [torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(n)) for n in samples]
    return texts | {"image": torch.stack(images), "sample_index": torch.tensor(samples)}


# what is hidden ------------------------------------------------------------------------------------------------------

TEXT = TextConfig(vocab_size=100, pad_id=0, cls_id=2, sep_id=3, bos_id=2, enc_id=2, max_positions=40)


def hiding(grid: int = 14, seed: int = 5, **options: object) -> PretrainingTask:
    return PretrainingTask(nn.Identity(), PretrainConfig(**options), TEXT, 4, grid, seed)


def texts(*lengths: int, padded: int = 0) -> Tensor:
    longest = max(lengths) + 2 + padded
    rows = [[2, *range(10, 10 + length), 3] for length in lengths]
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def hidden_of(task: PretrainingTask, samples: list[int], ids: Tensor, step: int = 0):
    return task.hidden({"sample_index": torch.tensor(samples), "input_ids": ids}, step)


def test_shares_are_exact() -> None:
    hidden = hidden_of(hiding(), [3, 8, 9], texts(8, 5, 1))
    assert hidden.patches.sum(1).tolist() == [147] * 3  # 75 % of 196
    assert hidden.real.sum(1).tolist() == [4, 2, 1]


def test_special_tokens_and_padding_are_never_hidden() -> None:
    ids = texts(8, 5, 1, padded=6)
    for step in range(20):
        hidden = hidden_of(hiding(text_share=0.9), [3, 8, 9], ids, step)
        assert (ids.gather(1, hidden.places)[hidden.real] >= 10).all()


def test_a_caption_without_words_hides_nothing() -> None:
    assert hidden_of(hiding(), [3], texts(0)).real.sum() == 0


@pytest.mark.parametrize("pattern", ["random", "blocks"])
def test_what_is_hidden_depends_on_seed_step_and_sample_alone(pattern: str) -> None:
    task = hiding(image_pattern=pattern)
    together = hidden_of(task, [3, 8, 9], texts(8, 5, 6), step=2)
    alone = hidden_of(task, [8], texts(5, padded=9), step=2)
    assert torch.equal(together.patches[1], alone.patches[0])
    assert sorted(together.places[1][together.real[1]]) == sorted(alone.places[0][alone.real[0]])
    for other in (
        hidden_of(task, [8], texts(5), step=3),
        hidden_of(hiding(seed=6, image_pattern=pattern), [8], texts(5), step=2),
        hidden_of(task, [7], texts(5), step=2),
    ):
        assert not torch.equal(alone.patches, other.patches)


def test_blocks_hide_at_most_the_share_and_neighbours_together() -> None:
    hidden = hidden_of(hiding(image_pattern="blocks", image_share=0.4), list(range(50)), texts(*[3] * 50))
    counts = hidden.patches.sum(1)
    assert counts.max() <= 78 and counts.float().mean() > 74
    grid = hidden.patches.view(-1, 14, 14)
    both = (grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid[:, :, :-1].sum()
    assert both > 0.7  # one by one it would be 0.4


def test_every_part_is_hidden_equally_often() -> None:
    hidden = hidden_of(hiding(), list(range(2000)), texts(*[4] * 2000))
    assert (hidden.patches.float().mean(0) - 0.75).abs().max() < 0.06
    often = torch.bincount(hidden.places[hidden.real], minlength=5)[1:5] / 2000
    assert (often - 0.5).abs().max() < 0.06


# what is computed ----------------------------------------------------------------------------------------------------


def test_hidden_pixels_and_words_are_not_seen(made: Path) -> None:
    built = build_task(load_config(str(made), []))
    built.task.eval()
    batch = batch_of(built, [0, 1])
    hidden = built.task.hidden(batch, 0)
    mask = hidden.patches.view(2, 1, 2, 2).repeat_interleave(SIDE // 2, 2).repeat_interleave(SIDE // 2, 3)
    other = {**batch, "image": batch["image"] + 3.0 * mask}
    before, after = {}, {}
    built.task(batch, trace=before)
    built.task(other, trace=after)
    torch.testing.assert_close(before["pixels"], after["pixels"])
    assert not torch.allclose(
        before["surprise"], after["surprise"]
    )  # words are guessed beside the whole image
    changed = batch["input_ids"].scatter(
        1, hidden.places, torch.where(hidden.real, 9, batch["input_ids"].gather(1, hidden.places))
    )
    guesses = [
        built.task.judge({**batch, "input_ids": ids})["guesses"] for ids in (batch["input_ids"], changed)
    ]
    assert torch.equal(*guesses)


def test_the_loss_is_the_weighed_sum(made: Path) -> None:
    built = build_task(load_config(str(made), ["pretrain.image_weight=3", "pretrain.text_weight=0.5"]))
    built.task.eval()
    losses = built.task(batch_of(built, [0, 1, 2]))
    sum_of = 3 * losses["loss_image"] + 0.5 * losses["loss_text"] + losses["loss_auxiliary"]
    torch.testing.assert_close(losses["loss"].detach(), sum_of)
    assert losses["loss_auxiliary"] > 0


def test_a_batch_is_the_mean_of_its_parts(made: Path) -> None:
    built = build_task(load_config(str(made), ["backbone.eve.balance_weight=0"]))
    built.task.eval()
    whole = built.task(batch_of(built, [0, 1]))["loss"]
    parts = [built.task(batch_of(built, [n]))["loss"] for n in (0, 1)]
    torch.testing.assert_close(whole, sum(parts) / 2)


def test_normalised_patches_do_not_ask_for_brightness(made: Path) -> None:
    built = build_task(load_config(str(made), ["pretrain.normalise_patches=true"]))
    patches = torch.randn(2, 4, 192)
    torch.testing.assert_close(
        built.task._target(patches), built.task._target(5 * patches + 2), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(built.task._as_pixels(built.task._target(patches), patches), patches)


def test_pictures_come_back_as_loaders_give_them(made: Path) -> None:
    model = build_task(load_config(str(made), [])).task.model
    image = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(model.picture(model.patches(model.pixels(image))), image)


def test_what_is_shown_is_learned(made: Path) -> None:
    built = build_task(load_config(str(made), []))
    batch, losses = batch_of(built, [0, 1, 2]), []
    optimizer = torch.optim.AdamW(built.task.parameters(), lr=3e-3)
    for step in range(40):
        torch.manual_seed(step)
        said = built.task(batch, step=step)
        optimizer.zero_grad()
        said["loss"].backward()
        optimizer.step()
        losses.append((said["loss_image"].item(), said["loss_text"].item()))
    first, last = torch.tensor(losses[:5]).mean(0), torch.tensor(losses[-5:]).mean(0)
    assert (last < 0.7 * first).all()


# runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_results_pictures_and_completed_captions(ran: tuple[Path, dict], made: Path) -> None:
    output, record = ran
    assert record["images"] == 5 and 0 <= record["metrics"]["text_accuracy"] <= 100
    completed = json.loads((output / "completed.json").read_text())
    assert len(completed) == 5 and all(row["caption"] == CAPTIONS[0] for row in completed)
    assert all(row["words"] == 2 for row in completed)
    assert all(row["completed"].count(", was ") == row["words"] - row["right"] for row in completed)


def test_a_run_without_checkpoint_begins_with_random_weights(
    made: Path, capsys: pytest.CaptureFixture
) -> None:
    vocabulary = made.parent / "backbone-pretrain" / "vocab.txt"
    overrides = ["backbone.checkpoint=null", f"backbone.tokenizer={vocabulary}"]
    train.run(load_config(str(made), overrides), made.parent / "unused", dry_run=True)
    assert "eve (random weights)" in capsys.readouterr().out


def test_evaluation_of_what_was_saved_gives_the_same_figures(ran: tuple[Path, dict], made: Path) -> None:
    output, record = ran
    again = build_task(
        load_config(str(made), [f"backbone.checkpoint={output / 'adapter' / 'backbone.safetensors'}"])
    )
    again.task.eval()
    found = again.wiring.evaluate(task_forward(again), again.tokenizer)
    assert found.metrics == pytest.approx(record["metrics"], abs=1e-3)
    again.config.monitor.gallery_queries = 3
    shown = again.wiring.evaluate(task_forward(again), again.tokenizer)
    name, picture = again.wiring.picture(again.tokenizer, shown)
    assert name == "reconstructions" and picture.shape[0] == 3 and picture.shape[1] > 3 * 144


def test_a_resumed_run_is_the_whole_run_bit_for_bit(ran: tuple[Path, dict], made: Path) -> None:
    output, broken = ran[0], made.parent / "broken"
    train.run(load_config(str(made), ["train.max_steps=2", "train.save_every=1"]), broken)
    train.run(load_config(str(made), []), broken)
    whole, resumed = (load_file(each / "adapter" / "backbone.safetensors") for each in (output, broken))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_trunk_is_exported_and_fine_tuned(ran: tuple[Path, dict], made: Path, tmp_path: Path) -> None:
    folder.run(ran[0], "merged", tmp_path / "trunk")
    trunk = load_file(tmp_path / "trunk" / "backbone.safetensors")
    assert all(name.startswith("backbone.") for name in trunk)
    assert (
        sum(".experts.experts." in name for name in trunk) == 4 * 4
    )  # experts x (two linears, weight and bias)
    options = {"momentum_model": "off", "queue_size": 0, "alpha": 0.0, "k_test": 3}
    tuning = recipe(tmp_path, "retrieval", made.parent / "shards", "eve", retrieval=options)
    for place in (tmp_path / "trunk", ran[0] / "adapter"):
        checkpoint = f"backbone.checkpoint={place / 'backbone.safetensors'}"
        model = build_task(load_config(str(tuning), [checkpoint, "train.method=full"])).task.model
        own = model.state_dict()
        shared = [name for name in own if name.startswith("backbone.")]
        assert (
            len(shared) == len(trunk) - 1
        )  # without the embedding of hidden patches, which nothing would train
        assert all(torch.equal(own[name], trunk[name]) for name in shared)


def test_pre_training_goes_on_from_a_trunk(ran: tuple[Path, dict], made: Path, tmp_path: Path) -> None:
    folder.run(ran[0], "merged", tmp_path / "trunk")
    checkpoint = tmp_path / "trunk" / "backbone.safetensors"
    built = build_task(load_config(str(made), [f"backbone.checkpoint={checkpoint}"]))
    state = built.task.model.state_dict()
    assert torch.equal(
        state["backbone.mask_embed_vision"], load_file(checkpoint)["backbone.mask_embed_vision"]
    )
    assert torch.isfinite(built.task(batch_of(built, [0, 1]))["loss"])


def test_predictions_complete_a_caption(ran: tuple[Path, dict], made: Path) -> None:
    built = build_task(
        load_config(str(made), [f"backbone.checkpoint={ran[0] / 'adapter' / 'backbone.safetensors'}"])
    )
    built.task.eval()
    with torch.inference_mode():
        said = built.wiring.predict(
            task_forward(built), built.tokenizer, torch.randn(1, 3, SIDE, SIDE), ["a red boat"]
        )
    wrong = said[0]["words"] - said[0]["right"]
    assert (
        said[0]["words"] == 2 and said[0]["completed"].count(", was ") == wrong and said[0]["image_loss"] > 0
    )
    with torch.inference_mode():  # beside another it is the same
        both = built.wiring.predict(
            task_forward(built), built.tokenizer, torch.zeros(2, 3, SIDE, SIDE), ["a dog", "a dog"]
        )
    assert both[0] == both[1]
    with pytest.raises(AuroraError, match="as many captions"):
        built.wiring.predict(task_forward(built), built.tokenizer, torch.randn(2, 3, SIDE, SIDE), ["one"])


# wrong input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.method=aurora"], "needs backbone.name=eve and train.method=full"),
        (["backbone.eve.mask_embedding=false"], "set backbone.eve.mask_embedding=true"),
        (["pretrain.max_tokens=100"], "pretrain.max_tokens"),
        (["pretrain.text_share=1"], "pretrain.text_share"),
    ],
)
def test_contradictions_are_named(made: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(AuroraError, match=said):
        load_config(str(made), overrides)


def config_with_vocabulary(made: Path, tmp_path: Path) -> RunConfig:
    words = (made.parent / "backbone-pretrain" / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join("[other]" if word == "[MASK]" else word for word in words))
    return load_config(str(made), [f"backbone.tokenizer={tmp_path / 'vocab.txt'}"])


def test_a_vocabulary_without_mask_is_refused_unless_told(made: Path, tmp_path: Path) -> None:
    config = config_with_vocabulary(made, tmp_path)
    with pytest.raises(AuroraError, match=r"has no \[MASK\].*pretrain\.mask_id"):
        build_task(config)
    config.pretrain.mask_id = 4
    assert build_task(config).task.mask_id == 4


def test_a_split_without_captions_is_refused_before_training(made: Path) -> None:
    built = build_task(load_config(str(made), ["data.eval_split=bare"]))
    with pytest.raises(AuroraError, match="has no caption"):
        built.wiring.check()
