"""Properties that an explanation should have, as checks on any method and network (Sundararajan et al. 2017, sec. 2).

Each check makes inputs or networks for which the property says what must come out, and measures by how much the maps
miss it: 0 is perfect. A check that a method fails is no fault of the method, as long as it is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.attribution.base import Attribution, AttributionMethod, checked
from probing.attribution.baselines import Samples
from probing.core.errors import ProbingError, line_of_users
from probing.core.inputs import one_tensor
from probing.evaluation.base import Better, EvaluationError
from probing.evaluation.transformed_models import Combined, Mirrored, Narrow, Shifted, twins_of
from probing.models.precision import device_of
from probing.models.scores import Score, class_scores
from probing.results.figures import (
    COLUMN_WIDTH,
    FULL_WIDTH,
    INK,
    PALETTE,
    logarithmic,
    new_figure,
    style,
)
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

EXACT = 1e-4
"""Relative differences up to here are rounding, in float32."""


_NO_TRIAL = "no trial says anything, as where maps are zero or the score never changes"


@dataclass(frozen=True)
class Check(Result):
    """By how much maps miss a property, for each trial."""

    axiom: str
    method: str
    statistic: Float[Tensor, " trials"]
    """0 where the property holds exactly; NaN where a trial says nothing, as when the score did not change."""
    tolerance: float
    what: str
    """What the statistic is."""
    better: ClassVar[Better] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    @property
    def worst(self) -> float:
        """The largest miss; NaN if no trial says anything."""
        known = self.statistic[~self.statistic.isnan()]
        return float(known.max()) if len(known) else float("nan")

    @property
    def excluded(self) -> int:
        """Trials that say nothing."""
        return int(self.statistic.isnan().sum())

    @property
    def passed(self) -> bool:
        """Whether all trials stay within the tolerance, and there is one."""
        return self.worst <= self.tolerance

    def sentences(self) -> tuple[str, ...]:
        """Return the verdict."""
        return (str(self),)

    def plot(self) -> "Figure":
        """Return a figure of each trial's miss, beside the tolerance."""
        known = self.statistic[~self.statistic.isnan()].clamp(min=1e-12)
        with style():
            figure = new_figure(COLUMN_WIDTH, 1.0)
            panel = figure.subplots()
            panel.plot(known, [0] * len(known), "o", color=PALETTE[0], alpha=0.5, mew=0)
            panel.axvline(self.tolerance, color=INK, lw=0.7, ls=(0, (4, 3)))
            panel.set_yticks([0], [f"{self.axiom}\n{self.method}"])
            panel.set(ylim=(-1, 1), xlabel=f"{self.what}; dashed: tolerance")
            if len(known):
                logarithmic(panel)
        return figure

    def __str__(self) -> str:
        if self.excluded == len(self.statistic):
            return f"{self.axiom} can't be judged for {self.method}: {_NO_TRIAL}."
        verdict = "holds" if self.passed else "does not hold"
        return (
            f"{self.axiom} {verdict} for {self.method}: {self.what} up to {self.worst:.3g}, "
            f"tolerance {self.tolerance:g}, {len(self.statistic) - self.excluded} trials."
        )


@runtime_checkable
class Axiom(Protocol):
    """A frozen dataclass that checks a property of a method on a score and inputs."""

    cost: ClassVar[str]

    @property
    def tolerance(self) -> float:
        """By how much a map may miss the property."""
        ...

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return the check."""
        ...


@dataclass(frozen=True)
class Completeness:
    """The map adds up to the score minus the baseline's score.

    The reference is the method's own baseline score; for methods without one it is zero, as for gradient × input and
    LRP. Never normalises the map, and asks for no equality of floats: some libraries do both, and find exactly
    complete maps incomplete.

    Attributes:
        tolerance: of the gap, as a share of the difference of scores.
    """

    tolerance: float = 0.01
    cost: ClassVar[str] = "one map"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return the relative gap of each input."""
        found = _explained(method, score, inputs)
        total = found.values.double().flatten(1).sum(1)
        base = 0.0 if found.baseline_score is None else found.baseline_score.double()
        difference = found.score.double() - base
        gap = (total - difference).abs() / difference.abs()
        gap = torch.where(difference == 0, torch.nan, gap)
        return _check(self, method, score, gap, "gap, as a share of the difference of scores")


@dataclass(frozen=True)
class SensitivityA:
    """Where an input and a reference differ in one value, and the score differs, that value's attribution is not zero.

    The reference is the input with one value set to zero; methods that take a baseline get it as theirs.

    Attributes:
        trials: values of each input, at random.
        tolerance: share of trials in which the attribution may be zero (below a millionth of the score's change).
        seed: of the draw.
    """

    trials: int = 5
    tolerance: float = 0.0
    seed: int = 0
    cost: ClassVar[str] = "as many maps as trials"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return 1 for a zero attribution and 0 for another, for each trial."""
        score, inputs = checked(score, inputs)
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for _ in range(self.trials):
            for i in range(len(inputs)):
                place = int(torch.randint(inputs[0].numel(), (1,), generator=generator))
                found.append(_contrast(method, score.of(slice(i, i + 1)), inputs[i : i + 1], place))
        failed = torch.tensor(found, dtype=torch.float64)
        return _check(self, method, score, failed, "zero where the score changed")


def _contrast(method: AttributionMethod, score: Score, x: Tensor, place: int) -> float:
    """Return whether one value gets no attribution though the score depends on it; NaN if it does not."""
    x = x.to(device_of(score.model))
    other = x.clone()
    other.flatten()[place] = 0.0
    with torch.no_grad():
        change = float((score(x.clone()) - score(other.clone())).abs())
        size = float(score(x.clone()).abs())
    if not math.isfinite(change):
        raise EvaluationError(f"without the value at {place} the score is NaN or infinite.")
    if change <= 1e-6 * max(size, 1e-12):
        return float("nan")
    values = _explained(_with_reference(method, other), score, x).upsampled()
    if values.shape != x.shape:  # one value per pixel
        values = values.expand(x.shape)
    return float(abs(float(values.flatten()[place])) < 1e-6 * change)


def _with_reference(method: AttributionMethod, reference: Tensor) -> AttributionMethod:
    given = Samples.of(reference)
    for name in ("baseline", "background"):
        if hasattr(method, name):
            return replace(method, **{name: given})  # type: ignore[type-var]
    return method


@dataclass(frozen=True)
class Dummy:
    """What the score does not read gets no attribution (sensitivity b).

    The input is made wider by columns of noise, which the network never sees.

    Attributes:
        columns: added on the last axis.
        tolerance: of the largest attribution there, as a share of the map's largest.
        seed: of the noise.
    """

    columns: int = 2
    tolerance: float = 1e-6
    seed: int = 0
    cost: ClassVar[str] = "one map"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return the largest attribution of a dummy in each input."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (*one_tensor(inputs).shape[:-1], self.columns)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs)
        width = inputs.shape[-1]
        wide = replace(score, model=Narrow(score.model, width).eval())
        wider = _with_wide_reference(method, self.columns)
        values = _explained(wider, wide, torch.cat([inputs, noise], -1)).upsampled()
        largest = values.abs().flatten(1).amax(1)
        dummies = values[..., width:].abs().flatten(1).amax(1) / largest
        what = "attribution of a dummy, as a share of the largest"
        return _check(self, method, score, torch.where(largest > 0, dummies, torch.nan), what)


def _with_wide_reference(method: AttributionMethod, columns: int) -> AttributionMethod:
    """Return a method whose samples have dummies too."""
    background = getattr(method, "background", None)
    if not isinstance(background, Samples):
        return method
    tensor = background.tensor
    wide = torch.cat([tensor, torch.zeros_like(tensor[..., :1]).expand(*tensor.shape[:-1], columns)], -1)
    return replace(method, background=Samples.of(wide))  # type: ignore[type-var]


@dataclass(frozen=True)
class Linearity:
    """The map of a weighted sum of two scores is the weighted sum of their maps.

    Attributes:
        weights: of the two.
        classes: whose logits they are.
        tolerance: of the difference, as a share of the map's largest value.
    """

    weights: tuple[float, float] = (2.0, -3.0)
    classes: tuple[int, int] = (0, 1)
    tolerance: float = EXACT
    cost: ClassVar[str] = "three maps"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return the largest difference of each input."""
        with torch.no_grad():
            count = class_scores(
                score.model(one_tensor(inputs)[:1].to(device_of(score.model), copy=True)),
                score.output,
            ).shape[1]
        if max(self.classes) >= count:
            raise EvaluationError(f"classes {self.classes} need more than the model's {count}.")
        one, two = (_explained(method, replace(score, target=c, unit="logit"), inputs).values.double() for c in self.classes)
        both = Combined(score.model, score.output, count, self.classes, self.weights).to(inputs)
        whole = _explained(method, Score(both.eval(), 0), inputs).values.double()
        expected = self.weights[0] * one + self.weights[1] * two
        return _check(self, method, score, _relative(whole, expected), "relative difference")


@dataclass(frozen=True)
class Symmetry:
    """Where the score and the input are symmetric, so is the map.

    The score is that of the input plus that of its mirror image, and the input is its own mirror image.

    Attributes:
        tolerance: of the difference between the map and its mirror image, as a share of its largest value.
    """

    tolerance: float = EXACT
    cost: ClassVar[str] = "one map"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return the largest difference of each input."""
        same = (one_tensor(inputs) + inputs.flip(-1)) / 2
        mirrored = Mirrored(score.model, score.output).eval()
        half = replace(score, model=mirrored, output=None)
        values = _explained(method, half, same).upsampled().double()
        return _check(self, method, score, _relative(values.flip(-1), values), "relative difference")


@dataclass(frozen=True)
class ImplementationInvariance:
    """Networks that compute the same function get the same map.

    Twins of a network have a layer before it that changes nothing: `x` becomes `(x, -x)` and then `½x - ½(-x)`, or
    `relu(x) - relu(-x)`. Others can be given.

    Attributes:
        tolerance: of the difference, as a share of the map's largest value.
    """

    tolerance: float = EXACT
    cost: ClassVar[str] = "three maps"

    def __call__(
        self,
        method: AttributionMethod,
        score: Score,
        inputs: Float[Tensor, "n *shape"],
        twins: Sequence[nn.Module] | None = None,
    ) -> Check:
        """Return the largest difference of each input over all twins.

        Raises:
            EvaluationError: if a twin does not compute the same.
        """
        found = _explained(method, score, inputs)
        worst = torch.zeros(len(inputs), dtype=torch.float64)
        for twin in twins_of(score.model, inputs) if twins is None else twins:
            other = _explained(method, replace(score, model=twin.eval()), inputs)
            if not torch.allclose(other.score, found.score, rtol=1e-4, atol=1e-6):
                apart = float((other.score - found.score).abs().max())
                raise EvaluationError(f"a twin's scores differ by up to {apart:.3g}: it is none.")
            worst = torch.maximum(worst, _relative(other.values.double(), found.values.double()))
        return _check(self, method, score, worst, "relative difference")


@dataclass(frozen=True)
class InputShift:
    """A constant added to the input, and taken off again by the network, changes nothing (Kindermans et al. 2019).

    Methods that multiply by the input, or whose baseline stays where it was, do change: their reference is a
    convention of the data's zero.

    Attributes:
        amount: that is added.
        tolerance: of the difference, as a share of the map's largest value.
    """

    amount: float = 1.0
    tolerance: float = EXACT
    cost: ClassVar[str] = "two maps"

    def __call__(self, method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Check:
        """Return the largest difference of each input."""
        before = _explained(method, score, inputs).values.double()
        shifted = replace(score, model=Shifted(score.model, self.amount).eval())
        after = _explained(method, shifted, inputs + self.amount).values.double()
        return _check(self, method, score, _relative(after, before), "relative difference")


AXIOMS: dict[str, Axiom] = {
    "completeness": Completeness(),
    "sensitivity_a": SensitivityA(),
    "dummy": Dummy(),
    "linearity": Linearity(),
    "symmetry": Symmetry(),
    "implementation_invariance": ImplementationInvariance(),
    "input_shift": InputShift(),
}


@dataclass(frozen=True)
class AxiomTable(Result):
    """Which methods have which properties, on one network."""

    methods: tuple[str, ...]
    axioms: tuple[str, ...]
    worst: Float[Tensor, "methods axioms"]
    """The largest miss; NaN where a property could not be asked."""
    outcomes: tuple[tuple[str, ...], ...]
    """For each method: `holds`, `fails`, or why it could not be asked."""

    def holds(self, method: str, axiom: str) -> bool | None:
        """Return whether a property holds; None where it could not be asked."""
        outcome = self.outcomes[self.methods.index(method)][self.axioms.index(axiom)]
        return {"holds": True, "fails": False}.get(outcome)

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per method and one column per property."""
        import pandas as pd

        return pd.DataFrame(self.outcomes, index=self.methods, columns=list(self.axioms))

    def plot(self) -> "Figure":
        """Return which methods have which properties: filled where one holds, a cross where it fails, else nothing."""
        rows, columns = len(self.methods), len(self.axioms)
        with style():
            figure = new_figure(min(FULL_WIDTH, 1.4 + 0.5 * columns), 1.2 + 0.2 * rows)
            panel = figure.subplots()
            looks = {"holds": ("o", PALETTE[0]), "fails": ("x", PALETTE[1])}
            for outcome, (marker, colour) in looks.items():
                at = [(c, r) for r, said in enumerate(self.outcomes) for c, one in enumerate(said) if one == outcome]
                panel.plot([c for c, _ in at], [r for _, r in at], marker, color=colour, ms=5, label=outcome)
            panel.set_xticks(range(columns), [a.replace("_", " ") for a in self.axioms], rotation=35, ha="right")
            panel.set_yticks(range(rows), list(self.methods))
            panel.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6))
            panel.tick_params(length=0)
            figure.legend(loc="outside upper left", ncols=2)
        return figure


def axiom_table(
    methods: Mapping[str, AttributionMethod],
    score: Score,
    inputs: Float[Tensor, "n *shape"],
    axioms: Mapping[str, Axiom] = AXIOMS,
) -> AxiomTable:
    """Check methods on one network; what a method refuses is in the table by its reason."""
    rows, outcomes = [], []
    for method in methods.values():
        row, said = [], []
        for axiom in axioms.values():
            try:
                found = axiom(method, score, inputs)
            except Exception as error:
                row.append(float("nan"))
                said.append(_why_not(error))
                continue
            row.append(found.worst)
            if found.excluded == len(found.statistic):
                said.append(_NO_TRIAL)
            else:
                said.append("holds" if found.passed else "fails")
        rows.append(row)
        outcomes.append(tuple(said))
    return AxiomTable(
        Provenance.collect(model=score.model),
        tuple(methods),
        tuple(axioms),
        torch.tensor(rows, dtype=torch.float64),
        tuple(outcomes),
    )


def _why_not(error: Exception) -> str:
    """Return why a method has no answer: what it refuses, or where a method of the user's own fails."""
    if isinstance(error, ProbingError):
        return str(error)
    if line := line_of_users(error):
        return f"{type(error).__name__}: {error} ({line})"
    raise error


def _explained(method: AttributionMethod, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
    """Return maps, none of which holds NaN: such a trial would count as one that says nothing."""
    found = method(score, inputs)
    scores = {"score": found.score, "baseline score": found.baseline_score}
    for what, values in {"map": found.values, **scores}.items():
        if values is None:
            continue
        bad = (~values.reshape(len(values), -1).isfinite()).any(1).nonzero()
        if len(bad):
            raise EvaluationError(f"{what} {int(bad[0])} holds NaN or infinity.")
    return found


def _relative(values: Float[Tensor, "n *shape"], expected: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Return the largest difference as a share of the largest expected value."""
    largest = expected.abs().flatten(1).amax(1)
    apart = (values - expected).abs().flatten(1).amax(1)
    return torch.where(largest > 0, apart / largest, torch.where(apart > 0, torch.inf, 0.0))


def _check(axiom: Axiom, method: AttributionMethod, score: Score, statistic: Tensor, what: str) -> Check:
    return Check(
        Provenance.collect(model=score.model, method=axiom),
        type(axiom).__name__,
        type(method).__name__,
        statistic.double().cpu(),
        axiom.tolerance,
        what,
    )
