"""Records as tables (terminal, Markdown) and files (JSON, CSV)."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import peers
from .jobs import TITLES, TRAINING

Record = dict[str, Any]

#: What encloses the tables in a file that has more than tables.
BEGIN, END = "<!-- fastconv bench: begin -->", "<!-- fastconv bench: end -->"


@dataclass
class Table:
    """A table of texts.

    Attributes
    ----------
    title : str
    head : sequence of str
        Names of the columns, with line breaks for a terminal.
    rows : list of list of str
    notes : list of str
        Below the table.
    labels : int
        So many columns from the first are aligned to the left, the others to the right.
    spare : sequence of int
        The columns that a terminal too narrow for all of them goes without, the first to go first.
    """

    title: str
    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: int = 2
    spare: Sequence[int] = ()

    def markdown(self) -> str:
        """As GitHub's Markdown."""
        head = [name.replace("\n", " ") for name in self.head]
        rule = ["---"] * self.labels + ["---:"] * (len(self.head) - self.labels)
        lines = [f"**{self.title}**", "", *(_line(row) for row in (head, rule, *self.rows))]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"

    def show(self, console: Any) -> None:
        """Print it on a console of rich's, with the columns that fit."""
        from rich.table import Table as RichTable

        kept = self._kept(console.width)
        table = RichTable(title=self.title, title_justify="left", title_style="bold", box=None, pad_edge=False,
                          header_style="bold")
        for i in kept:
            table.add_column(self.head[i], justify="left" if i < self.labels else "right", no_wrap=True,
                             vertical="bottom")
        for row in self.rows:
            table.add_row(*(row[i] for i in kept))
        console.print(table, highlight=False)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)

    def _kept(self, width: int) -> list[int]:
        """The columns that fit."""
        kept = list(range(len(self.head)))
        widths = [max(len(line) for cell in (self.head[i], *(row[i] for row in self.rows)) for line in cell.split("\n"))
                  for i in kept]
        for i in self.spare:
            if sum(widths[j] + 2 for j in kept) <= width:
                break
            kept.remove(i)
        return kept


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- numbers ----------------------------------------------------------------------------------------------------------


def milliseconds(seconds: float | None) -> str:
    """Three digits that count, in ms."""
    if seconds is None:
        return ""
    value = seconds * 1e3
    return f"{value:.{max(0, min(5, 2 - math.floor(math.log10(value))))}f}" if value > 0 else "0"


def megabytes(nbytes: int | None) -> str:
    """A size in MB of 10^6 bytes, three digits that count; "0" where there is none."""
    if nbytes is None:
        return ""
    value = nbytes / 1e6
    if value < 5e-4:
        return "0"
    return f"{value:,.{max(0, min(4, 2 - math.floor(math.log10(value))))}f}"


def decimals(value: float | None) -> str:
    """One decimal below 100, none above."""
    return "" if value is None else f"{value:.{1 if value < 100 else 0}f}"


def giga(rate: float | None) -> str:
    """A rate in 10^9 per second."""
    return "" if rate is None else decimals(rate / 1e9)


def percent(value: float | None) -> str:
    """A percentage without decimals."""
    return "" if value is None else f"{value:.0f}%"


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(map(math.log, values)) / len(values))


# --- the tables of fastconv bench -------------------------------------------------------------------------------------


def best_peer(records: Iterable[Record]) -> Record | None:
    """The fastest that is not fastconv."""
    timed = [record for record in records if not record["ours"] and record["seconds"] is not None]
    return min(timed, key=lambda record: record["seconds"], default=None)


def ratio(records: Sequence[Record]) -> float | None:
    """How many times as fast as the best peer fastconv is in a row, None where one of them is missing."""
    ours = next((record for record in records if record["contender"] == peers.AUTO), None)
    best = best_peer(records)
    if ours is None or best is None or ours["seconds"] is None:
        return None
    return float(best["seconds"] / ours["seconds"])


def grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of some fields, in their order."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return groups


def tables(records: Sequence[Record]) -> list[Table]:
    """A table for each operation, dtype and number of threads: times side by side."""
    return [_table(operation, dtype, threads, group)
            for (operation, dtype, threads), group in grouped(records, "operation", "dtype", "threads").items()]


def _table(operation: str, dtype: str, threads: int, records: list[Record]) -> Table:
    rows = grouped(records, "layer", "shape")
    timed = {record["contender"] for record in records if record["seconds"] is not None}
    columns = [name for name in dict.fromkeys(record["contender"] for record in records) if name in timed]
    by_flops, training = any(record["flops"] is not None for record in records), operation == TRAINING
    rate, share = ("GFLOP/s", "% of\npeak") if by_flops else ("GB/s", "% of\ncopy")
    head = ["network" if training else "layer",
            "N,C,HxW" if training else "N,C,HxW -> K, kernel/stride/pad" if by_flops else "N,C,HxW, kernel/stride/pad",
            *(peers.title(name) for name in columns), rate, share, "scratch\nMB", "best peer /\nfastconv"]
    threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
    table = Table(f"{TITLES[operation][0].upper()}{TITLES[operation][1:]}, {dtype}, {threads_text}: ms, median", head,
                  spare=(1, len(head) - 2, len(head) - 3, len(head) - 4))
    ratios: dict[str, float] = {}
    for (layer, shape), group in rows.items():
        by_name = {record["contender"]: record for record in group}
        ours, quotient = by_name.get(peers.AUTO, {}), ratio(group)
        if quotient is not None:
            ratios[layer] = quotient
        table.rows.append([
            layer, shape, *(milliseconds(by_name.get(name, {}).get("seconds")) for name in columns),
            giga(ours.get("flop_rate" if by_flops else "byte_rate")),
            percent(ours.get("percent_of_peak" if by_flops else "percent_of_copy")),
            megabytes(ours.get("scratch_bytes")), "" if quotient is None else f"{quotient:.2f}"])
    if ratios:
        worst = min(ratios, key=lambda name: ratios[name])
        table.notes.append(f"Best peer's time over fastconv's: geometric mean {geometric_mean(list(ratios.values())):.2f}, "
                           f"least {ratios[worst]:.2f} ({worst}).")
    for record in records:
        if training and not record["ours"] and record["scratch_bytes"] is not None:
            table.notes.append(f"{record['layer']}, {peers.title(record['contender'])}: ".replace("\n", " ")
                               + f"{megabytes(record['scratch_bytes'])} MB beside the gradients.")
        if record["skipped"] not in (None, "has no such operation"):
            table.notes.append(f"{record['layer']}, {record['contender']}: {record['skipped']}")
    return table


#: A change of fastconv's against its peers' that is worth a line.
NOTICEABLE = 0.1


def changes(before: Sequence[Record], now: Sequence[Record]) -> Table:
    """What became of fastconv since an earlier run, beyond what became of the machine.

    A row's peers did not change, so if they take longer now, the machine does: fastconv's times are divided by the median
    of what theirs grew by. Compared are the shortest turns, which are disturbed least. What changed by less than
    `NOTICEABLE` is not listed.
    """
    keys = ("operation", "layer", "shape", "dtype", "threads")
    old = {tuple(record[key] for key in (*keys, "contender")): record for record in before if record["seconds"]}
    table = Table("Changes since the run compared with", ["operation", "layer", "contender", "before\nms", "now\nms",
                                                           "the same\npeers", "change"], labels=3, spare=(3, 4))
    found: list[tuple[float, list[str]]] = []
    compared = alone = 0
    for row, records in grouped(now, *keys).items():
        pairs = [(record, old[(*row, record["contender"])]) for record in records
                 if record["seconds"] and (*row, record["contender"]) in old]
        growth = [record["best_seconds"] / earlier["best_seconds"] for record, earlier in pairs if not record["ours"]]
        machine = statistics.median(growth) if growth else 1.0
        for record, earlier in pairs:
            if not record["ours"]:
                continue
            compared, alone = compared + 1, alone + (not growth)
            change = record["best_seconds"] / earlier["best_seconds"] / machine - 1
            if abs(change) >= NOTICEABLE:
                found.append((change, [record["operation"], record["layer"], record["contender"],
                                       milliseconds(earlier["best_seconds"]), milliseconds(record["best_seconds"]),
                                       f"{machine - 1:+.0%}" if growth else "none", f"{change:+.0%}"]))
    table.rows = [cells for _, cells in sorted(found, key=lambda entry: -entry[0])]
    table.notes.append(f"{len(found)} of {compared} times of fastconv changed by {NOTICEABLE:.0%} or more, measured by "
                       f"the peers of the same row.{f' {alone} had no peer to measure by.' if alone else ''}")
    return table


def machine_lines(machine: dict[str, Any], ceilings: Sequence[Record]) -> list[str]:
    """The machine, in a few lines of text."""
    lines = ["Machine: " + "; ".join(f"{name} {value}" for name, value in machine.items())]
    for entry in ceilings:
        rates = [f"{name} {giga(entry[name])} {unit}" for name, unit in
                 (("float32", "GFLOP/s"), ("float64", "GFLOP/s"), ("copy", "GB/s"), ("store", "GB/s"), ("read", "GB/s"))
                 if entry.get(name) is not None]
        lines.append(f"Ceilings measured in this run, {entry['threads']} thread{'s' if entry['threads'] > 1 else ''}: "
                     f"multiply-adds {', '.join(rates[:2])}; memory {', '.join(rates[2:])}")
    return lines


def markdown(records: Sequence[Record], machine: dict[str, Any], ceilings: Sequence[Record]) -> str:
    """All tables with the machine they came from."""
    head = "\n\n".join(machine_lines(machine, ceilings))
    return "\n".join([head + "\n", *(table.markdown() for table in tables(records))])


# --- files ------------------------------------------------------------------------------------------------------------


def check_writable(path: Path) -> None:
    """Raise OSError where a file cannot be written to `path`, before the work that is to be written is done."""
    is_new = not path.exists()
    with open(path, "ab"):
        pass
    if is_new:
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write records as a CSV file with a line of names."""
    from io import StringIO

    text = StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())


def check_markdown(path: Path) -> None:
    """Raise ValueError where `path` is a file with something else in it and no place for tables."""
    check_writable(path)
    if path.exists() and path.stat().st_size and BEGIN not in path.read_text(encoding="utf-8"):
        raise ValueError(f"{path} has no line {BEGIN} to put the tables behind, and is not empty")


def write_markdown(path: Path, text: str) -> None:
    """Write tables to a new file, or between the marks of one that has them."""
    before, after = "", ""
    if path.exists() and path.stat().st_size:
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
    write_text(path, f"{before}{BEGIN}\n{text}{END}{after or chr(10)}")
