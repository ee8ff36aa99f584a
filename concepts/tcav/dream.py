"""The dream of a concept: the image that moves a layer along a CAV, beside the concept's own pictures.

Kim et al. 2018, sec. 4.1.3 ("empirical deep dream"): what a CAV points at can be looked at, and should
be, before a score that rests on it is believed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from probing.maximization import Direction, Maximization, Maximize, TensorDirection
from probing.maximization.objective import Objective
from probing.models.loading import LoadedModel
from probing.results.figures import Strip, montage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cav_objective(
    layer: str,
    cav: Float[Tensor, "*shape"],
    name: str,
    *,
    cosine_power: float = 2.0,
    last: bool = False,
) -> Objective:
    """Return the objective whose image is a CAV's dream: a vector over units, or of the layer's whole shape.

    A power of cosine keeps activations near the CAV itself: without it the largest units alone win. `last`
    is that of `probing.maximization.Channel`.
    """
    unit = cav.detach() / cav.detach().norm().clamp(min=1e-12)
    if unit.ndim == 1:
        return Direction(layer, unit, cosine_power, label=name, last=last)
    return TensorDirection(layer, unit, label=name)


def dream(
    loaded: LoadedModel,
    layer: str,
    cavs: Sequence[Float[Tensor, "*shape"]],
    name: str,
    *,
    settings: Maximize | None = None,
    cosine_power: float = 2.0,
) -> Maximization:
    """Return, for a concept's CAVs at a layer, the image toward their mean and the image away from it.

    Args:
        loaded: tells how pixels become inputs.
        layer: that the CAVs were fitted at.
        cavs: unit directions of the runs, over units (as of pooled rows) or of the layer's shape; their mean is
            dreamt of, since single runs differ.
        name: of the concept.
        settings: `Maximize()` by default.
        cosine_power: see `cav_objective`.
    """
    mean = torch.stack([cav / cav.norm().clamp(min=1e-12) for cav in cavs]).mean(0)
    goals = [
        cav_objective(layer, mean, name, cosine_power=cosine_power),
        cav_objective(layer, -mean, f"not {name}", cosine_power=cosine_power),
    ]
    return (settings or Maximize())(loaded, goals)


def dream_figure(found: Maximization, name: str, pictures: Sequence[Image.Image] = (), *, columns: int = 6) -> "Figure":
    """Return a concept's dream, what lies the other way, and some of the concept's own pictures."""
    strips = [Strip(f"Dream of {name!r}", found.pictures(), [f"toward {name}", f"away from {name}"])]
    if pictures:
        shown = list(pictures)[:columns]
        strips.append(Strip(f"Pictures of {name!r}", shown, [""] * len(shown)))
    return montage(strips, columns=columns)
