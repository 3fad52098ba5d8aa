"""What scale a mel is in, judged by its numbers.

Natural-log magnitudes of speech go from about -11.5 (log of the floor 1e-5) to 2, and white noise at full scale from
-2.5 to 1. Speech in log10 goes from -5 to 1, in dB from -100 to 15, and normalised by coqui-tts from -4 to 4.
"""

import numpy as np
from torch import Tensor

from apnet2_tts_plugin.errors import DataError

LOWEST = -30.0  # log(1e-13)
LOUDEST = 5.0  # a signal of six times full scale
QUIETEST_NOISE = -1.5  # above this lies not even white noise at full scale
LOG10_FLOOR = -5.05
FLAT = 0.6  # standard deviation below which a mel is one of noise, which has no quiet parts in any scale


def check_scale(mel: np.ndarray | Tensor) -> None:
    """Refuse a mel that is not in natural logarithms.

    Args:
        mel: Of any shape, finite, one number or more. A part of a file will do, but the longer it is, the better.

    Raises:
        DataError: if its numbers are not those of a natural-log mel; the message says of what they are likely to be.
    """
    lowest, highest = float(mel.min()), float(mel.max())
    if (likely := _likely_scale(lowest, highest, float(mel.std()))) is None:
        return
    raise DataError(
        f"has numbers from {lowest:.1f} to {highest:.1f}, expected a natural-log mel, about -11.5 to 2: {likely}"
    )


def _likely_scale(lowest: float, highest: float, deviation: float) -> str | None:
    """What the numbers are likely to be, if it is not a natural-log mel."""
    if lowest >= 0:
        return "it seems to have no logarithm, or to be normalised"
    if lowest < LOWEST:
        return "it seems to be in dB; divide by 8.686 if that is 20 log10 of the magnitude"
    if highest > LOUDEST:
        return "it seems to be in dB, normalised, or of a recording in integer scale"
    if lowest > QUIETEST_NOISE:
        return "it seems to be normalised"
    if lowest > LOG10_FLOOR and deviation > FLAT:
        return "it seems to be in log10 (multiply by 2.3026), or normalised"
    return None
