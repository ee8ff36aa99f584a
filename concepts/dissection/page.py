"""Pages of a dissection: one on all layers, and one per layer with its units' images."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor, nn

from concepts.data.segmentation.labels import Scenes, present
from concepts.dissection.layer_units import Lens
from concepts.dissection.summary import dissection_summary
from probing.data.examples import Subset
from probing.maximization import Maximization
from probing.results.figures import Strip, montage
from probing.results.html_report import (
    Finding,
    Plate,
    Points,
    Report,
    Section,
    Table,
    number,
    p_value,
)
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    from concepts.dissection.result import DissectionResult

_LIMITS = (
    "A label says where a unit is highly active, not what the network uses it for: leave the unit out to see that.",
    "A concept that is not in the table of labels can't be found, however clearly a unit detects it.",
    "IoU depends on how large a concept is: its ceiling is what a unit of this share of active places can reach.",
    "The test says that a unit is no chance find among these concepts, not that the label is the right word for it.",
)


def overview(result: "DissectionResult", subject: str) -> Report:
    """Return the page on all layers.

    Args:
        result: of the dissection.
        subject: what was dissected, in a line.
    """
    label = "Concepts with a detector, by category and layer."
    caption = (
        f"Concepts that have a detector (IoU > {result.min_iou:g}), by category. Grey: the same rule where units look at "
        "other images than the labels do, the mean over shuffles: as many are to be expected of chance."
    )
    pages = [f"The units of {layer!r} are in {unit_file(layer)}." for layer in result.layers]
    sections = (
        Section("Detectors by category", (Plate(result.plot, label, caption, "detectors"), _layer_table(result))),
        Section("How far to trust the scores", (_test_table(result),)),
        Section("What stands beside the numbers", (Points((*result.sentences(), *pages)),)),
    )
    return Report(
        title="Network dissection",
        subject=subject,
        question="Which units single out things that people have names for?",
        findings=tuple(_findings(result)),
        limits=_LIMITS,
        sections=sections,
        summary=dissection_summary(result),
        colophon=_colophon(result),
    )


def unit_page(
    result: "DissectionResult",
    layer: str,
    units: Sequence[int],
    strips: Sequence[Strip],
    subject: str,
) -> Report:
    """Return the page on a layer's units.

    Args:
        result: of the dissection.
        layer: which one.
        units: rows of the result, in the order of the strips.
        strips: each unit's images, by `unit_strips`.
        subject: what was dissected, in a line.
    """
    rows = result.rows_of(layer)
    detects, significant = int(result.detector[rows].sum()), int(result.significant[rows].sum())
    plates = tuple(_plate(result, row, strip) for row, strip in zip(units, strips, strict=True))
    claim = f"{detects} of {len(rows)} units are detectors, {significant} more so than shuffled images give."
    return Report(
        title=f"Units of {layer}",
        subject=subject,
        question="Where are the units active in the images that move them most?",
        findings=(Finding(claim, f"Shown are the {len(units)} units of highest IoU."),),
        limits=_LIMITS,
        sections=(
            Section("Units by IoU", plates),
            Section("All units shown", (_unit_table(result, units),)),
        ),
        colophon=_colophon(result),
    )


def unit_strips(
    result: "DissectionResult",
    lens: Lens,
    units: Sequence[int],
    store: ActivationStore,
    model: nn.Module,
    scenes: Scenes,
    images: int = 6,
) -> Iterator[Strip]:
    """Yield each unit's images of highest activation, darkened where it is not active.

    Args:
        result: of the dissection.
        lens: of the units' layer, as `Dissection.lenses` gives it.
        units: rows of the result.
        store: that the layer's rows are read from again.
        model: the one dissected.
        scenes: the images dissected.
        images: how many are shown of each unit.
    """
    top = {row: result.top_images[row, :images].tolist() for row in units}
    wanted = sorted({index for indices in top.values() for index in indices})
    maps: dict[tuple[int, int], Tensor] = {}
    for places, rows in store.batches(model, [lens.layer], Subset(scenes.examples, wanted)):
        ready = lens.upsampling.ready(lens.maps(rows[lens.layer]))
        for row, indices in top.items():
            unit = int(result.unit[row])
            at = {wanted[place]: one[unit : unit + 1].clone() for place, one in zip(places, ready, strict=True)}
            maps |= {(row, index): one for index, one in at.items() if index in indices}
    shown = {i: present(scenes.labels(i), len(result.concepts)) for i in wanted}
    pictures = {i: _small(scenes.picture(i)) for i in wanted}
    for row, indices in top.items():
        concept, limit = int(result.best[row]), result.threshold[row : row + 1]
        name, cut = result.concepts[concept], []
        for index in indices:
            mask = np.zeros(scenes.size, dtype=bool)
            mask.ravel()[lens.upsampling.active(maps[row, index], limit).cells] = True
            cut.append(masked(pictures[index], mask))
        captions = [name if shown[index][concept] else f"no {name}" for index in indices]
        yield Strip(_title(result, row), cut, captions)


def with_dreams(strips: Sequence[Strip], found: Maximization) -> list[Strip]:
    """Return units' strips with the image that was synthesised for each unit in front.

    Args:
        strips: by `unit_strips`.
        found: one image per strip, in the same order.

    Raises:
        ValueError: for another number of images.
    """
    captions = found.captions()
    return [
        Strip(
            strip.title,
            [_small(picture), *strip.images],
            ["synthetic\n" + caption.rpartition("\n")[2], *strip.captions],
        )
        for strip, picture, caption in zip(strips, found.pictures(), captions, strict=True)
    ]


def unit_file(layer: str) -> str:
    """Return the name of the file with a layer's units."""
    return f"units-{_named(layer)}.html"


def dreams_folder(layer: str) -> str:
    """Return the name of the folder with the images synthesised for a layer's units."""
    return f"dreams-{_named(layer)}"


def _named(layer: str) -> str:
    return layer.replace(":", "-") or "output"


def highest(result: "DissectionResult", layer: str, count: int) -> list[int]:
    """Return a layer's units of highest IoU."""
    rows = result.rows_of(layer)
    order = torch.sort(result.best_iou[rows], descending=True, stable=True).indices
    return [int(row) for row in rows[order][:count]]


def _title(result: "DissectionResult", row: int) -> str:
    concept = int(result.best[row])
    if result.best_iou[row] == 0:
        return f"unit {int(result.unit[row])}: no concept"
    return f"unit {int(result.unit[row])}: {result.concepts[concept]} ({result.categories[concept]})"


def _plate(result: "DissectionResult", row: int, strip: Strip) -> Plate:
    at = row, int(result.best[row])
    caption = (
        f"IoU {number(float(result.best_iou[row]), 3)} (at most {number(float(result.ceiling[at]), 2)}, by chance "
        f"{number(float(result.chance[at]), 3)}); on images that the concept was not chosen on "
        f"{number(float(result.held_out[row]), 3)}. Test against shuffled images: z {_known(float(result.z[row]), 1)}, "
        f"p {_p(float(result.p[row]))}, corrected {_p(float(result.p_fdr[row]))}. "
        "The images that move the unit most, dark where it is not active."
    )
    return Plate(partial(montage, [strip], columns=len(strip.images), width=5.0), strip.title, caption)


def _findings(result: "DissectionResult") -> Iterator[Finding]:
    for layer in result.layers:
        rows = result.rows_of(layer)
        found, chance = result.detectors_by_category(layer), result.null_by_category(layer)
        expected = f", {number(sum(chance.values()), 1)} by chance" if len(result.null.iou) else ""
        yield Finding(
            f"{layer}: {sum(found.values())} concepts have a detector{expected}; {int(result.significant[rows].sum())} of "
            f"{len(rows)} units score more than shuffled images give.",
            ", ".join(f"{kind}: {count}" for kind, count in found.items() if count),
        )


def _layer_table(result: "DissectionResult") -> Table:
    rows = []
    for layer in result.layers:
        units = result.rows_of(layer)
        own = units[result.detector[units]]
        rows.append(
            (
                layer,
                str(len(units)),
                str(len(own)),
                str(sum(result.detectors_by_category(layer).values())),
                _known(float((result.null.iou[:, units] > result.min_iou).double().mean() * 100), 1),
                str(int(result.significant[units].sum())),
                _mean(result.best_iou[own]),
                _mean(result.held_out[own]),
                str(int(result.inactive[units].sum())),
            )
        )
    header = (
        "layer",
        "units",
        "detectors",
        "concepts",
        "detectors by chance, %",
        "significant",
        "their mean IoU",
        "held out",
        "inactive",
    )
    return Table(f"Layers. A detector has IoU > {result.min_iou:g} with a concept.", header, tuple(rows))


def _test_table(result: "DissectionResult") -> Table:
    rows = tuple(
        (
            test.score,
            "passed" if test.passed else "failed",
            number(test.missing, 3, sign=True),
            f"{test.missing_falls:.0%}",
            number(test.extra, 3, sign=True),
            f"{test.extra_falls:.0%}",
        )
        for test in result.label_tests
        if test.units
    )
    caption = (
        "Does a score notice wrong labels? Mean change when half of the labels are missing, and when as many are "
        "added elsewhere, with the share of units whose score falls (Oikarinen, Yan & Weng 2025)."
    )
    return Table(caption, ("score", "test", "missing", "falls", "extra", "falls"), rows, text_columns=2)


def _unit_table(result: "DissectionResult", units: Sequence[int]) -> Table:
    rows = []
    for row in units:
        at = row, int(result.best[row])
        values = [
            result.best_iou[row],
            result.held_out[row],
            result.ceiling[at],
            result.correlation[at],
            result.auprc[at],
        ]
        cells = [_known(float(value), 3) for value in values]
        rows.append((_title(result, row), *cells, _p(float(result.p[row])), _p(float(result.p_fdr[row]))))
    header = (
        "unit",
        "IoU",
        "held out",
        "ceiling",
        "correlation",
        "average precision",
        "p",
        "p corrected",
    )
    return Table("Units with the concept of highest IoU.", header, tuple(rows))


def _colophon(result: "DissectionResult") -> tuple[tuple[str, str], ...]:
    made = result.provenance
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    return (
        ("images", f"{result.images}, content id {made.examples}"),
        ("model", made.model),
        ("made", f"{made.created} on {made.machine}"),
        ("versions", versions),
    )


def _known(value: float, digits: int) -> str:
    return number(None if math.isnan(value) else value, digits)


def _p(value: float) -> str:
    return p_value(None if math.isnan(value) else value)


def _mean(values: torch.Tensor) -> str:
    return number(float(values.mean()) if len(values) else None, 3)


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((224, 224))
    return small


def masked(picture: Image.Image, mask: Bool[np.ndarray, "rows columns"], *, outside: float = 0.3) -> Image.Image:
    """Return a picture that is darkened outside a mask, with a line along the mask's edge.

    Args:
        picture: as the model sees it.
        mask: on a grid of any size that covers the picture.
        outside: what is left of the brightness outside.
    """
    cells = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)
    inside = np.asarray(cells.resize(picture.size, Image.Resampling.NEAREST)) > 0
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    shown = np.where(inside[..., None], pixels, pixels * outside)
    edge = inside & ~_shrunk(inside)
    shown[edge] = (255, 220, 0)
    return Image.fromarray(shown.astype(np.uint8))


def _shrunk(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return a mask without the pixels that have a neighbour outside."""
    padded: npt.NDArray[np.bool_] = np.pad(inside, 1, mode="edge")
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
