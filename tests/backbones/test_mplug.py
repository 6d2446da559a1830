"""mPLUG's models: what is built, where prompts attach, shared images, and files in every published nesting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.published import to_published
from aurora_ds.config import BackboneConfig, PromptConfig, RunConfig
from aurora_ds.contradictions import contradictions
from aurora_ds.errors import AuroraError
from aurora_ds.prompts import attach

LARGE = {
    "vision": {"image_size": 336, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16},
    "mplug": {"stride": 6},
}
TINY = {
    "vision": {"image_size": 16, "patch_size": 8, "width": 48, "depth": 2, "heads": 2},
    "text": {
        "vocab_size": 60,
        "width": 32,
        "depth": 4,
        "heads": 2,
        "intermediate": 64,
        "max_positions": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "cls_id": 1,
        "sep_id": 2,
        "bos_id": 1,
        "enc_id": 1,
    },
    "mplug": {
        "text_layers": 2,
        "fusion_layers": 3,
        "decoder_layers": 2,
        "stride": 2,
        "vision_attention_dropout": 0.0,
    },
    "embed_dim": 12,
}


def config_of(head: str = "vqa", **changes: Any) -> BackboneConfig:
    return BackboneConfig.model_validate({"name": "mplug", "head": head} | TINY | changes)


def random_model(head: str = "vqa", seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = new_model(config_of(head, **changes)).eval()
    with torch.no_grad():  # as it is born, nothing tells inputs apart
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def texts(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 60, (rows, 7), generator=torch.Generator().manual_seed(rows))
    mask = (torch.arange(7) < torch.tensor([7, 4, 6, 5][:rows])[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize(
    ("settings", "held", "text_tower", "idle_fusion", "projection", "dead_cross"),
    [
        ({}, 491_416_635, 63_428_097, 80_547_840, 768 * 512, 4 * 768 * 769 + 2 * 768),
        (LARGE, 770_236_987, 123_650_305, 80_547_840, 1024 * 768, 0),
    ],
)
def test_only_what_computes_is_built(settings, held, text_tower, idle_fusion, projection, dead_cross):
    """Published sums, less CLIP's text tower, the idle half of the fusion encoder, and what is never called beside:
    CLIP's projection, and in base the cross-attention of the connected layer."""
    with torch.device("meta"):
        model = new_model(BackboneConfig.model_validate({"name": "mplug", "head": "vqa"} | settings))
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == held - text_tower - idle_fusion - projection - dead_cross


HEADS = ["retrieval", "vqa", "caption", "grounding", "nlvr", "entailment"]


@pytest.mark.parametrize("head", HEADS)
def test_every_built_weight_is_called(head):
    """A gradient reaches everything, so nothing is built that does not compute."""
    model, (ids, mask) = random_model(head), texts(2)
    tokens = model.image_tokens(torch.randn(2, 3, 16, 16))
    if head == "retrieval":
        states = model.matched(ids, mask, model.image_keys(tokens))
        total = model.itm_head(states).sum() + model.text_proj(states).sum() + model.vision_proj(tokens).sum()
        total = total + model.temp
    elif head in ("nlvr", "entailment"):
        keys = model.pair_keys(tokens, tokens.flip(0)) if head == "nlvr" else model.image_keys(tokens)
        total = model.judged(ids, mask, keys).logits.square().sum()
    else:
        memory, seen = (tokens, None) if head == "caption" else model.read(ids, mask, tokens)
        decoder = model.text_decoder
        total = decoder.scores(decoder(ids, mask, decoder.context_kv(memory), seen)).square().sum()
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_prompts_attach_to_every_projection_of_both_widths():
    model, inputs = random_model(), texts(2)
    image = torch.randn(2, 3, 16, 16)
    before = model.read(*inputs, model.image_tokens(image))[0]
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("embeddings")
    }
    assert {site.module_path for site in model.sites()} == linears
    prompts = attach(model, model.sites(), PromptConfig(rank=4, dropout=0.0), model.query_layers())
    assert {"down_48", "down_32", "up_48", "up_32"} <= {name for name, _ in prompts.bank.named_parameters()}
    assert torch.allclose(model.read(*inputs, model.image_tokens(image))[0], before, atol=1e-2)
    with torch.no_grad():
        prompts.bank.up_32.add_(0.3)
    prompts.enable()
    attached = model.read(*inputs, model.image_tokens(image))[0]
    assert not torch.allclose(attached, before, atol=1e-2)
    for layer in (each for _, each, _ in model.query_layers()):
        layer.residual = None
    attached = model.read(*inputs, model.image_tokens(image))[0]
    prompts.merge()
    assert torch.allclose(model.read(*inputs, model.image_tokens(image))[0], attached, atol=1e-4)


def test_sites_and_layers_in_the_order_in_which_they_compute():
    model = random_model("vqa")
    parts = list(dict.fromkeys(site.name.partition(".")[0] for site in model.sites()))
    assert parts == ["visual_encoder", "visn_fc", "text_encoder", "fusion_encoder", "text_decoder"]
    layers = [name for name, _, _ in model.query_layers()]
    assert layers == [
        *(f"fusion_encoder.encoder.layer.{n}" for n in (1, 2)),  # 3 is the connected one
        *(f"text_decoder.bert.encoder.layer.{n}" for n in (0, 1)),
    ]


def test_texts_share_the_keys_of_their_image():
    model, (ids, mask) = random_model("retrieval"), texts(4)
    tokens = model.image_tokens(torch.randn(2, 3, 16, 16))
    keys = model.image_keys(tokens)
    repeated = model.matched(ids, mask, model.image_keys(tokens.repeat_interleave(2, 0)))
    assert torch.allclose(model.matched(ids, mask, keys, group_size=2), repeated, atol=1e-5)
    index = torch.tensor([0, 0, 1, 1])
    assert torch.allclose(model.matched(ids, mask, keys, image_index=index), repeated, atol=1e-5)
    with pytest.raises(AuroraError, match="frame_weights=off"):
        model.matched(ids, mask, keys, image_index=index, key_scale=torch.ones(4, tokens.shape[1]))


@pytest.mark.parametrize("stride", [2, 3])
def test_statements_about_one_pair(stride):
    """Each reads both images of its pair, in their order, whichever batch it is in."""
    model = random_model("nlvr", mplug=TINY["mplug"] | {"stride": stride})
    ids, mask = texts(3)
    first, second = (model.image_tokens(torch.randn(2, 3, 16, 16)) for _ in range(2))
    index = torch.tensor([1, 1, 0])
    shared = model.judged(ids, mask, model.pair_keys(first, second), index).logits
    own = model.judged(ids, mask, model.pair_keys(first[index], second[index])).logits
    assert torch.allclose(shared, own, atol=1e-5)
    other = model.judged(ids, mask, model.pair_keys(second, first), index).logits
    assert not torch.allclose(shared, other, atol=1e-3)


@pytest.mark.parametrize("head", ["nlvr", "entailment"])
def test_judging_starts_from_pre_training_with_a_new_head(tmp_path: Path, head):
    """Both cross-attentions of a pair begin as the one of pre-training."""
    tensors = {nested(name): tensor for name, tensor in to_published(random_model("vqa")).items()}
    tensors |= {"vision_proj.weight": torch.zeros(12, 32), "temp": torch.tensor(0.07)}
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    loaded = load_backbone(config_of(head, checkpoint=str(tmp_path / "model.safetensors")))
    assert {name.partition(".")[0] for name in loaded.fresh} == {"cls_head"}
    found, layer = to_published(loaded.model), "fusion_encoder.encoder.layer.1.crossattention"
    for which in ("0", "1") if head == "nlvr" else ("",):
        for name in ("self{}.key.weight", "output.dense{}.bias"):
            wanted = tensors[nested(f"{layer}.{name.format('')}")]
            assert torch.equal(found[f"{layer}.{name.format(which)}"], wanted)


@pytest.mark.parametrize("stride", [2, 3])
def test_questions_about_one_image(stride):
    """With a connected layer, and without any."""
    model, (ids, mask) = random_model(mplug=TINY["mplug"] | {"stride": stride}), texts(3)
    assert bool(model.fusion_encoder.connected) == (stride == 2)
    tokens, index = model.image_tokens(torch.randn(2, 3, 16, 16)), torch.tensor([1, 1, 0])
    shared, seen = model.read(ids, mask, tokens, index)
    own, also = model.read(ids, mask, tokens[index])
    assert torch.allclose(shared, own, atol=1e-5) and torch.equal(seen, also)
    assert seen.shape == shared.shape[:2] and seen[:, : tokens.shape[1]].all()


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for again in (False, True):
        model, (ids, mask) = random_model(activation_checkpointing=again).train(), texts(2)
        image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        model.read(ids, mask, model.image_tokens(image))[0].square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# ---- files ---------------------------------------------------------------------------------------


def nested(name: str) -> str:
    """As pre-training nests it."""
    for part, inner in (("text_encoder.", "bert."), ("fusion_encoder.", "fusion.")):
        if name.startswith(part):
            return part + inner + name.removeprefix(part)
    return name


@pytest.mark.parametrize("nesting", [lambda name: name, nested, lambda name: f"module.{name}"])
@pytest.mark.parametrize("head", HEADS)
def test_every_published_nesting_loads(tmp_path: Path, head, nesting):
    model = random_model(head)
    tensors = {nesting(name): tensor for name, tensor in to_published(model).items()}
    tensors[nesting("fusion_encoder.embeddings.word_embeddings.weight")] = torch.zeros(60, 32)
    tensors["visual_encoder.visual.proj"] = torch.zeros(48, 20)
    tensors["visual_encoder.transformer.resblocks.0.ln_1.weight"] = torch.zeros(16)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    loaded = load_backbone(config_of(head, checkpoint=str(tmp_path / "model.safetensors")))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_an_engine_s_checkpoint_loads(tmp_path: Path):
    model = random_model("caption")
    torch.save({"module": to_published(model)}, tmp_path / "model.pth")
    loaded = load_backbone(config_of("caption", checkpoint=str(tmp_path / "model.pth"))).model
    assert torch.equal(loaded.visn_fc.weight, model.visn_fc.weight)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_file(to_published(random_model()), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.pop("fusion_encoder.encoder.layer.2.crossattention.self.key.weight"),
            "Missing tensors: fusion_",
        ),
        (lambda s: s.pop("visn_fc.bias"), "Missing tensors: visn_fc.bias"),
        (
            lambda s: s.pop("visual_encoder.visual.transformer.resblocks.1.attn.in_proj_bias"),
            r"Missing tensors: visual_encoder.visual.transformer.resblocks.1.attn.in_proj_bias",
        ),
        (lambda s: s.update({"text_encoder.extra": torch.zeros(1)}), "Unexpected: text_encoder.extra"),
        (lambda s: s.update({"visn_fc.bias": torch.zeros(5)}), r"Of another shape: visn_fc.bias \[5\]"),
    ],
)
def test_what_does_not_fit_is_named(saved: Path, change, said):
    tensors = load_file(saved)
    change(tensors)
    save_file(tensors, saved)
    with pytest.raises(AuroraError, match=said):
        load_backbone(config_of(checkpoint=str(saved)))


def test_a_file_of_the_other_size_is_refused_with_what_to_set(saved: Path):
    settings = {"name": "mplug", "head": "vqa", "checkpoint": str(saved)}
    with pytest.raises(
        AuroraError, match=r"backbone.vision.width is 48 in the file and 768 in the configuration"
    ):
        load_backbone(BackboneConfig.model_validate(settings))


def test_a_file_of_another_family_is_refused(tmp_path: Path):
    save_file({"visual_encoder.patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(AuroraError, match="is no mPLUG checkpoint"):
        load_backbone(config_of(checkpoint=str(tmp_path / "a.safetensors")))


def test_positions_are_resized_bilinearly(saved: Path):
    vision = TINY["vision"] | {"image_size": 32}
    model = load_backbone(config_of(checkpoint=str(saved), vision=vision)).model
    learned = load_file(saved)["visual_encoder.visual.positional_embedding"]
    grid = learned[1:].reshape(2, 2, 48).permute(2, 0, 1)[None]
    wanted = nn.functional.interpolate(grid, size=(4, 4), mode="bilinear", align_corners=False)
    found = model.visual_encoder.visual.pos_embed[0]
    assert torch.equal(found[0], learned[0])
    assert torch.allclose(found[1:], wanted[0].permute(1, 2, 0).flatten(0, 1))


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        (
            "vqa",
            {"mplug": {"stride": 4}},
            "fusion_layers .6. must be a multiple of backbone.mplug.stride .4.",
        ),
        ("vqa", {"text": {"depth": 4}}, "must not exceed backbone.text.depth"),
        ("pretrain", {}, "has no model for backbone.head=pretrain"),
    ],
)
def test_settings_that_contradict_each_other(task, settings, said):
    config = RunConfig.model_validate({"task": task, "backbone": {"name": "mplug", "head": task} | settings})
    assert any(re.search(said, sentence) for sentence in contradictions(config))


def test_frames_cannot_be_weighed():
    settings = {"backbone": {"name": "mplug"}, "retrieval": {"frame_weights": "consistent"}}
    sentences = contradictions(RunConfig.model_validate(settings))
    assert any("frame_weights" in sentence for sentence in sentences)


def test_texts_begin_as_bert_s_do():
    text = BackboneConfig(name="mplug").text
    assert (text.vocab_size, text.bos_id, text.enc_id, text.token_types) == (30522, 101, 101, 2)


# ---- a start from CLIP and BERT ------------------------------------------------------------------


class Scripted(nn.Module):
    """A TorchScript archive with the names of OpenAI's: a vision transformer, a projection, part of the text's."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            owner = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def clip_tensors() -> dict[str, torch.Tensor]:
    visual = {
        name.removeprefix("visual_encoder."): tensor.half()
        for name, tensor in to_published(random_model(seed=7)).items()
        if name.startswith("visual_encoder.visual.")
    }
    return visual | {"visual.proj": torch.zeros(48, 20), "token_embedding.weight": torch.zeros(7, 16)}


def bert_tensors() -> dict[str, torch.Tensor]:
    """Four layers, as old files name them."""
    decoder = random_model(seed=8, mplug=TINY["mplug"] | {"decoder_layers": 4})
    found = {}
    for name, tensor in to_published(decoder).items():
        if name.startswith("text_decoder.") and ".crossattention." not in name:
            name = name.removeprefix("text_decoder.")
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            found[name] = tensor.clone()
    return found | {"bert.pooler.dense.weight": torch.zeros(32, 32)}


@pytest.mark.parametrize("scripted", [True, False])
def test_a_start_from_clip_and_bert(tmp_path: Path, scripted):
    clip, bert = clip_tensors(), bert_tensors()
    if scripted:
        torch.jit.script(Scripted(clip)).save(str(tmp_path / "clip.pt"))
    else:
        torch.save(clip, tmp_path / "clip.pt")
    torch.save(bert, tmp_path / "bert.bin")
    files = {"clip": str(tmp_path / "clip.pt"), "bert": str(tmp_path / "bert.bin")}
    torch.manual_seed(0)
    loaded = load_backbone(config_of("vqa", mplug=TINY["mplug"] | files))
    assert loaded.name == "mplug (clip.pt and bert.bin)"
    model = to_published(loaded.model)
    for name, tensor in clip.items():
        if name.startswith("visual.") and name != "visual.proj":
            assert torch.equal(model[f"visual_encoder.{name}"], tensor.float()), name
    layer = "encoder.layer.{}.output.dense.weight"
    assert torch.equal(model["text_encoder." + layer.format(1)], bert["bert." + layer.format(1)])
    assert torch.equal(model["fusion_encoder." + layer.format(3)], bert["bert." + layer.format(3)])
    assert torch.equal(model["text_decoder.bert." + layer.format(0)], bert["bert." + layer.format(0)])
    norm = "embeddings.LayerNorm.bias"
    assert torch.equal(model[f"text_encoder.{norm}"], bert["bert.embeddings.LayerNorm.beta"])
    assert torch.equal(model["text_decoder.cls.predictions.bias"], bert["cls.predictions.bias"])


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("clip", lambda t: t.pop("visual.ln_pre.bias"), "Missing tensors: visual_encoder.visual.ln_pre.bias"),
        ("clip", lambda t: [t.pop(n) for n in list(t) if n.startswith("visual.")], "no tensors named visual"),
        ("bert", lambda t: t.pop("bert.encoder.layer.3.output.dense.bias"), "fusion_encoder.encoder.layer.3"),
        ("bert", lambda t: t.pop("bert.embeddings.word_embeddings.weight"), "no embeddings.word_embeddings"),
    ],
)
def test_a_start_from_what_does_not_fit(tmp_path: Path, key, change, said):
    tensors = {"clip": clip_tensors, "bert": bert_tensors}[key]()
    change(tensors)
    torch.save(tensors, tmp_path / "file.pt")
    with pytest.raises(AuroraError, match=said):
        load_backbone(config_of("vqa", mplug=TINY["mplug"] | {key: str(tmp_path / "file.pt")}))


def test_a_start_from_a_file_that_is_not_there():
    with pytest.raises(AuroraError, match="no such file"):
        load_backbone(config_of("vqa", mplug=TINY["mplug"] | {"clip": "/nowhere/ViT-B-16.pt"}))
