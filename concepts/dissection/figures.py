"""Figures of a dissection: detectors by category and layer, and one unit's images with its masks."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool
from PIL import Image

from probing.results.figures import FAINT, FULL_WIDTH, INK, PALETTE, RULE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from concepts.dissection.result import DissectionResult


def category_bars(result: "DissectionResult") -> "Figure":
    """Return how many concepts each layer has detectors of, by category, with the mean under shuffled images."""
    kinds = list(dict.fromkeys(result.categories))
    layers = result.layers
    with style():
        figure = new_figure(FULL_WIDTH, 0.9 + 0.34 * len(kinds) + 0.12 * len(kinds) * len(layers))
        axes = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False)[0]
        for ax, layer in zip(axes, layers, strict=True):
            found, chance = result.detectors_by_category(layer), result.null_by_category(layer)
            places = np.arange(len(kinds))
            ax.barh(
                places - 0.19,
                [found[k] for k in kinds],
                0.36,
                color=PALETTE[0],
                label="images as they are",
            )
            if len(result.null.iou):
                ax.barh(
                    places + 0.19, [chance[k] for k in kinds], 0.36, color=RULE, edgecolor=FAINT, lw=0.5,
                    label="images shuffled, mean",
                )  # fmt: skip
            for place, kind in zip(places, kinds, strict=True):
                ax.annotate(
                    str(found[kind]), (found[kind], place - 0.19), (3, 0), textcoords="offset points",
                    va="center", fontsize=6.5, color=INK,
                )  # fmt: skip
            ax.set_title(f"{layer}\n{int(result.rows_of(layer).numel())} units", fontsize=7)
        axes[0].set_yticks(np.arange(len(kinds)), kinds)
        axes[0].invert_yaxis()
        axes[0].margins(x=0.15)
        figure.supxlabel(f"concepts with a detector (IoU > {result.min_iou:g})", fontsize=8)
        if len(result.null.iou):
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def masked(
    picture: Image.Image, mask: Bool[np.ndarray, "rows columns"], *, outside: float = 0.3
) -> Image.Image:
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
