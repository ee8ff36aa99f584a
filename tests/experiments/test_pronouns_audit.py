"""The audit of a language model: its file is whole, and each word and opening is what its script can read."""

from itertools import pairwise
from pathlib import Path

import pytest

from concepts.auditing.word_swaps.templates import SLOT, read_wording


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "experiments" / "audits"


def test_the_file_asks_at_least_thirty_openings_that_end_before_a_pronoun(folder: Path) -> None:
    file = read_wording(folder / "pronouns.yaml")
    openings = [each for kind in file.templates.values() for each in kind]
    assert len(openings) >= 30
    assert all(each.count(SLOT) == 1 and each == each.strip() and each[-1].isalpha() for each in openings)


def test_every_occupation_has_an_expectation_in_the_order_of_its_kind(folder: Path) -> None:
    file = read_wording(folder / "pronouns.yaml")
    assert file.expected is not None
    assert set(file.expected.values) == {word for words in file.terms.values() for word in words}
    shares = [[file.expected.values[word] for word in words] for words in file.terms.values()]
    assert all(max(lower) < min(upper) for lower, upper in pairwise(shares))
    assert any("had been seen" in limit for limit in file.limits)
