"""Maps of evidence as pictures: channels to one, a scale that outliers do not set, colours in which zero is white.

Nothing here is part of a method: what is drawn can be drawn otherwise from the same saved values. Each map has a scale of
its own, printed beneath it, since sizes of different methods' maps can't be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probing.core.errors import ProbingError
from probing.results.figures import COLUMN_WIDTH, FAINT, FULL_WIDTH, RULE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Channels = Literal["sum", "maxabs", "sumabs", "l2"]
"""How a pixel's channels become one value: `sum` keeps the sign and the total; `maxabs` is the largest size (Simonyan et al.
2014, sec. 3.1); `sumabs` the sum of sizes; `l2` the root of the sum of squares."""
PERCENTILE = 99.0
ALPHA = 0.6


# Told apart with every common colour vision (ColorBrewer's RdBu and Purples, Harrower & Brewer 2003), but white at zero.
_SIGNED = (
    "#053061",
    "#2166ac",
    "#4393c3",
    "#92c5de",
    "#d1e5f0",
    "#ffffff",
    "#fddbc7",
    "#f4a582",
    "#d6604d",
    "#b2182b",
    "#67001f",
)
_SIZES = (
    "#ffffff",
    "#efedf5",
    "#dadaeb",
    "#bcbddc",
    "#9e9ac8",
    "#807dba",
    "#6a51a3",
    "#54278f",
    "#3f007d",
)


class RenderError(ProbingError, ValueError):
    """A map can't be shown as asked."""


def reduce_channels(maps: Float[Tensor, "n c h w"], how: Channels = "sum") -> Float[Tensor, "n h w"]:
    """Return one value per pixel."""
    if how == "sum":
        return maps.sum(1)
    if how == "maxabs":
        return maps.abs().amax(1)
    return maps.abs().sum(1) if how == "sumabs" else maps.square().sum(1).sqrt()


def scale_of(maps: Float[Tensor, "n h w"], percentile: float = PERCENTILE) -> Float[Tensor, " n"]:
    """Return the size that is shown in full colour: a percentile of each map's absolute values.

    Where that is zero because few pixels are not, it is the largest size; zero only for a map of zeros.

    Raises:
        RenderError: for a percentile outside of 0 to 100, or a map that holds NaN or infinity.
    """
    if not 0 < percentile <= 100:
        raise RenderError(f"percentile must be above 0 and at most 100, got {percentile}.")
    if not torch.isfinite(maps).all():
        row = int((~torch.isfinite(maps)).flatten(1).any(1).nonzero()[0])
        raise RenderError(f"map {row} holds NaN or infinity: there is no colour for it.")
    sizes = maps.detach().cpu().double().abs().flatten(1)
    clipped = torch.from_numpy(np.percentile(sizes.numpy(), percentile, axis=1))
    return torch.where(clipped > 0, clipped, sizes.amax(1)).to(maps)


def tones(maps: Float[Tensor, "n h w"], scale: Float[Tensor, " n"]) -> Float[Tensor, "n h w"]:
    """Return maps between -1 and 1, clipped at their scale; zero stays zero, also in a map of zeros."""
    shown = torch.where(scale > 0, scale, 1)[:, None, None]
    return (maps / shown).clamp(-1, 1)


def colours(toned: Float[Tensor, "n h w"], *, signed: bool = True) -> Float[Tensor, "n 3 h w"]:
    """Return colours for tones: blue below zero, white at it, red above; for sizes, white to purple."""
    names = _SIGNED if signed else _SIZES
    table = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in names])
    share, last = toned.detach().cpu().float(), len(table) - 1
    place = (last * ((share + 1) / 2 if signed else share)).clamp(0, last)
    below = place.floor().long().clamp(max=last - 1)
    share = (place - below)[..., None]
    return ((1 - share) * table[below] + share * table[below + 1]).movedim(-1, 1)


def pictures(inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Return inputs as colours between 0 and 1: those in that range as they are, others stretched to their extremes.

    Raises:
        RenderError: for inputs that have not one or three channels.
    """
    if inputs.shape[1] not in {1, 3}:
        raise RenderError(f"pictures have one or three channels, got {inputs.shape[1]}.")
    shown = inputs.detach().cpu().float()
    low, high = (f(shown.flatten(1), 1).view(-1, 1, 1, 1) for f in (torch.amin, torch.amax))
    inside = (low >= 0) & (high <= 1)
    stretched = (shown - low) / torch.where(high > low, high - low, 1)
    return torch.where(inside, shown, stretched).expand(-1, 3, -1, -1)


def grey(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n h w"]:
    """Return the luma of colours between 0 and 1 (ITU-R BT.601)."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)


def overlay(
    images: Float[Tensor, "n 3 h w"], heat: Float[Tensor, "n 3 height width"], alpha: float = ALPHA
) -> Float[Tensor, "n 3 h w"]:
    """Return `α · heat + (1 - α) · grey`, the heat map's pixels repeated to the images' size.

    Raises:
        RenderError: for a share outside of 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise RenderError(f"alpha must be between 0 and 1, got {alpha}.")
    if heat.shape[2:] != images.shape[2:]:
        heat = functional.interpolate(heat, images.shape[2:], mode="nearest-exact")
    return alpha * heat + (1 - alpha) * grey(images)[:, None]


def edges(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n h w"]:
    """Return the size of the grey values' slope, per pixel (Sobel); the border repeats itself.

    The control of every map: what looks like it may have been found without the model (Adebayo et al. 2018, sec. 5).
    """
    padded = functional.pad(grey(images)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    # Differences first: where the image is flat they are exactly zero.
    across = padded[:, :, 2:] - padded[:, :, :-2]
    down = padded[:, 2:] - padded[:, :-2]
    across = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 8
    down = (down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]) / 8
    return (across.square() + down.square()).sqrt()


@dataclass(frozen=True)
class Column:
    """One method's maps of several images, as a figure shows them.

    Attributes:
        title: above the maps.
        maps: one per image, of any size.
        notes: what is said beneath each map, besides its scale.
        signed: whether values below zero mean something else than values above.
        alpha: share of the heat map where it is laid over the grey image; None for the heat map alone.
    """

    title: str
    maps: Float[Tensor, "n h w"]
    notes: tuple[str, ...] = ()
    signed: bool = True
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.notes and len(self.notes) != len(self.maps):
            raise RenderError(f"column {self.title!r} has {len(self.maps)} maps and {len(self.notes)} notes.")


def edge_control(images: Float[Tensor, "n 3 h w"]) -> Column:
    """Return the edge detector as a column beside methods."""
    return Column("edges", edges(images), ("Sobel, no model",) * len(images), signed=False)


@dataclass(frozen=True)
class _Cell:
    """A picture with what stands above and beneath it."""

    title: str
    pixels: Float[Tensor, "3 h w"]
    caption: str


@dataclass(frozen=True)
class _Line:
    """Cells beside each other, with their captions broken to the width of a cell."""

    cells: tuple[_Cell, ...]
    captions: tuple[str, ...]
    indent: int
    titled: bool

    @classmethod
    def of(cls, cells: Sequence[_Cell], indent: int, width: float, *, titled: bool) -> "_Line":
        letters = int((width - _GAP) / _LETTER)
        return cls(tuple(cells), tuple(_broken(c.caption, letters) for c in cells), indent, titled)

    def height(self, width: float) -> float:
        """Return inches of the line, given those of a cell."""
        tallest = max(caption.count("\n") + 1 for caption in self.captions)
        return width + _SMALL * tallest + _TITLE * self.titled


_GAP, _SMALL, _LETTER, _TITLE, _FOOT = 0.06, 0.1, 0.044, 0.18, 0.32
"""Inches between pictures; of a line and a letter of small print; of a title; of the key."""
_NARROWEST = COLUMN_WIDTH


def side_by_side(
    columns: Sequence[Column],
    images: Float[Tensor, "n 3 h w"] | None = None,
    *,
    names: Sequence[str] = (),
    percentile: float = PERCENTILE,
    shared: bool = False,
    per_line: int = 6,
) -> "Figure":
    """Return a figure with a row for each image and a column for each method, the scale of each map beneath it.

    Args:
        columns: one per method.
        images: the inputs, shown first and beneath overlays, with values between 0 and 1.
        names: what is said beneath each image.
        percentile: of a map's absolute values, shown in full colour.
        shared: whether all maps of a column share the largest of their scales, so that they can be compared.
        per_line: pictures in a line; more methods are broken into several.

    Raises:
        RenderError: if there is nothing to show, or columns, images and names differ in number.
    """
    _check(columns, images, names, per_line)
    painted = [_painted(c, images, percentile, shared=shared) for c in columns]
    ahead, width = int(images is not None), FULL_WIDTH / per_line
    lines: list[_Line] = []
    for i in range(len(columns[0].maps)):
        cells = [column[i] for column in painted]
        for start in range(0, len(cells), per_line - ahead):
            part = cells[start : start + per_line - ahead]
            if images is not None and start == 0:
                part.insert(0, _Cell("input", images[i], names[i] if names else ""))
            titled = i == 0 or len(cells) > per_line - ahead
            lines.append(_Line.of(part, ahead * (start > 0), width, titled=titled))
    words = _words(percentile, shared=shared)
    return _drawn(lines, width, sorted({c.signed for c in columns}, reverse=True), words)


def _check(columns: Sequence[Column], images: Tensor | None, names: Sequence[str], per_line: int) -> None:
    if not columns or not len(columns[0].maps):
        raise RenderError("there is no map to show.")
    if per_line < 2:
        raise RenderError(f"per_line must be at least 2, got {per_line}.")
    rows = {c.title: len(c.maps) for c in columns}
    rows |= {} if images is None else {"images": len(images)}
    rows |= {"names": len(names)} if names else {}
    if len(set(rows.values())) > 1:
        raise RenderError(f"columns, images and names must be of one number, got {rows}.")
    if images is None and any(c.alpha is not None for c in columns):
        raise RenderError("an overlay needs the images that it is laid over.")


def _painted(column: Column, images: Tensor | None, percentile: float, *, shared: bool) -> list[_Cell]:
    """Return the cells of one column."""
    maps = column.maps.detach().cpu()
    scale = scale_of(maps, percentile)
    if shared:
        scale = scale.amax().expand(len(scale))
    heat = colours(tones(maps, scale), signed=column.signed)
    if column.alpha is not None:
        assert images is not None
        heat = overlay(images, heat, column.alpha)
    sign = "\N{PLUS-MINUS SIGN}" if column.signed else "0 to "
    said = [f"{sign}{float(s):.2g}" if s > 0 else "zero everywhere" for s in scale]
    notes = column.notes or ("",) * len(heat)
    captions = [f"{size}\n{note}".strip() for size, note in zip(said, notes, strict=True)]
    return [_Cell(column.title, h, c) for h, c in zip(heat, captions, strict=True)]


def _words(percentile: float, *, shared: bool) -> str:
    size = "largest size" if percentile == 100 else f"{percentile:g}th percentile of the sizes"
    whose = "in the map of its column that is largest" if shared else "in each map"
    return f"Full colour: the {size} {whose}, printed beneath it."


def _drawn(lines: Sequence[_Line], width: float, signs: Sequence[bool], words: str) -> "Figure":
    height = sum(line.height(width) for line in lines) + _FOOT
    full = max(width * max(line.indent + len(line.cells) for line in lines), _NARROWEST)
    with style():
        figure = new_figure(full, height, fitted=False)
        axes = figure.add_axes((0, 0, 1, 1))  # one for all: each would cost as much as a plot
        top = height
        for line in lines:
            under = top - _TITLE * line.titled
            for k, (cell, caption) in enumerate(zip(line.cells, line.captions, strict=True)):
                left = (line.indent + k) * width + _GAP / 2
                if line.titled:
                    _say(axes, left, under + 0.03, cell.title, bold=True)
                _put(axes, cell.pixels, left, under, width - _GAP)
                _say(axes, left, under - width + _GAP - 0.03, caption)
            top -= line.height(width)
        _put_key(axes, signs, words)
        axes.set(xlim=(0, full), ylim=(0, height))
        axes.set_axis_off()
    return figure


def _say(axes: "Axes", x: float, y: float, text: str, *, bold: bool = False) -> None:
    if bold:
        axes.text(x, y, text, fontsize=7, fontweight="bold", va="bottom")
    else:
        axes.text(x, y, text, fontsize=5.5, va="top", linespacing=1.25)


def _put(axes: "Axes", pixels: Tensor, left: float, top: float, size: float) -> None:
    """Draw a picture into a square with its upper left corner at a point, in inches."""
    shown = pixels.clamp(0, 1).movedim(0, -1).numpy()
    tall, wide = shown.shape[:2]
    w, h = (size * side / max(tall, wide) for side in (wide, tall))
    x, y = left + (size - w) / 2, top - (size + h) / 2
    axes.imshow(shown, extent=(x, x + w, y, y + h), aspect="auto", interpolation="antialiased")
    _frame(axes, x, y, w, h)


def _frame(axes: "Axes", x: float, y: float, w: float, h: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=RULE, linewidth=0.4))


_KEYS = {True: ("lowers", "raises the score", 0.3, 1.62), False: ("none", "much", 0.24, 1.2)}
"""Of signed maps and of sizes: what stands left and right of the scale, where the scale begins, inches of all."""


def _put_key(axes: "Axes", signs: Sequence[bool], words: str) -> None:
    """Draw the colour scales at the foot of a figure, and say how they are to be read."""
    x, ramp = _GAP / 2, torch.linspace(-1, 1, 65)[None, None]
    for signed in signs:
        low, high, begins, wide = _KEYS[signed]
        toned = ramp if signed else (ramp + 1) / 2
        bar = colours(toned, signed=signed)[0].movedim(0, -1).numpy()
        at = (x + begins, x + begins + 0.5, 0.17, 0.24)
        axes.imshow(bar, extent=at, aspect="auto", interpolation="nearest")
        _frame(axes, at[0], at[2], 0.5, 0.07)
        _say(axes, x, 0.245, low)
        _say(axes, at[1] + 0.04, 0.245, high)
        x += wide
    axes.text(_GAP / 2, 0.07, words, fontsize=5.5, va="center", color=FAINT)


def _broken(text: str, letters: int) -> str:
    """Return text with its lines broken to a number of letters."""
    lines = [piece for line in text.split("\n") for piece in wrap(line, letters) or [""]]
    return "\n".join(lines)
