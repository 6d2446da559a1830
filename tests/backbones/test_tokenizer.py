"""Ids of captions: equal to transformers' BERT tokenizer, with BLIP's two tokens after the vocabulary."""

from __future__ import annotations

import pickle

import pytest
import torch

from aurora_ds.backbones.tokenizer import BUILT_IN, Tokenizer, tokenizer_for
from aurora_ds.config import BackboneConfig, TextConfig
from aurora_ds.errors import AuroraError

CAPTIONS = [
    "A dog's naïve café, e.g. at 3:15!",
    "two   cats – 日本 xyzzyqwer",
    "",
    "unbelievably long words " * 20,
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "##s"]


@pytest.fixture(scope="module")
def built_in():
    return Tokenizer()


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


def test_special_ids_are_blips(built_in):
    assert len(built_in) == 30524
    ids = (built_in.pad_id, built_in.cls_id, built_in.sep_id, built_in.bos_id, built_in.enc_id)
    assert ids == (0, 101, 102, 30522, 30523)
    assert built_in.mismatch(TextConfig()) == ""


def test_same_ids_as_transformers(built_in):
    from transformers import BertTokenizer

    reference = BertTokenizer.from_pretrained(str(BUILT_IN.parent), vocab_file=str(BUILT_IN))
    expected = reference(CAPTIONS, padding="longest", truncation=True, max_length=35, return_tensors="pt")
    ids, mask = built_in.encode(CAPTIONS, 35)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])


def test_words_are_joined_as_published(built_in):
    texts = ["a man's dog, and it's 5 o'clock.", "don't stop!", "the boys ' hats"]
    ids, _ = built_in.encode(texts, 40)
    # what BertTokenizer.decode of transformers gives with clean_up_tokenization_spaces, the default of 4.15
    assert built_in.decode(ids) == ["a man's dog, and it's 5 o'clock.", "don't stop!", "the boys'hats"]


def test_padding_to_the_longest_and_no_further(built_in):
    ids, mask = built_in.encode(["a dog", "a dog runs"], 35)
    assert ids.tolist() == [[101, 1037, 3899, 102, 0], [101, 1037, 3899, 3216, 102]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_what_is_too_long_loses_its_end_and_keeps_sep(built_in):
    ids, _ = built_in.encode(["a dog runs", "a"], 4)
    assert ids.tolist() == [[101, 1037, 3899, 102], [101, 1037, 102, 0]]


def test_no_texts(built_in):
    assert built_in.encode([], 35)[0].shape == (0, 2)


def test_workers_can_have_a_copy(built_in):
    assert torch.equal(
        pickle.loads(pickle.dumps(built_in)).encode(["a dog"], 9)[0], built_in.encode(["a dog"], 9)[0]
    )


def test_own_vocabulary_from_file_and_directory(vocabulary):
    for path in (vocabulary, vocabulary.parent):
        tokenizer = Tokenizer(path)
        assert (tokenizer.bos_id, tokenizer.enc_id, len(tokenizer)) == (9, 10, 11)
        assert tokenizer.encode(["A red balls thing"], 9)[0].tolist() == [[2, 5, 6, 7, 8, 1, 3]]


def test_vocabulary_that_has_the_two_tokens_keeps_their_ids(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[ENC]", "[DEC]", *WORDS]), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.enc_id, tokenizer.bos_id, len(tokenizer)) == (0, 1, 11)


def test_tokenizer_json(tmp_path, vocabulary):
    from transformers import BertTokenizerFast

    BertTokenizerFast.from_pretrained(str(vocabulary.parent), vocab_file=str(vocabulary)).save_pretrained(
        tmp_path / "saved"
    )
    tokenizer = Tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert tokenizer.encode(["a red balls"], 9)[0].tolist() == [[2, 5, 6, 7, 8, 3]]
    assert (tokenizer.bos_id, tokenizer.enc_id) == (9, 10)


def test_vocabulary_beside_the_checkpoint_is_taken(vocabulary):
    (vocabulary.parent / "model.pth").touch()
    text = TextConfig(vocab_size=11, cls_id=2, sep_id=3, bos_id=9, enc_id=10)
    config = BackboneConfig(checkpoint=str(vocabulary.parent / "model.pth"), text=text)
    assert tokenizer_for(config).path == vocabulary


def test_vocabulary_of_another_backbone_is_refused_at_once(vocabulary):
    with pytest.raises(
        AuroraError, match=r"backbone.text.cls_id is 101 and the tokenizer's 2; .*backbone.tokenizer"
    ):
        tokenizer_for(BackboneConfig(tokenizer=str(vocabulary)))


def test_built_in_vocabulary_is_refused_when_used(vocabulary):
    tokenizer = tokenizer_for(BackboneConfig(text=TextConfig(vocab_size=124, bos_id=122, enc_id=123)))
    with pytest.raises(AuroraError, match="vocab_size is 124 and the tokenizer has 30524 tokens"):
        tokenizer.encode(["a dog"], 35)


@pytest.mark.parametrize(
    "content, part",
    [
        (None, "does not exist"),
        ("red\nball\n", r"lacks \[PAD\] or <pad>, \[UNK\] or <unk>, \[CLS\] or <cls> or <s>, \[SEP\] or"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_file_that_is_no_vocabulary(tmp_path, content, part):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AuroraError, match=part):
        Tokenizer(path)


def test_directory_without_a_vocabulary(tmp_path):
    with pytest.raises(AuroraError, match=r"holds neither vocab.txt nor tokenizer.json"):
        Tokenizer(tmp_path)


def test_no_room_for_words(built_in):
    with pytest.raises(AuroraError, match="max_tokens is 1"):
        built_in.encode(["a"], 1)


def test_single_texts_of_mplug_s_published_weights_have_no_end():
    questions, most = ["a dog in a green park", "a dog"], 5
    found = {}
    for end in ("sep", "none"):
        tokenizer = tokenizer_for(
            BackboneConfig.model_validate({"name": "mplug", "mplug": {"text_end": end}})
        )
        found[end] = tokenizer.encode(questions, most, single=True)[0]
        written = tokenizer.encode(questions, most)[0]
        assert torch.equal(written, found["sep"]), "texts that are written end in any case"
    whole, last = found["sep"].tolist(), tokenizer.sep_id
    assert [row[-1] for row in whole] == [last, 0] and whole[1][:4] == [101, *whole[1][1:3], last]
    assert found["none"][0].tolist()[:4] == whole[0][:4] and last not in found["none"]
    assert found["none"].shape == (2, most) and found["none"][1].tolist() == [*whole[1][:3], 0, 0]
