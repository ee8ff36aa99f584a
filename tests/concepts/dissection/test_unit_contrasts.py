"""Units that tell an attribute: planted ones are found, noise is not, and nothing is judged where it was chosen."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from concepts.data.manifest import Pairs
from concepts.dissection.unit_contrasts import UnitContrasts

ROLES, TONES, UNITS = 20, 4, 12


def rows(seed: int, shift: float = 0.0, units: int = UNITS) -> Tensor:
    """Figures [role, tone, side] one after the other; roles share noise, and the second side of unit 0 is shifted."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(ROLES, TONES, 2, units)) + rng.normal(size=(ROLES, 1, 2, units))
    table[:, :, 1, 0] += shift
    return torch.from_numpy(table).reshape(-1, units).float()


def pairs(roles: range) -> Pairs:
    starts = [2 * (TONES * role + tone) for role in roles for tone in range(TONES)]
    names = tuple(f"role {role}" for role in roles for _ in range(TONES))
    return Pairs(tuple(s + 1 for s in starts), tuple(starts), names)


FIT, JUDGE = pairs(range(10)), pairs(range(10, 20))


def test_a_planted_unit_is_told_with_its_sign_and_noise_is_not() -> None:
    for way in (1, -1):
        found = UnitContrasts()(rows(0, 6.0 * way), [FIT], [JUDGE])
        assert found.significant(0.05)[0].tolist() == [True] + [False] * (UNITS - 1)
        assert way * found.shift[0, 0] > 1
        assert found.same_way[0, 0] > 0.95


def test_shifts_are_paired_means_in_standard_deviations_of_the_unit() -> None:
    table = rows(1, 2.0)
    found = UnitContrasts()(table, [FIT], [JUDGE])
    d = table[list(JUDGE.first)].double() - table[list(JUDGE.second)].double()
    expected = d.mean(0) / table.double().std(0, correction=0)
    torch.testing.assert_close(found.shift[0], expected)
    assert (found.low < found.shift).all()
    assert (found.shift < found.high).all()
    share = ((d * found.fitted[0].sign()) > 0).double().mean(0)
    torch.testing.assert_close(found.same_way[0], share)


def test_p_is_that_of_all_swaps_of_clusters_written_out() -> None:
    table = rows(2, 1.5, units=1)
    found = UnitContrasts()(table, [FIT], [JUDGE])
    d = (table[list(JUDGE.first)] - table[list(JUDGE.second)]).double().view(10, TONES).mean(1)
    signs = 1 - 2 * ((torch.arange(1024)[:, None] >> torch.arange(10)) % 2).double()
    sizes = (signs @ d).abs()
    assert found.exact
    assert found.draws == 512
    assert float(found.p) == pytest.approx(float((sizes >= sizes[0] * (1 - 1e-9)).double().mean()), abs=1e-12)


def test_without_any_difference_a_unit_is_called_in_at_most_five_percent_of_data() -> None:
    trials = 300
    called = sum(bool((UnitContrasts()(rows(seed), [FIT], [JUDGE]).p < 0.05).any()) for seed in range(trials))
    assert called / trials <= 0.05 + 3 * sqrt(0.05 * 0.95 / trials)
    assert called > 0  # a test that never rejects would pass too


def test_pairs_to_judge_on_are_not_those_the_sign_was_found_on() -> None:
    table = rows(3)
    for way, roles in ((1, FIT), (-1, JUDGE)):
        table[list(roles.first), 0] += 6 * way
    found = UnitContrasts()(table, [FIT], [JUDGE])
    assert found.p[0, 0] < 0.05
    assert not found.significant(0.05)[0, 0]  # the shift is sure, and goes the other way
    assert found.same_way[0, 0] < 0.05


def test_a_dead_unit_is_no_finding() -> None:
    table = rows(4)
    table[:, 3] = 7.0
    table[list(JUDGE.first), 3] *= 1 + 1e-7  # rounding
    found = UnitContrasts()(table, [FIT], [JUDGE])
    assert (found.shift[0, 3], found.p[0, 3]) == (0, 1)


def test_each_parameter_changes_the_result() -> None:
    table, method = rows(5, 1.0), UnitContrasts(relabellings=99)
    fit, judge = pairs(range(4)), pairs(range(4, 20))
    base = method(table, [fit], [judge])
    assert not base.exact
    assert base.draws == 99
    assert not torch.equal(replace(method, relabellings=199)(table, [fit], [judge]).p, base.p)
    assert not torch.equal(replace(method, seed=1)(table, [fit], [judge]).p, base.p)
    assert (replace(method, level=0.5)(table, [fit], [judge]).low > base.low).all()


def test_contrasts_are_corrected_together() -> None:
    table = rows(6, 1.2)
    alone = UnitContrasts()(table, [FIT], [JUDGE])
    two = UnitContrasts()(table, [FIT, FIT], [JUDGE, JUDGE])
    torch.testing.assert_close(two.shift[0], alone.shift[0])
    torch.testing.assert_close(two.p[0], alone.p[0])  # the same contrast twice is no second chance
    assert two.p.shape == (2, UNITS)
