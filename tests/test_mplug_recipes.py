"""mPLUG's recipes hold the settings that were published, and what their first lines offer can be had."""

from __future__ import annotations

import re

import pytest

from aurora_ds.config import RunConfig
from aurora_ds.presets import with_preset
from aurora_ds.recipe import RECIPES, load_config, recipe_names

OWN = [name for name in recipe_names() if name.startswith("mplug_") and "world" not in name]
FULL = {  # px, batch, epochs, lr, vision's lr, smallest lr
    "mplug_vqa": (384, 8 * 128, 8, 3e-5, 5e-6, 1e-6),
    "mplug_vqa_large": (336, 8 * 256, 8, 3e-5, 5e-6, 1e-6),
    "mplug_caption_coco": (384, 4 * 64 * 4, 5, 1e-5, 5e-6, 1e-6),
    "mplug_caption_coco_large": (336, 4 * 64 * 4, 5, 1e-5, 5e-6, 1e-6),
    "mplug_caption_coco_scst": (384, 4 * 32, 5, 1e-6, 1e-6, 8e-8),
    "mplug_caption_coco_scst_large": (336, 4 * 64, 5, 1e-6, 1e-6, 8e-8),
    "mplug_retrieval_coco_large": (336, 8 * 128, 8, 1e-5, 2e-6, 1e-6),
    "mplug_retrieval_flickr_large": (336, 8 * 128, 8, 1e-5, 2e-6, 1e-6),
    "mplug_snli_ve_large": (336, 256, 5, 2e-5, 5e-6, 1e-6),
    "mplug_nlvr2_large": (336, 128, 10, 2e-5, 5e-6, 1e-6),
}
ZERO_SHOT = {  # px, frames, candidates
    "mplug_retrieval_msrvtt_large": (224, 12, 128),
    "mplug_msrvtt_qa": (480, 16, 128),
    "mplug_msvd_qa": (480, 16, 128),
    "mplug_caption_vatex_large": (448, 8, None),
}


def head_of(name: str) -> str:
    """The comment that a recipe begins with, in one line."""
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])


def sizes(config: RunConfig) -> tuple[int, ...]:
    vision, mplug = config.backbone.vision, config.backbone.mplug
    return vision.width, vision.depth, vision.heads, vision.patch_size, mplug.stride


def test_every_recipe_is_checked_here() -> None:
    assert set(OWN) == set(FULL) | set(ZERO_SHOT)


@pytest.mark.parametrize("name", OWN)
def test_sizes_are_those_of_the_name(name: str) -> None:
    config = load_config(name)
    large = name.endswith("_large")
    assert sizes(config) == ((1024, 24, 16, 14, 6) if large else (768, 12, 12, 16, 3))
    assert ("large" in config.description) == large


@pytest.mark.parametrize("name", OWN)
def test_published_results_and_their_source_are_told(name: str) -> None:
    assert re.search(
        r"Published (zero-shot )?result[^.]*: [^.]*\d+\.\d.*README of X-PLUG/mPLUG", head_of(name)
    )


@pytest.mark.parametrize("name", FULL)
def test_published_settings_of_full_fine_tuning(name: str) -> None:
    config = load_config(name)
    train, px = config.train, config.backbone.vision.image_size
    found = (px, train.global_batch_size, train.epochs, train.lr, train.vision_lr, train.min_lr)
    assert found == FULL[name] and (train.method, train.schedule) == ("full", "cosine_epoch")
    assert (train.weight_decay, train.no_decay) == (0.02, ["bias", "LayerNorm.weight"])


def test_published_settings_of_single_tasks() -> None:
    vqa, caption = load_config("mplug_vqa"), load_config("mplug_caption_coco")
    answers, words = vqa.vqa.generation, caption.caption.generation
    assert (answers.beams, answers.min_length - 1, answers.max_length - 1) == (5, 1, 10)
    assert (words.beams, words.min_length - 1, words.max_length - 1) == (5, 8, 25)
    assert (vqa.vqa.visual_genome_weight, vqa.vqa.distillation, vqa.train.clip_norm) == (0.5, 0.0, 1.0)
    assert (vqa.vqa.add_ocr, vqa.vqa.add_objects, vqa.vqa.max_tokens - 1) == (True, True, 80)
    retrieval = load_config("mplug_retrieval_coco_large").retrieval
    assert (retrieval.queue_size, retrieval.k_test, retrieval.negative_similarity) == (65536, 256, "momentum")
    assert (retrieval.train_temperature, retrieval.negatives) == (True, "local")


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_published_settings_of_clips(name: str) -> None:
    config = load_config(name)
    options, video = getattr(config, config.task), config.data.video
    found = (config.backbone.vision.image_size, video.frames, getattr(options, "k_test", None))
    assert found == ZERO_SHOT[name] and video.eval_sampling == "uniform"


def test_pre_trained_weights_see_single_texts_as_they_were_trained() -> None:
    assert load_config("mplug_retrieval_msrvtt_large").backbone.mplug.text_end == "none"
    assert with_preset(load_config("mplug_vqa")).backbone.mplug.text_end == "sep"
    released = with_preset(load_config("mplug_vqa", ["prompts.preset=released"]))
    assert released.backbone.mplug.text_end == "none"


@pytest.mark.parametrize("name", [name for name in FULL if "scst" not in name])
def test_prompts_in_the_place_of_full_fine_tuning(name: str) -> None:
    """With the settings that the recipe's first lines name."""
    (said,) = re.findall(r"train\.method=aurora(?: [\w.]+=[^\s]+\w)+", head_of(name))
    config = with_preset(load_config(name, said.split()))
    assert config.train.method == "aurora"


@pytest.mark.parametrize("name", ["mplug_vqa", "mplug_vqa_large"])
def test_questions_alone(name: str) -> None:
    """With the settings that the recipe's first lines name for the official files."""
    (said,) = re.findall(
        r"with the official files set ((?:vqa\.\w+=\w+\s*)+)\.", head_of(name).replace("\n# ", " ")
    )
    options = load_config(name, said.split()).vqa
    found = (options.add_ocr, options.add_objects, options.max_tokens - 1, options.eval_max_tokens)
    assert found == (False, False, 25, None)


@pytest.mark.parametrize("name", ["mplug_vqa", "mplug_vqa_large"])
def test_distillation_as_it_was_meant(name: str) -> None:
    said = re.findall(r"vqa\.\w+=[\w.]*\w", head_of(name).partition("What was meant:")[2])[:2]
    config = load_config(name, said)
    assert (config.vqa.distillation, config.vqa.momentum_model) == (0.4, "twin")


@pytest.mark.parametrize("suffix", ["", "_large"])
def test_the_second_stage_begins_where_the_first_one_ends(suffix: str) -> None:
    first, second = (load_config(f"mplug_caption_coco{stage}{suffix}") for stage in ("", "_scst"))
    same = {"vision", "mplug", "text"}
    assert first.backbone.model_dump(include=same) == second.backbone.model_dump(include=same)
    assert second.backbone.checkpoint == f"runs/mplug_caption_coco{suffix}/best/backbone.safetensors"
    assert (second.caption.self_critical.samples, second.data.expand) == (5, "media")
