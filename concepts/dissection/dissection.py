"""Network dissection: which units of a network pick out things that people have names for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import nn

from concepts.data.segmentation.labels import Scenes
from concepts.dissection.label_tests import Judged, label_tests
from concepts.dissection.layer_units import Lens, Levels, Reading
from concepts.dissection.protocols import PAPER, DissectionError, Protocol
from concepts.dissection.result import DissectionResult, NullScores, assemble
from concepts.dissection.rotation import Rotation
from concepts.dissection.soft_scores import correlation
from concepts.dissection.tally import Counts
from concepts.dissection.two_passes import (
    FirstShare,
    Passes,
    SecondShare,
    Shown,
    counts_parts,
    levels_parts,
)
from concepts.dissection.unit_masks import Upsampling
from probing.attribution.base import Demand
from probing.core.content_ids import content_id, model_id
from probing.core.inputs import Inputs
from probing.models.geometry import Layout
from probing.models.layers import expand
from probing.models.loading import Model, module_of
from probing.models.precision import Precision
from probing.models.summary import calls
from probing.results.result import Provenance, describe
from probing.store.launchers import Engine
from probing.store.partials import Parts, accumulated
from probing.store.requests import Request
from probing.store.shares import Share
from probing.store.store import ActivationStore

_FLOAT32 = Precision()
_READ = 256
"""Texts whose masks are looked at together."""
_CHECKED = 16
"""Images whose labels are looked at again before counts that were left in a folder are believed."""


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
        layers: paths or globs of layers that return maps of images, series or volumes, or tokens of patches or texts.
        protocol: which published procedure is followed.
        min_iou: least IoU of a detector.
        rotation: dissects rotated units, as a control; the layer's own if None.
        draws: shuffles of the images; 0 leaves the test out. Each takes 4 bytes per unit and concept.
        level: of the test, as a share of false detectors among those called so.
        top: how many of each unit's highest images are named.
        grid: rows and columns of patches, for tokens whose number does not tell.
        channels_last: whether maps are `[n, h, w, c]`, where that can't be inferred or measured.
        seed: of shuffles and halves.

    Raises:
        DissectionError: for fewer than two images, or no label anywhere.
        probing.models.geometry.RefusedError: for a layer without places.

    Example:
        >>> result = Dissection(("layer3", "layer4"))(store, loaded.model, scenes)
        >>> result.to_pandas().query("detector")
    """

    answers: ClassVar[tuple[int, ...]] = (4, 5, 7, 8)
    demands: ClassVar[tuple[Demand, ...]] = ("layer",)

    layers: str | tuple[str, ...]
    protocol: Protocol = PAPER
    min_iou: float = 0.04
    rotation: Rotation | None = None
    draws: int = 199
    level: float = 0.05
    top: int = 9
    grid: tuple[int, int] | None = None
    channels_last: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.layers:
            raise DissectionError("layers must name at least one layer, got none.")
        if self.draws < 0 or self.top < 1:
            raise DissectionError(f"draws must be 0 or more and top 1 or more, got {self.draws} and {self.top}.")

    def __call__(self, store: ActivationStore, model: Model, scenes: Scenes) -> DissectionResult:
        """Dissect some layers of a model."""
        model = module_of(model)
        passes = self._passes(model, scenes)
        levels = passes.first(store, Share())
        return self._result(model, scenes, *passes.second(store, levels, Share()))

    def in_shares(
        self,
        engine: Engine,
        folder: Path,
        model: Model,
        scenes: Scenes,
        precision: Precision = _FLOAT32,
    ) -> DissectionResult | None:
        """Dissect without storing maps: workers pass the images and leave their counts in a folder.

        The images are passed twice; in a SLURM array the two passes are two runs of it. Counts are those of one process,
        correlations equal to rounding.

        Args:
            engine: who does the shares.
            folder: reached by all workers; a part that is there already is not made again.
            model: in evaluation mode.
            scenes: images and labels.
            precision: of the passes.

        Returns:
            The result, or None where this process's part ends before it.

        Raises:
            DissectionError: as a call, and if labels are no longer those that were counted.
        """
        model = module_of(model)
        passes = self._passes(model, scenes)
        key = self._parts_key(model, scenes, precision)
        first = accumulated(
            engine,
            Parts(folder, f"{key}-levels"),
            FirstShare(passes, precision),
            lambda: levels_parts(passes.nothing_seen()),
        )
        if first is None:
            return None
        levels = [cast("Levels", first[f"{name}: range"]) for name in passes.names]
        second = accumulated(
            engine,
            Parts(folder, f"{key}-counts"),
            SecondShare(passes, precision, levels),
            lambda: counts_parts(*passes.nothing_counted(levels)),
        )
        if second is None or not engine.leads():
            return None
        shown = cast("Shown", second["shown"])
        _check_labels(scenes, shown)
        readings = [cast("Reading", second[f"{name}: extremes"]) for name in passes.names]
        return self._result(model, scenes, readings, shown)

    def _passes(self, model: nn.Module, scenes: Scenes) -> Passes:
        if len(scenes) < 2:
            raise DissectionError(
                f"dissection needs at least two images, one to choose a concept on and one to judge it, got {len(scenes)}."
            )
        return Passes(model, scenes, tuple(self.lenses(model, scenes)), self.draws, self.seed)

    def _parts_key(self, model: nn.Module, scenes: Scenes, precision: Precision) -> str:
        words = scenes.vocabulary
        named = [list(words.names), list(words.categories), str(describe(self)), precision.kind]
        frame = [scenes.size, scenes.frame, scenes.colours]
        return content_id([model_id(model), list(scenes.examples.ids), *named, *frame])

    def requests(self, model: nn.Module, scenes: Scenes) -> tuple[Request, ...]:
        """Return what a call asks of the store, so that engines can fill it before."""
        names = tuple(lens.layer for lens in self.lenses(model, scenes))
        return (Request(model, names, scenes.examples),)

    def lenses(self, model: nn.Module, scenes: Scenes) -> list[Lens]:
        """Return how the outputs of each layer asked for become units' maps, and these label cells."""
        one = scenes.examples.load([0])
        _refuse_padding(scenes)
        lenses = []
        for layer in expand(model, self.layers, lambda: calls(model, one)):
            layout = Layout.of(model, one, layer, self.grid, channels_last=self.channels_last)
            if math.prod(layout.cells) < 2:
                raise DissectionError(
                    f"layer {layer!r} returns one value per unit and image, which has no place: name a layer with a map."
                )
            upsampling = Upsampling.of(layout, scenes.size, self.protocol)
            lenses.append(Lens(layer, layout, upsampling, self.protocol, self.rotation))
        return lenses

    def _result(self, model: nn.Module, scenes: Scenes, readings: Sequence[Reading], found: Shown) -> DissectionResult:
        if not found.shown.any():
            raise DissectionError(
                f"none of the {len(scenes)} images has a label: check that masks and images belong together."
            )
        first, second = ([reading.halves[i].value() for reading in readings] for i in range(2))
        counts = [one.plus(other) for one, other in zip(first, second, strict=True)]
        moments = [reading.moments for reading in readings]
        whole = joined(counts)
        sums = {name: torch.cat([getattr(m, name) for m in moments]) for name in ("product", "total", "squares")}
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
            correlation=correlation(sums["product"], sums["total"], sums["squares"], whole.label_area, moments[0].cells),
            auprc=found.average_precision(maxima, scenes),
            base_rate=found.base_rate(scenes),
            maxima=maxima,
            null=NullScores(torch.cat([b for b, _ in nulls], 1), torch.cat([c for _, c in nulls], 1)),
            label_tests=label_tests(judged, maxima[:, labelled], found.shown[:, concepts], self.seed),
            min_iou=self.min_iou,
            level=self.level,
            top=min(self.top, len(scenes)),
        )


def _refuse_padding(scenes: Scenes) -> None:
    """Raise if a text has tokens that are not read, whose values are nothing's."""
    examples = scenes.examples
    for start in range(0, len(examples), _READ):
        batch = examples.load(range(start, min(start + _READ, len(examples))))
        read = batch.read if isinstance(batch, Inputs) else None
        if read is None:
            return
        if not bool(read.all()):
            text = start + int((~read.all(1)).nonzero()[0])
            raise DissectionError(f"text {text} has padding, which no unit says anything of: dissect texts of one length.")


def joined(counts: Sequence[Counts]) -> Counts:
    """Return the counts of several layers' units as one; labels are the same for all."""
    return Counts(
        torch.cat([c.shared for c in counts]),
        torch.cat([c.unit_area for c in counts]),
        counts[0].label_area,
        counts[0].cells,
    )


def _check_labels(scenes: Scenes, shown: Shown) -> None:
    """Raise unless some images, evenly spread, still have the labels that were counted."""
    count = len(scenes)
    for i in sorted({k * (count - 1) // (_CHECKED - 1) for k in range(_CHECKED)}):
        if not shown.holds(i, scenes.labels(i)):
            raise DissectionError(
                f"image {i} has other labels than when its share was counted: remove the folder of parts and count anew."
            )
