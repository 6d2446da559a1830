"""Imports only go down: kernels, config < prompts, backbones, data < tasks, runtime < train, evaluate < cli."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = "aurora_ds"

# One line per floor, from the ground. A new module at the top of the package must be given its floor here.
FLOORS = [
    [
        "errors",
        "config",
        "contradictions",
        "presets",
        "recipe",
        "arguments",
        "tables",
        "whole_model",
        "durable",
        "kernels",
        "recipes",
    ],
    ["prompts", "backbones", "data"],
    ["tasks", "runtime"],
    [
        *("wiring", "assemble", "report", "training_state", "train", "evaluate"),
        *("verify", "export", "predict", "trained", "multinode", "doctor", "plan"),
    ],
    ["quickstart", "cli", "cli_shards", "__main__", "__init__"],
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
# Parts of these floors do not know each other: prompts and backbones meet in a task, tasks and runtime in train.
STRANGERS = {1, 2}
KERNELS_MAY_IMPORT = {"torch", "triton"}
# Slow or optional: only inside the function that needs them.
LAZY = {
    *(
        "deepspeed",
        "webdataset",
        "peft",
        "ray",
        "tensorboard",
        "cv2",
        "av",
        "ijson",
        "simplejpeg",
        "torchcodec",
    ),
    *("fsspec", "s3fs", "gcsfs", "aiohttp", "botocore", "huggingface_hub", "megatron", "pycocoevalcap"),
}


def modules_of(root: Path) -> dict[str, Path]:
    """`prompts.adapter` -> file; a package's own file is `prompts.__init__`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))
    }


def imports_of(module: str, path: Path, known: set[str]) -> list[tuple[str, bool]]:
    """(imported module, whether importing `module` runs it) for each import.

    Imports inside functions and under TYPE_CHECKING count too; they are only not run at once.
    Modules of the package come without its name (`prompts.adapter`), others as their top name with `!` before it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    deferred = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(outer)
        for inner in ast.walk(outer)
    }
    found: list[tuple[str, bool]] = []

    def add(name: str, node: ast.AST) -> None:
        top, _, inside = name.partition(".")
        if top != PACKAGE:
            found.append((f"!{top}", id(node) not in deferred))
            return
        target = next((each for each in (inside, f"{inside}.__init__") if each in known), None)
        found.append((target or inside or "__init__", id(node) not in deferred))

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                add(each.name, node)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = [PACKAGE, *module.split(".")[:-1]]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for each in node.names:
                # `from aurora_ds.data import plan` imports the module aurora_ds.data.plan, not a name in the package
                inside = f"{base}.{each.name}".partition(".")[2]
                is_module = base.partition(".")[0] == PACKAGE and (
                    inside in known or f"{inside}.__init__" in known
                )
                add(f"{base}.{each.name}" if is_module else base, node)
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def faults(root: Path) -> list[str]:
    """Everything that breaks a rule, as `module: what`."""
    modules = modules_of(root)
    graph: dict[str, list[str]] = {}
    wrong: list[str] = []
    for module, path in modules.items():
        part = module.partition(".")[0]
        if part not in FLOOR:
            wrong.append(f"{module}: {part} has no floor; add it to FLOORS in tests/test_floors.py")
            continue
        graph[module] = []
        for target, at_module_level in imports_of(module, path, set(modules)):
            if target.startswith("!"):
                name = target[1:]
                if name in LAZY and at_module_level:
                    wrong.append(f"{module}: imports {name} at module level; import it where it is used")
                if part == "kernels" and name not in KERNELS_MAY_IMPORT | sys.stdlib_module_names:
                    wrong.append(f"{module}: kernels import torch and triton only, not {name}")
                continue
            other = target.partition(".")[0]
            # inside one part a deferred import may look back, between parts it is a cycle all the same
            if target != "__init__" and (at_module_level or other != part):
                graph[module].append(target)
            if other == part or target == "__init__":
                continue
            if part == "kernels":
                wrong.append(f"{module}: kernels import torch and triton only, not {PACKAGE}.{target}")
            if other not in FLOOR:
                wrong.append(f"{module}: imports {PACKAGE}.{target}, which does not exist")
            elif FLOOR[other] > FLOOR[part]:
                wrong.append(f"{module}: imports {target}, which is on a higher floor")
            elif FLOOR[other] == FLOOR[part] and FLOOR[part] in STRANGERS:
                wrong.append(f"{module}: imports {target}; {part} and {other} must not know each other")
    return wrong + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Import cycles between files, each once, starting at its first name in the alphabet."""
    found: set[tuple[str, ...]] = set()
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            loop = trail[trail.index(module) :]
            first = loop.index(min(loop))
            found.add(tuple([*loop[first:], *loop[:first]]))
            return
        if module in done:
            return
        for target in graph.get(module, []):
            visit(target, [*trail, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return [list(cycle) for cycle in sorted(found)]


def test_imports_only_go_down(repository: Path):
    assert faults(repository / PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"data/plan.py": "from aurora_ds import train", "train.py": ""},
            "data.plan: imports train, which is on a higher",
        ),
        (
            {"data/plan.py": "def f():\n    import aurora_ds.cli", "cli.py": ""},
            "data.plan: imports cli, which is on a higher",
        ),
        (
            {"config.py": "from aurora_ds.data.plan import x", "data/plan.py": ""},
            "config: imports data.plan, which is on",
        ),
        (
            {"prompts/a.py": "from aurora_ds.backbones import b", "backbones/b.py": ""},
            "prompts and backbones must not know",
        ),
        (
            {"backbones/b.py": "from ..prompts import a", "prompts/a.py": ""},
            "backbones and prompts must not know",
        ),
        (
            {"data/c.py": "import aurora_ds.backbones.b", "backbones/b.py": ""},
            "data and backbones must not know",
        ),
        (
            {"tasks/r.py": "from aurora_ds.runtime.engine import E", "runtime/engine.py": ""},
            "tasks and runtime must not know",
        ),
        ({"kernels/k.py": "import numpy"}, "kernels.k: kernels import torch and triton only, not numpy"),
        ({"kernels/k.py": "from aurora_ds.errors import E", "errors.py": ""}, "not aurora_ds.errors"),
        ({"runtime/e.py": "import deepspeed"}, "runtime.e: imports deepspeed at module level"),
        ({"elsewhere.py": ""}, "elsewhere has no floor"),
        ({"data/a.py": "from . import b", "data/b.py": "from .a import x"}, "cycle: data.a -> data.b"),
        (
            {"train.py": "import aurora_ds.evaluate", "evaluate.py": "import aurora_ds.train"},
            "cycle: evaluate -> train",
        ),
        (
            {"train.py": "def f():\n    import aurora_ds.verify", "verify.py": "from aurora_ds import train"},
            "cycle: train -> verify",
        ),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, files: dict[str, str], expected: str):
    write_tree(tmp_path, files)
    assert any(expected in fault for fault in faults(tmp_path)), faults(tmp_path)


def test_a_sound_tree_has_no_faults(tmp_path: Path):
    write_tree(
        tmp_path,
        {
            "__init__.py": "__version__ = '1'",
            "errors.py": "class E(Exception): ...",
            "kernels/k.py": "import math\nimport torch",
            "prompts/__init__.py": "from aurora_ds.prompts.a import f",
            "prompts/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f",
            "prompts/a.py": "from .c import g\nfrom aurora_ds.errors import E\nfrom aurora_ds.kernels.k import op",
            "tasks/r.py": "from aurora_ds.prompts import f\nfrom aurora_ds.backbones import b",
            "backbones/b.py": "",
            "runtime/e.py": "def f():\n    import deepspeed",
            "train.py": "from aurora_ds import __version__, evaluate\nfrom aurora_ds.tasks.r import x",
            "evaluate.py": "from aurora_ds.runtime.e import f",
            "cli.py": "def f():\n    from aurora_ds.train import main",
        },
    )
    assert faults(tmp_path) == []


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
