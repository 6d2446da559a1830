"""Byte pairs from a file, as EVE's vocabulary of 64,000 comes: made here, in small, with the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch

from aurora_ds.backbones.tokenizer import Tokenizer, tokenizer_for
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError
from aurora_ds.recipe import load_config

PIECES = 400
TEXTS = [
    "a red boat on the sea",
    "two small dogs and a ball",
    "the dog is left of the boat",
    "an umbrella by the sea",
    "where are the boats",
] * 20
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]  # pad and first where EVE's text section has them


def written(folder: Path, special: list[str] = SPECIAL) -> Path:
    """folder/tokenizer.json of byte pairs learned from TEXTS."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def backbone(path: Path | None, words: int, **text: int) -> BackboneConfig:
    name = None if path is None else str(path)
    return BackboneConfig(name="eve", tokenizer=name, text={"vocab_size": words, **text})


def test_texts_become_byte_pairs_between_the_first_and_the_last_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer(written(tmp_path), plain=True)
    ids, mask = tokenizer.encode(["A red boat", "the sea"], 40)
    assert ids[:, 0].tolist() == [2, 2] and (ids == 3).sum(1).tolist() == [1, 1]
    assert torch.equal(ids == 1, mask == 0) and mask[1].sum() < mask[0].sum()
    assert [text.strip() for text in tokenizer.decode(ids)] == ["a red boat", "the sea"]
    assert tokenizer.encode(["boat"], 9)[0].shape[1] == 3, "what is frequent is one piece"


def test_nothing_is_unknown_to_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(written(tmp_path, ["<x>", "<pad>", "<s>", "</s>"]), plain=True)
    ids, _ = tokenizer.encode(["zwölf ☂"], 40)
    assert tokenizer.decode(ids)[0].strip() == "zwölf ☂"


def test_it_is_taken_for_a_backbone_of_its_size_and_ids(tmp_path: Path) -> None:
    words = len(Tokenizer(written(tmp_path), plain=True))
    tokenizer = tokenizer_for(backbone(tmp_path / "tokenizer.json", words))
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id) == (1, 2, 3, 2)
    assert tokenizer_for(backbone(tmp_path, words + 100)).path == tmp_path / "tokenizer.json", "padded table"


@pytest.mark.parametrize("words", [PIECES - 120, 64000])
def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path, words: int) -> None:
    path = written(tmp_path)
    with pytest.raises(
        AuroraError, match=rf"vocab_size is {words} and the tokenizer has \d+ tokens.*tokenizer\.json"
    ):
        tokenizer_for(backbone(path, words))


def test_other_ids_are_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, ["<s>", "<pad>", "</s>", "<unk>"])
    words = len(Tokenizer(path, plain=True))
    with pytest.raises(AuroraError, match=r"backbone\.text\.cls_id is 2 and the tokenizer's 0"):
        tokenizer_for(backbone(path, words))
    assert tokenizer_for(backbone(path, words, cls_id=0, bos_id=0, enc_id=0, sep_id=2)).cls_id == 0


@pytest.mark.parametrize("recipe", ["eve_retrieval_coco", "eve_vqa", "eve_nlvr2"])
def test_a_missing_vocabulary_is_an_error_and_not_berts(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe, [f"backbone.tokenizer={tmp_path / 'nothing'}"])
    with pytest.raises(AuroraError, match=r"nothing does not exist\. Give a vocab\.txt, a tokenizer\.json"):
        tokenizer_for(config.backbone)
    unnamed = config.backbone.model_copy(update={"tokenizer": None, "checkpoint": None})
    with pytest.raises(AuroraError, match="vocab_size is 64000 and the tokenizer has 30522 tokens"):
        tokenizer_for(unnamed).encode(["a dog"], 9)
