"""heartbeats/rank-00000.json in the run's folder: what each rank does, in which step, and when it was last alive.

A thread writes it every second, so a rank that hangs still has a fresh `time` and an old `since`, and one that was
killed has an old `time`. The thread also watches what a rank inside a collective cannot see: a launcher that is gone
asks the run to end (stop.py); a rank of the same machine that is gone, a host that cannot be reached (peers.py), a
collective that others do not come to, or a run that does not end when its launcher is gone, ends this process with the
reason and every thread's stack.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from aurora_ds.runtime import process_group
from aurora_ds.runtime.peers import Peers, place
from aurora_ds.runtime.stop import StopRequest

FOLDER = "heartbeats"
SECONDS = 1.0
# Below the 60 s within which every rank ends; gloo notices a lost rank at once, NCCL only at its timeout.
GRACE_FOR_RANK, GRACE_FOR_LAUNCHER = 20.0, 45.0
# For the exception of a collective that timed out, which says more; NCCL has none.
GRACE_FOR_COLLECTIVE = 20.0
# Seconds for the last words of a process that ends by force; the disk may be what hangs.
_LAST_WORDS = 10.0
ENDED = "ended"
FORWARD, BACKWARD, SAVING = "forward", "backward and update", "saving"
# Phases that are short of themselves: who is in one for long waits for another rank.
_TOGETHER = (FORWARD, BACKWARD, SAVING)
_MOST_TOLD = 64
# What adopts a process whose parent is gone, beside process 1.
_ADOPTERS = ("systemd", "init", "tini", "dumb-init", "docker-init")
_LAUNCHERS = ("deepspeed", "torch.distributed.run", "torch.distributed.launch", "torchrun")


class Heartbeat:
    """One rank's file and watch. Made and entered by all ranks together; leave it when the run has ended.

    Args:
        collective_timeout, unreachable: seconds, as `train.collective_timeout_seconds` and `train.unreachable_seconds`.
        report: writes what is known when the watch ends this process (failure.write).
    """

    def __init__(
        self,
        output: str | Path,
        stop: StopRequest,
        collective_timeout: float = 1800.0,
        unreachable: float = 25.0,
        report: Callable[[BaseException], object] | None = None,
    ) -> None:
        self.output, self.folder, self.stop = Path(output), Path(output) / FOLDER, stop
        self._report, self._because = report, ""
        nccl = process_group.device().type == "cuda"
        self._limit = (collective_timeout, collective_timeout + (0.0 if nccl else GRACE_FOR_COLLECTIVE))
        self.path = file_of(output, process_group.rank())
        self._phase, self._step, self._since = "start", 0, time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._launchers = _launchers()
        everyone = process_group.gather_objects((os.getpid(), _born(os.getpid())))
        # those that can be seen from here: host names may be the same in two containers, and pids on two hosts
        self._others = {
            rank: process
            for rank, process in enumerate(everyone)
            if rank != process_group.rank() and _alive(*process)
        }
        self._gone_since: dict[str, float] = {}
        self._broken = False
        for path in self.folder.glob("rank-*.json"):  # of an earlier launch with more ranks
            if path not in {file_of(output, number) for number in range(process_group.world_size())}:
                path.unlink(missing_ok=True)
        self._write()  # the speaker of this host reads it
        self._peers = Peers({process_group.rank(), *self._others}, unreachable, self._of_host, ENDED)

    def at(self, phase: str, step: int | None = None) -> None:
        """This rank begins `phase`, in the step that is under way. Costs nothing: the thread writes."""
        self._phase, self._since = phase, time.time()
        if step is not None:
            self._step = step

    def __enter__(self) -> Heartbeat:
        self._write()
        self._thread.start()
        self._peers.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self.at(ENDED)
        else:
            self._phase = f"failed in {self._phase}"
        self._write()
        self._peers.close()

    def known(self) -> list[dict[str, Any]]:
        """The last heartbeats of all ranks that can be seen from here, on disk or through the store, by rank."""
        found = {beat["rank"]: beat for beat in [*self._peers.beats(), *read(self.output)]}
        return [found[rank] for rank in sorted(found)]

    def _of_host(self) -> list[dict[str, Any]]:
        # every second: not the files of all ranks of the run
        others = [_last_of(self.output, rank) for rank in self._others]
        return [self._record(), *filter(None, others)]

    def _beat(self) -> None:
        while not self._over.wait(SECONDS):
            self._write()
            self._watch()

    def _record(self) -> dict[str, Any]:
        return {
            "rank": process_group.rank(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "phase": self._phase,
            "step": self._step,
            "since": self._since,
            "time": time.time(),
            "collectives": process_group.collectives(),
            "asked_to_stop": self.stop.reason,
            "ended_because": self._because,
        }

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._record()), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            if not self._broken:  # whether the run can save its state is for the next checkpoint to say
                self._broken = True
                warnings.warn(f"Heartbeats are not written to {self.folder}: {error.strerror}.", stacklevel=2)

    def _watch(self) -> None:
        for name, process in self._launchers.items():
            if not _alive(*process):
                reason = f"its launcher ({name}, process {process[0]}) is gone"
                self.stop.ask(reason)
                self._end_after(reason, GRACE_FOR_LAUNCHER)
        for rank, process in self._others.items():
            if not _alive(*process):
                last = _last_of(self.output, rank)
                if last.get("ended_because"):  # it knew more
                    self._end(f"rank {rank} has ended: {last['ended_because']}")
                if last.get("phase") != ENDED:
                    self._end_after(f"rank {rank} (process {process[0]}) is gone", GRACE_FOR_RANK)
        if reason := self._peers.lost():
            self._end(reason)
        if process_group.world_size() > 1 and self._phase in _TOGETHER:
            limit, patience = self._limit
            if time.time() - self._since > patience:
                self._end(
                    f"a collective call has not ended within {limit:g} s (train.collective_timeout_seconds)"
                    f"{not_there(self.known(), process_group.collectives())}"
                )

    def _end_after(self, reason: str, seconds: float) -> None:
        """End this process when `reason` has held for so long: its main thread waits for what cannot come."""
        waited = time.monotonic() - self._gone_since.setdefault(reason, time.monotonic())
        if waited >= seconds:
            self._end(reason)

    def _end(self, reason: str) -> None:
        """End this process now, and say why."""
        if self._over.is_set():
            return
        threading.Timer(_LAST_WORDS, os._exit, [2]).start()
        faulthandler.dump_traceback(file=sys.stderr)
        in_phase = f"{self._phase} of step {self._step} since {time.time() - self._since:.0f} s"
        print(
            f"aurora-ds (rank {process_group.rank()}): {reason}, and this rank is still in {in_phase}. It ends here; "
            "its stacks are above. Nothing that was saved is lost: start training again with --resume auto.",
            file=sys.stderr,
            flush=True,
        )
        self._because, self._phase = reason, f"ended by force in {self._phase}"
        self._write()
        try:
            if self._report is not None:
                self._report(process_group.LostRank(f"{reason}; this rank was in {in_phase}."))
        finally:
            os._exit(2)


def file_of(output: str | Path, rank: int) -> Path:
    """Where a rank's heartbeat is."""
    return Path(output) / FOLDER / f"rank-{rank:05d}.json"


def read(output: str | Path) -> list[dict[str, Any]]:
    """The last heartbeats of all ranks whose files are on this machine's disks, by rank."""
    found = []
    for path in sorted((Path(output) / FOLDER).glob("rank-*.json")):
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def in_words(output: str | Path, now: float | None = None) -> str:
    """`rank 0: backward of step 7 since 3 s; …`, with the ranks that are silent."""
    now = time.time() if now is None else now
    told = []
    for beat in read(output)[:_MOST_TOLD]:
        silent = now - beat["time"]
        alive = "" if silent < 5 * SECONDS else f", silent for {silent:.0f} s"
        told.append(
            f"rank {beat['rank']} on {beat['host']}: {beat['phase']} of step {beat['step']} "
            f"since {max(0.0, beat['time'] - beat['since']):.0f} s{alive}"
        )
    return "; ".join(told)


def not_there(beats: list[dict[str, Any]], begun: int) -> str:
    """`; rank 1 on node did not come: waiting for data of step 7`, by the number of collective calls that this rank
    (`begun`) and the others have begun; empty where that tells nothing."""
    late = [beat for beat in beats if beat.get("collectives", begun) < begun][:_MOST_TOLD]
    if late:
        told = ", ".join(f"rank {beat['rank']} on {beat['host']} ({place(beat)})" for beat in late)
        return f"; not there: {told}"
    if any(beat.get("collectives", begun) > begun for beat in beats):
        return "; the others are there, and wait for this rank"
    return ""


def _last_of(output: Path, rank: int) -> dict[str, Any]:
    path = file_of(output, rank)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _launchers() -> dict[str, tuple[int, int]]:
    """The launchers above this process, and the ssh session that one was started in: name -> (process, its start)."""
    found: dict[str, tuple[int, int]] = {}
    if "RANK" not in os.environ or not _born(os.getpid()):  # without /proc nothing can be watched
        return found
    try:
        parents = psutil.Process().parents()
        for number, parent in enumerate(parents):
            # the module or script: a shell or a job script whose arguments name a launcher is none
            words = parent.cmdline()[:4]
            name = next((word for word in words if any(_is(word, each) for each in _LAUNCHERS)), None)
            if name is None:
                found |= _above(parents[number:], found)
                break
            found[Path(name).name] = (parent.pid, _born(parent.pid))
    except (psutil.Error, OSError):
        pass  # an ancestor ended while it was looked at: the next look at those found so far tells
    return found


def _above(parents: list[psutil.Process], found: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What stands above the launchers that were `found` and must live too. The user's login shell may go."""
    adopted = parents[0].pid == 1 or parents[0].name() in _ADOPTERS
    of_machine = found.get("deepspeed.launcher.launch")
    if adopted:
        # gone before this process looked: the only launcher, or the one above deepspeed's launcher of this machine,
        # which else is the leader of its process group, or has a living one
        if not found and _was_launched():
            return {"that it began under": (0, 0)}
        if of_machine and len(found) == 1 and not _born(os.getpgid(of_machine[0])):
            return {"that it began under": (0, 0)}
    elif of_machine:
        # pdsh starts the launcher of each host in a shell under sshd
        session = next((each for each in parents if each.name().startswith("sshd")), None)
        if session is not None and len(found) == 1:
            return {"its ssh session": (session.pid, _born(session.pid))}
    return {}


def _was_launched() -> bool:
    """By deepspeed or torchrun, as their variables for ranks tell."""
    return "CROSS_RANK" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _is(word: str, launcher: str) -> bool:
    return Path(word).name == launcher or word.startswith(f"{launcher}.") or word == launcher


def _alive(pid: int, born: int) -> bool:
    return born != 0 and _born(pid) == born


def _born(pid: int) -> int:
    """When the process began, in clock ticks since the machine did; 0 when it is gone, or a zombie. Unlike a time of
    day it stays the same when the clock is set, and tells another process of the same number apart."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
