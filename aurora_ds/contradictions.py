"""Settings that are each allowed but not together: one rule, one sentence for when it does not hold."""

from __future__ import annotations

from aurora_ds.config import BackboneConfig, RunConfig
from aurora_ds.config.backbone import HEADS_OF
from aurora_ds.presets import heads_of


def contradictions(config: RunConfig) -> list[str]:
    """What does not fit together, each with the keys and their values; empty when all is well."""
    rules = [*_backbone_rules(config.backbone), *_run_rules(config)]
    return [sentence for holds, sentence in rules if not holds]


def _backbone_rules(backbone: BackboneConfig) -> list[tuple[bool, str]]:
    vision, text = backbone.vision, backbone.text
    largest_id = max(text.pad_id, text.cls_id, text.sep_id, text.bos_id, text.enc_id)
    least_id = min(text.pad_id, text.cls_id, text.sep_id, text.bos_id, text.enc_id)
    heads = HEADS_OF.get(backbone.name, ())
    return [
        (
            bool(heads),
            f"backbone.name={backbone.name} is not built in this release; it has {', '.join(HEADS_OF)}",
        ),
        (
            not heads or backbone.head in heads,
            f"backbone.name={backbone.name} has no model for backbone.head={backbone.head}; it has them for "
            f"{', '.join(heads)}",
        ),
        *_mplug_rules(backbone),
        _multiple("backbone.vision.width", vision.width, "backbone.vision.heads", vision.heads),
        _multiple(
            "backbone.vision.image_size", vision.image_size, "backbone.vision.patch_size", vision.patch_size
        ),
        _multiple("backbone.text.width", text.width, "backbone.text.heads", text.heads),
        (
            backbone.head == "retrieval"
            or (backbone.momentum_weights, backbone.queue_weights) == ("ignore",) * 2
            or (backbone.name, backbone.head, backbone.queue_weights) == ("mplug", "vqa", "ignore"),
            f"backbone.head={backbone.head} has neither momentum weights nor queues: backbone.momentum_weights and "
            "backbone.queue_weights must be ignore",
        ),
        (
            0 <= least_id and largest_id < text.vocab_size,
            f"special ids of backbone.text ({least_id} to {largest_id}) must lie in its vocab_size ({text.vocab_size})",
        ),
    ]


def _mplug_rules(backbone: BackboneConfig) -> list[tuple[bool, str]]:
    fusion, stride = backbone.mplug.fusion_layers, backbone.mplug.stride
    if backbone.name != "mplug":
        return []
    return [
        (
            fusion <= backbone.text.depth,
            f"backbone.mplug.fusion_layers ({fusion}) must not exceed backbone.text.depth ({backbone.text.depth}), "
            "whose last layers they are",
        ),
        (
            backbone.checkpoint is None or (backbone.mplug.clip, backbone.mplug.bert) == (None, None),
            "backbone.mplug.clip and .bert are what a model without backbone.checkpoint begins with: set either",
        ),
        _multiple("backbone.mplug.fusion_layers", fusion, "backbone.mplug.stride", stride),
    ]


def _eve_rules(config: RunConfig) -> list[tuple[bool, str]]:
    eve, retrieval, depth = config.backbone.eve, config.retrieval, config.backbone.vision.depth
    if config.backbone.name != "eve":
        return []
    return [
        (
            all(layer < depth for layer in eve.top_layers),
            f"backbone.eve.top_layers {eve.top_layers} must be layers 0 to {depth - 1} (backbone.vision.depth={depth})",
        ),
        (
            all(each.topk <= each.experts for each in (eve.moe, eve.lower_moe)),
            "backbone.eve.moe.topk and lower_moe.topk must not exceed the number of experts",
        ),
        (
            not eve.nlvr_attention or config.train.method == "full" or config.task != "nlvr",
            "backbone.eve.nlvr_attention has a head of which prompts train a part alone: set train.method=full",
        ),
        (
            config.task != "retrieval"
            or (retrieval.momentum_model, retrieval.queue_size, retrieval.alpha) == ("off", 0, 0),
            "backbone.name=eve has no momentum model: set retrieval.momentum_model=off, retrieval.queue_size=0 and "
            "retrieval.alpha=0",
        ),
        (
            config.task != "pretrain" or eve.mask_embedding,
            "task=pretrain hides patches, which need an embedding: set backbone.eve.mask_embedding=true",
        ),
        (
            config.task != "vqa" or config.vqa.inference == "rank",
            "backbone.name=eve answers by choosing from a list: set vqa.inference=rank",
        ),
    ]


def _run_rules(config: RunConfig) -> list[tuple[bool, str]]:
    prompts, train = config.prompts, config.train
    heads = heads_of(config.backbone)
    unknown_heads = [head for head in prompts.train_heads or [] if head not in heads]
    least, most = config.data.crop_scale
    return [
        (
            config.backbone.head == config.task,
            f"backbone.head ({config.backbone.head}) must be the model of the task ({config.task})",
        ),
        _multiple(
            "train.global_batch_size", train.global_batch_size, "train.accumulation", train.accumulation
        ),
        (
            train.start_from is None or train.method != "full",
            "train.start_from is an adapter to train on, but train.method=full has none: give a whole backbone as "
            "backbone.checkpoint",
        ),
        *(
            (train.min_lr <= rate, f"train.min_lr ({train.min_lr}) must not exceed {name} ({rate})")
            for name, rate in (("train.lr", train.lr), ("train.vision_lr", train.vision_lr))
            if rate is not None
        ),
        (
            train.vision_lr is None or train.method == "full",
            f"train.vision_lr is the rate of the image encoder's own weights, which train.method={train.method} does "
            "not train: set it to null",
        ),
        (
            all(0 <= beta < 1 for beta in train.betas),
            f"train.betas {train.betas} must each be at least 0 and below 1",
        ),
        (
            bool(prompts.sites),
            "prompts.sites is empty, so nothing would be adapted: give patterns such as ['*'] or ['visual_encoder.*']",
        ),
        (
            config.backbone.name not in ("mplug", "eve") or config.retrieval.frame_weights in (None, "off"),
            f"retrieval.frame_weights ({config.retrieval.frame_weights}) weighs the frames of clips, which "
            "backbone.name=mplug cannot: leave it out, or set it to off",
        ),
        (
            not unknown_heads,
            f"prompts.train_heads names {', '.join(unknown_heads)}, but the heads are {', '.join(heads) or 'none'}",
        ),
        (
            train.method != "heads" or bool(heads),
            f"train.method=heads trains the heads alone, and the model of {config.task} has none: set aurora or full",
        ),
        *_eve_rules(config),
        (
            config.task != "pretrain" or (config.backbone.name, train.method) == ("eve", "full"),
            "task=pretrain trains the whole trunk of EVE: it needs backbone.name=eve and train.method=full, not "
            f"{config.backbone.name} and {train.method}",
        ),
        (
            config.retrieval.momentum_model != "off"
            or (config.retrieval.queue_size, config.retrieval.alpha) == (0, 0),
            "retrieval.momentum_model=off leaves nothing for a queue or for soft targets: set retrieval.queue_size=0 "
            "and retrieval.alpha=0",
        ),
        (
            train.method != "full" or not config.vqa.distillation or config.vqa.momentum_model == "twin",
            "train.method=full has no adapter slot to keep a momentum copy in: set vqa.momentum_model=twin, or "
            "vqa.distillation=0",
        ),
        (
            config.backbone.name != "eve" or not config.vqa.distillation,
            f"vqa.distillation ({config.vqa.distillation}) learns from words, and backbone.name=eve writes none: set "
            "it to 0",
        ),
        *_length_rules(config),
        *_grounding_rules(config),
        *_self_critical_rules(config),
        (
            0 < least <= most <= 1,
            f"data.crop_scale ({least}, {most}) must be two shares of an image's area, 0 < smaller <= larger <= 1",
        ),
        (
            not config.data.mix or config.data.shards is not None,
            "data.mix says what is trained on, but data.shards, whose data.eval_split is evaluated, is not set",
        ),
    ]


def _self_critical_rules(config: RunConfig) -> list[tuple[bool, str]]:
    options = config.caption.self_critical
    if config.task != "caption" or config.caption.objective != "self_critical":
        return []
    return [
        (
            options.baseline == "greedy" or options.samples > 1,
            f"caption.self_critical.baseline={options.baseline} compares captions of an image with each other, so "
            f"caption.self_critical.samples ({options.samples}) must be at least 2",
        ),
        (
            config.train.zero_stage < 3,
            "caption.objective=self_critical does not work with train.zero_stage=3, where ranks that write captions of "
            "unequal length would wait for each other: use 0, 1 or 2",
        ),
        (
            config.data.video.window != "moments",
            "caption.objective=self_critical rewards a caption by all captions of its medium, but "
            "data.video.window=moments gives each its own stretch: set it to [start, end] in seconds, or to null",
        ),
    ]


def _grounding_rules(config: RunConfig) -> list[tuple[bool, str]]:
    options, words = config.grounding, config.backbone.text.vocab_size
    last = options.first_bin_id + options.bins
    return [
        (
            config.task != "grounding" or config.backbone.name == "mplug",
            f"task=grounding needs backbone.name=mplug, which writes boxes; {config.backbone.name} does not",
        ),
        (
            config.task != "grounding"
            or (
                max(last, options.prefix_id) < words and not options.first_bin_id <= options.prefix_id <= last
            ),
            f"the tokens of grounding, prefix_id ({options.prefix_id}) and first_bin_id to that plus bins "
            f"({options.first_bin_id} to {last}), must be different ones of backbone.text.vocab_size ({words})",
        ),
    ]


def _length_rules(config: RunConfig) -> list[tuple[bool, str]]:
    """Texts of the run's task must fit into the positions of its text transformer."""
    positions, task = config.backbone.text.max_positions, config.task
    section = getattr(config, task)
    rules = [
        (
            2 <= section.max_tokens <= positions,
            f"{task}.max_tokens ({section.max_tokens}) must be 2 to backbone.text.max_positions ({positions})",
        )
    ]
    eval_tokens = getattr(section, "eval_max_tokens", None)
    if eval_tokens is not None:
        rules += [
            (
                2 <= eval_tokens <= positions,
                f"{task}.eval_max_tokens ({eval_tokens}) must be 2 to backbone.text.max_positions ({positions})",
            )
        ]
    generation = getattr(section, "generation", None)
    if generation is not None:
        rules += [
            (
                generation.max_length <= positions,
                f"{task}.generation.max_length ({generation.max_length}) must not exceed "
                f"backbone.text.max_positions ({positions})",
            ),
            (
                generation.min_length <= generation.max_length,
                f"{task}.generation.min_length ({generation.min_length}) must not exceed "
                f"{task}.generation.max_length ({generation.max_length})",
            ),
        ]
    return rules


def _multiple(name: str, value: int, of_name: str, of: int) -> tuple[bool, str]:
    return value % of == 0, f"{name} ({value}) must be a multiple of {of_name} ({of})"
