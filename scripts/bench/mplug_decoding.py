"""mPLUG's beam search with a cache, and as published without: captions and answers, on the same weights.

Base size: decoder of 12 layers, width 768, 30,522 words, CPU, fp32, random weights. Captions: 577 image tokens (384
px), 5 beams, 8 to 25 tokens. Answers: 577 image and 25 question tokens, 5 beams, 1 to 10 tokens. Encoders are the same
on both sides and left out. Published (plain_generation.penalised_search): every step reads the whole texts again, with
keys and values of the image repeated per beam and computed anew. `aurora_ds`: `penalised_beam`, each token read once.

    python scripts/bench/mplug_decoding.py [--quick] [--images 4] [--repeat 2] [--threads 1]

Aim: <= 0.35 of the time without; same ids (what differs in fp32 is done again in fp64, where it must be equal). Time is
processor time, which a busy machine lengthens less than the clock's; contenders take turns in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from generation import settled
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

BAR = 0.35
KINDS = {"captions": (577, 8, 25), "answers": (602, 1, 10)}  # tokens seen, least and most written
CONTENDERS = {"plain": "published, without cache", "aurora": "aurora_ds"}
BEAMS, END, AT_ONCE = 5, 102, 4


def make_decoder(quick: bool) -> Any:
    """With random weights that spread the scores, so that texts differ and end now and then."""
    import torch

    from aurora_ds.backbones.models import new_model
    from aurora_ds.config import BackboneConfig

    small = {"width": 64, "heads": 2, "intermediate": 256, "vocab_size": 600}
    settings: dict[str, Any] = {"vision": {"depth": 1}}
    if quick:
        settings = {
            "text": small,
            "vision": {"width": 64, "heads": 2, "depth": 1},
            "mplug": {"decoder_layers": 2},
        }
    torch.manual_seed(3)
    model = new_model(BackboneConfig.model_validate({"name": "mplug", "head": "caption", **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".crossattention.self." in name:
                parameter.mul_(4)  # what is looked at must show
        model.text_decoder.cls.predictions.bias[END] += 1.0
        model.text_decoder.bert.embeddings.word_embeddings.weight.mul_(3)
    return model.text_decoder


def search(contender: str, decoder: Any, memory: Any, least: int, most: int) -> list[list[int]]:
    """The best text of each row of `memory` (B, N, D), first token included."""
    import plain_generation
    import torch

    from aurora_ds.config import GenerationConfig
    from aurora_ds.tasks.generation import Context
    from aurora_ds.tasks.penalised_beam import hypotheses
    from aurora_ds.tasks.writer import Writer

    prompt = torch.tensor([101])
    lengths = {"min_length": least + 1, "max_length": most + 1}  # with the first token
    settings = GenerationConfig(method="penalised_beam", beams=BEAMS, **lengths)
    if contender == "plain":
        found = plain_generation.penalised_search(decoder, memory, prompt[None], settings, END)
        return [text for text, _ in found]
    writer = Writer(decoder, Context(decoder.context_kv(memory)), prompt, len(memory), settings, END, 0)
    return [each[0].ids for each in hypotheses(writer)]


def measure(
    contender: str, kind: str, images: int, threads: int, quick: bool, again: list[int] | None
) -> dict[str, Any]:
    """All images after a warm-up, in this process; `again`: these alone, in fp64."""
    import torch

    torch.set_num_threads(threads)
    tokens, least, most = KINDS[kind]
    tokens = 20 if quick else tokens
    decoder = make_decoder(quick).to(torch.float64 if again else torch.float32)
    width = decoder.bert.embeddings.word_embeddings.weight.shape[1]
    memory = torch.randn(images, tokens, width, generator=torch.Generator().manual_seed(6))
    memory = memory[again] if again else memory
    memory = memory.to(torch.float64 if again else torch.float32)
    with torch.inference_mode():
        search(contender, decoder, memory[:1], 1, 2)
        start, used = time.perf_counter(), processor_seconds()
        found = [
            text for part in memory.split(AT_ONCE) for text in search(contender, decoder, part, least, most)
        ]
        seconds, processor = time.perf_counter() - start, processor_seconds() - used
    return {"seconds": seconds, "processor_seconds": processor, "peak_mb": peak_memory_mb(), "found": found}


def compare(arguments: argparse.Namespace) -> None:
    options = ["--threads", str(arguments.threads), "--images", str(arguments.images)]
    options += ["--quick"] if arguments.quick else []
    facts = machine_facts(arguments.threads)
    record: dict[str, Any] = {"images": arguments.images, "machine": facts, "runs": []}
    rows, note = [], ""
    for kind in KINDS:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.repeat):
            for contender, each in runs.items():
                measured = ["--measure", contender, "--kind", kind, *options]
                each.append(fresh_process("mplug_decoding.py", measured, arguments.threads))
                print(f"{kind} {contender}: {each[-1]['processor_seconds']:.2f} processor s", flush=True)
        ties = settled(kind, runs, options, arguments.threads, "mplug_decoding.py")
        keys = ("seconds", "processor_seconds", "peak_mb")
        middle = {name: {key: median([r[key] for r in each]) for key in keys} for name, each in runs.items()}
        ratios = {key: middle["aurora"][key] / middle["plain"][key] for key in keys}
        lengths = [len(text) for text in runs["plain"][0]["found"]]
        for run in (run for each in runs.values() for run in each):
            del run["found"]
        record["runs"].append({"kind": kind, "ratios": ratios, "ties": ties, "lengths": lengths, **runs})
        for name, title in CONTENDERS.items():
            each = middle[name]
            numbers = [f"{each['seconds']:.1f}", f"{each['processor_seconds']:.1f}", f"{each['peak_mb']:.0f}"]
            ratio = ratios["processor_seconds"]
            verdict = [f"{ratio:.3f} ({'met' if ratio <= BAR else 'MISSED'})", f"<= {BAR}"]
            same = [str(len(lengths) - len(ties)), str(len(ties))]
            rows.append([kind, title, *numbers, *([*verdict, *same] if name == "aurora" else [""] * 4)])
        note = note or sharing_note(
            middle["plain"]["seconds"], middle["plain"]["processor_seconds"], arguments.threads
        )
    head = ["what", "search", "seconds", "processor s", "peak MB", "ratio of processor s", "aim"]
    head += ["same ids in fp32", "ties: same in fp64"]
    text = (
        f"# mPLUG's beam search, with a cache and without ({arguments.images} images, {BEAMS} beams)\n\n"
        f"{(__doc__ or '').split(chr(10) * 2)[1]}\n\n{markdown_table(head, rows)}\n\n{note}{facts_line(facts)}"
    )
    write_results("mplug_decoding", record, text, arguments.quick)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--again", nargs="+", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.measure:
        compare(arguments)
        return
    how = arguments.images, arguments.threads, arguments.quick, arguments.again
    print(json.dumps(measure(arguments.measure, arguments.kind, *how)))


if __name__ == "__main__":
    main()
