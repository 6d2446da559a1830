"""Asked to end: by a signal, once, and only while the run listens."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from aurora_ds.runtime.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_for_the_end_and_says_so(number: signal.Signals, capfd: pytest.CaptureFixture) -> None:
    stop, before = StopRequest(), signal.getsignal(number)
    with stop.listening():
        assert stop.agreed() == ""
        os.kill(os.getpid(), number)
        assert stop.agreed() == number.name
        stop.ask("a second reason")
    assert stop.reason == number.name and signal.getsignal(number) == before
    assert f"aurora-ds: {number.name}: the run ends after the step it is in" in capfd.readouterr().err


def test_a_run_in_another_thread_leaves_signals_as_they_are() -> None:
    seen = []

    def run() -> None:
        with StopRequest().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
