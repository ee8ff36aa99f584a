"""Finding a known bias in the data: which classes' images lie along which concepts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ArgumentError
from probing.results.figures import DIVERGING, figure_of, new_figure, style
from probing.results.result import Provenance, Result
from probing.statistics.hypothesis_tests import TooFewError, holm, rank_sum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Associations(Result):
    """How like each concept the images of each class are, against the images of all other classes.

    It speaks of data as a layer sees them, not of what the model does with it: that is what TCAV and swaps are for.
    """

    classes: tuple[str, ...]
    concepts: tuple[str, ...]
    similarity: Float[Tensor, "classes concepts"]
    """Mean cosine of a class's centred activations with the concept's direction (-1 to 1)."""
    superiority: Float[Tensor, "classes concepts"]
    """Probability that an image of the class is more like the concept than one of another class (0-1)."""
    p: Float[Tensor, "classes concepts"]
    """Two-sided rank-sum test, which takes images as independent."""
    p_holm: Float[Tensor, "classes concepts"]
    """Corrected over classes and concepts."""

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per class and concept."""
        import pandas as pd

        names = ("similarity", "superiority", "p", "p_holm")
        return pd.DataFrame(
            {"class": cls, "concept": concept} | {name: float(getattr(self, name)[i, c]) for name in names}
            for i, cls in enumerate(self.classes)
            for c, concept in enumerate(self.concepts)
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw superiority as a matrix; a star marks p_holm of at most 0.05."""
        if ax is None:
            size = (1.5 + 0.6 * len(self.concepts), max(1.6, 0.8 + 0.25 * len(self.classes)))
            with style():
                return self.plot(new_figure(*size).add_subplot())
        picture = ax.imshow(self.superiority.numpy(), vmin=0, vmax=1, cmap=DIVERGING, aspect="auto")
        figure_of(ax).colorbar(picture, ax=ax, label="superiority")
        for i, c in torch.nonzero(self.p_holm <= 0.05).tolist():
            ax.text(c, i, "*", ha="center", va="center")
        ax.set_xticks(range(len(self.concepts)), self.concepts, rotation=30, ha="right")
        ax.set_yticks(range(len(self.classes)), self.classes)
        return ax


def associate(
    features: Float[Tensor, "n m"],
    classes: Sequence[str],
    directions: Float[Tensor, "concepts m"],
    concepts: Sequence[str],
    provenance: Provenance | None = None,
) -> Associations:
    """Return how like each concept the images of each class are.

    Args:
        features: activations of all images; their mean is taken off, so that cosines tell images apart.
        classes: of each image, by name.
        directions: one per concept, of any length.
        concepts: names of the directions.
        provenance: of the activations; this process's by default.

    Raises:
        TooFewError: if all images are of one class.
        ValueError: if names and numbers do not fit.
    """
    if len(classes) != len(features) or len(concepts) != len(directions):
        raise ArgumentError(
            f"got {len(classes)} classes for {len(features)} images and {len(concepts)} names for {len(directions)} "
            "directions: give one each."
        )
    names = tuple(dict.fromkeys(classes))
    if len(names) < 2:
        raise TooFewError(f"images of one class are compared with those of others, got {list(names)} only.")
    centred = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    cosines = centred @ torch.nn.functional.normalize(directions.double(), dim=1).T
    member = torch.tensor([[c == name for c in classes] for name in names])
    tests = [[rank_sum(column[own], column[~own]) for column in cosines.T] for own in member]
    p = torch.tensor([[t.p for t in row] for row in tests], dtype=torch.float64)
    return Associations(
        provenance=provenance or Provenance.collect(),
        classes=names,
        concepts=tuple(concepts),
        similarity=torch.stack([cosines[own].mean(0) for own in member]),
        superiority=torch.tensor([[t.superiority for t in row] for row in tests], dtype=torch.float64),
        p=p,
        p_holm=holm(p),
    )
