"""The first screen of a scorecard: who is faithful, said no surer than the intervals are."""

from dataclasses import replace
from pathlib import Path

import browser
import pytest
import torch

from probing.evaluation.scorecard.cost import Cost
from probing.evaluation.scorecard.page import scorecard_page
from probing.evaluation.scorecard.scorecard import Row, Scorecard
from probing.evaluation.scorecard.summary import answer, scorecard_summary
from probing.results.html_report import Standing
from probing.results.result import Provenance


@pytest.fixture
def card() -> Scorecard:
    """Return four methods of which the first is the best on every input and the last the worst."""
    facts = Provenance.collect()
    cost = Cost(1, 0, 0.1, 1.0, 0.0, 1, 0)
    values = {name: {"abpc": torch.tensor([v, v, v]).double()} for name, v in zip("abcd", (4, 3, 2, 1), strict=True)}
    return Scorecard.of([Row(facts, name, "Saliency", "backprop", "", own, cost) for name, own in values.items()], facts)


def test_what_is_best_on_every_input_is_best_for_sure(card: Scorecard) -> None:
    assert card.standing[:, 0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])
    first = replace(card, low=card.standing.clone(), high=card.standing.clone())
    assert answer(first) == "Of 4 explanations of this model, a ranks first in fidelity; for sure in the best third: a, b."


def test_without_a_sure_interval_nothing_is_said_to_be_sure(card: Scorecard) -> None:
    wide = replace(card, low=torch.zeros_like(card.low), high=torch.ones_like(card.high))
    assert (
        answer(wide) == "Of 4 explanations of this model, a ranks first in fidelity; none lies in the best third for sure."
    )
    found = scorecard_summary(wide)
    assert found is not None
    assert found.marks[0].standing is Standing.NO
    assert found.marks[0].says == "none of 4 within one third."
    unknown = scorecard_summary(replace(card, low=card.low * torch.nan, high=card.high * torch.nan))
    assert unknown is not None
    assert unknown.marks[0].standing is Standing.NO, "no interval is none within a third"
    assert "none lies" in unknown.answer


def test_ties_share_the_first_place_and_what_was_not_measured_none(card: Scorecard) -> None:
    standing = card.standing.clone()
    standing[1, 0] = 1.0
    assert "a and b rank first in fidelity" in answer(replace(card, standing=standing))
    assert scorecard_summary(replace(card, standing=standing * torch.nan)) is None
    standing[0, 0] = torch.nan
    assert answer(replace(card, standing=standing)).startswith("Of 3 explanations of this model, b ranks")


def test_marks_count_what_was_expected(card: Scorecard) -> None:
    found = scorecard_summary(card)
    assert found is not None
    assert found.marks[1].says == "2 of 4 methods."  # backpropagation was expected in the best third
    assert found.marks[1].standing is Standing.PARTLY


def test_one_screen_holds_a_scorecard(card: Scorecard, tmp_path: Path) -> None:
    page = replace(scorecard_page(card, "a small net"), sections=())
    with browser.chromium(tmp_path) as chromium:
        assert chromium.first_screen_faults(page.save(tmp_path / "page.html", alone=True), picture=False) == []
