"""Loading weights: what fits loads exactly, what does not is one clear paragraph."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from aurora_ds.backbones.checkpoint import load_backbone, published_tensors, split_published, to_published


@pytest.fixture
def weights(retrieval_record):
    return dict(retrieval_record.weights)


def save(folder: Path, tensors: dict, name: str = "model.pth", **beside: object) -> str:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model": tensors, **beside} if beside else tensors, path)
    return str(path)


@pytest.mark.parametrize("name, beside", [("a.pth", {"epoch": 3}), ("a.pth", {}), ("a.safetensors", {})])
def test_every_published_tensor_arrives(retrieval_record, weights, tmp_path, name, beside):
    path = save(tmp_path, weights, name, **beside)
    loaded = load_backbone(retrieval_record.config(checkpoint=path))
    for key, tensor in to_published(loaded.model).items():
        assert torch.equal(tensor, weights[key]), key
    assert loaded.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert loaded.name == name
    assert (loaded.momentum, loaded.queues, loaded.aurora) == (None, None, {})
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_weights_do_not_share_memory_with_the_file(retrieval_record, weights, tmp_path):
    path = save(tmp_path, weights)
    with torch.no_grad():
        for parameter in load_backbone(retrieval_record.config(checkpoint=path)).model.parameters():
            parameter.zero_()
    again = load_backbone(retrieval_record.config(checkpoint=path)).model
    assert torch.equal(again.itm_head.weight, weights["itm_head.weight"])


def test_old_pytorch_format(retrieval_record, weights, tmp_path):
    torch.save({"model": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = load_backbone(retrieval_record.config(checkpoint=str(tmp_path / "old.pth")))
    assert torch.equal(loaded.model.text_proj.weight, weights["text_proj.weight"])


def test_momentum_weights_and_queues_on_request(retrieval_record, weights):
    loaded = load_backbone(retrieval_record.config(momentum_weights="read", queue_weights="read"))
    own = loaded.model.state_dict()
    assert set(loaded.momentum) == {n for n in own if n != "temp" and not n.startswith("itm_head")}
    name = "encoder.layer.1.crossattention.self"
    kv = torch.cat([weights[f"text_encoder_m.{name}.{part}.weight"] for part in ("key", "value")])
    assert torch.equal(loaded.momentum[f"text_encoder.{name}.kv.weight"], kv)
    assert set(loaded.queues) == {"image_queue", "text_queue", "idx_queue", "ptr_queue"}


def test_pre_training_file(retrieval_record, weights, tmp_path):
    """It has a decoder, no queue of ids, and another name for the pointer."""
    weights["queue_ptr"] = weights.pop("ptr_queue")
    del weights["idx_queue"]
    weights["text_decoder.bert.embeddings.word_embeddings.weight"] = torch.zeros(2, 2)
    weights["text_decoder.cls.predictions.bias"] = torch.zeros(2)
    path = save(tmp_path, weights)
    loaded = load_backbone(retrieval_record.config(checkpoint=path, queue_weights="read"))
    assert set(loaded.queues) == {"image_queue", "text_queue", "queue_ptr"}


def test_aurora_file_gives_its_adapter_apart(retrieval_record, weights, tmp_path):
    adapter = {
        "CP_U.weight": torch.ones(2, 32),
        "CP_C": torch.ones(2, 2, 2),
        "visual_encoder.blocks.0.attn.CP_attention": torch.ones(2, 4),
        "text_encoder_m.encoder.layer.0.attention.self.q_CP": torch.ones(2, 1),
    }
    path = save(tmp_path, weights | adapter)
    loaded = load_backbone(retrieval_record.config(checkpoint=path, momentum_weights="read"))
    assert set(loaded.aurora) == set(adapter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_of_everything_but_the_temperature(retrieval_record, dtype):
    for checkpoint in (retrieval_record.config().checkpoint, None):
        model = load_backbone(retrieval_record.config(checkpoint=checkpoint), dtype).model
        assert {p.dtype for n, p in model.named_parameters() if n != "temp"} == {dtype}
        assert model.temp.dtype is torch.float32
        assert model.temp.item() == pytest.approx(0.07)


@pytest.mark.parametrize("size", [24, 32, 48])
def test_positions_are_resized_to_the_image_size(positions_record, size):
    outputs, inputs = positions_record.outputs, positions_record.inputs
    loaded = load_backbone(positions_record.config(image_size=size, momentum_weights="read"))
    torch.testing.assert_close(
        loaded.model.visual_encoder.pos_embed.data,
        outputs[f"size{size}.visual_encoder.pos_embed"],
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(
        loaded.momentum["visual_encoder.pos_embed"],
        outputs[f"size{size}.visual_encoder_m.pos_embed"],
        rtol=1e-5,
        atol=1e-6,
    )
    with torch.no_grad():
        tokens = loaded.model.eval().visual_encoder(inputs[f"images_{size}"])
    torch.testing.assert_close(tokens, outputs[f"size{size}.image_embeds"], rtol=1e-5, atol=1e-5)


def test_random_weights_have_a_fingerprint(small_config):
    prints = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        prints.append(load_backbone(small_config).sha256)
    assert prints[0] == prints[1] != prints[2]


def test_names_map_both_ways(small_model):
    state = small_model.state_dict()
    published = published_tensors(state)
    assert not any(".qkv." in name or ".kv." in name for name in published if name.startswith("text"))
    back = split_published(published)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


# ---- what does not fit ----


def test_missing_file(retrieval_record):
    refused(
        retrieval_record.config(checkpoint="nowhere/model.pth"),
        "nowhere/model.pth",
        "no such file",
        "builtin:world",
    )


def test_unknown_built_in(retrieval_record):
    refused(retrieval_record.config(checkpoint="builtin:moon"), "builtin:moon", "builtin:world")


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 cut off"])
def test_unreadable_file(retrieval_record, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(retrieval_record.config(checkpoint=str(tmp_path / name)), name, "cannot be read as tensors")


def test_file_with_python_objects_is_not_unpickled(retrieval_record, tmp_path):
    torch.save({"model": {"a": Path("x")}}, tmp_path / "objects.pth")
    refused(
        retrieval_record.config(checkpoint=str(tmp_path / "objects.pth")),
        "Python objects, which are never loaded",
    )


def test_file_without_tensors(retrieval_record, tmp_path):
    path = save(tmp_path, {}, epoch=3)
    refused(retrieval_record.config(checkpoint=path), "holds no named tensors")


def test_another_model(retrieval_record, tmp_path):
    path = save(tmp_path, {"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)})
    refused(retrieval_record.config(checkpoint=path), "is no BLIP checkpoint", "conv1.weight")


def test_another_architecture_names_both_sizes_and_the_overrides(retrieval_record):
    config = retrieval_record.config()
    config.vision.width, config.text.depth, config.embed_dim = 64, 3, 8
    refused(
        config,
        "backbone.vision.width is 32 in the file and 64 in the configuration",
        "backbone.text.depth is 2 in the file and 3 in the configuration",
        "backbone.vision.width=32",
        "backbone.embed_dim=16",
    )


def test_missing_tensors_are_listed_under_published_names(retrieval_record, weights, tmp_path):
    del weights["text_encoder.encoder.layer.1.attention.self.key.bias"], weights["visual_encoder.norm.bias"]
    path = save(tmp_path, weights)
    refused(
        retrieval_record.config(checkpoint=path),
        "Missing tensors: text_encoder.encoder.layer.1.attention.self.key.bias, visual_encoder.norm.bias.",
        "Unexpected: none",
    )


def test_unexpected_tensors_are_listed(retrieval_record, weights, tmp_path):
    path = save(tmp_path, weights | {"visual_encoder.extra": torch.zeros(1)})
    refused(
        retrieval_record.config(checkpoint=path), "Missing tensors: none", "Unexpected: visual_encoder.extra."
    )


def test_wrong_shapes_are_listed(retrieval_record, weights, tmp_path):
    path = save(tmp_path, weights | {"itm_head.bias": torch.zeros(3)})
    refused(retrieval_record.config(checkpoint=path), "itm_head.bias [3] instead of [2]")


def test_checkpoint_of_another_task_says_so(retrieval_record, weights, tmp_path):
    weights = {
        n: t
        for n, t in weights.items()
        if not n.startswith(("itm_head", "text_proj.", "vision_proj.", "temp"))
    }
    refused(retrieval_record.config(checkpoint=save(tmp_path, weights)), "another task", "itm_head.bias")


@pytest.mark.parametrize("what", ["momentum_weights", "queue_weights"])
def test_asked_for_and_not_there(retrieval_record, weights, tmp_path, what):
    weights = {n: t for n, t in weights.items() if "_m." not in n and "queue" not in n}
    refused(
        retrieval_record.config(checkpoint=save(tmp_path, weights), **{what: "read"}),
        f"backbone.{what}=ignore",
    )


def test_momentum_weights_that_are_not_whole(retrieval_record, weights, tmp_path):
    del weights["text_proj_m.bias"]
    config = retrieval_record.config(checkpoint=save(tmp_path, weights), momentum_weights="read")
    refused(config, "Missing momentum tensors: text_proj.bias")


def test_built_in_backbone_and_its_vocabulary():
    from aurora_ds.backbones.tokenizer import tokenizer_for
    from aurora_ds.recipe import load_config

    config = load_config("retrieval_world").backbone
    loaded = load_backbone(config)
    ids, mask = tokenizer_for(config).encode(["two red balls", "a dog"], 35)
    assert loaded.name == "builtin:world"
    assert loaded.model.text_encoder(ids, mask).isfinite().all()
