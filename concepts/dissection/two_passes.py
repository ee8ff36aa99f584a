"""The two passes of dissection over images, or over a share of them: thresholds first, then counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from concepts.data.segmentation.labels import ImageLabels, Scenes, present
from concepts.dissection.layer_units import Lens, Levels, Reading
from concepts.dissection.permutation_null import NullTally, blocks_of, shuffles
from concepts.dissection.soft_scores import Moments, average_precision
from concepts.dissection.tally import Tally
from probing.core.content_ids import bytes_id, tensor_bytes
from probing.data.examples import Subset
from probing.models.precision import Precision
from probing.statistics.streaming import UpperQuantile
from probing.store.shares import Share
from probing.store.store import ActivationStore

BLOCK = 256
"""Images whose masks are held at once."""


@dataclass
class Shown:
    """Which concepts each image shows, and a fingerprint of its labels; zero for images of other shares."""

    shown: Bool[Tensor, "images concepts"]
    labels: UInt8[Tensor, "images 32"]

    @classmethod
    def empty(cls, scenes: Scenes) -> "Shown":
        """Return what is known of scenes before they are looked at."""
        count = len(scenes)
        shown = torch.zeros(count, len(scenes.vocabulary), dtype=torch.bool)
        return cls(shown, torch.zeros(count, 32, dtype=torch.uint8))

    def add(self, block: Sequence[int], labels: Sequence[ImageLabels]) -> None:
        """Take in some images' labels."""
        for i, found in zip(block, labels, strict=True):
            self.shown[i] = torch.from_numpy(present(found, self.shown.shape[1]))
            self.labels[i] = torch.tensor(list(_labels_id(found).encode()), dtype=torch.uint8)

    def merge(self, other: "Shown") -> None:
        """Take in other images."""
        self.shown |= other.shown
        self.labels |= other.labels

    def holds(self, index: int, labels: ImageLabels) -> bool:
        """Whether an image has the labels that were taken in."""
        return bytes(self.labels[index].tolist()).decode() == _labels_id(labels)

    def id(self, scenes: Scenes) -> str:
        """Return a content id of the images and all that is said about them."""
        words = repr((scenes.vocabulary.names, scenes.vocabulary.categories))
        labels = [bytes(row).decode() for row in self.labels.tolist()]
        return bytes_id("\0".join([*scenes.examples.ids, *labels, words]).encode())

    def counted(self, scenes: Scenes, kind: int) -> Bool[Tensor, " images"]:
        """Return which images have a label of a category."""
        return self.shown[:, torch.from_numpy(scenes.vocabulary.kind_of) == kind].any(1)

    def average_precision(self, maxima: Tensor, scenes: Scenes) -> Tensor:
        """Return how well each unit's highest activation finds the images of each concept."""
        found = torch.full((maxima.shape[1], self.shown.shape[1]), torch.nan, dtype=torch.float64)
        kind_of = torch.from_numpy(scenes.vocabulary.kind_of)
        for kind in range(len(scenes.vocabulary.kinds)):
            rows, columns = self.counted(scenes, kind), (kind_of == kind).nonzero()[:, 0]
            if rows.any():
                found[:, columns] = average_precision(maxima[rows], self.shown[rows][:, columns])
        return found

    def base_rate(self, scenes: Scenes) -> Tensor:
        """Return the share of images that show each concept, of those labelled in its category."""
        counted = torch.stack([self.counted(scenes, k) for k in range(len(scenes.vocabulary.kinds))], 1)
        totals = counted.sum(0)[torch.from_numpy(scenes.vocabulary.kind_of)]
        return self.shown.sum(0).double() / totals.clamp(min=1)


Part = Levels | UpperQuantile | Reading | Tally | Moments | NullTally | Shown


@dataclass(frozen=True)
class Passes:
    """Two passes of some layers' units over scenes; it can be sent to another process.

    Attributes:
        model: in evaluation mode.
        scenes: images and labels.
        lenses: of the layers.
        draws: shuffles of the images.
        seed: of shuffles and halves.
    """

    model: nn.Module
    scenes: Scenes
    lenses: tuple[Lens, ...]
    draws: int
    seed: int

    @property
    def blocks(self) -> int:
        """How many blocks of images there are: no more shares have anything to do."""
        return len(self._blocks)

    @property
    def names(self) -> list[str]:
        """The layers."""
        return [lens.layer for lens in self.lenses]

    def first(self, store: ActivationStore, share: Share) -> list[Levels]:
        """Return thresholds, ranges and maxima of a share's images."""
        mine = [i for block in share.of(self._blocks) for i in block]
        found: dict[str, Levels] = {}
        for places, rows in store.batches(self.model, self.names, Subset(self.scenes.examples, mine)):
            for lens in self.lenses:
                if lens.layer not in found:
                    found[lens.layer] = self._levels(lens, rows[lens.layer])
                found[lens.layer].add([mine[place] for place in places], rows[lens.layer])
        return [found[name] for name in self.names]

    def second(self, store: ActivationStore, levels: Sequence[Levels], share: Share) -> tuple[list[Reading], Shown]:
        """Return the counts of a share's images, and which concepts they show."""
        half = halves(self.scenes.examples.ids, self.seed)
        orders = shuffles(len(self.scenes), self.draws, self.seed, BLOCK)
        readings, shown = self.nothing_counted(levels)
        for block, order in share.of(list(zip(self._blocks, orders, strict=True))):
            labels = [self.scenes.labels(i) for i in block]
            shown.add(block, labels)
            part = Subset(self.scenes.examples, block)
            for places, rows in store.batches(self.model, self.names, part):
                for reading in readings:
                    some = [labels[place] for place in places]
                    which = [half[block[place]] for place in places]
                    reading.add(places, rows[reading.lens.layer], some, which)
            for reading in readings:
                reading.shuffle(labels, torch.from_numpy(order))
        return readings, shown

    def nothing_seen(self) -> list[Levels]:
        """Return levels without any image; one is passed to see how many units there are."""
        one = Subset(self.scenes.examples, [0])
        rows = ActivationStore(progress=False).activations(self.model, self.names, one)
        return [self._levels(lens, rows[lens.layer]) for lens in self.lenses]

    def nothing_counted(self, levels: Sequence[Levels]) -> tuple[list[Reading], Shown]:
        """Return readings of thresholds that were found, without any image."""
        vocabulary = self.scenes.vocabulary
        return [Reading.of(one, vocabulary, self.draws) for one in levels], Shown.empty(self.scenes)

    def _levels(self, lens: Lens, rows: Tensor) -> Levels:
        return Levels.of(lens, lens.layout.maps(rows[:1]).shape[1], len(self.scenes))

    @property
    def _blocks(self) -> list[list[int]]:
        return blocks_of(len(self.scenes), BLOCK)


@dataclass(frozen=True)
class FirstShare:
    """Work for an engine: the first pass over a share."""

    passes: Passes
    precision: Precision

    def __call__(self, share: Share) -> Mapping[str, Part]:
        """Return what is found, by name."""
        if share.index >= self.passes.blocks:
            return levels_parts(self.passes.nothing_seen())
        store = ActivationStore(precision=self.precision, budget_bytes=0, progress=False)
        return levels_parts(self.passes.first(store, share))


@dataclass(frozen=True)
class SecondShare:
    """Work for an engine: the second pass over a share, with the thresholds of all images."""

    passes: Passes
    precision: Precision
    levels: Sequence[Levels]

    def __call__(self, share: Share) -> Mapping[str, Part]:
        """Return what is found, by name."""
        store = ActivationStore(precision=self.precision, budget_bytes=0, progress=False)
        return counts_parts(*self.passes.second(store, self.levels, share))


def levels_parts(levels: Sequence[Levels]) -> dict[str, Part]:
    """Return what of the first pass is merged, by name."""
    return {name: part for one in levels for name, part in one.parts.items()}


def counts_parts(readings: Sequence[Reading], shown: Shown) -> dict[str, Part]:
    """Return what of the second pass is merged, by name."""
    found: dict[str, Part] = {"shown": shown}
    for reading in readings:
        found |= reading.parts
    return found


def halves(ids: Sequence[str], seed: int) -> list[int]:
    """Return which half each image belongs to; images of equal content belong to one."""
    distinct = list(dict.fromkeys(ids))
    order = np.random.default_rng(seed).permutation(len(distinct))
    half = {distinct[i]: place % 2 for place, i in enumerate(order)}
    return [half[i] for i in ids]


def _labels_id(labels: ImageLabels) -> str:
    data = bytes(tensor_bytes(torch.from_numpy(labels.planes))) + repr(labels.whole).encode()
    return bytes_id(data)
