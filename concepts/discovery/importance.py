"""What a score owes to each atom: parts of the score that add up, and Sobol indices of leaving atoms out.

Parts are integrated gradients at the layer, along the codes (Dhamdhere et al. 2019; Fel et al. 2023, arXiv:2306.07304): on
the way from zero output to the layer's output, a code times the mean gradient along its atom. Where all that follows the
layer is affine, they are exact by one gradient, and with what the dictionary misses they sum to the logit minus the bias.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concepts.discovery.dictionary import Dictionary
from concepts.discovery.rows import Cells
from concepts.effects.concept_attribution import ConceptGradients
from probing.attribution.path import tail_passes
from probing.attribution.score_passes import Passes
from probing.attribution.subnetwork import is_affine, tail_of
from probing.models.scores import Score
from probing.statistics.hypothesis_tests import max_t
from probing.statistics.sobol import ratio, sobol_total

_AT_ONCE = 8
_STEPS = 32


@dataclass(frozen=True)
class ScoreParts:
    """Parts of scores of some inputs; `atoms` over atoms, `rest` and `gap` add up to `change`."""

    atoms: Float[Tensor, "n atoms"]
    rest: Float[Tensor, " n"]
    """Of the offset, of what the dictionary misses, and of tokens that are no rows."""
    gap: Float[Tensor, " n"]
    """What the steps of the integral missed; rounding alone where the parts are exact."""
    change: Float[Tensor, " n"]
    """Score minus the score at zero output of the layer, which is the bias where the rest is affine."""
    pulls: Float[Tensor, "n atoms m"]
    """Code-weighted mean gradients: an atom's part is its product with its pull."""
    exact: bool


def tail_is_affine(score: Score, layer: str) -> bool:
    """Whether a score is known to be an affine function of a layer's output."""
    tail = tail_of(score.model, layer) if score.unit == "logit" and isinstance(score.target, int) else None
    return tail is not None and is_affine(tail)


def score_parts(
    score: Score, layer: str, cells: Cells, dictionary: Dictionary, inputs: Float[Tensor, "n *shape"]
) -> ScoreParts:
    """Divide scores among a dictionary's atoms.

    Args:
        score: whose target has one class.
        layer: a dotted path.
        cells: how its output is cut into rows.
        dictionary: of such rows.
        inputs: in model space.
    """
    exact = tail_is_affine(score, layer)
    method = ConceptGradients(layer, steps=1 if exact else _STEPS)
    parts = [_parts(method, score, cells, dictionary, some) for some in torch.split(inputs, _AT_ONCE)]
    names = ("atoms", "rest", "gap", "change", "pulls")
    return ScoreParts(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names}, exact=exact)


def _parts(method: ConceptGradients, score: Score, cells: Cells, dictionary: Dictionary, inputs: Tensor) -> ScoreParts:
    path = method.path(score, inputs)
    end, slope = (cells.rows(x).cpu() for x in (path.end, path.slope))
    codes = dictionary.codes(end.flatten(0, 1).float()).double().reshape(*end.shape[:2], -1)
    pulls = codes.mT @ slope
    atoms = (pulls * dictionary.atoms.double()).sum(2)
    whole = (path.way * path.slope).flatten(1).sum(1).cpu()
    change = (path.end_score - path.start_score).cpu()
    return ScoreParts(atoms, whole - atoms.sum(1), change - whole, change, pulls, exact=method.steps == 1)


def shuffled_p(
    pulls: Float[Tensor, "targets atoms m"], atoms: Float[Tensor, "atoms m"], draws: int, seed: int
) -> Float[Tensor, "targets atoms"]:
    """Return p of parts' sizes against atoms whose numbers stand at other units, corrected for all atoms and targets.

    Each draw shuffles units, the same way for all atoms. The test is exact if, before they are looked at, gradients may
    stand at any units: for a head whose weights are independent draws, or were shuffled.

    Args:
        pulls: mean over inputs of code-weighted mean gradients.
        atoms: of the dictionary.
        draws: shuffles; p is at least `1 / (draws + 1)`.
        seed: of the shuffles.
    """
    rng = np.random.default_rng([seed, 13])
    pulls, atoms = pulls.double(), atoms.double()
    orders = (torch.from_numpy(rng.permutation(atoms.shape[1])) for _ in range(draws))
    null = torch.stack([(pulls * atoms[:, order]).sum(2) for order in orders])
    return max_t((pulls * atoms).sum(2).abs(), null.abs())


@dataclass(frozen=True)
class SobolIndices:
    """Total Sobol indices of codes that are multiplied by uniform masks, pooled over inputs (0-1)."""

    total: Float[Tensor, " atoms"]
    """Share of the score's variance under masks that goes with an atom, alone and together with others."""
    error: Float[Tensor, " atoms"]
    """Standard error over inputs; over masks for one input."""
    evaluations: int


def sobol_indices(
    score: Score,
    layer: str,
    cells: Cells,
    dictionary: Dictionary,
    inputs: Float[Tensor, "n *shape"],
    masks: int,
    seed: int,
) -> SobolIndices:
    """Return total Sobol indices of atoms (Fel et al. 2023, CRAFT, sec. 3.3): their codes at all places share a mask.

    What the dictionary misses of a row stays. Arguments are as of `score_parts` and `sobol_total`.
    """
    passes = Passes.of(score, inputs, layers=[layer])
    method = ConceptGradients(layer, steps=1)
    shares, wholes = [], []
    for i in range(len(inputs)):
        one = inputs[i : i + 1]
        output = method.path(score, one).end.to(inputs.dtype)
        rows = cells.rows(output)[0]
        codes = dictionary.codes(rows.float().cpu()).to(rows)
        atoms = dictionary.atoms.to(rows)
        left = rows - codes @ atoms
        tail = tail_passes(passes, one, layer, output)

        def value(
            drawn: Tensor,
            tail: Passes = tail,
            output: Tensor = output,
            codes: Tensor = codes,
            left: Tensor = left,
            atoms: Tensor = atoms,
        ) -> Tensor:
            found = []
            for some in torch.split(drawn, tail.chunk):
                made = left + (codes * some.to(codes)[:, None]) @ atoms
                points = cells.put(output.expand(len(some), *output.shape[1:]), made)
                found.append(tail.values(points, torch.zeros(len(some), dtype=torch.long)).cpu())
            return torch.cat(found)

        share, whole = sobol_total(value, len(atoms), masks, seed + i)
        shares.append(share)
        wholes.append(whole)
    several = len(inputs) > 1
    by_unit = [torch.stack([x.sum(0) for x in one]) if several else one[0] for one in (shares, wholes)]
    return SobolIndices(*ratio(*by_unit), evaluations=len(inputs) * masks * (len(dictionary) + 2))
