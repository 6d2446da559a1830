"""Files for answering, captioning and image pairs: what belongs together loads exactly, the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from torch import Tensor

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.made_for import made_for
from aurora_ds.backbones.published import published_tensors, split_published, to_published
from aurora_ds.config import BackboneConfig

WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
TIED = {
    "text_decoder.cls.predictions.decoder.weight": WORDS,
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}


def save(folder: Path, tensors: dict[str, Tensor], name: str = "model.pth") -> str:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model": tensors}, path)
    return str(path)


@pytest.fixture
def pretrained(language_records, retrieval_record) -> dict[str, Tensor]:
    """A pre-trained file: both text transformers, contrastive heads, momentum copies and queues."""
    vqa, rest = language_records["vqa"].weights, retrieval_record.weights
    heads = ("vision_proj", "text_proj", "itm_head", "temp", "image_queue", "text_queue")
    return (
        {n: t for n, t in vqa.items() if "position_ids" not in n}
        | {n: t for n, t in rest.items() if n.startswith(heads)}
        | {n.replace("encoder.", "encoder_m.", 1): t for n, t in vqa.items() if "text_encoder." in n}
        | {
            "queue_ptr": torch.zeros(1, dtype=torch.int64),
            "text_encoder.embeddings.position_ids": torch.arange(9),
        }
    )


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_every_published_tensor_arrives(language_records, tmp_path, head, name):
    record = language_records[head]
    loaded = load_backbone(record.config(head=head, checkpoint=save(tmp_path, record.weights, name)))
    ours = to_published(loaded.model)
    assert {n for n in record.weights if not n.endswith("position_ids")} - set(TIED) == set(ours)
    assert all(torch.equal(tensor, record.weights[n]) for n, tensor in ours.items())
    assert (loaded.momentum, loaded.queues, loaded.aurora, loaded.fresh) == (None, None, {}, ())


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_names_map_both_ways(language_records, head):
    state = load_backbone(language_records[head].config(head=head)).model.state_dict()
    back = split_published(published_tensors(state))
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


@pytest.mark.parametrize("kept", ["words", "projection"])
def test_the_tied_projection_may_be_stored_once(language_records, tmp_path, kept):
    weights = dict(language_records["caption"].weights)
    for copy, name in TIED.items():
        del weights[copy if kept == "words" else name]
    model = load_backbone(
        language_records["caption"].config(head="caption", checkpoint=save(tmp_path, weights))
    ).model
    assert torch.equal(
        model.text_decoder.bert.embeddings.word_embeddings.weight, language_records["caption"].weights[WORDS]
    )


@pytest.mark.parametrize("copy", TIED)
def test_a_tied_tensor_with_two_values_is_refused(language_records, tmp_path, copy):
    weights = dict(language_records["caption"].weights)
    weights[copy] = weights[copy] + 1
    refused(
        language_records["caption"].config(head="caption", checkpoint=save(tmp_path, weights)),
        copy,
        TIED[copy],
    )


def test_positions_are_resized(language_records):
    for head in ("vqa", "caption"):
        model = load_backbone(language_records[head].config(head=head, image_size=48)).model
        assert model.visual_encoder.pos_embed.shape == (1, 37, 32)


@pytest.mark.parametrize("head", ["vqa", "caption"])
def test_a_pre_trained_file_serves(language_records, pretrained, tmp_path, head):
    record = language_records["vqa"]
    loaded = load_backbone(record.config(head=head, checkpoint=save(tmp_path, pretrained)))
    assert all(torch.equal(tensor, pretrained[n]) for n, tensor in to_published(loaded.model).items())
    assert loaded.fresh == ()


# ---- NLVR2 from a pre-trained file


@pytest.fixture
def deep(pretrained) -> dict[str, Tensor]:
    """The pre-trained file with eight text layers, of which the last two merge."""
    layers = {
        n.replace(".layer.1.", f".layer.{i}."): t + i
        for i in range(2, 8)
        for n, t in pretrained.items()
        if n.startswith("text_encoder.encoder.layer.1.")
    }
    return pretrained | layers


def deep_config(record, checkpoint: str) -> BackboneConfig:
    config = record.config(head="nlvr", checkpoint=checkpoint)
    config.text.depth = 8
    return config


def test_both_cross_attentions_begin_as_the_pre_trained_one(language_records, deep, tmp_path):
    config = deep_config(language_records["vqa"], save(tmp_path, deep))
    torch.manual_seed(3)
    loaded = load_backbone(config)
    prefix = "text_encoder.encoder.layer"
    for name, tensor in to_published(loaded.model).items():
        if name in loaded.fresh:
            continue
        source = (
            name.replace("self0", "self")
            .replace("self1", "self")
            .replace("dense0", "dense")
            .replace("dense1", "dense")
        )
        assert torch.equal(tensor, deep[source]), name
    assert set(loaded.fresh) == {
        f"{prefix}.{i}.crossattention.output.merge_layer.{part}"
        for i in (6, 7)
        for part in ("weight", "bias")
    } | {f"cls_head.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}


def test_a_new_head_is_drawn_from_the_seed(language_records, deep, tmp_path):
    config, drawn = deep_config(language_records["vqa"], save(tmp_path, deep)), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(load_backbone(config).model.cls_head[0].weight)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_new_merge_layers_begin_as_the_mean(language_records, deep, tmp_path, texts):
    """A frozen one that was drawn at random would hide the images from every layer above."""
    model = load_backbone(deep_config(language_records["vqa"], save(tmp_path, deep))).model.eval()
    tokens = [torch.randn(2, 5, model.config.vision.width) for _ in range(2)]
    with torch.no_grad():
        merged = model.text_encoder(*texts(2, 5), model.text_encoder.image_kv(*tokens))
        for layer in model.text_encoder.encoder.layer:
            layer.crossattention.output.merge_layer = None
        averaged = model.text_encoder(*texts(2, 5), model.text_encoder.image_kv(*tokens))
    torch.testing.assert_close(merged, averaged, rtol=1e-5, atol=1e-6)


def test_both_images_count_alike_at_first(language_records, pretrained, tmp_path, texts):
    """Without merge layers the order of the two images changes nothing yet; with a trained file it does."""
    fresh = load_backbone(
        language_records["vqa"].config(head="nlvr", checkpoint=save(tmp_path, pretrained))
    ).model
    trained = load_backbone(language_records["nlvr"].config(head="nlvr")).model
    for model, changes, tokens in (
        (fresh, False, torch.randn(2, 2, 5, 32)),
        (trained, True, torch.randn(2, 2, 5, 24)),
    ):
        with torch.no_grad():
            states = [
                model.eval().text_encoder(*texts(2, 5), model.text_encoder.image_kv(*pair))
                for pair in (tokens, tokens.flip(0))
            ]
        assert torch.allclose(*states, atol=1e-6) != changes


# ---- what does not fit


def test_a_captioner_is_not_made_of_an_answering_model(language_records):
    """Its decoder attends to question states: the shapes fit, the meaning does not."""
    refused(
        language_records["vqa"].config(head="caption"), "Unexpected: text_encoder.", "backbone.head=caption"
    )


@pytest.mark.parametrize(
    ("made_for", "head", "part"),
    [
        ("caption", "vqa", "Missing tensors: text_encoder."),
        ("nlvr", "vqa", "crossattention.self0"),
        ("nlvr", "caption", "Missing tensors: text_decoder."),
        ("vqa", "retrieval", "retrieval starts from"),
        ("retrieval", "vqa", "Missing tensors: text_decoder."),
        ("retrieval", "caption", "of the text transformer (text_decoder.*)"),
        ("caption", "retrieval", "of the text transformer (text_encoder.*)"),
        ("caption", "nlvr", "(captioning): two-image reasoning"),
    ],
)
def test_a_file_of_another_task_says_what_it_takes(language_records, retrieval_record, made_for, head, part):
    refused(
        (language_records | {"retrieval": retrieval_record})[made_for].config(head=head),
        part,
        "seems to be made for another task",
        "starts from a",
    )


def test_a_captioner_has_no_text_encoder_for_image_pairs(language_records):
    refused(language_records["caption"].config(head="nlvr"), "text transformer", "starts from an NLVR2 or")


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_files_say_what_they_were_made_for(language_records, retrieval_record, pretrained, head):
    assert made_for(language_records[head].weights) == head
    assert made_for(retrieval_record.weights) == "retrieval" and made_for(pretrained) == "pre-training"
    assert made_for(["conv1.weight"]) is None


@pytest.mark.parametrize("head", ["vqa", "caption", "nlvr"])
def test_missing_and_unexpected_tensors_are_named(language_records, tmp_path, head):
    weights = dict(language_records[head].weights) | {"visual_encoder.extra": torch.zeros(1)}
    name = next(n for n in weights if n.endswith("layer.1.attention.self.key.bias"))
    del weights[name]
    config = language_records[head].config(head=head, checkpoint=save(tmp_path, weights))
    refused(
        config, f"Missing tensors: {name}.", "Unexpected: visual_encoder.extra.", "May be there without being"
    )


def test_sizes_of_a_decoder_are_compared(language_records):
    config = language_records["caption"].config(head="caption")
    config.text.depth, config.text.intermediate = 3, 65
    refused(config, "backbone.text.depth is 2 in the file and 3", "backbone.text.intermediate=64")
