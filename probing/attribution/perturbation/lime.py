"""LIME: which parts of an image, or words of a text, a score depends on, by hiding them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, SupportsIndex

from jaxtyping import Float, Float64
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, r2_in_words
from probing.attribution.perturbation.contribution_maps import FACTS, contribution_map
from probing.attribution.perturbation.cutting import PART_MEAN, SUPERPIXELS
from probing.attribution.perturbation.function_scores import CoalitionScores, class_scores, named_class
from probing.attribution.perturbation.parts import Hidden, Tokens, Words
from probing.attribution.perturbation.superpixels import Segmentation
from probing.attribution.perturbation.surrogate import Local, Surrogate
from probing.attribution.score_passes import FLOAT32, BatchSize
from probing.core.inputs import InputError
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.result import Provenance, Result
from probing.results.text_highlight import highlight_figure, highlight_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Predict = Callable[[list[str]], object]
"""From texts to their class scores `[n, classes]`, as a tensor, an array or nested lists."""

WORDS = Words()
FOR_IMAGES, FOR_TEXTS = Local(), Local(samples=5000, coalitions="size", features=10)


@dataclass(frozen=True)
class LIME(LocalMethod):
    """The coefficients of a linear model of the score, in which parts of the input are kept or hidden.

    By default as Ribeiro et al. 2016, with the reference implementation's settings: 1,000 coalitions, kernel width
    0.25, ridge regression; but superpixels by `Slic`, which needs no other package. It explains the score's own unit,
    where the reference explains probabilities. Each value of the map holds the coefficient of its whole part (0 for
    parts that are not selected), so values are not to be added up over a part. For Shapley values use
    `Shapley`.

    In the diagnostics: `parts`, the part of each value; `standard_error`, of the map's shape; and for each input
    `r2` (weighted; NaN where no coalition changes the score: an R² of nothing is none), `intercept`, `prediction` (of
    the linear model, for the input itself), `condition` (of the regression), `reliability` (rank correlation of
    coefficients, split-half; NaN as R²), `coalitions` (used), `flat_parts` (of one colour, which something else than
    their mean hides: see `PartMean`), `unhidden_parts` (that look the same when hidden).

    Superpixels are for images. What else is explained is cut, if nothing is said, into the tokens that are read, single
    features, or blocks of a series or a volume; of several inputs each by itself. Hidden tokens, features, and parts of one
    of several inputs show zero, tokens where they are looked up.

    Attributes:
        parts: how inputs are cut.
        hidden: what shows where a part is hidden: the part's mean colour, or a baseline, such as `Constant` (a
            colour), `Blurred`, or given `Samples`.
        surrogate: how coalitions are drawn and coefficients fitted.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    family: ClassVar[Family] = "local"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3, 8)
    demands: ClassVar[tuple[Demand, ...]] = ()

    parts: Segmentation = SUPERPIXELS
    hidden: Hidden = PART_MEAN
    surrogate: Surrogate = FOR_IMAGES
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: if an input can't be cut, is a single part, or looks the same whatever is hidden.
        """
        return contribution_map(self, lambda *_: self.surrogate, score, inputs, (self.batch_size, self.precision), "LIME")


@dataclass(frozen=True)
class TextAttribution(Result):
    """What each part of a text contributes to a class's score; positive values raise it."""

    text: str
    """What was explained."""
    parts: tuple[str, ...]
    """The words, one for each part."""
    spans: tuple[tuple[tuple[int, int], ...], ...]
    """Where each part's words begin and end in the text, in characters."""
    values: Float64[Tensor, " parts"]
    """Coefficients, zero for parts that were not selected."""
    standard_error: Float64[Tensor, " parts"]
    """By the draw of coalitions; zero for parts that were not selected."""
    score: float
    """The class's score of the whole text."""
    target: int
    """The class."""
    n_forward: int
    """Texts that the model was given."""
    diagnostics: dict[str, float]
    """`r2` (weighted), `intercept`, `prediction`, `condition`, `reliability` and `coalitions`, as for `LIME`."""

    def plot(self, width: float = 5.0) -> "Figure":
        """Return a figure of the text, its words in the colours of what they contribute.

        Args:
            width: of the figure, in inches.
        """
        spans, values = self.spans, self.values.tolist()
        return highlight_figure(self.text, spans, values, caption=self._caption(), width=width)

    def html(self) -> str:
        """Return the text as an HTML element, its words in the colours of what they contribute."""
        spans, values = self.spans, self.values.tolist()
        return highlight_html(self.text, spans, values, caption=self._caption())

    def _repr_html_(self) -> str:
        return self.html()

    def _caption(self) -> str:
        facts = self.diagnostics
        fit = f"{facts['prediction']:.3g}, {r2_in_words(facts['r2'])}"
        return f"Class {self.target}, score {self.score:.3g}; the linear model gives {fit}."


@dataclass(frozen=True)
class TextLIME:
    """LIME for texts: which words a class's score depends on, for any function from texts to class scores.

    By default as the reference implementation: 5,000 coalitions in which the number of hidden words is uniform, the
    kernel of `LIME`, and the 10 parts with the highest weights. Scores are explained as the function gives them,
    probabilities or logits. For a text of two or three words few coalitions count, and ridge shrinks coefficients:
    `prediction` is then far from the score, and `surrogate=ExactShapley()` is exact.

    Attributes:
        parts: how a text is cut: `Words` (all occurrences of a word together) or `Occurrences`.
        surrogate: how coalitions are drawn and coefficients fitted.
        batch_size: texts of a call.
    """

    parts: Tokens = WORDS
    surrogate: Surrogate = FOR_TEXTS
    batch_size: int = 256

    def __call__(self, predict: Predict, text: str, target: SupportsIndex | None = None) -> TextAttribution:
        """Return the contributions of a text's parts.

        Args:
            predict: from texts to class scores `[n, classes]`.
            text: what is explained.
            target: a class; the one with the highest score unless given.

        Raises:
            InputError: for a text without words, with a single part, or whose words change nothing: the model
                knows none of them.
            OutputError: if the function does not return one row of finite class scores per text.
            TargetError: if the target is no class.
        """
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}.")
        cut = self.parts(text)
        chosen = named_class(target, class_scores(predict([text]), 1, "text")[0])
        scored = CoalitionScores(lambda kept: predict(list(cut.render(kept))), chosen, "text", self.batch_size)
        found = self.surrogate(scored, cut.count)
        hiding = f"parts of the text {text[:40]!r} are hidden: does the model know any of its words"
        scored.extent.refuse_constant(chosen, hiding)
        diagnostics = {name: float(getattr(found, name)) for name in FACTS}
        return TextAttribution(
            Provenance.collect(method=self),
            text,
            cut.names,
            cut.spans,
            found.coefficients,
            found.standard_error,
            found.score,
            chosen,
            scored.count + 1,
            diagnostics | {"coalitions": float(found.samples)},
        )
