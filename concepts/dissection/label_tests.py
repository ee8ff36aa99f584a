"""Would a score notice wrong labels? The missing-labels and extra-labels tests of scores for units' explanations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from concepts.dissection.soft_scores import average_precision, correlation
from concepts.dissection.tally import Counts

LEAST_FALL = 1e-3
"""Least fall of a score, as a share of its range, that counts as one."""
MOST_UNITS = 0.9
"""Share of units whose score must fall for a test to be passed."""


@dataclass(frozen=True)
class LabelTest:
    """How one score of units' explanations takes wrong labels.

    Attributes:
        score: its name.
        missing: mean change of the score when half of the concept's labels are taken away.
        missing_falls: share of units whose score falls.
        extra: mean change when as many labels again are put where there were none.
        extra_falls: share of units whose score falls.
        units: how many units were looked at.
    """

    score: str
    missing: float
    missing_falls: float
    extra: float
    extra_falls: float
    units: int

    @property
    def passed(self) -> bool:
        """Whether the score falls for nearly all units under both."""
        return self.missing_falls >= MOST_UNITS and self.extra_falls >= MOST_UNITS


@dataclass(frozen=True)
class Judged:
    """Units with the concept that each is explained by, and the sums that its scores are made of."""

    shared: Float[Tensor, " units"]
    unit_area: Float[Tensor, " units"]
    label_area: Float[Tensor, " units"]
    cells: Float[Tensor, " units"]
    product: Float[Tensor, " units"]
    total: Float[Tensor, " units"]
    squares: Float[Tensor, " units"]

    @classmethod
    def of(
        cls,
        counts: Counts,
        sums: Mapping[str, Tensor],
        cells: Tensor,
        units: Tensor,
        concepts: Tensor,
    ) -> "Judged":
        """Take the cells of some units and one concept each.

        Args:
            counts: of the layer.
            sums: `product`, `total` and `squares` of its activations, [units, concepts].
            cells: of the images that count for each concept.
            units: which ones.
            concepts: that each is explained by.
        """
        picked = {name: values[units, concepts].double() for name, values in sums.items()}
        return cls(
            counts.shared[units, concepts].double(),
            counts.unit_area[units, concepts].double(),
            counts.label_area[concepts].double(),
            cells[concepts].double(),
            **picked,
        )

    def missing(self) -> "Judged":
        """Return the expected sums when each label is kept with probability 1/2."""
        return Judged(
            self.shared / 2,
            self.unit_area,
            self.label_area / 2,
            self.cells,
            self.product / 2,
            self.total,
            self.squares,
        )

    def extra(self) -> "Judged":
        """Return the expected sums when other cells get the label too, as many as have it, or all of them."""
        free = self.cells - self.label_area
        rate = (self.label_area / free.clamp(min=1)).clamp(max=1)
        return Judged(
            self.shared + rate * (self.unit_area - self.shared),
            self.unit_area,
            self.label_area + rate * free,
            self.cells,
            self.product + rate * (self.total - self.product),
            self.total,
            self.squares,
        )

    def scores(self) -> dict[str, Float[Tensor, " units"]]:
        """Return what is commonly read off such sums, all from 0 to 1 but correlation."""
        union = self.unit_area + self.label_area - self.shared
        return {
            "iou": self.shared / union.clamp(min=1e-9),
            "correlation": correlation(self.product, self.total, self.squares, self.label_area, self.cells),
            "label share of the unit": self.shared / self.unit_area.clamp(min=1e-9),
            "unit share of the label": self.shared / self.label_area.clamp(min=1e-9),
        }


def label_tests(
    judged: Judged,
    maxima: Float[Tensor, "n units"],
    shown: Bool[Tensor, "n units"],
    seed: int,
) -> tuple[LabelTest, ...]:
    """Run the tests of Oikarinen, Yan & Weng (ICML 2025, sec. 4) on every score.

    A label is one cell's, and for average precision one image's. Each label is taken away with probability 1/2; or
    each unlabelled place gets one with the probability that doubles them. Scores made of sums are those of the
    expected sums; average precision is drawn. A score whose range is 2, as correlation's, is halved. The thresholds
    `LEAST_FALL` (the authors') and `MOST_UNITS` say when a test is passed.

    Args:
        judged: units with their concepts.
        maxima: the same units' highest activation in each image.
        shown: which images show the unit's concept.
        seed: of the draws.
    """
    before, without, with_more = judged.scores(), judged.missing().scores(), judged.extra().scores()
    tests = [_test(name, before[name], without[name], with_more[name], 2 if name == "correlation" else 1) for name in before]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, *shown.shape, generator=generator)
    rate = shown.double().sum(0) / (~shown).sum(0).clamp(min=1)
    fewer, more = shown & (drawn[0] < 0.5), shown | (drawn[1] < rate)
    one, without_half, doubled = (_own_precision(maxima, each) for each in (shown, fewer, more))
    tests.insert(2, _test("auprc", one, without_half, doubled, 1))
    return tuple(tests)


def _own_precision(maxima: Tensor, shown: Tensor) -> Float[Tensor, " units"]:
    pairs = range(maxima.shape[1])
    found = [average_precision(maxima[:, u : u + 1], shown[:, u : u + 1])[0, 0] for u in pairs]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _test(name: str, before: Tensor, missing: Tensor, extra: Tensor, span: int) -> LabelTest:
    known = ~(before.isnan() | missing.isnan() | extra.isnan())
    changes = [((after - before) / span)[known] for after in (missing, extra)]
    means = [float(c.mean()) if len(c) else float("nan") for c in changes]
    falls = [float((c < -LEAST_FALL).double().mean()) if len(c) else float("nan") for c in changes]
    return LabelTest(name, means[0], falls[0], means[1], falls[1], int(known.sum()))
