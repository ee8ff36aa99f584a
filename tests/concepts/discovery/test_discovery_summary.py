"""The first screen of a discovery: its sentence is as strong as its numbers."""

from dataclasses import replace
from pathlib import Path

import browser
import pytest
import torch
from discovery_worlds import THINGS, SeesThings, world
from PIL import Image

from concepts.discovery import Discovery, DiscoveryResult, Nmf
from concepts.discovery.page import AtomPictures, AtomStrips, discovery_page
from concepts.discovery.summary import answer, discovery_summary, shown_atom
from probing.models.scores import Score
from probing.results.figures import Strip
from probing.results.html_report import Standing
from probing.store.store import ActivationStore

NAMES = ("sewing machine", "projectile, missile", "third", "fourth")


@pytest.fixture(scope="module")
def found() -> DiscoveryResult:
    net = SeesThings()
    scores = {name: Score(net, 0) for name in NAMES}
    return Discovery("relu", Nmf(THINGS), refits=0, draws=19, explained=4)(
        ActivationStore(), net, world(30).pictures, scores
    )


def made_up(found: DiscoveryResult, stable: list[float], p: list[list[float]], part: list[float]) -> DiscoveryResult:
    """Return a discovery with corrected p-values as given, and parts that are the same for every score."""
    assert found.importance is not None
    told = replace(
        found.importance,
        p=torch.tensor(p, dtype=torch.float64),
        part=torch.tensor([part] * len(p), dtype=torch.float64),
    )
    return replace(found, agreement=replace(found.agreement, p=torch.tensor(stable, dtype=torch.float64)), importance=told)


def test_the_answer_counts_what_is_significant_after_correction(found: DiscoveryResult) -> None:
    p = [[0.01, 0.02, 0.2], [0.01, 1.0, 1.0], [1.0] * 3, [1.0] * 3]
    one = made_up(found, [0.01, 0.2, 0.01], p, [0.5, -2.0, 9.0])
    assert answer(one) == (
        "Of 3 atoms of relu, 2 are found again in other examples beyond chance; 2 have a part in the score of “sewing "
        "machine”, most atom 1 (down)."
    )
    assert shown_atom(one) == 1, "the largest part, of atom 2, is not significant"
    again, parts, replicated = discovery_summary(one).marks
    assert (again.standing, again.says) == (Standing.PARTLY, "2 of 3 in the other half.")
    assert (parts.standing, parts.says) == (Standing.PARTLY, "3 of 12.")
    assert replicated.standing is Standing.UNTESTED


def test_where_nothing_is_significant_nothing_is_claimed(found: DiscoveryResult) -> None:
    none = made_up(found, [0.5, 0.06, 1.0], [[0.06, 1.0, 0.2]] * 4, [0.5, -2.0, 9.0])
    said = answer(none)
    assert said == (
        "None of 3 atoms of relu is shown to be found again in other examples; none is shown to have a part in the score of "
        "“sewing machine”."
    )
    assert [mark.standing for mark in discovery_summary(none).marks[:2]] == [Standing.NO, Standing.NO]


def test_without_scores_the_figure_is_of_what_is_found_again(found: DiscoveryResult) -> None:
    bare = replace(made_up(found, [0.01, 0.01, 0.01], [[1.0] * 3] * 4, [0.0] * 3), importance=None)
    summary = discovery_summary(bare)
    assert summary.answer == "Of 3 atoms of relu, 3 are found again in other examples beyond chance."
    assert [mark.standing for mark in summary.marks] == [Standing.YES, Standing.UNTESTED, Standing.UNTESTED]
    dots = [line for line in summary.plate.draw().axes[1].lines if len(line.get_xdata()) == 1]
    assert sorted(float(dot.get_xdata()[0]) for dot in dots) == pytest.approx(sorted(bare.agreement.cosine.tolist()))


@pytest.mark.parametrize(
    ("p_of_largest", "said"), [(0.01, "The largest is"), (0.2, "The largest, which is not significant, is")]
)
def test_the_largest_part_is_said_to_be_significant_only_where_it_is(
    found: DiscoveryResult, p_of_largest: float, said: str
) -> None:
    one = made_up(found, [1.0] * 3, [[0.01, 1.0, p_of_largest]] * 4, [0.5, -2.0, 9.0])
    pictures = AtomPictures(tuple(AtomStrips(atom, ()) for atom in range(len(one))))
    evidence = [str(f.evidence) for f in discovery_page(one, pictures, "made up").findings if "significant part" in f.claim]
    assert len(evidence) == 4
    assert all(each.startswith(f"{said} that of atom 2, +9") for each in evidence), evidence


@pytest.mark.parametrize("scored", [True, False])
def test_one_screen_holds_a_discovery(found: DiscoveryResult, tmp_path: Path, scored: bool) -> None:
    one = made_up(found, [0.01, 0.2, 0.01], [[0.01, 0.02, 0.2]] * 4, [0.5, -2.0, 9.0])
    one = one if scored else replace(one, importance=None)
    strip = Strip("atom", [Image.new("RGB", (64, 64), "red")], ["code 1"])
    pictures = AtomPictures(tuple(AtomStrips(atom, (strip,)) for atom in range(len(one))))
    subject = "timm:mobilenetv3_small_100, 400 pictures of photos"
    page = replace(discovery_page(one, pictures, subject, NAMES[0]), sections=())
    with browser.chromium(tmp_path) as chromium:
        assert chromium.first_screen_faults(page.save(tmp_path / "page.html", alone=True)) == []
