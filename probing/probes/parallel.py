"""Small fits side by side, one thread each: two threads on one small product lose more than they gain."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def side_by_side(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Return the work on each item, in order; as many items at a time as torch has threads."""
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
