"""Frame-aware attention: its factors against their definition, and re-ranking with them against one pair at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import tiny_batch, tiny_config, tiny_task
from torch.nn import functional as F

from aurora_ds.presets import with_preset
from aurora_ds.tasks.candidates import Texts
from aurora_ds.tasks.frame_attention import frame_scales
from aurora_ds.tasks.rerank import evaluate_retrieval

CLIPS, CAPTIONS, FRAMES, BATCH = 5, 8, 3, 2
MEDIA = [0, 0, 1, 2, 3, 3, 3, 4]


def task_with(weights: str | None):
    """Its weights are larger than they are born, so that attention is not nearly even and its keys matter."""
    task = tiny_task(retrieval={"frame_weights": weights, "k_test": 4, "beta": 1.0}).task.eval()
    with torch.no_grad():
        for name, weight in task.model.named_parameters():
            if weight.dim() == 2 and name.endswith("weight") and "embeddings" not in name:
                weight.mul_(8)
    return task


def evaluate(task, clips: torch.Tensor, texts: Texts, **options):
    def read(indices):
        for start in range(0, len(indices), BATCH):
            yield {"image": clips[indices[start : start + BATCH]]}

    return evaluate_retrieval(
        task,
        read,
        CLIPS,
        texts,
        task.options.model_copy(update=options),
        torch.device("cpu"),
        BATCH,
        3,
        (FRAMES, 3, 16, 16),
    )


@pytest.fixture
def texts() -> Texts:
    batch = tiny_batch(CAPTIONS, seed=3)
    lengths = batch["attention_mask"].sum(1)
    rows = [row[: int(n)] for row, n in zip(batch["input_ids"], lengths, strict=True)]
    return Texts(rows, torch.tensor(MEDIA), 0)


@pytest.fixture
def clips() -> torch.Tensor:
    """The last two frames of a clip differ from its first, so that weights have something to weigh."""
    return tiny_batch(CLIPS, seed=4, frames=FRAMES)["image"] * torch.tensor([1.0, 3.0, 0.2]).view(
        1, 3, 1, 1, 1
    )


def test_patches_of_a_frame_are_scaled_by_how_much_it_resembles_the_text():
    text = F.normalize(torch.randn(4, 6), dim=1)
    frames = F.normalize(torch.randn(4, 3, 6), dim=2)
    scales = frame_scales(text, frames, 15).view(4, 3, 5)
    for row in range(4):
        expected = 3 * torch.softmax(torch.stack([text[row] @ frame / 4 for frame in frames[row]]), 0)
        assert torch.equal(scales[row, :, 0], torch.ones(3)), "each frame's first token is left alone"
        torch.testing.assert_close(scales[row, :, 1:], expected[:, None].expand(3, 4))
    alone = frame_scales(text, frames[:1], 15)
    torch.testing.assert_close(alone, frame_scales(text, frames[:1].expand(4, -1, -1), 15))


@pytest.mark.parametrize(("weights", "weighed"), [("off", False), ("released", False), ("consistent", True)])
def test_reranking_equals_one_pair_at_a_time(weights, weighed, clips, texts):
    task = task_with(weights)
    result = evaluate(task, clips, texts)
    encoder = task.model.text_encoder
    with torch.no_grad():
        task.prepare_evaluation({})
        for text, candidates in enumerate(result.text_candidates):
            ids = texts.input_ids[text][None].clone()
            mask = torch.ones_like(ids)
            feature = task.encode_texts({"input_ids": ids, "attention_mask": mask})["feature"]
            ids[:, 0] = task.config.backbone.text.enc_id
            for place, clip in enumerate(candidates.tolist()):
                image = clips[clip : clip + 1]
                tokens, own, frames = task._image_features(task.model, image)
                scale = frame_scales(feature, frames, tokens.shape[1]) if weighed else None
                state = encoder(ids, mask, encoder.image_kv(tokens), key_scale=scale)[:, 0]
                score = task.model.itm_head(state)[0, 1] + (feature @ own.t())[0, 0]
                torch.testing.assert_close(result.text_scores[text, place], score, rtol=1e-4, atol=1e-5)


def test_weights_change_scores_and_what_is_cached_or_cut_up_does_not(clips, texts):
    scores = evaluate(task_with("consistent"), clips, texts).text_scores
    assert (scores - evaluate(task_with("off"), clips, texts).text_scores).abs().max() > 1e-4
    for options in (
        {"image_cache_mb": 0},
        {"pairs_per_batch": 2},
        {"image_cache_mb": 0, "pairs_per_batch": 3},
    ):
        again = evaluate(task_with("consistent"), clips, texts, **options)
        torch.testing.assert_close(again.text_scores, scores, rtol=1e-5, atol=1e-6)


def test_an_image_and_a_clip_of_one_frame_have_nothing_to_weigh():
    task = task_with("consistent")
    task.prepare_evaluation({})
    for image in (tiny_batch()["image"], tiny_batch()["image"][:, None]):
        assert "frames" not in task.encode_images({"image": image})


def test_presets_judge_clips_as_trained_or_as_released():
    found = {
        preset: with_preset(tiny_config(preset)).retrieval.frame_weights for preset in ("aurora", "released")
    }
    assert found == {"aurora": "consistent", "released": "released"}
    assert with_preset(tiny_config(retrieval={"frame_weights": "off"})).retrieval.frame_weights == "off"


def test_the_metrics_of_clips_are_named_for_clips(clips, texts):
    result = evaluate(task_with("consistent"), clips, texts)
    assert result.frames == FRAMES
    assert {name for name in result.metrics if not name.startswith("txt_")} == {
        *(f"vid_{metric}" for metric in ("r1", "r5", "r10", "r_mean", "mdR", "mnR")),
        "r_mean",
    }
