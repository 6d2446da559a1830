"""attach(): what is swapped, frozen and reported; adapters by name; merge and unmerge; what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_retrieval import awaken, tiny_backbone, tiny_batch, tiny_task
from torch import nn
from transformers import BertConfig, BertModel

from aurora_ds.backbones.blip import BlipRetrieval
from aurora_ds.backbones.site import Site
from aurora_ds.config import PromptConfig
from aurora_ds.errors import AuroraError
from aurora_ds.prompts import attach
from aurora_ds.prompts.prompted_linear import PromptedHead, PromptedLinear


def blip(**prompts):
    torch.manual_seed(0)
    model = BlipRetrieval(tiny_backbone())
    handle = attach(
        model, model.sites(), PromptConfig(**{"rank": 4} | prompts), model.query_layers(), model.heads()
    )
    return model.eval(), handle


def outputs(task) -> list[torch.Tensor]:
    """Both features and the matching logits of a batch."""
    batch = tiny_batch()
    with torch.no_grad():
        encoded = task.encode_images(batch)
        logits = [
            task.match({"tokens": t[None], **{k: batch[k] for k in ("input_ids", "attention_mask")}})[
                "logits"
            ]
            for t in encoded["tokens"]
        ]
        return [encoded["feature"], task.encode_texts(batch)["feature"], torch.stack(logits)]


# ---- what is attached


def test_every_site_is_swapped_under_the_names_of_the_backbone():
    torch.manual_seed(0)
    plain = BlipRetrieval(tiny_backbone())
    model, prompts = blip()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    swapped = [n for n, m in model.named_modules() if isinstance(m, PromptedLinear)]
    assert sorted(swapped) == sorted(site.name for site in plain.sites()) and len(swapped) == 2 * 4 + 2 * 3
    heads = [n for n, m in model.named_modules() if isinstance(m, PromptedHead)]
    assert heads == ["vision_proj", "text_proj", "itm_head"]


def test_everything_but_the_adapter_is_frozen():
    model, prompts = blip()
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in prompts.parameters())


def test_the_report_adds_up():
    model, prompts = blip()
    report = prompts.report()
    assert report["sites"] == {"vision_attention": 4, "mlp": 4, "text_attention": 2, "cross_attention": 4}
    assert report["columns"] == 2 * (3 + 1 + 4 + 4) + 2 * (3 + 1 + 2)
    assert report["query_transform_layers"] == 2
    assert report["tensors"]["modes"] == [[report["columns"], 4], report["columns"] * 4]
    assert report["trainable"] == sum(count for _, count in report["tensors"].values())
    assert report["backbone"] == sum(p.numel() for p in model.parameters())
    assert report["share_percent"] == pytest.approx(100 * report["trainable"] / report["backbone"])


@pytest.mark.parametrize(
    ("patterns", "count"),
    [(["visual_encoder.*"], 8), (["*.qkv", "*crossattention*"], 8), (["*.blocks.1.mlp.fc2"], 1)],
)
def test_patterns_choose_sites(patterns, count):
    model, prompts = blip(sites=patterns)
    assert len(prompts.sites) == count == sum(isinstance(m, PromptedLinear) for m in model.modules())
    assert prompts.sites[0].column == 0 and len(prompts.bank.modes) == prompts.report()["columns"]


def test_settings_left_null_are_those_of_the_preset():
    config = blip()[1].config
    assert (config.form, config.mlp_layout, config.dropout_position) == ("tucker", "block", "shared")
    assert blip(preset="released")[1].config.mlp_layout == "interleaved"


# ---- any backbone


def bert():
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    sites = [
        Site(name := f"encoder.layer.{i}.{path}", name, outputs, inputs, "text", i, role)
        for i in range(2)
        for path, outputs, inputs, role in (
            ("attention.self.query", 1, 1, "attention"),
            ("attention.self.value", 1, 1, "attention"),
            ("intermediate.dense", 2, 1, "mlp"),
            ("output.dense", 1, 2, "mlp"),
        )
    ]
    return BertModel(config, add_pooling_layer=False).eval(), sites


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_a_transformers_model_is_a_backbone(form):
    """It trains, can be switched off, and merges, with sites of one's own."""
    model, sites = bert()
    ids = torch.randint(0, 50, (3, 7))
    plain = model(input_ids=ids).last_hidden_state
    target = torch.randn_like(plain)
    prompts = attach(model, sites, PromptConfig(rank=3, form=form))
    assert torch.equal(model(input_ids=ids).last_hidden_state, plain), "V starts at zero"
    optimizer = torch.optim.AdamW(prompts.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        prompts.refresh()
        loss = (model(input_ids=ids).last_hidden_state - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    prompts.enable()
    with torch.no_grad():
        trained = model(input_ids=ids).last_hidden_state
        prompts.merge()
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, trained, rtol=1e-5, atol=1e-5)
        prompts.unmerge()
        prompts.disable()
        assert torch.equal(model(input_ids=ids).last_hidden_state, plain)


def test_sites_and_heads_without_bias():
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 3, bias=False)).eval()
    sites = [Site("0", "0", 2)]
    prompts = attach(model, sites, PromptConfig(rank=2, train_heads=["out"]), heads={"out": "1"})
    awaken(prompts.bank)
    prompts.enable()
    x = torch.randn(5, 4)
    with torch.no_grad():
        prompted = model(x)
        prompts.merge()
        torch.testing.assert_close(model(x), prompted)


@pytest.mark.parametrize("path", ["layers.0.linear1", "layers.0.self_attn.out_proj"])
def test_linears_that_are_never_called_are_refused(path):
    """PyTorch's encoder layer reads the weights of its linears in its fast path: prompts would do nothing there."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    with pytest.raises(AuroraError, match="without calling them"):
        attach(model, [Site(path, path)], PromptConfig(rank=2))


# ---- several adapters


@pytest.mark.parametrize("preset", ["aurora", "released"])
def test_disabled_is_the_plain_backbone_bit_for_bit(preset):
    task = tiny_task(preset).task.eval()
    torch.manual_seed(task.config.seed)
    bare = BlipRetrieval(task.config.backbone).eval()
    prompted = outputs(task)
    task.prompts.disable()
    task.prepare_evaluation({})  # does not wake it
    plain = outputs(task)
    task.model = bare
    for ours, bare_output, other in zip(plain, outputs(task), prompted, strict=True):
        assert torch.equal(ours, bare_output) and not torch.allclose(ours, other)


def test_adapters_by_name_take_turns():
    task = tiny_task().task.eval()
    prompts, first = task.prompts, outputs(task)
    awaken(prompts.add("other"), seed=9)
    prompts.enable("other")
    second = outputs(task)
    prompts.enable("default")
    for a, b, c in zip(first, second, outputs(task), strict=True):
        assert torch.equal(a, c) and not torch.allclose(a, b)
    assert list(prompts.banks) == ["default", "other"] and prompts.active == "default"


@pytest.mark.parametrize("name", ["", "default", "a.b"])
def test_names_that_cannot_be_added(name):
    with pytest.raises(AuroraError, match="cannot name a new adapter"):
        blip()[1].add(name)


def test_an_adapter_that_is_not_there():
    with pytest.raises(AuroraError, match="No adapter is called 'mine'. Present: default"):
        blip()[1].enable("mine")


def test_nothing_is_active_after_disable():
    prompts = blip()[1]
    prompts.disable()
    with pytest.raises(AuroraError, match=r"Call enable\(name\)"):
        _ = prompts.bank
    with pytest.raises(AuroraError, match="Nothing to merge"):
        prompts.merge()


# ---- merge


@pytest.mark.parametrize(
    "prompts",
    [
        {"form": "tucker", "mlp_layout": "block"},
        {"form": "tucker", "mlp_layout": "interleaved", "rank": 5},
        {"form": "cp"},
        {"form": "tucker", "scale": 0.3},
    ],
    ids=["block", "interleaved", "cp", "scaled"],
)
@pytest.mark.parametrize("vision_width", [32, 48])
def test_merged_weights_compute_the_same(prompts, vision_width):
    task = tiny_task(prompts=prompts, vision_width=vision_width).task.eval()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    with torch.no_grad():
        for parameter in task.prompts.bank.parameters():
            parameter.mul_(0.5).add_(0.01)  # heads differ from the backbone's too
    task.prompts.enable()
    prompted = outputs(task)
    task.prompts.merge()
    for ours, expected in zip(outputs(task), prompted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    changed = [n for n, t in task.model.state_dict().items() if not torch.equal(t, before[n])]
    assert len(changed) == len(task.prompts.sites) + 6
    task.prompts.unmerge()
    assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(outputs(task), prompted, strict=True))


def test_while_merged_the_adapter_cannot_be_changed():
    _, prompts = blip()
    prompts.merge()
    for action in (prompts.merge, prompts.disable, prompts.enable, lambda: prompts.add("other")):
        with pytest.raises(AuroraError, match=r"merged into the weights. Call unmerge\(\) first"):
            action()
    prompts.unmerge()
    with pytest.raises(AuroraError, match="Nothing to unmerge"):
        prompts.unmerge()


def test_16_bit_weights_come_back_too():
    task = tiny_task().task.eval().bfloat16()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    task.prompts.enable()
    task.prompts.merge()
    assert any(not torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
    task.prompts.unmerge()
    assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())


# ---- refused


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"sites": ["*", "visual.*"]}, "'visual.*' matches no site"),
        ({"train_heads": ["pooler"]}, r"\['pooler'\], which this backbone does not have"),
    ],
)
def test_names_that_match_nothing(prompts, message):
    with pytest.raises(AuroraError, match=message):
        blip(**prompts)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("norm", "norm"), "is a LayerNorm, not an nn.Linear"),
        (Site("gone", "encoder.gone"), "no module 'encoder.gone'"),
        (Site("odd", "linear", 3), "does not divide into 3 output and 1 input"),
        (Site("odd", "linear", 1, 4), "does not divide into 1 output and 4 input"),
    ],
)
def test_sites_that_cannot_be_adapted(site, message):
    model = nn.ModuleDict({"linear": nn.Linear(6, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(AuroraError, match=message):
        attach(model, [site], PromptConfig(rank=2))
    assert type(model["linear"]) is nn.Linear and model["linear"].weight.requires_grad, "left as it was"


def test_a_head_that_is_no_linear():
    model = nn.ModuleDict({"linear": nn.Linear(6, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(AuroraError, match="Head 'out' is a LayerNorm"):
        attach(
            model,
            [Site("linear", "linear")],
            PromptConfig(rank=2, train_heads=["out"]),
            heads={"out": "norm"},
        )


def test_attaching_twice():
    model, _ = blip()
    with pytest.raises(AuroraError, match="is a PromptedLinear, not an nn.Linear"):
        attach(model, model.sites(), PromptConfig(rank=4))


def test_query_layers_of_two_widths():
    layers = [("a", nn.Identity(), 8), ("b", nn.Identity(), 6)]
    model = nn.ModuleDict({"linear": nn.Linear(6, 4)})
    with pytest.raises(AuroraError, match=r"these have \[6, 8\]"):
        attach(model, [Site("linear", "linear")], PromptConfig(rank=2), layers)
