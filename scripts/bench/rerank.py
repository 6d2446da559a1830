"""Two-stage retrieval evaluation: aurora_ds against the published one-query-at-a-time procedure, on the same
weights.

BLIP-like model of 4 layers and width 384 in both towers, 384 px, rank 16; 40 images x 200 captions with the
lengths of COCO captions, k = 16, CPU, fp32. Both start from pixels and token ids and include encoding. Published
(plain_blip.py, BLIP's released evaluation): each image's k best texts in one call with the image's tokens
repeated k times and texts padded to 35, then each text's k best images in one call; keys and values computed anew
for every pair. Ours: aurora_ds.tasks.rerank.evaluate_retrieval.

With `--procedure` a third contender runs the published procedure on our own model (fused attention, prompts
computed once), so that what the procedure gains stands apart from what the model gains.

Same ranks: the rank of every text for its image and of the best caption for every image must be equal. Scores
come from random weights, made distinct by enlarging the matching head; where two scores are closer than float
rounding (1e-4 of their spread) the order is not determined, and such pairs are counted and shown. Equal scores
and non-candidates are ordered as in the published code (`tail="released"`: the higher index goes first).

    python scripts/bench/rerank.py [--quick] [--repeat 3] [--procedure]

Aim: time <= 0.3 of published, same ranks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    peak_memory_mb,
    processor_seconds,
    sharing_note,
    write_results,
)

TIME_BAR = 0.3
IMAGE_BATCH, TEXT_BATCH = 8, 64
CONTENDERS = ("plain", "procedure", "aurora")
LABELS = {
    "plain": "published procedure, plain model",
    "procedure": "published procedure, our model",
    "aurora": "aurora_ds",
}


def setting(quick: bool) -> dict[str, int]:
    if quick:
        return {
            "layers": 2,
            "width": 64,
            "heads": 2,
            "image": 64,
            "images": 6,
            "texts": 18,
            "k": 4,
            "rank": 8,
        }
    return {
        "layers": 4,
        "width": 384,
        "heads": 6,
        "image": 384,
        "images": 40,
        "texts": 200,
        "k": 16,
        "rank": 16,
    }


def make_baseline(s: dict[str, int]):
    """The plain model with random weights whose features and matching scores spread widely."""
    import torch
    from plain_blip import PlainRetrieval, PlainSizes

    torch.manual_seed(11)
    model = PlainRetrieval(
        PlainSizes(
            image_size=s["image"],
            width=s["width"],
            vision_depth=s["layers"],
            vision_heads=s["heads"],
            text_depth=s["layers"],
            text_heads=s["heads"],
            intermediate=4 * s["width"],
            queue_size=16,
            rank=s["rank"],
            dropout=0.1,
        )
    )
    with torch.no_grad():
        model.CP_V.weight.normal_(std=0.2)
        for name, parameter in model.named_parameters():
            if name.endswith(("CP_scaleself", "CP_scalecross", "CP_shiftself", "CP_shiftcross")):
                parameter.normal_(std=0.1)
            if ".crossattention.self.value.weight" in name or ".crossattention.self.query.weight" in name:
                parameter.mul_(4)  # what the image says must show in the pair's state
        model.itm_head.weight.mul_(50)
    return model.eval()


def make_product(baseline, s: dict[str, int], folder: Path):
    """aurora_ds's task with the baseline's weights, written and read in the published layout."""
    from safetensors.torch import save_file

    from aurora_ds.assemble import build_task
    from aurora_ds.config import RunConfig
    from aurora_ds.prompts.published import from_published

    state = baseline.state_dict()
    file = folder / "rerank.safetensors"
    save_file(
        {
            n: t.contiguous()
            for n, t in state.items()
            if "CP" not in n and "_m." not in n and "queue" not in n
        },
        file,
    )
    config = RunConfig()
    vision, text = config.backbone.vision, config.backbone.text
    vision.image_size, vision.width, vision.depth, vision.heads = (
        s["image"],
        s["width"],
        s["layers"],
        s["heads"],
    )
    text.width, text.depth, text.heads, text.intermediate = (
        s["width"],
        s["layers"],
        s["heads"],
        4 * s["width"],
    )
    config.backbone.checkpoint = str(file)
    config.prompts.preset, config.prompts.rank = "released", s["rank"]
    config.retrieval.queue_size, config.retrieval.k_test = 0, s["k"]
    task = build_task(config).task.eval()
    bank = task.prompts.bank
    bank.load_state_dict(from_published(bank, state))
    return task


def inputs(s: dict[str, int]):
    """Pixels (images, 3, H, W), token ids per text, and the image each text describes."""
    import torch
    from captions import natural_captions

    generator = torch.Generator().manual_seed(5)
    # patterns of few colours rather than white noise, so that images differ in more than their average
    coarse = torch.randn(s["images"], 3, 6, 6, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(s["image"], s["image"]), mode="nearest") * 2
    return (
        pixels,
        natural_captions(s["texts"], 6, 30524),
        torch.arange(s["texts"]) * s["images"] // s["texts"],
    )


def published_ranks(image_to_text, text_to_image, media) -> tuple[list[int], list[int]]:
    """Best rank per image of its texts, rank per text of its image, from whole score matrices: published `itm_eval`."""
    import numpy as np

    per_image, per_text = [], []
    for image, row in enumerate(image_to_text.numpy()):
        order = np.argsort(row, kind="stable")[::-1]
        place = np.empty(len(order), dtype=int)
        place[order] = np.arange(len(order))
        per_image.append(int(min(place[text] for text in range(len(media)) if media[text] == image)))
    for text, row in enumerate(text_to_image.numpy()):
        order = np.argsort(row, kind="stable")[::-1]
        per_text.append(int(np.where(order == int(media[text]))[0][0]))
    return per_image, per_text


def close_scores(matrix) -> tuple[int, float]:
    """How many neighbours in a sorted row of candidates are too close to tell apart; the closest gap."""
    close, closest = 0, float("inf")
    for row in matrix:
        values = row[row > -100].sort().values
        gaps = (values[1:] - values[:-1]) / (values[-1] - values[0])
        close, closest = close + int((gaps < 1e-4).sum()), min(closest, float(gaps.min()))
    return close, closest


def measure(contender: str, threads: int, quick: bool) -> dict[str, Any]:
    """One evaluation from pixels and ids to ranks, after a small warm-up, in this process."""
    import torch

    torch.set_num_threads(threads)
    s = setting(quick)
    baseline = make_baseline(s)
    pixels, captions, media = inputs(s)
    record: dict[str, Any] = {"contender": contender}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        run = {"plain": run_plain, "procedure": run_procedure, "aurora": run_product}[contender]
        model = baseline if contender == "plain" else make_product(baseline, s, Path(folder))
        small = {**s, "k": 2}
        run(model, pixels[:2], captions[:4], torch.tensor([0, 0, 1, 1]), small)
        before = peak_memory_mb()
        start, start_processor = time.perf_counter(), processor_seconds()
        ranks = run(model, pixels, captions, media, s)
        record |= {
            "seconds": time.perf_counter() - start,
            "processor_seconds": processor_seconds() - start_processor,
        }
        record |= {"peak_mb": peak_memory_mb(), "before_mb": before, **ranks}
    return record


def run_plain(model, pixels, captions, media, s: dict[str, int]) -> dict[str, Any]:
    from captions import LIMIT, padded

    ids, mask = padded(captions, LIMIT)
    scores = model.score_matrices(
        list(pixels.split(IMAGE_BATCH)), ids, mask, s["k"], beta=0.0, text_batch=TEXT_BATCH
    )
    return summarise(*scores, media)


def summarise(image_to_text, text_to_image, media) -> dict[str, Any]:
    per_image, per_text = published_ranks(image_to_text, text_to_image, media)
    gaps = [close_scores(m) for m in (image_to_text, text_to_image)]
    return {
        "image_ranks": per_image,
        "text_ranks": per_text,
        "pairs": int((image_to_text > -100).sum() + (text_to_image > -100).sum()),
        "close_scores": sum(g[0] for g in gaps),
        "closest_gap": min(g[1] for g in gaps),
    }


def run_procedure(task, pixels, captions, media, s: dict[str, int]) -> dict[str, Any]:
    """The published procedure with the product's model: image tokens repeated, keys and values anew for every pair,
    texts padded to 35."""
    import torch
    from captions import LIMIT, padded

    ids, mask = padded(captions, LIMIT)
    task.prepare_evaluation({})
    encoder, head = task.model.text_encoder, task.model.itm_head
    encoded = [task.encode_images({"image": block}) for block in pixels.split(IMAGE_BATCH)]
    tokens, image = torch.cat([e["tokens"] for e in encoded]), torch.cat([e["feature"] for e in encoded])
    text = torch.cat(
        [
            task.encode_texts({"input_ids": i, "attention_mask": m})["feature"]
            for i, m in zip(ids.split(TEXT_BATCH), mask.split(TEXT_BATCH), strict=True)
        ]
    )
    similarity = image @ text.t()
    matching = ids.clone()
    matching[:, 0] = task.config.backbone.text.enc_id

    def score(pair_tokens: torch.Tensor, pair_ids: torch.Tensor, pair_mask: torch.Tensor) -> torch.Tensor:
        return head(encoder(pair_ids, pair_mask, image_kv=encoder.image_kv(pair_tokens))[:, 0])[:, 1]

    image_to_text = torch.full_like(similarity, -100.0)
    for i, row in enumerate(similarity):
        chosen = row.topk(s["k"]).indices
        image_to_text[i, chosen] = score(tokens[i].repeat(s["k"], 1, 1), matching[chosen], mask[chosen])
    text_to_image = torch.full_like(similarity.t(), -100.0)
    for t, row in enumerate(similarity.t()):
        chosen = row.topk(min(s["k"], len(row))).indices
        text_to_image[t, chosen] = score(
            tokens[chosen], matching[t].repeat(len(chosen), 1), mask[t].repeat(len(chosen), 1)
        )
    return summarise(image_to_text, text_to_image, media)


def run_product(task, pixels, captions, media, s: dict[str, int]) -> dict[str, Any]:
    import torch

    from aurora_ds.tasks.rerank import Texts, evaluate_retrieval

    options = task.config.retrieval.model_copy(update={"k_test": s["k"]})
    result = evaluate_retrieval(
        task,
        lambda indices: ({"image": pixels[block]} for block in torch.tensor(indices).split(IMAGE_BATCH)),
        len(pixels),
        Texts(captions, media, 0),
        options,
        torch.device("cpu"),
        IMAGE_BATCH,
        TEXT_BATCH,
        tuple(pixels.shape[1:]),
        tail="released",
    )
    return {
        "image_ranks": result.image_ranks.tolist(),
        "text_ranks": result.text_ranks.tolist(),
        "pairs": result.pairs_scored,
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["--threads", str(arguments.threads)] + (["--quick"] if arguments.quick else [])
    contenders = [name for name in CONTENDERS if name != "procedure" or arguments.procedure]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(arguments.repeat):
        for contender in contenders:
            runs[contender].append(
                fresh_process("rerank.py", ["--measure", contender, *options], arguments.threads)
            )
            last = runs[contender][-1]
            print(
                f"{number + 1}/{arguments.repeat} {contender}: {last['seconds']:.2f} s, {last['pairs']} pairs",
                flush=True,
            )
    reference = runs["plain"][0]
    for name, each in runs.items():
        for run in each:
            different = [
                sum(a != b for a, b in zip(run[part], reference[part], strict=True))
                for part in ("image_ranks", "text_ranks")
            ]
            if any(different):
                raise SystemExit(
                    f"{name}: {different[0]} image ranks and {different[1]} text ranks differ from the published ones."
                )
    summary = {
        name: {
            key: median([run[key] for run in each])
            for key in ("seconds", "processor_seconds", "peak_mb", "pairs")
        }
        for name, each in runs.items()
    }
    ratio = {
        part: {name: summary["aurora"][part] / summary[name][part] for name in contenders[:-1]}
        for part in ("seconds", "processor_seconds", "peak_mb")
    }
    return {
        "what": "two-stage retrieval evaluation from pixels and token ids to ranks, CPU",
        "setting": {
            **setting(arguments.quick),
            "repeat": arguments.repeat,
            "image_batch": IMAGE_BATCH,
            "text_batch": TEXT_BATCH,
        },
        "machine": machine_facts(arguments.threads),
        "summary": summary,
        "time_ratio": ratio["seconds"]["plain"],
        "ratios": ratio,
        "bars": {"time": TIME_BAR},
        "same_ranks": True,
        "distinct_image_ranks": len(set(reference["image_ranks"])),
        "distinct_text_ranks": len(set(reference["text_ranks"])),
        "close_scores": reference["close_scores"],
        "closest_gap": reference["closest_gap"],
        "runs": runs,
    }


def report(record: dict[str, Any]) -> str:
    s, summary, ratios = record["setting"], record["summary"], record["ratios"]
    rows = []
    for name, each in summary.items():
        other = [
            f"{ratios[part][name]:.3f}" if name != "aurora" else ""
            for part in ("seconds", "processor_seconds", "peak_mb")
        ]
        rows.append(
            [
                LABELS[name],
                f"{each['seconds']:.2f}",
                f"{each['processor_seconds']:.2f}",
                f"{each['peak_mb']:.0f}",
                f"{each['pairs']:.0f}",
                *other,
            ]
        )
    head = [
        "",
        "seconds",
        "processor s",
        "peak MiB",
        "pairs scored",
        "ours / this: time",
        "processor",
        "memory",
    ]
    plain = record["summary"]["plain"]
    note = sharing_note(plain["seconds"], plain["processor_seconds"], record["machine"]["threads"])
    return (
        f"# Re-ranking, from pixels and token ids to ranks, on CPU\n\n"
        f"{s['layers']} layers, width {s['width']}, {s['image']} px, {s['images']} images x {s['texts']} captions "
        f"with the lengths of COCO captions, k = {s['k']}, fp32. Medians of {s['repeat']} fresh processes each, "
        f"in turn.\n\n{markdown_table(head, rows)}\n\n"
        f"Aim: time <= {TIME_BAR} of the published procedure on the plain model. The ranks of all "
        f"{s['images']} images and {s['texts']} texts are equal "
        f"({record['distinct_image_ranks']} and {record['distinct_text_ranks']} distinct values); neighbouring "
        f"scores too close to order (gap under 1e-4 of the row's spread): {record['close_scores']}, closest gap "
        f"{record['closest_gap']:.1e}. Ties and non-candidates are ordered as published.\n\n"
        f"{note}{facts_line(record['machine'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and gallery, once; checks that everything runs"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--procedure", action="store_true", help="measure the third contender too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.threads, arguments.quick)))
        return
    if arguments.quick:
        arguments.repeat = 1
    record = compare(arguments)
    write_results("rerank", record, report(record), arguments.quick)


if __name__ == "__main__":
    main()
