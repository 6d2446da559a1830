"""Tables that commands print."""

from __future__ import annotations


def print_table(title: str, rows: dict[str, object]) -> None:
    """Two columns: name and value."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


def print_splits(title: str, splits: dict[str, dict]) -> None:
    """A row per split: its media, its annotations of each kind, shards and size."""
    from rich.console import Console
    from rich.table import Table

    kinds = sorted({kind for split in splits.values() for kind in split["counts"]})
    table = Table(title=title, title_justify="left", title_style="")
    for heading in ("split", "media", *kinds, "shards", "MB"):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    for name, split in splits.items():
        numbers = [split["samples"], *(split["counts"].get(kind, 0) for kind in kinds), split["shards"]]
        table.add_row(name, *(f"{number:,}" for number in numbers), f"{split['bytes'] / 1e6:,.1f}")
    Console().print(table)
