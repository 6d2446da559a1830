"""Signs of life between the hosts of a run: a pulled cable and a host without power close no connection, so a rank that
waits for one there sees nothing.

The lowest rank of each host speaks for it. Every second it tells the store, by which the ranks once found each
other (MASTER_ADDR, MASTER_PORT: no further port is needed), what the ranks of its host do. Rank 0 reads that and
answers all with its pulse. Who is silent for `train.unreachable_seconds` is lost; a shorter cut passes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from aurora_ds.runtime import process_group

INTERVAL = 1.0
# Of one connection or question. After it the connection is given up: a late answer would be taken for the next one's.
_PATIENCE = 4.0
# Without a look at the others for so long this process slept, and not they.
_SLEPT = 10.0
_GRACE_FOR_FAILED = 20.0
_BEAT, _PULSE = "aurora_ds/beat/{}", "aurora_ds/pulse"
Beats = list[dict[str, Any]]


class Peers:
    """This host's voice, where it is its host's lowest rank. Made by all ranks together; `start`, then `close`.

    A question to a host that cannot be reached may not come back at all, so a thread of its own asks, and who owns this
    looks at what it heard.

    Args:
        here: the ranks of this host. seconds: of silence until a host is lost. beats: what the ranks of this host do.
        ended: the phase of a rank that is done.
    """

    def __init__(self, here: set[int], seconds: float, beats: Callable[[], Beats], ended: str) -> None:
        self.seconds, self._beats, self._ended = seconds, beats, ended
        rank = process_group.rank()
        speaks = process_group.gather_objects(min(here) == rank)
        speakers = [number for number, does in enumerate(speaks) if does]
        self.speaks = speaks[rank] and len(speakers) > 1
        # rank 0 hears all, the others rank 0
        self._theirs = {} if not self.speaks else {each: "" for each in (speakers[1:] if rank == 0 else [0])}
        self._heard = dict.fromkeys(self._theirs, time.monotonic())
        self._failed_since: dict[int, float] = {}
        self._verdict, self._since, self._looked = "", 0.0, time.monotonic()
        self._store: dist.Store | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        if self.speaks:
            self._tell(self._connected())
        process_group.barrier()  # now every key is there, and no question has to wait for one

    def start(self) -> None:
        """Begin to listen; nothing where another rank speaks for this host, or there is one host only."""
        if self.speaks:
            self._looked = time.monotonic()
            self._heard = dict.fromkeys(self._theirs, self._looked)
            self._thread.start()

    def close(self) -> None:
        """Say goodbye: what the ranks of this host did last, which the heartbeats have by now."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(3 * _PATIENCE)  # which a cut network may keep for ever

    def beats(self) -> Beats:
        """What the ranks of other hosts did when they were last heard of, as far as this rank is told."""
        return [beat for text in self._theirs.values() if text for beat in json.loads(text)["ranks"]]

    def lost(self) -> str:
        """Why the run cannot go on; empty while it can. To be asked every second or so."""
        now = time.monotonic()
        if now - self._looked > _SLEPT:
            self._heard = dict.fromkeys(self._heard, now)
        self._looked = now
        if not self._verdict:
            self._verdict, self._since = self._judge(now), now
        # rank 0 knows first: it waits for the others to read it
        wait = 3 * INTERVAL if process_group.rank() == 0 else 0.0
        return self._verdict if now - self._since >= wait else ""

    def _run(self) -> None:
        while not self._over.wait(INTERVAL):
            self._exchange()
        end = time.monotonic() + _PATIENCE
        while self._store is not None:
            self._exchange()
            # the store ends with rank 0, which lets the others say goodbye first
            if process_group.rank() or self._all_ended() or time.monotonic() > end:
                break
            time.sleep(0.1)

    def _exchange(self) -> None:
        """Tell and hear, or nothing of it while the store cannot be reached."""
        try:
            store = self._connected()
            self._tell(store)
            for speaker, text in self._answers(store).items():
                if text != self._theirs[speaker]:
                    self._theirs[speaker], self._heard[speaker] = text, time.monotonic()
        except dist.DistError:
            self._store = None

    def _connected(self) -> dist.Store:
        if self._store is None:
            self._store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=timedelta(seconds=_PATIENCE),
                wait_for_workers=False,
            )
        return self._store

    def _tell(self, store: dist.Store) -> None:
        said = {"at": time.time(), "ranks": self._beats(), "verdict": self._verdict}
        rank = process_group.rank()
        store.set(_BEAT.format(rank) if rank else _PULSE, json.dumps(said))

    def _answers(self, store: dist.Store) -> dict[int, str]:
        speakers = list(self._theirs)
        keys = [_BEAT.format(each) if each else _PULSE for each in speakers]
        texts = [text.decode() for text in store.multi_get(keys)]
        return dict(zip(speakers, texts, strict=True))

    def _judge(self, now: float) -> str:
        for speaker, text in self._theirs.items():
            said = json.loads(text) if text else {"ranks": [], "verdict": ""}
            if said["verdict"]:
                return said["verdict"]
            if said["ranks"] and all(beat["phase"] == self._ended for beat in said["ranks"]):
                continue
            silent = now - self._heard[speaker]
            if silent > self.seconds:
                return (
                    f"no sign of life for {silent:.0f} s from {_names(said['ranks'], speaker)} "
                    f"(train.unreachable_seconds is {self.seconds:g}): the network between the hosts is cut, or that "
                    "host is gone"
                )
            for beat in said["ranks"]:
                if beat["phase"].startswith(("failed", "ended by force")):
                    began = self._failed_since.setdefault(beat["rank"], now)
                    if now - began > _GRACE_FOR_FAILED:
                        return f"rank {beat['rank']} on {beat['host']} has ended: {place(beat)}"
        return ""

    def _all_ended(self) -> bool:
        """Whether every speaker's last word is that its ranks have ended, in whatever way."""
        return all(
            text and all(_is_last(beat["phase"], self._ended) for beat in json.loads(text)["ranks"])
            for text in self._theirs.values()
        )


def place(beat: dict[str, Any]) -> str:
    """`forward of step 7`."""
    return f"{beat['phase']} of step {beat['step']}"


def _is_last(phase: str, ended: str) -> bool:
    return phase == ended or phase.startswith(("failed", "ended by force"))


def _names(beats: Beats, speaker: int) -> str:
    if not beats:
        return f"the host of rank {speaker}"
    return ", ".join(f"rank {beat['rank']} on {beat['host']}, last in {place(beat)}" for beat in beats)
