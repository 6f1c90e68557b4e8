"""What the subcommands share: the error that ends one, and the types of their options."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

from ..geometry import LARGEST_PARAMETER

#: Exit codes. As argparse and most tools have it, 2 is for a request that cannot be done as it was made.
OK, FAILED, BAD_REQUEST, INTERRUPTED = 0, 1, 2, 130


class CommandError(Exception):
    """Ends a command: one line on standard error, and an exit code."""

    def __init__(self, message: str, code: int = BAD_REQUEST) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage in front of them."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def describe(error: BaseException) -> str:
    """Return what an exception says; for one of the operating system the file first, and no error number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _whole_number(text: str, minimum: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if not minimum <= number <= LARGEST_PARAMETER:
        limit = f"at most {LARGEST_PARAMETER}" if number > LARGEST_PARAMETER else f"at least {minimum}"
        raise argparse.ArgumentTypeError(f"must be a whole number of {limit}, got {text!r}")
    return number


def positive_int(text: str) -> int:
    """Option type: an int of at least 1."""
    return _whole_number(text, 1)


def natural_int(text: str) -> int:
    """Option type: an int of at least 0."""
    return _whole_number(text, 0)


def positive_float(text: str) -> float:
    """Option type: a finite float above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number
