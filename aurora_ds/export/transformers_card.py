"""The README.md of a transformers directory: how it is used there, and where its answers differ from ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aurora_ds.export.attached import Merged

_BEAMS = (
    "Its beam search divides a text's score by another length, so texts may differ; greedy ones are the same."
)
_PAGE = """---
library_name: transformers
---
{description}, as a `{architecture}` of transformers. record.json says what it was made from and how it was compared.

```python
from PIL import Image
from transformers import BlipProcessor, {architecture}

folder = {folder!r}
processor = BlipProcessor.from_pretrained(folder)
model = {architecture}.from_pretrained(folder).eval()
image = Image.open("photo.jpg").convert("RGB")
{code}
```

Where its answers differ from those of aurora_ds:

{differences}
"""
_RETRIEVAL = """inputs = processor(images=image, text="two dogs on a beach", return_tensors="pt")
similarity = model(**inputs, use_itm_head=False).itm_score  # cosine
inputs["input_ids"][:, 0] = {enc_id}  # [ENC]
match = model(**inputs).itm_score.softmax(1)[:, 1]  # probability
print(similarity, match)"""
_WRITES = """inputs = processor(images=image, text={text!r}, return_tensors="pt")
ids = model.generate(**inputs, {arguments})
print(processor.decode(ids[0], skip_special_tokens=True))"""


def card(
    architecture: str, merged: Merged, output: Path, description: str, arguments: dict[str, Any] | None
) -> str:
    """The page. arguments: of `generate`, where the model writes texts."""
    if arguments is None:
        code = _RETRIEVAL.format(enc_id=merged.config.backbone.text.enc_id)
    else:
        text = (
            "what is the dog doing?" if merged.config.task == "vqa" else merged.config.caption.prompt.strip()
        )
        listed = ", ".join(f"{name}={value}" for name, value in arguments.items())
        code = _WRITES.format(text=text, arguments=listed)
    return _PAGE.format(
        description=description,
        architecture=architecture,
        folder=str(output),
        code=code,
        differences="\n".join(f"- {sentence}" for sentence in known_differences(merged)),
    )


def known_differences(merged: Merged) -> list[str]:
    """Where transformers' model of the same weights answers otherwise, a sentence each."""
    config = merged.config
    own = {
        "retrieval": [
            f"Matching wants [ENC] ({config.backbone.text.enc_id}) as the first token, which its processor does not "
            "put there.",
            "It stores no temperature (record.json has it) and does not re-rank.",
        ],
        "vqa": [
            "It writes answers; it does not rank a list.",
            'Questions come to us in lower case, without .!"()*#:;~.',
        ],
        "caption": ["The prompt is part of what it returns."],
    }[config.task]
    if config.task == "vqa" and config.vqa.question_padding == "masked":
        own.append(
            "When answers are written, it sees the padding of questions: give questions one by one, or of one length."
        )
    if config.task != "retrieval":
        method = getattr(config, config.task).generation.method
        own += [_BEAMS] if method == "beam" else []
        own += (
            ["It knows no penalised beam search: its beams are others."] if method == "penalised_beam" else []
        )
        own += ["Its draws of nucleus sampling are others."] if method == "nucleus" else []
        own.append(
            "`generate` takes its arguments as above; it does not look at generation_config.json by itself."
        )
    return ["It takes one image at a time, no clip.", *own]
