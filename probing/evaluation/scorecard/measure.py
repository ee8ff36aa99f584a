"""Measures methods for a scorecard, one row after the other, each kept on disk as soon as it is done."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing import __version__
from probing.attribution.base import Attribution, AttributionMethod, Family
from probing.attribution.baselines import Baseline, Blurred
from probing.attribution.methods import METHODS
from probing.attribution.score_passes import FLOAT32
from probing.core.content_ids import content_id, model_id, tensor_id
from probing.core.errors import ArgumentError
from probing.core.inputs import one_tensor
from probing.evaluation.base import pixels
from probing.evaluation.complexity import PictureBytes
from probing.evaluation.curves import Insertion, PixelFlipping
from probing.evaluation.localisation import EnergyShare
from probing.evaluation.randomisation import CascadingRandomisation
from probing.evaluation.robustness import SensitivityN
from probing.evaluation.scorecard import DEFAULT_METHODS
from probing.evaluation.scorecard.cost import Cost, cost_of, hyperparameters
from probing.evaluation.scorecard.scorecard import Row, Scorecard
from probing.models.geometry import RefusedError
from probing.models.loading import Model
from probing.models.precision import Precision
from probing.models.readings import OutputError, Reading
from probing.models.scores import Score, Target
from probing.results.result import Provenance, SavedResultError, describe
from probing.store.shares import Share

Masks = Bool[Tensor, "n h w"]

_BLURRED = Blurred(10.0)


@dataclass(frozen=True)
class Scoring:
    """How methods are measured for a scorecard.

    Attributes:
        steps: of removal curves.
        grid: patches along a side, that go at once.
        draws: of random patches for sensitivity-n.
        seeds: networks drawn anew, for the inputs that are `probed`.
        probed: inputs, the first ones, on which maps of drawn networks are compared: the most expensive part.
        substrate: what shows where patches are removed, and into which they are inserted.
        seed: of all draws.
        precision: of perturbed passes.
    """

    steps: int = 16
    grid: int = 14
    draws: int = 32
    seeds: int = 2
    probed: int = 4
    substrate: Baseline = _BLURRED
    seed: int = 0
    precision: Precision = FLOAT32
    cost: ClassVar[str] = "about 4 steps + draws forward passes for each input and method, and the maps"

    def __call__(
        self,
        methods: Mapping[str, AttributionMethod],
        score: Score,
        inputs: Float[Tensor, "n c h w"],
        masks: Masks | None = None,
        *,
        folder: Path | None = None,
        done: Callable[[str, bool], None] = lambda name, computed: None,
    ) -> Scorecard:
        """Return the scorecard of methods that explain inputs; see `rows`.

        Raises:
            EvaluationError: for fewer than two methods that explain this network.
        """
        rows = self.rows(methods, score, inputs, masks, folder=folder, done=done)
        return self.card(rows, score, inputs)

    def rows(
        self,
        methods: Mapping[str, AttributionMethod],
        score: Score,
        inputs: Float[Tensor, "n c h w"],
        masks: Masks | None = None,
        *,
        folder: Path | None = None,
        done: Callable[[str, bool], None] = lambda name, computed: None,
    ) -> tuple[Row, ...]:
        """Return all that is measured of each method.

        Args:
            methods: by name.
            score: of one class per input; where it names none, of those that the model gives the inputs.
            inputs: images.
            masks: where the object is, if known.
            folder: rows are kept in it, and reused if nothing that they depend on has changed.
            done: is told each method's name, and whether it was computed or found.
        """
        one_tensor(inputs)
        found, score = [], score.named(inputs)
        for name, method in methods.items():
            key = row_key(self, method, score, inputs, "" if masks is None else tensor_id(masks))
            make = partial(self._row, name, method, key, score, inputs, masks)
            row, computed = kept_row(folder, name, key, make)
            done(name, computed)
            found.append(row)
        return tuple(found)

    def card(self, rows: Sequence[Row], score: Score, inputs: Tensor) -> Scorecard:
        """Return the scorecard of rows, those of methods that read whole networks among them."""
        facts = Provenance.collect(model=score.model, examples=tensor_id(inputs), method=self)
        return Scorecard.of(rows, facts, self.seed)

    def _row(
        self,
        name: str,
        method: AttributionMethod,
        key: str,
        score: Score,
        inputs: Tensor,
        masks: Masks | None,
    ) -> Row:
        facts = Provenance.collect(model=score.model, examples=tensor_id(inputs), method=method)
        kind = type(method).__name__
        family, answers, demands = declared(method)
        try:
            found = method(score, inputs)
            values = self._values(method, found, score, inputs, masks)
            cost = cost_of(method, score, inputs)
        except RefusedError as error:
            none = Cost(0, 0, math.nan, math.nan, math.nan, hyperparameters(method), 0)
            return Row(facts, name, kind, family, key, {}, none, str(error), answers=answers)
        values |= stated(answers, demands, cost)
        return Row(facts, name, kind, family, key, values, cost, answers=answers)

    def _values(
        self,
        method: AttributionMethod,
        found: Attribution,
        score: Score,
        inputs: Tensor,
        masks: Masks | None,
    ) -> dict[str, Tensor]:
        patch = -(-min(inputs.shape[2:]) // self.grid)
        removal = {
            "baselines": (self.substrate,),
            "steps": self.steps,
            "patch": patch,
            "seed": self.seed,
            "precision": self.precision,
        }
        flipping = PixelFlipping(orders=("most", "least"), **removal)  # type: ignore[arg-type]
        n_draws = SensitivityN(
            draws=self.draws, baseline=self.substrate, patch=patch, seed=self.seed, precision=self.precision
        )
        values = {
            "abpc": flipping(found, score, inputs).abpc[0],
            "effects": n_draws(spread_out(found), score, inputs).values,
            "randomised": self._randomised(method, score, inputs),
            "gap": _gap(found),
            "parts": parts_to_read(found),
            "bytes": PictureBytes()(found, score, inputs).values,
            "sufficient": self._sufficient(Insertion(**removal), found, score, inputs),  # type: ignore[arg-type]
        }
        if masks is not None:
            values["on_object"] = EnergyShare()(spread_out(found), score, inputs, masks).values
        return {name: v.double().cpu() for name, v in values.items()}

    def _randomised(self, method: AttributionMethod, score: Score, inputs: Tensor) -> Tensor:
        """Return the size of the correlation after all was drawn anew, of the inputs that are probed."""
        few = slice(0, self.probed)
        metric = CascadingRandomisation(seeds=self.seeds, steps=1, measures=("spearman",), seed=self.seed)
        found = metric(method, score.of(few), inputs[few])
        return found.values[:, 0, 0].nanmean(0).abs()

    def _sufficient(self, insertion: Insertion, found: Attribution, score: Score, inputs: Tensor) -> Tensor:
        """Return the smallest share of patches with nine tenths of the class's probability; NaN for other scores."""
        if isinstance(score.target, Reading) and score.unit != "probability":
            return torch.full((len(inputs),), torch.nan, dtype=torch.float64)
        try:
            curves = insertion(found, replace(score, unit="probability"), inputs)
        except OutputError:  # of a model that returns probabilities already
            curves = insertion(found, replace(score, unit="logit"), inputs)
        curve = curves.values[0, 0]
        enough = curve >= 0.9 * curve[:, -1:]
        first = enough.double().argmax(1)
        return curves.shares[first]


@dataclass(frozen=True)
class ScoringWork:
    """Measures a share of some methods and leaves their rows in a folder, for an engine; see `Scoring.rows`.

    Times are measured while other workers compute, each relative to a pass in its own process.
    """

    scoring: Scoring
    methods: Mapping[str, AttributionMethod]
    score: Score
    inputs: Float[Tensor, "n c h w"]
    folder: Path

    def __call__(self, share: Share) -> None:
        """Measure the methods of a share."""
        own = share.of(list(self.methods))
        methods = {name: self.methods[name] for name in own}
        self.scoring.rows(methods, self.score, self.inputs, folder=self.folder)


def evaluate(
    score: Score | Model,
    inputs: Float[Tensor, "n c h w"],
    target: Target = None,
    *,
    methods: Mapping[str, AttributionMethod] | None = None,
    masks: Masks | None = None,
    scoring: Scoring | None = None,
) -> Scorecard:
    """Return the scorecard of several methods on the same images: which of them to trust here.

    Args:
        score: what is explained, or a model.
        inputs: images in model space.
        target: of a model: a class, or one per input; by default the top class of each.
        methods: by name; by default nine.
        masks: where the object is, if known.
        scoring: how they are measured.

    Raises:
        EvaluationError: for fewer than two methods that explain this network.

    Example:
        >>> evaluate(model, images).plot()
    """
    score = score if isinstance(score, Score) else Score(score, target)
    methods = methods or {name: METHODS[name]() for name in DEFAULT_METHODS}
    return (scoring or Scoring())(methods, score, inputs, masks)


def _gap(found: Attribution) -> Float[Tensor, " n"]:
    """Return the relative completeness gap; NaN for maps of a layer's resolution, which promise no sum, and of nothing.

    A linear model of segments is held to its own prediction: intercept plus coefficients.
    """
    if found.geometry is not None:
        return torch.full((len(found.values),), torch.nan, dtype=torch.float64)
    score, total = found.score.double().cpu(), found.values.double().cpu().flatten(1).sum(1)
    base = torch.zeros_like(score) if found.baseline_score is None else found.baseline_score.cpu().double()
    if "intercept" in found.diagnostics:
        base = found.diagnostics["intercept"].double()
        total = found.diagnostics["prediction"].double() - base
    difference = score - base
    gap = (total - difference).abs() / difference.abs().clamp(min=1e-12)
    return gap.masked_fill((difference == 0) & (total == 0), torch.nan)


def spread_out(found: Attribution) -> Attribution:
    """Return a map whose sum over any places is what it says of them: a segment's coefficient is shared by its places."""
    if "parts" not in found.diagnostics:
        return found
    labels = found.diagnostics["parts"].flatten(1)
    sizes = [torch.bincount(part)[part] for part in labels]
    return replace(found, values=found.values / torch.stack(sizes).view_as(found.values))


def parts_to_read(found: Attribution) -> Float[Tensor, " n"]:
    """Return the effective number of things in each map: pixels, cells of a layer, or segments.

    It is `exp` of the entropy of their sizes (Bhatt et al. 2020, sec. 3.3); NaN for a map of zeros.
    """
    if "parts" not in found.diagnostics:
        return effective_number(pixels(found.values).flatten(1))
    labels = found.diagnostics["parts"].flatten(1)
    numbers = []
    for own, part in zip(found.values.flatten(1), labels, strict=True):
        one_each = torch.zeros(int(part.max()) + 1, dtype=own.dtype, device=own.device)
        numbers.append(effective_number(one_each.scatter_(0, part, own)[None]))
    return torch.cat(numbers)


def effective_number(values: Float[Tensor, "n things"]) -> Float[Tensor, " n"]:
    """Return `exp` of the entropy of values' sizes: how many things share the whole; NaN where all are zero."""
    sizes = values.detach().cpu().double().abs()
    shares = sizes / sizes.sum(1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(1)
    return entropy.exp()


def declared(method: object) -> tuple[Family, tuple[int, ...], tuple[str, ...]]:
    """Return a method's family, the questions it answers, and what it demands of a network.

    Raises:
        ArgumentError: if its class does not say: what is not known must not be counted.
    """
    kind = type(method)
    lacking = [name for name in ("family", "answers", "demands") if not hasattr(kind, name)]
    if lacking:
        raise ArgumentError(
            f"a scorecard can't place {kind.__name__}: let the class say {', '.join(lacking)}, as "
            "probing.attribution.base.LocalMethod describes them."
        )
    return kind.family, kind.answers, kind.demands  # type: ignore[attr-defined]


def stated(answers: Sequence[int], demands: Sequence[str], cost: Cost) -> dict[str, Float[Tensor, " one"]]:
    """Return the quantities that are no draws: what a method answers, demands and costs."""
    values = {
        "questions": len(answers),
        "settings": cost.hyperparameters,
        "images": cost.images,
        "labels": cost.labels,
        "constraints": len(demands),
        "passes": cost.n_forward + cost.n_backward,
        "time": cost.relative,
        "memory": cost.peak_mb,
    }
    return {name: torch.tensor([float(v)], dtype=torch.float64) for name, v in values.items()}


def row_key(scoring: object, method: object, score: Score, inputs: Tensor, *others: str) -> str:
    """Return a content id of all that a row depends on.

    Args:
        scoring: settings of the measurement.
        method: that is measured.
        score: what is explained.
        inputs: of which.
        others: content ids of further data.
    """
    target = score.target.tolist() if isinstance(score.target, Tensor) else score.target
    what = target.key if isinstance(target, Reading) else target
    return content_id(
        [
            __version__,
            model_id(score.model),
            tensor_id(inputs),
            str(describe(method)),
            str(describe(scoring)),
            f"{what} {score.unit} {score.output}",
            *others,
        ]
    )


def kept_row(folder: Path | None, name: str, key: str, make: Callable[[], Row]) -> tuple[Row, bool]:
    """Return a row, and whether it was made now: one with the same key that is kept in the folder is taken from there."""
    place = None if folder is None else folder / name.replace("/", "_")
    if place is not None and place.exists():
        try:
            row = Row.load(place)
        except SavedResultError:  # left half-written, or by another version
            pass
        else:
            if row.key == key and row.answers is not None:
                return row, False
    row = make()
    if place is not None:
        row.save(place)
    return row, True
