"""A progress bar on stderr, off where stderr is no terminal."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Counts examples; the bar appears with the first one that had to be computed."""

    def __init__(self, total: int, title: str, show: bool | None = None) -> None:
        self._title, self._total, self._done = title, total, 0
        self._show = sys.stderr.isatty() if show is None else show
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Progress":
        return self

    def advance(self, count: int, *, computed: bool) -> None:
        """Count examples as done."""
        self._done += count
        if self._bar is None and computed and self._show:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._title, total=self._total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
