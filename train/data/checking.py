"""Clips are checked in processes of their own; one that brings its process down stops no other."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from edge_imputer.clip_checks import ClipTask, Finding, check_clips, stamp, start_worker

from .journal import writing

CHUNK = 32  # clips a task: a journal entry about every second
_AHEAD = 3  # tasks waiting, a process


def check_all(tasks: list[ClipTask], workers: int) -> Iterator[list[Finding]]:
    """Check clips, a chunk at a time, in the order given.

    Parameters
    ----------
    tasks
        The clips.
    workers
        Processes. With one, or with few clips, this process does it.

    Raises
    ------
    DataError
        A copy could not be written.
    """
    chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
    workers = min(workers, len(chunks))
    with writing(_copies(tasks)):
        if workers <= 1:
            for chunk in chunks:
                yield check_clips(chunk)
        else:
            yield from _in_processes(deque(chunks), workers)


def _in_processes(chunks: deque[list[ClipTask]], workers: int) -> Iterator[list[Finding]]:
    """Keep every process busy, and start anew where one of them died."""
    while chunks:
        waiting: deque[tuple[list[ClipTask], Future[list[Finding]]]] = deque()
        pool = _pool(workers)
        try:
            while chunks or waiting:
                while chunks and len(waiting) < _AHEAD * workers:
                    waiting.append((chunks[0], pool.submit(check_clips, chunks[0])))
                    chunks.popleft()
                found = waiting[0][1].result()
                waiting.popleft()
                yield found
        except BrokenProcessPool:
            suspects = [chunk for chunk, _ in waiting]
        else:
            suspects = []
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for chunk in suspects:
            yield [_alone(task) for task in chunk]


def _alone(task: ClipTask) -> Finding:
    """Check a clip in a process that may die of it."""
    with _pool(1) as pool:
        try:
            return pool.submit(check_clips, [task]).result()[0]
        except BrokenProcessPool:
            size, changed_ns = stamp(task)
            return Finding(
                audio=task.audio,
                offset_s=task.offset_s,
                part_s=task.duration_s,
                problem="unreadable",
                detail="the process that decoded it died",
                size=size,
                changed_ns=changed_ns,
            )


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the caller may have threads. The function they run loads no torch.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=start_worker)


def _copies(tasks: list[ClipTask]) -> Path:
    """What errors of writing are about: the folder of the copies."""
    copy = tasks[0].copy_to if tasks else None
    return Path(copy).parent if copy else Path("the clips")
