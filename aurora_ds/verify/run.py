"""`aurora-ds verify DIR…`: are the numbers right? Builds what a golden folder describes, feeds its inputs,
compares.

One line per output: name, largest absolute and relative error, tolerance. Status 1 when one is out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from aurora_ds.errors import AuroraError
from aurora_ds.verify import (
    blip,
    blip_language,
    eve,
    eve_rules,
    eve_tasks,
    mplug,
    mplug_files,
    mplug_grounding,
    mplug_retrieval,
    mplug_texts,
    rules,
)
from aurora_ds.verify.golden import Check, Golden

BY_CASE = blip_language.CASES | eve.CASES | eve_tasks.CASES
BY_KIND = mplug.CASES | mplug_retrieval.CASES | mplug_grounding.CASES  # what goldens of mPLUG say instead


def check_folder(path: Path) -> list[Check]:
    """All checks of one golden folder (or a `schedules.json`)."""
    if path.name == "schedules.json" and path.is_file():
        return rules.schedules(json.loads(path.read_text(encoding="utf-8")))
    if (path / "vectors.json").is_file():
        return rules.text_rules(json.loads((path / "vectors.json").read_text(encoding="utf-8")))
    if not path.is_dir():
        raise AuroraError(f"{path} is no folder. Give golden folders, or a schedules.json.")
    for of_folder in (eve_rules.checks_of, mplug_files.checks_of, mplug_texts.checks_of):
        recorded = of_folder(path)
        if recorded is not None:
            return recorded
    golden = Golden.read(path)
    case = blip.case_of(golden) or BY_CASE.get(golden.config.get("case", ""))
    case = case or BY_KIND.get(golden.config.get("kind", ""))
    if case is None:
        raise AuroraError(
            f"{path} describes case '{golden.config.get('case')}', which this release cannot build. It knows: "
            f"{', '.join([*blip.CASES, *BY_CASE])}."
        )
    case(golden)
    golden.require_all()
    return golden.checks


def lines(path: Path, checks: Sequence[Check]) -> Iterator[str]:
    """One line per output, then the count."""
    width = max(len(check.name) for check in checks)
    yield f"{path.name}"
    yield f"  {'output':<{width}}  {'abs error':>10}  {'rel error':>10}  tolerance"
    for check in checks:
        verdict = check.note or ("" if check.passed else "OUT OF TOLERANCE")
        errors = f"{check.absolute:>10.2e}  {check.relative:>10.2e}"
        yield f"  {check.name:<{width}}  {errors}  {check.tolerance:<9}  {verdict}".rstrip()
    compared = [check for check in checks if check.tolerance != "-" or not check.passed]
    yield f"  {sum(c.passed for c in compared)} of {len(compared)} within tolerance"


def _paths(folders: Sequence[str | Path]) -> Iterator[Path]:
    for folder in folders:
        path = Path(folder)
        single = path.name == "schedules.json" or any(
            (path / n).exists() for n in ("config.json", "vectors.json", "facts.json")
        )
        inside = sorted(path.iterdir()) if path.is_dir() and not single else []
        # a folder with nothing to check is handed on, and refused: checking nothing must not look like success
        yield from [p for p in inside if p.is_dir() or p.name == "schedules.json"] or [path]


def run(folders: Sequence[str | Path], output: str | Path | None = None) -> int:
    """Check every folder (a folder of golden folders counts as all of them). Returns 0, or 1 when something
    is out.

    With `output`, writes all checks to `results.json` there."""
    failed, record = 0, {}
    for path in _paths(folders):
        checks = check_folder(path)
        print("\n".join(lines(path, checks)))
        failed += sum(not check.passed for check in checks)
        record[path.name] = [vars(check) for check in checks]
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{failed} outputs out of tolerance" if failed else "all outputs within tolerance")
    return 1 if failed else 0
