"""How far a run is, on standard error: one bar at a time on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

EVERY_S = 30.0  # between lines of one stage where there is no terminal


class Stage:
    """A part of the work, of known size. `advance` and `note` may be called from its thread only."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count

    def note(self, text: str) -> None:
        """What it is about now, beside its name; empty: nothing in particular."""


class Progress:
    """Stages one after the other, never two at once, and lines above the bar. Standard output belongs to commands."""

    def __init__(self, *, shown: bool = True, every_s: float = EVERY_S, console: Console | None = None) -> None:
        """shown: False for all processes of a run but one."""
        self._shown, self._every_s = shown, every_s
        self._console = console or Console(stderr=True)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """The work inside the block. At its end a line says how much was done and how long it took."""
        started = time.monotonic()
        if not self._shown:
            yield Stage(name, total)
            return
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            with Bars(*columns, *times, console=self._console, transient=True) as bars:
                stage: Stage = _Bar(name, total, bars)
                yield stage
        else:
            stage = _Lines(name, total, self)
            yield stage
        self.line(f"{name}: {stage.done} of {total}, {time.monotonic() - started:.0f} s")


class _Bar(Stage):
    def __init__(self, name: str, total: int, bars: Bars) -> None:
        super().__init__(name, total)
        self._bars, self._task = bars, bars.add_task(name, total=total)

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        self._bars.advance(self._task, count)

    def note(self, text: str) -> None:
        self._bars.update(self._task, description=f"{self.name}, {text}" if text else self.name, refresh=True)


class _Lines(Stage):
    def __init__(self, name: str, total: int, progress: Progress) -> None:
        super().__init__(name, total)
        self._progress, self._last = progress, time.monotonic()

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        if time.monotonic() - self._last >= self._progress._every_s and self.done < self.total:
            self._last = time.monotonic()
            self._progress.line(f"{self.name}: {self.done} of {self.total}")
