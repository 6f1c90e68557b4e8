"""One job, measured: who can do it, whether they do it right, what they take, and how fast they are by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from . import footprint, peers
from .jobs import TRAINING, Job, WrongResult
from .machine import CEILINGS, available_memory
from .timing import Samples, interleave

#: A first call that took less is made once more, to see how long one takes: it imports modules, makes plans, touches fresh
#: memory.
FIRST_CALL_SECONDS = 1.0

Record = dict[str, Any]


@dataclass
class Row:
    """A job, and what came out.

    Attributes
    ----------
    contenders : dict of str to Contender
        Those that can do it.
    samples : dict of str to Samples
        Those that were timed.
    skipped : dict of str to str
        Why the others were not: they have no such operation, or it needs too much memory.
    wrong : dict of str to str
        Those that computed something else, and what.
    """

    job: Job
    contenders: dict[str, peers.Contender] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    _errors: dict[str, float] = field(default_factory=dict)
    _scratch: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of all arrays; what was measured stays."""
        self.job = replace(self.job)
        self.contenders = {name: replace(contender, call=_gone, bare=None) for name, contender in self.contenders.items()}

    def records(self) -> list[Record]:
        """A flat record for each contender that was asked."""
        timed = [name for name in self.contenders if name in self.samples]
        return [self.record(name) for name in (*timed, *self.skipped, *self.wrong)]

    def record(self, name: str) -> Record:
        """All that is known of one contender, as a flat dictionary. Sizes are bytes, times seconds, rates per second."""
        job, contender, samples = self.job, self.contenders.get(name), self.samples.get(name)
        record: Record = {
            "operation": job.operation, "layer": job.layer.name, "shape": str(job.layer), "dtype": job.dtype,
            "threads": job.threads, "contender": name, "ours": contender is not None and contender.ours,
            "algorithm": contender.algorithm if contender else None,
            "seconds": None, "best_seconds": None, "rounds": 0, "iterations": None,
            "flops": job.flops, "flop_rate": None, "fma_peak": None, "percent_of_peak": None,
            "bytes": job.nbytes, "byte_rate": None, "copy_rate": None, "percent_of_copy": None,
            "predicted_scratch_bytes": contender.predicted_bytes if contender else None,
            "scratch_bytes": self._scratch.get(name), "error": self._errors.get(name),
            "skipped": self.skipped.get(name) or self.wrong.get(name)}
        if samples is None:
            return record
        record |= {"seconds": samples.median, "best_seconds": samples.best, "rounds": len(samples.seconds),
                   "iterations": samples.iterations, "byte_rate": job.nbytes / samples.median}
        if job.flops is not None:
            record["flop_rate"] = job.flops / samples.median
        if CEILINGS.available:
            copy = CEILINGS.copy(job.threads, job.nbytes, look=False)
            record |= {"copy_rate": copy, "percent_of_copy": 100 * record["byte_rate"] / copy}
            if job.flops is not None:
                peak = CEILINGS.fma(job.dtype, job.threads, look=False)
                record |= {"fma_peak": peak, "percent_of_peak": 100 * record["flop_rate"] / peak}
        return record


def measure(job: Job, names: Iterable[str], seconds: float, *, row: Row | None = None,
            tell: Callable[[str], None] = lambda text: None) -> Row:
    """Measure a job.

    Parameters
    ----------
    job : Job
    names : iterable of str
        Who is asked, by :func:`fastconv.benchmarks.peers.names`.
    seconds : float
        For the timing of all of them together; see :func:`fastconv.benchmarks.timing.interleave`.
    row : Row, optional
        Filled while it runs, and so good for something after a KeyboardInterrupt.
    tell : callable
        Told what happens, for a progress bar.
    """
    row = Row(job) if row is None else row
    row.job = job = replace(job)  # one without arrays, whoever keeps the other
    try:
        with peers.limited(job.threads):
            _measure(row, job, list(names), seconds, tell)
    finally:
        row.forget()
    return row


def _gone() -> None:
    raise RuntimeError("the row was measured, and its arrays are gone")


def _measure(row: Row, job: Job, names: list[str], seconds: float, tell: Callable[[str], None]) -> None:
    room = available_memory()
    needed = job.input_bytes + job.result_bytes
    if needed > room:
        refusal = f"its arrays need {needed:,} bytes, this machine has {room:,} available"
        row.skipped.update(dict.fromkeys(names, refusal))
        return
    for name in names:
        tell(f"checks {name}")
        _enter(row, name, room - needed)
    tell("measures the machine")
    if CEILINGS.available:  # while the job runs, and not only once in the beginning: neighbours come and go
        CEILINGS.copy(job.threads, job.nbytes)
        if job.flops is not None:
            CEILINGS.fma(job.dtype, job.threads)
    tell("takes turns")
    interleave({name: contender.call for name, contender in row.contenders.items() if name not in row.wrong}, seconds,
               threads=job.threads, seen=row._seen, samples=row.samples,
               inside=lambda name: peers.with_backend(row.contenders[name].backend))


def _enter(row: Row, name: str, room: int) -> None:
    """Make a contender, check what it computes, and see what it takes."""
    job = row.job
    try:
        contender = peers.make(job, name)
    except MemoryError as error:
        row.skipped[name] = str(error)
        return
    if contender is None:
        row.skipped[name] = "has no such operation"
        return
    needed = job.result_bytes + (contender.predicted_bytes or 0)
    if needed > room:
        row.skipped[name] = f"needs {needed:,} bytes, this machine has {room:,} available"
        return
    row.contenders[name] = contender
    with peers.with_backend(contender.backend):
        start = time.perf_counter()
        result = contender.call()
        row._seen[name] = time.perf_counter() - start
        try:
            row._errors[name] = job.check(result)
        except WrongResult as error:
            row.wrong[name] = f"{name}: {error}"
            return
        del result
        if row._seen[name] < FIRST_CALL_SECONDS:
            start = time.perf_counter()
            contender.call()
            row._seen[name] = time.perf_counter() - start
        if contender.bare is not None:
            contender.bare()
            row._scratch[name] = footprint.count_arrays(contender.bare)[0]
        elif contender.ours or (job.operation == TRAINING and name in peers.NUMPY_ALONE):
            row._scratch[name] = max(footprint.count_arrays(contender.call)[0] - job.result_bytes, 0)
