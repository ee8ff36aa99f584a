"""What TCAV found, with the sentences that must be read beside the numbers."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from probing.results.figures import (
    DIVERGING,
    FAINT,
    FULL_WIDTH,
    INK,
    PALETTE,
    PAPER,
    RULE,
    figure_of,
    new_figure,
    style,
)
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LINEAR_TAIL = 1e-5
"""Gradients that differ between inputs by no more than this share of their length are one gradient."""
UNSTABLE = 0.2
"""Below this mean cosine between CAVs of different runs a direction is not identified."""

_MOST_BARS = 8
_TOLD = (
    "layer",
    "concept",
    "target",
    "mean",
    "low",
    "high",
    "p_max_t",
    "effect",
    "effect_low",
    "effect_high",
    "effect_p_max_t",
    "accuracy",
    "stability",
    "linear_tail",
)

Cells = Float[Tensor, "layers concepts targets"]


@dataclass(frozen=True)
class TcavResult(Result):
    """TCAV scores and effects of concepts on targets, by layer. NaN marks what was not asked for.

    The sign score saturates where gradients vary little over inputs: random directions score 0 or 1 there too, and no
    honest test can tell a concept from them. The effect in logits does not saturate and is the statistic to lead with.
    """

    layers: tuple[str, ...]
    concepts: tuple[str, ...]
    targets: tuple[str, ...]
    controls: tuple[str, ...]
    mode: str
    level: float

    scores: Float[Tensor, "layers concepts targets runs"]
    """Share of inputs whose score rises along the CAV of a run (0-1); a sensitivity of exactly 0 does not count."""
    mean: Cells
    """Mean score over runs, the TCAV score."""
    low: Cells
    high: Cells
    """Its interval: percentiles of a bootstrap of concept, counterparts and inputs jointly."""
    ties: Cells
    """Share of sensitivities that are exactly 0."""
    magnitude: Cells
    """Mean sensitivity, in score units per unit of activation along the unit CAV."""
    positive_share: Cells
    """Sum of positive sensitivities over the sum of all sizes (0-1); NaN if all are 0."""
    smooth: Cells
    """The smooth score (0-1) of one CAV fitted on all examples; see `Tcav`."""
    p: Cells
    """Permutation test of |score - 1/2|, ties counted half, against pseudo-concepts."""
    p_holm: Cells
    p_max_t: Cells
    """Corrected over layers, concepts and targets: by Holm; and over layers and targets by the step-down maximum over the
    same pseudo-concepts, over concepts by Bonferroni, which keeps power with few pseudo-concepts."""
    p_controls: Cells
    """The same test against irrelevant coherent concepts: at least `1 / (controls + 1)`."""
    p_paper: Cells
    p_code: Cells
    """The t-tests of paper and original code: anti-conservative, for comparison only."""
    null_low: Cells
    null_high: Cells
    """The central `level` of pseudo-concepts' mean scores, ties counted half."""

    accuracy: Float[Tensor, "layers concepts runs"]
    """Balanced accuracy of each CAV on held-out examples (0-1)."""
    accuracy_p: Float[Tensor, "layers concepts"]
    """Binomial test that its mean over runs is above chance, counting each held-out example once."""
    stability: Float[Tensor, "layers concepts"]
    """Mean cosine between CAVs of different runs."""

    effect: Cells
    """Effect in logits (score units): from the mean of the counterparts to the mean of the concept, to first order."""
    effect_low: Cells
    effect_high: Cells
    effect_p: Cells
    """Permutation test by relabelling, two-sided."""
    effect_p_holm: Cells
    effect_p_max_t: Cells
    """Corrected over layers and targets by the step-down maximum, and over concepts by Bonferroni."""
    effect_p_controls: Cells
    """Rank of its size among the effects of irrelevant coherent concepts."""

    gradient_spread: Float[Tensor, "layers targets"]
    """Largest distance of an input's gradient from the mean gradient, over the latter's length."""
    pseudo_concepts: int
    units: tuple[str, ...] = ()
    """Of the targets' scores, and so of effects; none where they were not told, or not kept: logits."""

    @property
    def exists(self) -> Bool[Tensor, "layers concepts"]:
        """Whether there is evidence of a direction: whether CAVs classify held-out examples above chance."""
        return self.accuracy_p <= 1 - self.level

    @property
    def linear_tail(self) -> Bool[Tensor, "layers targets"]:
        """Whether all inputs have one gradient, so that every run's score is 0 or 1 by construction."""
        return self.gradient_spread <= LINEAR_TAIL

    @property
    def significant(self) -> Bool[Tensor, "layers concepts targets"]:
        """Whether the sign score differs from random directions', after correction, along a direction that exists."""
        return (self.p_max_t <= 1 - self.level) & self.exists.unsqueeze(2)

    @property
    def effect_significant(self) -> Bool[Tensor, "layers concepts targets"]:
        """Whether the effect in logits is more than relabelling gives, after correction."""
        return self.effect_p_max_t <= 1 - self.level

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers, in plain words."""
        return (*self._directions(), *self._tails(), *self._floor())

    def _directions(self) -> list[str]:
        found = []
        for i, layer in enumerate(self.layers):
            for c, concept in enumerate(self.concepts):
                accuracy, p = float(self.accuracy[i, c].mean()), float(self.accuracy_p[i, c])
                if not self.exists[i, c]:
                    found.append(
                        f"At {layer!r} there is no evidence of a direction of {concept!r}: its CAVs classify held-out "
                        f"examples with accuracy {accuracy:.2f} (p = {p:.2g} against chance). Scores along them are not "
                        "called significant."
                    )
                elif self.stability[i, c] < UNSTABLE:
                    found.append(
                        f"At {layer!r} the direction of {concept!r} is not identified at this sample size: CAVs of "
                        f"different runs have a mean cosine of {float(self.stability[i, c]):.2f}."
                    )
        return found

    def _tails(self) -> list[str]:
        return [
            f"At {layer!r} the score of {target!r} has the same gradient for every input: each run's TCAV score is 0 or 1 "
            "by construction and tells no more than the sign of one number; read the effect in logits."
            for i, layer in enumerate(self.layers)
            for k, target in enumerate(self.targets)
            if self.linear_tail[i, k]
        ]

    def _floor(self) -> list[str]:
        smallest = 1 / (self.pseudo_concepts + 1)
        corrected, alpha = len(self.concepts) * smallest, 1 - self.level
        if not self.pseudo_concepts or corrected <= alpha:
            return []
        return [
            f"With {self.pseudo_concepts} pseudo-concepts a p of the sign score is at least {smallest:.2g}, and corrected"
            f" for {len(self.concepts)} concepts at least {min(1.0, corrected):.2g}: none can be significant at"
            f" {self.level:.0%}. {round(len(self.concepts) / alpha)} pseudo-concepts could tell, given so many ways to"
            " choose the concept's clusters among all clusters of their sizes."
        ]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer, concept and target."""
        import pandas as pd

        cells = [f.name for f in fields(self) if f.type is Cells]
        rows = []
        for i, layer in enumerate(self.layers):
            for c, concept in enumerate(self.concepts):
                for k, target in enumerate(self.targets):
                    row: dict[str, object] = {"layer": layer, "concept": concept, "target": target}
                    row |= {name: float(getattr(self, name)[i, c, k]) for name in cells}
                    row["accuracy"] = float(self.accuracy[i, c].mean())
                    row["accuracy_min"] = float(self.accuracy[i, c].min())
                    row["accuracy_p"] = float(self.accuracy_p[i, c])
                    row["stability"] = float(self.stability[i, c])
                    row |= {name: bool(getattr(self, name)[i, c, k]) for name in ("significant", "effect_significant")}
                    row["linear_tail"] = bool(self.linear_tail[i, k])
                    row |= {"unit": self.units[k]} if self.units else {}
                    rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, target: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw the scores of one target (the first by default), bars by layer and concept.

        Whiskers are intervals, grey bands the scores of pseudo-concepts; a star marks a significant score, a hatched bar
        a direction that does not exist. Many concepts are a grid of colours instead, where a cross marks such a direction.
        """
        many = len(self.concepts) > _MOST_BARS
        if ax is None:
            size = (
                (1.9 + 0.35 * len(self.layers), 1.0 + 0.14 * len(self.concepts))
                if many
                else (min(FULL_WIDTH, 1.6 + 0.32 * self.mean[..., 0].numel()), 2.4)
            )
            with style():
                return self.plot(target, new_figure(*size).add_subplot())
        k = 0 if target is None else self.targets.index(target)
        if many:
            return self._grid(ax, k)
        for c in range(len(self.concepts)):
            self._bars(ax, c, k)
        ax.axhline(0.5, color=FAINT, lw=0.7, ls=(0, (4, 3)))
        ax.set(ylim=(0, 1.1), ylabel="TCAV score")
        ax.set_title(self.targets[k], loc="left")
        ax.set_xticks(range(len(self.layers)), self.layers)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax

    def _grid(self, ax: "Axes", k: int) -> "Axes":
        picture = ax.imshow(self.mean[:, :, k].T.numpy(), cmap=DIVERGING, vmin=0, vmax=1, aspect="auto")
        for i in range(len(self.layers)):
            for c in range(len(self.concepts)):
                mark = "*" if self.significant[i, c, k] else "" if self.exists[i, c] else "×"  # noqa: RUF001
                pale = abs(float(self.mean[i, c, k]) - 0.5) < 0.3
                colour = INK if pale else PAPER
                ax.text(i, c, mark, ha="center", va="center", fontsize=7, color=colour)
        ax.set_xticks(range(len(self.layers)), self.layers, rotation=40, ha="right")
        ax.set_yticks(range(len(self.concepts)), self.concepts, fontsize=6)
        ax.set_title(self.targets[k], loc="left")
        figure_of(ax).colorbar(picture, ax=ax, label="TCAV score", shrink=0.5)
        return ax

    def _bars(self, ax: "Axes", c: int, k: int) -> None:
        width = 0.8 / len(self.concepts)
        x = np.arange(len(self.layers)) + (c - (len(self.concepts) - 1) / 2) * width
        names = ("mean", "low", "high", "null_low", "null_high")
        mean, low, high, *null = (getattr(self, name)[:, c, k].numpy() for name in names)
        ax.bar(x, null[1] - null[0], width, bottom=null[0], color=RULE, alpha=0.6, zorder=0)
        colour = PALETTE[c % len(PALETTE)]
        bars = ax.bar(x, mean, 0.7 * width, label=self.concepts[c], color=colour, alpha=0.85)
        whiskers = np.stack([mean - low, high - mean]).clip(min=0)
        ax.errorbar(x, mean, whiskers, fmt="none", ecolor=INK, elinewidth=0.8)
        for i, bar in enumerate(bars):
            bar.set_hatch(None if self.exists[i, c] else "///")
            if self.significant[i, c, k]:
                ax.text(float(x[i]), 1.02, "*", ha="center")

    def notebook_table(self) -> "pd.DataFrame":
        """Return scores and effects with their intervals and corrected p, beside what the directions are worth."""
        return self.to_pandas()[list(_TOLD)].dropna(axis=1, how="all")
