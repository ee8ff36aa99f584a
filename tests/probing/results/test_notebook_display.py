"""Every result shows itself: a figure, a table where it is one, and a page for notebooks that fetches nothing."""

import re
from collections.abc import Iterator
from dataclasses import fields, replace

import made_up
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from where import SAVED

from concepts.auditing.measurement.results import AuditResults
from concepts.tcav.result import TcavResult
from probing.attribution.base import Attribution
from probing.evaluation.curves import Curves
from probing.results.figures import FULL_WIDTH, figure_of
from probing.results.notebook import MOST_ROWS, page, table_html
from probing.results.result import Result

CLASSES = made_up.result_classes()
NEVER_EMPTY = {"Attribution", "AtlasResult", "AttributeAtlases", "ConceptDreams", "Maximization"}
"""These are made of numbers; what holds NaN is refused where it is made."""


def test_the_contract_is_of_all_results() -> None:
    assert len(CLASSES) >= 26
    assert {"Attribution", "TcavResult", "Scorecard", "AttributeProbes"} <= {c.__name__ for c in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_a_result_draws_itself_and_shows_itself_in_a_notebook(cls: type[Result]) -> None:
    found = made_up.result(cls)
    drawn = found.plot()
    assert isinstance(drawn, Axes | Figure)
    assert figure_of(drawn).get_figwidth() <= FULL_WIDTH
    html = found._repr_html_()
    assert html.count("<img") == 1 or cls.__name__ == "TextAttribution"
    assert not re.findall(r'src="(?!data:)|https?://|<script|<link', html)
    assert not re.findall(r"<b>(?!\w+</b>)|<[0-9]>", html)  # names of a result are no markup
    assert all(isinstance(s, str) and s.strip() for s in found.sentences())


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_result_is_a_few_lines_as_text(cls: type[Result], empty: bool) -> None:
    found = made_up.result(cls, empty=empty)
    lines = repr(found).splitlines()
    assert len(lines) <= 7
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].startswith(cls.__name__)
    assert "provenance" not in repr(found).lower()
    assert str(found.provenance.machine) not in repr(found)
    first = next(f.name for f in fields(found) if f.name != "provenance")
    assert first in repr(found)


def test_the_text_of_a_result_tells_shapes_ranges_and_names_and_survives_any_tensor() -> None:
    found = Attribution(
        replace(made_up.result(Attribution).provenance, method={"class": "Saliency", "fields": {}}),
        torch.tensor([[0.0, -1.5, 2.25, 0.5]] * 2),
        torch.tensor([1.0, 2.0]),
        (3, 1),
        "logit",
        n_forward=2,
        n_backward=2,
        diagnostics={"steps": torch.ones(2)},
    )
    assert repr(found) == (
        "Attribution by Saliency:\n"
        "    values [2, 4] from -1.5 to 2.25, score [1, 2], target (3, 1), unit 'logit', n_forward 2,\n"
        "    n_backward 2, diagnostics of 1 (steps), signed True"
    )
    for values, said in (
        (torch.full((2, 9), torch.nan), "values [2, 9] of NaN"),
        (torch.empty(2, 9, device="meta"), "values [2, 9], "),
        (torch.zeros(2, 0), "values [2, 0]"),
        (torch.ones(2, 9).to_sparse(), "values [2, 9], "),
    ):
        assert said in repr(replace(found, values=values))


def test_an_audit_s_results_are_a_few_lines_as_text() -> None:
    found = AuditResults.load(SAVED / "0.1.0" / "AuditResults")
    lines = repr(found).splitlines()
    assert lines[0] == f"AuditResults of {found.name!r}:"
    assert 3 < len(lines) <= 7


@pytest.mark.parametrize("cls", [c for c in CLASSES if c.__name__ not in NEVER_EMPTY])
def test_what_was_not_asked_for_is_shown_as_nothing(cls: type[Result]) -> None:
    html = made_up.result(cls, empty=True)._repr_html_()
    assert not re.findall(r">nan<", html, re.IGNORECASE)


def tables() -> Iterator[pd.DataFrame]:
    yield pd.DataFrame({"a": range(MOST_ROWS + 5)})
    yield pd.DataFrame({"a": [1.23456]}, index=["row"])


def test_a_long_table_is_cut_and_the_rest_is_counted() -> None:
    long, named = tables()
    assert table_html(long).count("<tr") == 1 + MOST_ROWS
    assert "and 5 more rows" in table_html(long)
    assert "<th>row</th>" in table_html(named)
    assert ">1.23<" in table_html(named)
    assert "<th>0</th>" not in table_html(long)


def test_many_concepts_are_a_grid_that_says_which_directions_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(made_up.SIZES, "concepts", 12)
    found = made_up.result(TcavResult)
    axes = found.plot()
    assert axes.get_images()[0].get_array().shape == (12, 3)
    marks = [text.get_text() for text in axes.texts]
    assert marks.count("") == int((found.exists & ~found.significant[..., 0]).sum()) < 36


def test_a_notebook_shows_a_figure_whatever_the_backend_is() -> None:
    data, size = made_up.result(Curves).plot()._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert size == {"width": 330}


def test_sentences_stand_beside_the_numbers_and_are_escaped() -> None:
    html = page("<i>", sentences=["a < b", *map(str, range(9))])
    assert "and 2 more" in html
    assert "&lt;i&gt;" in html
    assert "<li>a &lt; b</li>" in html
