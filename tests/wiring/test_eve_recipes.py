"""EVE's recipes: published settings, and learning rates and decay of every parameter as recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_ds.assemble import build_task
from aurora_ds.presets import with_preset
from aurora_ds.recipe import load_config
from aurora_ds.runtime.groups import groups_of
from aurora_ds.runtime.schedule import learning_rate

RECORDED = json.loads((Path(__file__).parents[1] / "goldens" / "eve" / "h_optim" / "groups.json").read_text())
# rate, multiple, batch, epochs, schedule, steps, warm-up, clipping, image size, (RandAugment, level, jitter), flip
PUBLISHED = {
    "retrieval_coco": (3e-5, 10, 256, 10, "linear", 22140, 0.1, 1.0, 384, (False, 5, 0.4), True),
    "retrieval_coco_large": (5e-5, 10, 256, 10, "linear", 22140, 0.1, 1.0, 384, (False, 5, 0.4), True),
    "retrieval_flickr": (1e-5, 5, 128, 10, "linear", 11330, 0.1, 1.0, 384, (False, 5, 0.4), True),
    "retrieval_flickr_large": (1e-5, 5, 128, 10, "linear", 11330, 0.1, 1.0, 384, (False, 5, 0.4), True),
    "vqa": (3e-5, 10, 128, 10, "linear", 51420, 0.1, 3.0, 480, (True, 7, 0.0), False),
    "vqa_large": (3e-5, 10, 128, 10, "linear", 51420, 0.1, 3.0, 480, (True, 7, 0.0), False),
    "nlvr2": (3.5e-5, 15, 128, 10, "cosine", 6750, 0.2, 3.0, 384, (True, 7, 0.0), True),
    "nlvr2_large": (3.5e-5, 15, 128, 10, "cosine", 6750, 0.2, 3.0, 384, (True, 7, 0.0), True),
    "nlvr2_biattn": (3.5e-5, 15, 128, 10, "cosine", 6750, 0.2, 3.0, 384, (True, 7, 0.0), True),
    "nlvr2_biattn_large": (3.5e-5, 15, 128, 10, "cosine", 6750, 0.2, 3.0, 384, (True, 7, 0.0), True),
}
TINY = [
    "backbone.checkpoint=null", "backbone.tokenizer=null", "backbone.embed_dim=8", "backbone.text.vocab_size=40",
    "backbone.vision.image_size=16", "backbone.vision.patch_size=8", "backbone.vision.width=16",
    "backbone.vision.depth=2", "backbone.vision.heads=2", "backbone.eve.top_layers=[1]", "backbone.eve.moe.experts=2",
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    config = load_config(f"eve_{name}")
    train, data, vision = config.train, config.data, config.backbone.vision
    lr, multiple, batch, epochs, schedule, steps, warm_up, clip, size, changes, flip = PUBLISHED[name]
    assert (train.method, train.lr, train.lr_multiple, train.global_batch_size) == (
        "full",
        lr,
        multiple,
        batch,
    )
    assert (train.epochs, train.schedule, train.warmup_steps) == (epochs, schedule, round(warm_up * steps))
    assert (train.clip_norm, train.weight_decay, train.betas, train.min_lr) == (clip, 0.01, (0.9, 0.98), 0)
    assert (data.randaugment, data.randaugment_level, data.colour_jitter) == changes
    assert (data.augment, data.horizontal_flip, data.crop_scale) == ("train", flip, (0.5, 1.0))
    assert vision.image_size == size and vision.drop_path == 0.1
    large = name.endswith("_large")
    assert (vision.width, vision.depth, vision.heads, config.backbone.embed_dim) == (
        (1024, 24, 16, 1024) if large else (768, 12, 12, 768)
    )
    eve = config.backbone.eve
    assert eve.top_layers == ([21, 22, 23] if large else [10, 11])
    assert (eve.moe.experts, eve.moe.topk, eve.balance_weight, eve.released) == (32, 2, 0.001, False)
    assert eve.nlvr_attention == ("biattn" in name)
    assert config.backbone.text.vocab_size == 64000
    assert getattr(config, config.task).max_tokens == 40


@pytest.mark.parametrize("name", ["retrieval_coco", "retrieval_flickr"])
def test_published_settings_of_retrieval(name: str) -> None:
    options = with_preset(load_config(f"eve_{name}")).retrieval
    assert (options.k_test, options.negative_floor, options.max_words, options.beta) == (128, 1e-5, 30, 0)
    assert options.train_temperature and options.momentum_model == "off"


@pytest.mark.parametrize(
    ("recipe", "record"),
    [
        ("eve_retrieval_coco", "c1_retrieval_train"),
        ("eve_retrieval_flickr_large", "c1_retrieval_train"),
        ("eve_vqa", "d1_vqa_moe"),
        ("eve_vqa", "d2_vqa_vlffn"),
        ("eve_nlvr2_biattn", "e2_nlvr_biattn"),
    ],
)
def test_every_recorded_parameter_has_its_rate_and_decay(recipe: str, record: str) -> None:
    config = load_config(recipe).train
    wanted = {
        ("temp" if name == "itc_temp" else f"model.{name}"): (
            config.lr * (config.lr_multiple if group["lr"] > 1e-4 else 1),
            group["weight_decay"],
        )
        for group in RECORDED[record]["groups"]
        for name in group["params"]
    }
    found = {
        name: (group.lr, group.weight_decay) for group in groups_of(wanted, config) for name in group.names
    }
    assert found.keys() == wanted.keys()
    for name, (lr, decay) in wanted.items():
        assert found[name] == (pytest.approx(lr), decay), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_new_parameters_alone_learn_faster(name: str) -> None:
    """What a pre-trained file does not have: everything but the trunk, and none of the trunk."""
    config = with_preset(load_config(f"eve_{name}", TINY))
    names = [n for n, p in build_task(config).task.named_parameters() if p.requires_grad]
    groups = groups_of(names, config.train)
    fast = {n for group in groups if group.lr > config.train.lr for n in group.names}
    assert fast == {n for n in names if not n.startswith("model.backbone.")} and fast
    assert {group.weight_decay for group in groups} == {0.0, 0.01}


def test_the_linear_schedule_warms_up_and_falls_to_nothing_in_every_group() -> None:
    config = load_config("eve_retrieval_coco").train
    total = 22140
    for base in (config.lr, config.lr * config.lr_multiple):
        rates = [learning_rate(step, config, total, 2214, base) for step in (0, 1107, 2214, 12177, total - 1)]
        assert rates[0] == 0 and rates[1] == pytest.approx(base / 2) and rates[2] == base
        assert rates[3] == pytest.approx(base / 2) and 0 < rates[4] < 1e-4 * base
