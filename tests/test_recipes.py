"""The built-in recipes load, and hold the published settings."""

from __future__ import annotations

import pytest

from aurora_ds.presets import with_preset
from aurora_ds.recipe import RECIPES, load_config, recipe_names

PUBLISHED = ["retrieval_coco", "retrieval_flickr", "retrieval_coco_large", "retrieval_flickr_large"]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_loads_and_says_what_it_is(name: str):
    config = load_config(name)
    assert config.description
    from_scratch = config.task == "pretrain" and "random weights" in config.description
    assert config.backbone.checkpoint or from_scratch, (
        "a recipe without a checkpoint trains on random weights"
    )
    assert (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").startswith("# "), (
        "the top says what it is for"
    )
    with_preset(config)


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "k_test", "negatives"),
    [("retrieval_coco", 1e-5, 6, 256, "all_ranks"), ("retrieval_flickr", 1e-4, 4, 128, "local")],
)
@pytest.mark.parametrize("size", ["", "_large"])
def test_published_settings(name: str, lr: float, epochs: int, k_test: int, negatives: str, size: str):
    config = load_config(name + size)
    assert (config.train.lr, config.train.epochs) == (lr, epochs)
    assert (config.retrieval.k_test, config.retrieval.negatives) == (k_test, negatives)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_common_to_all(name: str):
    config = load_config(name)
    assert config.train.global_batch_size == 8 * 16
    assert config.train.schedule == "cosine_epoch"
    assert (config.train.weight_decay, config.train.clip_norm, config.train.warmup_steps) == (0.05, 0, 0)
    assert (config.prompts.rank, config.prompts.dropout) == (32, 0.1)
    assert (config.retrieval.alpha, config.retrieval.beta, config.retrieval.momentum) == (0.4, 0.0, 0.995)
    assert config.retrieval.queue_size == 57600
    assert (config.backbone.vision.image_size, config.seed) == (384, 42)


@pytest.mark.parametrize("name", PUBLISHED)
def test_vision_sizes(name: str):
    vision = load_config(name).backbone.vision
    large = name.endswith("_large")
    assert (vision.width, vision.depth, vision.heads) == ((1024, 24, 16) if large else (768, 12, 12))
    assert vision.drop_path == (0.1 if large else 0.0)


CLIPS = {"msrvtt_7k": "random", "msrvtt_9k": "random", "didemo": "clip", "msvd": "random", "vatex": "random"}


@pytest.mark.parametrize("name", CLIPS)
def test_published_settings_of_clips(name: str):
    config = load_config(f"retrieval_{name}")
    train, retrieval, video = config.train, config.retrieval, config.data.video
    assert (train.lr, train.epochs, train.global_batch_size, train.schedule) == (
        1e-4,
        5,
        8 * 8,
        "cosine_epoch",
    )
    assert (retrieval.k_test, retrieval.negatives, retrieval.beta, retrieval.queue_size) == (
        128,
        "all_ranks",
        1.0,
        57600,
    )
    assert (retrieval.max_words, retrieval.max_tokens) == (40, 35)
    assert (config.prompts.rank, config.backbone.vision.image_size, video.frames) == (64, 224, 8)
    assert (video.train_sampling, video.eval_sampling) == (CLIPS[name], "uniform")
    assert with_preset(config).retrieval.frame_weights == "consistent"
    assert config.data.shards == f"shards/{name}", "where the dataset's recipe puts them"


def test_published_settings_of_image_pairs():
    config = load_config("nlvr2")
    train, data = config.train, config.data
    assert (train.lr, train.epochs, train.global_batch_size, train.schedule) == (
        3e-5,
        15,
        16 * 16,
        "cosine_epoch",
    )
    assert (config.backbone.vision.image_size, config.backbone.vision.drop_path) == (384, 0.1)
    assert (config.nlvr.max_words, config.nlvr.swap) == (40, "train")
    assert with_preset(config).prompts.train_heads == ["cls_head_0", "cls_head_2"]
    assert (data.shards, data.eval_split) == ("shards/nlvr2", "dev")


QUESTIONS = {  # lr, epochs, batch, image size, label smoothing
    "vqa": (2e-5, 5, 8 * 16, 384, 0.0),
    "vqa_vg": (2e-5, 10, 16 * 16, 480, 0.1),
    "msrvtt_qa": (2e-5, 5, 8 * 12, 224, 0.0),
    "msvd_qa": (2e-5, 5, 8 * 12, 224, 0.0),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_published_settings_of_questions(name: str):
    config = load_config(name)
    train, vqa, vision = config.train, config.vqa, config.backbone.vision
    found = (train.lr, train.epochs, train.global_batch_size, vision.image_size, vqa.label_smoothing)
    assert found == QUESTIONS[name]
    assert (train.schedule, train.weight_decay, config.prompts.rank) == ("cosine_epoch", 0.05, 32)
    assert (vision.drop_path, vqa.max_words, vqa.max_tokens, vqa.k_test) == (0.1, 50, 35, 128)
    clips = name.endswith("_qa")
    assert (vqa.inference, vqa.accuracy) == (("generate", "exact") if clips else ("rank", "vqa"))
    assert (vqa.answer_weight, vqa.question_text) == ((0.05, "as_is") if clips else (None, "cleaned"))
    assert (vqa.generation.max_length, vqa.generation.min_length, vqa.visual_genome_weight) == (10, 1, 0.2)
    assert with_preset(config).vqa.loss_per == "question"
    splits = [(entry.shards, entry.split) for entry in config.data.mix]
    assert splits[:2] == ([] if clips else [("shards/vqav2", "train"), ("shards/vqav2", "val")])


CAPTIONS = {  # beams, lengths, penalty
    "caption_coco": (3, 5, 20, 1.0),
    "caption_coco_scst": (3, 5, 20, 1.0),
    "nocaps": (3, 5, 20, 1.1),
    "caption_vatex": (10, 19, 29, 1.0),
    "caption_msvd": (3, 5, 20, 1.0),
    "caption_msrvtt": (3, 5, 20, 1.0),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_published_settings_of_captions(name: str):
    config = load_config(name)
    caption, vision, generation = config.caption, config.backbone.vision, config.caption.generation
    found = (generation.beams, generation.min_length, generation.max_length, generation.repetition_penalty)
    assert (found, generation.method) == (CAPTIONS[name], "beam")
    assert (vision.image_size, vision.drop_path, caption.prompt) == (384, 0.0, "a picture of ")
    clips = name in ("caption_vatex", "caption_msvd", "caption_msrvtt")
    assert (caption.max_words, caption.max_tokens) == (40 if clips else 30, 40)
    assert (config.data.video.frames, bool(caption.cut_after)) == (8, clips)


def test_published_settings_of_caption_training():
    first, second = load_config("caption_coco"), load_config("caption_coco_scst")
    assert (first.train.lr, first.train.epochs, first.train.global_batch_size) == (1e-5, 5, 8 * 32)
    assert (first.caption.objective, first.caption.label_smoothing) == ("likelihood", 0.1)
    assert (second.train.lr, second.train.min_lr, second.train.global_batch_size) == (1e-6, 8e-8, 4 * 32)
    assert (second.caption.objective, second.caption.self_critical.samples) == ("self_critical", 5)
    assert second.train.start_from and second.backbone == first.backbone and second.data.expand == "media"


@pytest.mark.parametrize("name", ["refcoco", "refcoco_plus", "refcocog"])
def test_published_settings_of_grounding(name: str):
    config = with_preset(load_config(f"grounding_{name}"))
    train, vision, grounding = config.train, config.backbone.vision, config.grounding
    assert (train.method, train.epochs, train.global_batch_size, train.schedule) == (
        "full",
        120,
        8 * 24,
        "cosine_epoch",
    )
    assert (train.lr, train.vision_lr, train.min_lr, train.warmup_lr) == (2e-5, 5e-6, 1e-6, 1e-6)
    assert (train.weight_decay, train.no_decay, train.warmup_steps) == (
        0.02,
        ["bias", "LayerNorm.weight"],
        2000,
    )
    assert (vision.image_size, vision.patch_size, vision.width, vision.depth) == (336, 14, 1024, 24)
    assert (config.backbone.name, config.backbone.mplug.stride) == ("mplug", 6)
    assert (grounding.bins, grounding.prefix_id, grounding.first_bin_id) == (336, 344, 345)
    assert (grounding.weighting, grounding.max_tokens) == ("sample", 20)
    assert (config.data.shards, config.data.eval_split) == (f"shards/{name}", "val")


def test_settings_of_pre_training_are_labelled():
    config, text = load_config("eve_pretrain"), (RECIPES / "eve_pretrain.yaml").read_text(encoding="utf-8")
    pretrain, eve, train = config.pretrain, config.backbone.eve, config.train
    assert (pretrain.image_share, pretrain.text_share, pretrain.image_pattern) == (0.75, 0.5, "random")
    assert (eve.moe.experts, eve.moe.topk, eve.top_layers, eve.balance_weight) == (32, 2, [10, 11], 0.001)
    assert (train.global_batch_size, train.max_steps, train.lr, train.method) == (2048, 480_000, 5e-4, "full")
    assert config.backbone.checkpoint is None and config.backbone.vision.image_size == 224
    for label in ("Published:", "From memory of the paper's text, not verified:", "Ours:"):
        assert label in text
