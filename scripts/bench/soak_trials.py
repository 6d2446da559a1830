"""One kill of the soak: what became of it, when it counts as survived, and how many of them are told."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from measurement import facts_line, machine_facts, markdown_table, median

BOUND_SECONDS = 60.0
VICTIMS = ("rank", "launcher", "host", "launcher of a host", "supervisor")


@dataclass
class Trial:
    """What one kill led to. `ended_seconds`: until no process was left. `steps_*`: after the run was started again."""

    seed: int
    victim: str
    after_step: int
    ended_seconds: float
    said_why: bool
    left_behind: int
    resumed_after: int
    steps_lost: int = 0
    steps_repeated: int = 0
    losses_equal: bool = False
    commit: str = ""

    def survived(self) -> bool:
        return (
            self.ended_seconds <= BOUND_SECONDS
            and self.said_why
            and not (self.steps_lost or self.steps_repeated or self.left_behind)
            and self.losses_equal
        )


def earlier(path: Path, settings: dict[str, int]) -> list[Trial]:
    """The trials of an earlier result, which must be of the same settings."""
    record = json.loads(path.read_text(encoding="utf-8"))
    theirs = {name: record[name] for name in settings}
    if theirs != settings:
        raise SystemExit(
            f"The trials of {path} are of {theirs}, not of {settings}: nothing is added to them."
        )
    return [Trial(**trial) for trial in record["trials"]]


def family(victim: str) -> str:
    """`host` of `host 2`."""
    return max((each for each in VICTIMS if victim.startswith(each)), key=len)


def by_commit(done: list[Trial]) -> str:
    """`22 of abc, 3 of def`."""
    return ", ".join(
        f"{count} of {commit}" for commit, count in Counter(each.commit for each in done).items()
    )


def table(done: list[Trial], one_machine: bool, wanted: int, steps: int, batch: int) -> str:
    """A row for each kind of victim. `steps` of `batch` samples: of the run that nobody disturbs."""
    rows = []
    for kind in [*VICTIMS, "all"]:
        mine = [each for each in done if kind == "all" or family(each.victim) == kind]
        if mine:
            ended = [each.ended_seconds for each in mine]
            rows.append(
                [
                    kind,
                    str(len(mine)),
                    str(sum(each.survived() for each in mine)),
                    f"{median(ended):.1f}",
                    f"{max(ended):.1f}",
                    str(sum(each.said_why for each in mine)),
                    str(sum(each.losses_equal for each in mine)),
                    str(batch * max(each.steps_lost for each in mine)),
                    str(batch * max(each.steps_repeated for each in mine)),
                    str(sum(each.left_behind for each in mine)),
                ]
            )
    head = ["killed", "trials", "survived", "median end (s)", "slowest end (s)", "said why", "losses equal"]
    head += ["samples lost", "samples repeated", "processes left"]
    early = sum(not each.after_step for each in done)
    where = (
        "2 ranks under the `deepspeed` launcher on one machine"
        if one_machine
        else "2 hosts (namespaces: network, processes, name, sshd) with 1 rank each, `scripts/train_multinode.sh`"
    )
    facts = facts_line(machine_facts(1))
    return (
        f"# Runs killed at random moments: {len(done)} of {wanted} trials\n\n"
        + markdown_table(head, rows)
        + f"\n\n{where}, {steps} steps, ZeRO 1, seeds {done[0].seed} to {done[-1].seed}; {early} of the kills came "
        "before the first step of a launch. Survived: all processes on all hosts ended within "
        f"{BOUND_SECONDS:.0f} s and said why, and the run started again has every step once, with the losses and "
        f"gradient norms of the undisturbed run bit for bit.\n\nTrials by commit: {by_commit(done)}.\n\n{facts}\n"
    )
