"""Ends a run that has diverged."""

import logging

from apnet2_tts_plugin.errors import DivergedError
from apnet2_tts_plugin.training import distributed

logger = logging.getLogger(f"trainer.{__name__}")  # the run's own log, on the terminal and in its folder


class NonFiniteGuard:
    """Counts the steps in a row that were not finite, and ends the run when there are too many.

    Args:
        limit: Steps in a row that may be skipped.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped = 0

    def step(self, number: int, faults: list[str], files: list[str]) -> None:
        """Take note of step `number`, in which the values named in `faults` were not finite.

        Raises:
            DivergedError: if more than `limit` steps in a row had faults.
        """
        self.skipped = self.skipped + 1 if faults else 0
        if not faults:
            return
        files = [name for part in distributed.gather(files) for name in part]
        what = f"step {number}: {', '.join(faults)} not finite (files: {', '.join(files) or 'unknown'})"
        if self.skipped > self.limit:
            message = (
                f"{what}; {self.skipped} steps in a row, more than max_skipped_steps ({self.limit}): the run has "
                "diverged. Start from its last checkpoint by --restore_path with a lower learning rate (--lr of a "
                "recipe, lr_gen and lr_disc of a configuration), or go on by --continue_path with grad_clip set in it"
            )
            logger.error(message)
            raise DivergedError(message)
        logger.warning("Skipped %s", what)
