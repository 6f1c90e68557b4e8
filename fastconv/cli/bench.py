"""Time fastconv and the libraries beside it on the layers of well-known networks, and print tables side by side.

Everyone's result is checked before it is timed, contenders of a layer take turns, all use the same number of threads, and
the machine's ceilings are measured in the same run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ._command import FAILED, OK, CommandError, describe, positive_float, positive_int

if TYPE_CHECKING:  # imported when the command runs: the list of commands must not wait for it
    from ..benchmarks.jobs import Job

SUMMARY = "time fastconv and other libraries on the layers of well-known networks"

#: What a run without options measures: a minute or two.
OPERATIONS = ("forward", "backward", "max_pool", "avg_pool", "im2col", "training")
SECONDS = 0.5

#: A load average above which somebody else is at work.
BUSY = 0.7


def _list(text: str) -> list[str]:
    """Option type: names with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _threads(text: str) -> list[int]:
    """Option type: numbers of threads with commas between them."""
    return sorted({positive_int(part) for part in _list(text)})


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--layers", type=_list, metavar="A,B", help="names or patterns as vgg*, from the list that --list prints "
        "(default: all)")
    add("--operations", type=_list, metavar="A,B", default=list(OPERATIONS),
        help=f"from the list that --list prints (default: {','.join(OPERATIONS)})")
    add("--peers", type=_list, metavar="A,B", help="who takes part besides fastconv: names or patterns of libraries, and "
        "of fastconv's own backends and algorithms as cython-*; 'all' for everyone (default: the libraries installed)")
    add("--threads", type=_threads, metavar="N,M", default=[1], help="numbers of threads (default: 1)")
    add("--dtype", choices=("float32", "float64"), default="float32", help="(default: %(default)s)")
    add("--seconds", type=positive_float, metavar="X", default=SECONDS,
        help="for the timing of a layer, all contenders together (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown, into a new file or between the "
        "marks of one that has them")
    add("--plot", type=Path, metavar="FILE", help="draw a PNG: the ratio to the best peer, and a roofline")
    add("--list", action="store_true", help="print the layers, operations and contenders there are, and stop")


def run(args: argparse.Namespace) -> int:
    """Check everything that was asked for, then measure, print and write."""
    from ..nn._extras import require

    try:
        require("rich", "fastconv bench")
    except ImportError as error:
        raise CommandError(describe(error)) from error
    if args.list:
        return _print_list()
    return _Run(args).run()


def _print_list() -> int:
    from ..benchmarks import jobs, layers, peers

    kinds: dict[str, tuple[layers.Layer, ...]] = {
        "layers of convolutions": layers.CONV_ROWS, "windows of poolings, im2col and col2im": layers.WINDOW_ROWS,
        "networks of training steps": layers.TRAINING_ROWS}
    for title, rows in kinds.items():
        print(f"{title}:")
        for row in rows:
            print(f"  {row.name:<22} {row}")
    print("operations:")
    for name in jobs.OPERATIONS:
        print(f"  {name:<22} {jobs.TITLES[name]}")
    print("contenders:")
    for name in dict.fromkeys((*peers.names("forward"), *peers.names("max_pool"))):
        print(f"  {name}")
    for entry in peers.PEERS.values():
        if entry.missing is not None:
            print(f"  {entry.name} (not installed: pip install {' '.join(entry.packages)})")
    return OK


class _Run:
    """One run of the command: what is to be measured, and what has been."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.jobs = self._jobs()
        self.records: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.complete = False
        self._check_files()

    def run(self) -> int:
        from rich.console import Console

        from ..benchmarks import peers, report
        from ..benchmarks.machine import CEILINGS, load
        from ..benchmarks.machine import describe as describe_machine

        console = Console()
        if not console.is_terminal:  # into a file or a pipe: as wide as the tables are
            console = Console(width=200)
        machine = describe_machine(peers.versions())
        busy = load()
        if busy is not None:
            machine["load average before the run"] = round(busy, 2)
        try:
            self._measure_ceilings()
            self._measure()
            self._measure_ceilings()  # again: if the machine woke up meanwhile, percentages are of the better figure
            self.complete = True
        finally:  # an interrupted run keeps what it has
            ceilings = self._ceilings()
            self._correct_shares()
            if busy is not None and busy > BUSY:
                console.print(f"The machine was not idle before the run (load average {busy:.1f}): times are longer than they "
                              "need be, and with several threads ratios may be off as well.", style="bold red")
            if not peers.blas_is_limited():
                console.print("threadpoolctl is not installed: NumPy's BLAS has the number of threads that it chooses itself, "
                              "and times of what uses it are not comparable.", style="bold red")
            for line in report.machine_lines(machine, ceilings):
                console.print(line, highlight=False)
            for table in report.tables(self.records):
                console.print()
                table.show(console)
            self._write(machine, ceilings)
            CEILINGS.release()
        if self.wrong:
            raise CommandError("; ".join(self.wrong), FAILED)
        return OK

    # --- before -------------------------------------------------------------------------------------------------------

    def _jobs(self) -> list[Job]:
        from ..benchmarks import layers, peers
        from ..benchmarks.jobs import OPERATIONS as KNOWN
        from ..benchmarks.jobs import Job, layer_type
        from ..options import usable_cpus

        args = self.args
        for name in args.operations:
            if name not in KNOWN:
                raise CommandError(f"argument --operations: there is no operation {name!r}; there are {', '.join(KNOWN)}")
        if args.threads[-1] > usable_cpus():
            raise CommandError(f"argument --threads: this process may use {usable_cpus()} CPUs, got {args.threads[-1]}")
        try:
            rows = layers.ROWS if args.layers is None else layers.choose(layers.ROWS, args.layers)
        except ValueError as error:
            raise CommandError(f"argument --layers: {describe(error)}") from error
        try:
            peers.check_patterns(self._patterns())
        except (ValueError, ImportError) as error:
            raise CommandError(f"argument --peers: {describe(error)}") from error
        jobs = [Job(operation, cast(Any, row), args.dtype, threads) for threads in args.threads for operation in args.operations
                for row in rows if isinstance(row, layer_type(operation))]
        if not jobs:
            raise CommandError("argument --layers: none of these layers goes with one of the operations "
                               f"{', '.join(args.operations)}")
        return jobs

    def _patterns(self) -> list[str]:
        from ..benchmarks import peers

        if self.args.peers is None:
            return [name for name, entry in peers.PEERS.items() if entry.missing is None]
        return ["*"] if self.args.peers == ["all"] else list(self.args.peers)

    def _check_files(self) -> None:
        from ..benchmarks import report
        from ..nn._extras import require

        checks = {"json": report.check_writable, "plot": report.check_writable, "markdown": report.check_markdown}
        for option, check in checks.items():
            path = getattr(self.args, option)
            try:
                if path is not None:
                    check(path)
                if path is not None and option == "plot":
                    require("matplotlib", "--plot")
            except (OSError, ValueError, ImportError) as error:
                raise CommandError(f"argument --{option}: {describe(error)}") from error

    # --- the measuring ------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from ..benchmarks import peers, rows

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(self.jobs))
            for job in self.jobs:
                def tell(text: str, name: str = f"{job.operation} {job.layer.name}") -> None:
                    progress.update(task, description=f"{name}: {text}")

                row = rows.Row(job)
                names = peers.choose(peers.names(job.operation), self._patterns())
                try:
                    rows.measure(job, names, self.args.seconds, row=row, tell=tell)
                finally:
                    self.records += row.records()
                    self.wrong += [f"{job.layer.name}, {job.operation}: {text}" for text in row.wrong.values()]
                progress.advance(task)

    def _measure_ceilings(self) -> None:
        from ..benchmarks.machine import CEILINGS

        if not CEILINGS.available:
            return
        for threads in self.args.threads:
            for dtype in ("float32", "float64"):
                CEILINGS.fma(dtype, threads)
            for look in (CEILINGS.copy, CEILINGS.store, CEILINGS.read):
                look(threads)

    def _ceilings(self) -> list[dict[str, Any]]:
        from ..benchmarks.machine import CEILINGS

        if not CEILINGS.available:
            return []
        return [{"threads": threads, **{dtype: CEILINGS.fma(dtype, threads, look=False) for dtype in ("float32", "float64")},
                 "copy": CEILINGS.copy(threads, look=False), "store": CEILINGS.store(threads, look=False),
                 "read": CEILINGS.read(threads, look=False)} for threads in self.args.threads]

    def _correct_shares(self) -> None:
        """Percentages of the best figures of the whole run."""
        from ..benchmarks.machine import CEILINGS

        for record in self.records if CEILINGS.available else ():
            if record["seconds"] is None:
                continue
            record["copy_rate"] = CEILINGS.copy(record["threads"], record["bytes"], look=False)
            record["percent_of_copy"] = 100 * record["byte_rate"] / record["copy_rate"]
            if record["flops"] is not None:
                record["fma_peak"] = CEILINGS.fma(record["dtype"], record["threads"], look=False)
                record["percent_of_peak"] = 100 * record["flop_rate"] / record["fma_peak"]

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def _write(self, machine: dict[str, Any], ceilings: list[dict[str, Any]]) -> None:
        from ..benchmarks import report

        args = self.args
        if args.json is not None:
            report.write_json(args.json, {"complete": self.complete, "machine": machine, "ceilings": ceilings,
                                          "records": self.records})
        if args.markdown is not None:
            report.write_markdown(args.markdown, report.markdown(self.records, machine, ceilings))
        if args.plot is not None:
            from ..benchmarks.plots import plot_bench

            plot_bench(self.records, ceilings, args.plot,
                       title=f"fastconv {machine['fastconv']} on {machine['cpu']}, {machine['isa']}")
        written = [str(path) for path in (args.json, args.markdown, args.plot) if path is not None]
        if written:
            print(f"wrote {' and '.join(written)}{'' if self.complete else ' (what was measured until then)'}")
