"""Loading ahead and writing behind, each on one thread, in bounded memory."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from types import TracebackType

from probing.core.inputs import Batch

_IN_FLIGHT = 4
_AHEAD = 2


Loaded = tuple[Batch, list[str]]
"""A batch, and the content id of each row of it, found on the thread that loads."""


class LoadAhead:
    """Calls a load function for the batch after the one at work."""

    def __init__(self, load: Callable[[Sequence[str]], Loaded]) -> None:
        self._load = load
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[tuple[str, ...], Future[Loaded]] = {}

    def __enter__(self) -> "LoadAhead":
        return self

    def start(self, ids: Sequence[str]) -> None:
        """Begin to load a batch that will be asked for."""
        if ids:
            self._ahead[tuple(ids)] = self._thread.submit(self._load, ids)
            if len(self._ahead) > _AHEAD:  # what another process came to compute
                del self._ahead[next(iter(self._ahead))]

    def get(self, ids: Sequence[str]) -> Loaded:
        """Return a batch, loaded ahead or now; batches that were not asked for are forgotten."""
        future = self._ahead.pop(tuple(ids), None)
        return self._load(ids) if future is None else future.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)


class WriteBehind:
    """Runs calls one after the other behind the caller; with four in flight it makes it wait."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._free = BoundedSemaphore(_IN_FLIGHT)
        self._calls: list[Future[None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call; an error of an earlier one is raised here."""
        self._free.acquire()
        future = self._thread.submit(call)
        future.add_done_callback(lambda _: self._free.release())
        self._calls.append(future)
        while self._calls and self._calls[0].done():
            self._calls.pop(0).result()

    def wait(self) -> None:
        """Return when all calls are done; the first error is raised."""
        for future in self._calls:
            future.result()
        self._calls.clear()

    def close(self) -> None:
        """End the thread; calls that have not begun are forgotten."""
        self._thread.shutdown(cancel_futures=True)
