"""What ZeRO-3 fetches and holds in a step: DeepSpeed 0.19's coordinator on the events of a traced step.

A module needs its own parameters whole before its forward and again before its backward. After that, parameters of the
calls to come are fetched until PREFETCH elements are under way; those that are there already are passed over and kept
until that use. What is used and not waited for is let go. With recomputation a forward runs inside the backward: its
modules fetch a third time, and those that it breaks off in hold theirs until the module that asked for it has its own
backward done. Parameters that travel together come in one buffer and are copied out of it when the first is needed;
the buffer lives until the last is. gloo fills one of its own before that. When the weights have been updated, the
small ones are gathered again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from aurora_ds.plan.trace import Trace
from aurora_ds.plan.variants import MAX_LIVE, PERSIST, PREFETCH


@dataclass(frozen=True)
class Fetched:
    """elements: fetched in a step, small ones after it included. most: elements that are whole or under way at once.
    peak: bytes of the fullest moment, activations included, gradients of trained parameters not."""

    elements: int
    most: int
    peak: int


def fetched(trace: Trace, size: int, device: str = "cuda") -> Fetched:
    """A step of `trace` with parameters of `size` bytes. What small parameters hold is not counted: they are always
    whole. `device`: cpu (gloo) or cuda (NCCL)."""
    coordinator = _Coordinator(trace, buffered=device == "cpu")
    most = peak = 0
    for event in trace.events:
        peak = max(peak, event.peak + size * coordinator.held)
        coordinator.passing = coordinator.held
        if event.kind in ("forward", "backward"):
            coordinator.fetch(event.number, event.kind == "forward", event.recomputed)
        elif event.kind != "gradient":
            coordinator.release(event.number, event.kind == "forward_end")
        most = max(most, coordinator.passing)
        peak = max(peak, event.now + size * coordinator.passing)
    return Fetched(coordinator.sent + small_elements(trace), most, peak)


def small_elements(trace: Trace) -> int:
    """Elements of the parameters that stay whole."""
    return sum(size for size, _ in trace.parameters if size <= PERSIST)


@dataclass
class _Bucket:
    """Parameters that travel together. waiting: those whose modules have not asked for them yet. copies: elements that
    are there twice from the first of them to the last; none where one travels alone."""

    waiting: set[int]
    copies: int
    opened: bool = False


class _Coordinator:
    """Parameters by number: which are whole, which are under way. held: elements of both; passing: the most of them
    while an event is served."""

    def __init__(self, trace: Trace, buffered: bool) -> None:
        self.buffered = buffered
        self.sizes = [size for size, _ in trace.parameters]
        self.trained = [trained for _, trained in trace.parameters]
        self.modules = trace.modules
        self.whole = {number for number, size in enumerate(self.sizes) if size <= PERSIST}
        self.coming: dict[int, _Bucket] = {}
        asked = [event.number for event in trace.events if event.kind in ("forward", "backward")]
        self.ahead = deque(
            (number, call) for call, module in enumerate(asked) for number in self.modules[module]
        )
        self.wanted: dict[int, int] = defaultdict(lambda: -1)  # parameter -> last call that was looked at
        self.users: dict[int, set[int]] = defaultdict(set)
        self.backwards: dict[
            int, set[int]
        ] = {}  # module in its backward -> parameters that it recomputed with
        self.call = self.sent = self.live = self.held = self.passing = 0

    def fetch(self, module: int, forward: bool, recomputed: bool) -> None:
        own = self.modules[module]
        if not forward:
            self.backwards.setdefault(module, set())
        self._gather([number for number in own if number not in self.whole and number not in self.coming])
        for number in own:
            self.users[number].add(module)
            if forward and recomputed and self.backwards and not self.trained[number]:
                self.backwards[next(reversed(self.backwards))].add(number)
            if number in self.coming:
                self._arrive(number)
        self._pass_over({number for number in own if self.wanted[number] < self.call})
        self._look_ahead()
        self.call += 1

    def _pass_over(self, own: set[int]) -> None:
        passed: set[int] = set()
        while self.ahead and len(passed) < len(own):
            number, call = self.ahead.popleft()
            self.wanted[number] = call
            passed.add(number)

    def _look_ahead(self) -> None:
        chosen: list[int] = []
        coming, limit = 0, min(MAX_LIVE - self.live, PREFETCH)
        while self.ahead and coming < limit:
            number, call = self.ahead.popleft()
            self.wanted[number] = max(self.wanted[number], call)
            if number not in self.whole and number not in self.coming and number not in chosen:
                chosen.append(number)
                coming += self.sizes[number]
        self._gather(chosen)

    def _gather(self, numbers: list[int]) -> None:
        size = sum(self.sizes[number] for number in numbers)
        self.sent, self.live, self.held = self.sent + size, self.live + size, self.held + size
        bucket = _Bucket(set(numbers), size if len(numbers) > 1 else 0)
        self.coming |= dict.fromkeys(numbers, bucket)
        self.passing = max(self.passing, self.held + (size if self.buffered else 0))

    def _arrive(self, number: int) -> None:
        bucket = self.coming.pop(number)
        if not bucket.opened:
            bucket.opened = True
            self.whole.update(bucket.waiting)
            self.held += bucket.copies
            self.passing = max(self.passing, self.held)
        bucket.waiting.remove(number)
        if not bucket.waiting:
            self.held -= bucket.copies

    def release(self, module: int, forward: bool) -> None:
        own = set(self.modules[module])
        free = {number for number in own if self.wanted[number] <= self.call}
        if not forward:
            recomputed = self.backwards.pop(module, set())
            own, free = own | recomputed, free | recomputed
        self._let_go(module, own, free)

    def _let_go(self, module: int, own: Iterable[int], free: set[int]) -> None:
        for number in own:
            self.users[number].discard(module)
            if number in free and number in self.whole and not self.users[number]:
                if self.sizes[number] > PERSIST:
                    self.whole.remove(number)
                    self.live -= self.sizes[number]
                    self.held -= self.sizes[number]
