"""The first screen of a dissection: its sentence is as strong as its numbers."""

from dataclasses import replace
from pathlib import Path

import browser
import pytest
import torch
from dissection_nets import blobs, given_units, named, scenes_of

from concepts.dissection.dissection import Dissection
from concepts.dissection.page import overview
from concepts.dissection.protocols import Protocol
from concepts.dissection.result import DissectionResult
from concepts.dissection.summary import answer, dissection_summary
from probing.results.html_report import Standing
from probing.store.store import ActivationStore


@pytest.fixture(scope="module")
def found() -> DissectionResult:
    """Return three units, of which the first is active where a concept is."""
    generator = torch.Generator().manual_seed(0)
    masks = blobs(12, 2, 16, seed=0) > 1
    maps = torch.rand(12, 3, 16, 16, generator=generator)
    maps[:, 0] += masks[:, 0]
    planes = masks.long() * torch.arange(1, 3)[:, None, None]
    method = Dissection(("units",), Protocol(0.05), draws=9)
    return method(ActivationStore(progress=False), given_units(3), scenes_of(maps, planes, named(2)))


def made_up(found: DissectionResult, p: list[float]) -> DissectionResult:
    return replace(found, p_fdr=torch.tensor(p, dtype=torch.float64))


def test_the_answer_counts_units_beyond_chance_and_no_others(found: DissectionResult) -> None:
    best = int(found.best_iou.argmax())
    sure = [1.0] * 3
    sure[best] = 0.01
    concept = found.concepts[int(found.best[best])]
    one = made_up(found, sure)
    assert answer(one).startswith("1 of 3 units matches a concept more than shuffled images give, ")
    assert answer(one).endswith(f"best is unit {int(found.unit[best])} of units, “{concept}”.")
    assert dissection_summary(one).marks[0].says == "1 of 3 after correction."
    other = next(i for i in range(3) if i != best)
    sure = [1.0] * 3
    sure[other] = 0.01
    assert f"best is unit {int(found.unit[other])}" in answer(made_up(found, sure)), (
        "the highest IoU was no more than chance"
    )
    assert ", 1 by more than the published rule asks" in answer(replace(one, min_iou=0.0))
    assert ", none by more than the published rule asks" in answer(replace(one, min_iou=1.0))


def test_without_a_test_or_a_find_nothing_is_claimed(found: DissectionResult) -> None:
    none = made_up(found, [1.0] * 3)
    assert answer(none).startswith("None of 3 units is shown to match any concept")
    assert dissection_summary(none).marks[0].standing is Standing.NO
    untested = made_up(found, [torch.nan] * 3)
    assert answer(untested).endswith("whether chance gives as much was not tested.")
    assert dissection_summary(untested).marks[0].standing is Standing.UNTESTED


def test_halves_agree_as_far_as_they_do(found: DissectionResult) -> None:
    every, none = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    assert dissection_summary(replace(found, min_iou=0.0, same_choice=every)).marks[1].standing is Standing.YES
    assert dissection_summary(replace(found, min_iou=0.0, same_choice=none)).marks[1].standing is Standing.NO
    assert dissection_summary(replace(found, min_iou=1.0, same_choice=every)).marks[1].standing is Standing.UNTESTED


def test_one_screen_holds_a_dissection(found: DissectionResult, tmp_path: Path) -> None:
    subject = "timm:efficientnet_lite0, 500 images of synthetic, protocol paper, rotated"
    page = replace(overview(found, subject), sections=())
    with browser.chromium(tmp_path) as chromium:
        assert chromium.first_screen_faults(page.save(tmp_path / "page.html", alone=True), picture=False) == []
