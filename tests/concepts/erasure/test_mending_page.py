"""The page of a mending: its first sentence is as strong as its numbers."""

from dataclasses import replace
from pathlib import Path

import browser
import pytest
import torch

from concepts.erasure.mending_page import answer, mending_page, mending_summary
from concepts.erasure.mending_result import COSTS, LEAVE, MEND, UNKNOWN, MendingResult
from probing.results.html_report import Standing
from probing.results.result import Provenance


def made_up(gain: float = 0.1, cost: float = 0.0, gap: float = 0.2) -> MendingResult:
    """Return a mending of two groups whose worst gains, whose all change, and that leaned, each with ends 0.05 off."""

    def of(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    swap = of(0.5)[None]
    return MendingResult(
        provenance=Provenance.collect(),
        by="projection",
        layer="head",
        attribute="woman against man",
        groups=("class 0, woman", "class 0, man"),
        count=torch.tensor([20, 30]),
        before=of(0.5, 0.8),
        after=of(0.5 + gain, 0.8),
        change=of(gain, 0.0),
        change_low=of(gain - 0.05, -0.05),
        change_high=of(gain + 0.05, 0.05),
        worst=0,
        overall_before=0.7,
        overall_after=0.7 + cost,
        overall_change=cost,
        overall_low=cost - 0.05,
        overall_high=cost + 0.05,
        kept=0.9,
        attributes=("woman against man",),
        targets=("suit",),
        swap_before=swap,
        swap_after=swap / 2,
        swap_change=-swap / 2,
        swap_low=-swap,
        swap_high=-swap / 4,
        flips_before=of(0.3),
        flips_after=of(0.1),
        flips_change=of(-0.2),
        flips_low=of(-0.3),
        flips_high=of(-0.1),
        fitted=40,
        judged=50,
        level=0.95,
        gap=gap,
        gap_low=gap - 0.05,
        gap_high=gap + 0.05,
    )


WORST = "By projection, the group classified worst before, “class 0, woman”, "


@pytest.mark.parametrize(
    ("given", "verdict", "said", "standings"),
    [
        ({}, MEND, "is classified better; that all together lose is not shown.", "yes yes in part"),
        ({"cost": 0.06}, MEND, "is classified better; that all together lose is not shown.", "yes yes yes"),
        ({"cost": -0.06}, COSTS, "is classified better, but all together worse.", "yes yes no"),
        ({"gain": 0.04}, LEAVE, "is not shown to be classified better.", "yes no in part"),
        (
            {"gap": 0.04},
            LEAVE,
            "is classified better, but it is not shown that the model leaned on woman against man.",
            "no yes in part",
        ),
    ],
)
def test_the_answer_says_what_intervals_show_and_no_more(
    given: dict[str, float], verdict: str, said: str, standings: str
) -> None:
    found = made_up(**given)
    assert found.verdict == verdict
    assert answer(found) == WORST + said
    assert " ".join(mark.standing.value for mark in mending_summary(found).marks) == standings


def test_without_labels_no_cost_is_claimed() -> None:
    found = replace(made_up(), worst=-1)
    assert found.verdict == UNKNOWN
    assert answer(found) == (
        "By projection, 90% of held-out examples keep their top class; without labels, what it costs is not known."
    )
    assert {mark.standing for mark in mending_summary(found).marks} == {Standing.UNTESTED}


def test_a_dot_is_filled_where_its_interval_leaves_out_0() -> None:
    figure = mending_summary(made_up()).plate.draw()
    dots = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 1]
    assert [(float(d.get_xdata()[0]), d.get_markerfacecolor() != "white") for d in dots] == [
        (0.1, True),
        (0.0, False),
        (0.0, False),
        (-0.2, True),
    ]


def test_one_screen_holds_a_mending(tmp_path: Path) -> None:
    page = mending_page(made_up(), "timm:efficientnet_lite0, audit people/audit.yaml")
    with browser.chromium(tmp_path) as chromium:
        assert chromium.first_screen_faults(page.save(tmp_path / "page.html", alone=True), picture=False) == []
