"""RunConfig: the one typed description of a run. Unknown keys and wrong values are errors.

The models only describe. recipe.py reads YAML recipes and dotted overrides into them; contradictions.py holds what
single fields cannot say. A field without `description` means what its name says.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

Sampling = Literal["uniform", "stride", "centre", "segment", "random", "head_tail", "clip"]


def _word(value: Any) -> Any:
    return "off" if value is False else value


Switchable = BeforeValidator(_word)  # YAML reads a bare `off` as false


def _stretch(window: Any) -> Any:
    """A window, or one sentence for every way to get it wrong: a union of types tells of those that were not meant."""
    if window is None or window == "moments":
        return window
    start, end = window if isinstance(window, list | tuple) and len(window) == 2 else (None, None)
    last = math.inf if end is None else end
    if not all(type(each) in (int, float) for each in (start, last)) or not 0 <= start < last:
        raise ValueError("moments, or [start, end] in seconds with 0 <= start < end, where end may be null")
    return start, end


Stretch = Annotated[Literal["moments"] | tuple[float, float | None] | None, BeforeValidator(_stretch)]


class _Section(BaseModel):
    """A group of settings. Unknown keys are errors; values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class VisionConfig(_Section):
    """Vision transformer: sizes under their usual names. ViT-B/16 by default, 384 px as in BLIP retrieval."""

    image_size: PositiveInt = 384
    patch_size: PositiveInt = 16
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, linear from 0")


class TextConfig(_Section):
    """Text transformer (post-norm BERT with cross-attention). Default: bert-base with BLIP's two extra tokens."""

    vocab_size: PositiveInt = 30524
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    intermediate: PositiveInt = 3072
    max_positions: PositiveInt = 512
    dropout: float = Field(0.1, ge=0, lt=1, description="after embeddings, attention output and feed-forward")
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    bos_id: int = 30522
    enc_id: int = 30523


class BackboneConfig(_Section):
    """Which frozen model, and the file it comes from."""

    name: Literal["blip"] = "blip"
    head: Literal["retrieval", "vqa", "caption", "nlvr"] = Field(
        "retrieval", description="which model: what is computed from the image encoder's tokens"
    )
    checkpoint: str | None = Field(
        None,
        description="published .pth, .safetensors, transformers-format directory, `builtin:world`, "
        "`builtin:world-language`; null: random",
    )
    tokenizer: str | None = Field(
        None,
        description="vocab.txt or a directory that holds one; null: beside the checkpoint, else built in",
    )
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    embed_dim: PositiveInt = 256
    momentum_weights: Literal["read", "ignore"] = Field(
        "ignore", description="`*_m` tensors of the checkpoint"
    )
    queue_weights: Literal["read", "ignore"] = Field(
        "ignore", description="image_queue, text_queue and their pointers"
    )
    attention: Literal["sdpa", "eager"] = "sdpa"
    activation_checkpointing: bool = Field(
        False, description="recompute every block in backward (non-reentrant)"
    )


class PromptConfig(_Section):
    """Aurora prompts. `preset` sets every field that is left null; see docs of prompts.presets."""

    preset: Literal["aurora", "released"] = "aurora"
    form: Literal["tucker", "cp"] | None = None
    rank: PositiveInt = 32
    scale: float = 1.0
    dropout: float = Field(0.1, ge=0, lt=1)
    dropout_position: Literal["released", "shared"] | None = None
    mlp_layout: Literal["interleaved", "block"] | None = Field(
        None, description="how MLP mode columns map to blocks; interleaved: as released"
    )
    sites: list[str] = Field(default_factory=lambda: ["*"], description="glob patterns over site names")
    query_transform: bool = True
    context: Annotated[Literal["off", "consistent", "released"] | None, Switchable] = None
    context_scale: float = 0.1
    train_heads: list[str] | None = Field(
        None,
        description="which of vision_proj, text_proj, itm_head (NLVR2: cls_head_0, cls_head_2) are trained",
    )
    momentum_factors: Literal["shared", "ema"] | None = Field(
        None, description="whether U, V, core have a momentum copy"
    )


class RetrievalConfig(_Section):
    """Retrieval of images or clips: contrastive loss, matching loss with hard negatives, evaluation in two stages."""

    queue_size: int = Field(57600, ge=0)
    alpha: float = Field(
        0.4, ge=0, le=1, description="weight of the momentum model's soft targets after the ramp"
    )
    alpha_ramp_epochs: float = Field(1.0, ge=0)
    momentum: float = Field(0.995, ge=0, le=1)
    momentum_model: Literal["slot", "twin"] = "slot"
    momentum_dropout: bool | None = Field(None, description="dropout in the momentum pass (released: true)")
    temperature: PositiveFloat | None = Field(None, description="null: the checkpoint's own")
    train_temperature: bool = False
    contrast: Literal["global", "local"] | None = Field(
        None, description="keys from all ranks' batches, or the rank's own (released)"
    )
    negatives: Literal["all_ranks", "local"] = "all_ranks"
    negative_sampling: Literal["keyed", "torch", "argmax"] | None = Field(
        None, description="keyed: by (seed, step, sample); argmax: for tests"
    )
    frame_weights: Annotated[Literal["off", "consistent", "released"] | None, Switchable] = Field(
        None,
        description="frame-aware attention of clips: in training and evaluation, or in training alone (released)",
    )
    k_test: PositiveInt = 256
    beta: float = Field(0.0, description="weight of the contrastive similarity in the re-ranking score")
    pairs_per_batch: PositiveInt = Field(
        256, description="how many (image, text) pairs are scored at once in re-ranking"
    )
    image_cache_mb: int = Field(
        2048, ge=0, description="memory per rank for image tokens kept between the two stages"
    )
    max_words: PositiveInt = 30
    max_tokens: PositiveInt = 35


class GenerationConfig(_Section):
    """How text is written token by token. Lengths count the prompt (captions) or the first token (answers)."""

    method: Literal["beam", "greedy", "nucleus"] = "beam"
    beams: PositiveInt = Field(3, description="texts kept per image; beam search alone")
    max_length: PositiveInt = 20
    min_length: int = Field(5, ge=0, description="no text ends before it has this many tokens")
    repetition_penalty: PositiveFloat = Field(
        1.0, description="above 1: tokens that the text has, its prompt included, become less likely"
    )
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus: the share of probability that is drawn from")
    top_k: int = Field(50, ge=0, description="nucleus: draw from this many tokens at most; 0: no limit")


_ANSWER_LENGTHS = {"max_length": 10, "min_length": 1}


def _of_answers(value: Any) -> Any:
    """A recipe that sets a part leaves the lengths of answers, which are not those of the class."""
    return _ANSWER_LENGTHS | value if isinstance(value, dict) else value


class VqaConfig(_Section):
    """Question answering on images and clips: weighted answers in training; ranking or writing in evaluation."""

    inference: Literal["rank", "generate"] = Field(
        "rank", description="score the answers of a list, or write one"
    )
    answer_list: str | None = Field(
        None, description="JSON list of the answers that are ranked; null: the one beside the shards"
    )
    accuracy: Literal["vqa", "exact"] = Field(
        "vqa",
        description="vqa: VQA's own, against ten annotators; exact: equality, as for MSRVTT-QA and MSVD-QA",
    )
    answer_weight: PositiveFloat | None = Field(
        None,
        description="weight of every answer in the loss; null: its share of the annotators. MSRVTT-QA in Aurora: 0.05",
    )
    visual_genome_weight: PositiveFloat = Field(
        0.2,
        description="the same for records that say they are of Visual Genome, where each question has one answer",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="in the loss and in the scores of the ranking; Aurora: 0"
    )
    loss_per: Literal["question", "frame"] | None = Field(
        None, description="what the loss is averaged over; frame: as released, so that clips weigh less"
    )
    k_test: PositiveInt = Field(128, description="answers that are scored in full, after their first tokens")
    answers_per_batch: PositiveInt = Field(
        1024, description="how many (question, answer) pairs are scored at once in ranking"
    )
    question_padding: Literal["masked", "seen"] | None = Field(
        None, description="whether written answers see the question's padding; seen: as published"
    )
    generation: Annotated[GenerationConfig, BeforeValidator(_of_answers)] = GenerationConfig(
        **_ANSWER_LENGTHS
    )
    question_text: Literal["cleaned", "as_is"] = Field(
        "cleaned",
        description="lower case and without punctuation but `?`, or as it is (MSRVTT-QA as released)",
    )
    max_words: PositiveInt = Field(50, description="of a cleaned question; answers are taken whole")
    max_tokens: PositiveInt = Field(35, description="of a question")


class SelfCriticalConfig(_Section):
    """Training on the CIDEr-D of what the model writes (Rennie et al., 2017)."""

    samples: PositiveInt = Field(5, description="captions drawn for each image or clip")
    baseline: Literal["others", "greedy"] = Field(
        "others",
        description="what rewards are compared with: the mean of the image's other captions, or its greedy caption's",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="below 1, captions are not drawn from the distribution that is trained"
    )
    top_k: int = Field(0, ge=0, description="the same for a limit; 0: none")
    frequency: str | None = Field(
        None,
        description="document frequencies of CIDEr-D, a file that a run wrote; null: counted in the training captions",
    )


class CaptionConfig(_Section):
    """Captioning of images and clips."""

    prompt: str = Field("a picture of ", description="words that every caption begins with")
    objective: Literal["likelihood", "self_critical"] = Field(
        "likelihood",
        description="what is trained for; self_critical: CIDEr-D, a second stage after likelihood (train.start_from)",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the likelihood")
    self_critical: SelfCriticalConfig = SelfCriticalConfig()
    generation: GenerationConfig = GenerationConfig()
    cut_after: list[str] = Field(
        default_factory=list,
        description="openings such as `a video of`, up to which a written caption is cut off where it has them",
    )
    max_words: PositiveInt = 30
    max_tokens: PositiveInt = Field(40, description="of a caption with its prompt")


class NlvrConfig(_Section):
    """Statements about two images."""

    swap: Annotated[Literal["off", "train", "released"] | None, Switchable] = Field(
        None,
        description="exchange the two images of every other statement, and its words left and right: in training, or "
        "in evaluation too (released)",
    )
    max_words: PositiveInt = 40
    max_tokens: PositiveInt = Field(512, description="of a statement; published: whole")


class MixEntry(_Section):
    """One dataset of a training mixture."""

    shards: str
    split: str = "train"
    weight: PositiveFloat = Field(
        1.0, description="how many times its samples are seen in an epoch; 0.5: each once in two epochs"
    )


class VideoConfig(_Section):
    """Which frames of a clip are read, and by what."""

    frames: PositiveInt = 8
    short_clips: Literal["repeat", "error"] = Field(
        "repeat",
        description="of a clip with fewer frames than asked for: repeat them evenly, or take it for unreadable",
    )
    train_sampling: Sampling = Field("random", description="how frames are picked in training")
    eval_sampling: Sampling = Field("uniform", description="how frames are picked in evaluation")
    window: Stretch = Field(
        None,
        description="[start, end] in seconds: frames from this stretch of every clip, end null: to its end; moments: "
        "train on the moments of clips (DiDeMo), each with frames from its own stretch, evaluate on whole clips",
    )
    decoder: Literal["auto", "pyav", "torchcodec"] = Field(
        "auto", description="auto: PyAV; torchcodec needs FFmpeg's shared libraries"
    )


class DataConfig(_Section):
    """Where shards are and how they are read."""

    shards: str | None = Field(
        None, description="folder that `shards convert` wrote, or its http(s)://, s3://, gs:// or hf:// URL"
    )
    cache: str | None = Field(
        None,
        description="folder for shards from URLs; unset: $AURORA_DS_CACHE, else ~/.cache/aurora_ds/shards",
    )
    cache_gb: PositiveFloat = Field(100.0, description="most that the cache may hold, in 10^9 bytes")
    train_split: str = "train"
    eval_split: str = "test"
    mix: list[MixEntry] = Field(
        default_factory=list,
        description="datasets to train on together, in place of shards and train_split; evaluation reads shards",
    )
    media: Literal["seen", "blank"] = Field(
        "seen",
        description="blank: the mean colour in the place of every image and clip, in training and evaluation: what "
        "text alone can do",
    )
    expand: Literal["pairs", "media"] = Field(
        "pairs",
        description="an epoch is every pair once, or every medium once with one annotation drawn for it",
    )
    shots: PositiveInt | None = Field(
        None,
        description="few-shot: train on this many media of each training split, drawn by the seed; null: on all",
    )
    lanes: PositiveInt = Field(
        64, description="parts that an epoch is cut into; ranks share them out, so a multiple of their number"
    )
    window: PositiveInt = Field(
        4096,
        description="samples of a lane that are shuffled among each other; larger: better mixed, less local",
    )
    workers: int = Field(2, ge=0)
    prefetch: PositiveInt = 2
    decoded_mb: int = Field(
        64,
        ge=0,
        description="memory per worker for decoded media, so that another pair of one need not decode it; a smaller "
        "window brings the pairs of a medium together",
    )
    augment: Literal["train", "none"] = Field(
        "train", description="train: crop, flip, RandAugment as published; none: test transform"
    )
    crop_scale: tuple[float, float] = (0.5, 1.0)
    horizontal_flip: bool = True
    randaugment: bool = True
    max_pixels: PositiveInt = Field(
        100_000_000, description="images with more pixels are refused before decoding"
    )
    image_decoder: Literal["auto", "pillow", "simplejpeg"] = Field(
        "auto", description="auto: simplejpeg where it is installed, else Pillow; the pixels are the same"
    )
    video: VideoConfig = VideoConfig()
    bad_samples: Literal["error", "skip"] = Field(
        "skip", description="in training: put another sample in the place of an unreadable one, or stop"
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="with skip: the part of an epoch's samples above which the run stops"
    )
    slow_seconds: PositiveFloat = Field(
        60.0, description="say which shard is waited for when a batch takes longer"
    )


class TrainConfig(_Section):
    """The optimisation. `global_batch_size`: samples of one optimizer step, over all ranks and accumulation steps."""

    method: Literal["aurora", "heads", "full"] = "aurora"
    start_from: str | None = Field(
        None, description="an adapter, or a run's folder that has one, whose values training begins with"
    )
    epochs: PositiveInt = 6
    max_steps: PositiveInt | None = Field(
        None, description="stop after this many optimizer steps, whatever the epochs say"
    )
    global_batch_size: PositiveInt = 128
    accumulation: PositiveInt = 1
    lr: PositiveFloat = 1e-5
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "cosine_epoch", "constant"] = Field(
        "cosine", description="cosine_epoch: constant within an epoch, as published"
    )
    warmup_steps: int = Field(0, ge=0)
    warmup_lr: float = Field(0.0, ge=0, description="learning rate of step 0 when warmup_steps > 0")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip_norm: float = Field(0.0, ge=0, description="0: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="used when no --deepspeed-config is given")
    save_every: int = Field(
        0, ge=0, description="optimizer steps between checkpoints; 0: at the end of each epoch"
    )
    save_queue: bool = True
    keep_last: PositiveInt = 2
    evaluate_every: int = Field(
        0, ge=0, description="epochs between evaluations on data.eval_split; 0: only at the end"
    )
    moved_after: PositiveInt = Field(
        20, description="steps after which every trainable must have changed, or the run stops"
    )


class EvalConfig(_Section):
    """Evaluation batches."""

    image_batch_size: PositiveInt = 32
    text_batch_size: PositiveInt = 256
    limit: PositiveInt | None = Field(None, description="evaluate on the first N media only")
    java: bool = Field(
        True, description="captions: METEOR and SPICE too, where Java and pycocoevalcap are there"
    )


class MonitorConfig(_Section):
    """TensorBoard and progress."""

    tensorboard: bool = True
    log_every: PositiveInt = 10
    gallery_queries: int = Field(8, ge=0, description="queries in the top-5 picture grid; 0: none")


class RunConfig(_Section):
    """Everything that decides a run's result."""

    task: Literal["retrieval", "vqa", "caption", "nlvr"] = "retrieval"
    description: str = ""
    seed: int = 42
    kernels: Literal["auto", "triton", "torch"] = Field(
        "auto", description="path of the fused projection; auto: Triton where it was measured to be faster"
    )
    backbone: BackboneConfig = BackboneConfig()
    prompts: PromptConfig = PromptConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    vqa: VqaConfig = VqaConfig()
    caption: CaptionConfig = CaptionConfig()
    nlvr: NlvrConfig = NlvrConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvalConfig = EvalConfig()
    monitor: MonitorConfig = MonitorConfig()
