"""DeepSpeed's `async_io` and `pin_memory` compiled as one file each: the same sources and flags, in a tenth of the
time, most of which goes into torch's headers, once a file.

Kept in a folder of their own beside those that DeepSpeed compiles file by file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

# constants that more than one source has for itself
_OWN = ("c_library_name", "c_block_size", "c_io_queue_depth")


def load_async_io() -> Any:
    """The module, compiled where it was not yet (a minute or two). Later loads in this process take the same one."""
    from deepspeed.ops.op_builder import AsyncIOBuilder, PinMemoryBuilder
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "one_compilation"
    root.mkdir(parents=True, exist_ok=True)
    with (
        patch.dict(os.environ, TORCH_EXTENSIONS_DIR=str(root)),
        patch.object(PinMemoryBuilder, "sources", _one(PinMemoryBuilder, root)),
        patch.object(AsyncIOBuilder, "sources", _one(AsyncIOBuilder, root)),
    ):
        return AsyncIOBuilder().load()


def _one(kind: type, root: Path) -> Any:
    builder = kind()
    sources = [Path(builder.deepspeed_src_path(each)) for each in builder.sources()]
    folders = list(dict.fromkeys(source.parent for source in sources))
    lines = ["#include <torch/extension.h>"]
    headers: list[Path] = []
    for folder in folders:
        for header in sorted(folder.glob("*.h")):
            _after_its_own(header, folders, headers)
    lines += [f'#import "{header}"' for header in headers]  # unlike #include never twice; few have guards
    for number, source in enumerate(sources):
        lines += [line for name in _OWN for line in (f"#undef {name}", f"#define {name} {name}_{number}")]
        lines.append(f'#include "{source}"')
    file, text = root / f"{builder.name}_all.cpp", "\n".join(lines) + "\n"
    if (
        not file.is_file() or file.read_text(encoding="utf-8") != text
    ):  # its time decides whether it is compiled
        file.write_text(text, encoding="utf-8")
    return lambda self: [str(file)]


def _after_its_own(header: Path, folders: list[Path], done: list[Path]) -> None:
    """`header` onto `done`, behind those of `folders` that it includes."""
    if header in done:
        return
    for name in re.findall(r'#include ["<](\w+\.h)[">]', header.read_text(encoding="utf-8")):
        found = next((each / name for each in (header.parent, *folders) if (each / name).is_file()), None)
        if found is not None:
            _after_its_own(found, folders, done)
    done.append(header)


if __name__ == "__main__":
    load_async_io()
