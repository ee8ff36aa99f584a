"""One worker of an engine: `python engine_worker.py ENGINE FOLDER` fills the store FOLDER/store and leaves a count there."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import nets
import torch
from torch import Tensor, nn

from probing.data.examples import ExampleSet, Subset, TensorExamples
from probing.models.scores import Score
from probing.store.fill import Fill
from probing.store.launchers import ENGINES, RayActors
from probing.store.requests import Request
from probing.store.store import ActivationStore

PIXELS = nets.images(640)  # five shards of 128 rows


class Deadly(TensorExamples):
    """Examples of which one ends, as by `kill -9`, the first process that loads it."""

    def __init__(self, images: Tensor, grave: Path) -> None:
        super().__init__(images)
        self._grave = grave

    def load(self, indices: Sequence[int]) -> Tensor:
        if 300 in indices and not self._grave.exists():
            self._grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(indices)


def requests(net: nn.Module, images: ExampleSet) -> tuple[Request, ...]:
    """Return requests of which the last two overlap with those before."""
    few = Subset(images, range(1, 500, 2))
    return (
        Request(net, ("features.0", "features.2"), images, "mean"),
        Request(net, ("features.2",), few, "mean", (Score(net, 0), Score(net, 1))),
        Request(net, ("features.0", ""), few, "mean"),
        Request(net, ("features.2",), Subset(images, range(600)), "mean"),
    )


def ask(root: Path) -> ActivationStore:
    """Ask for the same rows in the same order, as one process does that needs them."""
    net = nets.seeded(nets.ConvNet())
    store = ActivationStore(root, batch_size=16, progress=False)
    for request in requests(net, TensorExamples(PIXELS)):
        if request.scores:
            store.gradients_of(request.scores, request.layers, request.examples, pool=request.pool)
        else:
            store.activations(net, request.layers, request.examples, pool=request.pool)
    return store


def filler(root: Path, images: ExampleSet) -> Fill:
    """Return the work that leaves the same rows."""
    net = nets.seeded(nets.ConvNet())
    return Fill(requests(net, images), root, batch_size=16, progress=False)


def main(name: str, folder: Path) -> None:
    """Do a share, and write how many rows that took."""
    engine = RayActors(actors=2, shares=5) if name == "ray" else ENGINES[name]()
    images = Deadly(PIXELS, folder / "grave") if name == "ray" else TensorExamples(PIXELS)
    work = filler(folder / "store", images)
    done = engine.run(work)
    if engine.leads() and done:
        (folder / "after").write_text(str(ask(folder / "store").stats.forward_rows))
    if work._store is not None:
        rank = os.environ.get("RANK", "0")
        (folder / f"count-{rank}").write_text(str(work._store.stats.forward_rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
