"""Names for atoms: which of some names goes with an atom's codes over examples, beyond what shuffled examples give.

A name is given by its strength in each example: the area of a label, a folder that a picture lies in, or the similarity
of picture and text in a joint space. Many atoms have none, and that is an answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.data.segmentation.labels import Scenes
from probing.core.errors import ProbingError
from probing.core.inputs import one_tensor
from probing.data.examples import Examples, as_examples
from probing.statistics.hypothesis_tests import codes, max_t

_AT_ONCE = 32


class NamingError(ProbingError, ValueError):
    """Names that can't be held against codes."""


@dataclass(frozen=True, eq=False)
class Strengths:
    """How much of each name there is in each example, in any unit that is the same for all examples."""

    names: tuple[str, ...]
    values: Float[Tensor, "n names"]

    def __post_init__(self) -> None:
        if len(self.names) != self.values.shape[1] or not self.names:
            raise NamingError(f"{self.values.shape[1]} columns of strengths have {len(self.names)} names: give one each.")
        if not self.values.isfinite().all():
            raise NamingError("strengths hold NaN or infinity: leave out those examples.")

    @classmethod
    def of_labels(cls, labels: Sequence[object]) -> "Strengths":
        """Return 1 where an example has a label, such as the folder it lies in, else 0."""
        said = [str(label) for label in labels]
        names = tuple(sorted(set(said)))
        return cls(names, torch.tensor([[float(one == name) for name in names] for one in said]))

    @classmethod
    def of_scenes(cls, scenes: Scenes) -> "Strengths":
        """Return the share of each image's cells that bear a label; 1 for labels of the whole image."""
        count = len(scenes.vocabulary)
        values = torch.zeros(len(scenes), count)
        for i in range(len(scenes)):
            labels = scenes.labels(i)
            area = np.bincount(labels.planes.ravel(), minlength=count + 1)[1:] / max(1, math.prod(labels.planes.shape[1:]))
            values[i] = torch.from_numpy(area)
            values[i, [label - 1 for label in labels.whole]] = 1.0
        return cls(tuple(scenes.vocabulary.names), values)

    @classmethod
    def of_texts(
        cls,
        examples: Examples,
        names: Sequence[str],
        images: Callable[[Tensor], Float[Tensor, "n d"]],
        texts: Callable[[Sequence[str]], Float[Tensor, "names d"]],
    ) -> "Strengths":
        """Return the cosine of each example with each name in a joint space of images and texts.

        Args:
            examples: as `images` takes them.
            names: words or sentences.
            images: into the space, such as CLIP's `encode_image`.
            texts: into the space.

        Example:
            >>> Strengths.of_texts(images, ["stripes", "dots"], space.encode_image, space.encode_texts)
        """
        examples = as_examples(examples)
        parts = [range(i, min(i + _AT_ONCE, len(examples))) for i in range(0, len(examples), _AT_ONCE)]
        with torch.no_grad():
            seen = torch.cat([images(one_tensor(examples.load(part))).cpu().double() for part in parts])
            said = texts(list(names)).cpu().double()
        if seen.shape[1:] != said.shape[1:]:
            raise NamingError(f"images lie in {seen.shape[1]} dimensions and texts in {said.shape[1]}: use one space.")
        unit = (torch.nn.functional.normalize(x, dim=1) for x in (seen, said))
        return cls(tuple(names), next(unit) @ next(unit).mT)


@dataclass(frozen=True)
class Naming:
    """The name of each atom, if it has one."""

    names: tuple[str, ...]
    correlation: Float[Tensor, "atoms names"]
    """Of an atom's codes with a name's strengths over examples (-1 to 1)."""
    best: Int[Tensor, " atoms"]
    """The name that goes with each atom most."""
    p: Float[Tensor, " atoms"]
    """Of the best name's correlation, corrected for all names and all atoms."""
    chance: Float[Tensor, " atoms"]
    """The best correlation that 95 % of the shuffles stay below."""
    level: float

    @property
    def named(self) -> Bool[Tensor, " atoms"]:
        """Which atoms have a name."""
        return self.p < 1 - self.level

    def of(self, atom: int) -> str | None:
        """Return an atom's name; None if no name is more than chance."""
        return self.names[int(self.best[atom])] if bool(self.named[atom]) else None


def name_atoms(
    atom_codes: Float[Tensor, "n atoms"],
    strengths: Strengths,
    clusters: Sequence[str] = (),
    *,
    draws: int = 999,
    level: float = 0.95,
    seed: int = 0,
) -> Naming:
    """Hold names against atoms.

    The test shuffles which example has which strengths, for all names and atoms alike, and takes an atom's best name each
    time; p is corrected over atoms by the step-down maximum. It is exact where examples are exchangeable: examples
    of one cluster are averaged, and only clusters of one size change places.

    Args:
        atom_codes: of examples that the atoms were not found on.
        strengths: of the same examples.
        clusters: of the examples; by default each is its own.
        draws: shuffles.
        level: of the decision.
        seed: of the shuffles.

    Raises:
        NamingError: for other numbers of examples.
    """
    if len(strengths.values) != len(atom_codes) or (clusters and len(clusters) != len(atom_codes)):
        raise NamingError(
            f"{len(atom_codes)} examples have {len(strengths.values)} strengths and {len(clusters)} clusters: give one each."
        )
    group = codes(list(clusters)) if clusters else torch.arange(len(atom_codes))
    sizes = torch.bincount(group)
    own, theirs = (_standard(_means(x.double(), group, sizes)) for x in (atom_codes, strengths.values))
    rng = np.random.default_rng([seed, 12])
    found = own.mT @ theirs / len(own)
    strata = [torch.nonzero(sizes == size)[:, 0] for size in torch.unique(sizes)]
    null = []
    for _ in range(draws):
        order = torch.arange(len(own))
        for stratum in strata:
            order[stratum] = stratum[torch.from_numpy(rng.permutation(len(stratum)))]
        null.append((own.mT @ theirs[order] / len(own)).amax(1))
    best = found.max(1)
    drawn = torch.stack(null)
    return Naming(
        names=strengths.names,
        correlation=found,
        best=best.indices,
        p=max_t(best.values, drawn),
        chance=drawn.quantile(0.95, dim=0),
        level=level,
    )


def _means(values: Tensor, group: Tensor, sizes: Tensor) -> Tensor:
    return torch.zeros(len(sizes), values.shape[1], dtype=torch.float64).index_add_(0, group, values) / sizes[:, None]


def _standard(values: Tensor) -> Tensor:
    """Return columns with mean 0 and deviation 1; constant ones are 0."""
    moved = values - values.mean(0)
    spread = moved.std(0, correction=0)
    return moved / torch.where(spread > 1e-9 * values.abs().amax(0), spread, torch.inf)
