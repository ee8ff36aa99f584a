"""Shares: which part of a long job a process does, told by its number among its like."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from probing.core.errors import ProbingError

T = TypeVar("T")


class ShareError(ProbingError, ValueError):
    """A process can't be told which share of a job is its own."""


@dataclass(frozen=True)
class Share:
    """Every `count`-th item from `index` on: neighbours, which often cost alike, are dealt to different workers."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ShareError(f"a share's number must lie in 0 … count - 1, got {self.index} of {self.count}.")

    def of(self, items: Sequence[T]) -> list[T]:
        """Return the items of this share."""
        return list(items[self.index :: self.count])

    def within(self, outer: "Share") -> "Share":
        """Return this share of another share, as one."""
        return Share(outer.index * self.count + self.index, outer.count * self.count)

    def __str__(self) -> str:
        return f"share {self.index + 1} of {self.count}"


def ranks_share(environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share of a process that `torchrun` started, from `RANK` and `WORLD_SIZE`.

    Raises:
        ShareError: if these are not set.
    """
    return Share(*_numbers(environment, "RANK", "WORLD_SIZE", "start it by `torchrun --nproc-per-node N …`"))


def array_share(environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share of a task of a SLURM array; each of several processes that `srun` starts in it has a part of it.

    Raises:
        ShareError: outside of an array.
    """
    how = "submit it by `sbatch --array=0-N …`"
    task, count = _numbers(environment, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", how)
    first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    if (task - first) % step or not 0 <= (task - first) // step < count:
        raise ShareError(
            f"task {task} is none of the {count} tasks of an array from {first} by steps of {step}: the tasks of "
            "`--array` must follow each other evenly, as in --array=0-7."
        )
    outer = Share((task - first) // step, count)
    if "SLURM_STEP_NUM_TASKS" not in environment:  # not started by srun
        return outer
    return Share(*_numbers(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", how)).within(outer)


def _numbers(environment: Mapping[str, str], index: str, count: str, how: str) -> tuple[int, int]:
    got = {name: environment.get(name, "") for name in (index, count)}
    if not all(value.isdecimal() for value in got.values()):
        raise ShareError(
            f"this process has no share of the job: {index} and {count} are {got[index]!r} and {got[count]!r}; {how}."
        )
    return int(got[index]), int(got[count])
