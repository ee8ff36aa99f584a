"""What long work costs, said before, and how far it is: a bar on a terminal, a line now and then in a log; on stderr.

Python code stays silent unless stderr is a terminal; the command line talks in logs too (`talking`).
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

_LONG = 10.0
"""Seconds from which work is long: what it will cost is said."""
_FIRST = 1.0
"""Seconds that a first part takes at least, before the whole is estimated from it."""
_EVERY = 30.0
"""Seconds between two lines in a log."""


class Progress:
    """Counts parts of some work that take about equally long.

    Once the first of them are done, and the whole will take more than ten seconds, one line says how many there are
    and about how long all take. What need not be computed (rows that are stored) is counted, and not timed.

    Args:
        total: parts; None where it is not known, and nothing is estimated.
        title: what is at work.
        show: None talks on a terminal, and wherever the command line runs; True in logs too; False nowhere.
        unit: what parts are, in the plural.
    """

    def __init__(self, total: int | None, title: str, show: bool | None = None, *, unit: str = "examples") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._computed = 0
        self._shown = (_talk is not None or sys.stderr.isatty()) if show is None else show
        self._began, self._said = time.monotonic(), False
        self._bar: _Bar | None = None

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        if self._shown:
            _open.append(self)
        return self

    def advance(self, count: int, *, computed: bool = True) -> None:
        """Count parts as done."""
        self.done += count
        if not self._shown:
            return
        self._computed += count if computed else 0
        if not self._computed:
            self._began = time.monotonic()  # looking up what is stored tells nothing of the rest
            return
        if sys.stderr.isatty():
            self._bar = self._bar or _Bar.shared()
            self._bar.show(self)
        self._announce()

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take, as far as the parts so far tell; None if they don't."""
        if self.total is None or not self._computed:
            return None
        return (self.total - self.done) * (time.monotonic() - self._began) / self._computed

    def line(self) -> str:
        """How far the work is."""
        if self.total is None:
            return self.title
        left = self.left
        rest = "" if left is None or self.done >= self.total else f", {about(left)} left"
        return f"{self.title}: {self.done:,} of {self.total:,} {self.unit}{rest}"

    def _announce(self) -> None:
        """Say once what all will take, where that is long and no work that this is a part of has said so."""
        left, spent = self.left, time.monotonic() - self._began
        if self._said or left is None or spent < _FIRST or spent + left < _LONG:
            return
        self._said = True
        outer = _open[: _open.index(self)] if self in _open else []
        if (_talk is not None or not sys.stderr.isatty()) and not any(m._said for m in outer):
            _line(f"{self.title}: {self.total:,} {self.unit}, {about(spent + left)}.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self in _open:
            _open.remove(self)
        if self._bar is not None:
            self._bar.drop(self)


_open: list[Progress] = []
"""Work that is going on and may be talked about, the outermost first."""


def about(seconds: float) -> str:
    """Return a time in words, as exactly as an estimate can be meant."""
    if seconds < 57.5:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    if minutes < 9.5:
        return f"about {round(minutes)} min"
    if minutes < 57.5:
        return f"about {5 * round(minutes / 5)} min"
    hours = minutes / 60
    if hours < 9.5:
        return f"about {round(2 * hours) / 2:g} h"
    return f"about {round(hours)} h" if hours < 36 else f"about {round(hours / 24)} days"


def _line(text: str) -> None:
    """Write a line to stderr, above a bar if there is one; a reader who has gone is no reason to stop."""
    global _last  # noqa: PLW0603 - one stderr, one time of its last line
    _last = time.monotonic()
    try:
        if _Bar.one is not None:
            _Bar.one.rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is where progress is said
    except (OSError, ValueError):  # closed
        pass


_last = 0.0
_talk: Thread | None = None


@contextmanager
def talking() -> Iterator[None]:
    """Talk in logs too, as the command line does: long work says what it costs, then where it is every 30 seconds.

    That holds for what counts no parts as well, such as the drawing of a page: a thread of its own looks at the clock.
    """
    global _talk, _last  # noqa: PLW0603 - of the process, as stderr is
    if _talk is not None:
        yield
        return
    over = Event()
    _last = began = time.monotonic()
    _talk = Thread(target=_clock, args=(over, began), daemon=True, name="progress")
    _talk.start()
    try:
        yield
    finally:
        over.set()
        _talk.join()
        _talk = None


def _clock(over: Event, began: float) -> None:
    while not over.wait(max(0.01, _last + _EVERY - time.monotonic())):
        if time.monotonic() - _last < _EVERY or _Bar.one is not None:
            over.wait(min(1.0, _EVERY))
            continue
        spent = about(time.monotonic() - began).removeprefix("about ")
        _line("; ".join(m.line() for m in list(_open)) or f"still at work, {spent} so far")


class _Bar:
    """The bars of a terminal, one for each piece of work that is going on."""

    one: "_Bar | None" = None

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as RichProgress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        # What is printed meanwhile stays above the bar, but what a pipe reads goes into the pipe.
        self.rich = RichProgress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._tasks: dict[int, TaskID] = {}
        self.rich.start()

    @classmethod
    def shared(cls) -> "_Bar":
        cls.one = cls.one or cls()
        return cls.one

    def show(self, meter: Progress) -> None:
        key = id(meter)
        if key not in self._tasks:
            self._tasks[key] = self.rich.add_task(meter.title, total=meter.total)
        self.rich.update(self._tasks[key], completed=meter.done)

    def drop(self, meter: Progress) -> None:
        task = self._tasks.pop(id(meter), None)
        if task is not None:
            self.rich.remove_task(task)
        if not self._tasks:
            self.rich.stop()
            _Bar.one = None
