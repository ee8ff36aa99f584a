"""What a discovery returns: atoms, and for each how far it is to be believed."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concepts.data.concept_sets import MINIMUM, Concept
from concepts.discovery.dictionary import Dictionary
from concepts.discovery.matching import Agreement
from concepts.discovery.naming import Naming
from concepts.discovery.replacement import Replacement
from concepts.dissection.unit_contrasts import UnitShifts
from probing.core.errors import ProbingError
from probing.data.examples import Examples, Subset, as_examples
from probing.results.figures import FAINT, INK, PALETTE, RULE, new_figure, style
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class DiscoveryError(ProbingError, ValueError):
    """What a discovery can't do with its examples, or a result does not hold."""


@dataclass(frozen=True)
class Importance:
    """What scores owe to atoms, over held-out examples; score units."""

    targets: tuple[str, ...]
    part: Float[Tensor, "targets atoms"]
    """Mean part of the score; with `rest` it sums to the mean of score minus start (see `gap`)."""
    low: Float[Tensor, "targets atoms"]
    high: Float[Tensor, "targets atoms"]
    """Interval of the mean over clusters."""
    p: Float[Tensor, "targets atoms"]
    """Of the part's size, against atoms whose numbers stand at other units, corrected for all atoms and targets."""
    rest: Float[Tensor, " targets"]
    """Mean part of what is no atom's: offset, and what the dictionary misses."""
    gap: Float[Tensor, " targets"]
    """Mean that the steps of the integral missed."""
    change: Float[Tensor, " targets"]
    """Mean score minus the score at zero output of the layer."""
    exact: Bool[Tensor, " targets"]
    """Whether all that follows the layer is affine, so that parts are exact."""
    sobol: Float[Tensor, "targets atoms"]
    """Total Sobol indices (0-1); NaN where not asked for."""
    sobol_error: Float[Tensor, "targets atoms"]
    examples: int


@dataclass(frozen=True)
class TwinReading:
    """The same discovery in the untrained network."""

    unexplained: float
    agreement: Agreement
    counterpart: Float[Tensor, " atoms"]
    """Correlation over held-out examples of each atom's codes with those of its partner in the twin."""


@dataclass(frozen=True)
class DiscoveryResult(Result):
    """Atoms of a layer that were found on some examples, and what others say of them."""

    layer: str
    kind: str
    """What learned the dictionary, such as `SemiNmf`."""
    places: str
    dictionary: Dictionary
    ids: tuple[str, ...]
    """Content ids of the examples."""
    held_out: Bool[Tensor, " n"]
    """Which examples the atoms were not found on."""
    clusters: tuple[str, ...]
    """Of the examples."""
    codes: Float[Tensor, "n atoms"]
    """Mean code over an example's places."""
    peaks: Float[Tensor, "n atoms"]
    """Largest code over an example's places; of the largest size where codes have a sign."""
    active: Float[Tensor, " atoms"]
    """Share of held-out rows whose code is not 0 (0-1)."""
    unexplained: float
    """Squared error on held-out examples, as a share of the squared distance from their mean; see `Dictionary`."""
    unexplained_training: float
    """The same on those that the dictionary was learned of."""
    agreement: Agreement
    """With a dictionary learned of the other half."""
    seeds: Float[Tensor, "refits atoms"]
    """Cosine with the partner in dictionaries of the same half from other seeds."""
    replacement: Replacement | None
    """None where rows are means, which can't be put back, and for networks without class scores."""
    importance: Importance | None
    attributes: tuple[str, ...]
    """Of matched images."""
    shifts: UnitShifts | None
    """By how much swapping each attribute moves each atom."""
    twin: TwinReading | None
    naming: Naming | None
    level: float

    def __len__(self) -> int:
        return len(self.dictionary)

    @property
    def dead(self) -> Bool[Tensor, " atoms"]:
        """Atoms that no row to judge on uses."""
        return self.active == 0

    @property
    def stable(self) -> Bool[Tensor, " atoms"]:
        """Atoms that the other half gives again, more than unrelated dictionaries do."""
        return self.agreement.p < 1 - self.level

    @property
    def moves(self) -> Bool[Tensor, "attributes atoms"]:
        """Where swapping an attribute moves an atom, significantly for all atoms and attributes together."""
        if self.shifts is None:
            return torch.zeros(0, len(self), dtype=torch.bool)
        other_way = self.shifts.fitted * self.shifts.shift <= 0  # False where no pair was there to fit on
        return (self.shifts.p < 1 - self.level) & ~other_way

    def top(self, atom: int, count: int = 9) -> list[int]:
        """Return the held-out examples that show most of an atom, most first; those without it are left out."""
        values = torch.where(self.held_out, self.peaks[:, atom].abs(), 0)
        order = values.argsort(descending=True, stable=True)[:count]
        return [int(i) for i in order if values[i] > 0]

    def direction(self, atom: int) -> Float[Tensor, " m"]:
        """Return an atom's direction, of unit length: one number per unit of the layer.

        It goes wherever a direction of a layer does: `probing.maximization.Direction`, `edit_along`, `ConceptGradients`,
        `DirectionPart`.
        """
        return self.dictionary.atoms[atom]

    def concept(self, atom: int, examples: Examples, count: int = 30) -> Concept:
        """Return the held-out examples that show most of an atom, as a concept for TCAV and others.

        Args:
            atom: which one.
            examples: that were discovered in.
            count: how many, fewer where fewer show it.

        Raises:
            DiscoveryError: for other examples, or where fewer than nine show it.
        """
        examples = as_examples(examples)
        if tuple(examples.ids) != self.ids:
            raise DiscoveryError(f"the {len(self.ids)} examples of the discovery are needed, got others.")
        values = torch.where(self.held_out, self.codes[:, atom], 0)
        seen: dict[str, int] = {}
        for i in values.argsort(descending=True, stable=True).tolist():
            if values[i] > 0 and len(seen) < count:
                seen.setdefault(self.ids[i], i)
        if len(seen) < MINIMUM:
            raise DiscoveryError(f"atom {atom} shows in {len(seen)} held-out examples: a concept needs {MINIMUM}.")
        chosen = list(seen.values())
        return Concept(self.name(atom), Subset(examples, chosen), tuple(self.clusters[i] for i in chosen))

    def name(self, atom: int) -> str:
        """Return an atom's name, or its number where it has none."""
        found = None if self.naming is None else self.naming.of(atom)
        return f"atom {atom}" if found is None else f"atom {atom}: {found}"

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per atom."""
        import pandas as pd

        table: dict[str, object] = {
            "atom": list(range(len(self))),
            "active": self.active.tolist(),
            "stability": self.agreement.cosine.tolist(),
            "stability_p": self.agreement.p.tolist(),
            "stability_seeds": (self.seeds.mean(0).tolist() if len(self.seeds) else [math.nan] * len(self)),
        }
        if self.importance is not None:
            for t, target in enumerate(self.importance.targets):
                for name in ("part", "low", "high", "p", "sobol", "sobol_error"):
                    table[f"{name} of {target}"] = getattr(self.importance, name)[t].tolist()
        for a, attribute in enumerate(self.attributes):
            assert self.shifts is not None
            for name in ("shift", "low", "high", "p"):
                table[f"{name} by {attribute}"] = getattr(self.shifts, name)[a].tolist()
        if self.twin is not None:
            table["twin"] = self.twin.counterpart.tolist()
        if self.naming is not None:
            table["name"] = [self.naming.of(atom) or "" for atom in range(len(self))]
            table["name_score"] = self.naming.correlation.amax(1).tolist()
            table["name_p"] = self.naming.p.tolist()
        return pd.DataFrame(table)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw how far each atom is found again in the other half, beside what unrelated dictionaries give."""
        if ax is None:
            with style():
                return self.plot(new_figure(4.6, 2.4).add_subplot())
        order = self.agreement.cosine.argsort(descending=True)
        low, high = (float(self.agreement.chance.quantile(q)) for q in (0.025, 0.975))
        ax.axhspan(low, high, color=RULE, lw=0, label="mean of unrelated dictionaries, middle 95 %")
        if len(self.seeds):
            ax.plot(self.seeds.mean(0)[order], "o", color=FAINT, ms=3.5, mew=0, label="other seeds, same half")
        stable = self.stable[order]
        at = torch.arange(len(self))
        for mask, marker, colour, words in (
            (stable, "o", PALETTE[0], "other half, significant"),
            (~stable, "x", INK, "other half, not significant"),
        ):
            if bool(mask.any()):
                ax.plot(at[mask], self.agreement.cosine[order][mask], marker, color=colour, ms=4.5, label=words)
        ax.set_xticks(range(len(self)), [str(int(i)) for i in order])
        ax.set(xlabel=f"atom of {self.layer}", ylabel="cosine with its partner", ylim=(min(0.0, low) - 0.05, 1.05))
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers."""
        lines = [
            f"{len(self)} atoms of {self.layer} by {self.kind}, learned of {int((~self.held_out).sum())} examples and "
            f"judged on {int(self.held_out.sum())} held-out ones: {self.unexplained:.0%} of the squared distance from the "
            f"mean is not explained ({self.unexplained_training:.0%} in training); {int(self.dead.sum())} atoms are dead.",
            f"{int(self.stable.sum())} of {len(self)} atoms are found again in the other half, significantly (mean cosine "
            f"{float(self.agreement.cosine.mean()):.2f}, unrelated dictionaries {float(self.agreement.chance.mean()):.2f}).",
        ]
        if self.replacement is not None:
            lines.append(
                f"With the reconstruction in the layer's place {self.replacement.same_class:.0%} of examples keep their "
                f"class (with the mean row {self.replacement.same_class_of_mean:.0%})."
            )
        if self.twin is not None:
            lines.append(
                "Read the same way with random weights, before any training, the network gives atoms of mean cosine "
                f"{float(self.twin.agreement.cosine.mean()):.2f} between halves (unrelated dictionaries "
                f"{float(self.twin.agreement.chance.mean()):.2f}), with {self.twin.unexplained:.0%} unexplained: what it "
                "reaches too is not owed to training."
            )
        for a, attribute in enumerate(self.attributes):
            atoms = self.moves[a].nonzero()[:, 0].tolist()
            said = f"atoms {', '.join(map(str, atoms))}" if atoms else "no atom"
            lines.append(f"Swapping {attribute} moves {said} significantly.")
        return tuple(lines)


def top_by(values: Float[Tensor, " n"], held_out: Bool[Tensor, " n"], count: int) -> list[int]:
    """Return the held-out examples of largest positive value, largest first."""
    kept = torch.where(held_out, values, -torch.inf)
    order: Int[Tensor, " n"] = kept.argsort(descending=True, stable=True)[:count]
    return [int(i) for i in order if kept[i] > 0]
