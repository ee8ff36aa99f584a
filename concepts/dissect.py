"""Network dissection: which units of a network pick out things that people have names for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from concepts.dissection.masks import Upsampling
from concepts.dissection.null import blocks_of, shuffles
from concepts.dissection.protocols import PAPER, DissectionError, Protocol
from concepts.dissection.reading import Lens, Levels, Reading
from concepts.dissection.relation import average_precision, correlation
from concepts.dissection.result import DissectionResult, NullScores, assemble
from concepts.dissection.rotation import Rotation
from concepts.dissection.sanity import Judged, label_tests
from concepts.dissection.tally import Counts
from concepts.segmentation.labels import ImageLabels, Scenes, present
from probing.examples import Subset
from probing.fingerprint import bytes_id, tensor_bytes
from probing.geometry import Layout, layers_run
from probing.jobs import Request
from probing.layers import expand
from probing.provenance import Provenance
from probing.store import ActivationStore

_BLOCK = 256
"""Images whose masks are held at once."""


@dataclass(frozen=True)
class Dissection:
    """Compares where units are highly active with where concepts are (Bau, Zhou, Khosla, Oliva & Torralba 2017).

    A unit is active where its upsampled map exceeds the value that a share q of all its values exceeds; it is a
    detector of the concept with the highest intersection over union if that exceeds `min_iou`. Thresholds and counts
    are exact. Beside the published rule stand: the same units against the labels of other images (permutation test),
    the concept chosen on half of the images and judged on the other, the most and the chance value of every IoU, and
    scores without a threshold.

    The store is read twice, for all layers together. With rows in memory or on disk that is one forward pass, and
    none when the rows are there already.

    Attributes:
        layers: paths or globs of layers that return maps, or tokens of patches.
        protocol: which published procedure is followed.
        min_iou: least IoU of a detector.
        rotation: dissects rotated units, as a control; the layer's own if None.
        draws: shuffles of the images; 0 leaves the test out. Each takes 4 bytes per unit and concept.
        level: of the test, as a share of false detectors among those called so.
        top: how many of each unit's highest images are named.
        grid: rows and columns of patches, for tokens whose number does not tell.
        channels_last: whether the layers return `[n, h, w, c]`.
        seed: of shuffles and halves.

    Raises:
        DissectionError: for fewer than two images, or no label anywhere.
        probing.geometry.RefusedError: for a layer without places.

    Example:
        >>> result = Dissection(("layer3", "layer4"))(store, loaded.model, scenes)
        >>> result.to_pandas().query("detector")
    """

    layers: tuple[str, ...]
    protocol: Protocol = PAPER
    min_iou: float = 0.04
    rotation: Rotation | None = None
    draws: int = 199
    level: float = 0.05
    top: int = 9
    grid: tuple[int, int] | None = None
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            raise DissectionError("layers must name at least one layer, got none.")
        if self.draws < 0 or self.top < 1:
            raise DissectionError(
                f"draws must be 0 or more and top 1 or more, got {self.draws} and {self.top}."
            )

    def __call__(
        self, store: ActivationStore, model: nn.Module, scenes: Scenes
    ) -> DissectionResult:
        """Dissect some layers of a model."""
        if len(scenes) < 2:
            raise DissectionError(
                f"dissection needs at least two images, one to choose a concept on and one to judge it, got {len(scenes)}."
            )
        lenses = self.lenses(model, scenes)
        names = [lens.layer for lens in lenses]
        levels: dict[str, Levels] = {}
        for positions, rows in store.batches(model, names, scenes.examples):
            for lens in lenses:
                if lens.layer not in levels:
                    units = lens.layout.maps(rows[lens.layer][:1]).shape[1]
                    levels[lens.layer] = Levels.of(lens, units, len(scenes))
                levels[lens.layer].add(positions, rows[lens.layer])
        readings = [Reading.of(levels[name], scenes.vocabulary, self.draws) for name in names]
        found = self._second_pass(store, model, scenes, readings)
        if not found.shown.any():
            raise DissectionError(
                f"none of the {len(scenes)} images has a label: check that masks and images belong together."
            )
        return self._result(model, scenes, readings, found)

    def requests(self, model: nn.Module, scenes: Scenes) -> tuple[Request, ...]:
        """Return what a call asks of the store, so that engines can fill it before."""
        names = tuple(lens.layer for lens in self.lenses(model, scenes))
        return (Request(model, names, scenes.examples),)

    def lenses(self, model: nn.Module, scenes: Scenes) -> list[Lens]:
        """Return how the outputs of each layer asked for become units' maps, and these label cells."""
        one = scenes.examples.load([0])
        ran = layers_run(model, one)
        lenses = []
        for layer in expand(model, self.layers):
            layout = Layout.of(
                ran, layer, tuple(one.shape[2:]), self.grid, channels_last=self.channels_last
            )
            if layout.height * layout.width < 2:
                raise DissectionError(
                    f"layer {layer!r} returns one value per unit and image, which has no place: name a layer with a map."
                )
            upsampling = Upsampling.of(layout, scenes.size, self.protocol)
            lenses.append(Lens(layer, layout, upsampling, self.protocol, self.rotation))
        return lenses

    def _second_pass(
        self, store: ActivationStore, model: nn.Module, scenes: Scenes, readings: Sequence[Reading]
    ) -> "_Shown":
        names = [reading.lens.layer for reading in readings]
        half = halves(scenes.examples.ids, self.seed)
        orders = shuffles(len(scenes), self.draws, self.seed, _BLOCK)
        shown = _Shown.empty(scenes)
        for block, order in zip(blocks_of(len(scenes), _BLOCK), orders, strict=True):
            labels = [scenes.labels(i) for i in block]
            shown.add(block, labels)
            part = Subset(scenes.examples, block)
            for places, rows in store.batches(model, names, part):
                for reading in readings:
                    some = [labels[place] for place in places]
                    which = [half[block[place]] for place in places]
                    reading.add(places, rows[reading.lens.layer], some, which)
            for reading in readings:
                reading.shuffle(labels, torch.from_numpy(order))
        return shown

    def _result(
        self, model: nn.Module, scenes: Scenes, readings: Sequence[Reading], found: "_Shown"
    ) -> DissectionResult:
        first, second = ([reading.halves[i].value() for reading in readings] for i in range(2))
        counts = [one.plus(other) for one, other in zip(first, second, strict=True)]
        moments = [reading.moments for reading in readings]
        whole = joined(counts)
        sums = {
            name: torch.cat([getattr(m, name) for m in moments])
            for name in ("product", "total", "squares")
        }
        maxima = torch.cat([reading.levels.maxima for reading in readings], 1)
        best = whole.iou.max(1)
        detects = best.values > self.min_iou
        labelled = (detects if detects.any() else best.values > 0).nonzero()[:, 0]
        concepts = best.indices[labelled]
        judged = Judged.of(whole, sums, moments[0].cells, labelled, concepts)
        nulls = [r.null.best(c) for r, c in zip(readings, counts, strict=True)]
        return assemble(
            provenance=Provenance.collect(model=model, examples=found.id(scenes), method=self),
            readings=readings,
            vocabulary=scenes.vocabulary,
            images=len(scenes),
            counts=whole,
            halves=(joined(first), joined(second)),
            correlation=correlation(
                sums["product"], sums["total"], sums["squares"], whole.label_area, moments[0].cells
            ),
            auprc=found.average_precision(maxima, scenes),
            base_rate=found.base_rate(scenes),
            maxima=maxima,
            null=NullScores(
                torch.cat([b for b, _ in nulls], 1), torch.cat([c for _, c in nulls], 1)
            ),
            label_tests=label_tests(
                judged, maxima[:, labelled], found.shown[:, concepts], self.seed
            ),
            min_iou=self.min_iou,
            level=self.level,
            top=min(self.top, len(scenes)),
        )


def halves(ids: Sequence[str], seed: int) -> list[int]:
    """Return which half each image belongs to; images of equal content belong to one."""
    distinct = list(dict.fromkeys(ids))
    order = np.random.default_rng(seed).permutation(len(distinct))
    half = {distinct[i]: place % 2 for place, i in enumerate(order)}
    return [half[i] for i in ids]


def joined(counts: Sequence[Counts]) -> Counts:
    """Return the counts of several layers' units as one; labels are the same for all."""
    return Counts(
        torch.cat([c.shared for c in counts]),
        torch.cat([c.unit_area for c in counts]),
        counts[0].label_area,
        counts[0].cells,
    )


@dataclass
class _Shown:
    """Which concepts each image shows, and a fingerprint of its labels."""

    shown: Bool[Tensor, "images concepts"]
    labels: list[str]

    @classmethod
    def empty(cls, scenes: Scenes) -> "_Shown":
        shape = (len(scenes), len(scenes.vocabulary))
        return cls(torch.zeros(shape, dtype=torch.bool), [""] * len(scenes))

    def add(self, block: Sequence[int], labels: Sequence[ImageLabels]) -> None:
        for i, found in zip(block, labels, strict=True):
            self.shown[i] = torch.from_numpy(present(found, self.shown.shape[1]))
            data = bytes(tensor_bytes(torch.from_numpy(found.planes))) + repr(found.whole).encode()
            self.labels[i] = bytes_id(data)

    def id(self, scenes: Scenes) -> str:
        """Return a content id of the images and all that is said about them."""
        words = repr((scenes.vocabulary.names, scenes.vocabulary.categories))
        return bytes_id("\0".join([*scenes.examples.ids, *self.labels, words]).encode())

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
        counted = torch.stack(
            [self.counted(scenes, k) for k in range(len(scenes.vocabulary.kinds))], 1
        )
        totals = counted.sum(0)[torch.from_numpy(scenes.vocabulary.kind_of)]
        return self.shown.sum(0).double() / totals.clamp(min=1)
