"""What one layer says: sensitivities of targets along CAVs that are never formed, and what is computed of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.effects.logit_effect import layer_effect
from concepts.tcav.plan import Plan
from concepts.tcav.sampling import Pairs
from probing.statistics.estimators import Estimator
from probing.statistics.hypothesis_tests import (
    above_chance,
    code_t_test,
    paper_t_test,
    percentile_interval,
    permutation_p,
)
from probing.statistics.linear_classifiers import PairFits, RowProducts, SharedRows, fit_pairs

_CHUNK = 1 << 23  # products of CAVs and gradients held at a time


@dataclass(frozen=True, eq=False)
class Reading:
    """What was found for one concept at one layer."""

    values: dict[str, Tensor]
    """Fields of a `TcavResult`, without the axes of layers and concepts."""
    distance: Float[Tensor, " targets"]
    """How far the score, ties counted half, is from one half."""
    distance_null: Float[Tensor, "sets targets"]
    """The same of pseudo-concepts."""
    effect_null: Float[Tensor, "relabellings targets"]
    """Effects in logits under relabelling."""


@dataclass(frozen=True, eq=False)
class LayerReader:
    """One layer's activations, the gradients of all targets there, and how they are read."""

    products: RowProducts
    owner: Int[Tensor, " inputs"]
    """The target of each gradient."""
    gradient_spread: Float[Tensor, " targets"]
    """Largest distance of a gradient from the mean one, over the latter's length."""
    estimator: Estimator
    temperature: float
    level: float

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "rows m"],
        gradients: Sequence[Float[Tensor, "_ m"]],
        scaling: Literal["feature", "layer"],
        estimator: Estimator,
        temperature: float,
        level: float,
    ) -> "LayerReader":
        """Take in a layer; products of gradients and activations are computed once for all concepts."""
        products = RowProducts(SharedRows(features, scaling), torch.cat(list(gradients)))
        owner = torch.repeat_interleave(torch.tensor([len(g) for g in gradients]))
        spread = torch.stack([_spread(g) for g in gradients])
        return cls(products, owner, spread, estimator, temperature, level)

    def read(self, plan: Plan) -> Reading:
        """Return what is found for one concept."""
        runs = len(plan.fit)
        fits = self._fit(plan.fit)
        s = fits.project(self.products)
        scores = self._mean((s > 0).double())
        null, typical = self._votes(plan.null, runs)
        effect, effect_null = self._effect(plan)
        distance = (self._mean(_voted(s)).mean(0) - 0.5).abs()
        values = (
            self._sizes(s)
            | _accuracy(fits, plan)
            | {"scores": scores.T, "mean": scores.mean(0), "smooth": self._smooth(plan, typical)}
            | self._interval(plan, runs)
            | _null_band(null.mean(1), self.level)
            | {"p_controls": _p_if_any(distance, self._votes(plan.controls, runs)[0].mean(1) - 0.5)}
            | _t_tests(scores.T, null[: runs - 1].flatten(0, 1).T)
            | effect
        )
        return Reading(values, distance, (null.mean(1) - 0.5).abs(), effect_null)

    def _sizes(self, s: Float[Tensor, "runs inputs"]) -> dict[str, Tensor]:
        rising, all_sizes = self._mean(s.clamp(min=0)).sum(0), self._mean(s.abs()).sum(0)
        return {
            "ties": self._mean((s == 0).double()).mean(0),
            "magnitude": self._mean(s).mean(0),
            "positive_share": rising / all_sizes,
        }

    def _smooth(self, plan: Plan, typical: Float[Tensor, " targets"]) -> Float[Tensor, " targets"]:
        if typical.isnan().all():
            return typical
        s = self._fit(plan.whole).project(self.products)
        scale = self.temperature * typical[self.owner]
        return self._mean(torch.where(s == 0, 0.5, torch.special.ndtr(s / scale)))[0]

    def _interval(self, plan: Plan, runs: int) -> dict[str, Tensor]:
        unknown = self.gradient_spread.new_full((self._targets,), torch.nan)
        if not len(plan.bootstrap):
            return {"low": unknown, "high": unknown}
        drawn = self._sensitivities(plan.bootstrap, runs)
        rising = torch.cat([(s > 0).double().mean(1) for s in drawn])
        bounds = percentile_interval(self._total(rising * plan.input_weights), self.level)
        return dict(zip(("low", "high"), (b.clamp(0, 1) for b in bounds), strict=True))

    def _effect(self, plan: Plan) -> tuple[dict[str, Tensor], Float[Tensor, "relabellings targets"]]:
        products = self.products.weighted(0)
        concept, others = plan.whole.positive[0], plan.whole.negative[0]
        bounds = products.new_empty(3, self._targets)
        null = products.new_empty(plan.relabellings, self._targets)
        for targets, design in plan.designs:
            own = [products[self.owner == t][:, torch.cat([concept, others])] for t in targets]
            found = layer_effect(torch.stack(own), design)
            low, high = found.interval(design.groups, self.level)
            bounds[:, targets] = torch.stack([found.effect, low, high])
            null[:, targets] = found.null
        slope = self._mean(products.T)
        controls = [slope[rows].mean(0) - slope[others].mean(0) for rows in plan.control_rows]
        others_sizes = torch.stack(controls) if controls else slope[:0]
        p = {"effect_p_controls": _p_if_any(bounds[0].abs(), others_sizes)}
        return dict(zip(("effect", "effect_low", "effect_high"), bounds, strict=True)) | p, null

    def _fit(self, pairs: Pairs) -> PairFits:
        return fit_pairs(self.products.rows, pairs.positive, pairs.negative, self.estimator)

    def _sensitivities(self, pairs: Pairs, runs: int) -> Iterator[Float[Tensor, "sets runs inputs"]]:
        """Yield sensitivities of some sets at a time; with no sets, nothing."""
        step = runs * max(1, _CHUNK // (runs * len(self.owner)))
        for start in range(0, len(pairs), step):
            found = self._fit(pairs.part(start, start + step)).project(self.products)
            yield found.reshape(-1, runs, found.shape[1])

    def _votes(self, pairs: Pairs, runs: int) -> tuple[Float[Tensor, "sets runs targets"], Float[Tensor, " targets"]]:
        """Return the votes in each set and run, and the root mean square sensitivity over all of them."""
        votes = [torch.zeros(0, runs, self._targets, dtype=torch.float64)]
        squares = torch.zeros(self._targets, dtype=torch.float64)
        for s in self._sensitivities(pairs, runs):
            votes.append(self._mean(_voted(s)))
            squares += self._mean(s.square()).sum((0, 1))
        return torch.cat(votes), (squares / len(pairs)).sqrt() if len(pairs) else squares * torch.nan

    @property
    def _targets(self) -> int:
        return len(self.gradient_spread)

    def _total(self, values: Float[Tensor, "*runs inputs"]) -> Float[Tensor, "*runs targets"]:
        return values @ torch.nn.functional.one_hot(self.owner, self._targets).to(values)

    def _mean(self, values: Float[Tensor, "*runs inputs"]) -> Float[Tensor, "*runs targets"]:
        """Return means over each target's own inputs; counts stay exact until they are divided."""
        return self._total(values) / torch.bincount(self.owner)


def _voted(s: Float[Tensor, "*runs inputs"]) -> Float[Tensor, "*runs inputs"]:
    """Return 1 for a positive sensitivity, 0 for a negative one, and half for a tie."""
    return (s.sign() + 1) / 2


def _spread(gradients: Float[Tensor, "inputs m"]) -> Float[Tensor, ""]:
    mean = gradients.double().mean(0)
    farthest = torch.linalg.vector_norm(gradients - mean, dim=1).max()
    return torch.nan_to_num(farthest / torch.linalg.vector_norm(mean))


def _accuracy(fits: PairFits, plan: Plan) -> dict[str, Tensor]:
    sides = fits.accuracy(plan.held_out.positive, plan.held_out.negative)
    accuracy = torch.stack(sides).mean(0)
    return {
        "accuracy": accuracy,
        "accuracy_p": above_chance(accuracy.mean(), plan.trials),
        "stability": accuracy.new_tensor(fits.mean_cosine()),
    }


def _null_band(null: Float[Tensor, "sets targets"], level: float) -> dict[str, Tensor]:
    unknown = null.new_full((null.shape[1],), torch.nan)
    bounds = percentile_interval(null, level) if len(null) else (unknown, unknown)
    return dict(zip(("null_low", "null_high"), bounds, strict=True))


def _p_if_any(size: Float[Tensor, " targets"], null: Float[Tensor, "sets targets"]) -> Float[Tensor, " targets"]:
    """Return p of sizes against those of a null; NaN if there is none."""
    return permutation_p(size, null.abs()) if len(null) else torch.full_like(size, torch.nan)


def _t_tests(scores: Float[Tensor, "targets runs"], random: Float[Tensor, "targets more"]) -> dict[str, Tensor]:
    """Return the tests of paper and code; the latter's R (R - 1) random runs are pseudo-concepts' here."""
    unknown = torch.full((len(scores),), torch.nan, dtype=torch.float64)
    several = scores.shape[1] > 1
    return {
        "p_paper": paper_t_test(scores) if several else unknown,
        "p_code": code_t_test(scores, random) if several and random.shape[1] > 1 else unknown,
    }
