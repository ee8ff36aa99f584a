"""The probes' solvers and estimators: against closed forms, scikit-learn and slow formulas."""

from collections.abc import Iterator
from math import log2, sqrt

import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from probing.probes import solvers
from probing.probes.description_length import CodeBlocks, code_length, uniform_length
from probing.probes.feature_tables import (
    MemoryTable,
    RowMoments,
    RowSpace,
    Scaler,
    StreamedRows,
    StreamedTable,
    TableRows,
)
from probing.probes.probes import RidgeProbe, SoftmaxProbe
from probing.probes.ridge import RidgeStatistics
from probing.probes.sklearn_estimators import RidgeClassifier, SoftmaxClassifier
from probing.probes.solvers import fit_softmax
from probing.statistics.row_products import DegenerateRowsError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n: int = 300, features: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features with classes that overlap."""
    rows = normal(n, features, seed=seed) @ normal(features, features, seed=seed + 1)
    scores = rows @ normal(features, classes, seed=seed + 2) / 4 + normal(n, classes, seed=seed + 3)
    return rows, scores.argmax(1)


def objective(rows: Tensor, labels: Tensor, weights: Tensor, intercepts: Tensor, penalty: float) -> Tensor:
    loss = cross_entropy(rows @ weights.mT + intercepts, labels)
    return loss + penalty / 2 * weights.square().sum()


def two_clouds(n: int, features: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """N(±μ, I) with |μ| = distance."""
    labels = torch.arange(n) % 2
    rows = normal(n, features, seed=seed)
    rows[:, 0] += distance * (2 * labels - 1)
    return rows, labels


def error(model: SoftmaxClassifier, rows: Tensor, labels: Tensor) -> float:
    return 1 - float(model.score(rows.numpy(), labels.numpy()))


def test_pr_1_two_normal_clouds_at_distance_one_are_told_apart_with_error_phi_of_minus_one() -> None:
    model = SoftmaxClassifier(1e-4).fit(*(t.numpy() for t in two_clouds(20_000, 3, 1, 0)))
    n = 20_000
    expected = float(norm.cdf(-1))
    found = error(model, *two_clouds(n, 3, 1, 1))
    assert found == pytest.approx(expected, abs=3 * sqrt(expected * (1 - expected) / n))


@pytest.mark.kernels
def test_pr_2_classes_with_a_margin_are_told_apart_without_error() -> None:
    rows, labels = two_clouds(400, 5, 8, 0)
    model = SoftmaxClassifier(1e-4).fit(rows.numpy(), labels.numpy())
    assert error(model, *two_clouds(400, 5, 8, 1)) == 0


@pytest.mark.kernels
def test_pr_3_random_labels_are_learnt_by_heart_where_features_suffice_and_never_predict() -> None:
    n, classes = 2000, 4
    rows = normal(60, 80, seed=1)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (60,), generator=generator)
    model = SoftmaxClassifier(1e-4).fit(rows.numpy(), labels.numpy())
    assert error(model, rows, labels) == 0  # N <= d + 1, as Cover counts
    others = torch.randint(classes, (n,), generator=generator)
    chance = 1 - 1 / classes
    found = error(model, normal(n, 80, seed=2), others)
    assert found == pytest.approx(chance, abs=3 * sqrt(chance * (1 - chance) / n))


def test_pr_4_xor_is_at_chance_and_solved_after_the_product_of_features() -> None:
    rows = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 2).repeat(50, 1)
    labels = (rows.prod(1) > 0).long()
    plain = SoftmaxClassifier(1e-4).fit(rows.numpy(), labels.numpy())
    assert error(plain, rows, labels) == 0.5
    product = rows.prod(1, keepdim=True)
    solved = SoftmaxClassifier(1e-4).fit(product.numpy(), labels.numpy())
    assert error(solved, product, labels) == 0


@pytest.mark.kernels
def test_pr_5_an_invertible_affine_map_of_features_leaves_the_optimal_loss() -> None:
    rows, labels = problem()
    mapped = rows @ normal(12, 12, seed=9) + normal(12, seed=10)
    losses = [
        fit_softmax(TableRows.of(r), labels[None], 4, [1e-12], tolerance=1e-9, max_steps=2000).loss for r in (rows, mapped)
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-6)


def test_pr_7_the_gradient_is_that_of_autograd() -> None:
    rows, labels = problem()
    table = TableRows.of(rows)
    known = normal(1, 4, 13, seed=5).requires_grad_()
    value = objective(table.table, labels, known[0, :, :-1], known[0, :, -1], 0.3)
    (expected,) = torch.autograd.grad(value, known)
    outputs = table.outputs(known[:, :, :-1].detach().contiguous()) + known[:, :, -1:].detach()
    point = solvers._Point(labels[None], known.detach(), outputs)
    errors = solvers._errors(outputs, labels[None])
    found = solvers._gradient(table, point, errors, torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.kernels
@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_a_fit_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rows, labels = problem()
    table = TableRows.of(rows)
    slope = 1e-11
    fits = fit_softmax(table, labels[None], 4, [penalty], tolerance=slope, max_steps=1000)
    assert float(fits.certificate) <= slope
    # By Newton's method, which ends at a slope of 1e-16: L-BFGS ends at 1e-7 whatever `tol` says, and where weights are
    # penalised by 1e-5 that may be 1e-2 from the optimum, another distance by each kernel.
    peer = linear.LogisticRegression(C=1 / (penalty * len(rows)), solver="newton-cholesky", tol=1e-12, max_iter=1000)
    peer.fit(table.table.numpy(), labels.numpy())
    weights, intercepts = torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)
    theirs = objective(table.table, labels, weights, intercepts, penalty)
    ours = objective(table.table, labels, fits.weights[0, 0], fits.intercepts[0, 0], penalty)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    # The loss curves by no less than the penalty, so that a slope's length bounds the way to the optimum.
    furthest = slope * sqrt(weights.numel()) / penalty
    assert float((fits.weights[0, 0] - weights).norm()) <= furthest


def test_the_certificate_is_the_largest_slope_at_the_fit_and_tells_of_an_early_stop() -> None:
    rows, labels = problem()
    table = TableRows.of(rows)
    fits = fit_softmax(table, labels[None], 4, [1e-4], max_steps=3)
    known = torch.cat([fits.weights[0, 0], fits.intercepts[0, 0, :, None]], 1).requires_grad_()
    value = objective(table.table, labels, known[:, :-1], known[:, -1], 1e-4)
    (slope,) = torch.autograd.grad(value, known)
    assert float(fits.certificate) == pytest.approx(float(slope.abs().max()), rel=1e-6)
    assert float(fits.certificate) > 1e-4
    assert int(fits.steps) == 3


@pytest.mark.kernels
def test_fits_together_are_fits_alone_and_warm_starts_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, labels = problem()
    table = TableRows.of(rows)
    tasks = torch.stack([labels, labels.roll(7)])
    path = [1e-2, 1e-4, 1e-1]
    together = fit_softmax(table, tasks, 4, path, tolerance=1e-9, max_steps=2000)
    monkeypatch.setattr(solvers, "TOGETHER", 1)  # one penalty at a time, from the last one's end
    warm = fit_softmax(table, tasks, 4, path, tolerance=1e-9, max_steps=2000)
    torch.testing.assert_close(warm.weights, together.weights, rtol=1e-4, atol=1e-6)
    for task in range(2):
        for i, penalty in enumerate(path):
            alone = fit_softmax(table, tasks[task, None], 4, [penalty], tolerance=1e-9)
            torch.testing.assert_close(alone.weights[0, 0], together.weights[task, i], rtol=1e-4, atol=1e-6)


@pytest.mark.kernels
def test_whitening_changes_the_way_and_not_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = problem()
    table = TableRows.of(rows)
    white = fit_softmax(table, labels[None], 4, [1e-3], tolerance=1e-9, max_steps=2000)
    monkeypatch.setattr(solvers, "WIDEST_WHITENED", 1)
    plain = fit_softmax(table, labels[None], 4, [1e-3], tolerance=1e-9, max_steps=2000)
    torch.testing.assert_close(plain.weights, white.weights, rtol=1e-4, atol=1e-6)
    assert int(white.steps) < int(plain.steps)


def test_a_class_that_is_absent_gets_no_probability_and_the_fit_still_ends() -> None:
    rows, labels = problem()
    fits = fit_softmax(TableRows.of(rows), labels[None].clamp(max=2), 4, [1e-3])
    assert float(fits.certificate) <= 1e-6
    assert float(fits.intercepts[0, 0, 3]) < -20


@pytest.mark.kernels
@pytest.mark.parametrize("probe", [SoftmaxProbe((1e-3, 1e-1), 1e-10), RidgeProbe()])
def test_a_fit_in_the_space_of_rows_is_the_fit(probe: SoftmaxProbe | RidgeProbe) -> None:
    rows, labels = problem(n=30, features=50)
    table = TableRows.of(rows)
    space = RowSpace.of(table)
    assert space.rows.features < 30  # centred rows span one dimension less
    torch.testing.assert_close(space.rows.table @ space.basis.mT, table.table)
    wide = probe.fit(table, labels[None], 4)
    if isinstance(probe, RidgeProbe):
        statistics = RidgeStatistics(4)
        statistics.add(table.table, labels[None])
        torch.testing.assert_close(wide.weights, statistics.fit(probe.penalties).weights, rtol=1e-6, atol=1e-8)
    else:
        plain = fit_softmax(table, labels[None], 4, probe.penalties, tolerance=1e-10, max_steps=3000)
        torch.testing.assert_close(wide.weights, plain.weights, rtol=1e-3, atol=1e-5)


def test_ridge_paths_are_those_of_scikit_learn_and_add_across_batches() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rows, labels = problem()
    table = TableRows.of(rows)
    penalties = [1e-3, 1.0, 30.0]
    whole, first, second = (RidgeStatistics(4) for _ in range(3))
    whole.add(table.table, labels[None])
    first.add(table.table[:100], labels[None, :100])
    second.add(table.table[100:], labels[None, 100:])
    first.merge(second)
    fits = whole.fit(penalties)
    torch.testing.assert_close(first.fit(penalties).weights, fits.weights)
    assert float(fits.certificate.max()) < 1e-12
    target = 2 * one_hot(labels, 4).double() - 1
    for i, penalty in enumerate(penalties):
        peer = linear.Ridge(alpha=penalty * len(rows)).fit(table.table.numpy(), target.numpy())
        torch.testing.assert_close(fits.weights[0, i], torch.from_numpy(peer.coef_))
        torch.testing.assert_close(fits.intercepts[0, i], torch.from_numpy(peer.intercept_))


def streamed(features: Tensor, positions: Tensor, step: int = 37) -> tuple[StreamedRows, list[int]]:
    passes: list[int] = []

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        passes.append(1)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
        for part in order.split(step):
            yield part, features[part]

    table = StreamedTable(read, len(features))
    rows = table.rows(positions, table.scaler(positions))
    assert isinstance(rows, StreamedRows)
    return rows, passes


@pytest.mark.kernels
@pytest.mark.parametrize("probe", [SoftmaxProbe((1e-3,)), RidgeProbe((1e-3, 1.0))])
def test_rows_that_pass_by_in_batches_give_the_fit_of_rows_in_memory(
    probe: SoftmaxProbe | RidgeProbe,
) -> None:
    features, labels = problem()
    features = features.float()
    positions = torch.arange(0, 300, 2)
    rows, _ = streamed(features, positions)
    table = MemoryTable(features)
    whole = probe.fit(table.rows(positions, table.scaler(positions)), labels[None, positions], 4)
    passing = probe.fit(rows, labels[None, positions], 4)
    torch.testing.assert_close(passing.weights, whole.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(passing.outputs(rows), whole.outputs(rows), rtol=1e-3, atol=1e-3)


def test_a_streamed_ridge_fit_passes_over_the_rows_twice() -> None:
    features, labels = problem()
    rows, passes = streamed(features.float(), torch.arange(300))
    RidgeProbe().fit(rows, labels[None], 4)
    assert len(passes) == 2  # for mean and deviation, and for the products


def test_features_are_scaled_by_training_rows_and_constant_ones_count_for_nothing() -> None:
    rows = normal(50, 3)
    rows[:, 1] = 7e5 + 1e-12  # constant up to rounding
    scaler = Scaler.of(_moments(rows))
    scaled = scaler(rows)
    assert scaled[:, 1].abs().max() == 0
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0).double(), rtol=1e-5, atol=0)
    weights = normal(2, 3, seed=1)
    own, shift = scaler.unscaled(weights, torch.zeros(2).double())
    torch.testing.assert_close(rows @ own.mT + shift, scaled @ weights.mT)


def _moments(*batches: Tensor) -> RowMoments:
    moments = RowMoments()
    for batch in batches:
        moments.add(batch)
    return moments


def test_moments_of_batches_are_those_of_the_whole() -> None:
    rows = 1e4 + normal(90, 4)
    mean, deviation = _moments(rows[:10], rows[10:]).value()
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(deviation, rows.std(0, correction=0))


def test_rows_that_no_probe_can_be_fitted_to_are_refused() -> None:
    with pytest.raises(DegenerateRowsError, match="3 features that are all constant over 5 rows"):
        Scaler.of(_moments(torch.ones(5, 3)))
    bad = normal(5, 3)
    bad[3, 1] = torch.nan
    with pytest.raises(DegenerateRowsError, match=r"NaN or infinity in 1 of 5 rows.*\[3\]"):
        _moments(bad)
    with pytest.raises(ValueError, match="finite numbers above 0, got"):
        SoftmaxProbe((0.0,))
    with pytest.raises(ValueError, match="finite numbers above 0, got"):
        RidgeProbe(())


def test_the_online_code_is_the_sum_of_what_each_block_costs() -> None:
    features, labels = problem(n=200)
    positions = torch.arange(200)
    probe = SoftmaxProbe((1e-2,))
    blocks = CodeBlocks.draw(labels, positions, 4, seed=0)
    bits = code_length(MemoryTable(features), positions, labels, 4, probe, blocks)
    expected = blocks.ends[0] * log2(4)
    order = blocks.order
    for start, end in zip(blocks.ends, blocks.ends[1:], strict=False):
        seen, new = order[:start], order[start:end]
        scaler = Scaler.of(_moments(features[seen]))
        table = TableRows(scaler(features[seen]))
        fits = fit_softmax(table, labels[None, seen], 4, [1e-2 * 200 / start], tolerance=1e-9)
        outputs = scaler(features[new]) @ fits.weights[0, 0].mT + fits.intercepts[0, 0]
        expected += float(cross_entropy(outputs, labels[new], reduction="sum")) / 0.6931471805599453
    assert bits == pytest.approx(expected, rel=1e-3)
    assert bits < uniform_length(200, 4) == 400


def test_labels_that_features_do_not_tell_cost_no_less_than_a_uniform_code() -> None:
    features = normal(300, 5)
    labels = torch.randint(3, (300,), generator=torch.Generator().manual_seed(3))
    blocks = CodeBlocks.draw(labels, torch.arange(300), 3, seed=0)
    bits = code_length(MemoryTable(features), torch.arange(300), labels, 3, SoftmaxProbe((1e-1,)), blocks)
    assert bits > uniform_length(300, 3)


def test_a_block_of_the_code_never_ends_inside_a_group_and_the_first_holds_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 46 + [2] * 4)
    groups = torch.arange(100) // 4
    blocks = CodeBlocks.draw(labels, groups, 3, seed=0)
    assert blocks.ends[-1] == 100
    assert set(labels[blocks.order[: blocks.ends[0]]].tolist()) == {0, 1, 2}
    for end in blocks.ends[:-1]:
        assert groups[blocks.order[end - 1]] != groups[blocks.order[end]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [SoftmaxClassifier(), RidgeClassifier()])
def test_the_estimators_keep_the_conventions_of_scikit_learn(
    model: SoftmaxClassifier | RidgeClassifier,
) -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    found = checks.check_estimator(model, on_skip=None, on_fail=None)
    failed = {r["check_name"] for r in found if r["status"] == "failed"}
    # While tests run, and only then, beartype looks at a constructor's types before fit() does.
    assert failed <= {"check_do_not_raise_errors_in_init_or_set_params"}


def test_estimators_work_in_pipelines_and_copies_and_give_probabilities() -> None:
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")
    decomposition = pytest.importorskip("sklearn.decomposition")
    rows, labels = (t.numpy() for t in problem())
    names = [f"class {k}" for k in labels]
    model = pipeline.make_pipeline(decomposition.PCA(6), SoftmaxClassifier(1e-3))
    assert base.clone(model).fit(rows, names).score(rows, names) > 0.5
    assert model.set_params(softmaxclassifier__penalty=1e-2)[1].penalty == 1e-2
    fitted = SoftmaxClassifier(1e-3).fit(rows, names)
    shares = fitted.predict_proba(rows)
    assert shares.sum(1) == pytest.approx(1)
    assert (fitted.classes_[shares.argmax(1)] == fitted.predict(rows)).all()
    assert fitted.coef_.shape == (4, 12)
    assert fitted.certificate_ <= 1e-6


@pytest.mark.kernels
def test_two_classes_have_one_row_of_coefficients_as_in_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rows, labels = two_clouds(200, 4, 0.7, 0)
    table = TableRows.of(rows).table.numpy()
    ours = SoftmaxClassifier(1e-2, tolerance=1e-10).fit(table, labels.numpy())
    # Two weight vectors w and -w have twice the penalty of w, and their difference is 2 w.
    peer = linear.LogisticRegression(C=2 / (1e-2 * 200), solver="newton-cholesky", tol=1e-12)
    peer.fit(table, labels.numpy())
    assert ours.coef_ == pytest.approx(peer.coef_, rel=1e-4)
    assert ours.predict_proba(table) == pytest.approx(peer.predict_proba(table), abs=1e-5)
    ridge = RidgeClassifier(0.1).fit(table, labels.numpy())
    theirs = linear.RidgeClassifier(alpha=0.1 * 200).fit(table, labels.numpy())
    assert ridge.coef_.ravel() == pytest.approx(theirs.coef_.ravel(), rel=1e-4)


def test_estimators_refuse_one_class() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class"):
        SoftmaxClassifier().fit(normal(5, 2).numpy(), [0] * 5)
