"""Processes that fill a store, undisturbed or killed on the way.

`python store_worker.py ROOT` fills one and writes how many rows it computed to ROOT/count-RANK.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import nets
import torch
from torch import Tensor

from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store import extraction, shards
from probing.store.store import ActivationStore


class Together(TensorExamples):
    """Examples that no rank gets before every rank has asked for some: then each has a chunk of its own."""

    def __init__(self, images: Tensor, folder: Path) -> None:
        super().__init__(images)
        self._folder, self._ranks = folder, int(os.environ.get("WORLD_SIZE", "1"))

    def load(self, indices: Sequence[int]) -> Tensor:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"asked-{os.environ.get('RANK', '0')}").touch()
        end = time.monotonic() + 120
        while len(list(self._folder.glob("asked-*"))) < self._ranks:
            if time.monotonic() > end:
                raise TimeoutError("another rank never asked for an example")
            time.sleep(0.01)
        return super().load(indices)


def fill(root: Path, examples: TensorExamples) -> ActivationStore:
    """Read activations and gradients of a small network on all examples, in shards of eight rows."""
    net = nets.seeded(nets.ConvNet())
    store = ActivationStore(root, batch_size=4)
    with mock.patch.object(extraction, "_SHARD_ROWS", 8):
        store.read([Score(net, 0)], ["features.0", "features.2"], examples)
    return store


def fill_and_count(root: Path, images: Tensor, count: Path) -> None:
    """Fill a store and write how many rows that took."""
    count.write_text(str(fill(root, TensorExamples(images)).stats.forward_rows))


def fill_dying_at(root: Path, images: Tensor, step: int) -> None:
    """Fill a store, and die, as by `kill -9`, at the given system call that changes it."""
    calls = [0]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    examples = TensorExamples(images)
    for name in ("write", "fsync", "open", "close"):
        setattr(shards.os, name, counted(getattr(os, name)))
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    fill(root, examples)


torch.set_num_threads(1)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    filled = fill(folder, Together(nets.images(96, size=24), folder / "asked"))
    (folder / f"count-{os.environ.get('RANK', '0')}").write_text(str(filled.stats.forward_rows))
