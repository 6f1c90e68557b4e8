"""Print version, instruction set, threads and backends: what a bug report needs."""

from __future__ import annotations

import argparse

from ._command import OK, CommandError, describe

SUMMARY = "print what a bug report needs: version, instruction set, threads, backends"


def configure(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the configuration."""
    import fastconv

    try:
        fastconv.show_config()
    except (ValueError, ImportError) as error:  # a setting in the environment that cannot be
        raise CommandError(describe(error)) from error
    return OK
