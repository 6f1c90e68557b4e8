"""The command line: ``fastconv <command>``.

Each public module of this package is a command of its name, and has

- ``SUMMARY``, one line for the list of commands,
- ``configure(parser)``, which adds its options, and
- ``run(args)``, which does the work and returns the exit code, or raises :class:`~fastconv.cli._command.CommandError`.

A new command is a new module. Commands import what is slow to import, or optional, when they run.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

from ._command import FAILED, INTERRUPTED, CommandError, Parser, describe

__all__ = ["main"]


def commands() -> list[str]:
    """Names of the commands there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    from .. import __version__

    parser = Parser(prog="fastconv", allow_abbrev=False,
                    description="Convolution and pooling for plain NumPy arrays, at the speed of the hardware.")
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in commands():
        module = importlib.import_module(f".{name}", __name__)
        subparser = subparsers.add_parser(name, help=module.SUMMARY, description=module.__doc__, allow_abbrev=False)
        module.configure(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for a request that cannot be done.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; by default those of the process.
    """
    name = "fastconv"
    try:
        args = build_parser().parse_args(argv)
        name = f"fastconv {args.command}"
        code = int(args.run(args))
        sys.stdout.flush()  # a reader that went away shows here, not in the interpreter's last breath
        return code
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except CommandError as error:
        message, code = str(error), error.code
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough, as in "fastconv info | head -1". Nothing can be said to them any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OSError, MemoryError) as error:
        message, code = " ".join(describe(error).split()), FAILED
    print(f"{name}: error: {message}", file=sys.stderr)
    return code
