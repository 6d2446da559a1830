"""A data worker ends with its run and by nobody else's SIGTERM.

A launcher that asks a run to end signals the whole tree of its processes; the run still needs a batch to finish its
step, and DataLoader takes the death of a worker for a failure.
"""

from __future__ import annotations

import os
import signal
import threading


def end_only_with_the_run() -> None:
    """Call in the worker's main thread, before it has other threads. Does nothing on systems that do not tell who
    sent a signal."""
    if not hasattr(signal, "sigwaitinfo"):
        return
    run, watched = os.getppid(), {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)

    def wait() -> None:
        while True:
            received = signal.sigwaitinfo(watched)
            if received.si_signo == signal.SIGTERM and received.si_pid == run:
                os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()
