"""Signals during training: the first one ends the run after its step, and is not for the processes that load data."""

import logging
import os
import signal
import threading
from typing import Any

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder

WORKER_EXIT_DELAY = 10  # seconds


class StopSignals:
    """Lets the first SIGINT or SIGTERM end the run after its step; another SIGINT ends it at once.

    Attributes:
        received: The signal that came; None before.
    """

    def __init__(self):
        self.received: int | None = None
        self.previous: dict[int, Any] = {}  # what was done about each signal before

    def listen(self) -> None:
        """Take over the signals, unless one has come already."""
        is_main_thread = threading.current_thread() is threading.main_thread()
        if self.previous or self.received is not None or not is_main_thread:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell
                self.previous[number] = signal.signal(number, self._receive)

    def stop_listening(self) -> None:
        """Give the signals back."""
        for number, previous in self.previous.items():
            signal.signal(number, previous)
        self.previous = {}

    def _receive(self, number: int, _frame: Any) -> None:
        self.received = number
        self.stop_listening()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # clusters and torchrun may each send one
        logger.warning("%s: stopping after this step; Ctrl-C stops at once", signal.Signals(number).name)


def leave_signals_to_parent(_worker: int) -> None:
    """For processes that load data: a signal to the whole group must not take them from the step being made.

    SIGTERM is also how they are told to end, so they do that `WORKER_EXIT_DELAY` seconds later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, WORKER_EXIT_DELAY))
