"""No test of TCAV rejects above its level, whatever the sizes of clusters; the one that took them for alike does."""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats
from where import ROOT

from concepts.effects.logit_effect import Clusters, exchangeable
from concepts.tcav.sampling import LeaveOneOut, Relabelled, Sets
from concepts.tcav.tcav import Tcav
from probing.statistics.hypothesis_tests import TooFewError, exchangeable_cap, relabellings

SEEDS = 120


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "experiments" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration", path)
    assert spec
    assert spec.loader
    module = sys.modules["calibration"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def most(draws: int) -> float:
    """Return the share that a test at 5 % exceeds once in a thousand times."""
    return float(stats.binom.ppf(0.999, draws, 0.05)) / draws


@pytest.mark.parametrize(
    ("mode", "clusters"),
    [
        ("random", (3, 1)),
        ("ovr", (3, 1)),
        ("pairwise", (3, 1)),
        ("random", (1, 3)),
        ("random", (3, 3)),
        ("random", ("mixed", "mixed")),
    ],
)
def test_no_mode_rejects_above_its_level_whatever_the_sizes_of_clusters(
    script: ModuleType, mode: str, clusters: tuple[int | str, int | str]
) -> None:
    draws = SEEDS if mode == "random" else SEEDS // 3  # more concepts, each of which takes its time
    row = script.rejections(mode, clusters, 30, draws, sets=19, runs=2)
    # Three targets share their rows: the mean over them varies as one test's share or less.
    assert max(row.rates) <= most(draws), row


def test_the_same_data_with_clusters_not_declared_reject_above_the_level(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = script.null_data

    def undeclared(*of: object) -> tuple[torch.Tensor, list[torch.Tensor], Sets]:
        rows, slopes, sets = made(*of)
        return rows, slopes, replace(sets, clusters=[str(i) for i in range(len(rows))])

    monkeypatch.setattr(script, "null_data", undeclared)
    row = script.rejections("random", (3, 1), 30, SEEDS, sets=19, runs=2)
    assert max(row.rates) > most(SEEDS), row


def test_clusters_change_places_with_those_of_their_size_only() -> None:
    clusters = torch.tensor([0, 0, 1, 1, 2, 3, 4, 4, 5])
    labels = torch.tensor([1, 1, 0, 0, 0, 1, 0, 0, 0])
    found = relabellings(labels, clusters, 100, 0)
    assert found.exact
    assert len(found.labels) == len(torch.unique(found.labels, dim=0)) == 3 * 3
    assert (found.labels == labels).all(1).sum() == 1
    drawn = relabellings(labels, clusters, 8, 0)
    assert not drawn.exact
    for way in (*found.labels, *drawn.labels):
        assert way[[0, 2, 6]].sum() == way[[4, 5, 8]].sum() == 1
        assert torch.equal(way[[0, 2, 6]], way[[1, 3, 7]])
    with pytest.raises(TooFewError, match="as many examples as one of another"):
        relabellings(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 2]), 9, 0)


@pytest.mark.parametrize(
    ("first", "second", "cap"),
    [
        ([3] * 10, [3] * 30, 3),
        ([3] * 10, [1] * 90, 1),
        ([1] * 30, [3] * 30, 1),
        ([3, 3, 3, 1], [3] * 10, 3),  # the cut one stays where it is
        ([3] * 10, [3, *[1] * 87], 1),
        ([4, 2], [4, 2, 4, 2], 4),
    ],
)
def test_all_rows_are_kept_where_both_sides_have_clusters_of_a_size(first: list[int], second: list[int], cap: int) -> None:
    assert exchangeable_cap(np.array(first), np.array(second)) == cap


def test_matched_clusters_keep_as_many_positives_as_negatives() -> None:
    clusters = Clusters(list("aaabb"), list("abbb"), ["x"])
    positive, negative = exchangeable(clusters, 0)
    assert sorted("aaabb"[i] for i in positive) == list("abb")
    assert sorted("abbb"[i] for i in negative) == list("abb")
    alike = Clusters(list("aabb"), list("aabb"), ["x"])
    assert exchangeable(alike, 0) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_runs_hold_whole_clusters_out_and_take_as_many_rows_of_each_side() -> None:
    names = [f"{i // 3}" for i in range(30)] + [f"p{i // 2}" for i in range(40)]
    sets = Sets({"c": range(30)}, {"t": ["x"]}, names, range(30, 70))
    fit, held = sets.sources("c", "random").runs(50, 1 / 3, np.random.default_rng(0))
    for (positive, negative), (out, others) in zip(fit, held, strict=True):
        assert len(positive) + len(out) == len(negative) + len(others) == 30
        assert len(out) == 9  # 3 of 10 clusters
        for inside, outside in ((positive, out), (negative, others)):
            assert len({*inside, *outside}) == 30
            assert not {names[i] for i in inside} & {names[i] for i in outside}


def test_as_many_pseudo_concepts_are_drawn_as_the_concepts_need() -> None:
    assert Relabelled().enough(1, 0.95).sets == 199
    for tests in (11, 12, 40):
        found = Relabelled().enough(tests, 0.95).sets
        assert isinstance(found, int)
        assert tests / (found + 1) <= 0.05 / 4 < tests / found
    assert Relabelled(39).enough(40, 0.95).sets == 39  # asked for: a sentence says what it can't tell


def test_leave_one_out_takes_as_many_rows_of_every_cluster() -> None:
    names = [f"{i // 3}" for i in range(30)] + [f"p{i}" for i in range(90)]
    sets = Sets({"c": range(30)}, {"t": ["x"]}, names, range(30, 120))
    own, pseudo = LeaveOneOut()(sets.sources("c", "random"), 5, np.random.default_rng(0))
    assert {len(s.concept.rows) for s in (own, *pseudo)} == {10}
    assert own.concept.single


def test_few_ways_to_relabel_are_used_once_each_and_said(script: ModuleType) -> None:
    rows, slopes, sets = script.null_data("random", (1, 1), 10, 0)
    few = replace(sets, concepts={"c": range(3)}, pool=range(10, 13))
    method = Tcav(bootstraps=0, runs=2, level=0.99)
    found = method.measure({"l": rows}, {"l": slopes}, few)
    assert found.pseudo_concepts == 19  # of the 20 ways to choose 3 of 6, one is the concept
    assert float(found.p.min()) >= 0.05
    assert "none can be significant" in " ".join(found.sentences())


def test_the_table_is_made_and_marks_what_exceeds(script: ModuleType) -> None:
    row = script.Row("random", (3, 1), 10, (0.05, 0.09, 0.0, float("nan")), 0.025)
    text = script.page([row], 400)
    assert "| random | 3, 1 | 10 | 5.0 | 9.0 ! | 0.0 | none | 0.025 |" in text
