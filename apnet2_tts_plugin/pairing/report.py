"""What a pairing does, in words: a line for the log, a table for `apnet2 pair`."""

import logging
import os

from apnet2_tts_plugin.errors import PairingError
from apnet2_tts_plugin.pairing.convert import Pairing
from apnet2_tts_plugin.pairing.error import mean_error_db
from apnet2_tts_plugin.pairing.plan import LATENT, WAVEFORM, Plan, Verdict

logger = logging.getLogger("TTS.apnet2")  # below coqui's own logger, which its commands show

USUAL_ERROR = 2.5  # dB; coqui's default settings have 1.5, those that lack a part of the vocoder's range far more


def announce(pairing: Pairing) -> Pairing:
    """Log what a pairing does, or refuse it if it is approximate and `APNET2_STRICT` is set.

    It is a warning where the mean error is above `USUAL_ERROR`.

    Raises:
        PairingError: if it is approximate and `APNET2_STRICT` is in the environment, and neither empty nor 0.
    """
    strict = os.environ.get("APNET2_STRICT", "0") not in ("", "0")
    if pairing.plan.verdict < Verdict.APPROXIMATE:
        logger.info("%s", summary(pairing))
    elif strict:
        raise PairingError(f"{summary(pairing)}; APNET2_STRICT allows no approximation")
    else:
        level = logging.WARNING if mean_error_db(pairing) > USUAL_ERROR else logging.INFO
        logger.log(level, "%s; `apnet2 pair` tells more", summary(pairing))
    return pairing


def summary(pairing: Pairing) -> str:
    """Verdict, settings and mean error in one line for the log."""
    plan = pairing.plan
    what = f"APNet2 vocodes the {plan.output} of {plan.model}"
    if plan.output == LATENT:
        return f"{what} in the place of its own decoder"
    settings = ", ".join(item.name for item in plan.with_verdict(plan.verdict))
    if plan.verdict == Verdict.APPROXIMATE:
        error = mean_error_db(pairing)
        return f"{what}, converted approximately ({settings}): mean error {error:.1f} dB"
    if plan.verdict == Verdict.EXACT:
        return f"{what}, converted exactly ({settings})"
    return f"{what}{', analysed as a recording' if plan.output == WAVEFORM else ' as it is'}"


def table(plan: Plan, errors: dict[str, float]) -> str:
    """Lines of a plan's settings, with the values of both sides, the verdicts and the errors in dB that are known."""
    rows = [("setting", plan.model, "vocoder", "verdict", "error", "")]
    for item in plan.items:
        error = f"{errors[item.name]:.2f} dB" if item.name in errors else ""
        rows.append((item.name, item.acoustic, item.vocoder, item.verdict.name.lower(), error, item.remark))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
