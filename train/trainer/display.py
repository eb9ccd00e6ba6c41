"""What a run tells the person who waits for it: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Losses, the last validation and the time left.

    What is counted class by class (``recall/seven``) is in the tables only: 35 words fill no line.

    Parameters
    ----------
    updates : updates of the whole run
    every : updates between two lines, where there is no terminal to draw a bar on
    monitor : the measure that decides what is best, which is shown whatever its name
    shown : False prints nothing at all
    """

    def __init__(self, updates: int, *, every: int, monitor: str, shown: bool) -> None:
        self.updates = updates
        self.every = every
        self.monitor = monitor
        self.shown = shown
        self._losses: Mapping[str, float] = {}
        self._measures: Mapping[str, float] = {}
        self._start = 0.0
        self._first = 0
        self._bar: Progress | None = None

    def open(self, done: int) -> None:
        """Begin, with so many updates made already."""
        self._start, self._first = time.monotonic(), done
        if not (self.shown and sys.stdout.isatty()):
            return
        self._bar = Progress(
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
        )
        self._task = self._bar.add_task("", total=self.updates, completed=done, values="")
        self._bar.start()

    def losses(self, done: int, losses: Mapping[str, float]) -> None:
        """Losses of the latest updates."""
        self._losses = losses
        self._draw(done)

    def measures(self, done: int, measures: Mapping[str, float]) -> None:
        """Measures of a validation."""
        self._measures = measures
        self._draw(done)

    def advance(self, done: int) -> None:
        """One more update is made."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self.shown and (done % self.every == 0 or done == self.updates):
            print(
                f"update {done} of {self.updates}: {self._values()}{self._left(done)}", flush=True
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _draw(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, values=self._values())

    def _values(self) -> str:
        values = {**self._losses, **self._measures}
        chosen = [name for name in values if "/" not in name or name == self.monitor]
        return ", ".join(f"{name} {values[name]:.3f}" for name in chosen)

    def _left(self, done: int) -> str:
        """Time to the end, at the pace so far."""
        if done == self.updates or done == self._first:
            return ""
        seconds = (time.monotonic() - self._start) / (done - self._first) * (self.updates - done)
        return f", {said_seconds(seconds)} left"


def said_seconds(seconds: float) -> str:
    """A duration in words: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
