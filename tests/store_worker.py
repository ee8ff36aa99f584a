"""A process that fills a store: `python store_worker.py ROOT`; writes how many rows it computed to ROOT/count-RANK."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import nets
import torch
from torch import Tensor

from probing import extraction
from probing.examples import TensorExamples
from probing.scores import Score
from probing.store import ActivationStore

extraction._SHARD_ROWS = 8


def fill(root: Path, images: Tensor) -> ActivationStore:
    """Read activations and gradients of a small network on all images."""
    net = nets.seeded(nets.ConvNet())
    store = ActivationStore(root, batch_size=4)
    store.read([Score(net, 0)], ["features.0", "features.2"], TensorExamples(images))
    return store


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    filled = fill(folder, nets.images(96, size=24))
    (folder / f"count-{os.environ.get('RANK', '0')}").write_text(str(filled.stats.forward_rows))
