import math

import pytest
import torch
from oracles import step_down_max_t
from scipy import stats
from torch import Tensor

from probing.statistics.hypothesis_tests import (
    TooFewError,
    above_chance,
    bootstrap_counts,
    bootstrap_interval,
    clustered_mean,
    code_t_test,
    holm,
    max_t,
    paper_t_test,
    pearson,
    percentile_interval,
    permutation_p,
    rank_sum,
    relabellings,
    same_sign,
    spearman,
    two_sided,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_permutation_p_counts_the_observed_value_among_the_draws() -> None:
    null = torch.tensor([[0.0, 0.5], [1.0, 0.5], [2.0, 0.5], [3.0, 0.5]])
    p = permutation_p(torch.tensor([2.0, 0.6]), null)
    assert p.tolist() == [3 / 5, 1 / 5]
    assert permutation_p(torch.tensor([2.0, 0.6]), null, exact=True).tolist() == [2 / 4, 0]


def test_permutation_p_takes_values_that_differ_by_rounding_as_ties() -> None:
    observed = torch.tensor([0.1 + 0.2], dtype=torch.float64)
    assert permutation_p(observed, torch.full((3, 1), 0.3, dtype=torch.float64)).item() == 1


def test_permutation_p_refuses_draws_that_are_nan_and_keeps_an_observed_nan() -> None:
    with pytest.raises(ValueError, match="1 draws under the null are NaN"):
        permutation_p(torch.zeros(1), torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match="needs draws"):
        permutation_p(torch.zeros(1), torch.zeros(0, 1))
    assert permutation_p(torch.tensor([torch.nan]), torch.zeros(2, 1)).isnan().all()


def test_holm_multiplies_the_smallest_p_most_and_never_reverses_an_order() -> None:
    p = torch.tensor([[0.01, 0.04], [0.03, torch.nan]])
    expected = torch.tensor([[0.03, 0.06], [0.06, torch.nan]], dtype=torch.float64)
    torch.testing.assert_close(holm(p), expected, equal_nan=True, atol=1e-7, rtol=0)
    assert holm(torch.tensor([0.5, 0.9])).tolist() == [1, 1]


def test_max_t_equals_the_step_down_loop_of_the_book() -> None:
    observed, null = (
        normal(5).abs() * torch.tensor([1.0, 5, 0.1, 2, 1]),
        normal(40, 5, seed=1).abs(),
    )
    for exact in (False, True):
        expected = step_down_max_t(observed.tolist(), null.tolist(), exact=exact)
        found = max_t(observed.reshape(1, 5), null.reshape(40, 1, 5), exact=exact)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_max_t_keeps_the_familywise_level_and_needs_fewer_draws_than_holm() -> None:
    shared = normal(2000, 100, 1)
    draws = (shared + 0.5 * normal(2000, 100, 8, seed=1)).abs()
    wrong = [bool((max_t(d[0], d[1:]) <= 0.05).any()) for d in draws[:500]]
    assert 0.01 < sum(wrong) / len(wrong) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(wrong))
    strong = torch.full((30,), 9.0)
    null = normal(99, 30).abs()
    assert max_t(strong, null).max() == 0.01
    assert holm(permutation_p(strong, null)).min() == pytest.approx(0.3)


def test_all_swaps_of_matched_clusters_are_listed_when_they_are_few() -> None:
    positive = torch.tensor([1, 1, 0, 0, 1, 0])
    clusters = torch.tensor([0, 1, 0, 1, 2, 2])
    found = relabellings(positive, clusters, 100, 0)
    assert found.exact
    assert len(found.labels) == len(found.labels.unique(dim=0)) == 8
    assert (found.labels == positive).all(1).sum() == 1
    for a, b in ((0, 2), (1, 3), (4, 5)):
        assert (found.labels[:, a] != found.labels[:, b]).all()


def test_clusters_of_one_label_are_relabelled_whole() -> None:
    positive = torch.tensor([1, 1, 0, 0, 0, 0])
    clusters = torch.tensor([0, 0, 1, 1, 2, 2])
    found = relabellings(positive, clusters, 100, 0)
    assert found.exact
    assert sorted(found.labels.tolist()) == [
        [0, 0, 0, 0, 1, 1],
        [0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("matched", [True, False])
def test_many_relabellings_are_drawn_with_a_seed_and_keep_the_numbers(matched: bool) -> None:
    positive = (torch.arange(60) < 30).long()
    clusters = torch.arange(60) % 30 if matched else None
    found = relabellings(positive, clusters, 200, 3)
    assert not found.exact
    assert len(found.labels) == 200
    assert (found.labels.sum(1) == 30).all()
    assert found.labels.double().mean(0).sub(0.5).abs().max() < 0.2
    assert torch.equal(found.labels, relabellings(positive, clusters, 200, 3).labels)
    assert not torch.equal(found.labels, relabellings(positive, clusters, 200, 4).labels)


def test_three_groups_are_exchanged_inside_clusters_all_of_one_label_together() -> None:
    labels = torch.tensor([0, 0, 1, 2, 0, 1, 1, 2])
    clusters = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = relabellings(labels, clusters, 600, 0).labels
    assert (found[:, 0] == found[:, 1]).all()
    assert (found[:, 5] == found[:, 6]).all()
    assert len(found[:, [0, 2, 3]].unique(dim=0)) == len(found[:, [4, 5, 7]].unique(dim=0)) == 6
    assert len(found.unique(dim=0)) == 36


def test_relabelling_refuses_one_label_and_half_matched_clusters() -> None:
    with pytest.raises(TooFewError, match="got 1 among 3 examples"):
        relabellings(torch.ones(3, dtype=torch.long), None, 9, 0)
    with pytest.raises(ValueError, match="1 of 2 clusters hold examples of every group"):
        relabellings(torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), 9, 0)


def test_bootstrap_counts_draw_each_stratum_to_its_own_size() -> None:
    strata = torch.tensor([0, 0, 0, 1, 1])
    counts = bootstrap_counts(strata, 500, 0)
    assert (counts[:, :3].sum(1) == 3).all()
    assert (counts[:, 3:].sum(1) == 2).all()
    assert counts.mean(0).sub(1).abs().max() < 0.15
    assert torch.equal(counts, bootstrap_counts(strata, 500, 0))


def test_a_bootstrap_interval_of_few_groups_holds_its_level_and_percentiles_do_not() -> None:
    held = {"t": 0, "percentile": 0}
    for seed in range(400):
        values = normal(6, seed=seed)
        draws = bootstrap_counts(torch.zeros(6, dtype=torch.long), 200, seed) @ values / 6
        for name, (low, high) in {
            "t": bootstrap_interval(values.mean(), draws, 6, 0.95),
            "percentile": percentile_interval(draws, 0.95),
        }.items():
            held[name] += bool(low <= 0 <= high)
    assert held["t"] / 400 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)
    assert held["percentile"] / 400 < 0.9
    assert bootstrap_interval(values.mean(), draws, 1, 0.95)[0].isnan()


def test_the_interval_of_a_clustered_mean_is_the_t_interval_over_cluster_means() -> None:
    by_cluster = normal(7, 4)
    clusters = torch.arange(7).repeat_interleave(4)
    found = clustered_mean(by_cluster.flatten(), clusters, 0.9)
    peer = stats.ttest_1samp(by_cluster.mean(1).numpy(), 0)
    interval = peer.confidence_interval(0.9)
    assert found.mean.item() == pytest.approx(by_cluster.mean().item())
    assert (found.low.item(), found.high.item()) == pytest.approx((interval.low, interval.high))
    assert found.p.item() == pytest.approx(peer.pvalue)


def test_ignoring_clusters_of_correlated_examples_narrows_the_interval() -> None:
    values = (normal(10, 1) + 0.1 * normal(10, 6, seed=1)).flatten()
    honest = clustered_mean(values, torch.arange(10).repeat_interleave(6), 0.95)
    naive = clustered_mean(values, torch.arange(60), 0.95)
    assert honest.high - honest.low > 2 * (naive.high - naive.low)
    assert clustered_mean(values, torch.zeros(60, dtype=torch.long), 0.95).low.isnan()


def test_the_paper_and_code_t_tests_are_those_of_scipy() -> None:
    scores, other = normal(3, 8) * 0.1 + 0.6, normal(3, 20, seed=1) * 0.1 + 0.5
    one = stats.ttest_1samp(scores.numpy(), 0.5, axis=1).pvalue
    two = stats.ttest_ind(scores.numpy(), other.numpy(), axis=1).pvalue
    assert paper_t_test(scores).tolist() == pytest.approx(one.tolist())
    assert code_t_test(scores, other).tolist() == pytest.approx(two.tolist())


def test_runs_without_any_spread_give_certainty_or_no_evidence() -> None:
    same = torch.tensor([[1.0, 1, 1], [0.5, 0.5, 0.5]])
    assert paper_t_test(same).tolist() == [0, 1]
    assert code_t_test(same, same).tolist() == [1, 1]
    with pytest.raises(TooFewError, match="needs at least 2 runs, got 1"):
        paper_t_test(same[:, :1])


def test_above_chance_is_the_one_sided_binomial_test_rounded_against_the_claim() -> None:
    accuracy = torch.tensor([20 / 34, 20.9 / 34, 1.0])
    expected = [stats.binomtest(k, 34, 0.5, alternative="greater").pvalue for k in (20, 20, 34)]
    assert above_chance(accuracy, 34).tolist() == pytest.approx(expected)


def test_a_correlation_carries_fishers_interval_and_says_when_pairs_are_few() -> None:
    x = normal(12)
    y = x + normal(12, seed=1)
    peer = stats.pearsonr(x.numpy(), y.numpy())
    found = pearson(x, y, 0.9)
    assert (found.r, found.low, found.high) == pytest.approx((peer.statistic, *peer.confidence_interval(0.9)))
    assert "few" not in str(found)
    assert "n = 5, few for a correlation" in str(pearson(x[:5], y[:5]))
    assert (pearson(x[:3], y[:3]).low, pearson(x[:3], y[:3]).high) == (-1, 1)
    assert math.isnan(pearson(x, torch.ones(12, dtype=torch.float64)).r)
    with pytest.raises(TooFewError, match="at least 2 pairs, got 1"):
        pearson(x[:1], y[:1])


def test_a_correlation_with_nan_is_nan_and_its_interval_everything() -> None:
    x = normal(12)
    y = x.clone()
    y[3] = torch.nan
    for correlation in (pearson, spearman):
        found = correlation(x, y)
        assert math.isnan(found.r)
        assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_mean_that_is_no_number_has_no_p(value: float) -> None:
    """A t of infinity would be as certain as can be, and one of zero no evidence."""
    values = normal(12)
    values[3] = value
    found = clustered_mean(values[:, None], torch.arange(12), 0.95)
    assert found.p.isnan().all()
    assert two_sided(torch.tensor([1.0]), torch.tensor([torch.nan]), 5).isnan().all()
    assert two_sided(torch.tensor([1.0]), torch.tensor([0.0]), 5).tolist() == [0]


def test_signs_agree_where_both_are_positive_or_both_negative() -> None:
    assert same_sign(torch.tensor([1.0, -2, 0, 3]), torch.tensor([2.0, -1, 1, -3])) == 2


def test_rank_sum_gives_the_probability_of_superiority() -> None:
    found = rank_sum(torch.tensor([3.0, 4, 5]), torch.tensor([1.0, 2, 3]))
    assert found.superiority == pytest.approx(8.5 / 9)
    low, high = normal(8), normal(9, seed=1) + 1
    peer = stats.mannwhitneyu(low.numpy(), high.numpy())
    assert rank_sum(low, high).p == pytest.approx(peer.pvalue)
    with pytest.raises(TooFewError, match="got 0 and 9 values"):
        rank_sum(low[:0], high)
