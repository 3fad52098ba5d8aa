"""What the modules of the `apnet2` command share: one line for a failure, and kinds of arguments."""

import argparse
import sys

DEVICE = "auto, cpu, cuda, cuda:1, ... (%(default)s: CUDA if it is there)"


def fail(message: str, status: int = 1) -> int:
    """Say why on stderr, and return the exit status."""
    print(f"apnet2: {message}", file=sys.stderr)
    return status


def positive(argument: str) -> int:
    """The argument as a number of at least 1."""
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument}, expected a number of at least 1")
    return int(argument)


def natural_number(text: str) -> int:
    """The argument as a number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of 0 or more")
    return int(text)
