"""How attributions are shown: the check beside each map, figures, and what a notebook displays."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution
from probing.attribution.perturbation.regression import r2_in_words
from probing.results.heatmaps import (
    ALPHA,
    PERCENTILE,
    Channels,
    Column,
    RenderError,
    edge_control,
    pictures,
    reduce_channels,
    side_by_side,
)
from probing.results.notebook import picture_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MOST_SHOWN = 4  # rows of what a notebook displays


def checks(found: Attribution) -> tuple[str, ...]:
    """Return for each input what tells how far to trust its map, in one short line; empty where nothing does."""
    return tuple(
        _check({k: d[row] for k, d in found.diagnostics.items()}, found, row)
        for row in range(len(found.values))
    )


def _check(facts: dict[str, Tensor], found: Attribution, row: int) -> str:
    if "conservation_gap" in facts:
        score = float(found.score[row])
        bias = float(facts["absorbed_by_bias"])
        return f"input {float(facts['input']):+.3g}, bias {bias:+.3g} of {score:+.3g}"
    if "r2" in facts:
        score, given = float(found.score[row]), float(facts["prediction"])
        lost = int(facts.get("unhidden_parts", torch.tensor(0)))
        same = f"; {lost} parts look the same hidden" if lost else ""
        return f"{r2_in_words(float(facts['r2']))}, gives {given:+.3g} of {score:+.3g}{same}"
    if "completeness_gap" in facts:
        return _sum_check(facts, found, row)
    if "standard_error" in facts:
        return _noise_check(facts, found.values[row])
    if "nothing_positive" in facts and bool(facts["nothing_positive"]):
        return "empty: nothing raises the score"
    return ""


def _sum_check(facts: dict[str, Tensor], found: Attribution, row: int) -> str:
    """Return by how much a map misses the change of the score that it should add up to."""
    unmoved = float(facts.get("unmoved", torch.tensor(0.0)))
    if unmoved == 1:
        return "empty: the input is its own baseline"
    gap = float(facts["completeness_gap"])
    base = 0.0 if found.baseline_score is None else float(found.baseline_score[row])
    whole = abs(float(found.score[row]) - base)
    share = f" ({abs(gap) / whole:.1%})" if whole > 0 else ""
    missed = "" if bool(facts.get("converged", torch.tensor(True))) else ", not converged"
    own = f"; {unmoved:.0%} equals the baseline and gets 0" if unmoved >= 0.005 else ""
    return f"gap {gap:+.2g}{share}{missed}{own}"


def _noise_check(facts: dict[str, Tensor], values: Tensor) -> str:
    """Return the error of a map by the draw of noise, if there was any."""
    if not float(facts.get("noise", torch.tensor(1.0))):
        return "no noise: the input has one value"
    size, error = float(values.abs().mean()), float(facts["standard_error"].mean())
    return f"standard error {error / size:.0%}" if size > 0 else ""


def column(
    found: Attribution,
    title: str,
    *,
    channels: Channels = "sum",
    notes: tuple[str, ...] = (),
    alpha: float | None = None,
) -> Column:
    """Return an attribution's maps as a column of a figure, at the input's resolution.

    Channels that all hold the same, as of superpixels, are one.

    Raises:
        RenderError: if the values are no maps `[n, c, h, w]`.
    """
    if found.values.ndim != 4:
        raise RenderError(
            f"heat maps need values [n, c, h, w], got shape {tuple(found.values.shape)}: "
            "read `.values` where inputs are no images."
        )
    maps = found.upsampled().detach().cpu()
    if bool((maps == maps[:, :1]).all()):
        maps = maps[:, :1]
    signed = channels == "sum"
    return Column(title, reduce_channels(maps, channels), notes, signed=signed, alpha=alpha)


def plot(
    found: Attribution,
    inputs: Float[Tensor, "n c h w"] | None = None,
    *,
    channels: Channels = "sum",
    alpha: float | None = ALPHA,
    percentile: float = PERCENTILE,
    edges: bool = False,
) -> "Figure":
    """Return a figure of the maps, one row per input; see `Attribution.plot`."""
    said = zip(found.target, found.score.tolist(), strict=True)
    names = [f"class {target}\n{found.unit} {score:.3g}" for target, score in said]
    title = title_of(found)
    if inputs is None:
        notes = tuple("\n".join(lines) for lines in zip(names, checks(found), strict=True))
        return side_by_side([column(found, title, channels=channels, notes=notes)])
    images = pictures(inputs)
    shown = [column(found, title, channels=channels, notes=checks(found))]
    if alpha is not None:
        shown.append(column(found, "over the input", channels=channels, alpha=alpha))
    if edges:
        shown.append(edge_control(images))
    return side_by_side(shown, images, names=names, percentile=percentile)


def title_of(found: Attribution) -> str:
    """Return the name of the class that made a result."""
    return str(found.provenance.method.get("class", "")).rpartition(":")[2] or "attribution"


def notebook_html(found: Attribution) -> str:
    """Return what a notebook shows: the maps where values are maps, and a row of numbers for each input."""
    from markupsafe import escape

    cells = "".join(
        f"<tr><td>{row}</td><td>{found.target[row]}</td><td>{float(found.score[row]):.4g}</td>"
        f"<td>{escape(said)}</td></tr>"
        for row, said in enumerate(checks(found)[:_MOST_SHOWN])
    )
    more = len(found.values) - _MOST_SHOWN
    head = f"<tr><th>input</th><th>class</th><th>{escape(found.unit)}</th><th>check</th></tr>"
    where = f", layer {escape(found.layer)}" if found.layer else ""
    parts = [f"<p><b>{escape(title_of(found))}</b>{where}, {tuple(found.values.shape)}</p>"]
    if found.values.ndim == 4 and bool(torch.isfinite(found.values).all()):
        parts.append(picture_html(plot(_first(found)), f"{title_of(found)}: heat maps"))
    parts.append(f"<table>{head}{cells}</table>")
    if more > 0:
        parts.append(f"<p>and {more} more</p>")
    return f"<div>{''.join(parts)}</div>"


def _first(found: Attribution) -> Attribution:
    from dataclasses import replace

    part = slice(0, _MOST_SHOWN)
    base = None if found.baseline_score is None else found.baseline_score[part]
    return replace(
        found,
        values=found.values[part],
        score=found.score[part],
        target=found.target[part],
        baseline_score=base,
        diagnostics={name: d[part] for name, d in found.diagnostics.items()},
    )
