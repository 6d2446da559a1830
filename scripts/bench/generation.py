"""Writing captions with 3 beams and ranking answers: aurora_ds against the published procedures, on the same weights.

BLIP-base decoder (12 layers, width 768, 30,524 words), CPU, fp32, random weights. Captions: image tokens of 384 px
(577 of width 768), prompt of 4 tokens, up to 20 tokens with it. Ranking: 3,128 answers of one to six tokens, as many of
each length as the usual VQA v2 answer list has, k = 128, questions of 12 tokens. The image encoder and the
question encoder are the same on both sides and left out. Published (plain_generation.py): no cache, keys and
values of the image repeated per beam and computed anew in each step, of the question for each answer. Images and
questions come in batches of 8.

    python scripts/bench/generation.py [--quick] [--images 64] [--questions 16] [--repeat 3] [--threads N]

Aim: captions in <= 0.35 of the published time, ranking in <= 0.4; same ids, same answers. Random weights leave some
texts within fp32's rounding of each other, so that either may win. What comes out different is done again in fp64,
both ways: it must be equal there, and the table counts it as a tie; different in fp64 too is an error.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
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

BARS = {"captions": 0.35, "ranking": 0.4}
ANSWER_LENGTHS = {
    1: 1927,
    2: 764,
    3: 378,
    4: 46,
    5: 12,
    6: 1,
}  # answers of the list by their number of tokens
FIRST_TOKENS = 2188  # different ones among them
END, PAD = 102, 0
AT_ONCE = 8


def setting(arguments: argparse.Namespace) -> dict[str, int]:
    if arguments.quick:
        sizes = {
            "layers": 2,
            "width": 64,
            "heads": 2,
            "words": 600,
            "tokens": 50,
            "images": 3,
            "questions": 3,
        }
        return sizes | {"answers_share": 40, "k": 8}
    sizes = {
        "layers": 12,
        "width": 768,
        "heads": 12,
        "words": 30524,
        "tokens": 577,
        "answers_share": 1,
        "k": 128,
    }
    return sizes | {"images": arguments.images, "questions": arguments.questions}


def make_task(s: dict[str, int], kind: str):
    """A captioning or an answering task with random weights that spread the scores."""
    import torch

    from aurora_ds.backbones.models import new_model
    from aurora_ds.config import BackboneConfig, CaptionConfig, GenerationConfig, TextConfig, VqaConfig
    from aurora_ds.tasks.caption import CaptionTask
    from aurora_ds.tasks.vqa import VqaTask

    text = TextConfig(
        vocab_size=s["words"],
        width=s["width"],
        depth=s["layers"],
        heads=s["heads"],
        intermediate=4 * s["width"],
        bos_id=s["words"] - 2,
        enc_id=s["words"] - 1,
    )
    head = "caption" if kind == "captions" else "vqa"
    config = BackboneConfig(head=head, text=text)
    config.vision.width, config.vision.heads, config.vision.depth = s["width"], s["heads"], 1
    torch.manual_seed(3)
    model = new_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".crossattention.self." in name:
                parameter.mul_(4)  # what is looked at must show
        # texts must end now and then, and not all at the first chance
        model.text_decoder.cls.predictions.bias[END] += 1.0
        model.text_decoder.bert.embeddings.word_embeddings.weight.mul_(3)
    if kind == "captions":
        options = CaptionConfig(generation=GenerationConfig(beams=3, max_length=20, min_length=5))
        return CaptionTask(model, None, options, text, torch.tensor([101, 7, 8, 9, END])).eval()
    return VqaTask(model, None, VqaConfig(k_test=s["k"]), text).eval()


def answer_list(s: dict[str, int]):
    """ids, mask of random answers with the lengths and the share of common first tokens of the usual list."""
    import torch

    generator = torch.Generator().manual_seed(4)
    lengths = [n for n, count in ANSWER_LENGTHS.items() for _ in range(-(-count // s["answers_share"]))]
    ids = torch.full((len(lengths), max(lengths) + 2), PAD)
    first = min(FIRST_TOKENS // s["answers_share"], s["words"] - 200)
    for row, length in enumerate(lengths):
        words = torch.randint(104, s["words"] - 2, (length,), generator=generator)
        words[0] = 104 + torch.randint(0, first, (1,), generator=generator)
        ids[row, : length + 2] = torch.cat([torch.tensor([101]), words, torch.tensor([END])])
    return ids, (ids != PAD).long()


def batches(kind: str, s: dict[str, int], items: list[int]) -> Iterator[Any]:
    """The images' tokens (n, N, D) or the questions' states (n, 12, D) numbered `items`, n <= AT_ONCE at a time."""
    import torch

    generator = torch.Generator().manual_seed(6)
    length = s["tokens"] if kind == "captions" else 12
    for first in range(0, max(items) + 1, AT_ONCE):
        batch = torch.randn(AT_ONCE, length, s["width"], generator=generator)
        chosen = [item - first for item in items if first <= item < first + AT_ONCE]
        if chosen:
            yield batch[chosen]


def captions(contender: str, task: Any, tokens: Any) -> list[list[int]]:
    """A caption for each image, without its end token."""
    import plain_generation

    from aurora_ds.tasks.generation import Context, write

    decoder, options = task.model.text_decoder, task.options.generation
    if contender == "plain":
        found = plain_generation.beam_search(decoder, tokens, None, task.prompt[None], options, END)
        return [row for row, _ in found]
    context = Context(decoder.context_kv(tokens))
    rows = write(decoder, context, task.prompt, options, END, PAD).ids.tolist()
    return [row[: row.index(END)] if END in row else row for row in rows]


def ranking(contender: str, task: Any, states: Any, answers: tuple[Any, Any]) -> list[int]:
    """The best answer of the list for each question."""
    import plain_generation

    mask = states.new_ones(states.shape[:2])
    if contender == "plain":
        decoder, k = task.model.text_decoder, task.options.k_test
        best = plain_generation.rank_answers(decoder, states, mask, answers[0], k, task.text.bos_id, PAD)
    else:
        best = task.ranked(states, mask, answers)["answer"]
    return best.tolist()


def measure(
    contender: str, kind: str, threads: int, s: dict[str, int], again: list[int] | None
) -> dict[str, Any]:
    """One run after a small warm-up, in this process: seconds, and what came out. `again`: these alone, in fp64."""
    import torch

    torch.set_num_threads(threads)
    task, number = make_task(s, kind), torch.float64 if again else torch.float32
    task.to(number)
    answers = answer_list(s)

    def run(items: list[int]) -> list:
        found: list = []
        for batch in batches(kind, s, items):
            batch = batch.to(number)
            found += (
                captions(contender, task, batch)
                if kind == "captions"
                else ranking(contender, task, batch, answers)
            )
        return found

    items = again or list(range(s["images"] if kind == "captions" else s["questions"]))
    with torch.inference_mode():
        run(items[:1])
        start, start_processor = time.perf_counter(), processor_seconds()
        found = run(items)
        seconds, processor = time.perf_counter() - start, processor_seconds() - start_processor
    return {"seconds": seconds, "processor_seconds": processor, "peak_mb": peak_memory_mb(), "found": found}


def settled(
    kind: str,
    runs: dict[str, list[dict[str, Any]]],
    options: list[str],
    threads: int,
    script: str = "generation.py",
) -> list[int]:
    """The items of which any run found something else than the first one, done again in fp64 both ways.

    Raises SystemExit when they differ there too: then it is no tie."""
    first = runs["plain"][0]["found"]
    found = [run["found"] for each in runs.values() for run in each]
    ties = [item for item, one in enumerate(first) if any(each[item] != one for each in found)]
    if ties:
        options = [*options, "--kind", kind, "--again", *map(str, ties)]
        both = [fresh_process(script, ["--measure", name, *options], threads) for name in runs]
        print(f"{kind}: {ties} differ in fp32, done again in fp64", flush=True)
        wrong = [
            tie
            for tie, plain, aurora in zip(ties, both[0]["found"], both[1]["found"], strict=True)
            if plain != aurora
        ]
        if wrong:
            raise SystemExit(
                f"{kind}: {wrong} differ from the published procedure's in fp64 too: these are no ties."
            )
    return ties


def compare(arguments: argparse.Namespace) -> None:
    s = setting(arguments)
    options = ["--threads", str(arguments.threads), "--images", str(arguments.images)]
    options += ["--questions", str(arguments.questions)] + (["--quick"] if arguments.quick else [])
    rows, record, note = [], {"setting": s, "machine": machine_facts(arguments.threads), "runs": []}, ""
    for kind in BARS:
        runs: dict[str, list[dict[str, Any]]] = {"plain": [], "aurora": []}
        for _ in range(arguments.repeat):
            for contender, each in runs.items():
                measured = ["--measure", contender, "--kind", kind]
                each.append(fresh_process("generation.py", [*measured, *options], arguments.threads))
                print(f"{kind} {contender}: {each[-1]['seconds']:.2f} s", flush=True)
        ties, count = settled(kind, runs, options, arguments.threads), len(runs["plain"][0]["found"])
        middle = {
            name: {
                key: median([run[key] for run in each]) for key in ("seconds", "processor_seconds", "peak_mb")
            }
            for name, each in runs.items()
        }
        ratio = middle["aurora"]["seconds"] / middle["plain"]["seconds"]
        processor = middle["aurora"]["processor_seconds"] / middle["plain"]["processor_seconds"]
        lengths = [len(row) for row in runs["plain"][0]["found"]] if kind == "captions" else []
        for run in (run for each in runs.values() for run in each):
            del run["found"]  # thousands of token ids
        record["runs"].append(
            {"kind": kind, "ratio": ratio, "ties": ties, "caption_lengths": lengths, **runs}
        )
        for part, name in (("plain", "published procedure"), ("aurora", "aurora_ds")):
            each = middle[part]
            numbers = [f"{each['seconds']:.1f}", f"{each['processor_seconds']:.1f}", f"{each['peak_mb']:.0f}"]
            verdict = [
                f"{ratio:.3f} ({processor:.3f})",
                f"<= {BARS[kind]}",
                f"{count - len(ties)}",
                f"{len(ties)}",
            ]
            rows.append([kind, name, *numbers, *(verdict if part == "aurora" else [""] * 4)])
        note = note or sharing_note(
            middle["plain"]["seconds"], middle["plain"]["processor_seconds"], arguments.threads
        )
    head = [
        "what",
        "contender",
        "seconds",
        "processor s",
        "peak MB",
        "ratio (of processor s)",
        "aim",
        "same in fp32",
        "ties: same in fp64",
    ]
    text = (
        f"# Captions ({s['images']} images, 3 beams) and ranked answers ({s['questions']} questions)\n\n"
        f"{markdown_table(head, rows)}\n\n"
        "Ties differ in fp32, where random weights leave texts within rounding of each other; done again in fp64, "
        "both procedures gave the same.\n\n"
        f"{note}{facts_line(record['machine'])}"
    )
    write_results("generation", record, text, arguments.quick)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", choices=["plain", "aurora"], help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=list(BARS), help=argparse.SUPPRESS)
    parser.add_argument("--again", nargs="+", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        chosen = arguments.measure, arguments.kind, arguments.threads, setting(arguments), arguments.again
        result = measure(*chosen)
        print(json.dumps(result))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
