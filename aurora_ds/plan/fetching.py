"""What ZeRO-3 fetches and holds in a step: DeepSpeed 0.19's coordinator on the calls of a traced step.

A call needs its module's parameters whole. After that, parameters of the calls to come are fetched until PREFETCH
elements are under way; those that are there already are passed over and kept until that use. What is used and not
waited for is let go.
"""

from __future__ import annotations

from aurora_ds.plan.variants import MAX_LIVE, PERSIST, PREFETCH

Calls = tuple[tuple[tuple[int, int], ...], ...]  # per call (number, elements) of its parameters


def fetched(calls: Calls) -> tuple[int, int]:
    """(elements fetched in a step, the most whole at once). Small parameters are always whole and not counted."""
    large = [[(number, size) for number, size in call if size > PERSIST] for call in calls]
    whole: dict[int, int] = {}
    needed: dict[int, int] = {}  # number -> the last call that a look ahead saw it in
    sent = most = ahead = 0
    for now, call in enumerate(large):
        for number, size in call:
            if number not in whole:
                whole[number] = size
                sent += size
        ahead, coming = max(ahead, now + 1), 0
        limit = min(PREFETCH, MAX_LIVE - sum(whole.values()))
        while ahead < len(large) and coming < limit:
            for number, size in large[ahead]:
                needed[number] = ahead
                if number not in whole:
                    whole[number] = size
                    sent, coming = sent + size, coming + size
            ahead += 1
        most = max(most, sum(whole.values()))
        for number, _ in call:
            if needed.get(number, -1) <= now:
                whole.pop(number, None)
    return sent, most
