"""Who takes turns, how often, and what counts: :func:`interleave`.

Contenders are timed in rounds. In each round everyone has one turn, in an order that is turned round from one round to the
next, so that a machine that slows down, or a neighbour that wakes up, hits all of them alike and not the one that happened
to run last. A turn is

1. a wait until no thread of this process works any more, where there are several: pools of OpenMP and BLAS threads go on
   spinning for a while after their work, and would do so at the next contender's expense;
2. calls that are not counted, for 5 ms and at least one, if a call takes less than 20 ms: they bring the contender's code and
   data back into the caches, and wake the processor that slept in the wait. With several threads they go on for 0.1 s, if a
   call takes less than that: threads that slept so long wake up on one processor, and are spread over all by and by;
3. the sample: as many calls in a row as take a millisecond (ten with several threads), one if a call takes longer. What
   counts is the mean of these.

Each contender has the same time; a slow one so has fewer turns, and they are spread evenly over the rounds. It has five
at least, or one if a turn takes longer than 0.2 s. The garbage collector is off during a turn.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

#: A sample is at least this long, with one thread and with several, if it takes several calls to be.
SAMPLE_SECONDS, SAMPLE_SECONDS_OF_MANY = 1e-3, 1e-2

#: Calls that take longer are not preceded by any that are not counted: caches are a small part of them.
WARM_UP_BELOW = 20e-3

#: How long the calls go on that are not counted.
WARM_UP_SECONDS = 5e-3

#: The same with several threads, both. After a wait of 0.1 s a Linux guest was seen to run two threads on one of its two
#: processors for 70 ms, whosever they were, so that a turn of 5 ms showed no second thread at all.
SPREAD_SECONDS = 0.1

#: How many rounds there are at least and at most. Whose turn takes longer than SLOW seconds has one if need be.
ROUNDS, SLOW = (5, 25), 0.2

#: Waiting for other threads: how long to look whether they work, what counts as rest, and when to give up. OpenBLAS's spin
#: for 2**28 ticks of the time stamp counter after their work, which are 0.1 s at 2.6 GHz.
LOOK_SECONDS, REST, PATIENCE_SECONDS = 5e-3, 0.1, 0.5


@dataclass
class Samples:
    """What a contender's turns took.

    Attributes
    ----------
    iterations : int
        Calls in a sample.
    seconds : list of float
        For each turn the seconds of a call.
    """

    iterations: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a call: the median of the turns."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """Seconds of a call in the shortest turn."""
        return min(self.seconds)


def interleave(calls: Mapping[str, Callable[[], Any]], seconds: float, *, threads: int = 1,
               rounds: tuple[int, int] = ROUNDS, seen: Mapping[str, float] | None = None,
               inside: Callable[[str], AbstractContextManager[Any]] = lambda name: nullcontext(),
               samples: dict[str, Samples] | None = None) -> dict[str, Samples]:
    """Time calls by turns.

    Parameters
    ----------
    calls : mapping of str to callable
        The contenders. Each has been called before, so that what happens once has happened.
    seconds : float
        For all of them together; more where they need it for the least number of turns.
    threads : int
        That the contenders use: with more than one, a turn waits until the others' threads are at rest.
    rounds : pair of int
        The least and the largest number of turns.
    seen : mapping of str to float, optional
        Seconds that a call took before. A long one need not be made once more to know how many fit.
    inside : callable
        Makes the block that a contender's turn runs in, from its name: settings that are no part of a call.
    samples : dict, optional
        Filled while it runs, and so good for something after a KeyboardInterrupt.

    Returns
    -------
    dict of str to Samples
        `samples`. A contender without any turn is not in it.
    """
    samples = {} if samples is None else samples
    below, warm_up, sample = WARM_UP_BELOW, WARM_UP_SECONDS, SAMPLE_SECONDS
    if threads > 1:
        below, warm_up, sample = SPREAD_SECONDS, SPREAD_SECONDS, SAMPLE_SECONDS_OF_MANY
    found: dict[str, Samples] = {}
    costs: dict[str, float] = {}
    short: set[str] = set()
    for name, call in calls.items():
        once = (seen or {}).get(name, 0.0)
        if once < below:
            short.add(name)
            _settle(threads)
            with inside(name):
                once = min(_sample(call, 1) for _ in range(3))
        found[name] = Samples(max(1, math.ceil(sample / max(once, 1e-9))))
        uncounted = max(once, warm_up) if name in short else 0.0
        costs[name] = max(once * found[name].iterations + uncounted, 1e-9)
    turns = _turns(costs, seconds, rounds)
    last = max(turns.values(), default=0)
    for i in range(last):
        for name in list(calls) if i % 2 == 0 else reversed(list(calls)):
            if -(-(i + 1) * turns[name] // last) == -(-i * turns[name] // last):  # not this time; everyone in the first
                continue
            _settle(threads)
            entry = found[name]
            with inside(name):
                if name in short:
                    _warm_up(calls[name], warm_up)
                entry.seconds.append(_sample(calls[name], entry.iterations))
            samples[name] = entry
    return samples


def _turns(costs: Mapping[str, float], seconds: float, rounds: tuple[int, int]) -> dict[str, int]:
    """How many turns each has. `costs`: seconds of a turn."""
    turns: dict[str, int] = {}
    left, (least, most) = seconds, rounds
    for i, name in enumerate(sorted(costs, key=lambda name: costs[name])):  # what the quick ones don't need is the others'
        wanted = int(left / (len(costs) - i) / costs[name])
        turns[name] = min(max(wanted, least if costs[name] < SLOW else 1), most)
        left = max(left - turns[name] * costs[name], 0.0)
    return turns


def _warm_up(call: Callable[[], Any], seconds: float) -> None:
    """Calls that are not counted, for so long."""
    end = time.perf_counter() + seconds
    call()
    while time.perf_counter() < end:
        call()


def _sample(call: Callable[[], Any], iterations: int) -> float:
    """Seconds of a call, as the mean of so many in a row."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(iterations):
            call()
        return (time.perf_counter() - start) / iterations
    finally:
        if collecting:
            gc.enable()


def _settle(threads: int) -> None:
    """Wait until the other threads of this process are at rest, or patience is at its end."""
    if threads == 1:
        return
    end = time.perf_counter() + PATIENCE_SECONDS
    while True:
        before, start = time.process_time(), time.perf_counter()
        time.sleep(LOOK_SECONDS)
        now = time.perf_counter()
        if time.process_time() - before < REST * (now - start) or now > end:
            return
