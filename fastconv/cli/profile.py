"""Show what each algorithm costs on a layer or a whole network: scratch memory, predicted and measured, and time.

What would need more memory than the machine has is predicted and not run.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..geometry import PADDING_NAMES
from ._command import OK, CommandError, describe, natural_int, positive_float, positive_int

if TYPE_CHECKING:  # imported when the command runs: the list of commands must not wait for it
    from ..benchmarks.layers import ConvLayer

SUMMARY = "show the memory and the time that each algorithm takes on a layer or a network"

#: Batch sizes for which the plot shows what the plans predict.
CURVE = tuple(2**i for i in range(9))


def _numbers(text: str) -> tuple[int, ...]:
    """Option type: natural numbers with commas between them."""
    return tuple(natural_int(part.strip()) for part in text.split(","))


def _shape(text: str) -> tuple[int, ...]:
    """Option type: four numbers."""
    shape = _numbers(text)
    if len(shape) != 4:
        raise argparse.ArgumentTypeError(f"must be four numbers with commas between them, got {text!r}")
    return shape


def _pair(text: str) -> int | tuple[int, ...]:
    """Option type: one number, or two as h,w."""
    numbers = _numbers(text)
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"must be one number or two as h,w, got {text!r}")
    return numbers[0] if len(numbers) == 1 else numbers


def _padding(text: str) -> Any:
    """Option type: a number, two as h,w, four as top,bottom,left,right, or a name."""
    if text in PADDING_NAMES:
        return text
    numbers = _numbers(text)
    if len(numbers) == 4:
        return numbers[:2], numbers[2:]
    return _pair(text)


def _sweep(text: str) -> tuple[str, tuple[int, ...] | None]:
    """Option type: what to vary, and how."""
    name, given, values = text.partition("=")
    if name not in ("batch", "stride", "kernel"):
        raise argparse.ArgumentTypeError(f"must be batch, stride or kernel, or as batch=1,8,64, got {text!r}")
    return name, tuple(positive_int(part.strip()) for part in values.split(",")) if given else None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--x", type=_shape, metavar="N,C,H,W", help="shape of the images")
    add("--weight", type=_shape, metavar="K,C,KH,KW", help="shape of the filters (C divided by --groups)")
    add("--stride", type=_pair, metavar="S", default=1, help="one number, or two as h,w (default: %(default)s)")
    add("--padding", type=_padding, metavar="P", default=0, help="one number, two as h,w, four as top,bottom,left,right, "
        f"or one of {', '.join(PADDING_NAMES)} (default: %(default)s)")
    add("--dilation", type=_pair, metavar="D", default=1, help="(default: %(default)s)")
    add("--groups", type=positive_int, metavar="G", default=1, help="(default: %(default)s)")
    add("--net", metavar="NAME", help="instead of a layer all convolutions of lenet, alexnet, vgg16, resnet50 or "
        "mobilenet")
    add("--batch", type=positive_int, metavar="N", default=1, help="images for --net (default: %(default)s)")
    add("--direction", choices=("forward", "backward_data", "backward_weight"), default="forward",
        help="(default: %(default)s)")
    add("--dtype", choices=("float32", "float64"), default="float32", help="(default: %(default)s)")
    add("--threads", type=positive_int, metavar="N", help="(default: all CPUs)")
    add("--algorithms", metavar="A,B", default="*", help="backends and algorithms by patterns, as cython-* or *-im2col "
        "(default: all)")
    add("--sweep", type=_sweep, action="append", default=[], metavar="WHAT[=A,B]", help="also vary batch, stride or "
        "kernel of the layer, for instance --sweep batch=1,8,64; may be given several times")
    add("--seconds", type=positive_float, metavar="X", default=1.0,
        help="for the timing of a layer, all algorithms together (default: %(default)s)")
    add("--predict", action="store_true", help="run nothing, only tell what the plans predict")
    add("--json", type=Path, metavar="FILE", help="write all records, and the machine")
    add("--csv", type=Path, metavar="FILE", help="write all records")
    add("--plot", type=Path, metavar="FILE", help="draw a PNG: time against memory with the Pareto front, and memory "
        "against the batch size and what else was varied")


def run(args: argparse.Namespace) -> int:
    """Check everything that was asked for, then run, print and write."""
    from ..nn._extras import require

    try:
        require("rich", "fastconv profile")
    except ImportError as error:
        raise CommandError(describe(error)) from error
    return _Run(args).run()


@dataclass
class _Layer:
    """A layer to run, what it is a variation of ("" for none) and its value there, and how often a network has it."""

    layer: ConvLayer
    sweep: str = ""
    value: int | None = None
    count: int = 1


@dataclass
class _Run:
    """One run of the command: what is to be run, and what has been."""

    args: argparse.Namespace
    layers: list[_Layer] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    def __post_init__(self) -> None:
        from ..benchmarks import study

        args = self.args
        try:
            self.engines = study.engines(args.direction, args.algorithms.split(","))
        except ValueError as error:
            raise CommandError(f"argument --algorithms: {describe(error)}") from error
        self.layers = self._network() if args.net is not None else self._one_layer()
        self._check_files()

    def run(self) -> int:
        from rich.console import Console

        from ..options import options

        console = Console()
        if not console.is_terminal:  # into a file or a pipe: as wide as the tables are
            console = Console(width=200)
        with options(num_threads=self.args.threads) if self.args.threads else options():
            try:
                self._measure()
                self.complete = True
            finally:  # an interrupted run keeps what it has
                self._print(console)
                self._write()
        return OK

    # --- before -------------------------------------------------------------------------------------------------------

    def _one_layer(self) -> list[_Layer]:
        from ..benchmarks import study
        from ..benchmarks.layers import ConvLayer

        args = self.args
        if args.x is None or args.weight is None:
            raise CommandError("give a layer by --x and --weight, or a network by --net (see fastconv profile --help)")
        layer = ConvLayer("layer", args.x, args.weight, args.stride, args.padding, args.dilation, args.groups)
        found = [_Layer(layer)]
        try:
            layer.geometry  # noqa: B018 (raises where shapes and arguments do not fit together)
            for name, values in args.sweep:
                values = values or study.SWEEPS[name]
                found += [_Layer(variation, name, value)
                          for variation, value in zip(study.swept(layer, name, values), values, strict=True)]
        except (ValueError, TypeError) as error:
            raise CommandError(describe(error)) from error
        return found

    def _network(self) -> list[_Layer]:
        from ..benchmarks import layers

        args = self.args
        if args.x is not None or args.weight is not None or args.sweep:
            raise CommandError("argument --net: goes with neither --x, --weight nor --sweep")
        try:
            return [_Layer(entry.layer, count=entry.count) for entry in layers.network(args.net, args.batch)]
        except ValueError as error:
            raise CommandError(f"argument --net: {describe(error)}") from error

    def _check_files(self) -> None:
        from ..benchmarks import report
        from ..nn._extras import require

        for option in ("json", "csv", "plot"):
            path = getattr(self.args, option)
            try:
                if path is not None:
                    report.check_writable(path)
                if path is not None and option == "plot":
                    require("matplotlib", "--plot")
            except (OSError, ImportError) as error:
                raise CommandError(f"argument --{option}: {describe(error)}") from error

    # --- the measuring ------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from ..benchmarks import study

        args = self.args
        settings = {"dtype": args.dtype, "direction": args.direction}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(self.layers))
            for entry in self.layers:
                def tell(text: str, name: str = entry.layer.name) -> None:
                    progress.update(task, description=f"{name}: {text}")

                new: list[dict[str, Any]] = []
                try:
                    if args.predict:
                        new += [study.predict(entry.layer, engine, **settings) for engine in self.engines]
                    else:
                        study.study(entry.layer, which=self.engines, seconds=args.seconds, records=new, tell=tell,
                                    **settings)
                finally:
                    self.records += [{**record, "sweep": entry.sweep, "value": entry.value, "count": entry.count}
                                     for record in new]
                progress.advance(task)

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def _totals(self) -> list[dict[str, Any]]:
        from ..benchmarks import study

        return study.totals(self.records, {entry.layer.name: entry.count for entry in self.layers})

    def _print(self, console: Any) -> None:
        from ..benchmarks import report

        what = f"{self.args.direction}, {self.args.dtype}, batch {self.layers[0].layer.geometry.batch}"
        if self.args.net is not None:
            tables = [_table(f"convolutions of {self.args.net}, {what}", "layer", "layer", self.records),
                      _network_table(f"all convolutions of {self.args.net}, {what}", self._totals())]
        else:
            titles = {"": f"{self.layers[0].layer}, {what}", **{name: f"the same with another {name}"
                                                                 for name, _ in self.args.sweep}}
            tables = [_table(titles[name], name, "value", group)
                      for (name,), group in report.grouped(self.records, "sweep").items()]
        for table in tables:
            table.show(console)
            console.print()
        console.print("* what algorithm=\"auto\" takes on that backend. Scratch is what a call allocates besides its result: "
                      "predicted by the plan, measured as the peak of the arrays that it allocates; resident is by how "
                      "much it raised the process's resident set, in whole pages. Expansion is KH*KW/stride^2, the column "
                      "matrix over the image.", highlight=False, markup=False)

    def _write(self) -> None:
        from ..benchmarks import machine, peers, report

        args = self.args
        if args.json is not None:
            report.write_json(args.json, {"complete": self.complete, "machine": machine.describe(peers.versions()),
                                          "records": self.records})
        if args.csv is not None:
            report.write_csv(args.csv, self.records)
        if args.plot is not None:
            self._plot(args.plot)
        written = [str(path) for path in (args.json, args.csv, args.plot) if path is not None]
        if written:
            print(f"wrote {' and '.join(written)}{'' if self.complete else ' (what was measured until then)'}")

    def _plot(self, path: Path) -> None:
        from ..benchmarks.plots import plot_profile

        args, first = self.args, self.layers[0].layer
        if args.net is not None:
            title, costs = f"all convolutions of {args.net}", self._totals()
        else:
            title, costs = str(first), [record for record in self.records if record["sweep"] == ""]
        threads = self.records[0]["threads"] if self.records else 1
        title += f", {args.direction}, {args.dtype}, {threads} thread{'s' if threads > 1 else ''}"
        plot_profile(costs, self._curves(), path, title=title, batch=first.geometry.batch)

    def _curves(self) -> dict[str, list[dict[str, Any]]]:
        """Memory against the batch size by the plans, with what was measured; and against what else was varied."""
        from ..benchmarks import study

        settings = {"dtype": self.args.dtype, "direction": self.args.direction}
        measured: dict[tuple[str, str, int], int] = {}
        for record in self.records:
            if record["sweep"] in ("", "batch") and record["measured_bytes"] is not None:
                key = record["backend"], record["algorithm"], record["batch"]
                measured[key] = max(measured.get(key, 0), record["measured_bytes"])
        layers = [entry.layer for entry in self.layers if entry.sweep == ""]
        batches = sorted({*CURVE, *(entry.layer.geometry.batch for entry in self.layers if entry.sweep in ("", "batch"))})
        curves: dict[str, list[dict[str, Any]]] = {"batch size": []}
        for engine in self.engines:
            for batch in batches:
                of_layers = [study.predict(layer.with_batch(batch), engine, **settings) for layer in layers]
                known = [r["predicted_bytes"] for r in of_layers if r["predicted_bytes"] is not None]
                curves["batch size"].append({
                    "value": batch, "backend": engine.backend, "algorithm": engine.algorithm,
                    "predicted_bytes": max(known, default=None),
                    "measured_bytes": measured.get((engine.backend, engine.algorithm, batch)),
                    "input_bytes": max(r["input_bytes"] for r in of_layers)})
        for what in ("stride", "kernel"):
            swept = [record for record in self.records if record["sweep"] == what]
            if swept:
                curves[what] = swept
        return curves


def _table(title: str, name: str, key: str, records: list[dict[str, Any]]) -> Any:
    """What each algorithm took. `name` and `key` are of the first column: what differs from layer to layer."""
    from ..benchmarks import report

    single = name == ""
    head = [name, "algorithm", "expansion", "image\nMB", "scratch MB\npredicted", "\nmeasured", "\nresident",
            "scratch /\nimage", "ms", "GFLOP/s"]
    table = report.Table(f"{title}, {records[0]['threads']} thread{'s' if records[0]['threads'] > 1 else ''}",
                         head[1:] if single else head, labels=1 if single else 2)
    table.spare = [table.head.index(column) for column in ("image\nMB", "\nresident", "expansion", "scratch /\nimage")]
    before = None
    for record in records:
        measured = record["measured_bytes"]
        scratch = record["predicted_bytes"] if measured is None else measured
        row = [str(record[key]) + (f" x{record['count']}" if record["count"] > 1 else ""),
               f"{record['backend']} {record['algorithm']}{' *' if record['chosen'] else ''}",
               f"{record['expansion']:.3g}", report.megabytes(record["input_bytes"]),
               report.megabytes(record["predicted_bytes"]), report.megabytes(measured),
               report.megabytes(record["resident_bytes"]),
               "" if scratch is None else f"{scratch / max(record['input_bytes'], 1):.2f}",
               report.milliseconds(record["seconds"]), report.decimals(record["gflops"])]
        if row[0] == before:  # say it once
            row[0] = ""
        else:
            before = row[0]
        table.rows.append(row[1:] if single else row)
    table.notes = [f"{'' if single else f'{name} {record[key]}, '}{record['backend']} {record['algorithm']}: "
                   f"{record['skipped']}" for record in records if record["skipped"] is not None]
    return table


def _network_table(title: str, totals: list[dict[str, Any]]) -> Any:
    from ..benchmarks import report

    table = report.Table(title, ["algorithm", "most scratch MB\npredicted", "\nmeasured", "ms", "GFLOP/s"], labels=1)
    for record in totals:
        table.rows.append([f"{record['backend']} {record['algorithm']}", report.megabytes(record["predicted_bytes"]),
                           report.megabytes(record["measured_bytes"]), report.milliseconds(record["seconds"]),
                           report.decimals(record["gflops"])])
        if record["stood_in"]:
            table.notes.append(f"{record['backend']} {record['algorithm']} cannot do {record['stood_in']} of the layers; "
                               "there it is what \"auto\" takes.")
    return table
