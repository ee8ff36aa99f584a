"""Maps of what the parts of inputs contribute, as a surrogate finds it from scores of coalitions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from probing.attribution.base import Attribution
from probing.attribution.perturbation.cutting import OfParts, cut_up, part_facts, settled
from probing.attribution.perturbation.parts import TensorParts
from probing.attribution.perturbation.surrogate import Contributions, Surrogate
from probing.attribution.score_passes import BatchSize, Passes
from probing.core.progress import Progress
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score

FACTS = ("r2", "intercept", "prediction", "condition", "reliability")
"""What the diagnostics say of an input's contributions, beside `coalitions`."""


def contribution_map(
    method: OfParts,
    learner: Callable[[int, TensorParts], Surrogate],
    score: Score,
    inputs: Float[Tensor, "n *shape"],
    runs: tuple[BatchSize, Precision],
    what: str,
) -> Attribution:
    """Return the map of what each part contributes, all over the part.

    Args:
        method: says how inputs are cut, and what hides parts.
        learner: what learns contributions of the numbered input's parts from coalitions of them.
        score: what is explained.
        inputs: one example per row.
        runs: variants of a pass, and how passes run.
        what: is made, for the progress line.

    Raises:
        InputError: if an input can't be cut, is a single part, or looks the same whatever is hidden.
    """
    method = settled(method, score, inputs)
    with unchanged(score.model):
        passes = Passes.of(score, inputs, *runs)
        cut = cut_up(method, passes, inputs)
        found = []
        with Progress(len(cut), what, unit="inputs") as meter:
            for i, parts in enumerate(cut):
                found.append(learner(i, parts)(Scored(passes, parts, i, what), parts.count))
                meter.advance(1)
        values, errors = (
            torch.stack([parts.spread(v) for parts, v in zip(cut, each, strict=True)]).to(inputs)
            for each in ([f.coefficients for f in found], [f.standard_error for f in found])
        )
        diagnostics = _facts(found) | {"standard_error": errors} | part_facts(cut, inputs.device)
        value = torch.tensor([f.score for f in found], dtype=torch.float64).to(inputs)
        return passes.attribution(method, inputs, values, value, diagnostics=diagnostics)  # type: ignore[arg-type]


def _facts(found: list[Contributions]) -> dict[str, Tensor]:
    facts = {name: torch.tensor([getattr(f, name) for f in found], dtype=torch.float64) for name in FACTS}
    return facts | {"coalitions": torch.tensor([f.samples for f in found])}


@dataclass(frozen=True)
class Scored:
    """Scores of coalitions of one input's parts."""

    passes: Passes
    parts: TensorParts
    row: int
    what: str

    def __call__(self, kept: Bool[Tensor, "k parts"]) -> Float64[Tensor, " k"]:
        """Return the score of each coalition of kept parts."""
        return self._of(self.parts.render, kept)

    def blended(self, shares: Float[Tensor, "k parts"]) -> Float64[Tensor, " k"]:
        """Return the score of each variant in which parts show shares of themselves."""
        return self._of(self.parts.blend, shares)

    def _of(self, make: Callable[[Tensor], Tensor], shown: Tensor) -> Float64[Tensor, " k"]:
        found = []
        with Progress(len(shown), self.what, unit="passes") as meter:
            for part in self.passes.slices(len(shown)):
                variants = make(shown[part])
                rows = torch.full((len(variants),), self.row)
                with torch.no_grad():
                    found.append(self.passes.value(variants, rows))
                meter.advance(part.stop - part.start)
        return torch.cat(found).cpu().double()  # read once, not in every pass
