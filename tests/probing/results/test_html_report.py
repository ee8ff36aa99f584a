"""The page: self-contained, escaped, numbered; and the report of an audit."""

import base64
import gc
import hashlib
import re
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import audits
import pytest
from matplotlib.figure import Figure

from concepts.auditing.measurement.results import AuditResults, ResultsError
from concepts.auditing.report.page import write_report
from probing.results import html_report
from probing.results.figures import new_figure, style
from probing.results.html_report import (
    Code,
    Finding,
    Link,
    Mark,
    Paragraph,
    Plate,
    Points,
    Report,
    ReportError,
    Section,
    Standing,
    Summary,
    Table,
    interval,
    linked,
    nothing_last,
    number,
    p_value,
    words,
)
from probing.results.tables import DataTable, DataTableError

HOSTILE = '<script>alert(1)</script><img src="http://x.test/a.png" onerror="alert(1)">'
EXTERNAL = re.compile(
    r"""(?:src|href|action|data|poster)\s*=\s*["']?(?!["']?(?:\#|data:))|url\((?!\#|["']?data:)|@import|https?://""",
    re.IGNORECASE,
)


def small(text: str = "a") -> Figure:
    with style():
        figure = new_figure(1.0, 1.0)
        figure.text(0, 0, text)
    return figure


def page(text: str = "some text") -> str:
    blocks = (
        Paragraph(text),
        Points((text,)),
        Plate(partial(small, text), text, text, "figures/a"),
        Table(text, (text, "b"), ((text, "1"),)),
        Table("more", ("a", "b"), ((text, "1"),), folded=True),
        Section(text + " below", (Code(text), Code(text, text))),
        Plate(small, "another", "second"),
    )
    report = Report(
        title=text,
        subject=text,
        question=text,
        findings=(Finding(text, text),),
        limits=(text,),
        sections=(Section(text, blocks),),
        colophon=((text, text),),
    )
    return report.html()


def test_nothing_on_the_page_is_fetched_from_elsewhere() -> None:
    assert not EXTERNAL.findall(page())


def test_whatever_stands_in_a_report_is_text() -> None:
    html = page(HOSTILE)
    assert html.count("<script") == 1  # the page's own
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 15


def test_the_page_lets_its_own_script_run_and_forbids_others_and_connections() -> None:
    html = page()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy[1]
    assert f"script-src 'sha256-{digest}';" in policy[1]


def test_a_link_leads_to_a_place_of_the_page_or_there_is_no_page() -> None:
    table = DataTable("numbers", "all", ("name", "value"), (("a", 0.5), ("b", None)))
    blocks = (
        Paragraph(words("see ", Link("0.5", table.at("a")))),
        Table("t", ("n", "v"), (linked(("a", "0.5"), table.at("a")),)),
    )
    report = Report("t", "s", "q", (Finding("c", see="A section"),), (), (Section("A section", blocks),), data=(table,))
    assert report.html().count('href="#numbers-2"') == 2
    with pytest.raises(ReportError, match="leads to 'numbers-2', which the page does not have"):
        replace(report, data=()).html()
    with pytest.raises(ReportError, match="leads to 's-another', which"):
        replace(report, findings=(Finding("c", see="Another"),)).html()
    with pytest.raises(ReportError, match="two places of the page are called 's-a-section'"):
        replace(report, sections=report.sections * 2).html()


def test_sections_that_found_nothing_are_folded_into_one_behind_the_others() -> None:
    empty = [Section(f"lost {i}", (Plate(small, f"{i}", "c"),), nothing=True) for i in range(2)]
    full = [Section(f"found {i}", (Plate(small, f"{i}", "c"),)) for i in range(2)]
    gathered = nothing_last([empty[0], full[0], empty[1], full[1]])
    assert [s.title for s in gathered] == ["found 0", "found 1", "Looked for and not found"]
    assert gathered[-1].blocks == tuple(empty)
    assert nothing_last(full) == tuple(full)
    html = Report("t", "s", "q", (Finding("c", see="lost 1"),), (), gathered).html()  # and the link leads there
    fold = html[html.index('<details class="folded">') :]
    assert "<summary>lost 0; lost 1</summary>" in fold
    assert re.findall(r"<b>Figure (\d)\.</b>", fold) == ["3", "4"]
    assert '<h3 id="s-lost-0">' in fold


def test_a_summary_and_the_pictures_of_findings_are_numbered_before_the_sections() -> None:
    shown = [Plate(small, label, label, f"figures/{label}") for label in ("first", "second", "third")]
    marks = (Mark("Beyond chance?", Standing.PARTLY, "1 of 2."), Mark("Replicated?", Standing.UNTESTED))
    report = Report(
        title="t",
        subject="s",
        question="the long question",
        findings=(Finding("bare"), Finding("drawn", picture=shown[1])),
        limits=(),
        sections=(Section("a", (shown[2],)),),
        summary=Summary("the answer", shown[0], marks, "a thing"),
    )
    html = report.html()
    assert re.findall(r"<b>Figure (\d)\.</b> (\w+)", html) == [("1", "first"), ("2", "second"), ("3", "third")]
    assert html.index("the answer") < html.index("It does not say") < html.index("the long question") < html.index("bare")
    assert "Beyond chance? <b>In part:</b> 1 of 2." in html
    assert "Replicated? <b>Not tested.</b>" in html
    with pytest.raises(ReportError, match="two figures of the page are called 'figures/first'"):
        replace(report, sections=(Section("a", (shown[0],)),)).html()


def test_a_tables_rows_are_named_by_their_lines_in_the_csv(tmp_path: Path) -> None:
    table = DataTable("numbers", "all", ("name", "value"), (("a, b", 1 / 3), ("c", None)))
    lines = table.write(tmp_path).read_text(encoding="utf-8").splitlines()
    assert lines[int(table.at("a, b").removeprefix("numbers-")) - 1] == f'"a, b",{1 / 3}'
    with pytest.raises(DataTableError, match=r"'numbers' has no row \('d',\)"):
        table.at("d")
    with pytest.raises(DataTableError, match="first 1 columns of 'numbers' do not tell"):
        replace(table, rows=table.rows * 2).at("c")


def test_the_verdict_comes_before_its_limits_and_these_before_the_sections() -> None:
    html = page()
    places = [html.index(part) for part in ("Verdict", "What this does not say", '<h2 id="s-')]
    assert places == sorted(places)


def test_figures_and_tables_are_numbered_apart() -> None:
    html = page()
    assert re.findall(r"<b>(Figure|Table) (\d)\.</b>", html) == [
        ("Figure", "1"),
        ("Table", "1"),
        ("Table", "2"),
        ("Figure", "2"),
    ]
    assert "For print: figures/a.png and .pdf." in html


def reported(*plates: Plate) -> Report:
    table = DataTable("numbers", "all", ("name", "value"), (("a", 0.5),))
    return Report("t", "s", "q", (Finding("c"),), (), (Section("A section", plates),), data=(table,))


def test_saving_writes_figures_and_tables_beside_the_page_that_is_the_same_without_them(tmp_path: Path) -> None:
    report = reported(
        Plate(small, "one", "printed", "figures/one", "numbers"),
        Plate(small, "two", "on the page alone"),
        Plate(small, "three", "printed by another", "three", written=False),
    )
    path = report.save(tmp_path / "made" / "page.html")
    made = {p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*") if p.is_file()}
    assert made == {"page.html", "tables/numbers.csv", "figures/one.png", "figures/one.pdf"}
    alone = report.save(tmp_path / "alone" / "page.html", alone=True)
    assert list(alone.parent.iterdir()) == [alone]
    assert path.read_text(encoding="utf-8") == alone.read_text(encoding="utf-8") == report.html()


def test_figures_are_drawn_when_a_report_is_saved_in_their_order_and_let_go_one_after_the_other(tmp_path: Path) -> None:
    drawn: list[str] = []
    alive: list[weakref.ref[Figure]] = []

    def draw(name: str) -> Figure:
        gc.collect()
        assert all(figure() is None for figure in alive)
        drawn.append(name)
        figure = small()
        alive.append(weakref.ref(figure))
        return figure

    names = ["a", "b", "c", "d"]
    first, *rest = (Plate(partial(draw, name), name, name) for name in names)
    report = replace(reported(), sections=(Section("A section", (Section("Below", (first,)), *rest)),))
    assert not drawn
    report.save(tmp_path / "page.html")
    assert drawn == names


def test_two_figures_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    plate = Plate(small, "one", "one", "figures/one")
    with pytest.raises(ReportError, match="two figures of the page are called 'figures/one'"):
        reported(plate, replace(plate, label="two")).save(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_table_with_a_ragged_row_is_refused() -> None:
    with pytest.raises(ReportError, match="'numbers' has 2 columns, but a row of 1 cells"):
        Table("numbers", ("a", "b"), (("1",),))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (number(-0.531), "\N{MINUS SIGN}0.53"),
        (number(0.531, sign=True), "+0.53"),
        (number(-0.001, sign=True), "0.00"),
        (number(None), "\N{EN DASH}"),
        (interval(-0.1, 0.2), "\N{MINUS SIGN}0.10 to +0.20"),
        (interval(None, 0.2), "\N{EN DASH}"),
        (p_value(0.0004), "< 0.001"),
        (p_value(0.0312), "0.031"),
        (p_value(None), "\N{EN DASH}"),
    ],
)
def test_numbers_are_set_as_in_print(said: str, expected: str) -> None:
    assert said == expected


def report_of(results: AuditResults, folder: Path) -> str:
    audits.save_pictures(folder / "images")
    results.save(folder)
    write_report(folder, {"created": "today", "command": ["probing", HOSTILE], "versions": {"torch": "1"}})
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    made_up = audits.results(targets=("bikini", HOSTILE, "$a_1$", "purse"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html_report, "save_figure", lambda *_: None)  # the page does not need them
        return report_of(replace(made_up, title=HOSTILE), tmp_path_factory.mktemp("hostile"))


def test_an_audits_report_is_self_contained_whatever_its_classes_are_called(
    hostile_report: str,
) -> None:
    outside = re.sub(r"&lt;.*?&gt;|&#34;.*?&#34;", "", hostile_report)
    assert hostile_report.count("<script") == 1
    assert "<img" not in hostile_report
    assert not EXTERNAL.findall(outside)
    assert "$a_1$" in hostile_report


def test_an_audits_report_holds_every_section_and_figure(hostile_report: str) -> None:
    assert hostile_report.count("<svg ") == hostile_report.count("</svg>") == 12
    titles = re.findall(r'<h2 id="s-[^"]*">([^<]*)</h2>', hostile_report)
    assert titles[:2] == ["Concepts by class and layer", "What a swap does to each class"]
    assert 'aria-label="Images like woman against man: most like woman among neutral figures are' in hostile_report
    assert titles[-3:-1] == ["How it was done", "Where the model and the images come from"]


def test_results_that_are_missing_or_damaged_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"no results\.json: run the audit first"):
        write_report(tmp_path, {})
    audits.results().save(tmp_path)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    (tmp_path / "results.json").write_text(text.replace('"level": 0.95', '"level": "high"'), encoding="utf-8")
    with pytest.raises(ResultsError, match=r"can't be read: .* at 'level'"):
        AuditResults.load(tmp_path)


def test_saved_results_are_read_back_equal(tmp_path: Path) -> None:
    results = audits.results()
    results.save(tmp_path)
    assert AuditResults.load(tmp_path) == results
