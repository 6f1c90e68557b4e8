"""Print version, instruction set, threads and backends: what a bug report needs."""

from __future__ import annotations

import argparse
import itertools
import time

from ._command import OK, CommandError, describe

SUMMARY = "print what a bug report needs: version, instruction set, threads, backends"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--warm-up", action="store_true", help="make all kernels of the Numba backend ready, and tell "
                        "for each how long its first call takes: compiled, or loaded from the cache on disk")


def run(args: argparse.Namespace) -> int:
    """Print the configuration."""
    import fastconv

    try:
        fastconv.show_config()
        if args.warm_up:
            _warm_up()
    except (ValueError, ImportError) as error:  # a setting in the environment that cannot be
        raise CommandError(describe(error)) from error
    return OK


def _warm_up() -> None:
    began = time.perf_counter()
    from ..jit.warm_up import warm_up

    kernels = warm_up()
    first = next(kernels)  # and with it the import of Numba
    imported = time.perf_counter() - began - first.seconds
    print(f"\nfirst call of each Numba kernel\n{imported:8.2f} s  importing Numba")
    compiled = 0
    for kernel in itertools.chain([first], kernels):
        compiled += not kernel.cached
        threads = "several threads" if kernel.threads else "one thread"
        print(f"{kernel.seconds:8.2f} s  {kernel.kernel} {kernel.dtype}, {threads} "
              f"({'from the cache' if kernel.cached else 'compiled'})", flush=True)
    print(f"{time.perf_counter() - began:8.2f} s  in all, {compiled} compiled")
