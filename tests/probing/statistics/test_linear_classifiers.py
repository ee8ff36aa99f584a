"""Batched linear classifiers against scikit-learn, slow formulas, and themselves by another route."""

from typing import Literal

import oracles
import pytest
import torch
from torch import Tensor

import probing.statistics.estimators
import probing.statistics.linear_classifiers
import probing.statistics.row_products
from probing.statistics.linear_classifiers import (
    ESTIMATORS,
    ConvergenceError,
    DegenerateRowsError,
    Estimator,
    Hinge,
    Lda,
    Logistic,
    Pattern,
    Ridge,
    RowProducts,
    SharedRows,
    fit_pairs,
)
from probing.statistics.row_products import SMALLEST_SCALE

FITS, SIDE, POOL = 5, 20, 40
WIDE, NARROW = 70, 6
CLASSIFIERS: list[Estimator] = [Logistic(), Ridge(), Lda(), Hinge()]


def table(features: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """80 rows whose first half is shifted, with correlated features of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64)
    rows = torch.randn(2 * POOL, features, generator=generator, dtype=torch.float64) @ mix
    rows[:POOL] += 0.7 * torch.randn(features, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(-1, 2, features, dtype=torch.float64)
    return (rows * sizes + 3).to(dtype)


def pairs(seed: int = 0, side: int = SIDE, fits: int = FITS) -> tuple[Tensor, Tensor]:
    """Rows of either half for each fit."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(POOL, generator=generator)[:side] for _ in range(2 * fits)]
    return torch.stack(draws[:fits]), POOL + torch.stack(draws[fits:])


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=-1).min())


def problem(features: int, negatives: int = SIDE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised rows and signs of the first fit, and all rows standardised with their scale."""
    rows, scale = oracles.standardized(table(features), SMALLEST_SCALE)
    positive, negative = pairs()
    index = torch.cat([positive[0], negative[0, :negatives]])
    signs = torch.cat([torch.ones(SIDE), -torch.ones(negatives)]).double()
    return rows[index], signs, rows, scale


def reference(kind: str, rows: Tensor, signs: Tensor, strength: float) -> tuple[Tensor, float]:
    """scikit-learn's weights and intercept for a penalty or shrinkage."""
    pytest.importorskip("sklearn")
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression, Ridge as LeastSquares
    from sklearn.svm import SVC

    count = len(rows)
    model = {
        "logistic": LogisticRegression(C=1 / (strength * count), tol=1e-9, max_iter=100_000),
        "ridge": LeastSquares(alpha=strength * count),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=strength),
        "hinge": SVC(kernel="linear", C=1 / (strength * count), tol=1e-9),
    }[kind].fit(rows.numpy(), signs.numpy())
    weights = torch.tensor(model.coef_, dtype=torch.float64).flatten()
    return weights, float(torch.tensor(model.intercept_).flatten()[0])


@pytest.mark.parametrize("strength", [0.3, 1e-2, 1e-3])
@pytest.mark.parametrize("features", [WIDE, NARROW])
@pytest.mark.parametrize("kind", ["logistic", "ridge", "lda", "hinge"])
@pytest.mark.parametrize("negatives", [SIDE, 9])
def test_classifiers_are_those_of_scikit_learn(negatives: int, kind: str, features: int, strength: float) -> None:
    problem_rows, signs, rows, scale = problem(features, negatives)
    weights, intercept = reference(kind, problem_rows, signs, strength)
    positive, negative = pairs()
    fits = fit_pairs(table(features), positive, negative[:, :negatives], ESTIMATORS[kind](strength))
    assert cosine(fits.normals()[0], weights / scale) > 1 - 1e-9
    torch.testing.assert_close(fits.decision(table(features))[0], rows @ weights + intercept, rtol=1e-4, atol=1e-4)


def test_the_hinge_direction_is_that_of_a_linear_svc_whose_intercept_is_hardly_penalised() -> None:
    svm = pytest.importorskip("sklearn.svm")
    rows, signs, _, scale = problem(NARROW)
    model = svm.LinearSVC(loss="hinge", C=1 / (0.3 * len(rows)), intercept_scaling=30, tol=1e-8, max_iter=1_000_000).fit(
        rows.numpy(), signs.numpy()
    )
    fits = fit_pairs(table(NARROW), *pairs(), Hinge(0.3))
    assert cosine(fits.normals()[0], torch.from_numpy(model.coef_[0]) / scale) > 0.9999


@pytest.mark.parametrize("features", [WIDE, NARROW])
def test_logistic_regression_is_the_minimum_newton_steps_on_the_formula_find(features: int) -> None:
    rows, signs, all_rows, scale = problem(features)
    weights, intercept = oracles.logistic_regression(rows, signs, 0.05)
    fits = fit_pairs(table(features), *pairs(), Logistic(0.05))
    assert cosine(fits.normals()[0], weights / scale) > 1 - 1e-12
    torch.testing.assert_close(fits.decision(table(features))[0], all_rows @ weights + intercept)
    torch.testing.assert_close(fits.norms[0], torch.linalg.vector_norm(weights / scale))


def test_a_penalty_that_all_but_vanishes_loses_no_digits() -> None:
    rows, signs, _, scale = problem(NARROW)
    design = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    penalty = 1e-7 * len(rows) * torch.diag(torch.tensor([1.0] * NARROW + [0]))
    weights = torch.linalg.solve(design.T @ design + penalty, design.T @ signs)[:-1]
    normals = fit_pairs(table(NARROW), *pairs(), Ridge(1e-7)).normals()
    assert cosine(normals[0], weights / scale) > 1 - 1e-12


@pytest.mark.parametrize("features", [WIDE, NARROW])
def test_automatic_shrinkage_is_that_of_ledoit_and_wolf_within_classes(features: int) -> None:
    rows, signs, _, scale = problem(features)
    fits = fit_pairs(table(features), *pairs(), Lda())
    assert cosine(fits.normals()[0], oracles.discriminant(rows, signs) / scale) > 1 - 1e-12


def test_the_pattern_is_the_mean_difference_with_its_length_and_a_border_half_way() -> None:
    rows, (positive, negative) = table(WIDE), pairs()
    fits = fit_pairs(rows, positive, negative, Pattern())
    means = rows[positive].mean(1), rows[negative].mean(1)
    torch.testing.assert_close(fits.normals() * fits.norms.unsqueeze(1), means[0] - means[1])
    middle = torch.stack([fits.decision((a + b).unsqueeze(0) / 2)[i] for i, (a, b) in enumerate(zip(*means, strict=True))])
    torch.testing.assert_close(middle, torch.zeros(FITS, 1).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Hinge(1e-4), Ridge(1e-5), Lda(1e-3)])
def test_rows_and_features_give_the_same_answer(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for threshold in (0.0, 1e9):
        monkeypatch.setattr(probing.statistics.linear_classifiers, "ROWS_PER_FEATURE", threshold)
        answers.append(fit_pairs(table(15), *pairs(), estimator))
    assert cosine(answers[0].normals(), answers[1].normals()) > 1 - 1e-9
    torch.testing.assert_close(answers[0].norms, answers[1].norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(answers[0].intercepts, answers[1].intercepts, rtol=1e-4, atol=1e-4)


def test_a_hinge_of_more_rows_than_can_be_multiplied_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:150, 0] += 1
    index = torch.arange(300).unsqueeze(0)
    exact = fit_pairs(rows, index[:, :150], index[:, 150:], Hinge())
    monkeypatch.setattr(probing.statistics.estimators, "AFFORDABLE_ROWS", 0)
    found = fit_pairs(rows, index[:, :150], index[:, 150:], Hinge())
    assert not torch.equal(found.coefficients, exact.coefficients)
    assert cosine(found.normals(), exact.normals()) > 1 - 1e-8


@pytest.mark.parametrize("features", [WIDE, NARROW])
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_results_do_not_depend_on_what_is_worked_on_at_a_time(
    estimator: Estimator, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = table(features, seed=1)[:7]
    whole = fit_pairs(table(features), *pairs(), estimator).project(vectors)
    monkeypatch.setattr(probing.statistics.row_products, "BLOCK", 1)
    monkeypatch.setattr(probing.statistics.linear_classifiers, "BLOCK", 1)
    torch.testing.assert_close(fit_pairs(table(features), *pairs(), estimator).project(vectors), whole)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_a_batch_of_fits_equals_one_at_a_time(estimator: Estimator) -> None:
    rows, (positive, negative) = SharedRows(table(WIDE)), pairs()
    together = fit_pairs(rows, positive, negative, estimator).normals()
    alone = [fit_pairs(rows, positive[[i]], negative[[i]], estimator).normals() for i in range(FITS)]
    torch.testing.assert_close(torch.cat(alone), together)


@pytest.mark.parametrize("fits", [2, 60])
@pytest.mark.parametrize("features", [WIDE, 200, NARROW])
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_projections_are_products_with_the_normals(estimator: Estimator, features: int, fits: int) -> None:
    fitted = fit_pairs(table(features), *pairs(fits=fits), estimator)
    vectors = table(features, seed=1)[:7]
    normals = fitted.normals()
    torch.testing.assert_close(torch.linalg.vector_norm(normals, dim=1), torch.ones(fits).double())
    torch.testing.assert_close(fitted.project(vectors), normals @ vectors.T)
    torch.testing.assert_close(fitted.project(RowProducts(fitted.rows, vectors)), normals @ vectors.T)
    expected = (normals @ normals.T)[~torch.eye(fits, dtype=torch.bool)].mean()
    assert fitted.mean_cosine() == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_normals_point_to_the_positives_and_turn_round_when_sides_are_swapped(
    estimator: Estimator,
) -> None:
    rows, (positive, negative) = SharedRows(table(WIDE)), pairs()
    fits = fit_pairs(rows, positive, negative, estimator)
    assert (fits.decision_at(positive).mean(1) > fits.decision_at(negative).mean(1)).all()
    swapped = fit_pairs(rows, negative, positive, estimator)
    torch.testing.assert_close(swapped.normals(), -fits.normals())
    torch.testing.assert_close(swapped.intercepts, -fits.intercepts, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_separable_rows_are_told_apart_without_error_as_captum_cannot_report(
    estimator: Estimator,
) -> None:
    rows = table(WIDE)
    rows[:POOL] += 40 * rows.std(0)
    positive, negative = pairs()
    for side in fit_pairs(rows, positive, negative, estimator).accuracy(positive, negative):
        assert side.tolist() == [1.0] * FITS


def test_decisions_at_shared_rows_are_those_at_the_same_rows_given_anew() -> None:
    rows, (positive, negative) = table(WIDE), pairs()
    fits = fit_pairs(rows, positive, negative, Logistic())
    anew = torch.stack([fits.decision(rows[line])[i] for i, line in enumerate(negative)])
    torch.testing.assert_close(fits.decision_at(negative), anew)


@pytest.mark.parametrize("features", [WIDE, NARROW])
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_places_that_hold_no_row_do_not_count(estimator: Estimator, features: int) -> None:
    rows, (positive, negative) = SharedRows(table(features)), pairs()
    padded = torch.nn.functional.pad(negative[:, :-3], (2, 1), value=-1)
    expected = fit_pairs(rows, positive, negative[:, :-3], estimator)
    found = fit_pairs(rows, positive, padded, estimator)
    torch.testing.assert_close(found.normals(), expected.normals(), atol=1e-8, rtol=1e-6)
    assert found.accuracy(positive, padded)[1].tolist() == pytest.approx(
        expected.accuracy(positive, negative[:, :-3])[1].tolist()
    )


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_sides_of_the_same_rows_have_no_direction(estimator: Estimator) -> None:
    positive, _ = pairs()
    fits = fit_pairs(table(WIDE), positive, positive, estimator)
    assert (fits.project(table(WIDE, seed=1)) == 0).all()
    assert (fits.normals() == 0).all()
    balanced = torch.stack(fits.accuracy(positive, positive)).mean(0)
    assert balanced.tolist() == [0.5] * FITS


@pytest.mark.parametrize("features", [WIDE, NARROW])
def test_products_that_cancel_are_ties(features: int) -> None:
    rows = table(features)
    rows[:, :3] = rows[:, :3].round()
    positive, negative = torch.arange(4).unsqueeze(0), torch.arange(4, 8).unsqueeze(0)
    rows[4:8, 0] = rows[:4, 0]
    vectors = torch.zeros(2, features).double()
    vectors[0, 0] = vectors[1, 1] = 1
    products = fit_pairs(rows, positive, negative, Pattern()).project(vectors)[0]
    assert products[0] == 0
    assert products[1] != 0


@pytest.mark.parametrize("scaling", ["feature", "layer"])
def test_products_made_in_one_sweep_equal_those_made_alone(
    scaling: Literal["feature", "layer"],
) -> None:
    rows = table(WIDE)
    together, alone = SharedRows(rows, scaling), SharedRows(rows, scaling)
    together.gram(-2, -4, 0)
    centred = rows - together.center
    for power in (0, -2, -4):
        expected = (centred * together.scale**power) @ centred.T
        torch.testing.assert_close(together.gram(power), expected)
        torch.testing.assert_close(alone.gram(power), expected)


def test_one_scale_for_the_layer_lets_normals_turn_with_the_features() -> None:
    rows, turn = table(WIDE), torch.linalg.qr(table(WIDE, seed=2)[:WIDE]).Q
    for scaling, turns in (("layer", True), ("feature", False)):
        plain = fit_pairs(SharedRows(rows, scaling), *pairs(), Logistic()).normals()
        turned = fit_pairs(SharedRows(rows @ turn, scaling), *pairs(), Logistic()).normals()
        assert (cosine(turned, plain @ turn) > 1 - 1e-9) is turns


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, Pattern()])
def test_changing_the_unit_of_a_layer_leaves_normals_as_they_are(estimator: Estimator) -> None:
    plain = fit_pairs(table(WIDE), *pairs(), estimator)
    scaled = fit_pairs(1000 * table(WIDE), *pairs(), estimator)
    torch.testing.assert_close(scaled.normals(), plain.normals())


def test_each_parameter_changes_the_result() -> None:
    rows = table(WIDE)
    variants = [
        (Logistic(1e-2), Logistic(1.0)),
        (Ridge(1e-2), Ridge(10.0)),
        (Hinge(1e-2), Hinge(3.0)),
        (Lda(), Lda(0.9)),
    ]
    for first, second in variants:
        found = [fit_pairs(rows, *pairs(), e).normals() for e in (first, second)]
        assert cosine(*found) < 0.9999


def test_a_unit_that_is_nearly_dead_does_not_rule_the_normal() -> None:
    rows = table(WIDE)
    rows[:, 0] = 0
    rows[0, 0] = 1e-9
    normals = fit_pairs(rows, *pairs(), Logistic()).normals()
    assert normals[:, 0].abs().max() < 1e-6


@pytest.mark.parametrize(("dtype", "closeness"), [(torch.float32, 1e-9), (torch.bfloat16, 1e-9)])
def test_rows_of_lower_precision_lose_nothing_more(dtype: torch.dtype, closeness: float) -> None:
    rows = table(WIDE, dtype=dtype)
    found = fit_pairs(SharedRows(rows, "layer"), *pairs(), Logistic())
    exact = fit_pairs(SharedRows(rows.double(), "layer"), *pairs(), Logistic())
    vectors = table(WIDE, seed=1)[:5]
    torch.testing.assert_close(found.project(vectors), exact.project(vectors), rtol=1e-3, atol=closeness)
    assert found.normals().dtype == dtype


def test_the_certificate_is_the_gradient_that_autograd_finds() -> None:
    problem_rows, signs, _, _ = problem(WIDE)
    fits = fit_pairs(table(WIDE), *pairs(), Logistic())
    assert (fits.certificate <= 1e-9).all()
    weights = (problem_rows.T @ fits.coefficients[0]).requires_grad_()
    intercept = fits.intercepts[0].clone().requires_grad_()
    loss = torch.nn.functional.softplus(-signs * (problem_rows @ weights + intercept)).mean()
    gradients = torch.autograd.grad(loss + 0.005 * weights.square().sum(), (weights, intercept))
    assert max(float(g.abs().max()) for g in gradients) < 1e-8


@pytest.mark.parametrize("estimator", [Logistic(), Hinge()])
def test_an_optimum_that_is_not_reached_is_an_error(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing.statistics.estimators, "MAX_STEPS", 2)
    with pytest.raises(ConvergenceError, match=r"5 of 5 fits of \w+\(penalty=0.01\) stopped short"):
        fit_pairs(table(WIDE), *pairs(), estimator)


def test_classes_without_any_scatter_are_an_error_for_lda() -> None:
    rows = torch.tensor([[0.0, 1], [0, 1], [2, 3], [2, 3]])
    with pytest.raises(ConvergenceError, match="rows that repeat"):
        fit_pairs(rows, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), Lda())


def test_rows_that_are_not_finite_are_named() -> None:
    for value in (torch.nan, torch.inf):
        rows = table(WIDE)
        rows[[3, 7], 2] = value
        with pytest.raises(DegenerateRowsError, match=r"in 2 of 80 rows, the first being \[3, 7\]"):
            SharedRows(rows)


def test_rows_that_do_not_differ_are_refused() -> None:
    with pytest.raises(DegenerateRowsError, match="features must differ between rows, got 80 rows"):
        fit_pairs(torch.ones(80, 5), *pairs(), Logistic())
    with pytest.raises(DegenerateRowsError, match="got no rows"):
        SharedRows(torch.ones(0, 5))


def test_a_side_needs_two_rows() -> None:
    positive, negative = pairs()
    with pytest.raises(ValueError, match="needs 2 positive rows or more, got 1 in fit 0"):
        fit_pairs(table(WIDE), positive[:, :1], negative, Ridge())
    negative[3, 1:] = -1
    with pytest.raises(ValueError, match="needs 2 negative rows or more, got 1 in fit 3"):
        fit_pairs(table(WIDE), positive, negative, Ridge())
    with pytest.raises(ValueError, match="needs 2 positive rows or more, got none"):
        fit_pairs(table(WIDE), positive[:0], negative[:0], Ridge())


def test_an_index_that_names_no_row_is_an_error() -> None:
    positive, negative = pairs()
    negative[0, 0] = 80
    with pytest.raises(IndexError, match="negative rows must be indices from 0 to 79"):
        fit_pairs(table(WIDE), positive, negative, Ridge())


@pytest.mark.parametrize("kind", [Logistic, Ridge, Hinge])
def test_penalties_are_finite_and_above_0(kind: type[Logistic | Ridge | Hinge]) -> None:
    for penalty in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="penalty must be a finite number above 0, got"):
            kind(penalty)


def test_shrinkage_lies_between_0_and_1() -> None:
    for shrinkage in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="shrinkage must be 'auto' or above 0 and at most 1"):
            Lda(shrinkage)


def test_vectors_that_are_not_finite_or_of_other_rows_are_refused() -> None:
    rows = SharedRows(table(WIDE))
    fits = fit_pairs(rows, *pairs(), Ridge())
    vectors = table(WIDE, seed=1)
    with pytest.raises(ValueError, match="products must be with the rows that were fitted"):
        fits.project(RowProducts(SharedRows(table(WIDE)), vectors))
    vectors[0, 0] = torch.nan
    with pytest.raises(ValueError, match="vectors must be finite"):
        fits.project(vectors)


def test_the_registry_holds_estimators_that_need_no_arguments() -> None:
    for name, kind in ESTIMATORS.items():
        assert isinstance(kind(), Estimator)
        assert kind.__name__.lower() == name
