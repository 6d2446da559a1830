"""The golden cases of mPLUG that choose: retrieval of images and clips, ranked answers about clips."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aurora_ds.assemble import build_task
from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.published import published_tensors
from aurora_ds.config import RetrievalConfig, RunConfig, TrainConfig, VqaConfig
from aurora_ds.tasks.rerank import Texts, evaluate_retrieval
from aurora_ds.tasks.retrieval import RetrievalTask
from aurora_ds.tasks.vqa import VqaTask
from aurora_ds.verify.blip import allow_for_ties
from aurora_ds.verify.golden import Golden
from aurora_ds.verify.mplug import compare_gradients
from aurora_ds.verify.mplug_model import backbone_config

TRACE = {"mm_pos_embeds": "fusion_text_pos", "mm_neg_embeds": "fusion_text_neg"}


def retrieval_task(golden: Golden, beta: float = 0.0) -> RetrievalTask:
    """Everything trained, with the published momentum copies and queues."""
    c = golden.config["task_config"]
    config = RunConfig(
        backbone=backbone_config(golden, "retrieval", momentum_weights="read", queue_weights="read"),
        retrieval=RetrievalConfig(
            queue_size=c["queue_size"],
            momentum=c["momentum"],
            momentum_model="twin",
            train_temperature=True,
            contrast="local",
            negatives="local",
            negative_sampling="keyed",
            negative_similarity="momentum",
            frame_weights="off",
            k_test=c["k_test"],
            beta=beta,
        ),
        train=TrainConfig(method="full"),
    )
    return build_task(config, load_backbone(config.backbone)).task.eval()


def retrieval(golden: Golden) -> None:
    """One training step (forward, gradients, queue and momentum after it) and the two-stage evaluation."""
    task, inputs, trace = retrieval_task(golden), golden.inputs, {}
    task._uniform = lambda *_: (  # numbers that draw the recorded negatives
        _drawing(golden.outputs["neg_weights_t2i"], golden.outputs["neg_image_idx"]),
        _drawing(golden.outputs["neg_weights_i2t"], golden.outputs["neg_text_idx"]),
    )
    batch = {
        "image": inputs["image"],
        "input_ids": inputs["text_ids"],
        "attention_mask": inputs["text_mask"],
        "media_index": inputs["idx"],
    }
    losses = task(batch, what="loss", alpha=float(inputs["alpha"]), trace=trace)
    losses["loss"].backward()
    for name, value in (losses | trace).items():
        name = TRACE.get(name, name)
        if name in golden.outputs:
            golden.compare(name, value)
    compare_gradients(golden, task.model, {"temp": task.temp.grad})
    queue = {"queue_ptr" if n == "ptr_queue" else n: t for n, t in task.queue.state().items()}
    copies = published_tensors(dict(task.momentum_model.twin.named_parameters()))
    after = queue | {"_m.".join(name.split(".", 1)): value for name, value in copies.items()}
    for name, value in after.items():
        if f"after_step.{name}" in golden.outputs:
            golden.compare(f"after_step.{name}", value)
    scores = {"i2t": "eval.score_i2t", "t2i": "eval.score_t2i"}
    seen = inputs["eval_image"], inputs["eval_text_ids"], inputs["eval_text_mask"], inputs["eval_txt2img"]
    _compare_evaluation(golden, task, *seen, scores, "eval.")


def _drawing(weights: Tensor, chosen: Tensor) -> Tensor:
    """Numbers in [0, 1) by which `negatives.draw` takes the columns `chosen` (rows,) of `weights`."""
    ends = weights.double().cumsum(1)
    end = ends.gather(1, chosen[:, None])[:, 0]
    return (end - weights.double().gather(1, chosen[:, None])[:, 0] / 2) / ends[:, -1]


def _compare_evaluation(
    golden: Golden,
    task: RetrievalTask,
    media: Tensor,
    ids: Tensor,
    mask: Tensor,
    owners: Tensor,
    scores: dict[str, str],
    prefix: str = "",
) -> dict[str, Tensor]:
    """Similarities, scores both ways (-100 where there is none) and metrics. Returns the features."""
    with torch.no_grad():
        seen = task.encode_images({"image": media})
        words = task.encode_texts({"input_ids": ids, "attention_mask": mask})["feature"]
        logits = torch.stack(
            [
                task.match({"tokens": each[None], "input_ids": ids, "attention_mask": mask})["logits"][:, 1]
                for each in seen["tokens"]
            ]
        )
    sims, beta = seen["feature"] @ words.t(), task.options.beta
    golden.compare(f"{prefix}sims", sims)
    for way, table, match in (("i2t", sims, logits), ("t2i", sims.t(), logits.t())):
        top = table.topk(min(task.options.k_test, table.shape[1]), dim=1).indices
        score = torch.full_like(table, -100.0)
        golden.compare(scores[way], score.scatter(1, top, (match + beta * table).gather(1, top)))
    result = evaluate_retrieval(
        task,
        lambda rows: ({"image": media[rows[i : i + 2]]} for i in range(0, len(rows), 2)),
        len(media),
        Texts([row[: int(m.sum())] for row, m in zip(ids, mask, strict=True)], owners, 0),
        task.options,
        media.device,
        2,
        4,
        tuple(media.shape[1:]),
        tail="released",
    )
    k = task.options.k_test
    for name, value in result.metrics.items():
        if f"{prefix}metric.{name}" in golden.outputs:
            golden.compare(f"{prefix}metric.{name}", torch.tensor(value, dtype=torch.float64))
            sizes = min(k, len(media)), len(media), min(k, len(ids)), len(ids)
            allow_for_ties(golden, name, result, media.dim() == 5, *sizes, prefix)
    return seen | {"words": words}


def video_retrieval(golden: Golden) -> None:
    """Clips and texts, text i of clip i: the matching logit plus the similarity."""
    task, inputs = retrieval_task(golden, beta=1.0), golden.inputs
    scores = {"i2t": "score_v2t", "t2i": "score_t2v"}
    owners = torch.arange(len(inputs["video"]))
    seen = _compare_evaluation(
        golden, task, inputs["video"], inputs["text_ids"], inputs["text_mask"], owners, scores
    )
    golden.compare("frame_embeds", seen["tokens"])
    golden.compare("video_embed", seen["feature"])
    golden.compare("text_embed", seen["words"])


def video_answers(golden: Golden) -> None:
    """Answers of a list ranked for questions about clips."""
    config, inputs = backbone_config(golden, "vqa"), golden.inputs
    options = VqaConfig(
        label_smoothing=0.0, k_test=golden.config["task_config"]["k_test"], first_token="twice"
    )
    task = VqaTask(load_backbone(config).model.eval(), None, options, config.text)
    batch = {
        "image": inputs["video"],
        "input_ids": inputs["question_ids"],
        "attention_mask": inputs["question_mask"],
    }
    answers, trace = (inputs["answer_ids"], inputs["answer_mask"]), {}
    count = golden.outputs["rank.topk_ids"].shape[1]
    found = task(batch, what="rank", answers=answers, trace=trace, shown=count)
    golden.compare("question_states", trace["question_states"])
    golden.compare("question_mask_merged", trace["question_mask"])
    golden.compare("pred_answer_index", found["answer"])
    # published code leaves the candidates in the order of their first tokens
    recorded, place = golden.outputs["rank.topk_ids"].sort(1)
    own, order = found["leading"].sort(1)
    golden.compare("rank.topk_ids", own, recorded)
    shares = golden.outputs["rank.topk_probs"].gather(1, place)
    golden.compare("rank.topk_probs", found["probability"].gather(1, order), shares)


CASES: dict[str, Callable[[Golden], None]] = {
    "e": retrieval,
    "g1": video_retrieval,
    "g2": video_answers,
}
