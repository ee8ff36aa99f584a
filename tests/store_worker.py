"""A process that fills a store: `python store_worker.py ROOT`; writes how many rows it computed to ROOT/count-RANK."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import nets
import torch
from torch import Tensor

from probing import extraction
from probing.examples import TensorExamples
from probing.scores import Score
from probing.store import ActivationStore


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    filled = fill(folder, Together(nets.images(96, size=24), folder / "asked"))
    (folder / f"count-{os.environ.get('RANK', '0')}").write_text(str(filled.stats.forward_rows))
