"""The probes as estimators with scikit-learn's conventions, for a `Pipeline`, a search or a notebook."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from probing.core.errors import ArgumentError
from probing.probes.feature_tables import RowMoments, Scaler, TableRows
from probing.probes.probes import PathFits, Probe, RidgeProbe, SoftmaxProbe

Array = npt.NDArray[Any]
S = TypeVar("S", bound="_LinearClassifier")


class _LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # untyped bases
    """What both classifiers share: features are standardised, coefficients act on them as they are."""

    def _probe(self) -> Probe:
        raise NotImplementedError

    def fit(self: S, X: Any, y: Any) -> S:  # noqa: N803 - scikit-learn's names
        """Fit to rows `X` [n, features] with classes `y` [n].

        Raises:
            ValueError: if there are fewer than two classes, or values that are not finite.
            DegenerateRowsError: if no feature varies.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentError(
                f"a classifier needs samples of at least 2 classes, got {len(self.classes_)} class: {self.classes_}."
            )
        features = torch.from_numpy(np.ascontiguousarray(X))
        moments = RowMoments()
        moments.add(features)
        scaler = Scaler.of(moments)
        known = torch.from_numpy(labels.astype(np.int64))[None]
        fits = self._probe().fit(TableRows(scaler(features)), known, len(self.classes_))
        self._keep(fits, scaler)
        return self

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return scores [n, classes], or for two classes [n], positive for the second."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        scores: Array = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the class of each row."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        found: Array = self.classes_[chosen]
        return found

    def _keep(self, fits: PathFits, scaler: Scaler) -> None:
        weights, intercepts = scaler.unscaled(fits.weights[0, 0], fits.intercepts[0, 0])
        if len(self.classes_) == 2:  # one score, as in scikit-learn: the difference of the two
            weights, intercepts = self._contrast(weights), self._contrast(intercepts)
        self.coef_, self.intercept_ = weights.numpy(), intercepts.numpy()
        self.certificate_ = float(fits.certificate[0, 0])

    def _contrast(self, values: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class SoftmaxClassifier(_LinearClassifier):
    """Multinomial logistic regression on standardised features.

    On features that are standardised already it is scikit-learn's `LogisticRegression(C=1 / (penalty * n))`.

    Args:
        penalty: on the mean cross-entropy, above 0.
        tolerance: largest entry of the gradient at the fit; what it came to is `certificate_`.
        max_steps: quasi-Newton steps.

    Example:
        >>> make_pipeline(PCA(50), SoftmaxClassifier(penalty=1e-3)).fit(features, labels).score(others, theirs)
    """

    def __init__(self, penalty: float = 1e-3, tolerance: float = 1e-6, max_steps: int = 1000) -> None:
        self.penalty = penalty
        self.tolerance = tolerance
        self.max_steps = max_steps

    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return the probability of each class, [n, classes]."""
        scores = self.decision_function(X)
        scores = np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
        raised = np.exp(scores - scores.max(1, keepdims=True))
        shares: Array = raised / raised.sum(1, keepdims=True)
        return shares

    def _probe(self) -> Probe:
        return SoftmaxProbe((self.penalty,), self.tolerance, self.max_steps)

    def _contrast(self, values: torch.Tensor) -> torch.Tensor:
        return values[1:] - values[:1]


class RidgeClassifier(_LinearClassifier):
    """Least squares on indicators of +1 and -1, on standardised features.

    On features that are standardised already it is scikit-learn's `RidgeClassifier(alpha=penalty * n)`.

    Args:
        penalty: beside the mean squared error, above 0.
    """

    def __init__(self, penalty: float = 1e-3) -> None:
        self.penalty = penalty

    def _probe(self) -> Probe:
        return RidgeProbe((self.penalty,))

    def _contrast(self, values: torch.Tensor) -> torch.Tensor:
        return values[1:]
