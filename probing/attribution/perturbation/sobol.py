"""Total Sobol indices: which share of a score's variance goes with each part of an input as parts fade."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod
from probing.attribution.perturbation.contribution_maps import Scored
from probing.attribution.perturbation.cutting import PART_MEAN, SUPERPIXELS, cut_up, part_facts, settled
from probing.attribution.perturbation.parts import Hidden
from probing.attribution.perturbation.superpixels import Segmentation
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.inputs import InputError
from probing.core.progress import Progress
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.statistics.sobol import ratio, sobol_total


@dataclass(frozen=True)
class Sobol(LocalMethod):
    """The share of the score's variance that goes with each part, alone or together with others (Fel et al. 2021).

    Each part shows a random share of itself, uniform between none and all and independent of the other parts', and what
    hides it the rest. A part's total index is the variance that is left, on average, once all other parts are fixed, over
    the whole variance. Where parts act together, each counts what they do together, so shares may add up to more than 1;
    they say nothing of a sign: a part that lowers the score as far as another raises it has the same share. Of a linear
    score with contributions a the indices are `a² / Σ a²`. Estimates (Jansen 1999) of parts that play no role are exactly 0.
    All inputs get the same draws.

    In the diagnostics: `standard_error`, by the draw, of the map's shape; `variance` of each input's score under masks,
    where 0 leaves nothing to share, and the map is 0; `parts`, `flat_parts` and `unhidden_parts` as for `LIME`.

    Attributes:
        parts: how inputs are cut, as for `LIME`.
        hidden: what shows where a part is hidden: the part's mean colour, or a baseline of one draw.
        masks: pairs of draws; each takes a pass for each part, and two.
        seed: of the draws.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    family: ClassVar[Family] = "local"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3)
    demands: ClassVar[tuple[Demand, ...]] = ()

    parts: Segmentation = SUPERPIXELS
    hidden: Hidden = PART_MEAN
    masks: int = 32
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map, of shares.

        Raises:
            InputError: if an input can't be cut, looks the same whatever is hidden, or for fewer than two pairs of draws.
        """
        if self.masks < 2:
            raise InputError(f"Sobol needs at least 2 pairs of masks, got {self.masks}.")
        method = settled(self, score, inputs)
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            cut = cut_up(method, passes, inputs)
            value = passes.values(inputs.to(passes.device), torch.arange(len(inputs)))
            maps, errors, variances = [], [], []
            with Progress(len(cut), "Sobol indices", unit="inputs") as meter:
                for i, parts in enumerate(cut):
                    scored = Scored(passes, parts, i, "Sobol indices")
                    shares, wholes = sobol_total(scored.blended, parts.count, self.masks, self.seed)
                    index, error = ratio(shares, wholes)
                    maps.append(parts.spread(index.nan_to_num(0)))
                    errors.append(parts.spread(error.nan_to_num(0)))
                    variances.append(wholes.mean())
                    meter.advance(1)
            told = {"standard_error": torch.stack(errors).to(inputs), "variance": torch.stack(variances).to(inputs)}
            return passes.attribution(
                method,
                inputs,
                torch.stack(maps).to(inputs),
                value.to(inputs),
                diagnostics=told | part_facts(cut, inputs.device),
                signed=False,
            )
