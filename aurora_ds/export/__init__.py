"""Export: the backbone with an adapter merged into its weights, which then needs nothing of this package's method.

`merged` writes `backbone.safetensors` under published names (give it as backbone.checkpoint, or to any code that reads
BLIP's own); `transformers` writes a directory of its BlipForImageTextRetrieval, BlipForQuestionAnswering or
BlipForConditionalGeneration, with a processor. Both can hold W + ΔW and the trained heads; the running context of the
matching head is a constant and goes into that head's bias. The query transformation is no weight: an adapter with it
is refused. What was written is read again, by transformers too, and its outputs are compared with the attached model's.
"""

from aurora_ds.export.folder import run

__all__ = ["run"]
