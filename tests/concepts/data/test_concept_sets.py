"""Concepts of enough distinct examples, and random counterparts that hold none of them."""

import pytest
import torch
from scipy.stats import binom

from concepts.data.concept_sets import (
    MINIMUM,
    Concept,
    ConceptError,
    OverlapError,
    PoolTooSmallError,
    random_sets,
    refuse_overlap,
)
from probing.data.examples import TensorExamples


def numbered(start: int, stop: int) -> TensorExamples:
    return TensorExamples(torch.arange(float(start), float(stop)).unsqueeze(1))


def test_two_images_are_no_concept_and_the_number_needed_is_said() -> None:
    with pytest.raises(ConceptError, match="'stripes' has 2 examples: 9 or more are needed"):
        Concept("stripes", numbered(0, 2))
    assert len(Concept("stripes", numbered(0, 9))) == 9


def test_the_minimum_is_the_least_that_can_show_a_direction_at_five_percent() -> None:
    def best_p(size: int) -> float:
        held_out = 2 * (size // 3)
        return float(binom.sf(held_out - 1, held_out, 0.5))

    assert best_p(MINIMUM) <= 0.05 < best_p(MINIMUM - 1)


def test_a_repeated_example_is_refused() -> None:
    rows = torch.arange(12.0).unsqueeze(1)
    rows[3] = rows[7]
    with pytest.raises(ConceptError, match="'c' holds 1 of its 12 examples more than once"):
        Concept("c", TensorExamples(rows))


def test_cluster_labels_must_be_one_each_or_none() -> None:
    with pytest.raises(ConceptError, match="'c' has 2 cluster labels for 9 examples"):
        Concept("c", numbered(0, 9), clusters=("a", "b"))
    assert Concept("c", numbered(0, 9), clusters=("a",) * 9).clusters == ("a",) * 9


def test_overlap_with_the_pool_or_the_class_images_is_refused_unless_allowed() -> None:
    concept = Concept("c", numbered(0, 10))
    others = {"the class images": numbered(50, 60), "the random pool": numbered(7, 30)}
    with pytest.raises(OverlapError, match="'c' shares 3 of its 10 examples with 'the random pool'"):
        refuse_overlap(concept, others)
    assert refuse_overlap(concept, others, allow_overlap=True) == 3
    assert refuse_overlap(concept, {"the class images": numbered(50, 60)}) == 0


def test_random_sets_follow_the_seed_and_hold_no_example_twice() -> None:
    pool = numbered(0, 40)
    sets = random_sets(pool, size=15, count=6, seed=3)
    assert sets == random_sets(pool, size=15, count=6, seed=3)
    assert sets != random_sets(pool, size=15, count=6, seed=4)
    assert [len(set(drawn)) for drawn in sets] == [15] * 6
    assert len(set(sets)) == 6


def test_excluded_content_and_repeats_are_not_drawn() -> None:
    rows = torch.arange(30.0).unsqueeze(1)
    rows[20:] = rows[:10]
    concept = numbered(0, 5)
    (drawn,) = random_sets(TensorExamples(rows), size=15, count=1, seed=0, exclude=concept.ids)
    assert sorted(drawn) == list(range(5, 20))


def test_disjoint_sets_share_no_example() -> None:
    sets = random_sets(numbered(0, 40), size=10, count=4, seed=0, disjoint=True)
    assert sorted(i for drawn in sets for i in drawn) == list(range(40))


def test_every_example_is_drawn_equally_often() -> None:
    sets = random_sets(numbered(0, 10), size=3, count=4000, seed=0)
    counts = torch.bincount(torch.tensor(sets).flatten(), minlength=10).double()
    assert float((counts - 1200).abs().max()) < 4 * (4000 * 0.3 * 0.7) ** 0.5


def test_a_pool_that_is_too_small_is_refused_with_the_numbers() -> None:
    pool = numbered(0, 20)
    with pytest.raises(PoolTooSmallError, match=r"20 examples, of which 15 .* but a set of 16 needs 16"):
        random_sets(pool, size=16, count=2, seed=0, exclude=numbered(0, 5).ids)
    with pytest.raises(PoolTooSmallError, match=r"3 sets of 7 without a shared example needs 21: enlarge the pool"):
        random_sets(pool, size=7, count=3, seed=0, disjoint=True)
