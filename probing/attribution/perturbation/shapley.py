"""Shapley values: what each part of an input contributes, on average over all orders in which parts are added."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod
from probing.attribution.perturbation.contribution_maps import contribution_map
from probing.attribution.perturbation.cutting import PART_MEAN, SUPERPIXELS
from probing.attribution.perturbation.parts import Hidden
from probing.attribution.perturbation.superpixels import Segmentation
from probing.attribution.perturbation.surrogate import ExactShapley, KernelShap, ShapleySampling
from probing.attribution.score_passes import FLOAT32, BatchSize
from probing.models.precision import Precision
from probing.models.scores import Score

SAMPLING = ShapleySampling()


@dataclass(frozen=True)
class Shapley(LocalMethod):
    """The mean change of the score when a part is added, over all orders of adding parts (Shapley 1953).

    Each value of the map holds what its whole part contributes; over parts, not over values, they add up to the score minus
    that with every part hidden (`diagnostics["intercept"]`). Exact up to 12 parts; above, sampled, with a standard error,
    which is 0 where nothing is drawn.

    In the diagnostics: as for `LIME`; `r2` says how much of what coalitions of parts do these contributions explain.

    Attributes:
        parts: how inputs are cut, as for `LIME`; `Given.of` takes a mask of groups.
        hidden: what shows where a part is hidden: the part's mean colour, or a baseline of one draw.
        by: how values are found: exactly, by orders of adding parts, or by a linear model of coalitions.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    family: ClassVar[Family] = "local"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3, 8)
    demands: ClassVar[tuple[Demand, ...]] = ()

    parts: Segmentation = SUPERPIXELS
    hidden: Hidden = PART_MEAN
    by: ShapleySampling | KernelShap | ExactShapley = SAMPLING
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: if an input can't be cut, or looks the same whatever is hidden.
        """
        return contribution_map(self, lambda *_: self.by, score, inputs, (self.batch_size, self.precision), "Shapley values")
