"""What scale a mel is in, judged by its numbers.

Natural-log magnitudes of speech go from about -11.5 (log of the floor 1e-5) to 2, and white noise at full scale from
-2.5 to 1. Speech in log10 goes from -5 to 1, in dB from -100 to 15, and normalised by coqui-tts from -4 to 4.
"""

import logging
from typing import Any

import numpy as np
from torch import Tensor

from apnet2_tts_plugin.errors import DataError

logger = logging.getLogger(__name__)

LOWEST = -30.0  # log(1e-13)
LOUDEST = 5.0  # a signal of six times full scale
QUIETEST_NOISE = -1.5  # above this lies not even white noise at full scale
LOG10_FLOOR = -5.05
FLAT = 0.6  # standard deviation below which a mel is one of white noise, which has no quiet parts in any scale


def check_scale(mel: np.ndarray | Tensor, source: Any) -> None:
    """Refuse a mel that is not in natural logarithms; where one may be, and its numbers are rare, the log says so.

    Args:
        mel: Of any shape, finite, one number or more. A part of a file will do, but the longer it is, the better.
        source: What messages begin with, the name of its file.

    Raises:
        DataError: if its numbers are not those of a natural-log mel; the message says of what they are likely to be.
    """
    lowest, highest = float(mel.min()), float(mel.max())
    numbers = f"{source}: has numbers from {lowest:.1f} to {highest:.1f}"
    if likely := _other_scale(lowest, highest):
        raise DataError(f"{numbers}, expected a natural-log mel, about -11.5 to 2: {likely}")
    if lowest > LOG10_FLOOR and float(mel.std()) > FLAT:
        # or of a sound at full scale without quiet parts: coloured noise, a sawtooth
        rather = "rather than a natural-log mel, about -11.5 to 2"
        logger.warning("%s: it may be in log10 (multiply by 2.3026), or normalised, %s", numbers, rather)


def _other_scale(lowest: float, highest: float) -> str | None:
    """What the numbers are likely to be, if it cannot be a natural-log mel."""
    if lowest >= 0:
        return "it seems to have no logarithm, or to be normalised"
    if lowest < LOWEST:
        return "it seems to be in dB; divide by 8.686 if that is 20 log10 of the magnitude"
    if highest > LOUDEST:
        return "it seems to be in dB, normalised, or of a recording in integer scale"
    if lowest > QUIETEST_NOISE:
        return "it seems to be normalised"
    return None
