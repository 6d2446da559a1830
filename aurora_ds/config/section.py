"""What every group of settings has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _word(value: Any) -> Any:
    return "off" if value is False else value


Switchable = BeforeValidator(_word)  # YAML reads a bare `off` as false


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)
