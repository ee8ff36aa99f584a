"""What an explanation costs: passes, time against one forward pass, memory, and what has to be at hand."""

import ctypes
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.score_passes import Passes
from probing.models.precision import device_of
from probing.models.scores import Score

_SLOW = 2.0


@dataclass(frozen=True)
class Cost:
    """Of explaining one input, alone.

    Attributes:
        n_forward: inputs passed forward.
        n_backward: inputs passed backward.
        seconds: of CPU time, which other processes do not lengthen; of wall time where an accelerator works.
        relative: those seconds over those of one forward pass of the input.
        peak_mb: growth of memory while it runs, sampled; NaN where that can't be told.
        hyperparameters: settings that can be tuned, batch size and precision apart.
        images: further inputs that the method needs, such as a background.
        labels: how many of those a person, or a drawing program, must have named or outlined.
    """

    n_forward: int
    n_backward: int
    seconds: float
    relative: float
    peak_mb: float
    hyperparameters: int
    images: int
    labels: int = 0


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of CPU time, which other processes do not lengthen; of wall time where an accelerator works."""

    accelerator: bool

    def __call__(self, work: Callable[[], object]) -> float:
        """Return how long some work takes."""
        clock = time.perf_counter if self.accelerator else time.process_time
        start = clock()
        work()
        if self.accelerator:
            torch.accelerator.synchronize()
        return clock() - start

    def forward(self, score: Score, inputs: Float[Tensor, "n *shape"], runs: int = 5) -> float:
        """Return the seconds of one forward pass of the first input: the median of runs after a first one."""
        one, of = inputs[:1], score.of(slice(0, 1))
        passes = Passes.of(of, one)
        rows = torch.zeros(1, dtype=torch.long)
        passes.values(one, rows)
        return max(median(self(lambda: passes.values(one, rows)) for _ in range(runs)), 1e-9)


def cost_of(method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"], runs: int = 5) -> Cost:
    """Measure what explaining the first input costs: the median of runs after a first one, or one run if that is slow."""
    one, of = inputs[:1], score.of(slice(0, 1))
    accelerator = device_of(score.model).type != "cpu"
    watch = Stopwatch(accelerator)
    forward = watch.forward(score, inputs, runs)
    method(of, one)  # what it prepares is kept
    found: list[Attribution] = []
    with PeakMemory(accelerator=accelerator) as memory:
        times = [watch(lambda: found.append(method(of, one)))]
    if times[0] < _SLOW:
        times += [watch(lambda: method(of, one)) for _ in range(runs - 1)]
    seconds = median(times)
    return Cost(
        found[0].n_forward,
        found[0].n_backward,
        seconds,
        seconds / forward,
        memory.peak_mb,
        hyperparameters(method),
        _further_images(method),
    )


def hyperparameters(method: object) -> int:
    """Return how many settings of a method, and of what it is made of, can be tuned."""
    count = 0
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        if field.name in {"batch_size", "precision", "seed"}:
            continue
        inner = dataclasses.is_dataclass(value) and not isinstance(value, type)
        count += 1 + (hyperparameters(value) if inner else 0)
    return count


def _further_images(method: object) -> int:
    background = getattr(method, "background", None)
    return 0 if background is None else len(background.tensor)


class PeakMemory:
    """The largest growth of memory inside the block: of the process, every 5 ms, or of the accelerator's allocator."""

    def __init__(self, *, accelerator: bool) -> None:
        self._accelerator = accelerator
        self.peak_mb = float("nan")

    def __enter__(self) -> "PeakMemory":
        if self._accelerator and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 1e6
            return self
        _give_back()
        self._before, self._done = _resident_mb(), threading.Event()
        self.peak_mb = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak_mb = max(self.peak_mb, _resident_mb() - self._before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._accelerator and torch.cuda.is_available():
            self.peak_mb = torch.cuda.max_memory_allocated() / 1e6 - self._before
            return
        self._done.set()
        self._thread.join()


def _give_back() -> None:
    """Return freed memory to the system, so that what is used next shows as growth whatever ran before."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _resident_mb() -> float:
    path = Path("/proc/self/statm")
    if not path.exists():
        return float("nan")
    return int(path.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
