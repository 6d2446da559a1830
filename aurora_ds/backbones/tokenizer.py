"""Captions to ids: lower-case BERT word pieces, or the byte pairs of a tokenizer.json, from a local file. The
`tokenizers` library does the work.

BLIP adds two tokens after the vocabulary: [DEC] starts a generated text, [ENC] one that is matched with an image. Other
backbones begin every text with [CLS].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from aurora_ds.backbones.checkpoint import resolve_checkpoint
from aurora_ds.config import BackboneConfig, TextConfig
from aurora_ds.errors import AuroraError

BUILT_IN = Path(__file__).parent / "vocab" / "bert-base-uncased.txt"
FILE_NAMES = ("vocab.txt", "tokenizer.json")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # of a vocab.txt
# What each is called in a tokenizer.json: by BERT's name, or as byte pairs usually have it
NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
TABLE_PADDING = 128  # tables of word embeddings are larger than vocabularies by less, if at all


class Tokenizer:
    """Word pieces of a vocabulary file (one piece per line), of a tokenizer.json, or of a directory that holds either.

    `pad_id`, `cls_id`, `sep_id`, `bos_id` ([DEC]), `enc_id` ([ENC]) are the special tokens' ids; a vocabulary
    without the last two gets them appended; with `plain` they are [CLS]. Raises AuroraError when the path is missing
    or no vocabulary.
    """

    def __init__(self, path: str | Path = BUILT_IN, plain: bool = False) -> None:
        self.path = _find(Path(path).expanduser())
        self._pieces = _read(self.path)
        found = {
            role: next((name for name in names if self._pieces.token_to_id(name) is not None), None)
            for role, names in NAMES.items()
        }
        # byte pairs can write anything, so nothing need be unknown
        needed = ("pad", "unk", "cls", "sep") if _is_word_pieces(self._pieces) else ("pad", "cls", "sep")
        missing = [" or ".join(NAMES[role]) for role in needed if found[role] is None]
        if missing:
            raise AuroraError(
                f"{self.path} is no vocabulary of a text transformer: it lacks {', '.join(missing)}. Give "
                "backbone.tokenizer a vocab.txt with one word piece per line, a tokenizer.json, or a directory that "
                "holds one; null takes the built-in bert-base-uncased."
            )
        self._first, self._last = found["cls"], found["sep"]
        begin, match = (self._first, self._first) if plain else ("[DEC]", "[ENC]")
        if not plain:
            self._pieces.add_special_tokens([begin, match])  # appended, in this order, unless they are there
        self.pad_id, self.cls_id, self.sep_id, self.bos_id, self.enc_id = (
            self._pieces.token_to_id(token) for token in (found["pad"], self._first, self._last, begin, match)
        )
        # of hidden tokens; not every vocabulary has it
        self.mask_id: int | None = found["mask"] and self._pieces.token_to_id(found["mask"])
        self.unusable = ""  # why encode() must not be called, if so
        self.ends_single = True

    def __len__(self) -> int:
        """Vocabulary size, [DEC] and [ENC] included where they are used."""
        return self._pieces.get_vocab_size(with_added_tokens=True)

    @property
    def separator(self) -> str:
        """What `encode` reads as [SEP] inside a text."""
        return self._last

    def encode(self, texts: Sequence[str], max_tokens: int, single: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 (B, L): [CLS] pieces [SEP], then padding to the longest text, L <= max_tokens. `single`:
        questions and retrieval's captions, whose [SEP] stays away unless `ends_single`.

        What is too long loses its end; [SEP] stays. Raises AuroraError when max_tokens has no room for [CLS]
        and [SEP], or the ids are not those of the backbone that this tokenizer was chosen for.
        """
        if self.unusable:
            raise AuroraError(self.unusable)
        if max_tokens < 2:
            raise AuroraError(
                f"max_tokens is {max_tokens}; [CLS] and [SEP] alone need 2. Set it to at least 3."
            )
        encoded = self._pieces.encode_batch_fast(list(texts), add_special_tokens=False)
        end = [] if single and not self.ends_single else [self.sep_id]
        rows = [[self.cls_id, *each.ids[: max_tokens - 1 - len(end)], *end] for each in encoded]
        longest = max((len(row) for row in rows), default=2)
        ids = torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows], dtype=torch.int64)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return ids.view(len(rows), longest), mask.view(len(rows), longest)

    def decode(self, ids: Tensor) -> list[str]:
        """The words of rows of ids (B, L), without special tokens; word pieces joined, no space before punctuation and
        none around an apostrophe, as published (transformers 4.15): `a man's dog`."""
        texts = self._pieces.decode_batch(ids.tolist(), skip_special_tokens=True)
        return [text.replace(" ' ", "'") for text in texts]  # which the library does within a piece alone

    def piece(self, token: int) -> str:
        """A token as the vocabulary has it."""
        return self._pieces.id_to_token(token)

    def serialised(self, first: str) -> str:
        """The content of a tokenizer.json that puts `first`, a special token, and [SEP] around texts by itself."""
        pieces = tokenizers.Tokenizer.from_str(self._pieces.to_str())
        ends = [(token, pieces.token_to_id(token)) for token in (first, self._last)]
        pieces.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first} $A {self._last}", special_tokens=ends
        )
        return pieces.to_str(pretty=True)

    def mismatch(self, text: TextConfig) -> str:
        """One sentence per id in which this vocabulary and a text transformer differ; empty when they fit."""
        own = {
            "pad_id": self.pad_id,
            "cls_id": self.cls_id,
            "sep_id": self.sep_id,
            "bos_id": self.bos_id,
            "enc_id": self.enc_id,
        }
        different = [
            f"backbone.text.{key} is {getattr(text, key)} and the tokenizer's {value}"
            for key, value in own.items()
            if getattr(text, key) != value
        ]
        if not 0 <= text.vocab_size - len(self) < TABLE_PADDING:
            different.append(
                f"backbone.text.vocab_size is {text.vocab_size} and the tokenizer has {len(self)} tokens"
            )
        return "; ".join(different)


def tokenizer_for(config: BackboneConfig) -> Tokenizer:
    """The tokenizer of a backbone: `config.tokenizer`; else a vocabulary beside the checkpoint; else bert-base-uncased.

    Raises AuroraError when its special ids or its size are not those of the text transformer; for the built-in
    one, which nobody asked for, only when it is first used: a model of another vocabulary can be fed with
    ready-made ids.
    """
    asked = config.tokenizer or _beside(config.checkpoint)
    tokenizer = Tokenizer(asked or BUILT_IN, plain=config.text.bos_id == config.text.cls_id)
    tokenizer.ends_single = config.name != "mplug" or config.mplug.text_end != "none"
    different = tokenizer.mismatch(config.text)
    if different:
        message = (
            f"The tokenizer {tokenizer.path if asked else 'bert-base-uncased (built in)'} does not belong to "
            f"this backbone: {different}. Set backbone.tokenizer to the vocab.txt or tokenizer.json that the backbone "
            "was trained with."
        )
        if asked:
            raise AuroraError(message)
        tokenizer.unusable = message
    return tokenizer


def _is_word_pieces(pieces: tokenizers.Tokenizer) -> bool:
    return isinstance(pieces.model, tokenizers.models.WordPiece)


def _beside(checkpoint: str | None) -> Path | None:
    if checkpoint is None:
        return None
    path = resolve_checkpoint(checkpoint)
    folder = path if path.is_dir() else path.parent
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def _find(path: Path) -> Path:
    candidates = [path / name for name in FILE_NAMES] if path.is_dir() else [path]
    found = next((each for each in candidates if each.is_file()), None)
    if found is None:
        reason = f"holds neither {' nor '.join(FILE_NAMES)}" if path.is_dir() else "does not exist"
        raise AuroraError(
            f"backbone.tokenizer: {path} {reason}. Give a vocab.txt, a tokenizer.json or a directory with one "
            "of them; null takes the one beside the checkpoint, else the built-in bert-base-uncased."
        )
    return found


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        if path.suffix == ".json":
            pieces = tokenizers.Tokenizer.from_file(str(path))
        else:
            words = path.read_text(encoding="utf-8").splitlines()
            vocabulary = {word: number for number, word in enumerate(words)}
            pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
            pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
            pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
            pieces.add_special_tokens([t for t in (*SPECIAL, "[MASK]", "[DEC]", "[ENC]") if t in vocabulary])
    except Exception as error:  # the library raises plain Exceptions
        raise AuroraError(f"{path} cannot be read as a vocabulary: {error}.") from error
    if _is_word_pieces(pieces):
        pieces.decoder = tokenizers.decoders.WordPiece(
            cleanup=True
        )  # as the published code's tokenizer decodes
    pieces.no_padding()
    pieces.no_truncation()
    return pieces
