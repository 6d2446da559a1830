"""choices.json, the table that `kernels=auto` reads: benchmarks put the rows there that they have measured."""

from __future__ import annotations

import json
from pathlib import Path

from measurement import REPOSITORY


def write(rows: dict[str, str]) -> None:
    """Add or replace the rows of this device's family; those of other benchmarks stay."""
    from aurora_ds.kernels import choice

    table = json.loads(choice.TABLE.read_text(encoding="utf-8"))
    own = table["families"].setdefault(choice.family(), {})
    own.update(rows)
    Path(choice.TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(
        f"{choice.TABLE.relative_to(REPOSITORY)}: {len(rows)} of {len(own)} rows of {choice.family()} written"
    )
