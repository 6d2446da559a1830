"""What each task learns and how it is judged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from aurora_ds.config.section import Section, Switchable


class RetrievalConfig(Section):
    """Retrieval of images or clips: contrastive loss, matching loss with hard negatives, evaluation in two stages."""

    queue_size: int = Field(57600, ge=0)
    alpha: float = Field(
        0.4, ge=0, le=1, description="weight of the momentum model's soft targets after the ramp"
    )
    alpha_ramp_epochs: float = Field(1.0, ge=0)
    momentum: float = Field(0.995, ge=0, le=1)
    momentum_model: Literal["slot", "twin", "off"] = Field(
        "slot",
        description="off: the keys are the batch's own features, with gradient; neither queue nor soft targets",
    )
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
    negative_similarity: Literal["online", "momentum"] = Field(
        "online",
        description="whose features say how likely a negative is; momentum: as mPLUG's published code",
    )
    negative_floor: float = Field(
        0.0, ge=0, description="added to the probability of every negative; EVE: 1e-5"
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


class GenerationConfig(Section):
    """How text is written token by token. Lengths count the prompt (captions) or the first token (answers)."""

    method: Literal["beam", "greedy", "nucleus", "penalised_beam"] = Field(
        "beam",
        description="penalised_beam: as mPLUG's published code, whose texts may go on behind their end",
    )
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


class VqaConfig(Section):
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
    distillation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight of a momentum model's word probabilities in the loss, after the ramp; 0: none, which is "
        "what mPLUG's published code comes to",
    )
    distillation_ramp_epochs: float = Field(1.0, ge=0)
    momentum: float = Field(0.995, ge=0, le=1, description="of the model that is learned from")
    momentum_model: Literal["slot", "twin"] = Field(
        "slot", description="the adapter's copies, or a second backbone (needed by train.method=full)"
    )
    k_test: PositiveInt = Field(128, description="answers that are scored in full, after their first tokens")
    first_token: Literal["once", "twice"] = Field(
        "once",
        description="how often an answer's first token counts in the ranking; twice: as mPLUG's published code",
    )
    answers_per_batch: PositiveInt = Field(
        1024, description="how many (question, answer) pairs are scored at once in ranking"
    )
    question_padding: Literal["masked", "seen"] | None = Field(
        None, description="whether written answers see the question's padding; seen: as published"
    )
    generation: Annotated[GenerationConfig, BeforeValidator(_of_answers)] = GenerationConfig(
        **_ANSWER_LENGTHS
    )
    question_text: Literal["cleaned", "eve", "as_is"] = Field(
        "cleaned",
        description="lower case and without punctuation but `?`; by EVE's rules; or as it is (MSRVTT-QA as released)",
    )
    max_words: PositiveInt = Field(50, description="of a cleaned question; answers are taken whole")
    max_tokens: PositiveInt = Field(35, description="of a question")
    eval_max_tokens: PositiveInt | None = Field(
        None,
        description="the same in evaluation; null: max_tokens. mPLUG's published code cuts nothing there",
    )
    add_ocr: bool = Field(
        False, description="the words that annotations say were read on the image, behind the question"
    )
    add_objects: bool = Field(
        False, description="behind these, the names of the objects that annotations say were found"
    )


class SelfCriticalConfig(Section):
    """Training on the CIDEr-D of what the model writes (Rennie et al., 2017)."""

    texts: Literal["drawn", "beams"] = Field(
        "drawn", description="what is rewarded; beams: the best of a beam search, as mPLUG's published code"
    )
    samples: PositiveInt = Field(5, description="captions drawn for each image or clip, or beams")
    baseline: Literal["others", "all", "greedy"] = Field(
        "others",
        description="what rewards are compared with: the mean of the image's other captions, or of all (mPLUG's), or "
        "its greedy caption's",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="below 1, captions are not drawn from the distribution that is trained"
    )
    top_k: int = Field(0, ge=0, description="the same for a limit; 0: none")
    frequency: str | None = Field(
        None,
        description="document frequencies of CIDEr-D, a file that a run wrote; null: counted in the training captions",
    )


class CaptionConfig(Section):
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


class NlvrConfig(Section):
    """Statements about two images."""

    swap: Annotated[Literal["off", "train", "released"] | None, Switchable] = Field(
        None,
        description="exchange the two images of every other statement, and its words left and right: in training, or "
        "in evaluation too (released)",
    )
    max_words: PositiveInt = 40
    max_tokens: PositiveInt = Field(512, description="of a statement; published: whole")


class EntailmentConfig(Section):
    """Statements about an image: entailed, contradicted, or neither."""

    max_words: PositiveInt = 30
    max_tokens: PositiveInt = Field(40, description="of a statement")


class GroundingConfig(Section):
    """A phrase -> the box that it means, written as four tokens: centre x, centre y, width, height."""

    bins: PositiveInt = Field(336, description="steps that a side is cut into, whatever the image's size")
    prefix_id: int = Field(344, ge=0, description="token that a box begins with; published: [unused339]")
    first_bin_id: int = Field(345, ge=0, description="token of 0; the others follow; published: [unused340]")
    weighting: Literal["sample", "batch"] | None = Field(
        None,
        description="what weighs a box's loss: how far off it is itself, or all of the batch are (as released)",
    )
    crop_chance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of images cropped in training, of those whose phrase names no place",
    )
    colour_jitter: float = Field(
        0.4, ge=0, le=1, description="how far brightness, contrast and saturation change in training"
    )
    max_tokens: PositiveInt = Field(20, description="of a phrase")
