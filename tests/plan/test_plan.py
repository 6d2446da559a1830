"""The planner: exact where things can be counted, its errors, and its settings against the files of ds_configs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from aurora_ds.backbones.tokenizer import Tokenizer
from aurora_ds.config import RunConfig
from aurora_ds.data.questions import question_texts
from aurora_ds.errors import AuroraError
from aurora_ds.plan.fetching import fetched
from aurora_ds.plan.memory import memory
from aurora_ds.plan.run import follow, make_plan, reason, record
from aurora_ds.plan.task import annotations
from aurora_ds.plan.trace import Event, Shapes, Trace, _SilentRanks
from aurora_ds.plan.traffic import traffic
from aurora_ds.plan.variants import TUNED_STAGE_3, VARIANTS
from aurora_ds.recipe import load_config


def small(task: str = "nlvr", method: str = "aurora", precision: str = "fp32") -> RunConfig:
    """Two layers of width 64, 32 pixels."""
    config = RunConfig(task=task)
    backbone, train = config.backbone, config.train
    backbone.head = task
    backbone.vision.width = backbone.text.width = backbone.text.intermediate = 64
    backbone.vision.depth = backbone.text.depth = 2
    backbone.vision.heads = backbone.text.heads = 2
    backbone.vision.image_size, config.retrieval.queue_size = 32, 16
    train.method, train.precision, train.global_batch_size = method, precision, 8
    return config


@pytest.fixture(scope="module")
def traced():
    return follow(small(), 4, 2, False, "cpu")


def test_living_tensors_are_counted_and_dead_ones_forgotten() -> None:
    with torch.device("meta"), Shapes() as shapes:
        layer = nn.Linear(16, 32, bias=False)
        assert shapes.now == 16 * 32 * 4
        x = torch.empty(8, 16, requires_grad=True)
        hidden = layer(x)
        assert shapes.now == (16 * 32 + 8 * 16 + 8 * 32) * 4
        view = hidden[:2]
        assert shapes.now == (16 * 32 + 8 * 16 + 8 * 32) * 4, "a view has no memory of its own"
        del hidden, view
        assert shapes.now == (16 * 32 + 8 * 16) * 4 and shapes.peak == (16 * 32 + 8 * 16 + 8 * 32) * 4


@pytest.mark.parametrize("task", ["retrieval", "vqa", "caption"])
def test_every_task_is_traced_and_has_the_parameters_of_a_real_one(task: str) -> None:
    from aurora_ds.assemble import build_task

    config = small(task)
    trace = follow(config, 2, 2, False, "cuda")
    real = build_task(config).task
    assert sorted(trace.parameters) == sorted((p.numel(), p.requires_grad) for p in real.parameters())
    assert 0 < trace.forward <= trace.activations


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_step_keeps_what_the_trace_says(precision: str) -> None:
    from aurora_ds.assemble import build_task
    from aurora_ds.plan.task import annotations, media_shape

    config, dtype = small(precision=precision), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    config.backbone.vision.image_size = 96  # so many patches that a score matrix would be seen
    trace = follow(config, 4, 1, False, "cpu")
    assembled = build_task(config)
    task, wiring = assembled.task.train(), assembled.wiring
    for parameter in task.parameters():
        parameter.data = parameter.data.to(dtype)
    texts = wiring.train_texts(assembled.tokenizer)([annotations(config, wiring.kind, False)] * 4)
    image = torch.zeros(4, *media_shape(config, wiring.takes), dtype=dtype)
    batch = {"image": image, "sample_index": torch.arange(4), **texts}
    task(batch)["loss"].backward()  # what is made once
    for parameter in task.parameters():
        parameter.grad = None
    saved: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in task.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task(batch)["loss"]
    # the prompts' values stay until the next step, so the trace has them beside, with the loader's batch
    loaded = {
        id(x): x.numel() * (4 if x.is_floating_point() else 8) for x in batch.values() if torch.is_tensor(x)
    }
    stays = trace.beside - sum(loaded.values())
    assert sum(saved.values()) == pytest.approx(trace.forward + stays, rel=0.1) and loss.isfinite()


def test_a_cpu_holds_the_loaders_batch_in_fp32_beside_its_copy() -> None:
    config = small(precision="bf16")
    on = {device: follow(config, 4, 2, False, device) for device in ("cpu", "cuda")}
    image = 4 * 2 * 3 * 32 * 32 * 4
    assert image <= on["cpu"].beside - on["cuda"].beside < 1.1 * image


def test_recomputation_keeps_less_and_computes_twice(traced) -> None:
    again = follow(small(), 4, 2, True, "cpu")
    calls = [sum(event.kind == "forward" for event in each.events) for each in (traced, again)]
    assert again.activations < 0.8 * traced.activations and calls[1] > calls[0]
    assert not any(event.recomputed for event in traced.events if event.kind == "forward")


def test_optimizer_and_gradients_are_of_the_trained_alone(traced) -> None:
    for variant in VARIANTS[:3]:
        held = memory(traced, variant, 2, "bf16", "cpu")
        share = 1 if variant.stage == 0 else 2
        assert held.optimizer == 12 * traced.trained / share and held.weights == 2 * traced.total
        assert traffic(traced, variant, 2, "bf16").gradients <= 4 * traced.trained


def test_stage_3_cuts_weights_and_sends_them(traced) -> None:
    whole, cut = (next(each for each in VARIANTS if each.name == name) for name in ("zero0", "zero3"))
    assert memory(traced, cut, 8, "fp32", "cpu").weights < memory(traced, whole, 8, "fp32", "cpu").weights
    assert traffic(traced, cut, 8, "fp32").weights > 0 == traffic(traced, whole, 8, "fp32").weights
    assert traffic(traced, cut, 1, "fp32").total == 0


def trace_of(sizes: list[int], modules: list[tuple[int, ...]], events: list[tuple[str, int, bool]]) -> Trace:
    """A step of frozen parameters that holds nothing else."""
    return Trace(
        tuple((size, False) for size in sizes),
        0,
        0,
        0,
        0.0,
        tuple(modules),
        tuple(Event(kind, number, recomputed, 0, 0) for kind, number, recomputed in events),
    )


def test_a_weight_is_fetched_for_forward_and_backward_and_again_for_recomputation() -> None:
    # larger than what is fetched ahead, so that each use is alone
    forward = [
        ("forward", 0, False),
        ("forward_end", 0, False),
        ("forward", 1, False),
        ("forward_end", 1, False),
    ]
    backward = [
        ("backward", 1, True),
        ("backward_end", 1, True),
        ("backward", 0, True),
        ("backward_end", 0, True),
    ]
    again = [("forward", 0, True), ("forward_end", 0, True), ("forward", 1, True), ("forward_end", 1, True)]
    sizes, modules = [6_000_000, 6_000_000, 10], [(0, 2), (1,)]
    plain = fetched(trace_of(sizes, modules, forward + backward), 4)
    assert plain.elements == 2 * 12_000_000 + 10, (
        "the small one is whole, and gathered once, after the update"
    )
    assert plain.most == 12_000_000 and plain.peak == 48_000_000, "while one computes the next is fetched"
    recomputed = fetched(trace_of(sizes, modules, forward + again + backward), 4)
    assert recomputed.elements == 3 * 12_000_000 + 10


def test_weights_that_travel_together_are_there_twice_until_the_last_is_used() -> None:
    calls = [(kind, number, False) for number in (0, 1, 2) for kind in ("forward", "forward_end")]
    sizes, modules = [200_000] * 3, [(0,), (1,), (2,)]
    assert fetched(trace_of(sizes, modules, calls), 4).most == 4 * 200_000, "two copied, and their buffer"
    assert fetched(trace_of(sizes[:2], modules[:2], calls[:4]), 4).most == 2 * 200_000, "one alone is no copy"


def test_a_negative_is_any_row_but_its_own() -> None:
    silent, rows = _SilentRanks(2), torch.empty(4, 10)
    silent.all_to_all_single(rows, rows)
    assert silent.sent == pytest.approx(rows.nbytes * 4 / 7), "of seven others four are on the other rank"


@pytest.fixture(scope="module")
def plan():
    return make_plan(small(method="full"), gpus=2, gpu_bytes=80e9)


def test_the_recommendation_is_the_simplest_that_fits(plan) -> None:
    assert plan.recommended.variant.name == "zero0" and not plan.recommended.checkpointing
    assert "Take --deepspeed-config ds_configs/zero0.json" in reason(plan)
    written = json.loads(json.dumps(record(plan)))
    assert written["recommended"]["deepspeed_config"] == "ds_configs/zero0.json"
    assert {row["activation_checkpointing"] for row in written["settings"]} == {True, False}


def test_what_does_not_fit_is_said_with_the_least(plan) -> None:
    with pytest.raises(
        AuroraError, match=r"Nothing fits into 0 GB: the least is .* Raise train.accumulation"
    ):
        reason(replace(plan, gpu_bytes=1e6))


@pytest.mark.parametrize(
    "change, text",
    [
        ({"train": {"global_batch_size": 9}}, "global_batch_size is 9, which 2 ranks.*multiple of 2"),
    ],
)
def test_a_recipe_that_cannot_be_planned_is_refused(change: dict, text: str) -> None:
    config = RunConfig.model_validate(small().model_dump() | change)
    with pytest.raises(AuroraError, match=text):
        make_plan(config, gpus=2, gpu_bytes=1e9)


def test_a_self_critical_step_is_planned_as_its_captions_at_their_longest() -> None:
    config = RunConfig.model_validate(
        small("caption").model_dump() | {"caption": {"objective": "self_critical"}}
    )
    plan, plain = (make_plan(each, gpus=2, gpu_bytes=80e9) for each in (config, small("caption")))
    assert "more than a self-critical step needs" in reason(plan) and "self-critical" not in reason(plain)
    assert plan.micro_batch == plain.micro_batch
    assert plan.traces[False].activations > 2 * plain.traces[False].activations


@pytest.mark.parametrize("switches", [["add_ocr"], ["add_objects"], ["add_ocr", "add_objects"]])
def test_words_of_images_fill_a_question_to_its_longest(switches: list[str]) -> None:
    config = load_config(
        "mplug_vqa", ["backbone.checkpoint=null", "vqa.add_ocr=false", "vqa.add_objects=false"]
    )
    for switch in switches:
        setattr(config.vqa, switch, True)
    one = annotations(config, "questions", every=False)
    texts = question_texts(config, Tokenizer(plain=True))
    assert texts([one])["input_ids"].shape == (1, config.vqa.max_tokens)


def test_every_variant_is_a_file_that_does_as_it_says(repository: Path) -> None:
    for variant in VARIANTS:
        zero = json.loads((repository / variant.file).read_text())["zero_optimization"]
        places = {
            name: zero.get(f"offload_{name}", {}).get("device", "none") for name in ("optimizer", "param")
        }
        assert zero["stage"] == variant.stage
        assert places["optimizer"].replace("none", "gpu") == variant.optimizer
        assert places["param"].replace("none", "gpu") == variant.weights
        assert ("zero_hpz_partition_size" in zero) == variant.hpz
        assert zero.get("zero_quantized_weights", False) == variant.quantized
        assert variant.stage < 3 or TUNED_STAGE_3.items() <= zero.items()


def test_the_command_prints_one_table_and_writes_results(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from aurora_ds.cli import main

    sizes = "backbone.vision.depth=1 backbone.text.depth=1 train.global_batch_size=4".split()
    given = ["plan", "retrieval_world", *sizes, "--gpus", "2", "--gpu-memory", "8", "--output", str(tmp_path)]
    assert main(given) == 0
    said = " ".join(capsys.readouterr().out.split())  # the terminal's width breaks the lines
    assert "zero3_nvme" in said and "Take --deepspeed-config" in said and "were not measured" in said
    assert json.loads((tmp_path / "results.json").read_text())["ranks"] == 2
