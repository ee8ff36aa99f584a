"""Concept activation vectors: the oracles of the field, splits, relative CAVs, sorting."""

import math
from collections.abc import Sequence

import oracles
import pytest
import torch
from torch import Tensor

from concepts.tcav.cav import (
    Cavs,
    against_each,
    against_union,
    fit_cavs,
    fit_pool_cav,
    kendall_w,
    mean_difference,
    sort_by_concept,
)
from probing.statistics.hypothesis_tests import TooFewError
from probing.statistics.linear_classifiers import (
    ESTIMATORS,
    DegenerateRowsError,
    Estimator,
    Hinge,
    Lda,
    Logistic,
    Pattern,
    Ridge,
    SharedRows,
    fit_pairs,
)

LOGISTIC = Logistic()
ALL: list[Estimator] = [kind() for kind in ESTIMATORS.values()]
CONCEPT = torch.arange(40)


def clouds(distance: float, features: int = 8, count: int = 200, seed: int = 0) -> Tensor:
    """40 rows at `distance` along the first axis, the rest about the origin."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, features, generator=generator, dtype=torch.float64)
    rows[:40, 0] += distance
    return rows


def draws(runs: int = 6, size: int = 40, count: int = 200, seed: int = 0) -> Tensor:
    """Random rows that are not of the concept."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([40 + torch.randperm(count - 40, generator=generator)[:size] for _ in range(runs)])


def fitted(
    rows: Tensor,
    estimator: Estimator = LOGISTIC,
    *,
    seed: int = 0,
    holdout: float = 1 / 3,
    groups: Sequence[str] = (),
) -> Cavs:
    return fit_cavs(SharedRows(rows), CONCEPT, draws(), estimator, seed=seed, holdout=holdout, groups=groups)


def two_sets(first: Tensor, second: Tensor, estimator: Estimator) -> Tensor:
    index = torch.arange(len(first) + len(second)).unsqueeze(0)
    sides = index[:, : len(first)], index[:, len(first) :]
    return fit_pairs(torch.cat([first, second]), *sides, estimator).normals()[0]


@pytest.mark.parametrize("estimator", ALL)
def test_tc_3_the_cav_of_symmetric_clouds_is_their_axis_and_points_to_the_concept(
    estimator: Estimator, generator: torch.Generator
) -> None:
    axis = torch.randn(10, generator=generator, dtype=torch.float64)
    noise = 2 * torch.randn(2, 2000, 10, generator=generator, dtype=torch.float64)
    cav = two_sets(axis + noise[0], -axis + noise[1], estimator)
    assert float(cav @ axis / axis.norm()) > 0.99


def test_tc_4_a_classifier_cancels_a_distractor_and_the_pattern_does_not(
    generator: torch.Generator,
) -> None:
    distractor = 2 * torch.randn(2, 300, generator=generator, dtype=torch.float64)
    positive = torch.stack([1 + distractor[0], distractor[0]], 1)
    negative = torch.stack([-1 + distractor[1], distractor[1]], 1)
    for estimator in (Logistic(1e-5), Hinge(1e-5)):
        cav = two_sets(positive, negative, estimator)
        assert cav.tolist() == pytest.approx([0.704, -0.710], abs=0.01)
    assert two_sets(positive, negative, Pattern()).tolist() == pytest.approx([1, 0], abs=0.1)


@pytest.mark.parametrize("estimator", ALL)
def test_tc_6_the_unit_of_a_layer_changes_neither_cav_nor_score(estimator: Estimator) -> None:
    rows, gradients = clouds(1), clouds(0, seed=3)[:50]
    plain = fitted(rows, estimator).fits.project(gradients)
    scaled = fitted(100 * rows, estimator).fits.project(gradients / 100)
    torch.testing.assert_close(100 * scaled, plain)


@pytest.mark.parametrize("estimator", ALL)
def test_tc_6_an_orthogonal_change_of_basis_turns_cavs_with_it(estimator: Estimator) -> None:
    rows, gradients = clouds(1), clouds(0, seed=3)[:50]
    turn = torch.linalg.qr(clouds(0, seed=4)[:8]).Q
    scores = [
        fit_cavs(SharedRows(r, "layer"), CONCEPT, draws(), estimator, seed=0).fits.project(g)
        for r, g in ((rows, gradients), (rows @ turn, gradients @ turn))
    ]
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("estimator", ALL)
def test_tc_7_swapping_the_sets_turns_the_score_into_one_minus_itself(estimator: Estimator) -> None:
    rows, gradients = SharedRows(clouds(1)), clouds(0, seed=3)[:50] + 0.3
    forward = fit_pairs(rows, CONCEPT.expand(6, -1), draws(), estimator).project(gradients)
    backward = fit_pairs(rows, draws(), CONCEPT.expand(6, -1), estimator).project(gradients)
    scores = [(s > 0).double().mean(1) for s in (forward, backward)]
    torch.testing.assert_close(scores[1], 1 - scores[0])
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("estimator", ALL)
def test_tc_11_a_concept_against_itself_is_told_apart_half_the_time(estimator: Estimator) -> None:
    cavs = fit_cavs(SharedRows(clouds(1)), CONCEPT, against_union([CONCEPT], 5), estimator, seed=0)
    assert cavs.accuracy.tolist() == pytest.approx([0.5] * 5)
    assert not cavs.above_chance


def test_tc_13_the_pattern_cav_of_four_points_by_hand() -> None:
    rows = torch.tensor([[1.0, 0], [1, 1], [-1, 0], [-1, -1]])
    fits = fit_pairs(rows, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), Pattern())
    assert fits.normals()[0].tolist() == pytest.approx([0.8944, 0.4472], abs=1e-4)
    gradients = torch.tensor([[1.0, 0], [0, -1], [-1, 3], [-0.5, 1]])
    sensitivity = fits.project(gradients)[0]
    assert sensitivity.tolist() == pytest.approx([0.894, -0.447, 0.447, 0], abs=1e-3)
    assert float((sensitivity > 0).double().mean()) == 0.5
    assert float((sensitivity == 0).double().mean()) == 0.25
    assert float(sensitivity.mean()) == pytest.approx(0.2236, abs=1e-4)


@pytest.mark.parametrize("estimator", ALL)
def test_fault_4_two_fits_with_one_seed_are_equal_to_the_bit_which_captums_are_not(
    estimator: Estimator,
) -> None:
    rows = clouds(0, features=300)  # nothing to find: the worst case, cosine 0.49 in captum 0.9.0
    first, second = (fitted(rows, estimator) for _ in range(2))
    assert torch.equal(first.fits.normals(), second.fits.normals())
    assert torch.equal(first.accuracy, second.accuracy)
    assert first.stability < 0.9


@pytest.mark.parametrize("estimator", ALL)
def test_accuracy_on_separable_data_is_1_where_captum_reports_a_half(estimator: Estimator) -> None:
    cavs = fitted(clouds(30), estimator)
    assert cavs.concept_accuracy.tolist() == [1.0] * 6
    assert cavs.other_accuracy.tolist() == [1.0] * 6
    assert cavs.above_chance


def test_accuracy_is_on_rows_that_no_fit_has_seen() -> None:
    cavs = fitted(clouds(0, features=300))  # more features than rows: every fit is perfect on its own
    for run, (positive, negative) in enumerate(
        zip(cavs.held_out.positive.tolist(), cavs.held_out.negative.tolist(), strict=True)
    ):
        seen = set(cavs.fits.index[run].tolist())
        assert seen.isdisjoint(positive + negative)
        assert len(positive) == len(negative) == 13
        assert set(positive) <= set(range(40))
    assert 0.3 < float(cavs.accuracy.mean()) < 0.7
    assert not cavs.above_chance
    assert cavs.p_value > 0.05


def test_groups_are_held_out_whole_and_from_both_sides() -> None:
    rows = SharedRows(clouds(1))
    groups = [f"role {i % 20}" for i in range(200)]  # two rows of the concept in each
    cavs = fit_cavs(rows, CONCEPT, draws(), Ridge(), seed=0, groups=groups)
    for index, positive, negative in zip(cavs.fits.index, cavs.held_out.positive, cavs.held_out.negative, strict=True):
        seen, judged = ({groups[i] for i in side.tolist() if i >= 0} for side in (index, torch.cat([positive, negative])))
        assert seen.isdisjoint(judged)
        assert 6 <= len(judged) <= 7
    ever = [
        {groups[i] for i in side.flatten().tolist() if i >= 0} for side in (cavs.held_out.positive, cavs.held_out.negative)
    ]
    assert cavs.trials == 2 * min(map(len, ever))


def test_copies_of_few_examples_are_no_evidence_when_they_are_grouped() -> None:
    rows = clouds(0, features=300)
    rows[:40] = rows[:4].repeat_interleave(10, 0)
    groups = [f"copy {i // 10}" if i < 40 else f"row {i}" for i in range(200)]
    assert fitted(rows).above_chance
    assert not fitted(rows, groups=groups).above_chance


def test_the_larger_side_is_cut_by_a_draw_and_not_to_its_first_rows() -> None:
    rows = SharedRows(clouds(1))
    cavs = fit_cavs(rows, CONCEPT, draws(size=12), Ridge(), seed=0)
    used = torch.cat([cavs.fits.index[:, : cavs.fits.index.shape[1] // 2], cavs.held_out.positive], 1)
    assert used.shape == (6, 12)
    assert used.max() > 30
    assert not torch.equal(used[0], used[1])


def test_the_binomial_test_is_the_probability_of_guessing_as_well() -> None:
    cavs = fitted(clouds(30), groups=[f"group {i // 10}" for i in range(200)])
    judged = {i // 10 for i in cavs.held_out.positive.flatten().tolist() if i >= 0}
    assert cavs.trials == 2 * len(judged)
    assert cavs.p_value == pytest.approx(0.5**cavs.trials)


def test_the_right_direction_is_stable_and_chance_is_not() -> None:
    assert fitted(clouds(30), Pattern()).stability > 0.99
    assert fitted(clouds(0, features=300), Pattern()).stability < 0.6


def test_each_parameter_changes_the_cavs() -> None:
    rows = clouds(1)
    base = fitted(rows).fits.normals()
    others = [
        fitted(rows, Ridge()),
        fitted(rows, seed=1),
        fitted(rows, holdout=0.5),
        fitted(rows, groups=[str(i // 4) for i in range(200)]),
    ]
    for other in others:
        assert not torch.equal(other.fits.normals(), base)


def test_the_cav_of_the_whole_pool_varies_less_than_those_of_random_sets() -> None:
    def spread(size: int) -> float:
        fits = [
            fit_pool_cav(
                SharedRows(clouds(1, count=600, seed=seed)),
                CONCEPT,
                torch.arange(40, 40 + size),
                Lda(),
            )
            for seed in range(8)
        ]
        cavs = torch.cat([fit.normals() for fit in fits])
        return 1 - float((cavs @ cavs.T).mean())

    assert spread(560) < spread(40)


def test_relative_cavs_are_told_from_all_competitors_or_from_each() -> None:
    rows = clouds(3)
    rows[40:80, 1] += 3
    rows[80:110, 2] += 3
    competitors = [torch.arange(40, 80), torch.arange(80, 110)]
    union = fit_cavs(SharedRows(rows), CONCEPT, against_union(competitors, 4), Pattern(), seed=0)
    each = fit_cavs(SharedRows(rows), CONCEPT, against_each(competitors), Pattern(), seed=0)
    assert len(union.accuracy) == 4
    assert len(each.accuracy) == 2
    cav = union.fits.normals().mean(0)
    assert cav[0] > 0.7
    assert cav[1] < -0.2
    assert cav[2] < -0.2
    first, second = each.fits.normals()
    assert first[1] < -0.6 < first[2]
    assert second[2] < -0.6 < second[1]
    assert set(each.held_out.negative[1].tolist()) <= {-1, *range(80, 110)}


def test_a_concept_in_two_competitors_counts_once_in_their_union() -> None:
    union = against_union([torch.tensor([5, 3]), torch.tensor([3, 9])], 2)
    assert union.tolist() == [[3, 5, 9], [3, 5, 9]]


def test_the_mean_difference_keeps_its_natural_length() -> None:
    rows = torch.tensor([[1.0, 0], [3, 4], [0, 0], [0, 2]])
    found = mean_difference(rows, torch.tensor([0, 1]), torch.tensor([2, 3]))
    assert found.tolist() == [2, 1]
    pattern = fit_pairs(rows, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), Pattern())
    torch.testing.assert_close(pattern.normals()[0] * pattern.norms.float(), found)


def test_sorting_puts_planted_examples_first_and_says_how_sure_it_is() -> None:
    examples = clouds(6, seed=5)
    labels = torch.arange(200) < 40
    sorting = sort_by_concept(examples, fitted(clouds(6)), labels)
    assert sorting.auroc > 0.98
    assert sorting.agreement > 0.8
    assert set(sorting.order[:30].tolist()) <= set(range(40))
    assert (sorting.cosine[sorting.order].diff() <= 0).all()
    normals = fitted(clouds(6)).fits.normals()
    expected = torch.nn.functional.cosine_similarity(normals.unsqueeze(1), examples.unsqueeze(0), dim=2)
    torch.testing.assert_close(sorting.cosine, expected.mean(0))


def test_distance_is_from_the_border_in_units_of_activation() -> None:
    fits = fit_pairs(
        torch.tensor([[1.0, 0], [1, 1], [-1, 0], [-1, -1]]),
        torch.tensor([[0, 1]]),
        torch.tensor([[2, 3]]),
        Pattern(),
    )
    sorting = sort_by_concept(torch.tensor([[2.0, 1], [0, 0]]), fits)
    assert sorting.distance.tolist() == pytest.approx([math.sqrt(5), 0])
    assert sorting.cosine.tolist() == pytest.approx([1, 0])
    assert math.isnan(sorting.agreement)
    assert math.isnan(sorting.auroc)


def test_agreement_is_kendalls_w() -> None:
    rankings = [[1.0, 2, 3, 4], [2, 1, 3, 4], [4, 1, 2, 3]]
    assert kendall_w(torch.tensor(rankings)) == pytest.approx(oracles.concordance(rankings))
    assert kendall_w(torch.tensor([[1.0, 2, 3], [10, 20, 30]])) == 1
    assert kendall_w(torch.tensor([[1.0, 2, 3], [3, 2, 1]])) == 0
    assert kendall_w(torch.tensor([[1.0, 1, 2], [1, 1, 2]])) == 1
    assert math.isnan(kendall_w(torch.ones(2, 3)))
    with pytest.raises(TooFewError, match="2 rankings of 2 examples or more, got 1 of 4"):
        kendall_w(torch.tensor(rankings[:1]))


def test_bad_input_is_refused_by_name() -> None:
    rows = SharedRows(clouds(1))
    with pytest.raises(TooFewError, match="got 1 and 1 of the concept: give more rows or groups"):
        fit_cavs(rows, torch.tensor([0, 1]), draws(), Ridge(), seed=0)
    with pytest.raises(TooFewError, match="got 40 and 0 of the concept"):
        fit_cavs(rows, CONCEPT, draws(), Ridge(), seed=0, groups=["x"] * 40 + list(map(str, range(160))))
    with pytest.raises(IndexError, match="rows must be indices from 0 to 199, got 0 to 200"):
        fit_cavs(rows, torch.arange(201), draws(), Ridge(), seed=0)
    with pytest.raises(ValueError, match="groups must label each of the 200 rows, got 3"):
        fit_cavs(rows, CONCEPT, draws(), Ridge(), seed=0, groups=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"holdout must lie between 0 and 1, got 1\.0"):
        fit_cavs(rows, CONCEPT, draws(), Ridge(), seed=0, holdout=1.0)
    with pytest.raises(TooFewError, match="a mean needs a negative row or more"):
        mean_difference(clouds(1), CONCEPT, CONCEPT[:0])
    with pytest.raises(DegenerateRowsError, match="NaN or infinity in 1 of 200 rows"):
        SharedRows(clouds(1).index_fill(0, torch.tensor([4]), math.nan))
