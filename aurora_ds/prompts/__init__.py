"""The method: shared factors, prompted linears, query transformation, context enhancement, and the
adapter's life."""

from aurora_ds.prompts.adapter import load_adapter, read_adapter, save_adapter
from aurora_ds.prompts.attach import Prompts, attach
from aurora_ds.prompts.context import ContextEnhancement
from aurora_ds.prompts.factors import FactorBank, PromptSite, PromptValues

__all__ = [
    "ContextEnhancement",
    "FactorBank",
    "PromptSite",
    "PromptValues",
    "Prompts",
    "attach",
    "load_adapter",
    "read_adapter",
    "save_adapter",
]
