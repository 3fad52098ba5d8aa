"""The progress bar of a run: steps, and seconds of audio per second."""

import logging
from contextlib import ExitStack

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class ProgressBar:
    """Shows steps on a terminal, and keeps the log from tearing the bar.

    Args:
        n_steps: Steps of the whole run.
        n_done: Those done before.
        seconds_per_step: Seconds of audio in a step.
        hidden: Show nothing.
    """

    def __init__(self, n_steps: int, n_done: int, seconds_per_step: float, hidden: bool):
        self.seconds_per_step = seconds_per_step
        self.context = ExitStack()
        self.bar = tqdm(
            desc="Training",
            total=n_steps,
            initial=n_done,
            unit="step",
            dynamic_ncols=True,
            disable=True if hidden else None,
        )
        self.context.callback(self.bar.close)
        if not self.bar.disable:
            loggers = [logging.getLogger("trainer"), logging.getLogger()]
            self.context.enter_context(logging_redirect_tqdm(loggers))

    def step(self) -> None:
        """One more step is done."""
        if rate := self.bar.format_dict["rate"]:
            self.bar.set_postfix_str(f"{rate * self.seconds_per_step:.1f} s of audio/s", refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Take the bar away."""
        self.context.close()
