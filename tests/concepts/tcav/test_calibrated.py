"""The closed form of a CAV's distribution against simulation, and plans of sample sizes against theory and simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from concepts.tcav import SampleSizes, Sensitivities, Tcav, cav_sensitivities
from concepts.tcav.sample_size import detectable
from probing.core.errors import ArgumentError
from probing.statistics.estimators import Pattern, Ridge
from probing.statistics.hypothesis_tests import TooFewError
from probing.statistics.linear_classifiers import SharedRows, fit_pairs

SIZE, SAMPLES, FEATURES, INPUTS = 150, 300, 5, 9
POSITIVE, NEGATIVE = torch.arange(SIZE), torch.arange(SIZE, 2 * SIZE)


def normal(*shape: int, seed: int) -> Float[Tensor, "*shape"]:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(seed: int) -> Tensor:
    """Return correlated Gaussian rows of a concept, which are moved a little, and then of its counterparts."""
    rows = normal(2 * SIZE, FEATURES, seed=seed) @ normal(FEATURES, FEATURES, seed=1)
    rows[:SIZE] += 0.1 * normal(FEATURES, seed=2)
    return rows


@pytest.fixture(scope="module", params=[Pattern(), Ridge(0.1)], ids=["pattern", "ridge"])
def simulated(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Return sensitivities along the CAVs of many samples, and the covariance that is derived from each, on average."""
    slopes = normal(INPUTS, FEATURES, seed=3) + normal(FEATURES, seed=4)  # in part alike
    found = [
        cav_sensitivities(SharedRows(sample(10 + i), "layer"), POSITIVE, NEGATIVE, slopes, request.param)
        for i in range(SAMPLES)
    ]
    return torch.stack([f.mean for f in found]), torch.stack([f.covariance for f in found]).mean(0)


def test_derived_and_simulated_covariances_agree(simulated: tuple[Tensor, Tensor]) -> None:
    means, derived = simulated
    # Of normal samples, eigenvalues lie about 1 by chance alone (Marchenko & Pastur); rank is that of the features.
    values = torch.linalg.eigvals(torch.linalg.pinv(derived, hermitian=True, rtol=1e-9) @ means.mT.cov()).real
    kept = values[values.abs() > 0.1]
    edge = math.sqrt(FEATURES / SAMPLES)
    assert len(kept) == FEATURES
    assert (1 - edge) ** 2 - 0.15 < float(kept.min()) <= float(kept.max()) < (1 + edge) ** 2 + 0.15


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_derived_and_simulated_scores_agree(simulated: tuple[Tensor, Tensor], temperature: float) -> None:
    means, derived = simulated
    typical = float(derived.diagonal().mean().sqrt())
    votes = torch.special.ndtr(means / (temperature * typical)) if temperature else (means > 0).double()
    scores = votes.mean(1)
    own = Sensitivities(means.mean(0), derived)
    error = float(scores.std()) / SAMPLES**0.5
    assert own.expected(temperature * typical) == pytest.approx(float(scores.mean()), abs=4 * error)
    spread = own.spread(temperature * typical)
    assert spread == pytest.approx(float(scores.std()), rel=5 / (2 * SAMPLES) ** 0.5)
    # Control: inputs share the CAV, without which the score would vary much less.
    alone = Sensitivities(own.mean, torch.diag(derived.diagonal()))
    assert alone.spread(temperature * typical) < 0.75 * spread


def test_the_pattern_cavs_mean_is_the_effect_of_each_input_and_fast_cavs_score_is_the_same() -> None:
    rows, slopes = sample(7), normal(INPUTS, FEATURES, seed=4)
    found = cav_sensitivities(rows, POSITIVE, NEGATIVE[:50], slopes, Pattern())
    kept = torch.cat([POSITIVE, NEGATIVE[:50]])
    difference = rows[POSITIVE].mean(0) - rows[NEGATIVE[:50]].mean(0)
    assert torch.allclose(found.mean, slopes @ difference)
    covariance = slopes @ (rows[POSITIVE].mT.cov() / SIZE + rows[NEGATIVE[:50]].mT.cov() / 50) @ slopes.mT
    assert torch.allclose(found.covariance, covariance)
    fast = rows[POSITIVE].mean(0) - rows[kept].mean(0)
    share = 50 / (50 + SIZE)
    scaled = Sensitivities(slopes @ fast, share**2 * covariance)
    assert scaled.calibrated == pytest.approx(found.calibrated)
    assert found.calibrated == pytest.approx(float(torch.special.ndtr(found.mean / found.error).mean()))


def test_the_ridge_cav_is_the_one_that_is_fitted_and_both_ways_to_solve_agree() -> None:
    few = torch.cat([torch.arange(6), torch.arange(SIZE, SIZE + 6)])
    rows = sample(8)[few]
    wide = torch.cat([rows, rows @ normal(FEATURES, 20, seed=5) + 0.1 * normal(12, 20, seed=6)], 1)  # more than 12 rows
    slopes = normal(INPUTS, 25, seed=7)
    shared, sides = SharedRows(wide), (torch.arange(6), torch.arange(6, 12))
    found = cav_sensitivities(shared, *sides, slopes, Ridge(0.2))
    fits = fit_pairs(shared, sides[0][None], sides[1][None], Ridge(0.2))
    assert torch.allclose(found.mean, fits.project(slopes)[0] * fits.norms[0])
    centred = (wide - wide.mean(0)) / shared.scale
    inverse = torch.linalg.inv(centred.mT @ centred / 12 + 0.2 * torch.eye(25).double())
    assert torch.allclose(found.mean, slopes / shared.scale @ inverse @ (centred[:6].sum(0) - centred[6:].sum(0)) / 12)
    left = torch.tensor([1.0] * 6 + [-1.0] * 6).double() - fits.decision_at(torch.arange(12)[None])[0]
    terms = left[:, None] * (centred @ inverse @ (slopes / shared.scale).mT)
    derived = sum(part.mT.cov() * 6 for part in (terms[:6], terms[6:])) / 144
    assert torch.allclose(found.covariance, derived)


def test_where_all_inputs_have_one_gradient_signs_stay_a_coin_and_smooth_votes_settle() -> None:
    def of(examples: int) -> Sensitivities:
        return Sensitivities(torch.zeros(4).double(), torch.ones(4, 4).double() / examples)

    for examples in (10, 1000):
        assert of(examples).spread(0.0) == pytest.approx(0.5, abs=1e-3)  # all up or all down, with even odds
        assert of(examples).expected(0.0) == pytest.approx(0.5)
    # Of Φ(s / t) with s small: s / (t √2π), whose deviation falls as one over the root of the examples.
    assert of(100_000).spread(1.0) == pytest.approx(1 / math.sqrt(2 * math.pi * 100_000), rel=1e-3)
    sure = Sensitivities(torch.tensor([1.0, -1.0, 2.0, 0.0]).double(), torch.zeros(4, 4).double())
    assert sure.expected(0.0) == pytest.approx(0.625)
    assert sure.spread(0.0) == 0
    with pytest.raises(ArgumentError, match="temperature must be 0 or more, got -1"):
        sure.expected(-1.0)
    with pytest.raises(TooFewError, match="takes 2 negative rows or more, got 1"):
        cav_sensitivities(sample(9), POSITIVE, NEGATIVE[:1], normal(1, FEATURES, seed=8), Pattern())


def test_what_a_t_test_detects_is_what_it_detects_in_simulation() -> None:
    assert detectable(64, 0.8, 0.05) == pytest.approx(0.5, abs=0.005)  # Cohen 1988, table 2.4.1
    rng = np.random.default_rng(0)
    for size, power in ((8, 0.6), (30, 0.9)):
        drawn = rng.normal(size=(2, 2000, size))
        drawn[0] += detectable(size, power, 0.05)
        hits = int((stats.ttest_ind(*drawn, axis=1).pvalue <= 0.05).sum())
        assert stats.binomtest(hits, 2000, power).pvalue > 1e-3
    assert detectable(30, 0.8, 0.01) > detectable(30, 0.8, 0.05) > detectable(60, 0.8, 0.05)


def test_a_plan_s_power_is_reached_in_analyses_of_drawn_pictures() -> None:
    rows, slopes = normal(200, 6, seed=9), normal(12, 6, seed=11) + normal(6, seed=12)
    plan = SampleSizes(Tcav(runs=2), draws=50)
    (found,) = plan(rows, slopes, [9])
    assert stats.binomtest(round(found.found * 50), 50, 0.8).pvalue > 1e-3
    assert found.deviations == detectable(9, 0.8, 0.05)
    single = (rows @ slopes.mean(0)).std()
    assert found.effect == pytest.approx(found.deviations * float(single))
    # Where almost nothing is to be found, almost nothing is.
    (nothing,) = replace(plan, power=0.051)(rows, slopes, [9])
    assert nothing.found <= float(stats.binom.ppf(0.999, 50, 0.05)) / 50
    assert nothing.found_by_sign <= float(stats.binom.ppf(0.999, 50, 0.05)) / 50
    # With one gradient the sign score is 0 or 1 for every set, and can tell nothing.
    (same,) = replace(plan, draws=5)(rows, slopes[:1].expand(12, -1), [9])
    assert same.found_by_sign == 0
    with pytest.raises(ArgumentError, match=r"power must lie between the level of a test, 0\.05, and 1, got 1"):
        list(replace(plan, power=1.0)(rows, slopes, [9]))
    with pytest.raises(ArgumentError, match="no random picture moves the score at this layer"):
        list(plan(rows, 0 * slopes, [9]))
    with pytest.raises(TooFewError, match="a test takes 2 pictures of each side or more, got 1"):
        list(plan(rows, slopes, [1]))
    with pytest.raises(TooFewError, match="takes 2 random pictures and an input or more, got 1 and 12"):
        list(plan(rows[:1], slopes, [9]))
