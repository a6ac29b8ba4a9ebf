"""Runs of many seeds in several processes, given back in the order of the seeds whoever ends first."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVar

from chaos.core.errors import ChaosError

AHEAD = 1000
"""So many runs at most begin while an earlier one goes on: their results wait in memory."""
END_S = 5.0

T = TypeVar("T")


@dataclass
class Job(Generic[T]):
    """A process that runs one seed after the other. Nobody else has an end of its connection, so that it ends when
    the process that started it does, be it by a signal."""

    process: SpawnProcess
    connection: Connection
    seed: int | None = None
    """What it is running."""

    def give(self, seed: int) -> None:
        self.seed = seed
        with suppress(BrokenPipeError):  # it has ended: `take` finds out and says how
            self.connection.send(seed)

    def take(self) -> T:
        """Its result. Raises ChaosError: it ended without one."""
        try:
            done: T = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(END_S)
            raise ChaosError(
                f"the process that ran seed {self.seed} ended with exit code {self.process.exitcode} and no result; "
                f"run this seed with --jobs 1 to see why"
            ) from None
        return done


def in_order(work: Callable[[int], T], seeds: range, jobs: int) -> Generator[T]:
    """What `work` gives for each seed, in the order of the seeds.

    Args:
        work: has to be picklable, and so do its results; unless `jobs` is 1, which calls it in this process.
        jobs: so many processes. They end with this generator, and with this process.

    Raises ChaosError: one of the processes ended. What `work` raised there is on standard error.
    """
    if jobs == 1:
        yield from map(work, seeds)
        return
    started: list[Job[T]] = []
    try:
        for _ in range(min(jobs, len(seeds))):
            started.append(start(work))
        yield from collect(started, seeds)
    finally:
        for job in started:
            job.process.terminate()
            job.process.join(END_S)


def start(work: Callable[[int], T]) -> Job[T]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    return Job(process, ours)


def collect(started: list[Job[T]], seeds: range) -> Iterator[T]:
    """Keep all jobs at work."""
    done: dict[int, T] = {}
    waiting, given = 0, 0
    while waiting < len(seeds):
        for job in started:
            if job.seed is None and given < min(len(seeds), waiting + AHEAD):
                job.give(seeds[given])
                given += 1
        busy = {job.connection: job for job in started if job.seed is not None}
        for connection in wait(list(busy)):
            job = busy[connection]  # type: ignore[index]
            result = job.take()
            assert job.seed is not None
            done[job.seed], job.seed = result, None
        while waiting < len(seeds) and seeds[waiting] in done:
            yield done.pop(seeds[waiting])
            waiting += 1


def serve(connection: Connection, work: Callable[[int], T]) -> None:
    """The process of a job. What `work` raises ends it, with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that started this ends it
    with closing(connection), suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            seed = connection.recv()
            connection.send(work(seed))
